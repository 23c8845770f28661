"""What the user is told: one line on stderr, whatever is in it (a leaf)."""

import os


def warn(message: str) -> None:
    """Write one line to stderr; without a stderr to write to, do nothing."""
    write(line(message) + "\n")


def line(message: str) -> str:
    """The message behind this tool's name.

    What cannot be printed, such as a newline or an escape sequence in a member's
    name, is shown by its escape, so that a line stays one line.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return "poncho_package_run: " + shown


def write(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:
        pass  # stderr is closed or its reader is gone: nobody to tell, and the command goes on


def printable(path: bytes) -> str:
    """A member's name for a message: one line, no control characters, not endless."""
    text = path.decode("utf-8", "replace")
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= 300 else text[:297] + "..."

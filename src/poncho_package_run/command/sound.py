"""What can be told of a program by looking at it, before it is executed."""

import os


def is_sound(path: bytes) -> bool:
    """Whether execve will take this file, as far as that can be told by looking at it.

    True for a script whose interpreter may be executed, and for a program that is made for the
    same machine and dynamic loader as the interpreter that we are run by.
    """
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return False
    head = head_of(path) or b""
    if head[:2] == b"#!":
        words = head[2:].partition(b"\n")[0].split(None, 1)
        return bool(words) and os.path.isfile(words[0]) and os.access(words[0], os.X_OK)
    ours = head_of(b"/proc/self/exe") or b""
    at = ours.find(b"/ld")  # the loader's path; not by a regular expression: re takes 5 ms
    loader = ours[ours.rfind(b"\0", 0, at) : ours.find(b"\0", at) + 1]
    same = head[:6] + head[18:20] == ours[:6] + ours[18:20]
    return ours[:4] == b"\x7fELF" and at > 0 and same and loader in head


def head_of(path: bytes) -> "bytes | None":
    """The first bytes of a file; None if they cannot be read, though it may be executed."""
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return None

"""What the tool says when it fails (contract: one line, no traceback, a status)."""

import os
import subprocess

PREFIX = b"poncho_package_run: "


def status_of(result: "subprocess.CompletedProcess[bytes]") -> int:
    """The exit status as a shell shows it: 128+N for a process that signal N killed."""
    return 128 - result.returncode if result.returncode < 0 else result.returncode


def refused(result: "subprocess.CompletedProcess[bytes]", status: int, *words: str) -> str:
    """Assert that the tool itself failed with ``status`` and one proper line; return the line.

    Args:
        words: each must occur in the line (a path, a limit, a hint).
    """
    text = os.fsdecode(result.stderr)
    assert status_of(result) == status, f"status {status_of(result)}, not {status}: {text}"
    assert result.stdout == b"", "stdout belongs to the command"
    assert result.stderr.startswith(PREFIX), text
    assert result.stderr.count(b"\n") == 1, f"more than one line: {text}"
    assert result.stderr.endswith(b"\n"), text
    said = result.stderr[len(PREFIX) :]
    assert not said[:1].isupper(), f"starts in upper case: {text}"
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    return text

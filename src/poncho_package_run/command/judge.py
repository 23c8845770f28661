"""What it means that execve refused, or would refuse, a file which is there."""

import errno
import os

from ..telling.refusal import IS_DIRECTORY, NOT_PERMITTED, not_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

    from ..telling.errors import Failure


def judge(path: bytes, error: OSError, command: list, environ: dict) -> "Tuple[Failure, bool]":
    """What to make of a file that is there and that execve refused.

    A file without the magic number of a program is run by ``/bin/sh``, as every shell does;
    an empty one is not, because whatever it was to be, it is not that any more.

    Returns:
        What to tell, and whether it is no program at all, so that a later directory of PATH may
        have the command.
    """
    reason = "{}; see execve(2) for what that means".format(error.strerror)
    passed_over = False
    if not os.path.exists(path):
        reason = "it is a symbolic link to {}, which does not exist; pack the environment with it"
        reason = reason.format(os.fsdecode(os.readlink(path)) if os.path.islink(path) else "it")
        passed_over = True
    elif os.path.isdir(path):
        reason, passed_over = IS_DIRECTORY, True
    elif error.errno == errno.EACCES:
        if not os.stat(path).st_mode & 0o111:
            reason, passed_over = NOT_PERMITTED, True
        elif os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            # Else the system's own python, further on in PATH, would be run in its place.
            reason = (
                "its file system is mounted noexec; "
                "give a directory elsewhere with --unpack-to or TMPDIR"
            )
        elif os.access(path, os.X_OK):
            reason = "no permission for the interpreter in its first line; make that executable"
        else:
            reason, passed_over = NOT_PERMITTED, True
    elif error.errno == errno.ENOENT:
        reason = (
            "the interpreter in its first line, or its dynamic loader, does not exist; "
            "run it with one that does (python3 FILE)"
        )
    elif error.errno == errno.E2BIG:
        size = sum(map(len, command)) + sum(map(len, environ)) + sum(map(len, environ.values()))
        reason = "{} bytes of arguments and variables are too many; pass long ones in a file"
        reason = reason.format(size)
    elif error.errno == errno.ENOEXEC:
        head = _head(path)
        if head == b"":
            reason = "it is empty; unpack or write it anew"
        else:
            # A NUL in the first line: the test by which bash tells programs from scripts.
            if head is None or b"\0" not in head[:128].partition(b"\n")[0]:
                os.execve(b"/bin/sh", [b"/bin/sh", path, *command[1:]], environ)
            reason = "it is no program for this kind of machine; pack the environment on one"
    return not_executable(path, reason), passed_over


def is_sound(path: bytes) -> bool:
    """Whether execve will take this file, as far as that can be told by looking at it.

    True for a script whose interpreter may be executed, and for a program that is made for the
    same machine and dynamic loader as the interpreter that we are run by.
    """
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return False
    head = _head(path) or b""
    if head[:2] == b"#!":
        words = head[2:].partition(b"\n")[0].split(None, 1)
        return bool(words) and os.path.isfile(words[0]) and os.access(words[0], os.X_OK)
    ours = _head(b"/proc/self/exe") or b""
    at = ours.find(b"/ld")  # the loader's path; not by a regular expression: re takes 5 ms
    loader = ours[ours.rfind(b"\0", 0, at) : ours.find(b"\0", at) + 1]
    same = head[:6] + head[18:20] == ours[:6] + ours[18:20]
    return ours[:4] == b"\x7fELF" and at > 0 and same and loader in head


def _head(path: bytes) -> "bytes | None":
    """The first bytes of a file; None if they cannot be read, though it may be executed."""
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return None

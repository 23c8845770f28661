"""What it means that execve refused a file which is there."""

import errno
import os

from ..telling.refusal import IS_DIRECTORY, NOT_PERMITTED, not_executable
from .sound import head_of

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
        head = head_of(path)
        if head == b"":
            reason = "it is empty; unpack or write it anew"
        else:
            # A NUL in the first line: the test by which bash tells programs from scripts.
            if head is None or b"\0" not in head[:128].partition(b"\n")[0]:
                os.execve(b"/bin/sh", [b"/bin/sh", path, *command[1:]], environ)
            reason = "it is no program for this kind of machine; pack the environment on one"
    return not_executable(path, reason), passed_over

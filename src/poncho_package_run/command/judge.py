"""What it means that execve refused a file which is there."""

import errno
import os

from ..telling.errors import Failure
from ..telling.refusal import IS_DIRECTORY, NOT_PERMITTED, not_executable


def judge(path: bytes, error: OSError, command: list, environ: dict) -> Failure:
    """What to make of a file that is there and that execve refused.

    A file without the magic number of a program is run by ``/bin/sh``, as every shell does.

    Returns:
        The failure to tell if no later directory of PATH has the command.

    Raises:
        CommandNotExecutable: it is what was meant, so that a later one must not be run instead.
    """
    reason = "{}; see execve(2) for what that means".format(error.strerror)
    if error.errno == errno.EACCES:
        if os.path.isdir(path):
            return not_executable(path, IS_DIRECTORY)
        if not os.stat(path).st_mode & 0o111:
            return not_executable(path, NOT_PERMITTED)
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            # Else the system's own python, further on in PATH, would be run in its place.
            reason = (
                "its file system is mounted noexec; "
                "give a directory elsewhere with --unpack-to or TMPDIR"
            )
        elif os.access(path, os.X_OK):
            reason = "no permission for the interpreter in its first line; make that executable"
        else:
            return not_executable(path, NOT_PERMITTED)
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
        if not _is_binary(path):
            os.execve(b"/bin/sh", [b"/bin/sh", path, *command[1:]], environ)
        reason = "it is no program for this kind of machine; pack the environment on one"
    raise not_executable(path, reason)


def _is_binary(path: bytes) -> bool:
    """Whether the first line holds a NUL: the test by which bash tells programs from scripts."""
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(128).partition(b"\n")[0]
    except OSError:  # it may be executed but not read: the shell will say so
        return False

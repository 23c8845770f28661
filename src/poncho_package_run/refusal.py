"""Why a command could not be executed, and what to do about it."""

import errno
import os

from .errors import CommandNotExecutable, CommandNotFound, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def not_found(word: bytes, error: "Optional[OSError]" = None) -> Failure:
    """The failure to tell when no file has the command's name.

    Args:
        word: the command as it was given.
        error: what the system said, of a command with a slash.
    """
    name = os.fsdecode(word)
    if isinstance(error, PermissionError):
        return CommandNotExecutable(
            "cannot run {}: {}; make its directories searchable".format(name, error.strerror)
        )
    if error is not None:
        return CommandNotFound(
            "cannot run {}: {}; check the path, it is taken from the working directory".format(
                name, error.strerror
            )
        )
    return CommandNotFound(
        "command not found: {}; check the spelling, or install it into the environment before "
        "packing it".format(name or "'' (an empty word)")
    )


def judge(path: bytes, error: OSError, command: list, environ: dict) -> Failure:
    """What to make of a file that is there and that execve refused.

    A file without the magic number of a program is run by ``/bin/sh``, as every shell does.

    Returns:
        The failure to tell if no later directory of PATH has the command.

    Raises:
        CommandNotExecutable: it is what was meant, so that a later one must not be run instead.
    """
    name = os.fsdecode(path)
    advice = "see execve(2) for what that means"
    reason = error.strerror
    if error.errno == errno.EACCES:
        if os.path.isdir(path):
            return CommandNotExecutable(
                "cannot run {}: it is a directory; name the program in it".format(name)
            )
        advice = "make it executable with chmod +x"
        if not os.stat(path).st_mode & 0o111:
            return CommandNotExecutable("cannot run {}: {}; {}".format(name, reason, advice))
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            # A system's own python further on in PATH would run without a word, and fail later.
            reason = "its file system is mounted noexec"
            advice = "give a directory elsewhere with --unpack-to or TMPDIR"
        elif os.access(path, os.X_OK):
            reason += ", for the interpreter in its first line"
        else:
            return CommandNotExecutable("cannot run {}: {}; {}".format(name, reason, advice))
    elif error.errno == errno.ENOENT:
        reason = "the interpreter in its first line, or its dynamic loader, does not exist"
        advice = "run it with an interpreter that does: python3 {}".format(name)
    elif error.errno == errno.E2BIG:
        size = sum(map(len, command)) + sum(map(len, environ)) + sum(map(len, environ.values()))
        reason = "its arguments and variables are too long ({} bytes)".format(size)
        advice = "pass long ones in a file"
    elif error.errno == errno.ENOEXEC:
        if not _is_binary(path):
            os.execve(b"/bin/sh", [b"/bin/sh", path] + command[1:], environ)
        reason = "it is not a program for this kind of machine"
        advice = "pack the environment on a machine of this kind"
    raise CommandNotExecutable("cannot run {}: {}; {}".format(name, reason, advice))


def _is_binary(path: bytes) -> bool:
    """Whether the first line holds a NUL: the test by which bash tells programs from scripts."""
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(128).partition(b"\n")[0]
    except OSError:  # it may be executed but not read: the shell will say so
        return False

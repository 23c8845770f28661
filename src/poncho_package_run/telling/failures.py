"""What the system refused, or an archive asked for, as a failure with a message."""

import errno
import os

from .errors import CannotCreate, Failure, InputOutputError, RelocationError
from .messages import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Type


# What another try, or more room, may overcome; other errors say that a directory is not to be had.
_PASSING = (
    errno.EDQUOT,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
)

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def failure(
    error: OSError, path: bytes, directory: int = -1, needed: "Optional[int]" = None
) -> Failure:
    """What an error of the system means to the user.

    Args:
        error: what the system said.
        path: of what was read or written.
        directory: an open descriptor on the same file system, if there is one.
        needed: how many bytes were to be written, if that is known.
    """
    name, why = printable(path), error.strerror
    if error.errno in _REFUSED:
        return CannotCreate("cannot write {}: {}; choose another directory".format(name, why))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return InputOutputError(
            "cannot open {}: {}; allow more open files (ulimit -n)".format(name, why)
        )
    if error.errno == errno.EFBIG:
        return InputOutputError(
            "cannot write {}: {}; allow larger files (ulimit -f) or choose a file system that has "
            "them".format(name, why)
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        failed = InputOutputError(
            "cannot write {}: {}{}; make room or choose a larger file system".format(
                name, why, _room(directory, needed)
            )
        )
        failed.full = True
        return failed
    failed = InputOutputError("cannot read or write {}: {}; try again".format(name, why))
    failed.gone = failed.elsewhere = error.errno in (errno.ENOENT, errno.ESTALE)
    return failed


def kind_of(error: OSError) -> "Type[Failure]":
    """The kind of failure where a directory or a lock in it could not be had."""
    return InputOutputError if error.errno in _PASSING else CannotCreate


def cannot_create(directory: bytes, error: OSError) -> Failure:
    """A directory that was asked for cannot be made."""
    failed = kind_of(error)(
        "cannot create {}: {}; choose another directory".format(
            printable(directory), error.strerror
        )
    )
    failed.full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return failed


def untrusted(path: bytes) -> Failure:
    """A directory that somebody else may have planted."""
    return CannotCreate(
        "{} belongs to another user, in a directory where anyone may have made it; choose "
        "another directory".format(os.fsdecode(path))
    )


def nowhere(path: bytes, error: OSError) -> Failure:
    """A relative path, where the working directory cannot be told."""
    return CannotCreate(
        "cannot tell where {} is, seen from the working directory: {}; give its absolute "
        "path".format(os.fsdecode(path), error.strerror)
    )


def located(error: OSError, directory: bytes) -> Failure:
    """The same, for an error that was not expected where it was met: somewhere in ``directory``."""
    path = directory
    if isinstance(error.filename, (str, bytes)):
        path = os.path.join(directory, os.fsencode(error.filename))
    return failure(error, path)


def unsafe(path: bytes, what: str) -> str:
    return "the archive is unsafe: {} {}; nothing of it was kept".format(printable(path), what)


def _room(directory: int, needed: "Optional[int]") -> str:
    """What was needed and what there is, in brackets; "" if neither is known."""
    parts = []
    if needed is not None:
        parts.append("{} bytes needed".format(needed))
    try:
        status = os.fstatvfs(directory)
        free = status.f_bavail * status.f_frsize
        parts.append("{} bytes and {} files free".format(free, status.f_favail))
    except OSError:
        pass  # no descriptor, or a file system that cannot say
    return " ({})".format(", ".join(parts)) if parts else ""


def wrong_machine(path: bytes, theirs: str, ours: str) -> RelocationError:
    """The failure to tell of an environment for another kind of machine."""
    failed = RelocationError(
        "the environment's {} is for {}, and this machine is {}; pack an environment on a machine "
        "like this".format(printable(path), theirs, ours)
    )
    failed.elsewhere = False
    return failed

"""What the system refused, or an archive asked for, as a failure with a message."""

import errno
import os

from .directories import printable
from .errors import ArchiveError, CannotCreate, Failure, InputOutputError


def failure(error: OSError, path: bytes, directory: int) -> Failure:
    """What an error of the system, met at ``path`` below ``directory``, means to the user."""
    name, why = printable(path), error.strerror
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
        return ArchiveError("{}: {}; pack it under a shorter name".format(name, why))
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
        return ArchiveError(unsafe(path, "takes the place of another member"))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CannotCreate("cannot write {}: {}; choose another directory".format(name, why))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = ""
        if directory >= 0:
            status = os.fstatvfs(directory)
            free = " ({} bytes and {} files free)".format(
                status.f_bavail * status.f_frsize, status.f_favail
            )
        return InputOutputError(
            "cannot write {}: {}{}; make room or choose a larger file system".format(
                name, why, free
            )
        )
    return InputOutputError("cannot write {}: {}; try again".format(name, why))


def unsafe(path: bytes, what: str) -> str:
    return "the archive is unsafe: {} {}; nothing of it was kept".format(printable(path), what)

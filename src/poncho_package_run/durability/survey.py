"""The files of a kept environment against its manifest, once the machine was down."""

import errno
import os
import stat
from zlib import crc32

from ..telling.messages import printable
from .manifest import NAME, sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List


# What a damaged file system says of a file: it is not there, or not to be read, or something else
# has its place.  The last two are the kernel's EFSCORRUPTED and EFSBADCRC.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EIO, 117, errno.EBADMSG)


class _Lost(Exception):
    """A file is not as it was unpacked; the message says how."""


def damage(directory: bytes, expected: object) -> str:
    """Compare every file with the manifest.

    A file that someone has changed or removed since it was unpacked is as he wants it.

    Args:
        directory: absolute.
        expected: what ``Manifest.finish`` said.

    Returns:
        What is damaged, as "PATH has ..."; "" if all is as it should be.

    Raises:
        OSError: a file cannot be read for another reason than damage (descriptors, memory).
    """
    try:
        with open(directory + b"/" + NAME, "rb") as file:
            records = file.read()
            since = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        records = b""
    if "%d %08x" % (len(records), crc32(records)) != expected:
        return "the list of its files has been lost"
    lost: Dict[bytes, str] = {}
    for record in records.split(b"\0"):
        kind = record[:1]
        # A path may hold spaces: it comes last.
        fields = record.split(b" ", {b"f": 3, b"w": 3, b"p": 4}.get(kind, 1))
        path = fields[-1]
        if kind != b"p":
            lost.pop(path, None)
        try:
            _compare(directory + b"/" + path, kind, fields)
        except PermissionError:
            pass  # another user's, and not for us to read: nor will we need it
        except (_Lost, OSError) as error:
            if isinstance(error, OSError):
                if error.errno not in _DAMAGE:
                    raise
                error = _Lost("cannot be read: {}".format(error.strerror))
            if not _is_changed(directory, path, since):
                lost.setdefault(path, "{} {}".format(printable(path), error))
    return next(iter(lost.values()), "")


def _compare(path: bytes, kind: bytes, fields: "List[bytes]") -> None:
    """Raise _Lost, or OSError, unless the file is as its record says."""
    if kind == b"l":
        os.lstat(path)
    if kind not in (b"f", b"w", b"p"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        size, crc = int(fields[-3]), int(fields[-2], 16)
        if not stat.S_ISREG(status.st_mode):
            raise _Lost("is no file any more")
        if kind == b"p":
            found = crc32(os.pread(handle, size, int(fields[1])))
        else:
            if status.st_size != size:
                raise _Lost("has {} bytes instead of {}".format(status.st_size, size))
            found = sample(handle, size, kind == b"w")
        if found != crc:
            raise _Lost("has lost some of its content")
    finally:
        os.close(handle)


def _is_changed(directory: bytes, path: bytes, since: int) -> bool:
    """Whether someone has changed, replaced or removed the file after it was unpacked.

    Then its own time is later, or, if it was replaced by one that keeps its old time or removed,
    that of the directory it is in.  (The directory's time alone does not excuse a file that
    is there: anything may have been made beside it.)  File systems keep the order of such
    changes: where a later one has come to disk, no earlier one is lost.
    """
    try:
        status = os.lstat(directory + b"/" + path)
        if status.st_mtime_ns > since:
            return True
        if status.st_ctime_ns <= since:
            return False
    except OSError:
        pass
    while b"/" in path:  # the directory itself gets our own markers
        path = path.rpartition(b"/")[0]
        try:
            return os.lstat(directory + b"/" + path).st_mtime_ns > since
        except OSError:
            pass
    return False

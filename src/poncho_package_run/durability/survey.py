"""The files of a kept environment against its manifest, once the machine was down."""

import errno
import os
import stat
import time

from ..machine.signals import check
from ..telling.errors import ArchiveError
from ..telling.messages import printable
from ..tree.directories import Directories, components
from .manifest import LATEST, NAME, SAFELY, SKEW, sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Tuple


# What a damaged file system says of a file: it is not there, or not to be read, or something else
# has its place.  The last two are the kernel's EFSCORRUPTED and EFSBADCRC.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EIO, 117, errno.EBADMSG)

# A manifest of 33,500 files has 3 MB.
_SIZE_LIMIT = 1 << 30
_RECORD_LIMIT = 1 << 13

# Files about which something has to be remembered: rewritten later, lost, dated in the future.
_ENTRIES_LIMIT = 1 << 16

# Nanoseconds: some file systems round times down to two seconds.
_UNIT = 2000000000

# The base of each number between a record's kind and its path, which may hold spaces.
_NUMBERS = {b"f": (10, 16), b"w": (10, 16), b"p": (10, 10, 16), b"l": (), b"t": (10,)}


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
        Terminated: a signal asks this process to end.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    handle = -1
    try:
        try:
            handle = os.open(NAME, SAFELY, dir_fd=root)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_LIMIT:
                return "the list of its files has been replaced"
            crc = sample(handle, status.st_size, True, check)
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            return "the list of its files has been lost"
        if "%d %08x" % (status.st_size, crc) != expected:
            return "the list of its files has been lost"
        try:
            return _Comparison(root, status.st_mtime_ns).of(_records(handle, status.st_size))
        except (ArchiveError, ValueError):  # a path that leads out, or no form of ours
            return "the list of its files is malformed"
    finally:
        if handle >= 0:
            os.close(handle)
        os.close(root)


def _records(handle: int, size: int) -> "Iterator[bytes]":
    """The records of an open manifest; ValueError if it holds something else."""
    rest, at = b"", 0
    while at < size:
        data = os.pread(handle, min(1 << 20, size - at), at)
        at += len(data)
        records = (rest + data).split(b"\0")
        rest = records.pop()
        if not data or len(rest) > _RECORD_LIMIT:
            break
        yield from records
    if rest:
        raise ValueError


class _Comparison:
    """The files of a directory against the records of its manifest.

    Args:
        root: descriptor of the directory.
        since: when the last of them was unpacked, in nanoseconds: the time of the manifest's last
            write, by the clock that gave the files their times.
    """

    def __init__(self, root: int, since: int) -> None:
        self._directories = Directories(root)
        self._since = since
        self._now = int(time.time() + SKEW) * 1000000000
        self._lost: Dict[bytes, Tuple[int, str]] = {}  # path to inode and what is wrong with it
        self._whole: set = set()  # inodes of several names that are as the last record has them
        self._dated: Dict[bytes, int] = {}

    def of(self, records: "Iterator[bytes]") -> str:
        """See ``damage``.

        Raises:
            ArchiveError, ValueError: for what is no manifest of ours.
        """
        try:
            for record in records:
                check()
                if record:
                    self._look_at(record)
                if len(self._lost) > _ENTRIES_LIMIT or len(self._whole) > _ENTRIES_LIMIT:
                    return "of more files than can be remembered something has been lost"
            for path, (inode, what) in self._lost.items():
                if inode not in self._whole and not self._is_changed(path):
                    return "{} {}".format(printable(path), what)
            return ""
        finally:
            self._directories.close()

    def _look_at(self, record: bytes) -> None:
        kind = record[:1]
        bases = _NUMBERS.get(kind)
        if bases is None:
            raise ValueError
        _, *fields, path = record.split(b" ", len(bases) + 1)
        numbers = [int(field, base) for field, base in zip(fields, bases)]
        if not components(path) or not all(0 <= number <= LATEST for number in numbers):
            raise ValueError
        if kind == b"t":
            self._dated[path] = numbers[0]
            if len(self._dated) > _ENTRIES_LIMIT:
                self._dated.clear()
                self._since = LATEST  # so no time tells anything any more
            return
        if kind != b"p":
            self._lost.pop(path, None)
        inode = 0
        try:
            parent, _, name = path.rpartition(b"/")
            directory = self._directories.of(parent)
            if kind == b"l":
                os.lstat(name, dir_fd=directory)
                return
            handle = os.open(name, SAFELY, dir_fd=directory)
            try:
                status = os.fstat(handle)
                if status.st_nlink > 1:
                    inode = status.st_ino
                _compare(handle, status, kind, numbers)
            finally:
                os.close(handle)
            if inode and self._lost and kind != b"p":
                self._whole.add(inode)
        except PermissionError:
            pass  # another user's, and not for us to read: nor will we need it
        except (_Lost, OSError) as error:
            if isinstance(error, OSError):
                if error.errno not in _DAMAGE:
                    raise
                error = _Lost("cannot be read: {}".format(error.strerror))
            self._whole.discard(inode)
            self._lost.setdefault(path, (inode, str(error)))

    def _is_changed(self, path: bytes) -> bool:
        """Whether someone has changed, replaced or removed the file after it was unpacked.

        Then its own time is later, or, if it was replaced by one that keeps its old time or
        removed, that of the directory it is in.  (The directory's time alone does not excuse a
        file that is there: anything may have been made beside it.)  File systems keep the order
        of such changes: where a later one has come to disk, no earlier one is lost.
        """
        parent, _, name = path.rpartition(b"/")
        try:
            status = os.lstat(name, dir_fd=self._directories.of(parent))
            if status.st_ctime_ns <= self._since:
                return False
            if self._is_later(path, status):
                return True
        except OSError:
            pass
        while parent:  # the directory itself gets our own markers
            try:
                return self._is_later(parent, os.fstat(self._directories.of(parent)))
            except OSError:
                parent = parent.rpartition(b"/")[0]
        return False

    def _is_later(self, path: bytes, status: os.stat_result) -> bool:
        """Whether a change after the unpacking has given a file or directory its time.

        A time that the archive has set proves nothing, but then it is known which one that was
        (unless the file system has none so late, and keeps its latest).  The time of the inode's
        change nobody can set.
        """
        mtime = status.st_mtime_ns
        return (
            min(mtime, status.st_ctime_ns) > self._since
            and mtime < self._now
            and not 0 <= self._dated.get(path, 0) - mtime < _UNIT
        )


def _compare(handle: int, status: os.stat_result, kind: bytes, numbers: "List[int]") -> None:
    """Raise _Lost, or OSError, unless an open file is as its record says."""
    size, crc = numbers[-2:]
    if not stat.S_ISREG(status.st_mode):
        raise _Lost("is no file any more")
    start = numbers[0] if kind == b"p" else 0
    if kind != b"p" and status.st_size != size:
        raise _Lost("has {} bytes instead of {}".format(status.st_size, size))
    if sample(handle, size, kind != b"f", check, start) != crc:
        raise _Lost("has lost some of its content")

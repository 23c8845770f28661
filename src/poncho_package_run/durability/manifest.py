"""What the files of a kept environment hold, so that a loss is noticed once the machine was down.

A file that was written minutes ago may exist on no disk yet.  Waiting for the disk would take
as long as the unpacking itself; so what is written is sampled on its way, and the samples are
kept in DIR, to be compared with the files after the machine has started anew (see ``verify``).

The manifest is a log, so that it needs no memory: its records end with a NUL, and of two for
one path the later holds.  Their forms:

    f SIZE CRC PATH         a file, and the CRC-32 of its sampled bytes
    w SIZE CRC PATH         a rewritten file, and the CRC-32 of all its bytes
    p OFFSET SIZE CRC PATH  a rewritten part of the file that the record before is about
    l PATH                  a link, or a directory where a file may have been before
    t MTIME PATH            a file's or directory's time in the archive, in nanoseconds, if it may
                            pass for that of a change made after the unpacking

Sampled is every 509th byte, counted back from the last one: eight in each page of 4096 bytes,
and at least one in the last page, because what a crash loses are pages (they read as zeros, or
the file ends before them).  Files of up to a page are summed whole.  That a rewritten page may
have come to disk before it was rewritten, and not again, no sample would tell: hence w and p.
"""

import os
import stat
import time
from collections import deque
from zlib import crc32

from .. import MANIFEST
from ..machine.signals import check
from ..telling.failures import failure
from ..tree.directories import Directories
from ..tree.names import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Iterator, List, Optional, Tuple

    from ..archive.member import Buffer, Member

NAME = MANIFEST

_PAGE = 4096
_STRIDE = 509
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Records that wait to be written, of at most some 4 KiB each (see ``unpack``).
_WAITING = 1024

# Nanoseconds: no file system keeps a later time, and no later one is worth telling from this.
LATEST = (1 << 63) - 1

# Seconds by which two clocks may differ: this machine's, and that of the server of the files.
SKEW = 86400


class Manifest:
    """The manifest of a directory that is being unpacked to.

    Args:
        directory: its descriptor; it stays open.
        path: the directory's, for messages.

    Attributes:
        handle (int): the open file; -1 once it is finished.

    Raises:
        CannotCreate, InputOutputError: it cannot be written.
    """

    def __init__(self, directory: int, path: bytes) -> None:
        self._directory = directory
        self._records: deque = deque()  # of bytes; other threads append to it
        self._path = path + b"/" + NAME
        self._size = self._crc = 0
        self._recent = int(time.time() - SKEW) * 1000000000
        try:
            self.handle = os.open(NAME, _FLAGS, 0o666, dir_fd=directory)
        except OSError as error:
            raise failure(error, self._path)

    def close(self) -> None:
        """Close what was not finished; of a private directory, which goes."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)

    def sampled(self, path: bytes, member: "Member") -> "Iterable[Buffer]":
        """A member's body, recorded once it is used up, in whichever thread that is.

        Args:
            path: the member's, without ``.`` and ``//``.
        """
        if len(self._records) >= _WAITING:
            self._write()
        if member.mtime_ns is not None and member.mtime_ns >= self._recent:
            self.dated(path, member.mtime_ns)
        body, size = member.body, member.size
        if type(body) is tuple and len(body) == 1:  # most: it is there already, in one piece
            data = body[0] if size <= _PAGE else bytes(body[0][(size - 1) % _STRIDE :: _STRIDE])
            self._records.append(b"f %d %x %s\0" % (size, crc32(data), path))
            return body
        sampled = self._sampled(path, size, body)
        if type(body) is not tuple:
            return sampled
        deque(sampled, 0)  # it is there already, in pieces
        return body

    def _sampled(self, path: bytes, size: int, body: "Iterable[Buffer]") -> "Iterator[Buffer]":
        at = crc = 0
        if size <= _PAGE:
            for data in body:
                crc = crc32(data, crc)
                yield data
        else:
            for data in body:
                crc = crc32(bytes(data[(size - 1 - at) % _STRIDE :: _STRIDE]), crc)
                at += len(data)
                yield data
        self._records.append(b"f %d %x %s\0" % (size, crc, path))

    def made(self, path: bytes) -> None:
        """Record something that is no file, in whose place one may have been."""
        if len(self._records) >= _WAITING:
            self._write()
        self._records.append(b"l %s\0" % path)

    def dated(self, path: bytes, mtime_ns: "Optional[int]") -> None:
        """Record the time of a file or directory if it may pass for that of a later change."""
        if len(self._records) >= _WAITING:
            self._write()
        if mtime_ns is not None and mtime_ns >= self._recent:
            self._records.append(b"t %d %s\0" % (min(mtime_ns, LATEST), path))

    def rewritten(
        self, path: bytes, handle: int, pieces: "Optional[List[Tuple[int, bytes]]]"
    ) -> None:
        """Record a file that was relocated.

        Args:
            path: relative to the directory; any of its names, if it has several.
            handle: the file, open for reading.
            pieces: what was written at which offset; None if that is not known.
        """
        if len(self._records) >= _WAITING:
            self._write()
        size = os.fstat(handle).st_size
        if pieces is None:
            self._records.append(b"w %d %x %s\0" % (size, sample(handle, size, True), path))
            return
        if len(pieces) == 1 and pieces[0][0] == 0 and len(pieces[0][1]) == size:
            self._records.append(b"w %d %x %s\0" % (size, crc32(pieces[0][1]), path))
            return
        self._records.append(b"f %d %x %s\0" % (size, sample(handle, size), path))
        for offset, data in pieces:
            self._records.append(b"p %d %d %x %s\0" % (offset, len(data), crc32(data), path))

    def survey(self) -> None:
        """Record the whole tree as it is: for what was not unpacked through ``sampled``."""
        directories = Directories(self._directory)
        below = [b""]
        try:
            while below:
                check()
                parent = below.pop()
                directory = directories.of(parent)
                for name in map(os.fsencode, os.listdir(directory)):
                    if is_ours(name):
                        continue
                    status = os.lstat(name, dir_fd=directory)
                    path = parent + b"/" + name if parent else name
                    self.dated(path, status.st_mtime_ns)
                    if stat.S_ISDIR(status.st_mode):
                        below.append(path)
                    elif stat.S_ISREG(status.st_mode):
                        handle = os.open(name, SAFELY, dir_fd=directory)
                        try:
                            crc = sample(handle, status.st_size, look=check)
                        finally:
                            os.close(handle)
                        self._records.append(b"f %d %x %s\0" % (status.st_size, crc, path))
                    else:
                        self.made(path)
        finally:
            directories.close()

    def finish(self) -> str:
        """Write what is left, and close; what ``is_whole`` wants, for the completion marker."""
        # Something to write there always is: the file's time is to be that of the end.
        self._records.append(b"\0")
        self._write()
        try:
            handle, self.handle = self.handle, -1
            os.close(handle)
        except OSError as error:
            raise failure(error, self._path)
        return "%d %08x" % (self._size, self._crc)

    def _write(self) -> None:
        records = self._records
        data = memoryview(b"".join([records.popleft() for _ in range(len(records))]))
        self._size += len(data)
        self._crc = crc32(data, self._crc)
        try:
            while data:
                data = data[os.write(self.handle, data) :]
        except OSError as error:
            raise failure(error, self._path, self.handle, len(data))


def sample(
    handle: int,
    size: int,
    whole: bool = False,
    look: "Optional[Callable[[], None]]" = None,
    start: int = 0,
) -> int:
    """The CRC-32 of the sampled bytes of an open file, or of all of them.

    Args:
        size: how many bytes to go through; fewer, if the file is shorter.
        look: called before each piece.
        start: where to begin.

    Raises:
        OSError: it cannot be read.
    """
    crc = at = 0
    while at < size:
        if look is not None:
            look()
        data = os.pread(handle, min(1 << 20, size - at), start + at)
        if not data:
            break
        if size > _PAGE and not whole:
            crc = crc32(data[(size - 1 - at) % _STRIDE :: _STRIDE], crc)
        else:
            crc = crc32(data, crc)
        at += len(data)
    return crc

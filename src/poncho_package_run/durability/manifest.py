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

Sampled is every 509th byte, counted back from the last one: eight in each page of 4096 bytes,
and at least one in the last page, because what a crash loses are pages (they read as zeros, or
the file ends before them).  Files of up to a page are summed whole.  That a rewritten page may
have come to disk before it was rewritten, and not again, no sample would tell: hence w and p.
"""

import os
import stat
from collections import deque
from zlib import crc32

from .. import OURS
from ..telling.failures import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Iterator, List, Optional, Tuple

    from ..archive.member import Buffer, Member

NAME = OURS + b"manifest"

_PAGE = 4096
_STRIDE = 509
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# Records that wait to be written.
_WAITING = 4096


class Manifest:
    """The manifest of a directory that is being unpacked to.

    Args:
        directory: its path, absolute.

    Attributes:
        handle (int): the open file; -1 once it is finished.

    Raises:
        CannotCreate, InputOutputError: it cannot be written.
    """

    def __init__(self, directory: bytes) -> None:
        directory = os.readlink(b"/proc/self/fd/%d" % directory)
        self._directory = directory
        self._records: deque = deque()  # of bytes; other threads append to it
        self._path = directory + b"/" + NAME
        self._size = self._crc = 0
        # Of all names of a file, the one under which its content is recorded.
        self._links: Dict[bytes, bytes] = {}
        try:
            self.handle = os.open(self._path, _FLAGS, 0o666)
        except OSError as error:
            raise failure(error, self._path)

    def sampled(self, path: bytes, member: "Member") -> "Iterable[Buffer]":
        """A member's body, recorded once it is used up, in whichever thread that is.

        Args:
            path: the member's, without ``.`` and ``//``.
        """
        if len(self._records) >= _WAITING:
            self._write()
        if self._links:
            self._links.pop(path, None)
        body, size = member.body, member.size
        if type(body) is tuple and len(body) == 1:  # most: it is there already, in one piece
            data = body[0] if size <= _PAGE else bytes(body[0][(size - 1) % _STRIDE :: _STRIDE])
            self._records.append(b"f %d %x %s\0" % (size, crc32(data), path))
            return body
        return self._sampled(path, size, body)

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
        self._records.append(b"l %s\0" % path)

    def linked(self, path: bytes, target: bytes) -> bytes:
        """Record a hard link; the path under which its content is recorded."""
        self.made(path)
        self._links[path] = self._links.get(target, target)
        return self._links[path]

    def rewritten(
        self, path: bytes, handle: int, pieces: "Optional[List[Tuple[int, bytes]]]"
    ) -> None:
        """Record a file that was relocated.

        Args:
            path: absolute.
            handle: the file, open for reading.
            pieces: what was written at which offset; None if that is not known.
        """
        if len(self._records) >= _WAITING:
            self._write()
        path = self._links.get(path, path)
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
        for parent, directories, names in os.walk(self._directory):
            below = parent[len(self._directory) + 1 :]
            for name in directories + names:
                path = os.path.join(below, name)
                status = os.lstat(os.path.join(parent, name))
                if path.startswith(OURS) or stat.S_ISDIR(status.st_mode):
                    continue
                if not stat.S_ISREG(status.st_mode):
                    self.made(path)
                    continue
                handle = os.open(os.path.join(parent, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    crc = sample(handle, status.st_size)
                finally:
                    os.close(handle)
                self._records.append(b"f %d %x %s\0" % (status.st_size, crc, path))

    def finish(self) -> str:
        """Write what is left, and close; what ``is_whole`` wants, for the completion marker."""
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


def sample(handle: int, size: int, whole: bool = False) -> int:
    """The CRC-32 of the sampled bytes of an open file, or of all of them. Raises OSError."""
    crc = at = 0
    while at < size:
        data = os.pread(handle, 1 << 20, at)
        if not data:
            break
        if size > _PAGE and not whole:
            crc = crc32(data[(size - 1 - at) % _STRIDE :: _STRIDE], crc)
        else:
            crc = crc32(data, crc)
        at += len(data)
    return crc

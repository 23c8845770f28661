"""The archive's bytes: one open file, read in order or by offset."""

import errno
import os
import stat

from ..telling.errors import ArchiveNotReadable, InputOutputError

_BLOCK = 1 << 18


class Source:
    """An archive opened for reading.

    ``read`` goes through the bytes in order and works for a pipe as well;
    ``pread`` reads anywhere, from any thread, and needs ``seekable``.

    Attributes:
        path (bytes): the name the caller gave.
        name (str): the same, for messages.
        size (int or None): bytes when it was opened; None for a pipe.
        mtime_ns (int or None): modification time in nanoseconds; None for a pipe.
        seekable (bool): a regular file (or block device), so that ``pread`` works.
        position (int): how many bytes ``read`` has handed out, for progress.

    Raises:
        ArchiveNotReadable: it does not exist, or may not be opened.
        InputOutputError: the system could not read it.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.name = os.fsdecode(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self.fd)
        except OSError as error:
            raise ArchiveNotReadable(
                "cannot read the archive {}: {}; check the path given to --environment".format(
                    self.name, error.strerror
                )
            )
        self.seekable = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if self.seekable else None
        self.mtime_ns = status.st_mtime_ns if self.seekable else None
        self.position = 0
        self._peeked = b""

    def peek(self, count: int) -> bytes:
        """The first ``count`` unread bytes, fewer only at the end; they stay unread."""
        while len(self._peeked) < count:
            more = self._read(count - len(self._peeked))
            if not more:
                break
            self._peeked += more
        return self._peeked[:count]

    def read(self, count: int = _BLOCK) -> bytes:
        """Up to ``count`` bytes, at least one unless the archive is at its end."""
        if self._peeked:
            data, self._peeked = self._peeked[:count], self._peeked[count:]
        else:
            data = self._read(count)
        self.position += len(data)
        return data

    def pread(self, count: int, offset: int) -> bytes:
        """``count`` bytes from ``offset`` on, fewer only at the end of the file."""
        try:
            data = os.pread(self.fd, count, offset)
            while 0 < len(data) < count:
                more = os.pread(self.fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise self._failed(error)
        return data

    def has_changed(self) -> bool:
        """Whether a regular file has been written since it was opened."""
        status = os.fstat(self.fd)
        return self.seekable and (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns)

    def seek(self, offset: int) -> None:
        """Go on reading at ``offset`` bytes; needs ``seekable``."""
        os.lseek(self.fd, offset, os.SEEK_SET)
        self.position = offset
        self._peeked = b""

    def _read(self, count: int) -> bytes:
        try:
            return os.read(self.fd, count)
        except OSError as error:
            raise self._failed(error)

    def _failed(self, error: OSError) -> Exception:
        if error.errno == errno.EISDIR:
            return ArchiveNotReadable("{} is a directory, not an archive".format(self.name))
        return InputOutputError(
            "reading the archive {} failed: {}; try again or copy it anew".format(
                self.name, error.strerror
            )
        )

    def close(self) -> None:
        os.close(self.fd)

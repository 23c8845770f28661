"""The archive's bytes: one open file, read in order or by offset."""

import errno
import os
import stat

from ..machine.signals import check
from ..telling.errors import ArchiveNotReadable, InputOutputError
from ..telling.failures import failure, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_BLOCK = 1 << 18
_LOOK = 100  # milliseconds

# A pipe without a writer would hold open(2), and a silent one read(2), which Python calls again
# after a signal.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Source:
    """An archive opened for reading.

    ``read`` goes through the bytes in order and works for a pipe as well;
    ``pread`` reads anywhere, from any thread, and needs ``seekable``.

    Args:
        path: the archive.
        look: called at each read, and several times a second while a pipe is silent; what it
            raises ends the reading.

    Attributes:
        path (bytes): the name the caller gave.
        name (str): the same, for messages.
        size (int or None): bytes when it was opened; None for a pipe.
        mtime_ns (int or None): modification time in nanoseconds; None for a pipe.
        seekable (bool): a regular file (or block device), so that ``pread`` works.
        position (int): how many bytes ``read`` has handed out, for progress.
        look (callable): as given.
        head (bytes): the first of its bytes, once they were looked at with ``peek``.

    Raises:
        ArchiveNotReadable: it does not exist, or may not be opened.
        InputOutputError: the system could not read it, or has no descriptor to give.
    """

    def __init__(self, path: bytes, look: "Callable[[], None]" = check) -> None:
        self.path = path
        self.name = os.fsdecode(path)
        self.look = look
        try:
            self.fd = os.open(path, _OPEN)
            status = os.fstat(self.fd)
        except OSError as error:
            if kind_of(error) is InputOutputError:
                raise failure(error, path)
            raise ArchiveNotReadable(
                "cannot read the archive {}: {}; check the path given to --environment".format(
                    self.name, error.strerror
                )
            )
        self.seekable = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if self.seekable else None
        self.mtime_ns = status.st_mtime_ns if self.seekable else None
        self.position = 0
        self._peeked = self.head = b""
        self._poll: Any = None
        if not self.seekable:
            from select import POLLIN, poll

            self._poll = poll()
            self._poll.register(self.fd, POLLIN)

    def peek(self, count: int) -> bytes:
        """The first ``count`` unread bytes, fewer only at the end; they stay unread."""
        while len(self._peeked) < count:
            more = self._read(count - len(self._peeked))
            if not more:
                break
            self._peeked += more
        self.head = self.head or self._peeked
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
        self.look()
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
        while True:
            self.look()
            try:
                if self._poll is None or self._poll.poll(_LOOK):
                    return os.read(self.fd, count)
            except BlockingIOError:
                pass  # another process has read what there was
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

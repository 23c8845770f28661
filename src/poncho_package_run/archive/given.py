"""What has been handed on of a stream, should all of it be decoded anew."""

import zlib

from ..telling.errors import ArchiveError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator


class Given:
    """The content of a stream up to some place, by length and checksum.

    Args:
        checksum: ``zlib.crc32``, or what computes the same.
    """

    def __init__(self, checksum: "Callable[[bytes, int], int]" = zlib.crc32) -> None:
        self._checksum = checksum
        self.length = self.crc = 0

    def add(self, chunk: bytes) -> None:
        self.crc = self._checksum(chunk, self.crc)
        self.length += len(chunk)

    def beyond(self, chunks: "Iterable[Any]") -> "Iterator[Any]":
        """Of the same stream's content decoded anew, what has not been handed on.

        Raises:
            ArchiveError: it begins otherwise.  An archive that is written meanwhile, or read wrong
                once, may be right the second time; what has been written of it is not.
        """
        left, crc = self.length, 0
        for chunk in chunks:
            if left:
                again = chunk[:left]
                crc = zlib.crc32(again, crc)
                left -= len(again)
                chunk = chunk[len(again) :]
                if not left and crc != self.crc:
                    break
            if chunk:
                yield chunk
        if left or crc != self.crc:
            raise ArchiveError(
                "the archive is damaged: what is read of it changes; copy or pack it again"
            )

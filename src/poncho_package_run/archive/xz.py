"""xz and lzma (the .xz file format 1.2.1): streams one behind the other."""

import array
import lzma

from ..telling.errors import ArchiveError
from .source import Source
from .streams import Streams, decode_streams
from .window import LARGEST, too_large

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, Optional, Tuple

    from .parallel import Pool

_MAGIC = b"\xfd7zXZ\x00"

# What the decoders of all threads may take, each its dictionary and what is on its way through it.
_DECODERS = 28 << 20
_ON_ITS_WAY = 4 << 20

# Of a decoder, beside its dictionary, as lzma counts it.
_MORE = 1 << 20

# Streams are cut into pieces of so much at least: smaller ones go together.
_PIECE = 1 << 18

# conda-pack's have a few bytes; this lists 200,000 blocks.
_INDEX = 1 << 20


def recognises(head: bytes) -> bool:
    # The older .lzma has no magic number; this is its only properties byte in use (lc=3,
    # lp=0, pb=2), and a dictionary size that is a multiple of 64 KiB.
    return head[:6] == _MAGIC or (head[:3] == b"\x5d\x00\x00" and len(head) > 13)


class _XzStreams(Streams):
    """Streams of which each may take a dictionary of ``window`` bytes.

    Args:
        window: what may be taken beside other decoders.
        asked: the dictionary of the first stream, as far as it is known.
    """

    name = "xz"
    first = b"\xfd\x5d"  # of .xz and of .lzma
    padding = 4
    errors = (lzma.LZMAError, EOFError)

    _format = lzma.FORMAT_AUTO

    def __init__(self, window: int, asked: int) -> None:
        super().__init__()
        self._window = window
        self._asked = asked

    def new_decoder(self) -> lzma.LZMADecompressor:
        decoder = lzma.LZMADecompressor(self._format, memlimit=self._window + _MORE)
        self._format = lzma.FORMAT_XZ  # a .lzma stands alone
        return decoder

    def failed(self, error: Exception) -> ArchiveError:
        if "limit" not in str(error):
            return super().failed(error)
        self.limited = self._window < LARGEST
        return ArchiveError(too_large(self.name, self._asked))

    def alone(self) -> None:
        self._window = LARGEST


def decode(source: Source, pool: "Pool") -> "Iterator[bytes]":
    """The decoded bytes of all streams, to the physical end of the source.

    Raises:
        ArchiveError: damaged, truncated, of too large a dictionary, or followed by anything but
            zeros.
    """
    ranges = None
    head = source.peek(1 << 10)
    asked = _dictionary(head)
    workers = min(pool.cores, _DECODERS // ((asked or _DECODERS) + _ON_ITS_WAY))
    if workers > 1 and source.seekable and head[:6] == _MAGIC:
        ranges = _pieces(source)
    window = _DECODERS // max(workers, 1) - _ON_ITS_WAY
    return decode_streams(source, lambda: _XzStreams(window, asked), ranges, pool, workers)


def _dictionary(head: bytes) -> int:
    """The bytes of the first block's dictionary; 0 if there is any doubt.

    A block header follows the stream's 12 bytes: its size, flags, the sizes that these announce,
    and the filters, each with its number and properties (section 3.1; of LZMA2, 5.3.1).
    """
    if head[:6] != _MAGIC:
        return int.from_bytes(head[1:5], "little")  # .lzma
    flags, at = head[13] if len(head) > 13 else 0xFF, 14
    for flag in (0x40, 0x80):
        if flags & flag:
            _, at = _variable_length(head, at)
    if flags & 0x3F or head[at : at + 2] != b"\x21\x01" or len(head) < at + 3:
        return 0
    bits = head[at + 2]
    return (2 | bits & 1) << (bits // 2 + 11) if bits <= 40 else 0


def _pieces(source: Source) -> "Optional[Iterator[Tuple[int, int]]]":
    """Where pieces of whole streams start and end; None if in doubt, or if it is only one.

    Read from the indexes backwards, in eight bytes for each 256 KiB of the source.  Only a plan:
    the decoder checks every field of header, index and footer as it comes by.
    """
    end = source.size or 0
    borders = array.array("Q", [end])
    while end > 0:
        footer = source.pread(12, end - 12) if end >= 32 else b""
        if footer[10:] != b"YZ":
            return None
        index_size = (int.from_bytes(footer[4:8], "little") + 1) * 4
        if index_size > min(end - 24, _INDEX):
            return None
        blocks = _index_blocks(source.pread(index_size, end - 12 - index_size))
        if blocks is None:
            return None
        start = end - 12 - index_size - blocks - 12
        if start < 0 or source.pread(6, start) != _MAGIC:
            return None
        if borders[-1] - start >= _PIECE or not start:
            borders.append(start)
        end = start
    borders.reverse()
    return zip(borders, borders[1:]) if len(borders) > 2 else None


def _index_blocks(index: bytes) -> "Optional[int]":
    """The size of all blocks that an index lists, with their padding; None if malformed."""
    total, at = 0, 1
    count, at = _variable_length(index, at)
    if index[:1] != b"\0" or count > len(index):
        return None
    for _ in range(count):
        unpadded, at = _variable_length(index, at)
        _, at = _variable_length(index, at)
        total += -(-unpadded // 4) * 4
    return total if at <= len(index) else None


def _variable_length(data: bytes, at: int) -> "Tuple[int, int]":
    """A number in 7-bit groups, low first (section 1.2), and the place behind it."""
    value = shift = 0
    while at < len(data) and shift < 63:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
    return value, at

"""xz and lzma (the .xz file format 1.2.1): streams one behind the other."""

import lzma

from .source import Source
from .streams import Streams, decode_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Optional, Tuple

_MAGIC = b"\xfd7zXZ\x00"

# What the decoders of all threads may take, each its dictionary and what is on its way through it.
_DECODERS = 28 << 20
_ON_ITS_WAY = 4 << 20


def recognises(head: bytes) -> bool:
    # The older .lzma has no magic number; this is its only properties byte in use (lc=3,
    # lp=0, pb=2), and a dictionary size that is a multiple of 64 KiB.
    return head[:6] == _MAGIC or (head[:3] == b"\x5d\x00\x00" and len(head) > 13)


class _XzStreams(Streams):
    name = "xz"
    padding = 4
    errors = (lzma.LZMAError, EOFError)

    _format = lzma.FORMAT_AUTO

    def new_decoder(self) -> lzma.LZMADecompressor:
        decoder = lzma.LZMADecompressor(self._format)
        self._format = lzma.FORMAT_XZ  # a .lzma stands alone
        return decoder


def decode(source: Source, cores: int) -> "Iterator[bytes]":
    """The decoded bytes of all streams, to the physical end of the source.

    Raises:
        ArchiveError: damaged, truncated, or followed by anything but zeros.
    """
    ranges = None
    head = source.peek(1 << 10)
    cores = min(cores, _DECODERS // (_dictionary(head) + _ON_ITS_WAY))
    if cores > 1 and source.seekable and head[:6] == _MAGIC:
        found = _stream_ranges(source)
        if found is not None and len(found) > 1:
            ranges = found
    return decode_streams(source, _XzStreams, ranges, cores)


def _dictionary(head: bytes) -> int:
    """The bytes of the first block's dictionary; more than is to be had if there is any doubt.

    A block header follows the stream's 12 bytes: its size, flags, the sizes that these announce,
    and the filters, each with its number and properties (section 3.1; of LZMA2, 5.3.1).
    """
    flags, at = head[13] if len(head) > 13 else 0xFF, 14
    for flag in (0x40, 0x80):
        if flags & flag:
            _, at = _variable_length(head, at)
    if flags & 0x3F or head[at : at + 2] != b"\x21\x01" or len(head) < at + 3:
        return _DECODERS
    bits = head[at + 2]
    return min((2 | bits & 1) << (bits // 2 + 11), _DECODERS)


def _stream_ranges(source: Source) -> "Optional[List[Tuple[int, int]]]":
    """Where each stream starts and ends, read from the indexes backwards; None if in doubt.

    Only a plan: the decoder checks every field of header, index and footer as it comes by.
    """
    ranges = []
    end = source.size or 0
    while end > 0:
        footer = source.pread(12, end - 12) if end >= 32 else b""
        if footer[10:] != b"YZ":
            return None
        index_size = (int.from_bytes(footer[4:8], "little") + 1) * 4
        if index_size > min(end - 24, 1 << 24):
            return None
        blocks = _index_blocks(source.pread(index_size, end - 12 - index_size))
        if blocks is None:
            return None
        start = end - 12 - index_size - blocks - 12
        if start < 0 or source.pread(6, start) != _MAGIC:
            return None
        ranges.append((start, end))
        end = start
    ranges.reverse()
    return ranges


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

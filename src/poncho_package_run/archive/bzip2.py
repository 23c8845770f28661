"""bzip2: streams one behind the other, each with its own checks."""

import bz2

from .source import Source
from .streams import Streams, decode_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

    from .parallel import Pool

# The magic number of a block (the digits of pi) behind that of a stream; the level between
# them is the first stream's.  One stream of conda-pack -j N holds 900,000 bytes of input.
_BLOCK = b"1AY&SY"
_PIECE = 1 << 16


def recognises(head: bytes) -> bool:
    return head[:3] == b"BZh" and head[3:4].isdigit() and head[3:4] != b"0"


class _Bzip2Streams(Streams):
    name = "bzip2"
    first = b"B"
    errors = (OSError, ValueError)

    @staticmethod
    def new_decoder() -> bz2.BZ2Decompressor:
        return bz2.BZ2Decompressor()


def decode(source: Source, pool: "Pool") -> "Iterator[bytes]":
    """The decoded bytes of all streams, to the physical end of the source.

    Raises:
        ArchiveError: damaged, truncated, or followed by anything but zeros.
    """
    ranges = None
    if pool.cores > 1 and source.seekable:
        from .speculate import ranges_at

        ranges = ranges_at(source, 0, source.peek(4) + _BLOCK, 0, _PIECE)
    return decode_streams(source, _Bzip2Streams, ranges, pool, pool.cores)

"""Compressed streams in the pieces that the field's compressors write, which can be cut."""

import zlib
from collections.abc import Callable

BLOCK = 1 << 18


def in_blocks(
    data: bytes, flush: int, level: int = 4, block: int = BLOCK, fresh: bool = True
) -> bytes:
    """One gzip member whose deflate blocks are flushed; ``fresh`` as conda-pack -j writes it."""
    pieces, encoder = [], zlib.compressobj(level, zlib.DEFLATED, -15)
    for at in range(0, len(data), block):
        if fresh:
            encoder = zlib.compressobj(level, zlib.DEFLATED, -15)
        pieces += [encoder.compress(data[at : at + block]), encoder.flush(flush)]
    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) % 2**32).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + b"".join(pieces) + b"\x03\0" + trailer


def members(compress: Callable[[bytes], bytes], data: bytes, block: int = BLOCK) -> bytes:
    """Whole streams one behind the other, each of ``block`` bytes of the data."""
    return b"".join(compress(data[at : at + block]) for at in range(0, len(data), block))

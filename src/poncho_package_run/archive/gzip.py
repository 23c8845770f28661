"""gzip (RFC 1952): members one behind the other, each with its CRC and length checked."""

import zlib

from ..telling.errors import ArchiveError
from .given import Given
from .inflate import Inflated, Unsure
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Optional, Tuple

    from ..machine.native import Native
    from .parallel import Pool

_INPUT = 1 << 18
_OUTPUT = 1 << 20

# A deflate stream flushed with Z_FULL_FLUSH or Z_SYNC_FLUSH ends its block with an empty
# stored block: LEN 0 and its complement, on a byte boundary (RFC 1951, 3.2.4).
_FLUSH = b"\x00\x00\xff\xff"

# What at its place no decoder takes for lengths of a stored block, and how zlib says so.
_NO_FLUSH = b"\x01\x00\x00\x00"
_NO_LENGTHS = "invalid stored block lengths"

# conda-pack -j N flushes about every 90 KiB of output; larger pieces spare threads and queues
# some work, and the largest leave one thread with the last of a chunk while another waits (a
# gigabyte on two processors: 2.8 seconds by 256 KiB, 2.5 by 768, 2.6 by 1024).
_PIECE = 3 << 18

# So many inflate twice as fast as one thread writes (2.9 seconds a gigabyte against 1.4).
_THREADS = 4

_SOUGHT = 1 << 22

# What a member is given first, and then twice as much each time: zlib copies what it does not use,
# and a member may be of 20 bytes.
_STEP = 1 << 12


def recognises(head: bytes) -> bool:
    return head[:2] == b"\x1f\x8b"


def decode(source: Source, pool: "Pool", native: "Optional[Native]" = None) -> "Iterator[bytes]":
    """The decoded bytes of all members, to the physical end of the source.

    Where the source can be read by offset and its blocks were flushed (``conda-pack -j N``,
    ``pigz -i``), they are inflated in several threads; otherwise in order, in one thread,
    while another sums up the checksum (a tenth of the time that both take).

    Raises:
        ArchiveError: damaged, truncated, or followed by anything but zeros.
    """
    if (native is not None or pool.cores > 1) and source.seekable:
        start = _header_length(source.peek(1 << 16))
        given = Given() if native is None else Given(native.crc32)
        try:
            if start:
                for chunk in _first_member(source, start, pool, native, given):
                    yield chunk
        except Unsure:
            start = -1  # all that this attempt holds is given back before the next one
        if start < 0:
            source.seek(0)
            for chunk in given.beyond(decode(source, pool)):
                yield chunk
            return
    data, at = source.read(_INPUT), 0
    while data:
        if data[at] != 0x1F:
            # Block-wise copies leave zeros behind; anything else is damage.
            data = data[at:]
            while data and not data.strip(b"\0"):
                data = source.read(_INPUT)
            if data:
                raise _damaged("bytes that are no gzip member follow the last one")
            return
        decoder = zlib.decompressobj(31)  # 15 bits of window, and the gzip wrapper
        step = _STEP
        while True:
            piece = decoder.unconsumed_tail
            if not piece:
                if at == len(data):
                    data, at = source.read(_INPUT), 0
                piece = data[at : at + step]
                at += len(piece)
                step = min(2 * step, _INPUT)
            try:
                chunk = decoder.decompress(piece, _OUTPUT)
            except zlib.error as error:
                raise _damaged(str(error))
            if chunk:
                yield chunk
            if decoder.eof:
                break
            # At the end zlib may still hold output: it is asked until it gives none.
            if not piece and not chunk:
                raise _truncated()
        at -= len(decoder.unused_data)
        if at == len(data):
            data, at = source.read(_INPUT), 0


def _first_member(
    source: Source, start: int, pool: "Pool", native: "Optional[Native]", given: Given
) -> "Iterator[bytes]":
    """Inflate the first member in other threads; the source then stands at the member's end.

    The cuts are guesses: the marker also occurs by chance inside compressed data.

    Args:
        given: adds up what is.

    Raises:
        Unsure: the native library has found anything wrong.
    """
    from .speculate import Decoded, ranges_at

    ranges: Iterable[Tuple[int, int]] = [(start, source.size or 0)]
    workers = 1 if pool.cores > 1 else 0
    if workers and _flushed(source, start):
        ranges = ranges_at(source, start, _FLUSH, len(_FLUSH), _PIECE)
        workers = min(pool.cores, _THREADS)
    new_state = _Blocks if native is None else lambda: Inflated(native)
    decoded = Decoded(source, new_state, ranges, pool, workers)
    for chunk in decoded:
        given.add(chunk)
        yield chunk
    trailer = source.pread(8, decoded.end)
    whole = decoded.state.finished and len(trailer) == 8
    sums = given.crc.to_bytes(4, "little") + (given.length & 0xFFFFFFFF).to_bytes(4, "little")
    if native is not None and not (whole and trailer == sums):
        raise Unsure
    if not whole:
        raise _truncated()
    if trailer != sums:
        raise _damaged("its gzip checksum or length does not agree with its data")
    source.seek(decoded.end + 8)


def _flushed(source: Source, start: int) -> bool:
    """Whether the marker occurs more than once among the first 4 MiB."""
    found = 0
    for at in range(start, start + _SOUGHT, _INPUT):
        found += source.pread(_INPUT, at).count(_FLUSH)
        if found > 1:
            return True
    return False


class _Blocks:
    """A state of ``speculate.Decoded``: the blocks of one deflate stream."""

    limited = False
    margin = len(_FLUSH)

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(-15)
        self._before: Any = None

    def feed(self, data: bytes) -> "Iterator[bytes]":
        decoder = self._decoder
        try:
            while True:
                chunk = decoder.decompress(data, _OUTPUT)
                if chunk:
                    yield chunk
                data = decoder.unconsumed_tail
                if decoder.eof or not data and len(chunk) < _OUTPUT:
                    return
        except zlib.error as error:
            raise _damaged(str(error))

    def rest(self) -> "Iterable[bytes]":
        return ()

    @property
    def finished(self) -> bool:
        return self._decoder.eof

    @property
    def unused(self) -> int:
        return len(self._decoder.unused_data)

    def before_cut(self) -> None:
        self._before = self._decoder.copy()

    def restartable(self) -> bool:
        """Whether the decoder stands between two blocks, on a byte boundary.

        Then a new one may start here, and it makes the same output unless the data refer back
        over the cut, which zlib refuses ("invalid distance too far back").  The test is
        exact.  The last four bytes are the lengths of an empty stored block, or look like it;
        four others in their place are refused *as lengths* only if all four were taken for them,
        that is if the decoder stood right behind the header of a stored block.  (From bits
        before that, of codes or of the header itself, four bytes are not enough to get there.)
        """
        try:
            self._before.decompress(_NO_FLUSH)
        except zlib.error as error:
            return _NO_LENGTHS in str(error)
        return False

    def alone(self) -> None:
        """A window has 32 KiB, whoever decodes beside it."""


def _header_length(head: bytes) -> int:
    """The length of a gzip header (RFC 1952, 2.3), or 0 if it is not whole or not right."""
    if head[:3] != b"\x1f\x8b\x08" or len(head) < 10 or head[3] & 0xE0:
        return 0
    flags, at = head[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            at = head.find(b"\0", at) + 1
            if not at:
                return 0
    if flags & 2:
        if head[at : at + 2] != (zlib.crc32(head[:at]) & 0xFFFF).to_bytes(2, "little"):
            return 0
        at += 2
    return at if at < len(head) else 0


def _damaged(what: str) -> ArchiveError:
    return ArchiveError("the archive is damaged: {}; copy or pack it again".format(what))


def _truncated() -> ArchiveError:
    return ArchiveError("the archive is truncated: its gzip stream has no end; copy it again")

"""Inflating (RFC 1951) by the library of our own, which never has the last word."""

from ..machine.native import DONE, MORE_INPUT, MORE_OUTPUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, Optional

    from ..machine.native import Native
    from .given import Given
    from .source import Source

_INPUT, _OUTPUT = 1 << 18, 1 << 20
_WINDOW = 1 << 15


class Unsure(Exception):
    """The library does not take a stream: whether it is damaged, and where, zlib is to say."""


class Inflated:
    """A state of ``speculate.Decoded``: the blocks of one deflate stream.

    The chunks are filled in the place where they are handed on, all of them but the last, and
    what a chunk refers back to is read in the one before it.

    Args:
        size: how many bytes are to come, if that is known.
    """

    limited = False
    margin = 0

    def __init__(self, native: "Native", size: "Optional[int]" = None) -> None:
        self._native = native
        self._stream = native.stream()
        self._history = b""
        self._left = size
        self._chunk: Optional[bytes] = None  # none while there is nothing to fill it with
        self.finished = False

    def _begin(self) -> None:
        """Go on in a new chunk; one without room for a byte if no more is to come."""
        size = _OUTPUT
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        chunk = self._chunk = self._native.new_bytes(None, size)
        stream = self._stream
        stream.output, stream.output_size = self._native.address_of(chunk), size
        stream.output_at = 0

    def _take(self) -> bytes:
        """The present chunk, as far as it is filled; a copy of its end may be referred back to."""
        stream = self._stream
        chunk, self._chunk = self._chunk or b"", None
        if stream.output_at < len(chunk):
            chunk = chunk[: stream.output_at]
        end = chunk[-_WINDOW:]
        if len(end) < _WINDOW:
            end = (self._history + end)[-_WINDOW:]
        self._history = end
        stream.history, stream.history_size = self._native.address_of(end), len(end)
        return chunk

    def feed(self, data: bytes) -> "Iterator[bytes]":
        stream = self._stream
        stream.input, stream.input_left = self._native.address_of(data), len(data)
        while True:
            if self._chunk is None:
                self._begin()
            verdict = self._native.inflate(stream)
            if verdict == MORE_OUTPUT and stream.output_size:
                yield self._take()
                continue
            self.finished = verdict == DONE
            if verdict not in (MORE_INPUT, DONE):
                raise Unsure
            return

    def rest(self) -> "Iterator[bytes]":
        """What has been inflated and not been handed on."""
        if self._chunk is not None:
            chunk = self._take()
            if chunk:
                yield chunk

    @property
    def unused(self) -> int:
        count: int = self._stream.input_left
        return count

    def before_cut(self) -> None:
        """Where it stands is known without looking."""

    def restartable(self) -> bool:
        """Whether it stands between two blocks, on a byte boundary: then a new one may start here.

        It makes the same output unless the data refer back over the cut, which it refuses.
        """
        return bool(self._stream.at_block) and not self._stream.bits_left

    def alone(self) -> None:
        """A window has 32 KiB, whoever decodes beside it."""


def inflated(
    native: "Native",
    source: "Source",
    data: bytes,
    at: int,
    end: int,
    crc: int,
    size: int,
    given: "Given",
) -> "Iterator[bytes]":
    """The content of a stream of known size.

    Args:
        data: the first of its bytes, which lie from ``at`` to ``end`` of the source.
        crc, size: what is to come of it.
        given: adds up what has.

    Raises:
        Unsure: that does not come of it, or not of all of its bytes.
    """
    state = Inflated(native, size)
    at += len(data)
    while True:
        for chunk in state.feed(data):
            given.add(chunk)
            yield chunk
        data = source.pread(min(_INPUT, end - at), at) if at < end else b""
        if state.finished or not data:
            break
        at += len(data)
    for chunk in state.rest():
        given.add(chunk)
        yield chunk
    whole = (given.crc, given.length) == (crc, size)
    if not (whole and state.finished and not state.unused and at == end):
        raise Unsure

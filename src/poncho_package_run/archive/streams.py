"""Formats that are a row of whole streams, each checked by its own decoder: bzip2 and xz."""

from ..telling.errors import ArchiveError
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Optional, Tuple, Type

    from .parallel import Pool

_INPUT = 1 << 17
_OUTPUT = 1 << 20

# What a stream is given first, and then twice as much each time: its decoder copies what it does
# not use, and a stream may be of 14 bytes.
_STEP = 1 << 12


class Streams:
    """A state of ``speculate.Decoded``: decodes stream after stream from what it is fed."""

    name = ""
    errors: "Tuple[Type[Exception], ...]" = ()

    first = b""  # the bytes that a stream may begin with
    padding = 1  # streams may be followed by a multiple of so many zero bytes
    finished = True  # an error is final: no decoder goes on over a stream's end ...
    limited = False  # ... unless it was one of memory
    unused = None  # streams follow each other up to the end of the source
    margin = 0

    def __init__(self) -> None:
        self._decoder: Any = None
        self._zeros = 0
        self._step = _STEP

    def new_decoder(self) -> "Any":
        raise NotImplementedError

    def feed(self, data: bytes) -> "Iterator[bytes]":
        at, end = 0, len(data)
        try:
            while at < end or (self._decoder and not self._decoder.needs_input):
                if self._decoder is None:
                    if not data[at]:
                        step = data[at : at + self._step]
                        zeros = len(step) - len(step.lstrip(b"\0"))
                        self._zeros += zeros
                        at += zeros
                        continue
                    if self._zeros % self.padding:
                        raise ArchiveError(self._damage("bad padding between streams"))
                    if data[at] not in self.first:
                        raise ArchiveError(self._damage("bytes that are no stream"))
                    self._zeros = 0
                    self._decoder = self.new_decoder()
                    self._step = _STEP
                piece = b""
                if self._decoder.needs_input:
                    piece = data[at : at + self._step]
                    at += len(piece)
                    self._step = min(2 * self._step, _INPUT)
                chunk = self._decoder.decompress(piece, _OUTPUT)
                if chunk:
                    yield chunk
                if self._decoder.eof:
                    at -= len(self._decoder.unused_data)
                    self._decoder = None
        except self.errors as error:
            raise self.failed(error)

    def rest(self) -> "Iterable[bytes]":
        return ()

    def failed(self, error: Exception) -> ArchiveError:
        return ArchiveError(self._damage(str(error)))

    def restartable(self) -> bool:
        """Whether a stream has ended exactly here."""
        return self._decoder is None and not self._zeros % self.padding

    def before_cut(self) -> None:
        """A stream's end is known without looking."""

    def alone(self) -> None:
        """Most decoders take no more memory than others can spare."""

    def end(self) -> None:
        """The source is at its end: raise ArchiveError if the streams are not."""
        if self._decoder is not None:
            raise ArchiveError(
                "the archive is truncated: its {} stream has no end; copy it again".format(
                    self.name
                )
            )
        if self._zeros % self.padding:
            raise ArchiveError(self._damage("bad padding behind the last stream"))

    def _damage(self, what: str) -> str:
        return "the archive is damaged: {} says {!r}; copy or pack it again".format(self.name, what)


def decode_streams(
    source: Source,
    new_state: "Callable[[], Streams]",
    ranges: "Optional[Iterable[Tuple[int, int]]]",
    pool: "Pool",
    workers: int,
) -> "Iterator[bytes]":
    """Decode all streams, in several threads where ``ranges`` says how to cut them."""
    if ranges is not None:
        from .speculate import Decoded

        decoded = Decoded(source, new_state, ranges, pool, workers)
        for chunk in decoded:
            yield chunk
        state = decoded.state
    else:
        state = new_state()
        state.alone()
        data = source.read(_INPUT)
        while data:
            for chunk in state.feed(data):
                yield chunk
            data = source.read(_INPUT)
    state.end()

"""Formats that are a row of whole streams, each checked by its own decoder: bzip2 and xz."""

from ..telling.errors import ArchiveError
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Optional, Tuple, Type

_INPUT = 1 << 17
_OUTPUT = 1 << 20


class Streams:
    """A state of ``speculate.Decoded``: decodes stream after stream from what it is fed."""

    name = ""
    errors: "Tuple[Type[Exception], ...]" = ()

    padding = 1  # streams may be followed by a multiple of so many zero bytes
    finished = True  # an error is final: no decoder goes on over a stream's end
    unused = None  # streams follow each other up to the end of the source

    def __init__(self) -> None:
        self._decoder: Any = None
        self._zeros = 0

    def new_decoder(self) -> "Any":
        raise NotImplementedError

    def feed(self, data: bytes) -> "Iterator[bytes]":
        try:
            while data or (self._decoder and not self._decoder.needs_input):
                if self._decoder is None:
                    stripped = data.lstrip(b"\0")
                    self._zeros += len(data) - len(stripped)
                    data = stripped
                    if not data:
                        return
                    if self._zeros % self.padding:
                        raise ArchiveError(self._damage("bad padding between streams"))
                    self._zeros = 0
                    self._decoder = self.new_decoder()
                chunk = self._decoder.decompress(data, _OUTPUT)
                if chunk:
                    yield chunk
                data = b""
                if self._decoder.eof:
                    data = self._decoder.unused_data
                    self._decoder = None
        except self.errors as error:
            raise ArchiveError(self._damage(str(error)))

    def restartable(self) -> bool:
        """Whether a stream has ended exactly here."""
        return self._decoder is None

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
    new_state: "Type[Streams]",
    ranges: "Optional[Iterable[Tuple[int, int]]]",
    cores: int,
) -> "Iterator[bytes]":
    """Decode all streams, on several threads where ``ranges`` says how to cut them."""
    if ranges is not None:
        from .speculate import Decoded

        decoded = Decoded(source, new_state, ranges, cores)
        for chunk in decoded:
            yield chunk
        state = decoded.state
    else:
        state = new_state()
        data = source.read(_INPUT)
        while data:
            for chunk in state.feed(data):
                yield chunk
            data = source.read(_INPUT)
    state.end()

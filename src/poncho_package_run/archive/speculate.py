"""Decoding one stream from several places at once, where a guess says it can be cut.

Nothing that was decoded behind a wrong guess is ever handed on: a piece is used only if the
piece before it ended exactly at the cut in a state that a new decoder may take over, and if
it decoded without error itself.  Otherwise the decoder before it goes on through it.
"""

from . import parallel
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Tuple

    Range = Tuple[int, int]

_READ = 1 << 18

# What is searched for a cut at a time: little, since the other threads wait for it.
_WINDOW = 1 << 15

# What may be decoded ahead; with a chunk in the hands of each thread, and the Python
# interpreter's own 12 MiB, the whole stays under the contract's 64 MiB.
_AHEAD = 10 << 20

# More threads than this would only hold more memory: one writer cannot keep up with them.
_WORKERS = 8

# So many wrong cuts more than right ones, and the guess is given up, the rest being one
# piece: the stream is one whose blocks depend on each other (pigz without -i).
_PATIENCE = 4


class Decoded:
    """The chunks of a stream decoded from several cuts at once.

    Args:
        source: read by offset.
        new_state: makes a decoder state, an object with ``feed(data)``, a generator of
            chunks, and ``rest()``, those that it still holds when a piece ends; ``finished``, the
            stream's own end was met; ``unused``, how many fed bytes
            lie behind it; ``before_cut()``, it stands ``margin`` bytes before the end of a
            piece; ``restartable()``, a new state may start where this one stands;
            ``limited``, what ended it was that others need memory too; ``alone()``, from now on
            no other of the same memory is beside it.
        ranges: (start, end) offsets of the pieces, without gaps.
        pool: whose threads decode.
        workers: how many of them.

    Attributes:
        end (int): once iterated over, the offset behind the last byte used.
        state: the state that used it.
    """

    def __init__(
        self,
        source: Source,
        new_state: "Callable[[], Any]",
        ranges: "Iterable[Range]",
        pool: parallel.Pool,
        workers: int,
    ) -> None:
        self._source = source
        self._new_state = new_state
        self._ranges = ranges
        self._pool = pool
        self._workers = min(workers, _WORKERS)
        self.end = 0
        self.state: Any = None

    def _work(self, piece: "Piece") -> "Iterator[bytes]":
        piece.state = self._new_state()
        return piece.decode(self._source)

    def __iter__(self) -> "Iterator[bytes]":
        pieces = (Piece(start, end) for start, end in self._ranges)
        lanes = parallel.Lanes(self._pool, self._work, pieces, self._workers, _AHEAD)
        try:
            yield from self._joined(lanes)
        finally:
            lanes.close()

    def _joined(self, lanes: "Iterable[parallel.Lane]") -> "Iterator[bytes]":
        source = self._source
        wrong = 0
        for lane in lanes:
            piece = lane.item
            taken = 0
            right = self.state is None or self.state.restartable()
            if right:
                for chunk in lane:
                    taken += len(chunk)
                    yield chunk
                if lane.error is not None:
                    final = self.state is None or self.state.finished
                    if final and (piece.state is None or not piece.state.limited):
                        raise lane.error  # no decoder could go on: the damage is real
                    right = False
            if right:
                self.state = piece.state
                wrong = max(wrong - 1, 0)
            else:
                # The decoder that stands at this piece's start goes through it.  What was
                # handed on already was right: nothing in it reached back over the cut.
                wrong += 1
                end = piece.stop if wrong <= _PATIENCE else source.size or 0
                piece = Piece(piece.start, end)
                lane.drop()
                piece.state = self._new_state() if self.state is None else self.state
                piece.state.alone()
                self.state = piece.state
                for chunk in piece.decode(source):
                    if taken >= len(chunk):
                        taken -= len(chunk)
                    else:
                        yield chunk[taken:] if taken else chunk
                        taken = 0
            source.position = self.end = piece.end
            if self.state.finished and self.state.unused is not None:
                self.end -= self.state.unused
                return
            if wrong > _PATIENCE:
                return


class Piece:
    """A range of the source, and the decoder state that goes through it."""

    __slots__ = ("start", "stop", "end", "state")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.stop = self.end = end
        self.state: Any = None

    def decode(self, source: Source) -> "Iterator[bytes]":
        at = self.start
        cut = max(self.stop - self.state.margin, at)
        while at < self.stop:
            if at == cut:
                self.state.before_cut()
            data = source.pread(min(_READ, (cut if at < cut else self.stop) - at), at)
            if not data:
                break  # the file got shorter: the state is not at its end, and that is told
            at += len(data)
            yield from self.state.feed(data)
            if self.state.finished and self.state.unused is not None:
                self.end = at
                break
        yield from self.state.rest()


def ranges_at(
    source: Source, start: int, marker: bytes, behind: int, least: int
) -> "Iterator[Range]":
    """Cut a source at markers, into pieces of at least ``least`` bytes.

    Args:
        marker: what stands at a cut.
        behind: how far behind the marker's first byte the cut is, in bytes.
        least: so much is passed before a marker is looked for.
    """
    size = source.size or 0
    while start < size:
        end = size
        at = start + least
        while at < size:
            window = source.pread(_WINDOW, at)
            found = window.find(marker)
            if found >= 0:
                end = at + found + behind
                break
            if len(window) < _WINDOW:
                break
            at += len(window) - len(marker) + 1
        yield start, min(end, size)
        start = end

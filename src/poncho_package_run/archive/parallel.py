"""Threads that decode ahead of the consumer, in order and in bounded memory.

The standard library's decoders release the GIL, so that a decoding thread really runs
beside the thread that writes files.  ``concurrent.futures`` would do for the pool, but
imports ``logging`` (10 ms of every cold start) and cannot hold a producer back.

No wait here is endless: whoever waits looks up several times a second, at whether the archive
was closed and, in the main thread, at whether a signal came.  So nothing depends on another
thread's being alive, nor on a notification's not being lost; and to close takes no lock.
"""

import threading
import time
from collections import deque

from ..machine import threads
from ..machine.signals import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, List, Optional

LOOK = 0.1  # seconds between two looks

# How long a closed pool waits for its threads in all: a look, and what is decoded between two.
_GRACE = 0.2  # seconds

# Lanes that may be open for each thread, however little they hold.
_LANES = 4


class Closed(BaseException):
    """What a thread was at is no longer wanted; passes through everything, and ends the thread."""


class Pool:
    """The threads of one open archive.  Made, and closed, by the thread that wants its members.

    Args:
        cores: how many processors they may use.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._owner = threading.get_ident()
        self._threads: List[threading.Thread] = []
        self._closed = False

    def start(self, target: "Callable[[], None]", count: int) -> int:
        """Call ``target`` in so many threads, or in as many as the system has to give."""

        def run() -> None:
            try:
                target()
            except Closed:
                pass

        started = threads.start(run, count)
        self._threads.extend(started)
        return len(started)

    def look(self) -> None:
        """To be called several times a second by whoever waits, or works for long.

        Raises:
            Closed: in a thread of the pool, once it was closed.
            Terminated: in the thread that made it, if a signal asks the process to end.
        """
        if threading.get_ident() == self._owner:
            check()
        elif self._closed:
            raise Closed

    def close(self) -> bool:
        """Ask the threads to end, and wait a little for them; whether all have ended.

        The others end with the process, if not before: they only read.
        """
        self._closed = True
        end = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)


class Lane:
    """The output of one piece of work: an iterator over its chunks, used by one consumer.

    Attributes:
        item: what ``work`` was called with.
        error (Exception or None): what ended the work early; set when the chunks are used up.
    """

    def __init__(self, item: "Any", lanes: "Lanes") -> None:
        self.item = item
        self.error: Optional[BaseException] = None
        self.chunks: deque = deque()
        self.ended = False
        self.dropped = False
        self._lanes = lanes

    def drop(self) -> None:
        """Forget what was produced and let the producer end."""
        self._lanes.drop(self)

    def __iter__(self) -> "Iterator[bytes]":
        while True:
            chunk = self._lanes.take(self)
            if not chunk:
                return
            yield chunk


class _Inline(Lane):
    """A lane whose work its consumer does itself."""

    def drop(self) -> None:
        """Nothing was produced ahead."""

    def __iter__(self) -> "Iterator[bytes]":
        try:
            yield from self._lanes.work(self.item)
        except Exception as error:  # as in a thread: the consumer decides what it means
            self.error = error


class Lanes:
    """``work`` called on each item in ``workers`` threads, from now on; the lanes in order.

    What is decoded ahead has one budget.  With a share for each lane, one whose piece grows a
    lot would hold its own thread back, and the others, full, would wait for it.

    Args:
        pool: whose threads they are.
        work: gives the chunks of one item, none of them empty; runs in a thread.
        items: asked for one by one, by one thread at a time.
        workers: how many threads; if none can be started, the consumer works.
        budget: bytes that all lanes may hold before their producers wait.
    """

    def __init__(
        self,
        pool: Pool,
        work: "Callable[[Any], Iterable[bytes]]",
        items: "Iterable[Any]",
        workers: int,
        budget: int,
    ) -> None:
        self.work = work
        self._pool = pool
        self._items = iter(items)
        # Held while an item is searched for, which may take long: the consumer never takes it.
        self._asking = threading.Lock()
        # Guards all that follows; nobody decodes, reads or writes while holding it.
        self._changed = threading.Condition()
        self._open: deque = deque()
        self._most = _LANES * workers
        self._budget = budget
        self._held = 0  # bytes in the open lanes
        self._waiting = 0  # producers that wait for room
        self._error: Optional[Exception] = None  # of the items' iterator
        self._closed = False
        self._left = workers
        started = pool.start(self._produce, workers)
        with self._changed:
            self._left -= workers - started
        self._inline = not started

    def __iter__(self) -> "Iterator[Lane]":
        if self._inline:
            for item in self._items:
                yield _Inline(item, self)
            return
        while True:
            with self._changed:
                while not self._open and self._left:
                    self._wait()
                if not self._open:
                    break
                lane = self._open[0]
            yield lane
            lane.drop()
            with self._changed:
                self._open.popleft()
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """No more is wanted: the producers end, each when it next looks."""
        self._closed = True

    def take(self, lane: Lane) -> bytes:
        """The lane's next chunk; empty at its end."""
        with self._changed:
            while not lane.chunks:
                if lane.ended:
                    return b""
                self._wait()
            chunk: bytes = lane.chunks.popleft()
            self._held -= len(chunk)
            if self._waiting and (not lane.chunks or self._held <= self._budget // 2):
                self._changed.notify_all()
            return chunk

    def drop(self, lane: Lane) -> None:
        with self._changed:
            lane.dropped = True
            self._held -= sum(map(len, lane.chunks))
            lane.chunks.clear()
            self._changed.notify_all()

    def _wait(self) -> None:
        """Wait for a change, which may already have come; the condition is held."""
        self._changed.wait(LOOK)
        self._look()

    def _look(self) -> None:
        if self._closed:
            raise Closed
        self._pool.look()

    def _produce(self) -> None:
        try:
            while True:
                while not self._asking.acquire(timeout=LOOK):
                    self._look()
                # Opened under this lock: the order of the lanes is that of the items.
                try:
                    lane = Lane(next(self._items), self)
                    with self._changed:
                        while len(self._open) >= self._most:
                            self._wait()
                        self._open.append(lane)
                        self._changed.notify_all()
                except StopIteration:
                    return
                finally:
                    self._asking.release()
                self._fill(lane)
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._left -= 1
                self._changed.notify_all()

    def _fill(self, lane: Lane) -> None:
        """Do the work, holding it back while the budget is used up."""
        chunks: Any = ()
        try:
            chunks = self.work(lane.item)
            for chunk in chunks:
                with self._changed:
                    if self._held >= self._budget:
                        self._wait_for_room(lane)
                    if lane.dropped:
                        break
                    lane.chunks.append(chunk)
                    self._held += len(chunk)
                    if len(lane.chunks) == 1:  # else nobody waits for it
                        self._changed.notify_all()
                self._look()
        except BaseException as error:  # handed to the consumer, who decides what it means
            lane.error = error
            if isinstance(error, Closed):
                raise
        finally:
            lane.ended = True
            # Here, where it ran: a decoder program ends, not when the last error is forgotten.
            if hasattr(chunks, "close"):
                chunks.close()
            with self._changed:
                self._changed.notify_all()

    def _wait_for_room(self, lane: Lane) -> None:
        """Wait until half of the budget is free: to take turns oftener costs more than it gives.

        Not where the consumer waits for this lane, nor where it has given it up: all would wait.
        """
        self._waiting += 1
        try:
            while (
                self._held > self._budget // 2
                and not lane.dropped
                and (lane.chunks or self._open[0] is not lane)
            ):
                self._wait()
        finally:
            self._waiting -= 1


def prefetch(pool: Pool, chunks: "Iterable[bytes]", budget: int) -> "Iterator[bytes]":
    """The same chunks, produced in a thread up to ``budget`` bytes ahead, from now on."""
    return _only(Lanes(pool, lambda item: item, [chunks], 1, budget))


def _only(lanes: Lanes) -> "Iterator[bytes]":
    for lane in lanes:
        yield from lane
        if lane.error is not None:
            raise lane.error

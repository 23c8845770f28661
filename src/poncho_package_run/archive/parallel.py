"""Threads that decode ahead of the consumer, in order and in bounded memory.

The standard library's decoders release the GIL, so that a decoding thread really runs
beside the thread that writes files.  ``concurrent.futures`` would do for the pool, but
imports ``logging`` (10 ms of every cold start) and cannot hold a producer back.
"""

import threading
from collections import deque

from ..machine.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Generator, Iterable, Iterator, Optional

# How long a closed generator waits for each of its threads.  One may be reading from a pipe to
# which nothing comes; and once the interpreter is ending, no thread but the main one runs.
_GRACE = 0.1  # seconds

# Lanes that may be open for each thread, however little they hold.
_LANES = 4


class _Ahead:
    """What is decoded ahead of the consumer: the open lanes, and how many bytes they hold.

    The budget is one for all of them.  With a share for each, a lane whose piece grows a lot
    would hold its own thread back, and the others, full, would wait for it.
    """

    def __init__(self, budget: int) -> None:
        self.changed = threading.Condition()
        self.lanes: deque = deque()
        self.budget = budget
        self.held = 0
        self.waiting = 0  # producers that wait for room


class Lane:
    """The output of one piece of work: an iterator over its chunks, used by one consumer.

    Attributes:
        item: what ``work`` was called with.
        error (Exception or None): what ended the work early; set when the chunks are used up.
    """

    def __init__(self, item: "Any", ahead: _Ahead) -> None:
        self.item = item
        self.error: Optional[Exception] = None
        self._ahead = ahead
        self._chunks: deque = deque()
        self._ended = False
        self._cancelled = False

    def fill(self, chunks: "Iterable[bytes]") -> None:
        """Run the work (in the producing thread), holding it back while the budget is used up."""
        ahead = self._ahead
        try:
            for chunk in chunks:
                with ahead.changed:
                    if ahead.held >= ahead.budget:
                        self._wait_for_room()
                    if self._cancelled:
                        break
                    self._chunks.append(chunk)
                    ahead.held += len(chunk)
                    if len(self._chunks) == 1:  # else nobody waits for it
                        ahead.changed.notify_all()
        except Exception as error:  # handed to the consumer, who decides what it means
            self.error = error
        finally:
            with ahead.changed:
                self._ended = True
                ahead.changed.notify_all()

    def _wait_for_room(self) -> None:
        """Wait until half of the budget is free: to take turns oftener costs more than it gives.

        Not where the consumer waits for this lane, nor where it has given it up: all would wait.
        """
        ahead = self._ahead
        ahead.waiting += 1
        while (
            ahead.held > ahead.budget // 2
            and not self._cancelled
            and (self._chunks or ahead.lanes[0] is not self)
        ):
            ahead.changed.wait()
        ahead.waiting -= 1

    def cancel(self) -> None:
        """Drop what was produced and let the producer end."""
        ahead = self._ahead
        with ahead.changed:
            self._cancelled = True
            ahead.held -= sum(map(len, self._chunks))
            self._chunks.clear()
            ahead.changed.notify_all()

    def __iter__(self) -> "Iterator[bytes]":
        ahead = self._ahead
        while True:
            with ahead.changed:
                while not self._chunks and not self._ended:
                    ahead.changed.wait()
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                ahead.held -= len(chunk)
                if ahead.waiting and (not self._chunks or ahead.held <= ahead.budget // 2):
                    ahead.changed.notify_all()
            yield chunk


class _Inline(Lane):
    """A lane whose work its consumer does itself."""

    def __init__(self, item: "Any", work: "Callable[[Any], Iterable[bytes]]") -> None:
        self.item = item
        self.error = None
        self._work = work

    def cancel(self) -> None:
        """Nothing was produced ahead."""

    def __iter__(self) -> "Iterator[bytes]":
        try:
            yield from self._work(self.item)
        except Exception as error:  # as in a thread: the consumer decides what it means
            self.error = error


def lanes(
    work: "Callable[[Any], Iterable[bytes]]", items: "Iterable[Any]", workers: int, budget: int
) -> "Generator[Lane, None, None]":
    """Call ``work`` on each item in ``workers`` threads; yield the lanes in the items' order.

    Args:
        work: gives the chunks of one item; runs in a thread.
        items: asked for one by one, by one thread at a time.
        workers: how many threads; if none can be started, the consumer works.
        budget: bytes that all lanes may hold before their producers wait.

    Closing the generator stops the threads, which are daemons: one that does not stop at once
    ends with the process.
    """
    ahead = _Ahead(budget)
    changed, open_lanes = ahead.changed, ahead.lanes
    source = iter(items)
    state: dict = {"left": workers, "closed": False, "error": None}

    def produce() -> None:
        try:
            while True:
                with changed:
                    while len(open_lanes) >= _LANES * workers and not state["closed"]:
                        changed.wait()
                    if state["closed"]:
                        return
                    # Asked for under the lock: the order of the lanes is that of the items.
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                    lane = Lane(item, ahead)
                    open_lanes.append(lane)
                    changed.notify_all()
                lane.fill(work(item))
        except Exception as error:  # of the items' iterator: raised in the consumer
            state["error"] = error
        finally:
            with changed:
                state["left"] -= 1
                changed.notify_all()

    threads = start(produce, workers)
    if not threads:
        for item in source:
            yield _Inline(item, work)
        return
    with changed:
        state["left"] -= workers - len(threads)
    try:
        while True:
            with changed:
                while not open_lanes and state["left"]:
                    changed.wait()
                if not open_lanes:
                    break
                lane = open_lanes[0]
            yield lane
            lane.cancel()
            with changed:
                open_lanes.popleft()
                changed.notify_all()
        if state["error"] is not None:
            raise state["error"]
    finally:
        with changed:
            state["closed"] = True
            for lane in open_lanes:
                lane.cancel()
        for thread in threads:
            thread.join(_GRACE)


def prefetch(chunks: "Iterable[bytes]", budget: int) -> "Generator[bytes, None, None]":
    """The same chunks, produced in a thread up to ``budget`` bytes ahead, from now on."""
    ahead = _prefetched(chunks, budget)
    next(ahead)
    return ahead


def _prefetched(chunks: "Iterable[bytes]", budget: int) -> "Generator[bytes, None, None]":
    ahead = lanes(lambda item: item, [chunks], 1, budget)
    try:
        lane = next(ahead)
        yield b""  # the thread runs
        yield from lane
        if lane.error is not None:
            raise lane.error
    finally:
        ahead.close()  # now, not when the error that refers to it is forgotten

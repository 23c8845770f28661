"""Threads that decode ahead of the consumer, in order and in bounded memory.

The standard library's decoders release the GIL, so that a decoding thread really runs
beside the thread that writes files.  ``concurrent.futures`` would do for the pool, but
imports ``logging`` (10 ms of every cold start) and cannot hold a producer back.
"""

import threading
from collections import deque

from ..threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Generator, Iterable, Iterator, Optional

# How long a closed generator waits for each of its threads.  One may be reading from a pipe to
# which nothing comes; and once the interpreter is ending, no thread but the main one runs.
_GRACE = 0.1  # seconds


class Lane:
    """The output of one piece of work: an iterator over its chunks, used by one consumer.

    Attributes:
        item: what ``work`` was called with.
        error (Exception or None): what ended the work early; set when the chunks are used up.
    """

    def __init__(self, item: "Any", changed: threading.Condition, budget: int) -> None:
        self.item = item
        self.error: Optional[Exception] = None
        self._changed = changed
        self._budget = budget
        self._chunks: deque = deque()
        self._held = 0
        self._full = False  # the producer waits
        self._ended = False
        self._cancelled = False

    def fill(self, chunks: "Iterable[bytes]") -> None:
        """Run the work (in the producing thread), holding it back while the budget is used up."""
        try:
            for chunk in chunks:
                with self._changed:
                    if self._held >= self._budget:
                        # Until half is used up: each turn of the threads is worth some chunks.
                        while self._held > self._budget // 2 and not self._cancelled:
                            self._full = True
                            self._changed.wait()
                        self._full = False
                    if self._cancelled:
                        break
                    self._chunks.append(chunk)
                    self._held += len(chunk)
                    if len(self._chunks) == 1:  # else nobody waits for it
                        self._changed.notify_all()
        except Exception as error:  # handed to the consumer, who decides what it means
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def cancel(self) -> None:
        """Drop what was produced and let the producer end."""
        with self._changed:
            self._cancelled = True
            self._chunks.clear()
            self._changed.notify_all()

    def __iter__(self) -> "Iterator[bytes]":
        while True:
            with self._changed:
                while not self._chunks and not self._ended:
                    self._changed.wait()
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._held -= len(chunk)
                if self._full and self._held <= self._budget // 2:
                    self._changed.notify_all()
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
        budget: bytes that one lane may hold before its producer waits.

    Closing the generator stops the threads, which are daemons: one that does not stop at once
    ends with the process.
    """
    changed = threading.Condition()
    source = iter(items)
    open_lanes: deque = deque()
    state: dict = {"left": workers, "closed": False, "error": None}

    def produce() -> None:
        try:
            while True:
                with changed:
                    while len(open_lanes) > workers and not state["closed"]:
                        changed.wait()
                    if state["closed"]:
                        return
                    # Asked for under the lock: the order of the lanes is that of the items.
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                    lane = Lane(item, changed, budget)
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
                # Removed only now, so that a lane in use counts against those ahead of it.
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

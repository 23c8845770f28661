"""Writing files: one by one, or by several threads where each call makes the writer wait."""

import os
import threading
import time
from collections import deque

from ..archive.member import Member
from ..machine import threads
from ..machine.signals import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, List, Optional, Tuple

    Create = Callable[[int, bytes, Member], int]
    Failed = Callable[[OSError, bytes, int], Exception]
    Task = Tuple[int, bytes, Member]
    Batch = Tuple[List[Task], int]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Content that waits for a writer.  A member's bytes keep their chunk of the stream alive
# (1 MiB), but neighbours share it.
_WAITING_BYTES = 4 << 20
_BATCH_BYTES = 1 << 19

# Seconds: how long to wait before looking for a signal, and for all threads to end.  Longer than
# that takes only one who is stuck in a system call.
_LOOK = 0.1
_GRACE = 1.0


def create(directory: int, name: bytes, mode: int) -> int:
    """Create a file that must not exist; never setuid, setgid or sticky; less the umask."""
    return os.open(name, _CREATE, mode & 0o777, dir_fd=directory)


def write(handle: int, member: Member, look: "Optional[Callable[[], None]]" = None) -> None:
    """Write a member's body and time to an open file, and close it.

    Args:
        look: called before each piece; raises if no more is to be written.  By default a signal
            is looked for, in a body that takes long.
    """
    if look is None and member.size > _BATCH_BYTES:
        look = check
    try:
        for data in member.body:
            if look is not None:
                look()
            count = os.write(handle, data)
            while count < len(data):
                data = data[count:]
                count = os.write(handle, data)
        if member.mtime_ns is not None:
            os.utime(handle, ns=(member.mtime_ns, member.mtime_ns))
    finally:
        os.close(handle)


class _Closed(Exception):
    """The writers have been closed: nothing more is to be written."""


class Writers:
    """Threads that write detached bodies, for the main thread alone.

    No two files of one name are ever under way at the same time, so that the last member of
    a name wins here as well.  A file in whose place there is a directory is put off until
    all others are written: they may be on their way into that directory.

    Args:
        count: how many threads.
        together: how many files a thread takes at a time: 1 where every call waits; more where
            writing is so short that handing over costs as much (25,000 members of a zip: 2.9
            seconds of processor time one by one, 2.4 by 64, as in one thread).
        create: opens a new file, given its directory, its name and the member;
            IsADirectoryError puts it off.
        failed: what to raise for an error of the system, given the member's path and size.

    Attributes:
        works (bool): the system had a thread to give.
        put_off (list): tasks for the caller to do after ``drain``; they keep their bodies, so
            the caller looks here before each ``write``.
    """

    def __init__(self, count: int, together: int, create: "Create", failed: "Failed") -> None:
        self._together = together
        self._batch: List[Task] = []
        self._batch_bytes = 0
        self._create = create
        self._failed = failed
        self.put_off: List[Task] = []
        self._changed = threading.Condition()
        self._tasks: Deque[Batch] = deque()
        self._names: set = set()
        self._waiting = 0
        self._error: Optional[BaseException] = None
        self._closed = False
        self._threads = threads.start(self._run, count)
        self.works = bool(self._threads)

    def write(self, directory: int, name: bytes, member: Member) -> None:
        """Have a file written.

        Raises:
            Failure: what an earlier file met.
        """
        self.settle(directory, name)
        self._names.add((directory, name))
        self._batch.append((directory, name, member))
        self._batch_bytes += member.size
        if len(self._batch) == self._together or self._batch_bytes > _BATCH_BYTES:
            self._submit()

    def _submit(self) -> None:
        """Hand over what was collected, as soon as not too much waits already."""
        if not self._batch:
            return
        size = self._batch_bytes
        self._wait(
            lambda: (
                not self._tasks
                or self._waiting + size <= _WAITING_BYTES
                and len(self._tasks) <= 4 * len(self._threads)
            )
        )
        with self._changed:
            self._tasks.append((self._batch, size))
            self._waiting += size
            self._changed.notify_all()
        self._batch, self._batch_bytes = [], 0

    def settle(self, directory: int, name: bytes) -> None:
        """Wait until no file of this name is under way, and raise what went wrong."""
        if (directory, name) in self._names:  # only the caller adds to them
            self._submit()
            self._wait(lambda: (directory, name) not in self._names)

    def drain(self) -> "List[Task]":
        """Wait until all is written; raise what went wrong, or return what was put off."""
        self._submit()
        self._wait(lambda: not self._names)
        put_off, self.put_off = self.put_off, []
        return put_off

    def _wait(self, done: "Callable[[], bool]") -> None:
        """Wait until something is so; raise what went wrong, or Terminated."""
        with self._changed:
            while not (done() or self._error):
                self._changed.wait(_LOOK)
                check()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the threads; what has not been begun is dropped, and what has been is left half done.

        After a second at most, and then nothing is written but by a system call already made.
        """
        with self._changed:
            self._closed = True
            self._tasks.clear()
            self._batch.clear()
            self._changed.notify_all()
        until = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        # Of what was dropped nobody would ever be done, and an error is told once.
        self._names.clear()
        self._error = None

    def _look(self) -> None:
        if self._closed:
            raise _Closed

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                batch, size = self._tasks.popleft()
            failure: Optional[BaseException] = None
            put_off: List[Task] = []
            for directory, name, member in batch:
                try:
                    self._look()
                    write(self._create(directory, name, member), member, self._look)
                except IsADirectoryError:
                    put_off.append((directory, name, member))
                except OSError as error:
                    failure = self._failed(error, member.path, member.size)
                except BaseException as error:
                    failure = error
                if failure:
                    break
            with self._changed:
                self.put_off += put_off
                self._error = self._error or failure  # raised in the caller, by what it calls next
                self._names.difference_update([(task[0], task[1]) for task in batch])
                self._waiting -= size
                self._changed.notify_all()

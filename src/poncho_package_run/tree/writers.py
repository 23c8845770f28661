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
    from typing import Callable, Deque, Dict, Iterator, List, Optional, Tuple

    from ..machine.native import Native

    Create = Callable[[int, bytes, Member], int]
    Failed = Callable[[OSError, bytes, int], Exception]
    Task = Tuple[int, bytes, Member]
    Batch = Tuple[List[Task], Dict[int, bytes]]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What may wait for writers, or be under way: the chunks of the stream (1 MiB) that bodies lie in,
# of which one may keep alive whatever lies between it and the next body.
_WAITING_BYTES = 4 << 20

# Of a batch: content, and chunks.
_BATCH_BYTES = 1 << 19
_CHUNKS = 3

# A body of up to so many bytes that is made as it is read, a zip's, is read before it is written:
# then it is part of a batch (0.85 of the time).
_FLAT = 1 << 16

# Seconds: how long to wait before looking for a signal, and for all threads to end.  Longer than
# that takes only one who is stuck in a system call.
_LOOK = 0.1
_GRACE = 1.0

# Seconds before and after 1970 that any file system has.
_TIMES = 1 << 40


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


def _read(member: Member, native: "Native") -> None:
    """Have a body lie in memory; what goes wrong is told by who uses it, in its turn."""
    try:
        pieces = tuple([bytes(piece) for piece in member.body])
    except Exception as error:
        member.body = _broken(error)
        return
    member.body, member.addresses = pieces, tuple(map(native.address_of, pieces))


def _broken(error: Exception) -> "Iterator[bytes]":
    yield from ()
    raise error


class _Closed(Exception):
    """The writers have been closed: nothing more is to be written."""


class Writers:
    """Threads that write detached bodies, for the main thread alone.

    No two files of one name are ever under way at the same time, so that the last member of
    a name wins here as well.  A file in whose place there is a directory is put off until
    all others are written: they may be on their way into that directory.

    Args:
        count: how many threads; with none of them the caller writes, batch by batch.
        together: how many files a thread takes at a time: 1 where every call waits; more where
            writing is so short that handing over costs as much (25,000 members of a zip: 2.9
            seconds of processor time one by one, 2.4 by 64, as in one thread).
        create: opens a new file, given its directory, its name and the member;
            IsADirectoryError puts it off.
        failed: what to raise for an error of the system, given the member's path and size.
        native: writes what lies in memory, if it is there: without the interpreter, which goes on
            meanwhile, and with fewer steps.

    Attributes:
        works (bool): the system had a thread to give, or none is needed.
        put_off (list): tasks for the caller to do after ``drain``; they keep their bodies, so
            the caller looks here before each ``write``.
    """

    def __init__(
        self,
        count: int,
        together: int,
        create: "Create",
        failed: "Failed",
        native: "Optional[Native]" = None,
    ) -> None:
        self._together = together
        self._batch: List[Task] = []
        self._batch_bytes = 0
        self._batch_chunks: Dict[int, bytes] = {}
        self._held: Dict[int, int] = {}  # how many batches hold a chunk
        self._create = create
        self._failed = failed
        self.put_off: List[Task] = []
        self._changed = threading.Condition()
        self._tasks: Deque[Batch] = deque()
        self._names: set = set()
        self._waiting = 0
        self._error: Optional[BaseException] = None
        self._closed = False
        self._native = native
        self._stop = native.integer(0) if native is not None else None
        self._threads = threads.start(self._run, count)
        self.works = bool(self._threads) or native is not None

    def write(self, directory: int, name: bytes, member: Member) -> None:
        """Have a file written.

        Raises:
            Failure: what an earlier file met.
        """
        self.settle(directory, name)
        self._names.add((directory, name))
        self._batch.append((directory, name, member))
        self._batch_bytes += member.size
        body, chunks = member.body, self._batch_chunks
        if type(body) is tuple:
            for piece in body:
                chunk = piece if type(piece) is bytes else piece.obj
                chunks[id(chunk)] = chunk
        if (
            len(self._batch) == self._together
            or self._batch_bytes > _BATCH_BYTES
            or len(chunks) >= _CHUNKS
        ):
            self.submit()

    def submit(self) -> None:
        """Hand over what was collected, as soon as not too much waits already."""
        if not self._batch:
            return
        batch = self._batch, self._batch_chunks
        self._batch, self._batch_bytes, self._batch_chunks = [], 0, {}
        if not self._threads:
            self._hold(batch[1])
            self._do(*batch)
            self._wait(lambda: True)
            return
        size = sum(map(len, batch[1].values()))
        self._wait(
            # Of bodies that lie in no chunk, a zip's, nothing is counted but the batches.
            lambda: (
                len(self._tasks) <= 4 * len(self._threads)
                and (not self._waiting or self._waiting + size <= _WAITING_BYTES)
            )
        )
        with self._changed:
            self._hold(batch[1])
            self._tasks.append(batch)
            self._changed.notify_all()

    def _hold(self, chunks: "Dict[int, bytes]") -> None:
        for each, chunk in chunks.items():
            count = self._held.get(each, 0)
            self._held[each] = count + 1
            self._waiting += 0 if count else len(chunk)

    def _let_go(self, chunks: "Dict[int, bytes]") -> None:
        for each, chunk in chunks.items():
            self._held[each] -= 1
            if not self._held[each]:
                del self._held[each]
                self._waiting -= len(chunk)

    def settle(self, directory: int, name: bytes) -> None:
        """Wait until no file of this name is under way, and raise what went wrong."""
        if (directory, name) in self._names:  # only the caller adds to them
            self.submit()
            self._wait(lambda: (directory, name) not in self._names)

    def drain(self) -> "List[Task]":
        """Wait until all is written; raise what went wrong, or return what was put off."""
        self.submit()
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
        if self._stop is not None:
            self._stop.value = 1
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
                task = self._tasks.popleft()
            self._do(*task)
            del task  # and what it holds, while there is nothing to do

    def _do(self, batch: "List[Task]", chunks: "Dict[int, bytes]") -> None:
        """Write a batch, and say so; what goes wrong is raised by what the caller calls next."""
        failure: Optional[BaseException] = None
        put_off: List[Task] = []
        try:
            put_off = self._write_batch(batch)
        except BaseException as error:
            failure = error
        with self._changed:
            self.put_off += put_off
            self._error = self._error or failure
            self._names.difference_update([(task[0], task[1]) for task in batch])
            self._let_go(chunks)
            self._changed.notify_all()

    def _write_batch(self, batch: "List[Task]") -> "List[Task]":
        """Write them in order; those that are put off."""
        put_off: List[Task] = []
        at = 0
        while at < len(batch):
            self._look()
            if self._native is not None:
                at += self._write_natively(self._native, batch[at:])
                if at == len(batch):
                    break
                self._look()
            directory, name, member = batch[at]
            at += 1
            try:
                write(self._create(directory, name, member), member, self._look)
            except IsADirectoryError:
                put_off.append((directory, name, member))
            except OSError as error:
                raise self._failed(error, member.path, member.size)
        return put_off

    def _write_natively(self, native: "Native", batch: "List[Task]") -> int:
        """Write the first of them, those that lie in memory, up to one that cannot be created.

        Returns:
            How many are written.
        """
        pack = native.piece.pack
        pieces, names = [], []
        for directory, name, member in batch:
            if type(member.body) is not tuple and member.size <= _FLAT:
                self._look()  # reading may be slow
                _read(member, native)
            body, addresses, mtime_ns = member.body, member.addresses, member.mtime_ns
            if type(body) is not tuple or len(body) != len(addresses):
                break
            seconds, nanoseconds = (0, -1) if mtime_ns is None else divmod(mtime_ns, 1000000000)
            if not -_TIMES < seconds < _TIMES:
                break
            size = len(body[0]) if body else 0
            address = addresses[0] if body else 0
            mode = member.mode & 0o777
            pieces.append(pack(directory, mode, address, size, seconds, nanoseconds))
            names.append(name)
            for piece, address in zip(body[1:], addresses[1:]):
                pieces.append(pack(-1, 0, address, len(piece), 0, 0))
        ended = b"\0".join(names) + b"\0"
        if not names or ended.count(b"\0") != len(names):
            return 0
        error = native.integer()
        count: int = native.write(b"".join(pieces), len(pieces), ended, self._stop, error)
        if error.value < 0:  # of a file that was created
            code = -error.value
            member = batch[count][2]
            raise self._failed(OSError(code, os.strerror(code)), member.path, member.size)
        return count

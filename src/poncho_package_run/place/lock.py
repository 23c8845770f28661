"""The exclusive writing lock on a directory.

Locks are asked for without blocking, again and again: one look at the completion marker then
ends every wait at once, where blocked waiters would have to go through the lock one by one.

**Who excludes whom.**  A file system may refuse one process the lock that it grants another
(a client that lost its lock server, two nodes with different mount options), or grant it to
two (locks local to a node).  Two processes A and B may therefore hold "the lock" in different
ways.  What decides then is the in-progress marker, which ``acquire`` sets before it returns if
it is told by ``vacant`` that there is something to do.  Race by race:

* A and B find DIR empty at once: the marker is made with O_EXCL. B waits for A.
* B is granted a lock while A unpacks: the marker names A, and A lives (same host) or touches it
  (another host). B keeps its lock, so that it is next, and waits.
* B looks before A's marker and sets its own after A's was renamed to the completion marker: B
  asks ``published`` once more after it has set the marker, and takes it back.
* A died. Whoever has a lock, of whatever kind, may take over; B and C do so at once: only the
  successor of A may touch A's marker (see ``claim``), and there is one.
* A and B are on two nodes, both granted: as above. If A is stopped for longer than
  ``marker.SILENCE`` it is taken for dead; when it goes on, ``Lock.is_ours`` is false, so it never
  publishes. Its last writes may still fall into B's tree: the one race that remains, and only
  where neither a lock nor /proc reaches across.

Without ``vacant`` the exclusion is that of the lock alone, and of others' markers. The CCTools
script sets no marker: against it only the flock counts, which is the one it takes.
"""

import errno
import os
import time

from ..machine import holder
from ..machine.signals import check
from ..telling import errors, failures
from . import lockfile, marker
from .completion import UNPACKING
from .turn import POLL, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

    from ..machine.holder import Holder


class Lock:
    """A lock that is held; a context manager. It ends with the process, and at an exec.

    Attributes:
        how (str): "flock", "lock file, flock", "lock file, fcntl" or "lock file, exclusive".
        marked (bool): the in-progress marker is set, in this process's name.
        taken_over (bool): the marker was a dead unpacking's, whose remains are in DIR.
    """

    def __init__(self, way: "lockfile.Way", mark: "marker.Marker", marked: bool) -> None:
        self.how = way.how
        self.marked = marked
        self.taken_over = mark.taken_over
        self._way = way
        self._marker = mark

    def is_ours(self) -> bool:
        """Whether the marker still names this process: to be asked just before publishing.

        Raises OSError if it cannot be read.
        """
        return self._marker.is_ours()

    def unmark(self) -> None:
        """Remove the marker, unless it is gone already or another's. Raises OSError."""
        if self.is_ours():
            self._marker.remove()

    def release(self) -> None:
        """Give the lock back (once; more often does nothing). The marker stays as it is."""
        self._marker.stop()
        self._way.release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: "Any") -> None:
        self.release()


def acquire(
    directory: bytes,
    seconds: float,
    published: "Optional[Callable[[], bool]]" = None,
    waiting: "Optional[Callable[[Optional[Holder], float], object]]" = None,
    vacant: "Optional[Callable[[], bool]]" = None,
    name: bytes = UNPACKING,
    turn: "Optional[Turn]" = None,
) -> "Optional[Lock]":
    """Wait for the lock on ``directory``, which exists.

    Args:
        directory: the path; a relative one must not change its meaning meanwhile.
        seconds: how long to wait; 0 tries once.
        published: asked between tries, and once more with the lock held: is it done already?
        waiting: called about once a second, with the holder if known and the seconds waited.
        vacant: asked with the lock held: is there something to do, because ``directory`` holds
            nothing, or nothing but entries whose names begin with ``name``, or what a dead
            process left? If so, the marker is set before the lock is returned.
        name: the marker's.
        turn: what was done about it already; its handle is taken over.
    Returns:
        The lock, or None as soon as ``published`` is true, with nothing held and nothing left.
    Raises:
        LockTimeout: another process has it; names the directory, the seconds and the holder.
        CannotCreate: neither the directory nor a lock file can be opened or locked, or the
            marker cannot be set.
        InputOutputError: the same, for a disk error, a full disk or a used-up quota.
    """
    done = published or (lambda: False)
    mark = marker.Marker(directory, name)
    turn = turn or Turn()
    ways = lockfile.ways(directory, turn.handle)
    turn.handle = -1
    start, told = turn.since, time.monotonic()
    lock = None
    try:
        while not done():
            try:
                granted = ways[0].attempt()
            except OSError as error:
                if not _is_refusal(error, ways):
                    raise
                ways.pop(0).release()
                continue
            if granted and mark.is_free():
                if done():
                    break
                if vacant is None or not vacant():
                    lock = Lock(ways[0], mark, False)
                    break
                if mark.take():
                    if done():
                        mark.remove()
                        break
                    lock = Lock(ways[0], mark, True)
                    break
            now = time.monotonic()
            if now - start >= seconds:
                raise _timeout(directory, seconds, ways[0], _owner(mark, ways[0], granted))
            if waiting is not None and now - told >= 1:
                told = now
                waiting(_owner(mark, ways[0], granted), now - start)
            time.sleep(min(POLL, start + seconds - now))
            check()
    except OSError as error:
        raise _failure(directory, error) from error
    finally:
        if lock is None:
            mark.stop()
            ways[0].release()
    return lock


def _is_refusal(error: "OSError", ways: "List[lockfile.Way]") -> bool:
    """Whether the next way is to be tried: locks are refused, or DIR may not be opened."""
    if ways[0].how == "flock" and error.errno in (errno.EACCES, errno.EPERM):
        return True
    return error.errno in lockfile.REFUSED and len(ways) > 1


def _owner(mark: "marker.Marker", way: "lockfile.Way", granted: bool) -> "Optional[Holder]":
    theirs = mark.owner()
    if theirs is not None and not holder.is_dead(theirs):
        return theirs
    return None if granted else way.owner()


def _timeout(
    directory: bytes, seconds: float, way: "lockfile.Way", owner: "Optional[Holder]"
) -> "errors.LockTimeout":
    who = "another process"
    if owner is not None:
        who = "pid {} on host {}".format(owner["pid"], owner["host"])
    message = "waited {:g} s for the lock on {}, which {} holds; ".format(
        seconds, os.fsdecode(directory), who
    )
    if isinstance(way, lockfile.Claim):
        message += "if that process is gone, remove {}; else ".format(os.fsdecode(way.path))
    return errors.LockTimeout(message + "try again, or wait longer with --wait-for-lock")


def _failure(directory: bytes, error: "OSError") -> "errors.Failure":
    path = error.filename2 or error.filename  # of symlink(2), the second is the path
    return failures.kind_of(error)(
        "cannot lock {}: {}{}; make the directory that holds it writable, or choose another".format(
            os.fsdecode(directory), os.fsdecode(path) + ": " if path else "", error.strerror
        )
    )

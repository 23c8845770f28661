"""The in-progress marker: who is at work in a directory, and what outlives his death.

A regular file in the directory, made with O_EXCL before anything else and there until the
completion marker replaces it.  It holds JSON, with a holder in it.  It decides who
unpacks even where locks do not exclude (see ``lock``), and tells a dead unpacking from a
running one.

A dead process's marker is replaced by a rename, so that a half-made tree is never without
one, and only by that process's successor (see ``claim``).

Of a holder on another host neither life nor death can be proved.  So the holder touches its
marker every ``BEAT`` seconds, and whoever would take over watches it for ``SILENCE`` seconds
first.  The watcher compares what it sees with what it saw, never a time with its own clock.
It opens the file each time, which is what makes an NFS client ask the server anew.
"""

import os
import threading
import time

from ..machine import holder, threads
from . import claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Tuple

BEAT = 2.0
# Five beats.  A remote holder that is stopped for longer and then goes on has lost the
# directory: it learns that from ``is_ours`` before it publishes.
SILENCE = 10.0
# Nothing can stand in an empty marker's directory yet: its maker is, or died, between two
# system calls.
SILENCE_EMPTY = 2.0


class Marker:
    """The in-progress marker of ``directory``, under the name ``name``.

    Attributes:
        taken_over (bool): ``take`` replaced a dead process's marker; what it left is here.
    """

    def __init__(self, directory: bytes, name: bytes) -> None:
        self._directory = directory
        self._name = name
        self._path = os.path.join(directory, name)
        self.taken_over = False
        self._seen: Optional[Tuple[bytes, int, int]] = None
        self._since = 0.0
        self._stop = threading.Event()
        self._me: Optional[holder.Holder] = None

    def is_free(self) -> bool:
        """Whether no other process works here: no marker, ours, a dead or a silent one's.

        Ask it again and again: the silence is measured from call to call.
        """
        seen = self._look()
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        if seen is None:
            return True
        theirs = holder.parse(seen[0])
        if theirs is not None and holder.is_alive(theirs):
            self._since = time.monotonic()  # a stopped process is silent, yet not to be given up
            return theirs == self._myself()
        if theirs is not None and holder.is_dead(theirs):
            return True
        silence = SILENCE if seen[0] else SILENCE_EMPTY
        return time.monotonic() - self._since >= silence

    def owner(self) -> "Optional[holder.Holder]":
        """Whom the marker names, for a message."""
        try:
            seen = self._look()
        except OSError:
            return None
        return holder.parse(seen[0]) if seen else None

    def take(self) -> bool:
        """Set the marker, if ``is_free`` just said so and it still is.

        False: another process was faster.  Raises OSError where it cannot be written.
        """
        if self._seen is None:
            try:
                self._write(self._path, os.O_EXCL)
            except FileExistsError:
                return False
        elif not self._replace(self._seen):
            return False
        try:
            # A watcher may have taken the marker for an abandoned one while it was still empty.
            if not self.is_ours():
                return False
        except OSError:
            if not self.taken_over:
                self.remove()
            raise
        threads.start(self._beat)
        return True

    def is_ours(self) -> bool:
        """Whether the marker is there and names this process. Raises OSError."""
        seen = self._look()
        theirs = holder.parse(seen[0]) if seen else None
        # It may say more: just before it becomes the completion marker, it says the same.
        return theirs is not None and all(
            theirs.get(key) == value for key, value in self._myself().items()
        )

    def remove(self) -> None:
        """Remove the marker: nothing is half done under it any more. Raises OSError."""
        self.stop()
        os.unlink(self._path)

    def stop(self) -> None:
        """Touch the marker no more, and leave it, if it is there, as it is."""
        self._stop.set()

    def _myself(self) -> "holder.Holder":
        # Asked for once: a system that cannot tell a second time must not make us another.
        if self._me is None:
            self._me = holder.describe()
        return self._me

    def _look(self) -> "Optional[Tuple[bytes, int, int]]":
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            return os.read(fd, 65536), status.st_ino, status.st_mtime_ns
        finally:
            os.close(fd)

    def _replace(self, seen: "Tuple[bytes, int, int]") -> bool:
        right = claim.successor(self._path, holder.parse(seen[0]))
        if not claim.take(right, self._path):
            return False
        new = right + b".new"
        try:
            self._write(new, os.O_TRUNC)
            if self._look() == seen:
                os.rename(new, self._path)
                self.taken_over = True
            else:
                os.unlink(new)
        except FileNotFoundError:
            return False  # emptied, as below
        finally:
            claim.give_up(right)
        if self.taken_over:
            # What is left of other successions was begun by the dead, or by those who came
            # second: these find the marker changed, or their own file gone, and give way.
            for name in os.listdir(self._directory):
                if name.startswith(self._name + b"."):
                    claim.give_up(os.path.join(self._directory, name))
        return self.taken_over

    def _write(self, path: bytes, flag: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flag
        fd = os.open(path, flags, 0o666)
        try:
            os.write(fd, holder.encode(self._myself()) + b"\n")
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)  # also what makes an NFS client show others the content

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                if not self.is_ours():
                    return
                os.utime(self._path)
            except OSError:
                pass  # a beat may be missed; an error that stays fails the unpacking itself

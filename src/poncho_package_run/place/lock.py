"""The writing lock on a directory.  It saves work and never decides.

flock(2) on the directory itself, which is what the CCTools script takes; where the file system
refuses that, a lease file (see ``lease``); where neither is to be had, none.  Everything stays
right if it is refused, lost, or granted to two: what decides is the rename (see ``publication``).

It is asked for without blocking, again and again: one look at the completion marker then ends
every wait at once, where blocked waiters would have to go through the lock one by one.  And it is
asked for before anything is imported that only unpacking needs: with 32 starts at once on two
cores, what the waiters compute is taken from the one that unpacks.
"""

import errno
import fcntl
import os
import time

from ..machine.signals import check
from .completion import shut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .lease import Lease

# Promised is a tenth of a second.  A look costs 0.2 ms of a processor, most of it for waking up: 31
# waiters that look each 0.04 s take 8 % of two cores from the one that unpacks.
POLL = 0.06

# Lustre without flock; NFS without lockd; NFSv4 on a read-only descriptor; DVS and autofs
# (ENOTSUPP, which has no name outside the kernel); BSD and macOS mounts; FUSE; shared HOMEs.
_REFUSED = frozenset(
    (
        errno.ENOSYS,
        errno.ENOLCK,
        errno.EBADF,
        524,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.EINVAL,
        errno.EIO,
    )
)

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Lock:
    """The lock on a directory; a context manager that gives it back.

    Args:
        directory: absolute and real.
        seconds: how long to wait; 0 tries once.
        make: how to make the directory if it is missing: ``os.makedirs``, or ``os.mkdir`` where its
            parents are not for this to make; None if it is not to be made.

    Attributes:
        since (float): when the wait began, by ``time.monotonic``.
    """

    def __init__(
        self, directory: bytes, seconds: float, make: "Optional[Callable[[bytes], object]]" = None
    ) -> None:
        self.directory = directory
        self.since = time.monotonic()
        self._seconds = seconds
        self._make = make
        self._made = self._opened = False
        self._handle = -1
        self._lease: Optional[Lease] = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back; a directory that was made here and is still empty goes too."""
        if self._made:
            try:
                os.rmdir(self.directory)
            except OSError:
                pass  # it holds what was wanted, or is gone
        self._close()
        if self._lease is not None:
            self._lease.release()

    def wait(
        self,
        ready: "Callable[[], Optional[bytes]]",
        waiting: "Optional[Callable[[Callable[[], str], float, float], object]]" = None,
    ) -> "Optional[bytes]":
        """Wait for the lock, or until the environment is ready.

        Args:
            ready: asked between tries; gives the environment's prefix once it is.
            waiting: called between tries, with what tells who holds the lock, the seconds
                waited, and those at most.

        Returns:
            What ``ready`` gave; None if the lock is held, or there is none to be had.

        Raises:
            LockTimeout: another process has it.
            CannotCreate, InputOutputError: the directory cannot be made.
        """
        while True:
            check()
            try:
                if self._attempt():
                    return ready()  # by another process, perhaps, before the lock was ours
            except OSError as error:
                from ..telling.failures import located

                raise located(error, self.directory)
            prefix = ready()
            if prefix is not None:
                return prefix
            now = time.monotonic()
            left = self.since + self._seconds - now
            if left <= 0:
                raise self._timeout()
            if waiting is not None:
                waiting(self._holder, now - self.since, self._seconds)
            # What was soon there is soon seen.
            time.sleep(min(POLL, 0.005 + (now - self.since) / 4, left))

    def _attempt(self) -> bool:
        """Try once, without waiting; True also where there are no locks."""
        if self._lease is not None:
            return self._lease.attempt()
        try:
            while True:
                if self._handle < 0:
                    self._open()
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    return True
                # Another has been put in its place, or it was removed, while we waited.
                self._close()
        except BlockingIOError:
            return False
        except FileNotFoundError:  # removed between the two calls: the next attempt makes it
            if self._make is None:
                raise
            return False
        except OSError as error:
            if error.errno not in _REFUSED and not isinstance(error, PermissionError):
                raise
            from .lease import Lease

            self._lease = Lease(self.directory)
            return self._lease.attempt()

    def _open(self) -> None:
        if self._make is not None:
            try:
                # Who has removed the parents while we waited does not want them back.
                (os.mkdir if self._opened else self._make)(self.directory)
                self._made = True
            except FileExistsError:
                pass
            except OSError as error:
                from ..telling.failures import cannot_create

                raise cannot_create(self.directory, error)
        self._handle = os.open(self.directory, _OPEN)
        self._opened = True

    def is_current(self) -> bool:
        """Whether what was locked is still what the path names."""
        if self._lease is not None:
            return os.path.isdir(self.directory)
        return self._is_current()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.directory))
        except OSError:  # ENOENT; ESTALE on NFS
            return False

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            shut(handle)

    def _holder(self) -> str:
        """Who holds the lock, as far as that is known."""
        if self._lease is not None:
            return self._lease.holder()
        try:
            status = os.stat(self.directory)
            device = (os.major(status.st_dev), os.minor(status.st_dev))
            which = "{:02x}:{:02x}:{}".format(device[0], device[1], status.st_ino).encode("ascii")
            with open("/proc/locks", "rb") as file:
                for line in file:
                    fields = line.split()
                    if fields[1] == b"FLOCK" and fields[5] == which:
                        # A shell's "flock 9" has ended, and its pid may be another's by now.
                        os.kill(int(fields[4]), 0)
                        return "pid {} on host {}".format(int(fields[4]), os.uname().nodename)
        except (OSError, ValueError, IndexError):
            pass  # another system; or the holder has ended, or is in another container
        return "another process"

    def _timeout(self) -> Exception:
        from ..telling.errors import LockTimeout

        return LockTimeout(
            "waited {:g} s for the lock on {}, which {} holds; try again, or wait longer with "
            "--wait-for-lock".format(self._seconds, os.fsdecode(self.directory), self._holder())
        )

"""The ways to lock a directory, in the order of preference.

First flock(2) on the directory itself, which is what the CCTools script does.  Where a file
system refuses that, a lock file beside the directory: open for writing, because NFSv4 grants
exclusive locks to nothing less, with flock(2), then with fcntl(2) locks.  At last a claim,
which needs no lock manager at all (see ``claim``).

A lock file is never removed and never truncated by anyone but its holder: a waiter on a
removed file would hold a lock that nobody else sees.
"""

import errno
import fcntl
import os
import stat
import zlib

from ..machine import holder
from . import claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Union

    Way = Union["Descriptor", "Claim"]

# Lustre without flock; NFS without lockd; NFSv4 on a read-only descriptor; DVS and autofs
# (ENOTSUPP, which has no name outside the kernel); BSD and macOS mounts; FUSE; shared HOMEs.
REFUSED = frozenset(
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


def ways(directory: bytes, handle: int = -1) -> "List[Way]":
    """Every way to lock ``directory``, best first; nothing is opened yet.

    Args:
        handle: of the directory, where it is open already; the first way takes it over.
    """
    # Two names of one directory must lead to one lock file.
    parent, name = os.path.split(os.path.realpath(directory))
    if len(name) > 150:  # the longest name made from it has about 80 bytes more, and 255 at most
        name = name[:140] + b"%08x" % zlib.crc32(name)
    beside = os.path.join(parent, b"." + name + b".poncho_package_run.lock")
    return [
        Descriptor("flock", directory, os.O_RDONLY | os.O_DIRECTORY, fcntl.flock, handle),
        Descriptor("lock file, flock", beside, _LOCK_FILE, fcntl.flock),
        Descriptor("lock file, fcntl", beside, _LOCK_FILE, fcntl.lockf),
        Claim(beside + b".held"),
    ]


_LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class Descriptor:
    """A lock on an open file, which the kernel ends with the process.

    Attributes:
        how (str): this way's name.
        path (bytes): what is locked.
    """

    def __init__(
        self,
        how: str,
        path: bytes,
        flags: int,
        call: "Callable[[int, int], object]",
        handle: int = -1,
    ) -> None:
        self.how = how
        self.path = path
        self._flags = flags | os.O_CLOEXEC
        self._call = call
        self._fd = handle
        self._held = False

    def attempt(self) -> bool:
        """Try once, without waiting. Raises OSError, with one of REFUSED where locks are not."""
        if self._fd < 0:
            self._fd = os.open(self.path, self._flags, 0o666)
        if not self._held:
            try:
                self._call(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EAGAIN or (
                    # POSIX lets fcntl say either; flock has no such second answer.
                    error.errno == errno.EACCES and self._call is fcntl.lockf
                ):
                    return False
                raise
            self._held = True
            if not self._is_current():
                # Removed or replaced while we waited: others lock what has the name now.
                self.release()
                return False
            self._sign()
        return True

    def release(self) -> None:
        """Unlock; nothing if it is not locked."""
        fd, self._fd, self._held = self._fd, -1, False
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass  # nothing was written that could get lost

    def owner(self) -> "Optional[holder.Holder]":
        """Who holds the lock, for a message, where that is known."""
        if self._fd < 0:
            return None
        if self._flags & os.O_DIRECTORY:
            return _flock_owner(self._fd)
        last = holder.parse(os.pread(self._fd, 4096, 0))
        return None if last is None or holder.is_dead(last) else last

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _sign(self) -> None:
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            try:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, holder.encode(holder.describe()) + b"\n", 0)
            except OSError:
                pass  # the name is for the waiters' messages; the lock holds without it


class Claim:
    """A lock without locks: a claim, to be given up by its holder or inherited from it."""

    how = "lock file, exclusive"

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._held = False

    def attempt(self) -> bool:
        """Try once, without waiting. Raises OSError where the claim cannot be made."""
        self._held = self._held or claim.take(self.path)
        return self._held

    def release(self) -> None:
        """Unlock; nothing if it is not locked."""
        if self._held:
            claim.give_up(self.path)
        self._held = False

    def owner(self) -> "Optional[holder.Holder]":
        """Who holds the lock, for a message, where that is known."""
        return claim.owner(self.path)


def _flock_owner(fd: int) -> "Optional[holder.Holder]":
    """The process that locked the directory ``fd``, from proc(5)'s locks, if it still runs."""
    status = os.fstat(fd)
    device = (os.major(status.st_dev), os.minor(status.st_dev))
    which = "{:02x}:{:02x}:{}".format(device[0], device[1], status.st_ino).encode("ascii")
    try:
        with open("/proc/locks", "rb") as file:
            for line in file:
                fields = line.split()
                if fields[1] == b"FLOCK" and fields[5] == which:
                    # A shell's "flock 9" has ended, and its pid may be another's by now.
                    os.kill(int(fields[4]), 0)
                    return dict(holder.describe(), pid=int(fields[4]), start_time=None)
    except (OSError, ValueError, IndexError):
        pass  # another system; or the holder has ended, or is in another container
    return None

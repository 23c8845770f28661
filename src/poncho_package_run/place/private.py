"""Private directories: where work in progress lies, and temporary environments.

Nobody but its owner ever works in one, so nothing in it needs a lock.  It has mode 0700, and holds

* ``.poncho_package_run_owner``, which names the owner's process (see ``machine.process``), and
* ``env``, what is made: published by one rename, or used where it is.

The owner holds a shared flock(2) on the directory, which the command inherits.  What is left of a
run that was killed the next run of the same user removes, once the owner is proved dead; without
a proof, a day after it was last touched (owners touch theirs every hour).  A lock that is granted
proves nothing by itself: some file systems' locks end at the node.
"""

import errno
import fcntl
import os
import stat

from .. import MANIFEST, OURS
from ..machine import process
from ..machine.signals import check
from ..telling.failures import kind_of, located
from ..tree.removal import empty
from .completion import is_absence, shut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

OWNER = OURS + b"owner"
CONTENT = b"env"

# Names begin like this, with a dot where they are in the way of somebody's "ls".
_SHOWN = b"poncho_package_run-"
HIDDEN = b"." + _SHOWN

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_OWNER_LIMIT = 4096  # bytes
_DAY = 24 * 3600 * 10**9  # nanoseconds


class PrivateDirectory:
    """A new private directory; a context manager that removes it, with whatever is in it.

    Args:
        parent: an existing directory, absolute and real.
        hidden: whether its name begins with a dot.

    Attributes:
        path (bytes): absolute and real.
        descriptor (int): the directory, open, with the lease.
        content (int): the descriptor of ``env`` in it.

    Raises:
        OSError: it cannot be made; nothing is left of it.
    """

    def __init__(self, parent: bytes, hidden: bool = True) -> None:
        self._parent = parent
        self._left = False
        self._short: Optional[PrivateDirectory] = None
        self.descriptor = self.content = -1
        # Before there is a directory, since it needs memory, as does removing one.
        described = _described()
        # No signal comes between this and the context that removes it: see machine.signals.
        name = b"%d-%s" % (os.geteuid(), os.urandom(4).hex().encode())
        self.path = parent + b"/" + (HIDDEN if hidden else _SHOWN) + name
        umask = os.umask(0o077)  # which might take away more
        try:
            os.mkdir(self.path, 0o700)
        finally:
            os.umask(umask)
        try:
            self.descriptor = os.open(self.path, _OPEN)
            lease(self.descriptor, fcntl.LOCK_SH)
            self._sign(described)
            os.mkdir(CONTENT, 0o777, dir_fd=self.descriptor)
            self.content = os.open(CONTENT, _OPEN, dir_fd=self.descriptor)
        except BaseException as error:
            self.remove()
            if isinstance(error, OSError):
                error.filename = self.path
            raise

    @classmethod
    def adopted(cls, path: bytes) -> "PrivateDirectory":
        """One that ``header.sh`` has made for this process."""
        self = cls.__new__(cls)
        self._parent = os.path.dirname(path)
        self._left = False
        self._short = None
        self.path = path
        self.content = -1
        self.descriptor = os.open(path, _OPEN)
        lease(self.descriptor, fcntl.LOCK_SH)
        return self

    @property
    def content_path(self) -> bytes:
        return self.path + b"/" + CONTENT

    def __enter__(self) -> "PrivateDirectory":
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        self.remove()
        if isinstance(error, OSError):
            raise located(error, self.path)

    @property
    def leases(self) -> "List[int]":
        """Descriptors that whoever uses the content has to hold open."""
        return [self.descriptor] + (self._short.leases if self._short is not None else [])

    def shorter(self) -> "Optional[bytes]":
        """A path of few bytes that leads to the content while this exists; None if there is none.

        It is a symlink, in a private directory in TMPDIR or ``/tmp``.
        """
        for parent in sorted({b"/tmp", os.path.realpath(_tmpdir())}, key=len):
            if len(parent) >= len(self._parent):
                break
            try:
                short = self._short = PrivateDirectory(parent, hidden=False)
                os.rmdir(CONTENT, dir_fd=short.descriptor)
                os.symlink(self.content_path, CONTENT, dir_fd=short.descriptor)
                short.sweep()
                return short.content_path
            except OSError:
                continue  # it may not be written, or is full: the other one may do
        return None

    def touch(self) -> None:
        """Say that the owner lives."""
        try:
            os.utime(OWNER, dir_fd=self.descriptor)
        except OSError:
            pass  # it has been removed under us: what is lost is lost
        if self._short is not None:
            self._short.touch()

    def remove(self) -> None:
        """Remove it as far as that can be; the lease ends last."""
        if self._short is not None:
            self._short.remove()
        if not self._left:
            _remove(self.path, self.descriptor)
        for handle in (self.content, self.descriptor):
            if handle >= 0:
                shut(handle)
        self.descriptor = self.content = -1

    def leave(self, stay: bool = True) -> None:
        """Have it stay when the context ends: something in it is in use.  A sweep removes it."""
        self._left = stay

    def sweep(self) -> None:
        """Remove what this user's dead runs have left in the same directory."""
        now = os.stat(OWNER, dir_fd=self.descriptor).st_mtime_ns  # by the file system's own clock
        # Of whichever number the user has: in a container it may be another one.
        names = (_SHOWN, HIDDEN)
        for name in os.listdir(self._parent):
            path = self._parent + b"/" + name
            if not name.startswith(names) or path == self.path:
                continue
            check()
            try:
                handle = os.open(path, _OPEN)
            except OSError:
                continue  # gone already, or not a directory, or not to be read: not ours to remove
            try:
                if is_abandoned(handle, path, now):
                    # An owner that only was stopped must find nothing to publish when it goes on.
                    _set_aside(handle)
                    _remove(path, handle)
            finally:
                shut(handle)

    def _sign(self, described: bytes) -> None:
        handle = os.open(
            OWNER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=self.descriptor
        )
        try:
            os.write(handle, described)
        finally:
            os.close(handle)  # also what makes an NFS client show others the content


def _described() -> bytes:
    """What the owner's file says."""
    import json

    return json.dumps(process.describe(), sort_keys=True).encode("ascii")


def temporary() -> PrivateDirectory:
    """A private directory under TMPDIR, for an environment that is used there.

    Raises:
        CannotCreate: TMPDIR does not exist or may not be written.
        InputOutputError: it is full.
    """
    parent = _tmpdir()
    try:
        parent = os.path.realpath(parent)
        return PrivateDirectory(parent, hidden=False)
    except OSError as error:
        raise kind_of(error)(
            "cannot make a temporary directory in {}: {}; set TMPDIR to a directory with "
            "room".format(os.fsdecode(parent), error.strerror)
        )


def _tmpdir() -> bytes:
    return os.environb.get(b"TMPDIR") or b"/tmp"


def owner(directory: int) -> "Optional[process.Process]":
    """Who owns a private directory; None if it is none of this user's."""
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return None
    try:
        handle = os.open(OWNER, os.O_RDONLY | _SAFELY, dir_fd=directory)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        return process.parse(os.read(handle, _OWNER_LIMIT))
    finally:
        os.close(handle)


def is_abandoned(directory: int, path: bytes, now: int) -> bool:
    """Whether a private directory of this user may be removed.

    Args:
        directory: its descriptor; the lock is taken on it.
        path: absolute and real.
        now: nanoseconds since the epoch, by the clock of the file system.
    """
    theirs = owner(directory)
    if theirs is None:
        return False
    free = lease(directory, fcntl.LOCK_EX)
    if free is False:
        return False
    if process.is_here(theirs):
        return process.is_dead(theirs) and not is_in_use(path)
    touched = os.stat(OWNER, dir_fd=directory, follow_symlinks=False).st_mtime_ns
    return free is True and now - touched > _DAY and not is_in_use(path)


def is_in_use(path: bytes) -> bool:
    """Whether somebody uses what a private directory holds, as far as that can be told.

    What was moved aside in a cache may be leased by whom /proc does not show.
    """
    return is_leased(path + b"/" + CONTENT) or process.uses(path)


def is_leased(environment: bytes) -> bool:
    """Whether somebody holds the lease on an environment of a cache; True if nobody can tell."""
    handle = seize(environment)
    if handle is not None:
        shut(handle)
    return handle is None


def seize(environment: bytes) -> "Optional[int]":
    """Take the lease on an environment of a cache alone, so that nobody comes to use it meanwhile.

    Returns:
        The descriptor that holds it; -1 if there is nothing to hold it by; None if somebody else
        has it, or nobody can tell.
    """
    try:
        handle = os.open(environment + b"/" + MANIFEST, os.O_RDONLY | _SAFELY)
    except OSError as error:
        return -1 if is_absence(error) else None
    if lease(handle, fcntl.LOCK_EX) is not False:
        return handle
    os.close(handle)
    return None


def lease(descriptor: int, kind: int) -> "Optional[bool]":
    """Take a lock without waiting: True, False if it is held, None if there are no locks here."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno == errno.EWOULDBLOCK else None


def _set_aside(directory: int) -> None:
    try:
        os.rename(CONTENT, CONTENT + b".removed", src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        pass  # it is not there, or was set aside by a removal that was killed


def _remove(path: bytes, descriptor: int) -> None:
    if descriptor >= 0:
        empty(descriptor, keep_last=OWNER)
    try:
        os.rmdir(path)
    except OSError:
        pass  # what could not be removed, or is in use, is for the next run's sweep

"""A cache, for all that is not a warm start from it."""

import errno
import fcntl
import os
import stat
import time

from .. import MANIFEST, MARKER
from ..machine.signals import check
from ..place.completion import locate
from ..place.lock import POLL, Lock
from ..telling.errors import CannotCreate, LockTimeout
from ..telling.failures import cannot_create, failure, located, untrusted
from . import memo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from ..telling.report import Report

_CHUNK = 1 << 20

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# For so many seconds at most it is waited for others that are at work in the cache, or only look
# whether an environment is in use.
_PATIENCE, _GLANCE = 60.0, 5.0

# A change may leave an archive's times as they were if it came within one step of the file
# system's clock (nanoseconds): of the kernel's, or of those that count seconds or two of them.
_STEP, _COARSE = 20 * 10**6, 2100 * 10**6


class Changed(Exception):
    """The archive is not the one any more that was summed up."""


class NoRoom(Exception):
    """The environment is to be unpacked as if there were no cache; the text says why."""


class Cache:
    """A directory of environments.

    Args:
        path: CACHE; made if it is missing.
        limit: what it may hold, in bytes; None for whatever there is.
        patience: for how many seconds its locks may be waited for.

    Attributes:
        is_writable (bool): it is this user's own, and can be written.
        key (bytes): what the archive was known by when its sum was taken or recalled.
        size (int): bytes of it then.

    Raises:
        CannotCreate: it cannot be made; others may write in it; a stranger may have made it.
        InputOutputError: it is full.
    """

    def __init__(self, path: bytes, limit: "Optional[int]", patience: float) -> None:
        self.path = locate(path)
        self.limit = limit
        self.patience = min(patience, _PATIENCE)
        umask = os.umask(0o077)
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise cannot_create(self.path, error)
        finally:
            os.umask(umask)
        if not memo.is_safe(self.path):
            status = os.stat(self.path)
            if not status.st_mode & 0o022:
                raise untrusted(self.path)
            raise CannotCreate(
                "others may write in the cache {} (mode {:o}); make it your own with chmod go-w, "
                "or choose another directory".format(
                    os.fsdecode(self.path), stat.S_IMODE(status.st_mode)
                )
            )
        # What root writes into a directory of somebody else that one may turn against root.
        own = os.stat(self.path).st_uid == os.geteuid()
        self.is_writable = own and os.access(self.path, os.W_OK | os.X_OK)
        self._lease = -1
        self._glance_until = 0.0  # of time.monotonic, once there was reason to wait
        self.key = b""
        self.size = 0

    def entry(self, archive: bytes) -> "Optional[bytes]":
        """Where the environment of an archive lies, or is to lie; None if not in here.

        Raises:
            Failure: the archive cannot be read.
            Terminated: see ``machine.signals``.
        """
        try:
            status = os.stat(archive)
        except OSError:
            return None  # told by whoever opens it
        if not stat.S_ISREG(status.st_mode):
            return None  # a pipe can be read once only
        self.key, self.size = memo.key(status), status.st_size
        directory = memo.recall(self.path, self.key)
        if directory is None:
            directory = self.path + b"/" + self._sum(archive)
        if self.is_writable and os.path.islink(directory):
            os.unlink(directory)  # what it leads to is none of the cache's
        if self.is_writable or os.path.lexists(directory + b"/" + MARKER):
            return directory
        return None

    def hold(self, directory: bytes) -> bool:
        """Take the lease; False if the environment is not there any more, or may have changed.

        Who looks whether it may be removed has it as well, for as long as that takes, and who
        relocates it: that is waited for once, and then what is there is to be looked at anew.

        Raises:
            InputOutputError: there are too few descriptors.
        """
        lease = _hold(directory)
        if lease is None and not self._glance_until:
            self._glance_until = time.monotonic() + min(self.patience, _GLANCE)
        marker = directory + b"/" + MARKER
        waited = lease is None
        while lease is None and time.monotonic() < self._glance_until and os.path.lexists(marker):
            time.sleep(POLL)
            lease = _hold(directory)
        self.let_go()  # of what was held before it was published
        if lease is None:
            return False
        self._lease = lease
        if waited:
            self.let_go()
            return False
        memo.touch(self.path, directory)
        return True

    def hold_before(self, content: bytes) -> None:
        """Take the lease on what is about to be published, so that there is no instant without."""
        self.let_go()
        lease = _hold(content)
        self._lease = -1 if lease is None else lease

    def let_go(self) -> None:
        """End the lease."""
        lease, self._lease = self._lease, -1
        if lease >= 0:
            os.close(lease)

    def unpacking(self, archive: bytes, directory: bytes) -> "Unpacking":
        """A context manager around an unpacking into ``directory``, with room for it.

        Raises:
            NoRoom: there is none.
        """
        return Unpacking(self, archive, directory)

    def free(self, directory: bytes) -> bool:
        """Remove all that is not in use, but for ``directory``; whether there was any."""
        from . import room

        return room.free(self.path, directory)

    def _sum(self, archive: bytes) -> bytes:
        """The SHA-256 of an archive's bytes, in hexadecimal; remembered.

        Others who have the same to do wait for the first, if locks are to be had here.
        """
        folder = self.path + b"/" + memo.MEMO
        handle = -1
        if self.is_writable:
            try:
                try:
                    # Whoever may look into the cache may know what is in it, and so need not read.
                    os.mkdir(folder, 0o755)
                except FileExistsError:
                    pass
                handle = os.open(folder, _OPEN)
            except OSError:
                pass  # full, for one: what is not remembered is read again
        try:
            end = time.monotonic() + self.patience
            while handle >= 0 and time.monotonic() < end:
                check()
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL)
                except OSError:
                    break
            known = memo.recall(self.path, self.key)
            if known is not None:
                return os.path.basename(known)
            return _digest(archive, folder if handle >= 0 else None)
        finally:
            if handle >= 0:
                os.close(handle)


class Unpacking:
    """See ``Cache.unpacking``."""

    def __init__(self, cache: Cache, archive: bytes, directory: bytes) -> None:
        self._cache = cache
        self._archive = archive
        self._directory = directory
        self._lock: Optional[Lock] = None

    def __enter__(self) -> "Unpacking":
        from . import room  # not for who only waits: 10 ms

        limit, path, size = self._cache.limit, self._cache.path, self._cache.size
        if limit is None:
            room.clear(path, self._directory)
            return self
        if size > limit:  # whatever becomes of it: hardly less
            raise NoRoom(
                "the cache {} has no room for {}, whatever is removed from it; the environment is "
                "unpacked to a temporary directory".format(
                    os.fsdecode(path), os.fsdecode(self._archive)
                )
            )
        # One at a time, so that what is under way need not be counted.
        self._lock = Lock(path, self._cache.patience)
        try:
            try:
                self._lock.wait(lambda: None)
            except LockTimeout:
                raise NoRoom(
                    "other environments are being unpacked into the cache {}; this one is unpacked "
                    "to a temporary directory".format(os.fsdecode(path))
                )
            over = room.make(path, limit, size, self._directory)
            if over:
                raise NoRoom(
                    "the cache {} has no room ({} too much): what is in it is in use; the "
                    "environment is unpacked to a temporary directory".format(
                        os.fsdecode(path), room.shown(over)
                    )
                )
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def verify(self, descriptor: int, ended: bool = False) -> None:
        """Make sure that an open archive is the one that was summed up.

        Args:
            ended: it has been read.

        Raises:
            Changed: it is not, and belongs to another environment.
        """
        found, expected = memo.key(os.fstat(descriptor)), self._cache.key
        if found == expected:
            return
        # A link that is made to it changes its ctime only.  So does who writes into it and then
        # gives it its old mtime, as ``cp -p`` does: the bytes tell the one from the other.
        is_linked = found.rpartition(b"-")[0] == expected.rpartition(b"-")[0]
        if not (ended and is_linked and _sha256(descriptor) == os.path.basename(self._directory)):
            raise Changed

    def admit(self, content: bytes, size: int, report: "Report") -> None:
        """Make room for what was unpacked, as large as it has turned out to be."""
        self._cache.hold_before(content)
        if self._cache.limit is not None:
            from . import room

            over = room.make(self._cache.path, self._cache.limit, size, self._directory)
            if over:
                why = "what is in it is in use"
                if size > self._cache.limit:
                    why = "{} alone takes {}".format(os.fsdecode(self._archive), room.shown(size))
                report.warn(
                    "the cache {} holds {} more than its limit, since {}; raise the limit".format(
                        os.fsdecode(self._cache.path), room.shown(over), why
                    )
                )

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.__exit__()


def _hold(directory: bytes) -> "Optional[int]":
    """Take the lease on an environment, as ``memo.hold``.

    Returns:
        The descriptor; -1 if there can be none; None if the environment is not there any more.

    Raises:
        InputOutputError: there are too few descriptors.
    """
    try:
        return memo.hold(directory + b"/" + MANIFEST)
    except PermissionError:
        return -1  # another user's, who lets nobody hold it
    except OSError as error:
        # EINVAL is what asking for a descriptor from 10 on gets where there are ten at most.
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EINVAL):
            few = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            raise failure(few, directory + b"/" + MANIFEST)
        # Somebody has removed or replaced it; then the directory serves.
    try:
        return memo.hold(directory, os.O_DIRECTORY)
    except OSError:
        return None


def _digest(archive: bytes, folder: "Optional[bytes]") -> bytes:
    try:
        with open(archive, "rb", 0) as file:
            before, began = os.fstat(file.fileno()), int(time.time() * 1e9)
            name = _sha256(file.fileno())
            after = os.fstat(file.fileno())
    except OSError as error:
        error.filename = archive
        raise located(error, archive)
    latest = before.st_ctime_ns
    # A time of modification that is to come was given to it, and a change will take it away.
    if before.st_mtime_ns < began + _COARSE:
        latest = max(latest, before.st_mtime_ns)
    step = _STEP if latest % 10**9 else _COARSE
    if folder is not None and memo.key(before) == memo.key(after) and latest + step < began:
        _remember(folder, memo.key(before), name)
    return name


def _sha256(descriptor: int) -> bytes:
    """The SHA-256 of a file's bytes, in hexadecimal; its offset stays where it is."""
    import hashlib  # 5 ms

    digest = hashlib.sha256()
    offset = 0
    data = os.pread(descriptor, _CHUNK, offset)
    while data:
        check()
        digest.update(data)
        offset += len(data)
        data = os.pread(descriptor, _CHUNK, offset)
    return digest.hexdigest().encode()


def _remember(folder: bytes, key: bytes, name: bytes) -> None:
    from .room import forget

    try:
        forget(folder)
        os.symlink(name, folder + b"/" + key)
    except OSError:
        pass  # another was faster; or it is full, and the archive will be read again

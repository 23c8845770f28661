"""Temporary directories: one for each run, removed at its end, or by the next run's sweep.

A run holds a lease on its directory, a shared ``flock`` on the directory itself, whose
descriptor the command inherits: as long as anything uses the environment the lease is held,
and with the last process the kernel ends it, however that process died.  The next run of
the same user removes what has no lease.  Where the file system has no ``flock`` nothing
proves that a directory is unused, and none is swept.
"""

import errno
import fcntl
import os
import stat

from ..telling.failures import kind_of, located
from ..tree.removal import remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from ..telling.report import Report

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_TRIES = 100


class Temporary:
    """A fresh directory under TMPDIR, mode 0700; a context manager that removes it.

    Attributes:
        path (bytes): absolute and real.
        descriptor (int): the directory, open, with the lease; inherited by the command.
        manifest (None): what is removed at the end is not worth a record.

    Raises:
        CannotCreate: TMPDIR does not exist or may not be written.
        InputOutputError: it is full.
    """

    manifest = None

    def __init__(self, report: "Report") -> None:
        self._report = report
        self._prefix = b"poncho_package_run-%d-" % os.getuid()
        self.path = b""
        self.descriptor = -1

    def __enter__(self) -> "Temporary":
        parent = os.path.realpath(os.environb.get(b"TMPDIR") or b"/tmp")
        with self._report.phase("sweep"):
            self._sweep(parent)
        try:
            self._make(parent)
        except OSError as error:
            raise kind_of(error)(
                "cannot make a temporary directory in {}: {}; set TMPDIR to a directory with "
                "room".format(os.fsdecode(parent), error.strerror)
            )
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        with self._report.phase("remove"):
            _remove(self.path, self.descriptor)
        if isinstance(error, OSError):
            raise located(error, self.path)

    def _make(self, parent: bytes) -> None:
        for _ in range(_TRIES):
            # Known before it is made, so that a signal in between leaves nothing.
            self.path = parent + b"/" + self._prefix + os.urandom(4).hex().encode()
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                continue
            try:
                self.descriptor = os.open(self.path, _OPEN)
                if _lease(self.descriptor, fcntl.LOCK_SH) is not False and _is_at(
                    self.descriptor, self.path
                ):
                    return
            except BaseException:
                os.rmdir(self.path)
                raise
            # Another run's sweep came between mkdir and the lease: the directory is its.
            os.close(self.descriptor)
        raise FileExistsError(errno.EEXIST, "no name is free")

    def _sweep(self, parent: bytes) -> None:
        """Remove the directories of this user's runs that no one uses any more."""
        try:
            names = [name for name in os.listdir(parent) if name.startswith(self._prefix)]
        except OSError:
            return  # told when the directory is made
        for name in names:
            path = parent + b"/" + name
            try:
                descriptor = os.open(path, _OPEN | os.O_CLOEXEC)
            except OSError:
                continue  # gone already, or not to be read: not ours to remove
            status = os.fstat(descriptor)
            if (
                status.st_uid == os.getuid()
                and stat.S_ISDIR(status.st_mode)
                and _lease(descriptor, fcntl.LOCK_EX) is True
            ):
                _remove(path, descriptor)
            else:
                os.close(descriptor)


def _lease(descriptor: int, kind: int) -> "Optional[bool]":
    """Take a lock without waiting: True, False if it is held, None if there are no locks here."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno == errno.EWOULDBLOCK else None


def _is_at(descriptor: int, path: bytes) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove(path: bytes, descriptor: int) -> None:
    """Empty a directory, remove it, and only then end the lease."""
    parent = os.open(os.path.dirname(path), _OPEN | os.O_CLOEXEC)
    remove(parent, os.path.basename(path))  # what is in use is left to the next run's sweep
    os.close(parent)
    try:
        os.close(descriptor)
    except OSError:
        pass  # nothing was written that could get lost

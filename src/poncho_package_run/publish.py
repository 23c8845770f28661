"""The directory that is kept: absent or complete, for every observer and after every crash.

In DIR stands either nothing, or the in-progress marker (see ``marker``) and any part of an
environment, or the whole environment and the completion marker.  The step from the second
to the third is one rename, of the one marker to the other.
"""

import os

from . import verify
from .completion import MARKER, UNPACKING, is_complete
from .cores import usable
from .errors import CannotCreate, InputOutputError
from .lock import acquire
from .remove import empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .archive.source import Source
    from .cli import Options
    from .lock import Lock
    from .report import Report

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Target:
    """The directory of ``--unpack-to``, claimed for unpacking if there is something to unpack.

    A context manager.  Left with a failure of the tool, the directory is as it was found;
    left by a signal, it stays as a dead unpacking, which the next run clears away.

    Args:
        path: absolute and real.
        options: for the archive, and how long to wait for the lock.
        report: told who is waited for.

    Attributes:
        path (bytes), descriptor (int): the directory.
        is_ours (bool): it is empty, and this process alone may fill it.

    Raises:
        CannotCreate, InputOutputError: it cannot be made or written.
        LockTimeout: another process is unpacking and did not end in time.
    """

    def __init__(self, path: bytes, options: "Options", report: "Report") -> None:
        self.path = path
        self.is_ours = False
        self._options = options
        self._report = report
        self._lock: Optional[Lock] = None
        self._made = False

    def __enter__(self) -> "Target":
        self._make()
        self.descriptor = os.open(self.path, _OPEN)
        options, report = self._options, self._report
        with report.phase("lock"):
            try:
                self._lock = acquire(
                    self.path,
                    options.wait_for_lock,
                    lambda: is_complete(self.path, options.environment),
                    report.waiting_for(options.wait_for_lock),
                    self._is_vacant,
                )
            except CannotCreate:
                # A populated directory on a read-only file system without locks: no one
                # can be unpacking there.
                if self._is_vacant():
                    raise
        if self._lock is not None and self._lock.marked:
            self.is_ours = True
            if self._lock.taken_over:
                with report.phase("clear"):
                    self._empty()
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if self.is_ours and isinstance(error, Exception):
            self._restore()
        if self._lock is not None:
            self._lock.release()
        os.close(self.descriptor)

    def publish(self, prefix: bytes, source: "Source") -> None:
        """Declare the environment complete.

        Raises:
            InputOutputError: the marker cannot be written, or another process has taken over.
        """
        new = self.path + b"/" + UNPACKING + b".done"
        unpacking = self.path + b"/" + UNPACKING
        try:
            if self._lock is None or not self._lock.is_ours():
                raise InputOutputError(
                    "{} was taken over by another process while this one was stopped; try "
                    "again".format(os.fsdecode(self.path))
                )
            facts = verify.facts(prefix, source.path, source.size, source.mtime_ns)
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                os.write(handle, facts)
                os.fsync(handle)
            finally:
                os.close(handle)
            # First over the old marker, so that at no time there is none, or there are two.
            os.rename(new, unpacking)
            os.rename(unpacking, self.path + b"/" + MARKER)
            os.fsync(self.descriptor)
        except OSError as error:
            raise InputOutputError(
                "cannot write the completion marker in {}: {}; try again".format(
                    os.fsdecode(self.path), error.strerror
                )
            )

    def _make(self) -> None:
        path = self.path
        try:
            os.makedirs(path)
            self._made = True
        except FileExistsError:
            pass
        except OSError as error:
            raise CannotCreate(
                "cannot create {}: {}; choose another directory".format(
                    os.fsdecode(path), error.strerror
                )
            )
        if not os.path.isdir(path):
            raise CannotCreate(
                "{} is not a directory; choose another path for --unpack-to".format(
                    os.fsdecode(path)
                )
            )

    def _is_vacant(self) -> bool:
        """Whether there is nothing in the directory, but for what an unpacking leaves behind."""
        names = os.listdir(self.path)
        return UNPACKING in names or all(name.startswith(UNPACKING) for name in names)

    def _empty(self) -> None:
        empty(self.descriptor, keep=UNPACKING, threads=min(usable(), 4))

    def _restore(self) -> None:
        """Leave the directory as it was found: empty, or not there; the marker goes last."""
        try:
            self._empty()
            os.unlink(self.path + b"/" + UNPACKING)
            if self._made:
                os.rmdir(self.path)
        except OSError:
            pass  # what cannot be removed now is cleared by the next run: the marker says so

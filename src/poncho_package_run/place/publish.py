"""The directory that is kept: absent or complete, for every observer and after every crash.

In DIR stands either nothing, or the in-progress marker (see ``marker``) and any part of an
environment, or the whole environment, its manifest and the completion marker.  The step from
the second to the third is one rename, of the one marker to the other.

A machine that goes down loses what it had not yet written to the disk.  File systems write their
directories in the order of the changes, or nearly so, but the content of files when they like.
So the in-progress marker is forced to the disk before anything else is made, and the completion
marker before it gets its name; about the rest the manifest tells (see ``manifest``).
"""

import errno
import os

from .. import MARKER
from ..machine.processors import usable
from ..telling.errors import CannotCreate, InputOutputError
from ..telling.failures import failure, kind_of, located
from ..telling.messages import warn
from . import verify
from .completion import UNPACKING, is_complete
from .lock import acquire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .. import Options
    from ..archive.source import Source
    from ..durability.manifest import Manifest
    from ..telling.report import Report
    from .lock import Lock
    from .turn import Turn

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Target:
    """The directory of ``--unpack-to``, claimed for unpacking if there is something to unpack.

    A context manager.  Left with a failure of the tool, the directory is as it was found;
    left by a signal, it stays as a dead unpacking, which the next run clears away.

    Args:
        path: absolute and real.
        options: for the archive, and how long to wait for the lock.
        report: told who is waited for.
        turn: what was done about the lock already; it is taken over.

    Attributes:
        path (bytes), descriptor (int): the directory.
        is_ours (bool): it is empty, and this process alone may fill it.
        manifest (Manifest or None): to be told what is unpacked, if it is ours.

    Raises:
        CannotCreate, InputOutputError: it cannot be made, read or written.
        LockTimeout: another process is unpacking and did not end in time.
    """

    def __init__(self, path: bytes, options: "Options", report: "Report", turn: "Turn") -> None:
        self.path = path
        self.descriptor = -1
        self.is_ours = False
        self.manifest: Optional[Manifest] = None
        self._options = options
        self._report = report
        self._lock: Optional[Lock] = None
        self._turn = turn
        self._made = turn.made
        self._damage = ""

    def __enter__(self) -> "Target":
        try:
            self._acquire()
            self.descriptor = os.open(self.path, _OPEN)
            if self._lock is not None and self._lock.marked:
                self.is_ours = True
                self._claim(self._lock.taken_over)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if self.is_ours and isinstance(error, Exception):
            self._restore()
        if self._lock is not None:
            self._lock.release()
        self._turn.close()
        for handle in (self.descriptor, self.manifest.handle if self.manifest else -1):
            if handle >= 0:
                try:
                    os.close(handle)
                except OSError:
                    pass  # nothing that is wanted could get lost
        if isinstance(error, OSError):
            raise located(error, self.path)

    def publish(self, prefix: bytes, source: "Source") -> None:
        """Declare the environment complete.

        Raises:
            InputOutputError: the marker cannot be written, or another process has taken over.
        """
        unpacking = self.path + b"/" + UNPACKING
        try:
            if self._lock is None or not self._lock.is_ours():
                raise InputOutputError(
                    "{} was taken over by another process while this one was stopped; try "
                    "again".format(os.fsdecode(self.path))
                )
            known = self.manifest.finish() if self.manifest is not None else None
            facts = verify.facts(prefix, source.path, source.size, source.mtime_ns, known)
            # First over the old marker, so that at no time there is none, or there are two.
            verify.put(unpacking, facts)
            os.rename(unpacking, self.path + b"/" + MARKER)
        except OSError as error:
            raise failure(error, self.path + b"/" + MARKER, self.descriptor)
        # Others use it from here on: nothing that fails may undo it.
        self.is_ours = False

    def _acquire(self) -> None:
        options, report = self._options, self._report
        with report.phase("lock", self._turn.since):
            # Whoever has removed DIR and what is above it since does not want that back.
            make: Callable[[bytes], None] = os.mkdir if self._turn.handle >= 0 else os.makedirs
            while True:
                self._make(make)
                make = os.mkdir
                try:
                    self._lock = acquire(
                        self.path,
                        options.wait_for_lock,
                        lambda: is_complete(self.path, options.environment),
                        report.waiting_for(options.wait_for_lock),
                        self._is_vacant,
                        turn=self._turn,
                    )
                    return
                except CannotCreate:
                    if not os.path.isdir(self.path):
                        continue  # a run that failed has removed what it had made
                    # A populated directory on a read-only file system without locks: no one
                    # can be unpacking there.
                    if not self._is_vacant():
                        return
                    if self._damage:
                        raise InputOutputError(
                            "{} is damaged ({}) and cannot be written; unpack to another "
                            "directory".format(os.fsdecode(self.path), self._damage)
                        )
                    raise

    def _make(self, make: "Callable[[bytes], None]") -> None:
        path = self.path
        try:
            make(path)
            self._made = True
        except FileExistsError:
            pass
        except OSError as error:
            raise kind_of(error)(
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
        """Whether there is nothing in the directory that is worth keeping.

        That is: nothing at all, or what a dead unpacking has left, or an environment of which
        a part was lost when the machine went down.
        """
        names = os.listdir(self.path)
        if MARKER in names and UNPACKING not in names:
            try:
                self._damage = verify.prove(self.path + b"/" + MARKER, self.path)
            except OSError as error:
                raise located(error, self.path + b"/" + MARKER)
            return bool(self._damage)
        return UNPACKING in names or all(name.startswith(UNPACKING) for name in names)

    def _claim(self, taken_over: bool) -> None:
        """Make sure of the in-progress marker, clear away what is there, and begin a manifest."""
        if self._damage:
            warn("{} is damaged: {}; unpacking again".format(os.fsdecode(self.path), self._damage))
            os.unlink(self.path + b"/" + MARKER)
        if taken_over or self._damage:
            with self._report.phase("clear"):
                self._empty()
        flush(self.descriptor)
        from ..durability.manifest import Manifest  # those who only wait need none

        self.manifest = Manifest(self.path)

    def _empty(self) -> None:
        from ..tree.removal import empty

        empty(self.descriptor, keep=UNPACKING, threads=min(usable(), 4))

    def _restore(self) -> None:
        """Leave the directory as it was found: empty, or not there; the marker goes last."""
        try:
            if self._lock is None or not self._lock.is_ours():
                return  # another process has taken over, and what is here is its work
            self._empty()
            self._lock.unmark()
            if self._made:
                os.rmdir(self.path)
        except OSError:
            pass  # what cannot be removed now is cleared by the next run: the marker says so


def flush(directory: int) -> None:
    """Force a directory's entries to the disk, where its file system can do that.

    Raises OSError.
    """
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise  # of network file systems that know no such thing

"""An environment that is a directory already: relocated once, where it lies.

Others may be running in it, its files may be links into a cache, and what it was packed into
may be gone.  So no file is written in place and nothing is half done: the new files are
written beside the tree first (see relocation.in_use).
"""

import os

from .. import MARKER, OURS
from ..machine.signals import interruptible
from ..relocation.in_use import relocate_in_use
from ..relocation.records import SCRIPT
from ..telling.errors import CannotCreate, InputOutputError
from ..telling.failures import located
from ..telling.messages import warn
from . import verify
from .completion import RELOCATING, is_complete, prefix_in
from .lock import acquire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..cli import Options
    from ..telling.report import Report

_STAGED = OURS + b"relocating."


def adopt(options: "Options", directory: bytes, report: "Report") -> None:
    """Relocate the environment in ``directory`` if it never was and can be.

    Raises:
        ArchiveError, RelocationError: its prefix records are unsafe, or its path too long.
        CannotCreate, InputOutputError: it could be written, but not to the end.
        LockTimeout: another process is relocating it and did not end in time.
    """
    if options.unpack_to is not None:
        warn("--unpack-to is ignored: {} is a directory".format(os.fsdecode(directory)))
    marker = directory + b"/" + MARKER
    if os.path.exists(marker):
        _prove(options, directory, report)
        return
    prefix = prefix_in(directory)
    if not os.path.exists(prefix + b"/" + SCRIPT):
        return
    if not os.access(directory, os.W_OK):
        if report.debug:
            report.warn("{} cannot be written: used as it is".format(os.fsdecode(directory)))
        return
    with interruptible(), report.phase("relocate"):
        try:
            lock = acquire(
                directory,
                options.wait_for_lock,
                lambda: os.path.exists(marker),
                report.waiting_for(options.wait_for_lock),
                lambda: True,
                RELOCATING,
            )
        except CannotCreate:
            return  # no lock to be had here: as if it could not be written
        if lock is None:
            return
        with lock:
            try:
                try:
                    _relocate(directory, prefix, report)
                finally:
                    lock.unmark()
            except OSError as error:
                raise located(error, directory)


def _prove(options: "Options", directory: bytes, report: "Report") -> None:
    """Make sure that what was unpacked here has survived a restart of the machine."""
    if is_complete(directory, None):
        return
    with interruptible(), report.phase("verify"):
        lock = None
        try:
            lock = acquire(
                directory,
                options.wait_for_lock,
                lambda: is_complete(directory, None),
                report.waiting_for(options.wait_for_lock),
            )
            if lock is None:
                return
        except CannotCreate:
            pass  # read-only, without locks: it can be looked at all the same
        try:
            damage = verify.prove(directory + b"/" + MARKER, directory)
        except OSError as error:
            raise located(error, directory)
        finally:
            if lock is not None:
                lock.release()
    if damage:
        raise InputOutputError(
            "{} is damaged: {}; unpack it again".format(os.fsdecode(directory), damage)
        )


def _relocate(directory: bytes, prefix: bytes, report: "Report") -> None:
    for name in os.listdir(directory):
        if name.startswith(_STAGED):
            _discard(directory + b"/" + name)
    scratch = directory + b"/" + _STAGED + os.urandom(8).hex().encode()
    os.mkdir(scratch, 0o700)
    handles = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (prefix, scratch)]
    try:
        report.records = relocate_in_use(handles[0], prefix, handles[1])
        verify.put(scratch + b"/done", verify.facts(prefix, directory, None, None, None))
        # Over the marker of this work first, so that no process ever sees neither.
        os.rename(scratch + b"/done", directory + b"/" + RELOCATING)
        os.rename(directory + b"/" + RELOCATING, directory + b"/" + MARKER)
    finally:
        for handle in handles:
            os.close(handle)
        _discard(scratch)


def _discard(scratch: bytes) -> None:
    for name in os.listdir(scratch):
        os.unlink(scratch + b"/" + name)
    os.rmdir(scratch)

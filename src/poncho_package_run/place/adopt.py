"""An environment that is a directory already: relocated once, where it lies.

Others may be running in it, its files may be links into a cache, and what it was packed into
may be gone.  So no file is written in place and nothing is half done: the new files are
staged beside the tree, then a plan is written, and from then on every run that finds the plan
carries it out before anything else.
"""

import json
import os

from .. import MARKER, OURS
from ..machine.signals import interruptible
from ..relocation.records import SCRIPT
from ..relocation.relocate import Relocation
from ..telling.errors import CannotCreate, InputOutputError
from ..telling.failures import located
from ..telling.messages import warn
from . import verify
from .completion import RELOCATING, is_complete, prefix_in
from .lock import acquire
from .publish import flush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

    from .. import Options
    from ..telling.report import Report

_STAGED = OURS + b"relocating."
_PLAN = _STAGED + b"plan"
_DONE = _STAGED + b"done"


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
    plan, done = directory + b"/" + _PLAN, directory + b"/" + _DONE
    if not os.path.exists(plan) and not os.path.exists(done):
        _discard(directory)
        try:
            paths = [os.fsdecode(path) for path in _stage(directory, prefix, report)]
            # Once the first file has its name, the machine may go down at any time.
            for index in range(len(paths)):
                _flush(_staged(directory, index))
            verify.put(plan, json.dumps(paths).encode("ascii"))
            _flush(directory)
        except BaseException:
            _discard(directory)
            raise
    if os.path.exists(plan):
        with open(plan, "rb") as file:
            paths = json.loads(file.read().decode("ascii"))
        for index, path in enumerate(paths):
            try:
                os.rename(_staged(directory, index), prefix + b"/" + os.fsencode(path))
            except FileNotFoundError:
                pass  # a run before this one got so far
        verify.put(done, verify.facts(prefix, directory, None, None, None))
        os.unlink(plan)
    # Over the marker of this work first, so that no process ever sees neither.
    os.rename(done, directory + b"/" + RELOCATING)
    os.rename(directory + b"/" + RELOCATING, directory + b"/" + MARKER)


def _stage(directory: bytes, prefix: bytes, report: "Report") -> "List[bytes]":
    descriptor = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        relocation = Relocation(descriptor, prefix)
        try:
            relocation.check()
            report.records = relocation.records
            return relocation.stage(lambda index: _staged(directory, index))
        finally:
            relocation.close()
    finally:
        os.close(descriptor)


def _staged(directory: bytes, index: int) -> bytes:
    return directory + b"/" + _STAGED + str(index).encode()


def _flush(path: bytes) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flush(handle)
    finally:
        os.close(handle)


def _discard(directory: bytes) -> None:
    for name in os.listdir(directory):
        if name.startswith(_STAGED):
            os.unlink(directory + b"/" + name)

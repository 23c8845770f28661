"""What lies in a directory already, made usable: the table of the contract, row by row.

To be called with the writing lock held, where there is one.  Yet whatever is done here may be done
by two at once, and interrupted at any instant: relocation is idempotent, a marker takes the place
of another by a rename, and what is damaged is moved aside by one.
"""

import errno
import os

from .. import MARKER
from ..machine import library
from ..telling.errors import ArchiveError, CannotCreate, Failure, InputOutputError
from ..telling.failures import located, untrusted
from .completion import exists, is_prefix, is_trusted, read_marker, shut
from .marker import (
    facts,
    has_first,
    is_unproven,
    join,
    parse,
    prefix_of,
    put,
    relocated,
    root_of,
    take_effect,
)
from .prefix import find_prefix
from .private import PrivateDirectory, is_in_use, is_leased, seize
from .publication import can_be_replaced, complete, entries, make_alike

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from ..telling.report import Report
    from .marker import Facts

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)

# Records that are looked at to tell whether a directory that cannot be written was relocated.
_LOOKED_AT = 256


def settle(
    directory: bytes, archive: "Optional[bytes]", report: "Report", cached: bool = False
) -> "Optional[bytes]":
    """Make what lies in a directory usable there.

    Args:
        directory: absolute and real.
        archive: what would be unpacked; None for a directory that is used where it is.
        report: told what is unusual.
        cached: whether what has no completion marker is damage, since nobody else puts it there.

    Returns:
        The environment's prefix.  None if nothing lies there, or if what did is damaged and has
        been moved aside; never without an archive.

    Raises:
        ArchiveError: it holds no environment, or one that is malformed.
        CannotCreate, InputOutputError: somebody else may have planted it; it is damaged; the
            system refused.
        RelocationError: its path is too long.
    """
    if not is_trusted(directory):
        raise untrusted(directory)
    try:
        if complete(directory):
            _sweep(directory)
        marker = read_marker(directory)
        if marker is None and cached and entries(directory):
            _set_aside(directory, archive, marker, "a part of it is gone", report, cached)
            return None
        if marker is None:
            return _unmarked(directory, archive, report)
        if marker.strip() and marker[:1] != b"{":
            # The CCTools script's marker: the date. Of what it unpacked nothing more is known.
            return join(directory, _root(directory, archive))
        return _marked(directory, archive, marker, report, cached)
    except OSError as error:
        raise located(error, directory)


def at_once(
    directory: bytes, archive: "Optional[bytes]", report: "Report", compare: bool = False
) -> "Optional[bytes]":
    """The prefix of an environment that is complete, and of which there is only something to say.

    None if there is anything to do.  No lock is needed.

    Args:
        compare: with its manifest as well, since nobody here may note that it was done.
    """
    try:
        marker = read_marker(directory) if is_trusted(directory) else None
    except OSError:
        return None
    found = parse(marker) if marker else None
    root = root_of(found) if found else None
    if found is None or root is None:
        return None
    if is_unproven(found) and (not compare or _lost(directory, found, report)):
        return None
    prefix = join(directory, root)
    if prefix_of(found) != prefix or not is_prefix(prefix) or not has_first(directory, found):
        return None
    _compare(directory, archive, found, report)
    return prefix


def _unmarked(directory: bytes, archive: "Optional[bytes]", report: "Report") -> "Optional[bytes]":
    if archive is not None and not entries(directory):
        return None
    root = _root(directory, archive)
    prefix = join(directory, root)
    if exists(prefix + b"/bin/conda-unpack"):
        found = facts(directory, root, directory, None, None, None)
        if not _relocate(directory, root, found, None, report):
            packed = _placeholder_left(prefix)
            if packed is not None:
                report.warn(
                    "{} was packed at {} and cannot be written, so that it stays unrelocated; "
                    "copy it to where it can".format(os.fsdecode(prefix), os.fsdecode(packed))
                )
    return prefix


def _marked(
    directory: bytes,
    archive: "Optional[bytes]",
    marker: bytes,
    report: "Report",
    cached: bool,
) -> "Optional[bytes]":
    found = parse(marker)
    if found is None:
        what = "its completion marker is cut off"
        _set_aside(directory, archive, marker, what, report, cached)
        return None
    if is_unproven(found):
        lost = _lost(directory, found, report)
        if lost:
            _set_aside(directory, archive, marker, lost, report, cached)
            return None
        _replace_marker(directory, dict(found, on_disk=True))
    _compare(directory, archive, found, report)
    root = root_of(found)
    if cached and not (is_prefix(join(directory, root or b"")) and has_first(directory, found)):
        _set_aside(directory, archive, marker, "a part of it is gone", report, cached)
        return None
    if root is None or not is_prefix(join(directory, root)):
        root = _root(directory, archive)
    prefix, before = join(directory, root), prefix_of(found)
    if before != prefix:
        moved = relocated(found, directory, root)
        what = "{} was relocated to {}".format(os.fsdecode(prefix), os.fsdecode(before))
        handle = seize(directory) if cached else -1
        if handle is None:  # perhaps the same, seen by another path
            raise CannotCreate(what + ", and is in use there; use the cache by one path")
        try:
            is_done = _relocate(directory, root, moved, before, report)
        finally:
            if handle >= 0:
                shut(handle)
        if not is_done:
            what += ", has moved since and cannot be written"
            if cached:
                raise CannotCreate(what + "; remove it")
            report.warn(what + "; it is used as it is")
    return prefix


def _lost(directory: bytes, found: "Facts", report: "Report") -> str:
    """What a restart of the machine has damaged; "" if nothing."""
    from ..durability.survey import damage

    with report.phase("verify"):
        return damage(directory, found["manifest"])


def _compare(
    directory: bytes, archive: "Optional[bytes]", found: "Facts", report: "Report"
) -> None:
    """Say so if the directory was unpacked from another archive."""
    if archive is None or "archive_size" not in found:
        return
    try:
        status = os.stat(archive)
    except OSError as error:
        report.warn(
            "{} is used as it is; {}: {}".format(
                os.fsdecode(directory), os.fsdecode(archive), error.strerror
            )
        )
        return
    told = found["archive_size"], found.get("archive_mtime_ns")
    if (status.st_size, status.st_mtime_ns) != told:
        report.warn(
            "{} was unpacked from another archive than {} (size or time differ) and is used as it "
            "is; remove it to unpack again".format(os.fsdecode(directory), os.fsdecode(archive))
        )


def _relocate(
    directory: bytes, root: bytes, found: "Facts", before: "Optional[bytes]", report: "Report"
) -> bool:
    """Relocate an environment where it lies, and say so; False if it cannot be written."""
    from ..relocation.in_use import relocate_in_use

    prefix = join(directory, root)
    private = _private_in(directory)
    if private is None:
        return False
    with private, report.phase("relocate"):
        private.sweep()
        handle, own = os.open(directory, _OPEN), os.open(prefix, _OPEN)
        try:
            report.records = relocate_in_use(own, prefix, private.content, before)
            put(handle, found, private.descriptor)
        except CannotCreate:
            return False  # a file's owner could not be kept, for one
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False  # something else is mounted below it
        finally:
            shut(handle)
            shut(own)
    take_effect(directory)
    return True


def _replace_marker(directory: bytes, found: "Facts") -> None:
    handle = os.open(directory, _OPEN)
    try:
        with PrivateDirectory(directory) as private:
            private.sweep()  # who was killed at this
            put(handle, found, private.descriptor)
        take_effect(directory)
    except (OSError, Failure):
        pass  # it may not be written, or is full: the next run will compare again
    finally:
        os.close(handle)


def _sweep(directory: bytes) -> None:
    """Remove what the dead have left who began what was completed here."""
    try:
        with PrivateDirectory(directory) as private:
            private.sweep()
    except (OSError, Failure):
        pass  # it may not be written, or is full: what is left waits for another


def _private_in(directory: bytes) -> "Optional[PrivateDirectory]":
    """A private directory for what is to be renamed into a directory; None if that is refused."""
    try:
        return PrivateDirectory(directory)
    except OSError as error:
        if error.errno in _REFUSED:
            return None
        raise


def _set_aside(
    directory: bytes,
    archive: "Optional[bytes]",
    marker: "Optional[bytes]",
    damage: str,
    report: "Report",
    cached: bool,
) -> None:
    """Move what is damaged aside, if there is an archive to take its place."""
    name = os.fsdecode(directory)
    if cached and is_leased(directory):
        raise CannotCreate(
            "{} is damaged ({}) and in use; remove it once it is not".format(name, damage)
        )
    if archive is None:
        raise InputOutputError("{} is damaged: {}; unpack it again".format(name, damage))
    beside = can_be_replaced(directory)
    try:
        private = PrivateDirectory(os.path.dirname(directory) if beside else directory)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise InputOutputError(
            "{} is damaged ({}) and cannot be written; unpack to another directory".format(
                name, damage
            )
        )
    report.warn("{} is damaged: {}; unpacking again".format(name, damage))
    library.stays(directory)
    with private, report.phase("clear"):
        if beside:
            os.rename(directory, private.content_path)
            if read_marker(private.content_path) != marker:
                # Another process has done this meanwhile, and it is his that was moved.
                private.leave()
                os.rename(private.content_path, directory)
                private.leave(False)
                return
            try:
                os.mkdir(directory)
            except FileExistsError:
                pass  # by another start, which waits for its lock
            else:
                handle = os.open(directory, _OPEN)
                make_alike(handle, private.content_path)
                os.close(handle)
        elif read_marker(directory) != marker:
            return
        else:
            # An empty marker says to everybody that this is damaged, until all else is gone.
            os.close(os.open(private.path + b"/" + MARKER, os.O_WRONLY | os.O_CREAT, 0o644))
            os.rename(private.path + b"/" + MARKER, directory + b"/" + MARKER)
            for each in sorted(entries(directory), key=MARKER.__eq__):
                os.rename(directory + b"/" + each, private.content_path + b"/" + each)
        if is_in_use(private.path):
            private.leave()


def _root(directory: bytes, archive: "Optional[bytes]") -> bytes:
    handle = os.open(directory, _OPEN)
    try:
        root = find_prefix(handle)
    finally:
        os.close(handle)
    if root is not None:
        return root
    name = os.fsdecode(directory)
    what = "holds no environment (no conda-meta, bin/activate or pyvenv.cfg in it)"
    if archive is None:
        raise ArchiveError("{} {}; pack one with conda-pack".format(name, what))
    raise ArchiveError(
        "{} is not empty, so that nothing was unpacked, and {}; remove it, or choose another "
        "directory".format(name, what)
    )


def _placeholder_left(prefix: bytes) -> "Optional[bytes]":
    """A recorded placeholder that still stands in a file; None if none was found."""
    from ..relocation.elsewhere import placeholder_left

    handle = os.open(prefix, _OPEN)
    try:
        return placeholder_left(handle, prefix, _LOOKED_AT)
    finally:
        os.close(handle)

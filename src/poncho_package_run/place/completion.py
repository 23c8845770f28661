"""Whether a directory holds a complete environment, and where in it (read at every start)."""

import errno
import os

from .. import MARKER, OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

UNPACKING = b".poncho_package_run_unpacking"
RELOCATING = b".poncho_package_run_adopting"

# In the marker: its files were read after the machine had started anew, so they are on disk.
ON_DISK = b'"on_disk": true'


def is_complete(directory: bytes, archive: "Optional[bytes]") -> bool:
    """Whether the completion marker is there, and its environment is to be trusted.

    It is not while no one has looked whether the files survived a restart of this machine.

    Args:
        directory: absolute and real.
        archive: what would be unpacked; if the marker names another, a line on stderr says
            so.  None for a directory that is used where it is.
    """
    try:
        handle = os.open(directory + b"/" + MARKER, os.O_RDONLY | os.O_CLOEXEC)
        marker = os.read(handle, 65536)
        os.close(handle)
    except OSError:
        return False  # none, or told when its lock has been taken
    # The common case is told by comparing bytes; parsing JSON would cost 3 ms.
    try:
        same = b""
        if archive is not None:
            status = os.stat(archive)
            same = b'"archive_mtime_ns": %d, "archive_size": %d,' % (
                status.st_mtime_ns,
                status.st_size,
            )
        prefix = b'"prefix": "' + directory
        if same in marker and (prefix + b'"' in marker or prefix + b"/" in marker):
            if ON_DISK in marker:
                return True
            with open("/proc/sys/kernel/random/boot_id", "rb", 0) as file:
                if file.read(36) in marker:
                    return True
    except OSError:
        pass
    from .verify import verify

    return verify(marker, directory, archive)


def is_settled(directory: bytes) -> bool:
    """Whether a directory that is used where it is has been relocated, or needs not be."""
    if is_complete(directory, None):
        return True
    if os.path.exists(directory + b"/" + MARKER):
        return False  # the machine was down since
    return not os.path.exists(prefix_in(directory) + b"/bin/conda-unpack")


def prefix_in(directory: bytes) -> bytes:
    """The environment's prefix: the directory itself, or the one directory in it.

    Raises:
        ArchiveError: there is no environment (``conda-meta``, ``bin/activate`` or ``pyvenv.cfg``).
    """
    if _is_prefix(directory):
        return directory
    below = [name for name in os.listdir(directory) if not name.startswith(OURS)]
    if len(below) == 1:
        only = directory + b"/" + below[0]
        # Through a symlink it would be somewhere else, where nothing is ours to relocate.
        if not os.path.islink(only) and _is_prefix(only):
            return only
    from ..telling.errors import ArchiveError

    raise ArchiveError(
        "{} holds no environment (no conda-meta, bin/activate or pyvenv.cfg in it or in its only "
        "directory); pack one with conda-pack".format(os.fsdecode(directory))
    )


def _is_prefix(directory: bytes) -> bool:
    for name in (b"/conda-meta", b"/bin/activate", b"/pyvenv.cfg"):
        try:
            os.stat(directory + name)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise  # it says nothing about the environment
    return False

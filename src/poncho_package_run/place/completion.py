"""Whether a directory holds a complete environment that can be used at once (read at every start).

Everything unusual is left to ``settle``: here it is only told that it is not the usual.
"""

import os
import stat

from .. import MARKER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# In the marker: its files were read after the machine had started anew, so they are on disk.
ON_DISK = b'"on_disk": true'

BOOT = "/proc/sys/kernel/random/boot_id"

# As far as any lock reaches: a boot, and a device, which each mount of FUSE has for itself.
REACH = b"/%s-%x"

_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIMIT = 1 << 16


def ready_prefix(directory: bytes, archive: "Optional[bytes]") -> "Optional[bytes]":
    """The prefix of the environment in a directory; None if there is anything to do or to tell.

    That is also where there is no marker: see ``plain``.

    Args:
        directory: absolute and real.
        archive: what would be unpacked; None for a directory that is used where it is.
    """
    try:
        marker = read_marker(directory)
    except OSError:
        return None
    if marker is None or not is_trusted(directory):
        return None
    if marker[:1] != b"{":
        # The CCTools script's: the date.
        return directory if marker and is_prefix(directory) else None
    # The common case is told by comparing bytes; parsing JSON would cost 3 ms.
    try:
        if archive is not None:
            status = os.stat(archive)
            if b'"archive_mtime_ns": %d, "archive_size": %d,' % (
                status.st_mtime_ns,
                status.st_size,
            ) not in marker:
                return None
        prefix = marker.partition(b'"prefix": "')[2].partition(b'"')[0]
        below = prefix[len(directory) :]
        if not prefix.startswith(directory) or below[:1] not in b"/":
            return None  # "/w/env2" is not below "/w/env"
        if b'"root": "%s"' % below[1:] not in marker:
            return None
        # Has somebody begun to remove it?
        first = marker.partition(b'"first": "')[2].partition(b'"')[0]
        if first and not exists(directory + b"/" + first):
            return None
        # Of another machine's restarts nothing is known here.
        if not (
            ON_DISK in marker
            or line(BOOT) in marker
            or (b'"machine_id": "' in marker and line("/etc/machine-id") not in marker)
        ):
            return None
    except OSError:
        return None
    whole = marker.endswith(b"}\n") and b"\\" not in prefix and b"/." not in below
    return prefix if whole and is_prefix(prefix) else None


def line(path: str) -> bytes:
    """The one line of a file of the system.

    Raises OSError: there is none.
    """
    with open(path, "rb", 0) as file:
        return file.read(64).strip()


def read_marker(directory: bytes) -> "Optional[bytes]":
    """The completion marker's content; None if there is none.

    What anybody may have put in its place (a symlink, a FIFO, something huge) is none.

    Raises OSError: nobody can tell.
    """
    try:
        handle = os.open(directory + b"/" + MARKER, _SAFELY)
    except OSError as error:
        if not is_absence(error):
            raise
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT:
            return None
        return os.read(handle, _LIMIT)
    finally:
        shut(handle)


def shut(handle: int) -> None:
    """Close a descriptor through which nothing was written, so that nothing can get lost."""
    try:
        os.close(handle)
    except OSError:
        pass  # of what was done before nothing is undone by that


def locate(path: bytes) -> bytes:
    """The absolute, real path of the directory that a path leads to, be it there or not.

    Raises:
        CannotCreate: nobody can tell, or the path is a symlink that anybody may have planted.
    """
    try:
        directory, spelled = os.path.realpath(path), os.path.abspath(path)
    except OSError as error:
        from ..telling.failures import nowhere

        raise nowhere(path, error)
    if directory != spelled and not is_trusted(spelled):
        from ..telling.failures import untrusted

        raise untrusted(spelled)
    return directory


def is_trusted(path: bytes) -> bool:
    """Whether what lies at a path can have been put there only by this user or by root.

    Where anyone may make a directory, but remove only his own (/tmp), anyone may have planted it.
    True also if it does not exist.
    """
    try:
        parent = os.stat(os.path.dirname(path))
        if parent.st_mode & stat.S_ISVTX and parent.st_mode & stat.S_IWOTH:
            return os.lstat(path).st_uid in (0, os.geteuid())
    except OSError:
        pass  # told by whoever opens it
    return True


def is_prefix(directory: bytes) -> bool:
    """Whether a directory is an environment's own: has conda-meta, bin/activate or pyvenv.cfg."""
    return any(
        exists(directory + name) for name in (b"/conda-meta", b"/bin/activate", b"/pyvenv.cfg")
    )


def exists(path: bytes) -> bool:
    """Whether there is something at a path; True also if nobody can tell (an I/O error)."""
    try:
        os.lstat(path)
        return True
    except OSError as error:
        from errno import ENAMETOOLONG

        return error.errno != ENAMETOOLONG and not is_absence(error)
    except ValueError:
        return False  # a NUL is in it, out of a marker


def is_absence(error: OSError) -> bool:
    """Whether it says that there is none for us: no such file, a symlink, a FIFO, a socket."""
    import errno  # a hundred numbers: 0.1 ms

    return error.errno in (
        errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO,
    )  # fmt: skip

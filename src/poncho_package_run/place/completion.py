"""Whether a directory holds a complete environment that can be used at once (read at every start).

Everything unusual is left to ``settle``: here it is only told that it is not the usual.
"""

import errno
import fcntl
import os
import stat

from .. import MARKER, OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# In the marker: its files were read after the machine had started anew, so they are on disk.
ON_DISK = b'"on_disk": true'

# What is being published inside a directory (see ``publication``).
PUBLISHING = OURS + b"publishing"

_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIMIT = 1 << 16

# What open(2) says where there is none for us: no such file, a symlink, a FIFO, a socket.
NONE = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO)


def ready_prefix(
    directory: bytes, archive: "Optional[bytes]", marked: bool = False
) -> "Optional[bytes]":
    """The prefix of the environment in a directory; None if there is anything to do or to tell.

    Args:
        directory: absolute and real.
        archive: what would be unpacked; None for a directory that is used where it is.
        marked: whether it has to have a completion marker.
    """
    try:
        marker = read_marker(directory)
    except OSError:
        return None
    if not is_trusted(directory):
        return None
    if marker is None:
        # Without a marker and without conda-pack's script there is nothing to be done, but who
        # would unpack has to wait for whoever may be doing so.
        plain = archive is None and not marked and _is_plain(directory)
        return directory if plain else None
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
            or _has(marker, "/proc/sys/kernel/random/boot_id")
            or (b'"machine_id": "' in marker and not _has(marker, "/etc/machine-id"))
        ):
            return None
    except OSError:
        return None
    whole = marker.endswith(b"}\n") and b"\\" not in prefix and b"/." not in below
    return prefix if whole and is_prefix(prefix) else None


def _is_plain(directory: bytes) -> bool:
    """Whether a directory without a marker is an environment that is used as it is.

    That is not to be relocated, nor being unpacked: by us, where what is published inside the
    directory is looked for last, or by the CCTools script, which holds a lock.
    """
    if exists(directory + b"/bin/conda-unpack") or not is_prefix(directory):
        return False
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here, or not to be opened: nobody to wait for
    return not exists(directory + b"/" + PUBLISHING) and not exists(directory + b"/" + MARKER)


def _has(marker: bytes, path: str) -> bool:
    """Whether a marker names what the one line of a file of the system says."""
    with open(path, "rb", 0) as file:
        return file.read(64).strip() in marker


def read_marker(directory: bytes) -> "Optional[bytes]":
    """The completion marker's content; None if there is none.

    What anybody may have put in its place (a symlink, a FIFO, something huge) is none.

    Raises OSError: nobody can tell.
    """
    try:
        handle = os.open(directory + b"/" + MARKER, _SAFELY)
    except OSError as error:
        if error.errno in NONE:
            return None
        raise
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
        from ..telling.errors import CannotCreate

        raise CannotCreate(
            "cannot tell where {} is, seen from the working directory: {}; give its absolute "
            "path".format(os.fsdecode(path), error.strerror)
        )
    if directory != spelled and not is_trusted(spelled):
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


def untrusted(path: bytes) -> Exception:
    """The failure to tell of what is not trusted."""
    from ..telling.errors import CannotCreate

    return CannotCreate(
        "{} belongs to another user, in a directory where anyone may have made it; choose "
        "another directory".format(os.fsdecode(path))
    )


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
        return error.errno not in (*NONE, errno.ENAMETOOLONG)
    except ValueError:
        return False  # a NUL is in it, out of a marker

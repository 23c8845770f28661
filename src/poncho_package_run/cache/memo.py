"""The warm start from a cache: which environment is an archive's, and the lease on it.

Compiled at every start with a cache: keep it short.
"""

import fcntl
import os
import stat

from .. import MANIFEST, OURS
from ..place.completion import BOOT, REACH, is_trusted, line, locate, ready_prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

MEMO = OURS + b"memo"
USES = OURS + b"uses"

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def warm(cache: bytes, archive: bytes) -> "Optional[bytes]":
    """The prefix of an archive's environment, held; None if there is anything to do or to tell."""
    cache = locate(cache)
    try:
        directory = recall(cache, key(os.stat(archive)))
        if not directory or not is_safe(cache):
            return None
        lease = hold(directory + b"/" + MANIFEST)
    except OSError:
        return None
    prefix = ready_prefix(directory, None) if lease else None
    if prefix:
        touch(cache, directory)
    elif lease:
        os.close(lease)
    return prefix


def recall(cache: bytes, known: bytes) -> "Optional[bytes]":
    """Where the environment of an archive lies, if what it is known by was seen before."""
    try:
        name = os.readlink(cache + b"/" + MEMO + b"/" + known)
    except OSError:
        return None
    return cache + b"/" + name if is_sum(name) else None


def key(status: os.stat_result) -> bytes:
    """What an archive is known by: whoever changes it changes one of these."""
    return b"%d-%d-%d-%d-%d" % (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip


def is_sum(name: bytes) -> bool:
    return len(name) == 64 and not name.strip(b"0123456789abcdef")


def is_safe(cache: bytes) -> bool:
    """Whether nobody but its owner may put anything into a cache, and no stranger has made it.

    Raises OSError: it does not exist.
    """
    mode = os.stat(cache).st_mode
    return stat.S_ISDIR(mode) and not mode & 0o022 and is_trusted(cache)


def hold(path: bytes, flags: int = 0) -> "Optional[int]":
    """Take the lease on an environment, for this process and what it becomes and starts.

    It is a shared lock on the manifest (the directory's own is the writing lock), and a descriptor
    from 10 on, out of the way of those that are passed by number.

    Args:
        path: of the manifest; of the directory where there is none.

    Returns:
        The descriptor; None if the environment is being or has been removed.

    Raises OSError: it cannot be opened, or is gone by now.
    """
    handle = os.open(path, _OPEN | flags)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            pass  # no locks here: then nobody removes what was in use lately
        # Removed, and perhaps made anew, before it was locked?
        there = os.path.samestat(os.fstat(handle), os.lstat(path))
        return fcntl.fcntl(handle, fcntl.F_DUPFD, 10) if there else None
    finally:
        os.close(handle)


def touch(cache: bytes, directory: bytes) -> None:
    """Note the time of use, in a file for each environment and reach of a lock.

    In a cache of this user's only: another decides himself what goes, and may lead root astray.
    """
    folder = b"/".join((cache, USES, directory[-64:]))
    try:
        status = os.stat(cache)
        if status.st_uid == os.geteuid():
            os.utime(folder + REACH % (line(BOOT), status.st_dev), follow_symlinks=False)
    except OSError:
        from .uses import begin

        begin(cache, folder)

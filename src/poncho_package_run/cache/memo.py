"""The warm start from a cache: which environment is an archive's, and the lease on it.

Compiled at every start with a cache: keep it short.
"""

import fcntl
import os
import stat

from .. import MANIFEST, OURS
from ..place.completion import is_trusted, locate, ready_prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

MEMO = OURS + b"memo"
USES = OURS + b"uses"

_BOOT = "/proc/sys/kernel/random/boot_id"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def warm(cache: bytes, archive: bytes) -> "Optional[bytes]":
    """The prefix of an archive's environment, held; None if there is anything to do or to tell."""
    cache = locate(cache)
    try:
        directory = recall(cache, key(os.stat(archive)))
    except OSError:
        return None
    if directory is None or not is_safe(cache):
        return None
    lease = hold(directory)
    if lease is None:
        return None
    prefix = ready_prefix(directory, None, marked=True)
    if prefix is not None:
        touch(cache, directory)
    elif lease >= 0:
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

    True also if it does not exist.
    """
    try:
        mode = os.stat(cache).st_mode
    except OSError:
        return True
    return stat.S_ISDIR(mode) and not mode & 0o022 and is_trusted(cache)


def hold(directory: bytes) -> "Optional[int]":
    """Take the lease on an environment, for this process and what it becomes and starts.

    It is a shared lock on the manifest (the directory's own is the writing lock), and a descriptor
    from 10 on, out of the way of those that are passed by number.

    Returns:
        The descriptor; -1 if there can be none; None if the environment is not there any more.
    """
    path = directory + b"/" + MANIFEST
    try:
        handle = os.open(path, _OPEN)
    except PermissionError:
        return -1  # another user's, who lets nobody hold it
    except OSError:
        path = directory  # somebody has removed or replaced it; then the directory serves
        try:
            handle = os.open(path, _OPEN | os.O_DIRECTORY)
        except OSError:
            return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None  # it is being removed
    except OSError:
        pass  # no locks here: then nobody removes what was in use lately
    try:
        # Removed, and perhaps made anew, before it was locked?
        there = os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        there = False
    lease = fcntl.fcntl(handle, fcntl.F_DUPFD, 10) if there else None
    os.close(handle)
    return lease


def touch(cache: bytes, directory: bytes) -> None:
    """Note the time of use, in a file for each environment and boot of a machine.

    In a cache of this user's only: another decides himself what goes, and may lead root astray.
    """
    try:
        with open(_BOOT, "rb", 0) as file:
            boot = file.read(64).strip()
    except OSError:
        boot = os.fsencode(os.uname().nodename)
    path = b"/".join((cache, USES, os.path.basename(directory), boot))
    try:
        if os.stat(cache).st_uid == os.geteuid():
            os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        from .uses import begin

        begin(path)
    except OSError:
        pass  # it may not be written

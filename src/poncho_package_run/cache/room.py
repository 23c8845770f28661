"""What is in a cache, how much that is, and how it is made less."""

import errno
import fcntl
import os
import stat
import time

from .. import MANIFEST, MARKER
from ..machine import process
from ..machine.signals import Terminated, check
from ..machine.threads import start
from ..place.completion import is_absence, read_marker
from ..place.lock import POLL
from ..place.marker import has_first, parse
from ..place.private import CONTENT, PrivateDirectory, lease
from ..place.publication import entries, move
from ..telling.errors import Failure, InputOutputError
from ..tree.removal import empty, remove
from .memo import USES, is_sum
from .uses import machine, reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Tuple

    from ..place.marker import Facts

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What was used lately on another machine, whose locks may end there, may be in use still.
_LATELY = 7 * 24 * 3600  # seconds

_FULL = ((errno.ENOSPC,), (errno.EDQUOT,))

# A signal has to end this within a second.
_GRACE = 0.5

# So many archives are remembered; those of tasks' sandboxes come and go.
_MEMORIES = 10000


class Entry:
    """An environment in a cache.

    Attributes:
        path (bytes): absolute.
        size, files (int): bytes of its files, and their number.
        used (float): when it was last used, seconds since the epoch.
        archive (bytes): what it was unpacked from; b"" if it does not say so.
        is_whole (bool): it has its completion marker, and nobody has begun to remove it.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        found = _facts(path)
        self.is_whole = _is_whole(path, found)
        self.archive: bytes = found.get("archive", "").encode("utf-8", "surrogateescape")
        self.size: int
        self.files: int
        self.size, self.files = found.get("bytes", -1), found.get("files", -1)
        if not (0 <= self.size < 1 << 63 and 0 <= self.files < 1 << 63):
            self.size, self.files = _measured(path)
        times = [time for _, time in _uses(path)]
        self.used = max(times) if times else os.lstat(path).st_mtime

    def seize(self) -> "List[int]":
        """Prove that nobody uses it: the descriptors of its locks, taken; none if one may.

        They are the writing lock, under which others may be settling it, and the lease.
        """
        handles = [os.open(self.path, _OPEN | os.O_DIRECTORY)]
        try:
            try:
                handles.append(os.open(self.path + b"/" + MANIFEST, _OPEN))
            except OSError as error:
                if not is_absence(error):
                    raise  # else it is gone, or replaced: then the directory serves
            locked = [lease(handle, fcntl.LOCK_EX) for handle in handles]
            if not (
                False in locked
                or (None in locked and _is_recent(self.used))
                or _is_elsewhere(self.path)
                or process.uses(self.path)
            ):
                taken, handles = handles, []
                return taken
        finally:
            for handle in handles:
                os.close(handle)
        return []


def found(cache: bytes) -> "Iterator[Entry]":
    """All that lies in a cache; what another process is about to make is not there yet."""
    for path in _paths(cache):
        try:
            yield Entry(path)
        except OSError:
            continue  # removed meanwhile


def _paths(cache: bytes) -> "Iterator[bytes]":
    for name in sorted(map(os.fsencode, os.listdir(cache))):
        path = cache + b"/" + name
        if is_sum(name):
            check()
            try:
                if not os.path.islink(path) and entries(path):
                    yield path
            except OSError:
                continue  # removed meanwhile, or no directory


def make(cache: bytes, limit: int, wanted: int, directory: bytes) -> int:
    """Make room for so many bytes, by removing what was used least recently.

    Args:
        cache: its path.
        limit: bytes.
        wanted: bytes of what is to come.
        directory: where that is to lie: nothing there counts.

    Returns:
        By how many bytes the limit is exceeded all the same; 0 if it is not.
    """
    there = [each for each in found(cache) if each.path != directory]
    over: int = sum(each.size for each in there) + wanted - limit
    # What is no environment any more goes in any case.
    for each in sorted(there, key=lambda each: (each.is_whole, each.used)):
        check()
        if (over > 0 or not each.is_whole) and _remove(cache, each):
            over -= each.size
    return max(0, over)


def clear(cache: bytes, directory: bytes) -> None:
    """Remove what is no environment any more, but for what lies in ``directory``."""
    try:
        for path in _paths(cache):
            if path != directory and not _is_whole(path, _facts(path)):
                _remove(cache, Entry(path))
    except OSError:
        pass  # it may not be listed, or has been removed by hand


def free(cache: bytes, directory: bytes) -> bool:
    """Remove all that is not in use, but for one; whether anything was."""
    removed = 0
    for each in [each for each in found(cache) if each.path != directory]:
        check()
        removed += _remove(cache, each)
    return removed > 0


def _facts(path: bytes) -> "Facts":
    """What the completion marker of an environment says; nothing if it has none that is whole."""
    marker = read_marker(path)
    return (parse(marker) if marker else None) or {}


def _is_whole(path: bytes, found: "Facts") -> bool:
    return bool(found) and has_first(path, found)


def forget(folder: bytes) -> None:
    """Keep the memory of archives in bounds: the latest are kept."""
    names = os.listdir(folder)
    if len(names) < _MEMORIES:
        return
    ages = sorted((os.lstat(folder + b"/" + name).st_mtime_ns, name) for name in names)
    for _, name in ages[: len(ages) // 2]:
        os.unlink(folder + b"/" + name)


def shown(size: float) -> str:
    """Bytes as people read them, by powers of 1024."""
    for unit in ("B", "K", "M", "G"):
        if size < 999.5 or (unit == "B" and size < 1024):
            break
        size /= 1024
    else:
        unit = "T"
    return "{:.{}f}{}".format(size, 1 if size < 9.95 and unit != "B" else 0, unit)


def _remove(cache: bytes, entry: Entry) -> bool:
    """Take an environment out of the way by one rename, and remove it; False if it is in use."""
    try:
        handles = entry.seize()
        if not handles:
            return False
        try:
            with PrivateDirectory(cache) as private:
                private.sweep()
                move(entry.path, private.content_path)
                try:
                    os.rename(_folder(entry.path), private.path + b"/uses")
                except OSError:
                    pass  # there are none
                _empty(private)
        except (OSError, InputOutputError) as error:
            if not getattr(error, "full", error.args[:1] in _FULL):
                raise
            _remove_in_place(entry.path)
        finally:
            for handle in handles:
                os.close(handle)
    except (OSError, Failure):
        return False  # another process removes it, or it may not be written
    return True


def _empty(private: PrivateDirectory) -> None:
    """Remove what was moved aside; what a signal leaves of a large one is for the next run's sweep.

    In a thread, which may still be at it when this process ends.
    """
    handle = os.dup(private.descriptor)
    # None at a limit on processes: then the end of the context does it.
    threads = start(lambda: remove(handle, CONTENT))
    try:
        for thread in threads:
            while thread.is_alive():
                check()
                thread.join(POLL)
    except Terminated:
        thread.join(_GRACE)
        private.leave(thread.is_alive())
        raise
    os.close(handle)


def _remove_in_place(path: bytes) -> None:
    """Where a full disk has no room for a private directory: the marker first."""
    handle = os.open(path, _OPEN | os.O_DIRECTORY)
    try:
        if remove(handle, MARKER):
            empty(handle)
    finally:
        os.close(handle)
    os.rmdir(path)


def _uses(path: bytes) -> "Iterator[Tuple[bytes, float]]":
    """(path, time) of the last use of an environment from wherever a lock reaches."""
    folder = _folder(path)
    try:
        names: List[bytes] = list(map(os.fsencode, os.listdir(folder)))
    except OSError:
        return
    for each in names:
        try:
            yield folder + b"/" + each, os.lstat(folder + b"/" + each).st_mtime
        except OSError:
            continue


def _folder(path: bytes) -> bytes:
    """Where the uses of an environment are noted."""
    return b"/".join((os.path.dirname(path), USES, os.path.basename(path)))


def _is_recent(used: float) -> bool:
    # A week ahead nobody can have used it: a clock was wrong, which must not count for ever.
    return abs(time.time() - used) < _LATELY


def _is_elsewhere(path: bytes) -> bool:
    """Whether an environment may be in use where no lock of ours reaches."""
    cache = os.path.dirname(path)
    here = reach(cache)
    boot = here.rpartition(b"-")[0]
    # What comes by a network, or from a program, has no device's number: others may have it too.
    alone = machine() if os.major(os.stat(cache).st_dev) != 0 else b""
    for file, used in _uses(path):
        if file.endswith(here) or not _is_recent(used):
            continue
        # An earlier boot of this machine: what ran then has ended.  This boot, and another device:
        # what ran there ran in what this is a copy of.
        is_over = used < _booted() or file[file.rindex(b"/") :].startswith(boot)
        if not (alone and is_over and _content(file) == alone):
            return True
    return False


def _content(path: bytes) -> bytes:
    try:
        handle = os.open(path, _OPEN)
        try:
            return os.read(handle, 1024)
        finally:
            os.close(handle)
    except OSError:
        return b""


def _booted() -> float:
    """When this machine started, seconds since the epoch; 0 if it does not say so."""
    try:
        with open("/proc/uptime", "rb") as file:
            return time.time() - float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0


def _measured(path: bytes) -> "Tuple[int, int]":
    """Bytes of the files below a directory, and their number; of several names one counts."""
    size = files = 0
    seen = set()
    below = [path]
    while below:
        check()
        folder = below.pop()
        try:
            names = os.listdir(folder)
        except OSError:
            continue  # removed meanwhile, or not to be read
        for name in names:
            try:
                status = os.lstat(folder + b"/" + name)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(folder + b"/" + name)
            elif status.st_nlink < 2 or (status.st_dev, status.st_ino) not in seen:
                files += 1
                size += status.st_size
                if status.st_nlink > 1:
                    seen.add((status.st_dev, status.st_ino))
    return size, files



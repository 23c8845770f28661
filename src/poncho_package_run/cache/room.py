"""What is in a cache, how much that is, and how it is made less."""

import errno
import fcntl
import os
import stat
import time

from .. import MANIFEST, MARKER
from ..machine import process
from ..machine.signals import check
from ..place.completion import read_marker
from ..place.marker import parse
from ..place.private import PrivateDirectory
from ..place.publication import entries, move
from ..telling.errors import Failure, InputOutputError
from ..tree.removal import empty
from .memo import USES, is_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Optional, Tuple

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What was used lately on another machine, whose locks may end there, may be in use still.
_LATELY = 7 * 24 * 3600  # seconds

_FULL = ((errno.ENOSPC,), (errno.EDQUOT,))

# So many archives are remembered; those of tasks' sandboxes come and go.
_MEMORIES = 10000


class Entry:
    """An environment in a cache.

    Attributes:
        path (bytes): absolute.
        size, files (int): bytes of its files, and their number.
        used (float): when it was last used, seconds since the epoch.
        archive (bytes): what it was unpacked from; b"" if it does not say so.
        is_whole (bool): it has its completion marker.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        marker = read_marker(path)
        found = (parse(marker) if marker else None) or {}
        self.is_whole = bool(found)
        self.archive: bytes = found.get("archive", "").encode("utf-8", "surrogateescape")
        self.size: int
        self.files: int
        self.size, self.files = found.get("bytes", -1), found.get("files", -1)
        if min(self.size, self.files) < 0:
            self.size, self.files = _measured(path)
        times = [time for _, time, _ in _uses(path)]
        self.used = max(times) if times else os.lstat(path).st_mtime

    def seize(self) -> "Optional[int]":
        """Prove that nobody uses it: the descriptor of its lease, taken; None if one may."""
        try:
            handle = os.open(self.path + b"/" + MANIFEST, _OPEN)
        except OSError:  # gone, or something else is in its place
            handle = os.open(self.path, _OPEN | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            locked = False
        lately = time.time() - self.used < _LATELY
        if _is_elsewhere(self.path) or (lately and not locked) or process.uses(self.path):
            os.close(handle)
            return None
        return handle


def found(cache: bytes) -> "Iterator[Entry]":
    """All that lies in a cache; what another process is about to make is not there yet."""
    for name in sorted(map(os.fsencode, os.listdir(cache))):
        path = cache + b"/" + name
        if is_sum(name):
            check()
            try:
                if entries(path):
                    yield Entry(path)
            except OSError:
                continue  # removed meanwhile


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
        if (over > 0 or not each.is_whole) and _remove(cache, each):
            over -= each.size
    return max(0, over)


def free(cache: bytes, directory: bytes) -> bool:
    """Remove all that is not in use, but for one; whether anything was."""
    others = [each for each in found(cache) if each.path != directory]
    return sum(_remove(cache, each) for each in others) > 0


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
        handle = entry.seize()
        if handle is None:
            return False
        try:
            try:
                with PrivateDirectory(cache) as private:
                    private.sweep()
                    move(entry.path, private.content_path)
            except (OSError, InputOutputError) as error:
                if not getattr(error, "full", error.args[:1] in _FULL):
                    raise
                _remove_in_place(entry.path)
            for path, _, _ in list(_uses(entry.path)):
                os.unlink(path)
        finally:
            os.close(handle)
    except (OSError, Failure):
        return False  # another process removes it, or it may not be written
    return True


def _remove_in_place(path: bytes) -> None:
    """Where a full disk has no room for a private directory: the marker first."""
    handle = os.open(path, _OPEN | os.O_DIRECTORY)
    try:
        os.unlink(MARKER, dir_fd=handle)
        empty(handle)
    finally:
        os.close(handle)
    os.rmdir(path)


def _uses(path: bytes) -> "Iterator[Tuple[bytes, float, bytes]]":
    """(path, time of the last use, boot) of each boot in which an environment was used."""
    cache, name = os.path.split(path)
    folder = cache + b"/" + USES
    try:
        names: List[bytes] = list(map(os.fsencode, os.listdir(folder)))
    except OSError:
        return
    for each in names:
        if each.startswith(name + b"-"):
            try:
                yield folder + b"/" + each, os.lstat(folder + b"/" + each).st_mtime, each[65:]
            except OSError:
                continue


def _is_elsewhere(path: bytes) -> bool:
    """Whether an environment may be in use where no lock of ours reaches."""
    here = process.describe()
    boot_here = here["boot_id"] or here["host"]
    now = time.time()
    for file, used, boot in _uses(path):
        if boot.decode("ascii", "replace") == boot_here or now - used > _LATELY:
            continue
        if _line(file) == here["machine_id"] and here["machine_id"] and used < _booted():
            continue  # an earlier boot of this machine, and what ran in it has ended
        return True
    return False


def _line(path: bytes) -> str:
    try:
        handle = os.open(path, _OPEN)
        try:
            return os.read(handle, 64).decode("ascii", "replace").strip()
        finally:
            os.close(handle)
    except OSError:
        return ""


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



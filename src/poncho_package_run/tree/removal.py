"""Removing a tree: whatever its modes and depth, following no link, entering nothing mounted.

``rmdir`` decides what is entered.  Of an empty directory it makes an end at once; of one that has
something in it, it says so; of one on which something is mounted, be it of the same file system, it
says EBUSY before it looks.  No other question to the system tells all three, and none is cheaper.
"""

import errno
import itertools
import os
import sys
import threading
import time

from ..machine.processors import OVERLAPPING, SAMPLES, SLOW_SECONDS, capped, usable
from ..machine.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)

# Each level on the way down keeps a descriptor open; what lies deeper is moved up first.
_DEPTH = 64

# So many names of a directory are read at a time, which is some megabytes at most; then the rest is
# listed anew, since a listing that goes on while its entries vanish may leave some out.
_NAMES = 10000


def remove(parent: int, name: bytes, keep_last: bytes = b"") -> bool:
    """Remove a file, or a directory with all that is in it.

    Args:
        parent: descriptor of the directory that it is in.
        name: its name there.
        keep_last: of what is directly in it, the name of the file that goes after all else.

    Returns:
        Whether it is gone (see ``empty``).
    """
    return _twice(lambda threads: _remove(parent, name, keep_last, threads))


def empty(directory: int, keep_last: bytes = b"") -> bool:
    """Remove what is in a directory, which stays as it is.

    What vanishes meanwhile is as good as removed.  What cannot be removed (a ``.nfs*`` file that
    someone has open, another user's, what is mounted) is left, with the directories above it.

    Args:
        directory: its descriptor; it stays open.
        keep_last: the name of the file in it that is removed after all else, and only if all else
            is gone; b"" if there is none.

    Returns:
        Whether all is gone.
    """
    return _twice(lambda threads: _empty(directory, keep_last, threads))


def _twice(attempt: "Callable[[int], bool]") -> bool:
    """What fails once may do the second time: in use, or threads had all descriptors or memory."""
    for threads in (min(usable(), 4), 1):
        try:
            if attempt(threads):
                return True
        except FileNotFoundError:
            return True
        except (OSError, MemoryError):
            pass
    return False


def _remove(parent: int, name: bytes, keep_last: bytes, threads: int) -> bool:
    try:
        os.unlink(name, dir_fd=parent)
        return True
    except (IsADirectoryError, PermissionError):  # EISDIR on Linux, EPERM in POSIX
        if not _is_full(name, parent):
            return True
    handle = _open(name, parent)
    try:
        os.fchmod(handle, 0o700)  # what may be removed may be written
        gone = _empty(handle, keep_last, threads)
    finally:
        os.close(handle)
    if gone:
        os.rmdir(name, dir_fd=parent)
    return gone


def _empty(directory: int, keep_last: bytes, threads: int) -> bool:
    gone = _Removal(directory, keep_last, threads).run()
    if gone and keep_last:
        os.unlink(keep_last, dir_fd=directory)
    return gone


def _is_full(name: bytes, parent: int) -> bool:
    """Whether a directory is to be emptied: if not, it is gone. OSError if it is to be left."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return True
    return False


def _open(name: bytes, parent: int) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        _permit(name, parent)
        return os.open(name, _OPEN, dir_fd=parent)


def _permit(name: bytes, parent: int) -> None:
    """Allow a directory's owner everything in it; never what a link leads to."""
    if not hasattr(os, "O_PATH"):
        os.chmod(name, 0o700, dir_fd=parent, follow_symlinks=False)
        return
    # Linux knows no such chmod before 6.6.
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod("/proc/self/fd/{}".format(handle), 0o700)
    except FileNotFoundError:  # there is no /proc: what it means is not that the name is gone
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    finally:
        os.close(handle)


class _Directory:
    """A directory being emptied; removed itself when nothing is left in it."""

    __slots__ = ("parent", "name", "handle", "depth", "names", "more", "changed", "found", "left")

    def __init__(self, parent: "Optional[_Directory]", name: bytes, handle: int) -> None:
        self.parent = parent
        self.name = name
        self.handle = handle
        self.depth: int = parent.depth + 1 if parent else 0
        self.names: List[bytes] = _listed(handle)  # read, and not looked at yet
        self.more = False  # whether there may be names behind them
        self.changed = False  # whether anything has gone since they were read
        self.found: List[bytes] = []  # directories in it that nobody has begun with
        self.left = 0  # those, and those that somebody has begun with


def _listed(handle: int) -> "List[bytes]":
    """Names in a directory, up to _NAMES of them."""
    # Python 3.6 takes a path alone.
    path = handle if sys.version_info >= (3, 7) else "/proc/self/fd/{}".format(handle)
    try:
        entries = os.scandir(path)
    except FileNotFoundError:  # no /proc
        return list(map(os.fsencode, os.listdir(handle)))
    with entries:
        return [os.fsencode(entry.name) for entry in itertools.islice(entries, _NAMES)]


class _Removal:
    def __init__(self, root: int, keep_last: bytes, threads: int) -> None:
        self._root = _Directory(None, b"", root)
        self._keep_last = keep_last
        self._threads = threads
        self._device = os.fstat(root).st_dev
        self._stack: List[_Directory] = []  # those that have ``found`` any
        self._busy = 0
        self._gone = True
        self._changed = threading.Condition()
        self._samples = 0
        self._quickest = 1.0  # seconds, of the first removals
        self._others: List[threading.Thread] = []

    def run(self) -> bool:
        self._end(self._root, 0)
        if self._stack:
            self._others += start(self._work, self._threads - 1)
        self._work()
        for thread in self._others:
            thread.join()
        return self._gone

    def _sample(self, seconds: float) -> None:
        """See how long a call takes; with the last sample, call for more threads."""
        with self._changed:
            self._quickest = min(self._quickest, seconds)
            self._samples += 1
            if self._samples == SAMPLES and self._threads > 1 and self._quickest > SLOW_SECONDS:
                self._others += start(self._work, capped(OVERLAPPING) - 1 - len(self._others))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stack and self._busy:
                    self._changed.wait()
                if not self._stack:
                    return
                # The latest found is the deepest: few directories are open at a time.
                parent = self._stack[-1]
                name = parent.found.pop()
                if not parent.found:
                    self._stack.pop()
                self._busy += 1
            try:
                self._begin(parent, name)
            finally:
                with self._changed:
                    self._busy -= 1
                    if not self._busy:
                        self._changed.notify_all()

    def _begin(self, parent: _Directory, name: bytes) -> None:
        try:
            if _is_full(name, parent.handle):
                try:
                    self._open(parent, name)
                    return
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE) or parent is self._root:
                        raise
                self._move_up(parent, name)
            parent.changed = True
        except FileNotFoundError:
            parent.changed = True
        except OSError:
            self._gone = False
        self._end(parent, 1)

    def _open(self, parent: _Directory, name: bytes) -> None:
        if parent.depth >= _DEPTH:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        handle = _open(name, parent.handle)
        try:
            if os.fstat(handle).st_dev != self._device:  # mounted by that, or a volume of its own
                raise PermissionError
            directory = _Directory(parent, name, handle)
        except OSError:
            os.close(handle)
            raise
        self._end(directory, 0)

    def _move_up(self, parent: _Directory, name: bytes) -> None:
        """Have a directory emptied last, when the descriptors that lead to it are closed."""
        new = b".poncho_package_run_" + os.urandom(8).hex().encode()
        root = self._root
        try:
            os.rename(name, new, src_dir_fd=parent.handle, dst_dir_fd=root.handle)
        except PermissionError:  # its own entry ".." is written as well
            _permit(name, parent.handle)
            os.rename(name, new, src_dir_fd=parent.handle, dst_dir_fd=root.handle)
        with self._changed:
            if not root.found:
                self._stack.insert(0, root)
            root.found.append(new)
            root.left += 1
            self._changed.notify()

    def _next(self, directory: _Directory) -> bool:
        """Remove the files of a directory, up to names with directories among them; if there are.

        Raises OSError: it cannot be read.
        """
        while directory.names or (directory.more and directory.changed):
            names = directory.names or _listed(directory.handle)
            directory.names, directory.more, directory.changed = [], len(names) >= _NAMES, False
            found = self._unlink(directory, names)
            if found:
                with self._changed:
                    directory.found = found
                    directory.left = len(found)
                    self._stack.append(directory)
                    self._changed.notify(len(found))
                return True
        return False

    def _unlink(self, directory: _Directory, names: "List[bytes]") -> "List[bytes]":
        """Remove the files of a directory; the rest of its names."""
        handle = directory.handle
        is_root = directory is self._root
        writable = is_root  # it belongs to the caller, as it is
        unlink = os.unlink
        found = []
        left = 0
        for name in names:
            if is_root and name == self._keep_last:
                left += 1
                continue
            try:
                try:
                    if self._samples < SAMPLES:
                        began = time.perf_counter()
                        unlink(name, dir_fd=handle)
                        self._sample(time.perf_counter() - began)
                    else:
                        unlink(name, dir_fd=handle)
                except PermissionError:  # no write permission here; EPERM of a directory on macOS
                    if writable:
                        raise
                    writable = True
                    os.fchmod(handle, 0o700)
                    unlink(name, dir_fd=handle)
            except FileNotFoundError:
                pass
            except (IsADirectoryError, PermissionError):
                found.append(name)
            except OSError:
                self._gone = False
                left += 1
        directory.changed = left + len(found) < len(names)
        return found

    def _end(self, directory: _Directory, ended: int) -> None:
        """So many directories less in it; with the last of all its names, it goes, and is one less
        to its parent.
        """
        while True:
            with self._changed:
                directory.left -= ended
                if directory.left > 0:
                    return
            try:
                if self._next(directory):
                    return
            except OSError:
                self._gone = False
            parent = directory.parent
            if parent is None:
                return
            try:
                os.close(directory.handle)
                os.rmdir(directory.name, dir_fd=parent.handle)
                parent.changed = True
            except FileNotFoundError:
                parent.changed = True
            except OSError:
                self._gone = False
            directory, ended = parent, 1

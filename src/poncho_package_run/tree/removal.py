"""Removing a tree: whatever its modes and depth, and without following a link out of it."""

import os
import threading
import time

from ..machine.processors import OVERLAPPING, SAMPLES, SLOW_SECONDS, capped
from ..machine.threads import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Each level on the way down keeps a descriptor open; what lies deeper is moved up first.
_DEPTH = 64


def empty(directory: int, keep_last: bytes = b"\0", threads: int = 1) -> bool:
    """Remove what is in a directory.

    What vanishes meanwhile is as good as removed; what cannot be removed (a ``.nfs*`` file that
    someone has open) is left.

    Args:
        directory: its descriptor; it stays open.
        keep: entries whose names begin like this stay.
        threads: how many to work with.

    Returns:
        Whether all is gone.
    """
    gone = _Removal(directory, keep_last).run(threads)
    if gone and keep_last != b"\0":
        try:
            os.unlink(keep_last, dir_fd=directory)
        except FileNotFoundError:
            pass
    return gone


class _Directory:
    """A directory being emptied; removed itself when its last child is gone."""

    __slots__ = ("parent", "name", "handle", "children", "depth")

    def __init__(self, parent: "Optional[_Directory]", name: bytes, depth: int) -> None:
        self.parent = parent
        self.name = name
        self.handle = -1
        self.children = 1  # itself, until its own entries have been gone through
        self.depth = depth


class _Removal:
    def __init__(self, root: int, keep: bytes) -> None:
        self._keep = keep
        self._root = _Directory(None, b"", 0)
        self._root.handle = root
        self._stack: List[_Directory] = [self._root]
        self._busy = 0
        self._moved = 0
        self._gone = True
        self._changed = threading.Condition()
        self._samples = 0
        self._quickest = 1.0  # seconds, of the first removals
        self._others: List[threading.Thread] = []

    def run(self, threads: int) -> bool:
        self._others = start(self._work, threads - 1)
        self._work()
        for thread in self._others:
            thread.join()
        return self._gone

    def _sample(self, seconds: float) -> None:
        """See how long a call takes; with the last sample, call for more threads."""
        with self._changed:
            self._quickest = min(self._quickest, seconds)
            self._samples += 1
            if self._samples == SAMPLES and self._quickest > SLOW_SECONDS:
                self._others += start(self._work, capped(OVERLAPPING) - 1 - len(self._others))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stack and self._busy:
                    self._changed.wait()
                if not self._stack:
                    self._changed.notify_all()
                    return
                # The latest found is the deepest: few directories are open at a time.
                directory = self._stack.pop()
                self._busy += 1
            try:
                self._enter(directory)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _enter(self, directory: _Directory) -> None:
        parent = directory.parent
        if parent is not None:
            try:
                directory.handle = self._open(directory.name, parent.handle)
            except FileNotFoundError:
                pass
            except OSError:
                self._gone = False
        if directory.handle >= 0:
            try:
                self._remove_entries(directory)
            except OSError:
                self._gone = False
        self._leave(directory)

    @staticmethod
    def _open(name: bytes, parent: int) -> int:
        try:
            handle = os.open(name, _OPEN, dir_fd=parent)
        except PermissionError:
            # It is a directory: for a symlink, O_DIRECTORY and O_NOFOLLOW say something else.
            os.chmod(name, 0o700, dir_fd=parent)
            handle = os.open(name, _OPEN, dir_fd=parent)
        return handle

    def _remove_entries(self, directory: _Directory) -> None:
        handle = directory.handle
        writable = False
        unlink = os.unlink
        for name in map(os.fsencode, os.listdir(handle)):
            if directory.parent is None and name.startswith(self._keep):
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
                    if not writable:
                        writable = True
                        os.fchmod(handle, 0o700)
                    unlink(name, dir_fd=handle)
            except FileNotFoundError:
                pass
            except (IsADirectoryError, PermissionError):
                self._found(directory, name)
            except OSError:
                self._gone = False

    def _found(self, directory: _Directory, name: bytes) -> None:
        if directory.depth >= _DEPTH:
            with self._changed:
                self._moved += 1
                moved = b".poncho_package_run_moved_%d" % self._moved
            try:
                os.rename(name, moved, src_dir_fd=directory.handle, dst_dir_fd=self._root.handle)
            except OSError:
                self._gone = False
                return
            directory, name = self._root, moved
        with self._changed:
            directory.children += 1
            self._stack.append(_Directory(directory, name, directory.depth + 1))
            self._changed.notify()

    def _leave(self, directory: _Directory) -> None:
        """One child less; with the last, the directory goes, and is one less to its parent."""
        while True:
            with self._changed:
                directory.children -= 1
                if directory.children:
                    return
            parent = directory.parent
            if parent is None:
                return
            if directory.handle >= 0:
                try:
                    os.close(directory.handle)
                    os.rmdir(directory.name, dir_fd=parent.handle)
                except FileNotFoundError:
                    pass
                except OSError:
                    self._gone = False
            directory = parent

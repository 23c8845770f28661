"""A lock where the file system refuses locks: a file that its holder touches.

It lies beside the directory, is made with O_EXCL, touched every two seconds, and replaced by
whoever finds it untouched for ten.  Two may then hold it: that costs an unpacking, nothing else.
"""

import os
import stat
import threading
import time
import zlib

from .. import OURS
from ..machine import process, threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Tuple

_BEAT = 2.0  # seconds
_SILENCE = 10.0  # seconds

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Lease:
    """The lease on a directory.

    Args:
        directory: absolute and real.
    """

    def __init__(self, directory: bytes) -> None:
        parent, name = os.path.split(directory)
        if len(name) > 150:  # 255 is the most that a name may have
            name = name[:140] + b"%08x" % zlib.crc32(name)
        self._path = parent + b"/" + OURS + b"lease-" + name
        self._handle = -1
        self._ended = threading.Event()
        self._seen = (0, 0)
        self._since = 0.0

    def attempt(self) -> bool:
        """Try once, without waiting; True also where no such file can be made."""
        if self._handle >= 0:
            return True
        try:
            try:
                self._handle = os.open(self._path, _CREATE, 0o600)
            except FileExistsError:
                if not self._is_silent():
                    return False
                if self._look() != self._seen:
                    return False  # another has replaced it meanwhile
                os.unlink(self._path)
                self._handle = os.open(self._path, _CREATE, 0o600)
            import json

            os.write(self._handle, json.dumps(process.describe(), sort_keys=True).encode("ascii"))
        except (FileExistsError, FileNotFoundError):
            return False  # another was faster
        except OSError:
            return True  # as if there were no lock: then the rename decides alone
        threads.start(self._beat)
        return True

    def release(self) -> None:
        """Give it back, unless another has replaced it."""
        if self._handle < 0:
            return
        self._ended.set()
        try:
            if os.path.samestat(os.fstat(self._handle), os.lstat(self._path)):
                os.unlink(self._path)
        except OSError:
            pass  # removed, or replaced and removed
        os.close(self._handle)
        self._handle = -1

    def holder(self) -> str:
        theirs = self._owner()
        return "pid {pid} on host {host}".format(**theirs) if theirs else "another process"

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            try:
                os.utime(self._handle)
            except OSError:
                return  # nobody can see any more that it is held

    def _is_silent(self) -> bool:
        """Whether its holder is dead, or has not touched it for ten seconds."""
        seen = self._look()
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        theirs = self._owner()
        if theirs is not None and process.is_dead(theirs):
            return True
        # By our clock as well, which may be wrong: else who waits for five seconds never sees ten.
        silence = max(time.monotonic() - self._since, time.time() - seen[1] / 1e9)
        return silence >= _SILENCE

    def _look(self) -> "Tuple[int, int]":
        status = os.lstat(self._path)
        return status.st_ino, status.st_mtime_ns

    def _owner(self) -> "Optional[process.Process]":
        try:
            handle = os.open(self._path, _SAFELY)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return process.parse(os.read(handle, 4096))
        finally:
            os.close(handle)

"""One directory as two machines see it: FUSE mounts of it, whose locks end at the mount.

A file system that leaves locks to the kernel has them for each mount by itself: a lock that is
taken through one mount excludes nobody who comes through the other, as between two nodes of a
cluster.  What is made and renamed is seen through both.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

if __name__ != "__main__":
    from .commands import missing, need
    from .process import wait_for

# Debian's package is for Debian's interpreter.
_PYTHON = "/usr/bin/python3"
_IMPORT = "import importlib.util as u, sys; sys.exit(not any(map(u.find_spec, ('fusepy', 'fuse'))))"


@contextlib.contextmanager
def mounted(directory: Path, *mounts: Path) -> Iterator[None]:
    """Mount ``directory`` at each of ``mounts``; skips the test where FUSE cannot be used."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        missing("needs FUSE: run it as root, where there is a /dev/fuse")
    if subprocess.run([_PYTHON, "-c", _IMPORT]).returncode:
        missing("needs FUSE for Python: apt-get install python3-fusepy")
    fusermount = need("fusermount3" if shutil.which("fusermount3") else "fusermount")
    servers = []
    try:
        for mount in mounts:
            mount.mkdir(exist_ok=True)
            command = [_PYTHON, __file__, directory, mount]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            servers.append((mount, server))
        for mount, server in servers:
            wait_for(lambda mount=mount, server=server: os.path.ismount(mount) or server.poll())
            if server.poll() is not None:
                assert server.stderr
                missing(f"needs FUSE, which fails: {os.fsdecode(server.stderr.read())}")
        yield
    finally:
        for mount, server in servers:
            subprocess.run([fusermount, "-u", "-z", mount], stderr=subprocess.DEVNULL)
            server.communicate(timeout=20)


def _serve(directory: str, mount: str) -> None:
    """Pass everything through to ``directory`` until it is unmounted or standard input ends."""
    try:
        import fusepy as fuse
    except ImportError:
        import fuse

    def real(path: str) -> str:
        return directory + path

    def calling(call):  # type: ignore[no-untyped-def]
        """``call`` of the path below ``directory``, with what else FUSE hands over."""
        return lambda self, path, *rest: call(real(path), *rest)

    class PassThrough(fuse.Operations):  # type: ignore[misc]
        chmod = calling(os.chmod)
        chown = calling(lambda path, *ids: os.chown(path, *ids, follow_symlinks=False))
        mkdir = calling(os.mkdir)
        mknod = calling(os.mknod)
        open = calling(os.open)
        readdir = calling(lambda path, _: [".", "..", *os.listdir(path)])
        readlink = calling(os.readlink)
        rmdir = calling(os.rmdir)
        unlink = calling(os.unlink)

        def __call__(self, operation: str, *arguments):  # type: ignore[no-untyped-def]
            if not hasattr(self, operation):
                raise fuse.FuseOSError(errno.EFAULT)
            try:
                return getattr(self, operation)(*arguments)
            except OSError as error:
                raise fuse.FuseOSError(error.errno)

        def access(self, path: str, mode: int) -> None:
            if not os.access(real(path), mode):
                raise fuse.FuseOSError(errno.EACCES)

        def getattr(self, path: str, fh=None):  # type: ignore[no-untyped-def]
            status = os.lstat(real(path)) if fh is None else os.fstat(fh)
            names = ["gid", "ino", "mode", "nlink", "size", "uid", "blocks", "rdev"]
            found = {"st_" + name: getattr(status, "st_" + name) for name in names}
            for name in ("atime", "ctime", "mtime"):
                found["st_" + name] = getattr(status, f"st_{name}_ns")
            return found

        def create(self, path: str, mode: int, info=None) -> int:  # type: ignore[no-untyped-def]
            return os.open(real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh=None) -> None:  # type: ignore[no-untyped-def]
            os.truncate(real(path) if fh is None else fh, length)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            os.fsync(fh)

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

        # FUSE hands over the new name first.
        def rename(self, old: str, new: str) -> None:
            os.rename(real(old), real(new))

        def link(self, new: str, old: str) -> None:
            os.link(real(old), real(new), follow_symlinks=False)

        def symlink(self, new: str, target: str) -> None:
            os.symlink(target, real(new))

        def utimens(self, path: str, times=None) -> None:  # type: ignore[no-untyped-def]
            os.utime(real(path), ns=times, follow_symlinks=False)

        def statfs(self, path: str) -> dict:
            status = os.statvfs(real(path))
            names = ["blocks", "bfree", "bavail", "bsize", "frsize", "files", "ffree", "favail"]
            names += ["flag", "namemax"]
            return {"f_" + name: getattr(status, "f_" + name) for name in names}

        use_ns = True

    def unmount_at_the_end() -> None:
        sys.stdin.read()
        subprocess.run(["fusermount", "-u", "-z", mount], stderr=subprocess.DEVNULL)

    threading.Thread(target=unmount_at_the_end, daemon=True).start()
    options = {"use_ino": True, "hard_remove": True, "default_permissions": True}
    os.umask(0)
    fuse.FUSE(PassThrough(), mount, foreground=True, nothreads=False, **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])

"""Command lines that run the tool under strace(1): for its log, or to make system calls fail."""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Optional, Union

from .commands import need

Name = Union[str, Path]


def strace(*options: Name, log: Name = os.devnull, follow: bool = True) -> list[Name]:
    """The start of a command line; skips the test where strace is missing.

    Args:
        log: where strace writes what it saw.
        follow: trace all threads and children too.
    """
    return [need("strace"), "--quiet=all", *(["-f"] if follow else []), "-o", log, *options]


def failing(
    calls: str,
    error: str,
    when: str = "",
    paths: Iterable[Name] = (),
    log: Name = os.devnull,
    follow: bool = True,
) -> list[Name]:
    """Run the tool with ``calls`` (as in "read,pread64") failing with ``error`` (as in "EIO").

    Args:
        when: which occurrences, in strace's words: "3" the third, "3+" from it on.
        paths: only calls on these files.
    """
    only = [word for path in paths for word in ("-P", path)]
    injection = f"inject={calls}:error={error}" + (f":when={when}" if when else "")
    return strace(*only, "-e", injection, log=log, follow=follow)


def without_libzstd(follow: bool = True) -> list[Name]:
    """Run the tool where the system's libzstd cannot be opened.

    Args:
        follow: False lets a zstd program that the tool starts open it.
    """
    listing = subprocess.run(
        ["sh", "-c", "PATH=$PATH:/sbin:/usr/sbin ldconfig -p"], capture_output=True, text=True
    ).stdout
    found = [line.split("=> ")[1].strip() for line in listing.splitlines() if "libzstd" in line]
    # The loader opens the name in its cache, then the same name in its own folders.
    folders = {os.path.dirname(os.path.realpath(path)) for path in found}
    paths = {*found, *(f"{folder}/{os.path.basename(p)}" for folder in folders for p in found)}
    return failing("openat", "ENOENT", paths=sorted(paths), follow=follow) if paths else []


# Where each call that changes a file system has its path: (dirfd or None, path), by position.
_CHANGES = {
    "chmod": [(None, 0)],
    "chown": [(None, 0)],
    "creat": [(None, 0)],
    "fchmod": [(0, None)],
    "fchmodat": [(0, 1)],
    "fchmodat2": [(0, 1)],
    "fchown": [(0, None)],
    "fchownat": [(0, 1)],
    "fsetxattr": [(0, None)],
    "ftruncate": [(0, None)],
    "futimesat": [(0, 1)],
    "lchown": [(None, 0)],
    "link": [(None, 1)],
    "linkat": [(2, 3)],
    "lsetxattr": [(None, 0)],
    "mkdir": [(None, 0)],
    "mkdirat": [(0, 1)],
    "mknod": [(None, 0)],
    "mknodat": [(0, 1)],
    "open": [(None, 0)],
    "openat": [(0, 1)],
    "openat2": [(0, 1)],
    "rename": [(None, 0), (None, 1)],
    "renameat": [(0, 1), (2, 3)],
    "renameat2": [(0, 1), (2, 3)],
    "rmdir": [(None, 0)],
    "setxattr": [(None, 0)],
    "symlink": [(None, 1)],
    "symlinkat": [(1, 2)],
    "truncate": [(None, 0)],
    "unlink": [(None, 0)],
    "unlinkat": [(0, 1)],
    "utime": [(None, 0)],
    "utimensat": [(0, 1)],
    "utimes": [(None, 0)],
}
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range")
_OPEN = ("open", "openat", "openat2")
_LINE = re.compile(r"^\d+ +(\w+)\((.*?)(?:\) += .*| <unfinished \.\.\.>)$")
_ARGUMENT = re.compile(r'\s*("(?:[^"\\]|\\.)*"(?:\.\.\.)?|\{[^}]*\}|\[[^\]]*\]|[^,]+),?')


class Call(NamedTuple):
    """One system call of a log: its name and its arguments as strace shows them."""

    name: str
    arguments: list[str]


def recording(log: Name) -> list[Name]:
    """Run the tool under strace so that ``calls`` and ``changed`` can read ``log``."""
    names = [*_CHANGES, *_WRITES, "execve", "flock", "fcntl", "fork", "vfork", "clone", "clone3"]
    # "?": a name that this machine's kernel does not have is no error.
    return strace("-y", "-s", "4096", "-e", "trace=" + ",".join(f"?{n}" for n in names), log=log)


def calls(log: Path, until_execve_of: Optional[str] = None) -> list[Call]:
    """The calls in a log of ``recording``, in order.

    Args:
        until_execve_of: leave out what comes after the first successful execve of a
            path that ends like this, which is then the last call.
    """
    found = []
    for line in log.read_text(errors="surrogateescape").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        found.append(Call(match[1], _ARGUMENT.findall(match[2])))
        if until_execve_of is not None and match[1] == "execve" and line.endswith(" = 0"):
            path = found[-1].arguments[0].strip('"')
            if path.endswith(until_execve_of):
                break
    return found


def _path(call: Call, directory: Optional[int], name: Optional[int]) -> str:
    def annotated(argument: str) -> str:
        """The path that strace -y shows behind a descriptor: 5</path>."""
        return argument.partition("<")[2].rpartition(">")[0]

    arguments = call.arguments
    if name is None or not arguments[name].startswith('"'):
        # The descriptor itself, or NULL for a name, which means the same.
        return annotated(arguments[directory or 0])
    # Names with odd bytes are shown with octal escapes; for telling places apart that will do.
    path = arguments[name].strip('"')
    return os.path.join("" if directory is None else annotated(arguments[directory]), path)


def changed(found: Iterable[Call]) -> set[str]:
    """Every path that the calls created, removed, opened for writing or wrote to, tried to too."""
    result = set()
    for call in found:
        if call.name in _WRITES:
            # sendfile's target comes first, copy_file_range's third.
            result.add(_path(call, 2 if call.name == "copy_file_range" else 0, None))
        if call.name in _OPEN and not re.search(
            r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_TMPFILE", " ".join(call.arguments[1:])
        ):
            continue
        for directory, name in _CHANGES.get(call.name, []):
            result.add(_path(call, directory, name))
    return result

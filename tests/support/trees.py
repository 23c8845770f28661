"""Directory trees as values that can be compared."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple, Optional, Union

MARKERS = (b".poncho_package_run",)
"""How the names of the tool's own files in an unpacked tree begin."""


class Entry(NamedTuple):
    """One path of a tree.

    ``type`` is file, directory, symlink or other; ``mode`` the permission bits with
    setuid, setgid and sticky; ``target`` what a symlink holds; ``nlink_group`` the
    sorted paths in this tree that are the same file, empty for a file of one name.
    """

    type: str
    mode: int
    size: int
    sha256: str
    mtime_ns: int
    target: bytes
    nlink_group: tuple[bytes, ...]


def _paths(root: bytes, below: bytes = b"") -> Iterable[bytes]:
    for name in sorted(os.listdir(os.path.join(root, below))):
        path = os.path.join(below, name)
        yield path
        if stat.S_ISDIR(os.lstat(os.path.join(root, path)).st_mode):
            yield from _paths(root, path)


def snapshot(
    path: Union[str, bytes, "os.PathLike[str]"],
    follow: bool = False,
    ignore: Iterable[bytes] = MARKERS,
) -> dict[bytes, Entry]:
    """Everything below ``path``, by relative path.

    Args:
        follow: describe what a symlink leads to instead of the symlink itself (a
            directory behind a symlink is described, not entered).
        ignore: names directly in ``path`` that begin like this are left out.
    """
    root = os.fsencode(path)
    ignored = tuple(ignore)
    found = {}
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for relative in _paths(root):
        if ignored and relative.startswith(ignored):
            continue
        full = os.path.join(root, relative)
        status = os.stat(full) if follow and os.path.exists(full) else os.lstat(full)
        found[relative] = status
        if stat.S_ISREG(status.st_mode):
            groups[status.st_dev, status.st_ino].append(relative)
    result = {}
    for relative, status in found.items():
        full = os.path.join(root, relative)
        kind, digest, target = "other", "", b""
        names: list[bytes] = []
        if stat.S_ISREG(status.st_mode):
            kind = "file"
            with open(full, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            names = groups[status.st_dev, status.st_ino]
        elif stat.S_ISDIR(status.st_mode):
            kind = "directory"
        elif stat.S_ISLNK(status.st_mode):
            kind, target = "symlink", os.readlink(full)
        result[relative] = Entry(
            type=kind,
            mode=stat.S_IMODE(status.st_mode),
            size=status.st_size if kind == "file" else 0,
            sha256=digest,
            mtime_ns=status.st_mtime_ns,
            target=target,
            nlink_group=tuple(names) if len(names) > 1 else (),
        )
    return result


def differences(
    expected: dict[bytes, Entry],
    found: dict[bytes, Entry],
    fields: Optional[Iterable[str]] = None,
    mtime_of: Iterable[str] = ("file", "symlink"),
) -> list[str]:
    """What differs, one line each; ``assert not differences(...)`` shows them all.

    Args:
        fields: the fields of Entry to compare, all of them by default.
        mtime_of: the types whose mtime counts. A directory's changes whenever something
            is made in it, and an archive need not say what it was.
    """
    names = tuple(fields or Entry._fields)
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path!r} is missing")
        elif path not in expected:
            lines.append(f"{path!r} is not expected")
        else:
            for name in names:
                if name == "mtime_ns" and expected[path].type not in mtime_of:
                    continue
                old, new = getattr(expected[path], name), getattr(found[path], name)
                if old != new:
                    lines.append(f"{path!r}: {name} is {new!r}, not {old!r}")
    return lines

"""The tree that the field's own tools make of an archive, to compare ours with."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import trees
from .commands import need


class Reference(NamedTuple):
    """A tree as bsdtar and conda-unpack leave it.

    ``patched`` holds the paths whose content conda-unpack changed: their times are new.
    """

    tree: dict[bytes, trees.Entry]
    patched: frozenset[bytes]


def extract(archive: Path, place: Path) -> None:
    """Extract with bsdtar (unsquashfs for squashfs), as an ordinary user does: umask, no owner."""
    place.mkdir(parents=True)
    with open(archive, "rb") as file:
        squashed = file.read(4) == b"hsqs"
    if squashed:
        command = [need("unsquashfs"), "-q", "-n", "-no-xattrs", "-f", "-d", place, archive]
    else:
        command = [need("bsdtar"), "-x", "--no-same-owner", "--no-same-permissions"]
        command += ["-f", archive, "-C", place]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def conda_unpack(prefix: Path) -> None:
    """Run the environment's own bin/conda-unpack."""
    # An ordinary user's conda-unpack stops at a read-only file; ours is not to.
    read_only = {}
    for path in prefix.rglob("*"):
        mode = path.lstat().st_mode
        if path.is_file() and not path.is_symlink() and not mode & 0o200:
            read_only[path] = mode
            path.chmod(mode | 0o200)
    subprocess.run(
        [sys.executable, prefix / "bin" / "conda-unpack"],
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    for path, mode in read_only.items():
        path.chmod(mode)


def reference(prefix: Path) -> Reference:
    """What conda-unpack makes of the extracted tree ``prefix``, which it changes."""
    before = trees.snapshot(prefix)
    conda_unpack(prefix)
    after = trees.snapshot(prefix)
    patched = {path for path, entry in after.items() if entry.sha256 != before[path].sha256}
    return Reference(after, frozenset(patched))


def differences(expected: Reference, found: dict[bytes, trees.Entry]) -> list[str]:
    """As trees.differences, times of patched files apart: those must only be new."""
    stale = [
        f"{path!r} was patched but has its old time"
        for path in sorted(expected.patched & found.keys())
        if found[path].mtime_ns <= _newest(expected)
    ]
    same_time = {
        path: entry._replace(mtime_ns=expected.tree[path].mtime_ns)
        if path in expected.patched
        else entry
        for path, entry in found.items()
    }
    return trees.differences(expected.tree, same_time) + stale


def _newest(expected: Reference) -> int:
    """The newest time that the archive itself gives a file."""
    times = [
        entry.mtime_ns
        for path, entry in expected.tree.items()
        if entry.type == "file" and path not in expected.patched
    ]
    return max(times)

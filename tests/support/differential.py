"""Whether GNU tar and bsdtar, run as an ordinary user runs them, agree on an archive's tree."""

import os
import resource
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Optional

from . import references
from .trees import Entry, differences, snapshot

UMASK = 0o022
LARGEST = 256 << 20
"""Bytes of a file that the references may make."""

_NOBODY = 65534

GNU_TAR = ("tar", "-x", "--no-same-owner", "-f", "/dev/stdin")
BSDTAR = ("bsdtar", "-x", "--no-same-owner", "-f", "-")


class Reference(NamedTuple):
    """The status of a program, and the tree that it left."""

    status: int
    tree: dict[bytes, Entry]


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory with a path short enough for any placeholder, removed however deep it is."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="pp", dir=base))
    try:
        yield path
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", path], check=True)
        subprocess.run(["rm", "-rf", path], check=True)


def _limit_files() -> None:
    # Some sparse archives of a few bytes claim files of many gigabytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))


def extract(command: tuple[str, ...], archive: Path, into: Path) -> Reference:
    """Let a program unpack ``archive`` to the new directory ``into``, as an ordinary user."""
    into.mkdir()
    options: dict[str, int] = {}
    if os.geteuid() == 0:
        os.chown(into, _NOBODY, _NOBODY)
        options = {"user": _NOBODY, "group": _NOBODY}
    with open(archive, "rb") as stream:
        if os.geteuid() == 0:
            # Opened by root, and opened again by name as nobody.
            os.fchmod(stream.fileno(), 0o644)
        result = subprocess.run(
            command,
            stdin=stream,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=into,
            umask=UMASK,
            preexec_fn=_limit_files,
            timeout=120,
            check=False,
            **options,  # type: ignore[arg-type]
        )
    return Reference(result.returncode, look(into))


def look(path: Path) -> dict[bytes, Entry]:
    """The tree; an ordinary user first gets access to all of it, which shows in the modes."""
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "u+rwX", path], check=True)
    return snapshot(path)


def compare(
    expected: dict[bytes, Entry],
    found: dict[bytes, Entry],
    since_ns: int,
    but_mtime_of: Iterable[bytes] = (),
) -> list[str]:
    """What differs, mtimes of directories included where the archive gave them.

    Args:
        since_ns: when the references began; a directory that no member names is younger.
        but_mtime_of: files whose mtime does not count.
    """
    for path in but_mtime_of:
        if path in found:
            found = {**found, path: found[path]._replace(mtime_ns=expected[path].mtime_ns)}
    lines = differences(expected, found)
    for path, entry in expected.items():
        other = found.get(path)
        if entry.type != "directory" or other is None or entry.mtime_ns >= since_ns:
            continue
        if other.mtime_ns != entry.mtime_ns:
            lines.append(f"{path!r}: mtime_ns is {other.mtime_ns}, not {entry.mtime_ns}")
    return lines


def agreed(archive: Path, into: Path, since_ns: int) -> Optional[dict[bytes, Entry]]:
    """The tree that GNU tar and bsdtar both make without complaint; None if there is none.

    For zip, which GNU tar does not read, that of bsdtar.  It stays in ``into``.
    """
    bsd = extract(BSDTAR, archive, into)
    if bsd.status or zipfile.is_zipfile(archive):
        return None if bsd.status else bsd.tree
    subprocess.run(["rm", "-rf", into], check=True)
    gnu = extract(GNU_TAR, archive, into)
    return None if gnu.status or compare(gnu.tree, bsd.tree, since_ns) else gnu.tree


def relocate(root: Path) -> set[bytes]:
    """Run the environment's own ``bin/conda-unpack``, in ``root`` or one level below.

    Returns:
        The paths, relative to ``root``, of the files that it changed.
    """
    before = look(root)
    for script in [*root.glob("bin/conda-unpack"), *root.glob("*/bin/conda-unpack")]:
        references.conda_unpack(script.parent.parent)
    after = look(root)
    return {path for path in before if before[path].sha256 != after[path].sha256}

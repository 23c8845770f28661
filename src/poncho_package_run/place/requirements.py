"""What an environment's packages ask of the machine, by conda's metadata."""

import os
import re

from ..machine.architecture import glibc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Tuple

    Version = Tuple[int, ...]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# A package's "depends" comes before its list of files: conda sorts by key.
_LOOKED_AT = 1 << 14

# https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-virtual.html
_NEEDED = re.compile(rb'"__glibc\s*>=\s*([0-9]+(?:\.[0-9]+)*)')


def glibc_wanted(directory: int) -> "Optional[str]":
    """A warning, if packages ask for a later GNU C library than this machine has.

    Args:
        directory: descriptor of the environment's directory.

    Raises:
        OSError: the metadata cannot be read.
    """
    here = glibc()
    had = _version(here.encode("ascii", "replace")) if here is not None else ()
    wanted: Version = had
    packages = []
    try:
        folder = os.open(b"conda-meta", _OPEN | os.O_DIRECTORY, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        for name in sorted(os.listdir(folder)):
            needed = _needed(folder, name) if name.endswith(".json") else ()
            if needed > had:
                wanted = max(wanted, needed)
                packages.append(name.rsplit("-", 2)[0])
    finally:
        os.close(folder)
    if not packages:
        return None
    more = " and {} more".format(len(packages) - 3) if len(packages) > 3 else ""
    return (
        "this machine has {}, and {}{} ask for glibc {}: programs may not start; pack with "
        "CONDA_OVERRIDE_GLIBC set to the oldest machine's".format(
            "glibc " + here if here is not None else "no glibc",
            ", ".join(packages[:3]),
            more,
            ".".join(map(str, wanted)),
        )
    )


def _needed(folder: int, name: str) -> "Version":
    try:
        handle = os.open(name, _OPEN, dir_fd=folder)
    except OSError:
        return ()  # a link, or gone: it says nothing
    try:
        found = _NEEDED.search(os.pread(handle, _LOOKED_AT, 0))
    except OSError:
        return ()  # no file
    finally:
        os.close(handle)
    return _version(found.group(1)) if found is not None else ()


def _version(text: bytes) -> "Version":
    return tuple(int(each[:9]) for each in text.split(b".") if each.isdigit())

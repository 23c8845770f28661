"""What tells that an environment was made for another place than where it lies."""

import os
import stat

from ..machine.signals import check
from ..tree.directories import Directories
from .edits import Contents, edits_of, holds, strings
from .records import records
from .relocate import open_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generator, Iterable, Optional, Tuple

    from .unrecorded import Record

    Opened = Generator[Tuple[Contents, Record], None, None]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What names these means the system's interpreter, of whatever name.
_SYSTEM = (b"", b"/usr", b"/usr/local")

# Scripts that are looked at, and bytes of each: Linux takes 255 of a first line.
_SCRIPTS, _LINE = 256, 256


def placeholder_left(directory: int, prefix: bytes, limit: int) -> "Optional[bytes]":
    """A recorded placeholder that a file still holds; None if none of the first records' does.

    Args:
        directory: descriptor of the environment's prefix directory.
        prefix: its path.
        limit: how many records to look at.

    Raises:
        ArchiveError: a record is malformed, or names something outside the environment.
        OSError: what the system said.
    """
    look_at = (each for number, each in enumerate(records(directory)) if number < limit)
    contents = _contents(directory, look_at)
    try:
        for content, (_, placeholder, binary, room) in contents:
            if holds(content, edits_of(placeholder, binary, room, prefix, None), prefix):
                return placeholder
    finally:
        contents.close()
    return None


def left_behind(directory: int, prefix: bytes) -> int:
    """The number of strings that name where the environment was packed, and have no padding.

    Of the files that have no record of conda-pack's (see ``unrecorded``): what looks like such a
    string and is not padded as conda pads it was not made by conda, and is left as it is.

    Args:
        directory: descriptor of the environment's prefix directory.
        prefix: what it was relocated to.

    Raises:
        As ``placeholder_left``.
    """
    padded = (each for each in records(directory) if each[3] > len(each[1]))
    return sum(
        strings(content, packed, prefix)
        for content, (_, packed, _, _) in _contents(directory, padded)
    )


def _contents(directory: int, chosen: "Iterable[Record]") -> "Opened":
    """The files of records, each open until the next is asked for."""
    directories = Directories(directory)
    try:
        for record in chosen:
            opened = open_record(record[0], directories, os.O_RDONLY)
            if opened is not None:
                try:
                    yield Contents(opened[0], check), record
                finally:
                    os.close(opened[0])
    finally:
        directories.close()


def packed_for(directory: int) -> "Optional[bytes]":
    """The prefix for which ``conda-pack --dest-prefix`` has packed an environment.

    It rewrites files while it packs, and writes no ``bin/conda-unpack``.  So the first lines of the
    environment's scripts name an interpreter of its own, at the path where it should lie.

    Args:
        directory: descriptor of its prefix directory.

    Returns:
        None if no script says so, or if there are prefix records.
    """
    try:
        folder = os.open(b"bin", _OPEN | os.O_DIRECTORY, dir_fd=directory)
    except OSError:
        return None
    try:
        names = set(map(os.fsencode, os.listdir(folder)))
        if b"conda-unpack" in names:
            return None
        for name in sorted(names)[:_SCRIPTS]:
            line = _first_line(folder, name)
            interpreter = line[2:].split(None, 1)[0] if line[2:].strip() else b""
            prefix, middle, base = interpreter.rpartition(b"/bin/")
            if line[:2] == b"#!" and middle and base in names and prefix not in _SYSTEM:
                return prefix
    finally:
        os.close(folder)
    return None


def _first_line(folder: int, name: bytes) -> bytes:
    try:
        handle = os.open(name, _OPEN, dir_fd=folder)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return b""
        return os.read(handle, _LINE).partition(b"\n")[0]
    finally:
        os.close(handle)

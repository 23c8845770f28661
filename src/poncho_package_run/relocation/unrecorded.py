"""Files that hold the prefix and have no record, by conda's own metadata.

Where the package cache was gone (``conda clean -a``), conda-pack packs files as they are installed,
with the path where it packed in them, and has records of what looks like text only.  But
``conda-meta/*.json`` has of each file how conda installed it, in ``paths_data.paths``: "_path",
"file_mode" ("text" or "binary"), and "prefix_placeholder", as long as which a string of a binary
file was when it was built, and with its padding still is.
"""

import errno
import os
import stat

from ..machine.signals import check
from ..telling.errors import ArchiveError
from ..tree.directories import Directories, components
from ..tree.names import is_ours
from .edits import PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, Optional, Set, Tuple

    # Path, what is replaced, whether in strings, and the bytes that each has room for in one.
    Record = Tuple[bytes, bytes, bool, int]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What open(2) says where there is none: nothing, a symlink, a socket.  Other errors say that nobody
# can tell, and an environment that is taken for relocated once is never relocated any more.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO)

_KEY = b'"prefix_placeholder"'
_MODES = (b"text", b"binary")

# Bytes of an entry, before and behind this key.
_ENTRY = 8192

# The largest seen has 7 MB.
_FILE_LIMIT = 12 << 20

# Bytes of all files: of an environment with hundreds of thousands of files.
_TOTAL = 128 << 20

# Bytes of what is kept of all of them, and of the objects that hold an entry of it.
_LIMIT = 8 << 20
_OBJECTS = 200


class Unrecorded:
    """What the metadata say; as records pass by, what is left of that.

    Args:
        directory: descriptor of the environment's directory.

    Raises:
        OSError: the metadata cannot be read.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._left: Dict[bytes, Tuple[bool, int]] = {}
        self._built: Set[bytes] = set()
        self._packed: Set[bytes] = set()
        size = total = 0
        for data in _metadata(directory):
            total += len(data)
            if total > _TOTAL:
                return
            for path, placeholder, binary in _entries(data):
                if placeholder not in self._built:
                    self._built.add(placeholder)
                    size += len(placeholder)
                size += _OBJECTS + len(path)
                if size > _LIMIT:
                    return  # ten times what the largest seen have
                self._left[path] = binary, len(placeholder) if binary else PATH

    def passes(self, path: bytes, placeholder: bytes, binary: bool) -> None:
        """A record of conda-pack's: its path has one, and a text may tell where it packed."""
        self._left.pop(path, None)
        if not binary and placeholder not in self._built and len(self._packed) < 2:
            self._packed.add(placeholder)

    def records(self) -> "Iterator[Record]":
        """Those that are missing; none if nothing tells where the environment was packed.

        Raises OSError: a file cannot be looked at.
        """
        if len(self._packed) != 1:
            return  # conda-pack packs one environment at a time: something else wrote these
        (packed,) = self._packed
        directories = Directories(self._directory)
        try:
            for path, (binary, room) in self._left.items():
                fits = not binary or len(packed) <= room
                plain = _file(directories, path) if fits else b""
                if plain:
                    yield plain, packed, binary, room
        finally:
            directories.close()


def _metadata(directory: int) -> "Iterator[bytes]":
    try:
        folder = os.open(b"conda-meta", _OPEN | os.O_DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in ABSENT:
            return
        raise
    try:
        for name in os.listdir(folder):
            if name.endswith(".json"):
                data = _read(folder, name)
                if data is not None:
                    yield data
    finally:
        os.close(folder)


def _read(folder: int, name: str) -> "Optional[bytes]":
    try:
        handle = os.open(name, _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _FILE_LIMIT:
            return None
        return file.read(_FILE_LIMIT)


def _entries(data: bytes) -> "Iterator[Tuple[bytes, bytes, bool]]":
    """(path, placeholder, is it binary) of each entry with a placeholder, unchecked.

    They are found by this key, and looked at one by one: as objects of Python a whole file takes
    ten times its size, and most of it is of no interest.
    """
    at = data.find(_KEY)
    while at >= 0:
        check()
        begin, end = data.rfind(b"{", max(0, at - _ENTRY), at), data.find(b"}", at, at + _ENTRY) + 1
        # As conda and mamba write them: five times quicker than a parse (thousands of entries).
        words = data[begin:end].split(b'"') if begin >= 0 else []
        try:
            mode = words[words.index(b"file_mode") + 2]
            path = words[words.index(b"_path") + 2]
            placeholder = words[words.index(b"prefix_placeholder") + 2]
            plain = b"\\" not in path + placeholder and len(words) % 2
        except (ValueError, IndexError):
            plain = 0
        if plain and mode in _MODES:
            yield path, placeholder, mode == b"binary"
        else:
            entry, end = _parsed(data, at, end)
            if entry is not None:
                yield entry
        # No object is looked at twice, however many such keys it has.
        at = data.find(_KEY, max(at + 1, end))


def _parsed(data: bytes, at: int, end: int) -> "Tuple[Optional[Tuple[bytes, bytes, bool]], int]":
    """The same of one entry, in which there may be anything; and how far that was looked at."""
    import json

    begin = at
    for _ in range(3):  # a name may have braces of its own
        begin = data.rfind(b"{", max(0, at - _ENTRY), begin)
        stop = at
        for _ in range(3):
            stop = data.find(b"}", stop, at + _ENTRY) + 1
            if begin < 0 or not stop:
                break
            try:
                entry = json.loads(data[begin:stop].decode("utf-8"))
                path, placeholder, mode = [
                    entry[key].encode("utf-8")
                    for key in ("_path", "prefix_placeholder", "file_mode")
                ]
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
            found = path, placeholder, mode == b"binary"
            return found if mode in _MODES else None, stop
    return None, end


def _file(directories: Directories, path: bytes) -> bytes:
    """The path as records spell it, of one file only one; b"" unless there is such a file.

    It has to be reached without a symlink (metadata are no promise).
    """
    try:
        parts = components(path)
        if b"\0" in path or not parts or is_ours(b"/".join(parts)):
            return b""
        parent = directories.of(b"/".join(parts[:-1]))
        status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    except ArchiveError:
        return b""
    except OSError as error:
        if error.errno in ABSENT or error.errno == errno.ENAMETOOLONG:
            return b""
        raise
    return b"/".join(parts) if stat.S_ISREG(status.st_mode) else b""

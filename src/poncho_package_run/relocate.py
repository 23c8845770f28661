"""Prefix records to rewritten files: what conda-unpack does, checked first and all or nothing."""

import errno
import os
import stat

from .directories import Directories, printable
from .edits import edit, is_large, occurrences, replaced, write
from .errors import ArchiveError, RelocationError
from .failures import failure
from .records import SCRIPT, malformed, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Tuple

    from .edits import Edits, Piece

    Rewritten = Callable[[bytes, int, Optional[List[Piece]]], None]
    Change = Tuple[bytes, int, os.stat_result, Edits, Optional[bytes]]

_ANEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def relocate(prefix: bytes, rewritten: "Optional[Rewritten]" = None) -> int:
    """Relocate a fresh environment to the path where it lies; the number of its records.

    Args:
        prefix: its path, absolute.
        rewritten: told of every file that was changed (see ``Manifest.rewritten``).

    Raises:
        ArchiveError, RelocationError: see Relocation; nothing has been written then.
        CannotCreate, InputOutputError: the system refused.
    """
    directory = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        relocation = Relocation(directory, prefix)
        try:
            relocation.check()
            relocation.apply(rewritten)
        except OSError as error:
            name = os.fsencode(error.filename or SCRIPT)
            raise failure(error, os.path.join(prefix, name), directory)
        finally:
            relocation.close()
    finally:
        os.close(directory)
    return relocation.records


class Relocation:
    """The prefix records of one environment, and the prefix that is to replace the recorded ones.

    Args:
        directory: descriptor of the environment's directory.
        prefix: its final path, as the files are to name it.

    Attributes:
        records (int): how many there are.

    Raises:
        ArchiveError: a record is malformed, or names something outside the environment.
    """

    def __init__(self, directory: int, prefix: bytes) -> None:
        self._directories = Directories(directory)
        self._prefix = prefix
        self._files: Dict[bytes, Edits] = {}
        self.records = 0
        for path, placeholder, binary in records(directory):
            self.records += 1
            edits = self._files.setdefault(path, [])
            # Two packages that own one path have a record each; one replacement is all it takes.
            if placeholder != prefix and (placeholder, binary) not in edits:
                edits.append((placeholder, binary))

    def check(self) -> None:
        """Make sure that every placeholder in a binary file is long enough.

        Raises:
            RelocationError: one is shorter than the prefix.
        """
        for path, edits in self._files.items():
            for placeholder, binary in edits:
                if binary and len(placeholder) < len(self._prefix):
                    handle = self._open(path)
                    if handle is None:
                        continue
                    try:
                        found = next(occurrences(handle, placeholder), None) is not None
                    finally:
                        os.close(handle)
                    if found:
                        raise RelocationError(
                            "cannot relocate to {}: the path has {} bytes, and {} has room for {}; "
                            "choose a shorter directory".format(
                                os.fsdecode(self._prefix),
                                len(self._prefix),
                                printable(path),
                                len(placeholder),
                            )
                        )

    def apply(self, rewritten: "Optional[Rewritten]" = None) -> int:
        """Rewrite the files in place; for a tree that no one else can see or use yet.

        In place, so that hard links stay links.  Returns how many changed.

        Raises:
            OSError: what the system said; its filename is the path.
        """
        count = 0
        for path, handle, status, edits, new in self._changes():
            pieces: Optional[List[Piece]]
            try:
                with self._writable(path, handle, status) as output:
                    if new is None:
                        pieces = edit(handle, output, edits, self._prefix)
                    else:
                        pieces = [(0, new)]
                        if write(output, 0, new) < status.st_size:
                            os.ftruncate(output, len(new))
            except OSError as error:
                error.filename = path
                raise
            if rewritten is not None:
                rewritten(self._prefix + b"/" + path, handle, pieces)
            count += 1
        return count

    def stage(self, name_of: "Callable[[int], bytes]") -> "List[bytes]":
        """Write the changed files anew, outside the tree, which stays as it is.

        Args:
            name_of: gives the path of the new file for the n-th change.

        Returns:
            The path of the n-th changed file, for each.
        """
        changed: List[bytes] = []
        staged: Dict[tuple, bytes] = {}
        for path, handle, status, edits, data in self._changes(in_place=False):
            new = name_of(len(changed))
            changed.append(path)
            # Names of one file stay names of one file, if they are rewritten alike.
            key = (status.st_dev, status.st_ino, tuple(self._files[path]))
            if staged.setdefault(key, new) != new:
                os.link(staged[key], new)
                continue
            output = os.open(new, _ANEW, 0o600)
            try:
                if data is None:
                    _copy(handle, output)
                    edit(output, output, edits, self._prefix)
                else:
                    write(output, 0, data)
                os.fchmod(output, stat.S_IMODE(status.st_mode) & 0o777)
            finally:
                os.close(output)
        return changed

    def close(self) -> None:
        self._directories.close()

    def _changes(self, in_place: bool = True) -> "Iterator[Change]":
        """(path, open file, its status, edits, new content) of each change.

        The content is None for a large file, which is to be edited in place.
        """
        done: Dict[Tuple[int, int], Edits] = {}
        for path, edits in self._files.items():
            handle = self._open(path) if edits else None
            if handle is None:
                continue
            try:
                status = os.fstat(handle)
                if in_place and status.st_nlink > 1:
                    # Another name of a file that was rewritten already: the new prefix may
                    # hold the placeholder, and would be replaced once more.
                    before = done.setdefault((status.st_dev, status.st_ino), [])
                    edits = [edit for edit in edits if edit not in before]
                    before.extend(edits)
                    if not edits:
                        continue
                if is_large(status.st_size, edits, self._prefix):
                    if any(next(occurrences(handle, old), None) is not None for old, _ in edits):
                        yield path, handle, status, edits, None
                    continue
                data = _read(handle, status.st_size)
                new = replaced(data, edits, self._prefix)
                if new is not data and new != data:
                    yield path, handle, status, edits, new
            except OSError as error:
                error.filename = path
                raise
            finally:
                os.close(handle)

    def _open(self, path: bytes) -> "Optional[int]":
        """Open a record's file; None if there is none (conda-pack was told to leave it out).

        Raises:
            ArchiveError: it is reached through a symlink, or is no file.
        """
        parent, _, name = path.rpartition(b"/")
        try:
            directory = self._directories.of(parent)
            handle = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise malformed("the record of " + printable(path))
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise ArchiveError(
                    "the archive is unsafe: a prefix record names {}, which is reached through a "
                    "symlink; pack the environment again".format(printable(path))
                )
            error.filename = path
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise malformed("the record of {}, no file,".format(printable(path)))
        return handle

    def _writable(self, path: bytes, handle: int, status: os.stat_result) -> "_Writable":
        parent, _, name = path.rpartition(b"/")
        return _Writable(handle, status.st_mode, name, self._directories.of(parent))


class _Writable:
    """A second descriptor of an open file, for writing; a read-only file stays read-only."""

    def __init__(self, handle: int, mode: int, name: bytes, directory: int) -> None:
        self._mode = stat.S_IMODE(mode)
        if not mode & stat.S_IWUSR:
            os.fchmod(handle, self._mode | stat.S_IWUSR)
        self._handle = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def __enter__(self) -> int:
        return self._handle

    def __exit__(self, *_: object) -> None:
        if not self._mode & stat.S_IWUSR:
            os.fchmod(self._handle, self._mode)
        os.close(self._handle)


def _read(handle: int, size: int) -> bytes:
    data = os.read(handle, size + 1)
    while len(data) < size:
        more = os.read(handle, size - len(data))
        if not more:
            break
        data += more
    return data


def _copy(handle: int, output: int) -> None:
    offset = 0
    while True:
        data = os.pread(handle, 1 << 20, offset)
        if not data:
            return
        offset = write(output, offset, data)

"""Prefix records to rewritten files: what conda-unpack does, checked first and all or nothing."""

import errno
import fcntl
import os
import stat
from _thread import allocate_lock  # threading takes 4 ms, and most relocations need one thread

from ..telling.errors import ArchiveError, RelocationError
from ..telling.failures import failure
from ..telling.messages import printable
from ..tree.directories import Directories
from .edits import WINDOW, edit, is_large, occurrences, replaced, write
from .records import SCRIPT, malformed, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    from .edits import Edits, Piece

    Rewritten = Callable[[bytes, int, Optional[List[Piece]]], None]
    Change = Tuple[bytes, int, os.stat_result, Edits, Optional[bytes]]

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ANEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


# Files that a thread takes at a time: neighbours, mostly of one directory.
_TOGETHER = 16

# Directories that it keeps open (see directories._LIMIT).
_OPEN_IN_THREAD = 8


def relocate(prefix: bytes, rewritten: "Optional[Rewritten]" = None, threads: int = 1) -> int:
    """Relocate a fresh environment to the path where it lies; the number of its records.

    Args:
        prefix: its path, absolute.
        rewritten: told of every file that was changed (see ``Manifest.rewritten``).
        threads: how many to work with; more than one where each call makes it wait.

    Raises:
        ArchiveError, RelocationError: see Relocation; nothing has been written then.
        CannotCreate, InputOutputError: the system refused.
    """
    directory = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        relocation = Relocation(directory, prefix)
        try:
            relocation.check()
            relocation.apply(rewritten, threads)
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
        self._directory = directory
        self._directories = Directories(directory)
        self._linked = allocate_lock()
        self._telling = allocate_lock()
        self._done: Dict[Tuple[int, int], Edits] = {}
        self._prefix = prefix
        self._files: Dict[bytes, Edits] = {}
        self.records = 0
        edits: Edits = []
        for path, placeholder, binary in records(directory):
            self.records += 1
            # Of thousands of records most have the same to replace: they share the list.
            if edits != [(placeholder, binary)]:
                edits = [(placeholder, binary)] if placeholder != prefix else []
            before = self._files.setdefault(path, edits)
            # Two packages that own one path have a record each; one replacement is all it takes.
            if before is not edits:
                self._files[path] = before + [edit for edit in edits if edit not in before]

    def check(self) -> None:
        """Make sure that every placeholder in a binary file is long enough.

        Raises:
            RelocationError: one is shorter than the prefix.
        """
        for path, edits in self._files.items():
            for placeholder, binary in edits:
                if binary and len(placeholder) < len(self._prefix):
                    opened = _open(path, self._directories, os.O_RDONLY)
                    if opened is None:
                        continue
                    handle, _ = opened
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

    def apply(self, rewritten: "Optional[Rewritten]" = None, threads: int = 1) -> None:
        """Rewrite the files in place; for a tree that no one else can see or use yet.

        In place, so that hard links stay links.

        Args:
            rewritten: see ``relocate``; called by one thread at a time.
            threads: how many to work with.

        Raises:
            OSError: what the system said; its filename is the path.
        """
        files = list(self._files.items())
        if threads == 1:
            self._apply(files, self._directories, rewritten)
            return
        groups = iter([files[at : at + _TOGETHER] for at in range(0, len(files), _TOGETHER)])
        errors: List[BaseException] = []

        def work() -> None:
            directories = Directories(self._directory, _OPEN_IN_THREAD)
            try:
                for group in groups:  # of a list: no two threads get the same
                    if errors:
                        return
                    self._apply(group, directories, rewritten)
            except BaseException as error:
                errors.append(error)
            finally:
                directories.close()

        from ..machine.threads import start

        others = start(work, threads - 1)
        work()
        for thread in others:
            thread.join()
        if errors:
            raise errors[0]

    def _apply(
        self,
        files: "Iterable[Tuple[bytes, Edits]]",
        directories: Directories,
        rewritten: "Optional[Rewritten]",
    ) -> None:
        for path, handle, status, edits, new in self._changes(files, directories):
            pieces: Optional[List[Piece]]
            try:
                with _Writable(path, handle, status, directories) as output:
                    if new is None:
                        pieces = edit(handle, output, edits, self._prefix)
                    else:
                        pieces = [(0, new)]
                        if write(output, 0, new) < status.st_size:
                            os.ftruncate(output, len(new))
            except OSError as error:
                error.filename = path
                raise
            if rewritten is not None and pieces != []:
                with self._telling:
                    rewritten(self._prefix + b"/" + path, handle, pieces)

    def stage(self, name_of: "Callable[[int], bytes]") -> "List[bytes]":
        """Write the changed files anew, outside the tree, which stays as it is.

        Args:
            name_of: gives the path of the new file for the n-th change.

        Returns:
            The path of the n-th changed file, for each.
        """
        changed: List[bytes] = []
        staged: Dict[tuple, bytes] = {}
        changes = self._changes(self._files.items(), self._directories, in_place=False)
        for path, handle, status, edits, data in changes:
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

    def _changes(
        self,
        files: "Iterable[Tuple[bytes, Edits]]",
        directories: Directories,
        in_place: bool = True,
    ) -> "Iterator[Change]":
        """(path, open file, its status, edits, new content) of each change.

        The content is None for a large file, which is to be edited in place.
        """
        for path, edits in files:
            flag = os.O_RDWR if in_place else os.O_RDONLY
            opened = _open(path, directories, flag) if edits else None
            if opened is None:
                continue
            handle, status = opened
            locked = False
            try:
                if in_place and status.st_nlink > 1:
                    # Another name of a file that was rewritten already: the new prefix may
                    # hold the placeholder, and would be replaced once more.
                    locked = self._linked.acquire()
                    before = self._done.setdefault((status.st_dev, status.st_ino), [])
                    edits = [edit for edit in edits if edit not in before]
                    before.extend(edits)
                    if not edits:
                        continue
                large = is_large(status.st_size, edits, self._prefix)
                if large or status.st_size > WINDOW:
                    # In place, programs are gone through once, and written where there is a need.
                    once = large and in_place and len(edits) == 1 and edits[0][1]
                    if not (once or _hold_any(handle, edits)):
                        continue
                    if large:
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
                if locked:
                    self._linked.release()


def _open(
    path: bytes, directories: Directories, flag: int
) -> "Optional[Tuple[int, os.stat_result]]":
    """Open a record's file; None if there is none (conda-pack was told to leave it out).

    Args:
        flag: O_RDONLY, or O_RDWR if it is to be written unless it is a read-only file.

    Raises:
        ArchiveError: it is reached through a symlink, or is no file.
    """
    parent, _, name = path.rpartition(b"/")
    try:
        directory = directories.of(parent)
        try:
            handle = os.open(name, flag | _SAFELY, dir_fd=directory)
        except PermissionError:
            handle = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=directory)
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
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise malformed("the record of {}, no file,".format(printable(path)))
        error.filename = path
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise malformed("the record of {}, no file,".format(printable(path)))
    return handle, status


def _hold_any(handle: int, edits: "Edits") -> bool:
    """Whether any of the placeholders is in an open file."""
    return any(next(occurrences(handle, old), None) is not None for old, _ in edits)


class _Writable:
    """A descriptor of an open file for writing; a read-only file stays read-only."""

    def __init__(
        self, path: bytes, handle: int, status: os.stat_result, directories: Directories
    ) -> None:
        self._handle = self._output = handle
        self._mode = stat.S_IMODE(status.st_mode)
        if fcntl.fcntl(handle, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR) == os.O_RDWR:
            return
        os.fchmod(handle, self._mode | stat.S_IWUSR)
        parent, _, name = path.rpartition(b"/")
        self._output = os.open(name, os.O_WRONLY | _SAFELY, dir_fd=directories.of(parent))

    def __enter__(self) -> int:
        return self._output

    def __exit__(self, *_: object) -> None:
        if self._output != self._handle:
            os.fchmod(self._handle, self._mode)
            os.close(self._output)


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

"""Relocation of an environment that nobody else sees yet: its files are edited where they are.

All or nothing comes from that alone: what fails is not published.  Where others may look on,
``in_use`` does it.
"""

import errno
import os
import stat
import sys
from _thread import allocate_lock  # threading takes 4 ms, and most relocations need one thread

from .. import OURS
from ..machine.signals import check
from ..telling.errors import ArchiveError, RelocationError
from ..telling.failures import failure
from ..telling.messages import printable
from ..tree.directories import Directories
from .edits import (
    WINDOW,
    Contents,
    TooLong,
    edit_file,
    edits_of,
    holds,
    replaced,
    splice,
    write,
)
from .records import SCRIPT, malformed, records
from .shebang import startable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Iterator, List, NoReturn, Optional, Tuple, Union

    from .edits import Edit, Edits, Piece

    Rewritten = Callable[[bytes, int, Optional[List[Piece]]], None]
    Files = Dict[bytes, Edits]
    Look = Callable[[], None]

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Bytes of records that are in memory at a time; each has a path, and objects that hold it.
_BYTES = 4 << 20
_RECORD = 256

# Files that a thread takes at a time: neighbours, mostly of one directory.
_TOGETHER = 16

# From a program of more than this only the strings that change are written.
_SMALL = 1 << 14

# Directories that it keeps open (see directories._LIMIT).
_OPEN_IN_THREAD = 8

# Seconds for which threads that are to stop are waited for.
_PATIENCE = 1.0


def relocate(
    directory: int,
    prefix: bytes,
    previous: "Optional[bytes]" = None,
    rewritten: "Optional[Rewritten]" = None,
    threads: int = 1,
) -> int:
    """Relocate an environment in which nothing runs and of which nobody else knows.

    Args:
        directory: descriptor of its prefix directory.
        prefix: the path that its files are to name, wherever it lies now.
        previous: what it was relocated to before, if it was.
        rewritten: told of every file that was changed: its path below ``directory``, a descriptor
            of it, and what was written at which offset (None for "most of it"); called by one
            thread at a time.
        threads: how many to work with; more than one where each call makes it wait.

    Returns:
        The number of its records.

    Raises:
        ArchiveError: a record is malformed, or names something outside the environment.
        RelocationError: the path is too long for a binary placeholder.
        CannotCreate, InputOutputError: the system refused.
        Terminated: see ``machine.signals``.
    """
    relocation = _Relocation(directory, prefix, previous, rewritten)
    count = 0
    try:
        for number, files in batches(directory, prefix, previous):
            count += number
            relocation.apply(list(files.items()), threads)
        relocation.sign()
    except OSError as error:
        fail(error, directory, prefix)
    finally:
        relocation.close()
    return count


def batches(
    directory: int, prefix: bytes, previous: "Optional[bytes]"
) -> "Iterator[Tuple[int, Files]]":
    """So many records at a time: their number, and what each path asks to have replaced.

    A path that is in two batches is edited twice, as conda-unpack does for each record.

    Raises:
        ArchiveError: see ``relocate``.
    """
    files: Files = {}
    several: Dict[bytes, Dict[Edit, None]] = {}
    edits: List[Edit] = []
    count = size = 0
    last = None

    def batch() -> "Tuple[int, Files]":
        for path, merged in several.items():
            files[path] = sorted(merged, key=lambda edit: edit[0] != previous)
        return count, files

    for path, placeholder, binary, room in records(directory):
        # Of thousands of records most have the same to replace: they share the list.
        if (placeholder, room) != last:
            last = placeholder, room
            size += len(placeholder)
            edits = edits_of(placeholder, binary, room, prefix, previous)
        before = files.setdefault(path, edits)
        # Two packages that own one path have a record each; one replacement is all it takes.
        if before is not edits:
            if path not in several:
                several[path] = dict.fromkeys(before)
            several[path].update(dict.fromkeys(edits))
        count += 1
        size += _RECORD + len(path)
        if size >= _BYTES:
            yield batch()
            files, several = {}, {}
            count = size = 0
    yield batch()


class Editor:
    """What a file is to become, and making it so.

    Args:
        directory: descriptor of a private directory on the same file system, for files without
            a name.
        prefix, previous: see ``relocate``.
    """

    def __init__(self, directory: int, prefix: bytes, previous: "Optional[bytes]") -> None:
        self._directory = directory
        self._prefix = prefix
        self._previous = previous

    def changed(
        self, handle: int, size: int, edits: "Edits", look: "Look", certain: bool = True
    ) -> "Tuple[bool, Optional[bytes]]":
        """Whether there is anything to change in an open file, and its new content.

        That is None for a large one, which is to be edited in parts; unless it is to be certain,
        that is not searched beforehand.

        Raises:
            TooLong: see there.
            OSError: what the system said.
        """
        if size <= _SMALL or size <= WINDOW and not all(binary for _, binary, _ in edits):
            data = _read(handle, size)
            new = replaced(data, edits, self._prefix)
            if new is not None:
                if new[:2] == b"#!":
                    new = self._startable(new)
                return new != data, new
        if not certain or holds(Contents(handle, look), edits, self._prefix):
            return True, None
        head = os.pread(handle, WINDOW, 0)
        return self._startable(head) != head, None

    def edit(
        self, handle: int, size: int, edits: "Edits", new: "Optional[bytes]", look: "Look"
    ) -> "Optional[List[Piece]]":
        """Give an open file its new content; for the result see ``edit_file``.

        Raises:
            TooLong: see there.
            OSError: what the system said.
        """
        if new is not None:
            if write(handle, 0, new) < size:
                os.ftruncate(handle, len(new))
            return [(0, new)]
        pieces = edit_file(handle, edits, self._prefix, self._spare, look)
        head = os.pread(handle, WINDOW, 0)
        begun = self._startable(head)
        if begun != head:
            splice(handle, lambda _: [(0, len(head), begun)], self._spare, look)
            return None
        return pieces

    def named(self, error: "Union[OSError, TooLong]", path: bytes) -> Exception:
        """An error that was met in a file, with its path in it."""
        if isinstance(error, OSError):
            error.filename = path
            return error
        return RelocationError(
            "cannot relocate to {}: the path has {} bytes, and {} has room for {}; "
            "choose a shorter directory".format(
                os.fsdecode(self._prefix), len(self._prefix), printable(path), error.room
            )
        )

    def _startable(self, data: bytes) -> bytes:
        if data[:2] != b"#!":
            return data
        return startable(data, self._prefix, self._previous)

    def _spare(self) -> int:
        name = OURS + b"spare." + os.urandom(8).hex().encode()
        handle = os.open(name, NEW, 0o600, dir_fd=self._directory)
        os.unlink(name, dir_fd=self._directory)
        return handle


class _Relocation:
    """The editing of files of one tree where they are, so that hard links stay links.

    For the arguments see ``relocate``.
    """

    def __init__(
        self,
        directory: int,
        prefix: bytes,
        previous: "Optional[bytes]",
        rewritten: "Optional[Rewritten]",
    ) -> None:
        self._directory = directory
        self._directories = Directories(directory)
        self._editor = Editor(directory, prefix, previous)
        self._rewritten = rewritten
        self._telling = allocate_lock()
        self._programs: List[bytes] = []  # to be signed anew
        self._signs = signing_is_needed()

    def apply(self, files: "List[Tuple[bytes, Edits]]", threads: int) -> None:
        """Rewrite these files.

        Raises:
            OSError: what the system said; its filename is the path.
            ArchiveError, RelocationError, Terminated: see ``relocate``.
        """
        if threads == 1:
            self._apply(files, self._directories, check)
            return
        groups = iter([files[at : at + _TOGETHER] for at in range(0, len(files), _TOGETHER)])
        linked: List[Tuple[bytes, Edits]] = []
        errors: List[BaseException] = []

        def stop() -> None:
            if errors:
                raise errors[0]

        def look() -> None:
            stop()
            check()

        def work(directories: Directories, look: "Look") -> None:
            try:
                for group in groups:  # of a list: no two threads get the same
                    self._apply(group, directories, look, linked)
            except BaseException as error:
                errors.append(error)

        def work_beside() -> None:
            directories = Directories(self._directory, _OPEN_IN_THREAD)
            try:
                work(directories, stop)
            finally:
                directories.close()

        from ..machine.threads import start

        others = start(work_beside, threads - 1)
        work(self._directories, look)
        patience = _PATIENCE
        for other in others:
            while other.is_alive() and patience > 0:
                other.join(0.1)
                if errors:
                    patience -= 0.1
                    continue
                try:
                    check()
                except BaseException as error:
                    errors.append(error)
        stop()
        # Of two names of one file no two threads may have one each.
        self._apply(linked, self._directories, check)

    def _apply(
        self,
        files: "Iterable[Tuple[bytes, Edits]]",
        directories: Directories,
        look: "Look",
        linked: "Optional[List[Tuple[bytes, Edits]]]" = None,
    ) -> None:
        for path, edits in files:
            look()
            opened = open_record(path, directories, os.O_RDWR) if edits else None
            if opened is None:
                continue
            handle, status, writable = opened
            try:
                if linked is not None and status.st_nlink > 1:
                    linked.append((path, edits))
                    continue
                size = status.st_size
                changed, new = self._editor.changed(handle, size, edits, look, not writable)
                if not changed:
                    continue
                if writable:
                    pieces = self._editor.edit(handle, size, edits, new, look)
                    if pieces == []:
                        continue
                else:
                    with _Writable(path, handle, status, directories) as output:
                        pieces = self._editor.edit(output, size, edits, new, look)
                if self._signs and is_program(handle):
                    self._programs.append(path)
                elif self._rewritten is not None:
                    self._tell(path, handle, pieces, look)
            except (OSError, TooLong) as error:
                raise self._editor.named(error, path)
            finally:
                os.close(handle)

    def _tell(
        self, path: bytes, handle: int, pieces: "Optional[List[Piece]]", look: "Look"
    ) -> None:
        while not self._telling.acquire(timeout=0.1):
            look()
        try:
            self._rewritten(path, handle, pieces)  # type: ignore[misc]
        finally:
            self._telling.release()

    def sign(self) -> None:
        """Sign the changed programs of macOS anew; to be called once, at the end.

        Raises:
            OSError: what the system said.
        """
        if not self._programs:
            return
        from .codesign import sign

        sign(self._directory, self._programs)
        for path in self._programs if self._rewritten is not None else ():
            opened = open_record(path, self._directories, os.O_RDONLY)
            if opened is not None:
                self._tell(path, opened[0], None, check)
                os.close(opened[0])

    def close(self) -> None:
        self._directories.close()


class _Writable:
    """A descriptor for reading and writing an open file that is read-only, and stays so."""

    def __init__(
        self, path: bytes, handle: int, status: os.stat_result, directories: Directories
    ) -> None:
        self._handle = handle
        self._mode = stat.S_IMODE(status.st_mode)
        parent, _, name = path.rpartition(b"/")
        os.fchmod(handle, self._mode | stat.S_IWUSR)
        self._output = os.open(name, os.O_RDWR | _SAFELY, dir_fd=directories.of(parent))

    def __enter__(self) -> int:
        return self._output

    def __exit__(self, *_: object) -> None:
        os.close(self._output)
        os.fchmod(self._handle, self._mode)


def open_record(
    path: bytes, directories: Directories, flag: int
) -> "Optional[Tuple[int, os.stat_result, bool]]":
    """Open a record's file; None if there is none (conda-pack was told to leave it out).

    Args:
        flag: O_RDONLY, or O_RDWR if it is to be written unless it is a read-only file.

    Returns:
        Its descriptor, its status, and whether it can be written.

    Raises:
        ArchiveError: it is reached through a symlink, or is no file.
        OSError: what the system said.
    """
    parent, _, name = path.rpartition(b"/")
    try:
        directory = directories.of(parent)
        try:
            handle = os.open(name, flag | _SAFELY, dir_fd=directory)
        except PermissionError:
            flag = os.O_RDONLY
            handle = os.open(name, flag | _SAFELY, dir_fd=directory)
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
    return handle, status, flag == os.O_RDWR


def signing_is_needed() -> bool:
    """Whether this system starts no program whose signature does not fit its content."""
    return sys.platform == "darwin" and os.uname()[4] == "arm64"


def is_program(handle: int) -> bool:
    """Whether an open file is a program of macOS (a Mach-O file, for one machine or several)."""
    head = os.pread(handle, 8, 0)
    # A class of Java begins like a file for several machines, of which there are never so many.
    return head[:4] == b"\xcf\xfa\xed\xfe" or (
        head[:4] == b"\xca\xfe\xba\xbe" and head[4:] < b"\0\0\0\x20"
    )


def fail(error: OSError, directory: int, prefix: bytes) -> "NoReturn":
    """Raise what an error of the system, met below ``directory``, means to the user."""
    # Of a directory that was listed by its descriptor, that is all the system says.
    name = error.filename if isinstance(error.filename, (str, bytes)) else SCRIPT
    raise failure(error, os.path.join(prefix, os.fsencode(name)), directory)


def _read(handle: int, size: int) -> bytes:
    data = os.read(handle, size + 1)
    while len(data) < size:
        more = os.read(handle, size - len(data))
        if not more:
            break
        data += more
    return data

"""Prefix records to rewritten files: what conda-unpack does, checked first and all or nothing.

The records stand in ``bin/conda-unpack``, a Python script that conda-pack writes: one tuple
``(path, placeholder, mode)`` a line in a list.  They are read as data; no line of it is run.
"""

import errno
import os
import stat

from .directories import Directories, components, printable
from .errors import ArchiveError, RelocationError
from .failures import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterator, List, Optional, Tuple

    Edits = List[Tuple[bytes, bool]]
    Piece = Tuple[int, bytes]
    Rewritten = Callable[[bytes, int, List[Piece]], None]

SCRIPT = b"bin/conda-unpack"
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_BEGIN, _END = b"\n_prefix_records = [\n", b"\n]\n"

# Linux took 127 bytes of a shebang line until 5.1, and other systems still do.
_SHEBANG_LIMIT = 127

# Above this, a binary file is gone through in windows (contract: 64 MiB for everything).
_WINDOW = 8 << 20


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
            name = os.fsencode(error.filename or b"bin/conda-unpack")
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
        for path, placeholder, mode in _read_records(directory):
            self.records += 1
            binary = mode == "binary"
            if not placeholder or mode not in ("text", "binary"):
                raise ArchiveError(_malformed("the record of " + printable(path)))
            edits = self._files.setdefault(b"/".join(components(path)), [])
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
                        found = next(_occurrences(handle, placeholder), None) is not None
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
        for path, handle, status, pieces, whole in self._changes():
            try:
                with self._writable(path, handle, status) as output:
                    end = _write(output, pieces)
                    if whole:
                        os.ftruncate(output, end)
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
        for path, handle, status, pieces, whole in self._changes(in_place=False):
            new = name_of(len(changed))
            changed.append(path)
            # Names of one file stay names of one file, if they are rewritten alike.
            key = (status.st_dev, status.st_ino, tuple(self._files[path]))
            if staged.setdefault(key, new) != new:
                os.link(staged[key], new)
                continue
            output = os.open(new, _ANEW, 0o600)
            try:
                if not whole:
                    _copy(handle, output)
                _write(output, pieces)
                os.fchmod(output, stat.S_IMODE(status.st_mode) & 0o777)
            finally:
                os.close(output)
        return changed

    def close(self) -> None:
        self._directories.close()

    def _changes(
        self, in_place: bool = True
    ) -> "Iterator[Tuple[bytes, int, os.stat_result, List[Piece], bool]]":
        """(path, open file, its status, [(offset, bytes)], are they all of it) of each change."""
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
                if status.st_size > _WINDOW and all(binary for _, binary in edits):
                    pieces: List[Piece] = []
                    for placeholder, _ in edits:
                        pieces.extend(_binary_pieces(handle, placeholder, self._prefix))
                    if pieces:
                        yield path, handle, status, pieces, False
                    continue
                data = _read(handle, status.st_size)
                new = replaced(data, edits, self._prefix)
                if new is not data and new != data:
                    yield path, handle, status, [(0, new)], True
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
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise ArchiveError(
                    "the archive is unsafe: a prefix record names {}, which is reached through a "
                    "symlink; pack the environment again".format(printable(path))
                )
            error.filename = path
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ArchiveError(_malformed("the record of {}, no file,".format(printable(path))))
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
        self._handle = os.open(
            name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
        )

    def __enter__(self) -> int:
        return self._handle

    def __exit__(self, *_: object) -> None:
        if not self._mode & stat.S_IWUSR:
            os.fchmod(self._handle, self._mode)
        os.close(self._handle)


def replaced(data: bytes, edits: "Edits", prefix: bytes) -> bytes:
    """A file's content with its placeholders replaced.

    Args:
        data: the content.
        edits: (placeholder, binary) pairs, in the records' order.
        prefix: what replaces the placeholders.

    The rules are conda-unpack's (conda_pack/prefixes.py).  text: every occurrence.  binary:
    from each occurrence to the next NUL, all occurrences, and NULs to the old length; a string
    that no NUL closes stays as it is.
    """
    shebang = data[:2] == b"#!"
    for placeholder, binary in edits:
        if placeholder not in data:
            continue
        if not binary:
            data = data.replace(placeholder, prefix)
            continue
        pieces = []
        at = 0
        while True:
            found = data.find(placeholder, at)
            closed = data.find(b"\0", found + len(placeholder)) if found >= 0 else -1
            if closed < 0:
                break
            pieces.append(data[at:found])
            string = data[found:closed]
            pieces.append(string.replace(placeholder, prefix).ljust(len(string), b"\0"))
            at = closed
        data = b"".join(pieces) + data[at:]
    return _startable(data, prefix) if shebang else data


def _startable(data: bytes, prefix: bytes) -> bytes:
    """The same script, with a shebang line that the system can use.

    A line over 127 bytes is cut, and one is split at a space in the prefix.  Then a Python
    script is started by a shell through a line that is a string to Python (what pip and
    distlib write); any other by env, which finds the interpreter in the activated environment.
    """
    line, newline, rest = data.partition(b"\n")
    interpreter = line[2:].lstrip(b" \t")
    if not interpreter.startswith(prefix + b"/") or not (
        len(line) > _SHEBANG_LIMIT or b" " in prefix or b"\t" in prefix
    ):
        return data
    words = interpreter[len(prefix) :].rstrip(b"\r").split(None, 1)
    path, options = prefix + words[0], words[1:]
    name = path.rpartition(b"/")[2]
    if name.startswith((b"python", b"pypy")):
        quoted = b"'" + path.replace(b"'", b"'\"'\"'") + b"'"
        # Both a command of the shell and, between triple quotes, a string of Python.
        start = b" ".join([b"'''exec'", quoted] + options + [b'"$0" "$@"'])
        return b"#!/bin/sh\n" + start + b"\n' '''\n" + rest
    return b" ".join([b"#!/usr/bin/env", name] + options) + newline + rest


def _binary_pieces(handle: int, placeholder: bytes, prefix: bytes) -> "Iterator[Piece]":
    """What to write where in a large binary file: (offset, bytes of equal length)."""
    behind = 0
    for found in _occurrences(handle, placeholder):
        if found < behind:
            continue  # in a string that has been replaced as a whole
        string = os.pread(handle, 1 << 16, found)
        while b"\0" not in string:
            more = os.pread(handle, 1 << 20, found + len(string))
            if not more or len(string) > _WINDOW:
                return  # no NUL closes it
            string += more
        string = string[: string.index(b"\0")]
        behind = found + len(string)
        yield found, string.replace(placeholder, prefix).ljust(len(string), b"\0")


def _occurrences(handle: int, sought: bytes) -> "Iterator[int]":
    """The offsets of ``sought`` in an open file, in windows of bounded size."""
    start = 0
    while True:
        window = os.pread(handle, _WINDOW, start)
        at = window.find(sought)
        while at >= 0:
            yield start + at
            at = window.find(sought, at + len(sought))
        if len(window) < _WINDOW:
            return
        start += len(window) - len(sought) + 1


def _read_records(directory: int) -> "Iterator[Tuple[bytes, bytes, str]]":
    """The (path, placeholder, mode) records; none if the environment has no conda-unpack."""
    directories = Directories(directory)
    try:
        handle = os.open(
            b"conda-unpack",
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=directories.of(b"bin"),
        )
    except OSError:  # none, or no file: an environment that needs no relocation
        return
    finally:
        directories.close()
    try:
        script = _read(handle, os.fstat(handle).st_size)
    finally:
        os.close(handle)
    begin = script.find(_BEGIN)
    end = script.find(_END, begin + len(_BEGIN) - 1)
    if begin < 0 or end < 0:
        return  # not conda-pack's script
    for line in script[begin + len(_BEGIN) : end].split(b"\n"):
        fields = line.split(b"'")
        if len(fields) == 7 and b"\\" not in line and fields[::2] in _PLAIN:
            # All but a few: twenty times quicker than a parse (thousands of records).
            yield fields[1], fields[3], fields[5].decode("ascii", "replace")
            continue
        if not line.strip():
            continue
        import ast  # 5 ms, for names with a quote or a byte that is not ASCII

        try:
            path, placeholder, mode = ast.literal_eval(line.decode("utf-8").strip().rstrip(","))
            yield (
                path.encode("utf-8", "surrogateescape"),
                placeholder.encode("utf-8", "surrogateescape"),
                mode,
            )
        except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
            raise ArchiveError(_malformed("the record " + printable(line)))


_PLAIN = ([b"(", b", ", b", ", b"),"], [b"(", b", ", b", ", b")"])


def _read(handle: int, size: int) -> bytes:
    data = os.read(handle, size + 1)
    while len(data) < size:
        more = os.read(handle, size - len(data))
        if not more:
            break
        data += more
    return data


def _write(handle: int, pieces: "List[Piece]") -> int:
    """Write each piece at its offset; the end of the last."""
    offset = 0
    for offset, data in pieces:
        view = memoryview(data)
        while view:
            count = os.pwrite(handle, view, offset)
            view, offset = view[count:], offset + count
    return offset


def _copy(handle: int, output: int) -> None:
    offset = 0
    while True:
        data = os.pread(handle, 1 << 20, offset)
        if not data:
            return
        offset = _write(output, [(offset, data)])


def _malformed(what: str) -> str:
    message = "the archive is damaged: {} in bin/conda-unpack makes no sense; pack it again"
    return message.format(what)

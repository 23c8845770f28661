"""Relocation of an environment where it lies: others may be running in it.

No file is written where it is, for it may be running, or a link into a cache.  Each changed file
is written anew in a private directory; once all are there, and on the disk, each takes its old
one's name by a rename.  Nothing is recorded of how far that came: who is killed in between leaves
files that are as before and files that are done, and relocating again changes only the former.
"""

import errno
import os
import stat

from .. import OURS
from ..machine.signals import check
from ..telling.errors import CannotCreate, RelocationError
from ..telling.messages import printable
from ..tree.directories import Directories
from .edits import Contents, TooLong, holds, write
from .relocate import NEW, Editor, batches, fail, is_program, open_record, signing_is_needed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

    from .edits import Edits

    Inode = Tuple[int, int]

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def relocate_in_use(
    directory: int, prefix: bytes, scratch: int, previous: "Optional[bytes]" = None
) -> int:
    """Relocate an environment that may be in use, file by file.

    A new file has the old one's mode, owner, group and extended attributes (ACLs are some).  All
    names in the tree of a file become names of the new one, whether they have a record or not:
    the recorded one last, since it is what the next run would look at.  Names elsewhere keep
    the old file.

    Args:
        directory: descriptor of its prefix directory.
        prefix: its path, which the files are to name.
        scratch: descriptor of a private directory on the same file system; what is left in it
            is the caller's to remove.
        previous: what it was relocated to before, if it was.

    Returns:
        The number of its records.

    Raises:
        ArchiveError: a record is malformed, or names something outside the environment.
        RelocationError: the path is too long for a binary placeholder; or what the files would
            hold could not be told from what is still to be relocated.
        CannotCreate, InputOutputError: the system refused.  But for a directory that changed
            meanwhile or a failing disk, no file has been replaced when any of these is raised.
        Terminated: see ``machine.signals``.
    """
    replacement = _Replacement(directory, prefix, scratch, previous)
    count = 0
    try:
        for number, files in batches(directory, prefix, previous):
            count += number
            for path, edits in files.items():
                check()
                if edits:
                    replacement.prepare(path, edits)
        replacement.finish()
    except OSError as error:
        fail(error, directory, prefix)
    finally:
        replacement.close()
    return count


class _Replacement:
    """The new files, by number, and what they are to be named."""

    def __init__(
        self, directory: int, prefix: bytes, scratch: int, previous: "Optional[bytes]"
    ) -> None:
        self._directory = directory
        self._directories = Directories(directory)
        self._scratch = scratch
        self._prefix = prefix
        self._editor = Editor(scratch, prefix, previous)
        # Their paths, each with a NUL: no longer than the records, where objects would be.
        self._paths = bytearray()
        self._count = 0
        # Of changed files with other names: these exist, in numbers that a list can hold.
        self._linked: Dict[Inode, Tuple[int, bytes]] = {}
        self._programs: List[Tuple[int, bytes]] = []
        self._signs = signing_is_needed()

    def prepare(self, path: bytes, edits: "Edits") -> None:
        """Write a file anew if there is anything to change in it."""
        opened = open_record(path, self._directories, os.O_RDONLY)
        if opened is None:
            return
        handle, status, _ = opened
        try:
            inode = status.st_dev, status.st_ino
            if inode in self._linked:
                # Another name of a file that is written anew already, and private: so in place.
                number, _ = self._linked[inode]
                mode = stat.S_IMODE(status.st_mode)
                os.chmod(_name(number), mode | 0o600, dir_fd=self._scratch)
                output = os.open(_name(number), os.O_RDWR | _SAFELY, dir_fd=self._scratch)
                try:
                    size = os.fstat(output).st_size
                    changed, new = self._editor.changed(output, size, edits, check)
                    if changed:
                        self._editor.edit(output, size, edits, new, check)
                        self._compare(path, output, edits)
                    os.fchmod(output, mode)
                finally:
                    os.close(output)
                return
            changed, new = self._editor.changed(handle, status.st_size, edits, check)
            if not changed:
                return
            number = self._count
            output = os.open(_name(number), NEW, 0o600, dir_fd=self._scratch)
            try:
                if new is None:
                    offset = 0
                    for data in Contents(handle, check).copied(0, status.st_size):
                        offset = write(output, offset, data)
                self._editor.edit(output, 0, edits, new, check)
                self._compare(path, output, edits)
                _keep(path, handle, status, output)
                if self._signs and is_program(output):
                    self._programs.append((number, path))
            finally:
                os.close(output)
            self._count += 1
            self._paths += path + b"\0"
            if status.st_nlink > 1:
                self._linked[inode] = number, path
        except (OSError, TooLong) as error:
            raise self._editor.named(error, path)
        finally:
            os.close(handle)

    def _compare(self, path: bytes, output: int, edits: "Edits") -> None:
        """Make sure that a run after this one, or after its death, would leave the file alone."""
        if holds(Contents(output, check), edits, self._prefix):
            raise RelocationError(
                "cannot relocate to {} in place: what {} would hold reads like a path that is "
                "still to be relocated; unpack the archive to another directory".format(
                    os.fsdecode(self._prefix), printable(path)
                )
            )

    def finish(self) -> None:
        """Give the new files their names."""
        if self._programs:
            self._sign()
        others = list(self._other_names()) if self._linked else []
        for _, path in others:
            self._ask(path)
        for _, path in self._recorded():
            self._ask(path)
        for number in range(self._count):
            check()
            # Before a rename: else a power loss may leave the new name and no content.
            handle = os.open(_name(number), os.O_RDONLY | _SAFELY, dir_fd=self._scratch)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        for number, path in others:
            link = _name(number) + b".link"
            os.link(_name(number), link, src_dir_fd=self._scratch, dst_dir_fd=self._scratch)
            self._rename(link, path)
        for number, path in self._recorded():
            self._rename(_name(number), path)

    def _recorded(self) -> "Iterator[Tuple[int, bytes]]":
        at = 0
        for number in range(self._count):
            end = self._paths.index(b"\0", at)
            yield number, bytes(self._paths[at:end])
            at = end + 1

    def _other_names(self) -> "Iterator[Tuple[int, bytes]]":
        """The other names that changed files have in the tree."""
        below = [b""]
        while below:
            check()
            parent = below.pop()
            descriptor = self._directories.of(parent)
            for text in os.listdir(descriptor):
                name = os.fsencode(text)
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                path = parent + b"/" + name if parent else name
                if stat.S_ISDIR(status.st_mode):
                    if not name.startswith(OURS):
                        below.append(path)
                elif status.st_nlink > 1:
                    number, recorded = self._linked.get((status.st_dev, status.st_ino), (-1, path))
                    if path != recorded:
                        yield number, path

    def _ask(self, path: bytes) -> None:
        """Make sure that a file can be replaced, before the first one is."""
        directory = self._directories.of(path.rpartition(b"/")[0])
        if not os.access(b".", os.W_OK | os.X_OK, dir_fd=directory):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def _rename(self, name: bytes, path: bytes) -> None:
        check()
        parent, _, last = path.rpartition(b"/")
        try:
            directory = self._directories.of(parent)
            os.rename(name, last, src_dir_fd=self._scratch, dst_dir_fd=directory)
        except OSError as error:
            error.filename = path
            raise

    def _sign(self) -> None:
        from .codesign import sign

        sign(self._scratch, [_name(number) for number, _ in self._programs])
        # The signed file may be another one, made as it pleased codesign.
        for number, path in self._programs:
            opened = open_record(path, self._directories, os.O_RDONLY)
            output = os.open(_name(number), os.O_RDONLY | _SAFELY, dir_fd=self._scratch)
            if opened is not None:
                _keep(path, opened[0], opened[1], output)
                os.close(opened[0])
            os.close(output)

    def close(self) -> None:
        self._directories.close()


def _name(number: int) -> bytes:
    return b"relocated.%d" % number


def _keep(path: bytes, old: int, status: os.stat_result, new: int) -> None:
    """Give a file the owner, group, extended attributes and mode of another.

    Raises:
        CannotCreate: it cannot be given them.
    """
    made = os.fstat(new)
    try:
        if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(new, status.st_uid, status.st_gid)
        for name in _attributes(new) - _attributes(old):  # of a directory's default ACL
            _attempt(name, os.removexattr, new, name)
        for name in _attributes(old):
            _attempt(name, _copy_attribute, old, new, name)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
    except OSError as error:
        raise CannotCreate(
            "cannot write {} anew: its owner, group or attributes cannot be kept ({}); run this as "
            "its owner, or unpack to another directory".format(printable(path), error.strerror)
        )


def _attributes(handle: int) -> "Set[str]":
    try:
        return set(os.listxattr(handle))
    except (AttributeError, OSError):  # neither this system nor this file system has any
        return set()


def _copy_attribute(old: int, new: int, name: str) -> None:
    value = os.getxattr(old, name)
    if value != _value(new, name):
        os.setxattr(new, name, value)


def _value(handle: int, name: str) -> "Optional[bytes]":
    try:
        return os.getxattr(handle, name)
    except OSError:
        return None


def _attempt(name: str, call: "Callable[..., None]", *arguments: "Any") -> None:
    """Those of users and ACLs are to be kept; others are the system's own, as in a copy by cp."""
    try:
        call(*arguments)
    except OSError:
        if name.startswith(("user.", "system.posix_acl")):
            raise

"""Relocation of an environment where it lies: others may be running in it.

No file is written where it is, for it may be running, or a link into a cache.  Each changed file
is written anew in a private directory; once all are there, and on the disk, each takes its old
one's name by a rename.  Nothing is recorded of how far that came: who is killed in between leaves
files that are as before and files that are done, and relocating again changes only the former.
"""

import errno
import hashlib
import os
import stat

from ..machine.signals import check
from ..telling.errors import CannotCreate, RelocationError
from ..telling.messages import printable
from ..tree.directories import Directories
from ..tree.names import is_ours
from .edits import Contents, TooLong, holds, write
from .relocate import NEW, Editor, batches, fail, is_program, open_record, signing_is_needed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

    from .edits import Edits

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
        if replacement.again:
            for _, files in batches(directory, prefix, previous):
                for path, edits in files.items():
                    check()
                    replacement.compare_again(path, edits)
        replacement.finish()
    except OSError as error:
        fail(error, directory, prefix)
    finally:
        replacement.close()
    return count


class _Replacement:
    """The new files, and what they are to be named.

    Each has a name that tells which old file it is for.  That stays where it is until ``finish``,
    so whoever comes to it again, in a later batch or by another of its names, finds the new one.

    Attributes:
        again (set): the names of those that were edited more than once.
    """

    def __init__(
        self, directory: int, prefix: bytes, scratch: int, previous: "Optional[bytes]"
    ) -> None:
        self._directory = directory
        self._directories = Directories(directory)
        self._scratch = scratch
        self._prefix = prefix
        self._editor = Editor(scratch, prefix, previous)
        # Their names and paths, each with a NUL: about as long as the records, where objects
        # would be.
        self._paths = bytearray()
        # Of changed files with other names: these exist, in numbers that a list can hold.
        self._linked: Dict[bytes, bytes] = {}
        self.again: Set[bytes] = set()
        self._programs: List[Tuple[bytes, bytes]] = []
        self._signs = signing_is_needed()

    def prepare(self, path: bytes, edits: "Edits") -> None:
        """Write a file anew if there is anything to change in it."""
        opened = open_record(path, self._directories, os.O_RDONLY)
        if opened is None:
            return
        handle, status, _ = opened
        name = _name(status, path)
        try:
            try:
                # As read-only as the old one.
                mode = stat.S_IMODE(status.st_mode) | 0o600
                os.chmod(name, mode, dir_fd=self._scratch)
            except FileNotFoundError:
                self._write_anew(name, path, handle, status, edits)
                return
            output = os.open(name, os.O_RDWR | _SAFELY, dir_fd=self._scratch)
            try:
                size = os.fstat(output).st_size
                changed, new = self._editor.changed(output, size, edits, check)
                if changed:
                    self._editor.edit(output, size, edits, new, check)
                    self.again.add(name)
                _keep(path, handle, status, output)
            finally:
                os.close(output)
        except (OSError, TooLong) as error:
            raise self._editor.named(error, path)
        finally:
            os.close(handle)

    def _write_anew(
        self, name: bytes, path: bytes, handle: int, status: os.stat_result, edits: "Edits"
    ) -> None:
        changed, new = self._editor.changed(handle, status.st_size, edits, check)
        if not changed:
            return
        output = os.open(name, NEW, 0o600, dir_fd=self._scratch)
        try:
            if new is None:
                offset = 0
                for data in Contents(handle, check).copied(0, status.st_size):
                    offset = write(output, offset, data)
            self._editor.edit(output, 0, edits, new, check)
            self._compare(path, output, edits)
            _keep(path, handle, status, output)
            if self._signs and is_program(output):
                self._programs.append((name, path))
        finally:
            os.close(output)
        self._paths += name + b"\0" + path + b"\0"
        if status.st_nlink > 1:
            self._linked[name] = path

    def compare_again(self, path: bytes, edits: "Edits") -> None:
        """``_compare`` for each record of a file that was edited after that for an earlier one."""
        opened = open_record(path, self._directories, os.O_RDONLY)
        if opened is None:
            return
        os.close(opened[0])
        name = _name(opened[1], path)
        if name in self.again:
            output = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._scratch)
            try:
                self._compare(path, output, edits)
            except (OSError, TooLong) as error:
                raise self._editor.named(error, path)
            finally:
                os.close(output)

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
        for name, _ in self._recorded():
            check()
            # Before a rename: else a power loss may leave the new name and no content.
            handle = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._scratch)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        for name, path in others:
            link = name + b".link"
            os.link(name, link, src_dir_fd=self._scratch, dst_dir_fd=self._scratch)
            self._rename(link, path)
        for name, path in self._recorded():
            self._rename(name, path)

    def _recorded(self) -> "Iterator[Tuple[bytes, bytes]]":
        at = 0
        while at < len(self._paths):
            middle = self._paths.index(b"\0", at)
            end = self._paths.index(b"\0", middle + 1)
            yield bytes(self._paths[at:middle]), bytes(self._paths[middle + 1 : end])
            at = end + 1

    def _other_names(self) -> "Iterator[Tuple[bytes, bytes]]":
        """The other names that changed files have in the tree."""
        below = [b""]
        while below:
            check()
            parent = below.pop()
            descriptor = self._directories.of(parent)
            for text in os.listdir(descriptor):
                last = os.fsencode(text)
                status = os.stat(last, dir_fd=descriptor, follow_symlinks=False)
                path = parent + b"/" + last if parent else last
                if stat.S_ISDIR(status.st_mode):
                    if not is_ours(last):
                        below.append(path)
                elif status.st_nlink > 1:
                    name = _name(status, path)
                    if self._linked.get(name, path) != path:
                        yield name, path

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

        sign(self._scratch, [name for name, _ in self._programs])
        # The signed file may be another one, made as it pleased codesign.
        for name, path in self._programs:
            opened = open_record(path, self._directories, os.O_RDONLY)
            output = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._scratch)
            if opened is not None:
                _keep(path, opened[0], opened[1], output)
                os.close(opened[0])
            os.close(output)

    def close(self) -> None:
        self._directories.close()


def _name(old: os.stat_result, path: bytes) -> bytes:
    """What the new file for an old one is called in the private directory.

    By its path if it has one name: some file systems (FUSE) number files anew at each look, or
    several alike.
    """
    if old.st_nlink > 1:
        return b"relocated.%d.%d" % (old.st_dev, old.st_ino)
    return b"relocated." + hashlib.sha256(path).hexdigest().encode()


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

"""Members to a tree, safely: nothing outside the target is made, changed, linked to or read."""

import errno
import os
import stat
import sys
import time

from .. import MARKER
from ..archive.member import DIRECTORY, FILE, HARDLINK, SYMLINK, Member
from ..machine.processors import OVERLAPPING, SAMPLES, SLOW_SECONDS, capped
from ..machine.signals import check
from ..telling.errors import ArchiveError
from ..telling.failures import failure, unsafe
from ..telling.messages import printable
from .directories import Directories, components
from .interpreter import checked, is_python
from .names import is_ours
from .writers import Writers, create, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Optional, Protocol, Tuple

    from ..archive.member import Buffer
    from ..machine.native import Native
    from ..telling.errors import Failure

    class Record(Protocol):
        """What is told of every file (see ``durability.manifest``)."""

        def sampled(self, path: bytes, member: Member) -> Iterable[Buffer]: ...

        def made(self, path: bytes) -> None: ...

        def dated(self, path: bytes, mtime_ns: Optional[int]) -> None: ...


_REWRITE = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_NAMES = frozenset((b"", b".", b".."))

# Files that a writer takes at a time where none of them makes it wait.
_TOGETHER = 64


# POSIX's PATH_MAX on Linux: nobody could open a file by a longer name.
_NAME_LIMIT = 4096

# Bytes that may wait for the end, of symlinks and of directories' modes and times, with so many
# for the objects of each.
_LATER_LIMIT = 4 << 20
_OBJECTS = 300

# Of a completion marker that was packed; ours has some hundred bytes.
_MARKER_LIMIT = 1 << 16

# An environment has at least one of these (see ``holds_environment``).
_SIGNS = (b"bin/activate", b"pyvenv.cfg")


# PyPy never follows, and hands linkat(2) a flag that it refuses if it is asked not to.
_FOLLOW = sys.implementation.name == "pypy"


class _Symlink:
    """A symlink that is still to be made; hard links to it share the object."""

    __slots__ = ("target", "mtime_ns", "made")

    def __init__(self, target: bytes, mtime_ns: "Optional[int]") -> None:
        self.target = target
        self.mtime_ns = mtime_ns
        self.made: Optional[bytes] = None


class Tree:
    """The directory that an archive is unpacked to.

    Symlinks are made after everything else, so that while files are written there is none to
    follow; a member that would be written through one meets a plain directory of that name, and
    the symlink, once due, finds its place taken: refused.  (Where there are so many that memory
    would run out, they are made earlier.  Then a walk to a member's directory ends at the symlink,
    which it does not follow: refused as well.)

    Directories get their modes and times last.  (Where there are that many, all but those above
    the member at hand get them earlier, as GNU tar does it: members that follow out of order then
    change the time again.)

    Members that have the name of a file of this tool in their path, or link to one, are passed
    over: a DIR of ours may have been packed.

    Args:
        directory: descriptor of the target; it stays open.
        path: the target's, for messages.
        manifest: told of every file, if there is one.

    Attributes:
        files, bytes (int): what has been unpacked.
        overlap (int): how many threads it is worth to have wait here for the file system.
        holds_environment (bool): a member was seen that makes an environment, wherever it lies;
            if none was, there is none.
        packed_marker (bytes): the beginning of a completion marker that was passed over, the one
            with the fewest directories above it; b"" if there was none.
    """

    def __init__(self, directory: int, path: bytes, manifest: "Optional[Record]" = None) -> None:
        self.files = 0
        self.bytes = 0
        self.overlap = 1
        self.holds_environment = False
        self.packed_marker = b""
        self._marker_depth = _NAME_LIMIT
        self._root = directory
        self._path = path
        self._manifest = manifest
        self._directories = Directories(directory)
        self._directories.flush = self._drain  # type: ignore[method-assign]
        self._directories.creating = self._settle  # type: ignore[method-assign]
        self._symlinks: Dict[bytes, _Symlink] = {}
        self._symlinks_size = 0
        self._attributes: Dict[bytes, Tuple[int, Optional[int]]] = {}
        self._attributes_size = self._attributes_kept = 0
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._writers = 0
        self._native: Optional[Native] = None
        self._pool: Optional[Writers] = None
        self._quickest = 1.0  # seconds, of the latest creations of a file
        self._removed_directory = False

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        self._directories.close()

    def unpack(
        self, members: "Iterable[Member]", writers: int = 0, native: "Optional[Native]" = None
    ) -> None:
        """Unpack all members.

        Args:
            members: in archive order.
            writers: how many threads are to write bodies if the file system is a quick one; 0 if
                they would not make it quicker than the caller alone.
            native: see Writers; the threads of a slow file system do without.

        Raises:
            ArchiveError: a member is unsafe, or does not fit the others.
            CannotCreate, InputOutputError: the system refused; the message names the path.
        """
        path, size = b"", 0
        self._writers = writers
        self._native = native
        try:
            for member in members:
                check()
                path, size = member.path, member.size
                if len(path) >= _NAME_LIMIT:
                    raise ArchiveError(unsafe(path, "has a name longer than any path may be"))
                if not self.holds_environment:
                    self.holds_environment = b"conda-meta" in path or path.endswith(_SIGNS)
                if is_ours(path) or member.kind is HARDLINK and is_ours(member.target):
                    self._pass_over(member)
                elif member.kind is FILE:
                    self._file(member)
                elif member.kind is DIRECTORY:
                    self._directory(member)
                elif member.kind is SYMLINK:
                    self._symlink(member)
                else:
                    self._hard_link(member)
            self._make_symlinks()
        except ArchiveError:
            self._drain()  # what came before may have met something, and is told then
            raise
        except OSError as error:
            raise self._failure(error, path, size)
        finally:
            if self._pool is not None:
                self._pool.close()

    def set_attributes(self, above: bytes = b"") -> None:
        """Give the directories their modes and times; last, because writing changes both.

        Args:
            above: a path; the directories on the way to it are left for later.

        Raises:
            CannotCreate, InputOutputError: the system refused; the message names the path.
        """
        later = {}
        size = 0
        # Children before their parents: without the parent's x bit they are out of reach.
        for path in sorted(self._attributes, key=lambda path: path.count(b"/"), reverse=True):
            check()
            if above.startswith(path + b"/"):
                later[path] = self._attributes[path]
                size += len(path) + _OBJECTS
                continue
            mode, mtime_ns = self._attributes[path]
            try:
                descriptor = self._directories.of(path)
                os.fchmod(descriptor, mode & 0o777 & ~self._umask)
                if mtime_ns is not None:
                    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            except (FileNotFoundError, NotADirectoryError):
                pass  # a later member took its place
            except OSError as error:
                raise self._failure(error, path)
        self._attributes = later
        self._attributes_size = self._attributes_kept = size

    def _pass_over(self, member: Member) -> None:
        """Use up a member that is not unpacked, but may be a completion marker."""
        parts = components(member.path)  # a path that leads out is refused all the same
        if member.kind is HARDLINK:
            components(member.target)
        kept = member.kind is FILE and parts[-1] == MARKER and len(parts) <= self._marker_depth
        data = b""
        for piece in member.body:
            check()
            if kept:
                data += piece[: _MARKER_LIMIT - len(data)]
        if kept:
            self.packed_marker, self._marker_depth = data, len(parts)

    # Files

    def _file(self, member: Member) -> None:
        path = member.path
        parent, _, name = path.rpartition(b"/")
        if name in _NO_NAMES or (not parent and path[:1] == b"/"):
            components(path)
            raise ArchiveError(unsafe(path, "is no name for a file"))
        descriptor = None if self._removed_directory else self._directories.known.get(parent)
        if descriptor is None:
            descriptor = self._parent(parent, path)
        self.files += 1
        self.bytes += member.size
        if b"./" in path or b"//" in path:
            path = b"/".join(components(path))
        self._symlinks.pop(path, None)  # the last member of a name wins
        if path[:4] == b"bin/" and is_python(path):
            member.body = checked(path, member.body)
        if self._manifest is not None:
            member.body = self._manifest.sampled(path, member)
        # While nobody else writes: see cores.
        if self._pool is None and not self.files % SAMPLES:
            if self._quickest > SLOW_SECONDS:
                self.overlap = capped(OVERLAPPING)
                if self.overlap > 1:
                    self._start(self.overlap, 1)
            elif self._writers > 1 or self._native is not None:
                self._start(self._writers, _TOGETHER, self._native)
            self._quickest = 1.0
        if self._pool is not None:
            if self._pool.put_off:
                self._drain()
            if member.detached:
                self._pool.write(descriptor, name, member)
                return
            self._pool.settle(descriptor, name)
            self._pool.submit()
            try:
                write(self._create_in_thread(descriptor, name, member), member)
                return
            except IsADirectoryError:
                self._drain()
        write(self._create(descriptor, name, member), member)

    def _create(self, descriptor: int, name: bytes, member: Member) -> int:
        """Open a new file; an earlier member of the same name gives way."""
        began = time.perf_counter()
        try:
            handle = create(descriptor, name, member.mode)
        except FileExistsError:
            handle = -1  # it was quick or slow to say so, too
        seconds = time.perf_counter() - began
        if seconds < self._quickest:
            self._quickest = seconds
        if handle < 0:
            self._remove(descriptor, name)
            handle = create(descriptor, name, member.mode)
        return handle

    def _remove(self, descriptor: int, name: bytes) -> None:
        """Remove what an earlier member made, if it is no directory with something in it."""
        try:
            os.unlink(name, dir_fd=descriptor)
        except (IsADirectoryError, PermissionError):  # EISDIR on Linux, EPERM in POSIX
            os.rmdir(name, dir_fd=descriptor)
            self._removed_directory = True

    def _create_in_thread(self, descriptor: int, name: bytes, member: Member) -> int:
        """The same, but a directory does not give way while others may write into it.

        Raises:
            IsADirectoryError: there is one.
        """
        try:
            return create(descriptor, name, member.mode)
        except FileExistsError:
            pass
        try:
            os.unlink(name, dir_fd=descriptor)
        except PermissionError:  # EPERM is POSIX's word for a directory
            raise IsADirectoryError
        return create(descriptor, name, member.mode)

    def _failure(self, error: OSError, path: bytes, size: int = 0) -> "Failure":
        """What an error means that was met at a member of ``size`` bytes."""
        if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
            return ArchiveError(
                "{}: {}; pack it under a shorter name".format(printable(path), error.strerror)
            )
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
            return ArchiveError(unsafe(path, "takes the place of another member"))
        return failure(error, os.path.join(self._path, path), self._root, size)

    def _start(self, writers: int, together: int, native: "Optional[Native]" = None) -> None:
        pool = Writers(writers, together, self._create_in_thread, self._failure, native)
        if pool.works:
            self._pool = pool

    def _settle(self, descriptor: int, name: bytes) -> None:
        """No file of this name is under way any more: a directory is to be made."""
        if self._pool is not None:
            self._pool.settle(descriptor, name)

    def _drain(self) -> None:
        """All that was begun is written."""
        if self._pool is not None:
            for descriptor, name, member in self._pool.drain():
                try:
                    write(self._create(descriptor, name, member), member)
                except OSError as error:
                    raise self._failure(error, member.path, member.size)

    def _parent(self, parent: bytes, path: bytes) -> int:
        """The descriptor of a member's directory, made if need be."""
        if self._removed_directory:
            self._drain()
            self._removed_directory = False
            self._directories.forget()
        try:
            return self._directories.of(parent, True)
        except NotADirectoryError:
            raise ArchiveError(unsafe(path, "lies below a member that is no directory"))
        except ArchiveError:
            components(path)  # the same error, with the whole name
            raise

    # Directories and links

    def _directory(self, member: Member) -> None:
        parts = components(member.path)
        if not parts:
            return  # the target itself: its mode and time are the caller's
        path = b"/".join(parts)
        self._symlinks.pop(path, None)
        parent, _, name = path.rpartition(b"/")
        descriptor = self._parent(parent, path)
        self._settle(descriptor, name)
        try:
            os.mkdir(name, 0o777, dir_fd=descriptor)
        except FileExistsError:
            self._drain()
            if not stat.S_ISDIR(os.lstat(name, dir_fd=descriptor).st_mode):
                os.unlink(name, dir_fd=descriptor)
                os.mkdir(name, 0o777, dir_fd=descriptor)
                if self._manifest is not None:
                    self._manifest.made(path)
        if path not in self._attributes:
            self._attributes_size += len(path) + _OBJECTS
        self._attributes[path] = (member.mode, member.mtime_ns)
        if self._manifest is not None:
            self._manifest.dated(path, member.mtime_ns)
        # What was kept is gone through again only once there is as much beside it.
        if self._attributes_size > _LATER_LIMIT + 2 * self._attributes_kept:
            self._drain()
            self.set_attributes(path + b"/")

    def _symlink(self, member: Member) -> None:
        parts = components(member.path)
        if not parts:
            raise ArchiveError(unsafe(member.path, "would replace the target itself"))
        if not member.target or b"\0" in member.target:
            raise ArchiveError(unsafe(member.path, "is a symlink to nothing"))
        path = b"/".join(parts)
        self._make_later(path, _Symlink(member.target, member.mtime_ns), len(member.target))

    def _make_later(self, path: bytes, link: _Symlink, size: int) -> None:
        self._symlinks.pop(path, None)
        self._symlinks[path] = link
        self._symlinks_size += len(path) + size + _OBJECTS
        if self._symlinks_size > _LATER_LIMIT:
            self._make_symlinks()

    def _make_symlinks(self) -> None:
        self._drain()
        for path, link in self._symlinks.items():
            check()
            try:
                self._make_symlink(path, link)
            except OSError as error:
                raise self._failure(error, path)
            if self._manifest is not None:
                self._manifest.made(path)
        self._symlinks = {}
        self._symlinks_size = 0

    def _make_symlink(self, path: bytes, link: _Symlink) -> None:
        parent, _, name = path.rpartition(b"/")
        descriptor = self._parent(parent, path)
        try:
            if link.made is None:
                self._replacing(
                    descriptor, name, lambda: os.symlink(link.target, name, dir_fd=descriptor)
                )
                link.made = path
            else:
                self._link(link.made, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ArchiveError(
                    unsafe(path, "is a symlink, and other members would be written through it")
                )
            raise
        if link.mtime_ns is not None:
            os.utime(
                name, ns=(link.mtime_ns, link.mtime_ns), dir_fd=descriptor, follow_symlinks=False
            )

    def _hard_link(self, member: Member) -> None:
        parts = components(member.path)
        path = b"/".join(parts)
        if not parts or not member.target or b"\0" in member.target:
            raise ArchiveError(unsafe(path, "is a hard link without a name or a target"))
        try:
            target = b"/".join(components(member.target))
        except ArchiveError:
            raise ArchiveError(unsafe(path, "is a hard link to " + printable(member.target)))
        if target in self._symlinks:
            self._make_later(path, self._symlinks[target], 0)
            return
        self._drain()
        parent, _, name = path.rpartition(b"/")
        try:
            target_parent, _, target_name = target.rpartition(b"/")
            source = self._directories.of(target_parent)
            status = os.lstat(target_name, dir_fd=source)
        except (FileNotFoundError, NotADirectoryError):
            if member.size:  # nothing to link, but a body: that makes the file
                self._file(member)
                return
            status = None
        if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            what = "is a hard link to {}, which is no file of this archive"
            raise ArchiveError(unsafe(path, what.format(printable(member.target))))
        self._symlinks.pop(path, None)
        self.files += 1
        if path != target:
            self._parent(parent, path)
            self._link(target, path)
            if self._manifest is not None:
                self._manifest.made(path)
        if member.size and stat.S_ISREG(status.st_mode):
            # conda-pack's defect: the body is that of the one file that both names have.
            descriptor = self._parent(parent, path)
            if not status.st_mode & 0o200:
                os.chmod(name, status.st_mode | 0o200, dir_fd=descriptor)
            handle = os.open(name, _REWRITE, dir_fd=descriptor)
            os.fchmod(handle, stat.S_IMODE(status.st_mode))
            if self._manifest is not None:
                member.body = self._manifest.sampled(path, member)
            write(handle, member)

    def _link(self, existing: bytes, path: bytes) -> None:
        """Make ``path`` a hard link to ``existing``, both below the target."""
        old_parent, _, old_name = existing.rpartition(b"/")
        parent, _, name = path.rpartition(b"/")
        # A copy, because finding the second directory may close the first.
        source = os.dup(self._directories.of(old_parent))
        try:
            descriptor = self._directories.of(parent, True)
            self._replacing(
                descriptor,
                name,
                lambda: os.link(
                    *(old_name, name),
                    src_dir_fd=source,
                    dst_dir_fd=descriptor,
                    follow_symlinks=_FOLLOW,
                ),
            )
        finally:
            os.close(source)

    def _replacing(self, descriptor: int, name: bytes, make: "Callable[[], None]") -> None:
        """Call ``make``; an earlier member of the same name gives way."""
        try:
            make()
        except FileExistsError:
            self._remove(descriptor, name)
            make()

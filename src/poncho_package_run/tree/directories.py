"""Open directories below one root, reached component by component, never through a symlink."""

import errno
import os

from ..telling.errors import ArchiveError
from ..telling.messages import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Descriptors kept open; workers' limits are as low as 256 at times, and parallel writers
# and the command's own descriptors want some too.
_LIMIT = 64

# Spellings kept for each descriptor: an archive may spell one directory in endless ways.
_SPELLINGS = 4


class Directories:
    """A cache of descriptors for the directories of one tree.

    A path is walked once, every component with O_NOFOLLOW relative to the one before it;
    after that, files are created relative to the descriptor.  A descriptor names the
    directory itself, so nothing that happens to a path later leads elsewhere.

    Args:
        root: descriptor of the tree's top.
        limit: how many descriptors are kept open.

    Attributes:
        known (dict): path, as it was spelled, to descriptor: of those found last.
    """

    def __init__(self, root: int, limit: int = _LIMIT) -> None:
        self._root = root
        self._limit = limit
        self._open: Dict[tuple, int] = {(): root}
        self.known: Dict[bytes, int] = {b"": root}

    def of(self, spelled: bytes, create: bool = False) -> int:
        """The descriptor of a directory.

        Args:
            spelled: its path relative to the root, as an archive or a record spells it.
            create: make what is missing of it.

        Raises:
            ArchiveError: the path is absolute or has a ``..``.
            OSError: ENOENT, ENOTDIR (a component is a file or a symlink), or what the
                system said.
        """
        found = self.known.get(spelled)
        if found is not None:
            return found
        return self._walk(spelled, components(spelled), create)

    def _walk(self, spelled: bytes, parts: tuple, create: bool) -> int:
        depth = len(parts)
        while parts[:depth] not in self._open:
            depth -= 1
        descriptor = self._open[parts[:depth]]
        for index in range(depth, len(parts)):
            name = parts[index]
            if create:
                self.creating(descriptor, name)
                try:
                    os.mkdir(name, 0o777, dir_fd=descriptor)
                except FileExistsError:
                    pass  # opened below, if it is a directory
            if len(self._open) >= self._limit:
                self._forget(parts[:index])
            try:
                descriptor = os.open(name, _OPEN, dir_fd=descriptor)
            except OSError as error:
                if error.errno == errno.ELOOP:  # what O_NOFOLLOW says of a symlink, on some systems
                    error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                raise error
            self._open[parts[: index + 1]] = descriptor
        if len(self.known) >= _SPELLINGS * self._limit:
            self.known = {b"": self._root}
        self.known[spelled] = descriptor
        return descriptor

    def _forget(self, keep: tuple) -> None:
        """Close all but the root and ``keep``."""
        self.flush()
        for parts in [parts for parts in self._open if parts and parts != keep]:
            os.close(self._open.pop(parts))
        # A spelling is cheap to find again; which ones lead to what was closed is not.
        self.known = {b"": self._root}

    def creating(self, descriptor: int, name: bytes) -> None:
        """Called before a directory is made; whoever writes a file of its name waits here."""

    def flush(self) -> None:
        """Called before descriptors are closed; whoever uses them in threads waits here."""

    def forget(self) -> None:
        """Close all but the root: a directory has been removed or replaced."""
        self._forget(())

    def close(self) -> None:
        """Close all but the root, which belongs to the caller."""
        self._forget(())


def components(path: bytes) -> tuple:
    """The components of a relative path, without ``.`` and empty ones.

    Raises:
        ArchiveError: the path is absolute or has a ``..``: it may lead out of the tree.
    """
    plain = path
    while b"/./" in plain or b"//" in plain:  # each time half of what is in a row goes
        plain = plain.replace(b"/./", b"/").replace(b"//", b"/")
    parts = tuple([part for part in plain.split(b"/") if part and part != b"."])
    if path[:1] == b"/" or b".." in parts:
        raise ArchiveError(
            "the archive is unsafe: {} {}; nothing of it was kept".format(
                printable(path),
                "is an absolute path" if path[:1] == b"/" else "leads out through '..'",
            )
        )
    return parts

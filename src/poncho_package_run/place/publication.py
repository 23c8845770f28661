"""One rename decides: the step by which an environment comes to be where it belongs.

*Beside.*  The private directory lies in DIR's parent, and ``rename(P/env, DIR)`` puts the complete
environment in the place of the empty DIR.  Who comes second is told ENOTEMPTY.

*Inside.*  Where DIR cannot be replaced, the private directory lies in DIR itself.  Then what
decides is ``rename(P/env, DIR/.poncho_package_run_publishing)``, and what follows needs no decision
any more: its entries are renamed up, the completion marker last.  Whoever finds that directory
does the same, at once and together with others: each entry can be renamed up only once, out of the
one directory that is open; and nothing is missing from it, whoever died.
"""

import errno
import fcntl
import os
import stat
import sys

from .. import MARKER
from ..telling.errors import CannotCreate
from ..telling.failures import failure, located
from ..tree.removal import empty
from .completion import shut
from .plain import PUBLISHING
from .private import HIDDEN, PrivateDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Set, Tuple

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)

# FS_IOC_GETFLAGS of linux/fs.h on 64 bits, and the flags that say how a file system stores a
# directory, not what its user asked for (ext4's EXTENTS, INDEX and INLINE_DATA).
_GET_FLAGS = 0x80086601
_INTERNAL_FLAGS = 0x80000 | 0x1000 | 0x10000000


def entries(directory: bytes) -> "list":
    """The names in a directory, less those of this tool's work in progress. Raises OSError."""
    names = map(os.fsencode, os.listdir(directory))
    return [name for name in names if name != PUBLISHING and not name.startswith(HIDDEN)]


def can_be_replaced(directory: bytes) -> bool:
    """Whether a rename may put another directory in the place of an empty one."""
    parent = os.path.dirname(directory)
    status = os.stat(directory)
    if status.st_uid != os.geteuid() != 0:
        return False  # it would have another owner then
    if status.st_dev != os.stat(parent).st_dev or directory in _mount_points():
        return False
    try:
        # The command must not find itself in a directory that was removed.
        return not os.path.samestat(os.stat(b"."), status)
    except OSError:
        return True  # it has been removed already


def make_alike(content: int, directory: bytes) -> bool:
    """Give a private directory's content owner, group, mode and attributes of the directory whose
    place it is to take; False if that cannot be.
    """
    old = os.stat(directory)
    try:
        if os.geteuid() and old.st_mode & 0o300 != 0o300:
            return False  # nothing could be put into it
        new = os.fstat(content)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            os.fchown(content, old.st_uid, old.st_gid)
        os.fchmod(content, stat.S_IMODE(old.st_mode))
        new = os.fstat(content)
        handle = os.open(directory, _OPEN)
        try:
            same = _attributes(handle) == _attributes(content)
        finally:
            os.close(handle)
    except OSError:
        return False
    return same and (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)


def staging(directory: bytes) -> PrivateDirectory:
    """A private directory for what is to be published as ``directory``, which is empty.

    Raises OSError: none can be made.
    """
    # Only an empty one is replaced, and there may be what does not count.
    if can_be_replaced(directory) and not os.listdir(directory):
        try:
            private = PrivateDirectory(os.path.dirname(directory))
        except PermissionError:
            pass  # inside it, perhaps
        else:
            if make_alike(private.content, directory):
                return private
            with private:
                private.sweep()  # who is killed here leaves one where nobody else looks
    return PrivateDirectory(directory)


def publish(private: PrivateDirectory, directory: bytes) -> bool:
    """Put a private directory's content where it belongs; False if another was faster.

    Raises:
        CannotCreate, InputOutputError: the system refused.
    """
    inside = os.path.dirname(private.path) == directory
    target = directory + b"/" + PUBLISHING if inside else directory
    try:
        os.rename(private.content_path, target)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if inside and error.errno == errno.ENOTDIR:
            # Whoever has planted something else there: out of the way with it.
            os.rename(target, private.path + b"/junk")
            return publish(private, directory)
        error.filename = target
        raise failure(error, target)
    if not inside:
        return True
    # First, because nobody sweeps in a directory that is complete, should we be killed here.
    private.remove()
    return complete(directory)


def complete(directory: bytes) -> bool:
    """Rename up what was published inside a directory, if there is such a thing.

    Returns:
        False if there is nothing, or it came second.

    Raises:
        CannotCreate: it is another user's.
        InputOutputError: the system refused.
    """
    path = directory + b"/" + PUBLISHING
    try:
        handle = os.open(path, _OPEN)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise located(error, directory)
        return False
    try:
        # In this order: had another publication ended before this one was opened, its marker
        # would be here.
        if os.path.lexists(directory + b"/" + MARKER):
            empty(handle)
            _remove_empty(path)
            return False
        if os.fstat(handle).st_uid not in (0, os.geteuid()):
            raise CannotCreate(
                "{} holds another user's unfinished environment; choose another directory, or "
                "run it as that user".format(os.fsdecode(directory))
            )
        names = list(map(os.fsencode, os.listdir(handle)))
        for name in sorted(names, key=MARKER.__eq__):  # the marker last
            try:
                move(name, directory + b"/" + name, handle)
            except FileNotFoundError:
                pass  # another process was faster
        _remove_empty(path)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise located(error, directory)
        raise CannotCreate(
            "{} was filled by something else meanwhile; empty it".format(os.fsdecode(directory))
        )
    finally:
        shut(handle)
    return os.path.lexists(directory + b"/" + MARKER)


def _remove_empty(path: bytes) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # gone, or it is another's who came second, and takes it away himself


def move(name: bytes, target: bytes, source: "Optional[int]" = None) -> None:
    """Rename, also a directory that its owner may not write; ``name`` is relative to ``source``.

    Raises OSError.
    """
    try:
        os.rename(name, target, src_dir_fd=source)
    except PermissionError:
        # A directory that its owner may not write cannot change its parent.
        mode = stat.S_IMODE(os.lstat(name, dir_fd=source).st_mode)
        if mode & 0o200:
            raise
        os.chmod(name, mode | 0o200, dir_fd=source)
        os.rename(name, target, src_dir_fd=source)
        os.chmod(target, mode)


def _attributes(handle: int) -> "Tuple[Dict[str, bytes], int]":
    """Extended attributes (an ACL is one) and inode flags (chattr(1)) of an open directory."""
    values = {}
    for name in os.listxattr(handle) if hasattr(os, "listxattr") else ():
        values[name] = os.getxattr(handle, name)
    try:
        flags = fcntl.ioctl(handle, _GET_FLAGS, bytes(8))
    except OSError:
        return values, 0  # a file system without them
    return values, int.from_bytes(flags[:4], sys.byteorder) & ~_INTERNAL_FLAGS


def _mount_points() -> "Set[bytes]":
    """The fifth field of each line of proc(5)'s mountinfo; none on other systems."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            fields = [line.split(b" ")[4] for line in file]
    except (OSError, IndexError):
        return set()
    return {_unescaped(field) for field in fields}


def _unescaped(field: bytes) -> bytes:
    """A field of proc(5)'s mountinfo, in which blanks and backslashes are octal escapes."""
    first, *others = field.split(b"\\")
    return first + b"".join(bytes((int(each[:3], 8),)) + each[3:] for each in others)

"""Where in an unpacked tree its environment lies, and whether that can run here."""

import errno
import os
import stat
import sys

from ..machine.architecture import HEAD, foreign
from ..telling.errors import ArchiveError
from ..telling.failures import wrong_machine
from ..telling.messages import printable
from ..tree.names import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Directories around an environment: a tree is not gone down for ever.
_LEVELS = 16

# What macOS puts into archives, with names that begin with "._".
_BESIDE = (b".DS_Store", b"__MACOSX")

# Links that lead to a program; the system follows as many.
_LINKS = 40

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def find_prefix(directory: int) -> "Optional[bytes]":
    """Where below a directory the environment is: there, or where single directories lead to.

    An environment has ``conda-meta``, ``bin/activate`` or ``pyvenv.cfg``.  What macOS and this tool
    put beside it does not count; a symlink is not followed, since it leads to what is not ours.

    Args:
        directory: descriptor; it stays open.

    Returns:
        The relative path, b"" for the directory itself; None if there is no environment.

    Raises:
        ArchiveError: it is one of Windows.
        OSError: a directory cannot be read.
    """
    prefix = b""
    current = os.dup(directory)
    try:
        for _ in range(_LEVELS):
            if _has(current, b"conda-meta", b"bin/activate", b"pyvenv.cfg"):
                _refuse_windows(current)
                return prefix
            name = _only(current)
            if name is None:
                _refuse_windows(current)
                return None
            try:
                below = os.open(name, _OPEN, dir_fd=current)
            except OSError as error:
                if error.errno in _ABSENT:
                    return None  # a file or a symlink
                raise
            os.close(current)
            current = below
            prefix = os.path.join(prefix, name)
        return None
    finally:
        os.close(current)


def check_python(directory: int, prefix: bytes, final: bytes) -> None:
    """Make sure that the environment's Python, if it has one, is a program that is here.

    Args:
        directory: descriptor of the tree.
        prefix: what ``find_prefix`` said.
        final: the absolute path that the tree will have; links may lead there.

    Raises:
        ArchiveError: it can never run; the message says why, and what to do.
        RelocationError: it is for another kind of machine.
        OSError: a directory cannot be read.
    """
    path = os.path.join(prefix, b"bin/python")
    try:
        status = os.stat(path, dir_fd=directory)
    except PermissionError:
        return  # a link into what is closed to this user: no part of the tree, and perhaps of use
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        target = _missing(directory, path, final)
        if not target:
            return
        what = "leads to {}, which is not {}".format(
            printable(target),
            "on this machine: install that, or pack a Conda environment, which carries its Python "
            "(--help-env-creation)"
            if target[:1] == b"/"
            else "in the archive; pack the environment again",
        )
    else:
        if not stat.S_ISREG(status.st_mode):
            what = "is no file; pack the environment again"
        elif not status.st_size:
            what = "is empty (0 bytes); pack the environment again"
        elif not status.st_mode & 0o111:
            mode = stat.S_IMODE(status.st_mode)
            what = "has lost its x bit (mode {:o}); pack it with conda-pack".format(mode)
        else:
            _check_machine(directory, path)
            return
    raise ArchiveError("the environment's {} {}".format(printable(path), what))


def _check_machine(directory: int, path: bytes) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        return  # it may be run all the same
    try:
        found = foreign(os.read(handle, HEAD))
    finally:
        os.close(handle)
    if found is not None:
        raise wrong_machine(path, *found)


def _missing(directory: int, path: bytes, final: bytes) -> bytes:
    """What a link leads to that is not there; b"" if it is there, or if that cannot be told.

    A relative link that leads out of the tree will lead elsewhere once that is in its place.
    """
    missing = b""
    for _ in range(_LINKS):
        try:
            target = os.readlink(path, dir_fd=directory)
        except OSError as error:
            return b"" if error.errno == errno.EINVAL else missing  # it is no link
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if path.startswith(final + b"/"):
            path = path[len(final) + 1 :]
        if (path + b"/").startswith(b"../"):
            return b""
        missing = path
        if path[:1] == b"/":
            break
    return missing


def _only(directory: int) -> "Optional[bytes]":
    """The one name in a directory that counts; None if there are more, or none."""
    count, only = 0, b""
    # One by one, where that can be had: some archive will have a million.
    for entry in os.scandir(directory) if sys.version_info >= (3, 7) else os.listdir(directory):
        name = os.fsencode(entry)
        if not (name.startswith(b"._") or name in _BESIDE or is_ours(name)):
            count, only = count + 1, name
    return only if count == 1 else None


def _has(directory: int, *names: bytes) -> bool:
    for name in names:
        try:
            os.lstat(name, dir_fd=directory)
            return True
        except OSError as error:
            if error.errno not in _ABSENT:
                raise  # it says nothing about the environment
    return False


def _refuse_windows(directory: int) -> None:
    if _has(directory, b"python.exe", b"Scripts") and not _has(directory, b"bin"):
        raise ArchiveError(
            "the environment is one of Windows (python.exe or Scripts, and no bin); pack it on a "
            "machine like this"
        )

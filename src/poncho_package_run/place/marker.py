"""What a completion marker of ours says, and how it comes to be written.

JSON with sorted keys, in UTF-8 with every byte of a path kept (surrogateescape), whatever the
locale: a warm start compares its bytes and does not parse it.
"""

import os
import stat

from .. import MARKER, OURS, __version__
from ..machine import process
from .completion import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    Facts = Dict[str, Any]

_TEXT = ("utf-8", "surrogateescape")


def facts(
    directory: bytes,
    root: bytes,
    archive: bytes,
    size: "Optional[int]",
    mtime_ns: "Optional[int]",
    manifest: "Optional[str]",
    files: "Optional[int]" = None,
    content: "Optional[int]" = None,
    first: "Optional[str]" = None,
) -> "Facts":
    """What a marker is to say.

    Args:
        directory: where the environment lies in the end, absolute and real.
        root: the environment's own directory below it; empty if that is the directory itself.
        archive, size, mtime_ns: what was unpacked; None where there is no such number (a pipe).
        manifest: what ``Manifest.finish`` said; None without one.
        files, content: the number of files, and the bytes in them.
        first: what ``first_of`` said; None if somebody may have use for a part of it.
    """
    import time

    found = process.describe()
    found.update(
        archive=archive.decode(*_TEXT),
        archive_mtime_ns=mtime_ns,
        archive_size=size,
        bytes=content,
        files=files,
        first=first,
        manifest=manifest,
        on_disk=False,
        prefix=join(directory, root).decode(*_TEXT),
        root=root.decode(*_TEXT),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        version=__version__,
    )
    return found


def relocated(found: "Facts", directory: bytes, root: bytes) -> "Facts":
    """The same, relocated anew; its files are not as the manifest says any more."""
    prefix = join(directory, root).decode(*_TEXT)
    return dict(found, manifest=None, prefix=prefix, root=root.decode(*_TEXT))


def join(directory: bytes, root: bytes) -> bytes:
    """The prefix of the environment that lies at ``root`` below a directory."""
    return directory + b"/" + root if root else directory


_NEXT = OURS + b"marker"

# Of the fields of a marker, those that are read again.
_KINDS = {
    "archive": str,
    "archive_mtime_ns": int,
    "archive_size": int,
    "boot_id": str,
    "bytes": int,
    "files": int,
    "first": str,
    "host": str,
    "machine_id": str,
    "manifest": str,
    "on_disk": bool,
    "pid": int,
    "prefix": str,
    "root": str,
    "time": str,
    "version": str,
}


def put(directory: int, found: "Facts", scratch: "Optional[int]" = None) -> None:
    """Write the marker and have it on the disk.

    Args:
        directory: descriptor of where it belongs.
        found: what it says.
        scratch: descriptor of a private directory on the same file system, where it is to take the
            place of an older one, by ``take_effect``; None in a directory that is private itself.

    Raises OSError.
    """
    import json

    text = json.dumps(found, sort_keys=True, ensure_ascii=False)
    where = directory if scratch is None else scratch
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(MARKER, flags, 0o666, dir_fd=where)
    try:
        data = text.encode(*_TEXT) + b"\n"
        while data:
            data = data[os.write(handle, data) :]
        if scratch is not None:
            _give_way(handle, directory, scratch)
        os.fsync(handle)
    finally:
        os.close(handle)
    if scratch is not None:
        os.rename(MARKER, _NEXT, src_dir_fd=scratch, dst_dir_fd=directory)


def take_effect(directory: bytes) -> None:
    """Give a new marker its name: the last step, when the private directory is gone already.

    Who is killed between the two leaves what the next run, which finds the old one, replaces.
    """
    try:
        os.rename(directory + b"/" + _NEXT, directory + b"/" + MARKER)
    except FileNotFoundError:
        pass  # another process has done the same


def _give_way(new: int, directory: int, scratch: int) -> None:
    """Let the new marker be read by whom the old one is; what is no file is put out of the way."""
    try:
        old = os.lstat(MARKER, dir_fd=directory)
        if stat.S_ISREG(old.st_mode):
            os.fchmod(new, stat.S_IMODE(old.st_mode) & 0o777)
            os.fchown(new, -1, old.st_gid)
        else:
            os.rename(MARKER, b"junk", src_dir_fd=directory, dst_dir_fd=scratch)
    except (FileNotFoundError, PermissionError):
        pass  # there was none; or it is another group's, to which we do not belong


def parse(marker: bytes) -> "Optional[Facts]":
    """What a marker of ours says; None if it is damaged.  Anybody may have written it."""
    import json

    try:
        given = json.loads(marker.decode(*_TEXT))
        found = {key: given[key] for key in _KINDS if type(given.get(key)) is _KINDS[key]}
        json.dumps(found, ensure_ascii=False).encode(*_TEXT)
        prefix, root = found["prefix"], found.get("root", "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not prefix.startswith("/") or "\0" in prefix or len(prefix) >= 4096 or not _is_below(root):
        return None
    return found


def first_of(directory: bytes) -> "Optional[str]":
    """The path in a directory of what ``rm -rf`` removes first; None if that is not to be told.

    That is the first in the order of readdir(3), down to what is no directory: of which nothing is
    gone yet, nothing else is. Later files may come before it, and are not missed if they are gone.
    """
    below = b""
    try:
        while True:
            with os.scandir(os.path.join(directory, below)) as found:
                entry = next((each for each in found if not each.name.startswith(OURS)), None)
            if entry is not None:
                below = os.path.join(below, entry.name)
            if entry is None or not entry.is_dir(follow_symlinks=False):
                break
    except OSError:
        return None  # not to be read, or too deep
    # Of what has to be escaped in JSON a warm start makes nothing.
    return None if set(below) & {*range(32), *b'"\\'} else below.decode(*_TEXT) or None


def has_first(directory: bytes, found: "Facts") -> bool:
    """Whether nobody has begun to remove an environment by hand, as far as that shows."""
    first = found.get("first")
    return not first or exists(directory + b"/" + first.encode(*_TEXT))


def prefix_of(found: "Facts") -> bytes:
    """The path to which the environment was relocated."""
    return found["prefix"].encode(*_TEXT)  # type: ignore[no-any-return]


def root_of(found: "Facts") -> "Optional[bytes]":
    """Where below its directory the environment lies; None in the marker of an older version."""
    root = found.get("root")
    return None if root is None else root.encode(*_TEXT)


def is_unproven(found: "Facts") -> bool:
    """Whether this machine has restarted since, and no one has looked at the files.

    Of another machine's restarts nothing is known here: its markers are trusted.
    """
    if not found.get("manifest") or found.get("on_disk") is True:
        return False
    here = process.describe()
    if None in (found.get("boot_id"), here["boot_id"]) or found["boot_id"] == here["boot_id"]:
        return False
    key = "machine_id" if here["machine_id"] and found.get("machine_id") else "host"
    return bool(found.get(key) == here[key])


def _is_below(root: str) -> bool:
    return not root or all(part not in ("", ".", "..") for part in root.split("/"))

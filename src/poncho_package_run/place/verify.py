"""Completion markers: what they say, and what to do about one that does not say the expected."""

import os

from ..machine import holder
from ..telling.messages import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional


def verify(marker: bytes, directory: bytes, archive: "Optional[bytes]") -> bool:
    """Whether the directory's environment may be used as it is; differences are told in one line.

    Args:
        marker: the content of the completion marker; the CCTools script's is empty.
        directory: absolute and real.
        archive: the archive that the caller named; None if it named the directory.
    """
    facts = _parse(marker)
    if facts is None:
        return True  # another tool's marker: nothing is known that could be compared
    if _is_unproven(facts):
        return False
    name = os.fsdecode(directory)
    size, mtime_ns, prefix = facts["archive_size"], facts.get("archive_mtime_ns"), facts["prefix"]
    if archive is not None and size is not None:
        try:
            status = os.stat(archive)
        except OSError as error:
            warn("{} is used as it is; {}: {}".format(name, os.fsdecode(archive), error.strerror))
            return True
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            warn(
                "{} was unpacked from another archive than {} (size or time differ) and is used as "
                "it is; remove it to unpack again".format(name, os.fsdecode(archive))
            )
            return True
    if prefix != name and not prefix.startswith(name + "/"):
        warn(
            "{} was relocated to {} and has moved since; it is used as it is; remove it to unpack "
            "again".format(name, prefix)
        )
    return True


def prove(path: bytes, directory: bytes) -> str:
    """Compare a directory's files with its manifest, if its marker is from before a restart.

    If all are whole, the marker says so from then on, if it can be written: what was read after
    a restart was read from the disk.  To be called with the lock held, where there is one.

    Args:
        path: the completion marker.
        directory: absolute and real.

    Returns:
        What is damaged, for a message; "" if nothing is, or nothing is known about it.

    Raises:
        OSError: the directory cannot be read.
    """
    with open(path, "rb", 0) as file:
        facts = _parse(file.read())
    if facts is None or not _is_unproven(facts):
        return ""
    from ..durability.survey import damage

    found = damage(directory, facts["manifest"])
    if not found:
        try:
            put(path, _encode(dict(facts, on_disk=True)))
        except OSError:
            pass  # read-only, or full: the next run will compare again
    return found


def facts(
    prefix: bytes, archive: bytes, size: object, mtime_ns: object, manifest: "Optional[str]"
) -> bytes:
    """The content of a completion marker: JSON, in a form whose bytes can be compared.

    It describes its writer as an in-progress marker does, in one line: for an instant it is one.

    Args:
        size, mtime_ns: of the archive, int; None for a pipe.
        manifest: what ``Manifest.finish`` said; None for a directory without one.
    """
    import time

    from .. import __version__

    entries = holder.describe()
    entries.update(
        archive=os.fsdecode(archive),
        archive_mtime_ns=mtime_ns,
        archive_size=size,
        manifest=manifest,
        on_disk=False,
        prefix=os.fsdecode(prefix),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        version=__version__,
    )
    return _encode(entries)


def put(path: bytes, content: bytes) -> None:
    """Write a file that is there with all its content on disk, or not at all. Raises OSError."""
    new = path + b".new"
    try:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError as error:
        try:
            os.unlink(new)
        except OSError:
            pass  # it was not made
        error.filename = path
        raise error


def _parse(marker: bytes) -> "Optional[Dict[str, Any]]":
    """What a marker of ours says; None for another tool's."""
    import json

    try:
        facts = json.loads(marker.decode("ascii"))
        ours = isinstance(facts["prefix"], str) and "archive_size" in facts
        return facts if ours else None
    except (ValueError, TypeError, KeyError):
        return None


def _encode(facts: "Dict[str, Any]") -> bytes:
    import json

    return json.dumps(facts, sort_keys=True).encode("ascii") + b"\n"


def _is_unproven(facts: "Dict[str, Any]") -> bool:
    """Whether this machine has restarted since, and no one has looked at the files.

    Of another machine's restarts nothing is known here: its markers are trusted.
    """
    here = holder.describe()
    boots = (facts.get("boot_id"), here["boot_id"])
    return bool(
        facts.get("manifest")
        and not facts.get("on_disk")
        and facts.get("host") == here["host"]
        and None not in boots
        and boots[0] != boots[1]
    )

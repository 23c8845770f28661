"""A completion marker that does not say the expected: what it means, and what to tell."""

import os

from . import holder
from .report import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def verify(marker: bytes, directory: bytes, archive: "Optional[bytes]") -> bool:
    """Whether the directory's environment may be used; differences are told in one line.

    Args:
        marker: the content of the completion marker; the CCTools script's is empty.
        directory: absolute and real.
        archive: the archive that the caller named; None if it named the directory.
    """
    import json

    try:
        facts = json.loads(marker.decode("ascii"))
        size, mtime_ns = facts["archive_size"], facts["archive_mtime_ns"]
        prefix = os.fsencode(facts["prefix"])
    except (ValueError, TypeError, KeyError):
        return True  # another tool's marker: nothing is known that could be compared
    name = os.fsdecode(directory)
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
    if prefix != directory and not prefix.startswith(directory + b"/"):
        warn(
            "{} was relocated to {} and has moved since; it is used as it is; remove it to unpack "
            "again".format(name, os.fsdecode(prefix))
        )
    return True


def facts(prefix: bytes, archive: bytes, size: object, mtime_ns: object) -> bytes:
    """The content of a completion marker: JSON, one key a line, so that bytes can be compared.

    Args:
        size, mtime_ns: of the archive, int; None for a pipe.
    """
    import json
    import time

    from . import __version__

    entries = holder.describe()
    entries.update(
        archive=os.fsdecode(archive),
        archive_mtime_ns=mtime_ns,
        archive_size=size,
        prefix=os.fsdecode(prefix),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        version=__version__,
    )
    return json.dumps(entries, indent=0, sort_keys=True, separators=(",", ": ")).encode("ascii")

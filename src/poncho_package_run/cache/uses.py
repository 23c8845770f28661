"""The first use of an environment where a lock reaches."""

import os

from ..machine.process import machine_id
from ..place.completion import BOOT, REACH, line


def reach(cache: bytes) -> bytes:
    """The name that stands for as far as a lock in a cache reaches at most."""
    try:
        boot = line(BOOT)
    except OSError:
        boot = os.fsencode(os.uname().nodename)
    return REACH % (boot, os.stat(cache).st_dev)


def machine() -> bytes:
    """This machine, whatever its boot; b"" if it has no machine-id(5), which images may share."""
    known = machine_id()
    return os.fsencode("{} {}".format(known, os.uname().nodename)) if known else b""


def begin(cache: bytes, folder: bytes) -> None:
    """Make or date the file that is dated with the last use; it names this machine.

    What cannot be written is left: then the environment's own time counts.

    Args:
        folder: of the environment's uses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for each in (os.path.dirname(folder), folder):
            try:
                os.mkdir(each, 0o700)
            except FileExistsError:
                if os.path.islink(each):
                    return  # what it leads to is none of the cache's
        handle = os.open(folder + reach(cache), flags, 0o600)
        try:
            os.write(handle, machine())
        finally:
            os.close(handle)
    except OSError:
        pass  # the cache is another user's, or full

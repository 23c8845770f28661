"""A directory that nobody has marked: an environment that is used as it is, or none.

Compiled at every start in such a directory: keep it short.
"""

import fcntl
import os

from .. import MARKER, OURS
from .completion import exists, is_prefix, is_trusted

# What is being published inside a directory (see ``publication``).
PUBLISHING = OURS + b"publishing"


def is_plain(directory: bytes) -> bool:
    """Whether a directory is an environment that nobody has marked and that is used as it is.

    Without a marker and without conda-pack's script there is nothing to be done, but somebody may
    be unpacking: this program, so that what is published inside the directory is looked for last,
    or the CCTools script, which holds a lock.

    Args:
        directory: absolute and real.
    """
    if exists(directory + b"/bin/conda-unpack") or not is_prefix(directory):
        return False
    if not is_trusted(directory):
        return False
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here, or not to be opened: nobody to wait for
    return not exists(directory + b"/" + PUBLISHING) and not exists(directory + b"/" + MARKER)

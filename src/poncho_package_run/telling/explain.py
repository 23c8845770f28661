"""What a failure means to the user: one line on stderr, and an exit status."""

import os
import sys

from .errors import Failure
from .failures import located
from .messages import warn


def status_of(error: BaseException) -> int:
    """Tell a failure on stderr, unless it says nothing new; give the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    signum = getattr(error, "signum", 2 if isinstance(error, KeyboardInterrupt) else None)
    if signum is not None:
        return 128 + int(signum)  # ended by a signal: whoever sent it knows
    status, message = Failure.status, "{}: {}".format(type(error).__name__, error)
    if isinstance(error, Failure):
        status, message = error.status, str(error)
    elif isinstance(error, ImportError):
        if (error.name or "poncho").startswith("poncho"):
            raise error  # no module of ours is missing, but the file that they are read from
        status = 69
        message = "{} lacks a part of its library: {}; use another Python".format(
            sys.executable, error
        )
    elif isinstance(error, MemoryError):
        status, message = 74, "out of memory; give the task more"
    elif isinstance(error, OSError) and error.filename is not None:
        failed = located(error, b"")
        status, message = failed.status, str(failed)
    elif isinstance(error, OSError):
        status, message = 74, "the system says: {}; try again".format(error.strerror)
    else:
        message += " (a defect of this tool; please report it with this line)"
    warn(message)
    if os.environ.get("PONCHO_PACKAGE_RUN_DEBUG") == "traceback":
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    return status

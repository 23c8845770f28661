"""What few command lines need: values that may be refused."""

import os

from .errors import CannotCreate, UsageError


def seconds(text: str) -> float:
    """The value of ``--wait-for-lock``.

    Raises:
        UsageError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(
            "--wait-for-lock takes a number of seconds, not {}; see --help".format(ascii(text))
        )
    return value


def anchored(path: str) -> None:
    """Make sure that a relative path is relative to something.

    Raises:
        CannotCreate: the working directory has been removed.
    """
    try:
        os.getcwdb()
    except OSError as error:
        why = "cannot use {}: the working directory: {}; give a path that begins with /"
        raise CannotCreate(why.format(path, error.strerror))

"""What few command lines need: values that may be refused."""

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


def size(text: str) -> int:
    """The value of ``--cache-limit``, in bytes: a number, and K, M, G or T for powers of 1024.

    Raises:
        UsageError: it is none.
    """
    number, unit = text, ""
    for ending in ("iB", "B"):
        if number.endswith(ending):
            number = number[: -len(ending)]
            break
    if number[-1:].upper() in tuple("KMGT"):
        number, unit = number[:-1], number[-1].upper()
    try:
        value = float(number) * 1024 ** " KMGT".index(unit or " ")
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 << 63:
        raise UsageError(
            "--cache-limit takes a size such as 20G or 500M, not {}; see --help".format(ascii(text))
        )
    return int(value)


def unanchored(path: str, error: OSError) -> CannotCreate:
    """A relative path is relative to nothing: the working directory has been removed."""
    why = "cannot use {}: the working directory: {}; give a path that begins with /"
    return CannotCreate(why.format(path, error.strerror))

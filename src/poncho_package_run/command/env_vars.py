"""The variables that JSON files in an environment define."""

import errno
import json
import os
import stat

# Written by ``conda env config vars unset``: activation then leaves the variable alone.
_UNSET = "***unset***"

# Bytes; what is longer, no environment could hold.
_LIMIT = 1 << 20


def read(paths: list, state: bytes, environ: dict) -> None:
    """Set in ``environ`` what the files define; one that cannot be read is told on stderr.

    Names are put in capitals, numbers become text, and null unsets, as in conda's
    ``activate.py``; a later file wins.

    Args:
        paths: files ``{"NAME": "value"}``.
        state: the one that holds this under its key "env_vars".
        environ: bytes to bytes.
    """
    merged = {}
    for path in paths:
        try:
            found = json.loads(_content(path).decode("utf-8-sig"))
            if path == state:
                found = found.get("env_vars") or {}
            merged.update({name: _variable(name, value) for name, value in found.items()})
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            from ..telling.messages import warn

            reason = getattr(error, "strerror", None) or "it is no JSON object of variables"
            warn(
                "the environment's variables in {} are not set: {}; correct that file".format(
                    os.fsdecode(path), reason
                )
            )
    for name, value in merged.values():
        if value is None:
            environ.pop(name, None)
        elif value != _UNSET.encode():
            environ[name] = value


def _content(path: bytes) -> bytes:
    """What a file holds that anybody may have put there.

    Raises:
        OSError: it cannot be read, or is a FIFO, a device, or too long.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT:
            raise OSError(errno.EINVAL, "it is no file of at most {} bytes".format(_LIMIT))
        return file.read(_LIMIT)


def _variable(name: str, value: object) -> tuple:
    """Name and value in bytes.

    Raises:
        ValueError: no environment can hold this variable.
    """
    if not name or "=" in name or "\0" in name + str(value):
        raise ValueError(name)
    # JSON is UTF-8 whatever the locale; a lone surrogate raises UnicodeEncodeError.
    return name.upper().encode(), None if value is None else str(value).encode()

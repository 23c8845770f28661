"""The variables that JSON files in an environment define."""

import json
import os

# Written by ``conda env config vars unset``: activation then leaves the variable alone.
_UNSET = "***unset***"


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
            with open(path, "rb") as file:
                found = json.loads(file.read().decode("utf-8-sig"))
            if path == state:
                found = found.get("env_vars") or {}
            merged.update({name: _variable(name, value) for name, value in found.items()})
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            from ..telling.messages import warn

            reason = getattr(error, "strerror", None) or "it is not a JSON object of variables"
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


def _variable(name: str, value: object) -> tuple:
    """Name and value in bytes.

    Raises:
        ValueError: no environment can hold this variable.
    """
    if not name or "=" in name or "\0" in name + str(value):
        raise ValueError(name)
    # JSON is UTF-8 whatever the locale; a lone surrogate raises UnicodeEncodeError.
    return name.upper().encode(), None if value is None else str(value).encode()

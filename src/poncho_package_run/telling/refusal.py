"""What to tell of a command that cannot be executed, and what to do about it."""

import errno
import os

from .errors import CannotCreate, CommandNotExecutable, CommandNotFound, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

IS_DIRECTORY = "it is a directory; name the program in it"
NOT_PERMITTED = "permission denied; make it executable with chmod +x"

# No program has these names, though a shell knows what to do with them.
_BUILTINS = (
    " . : alias bg bind break builtin caller cd command compgen complete continue declare dirs "
    "disown enable eval exec exit export fc fg getopts hash help history jobs let local logout "
    "mapfile popd pushd read readonly return set shift shopt source suspend times trap type "
    "typeset ulimit umask unalias unset wait "
)


def check_prefix(prefix: bytes) -> None:
    """Refuse a prefix that no PATH can hold.

    Raises:
        CannotCreate: there is a colon in it.
    """
    if b":" in prefix:
        raise CannotCreate(
            "cannot use {}: its name has a colon, which separates the directories of PATH; "
            "choose another directory".format(os.fsdecode(prefix))
        )


def not_found(word: bytes, error: "Optional[OSError]" = None) -> Failure:
    """The failure to tell when no file has the command's name.

    Args:
        word: the command as it was given.
        error: what the system said, of a command with a slash.
    """
    name = os.fsdecode(word)
    if isinstance(error, PermissionError):
        return not_executable(word, "permission denied; make its directories searchable")
    if b"/" in word:
        reason = error.strerror if error else os.strerror(errno.ENOENT)
        return CommandNotFound(
            "cannot run {}: {}; check the path, it is taken from the working directory".format(
                name, reason
            )
        )
    if " {} ".format(name) in _BUILTINS:
        return CommandNotFound(
            "command not found: {0} is a builtin of shells, not a program; "
            "run it by one: sh -c '{0} ...'".format(name)
        )
    return CommandNotFound(
        "command not found: {}; check the spelling, or install it into the environment before "
        "packing it".format(name or "'' (an empty word)")
    )


def not_executable(path: bytes, reason: str) -> Failure:
    """The failure to tell when the file is there; ``reason`` ends with what to do."""
    return CommandNotExecutable("cannot run {}: {}".format(os.fsdecode(path), reason))

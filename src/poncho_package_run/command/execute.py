"""Becoming the command.  Compiled at every start: keep it short."""

import _signal  # type: ignore[import-not-found]  # the module signal takes 2 ms, for its enums
import os
import sys


def execute(command: list, environ: dict) -> None:
    """Replace this process by the command, found on the PATH of its own environment.

    Args:
        command: argv, bytes.
        environ: bytes to bytes.

    Raises:
        CommandNotFound: there is no such file.
        CommandNotExecutable: the system refuses to execute it.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Else a Ctrl-C from here on would set a flag of the interpreter that execve forgets.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()

    word = command[0]
    paths = [word]
    if b"/" not in word:
        folders = environ.get(b"PATH", b"/bin:/usr/bin").split(b":") if word else []
        paths = [os.path.join(folder or b".", word) for folder in folders]
    absent = refused = None
    for path in paths:
        try:
            os.execve(path, command, environ)
        except OSError as error:
            if os.path.exists(path):
                from .judge import judge

                refused = judge(path, error, command, environ) or refused
            elif b"/" in word:
                absent = error
    from ..telling.refusal import not_found

    raise refused or not_found(word, absent)

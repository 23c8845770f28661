"""Becoming the command.  Compiled at every start: keep it short."""

import _signal  # type: ignore[import-not-found]  # the module signal takes 2 ms, for its enums
import os


def execute(command: list, environ: dict, folder: bytes = b"", debug: bool = False) -> None:
    """Replace this process by the command.

    A name without a slash is looked for along PATH.  What is no program there (a directory, a
    file that may not be executed, a link to nothing) is passed over, as by every shell; but a
    name that ``folder`` has is the one that was meant, and what it cannot do nothing else does.

    Args:
        command: argv, bytes.
        environ: bytes to bytes.
        folder: absolute path of the environment's ``bin``.
        debug: tell which program is run.

    Raises:
        CommandNotFound: there is no such file.
        CommandNotExecutable: the system refuses to execute it.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Else a Ctrl-C from here on would set a flag of the interpreter that execve forgets.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    word = command[0]
    absent = refused = None
    for path in candidates(word, environ):
        if debug and os.path.lexists(path):
            from ..telling.messages import warn

            warn("running " + os.fsdecode(os.path.abspath(path)))
        try:
            os.execve(path, command, environ)
        except OSError as error:
            if os.path.lexists(path):
                from .judge import judge

                refused, passed_over = judge(path, error, command, environ)
                if not passed_over or os.path.dirname(path) == folder:
                    raise refused
            elif b"/" in word:
                absent = error
    from ..telling.refusal import not_found

    raise refused or not_found(word, absent)


def candidates(word: bytes, environ: dict) -> list:
    """The paths that a command's first word may stand for, in order."""
    if b"/" in word:
        return [word]
    if word in (b"", b".", b".."):
        return []
    folders = environ.get(b"PATH", b"/bin:/usr/bin").split(b":")
    return [os.path.join(folder or b".", word) for folder in folders]

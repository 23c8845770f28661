"""Waiting for the command: signals are forwarded to it, and it is reaped."""

import os
import signal

from . import errors
from .execute import execute
from .signals import numbers, postpone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# Not to be forwarded, as in tini and dumb-init: news of the child, faults of our own, what
# nobody can catch, and the terminal's word that we are in the background.
_KEPT = "CHLD ABRT BUS FPE ILL SEGV SYS TRAP EMT KILL STOP TTIN TTOU".split()

# What a terminal sends to the whole foreground process group.
_OF_TERMINAL = "HUP INT QUIT TSTP WINCH INFO".split()


def supervise(command: list, environ: dict, lease: "Optional[int]" = None) -> int:
    """Run the command in a child and wait for it, as if it were this process.

    The child is in our process group and has our descriptors, signal mask and dispositions.
    Every signal sent to us is sent to it, once; when it stops we stop, and when we are
    continued it is.  What the command leaves running is not waited for.

    Args:
        command: argv, bytes.
        environ: bytes to bytes.
        lease: a descriptor that the command and what it starts are to hold open.

    Returns:
        The command's exit status, 128+N if signal N ended it.  Any context ``interruptible``
        is then postponed: what is left to do is to clean up.

    Raises:
        CommandNotFound, CommandNotExecutable: as ``execute``.
    """
    forwarded = numbers(_KEPT)
    # If our caller ignored SIGCHLD, the kernel would throw the child's status away.
    reaped_by_kernel = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    if reaped_by_kernel:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Blocked before the fork, so that none is lost: a blocked signal waits for sigwaitinfo,
    # even where its disposition is to be ignored.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [*forwarded, signal.SIGCHLD])
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if reaped_by_kernel:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            _become(command, environ, mask, lease)
        except BaseException as error:
            os.write(writer, type(error).__name__.encode() + b" " + os.fsencode(str(error)))
        finally:
            os._exit(127)
    os.close(writer)
    try:
        status = _wait(child, forwarded)
    finally:
        postpone()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with os.fdopen(reader, "rb") as pipe:
        name, _, message = pipe.read().partition(b" ")
    if name:
        raise getattr(errors, name.decode(), errors.Failure)(os.fsdecode(message))
    return -status if status < 0 else status

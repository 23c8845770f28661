"""Waiting for the command: signals are forwarded to it, and it is reaped."""

import fcntl
import os
import signal
import time

from ..machine.signals import FAULTS, check, numbers
from ..telling import errors
from .execute import execute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, Sequence

# Not to be forwarded, as in tini and dumb-init: news of the child, faults of our own, what
# nobody can catch, and the terminal's word that we are in the background.
_KEPT = [*FAULTS, "CHLD", "KILL", "STOP", "TTIN", "TTOU"]

# si_code of a signal that the kernel itself sends: SI_KERNEL of Linux and of FreeBSD.
_SI_KERNEL = (0x80, 0x10006)

_CHANGES = os.WNOHANG | os.WUNTRACED | os.WCONTINUED

_TEXT = ("utf-8", "surrogateescape")

# What a terminal sends to the whole foreground process group.
_OF_TERMINAL = ("HUP", "INT", "QUIT", "TSTP", "WINCH", "INFO")


# Seconds.
_HOUR = 3600
_LOOK = 0.1


def supervise(
    command: list,
    environ: dict,
    folder: bytes,
    debug: bool,
    leases: "Sequence[int]" = (),
    hourly: "Optional[Callable[[], object]]" = None,
) -> int:
    """Run the command in a child and wait for it, as if it were this process.

    The child is in our process group and has our descriptors, signal mask and dispositions.
    Every signal sent to us is sent to it, once; when it stops we stop, and when we are
    continued it is.  What the command leaves running is not waited for; as process 1 we reap it.

    Args:
        command, environ, folder, debug: as for ``execute``.
        leases: descriptors that the command and what it starts are to hold open.
        hourly: called about once an hour, where the system can wait for signals that long.

    Returns:
        The command's exit status, 128+N if signal N ended it.

    Raises:
        CommandNotFound, CommandNotExecutable: as ``execute``.
        Terminated: a signal came before the command was started.
    """
    forwarded = numbers(_KEPT)
    # If our caller ignored SIGCHLD, the kernel would throw the child's status away.
    reaped_by_kernel = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    if reaped_by_kernel:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Blocked before the fork, so that none is lost: a blocked signal waits for sigwaitinfo,
    # even where its disposition is to be ignored.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [*forwarded, signal.SIGCHLD])
    try:
        check()
        try:
            reader, writer = os.pipe()
            # What has come already is not the child's, even if a terminal has sent it.
            early = signal.sigpending()
            child = os.fork()
        except OSError as error:
            raise errors.CommandNotExecutable(
                "cannot start {}: {}; allow more processes or open files (ulimit -u, -n)".format(
                    os.fsdecode(command[0]), error.strerror
                )
            )
        if not child:
            try:
                if reaped_by_kernel:
                    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                _prepare(mask, leases)
                execute(command, environ, folder, debug)
            except BaseException as error:
                # Nobody reads before we end: more than this might not fit into a pipe.
                os.write(writer, (type(error).__name__ + " " + str(error)).encode(*_TEXT)[:4096])
            finally:
                os._exit(127)
        os.close(writer)
        status = _wait(child, forwarded, early, hourly)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with os.fdopen(reader, "rb") as pipe:
        name, _, message = pipe.read().decode(*_TEXT).partition(" ")
    if name:
        raise getattr(errors, name, errors.Failure)(message)
    return status


def _prepare(mask: set, leases: "Sequence[int]") -> None:
    """In the child: undo what is ours."""
    # (Those that CPython ignored have a handler that does nothing: a message of the child's may
    # meet a stderr that nobody reads.)
    for number in numbers([*_KEPT, "PIPE", "XFSZ"]):
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
            # A handler of ours must not run in the child once the mask lets signals through.
            signal.signal(number, signal.SIG_DFL)
    for lease in leases:
        # Where the caller has closed it the lease may be standard input.  The copy is inherited,
        # and out of the way of descriptors that are passed by number.
        fcntl.fcntl(lease, fcntl.F_DUPFD, 10)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wait(
    child: int, forwarded: list, early: set, hourly: "Optional[Callable[[], object]]"
) -> int:
    """Forward signals until the child has ended; its exit status."""
    # Orphans are given to process 1; whoever else has other children got them from its caller.
    reaped = -1 if os.getpid() == 1 else child
    due = time.monotonic() + _HOUR
    longest = _HOUR if _is_single_threaded() else _LOOK
    while True:
        seconds = min(longest, due - time.monotonic())
        number, code = _next([*forwarded, signal.SIGCHLD], seconds)
        if time.monotonic() >= due:
            due = time.monotonic() + _HOUR
            if hourly is not None:
                hourly()
        if number not in (0, signal.SIGCHLD):
            if number in early or not _is_from_terminal(number, code, child):
                _send(child, number)
            early.discard(number)
            continue
        changed, status = os.waitpid(reaped, _CHANGES)
        while changed:
            continued = False
            if changed == child:
                if os.WIFEXITED(status):
                    return os.WEXITSTATUS(status)
                if os.WIFSIGNALED(status):
                    return 128 + os.WTERMSIG(status)
                continued = os.WIFSTOPPED(status) and _stop(os.WSTOPSIG(status))
            changed, status = os.waitpid(reaped, _CHANGES)
            if continued and changed != child:
                # We were continued, but not as a member of our group, or it would be too.
                _send(child, signal.SIGCONT)


def _is_single_threaded() -> bool:
    """Whether nobody else in this process may be given news of the child.

    A preloaded library may have started a thread before the tool began.  What the kernel gives to
    it, between two waits of ours, is lost.  (Threads of a site's hooks are gone: see ``again``.)
    """
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return True


def _send(child: int, number: int) -> None:
    try:
        os.kill(child, number)  # it is not yet reaped, so the number is still its own
    except PermissionError:
        pass  # it has become another user (sudo), and no one but that user can signal it


def _next(numbers: list, seconds: float) -> tuple:
    """The next of these (blocked) signals, and the kernel's word on where it comes from.

    The number is 0 if so many seconds have passed without any.
    """
    if hasattr(signal, "sigtimedwait"):
        info = signal.sigtimedwait(numbers, max(0, seconds))
        return (info.si_signo, info.si_code) if info is not None else (0, None)
    return signal.sigwait(numbers), None


def _is_from_terminal(number: int, code: "Optional[int]", child: int) -> bool:
    """Whether a terminal has sent this signal to our process group, and so to the child too."""
    if number not in [getattr(signal, "SIG" + each, 0) for each in _OF_TERMINAL]:
        return False
    if os.getpgid(child) != os.getpgrp():
        return False
    if number == signal.SIGHUP and os.getsid(0) == os.getpid():
        return False  # a terminal that hangs up tells the leader of its session alone
    if code is not None:
        return code in _SI_KERNEL
    try:
        with open("/dev/tty", "rb", 0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _stop(number: int) -> bool:
    """Stop like the child, so that the shell that waits for us sees its job stopped.

    Returns when we are continued, with that SIGCONT taken.  False if we have not been: nothing but
    SIGSTOP stops a group that no shell looks after, and there the child is not ours to continue.
    """
    if signal.SIGCONT not in signal.sigpending():
        if number == signal.SIGSTOP:
            os.kill(os.getpid(), number)
        else:
            handler = signal.signal(number, signal.SIG_DFL)
            # Sent while blocked, it is one with that which a terminal may have sent us already.
            os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            signal.signal(number, handler)
    if signal.SIGCONT not in signal.sigpending():
        return False
    signal.sigwait([signal.SIGCONT])
    return True

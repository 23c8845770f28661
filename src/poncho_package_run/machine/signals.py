"""Ending on a signal without leaving anything behind."""

import _signal as signal  # type: ignore[import-not-found]  # signal takes 2 ms, for its enums
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Optional

# Reports of a defect of the process that gets them.
FAULTS = ["ABRT", "BUS", "EMT", "FPE", "ILL", "SEGV", "SYS", "TRAP"]

# Those whose default action is not to end a process, and one that cannot be caught.
_HARMLESS = ["CHLD", "CONT", "INFO", "STOP", "TSTP", "TTIN", "TTOU", "URG", "WINCH", "KILL"]


class Terminated(BaseException):
    """A signal asks this process to end.

    Attributes:
        signum (int): its number; the exit status is 128 more.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("ended by signal {}".format(signum))
        self.signum = signum


class interruptible:
    """While in this context, a signal that would end the process is taken note of instead.

    Nothing is interrupted where it stands: ``check``, which is called between members, between
    files and while waiting, raises Terminated.  So no lock is left held, and nothing that was
    made goes unnoticed.  Code that cleans up does not call it, and runs to its end; at the end
    of the context Terminated is raised if it never was.  A second signal ends the process at once.
    Signals that the caller ignored stay ignored.  For the main thread; contexts do not nest.
    """

    _active = None  # type: Optional[interruptible]

    # Signals that were blocked until they can be taken note of.
    blocked: set = set()

    def __enter__(self) -> "interruptible":
        self._caught = 0
        self._raised = False
        self._before = {}
        for number in numbers(FAULTS + _HARMLESS):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = handler
        interruptible._active = self
        for number in self._before:
            signal.signal(number, self._handle)
        if interruptible.blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interruptible.blocked)
            interruptible.blocked = set()
        return self

    def _handle(self, number: int, frame: "Optional[FrameType]") -> None:
        if self._caught:
            os._exit(128 + number)
        self._caught = number

    def _raise(self) -> None:
        if self._caught and not self._raised:
            self._raised = True
            raise Terminated(self._caught)

    def __exit__(self, kind: "Optional[type]", error: object, traceback: object) -> None:
        interruptible._active = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._raise()


def check() -> None:
    """Raise Terminated if a signal has asked this process to end, and that was not yet said.

    To be called in the main thread, several times a second whatever it does or waits for.
    """
    if interruptible._active is not None:
        interruptible._active._raise()


def numbers(excluded: list) -> list:
    """The signals of this system, real-time ones too, but for some.

    Args:
        excluded: names without "SIG"; those that a system does not have are passed over.
    """
    without = {getattr(signal, "SIG" + name, 0) for name in excluded}
    # Not signal.Signals, which lacks some in older versions.  Between 31 and SIGRTMIN the C
    # library has signals of its own.
    real_time = range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1)
    return [number for number in [*range(1, 32), *real_time] if number not in without]

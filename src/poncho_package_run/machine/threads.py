"""Threads of ours, in which no signal is ever delivered."""

import _signal as signal  # type: ignore[import-not-found]  # signal takes 2 ms, for its enums
import threading

from .signals import FAULTS, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List


def start(target: "Callable[[], object]", count: int = 1) -> "List[threading.Thread]":
    """Start up to ``count`` daemon threads with every signal blocked but those of faults.

    Fewer where the system has no more to give (a limit on processes), perhaps none.

    A signal to the process goes to any thread that does not block it.  ``supervise`` blocks
    SIGCHLD and waits for it; a thread that has been joined may still be on its way out then,
    take the signal in our place, and lose it: its default action is to be ignored.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers(FAULTS))
    try:
        threads: List[threading.Thread] = []
        for _ in range(count):
            thread = threading.Thread(target=target, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            threads.append(thread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return threads

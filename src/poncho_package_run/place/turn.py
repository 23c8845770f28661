"""Whose turn it is to unpack, told before anything is imported that only unpacking needs.

Where many tasks start at once on one directory, one unpacks, and whatever the others compute is
taken from it: with all the modules of an unpacking imported, 32 starts on two cores made a cold
start of 3.7 seconds a quarter longer.  So the lock is asked for here, and who is refused waits
here.  What is unusual (no such lock on this file system, a directory that cannot be made) is left
to ``publish``, which asks for everything once more, and knows what to say about it.
"""

import fcntl
import os
import time

from ..machine.signals import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# Promised is a tenth of a second; more looks of many waiters would slow the unpacking down.
POLL = 0.04

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Turn:
    """What is known of a directory once there is no more to wait for here.

    Attributes:
        handle (int): the directory, open; flock(2) was granted on it, or a longer wait is to be
            told about.  -1 if it could not be opened, or knows no such lock.
        made (bool): this process has made the directory.
        since (float): when the wait began, by ``time.monotonic``.
        over (bool): there is nothing left to do.
    """

    def __init__(self) -> None:
        self.handle = -1
        self.made = self.over = False
        self.since = time.monotonic()

    def close(self) -> None:
        """Give up the directory, and with it the lock, unless ``handle`` has been taken over."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


def wait(
    directory: bytes, seconds: float, published: "Callable[[], bool]", silent: bool
) -> Turn:
    """Make the directory, ask for its lock, and wait as long as another process holds it.

    Args:
        directory: absolute and real.
        seconds: how long to wait at most.
        published: asked between tries: is it done already?
        silent: nobody is to be told how long it takes; if it is not, one try is all.
    """
    turn = Turn()
    try:
        try:
            os.makedirs(directory)
            turn.made = True
        except FileExistsError:
            pass
        turn.handle = os.open(directory, _OPEN)
        while True:
            try:
                fcntl.flock(turn.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return turn
            except BlockingIOError:
                pass
            left = turn.since + seconds - time.monotonic()
            if left <= 0 or not silent:
                return turn
            time.sleep(min(POLL, left))
            check()
            if published():
                turn.over = True
                break
    except OSError:
        pass  # asked for again, and told, by publish
    turn.close()
    return turn

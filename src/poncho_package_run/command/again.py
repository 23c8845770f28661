"""This program once more, alone in its process."""

import os

from .activate import arguments, variables
from .scripts import started


def again() -> None:
    """Start anew without what the site's hooks have started; returns where that is not possible.

    To a thread of theirs the kernel may give any signal that is meant for the command: it would be
    lost, or end this process, or come late.
    """
    if b"PYTHONHOME" in os.environb:
        return  # without which, and so without the site's variables, it may not find its library
    words = started(b"None")
    try:
        if os.path.samefile(words[0], "/proc/self/exe"):
            os.execve(words[0], words + arguments(), variables())
    except OSError:
        pass  # an interpreter that does not know where it lies, or arguments that just fit

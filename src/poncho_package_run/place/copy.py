"""The copy of an environment that the header has made, on a machine that has no Python.

``header.sh`` unpacks it into a private directory, as far as its Python needs, and starts the tool
with that.  It is swept like any private directory; what is published, or used, is never it.
"""

import os
import sys

from ..machine import library
from ..machine.signals import interruptible
from .private import PrivateDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Set


class Copy:
    """A context manager that removes the copy; ``leave`` does so before.

    Args:
        path: its private directory, absolute and real.
        blocked: signals that the next context of ``machine.signals.interruptible`` lets through.

    Raises:
        OSError: it is gone.
    """

    def __init__(self, path: bytes, blocked: "Set[int]") -> None:
        interruptible.blocked = blocked
        self._private = PrivateDirectory.adopted(path)

    def __enter__(self) -> "Copy":
        self._private.sweep()
        return self

    def __exit__(self, *_: object) -> None:
        library.stays(self._private.path)
        self._private.remove()

    def leave(self, prefix: bytes) -> None:
        """Go on without it: what is to be started with this Python again finds the prefix's."""
        library.stays(self._private.path)
        sys.executable = os.fsdecode(prefix + b"/bin/python3")
        self._private.remove()

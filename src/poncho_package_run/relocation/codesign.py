"""Signatures of programs on macOS: one that was changed does not start there until signed anew."""

import os
import subprocess

from ..machine.signals import check
from ..telling.messages import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

# Bytes of names in one call: systems take 256 KiB and more, with the caller's variables.
_ARGUMENTS = 1 << 16


def sign(directory: int, names: "List[bytes]") -> None:
    """Sign files anew, as if here they had been made, in as few calls as their names fit in.

    What cannot be signed is told, and no failure: so conda and conda-pack have it.

    Args:
        directory: descriptor of the directory that the names are relative to.

    Raises:
        Terminated: see ``machine.signals``.
    """
    call: List[bytes] = []
    size = 0
    for name in [*names, None]:
        if name is None or size + len(name) > _ARGUMENTS:
            _sign(directory, call)
            call, size = [], 0
        if name is not None:
            # A name may begin with a hyphen.
            call.append(b"./" + name)
            size += len(name) + 3


def _sign(directory: int, names: "List[bytes]") -> None:
    try:
        process = subprocess.Popen(
            [b"codesign", b"-s", b"-", b"-f", *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # One system call, which needs no lock that a thread of the parent may hold.
            preexec_fn=lambda: os.fchdir(directory),  # noqa: PLW1509
        )
        try:
            while True:
                try:
                    status = process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    check()
        except BaseException:
            process.kill()
            raise
    except OSError:
        status = 127
    if status:
        warn("codesign has not signed all changed programs anew: macOS may not start them")

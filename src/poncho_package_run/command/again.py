"""This program once more, in a process of its own or behind a shell."""

import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

# (Without a backslash: where the locale has another character there, Python reads that.)
_PROGRAM = b"""\
import sys, zipimport, _signal
if _signal.getsignal(2) is _signal.default_int_handler:
    _signal.signal(2, _signal.SIG_DFL)
path = sys.argv.pop(1)
try:
    __loader__ = zipimport.zipimporter(path)
    exec(__loader__.get_data("entry.py"))
    from poncho_package_run.cli import main
    from poncho_package_run.command.resume import resume
except Exception as error:
    text = "poncho_package_run: {} was removed or changed while it ran; copy it anew ({})"
    sys.stderr.write(text.format(path, error) + chr(10))
    sys.exit(74)
main(int(sys.argv.pop(1)), start=%s)
"""


def again(words: list, environ: dict) -> None:
    """Start anew without what the site's hooks have started; returns where that is not possible.

    To a thread of theirs the kernel may give any signal that is meant for the command: it would be
    lost, or end this process, or come late.

    Args:
        words: those behind the program's name, bytes.
        environ: the caller's, bytes to bytes.
    """
    if b"PYTHONHOME" in environ:
        return  # without which, and so without the site's variables, it may not find its library
    python, *program = started(b"None")
    try:
        if os.path.samefile(python, "/proc/self/exe"):
            os.execve(python, [python, *program, *words], environ)
    except OSError:
        pass  # an interpreter that does not know where it lies, or arguments that just fit


def started(start: bytes) -> list:
    """The words of a command line that starts this program once more, and goes on with ``start``.

    Without the search for other packages (4 ms), and without what a site's hooks do.
    """
    both = (_signal.SIGPIPE, _signal.SIGXFSZ)
    ignored = mask(each for each in both if _signal.getsignal(each) == _signal.SIG_IGN)
    # .../poncho_package_run.pyz/site-packages/poncho_package_run/command/again.py
    artifact = os.fsencode(os.path.abspath(__file__).rsplit("/", 4)[0])
    python = os.fsencode(sys.executable)
    return [python, b"-BIS", b"-c", _PROGRAM % start, artifact, b"%d" % ignored]


def mask(numbers: "Iterable[int]") -> int:
    """A set of signals as /proc/PID/status has it."""
    return sum(1 << number - 1 for number in numbers)

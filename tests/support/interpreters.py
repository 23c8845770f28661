"""The Python interpreters of this machine."""

import functools
import glob
import os
import subprocess
from typing import NamedTuple

OLDEST = (3, 6)
_ASK = "import sys; print('%d %d %d' % sys.version_info[:3]); print(sys.executable)"


class Interpreter(NamedTuple):
    """``version`` is (major, minor, micro); ``path`` is what ``sys.executable`` says."""

    version: tuple[int, int, int]
    path: str

    @property
    def name(self) -> str:
        """As in ``3.6``: short, for the ids of parametrized tests."""
        return "{}.{}".format(*self.version)


def _candidates() -> list[str]:
    names = ["python", "python2", "python3", "python2.7"]
    names += [f"python3.{minor}" for minor in range(3, 30)]
    # A pyenv shim runs only for the versions that pyenv has been told to make active.
    folders = [
        folder
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if os.path.basename(folder) != "shims"
    ]
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    folders += glob.glob(os.path.join(pyenv, "versions", "*", "bin"))
    folders += glob.glob("/opt/python/*/bin")
    paths = [os.path.join(folder, name) for folder in folders for name in names]
    return [*paths, "/usr/libexec/platform-python"]


@functools.lru_cache(maxsize=None)
def _all() -> tuple[Interpreter, ...]:
    found: dict[tuple[int, int], Interpreter] = {}
    seen = set()
    for path in _candidates():
        real = os.path.realpath(path)
        if real in seen or not os.access(path, os.X_OK):
            continue
        seen.add(real)
        # Asked by its real path, a virtual environment's python is the one it was made from.
        answer = subprocess.run([real, "-c", _ASK], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            version, executable = answer.stdout.splitlines()
            major, minor, micro = map(int, version.split())
            found.setdefault((major, minor), Interpreter((major, minor, micro), executable))
    return tuple(found[version] for version in sorted(found))


def find() -> list[Interpreter]:
    """One interpreter for each minor version from 3.6 on, oldest first."""
    return [each for each in _all() if each.version[:2] >= OLDEST]


def find_too_old() -> list[Interpreter]:
    """Those before 3.6, Python 2 among them."""
    return [each for each in _all() if each.version[:2] < OLDEST]

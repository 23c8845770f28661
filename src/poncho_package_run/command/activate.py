"""Activation: an environment's prefix and the caller's variables to the command's variables.

Compiled at every start: what only some environments need is imported where it is used.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

# What CPython may have put into LC_CTYPE itself, in the C locale (PEP 538).
_COERCED = (b"C.UTF-8", b"C.utf8", b"UTF-8")


def activate(prefix: bytes, environ: dict) -> dict:
    """What ``conda activate`` would set, less the interactive part.

    Args:
        prefix: absolute path of the environment.
        environ: the variables this process was started with, bytes to bytes.

    Returns:
        A new dict.  PATH begins with the environment and has lost the one active before.
        As in conda 4.6 to 25.9, CONDA_DEFAULT_ENV is the prefix itself unless it lies in a
        directory ``envs``, names from JSON files are in capitals, and activating what is
        active already does not stack it.  A venv leaves no variable of a Conda environment,
        nor the other way round: neither is on PATH any more.
    """
    result = dict(environ)
    result.pop(b"PYTHONPATH", None)
    result.pop(b"PYTHONHOME", None)
    result.setdefault(b"PYTHONNOUSERSITE", b"1")

    before = result.get(b"CONDA_PREFIX")
    gone = [prefix + b"/bin"]
    gone += [each.rstrip(b"/") + b"/bin" for each in (before, result.get(b"VIRTUAL_ENV")) if each]
    path = result.get(b"PATH", b"/bin:/usr/bin").split(b":")
    result[b"PATH"] = b":".join(gone[:1] + [each for each in path if each.rstrip(b"/") not in gone])

    if os.path.exists(prefix + b"/pyvenv.cfg") and not os.path.exists(prefix + b"/conda-meta"):
        for name in environ:
            if name.startswith((b"CONDA_PREFIX", b"CONDA_SHLVL", b"CONDA_DEFAULT_ENV")):
                del result[name]
        result[b"VIRTUAL_ENV"] = prefix
    else:
        result.pop(b"VIRTUAL_ENV", None)
        try:
            level = int(result.get(b"CONDA_SHLVL") or 0)
        except ValueError:
            level = 0
        if level < 1 or before != prefix:
            if level > 0 and before:
                result[b"CONDA_PREFIX_%d" % level] = before
            result[b"CONDA_SHLVL"] = b"%d" % (max(level, 0) + 1)
        parent, name = os.path.split(prefix)
        result[b"CONDA_PREFIX"] = prefix
        result[b"CONDA_DEFAULT_ENV"] = name if os.path.basename(parent) == b"envs" else prefix
    _set_variables(prefix, result)
    result[b"PONCHO_PREFIX"] = prefix
    return result


def activated(
    prefix: bytes, command: list, debug: bool = False
) -> "Tuple[list, dict, bytes, bool]":
    """What to execute, as the arguments of ``execute``; a shell first if there are scripts."""
    before = variables()
    if b":" in prefix:
        from ..telling.refusal import check_prefix

        check_prefix(prefix)
    environ = activate(prefix, before)
    left = before.get(b"CONDA_PREFIX", b"")
    # As conda does it, the scripts of the environment that was active end what they began.
    leaving = _scripts(left, b"deactivate.d")[::-1] if left[:1] == b"/" and left != prefix else []
    entering = _scripts(prefix, b"activate.d")
    if os.path.exists(prefix + b"/poncho/set_env"):
        entering.append(prefix + b"/poncho/set_env")
    if leaving or entering:
        from .scripts import shell_command

        return shell_command(prefix, leaving, entering, command, before, environ, debug)
    return command, environ, prefix + b"/bin", debug


def arguments() -> list:
    """The words that this process was started with behind the program's name, as they were given.

    Python has had the C library decode them.  It encodes by a codec of its own, which does not
    always give back what was there where a character may have several bytes (EUC-JP, GB18030).
    A host that runs this program within its own process has set them anew: then what is plain
    among them is not what the process was given.
    """
    words = sys.argv[1:]
    encoding = sys.getfilesystemencoding()
    if words and encoding[:5] not in ("utf-8", "ascii", "iso88", "cp125", "koi8-"):
        try:
            with open("/proc/self/cmdline", "rb") as file:
                given = file.read().split(b"\0")[:-1]
        except OSError:  # no /proc: as good as can be
            given = []
        if len(given) > len(words):
            given = given[-len(words) :]
            plain = [(a, b) for a, b in zip(given, words) if max(b, default="a") < "\x80"]
            if all(a == os.fsencode(b) for a, b in plain):
                return given
    return [os.fsencode(word) for word in words]


def variables() -> dict:
    """The environment that this process was started with, bytes to bytes."""
    environ = dict(os.environb)
    environ.pop(b"", None)  # a variable without a name cannot be handed to execve
    if sys.platform == "darwin":
        environ.pop(b"__PYVENV_LAUNCHER__", None)
    if environ.get(b"LC_CTYPE") in _COERCED:
        from .coercion import undo

        undo(environ)
    return environ


def _scripts(prefix: bytes, kind: bytes) -> list:
    """The paths of scripts, in the order in which they are to be sourced."""
    folder = prefix + b"/etc/conda/" + kind
    return [folder + b"/" + name for name in _listed(folder, b".sh")]


def _listed(folder: bytes, ending: bytes) -> list:
    """What the shell's glob would find, in the order of the C locale."""
    try:
        names = os.listdir(folder)
    except OSError:  # there is none, which is the common case
        return []
    return sorted(each for each in names if each.endswith(ending) and not each.startswith(b"."))


def _set_variables(prefix: bytes, environ: dict) -> None:
    """Set what the packages (``env_vars.d``) and then the environment (``state``) define."""
    folder = prefix + b"/etc/conda/env_vars.d"
    paths = [folder + b"/" + name for name in _listed(folder, b".json")]
    state = prefix + b"/conda-meta/state"
    if os.path.exists(state):
        paths.append(state)
    if paths:
        from .env_vars import read  # json costs 3 ms

        read(paths, state, environ)

"""The texts of --help, --version and --help-env-creation."""

import os

from .. import __version__
from . import errors

_USAGE = """\
usage: poncho_package_run [options] -e FILE [--] [command and args ...]

Run a command inside a packed Conda environment. The environment is unpacked into a temporary
directory, which is removed at the end, or once into DIR or a cache, which is kept.

options:
  -e, --environment PATH    the environment: an archive, or a directory that holds one (required)
  -d, -u, --unpack-to DIR   unpack here once and keep it; a populated DIR is used as it is
  -w, --wait-for-lock SECS  how long to wait for the writing lock on DIR (default 300; 0 tries once)
      --cache DIR           without -d: keep environments in DIR, one for each archive content
      --cache-limit SIZE    what the cache may hold (20G, 500M); default: no limit
      --list-cache          show what is in the cache
      --debug               tell the phases, with their durations, on stderr
      --help-env-creation   how to make an environment archive
      --version             show the version
  -h, --help                show this help

The first word that is not an option, or --, ends the options. Without a command, or with -n
(--no-command), the environment is prepared. As in later CCTools releases, a -d that another option
or nothing follows means --debug; -k (--keep-alive) and -r (--remove-locking) change nothing here.

variables:
  TMPDIR                          where temporary directories are made (default /tmp)
  PONCHO_PACKAGE_RUN_CACHE        --cache
  PONCHO_PACKAGE_RUN_CACHE_LIMIT  --cache-limit
  PONCHO_PACKAGE_RUN_DEBUG        "yes" means --debug
  PONCHO_PACKAGE_RUN_THREADS      at most so many threads (default: the processors one may use)
  PONCHO_PACKAGE_RUN_NATIVE       "no" means without the library in C, "yes" even for small archives

exit status: the command's own (128+N if signal N killed it), or
"""


def answer(word: str) -> None:
    """Answer an option that asks for a text, and end.

    Raises:
        SystemExit: it was written.
        UsageError: it asks for none.
        InputOutputError: stdout does not take it.
    """
    if word in ("-h", "--help"):
        text = _USAGE + "".join("  {:<5}{}\n".format(*row) for row in statuses())
    elif word == "--version":
        text = "poncho_package_run {}\n".format(__version__)
    elif word.startswith("--help-env"):
        from .help_env import TEXT

        text = TEXT
    else:
        raise errors.UsageError("unknown option {}; see --help".format(ascii(word)[1:-1]))
    show(text)
    raise SystemExit(0)


def show(text: str) -> None:
    """Write a text to stdout.

    Raises InputOutputError: stdout does not take it.
    """
    left = text.encode("utf-8", "replace")
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError as error:
        raise errors.InputOutputError(
            "cannot write to stdout: {}; redirect it".format(error.strerror)
        )


def statuses() -> list:
    """The table of exit statuses: (status, when), from the classes of ``errors``."""
    classes = errors.Failure.__subclasses__()
    return sorted((kind.status, kind.meaning) for kind in classes)

"""The texts of --help, --version and --help-env-creation."""

from .. import __version__
from . import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_USAGE = """\
usage: poncho_package_run [options] -e FILE [--] [command and args ...]

Run a command inside a packed Conda environment. The environment is unpacked into a temporary
directory, which is removed at the end, or once into DIR, which is kept.

options:
  -e, --environment PATH    the environment: an archive, or a directory that holds one (required)
  -d, -u, --unpack-to DIR   unpack here once and keep it; a populated DIR is used as it is
  -w, --wait-for-lock SECS  how long to wait for the writing lock on DIR (default 300; 0 tries once)
      --debug               tell the phases, with their durations, on stderr
      --help-env-creation   how to make an environment archive
      --version             show the version
  -h, --help                show this help

The first word that is not an option, or --, ends the options. Without a command, or with -n
(--no-command), the environment is prepared. As in later CCTools releases, a -d that another option
or nothing follows means --debug; -k (--keep-alive) and -r (--remove-locking) change nothing here.

variables:
  TMPDIR                      where temporary directories are made (default /tmp)
  PONCHO_PACKAGE_RUN_DEBUG    "yes" means --debug
  PONCHO_PACKAGE_RUN_THREADS  at most so many threads (default: the processors that may be used)

exit status: the command's own (128+N if signal N killed it), or
"""


def text_for(word: str) -> "Optional[str]":
    """What an option that asks for a text is answered with; None for any other word."""
    if word in ("-h", "--help"):
        return _USAGE + "".join("  {:<5}{}\n".format(*row) for row in statuses())
    if word == "--version":
        return "poncho_package_run {}\n".format(__version__)
    if word.startswith("--help-env"):
        from .help_env import TEXT

        return TEXT
    return None


def statuses() -> list:
    """The table of exit statuses: (status, when), from the classes of ``errors``."""
    classes = errors.Failure.__subclasses__()
    return sorted((kind.status, kind.meaning) for kind in classes)

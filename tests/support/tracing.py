"""Command lines that run the tool under strace(1): for its log, or to make system calls fail."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Union

from .commands import need

Name = Union[str, Path]


def strace(*options: Name, log: Name = os.devnull, follow: bool = True) -> list[Name]:
    """The start of a command line; skips the test where strace is missing.

    Args:
        log: where strace writes what it saw.
        follow: trace all threads and children too.
    """
    return [need("strace"), "-qq", *(["-f"] if follow else []), "-o", log, *options]


def failing(
    calls: str,
    error: str,
    when: str = "",
    paths: Iterable[Name] = (),
    log: Name = os.devnull,
    follow: bool = True,
) -> list[Name]:
    """Run the tool with ``calls`` (as in "read,pread64") failing with ``error`` (as in "EIO").

    Args:
        when: which occurrences, in strace's words: "3" the third, "3+" from it on.
        paths: only calls on these files.
    """
    only = [word for path in paths for word in ("-P", path)]
    injection = f"inject={calls}:error={error}" + (f":when={when}" if when else "")
    return strace(*only, "-e", injection, log=log, follow=follow)


def without_libzstd(follow: bool = True) -> list[Name]:
    """Run the tool where the system's libzstd cannot be opened.

    Args:
        follow: False lets a zstd program that the tool starts open it.
    """
    listing = subprocess.run(
        ["sh", "-c", "PATH=$PATH:/sbin:/usr/sbin ldconfig -p"], capture_output=True, text=True
    ).stdout
    found = [line.split("=> ")[1].strip() for line in listing.splitlines() if "libzstd" in line]
    # The loader opens the name in its cache; strace compares names after following links.
    paths = {*found, *map(os.path.realpath, found)}
    return failing("openat", "ENOENT", paths=sorted(paths), follow=follow) if paths else []

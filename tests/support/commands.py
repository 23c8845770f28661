"""Programs that some tests need and not every machine has."""

import functools
import os
import re
import shutil
from pathlib import Path

import pytest

_DEBIAN_PACKAGE = {
    "bsdtar": "libarchive-tools",
    "cc": "gcc",
    "chattr": "e2fsprogs",
    "env": "coreutils",
    "flock": "util-linux",
    "fusermount": "fuse3",
    "fusermount3": "fuse3",
    "localedef": "locales",
    "ls": "coreutils",
    "mksquashfs": "squashfs-tools",
    "munged": "munge",
    "nohup": "coreutils",
    "sbatch": "slurm-client",
    "setarch": "util-linux",
    "setfacl": "acl",
    "setpriv": "util-linux",
    "sh": "dash",
    "unshare": "util-linux",
    "unsquashfs": "squashfs-tools",
    "work_queue_worker": "coop-computing-tools",
    "xz": "xz-utils",
}


def need(program: str) -> str:
    """The path of ``program``; skips the test where it is missing.

    With PONCHO_CI=1 in the environment everything is expected to be installed,
    and a missing program fails the test.  So does one that ``.ci/run`` does not install:
    on the machine of whoever wrote the test it lies by chance.
    """
    package = _DEBIAN_PACKAGE.get(program, program)
    if package not in _installed():
        pytest.fail(f"{program} is in the package {package}, which .ci/run does not install")
    path = shutil.which(program)
    if path is None:
        missing(f"needs {program}: apt-get install {package}")
    return str(path)


@functools.cache
def _installed() -> set[str]:
    """The packages that ``.ci/run`` installs, and those that no Debian lacks."""
    script = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    listed = re.findall(r"^    ([a-z0-9.+-]+)", script.split("packages=(")[1], re.MULTILINE)
    return {*listed, "coreutils"}


def missing(reason: str) -> None:
    """Skip for ``reason``, or fail under PONCHO_CI=1."""
    if os.environ.get("PONCHO_CI") == "1":
        pytest.fail(f"PONCHO_CI=1 lets nothing be skipped, but this test {reason}")
    pytest.skip(reason)

"""Programs that some tests need and not every machine has."""

import os
import shutil

import pytest

_DEBIAN_PACKAGE = {
    "bsdtar": "libarchive-tools",
    "cc": "gcc",
    "chattr": "e2fsprogs",
    "flock": "util-linux",
    "fusermount": "fuse3",
    "fusermount3": "fuse3",
    "mksquashfs": "squashfs-tools",
    "munged": "munge",
    "unsquashfs": "squashfs-tools",
    "sbatch": "slurm-client",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "work_queue_worker": "coop-computing-tools",
    "xz": "xz-utils",
}


def need(program: str) -> str:
    """The path of ``program``; skips the test where it is missing.

    With PONCHO_CI=1 in the environment everything is expected to be installed,
    and a missing program fails the test.
    """
    path = shutil.which(program)
    if path is None:
        missing(f"needs {program}: apt-get install {_DEBIAN_PACKAGE.get(program, program)}")
    return str(path)


def missing(reason: str) -> None:
    """Skip for ``reason``, or fail under PONCHO_CI=1."""
    if os.environ.get("PONCHO_CI") == "1":
        pytest.fail(f"PONCHO_CI=1 lets nothing be skipped, but this test {reason}")
    pytest.skip(reason)

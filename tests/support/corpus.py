"""A folder of archives that others wrote, named by the environment variable PONCHO_TEST_CORPUS."""

import bz2
import gzip
import lzma
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any, Optional

import pytest

from .commands import need
from .tars import member

FOLDER = os.environ.get("PONCHO_TEST_CORPUS", "")

_NOT_ARCHIVES = ("README", "INDEX.md", "ORACLES.tsv")


def parameters(*directories: str) -> list[Any]:
    """The files of these directories of the corpus, or one parameter that skips and says why."""
    if not FOLDER:
        reason = "PONCHO_TEST_CORPUS names no folder of archives"
        return [pytest.param("", marks=pytest.mark.skip(reason), id="none")]
    root = Path(FOLDER)
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and path.name not in _NOT_ARCHIVES
        and path.relative_to(root).parts[0] in directories
    )


def _compressed(like: bytes, data: bytes) -> Optional[bytes]:
    """``data`` in the format of the stream that begins with ``like``; None if that is none."""
    if like.startswith(b"\x1f\x8b"):
        return gzip.compress(data)
    if like.startswith(b"BZh"):
        return bz2.compress(data)
    if like.startswith(b"\xfd7zXZ\0"):
        return lzma.compress(data)
    if like.startswith(b"\x28\xb5\x2f\xfd"):
        command = [need("zstd"), "-qc"]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout
    return None


def with_history(archive: Path, into: Path) -> bool:
    """Write the same archive with a member that makes it an environment; False if it takes none."""
    data = archive.read_bytes()
    history = member(b"conda-meta/history")
    stream = _compressed(data, history)
    if stream is not None:
        # Streams of all these formats may stand one behind the other, so the original's bytes
        # (its trailer, its damage) stay what they are.
        into.write_bytes(stream + data)
        return True
    if not zipfile.is_zipfile(archive):
        into.write_bytes(history + data)
        return True
    into.write_bytes(data)
    try:
        with zipfile.ZipFile(into, "a") as file:
            if not all(name.isascii() for name in file.namelist()):
                return False  # they would be written anew in UTF-8
            file.writestr(zipfile.ZipInfo("conda-meta/history"), b"")
    except (zipfile.BadZipFile, NotImplementedError):
        return False  # a central directory that cannot be written anew
    return True

"""Archives that others wrote: conda-pack's, of four versions, and the test streams of decoders.

Takes the folder PONCHO_TEST_CORPUS.  Its tar and zip archives of other origin are the
matter of test_differential.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from poncho_package_run.archive import bzip2, gzip, xz, zstd
from poncho_package_run.archive.archive import recognise
from poncho_package_run.archive.parallel import Pool
from poncho_package_run.archive.source import Source
from poncho_package_run.telling.errors import ArchiveError
from support import corpus, differential
from support.commands import need
from support.messages import refused


@pytest.mark.parametrize("name", corpus.parameters("conda-pack"))
def test_conda_pack_archive_becomes_what_bsdtar_and_conda_unpack_make(name, tmp_path, run):
    need("bsdtar")
    archive = Path(shutil.copy(Path(corpus.FOLDER, name), tmp_path / "archive"))
    with differential.scratch() as place:
        started = time.time_ns()
        target = place / "target"
        assert differential.extract(differential.BSDTAR, archive, target).status == 0
        relocated = differential.relocate(target)
        expected = differential.look(target)
        shutil.rmtree(target)
        run("-d", target, "-e", archive, "true", umask=differential.UMASK, check=True)
        found = differential.look(target)
        assert not differential.compare(expected, found, started, but_mtime_of=relocated)
        for path in relocated:
            assert found[path].mtime_ns >= started, f"{path!r}: a stale .pyc would win"
        assert os.listdir(place) == ["target"]


DECODERS = {"bzip2": bzip2, "gzip": gzip, "xz": xz}
PROGRAMS = {".bz2": "bzip2", ".gz": "gzip", ".xz": "xz", ".zst": "zstd"}


def decoded(path, cores):
    """What our decoder makes of a stream; None if it refuses it."""
    source = Source(os.fsencode(path))
    try:
        kind = recognise(source)
        if kind == "zstd":
            return b"".join(zstd.decode(source))
        return b"".join(DECODERS[kind].decode(source, Pool(cores)))
    except ArchiveError:
        return None
    finally:
        source.close()


@pytest.mark.parametrize("name", corpus.parameters("xz", "go-bzip2", "go-gzip", "zstd"))
def test_stream_is_decoded_as_its_own_program_does_or_refused(name, tmp_path, run):
    stream = Path(corpus.FOLDER, name)
    program = need(PROGRAMS[stream.suffix])
    reference = subprocess.run([program, "-dc", stream], capture_output=True, timeout=60)
    # 2 is a mere warning of xz: a check of a kind that it cannot verify.
    read = reference.returncode in ((0, 2) if program.endswith("xz") else (0,))
    expected = reference.stdout if read else None
    for cores in (1, 2):
        assert decoded(stream, cores) == expected
    with differential.scratch() as place:
        # None of these streams holds a tar archive.
        refused(run("-d", place / "target", "-e", stream, "true"), 65)
        assert not os.path.exists(place / "target") or os.listdir(place / "target") == []

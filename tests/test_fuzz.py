"""Mutated archives, in process: no escape, no traceback, no hang; damage is never taken for less.

``make fuzz`` does 100,000 inputs of what is done here with 1,000.
"""

import subprocess
import sys

import fuzz
import pytest

from poncho_package_run.archive import gzip as our_gzip
from support.tars import BLOCK
from support.trees import differences, snapshot


def test_1000_mutated_archives(tmp_path):
    command = [sys.executable, fuzz.__file__, "--runs", "1000", "--jobs", "1", "--contents", "500"]
    result = subprocess.run(
        [*command, "--failures", tmp_path / "failures"], capture_output=True, text=True
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert result.stdout.startswith("seed 1: 1000 inputs")


@pytest.fixture(scope="module")
def archives():
    return fuzz.packed()


@pytest.fixture
def world(tmp_path):
    world = fuzz.World(tmp_path / "world")
    yield world
    world.clear()


def tree_of(world, data):
    """The tree that ``data`` unpacks to; None if it is refused."""
    outcome, why = fuzz.run_one(world, data)
    assert outcome != "FAILED", why
    return snapshot(world.target) if outcome == "unpacked" else None


STREAMS = ["0.tar", "1.tar.gz", "2.tar.gz", "3.tar.bz2", "4.tar.xz", "5.zip", "6.zip"]


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("name", STREAMS)
def test_truncated_anywhere_is_refused(name, threads, archives, world, monkeypatch):
    monkeypatch.setenv("PONCHO_PACKAGE_RUN_THREADS", threads)
    monkeypatch.setattr(our_gzip, "_PIECE", 64)
    data = archives[name]
    end = len(data)
    if name.endswith(".tar"):
        # What may be missing is the padding behind the first block of the end-of-archive marker.
        end = len(data.rstrip(b"\0")) // BLOCK * BLOCK + 2 * BLOCK
        assert tree_of(world, data[:end])
    for cut in {*range(0, end, max(end // 150, 1)), *range(max(end - 30, 0), end)}:
        assert tree_of(world, data[:cut]) is None, f"cut at {cut} of {len(data)}"


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("name", STREAMS[1:])
def test_one_wrong_bit_is_refused_or_without_consequence(
    name, threads, archives, world, monkeypatch
):
    monkeypatch.setenv("PONCHO_PACKAGE_RUN_THREADS", threads)
    monkeypatch.setattr(our_gzip, "_PIECE", 64)
    data = archives[name]
    expected = tree_of(world, data)
    refused = 0
    step = max(len(data) // 150, 1)
    places = {*range(0, len(data), step), *range(min(30, len(data)))}
    for number, at in enumerate(sorted(places)):
        changed = bytearray(data)
        changed[at] ^= 1 << number % 8
        found = tree_of(world, bytes(changed))
        if found is None:
            refused += 1
        else:
            # A bit of a name, a mode or a time in a zip's directory has no checksum.
            assert name.endswith(".zip") or not differences(
                expected, found, ("type", "mode", "size", "sha256", "target")
            ), f"bit {number % 8} of byte {at}"
    assert refused > len(places) * 0.8

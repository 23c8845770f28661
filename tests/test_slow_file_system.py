"""Where each call waits, as over a network, several threads wait, and make the same tree."""

import os
import shutil

import pytest

from support import references, trees
from support.commands import need

CALLS = "openat,mkdirat,unlinkat"
FORMATS = [{"format": "tar"}, {"format": "tar.gz", "n_threads": 4}, {"format": "zip"}]


@pytest.fixture
def slow(run, tmp_path):
    """Runs the artifact with a millisecond at each of CALLS; the result, and its threads."""

    def slow(*words, **more):
        log = tmp_path / "calls"
        wrapper = [
            need("strace"), "-f", "--seccomp-bpf", "-qq", "-o", log,
            "-e", f"trace=clone,clone3,{CALLS}", "-e", f"inject={CALLS}:delay_exit=1000",
        ]  # fmt: skip
        result = run(*words, wrapper=wrapper, check=True, **more)
        lines = log.read_text().splitlines()
        return result, sum(" clone" in line and "CLONE_THREAD" in line for line in lines)

    return slow


@pytest.mark.parametrize("options", FORMATS, ids=lambda options: options["format"])
def test_the_tree_is_the_same(slow, environment, tmp_path, options):
    archive, kept = environment.archive(**options, scripts=False), tmp_path / "kept"
    references.extract(archive, kept)
    expected = references.reference(kept)
    shutil.rmtree(kept)
    _, threads = slow("-e", archive, "-d", kept, "true")
    # 16 writers, 15 beside the main thread to relocate, and those that decode.
    assert threads > 30
    assert not references.differences(expected, trees.snapshot(kept))


@pytest.mark.parametrize("options", FORMATS, ids=lambda options: options["format"])
def test_a_temporary_environment_is_removed(slow, environment, tmp_path, options):
    archive = environment.archive(**options, scripts=False)
    _, threads = slow("-e", archive, "true")
    assert threads > 45
    assert os.listdir(tmp_path / "tmp") == []


def test_the_cap_on_threads_holds(slow, environment, tmp_path):
    archive = environment.archive("tar", scripts=False)
    _, threads = slow("-e", archive, "true", env={"PONCHO_PACKAGE_RUN_THREADS": "1"})
    assert threads == 0

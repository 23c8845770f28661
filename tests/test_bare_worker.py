"""A worker with nothing but one Python: no bash, tar, gzip, flock, conda-unpack, other Python."""

import os
import re
from pathlib import Path

import pytest

from support import tracing, trees
from support.commands import missing, need

GONE = re.compile(
    r"(ba|z|k|c|tc|fi)sh|(bsd|g)?tar|g?zip|g?unzip|pigz|bzip2|bunzip2|xz|unxz|zstd|flock|conda.*|"
    r"mamba|micromamba|(un|mk)squashfs|.*python.*|perl.*"
)


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory):
    """A PATH of one directory: all programs of this machine but those that are to be gone."""
    folder = tmp_path_factory.mktemp("bare") / "bin"
    folder.mkdir()
    for source in ("/usr/bin", "/bin"):
        for path in Path(source).iterdir():
            if not GONE.fullmatch(path.name) and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    assert (folder / "sh").exists()
    return str(folder)


def test_without_dev_and_standard_streams(run, tiny):
    """What a container has that mounts nothing: there is nothing to open in their place."""
    if os.geteuid():
        missing("needs root: it hides /dev")
    script = 'mount -t tmpfs none /dev && exec "$@" <&- 2>&-'
    wrapper = [need("unshare"), "-m", "sh", "-c", script, "sh"]
    assert run("-e", tiny, "hello", wrapper=wrapper, check=True).stdout == b"hello\n"


FORMATS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip"]


@pytest.mark.parametrize("where", ["temporary", "kept"])
@pytest.mark.parametrize("format", FORMATS)
def test_it_unpacks_relocates_and_runs(run, environment, tmp_path, bare_path, format, where):
    archive = environment.archive(format, scripts=False)
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    script = (
        "import os, subprocess, sys\n"
        "print(os.environ['CONDA_PREFIX'], sys.prefix, sep='\\n')\n"
        "subprocess.run(['showprefix'], check=True)\n"
    )
    # -u: what it prints and what its child prints come in order.
    words = ["-e", archive, *place, "python3", "-u", "-c", script]
    result = run(*words, env={"PATH": bare_path}, check=True)
    assert result.stderr == b""
    prefix, base, program, path = result.stdout.decode().splitlines()
    assert prefix == base == program
    assert path == f"{prefix}/share/showprefix:{prefix}/lib"
    if where == "kept":
        assert prefix == str(tmp_path / "kept")


@pytest.mark.parametrize("path", ["", "/nonexistent", None], ids=["empty", "nowhere", "unset"])
def test_it_runs_even_without_any_path(run, environment, tmp_path, path):
    words = ["-e", environment.archive(scripts=False), "-d", tmp_path / "kept"]
    result = run(*words, "showprefix", env={"PATH": path}, check=True)
    assert result.stdout.decode().splitlines()[0] == str(tmp_path / "kept")


@pytest.mark.parametrize("where", ["temporary", "kept"])
def test_it_starts_no_program_but_the_command(run, environment, tmp_path, where):
    log = tmp_path / "log"
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    words = ["-e", environment.archive(scripts=False), *place, "showprefix"]
    run(*words, wrapper=tracing.recording(log), check=True)
    started = [call.arguments[0].strip('"') for call in tracing.calls(log) if call.name == "execve"]
    assert len(started) == 2, started
    assert started[1].endswith("/bin/showprefix")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_with_scripts_it_needs_a_shell_and_takes_what_there_is(
    run, environment, tmp_path, bare_path, shell
):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / shell).symlink_to(need(shell))
    words = ["-e", environment.archive(), "-d", tmp_path / "kept", "python3", "-c"]
    script = "import os; print(os.environ['SHOWPREFIX_ROOT'])"
    path = f"{folder}:{bare_path}" if shell == "bash" else bare_path
    result = run(*words, script, env={"PATH": path}, check=True)
    assert result.stdout.decode() == f"{tmp_path}/kept/share\n"


def test_the_tree_is_the_same_as_on_a_whole_machine(run, environment, tmp_path, bare_path):
    archive, kept = environment.archive(scripts=False), tmp_path / "kept"
    run("-e", archive, "-d", kept, check=True)
    whole = trees.snapshot(kept)
    os.rename(kept, tmp_path / "whole")
    run("-e", archive, "-d", kept, env={"PATH": bare_path}, check=True)
    bare = trees.snapshot(kept)
    # Patched files have the time of the run.
    fields = ["type", "mode", "size", "sha256", "target", "nlink_group"]
    assert not trees.differences(whole, bare, fields=fields)

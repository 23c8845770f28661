"""A temporary directory with a longer path than a placeholder has room for."""

import os
import signal
import tarfile
from pathlib import Path

import pytest
from test_unrecorded import archive_of

from support import crash, process
from support.messages import refused

SHORT = "/opt/short/" + "p" * 49
"""A placeholder of 60 bytes."""

SHOW = b"""#!/bin/sh
prefix=%s
readlink "$CONDA_PREFIX"
echo "$CONDA_PREFIX"
echo "$prefix"
while IFS= read -r line; do echo "$line"; done <"$CONDA_PREFIX/lib/strings"
"""


@pytest.fixture
def archive(tmp_path):
    binary = b"\n%s/lib\n".replace(b"%s", SHORT.encode())
    return archive_of(
        tmp_path / "archive",
        {},
        {"bin/show": SHOW % SHORT.encode(), "lib/strings": binary + b"\0"},
        [("bin/show", SHORT, "text"), ("lib/strings", SHORT, "binary")],
    )


@pytest.fixture
def sandbox(tmp_path):
    """A TMPDIR as in an engine's sandbox, and what is in /tmp already."""
    folder = tmp_path / ("s" * 100)
    folder.mkdir()
    return folder


def links(folder, to):
    """The private directories in which a symlink leads to below ``to``."""
    found = set()
    for path in crash.private_directories(Path(folder)):
        try:
            target = os.readlink(path / "env")
        except OSError:
            continue  # a directory, or of a test that runs beside this one
        if target.startswith(str(to)):
            found.add(path.name)
    return found


def test_the_prefix_is_a_symlink_of_few_bytes(run, archive, sandbox):
    result = run("-e", archive, "show", env={"TMPDIR": sandbox}, check=True)
    assert result.stderr == b""
    target, prefix, text, _, binary = result.stdout.decode().rstrip("\0\n").split("\n")
    assert target.startswith(f"{sandbox}/poncho_package_run-")
    assert prefix.startswith("/tmp/poncho_package_run-")
    assert len(prefix) <= 60 < len(target)
    assert (text, binary) == (prefix, prefix + "/lib")
    assert os.listdir(sandbox) == []
    assert not os.path.lexists(os.path.dirname(prefix)), "it is removed with the environment"


def test_it_is_made_only_if_a_record_needs_it(run, tiny, environment, sandbox):
    words = ["sh", "-c", 'echo "$CONDA_PREFIX"']
    for path in (tiny, environment.archive(scripts=False)):
        result = run("-e", path, *words, env={"TMPDIR": sandbox}, check=True)
        assert result.stdout.startswith(os.fsencode(sandbox) + b"/poncho_package_run-")


def test_below_a_top_directory(run, archive, sandbox, tmp_path):
    other = tmp_path / "other"
    with tarfile.open(archive) as old, tarfile.open(other, "w:gz") as new:
        for info in old:
            data = old.extractfile(info)
            info.name = "top/" + info.name
            new.addfile(info, data)
    result = run("-e", other, "show", env={"TMPDIR": sandbox}, check=True)
    prefix, text = result.stdout.decode().split("\n")[0:2]  # readlink says nothing: it is none
    assert prefix == text
    assert prefix.startswith("/tmp/")
    assert prefix.endswith("/env/top")


def test_a_directory_that_is_kept_stays_refused_with_the_number(run, archive, sandbox):
    kept = sandbox / "kept"
    refused(run("-e", archive, "-d", kept, "show"), 78, str(kept), "room for 60")
    assert not kept.exists()


def test_what_is_too_long_even_so_is_refused(run, tmp_path, sandbox):
    path = archive_of(
        tmp_path / "a", {}, {"lib/x": b"\0/short/p\0"}, [("lib/x", "/short/p", "binary")]
    )
    refused(run("-e", path, "true", env={"TMPDIR": sandbox}), 78, "/tmp/poncho", "room for 8")
    assert os.listdir(sandbox) == []
    assert not links("/tmp", sandbox)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal_it_leaves_no_more_than_others(run, spawn, archive, sandbox, number):
    words = ["-e", archive, "sh", "-c", "echo in; exec sleep 60"]
    tool = spawn(*words, env={"TMPDIR": sandbox})
    assert tool.stdout.readline() == b"in\n"
    (name,) = links("/tmp", sandbox)
    # A run beside it leaves both alone.
    run("-e", archive, "show", env={"TMPDIR": sandbox}, check=True)
    assert links("/tmp", sandbox) == {name}
    children = process.children_of(tool.pid)
    os.kill(tool.pid, number)
    tool.wait(timeout=20)
    if number == signal.SIGKILL:
        # The command holds the leases of both.
        run("-e", archive, "show", env={"TMPDIR": sandbox}, check=True)
        assert links("/tmp", sandbox) == {name}
        os.kill(children[0], signal.SIGKILL)
        process.wait_for(lambda: not os.path.exists(f"/proc/{children[0]}"))
        run("-e", archive, "show", env={"TMPDIR": sandbox}, check=True)
    assert not links("/tmp", sandbox)
    assert os.listdir(sandbox) == []

"""Removing a tree, and nothing but the tree."""

import functools
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from poncho_package_run.tree import removal
from support.commands import missing, need

SRC = Path(__file__).parent.parent / "src"


@pytest.fixture
def root(tmp_path):
    """A directory with all sorts of things in it, and its descriptor."""
    root = tmp_path / "root"
    for number in range(3):
        (root / "a" / f"b{number}" / "c").mkdir(parents=True)
        (root / "a" / f"b{number}" / "c" / "file").write_text("x")
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    os.mkfifo(root / "fifo")
    handle = os.open(root, os.O_RDONLY)
    yield root, handle
    os.close(handle)


def removed_by(code, *arguments, **options):
    """Run a line that uses ``removal`` as another process, which may have limits of its own."""
    code = f"import os, sys\nfrom poncho_package_run.tree import removal\n{code}"
    options.setdefault("env", {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]})
    command = [*options.pop("wrapper", []), sys.executable, "-c", code, *arguments]
    return subprocess.run(command, timeout=60, check=True, stdout=subprocess.PIPE, **options)


REMOVE = """
parent, name = os.path.split(os.fsencode(sys.argv[1]))
print(removal.remove(os.open(parent, os.O_RDONLY), name))
"""


def test_all_is_removed_and_links_are_not_followed(root, tmp_path):
    path, handle = root
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (path / "link").symlink_to(victim)
    (path / "a" / "up").symlink_to("../..")
    os.link(victim / "file", path / "a" / "same")
    assert removal.empty(handle)
    assert os.listdir(path) == []
    assert (victim / "file").read_text() == "precious"


def test_the_directory_it_was_given_keeps_its_mode(root):
    path, handle = root
    for mode in (0o755, 0o2775, 0o1777):
        path.chmod(mode)
        (path / "d").mkdir()
        (path / "d" / "f").touch()
        assert removal.empty(handle)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("what", ["file", "link", "empty", "full", "absent"])
def test_remove_takes_whatever_has_the_name(tmp_path, what):
    path = tmp_path / "x"
    if what == "file":
        path.touch()
    elif what == "link":
        path.symlink_to("/")
    elif what != "absent":
        path.mkdir()
    if what == "full":
        (path / "d").mkdir()
        (path / "d" / "f").touch()
    if path.is_dir() and what != "link":
        path.chmod(0o500)
    parent = os.open(tmp_path, os.O_RDONLY)
    assert removal.remove(parent, b"x")
    os.close(parent)
    assert os.listdir(tmp_path) == []


def test_the_file_to_keep_goes_last(root, monkeypatch):
    path, handle = root
    (path / "owner").touch()
    order = []
    for name in ("unlink", "rmdir"):

        def recorded(name, *, dir_fd, call):
            call(name, dir_fd=dir_fd)
            order.append(name)

        monkeypatch.setattr(os, name, functools.partial(recorded, call=getattr(os, name)))
    assert removal.empty(handle, keep_last=b"owner")
    assert order[-1] == b"owner" and len(order) > 8
    assert os.listdir(path) == []


def test_the_file_to_keep_stays_while_anything_else_does(root, monkeypatch):
    path, handle = root
    (path / "owner").touch()
    unlink = os.unlink

    def stubborn(name, **options):
        if name == b"fifo":
            raise OSError(5, "as when it is someone's on a server that is away")
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", stubborn)
    assert not removal.empty(handle, keep_last=b"owner")
    assert sorted(os.listdir(path)) == ["fifo", "owner"]
    assert not removal.remove(handle, b"fifo")


@pytest.fixture
def powerless():
    """The start of a command line for which modes count, though it may be root's."""
    return [need("setpriv"), "--bounding-set=-all", "--inh-caps=-all"] if not os.geteuid() else []


@pytest.mark.parametrize("mode", [0o555, 0o000, 0o444, 0o111, 0o222])
def test_directories_that_may_not_be_written_or_read_are_removed_at_any_depth(
    tmp_path, powerless, mode
):
    folders = [tmp_path / "root"]
    for number in range(100):
        folders.append(folders[-1] / f"d{number}")
    folders[-1].mkdir(parents=True)
    (folders[-1] / "file").touch()
    for folder in reversed(folders):
        (folder / "beside").mkdir()
        folder.chmod(mode)
    result = removed_by(REMOVE, folders[0], wrapper=powerless)
    assert result.stdout == b"True\n"
    assert not folders[0].exists()


def test_deeper_than_any_path_may_be(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    for name in [b"root", *[b"a-directory"] * 1000]:
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    assert removed_by(REMOVE, tmp_path / "root").stdout == b"True\n"


@pytest.mark.parametrize("limit", [8, 12, 20])
def test_few_descriptors_are_enough(root, limit):
    path, _ = root
    for number in range(100):
        deep = path.joinpath(*["deep"] * 20, str(number))
        (deep / "d").mkdir(parents=True)
        (deep / "d" / "f").touch()
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # noqa: E731
    assert removed_by(REMOVE, path, preexec_fn=few).stdout == b"True\n"


def test_thousands_of_siblings_are_removed(root):
    path, handle = root
    for number in range(3000):
        (path / "a" / f"{number}" / "x").mkdir(parents=True)
    assert removal.empty(handle)
    assert os.listdir(path) == []


@pytest.mark.parametrize("kind", ["--bind", "-t tmpfs"])
@pytest.mark.parametrize("depth", [1, 100])
def test_what_a_command_has_mounted_in_its_environment_is_left_as_it_is(
    run, tiny, tmp_path, kind, depth
):
    victim = tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "folder" / "file").write_text("precious")
    (victim / "file").write_text("precious")
    namespace = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    wrapper = [need("unshare"), *namespace]
    if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode:
        missing("needs a mount namespace: run it as root, or allow user namespaces")
    script = f"""
        at=$CONDA_PREFIX{"/lib/deep" * depth} && mkdir -p "$at/mounted" "$at/beside/x" &&
        mount {kind} {victim} "$at/mounted" && mount --bind {victim}/file "$CONDA_PREFIX/bin/hello"
    """
    result = run("-e", tiny, "sh", "-ec", script, wrapper=wrapper)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (victim / "folder" / "file").read_text() == "precious"
    assert (victim / "file").read_text() == "precious"
    # Of the rest nothing is left but the way there.
    left = {path.name for path in (tmp_path / "tmp").rglob("*")}
    assert "beside" not in left and "conda-meta" not in left

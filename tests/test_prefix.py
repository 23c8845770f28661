"""Where the environment lies in what was unpacked, and whether its Python can run."""

import os
import sys

import pytest

from poncho_package_run.place.prefix import check_python, find_prefix
from poncho_package_run.telling.errors import ArchiveError
from support import tars
from support.commands import need

CONDA = "conda-meta/history"


@pytest.fixture
def tree(tmp_path):
    """Makes files (a name that ends in "/" is a directory's; a tuple is a symlink's target)."""
    opened = []

    def tree(*paths, **links):
        for path in paths:
            place = tmp_path / path
            (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                place.write_text("x")
        for name, target in links.items():
            (tmp_path / name).symlink_to(target)
        opened.append(os.open(tmp_path, os.O_RDONLY))
        return opened[-1]

    yield tree
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize(
    "paths, prefix",
    [
        ([CONDA, "bin/x"], b""),
        (["conda-meta/"], b""),
        (["bin/activate", "lib/x"], b""),
        (["pyvenv.cfg"], b""),
        (["env/" + CONDA], b"env"),
        (["envs/my/" + CONDA], b"envs/my"),
        (["a/b/c/d/pyvenv.cfg"], b"a/b/c/d"),
        (["env/" + CONDA, "._env", ".DS_Store", "__MACOSX/._x"], b"env"),
        (["envs/my/" + CONDA, "envs/._my", "envs/.DS_Store"], b"envs/my"),
        (["env/" + CONDA, ".poncho_package_run_manifest", ".PONCHO_package_run_x/y"], b"env"),
        (["env/" + CONDA, "README"], None),
        (["one/" + CONDA, "two/" + CONDA], None),
        (["env/lib/x"], None),
        (["file"], None),
        ([], None),
        (["/".join("d" * 200) + "/pyvenv.cfg"], None),
    ],
)
def test_the_prefix_is_found_below_single_directories_only(tree, paths, prefix):
    assert find_prefix(tree(*paths)) == prefix


def test_a_symlink_is_not_followed_to_a_prefix(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "conda-meta").mkdir()
    assert find_prefix(tree(env=elsewhere)) is None


@pytest.mark.parametrize(
    "paths",
    [
        ["conda-meta/history", "python.exe", "Library/bin/x.dll", "Scripts/pip.exe"],
        ["pyvenv.cfg", "Scripts/python.exe"],
        ["env/conda-meta/history", "env/python.exe"],
        ["python.exe", "DLLs/x.dll"],
    ],
)
def test_an_environment_of_windows_is_called_that(tree, paths):
    with pytest.raises(ArchiveError, match="Windows"):
        find_prefix(tree(*paths))


def test_a_scripts_directory_makes_no_windows_of_an_environment(tree):
    assert find_prefix(tree(CONDA, "bin/python", "Scripts/x")) == b""


class TestPython:
    @pytest.fixture
    def python(self, tree, tmp_path):
        (tmp_path / "env" / "bin").mkdir(parents=True)
        python = tmp_path / "env" / "bin" / "python"
        directory = tree()

        def check(final=b"/final"):
            check_python(directory, b"env", final)

        return python, check

    def test_none_is_fine(self, python):
        python[1]()

    def test_without_a_bin_is_fine(self, tree):
        check_python(tree(CONDA), b"", b"/final")

    def test_a_program_is_fine(self, python):
        path, check = python
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        check()

    def test_a_chain_of_links_to_a_program_is_fine(self, python):
        path, check = python
        (path.parent / "python3.9").write_text("#!/bin/sh\n")
        (path.parent / "python3.9").chmod(0o755)
        (path.parent / "python3").symlink_to("python3.9")
        path.symlink_to("python3")
        check()

    def test_links_into_the_place_that_the_tree_will_have_are_fine(self, python):
        path, check = python
        (path.parent / "python3.9").write_text("#!/bin/sh\n")
        path.symlink_to("/final/env/bin/python3.9")
        check()
        with pytest.raises(ArchiveError, match=r"/final/env/bin/python3\.9, .* on this machine"):
            check(b"/elsewhere")

    def test_links_out_of_the_tree_cannot_be_told(self, python):
        path, check = python
        path.symlink_to("../../../beside/bin/python")
        check()

    @pytest.mark.parametrize(
        "target, told",
        [
            ("/no/such/python3.9", r"env/bin/python leads to /no/such/python3\.9, .* this machine"),
            ("python3", r"leads to env/bin/python3, .* in the archive"),
            ("python", r"leads to env/bin/python, .* in the archive"),
        ],
    )
    def test_a_dangling_link_is_refused_and_named(self, python, target, told):
        path, check = python
        path.symlink_to(target)
        with pytest.raises(ArchiveError, match=told):
            check()

    def test_a_chain_that_ends_at_an_interpreter_that_is_not_here_names_it(self, python):
        path, check = python
        path.symlink_to("python3")
        (path.parent / "python3").symlink_to("/no/such/python3.9")
        with pytest.raises(ArchiveError, match=r"leads to /no/such/python3\.9"):
            check()

    def test_one_without_content_is_refused(self, python):
        path, check = python
        path.touch(0o755)
        with pytest.raises(ArchiveError, match="0 bytes"):
            check()

    def test_one_that_has_lost_its_mode_is_refused(self, python):
        path, check = python
        path.write_text("#!/bin/sh\n")
        path.chmod(0o644)
        with pytest.raises(ArchiveError, match="mode 644"):
            check()

    def test_a_directory_of_that_name_is_refused(self, python):
        path, check = python
        path.mkdir()
        with pytest.raises(ArchiveError, match="no file"):
            check()


def test_a_python_behind_a_closed_door_is_not_judged(run, tmp_path):
    # A venv's may lead to where this user must not look: /root/.pyenv, of who packed it.
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    (closed / "bin" / "python").symlink_to(sys.executable)
    archive = tmp_path / "env.tar"
    archive.write_bytes(
        tars.environment(
            tars.member(b"bin/activate"),
            tars.symlink(b"bin/python", os.fsencode(closed / "bin" / "python")),
        )
    )
    closed.chmod(0)
    wrapper = []
    if os.geteuid() == 0:  # which modes mean nothing to, but for this
        wrapper = [need("setpriv"), "--bounding-set=-dac_override,-dac_read_search"]
    try:
        run("-e", archive, "true", wrapper=wrapper, check=True)
    finally:
        closed.chmod(0o700)

"""The test support itself: the environment is what it claims to be, the helpers count right."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from support import environments, interpreters, process, references, tars, trees, zips


def _unpack(archive: Path, place: Path) -> Path:
    """As a user of conda-pack does it."""
    references.extract(archive, place)
    references.conda_unpack(place)
    return place


def test_packed_python_runs_where_it_was_unpacked(environment, tmp_path):
    place = _unpack(environment.archive(), tmp_path / "elsewhere")
    script = (
        "import ctypes, greeter, hashlib, json, multiprocessing.pool, pipped, sys\n"
        "import showprefix_paths\n"
        "print(sys.prefix, showprefix_paths.PREFIX, sep='|')\n"
    )
    out = subprocess.run([place / "bin/python3", "-c", script], env={}, capture_output=True)
    assert out.stderr == b""
    assert out.stdout.decode() == f"{place}|{place}\n"
    mapped = subprocess.run(
        [place / "bin/python3", "-c", "print(open('/proc/self/maps').read())"],
        env={},
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert str(Path(sys.base_prefix, "lib", "libpython")) not in mapped


def test_packed_program_prints_the_prefix_it_was_given(environment, tmp_path):
    place = _unpack(environment.archive(), tmp_path / ("long" * 20))
    out = subprocess.run([place / "bin/showprefix"], capture_output=True, check=True).stdout
    assert out.decode() == f"{place}\n{place}/share/showprefix:{place}/lib\n"


def test_environment_holds_one_of_everything(environment):
    with tarfile.open(environment.archive()) as archive:
        members = archive.getmembers()
        names = {member.name: member for member in members}
        unpack = archive.extractfile("bin/conda-unpack").read().decode()
    records = [line for line in unpack.splitlines() if line.startswith("('")]
    modes = {line.split("'")[1]: line.rstrip("),").split("'")[-2] for line in records}
    assert modes["bin/showprefix"] == modes["share/showprefix/read-only.bin"] == "binary"
    assert modes["share/showprefix/read-only.ini"] == modes["bin/show-both"] == "text"
    assert "bin/show-argv" not in modes, "conda-pack rewrote its shebang"
    assert names["share/showprefix/read-only.bin"].mode == 0o444
    # Which of the two names is the link depends on the order that conda-pack sorts them in.
    again, first = (names[f"share/showprefix/data{end}.bin"] for end in ("-again", ""))
    assert again.islnk() or first.islnk()
    assert names["share/showprefix/current.ini"].issym()
    assert names["var/empty"].isdir()
    assert {"conda-meta/state", "etc/conda/activate.d/showprefix.sh"} <= names.keys()
    assert len(environments.PLACEHOLDER) == 255


def test_environment_without_scripts(environment):
    with tarfile.open(environment.archive(scripts=False)) as archive:
        assert not [name for name in archive.getnames() if "activate.d" in name]


def test_tar_builder_makes_what_tarfile_reads():
    data = tars.environment(
        tars.member(b"bin/tool", b"#!/bin/sh\n", mode=0o755, mtime=5),
        tars.directory(b"empty"),
        tars.symlink(b"link", b"bin/tool"),
        tars.hardlink(b"hard", b"bin/tool"),
        tars.pax({b"path": "caf\u00e9".encode(), b"mtime": b"1.5"}) + tars.member(b"x", b"1"),
        tars.longname(b"n" * 150) + tars.member(b"n" * 100, magic="gnu"),
        tars.header(b"big", size=0, mtime=1 << 40, magic="gnu"),
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {member.name: member for member in archive}
    assert found["bin/tool"].mode == 0o755
    assert found["link"].linkname == found["hard"].linkname == "bin/tool"
    assert found["caf\u00e9"].mtime == 1.5
    assert "n" * 150 in found
    assert found["big"].mtime == 1 << 40
    assert len(data) % tars.BLOCK == 0


@pytest.mark.parametrize("length", range(85, 105))
def test_pax_record_counts_its_own_length(length):
    record = tars.pax_record(b"k", b"v" * length)
    assert int(record.split()[0]) == len(record)


def test_zip_builder_makes_what_zipfile_reads():
    entries = [
        zips.Entry(b"a", b"data" * 100, method=zips.DEFLATED),
        zips.symlink(b"l", b"a"),
    ]
    with zipfile.ZipFile(io.BytesIO(zips.environment(*entries))) as archive:
        assert archive.testzip() is None
        assert archive.read("a") == b"data" * 100
        assert archive.getinfo("l").external_attr >> 16 == 0o120777


def test_snapshot_tells_two_trees_apart(tmp_path):
    for name in ("one", "two"):
        tree = tmp_path / name
        (tree / "d").mkdir(parents=True)
        (tree / "d" / "f").write_bytes(b"same")
        os.utime(tree / "d" / "f", (1, 1))
        os.link(tree / "d" / "f", tree / "d" / "g")
        (tree / "l").symlink_to("d/f")
        os.utime(tree / "l", (1, 1), follow_symlinks=False)
    one = trees.snapshot(tmp_path / "one")
    assert not trees.differences(one, trees.snapshot(tmp_path / "two"))
    assert one[b"d/f"].nlink_group == (b"d/f", b"d/g")
    assert one[b"l"].target == b"d/f"
    (tmp_path / "two" / "d" / "g").unlink()
    (tmp_path / "two" / "d" / "f").chmod(0o600)
    (tmp_path / "two" / ".poncho_package_run_expanded").touch()
    assert len(trees.differences(one, trees.snapshot(tmp_path / "two"))) == 3


def test_interpreters_are_found_once_each():
    found = interpreters.find()
    assert sys.version_info[:2] in {each.version[:2] for each in found}
    assert len({each.version[:2] for each in found}) == len(found)
    assert all(each.version[:2] < (3, 6) for each in interpreters.find_too_old())


def test_processes_are_seen():
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    try:
        process.wait_for(lambda: len(process.children_of(parent.pid)) == 2)
        assert len(process.group_members(parent.pid)) == 3
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
    process.wait_for(lambda: not process.is_alive(parent.pid))
    parent.wait()
    assert process.state_of(parent.pid) == ""

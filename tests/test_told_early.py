"""An environment that cannot run on this machine is refused when that is seen, or told of once."""

import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest

from poncho_package_run.machine import architecture
from support import references
from support.commands import need
from support.messages import PREFIX, refused
from support.tars import add

HERE = os.uname().machine
OTHER = {"x86_64": (183, "aarch64")}.get(HERE, (62, "x86_64"))


def elf(number, size=200_000):
    """A program for another processor: this interpreter's own header, with its number changed."""
    with open(os.path.realpath(sys.executable), "rb") as file:
        head = bytearray(file.read(64))
    head[18:20] = number.to_bytes(2, sys.byteorder)
    return bytes(head).ljust(size, b"\1")


FOREIGN = {
    "another processor": (elf(OTHER[0]), f"Linux on {OTHER[1]}"),
    "a processor without a name": (elf(999), "ELF 999"),
    "macOS": (b"\xcf\xfa\xed\xfe\x0c\0\0\1".ljust(5000, b"\0"), "macOS on aarch64"),
    "macOS, universal": (b"\xca\xfe\xba\xbe\0\0\0\2".ljust(5000, b"\0"), "macOS"),
    "Windows": (b"MZ\x90".ljust(5000, b"\0"), "Windows"),
}


def members(program, top=""):
    yield top + "bin/python3.11", program
    yield top + "conda-meta/history", b""
    yield top + "lib/much", os.urandom(3_000_000)
    yield top + "bin/tool", b"#!/bin/sh\necho ran\n"


def pack(path, program, format="tar.gz", top=""):
    if format == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members(program, top):
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o100755 << 16
                archive.writestr(info, data)
            link = zipfile.ZipInfo(top + "bin/python")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, b"python3.11")
        return path
    with tarfile.open(path, "w:" + format.partition(".")[2]) as archive:
        add(archive, dict(members(program, top)))
        info = tarfile.TarInfo(top + "bin/python")
        info.type, info.linkname = tarfile.SYMTYPE, "python3.11"
        archive.addfile(info)
    return path


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("place", ["temporary", "kept", "cache"])
def test_an_environment_for_another_machine_is_refused_with_both_names(run, tmp_path, kind, place):
    program, name = FOREIGN[kind]
    path = pack(tmp_path / "a", program)
    option = {"kept": ["-d"], "cache": ["--cache"]}.get(place)
    words = [*option, tmp_path / "kept"] if option else []
    refused(run("-e", path, *words, "tool"), 78, name, f"Linux on {HERE}", "bin/python3.11")
    if place == "cache":
        assert os.listdir(tmp_path / "kept") == [".poncho_package_run_memo"]
        return
    assert not (tmp_path / "kept").exists()
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("format, top", [("tar", ""), ("tar.xz", ""), ("zip", ""), ("tar.gz", "a/"),
                                         ("zip", "a/b/")])  # fmt: skip
def test_in_every_format_and_below_top_directories(run, tmp_path, format, top):
    path = pack(tmp_path / "a", elf(OTHER[0]), format, top)
    refused(run("-e", path, "-d", tmp_path / "kept", "tool"), 78, f"Linux on {OTHER[1]}")
    assert not (tmp_path / "kept").exists()


def test_in_squashfs(run, tmp_path):
    references.extract(pack(tmp_path / "a", elf(OTHER[0])), tmp_path / "tree")
    command = [need("mksquashfs"), tmp_path / "tree", tmp_path / "image", "-quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    refused(run("-e", tmp_path / "image", "tool"), 78, f"Linux on {OTHER[1]}")


def test_what_follows_is_not_waited_for(spawn, tmp_path):
    data = pack(tmp_path / "a", elf(OTHER[0]), "tar").read_bytes()
    tool = spawn("-e", "/dev/stdin", "-d", tmp_path / "kept", "tool", stdin=subprocess.PIPE)
    writer = threading.Thread(target=lambda: (tool.stdin.write(data[:4096]), tool.stdin.flush()))
    writer.start()
    writer.join()
    # The pipe stays open: only what has come by can tell.
    assert tool.wait(timeout=20) == 78


def test_programs_for_other_machines_may_lie_elsewhere(run, tmp_path):
    path = tmp_path / "a"
    with tarfile.open(path, "w") as archive:
        content = {
            "bin/python-cross": elf(OTHER[0]),
            "conda-meta/history": b"",
            "venv/cross/bin/python3.11": elf(OTHER[0]),
            "bin/tool": b"#!/bin/sh\necho ran\n",
            "bin/python3.11": b"#!/bin/sh\n",
        }
        add(archive, content)
    assert run("-e", path, "tool", check=True).stdout == b"ran\n"


def test_a_system_that_runs_foreign_programs_is_believed(tmp_path):
    head = elf(OTHER[0])[:64]
    assert architecture.foreign(head, str(tmp_path)) is not None
    (tmp_path / "status").write_text("enabled\n")
    handler = tmp_path / "qemu-other"
    text = "{}\ninterpreter /usr/bin/qemu\nflags: OCF\noffset 0\nmagic {}\nmask {}\n"
    mask = b"\xff" * 7 + b"\0" * 9 + b"\xfe\xff\xff\xff"
    magic = head[:16] + b"\2\0" + head[18:20]
    for state, what, handled in [
        ("disabled", magic, False),
        ("enabled", magic[:18] + b"\x77\x01", False),
        ("enabled", magic, True),
    ]:
        handler.write_text(text.format(state, what.hex(), mask.hex()))
        found = architecture.foreign(head[:16] + b"\2\0" + head[18:], str(tmp_path))
        assert (found is None) == handled, (state, what)
    handler.write_text("enabled\ninterpreter /usr/bin/x\nextension .py\n")
    assert architecture.foreign(head, str(tmp_path)) is not None


def test_this_machine_s_own_programs_are_not_foreign(tmp_path):
    for program in (os.path.realpath(sys.executable), need("ls")):
        with open(program, "rb") as file:
            assert architecture.foreign(file.read(64), str(tmp_path)) is None
    if HERE == "x86_64":
        assert architecture.foreign(elf(3), str(tmp_path)) is None, "it runs 32-bit programs, too"


# The C library


def with_glibc(path, **needed):
    with tarfile.open(path, "w:gz") as archive:
        content = {"conda-meta/history": b"", "bin/tool": b"#!/bin/sh\necho ran\n"}
        for name, version in needed.items():
            depends = ["python >=3.11", f"__glibc >={version},<3.0.a0"] if version else ["python"]
            document = {"build": "h1", "depends": depends, "files": ["x" * 90] * 900, "name": name}
            content[f"conda-meta/{name}-1.2-h1_0.json"] = json.dumps(document, indent=2).encode()
        add(archive, content)
    return path


def test_a_later_glibc_that_packages_ask_for_is_told_once(run, tmp_path):
    path = with_glibc(tmp_path / "a", a="2.17", new="2.99", newer="2.100.1", old="", more="2.98",
                      most="2.98")  # fmt: skip
    result = run("-e", path, "-d", tmp_path / "kept", "tool")
    assert (result.returncode, result.stdout) == (0, b"ran\n")
    text = result.stderr.decode()
    assert text.startswith(PREFIX.decode())
    assert text.count("\n") == 1
    assert f"glibc {architecture.glibc()}" in text
    assert "glibc 2.100.1" in text
    assert "more, most, new and 1 more" in text
    assert run("-e", path, "-d", tmp_path / "kept", "tool", check=True).stderr == b""


def test_an_older_one_is_no_news(run, tmp_path):
    here = architecture.glibc()
    path = with_glibc(tmp_path / "a", a="2.17", b="", c=here, d="2")
    assert run("-e", path, "tool", check=True).stderr == b""

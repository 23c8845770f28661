"""zip archives: the dialects of those who write them, and 40 ways to make one that lies."""

import hashlib
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import pytest

from poncho_package_run.archive import zip
from poncho_package_run.archive.member import DIRECTORY, FILE, SYMLINK
from poncho_package_run.archive.source import Source
from poncho_package_run.telling.errors import ArchiveError
from support import trees, zips
from support.commands import need
from support.messages import refused
from support.zips import DEFLATED, DESCRIPTOR_FOLLOWS, MS_DOS, STORED, UTF8, Entry

SRC = Path(zip.__file__).parents[2]
ZIP64, TIMESTAMP, UNICODE_PATH = 0x0001, 0x5455, 0x7075


class Found(NamedTuple):
    """A member as the reader gives it, its body used up."""

    kind: str
    mode: int
    seconds: Optional[float]
    content: bytes


def read(archive: "bytes | Path", scratch: Path) -> dict[bytes, Found]:
    """All members by name; the last of a name stands."""
    if isinstance(archive, bytes):
        path = scratch / "archive.zip"
        path.write_bytes(archive)
        archive = path
    source = Source(os.fsencode(archive))
    found = {}
    try:
        for member in zip.members(source):
            body = b"".join(member.body)
            assert len(body) == member.size
            seconds = None if member.mtime_ns is None else member.mtime_ns / 1e9
            found[member.path] = Found(member.kind, member.mode, seconds, body or member.target)
    finally:
        source.close()
    return found


# What others write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of each thing that a zip archive can hold."""
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "bin/run").write_bytes(b"#!/bin/sh\n" * 1000)
    (root / "bin/run").chmod(0o755)
    (root / "read-only").write_bytes(random.Random(1).randbytes(700_000))
    (root / "read-only").chmod(0o444)
    (root / "nothing").touch()
    (root / "zeros").write_bytes(bytes(3_000_000))
    (root / "caf\u00e9").write_bytes(b"coffee")
    (root / "link").symlink_to("bin/run")
    (root / "dangling").symlink_to("/nowhere/at/all")
    for index, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (1_000_000_001 + index, 1_000_000_001 + index), follow_symlinks=False)
    return root


def equals_tree(found: dict[bytes, Found], root: Path, resolution: float) -> None:
    """Compare members with a directory: names, types, modes, content, times within seconds."""
    expected = trees.snapshot(root, ignore=())
    names = {name.rstrip(b"/") for name in found}
    assert names == expected.keys()
    for name, member in found.items():
        entry = expected[name.rstrip(b"/")]
        assert member.kind == entry.type, name
        if member.kind == SYMLINK:
            assert member.content == entry.target, name
            continue
        assert member.mode == entry.mode, name
        assert abs(member.seconds - entry.mtime_ns / 1e9) <= resolution, name
        if member.kind == FILE:
            assert hashlib.sha256(member.content).hexdigest() == entry.sha256, name


def remove_symlinks(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_symlink():
            path.unlink()


def test_info_zip(tree, tmp_path):
    archive = tmp_path / "info.zip"
    subprocess.run([need("zip"), "-qry", archive, "."], cwd=tree, check=True)
    equals_tree(read(archive, tmp_path), tree, 0)  # it has an extended timestamp


def test_info_zip_into_a_pipe(tree, tmp_path):
    """Data descriptors behind every file, zip64 fields in the local headers."""
    need("zip")
    remove_symlinks(tree)  # it cannot store into a pipe
    archive = tmp_path / "piped.zip"
    subprocess.run("zip -qr - . | cat > ../piped.zip", shell=True, cwd=tree, check=True)
    equals_tree(read(archive, tmp_path), tree, 0)


@pytest.mark.parametrize("options", [(), ("--options", "zip:zip64")], ids=["zip", "zip64"])
def test_libarchive(tree, tmp_path, options):
    archive = tmp_path / "libarchive.zip"
    command = [need("bsdtar"), *options, "--format", "zip", "-cf", archive, *os.listdir(tree)]
    subprocess.run(command, cwd=tree, check=True, env=dict(os.environ, LC_ALL="C.UTF-8"))
    equals_tree(read(archive, tmp_path), tree, 0)


def test_python_to_a_file_and_to_a_pipe(tree, tmp_path):
    class Pipe(io.RawIOBase):
        """What cannot be sought, so that sizes follow the data."""

        def __init__(self) -> None:
            self.written = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.written += data
            return len(data)

    remove_symlinks(tree)
    pipe = Pipe()
    for place in (tmp_path / "python.zip", pipe):
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(tree.rglob("*")):
                archive.write(path, path.relative_to(tree))
        # Two seconds at best, and in local time.
        found = read(bytes(pipe.written) if place is pipe else place, tmp_path)
        equals_tree(found, tree, 1.99)


def test_python_zip64_without_need(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        with archive.open("f", "w", force_zip64=True) as file:
            file.write(b"content")
    assert read(stream.getvalue(), tmp_path)[b"f"].content == b"content"


@pytest.mark.parametrize("symlinks", [False, True], ids=["copied links", "--zip-symlinks"])
def test_conda_pack_as_unzip_unpacks_it(environment, tmp_path, symlinks):
    archive = environment.archive("zip", zip_symlinks=symlinks)
    reference = tmp_path / "reference"
    subprocess.run([need("unzip"), "-q", archive, "-d", reference], check=True)
    expected = trees.snapshot(reference)
    found = read(archive, tmp_path)
    for name, member in found.items():
        entry = expected[name.rstrip(b"/")]
        assert (member.kind, member.mode if member.kind == FILE else None) == (
            entry.type,
            entry.mode if entry.type == "file" else None,
        ), name
        if member.kind == FILE:
            assert hashlib.sha256(member.content).hexdigest() == entry.sha256
            assert member.seconds == entry.mtime_ns / 1e9
        elif member.kind == SYMLINK:
            assert member.content == entry.target
    files = {name for name, entry in expected.items() if entry.type != "directory"}
    assert files == {name for name, member in found.items() if member.kind != DIRECTORY}
    assert any(member.kind == SYMLINK for member in found.values()) == symlinks


@pytest.mark.parametrize("symlinks", [False, True], ids=["copied links", "--zip-symlinks"])
def test_conda_pack_environment_runs(environment, run, symlinks):
    archive = environment.archive("zip", zip_symlinks=symlinks)
    result = run("-e", archive, "python3", "-c", "import greeter; print(6 * 7)", check=True)
    assert result.stdout == b"42\n"


def test_corpus(tmp_path):
    folder = os.environ.get("PONCHO_TEST_CORPUS")
    if not folder:
        pytest.skip("PONCHO_TEST_CORPUS is not set: no folder of archives")
    cpython = Path(folder, "cpython")
    assert len(read(cpython / "exe_with_zip", tmp_path)) == 1
    assert len(read(cpython / "exe_with_z64", tmp_path)) == 1
    assert [found.kind for found in read(cpython / "zipdir.zip", tmp_path).values()] == [
        DIRECTORY,
        DIRECTORY,
        FILE,
    ]


# Names, times, modes


def test_names_are_bytes_whatever_their_charset(tmp_path):
    """unzip and bsdtar keep an unmarked name as it is, whoever made the archive."""
    names = [b"\x91\x86", "\u00e6".encode(), b"back\\slash", b"new\nline", b" "]
    found = read(zips.build([Entry(name) for name in names]), tmp_path)
    assert list(found) == names
    dos = zips.build([Entry(b"\x91\x86", host=MS_DOS), Entry("\u00e6".encode(), flags=UTF8)])
    assert list(read(dos, tmp_path)) == [b"\x91\x86", "\u00e6".encode()]


def test_unicode_path_field_counts_if_it_is_that_name_s(tmp_path):
    def field(name: bytes) -> bytes:
        checksum = struct.pack("<BI", 1, zlib.crc32(name))
        return zips.extra(UNICODE_PATH, checksum + "caf\u00e9".encode())

    right = Entry(b"caf\x82", b"1", extra=field(b"caf\x82"))
    renamed = Entry(b"renamed", b"2", extra=field(b"caf\x82"))
    assert list(read(zips.build([right, renamed]), tmp_path)) == ["caf\u00e9".encode(), b"renamed"]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_times(tmp_path, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    zip._dos_time.cache_clear()
    try:
        summer = Entry(
            b"summer", date=(2024 - 1980) << 9 | 7 << 5 | 4, time=13 << 11 | 59 << 5 | 29
        )
        winter = Entry(b"winter", date=(2024 - 1980) << 9 | 12 << 5 | 31, time=0)
        stamp = zips.extra(TIMESTAMP, struct.pack("<Bi", 1, 1_000_000_001))
        exact = Entry(b"exact", extra=stamp)
        none = Entry(b"none", date=0, time=0, extra=zips.extra(TIMESTAMP, b"\0"))
        archive = tmp_path / "times.zip"
        archive.write_bytes(zips.build([summer, winter, exact, none]))
        found = read(archive, tmp_path)
        assert found[b"summer"].seconds == time.mktime((2024, 7, 4, 13, 59, 58, 0, 0, -1))
        assert found[b"winter"].seconds == time.mktime((2024, 12, 31, 0, 0, 0, 0, 0, -1))
        assert found[b"exact"].seconds == 1_000_000_001
        reference = tmp_path / "reference"
        subprocess.run([need("unzip"), "-q", archive, "-d", reference], check=True)
        for name in (b"summer", b"winter", b"exact"):
            assert os.stat(os.path.join(os.fsencode(reference), name)).st_mtime == (
                found[name].seconds
            )
    finally:
        monkeypatch.undo()
        time.tzset()
        zip._dos_time.cache_clear()


def stamp(number, seconds):
    """An extra field that holds a time of modification: UT, UX, PKWARE's of Unix or of NTFS."""
    second = struct.pack("<L", seconds % 2**32)
    data = {
        TIMESTAMP: b"\1" + second,
        0x5855: bytes(4) + second,
        0x000D: bytes(4) + second + bytes(4),
        0x000A: struct.pack("<LHHQQQ", 0, 1, 24, (seconds + 11644473600) * 10**7, 0, 0),
    }[number]
    return zips.extra(number, data)


def test_times_in_extra_fields_are_those_that_unzip_takes(run, tmp_path):
    old, late = 20 << 9 | 3 << 5 | 4, 60 << 9 | 3 << 5 | 4  # 2000 and 2040, as MS-DOS has it
    ut, ux, unix, ntfs = TIMESTAMP, 0x5855, 0x000D, 0x000A
    ours, theirs = 1_500_000_000, 1_400_000_000
    fields = {
        b"UX": stamp(ux, ours),
        b"UNIX": stamp(unix, ours),
        b"NTFS": stamp(ntfs, ours),  # unzip and bsdtar take the date of MS-DOS
        b"UX and UT": stamp(ux, theirs) + stamp(ut, ours),
        b"UT and UX": stamp(ut, ours) + stamp(ux, theirs),
        b"0": stamp(ut, 0),
    }
    damaged = {
        b"cut": stamp(ut, ours)[:6],
        b"longer than it is": stamp(ut, ours)[:2] + b"\xff" + stamp(ut, ours)[3:],
    }
    entries = [Entry(b"conda-meta/history")]
    for name, extra in fields.items():
        entries.append(Entry(name, date=old, extra=extra))
        entries.append(Entry(name + b" in the directory", date=old, extra=extra, local_extra=b""))
    for name, extra in {**fields, **damaged}.items():
        entries.append(Entry(name + b" in the header", date=old, local_extra=extra))
    for number in (ut, ux, unix):
        entries.append(Entry(b"2040 %d" % number, date=late, extra=stamp(number, 2_240_000_000)))
        entries.append(Entry(b"1960 %d" % number, date=old, extra=stamp(number, -310_000_000)))
    archive, kept = tmp_path / "times.zip", tmp_path / "kept"
    archive.write_bytes(zips.build(entries))
    reference = tmp_path / "reference"
    env = {"TZ": "America/New_York"}
    command = [need("unzip"), "-q", archive, "-d", reference]
    status = subprocess.run(command, env={**os.environ, **env}).returncode
    assert status in (0, 1)  # 1: complaints about the field that is longer than it is
    run("-e", archive, "-d", kept, env=env, check=True)
    for entry in entries:
        name = os.fsdecode(entry.name)
        assert (kept / name).stat().st_mtime == (reference / name).stat().st_mtime, name


def test_modes(tmp_path):
    entries = [
        Entry(b"unix", mode=stat.S_IFREG | 0o640),
        Entry(b"nobody", mode=stat.S_IFREG),
        Entry(b"no type", mode=0o600),
        Entry(b"no mode", mode=0),
        Entry(b"dos", mode=stat.S_IFREG | 0o777, host=MS_DOS),
        Entry(b"directory/", mode=0),
        Entry(b"no slash", mode=stat.S_IFDIR | 0o700),
    ]
    found = read(zips.build(entries), tmp_path)
    assert [found[entry.name].mode for entry in entries] == [
        0o640,
        0,
        0o600,
        0o644,
        0o644,
        0o755,
        0o700,
    ]
    assert [found[entry.name].kind for entry in entries] == [FILE] * 5 + [DIRECTORY] * 2


# Containers


def offsets_with_a_program_in_front(adjusted: bool, zip64: bool) -> bytes:
    prefix = b"#!/bin/sh\nexit\n" * 10
    first = len(prefix) if adjusted else 0
    entry = Entry(b"f", b"content")
    directory = zips.central(entry, first)
    start = first + len(zips.local(entry))
    tail = zips.end(1, len(directory), start)
    if zip64:
        saturated = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        tail = zips.end64(1, len(directory), start, start + len(directory)) + saturated
    return prefix + zips.local(entry) + directory + tail


@pytest.mark.parametrize("zip64", [False, True], ids=["zip", "zip64"])
@pytest.mark.parametrize("adjusted", [False, True], ids=["shifted", "adjusted"])
def test_a_program_in_front(tmp_path, adjusted, zip64):
    data = offsets_with_a_program_in_front(adjusted, zip64)
    assert read(data, tmp_path)[b"f"].content == b"content"
    path = tmp_path / "archive.zip"
    source = Source(os.fsencode(path))
    assert zip.recognises_tail(source)
    assert not zip.recognises(source.peek(512))
    source.close()


def test_recognised_by_content(tmp_path):
    assert zip.recognises(zips.build([Entry(b"f")])[:4])
    assert zip.recognises(zips.build([])[:4])
    path = tmp_path / "other"
    path.write_bytes(b"no zip archive")
    source = Source(os.fsencode(path))
    assert not zip.recognises_tail(source)
    source.close()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("form", ["<3I", "<I2Q"])
@pytest.mark.parametrize("zeroed", [True, False])
def test_data_descriptors_of_every_form(tmp_path, signed, form, zeroed):
    checksum = zlib.crc32(b"content")
    descriptor = struct.pack(form, checksum, 7, 7)
    local = {"local_crc": 0, "local_size": 0, "local_compressed": 0} if zeroed else {}
    entry = Entry(
        b"f",
        b"content",
        flags=DESCRIPTOR_FOLLOWS,
        descriptor=b"PK\x07\x08" * signed + descriptor,
        **local,
    )
    assert read(zips.build([entry, Entry(b"g")]), tmp_path)[b"f"].content == b"content"


def test_archive_comment_and_member_comments(tmp_path):
    data = zips.build([Entry(b"f", b"1", comment=b"PK\1\2"), Entry(b"g")], comment=b"x" * 65535)
    assert list(read(data, tmp_path)) == [b"f", b"g"]


def test_directory_in_another_order_than_the_members(tmp_path):
    first, second = Entry(b"a", b"1" * 100), Entry(b"b", b"2" * 50)
    data = zips.local(first) + zips.local(second)
    directory = zips.central(second, len(zips.local(first))) + zips.central(first, 0)
    found = read(data + directory + zips.end(2, len(directory), len(data)), tmp_path)
    assert list(found) == [b"b", b"a"]
    assert found[b"a"].content == b"1" * 100


def test_entries_larger_than_any_buffer(tmp_path):
    """Names, extra fields and comments of the greatest length, across the blocks that are read."""
    long = b"n" * 65535
    padding = zips.extra(0xCAFE, b"\0" * 65531)
    entries = [Entry(b"%d" % index, extra=padding, comment=long) for index in range(20)]
    entries.append(Entry(long, b"content", extra=padding))
    found = read(zips.build(entries), tmp_path)
    assert len(found) == 21
    assert found[long].content == b"content"


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 31, 1 << 18, (1 << 20) - 1, 1 << 20, 5 << 20])
def test_sizes_around_the_buffers(tmp_path, method, size):
    for data in (bytes(size), random.Random(size).randbytes(size)):
        found = read(zips.build([Entry(b"f", data, method=method), Entry(b"g", b"1")]), tmp_path)
        assert found[b"f"].content == data


def test_bodies_run_at_the_same_time_in_threads(tmp_path):
    generator = random.Random(5)
    entries = [
        Entry(b"%d" % index, generator.randbytes(generator.randrange(1 << 16)) * 8, method=DEFLATED)
        for index in range(16)
    ]
    path = tmp_path / "archive.zip"
    path.write_bytes(zips.build(entries))
    source = Source(os.fsencode(path))
    todo = list(zip.members(source))
    assert all(member.detached for member in todo)
    random.Random(6).shuffle(todo)
    found = {}

    def work() -> None:
        while True:
            try:
                member = todo.pop()
            except IndexError:
                return
            found[member.path] = b"".join(member.body)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert found == {entry.name: entry.data for entry in entries}


def test_200_000_members_in_64_mebibytes(tmp_path):
    count = 200_000
    entries = [Entry(b"lib/python3.11/site-packages/package/%09d.py" % i) for i in range(count)]
    body = b"".join(map(zips.local, entries))
    size = len(zips.local(entries[0]))
    directory = b"".join(zips.central(entry, index * size) for index, entry in enumerate(entries))
    start = len(body)
    tail = zips.end64(count, len(directory), start, start + len(directory))
    path = tmp_path / "many.zip"
    path.write_bytes(body + directory + tail + zips.end(0xFFFF, len(directory), start))
    script = (
        "import re, sys\n"
        "from poncho_package_run.archive import source, zip\n"
        "count = 0\n"
        "for member in zip.members(source.Source(sys.argv[1].encode())):\n"
        "    for _ in member.body: pass\n"
        "    count += 1\n"
        # Not ru_maxrss, which a process has from its parent.
        "print(count, re.search('VmHWM:(.*)kB', open('/proc/self/status').read()).group(1))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, path],
        env=dict(os.environ, PYTHONPATH=str(SRC)),
        capture_output=True,
        check=True,
    )
    found, kibibytes = map(int, result.stdout.split())
    assert found == count
    assert kibibytes < 64 << 10


def test_a_pipe_is_refused_with_what_to_do(tmp_path, run):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(zips.environment(),))
    writer.start()
    refused(run("-e", fifo, "true"), 65, str(fifo), "pipe", "tar.gz")
    writer.join()


def test_cut_anywhere_is_an_error(tmp_path):
    data = zips.build([Entry(b"a", b"one"), Entry(b"b", b"two" * 50, method=DEFLATED)])
    for length in range(4, len(data)):
        with pytest.raises(ArchiveError):
            read(data[:length], tmp_path)


def test_one_bit_changed_never_gives_other_content(tmp_path):
    """Names, modes and times carry no check; what a file holds and how many there are does."""
    entries = [Entry(b"a", b"one " * 20, method=DEFLATED), Entry(b"b", b"two")]
    data = zips.build(entries)
    contents = [entry.data for entry in entries]
    for index in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            try:
                found = read(bytes(changed), tmp_path)
            except ArchiveError:
                continue
            for each, content in enumerate(contents):
                member = list(found.values())[each]
                assert member.content == content, (index, bit)


def test_file_cut_while_it_is_read(tmp_path):
    path = tmp_path / "archive.zip"
    path.write_bytes(zips.build([Entry(b"a", bytes(1000)), Entry(b"b", bytes(1000))]))
    source = Source(os.fsencode(path))
    todo = list(zip.members(source))
    os.truncate(path, 1100)
    assert b"".join(todo[0].body) == bytes(1000)
    with pytest.raises(ArchiveError):
        b"".join(todo[1].body)
    source.close()


# Attacks, through the artifact


def _bomb(data: bytes, **lies: int) -> Entry:
    return Entry(b"f", data, method=DEFLATED, **lies)


def _one_header_for_two(names: tuple[bytes, bytes]) -> bytes:
    """Two entries of the directory that share the member's bytes."""
    entries = [Entry(b"conda-meta/history"), Entry(names[0], b"content"), Entry(names[1])]
    first, second, third = entries
    second_at = len(zips.local(first))
    third.data, third.offset = second.data, second_at
    data = zips.local(first) + zips.local(second)
    directory = zips.central(first, 0) + zips.central(second, second_at) + zips.central(third, 0)
    return data + directory + zips.end(3, len(directory), len(data))


def _quoted_headers() -> bytes:
    """Fifield's bomb: each member's data is a stored block that quotes the next one's header."""
    inner = Entry(b"b", bytes(100_000), method=DEFLATED)
    quoted = zips.local(inner)
    body = b"\0" + struct.pack("<2H", 30 + 1, 0xFFFF ^ 31) + quoted
    outer = Entry(b"a", quoted[:31] + inner.data, method=DEFLATED, body=body)
    history = Entry(b"conda-meta/history")
    start = len(zips.local(history))
    data = zips.local(history) + zips.local(outer)
    directory = zips.central(history, 0) + zips.central(outer, start)
    directory += zips.central(inner, start + 30 + 1 + 5)
    return data + directory + zips.end(3, len(directory), len(data))


def _with_end(end: Callable[[int, int, int], bytes]) -> bytes:
    """A sound archive but for its end, which is made from entries, size and offset."""
    entries = [Entry(b"conda-meta/history"), Entry(b"f", b"content")]
    data = b"".join(map(zips.local, entries))
    directory = zips.central(entries[0], 0) + zips.central(entries[1], len(zips.local(entries[0])))
    return data + directory + end(2, len(directory), len(data))


def _zip64_end(count: int, size: int, offset: int, **lies: int) -> bytes:
    """Both end records; ``at``, ``count64``: what the locator and the zip64 record say instead."""
    here = offset + size
    record = zips.end64(lies.get("count64", count), size, offset, lies.get("at", here))
    return record + zips.end(count, size, offset)


def _parts(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\5\6", 1, 0, count, count, size, offset, 0)


def _special(kind: int) -> bytes:
    return zips.environment(Entry(b"special", mode=kind | 0o666))


ATTACKS: dict[str, tuple[bytes, str]] = {
    "absolute name": (zips.environment(Entry(b"/tmp/evil")), "/tmp/evil"),
    "name that starts with dot-dot": (zips.environment(Entry(b"../evil")), "../evil"),
    "dot-dot in the middle": (zips.environment(Entry(b"a/../../evil")), "a/../../evil"),
    "directory named dot-dot": (
        zips.environment(Entry(b"../", mode=stat.S_IFDIR | 0o777)),
        "..",
    ),
    "symlink named dot-dot": (zips.environment(zips.symlink(b"a/..", b"x")), "a/.."),
    "dot-dot behind MS-DOS's backslashes": (
        zips.environment(Entry(b"..\\evil", host=MS_DOS)),
        "backslash",
    ),
    "dot-dot hidden in a Unicode path field": (
        zips.environment(
            Entry(
                b"innocent",
                extra=zips.extra(
                    UNICODE_PATH,
                    struct.pack("<BI", 1, zlib.crc32(b"innocent")) + b"../evil",
                ),
            )
        ),
        "../evil",
    ),
    "empty name": (zips.environment(Entry(b"")), "name"),
    "name with a NUL": (zips.environment(Entry(b"innocent\0/../../evil")), "NUL"),
    "name of 300 bytes": (zips.environment(Entry(b"n" * 300)), "nnnn"),
    "file through a symlink": (
        zips.environment(zips.symlink(b"a", b"../outside"), Entry(b"a/evil", b"evil")),
        "a",
    ),
    "file through a symlink that comes later": (
        zips.environment(Entry(b"a/evil", b"evil"), zips.symlink(b"a", b"../outside")),
        "a",
    ),
    "file below a file": (zips.environment(Entry(b"a"), Entry(b"a/b")), "a/b"),
    "file in the place of a directory with content": (
        zips.environment(Entry(b"a/b", bytes(100_000)), Entry(b"a")),
        "a takes the place of another",
    ),
    "symlink of 70,000 bytes": (zips.environment(zips.symlink(b"a", b"x" * 70_000)), "70000"),
    "symlink that claims 10 bytes and inflates to many": (
        zips.environment(
            Entry(
                b"a",
                bytes(1 << 20),
                mode=stat.S_IFLNK | 0o777,
                method=DEFLATED,
                size=10,
            )
        ),
        "longer than",
    ),
    "symlink to nothing": (zips.environment(zips.symlink(b"a", b"")), "symlink"),
    "symlink with a NUL": (zips.environment(zips.symlink(b"a", b"x\0y")), "NUL"),
    "symlink named as a directory": (
        zips.environment(zips.symlink(b"a/", b"../outside")),
        "a/",
    ),
    "directory with content": (
        zips.environment(Entry(b"a/", b"content", mode=stat.S_IFDIR | 0o755)),
        "content",
    ),
    "fifo": (_special(stat.S_IFIFO), "special"),
    "socket": (_special(stat.S_IFSOCK), "special"),
    "character device": (_special(stat.S_IFCHR), "special"),
    "block device": (_special(stat.S_IFBLK), "special"),
    "another name in the local header": (
        zips.environment(Entry(b"f", local_name=b"g")),
        "another name",
    ),
    "another method in the local header": (
        zips.environment(Entry(b"f", b"content", local_method=DEFLATED)),
        "another method",
    ),
    "another size in the local header": (
        zips.environment(Entry(b"f", b"content", local_size=6)),
        "another size",
    ),
    "another checksum in the local header": (
        zips.environment(Entry(b"f", b"content", local_crc=1)),
        "checksum",
    ),
    "another size in the data descriptor": (
        zips.environment(
            Entry(
                b"f",
                b"content",
                flags=DESCRIPTOR_FOLLOWS,
                descriptor=struct.pack("<3I", zlib.crc32(b"content"), 7, 6),
            )
        ),
        "descriptor",
    ),
    "data descriptor that is missing": (
        zips.environment(Entry(b"f", b"content", flags=DESCRIPTOR_FOLLOWS)),
        "descriptor",
    ),
    "wrong checksum": (zips.environment(Entry(b"f", b"content", crc=1)), "checksum"),
    "100 MiB that claim to be 10 bytes": (
        zips.environment(_bomb(bytes(100 << 20), size=10)),
        "longer than",
    ),
    "content shorter than claimed": (
        zips.environment(_bomb(b"content", size=8)),
        "shorter than",
    ),
    "stored content shorter than claimed": (
        zips.environment(Entry(b"f", b"content", size=1 << 31)),
        "shorter than",
    ),
    "a terabyte claimed by a zip64 field": (
        zips.environment(
            Entry(
                b"f",
                b"content",
                size=0xFFFFFFFF,
                compressed=0xFFFFFFFF,
                extra=zips.extra(ZIP64, struct.pack("<2Q", 1 << 40, 1 << 40)),
            )
        ),
        "reaches into",
    ),
    "zip64 field that is too short": (
        zips.environment(Entry(b"f", size=0xFFFFFFFF, extra=zips.extra(ZIP64, b"1234"))),
        "zip64",
    ),
    "two zip64 fields": (
        zips.environment(Entry(b"f", extra=zips.extra(ZIP64, bytes(8)) * 2)),
        "extra field",
    ),
    "extra field that ends behind its end": (
        zips.environment(Entry(b"f", extra=struct.pack("<2H", 0xCAFE, 9) + b"1234")),
        "extra field",
    ),
    "data that is no deflate stream": (
        zips.environment(Entry(b"f", b"content", method=DEFLATED, body=b"\xff" * 7)),
        "inflate",
    ),
    "bytes behind the deflate stream": (
        zips.environment(
            Entry(
                b"f",
                b"",
                method=DEFLATED,
                body=b"\3\0" + b"hidden",
            )
        ),
        "bytes after its end",
    ),
    "encrypted": (zips.environment(Entry(b"f", b"content", flags=1)), "encrypted"),
    "strongly encrypted": (zips.environment(Entry(b"f", b"content", flags=0x41)), "encrypted"),
    "deflate64": (zips.environment(Entry(b"f", b"content", method=9)), "deflate64"),
    "bzip2": (zips.environment(Entry(b"f", b"content", method=12)), "bzip2"),
    "lzma": (zips.environment(Entry(b"f", b"content", method=14)), "lzma"),
    "unknown method": (zips.environment(Entry(b"f", b"content", method=77)), "method 77"),
    "one header for two members": (_one_header_for_two((b"f", b"f")), "overlap"),
    "one header for two names": (_one_header_for_two((b"f", b"g")), "overlap"),
    "headers quoted in the data of others": (_quoted_headers(), "reaches into"),
    "data that reaches into the directory": (
        _with_end(zips.end).replace(struct.pack("<2I", 7, 7), struct.pack("<2I", 60, 60)),
        "reaches into",
    ),
    "header behind the directory": (
        zips.environment(Entry(b"f", offset=1 << 30)),
        "outside the archive",
    ),
    "no header where the directory says": (
        zips.environment(Entry(b"f", b"content", offset=5)),
        "no header",
    ),
    "more members claimed than there are": (
        zips.build([Entry(b"conda-meta/history")], count=2),
        "claims 2",
    ),
    "fewer members claimed than there are": (
        zips.build([Entry(b"conda-meta/history"), Entry(b"f")], count=1),
        "claims 1",
    ),
    "bytes behind the end": (
        zips.build([Entry(b"conda-meta/history")], after=b"hidden"),
        "bytes after its end",
    ),
    "bytes between the directory and its end": (
        zips.build([Entry(b"conda-meta/history")], between=b"hidden"),
        "directory",
    ),
    "two ends, one in the other's comment": (
        zips.build(
            [Entry(b"conda-meta/history")],
            comment=b"PK\1\2" + zips.end(0, 0, 0),
        ),
        "two end records",
    ),
    "no directory": (zips.local(Entry(b"conda-meta/history")), "cut short"),
    "directory that starts before the file": (
        _with_end(lambda count, size, offset: zips.end(count, size + 10_000, offset)),
        "outside the file",
    ),
    "directory at an offset behind itself": (
        _with_end(lambda count, size, offset: zips.end(count, size, offset + 10)),
        "outside the file",
    ),
    "first of several parts": (_with_end(_parts), "one part"),
    "zip64 locator that points elsewhere": (
        _with_end(lambda *numbers: _zip64_end(*numbers, at=0)),
        "directory outside",
    ),
    "zip64 locator that points far away": (
        _with_end(lambda *numbers: _zip64_end(*numbers, at=(1 << 64) - 1)),
        "directory outside",
    ),
    "zip64 locator without a record": (
        _with_end(
            lambda *numbers: (
                struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1).rjust(80, b"\0") + zips.end(*numbers)
            )
        ),
        "no zip64 end record",
    ),
    "two end records that disagree": (
        _with_end(lambda *numbers: _zip64_end(*numbers, count64=1)),
        "disagree",
    ),
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A directory that holds the target and, beside it, what must stay as it is."""
    root = tmp_path / "world"
    (root / "outside").mkdir(parents=True)
    (root / "outside" / "file").write_bytes(b"precious")
    (root / "evil").write_bytes(b"here before")
    return root


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused(attack, run, world, tmp_path):
    data, word = ATTACKS[attack]
    archive, target = tmp_path / "attack", world / "target"
    archive.write_bytes(data)
    before = trees.snapshot(world)
    result = run("-e", archive, "-d", target, "true")
    refused(result, 65, word)
    if target.exists():
        shutil.rmtree(target)
    assert trees.snapshot(world) == before
    assert not os.path.lexists("/tmp/evil")


def _unpack(run: Callable[..., object], archive: bytes, world: Path) -> dict[bytes, trees.Entry]:
    """What is unpacked; the world around it stays as it was."""
    target = world / "target"
    (world.parent / "archive").write_bytes(archive)
    before = trees.snapshot(world)
    run("-e", world.parent / "archive", "-d", target, "true", check=True, umask=0o022)
    found = trees.snapshot(target)
    after = trees.snapshot(world)
    assert {name: entry for name, entry in after.items() if not name.startswith(b"target")} == (
        before
    )
    return found


def test_last_of_a_name_wins_as_with_unzip_and_bsdtar(run, world):
    entries = [Entry(b"f", b"%d" % index * 1000) for index in range(50)]
    found = _unpack(run, zips.environment(*entries), world)
    assert found[b"f"].sha256 == hashlib.sha256(b"49" * 1000).hexdigest()


def test_last_of_a_name_wins_whatever_the_first_one_was(run, world):
    directory = stat.S_IFDIR | 0o755
    found = _unpack(
        run,
        zips.environment(
            Entry(b"a/", mode=directory),
            Entry(b"a", b"file"),
            Entry(b"b", b"file"),
            Entry(b"b/", mode=directory),
            Entry(b"b/c", b"file"),
        ),
        world,
    )
    assert [found[name].type for name in (b"a", b"b", b"b/c")] == ["file", "directory", "file"]


def test_file_replaces_a_symlink_of_its_name(run, world):
    link = zips.symlink(b"f", b"../outside/file")
    found = _unpack(run, zips.environment(link, Entry(b"f", b"evil")), world)
    assert (found[b"f"].type, found[b"f"].size) == ("file", 4)


def test_symlinks_may_point_anywhere(run, world):
    found = _unpack(run, zips.environment(zips.symlink(b"a", b"/etc/passwd")), world)
    assert found[b"a"].target == b"/etc/passwd"


def test_setuid_setgid_and_sticky_are_dropped(run, world):
    entries = [
        Entry(b"f", mode=stat.S_IFREG | 0o6755),
        Entry(b"d/", mode=stat.S_IFDIR | 0o3777),
    ]
    found = _unpack(run, zips.environment(*entries), world)
    assert (found[b"f"].mode, found[b"d"].mode) == (0o755, 0o755)


def test_member_that_the_directory_does_not_name_is_not_there(run, world):
    """What a reader that goes from header to header would find as well."""
    history, hidden = Entry(b"conda-meta/history"), Entry(b"hidden", b"evil")
    data = zips.local(history) + zips.local(hidden)
    directory = zips.central(history, 0)
    found = _unpack(run, data + directory + zips.end(1, len(directory), len(data)), world)
    assert found.keys() == {b"conda-meta", b"conda-meta/history"}


def test_backslash_of_unix_is_a_letter_of_the_name(run, world):
    found = _unpack(run, zips.environment(Entry(b"..\\evil")), world)
    assert b"..\\evil" in found


def test_name_with_control_characters_is_shown_in_one_line(run, world, tmp_path):
    archive = tmp_path / "attack"
    archive.write_bytes(zips.environment(Entry(b"a\n\x1b[31mb", b"content", crc=1)))
    result = run("-e", archive, "-d", world / "target", "true")
    refused(result, 65, "checksum")
    assert b"\x1b" not in result.stderr

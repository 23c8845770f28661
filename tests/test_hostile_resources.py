"""Tar archives that claim much, or hold much of nothing: memory stays bounded all the same."""

import bz2
import gzip
import itertools
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support import tracing, zips
from support.messages import refused
from support.streams import in_blocks, members
from support.tars import (
    END,
    directory,
    hardlink,
    header,
    longname,
    member,
    pax,
    pax_record,
    symlink,
)

MIB = 1 << 20
PEAK = 64 * MIB
HUNG = 60
EITHER = -1
HISTORY = member(b"conda-meta/history")
OLD = b"/opt/placeholder"
LONG = OLD + b"_placehold" * 24
ZEROS = bytes(MIB)


class Case(NamedTuple):
    """``pieces`` make the archive; the tool's status is ``status``, or with EITHER 0 or 65.

    With ``many`` it is unpacked to a file system in memory, where there is one: a disk would take
    minutes for that many directories.
    """

    status: int
    pieces: Callable[[], Iterable[bytes]]
    many: bool = False


def once(*pieces: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: (HISTORY, *pieces, END)


def zeros(count: int) -> Iterator[bytes]:
    """``count`` MiB of zeros."""
    return (ZEROS for _ in range(count))


def file_of(name: bytes, first: bytes, filler: bytes, mib: int) -> Iterator[bytes]:
    """A member of so many MiB: ``first``, then ``filler`` over and over."""
    yield header(name, size=mib * MIB)
    block = (filler * (MIB // len(filler) + 1))[:MIB]
    yield first + block[len(first) :]
    for _ in range(mib - 1):
        yield block


def record(path: str, mode: str, placeholder: bytes = OLD) -> bytes:
    text = f"#!python\n_prefix_records = [\n({path!r}, {placeholder.decode()!r}, {mode!r})\n]\n"
    return member(b"bin/conda-unpack", text.encode(), mode=0o755)


def global_keys() -> Iterator[bytes]:
    """Global headers whose keywords all differ: 180 MB for a reader that keeps what it sees."""
    yield HISTORY
    for number in range(200):
        yield pax(pax_record(b"evil.%d" % number, bytes(900_000)), type=b"g")
    yield member(b"f", b"x") + END


def global_sparse_keys() -> Iterator[bytes]:
    """The keywords of sparse files, in global headers, and no member that they could be about."""
    yield HISTORY
    for first in range(0, 1_200_000, 20_000):
        numbers = range(first, first + 20_000)
        yield pax(b"".join(pax_record(b"GNU.sparse.%d" % n, b"x") for n in numbers), type=b"g")
    yield END


def long_links() -> Iterator[bytes]:
    """15,000 symlinks with targets of 4,000 bytes: 60 MB of targets."""
    yield HISTORY
    for number in range(15_000):
        yield longname(b"t" * 4000, type=b"K") + symlink(b"l/%d" % number, b"")
    yield END


def long_names(made: bytes) -> Iterator[bytes]:
    """So many members of one directory."""
    yield HISTORY
    for number in range(110_000):
        name = b"d/\xf0\x9f\x98\x80%d" % number
        yield longname(name.ljust(253, b"n")) + made
    yield END


def spellings() -> Iterator[bytes]:
    """20,000 members of one name, each spelled another way in 3,900 bytes."""
    yield HISTORY
    for number in range(20_000):
        bits = b"".join(b"./" if number >> bit & 1 else b"/" for bit in range(16))
        yield longname(b"d/" + b"./" * 1930 + bits + b"f") + member(b"x", b"x")
    yield END


CASES = {
    "gh-151497-long-name-of-1-TiB": Case(
        65, lambda: (HISTORY, header(b"././@LongLink", size=1 << 40, type=b"L", magic="gnu"))
    ),
    "gh-151497-long-name-of-1-TiB-and-data": Case(
        65,
        lambda: (
            HISTORY,
            header(b"././@LongLink", size=1 << 40, type=b"L", magic="gnu"),
            *zeros(200),
        ),
    ),
    "gh-155633-pax-record-of-64-MiB": Case(
        65, lambda: (HISTORY, pax(pax_record(b"path", b"p" * 64 * MIB)), member(b"f"), END)
    ),
    "pax-comment-of-64-MiB": Case(
        65, lambda: (HISTORY, pax(pax_record(b"comment", b"p" * 64 * MIB)), member(b"f"), END)
    ),
    "pax-header-of-1-TiB": Case(
        65, lambda: (HISTORY, header(b"pax", size=1 << 40, type=b"x"), *zeros(200))
    ),
    "pax-of-100000-records": Case(
        0,
        once(pax(b"".join(pax_record(b"k%d" % n, b"") for n in range(60_000))), member(b"f", b"x")),
    ),
    "10000-long-names-in-a-row": Case(
        0, once(longname(b"n" * 4000) * 10_000, longname(b"f"), member(b"f"))
    ),
    "global-pax-keywords": Case(0, global_keys),
    "global-keywords-of-sparse-files": Case(0, global_sparse_keys),
    "file-of-8-GiB-cut-after-200-MiB": Case(
        65, lambda: (HISTORY, header(b"big", size=8 << 30), *zeros(200))
    ),
    "file-of-128-MiB-of-zeros": Case(
        0, lambda: (HISTORY, header(b"big", size=128 * MIB), *zeros(128), END)
    ),
    "1-GiB-of-zeros-behind-the-end": Case(0, lambda: (HISTORY, END, *zeros(1024))),
    "20000-members-of-one-name": Case(
        0, lambda: (HISTORY, *(member(b"d/f", b"x") * 1000 for _ in range(20)), END)
    ),
    "100000-symlinks-of-one-name": Case(
        0, lambda: (HISTORY, *(symlink(b"d/s", b"x" * 90) * 1000 for _ in range(100)), END)
    ),
    # Long names that take four bytes a character in memory, too.
    "110000-long-names": Case(0, lambda: long_names(member(b"short")), many=True),
    "110000-long-names-of-directories": Case(0, lambda: long_names(directory(b"short")), many=True),
    "20000-directories": Case(0, once(*(directory(b"d/%d" % number) for number in range(20_000)))),
    "150000-directories-in-one": Case(
        0, once(*(directory(b"d/%d" % number) for number in range(150_000))), many=True
    ),
    "150000-directories-in-many": Case(
        0,
        once(
            *(
                directory(b"lib/site-packages/package%d/tests/data%d" % (number % 1500, number))
                for number in range(150_000)
            )
        ),
        many=True,
    ),
    "2000-directories-in-each-other": Case(
        0, once(*(longname(b"d/" * n) + directory(b"d") for n in range(1, 2000))), many=True
    ),
    "one-directory-in-20000-spellings": Case(0, spellings, many=True),
    "100000-hard-links-to-a-symlink": Case(
        0,
        once(symlink(b"s", b"t"), *(hardlink(b"l/%d" % n, b"s") for n in range(100_000))),
        many=True,
    ),
    "15000-symlinks-with-long-targets": Case(0, long_links),
    "2000-levels": Case(0, once(longname(b"d/" * 2000 + b"f"), member(b"f", b"x"))),
    "2000-levels-then-damage": Case(
        65, once(longname(b"d/" * 2000 + b"f"), member(b"f", b"x"), header(b"", checksum=b"1"))
    ),
    "60000-levels": Case(65, once(longname(b"d/" * 60_000 + b"f"), member(b"f", b"x"))),
    "conda-unpack-of-128-MiB": Case(
        65,
        lambda: (
            HISTORY,
            *file_of(b"bin/conda-unpack", b"#!\n_prefix_records = [\n", b" ", 128),
            END,
        ),
    ),
    "text-record-of-128-MiB": Case(
        0, lambda: (HISTORY, *file_of(b"f", OLD, OLD + b"\n", 128), record("f", "text"), END)
    ),
    "binary-record-of-128-MiB": Case(
        0,
        lambda: (
            HISTORY,
            *file_of(b"f", b"", b"/x" + LONG + b"/lib\0", 128),
            record("f", "binary", LONG),
            END,
        ),
    ),
    "binary-record-without-an-end-of-128-MiB": Case(
        0, lambda: (HISTORY, *file_of(b"f", LONG, b"a", 128), record("f", "binary", LONG), END)
    ),
    "text-record-that-makes-20-MiB-grow": Case(
        EITHER, lambda: (HISTORY, *file_of(b"f", b"", b"a", 20), record("f", "text", b"a"), END)
    ),
    "placeholder-longer-than-a-window": Case(
        EITHER,
        lambda: (
            HISTORY,
            *file_of(b"f", b"", b"a", 20),
            record("f", "binary", b"b" * (8 * MIB + 1)),
            END,
        ),
    ),
    "placeholder-twice-as-long-as-a-window": Case(
        EITHER,
        lambda: (
            HISTORY,
            *file_of(b"f", b"", b"a", 20),
            record("f", "binary", b"b" * 16 * MIB),
            END,
        ),
    ),
}

# A process's peak includes that of the one it was forked from; so a small one forks, and reports.
_MEASURE = """
import os, resource, sys
status = os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:])
os.write(1, b"%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def tar_gz(data: bytes) -> bytes:
    """As conda-pack -j N writes it."""
    return in_blocks(data, zlib.Z_FULL_FLUSH, level=1, block=90_000)


def tar_xz(data: bytes) -> bytes:
    """As conda-pack -j N writes it."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4 * MIB}]
    return members(lambda part: lzma.compress(part, filters=filters), data, 4 * MIB)


@pytest.mark.parametrize("pack", [tar_gz, tar_xz])
def test_memory_does_not_grow_with_the_processors(tmp_path, run, pack):
    # Files so small that the decoders of eight processors are far ahead of the writer.
    data = os.urandom(12 * MIB).hex().encode()
    files = [member(b"%d" % at, data[at : at + 3000]) for at in range(0, len(data), 3000)]
    archive = tmp_path / "archive"
    archive.write_bytes(pack(b"".join([HISTORY, *files, END])))
    eight = tracing.strace(
        "--seccomp-bpf", "-e", "trace=sched_getaffinity",
        "-e", "inject=sched_getaffinity:poke_exit=@arg3=ff",
    )  # fmt: skip
    measure = [sys.executable, "-I", "-S", "-c", _MEASURE, *eight]
    result = run("-e", archive, "true", wrapper=measure, check=True)
    assert 20 * MIB < int(result.stdout) * 1024 <= PEAK


def small_tar() -> bytes:
    return HISTORY + member(b"f", b"x") + END


def xz(data: bytes, dictionary: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary}]
    return lzma.compress(data, filters=filters)


def zipped(count: int, step: int = 1, **fields: Any) -> bytes:
    """So many members; with ``step`` -1 the directory names the last one first."""
    entries = [zips.Entry(b"conda-meta/history")]
    entries += [zips.Entry(b"f%d" % number, **fields) for number in range(count)]
    bodies = [zips.local(entry) for entry in entries]
    offsets = list(itertools.accumulate(map(len, bodies), initial=0))
    directory = b"".join([zips.central(*each) for each in list(zip(entries, offsets))[::step]])
    at = offsets[-1] + len(directory)
    end64 = zips.end64(len(entries), len(directory), offsets[-1], at)
    saturated = 0xFFFF if count > 0xFFFF else len(entries)
    end = zips.end(saturated, len(directory), offsets[-1])
    return b"".join([*bodies, directory, end64, end])


STREAMS: dict[str, tuple[int, str, Callable[[], bytes]]] = {
    "983040-empty-xz-streams": (
        0, "", lambda: lzma.compress(small_tar()) + lzma.compress(b"") * 983_040),
    "empty-gzip-members": (
        0, "", lambda: gzip.compress(small_tar()) + gzip.compress(b"") * 200_000),
    "empty-bzip2-streams": (
        0, "", lambda: bz2.compress(small_tar()) + bz2.compress(b"") * 200_000),
    "xz-dictionary-of-1-GiB": (
        65, "1024 MiB, and at most 128 MiB", lambda: xz(small_tar(), 1 << 30)),
    "xz-dictionary-of-1-GiB-in-a-later-stream": (
        65, "more than 128 MiB", lambda: xz(small_tar(), 1 << 20) + xz(bytes(9), 1 << 30)),
    "xz-dictionary-of-1-GiB-in-a-later-piece": (
        65, "more than 128 MiB",
        lambda: xz(small_tar() + os.urandom(400_000), 1 << 20) + xz(os.urandom(400_000), 1 << 30)),
    "lzma-dictionary-of-1-GiB": (
        65, "1024 MiB", lambda: b"\x5d" + (1 << 30).to_bytes(4, "little") + bytes(600)),
    "zstd-window-of-1-GiB": (
        65, "1024 MiB, and at most 128 MiB",
        lambda: b"\x28\xb5\x2f\xfd\0" + bytes([20 << 3, 3 << 3 | 1, 0, 0]) + b"tar"),
    "zip-of-large-extra-fields": (
        0, "", lambda: zipped(300, extra=zips.extra(0x7777, bytes(65_000)))),
    "zip-of-large-comments": (0, "", lambda: zipped(300, comment=bytes(65_000))),
    "zip-of-many-extra-fields": (
        0, "", lambda: zipped(100, extra=b"".join(zips.extra(n, b"") for n in range(2, 16_000)))),
    "zip-of-100000-members": (0, "", lambda: zipped(100_000)),
    "zip-of-50000-members-backwards": (0, "", lambda: zipped(50_000, -1)),
    "zip-in-no-order": (65, "members in no order", lambda: zipped(300_000, -1)),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_resource_claims_of_streams(name: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    status, text, build = STREAMS[name]
    archive = tmp_path / "archive"
    archive.write_bytes(build())
    measure = [sys.executable, "-I", "-S", "-c", _MEASURE]
    result = run("-e", archive, "true", wrapper=measure, timeout=HUNG)
    peak, result.stdout = int(result.stdout) * 1024, b""
    assert result.returncode == status, result.stderr
    if status:
        assert text in refused(result, status)
    assert peak <= PEAK


@pytest.mark.parametrize("name", CASES)
def test_resource_claims(name: str, tmp_path: Path, prepare: Callable[..., dict[str, Any]]) -> None:
    case = CASES[name]
    memory = Path("/dev/shm")
    many = case.many and os.access(memory, os.W_OK)
    tmp = Path(tempfile.mkdtemp(dir=memory)) if many else tmp_path / "tmp"
    archive = tmp_path / "archive.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        for piece in case.pieces():
            stream.write(piece)
    arguments = prepare(("-e", archive, "true"), None, {"TMPDIR": tmp}, {"umask": 0o022})
    arguments["args"] = [sys.executable, "-I", "-S", "-c", _MEASURE, *arguments["args"]]
    process = subprocess.Popen(**arguments, start_new_session=True)
    try:
        stdout, stderr = process.communicate(timeout=HUNG)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        left = os.listdir(tmp)
        # What a failure leaves may be too deep for pytest's own way of removing a directory.
        subprocess.run(["rm", "-rf", tmp], check=True)
    expected = (0, 65) if case.status == EITHER else (case.status,)
    assert process.returncode in expected, stderr
    if process.returncode:
        assert stderr.startswith(b"poncho_package_run: ")
        assert stderr.count(b"\n") == 1
        assert len(stderr) < 10_000
    else:
        assert stderr == b""
    assert left == []
    assert int(stdout) * 1024 <= PEAK


def test_2000_levels_are_unpacked(
    tmp_path: Path, run: "Callable[..., subprocess.CompletedProcess[bytes]]"
) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(b"".join(CASES["2000-levels"].pieces()))
    target = tmp_path / "target"
    try:
        run("-d", target, "-e", archive, "true", check=True)
        below = os.open(target, os.O_RDONLY)
        for _ in range(2000):
            deeper = os.open("d", os.O_RDONLY, dir_fd=below)
            os.close(below)
            below = deeper
        assert os.listdir(below) == ["f"]
        os.close(below)
    finally:
        # Too deep for pytest's own way of removing a directory.
        subprocess.run(["rm", "-rf", target], check=True)

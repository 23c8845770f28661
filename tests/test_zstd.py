"""zstd by each of its three decoders, the two that come before it hidden."""

import contextlib
import gzip
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from poncho_package_run.archive import zstd
from poncho_package_run.archive.source import Source
from poncho_package_run.telling.errors import (
    ArchiveError,
    DecoderUnavailable,
    Failure,
    InputOutputError,
)
from support import process
from support.commands import need
from support.messages import refused

MAGIC = b"\x28\xb5\x2f\xfd"
SRC = Path(zstd.__file__).parents[2]
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00xxxxx"
RAW, RLE = 0, 1


def block(data: bytes, kind: int = RAW, last: bool = True, size: int = 0) -> bytes:
    """RFC 8878, 3.1.1.2: three bytes of header, and the content as it is."""
    return ((size or len(data)) << 3 | kind << 1 | last).to_bytes(3, "little") + data


def frame(*blocks: bytes, window_log: int = 20) -> bytes:
    """A frame without checksum and content size."""
    return MAGIC + bytes([0, (window_log - 10) << 3]) + b"".join(blocks)


def compress(data: bytes, **options: object) -> bytes:
    options.setdefault("write_checksum", True)
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.fixture(params=["standard library", "libzstd", "program"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Which decoder is used: those before it are hidden."""
    if request.param == "standard library":
        if sys.version_info < (3, 14):
            pytest.importorskip("backports.zstd", reason="stands in for Python 3.14's; see pip")
            shim = tmp_path / "shim" / "compression"
            shim.mkdir(parents=True)
            (shim / "__init__.py").touch()
            (shim / "zstd.py").write_text("from backports.zstd import *\n")
            monkeypatch.syspath_prepend(shim.parent)
            for name in ("compression", "compression.zstd"):
                monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "ctypes", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        return request.param
    monkeypatch.setitem(sys.modules, "compression", None)
    if request.param == "libzstd":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        need("zstd")
        monkeypatch.setitem(sys.modules, "ctypes", None)
    return request.param


@pytest.fixture
def decode(tmp_path: Path, way: str) -> Iterator[Callable[[bytes], bytes]]:
    """Decode a stream that is in a file; afterwards no process may be left."""

    def decode(data: bytes) -> bytes:
        path = tmp_path / "archive"
        path.write_bytes(data)
        source = Source(os.fsencode(path))
        try:
            source.peek(512)  # as the caller does, to recognise the format
            chunks = list(zstd.decode(source))
        finally:
            source.close()
        assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
        return b"".join(chunks)

    yield decode
    assert process.children_of(os.getpid()) == []


def test_content_of_several_megabytes_comes_out_whole(decode):
    generator = random.Random(1)
    data = b"".join(
        generator.randbytes(300_000) + generator.randbytes(64) * 5_000 for _ in range(4)
    )
    assert decode(compress(data)) == data
    assert decode(compress(data, write_content_size=False)) == data


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 1 << 21])
def test_sizes_around_the_output_buffer(decode, size):
    assert decode(compress(bytes(size))) == bytes(size)


def test_run_length_blocks_that_fill_the_output_exactly(decode):
    blocks = [block(b"z", RLE, last=index == 7, size=1 << 17) for index in range(8)]
    assert decode(frame(*blocks)) == b"z" * (1 << 20)


def test_frames_in_a_row_with_skippable_ones_among_them(decode):
    data = SKIPPABLE + frame(block(b"one ")) + frame(block(b"")) + compress(b"two ")
    data += SKIPPABLE + SKIPPABLE + frame(block(b"three"))
    assert decode(data) == b"one two three"
    assert decode(data + SKIPPABLE) == b"one two three"
    assert zstd.recognises(data[:4])


def test_a_thousand_frames(decode):
    assert decode(frame(block(b"x")) * 1000) == b"x" * 1000


def test_truncation_anywhere_is_an_error(decode):
    data = compress(b"hello " * 100) + SKIPPABLE
    whole = len(data) - len(SKIPPABLE)
    for length in range(4, len(data)):
        if length != whole:
            with pytest.raises(ArchiveError):
                decode(data[:length])


@pytest.mark.parametrize(
    "rest", [b"g", bytes(3), bytes(512), b"garbage", MAGIC[:3]], ids=lambda rest: rest[:8].hex()
)
def test_bytes_behind_the_last_frame_are_an_error(decode, rest):
    with pytest.raises(ArchiveError, match=r"damaged|cut short"):
        decode(compress(b"hello") + rest)


def test_wrong_checksum_is_an_error(decode):
    data = bytearray(compress(b"hello " * 100))
    data[-1] ^= 1
    with pytest.raises(ArchiveError, match="damaged"):
        decode(bytes(data))


def test_damaged_block_is_an_error(decode):
    data = bytearray(compress(random.Random(2).randbytes(100) * 50))
    data[20:24] = b"\xff\xff\xff\xff"
    with pytest.raises(ArchiveError, match="damaged"):
        decode(bytes(data))


def test_window_of_128_mebibytes_is_granted(decode):
    assert decode(frame(block(b"hello"), window_log=27)) == b"hello"


@pytest.mark.parametrize("claim", [28, 31, 34, 41])
def test_larger_window_is_refused_with_its_number(decode, claim):
    with pytest.raises(ArchiveError, match=f"window of {1 << claim - 20} MiB, and at most 128 MiB"):
        decode(frame(block(b"hello"), window_log=claim))


def test_larger_window_of_a_later_frame_is_refused(decode):
    small = frame(block(b"hello"))
    with pytest.raises(ArchiveError, match="window of more than 128 MiB"):
        decode(small + frame(block(b"hello"), window_log=30))


def test_claimed_content_size_of_a_terabyte_is_an_error(decode):
    with pytest.raises(ArchiveError, match="window of 1048576 MiB"):
        decode(MAGIC + b"\xe0" + (1 << 40).to_bytes(8, "little") + block(b"hello"))


def test_window_claimed_by_a_tiny_stream_takes_no_memory(decode, way):
    if way == "program":
        pytest.skip("its memory is its own; ours holds no window")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode(frame(block(b"z", RLE, size=1 << 17), window_log=27)) == b"z" * (1 << 17)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


LIMITED = """
import os, resource, sys
for name in {hidden!r}:
    sys.modules[name] = None
sys.path[:0] = {paths!r}
from poncho_package_run.archive import zstd
from poncho_package_run.archive.source import Source
from poncho_package_run.telling.errors import DecoderUnavailable
def decode(path):
    source = Source(os.fsencode(path))
    source.peek(512)
    return list(zstd.decode(source))
decode({small!r})  # what is imported and started now needs no room later
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20),) * 2)
try:
    decode({large!r})
except (DecoderUnavailable, MemoryError) as error:
    print(type(error).__name__)
"""


def test_window_beyond_the_memory_limit_names_the_memory(tmp_path, way):
    """In a process of its own: this one may have much memory that it does not use."""
    if way == "program":  # smaller than we are, it has room for its window
        pytest.skip("its memory is its own")
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(frame(block(b"hello"), window_log=10))
    large.write_bytes(frame(block(b"hello"), window_log=27))
    hidden = [name for name in ("compression", "ctypes") if sys.modules.get(name, name) is None]
    script = LIMITED.format(hidden=hidden, paths=sys.path, small=str(small), large=str(large))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout.strip() in (b"DecoderUnavailable", b"MemoryError"), result


def test_a_pipe_is_read_to_its_end(tmp_path, way):
    data = random.Random(3).randbytes(1_000_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(compress(data),))
    writer.start()
    source = Source(os.fsencode(fifo))
    assert zstd.recognises(source.peek(512))
    assert b"".join(zstd.decode(source)) == data
    writer.join()
    source.close()


def test_closing_early_leaves_no_process_and_waits_for_nobody(tmp_path, way):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)  # so that the reader never sees an end
    source = Source(os.fsencode(fifo))
    # More than the program wants to have read before it says anything.
    data = frame(*[block(b"z", RLE, last=False, size=1 << 10)] * 80_000)
    writer = threading.Thread(target=os.write, args=(keep, data))
    writer.start()
    chunks = zstd.decode(source)
    assert next(chunks) == b"z" * (1 << 20)
    chunks.close()
    assert process.children_of(os.getpid()) == []
    assert threading.active_count() <= 2
    while writer.is_alive():
        with contextlib.suppress(BlockingIOError):
            os.read(source.fd, 1 << 16)
    os.close(keep)
    source.close()


def test_a_source_that_cannot_be_read_is_told_as_that(tmp_path, way, monkeypatch):
    path = tmp_path / "archive"
    path.write_bytes(compress(random.Random(4).randbytes(1 << 20)))
    source = Source(os.fsencode(path))
    reads = []

    def read(count: int) -> bytes:
        reads.append(count)
        if len(reads) > 3:
            raise InputOutputError("reading the archive failed")
        return Source.read(source, count)

    monkeypatch.setattr(source, "read", read)
    with pytest.raises(InputOutputError, match="reading the archive failed"):
        list(zstd.decode(source))
    assert process.children_of(os.getpid()) == []
    source.close()


def test_program_that_dies_is_an_error(tmp_path, monkeypatch):
    fake = tmp_path / "zstd"
    fake.write_text("#!/bin/sh\nprintf half\nkill -9 $$\n")
    fake.chmod(0o755)
    path = tmp_path / "archive"
    path.write_bytes(frame(block(b"half and half")))
    for name in ("compression", "ctypes"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    source = Source(os.fsencode(path))
    with pytest.raises(ArchiveError, match="zstd failed"):
        list(zstd.decode(source))
    source.close()


def test_without_any_decoder_it_says_what_to_install(tmp_path, monkeypatch):
    for name in ("compression", "ctypes"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "archive"
    path.write_bytes(frame(block(b"hello")))
    source = Source(os.fsencode(path))
    with pytest.raises(DecoderUnavailable, match="install zstd"):
        zstd.decode(source)
    source.close()


def test_one_bit_changed_never_gives_other_content(decode):
    data = b"hello hello hello " * 3
    whole = compress(data)
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 0x10
        try:
            found = decode(bytes(changed))
        except Failure:
            continue
        assert found == data, index  # the unused bit of the frame header (RFC 8878, 3.1.1.1.1)


def test_gzip_behind_zstd_is_no_part_of_it(decode, way):
    if way == "program":
        pytest.skip("zstd decodes gzip members too, whatever they follow; tar then refuses them")
    with pytest.raises(ArchiveError):
        decode(compress(b"hello") + gzip.compress(b"hello"))


def test_corpus(decode, way):
    folder = os.environ.get("PONCHO_TEST_CORPUS")
    if not folder:
        pytest.skip("PONCHO_TEST_CORPUS is not set: no folder of archives")
    golden = Path(folder, "zstd", "golden-decompression")
    assert len(decode((golden / "block-128k.zst").read_bytes())) == 131068
    assert decode((golden / "empty-block.zst").read_bytes()) == b""
    assert len(decode((golden / "rle-first-block.zst").read_bytes())) == 1 << 20


# Through the artifact


@pytest.fixture
def without_libraries(tmp_path: Path) -> dict[str, str]:
    """Variables under which a Python finds neither ctypes nor a zstd of its own."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(
        "import sys\nsys.modules['ctypes'] = sys.modules['compression'] = None\n"
    )
    return {"PYTHONPATH": str(hiding)}


def test_environment_is_unpacked_by_the_library(environment, run):
    archive = environment.archive("tar.zst")
    assert run("-e", archive, "echo", "42", check=True).stdout == b"42\n"


def test_environment_is_unpacked_by_the_program(environment, run, without_libraries):
    need("zstd")
    archive = environment.archive("tar.zst")
    result = run("-e", archive, "echo", "42", env=without_libraries, check=True)
    assert result.stdout == b"42\n"


def test_status_69_without_any_decoder(environment, run, without_libraries, tmp_path):
    variables = dict(without_libraries, PATH=str(tmp_path))
    archive = environment.archive("tar.zst")
    result = run("-e", archive, "-d", tmp_path / "env", "/bin/true", env=variables)
    refused(result, 69, str(archive), "install zstd")
    assert not (tmp_path / "env").exists() or not os.listdir(tmp_path / "env")

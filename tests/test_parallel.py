"""Streams decoded from several places at once: the same bytes as in order, or refused.

Each stream is decoded by the artifact with one thread and with several, and must give the
same content.  The streams are such that a guess at their borders goes wrong in every way.
"""

import bz2
import gzip
import lzma
import os
import random
import struct
import subprocess
import zlib

import pytest

from poncho_package_run.archive import bzip2 as our_bzip2
from poncho_package_run.archive import gzip as our_gzip
from poncho_package_run.archive import parallel
from poncho_package_run.archive import xz as our_xz
from poncho_package_run.archive.parallel import Pool
from poncho_package_run.archive.source import Source
from poncho_package_run.telling.errors import ArchiveError
from support import tars
from support.commands import need
from support.messages import refused
from support.streams import BLOCK, in_blocks, members

SIZE = 6 << 20
FLUSH = b"\x00\x00\xff\xff"


def text(seed, size=SIZE):
    """Compressible, and no two stretches the same."""
    source = random.Random(seed)
    words = [b"%08x" % source.getrandbits(32) for _ in range(500)]
    return b" ".join(source.choices(words, k=size // 9))


def noise(seed, size=SIZE, planted=b"", every=50_000):
    """What no compressor shortens, with something planted in it now and then."""
    source = random.Random(seed)
    data = bytearray(source.getrandbits(8 * size).to_bytes(size, "little"))
    for at in range(every, size - len(planted), every):
        data[at : at + len(planted)] = planted
    return bytes(data)


def pigz(data, *options):
    command = [need("pigz"), "-p", "3", "-c", *options]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


STREAMS = {
    "gzip of fresh blocks": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH),
    "gzip of fresh blocks, level 9": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH, 9),
    "gzip of stored blocks": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH, 0),
    "gzip of small fresh blocks": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH, block=3000),
    "gzip fully flushed": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH, fresh=False),
    "gzip of dependent blocks": lambda data: in_blocks(data, zlib.Z_SYNC_FLUSH, fresh=False),
    "pigz, dependent blocks": pigz,
    "pigz, independent blocks": lambda data: pigz(data, "-i"),
    "gzip by Python": gzip.compress,
    "gzip of many members, as bgzip": lambda data: members(gzip.compress, data, 65280)
    + gzip.compress(b""),
    "gzip of two members, flushed": lambda data: in_blocks(data[:BLOCK], zlib.Z_FULL_FLUSH)
    + in_blocks(data[BLOCK:], zlib.Z_FULL_FLUSH),
    "gzip and zeros": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH) + bytes(5000),
    "bzip2 of one stream": bz2.compress,
    "bzip2 of many streams": lambda data: members(bz2.compress, data),
    "bzip2 of tiny streams": lambda data: members(bz2.compress, data[: 1 << 20], 5000)
    + bz2.compress(data[1 << 20 :]),
    "xz of one stream": lzma.compress,
    "xz of many streams": lambda data: members(lzma.compress, data),
    "xz of padded streams": lambda data: members(lambda part: lzma.compress(part) + bytes(8), data),
    "xz of streams of many blocks": lambda data: xz(data[: SIZE // 2]) + xz(data[SIZE // 2 :]),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}

CONTENTS = {
    "text": text(1),
    "zeros": bytes(SIZE),
    "noise": noise(2),
    "noise with flushes": noise(3, planted=FLUSH),
    "noise with false ends": noise(4, planted=FLUSH + b"\x03\x00"),
    "noise with false streams": noise(5, planted=b"BZh91AY&SY" + b"\xfd7zXZ\x00"),
    "text with noise": text(6, SIZE // 2) + noise(7, SIZE // 4, FLUSH) + text(8, SIZE // 4),
}

# What would be taken for the border of a block of gzip, and the plain noise beside it: in the
# others nobody looks for that, and noise is what they are slowest with.
OF_GZIP = {"noise", "noise with flushes", "noise with false ends"}


def xz(data):
    command = [need("xz"), "--block-size=200000", "-T1", "-0", "-c"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def archive(content):
    history = tars.member(b"conda-meta/history", b"")
    return history + tars.member(b"share/content", content) + tars.END


@pytest.mark.parametrize(
    "stream, content",
    [
        (stream, content)
        for stream in STREAMS
        for content in CONTENTS
        if "gzip" in stream or "pigz" in stream or content not in OF_GZIP
    ],
)
def test_the_same_bytes_with_any_number_of_threads(run, tmp_path, variables, stream, content):
    packed = tmp_path / "packed"
    packed.write_bytes(STREAMS[stream](archive(CONTENTS[content])))
    for threads in ("1", "2", "5"):
        env = dict(variables, PONCHO_PACKAGE_RUN_THREADS=threads)
        run("-e", packed, "-d", tmp_path / threads, env=env, check=True)
        assert (tmp_path / threads / "share/content").read_bytes() == CONTENTS[content], threads


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("damage", ["a bit", "a block left out", "cut", "checksum", "length"])
@pytest.mark.parametrize("stream", ["gzip of fresh blocks", "bzip2 of many streams",
                                    "xz of many streams", "gzip of dependent blocks"])  # fmt: skip
def test_damage_is_refused(run, tmp_path, variables, stream, damage, threads):
    data = bytearray(STREAMS[stream](archive(CONTENTS["text"])))
    middle = len(data) // 2
    if damage == "a bit":
        data[middle] ^= 4
    elif damage == "a block left out":
        marker = {"g": FLUSH, "b": b"BZh91AY&SY", "x": b"\xfd7zXZ"}[stream[0]]
        first = data.index(marker, middle)
        del data[first : data.index(marker, first + 1)]
        if stream[0] != "g":
            # Whole streams are left out without a trace in the others: tar's own structure tells.
            assert len(data) < len(STREAMS[stream](archive(CONTENTS["text"])))
    elif damage == "cut":
        del data[middle:]
    elif damage == "checksum":
        data[-8] ^= 1
    else:
        data[-1] ^= 0x80  # bzip2 pads with the low bits, if at all
    check_refused(run, tmp_path, dict(variables, PONCHO_PACKAGE_RUN_THREADS=threads), data)


def check_refused(run, tmp_path, env, data):
    packed = tmp_path / "packed"
    packed.write_bytes(data)
    refused(run("-e", packed, "-d", tmp_path / "kept", "true", env=env), 65, str(packed))
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("damage", ["a bit", "cut", "checksum", "length", "trailer", "rubbish"])
@pytest.mark.parametrize("stream", ["gzip by Python", "gzip of many members, as bgzip"])
def test_damage_of_what_cannot_be_cut_is_refused(run, tmp_path, variables, stream, damage, threads):
    # With two threads, one inflates and another sums the checksum up.
    data = bytearray(STREAMS[stream](archive(CONTENTS["text"])))
    if damage == "a bit":
        data[len(data) // 2] ^= 4
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "checksum":
        data[-8] ^= 1
    elif damage == "length":
        data[-1] ^= 0x80
    elif damage == "trailer":
        del data[-3:]
    else:
        data += b"rubbish"
    check_refused(run, tmp_path, dict(variables, PONCHO_PACKAGE_RUN_THREADS=threads), data)


def test_two_bytes_left_of_a_final_stored_block_are_no_place_to_begin(run, tmp_path, variables):
    # The marker, and then an end, in the data of the last block: only who counts knows.
    data = archive(b"x") + noise(9, 900_000) + FLUSH + b"\x03\x00"
    data = data.replace(FLUSH, b"\0\0\xff\xfe", data.count(FLUSH) - 1)
    data = data[:3000] + 3 * FLUSH + data[3000:]
    encoder = zlib.compressobj(0, zlib.DEFLATED, 31)
    packed = tmp_path / "packed"
    packed.write_bytes(encoder.compress(data) + encoder.flush())
    for threads in ("1", "2", "4"):
        env = dict(variables, PONCHO_PACKAGE_RUN_THREADS=threads)
        run("-e", packed, "-d", tmp_path / threads, env=env, check=True)


class Streams:
    """Random streams such as compressors write, and some that none would."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def data(self):
        rng = self.rng
        pieces = []
        for _ in range(rng.choice((0, 1, 2, 5))):
            piece = rng.choice((
                lambda: rng.randbytes(rng.randrange(3000)),
                lambda: bytes(rng.randrange(5000)),
                lambda: rng.randbytes(50) * rng.randrange(200),
                lambda: FLUSH + b"\3\0",
                lambda: FLUSH + rng.randbytes(rng.randrange(8)),
                lambda: b"BZh91AY&SY",
                lambda: gzip.compress(b"inner" * 9)[10:-8],
            ))  # fmt: skip
            pieces.append(piece())
        return b"".join(pieces)

    def gzip(self):
        rng = self.rng
        level, strategy = rng.choice((0, 0, 1, 6, 9)), rng.choice((0, 0, 2, 3, 4))
        encoder = zlib.compressobj(level, zlib.DEFLATED, -15, rng.choice((1, 8)), strategy)
        body, plain = b"", b""
        for _ in range(rng.choice((1, 2, 10))):
            data = self.data()
            plain += data
            body += encoder.compress(data)
            flush = rng.choice((None, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FULL_FLUSH))
            if flush is not None:
                body += encoder.flush(flush)
                if rng.random() < 0.3:
                    encoder = zlib.compressobj(level, zlib.DEFLATED, -15)
        body += encoder.flush()
        head = bytes([0x1F, 0x8B, 8, 0]) + rng.randbytes(6)
        if rng.random() < 0.2:
            head = head[:3] + b"\x08" + head[4:] + b"name\0"
        return head + body + struct.pack("<LL", zlib.crc32(plain), len(plain) % 2**32)

    def bzip2(self):
        return bz2.compress(self.data(), self.rng.choice((1, 9)))

    def xz(self):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": self.rng.choice(
            (4096, 1 << 20, 1 << 23, 12 << 20))}]  # fmt: skip
        return lzma.compress(self.data(), filters=filters)

    def make(self, kind):
        """A row of streams, perhaps with zeros or rubbish between, a bit changed, or cut."""
        rng = self.rng
        between = (b"", b"", b"", b"", bytes(4), bytes(8), b"\0", bytes(600), b"rubbish")
        made = b""
        for _ in range(rng.choice((1, 1, 2, 3, 6, 30))):
            made += getattr(self, kind)() + rng.choice(between if rng.random() < 0.3 else (b"",))
        if rng.random() < 0.3:
            changed = bytearray(made)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            made = bytes(changed)
        if rng.random() < 0.15:
            made = made[: rng.randrange(1, len(made))]
        return made


DECODERS = {"gzip": our_gzip, "bzip2": our_bzip2, "xz": our_xz}


def verdict(kind, path, cores):
    """The content, or why it is refused."""
    pool = Pool(cores)
    source = Source(os.fsencode(path), pool.look)
    try:
        return b"".join(DECODERS[kind].decode(source, pool))
    except ArchiveError as error:
        return str(error)  # which of several damages is met first may depend on the threads
    finally:
        while not pool.close():
            pass  # a busy machine
        source.close()


@pytest.mark.parametrize("kind", DECODERS)
def test_any_number_of_threads_judges_alike(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "LOOK", 0.005)
    monkeypatch.setattr(our_gzip, "_PIECE", 64)
    monkeypatch.setattr(our_bzip2, "_PIECE", 16)
    monkeypatch.setattr(our_xz, "_PIECE", 64)
    path = tmp_path / "stream"
    whole = 0
    for seed in range(int(os.environ.get("PONCHO_TEST_STREAMS", "120"))):
        data = Streams(f"{kind} {seed}").make(kind)
        path.write_bytes(data)
        expected = verdict(kind, path, 1)
        whole += isinstance(expected, bytes)
        for cores in (2, 3, 4):
            found = verdict(kind, path, cores)
            if isinstance(expected, bytes) or isinstance(found, bytes):
                assert found == expected, f"seed {seed}, {cores} threads"
    assert whole > 30

"""Streams decoded from several places at once: the same bytes as in order, or refused.

Each stream is decoded by the artifact with one thread and with several, and must give the
same content.  The streams are such that a guess at their borders goes wrong in every way.
"""

import bz2
import gzip
import lzma
import random
import subprocess
import zlib

import pytest

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
    "noise with false streams": noise(5, planted=b"BZh91AY&SY"),
    "text with noise": text(6, SIZE // 2) + noise(7, SIZE // 4, FLUSH) + text(8, SIZE // 4),
}


def xz(data):
    command = [need("xz"), "--block-size=200000", "-T1", "-0", "-c"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def archive(content):
    history = tars.member(b"conda-meta/history", b"")
    return history + tars.member(b"share/content", content) + tars.END


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("stream", STREAMS)
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

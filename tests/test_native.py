"""The native library: its inflate and crc32 beside zlib's, at every split of input and output."""

import ctypes
import platform
import random
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

LIBRARIES = Path(__file__).resolve().parents[1] / "src/native"
LIBRARY = LIBRARIES / (platform.machine() + ".so")

MORE_INPUT, MORE_OUTPUT, DONE, BAD = range(4)

WINDOW = 32768
INFLATE_BYTES = 12288

if not LIBRARY.exists():
    pytest.skip("no native library for this processor", allow_module_level=True)


class Inflate(ctypes.Structure):
    """The public part of ``struct ppr_inflate``, and room for the private one."""

    _fields_ = [
        ("input", ctypes.c_void_p),
        ("input_left", ctypes.c_uint64),
        ("output", ctypes.c_void_p),
        ("output_size", ctypes.c_uint64),
        ("output_at", ctypes.c_uint64),
        ("history", ctypes.c_void_p),
        ("history_size", ctypes.c_uint64),
        ("bits_left", ctypes.c_uint64),
        ("at_block", ctypes.c_uint64),
        ("private", ctypes.c_uint8 * (INFLATE_BYTES - 72)),
    ]


NATIVE = ctypes.CDLL(str(LIBRARY))
NATIVE.ppr_inflate.argtypes = [ctypes.POINTER(Inflate)]
NATIVE.ppr_inflate.restype = ctypes.c_int32
NATIVE.ppr_crc32.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64]
NATIVE.ppr_crc32.restype = ctypes.c_uint32

GUARD = b"\xa5" * 64


class Stream:
    """A stream that is fed in pieces and drained in chunks, each between guards."""

    def __init__(self, chunk: int = 1 << 16) -> None:
        self.state = Inflate()
        self.chunk = chunk
        self.out = b""
        self.left = b""
        self._new_chunk()

    def _new_chunk(self) -> None:
        history = self.out[-WINDOW:]
        self.history = ctypes.create_string_buffer(history, len(history) or 1)
        self.buffer = ctypes.create_string_buffer(GUARD * 2 + bytes(self.chunk), 128 + self.chunk)
        self.buffer[:] = GUARD + bytes(self.chunk) + GUARD
        self.state.history = ctypes.addressof(self.history)
        self.state.history_size = len(history)
        self.state.output = ctypes.addressof(self.buffer) + len(GUARD)
        self.state.output_size = self.chunk
        self.state.output_at = 0

    def _take(self) -> None:
        """Add what is in the chunk to the output."""
        assert self.buffer[:64] == GUARD
        assert self.buffer[64 + self.chunk :] == GUARD
        self.out += self.buffer[64 : 64 + self.state.output_at]

    def feed(self, piece: bytes) -> int:
        """Decode a piece of input; return how that ended, other than in MORE_OUTPUT."""
        source = ctypes.create_string_buffer(piece, len(piece) or 1)
        self.state.input = ctypes.addressof(source)
        self.state.input_left = len(piece)
        while True:
            verdict = NATIVE.ppr_inflate(self.state)
            self.left = piece[len(piece) - self.state.input_left :]
            if verdict != MORE_OUTPUT:
                break
            assert self.state.output_at == self.state.output_size
            self._take()
            self._new_chunk()
        if verdict == MORE_INPUT:
            assert not self.left
        return verdict

    def output(self) -> bytes:
        """All bytes so far."""
        self._take()
        self._new_chunk()
        return self.out


def native(data: bytes, piece: int = 1 << 20, chunk: int = 1 << 16) -> tuple:
    """What the library makes of a stream in pieces: verdict, output, bytes left over."""
    stream = Stream(chunk)
    verdict = MORE_INPUT
    at = 0
    while verdict == MORE_INPUT and at < len(data):
        verdict = stream.feed(data[at : at + piece])
        at += piece
    if verdict == BAD:
        return BAD, b"", b""
    return verdict, stream.output(), stream.left + data[at:] if verdict == DONE else b""


def reference(data: bytes) -> tuple:
    """The same of zlib."""
    inflater = zlib.decompressobj(-15)
    try:
        out = inflater.decompress(data)
    except zlib.error:
        return BAD, b"", b""
    return (DONE if inflater.eof else MORE_INPUT), out, inflater.unused_data


def sample(seed: int, size: int) -> bytes:
    """Text, repetitions at every distance, and noise."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(1, 12)) for _ in range(300)]
    out = bytearray()
    while len(out) < size:
        kind = rng.randrange(8)
        if kind == 0:
            out += rng.randbytes(rng.randrange(300))
        elif kind == 1:
            out += rng.randbytes(rng.randrange(1, 20)) * rng.randrange(1, 60)
        elif kind == 2 and out:
            start = rng.randrange(len(out))
            out += out[start : start + rng.randrange(1, 400)]
        else:
            out += b" ".join(rng.choice(words) for _ in range(rng.randrange(30)))
    return bytes(out[:size])


def deflate(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """A raw stream of it."""
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
    return deflater.compress(data) + deflater.flush()


class Bits:
    """A stream written by hand, bit by bit."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, value: int, count: int) -> "Bits":
        """A number, its lowest bit first."""
        self.bits += "".join(str(value >> at & 1) for at in range(count))
        return self

    def code(self, bits: str) -> "Bits":
        """A Huffman code, as it is written in the RFC."""
        self.bits += bits
        return self

    def bytes(self) -> bytes:
        """The stream, with zero bits up to a whole byte."""
        padded = self.bits + "0" * (-len(self.bits) % 8)
        return bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8))


ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]


def dynamic(litlen: dict, distance: dict, counts: tuple = (286, 30)) -> Bits:
    """The header of a final dynamic block whose codes have the given lengths."""
    bits = Bits().put(1, 1).put(2, 2)
    bits.put(counts[0] - 257, 5).put(counts[1] - 1, 5).put(15, 4)
    # A code of four bits for each of the lengths 0 to 15.
    for symbol in ORDER:
        bits.put(4 if symbol < 16 else 0, 3)
    for lengths, count in ((litlen, counts[0]), (distance, counts[1])):
        for symbol in range(count):
            bits.code(format(lengths.get(symbol, 0), "04b"))
    return bits


def precode(lengths: dict, tail: str = "") -> Bits:
    """A dynamic block's header up to its code lengths, and some bits."""
    bits = Bits().put(1, 1).put(2, 2).put(0, 5).put(0, 5).put(15, 4)
    for symbol in ORDER:
        bits.put(lengths.get(symbol, 0), 3)
    return bits.code(tail)


FULL = {**dict.fromkeys(range(255), 8), 255: 9, 256: 9}
"""A complete literal code."""

MANUAL = {
    "invalid block type": Bits().put(1, 1).put(3, 2),
    "stored": Bits().put(1, 8).put(2, 16).put(0xFFFD, 16).put(0x4142, 16),
    "stored lengths": Bits().put(1, 8).put(2, 16).put(0xFFFC, 16).put(0, 16),
    "stored nothing": Bits().put(1, 8).put(0, 16).put(0xFFFF, 16).put(0xAAAA, 16),
    "287 literals": dynamic({256: 1, 0: 1}, {0: 1}, (287, 30)),
    "288 literals": dynamic({256: 1, 0: 1}, {0: 1}, (288, 30)),
    "31 distances": dynamic({256: 1, 0: 1}, {0: 1}, (286, 31)),
    "32 distances": dynamic({256: 1, 0: 1}, {0: 1}, (286, 32)),
    "no end of block": dynamic({0: 1, 1: 1}, {0: 1}),
    "end of block alone": dynamic({256: 1}, {}).code("0"),
    "end of block alone, other bit": dynamic({256: 1}, {}).code("1"),
    "end of block alone, two bits": dynamic({256: 2}, {}).code("00"),
    "literal and end": dynamic({65: 1, 256: 1}, {}).code("0001"),
    "literals over-subscribed": dynamic({**FULL, 257: 9}, {}),
    "literals incomplete": dynamic({**FULL, 256: 10}, {}),
    "distances over-subscribed": dynamic({65: 1, 256: 1}, {0: 1, 1: 1, 2: 1}),
    "distances incomplete": dynamic({65: 1, 256: 1}, {0: 1, 1: 2}),
    "distances of two bits, one": dynamic({65: 1, 256: 1}, {0: 2}),
    "distance of one bit": dynamic({65: 1, 256: 2, 257: 2}, {0: 1}).code("0" "11" "0" "10"),
    "distance of one bit, other": dynamic({65: 1, 256: 2, 257: 2}, {0: 1}).code("0" "11" "1" "10"),
    "no distance, used": dynamic({65: 1, 256: 2, 257: 2}, {}).code("0" "11" "0" "10"),
    "no distance, unused": dynamic({65: 1, 256: 2, 257: 2}, {}).code("0" "0" "10"),
    "too far back": dynamic({65: 1, 256: 2, 257: 2}, {1: 1}).code("0" "11" "0" "10"),
    "too far back, first": dynamic({65: 1, 256: 2, 257: 2}, {0: 1}).code("11" "0" "10"),
    "symbol 286 of a fixed block": Bits().put(1, 1).put(1, 2).code("11000110" "00000" "0000000"),
    "symbol 287 of a fixed block": Bits().put(1, 1).put(1, 2).code("11000111" "00000" "0000000"),
    "distance 30 of a fixed block": Bits().put(1, 1).put(1, 2).code("01111111" "0000001" "11110"),
    "distance 31 of a fixed block": Bits().put(1, 1).put(1, 2).code("01111111" "0000001" "11111"),
    "precode empty": precode({}, "0" * 320),
    "precode empty, ones": precode({}, "1" * 320),
    "precode single": precode({0: 1}, "0" * 320),
    "precode incomplete": precode({0: 2, 1: 1}, "0" * 320),
    "precode over-subscribed": precode({0: 1, 1: 1, 2: 1}, "0" * 320),
    "repeat of nothing": precode({16: 1, 1: 1}, "1" + "0" * 320),
    "repeat beyond the end": precode({18: 1, 1: 1}, ("1" + "1" * 7) * 40),
    "truncated": Bits().put(1, 1),
}


def test_headers_size() -> None:
    assert ctypes.sizeof(Inflate) == INFLATE_BYTES
    text = (LIBRARIES / "native.h").read_text()
    assert f"#define PPR_INFLATE_BYTES {INFLATE_BYTES}\n" in text


@pytest.mark.parametrize("name", MANUAL)
def test_written_by_hand(name: str) -> None:
    data = MANUAL[name].bytes()
    # Enough behind it for the fast loop, and nothing at all.
    for tail in (b"", bytes(400), b"\xff" * 400):
        expected = reference(data + tail)
        for piece, chunk in ((1 << 20, 1 << 16), (1, 1), (7, 300), (1 << 20, 3)):
            assert native(data + tail, piece, chunk) == expected


@pytest.mark.parametrize(
    ("level", "strategy"),
    [(level, zlib.Z_DEFAULT_STRATEGY) for level in (0, 1, 6, 9)]
    + [(6, zlib.Z_FIXED), (6, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_RLE), (9, zlib.Z_FILTERED)],
)
def test_splits(level: int, strategy: int) -> None:
    data = sample(level + strategy, 50000)
    packed = deflate(data, level, strategy) + b"behind"
    for piece in (1 << 20, 1000, 33, 1):
        for chunk in (1 << 17, len(data), 33000, 1000, 299):
            assert native(packed, piece, chunk) == (DONE, data, b"behind"), (piece, chunk)


def test_every_split_of_a_small_stream() -> None:
    data = sample(1, 700)
    for packed in (deflate(data), deflate(data, 0), deflate(data, strategy=zlib.Z_FIXED)):
        for at in range(len(packed) + 1):
            stream = Stream(1000)
            assert stream.feed(packed[:at]) == (MORE_INPUT if at < len(packed) else DONE)
            assert stream.feed(packed[at:] + b"behind") == DONE
            assert (stream.output(), stream.left) == (data, b"behind")
        for chunk in [*range(1, 60), *range(260, 720, 3)]:
            assert native(packed + b"x", 1 << 20, chunk) == (DONE, data, b"x")


def test_mutated() -> None:
    rng = random.Random(5)
    seeds = [
        deflate(sample(seed, rng.randrange(1500)), level, strategy)
        for seed in range(10)
        for level in (0, 1, 6)
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED)
    ]
    verdicts = set()
    for _ in range(1500):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(len(data), rng.choice((60, 1 << 20))))] ^= 1 << rng.randrange(8)
        if rng.randrange(3) == 0:
            del data[rng.randrange(len(data)) :]
        packed = bytes(data)
        expected = reference(packed)
        verdicts.add(expected[0])
        piece = rng.choice((1, 3, 50, 1 << 20))
        assert native(packed, piece, rng.choice((5, 40, 400, 5000))) == expected
    assert verdicts == {MORE_INPUT, DONE, BAD}


def test_history_that_ends_at_the_chunk() -> None:
    data = sample(3, 400000)
    packed = deflate(data)
    source = ctypes.create_string_buffer(packed, len(packed))
    whole = ctypes.create_string_buffer(len(data))
    state = Inflate(input=ctypes.addressof(source), input_left=len(packed))
    at = 0
    while True:
        state.history = ctypes.addressof(whole) + max(0, at - WINDOW)
        state.history_size = min(at, WINDOW)
        state.output = ctypes.addressof(whole) + at
        state.output_size = min(50000, len(data) - at)
        state.output_at = 0
        verdict = NATIVE.ppr_inflate(state)
        at += state.output_at
        if verdict != MORE_OUTPUT:
            break
    # The end of the stream is seen although there is no room any more.
    assert (verdict, state.input_left, whole.raw) == (DONE, 0, data)


def test_history_that_is_too_short() -> None:
    data = bytes(range(200)) * 2
    packed = deflate(data)
    stream = Stream(200)
    source = ctypes.create_string_buffer(packed, len(packed))
    stream.state.input = ctypes.addressof(source)
    stream.state.input_left = len(packed)
    assert NATIVE.ppr_inflate(stream.state) == MORE_OUTPUT
    stream._take()
    stream._new_chunk()
    stream.state.history_size = 150
    assert NATIVE.ppr_inflate(stream.state) == BAD
    assert NATIVE.ppr_inflate(stream.state) == BAD


def test_snapshots() -> None:
    data = sample(4, 20000)
    packed = deflate(data)
    rng = random.Random(6)
    for _ in range(40):
        first, second = sorted(rng.randrange(len(packed)) for _ in range(2))
        stream = Stream(1 << 16)
        assert stream.feed(packed[:first]) == MORE_INPUT
        snapshot = bytes(stream.state)
        out = stream.buffer[:]
        # Something else happens to the state, and is undone.
        stream.feed(rng.randbytes(100) + packed[first:second])
        ctypes.memmove(ctypes.byref(stream.state), snapshot, INFLATE_BYTES)
        stream.buffer[:] = out
        assert stream.feed(packed[first:]) == DONE
        assert stream.output() == data


@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH])
def test_flushed_blocks(flush: int) -> None:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    parts = [sample(seed, 5000 + seed) for seed in range(12)]
    pieces = [deflater.compress(part) + deflater.flush(flush) for part in parts]
    end = deflater.flush()
    stream = Stream()
    for piece in pieces:
        assert piece.endswith(b"\0\0\xff\xff")
        for cut in (1, 2, 3, 4):
            other = Stream()
            ctypes.memmove(ctypes.byref(other.state), bytes(stream.state), INFLATE_BYTES)
            other.out = stream.out
            other._new_chunk()
            assert other.feed(piece[:-cut]) == MORE_INPUT
            assert not other.state.at_block
            assert other.feed(piece[-cut:]) == MORE_INPUT
            assert (other.state.at_block, other.state.bits_left) == (1, 0)
        assert stream.feed(piece) == MORE_INPUT
        assert (stream.state.at_block, stream.state.bits_left) == (1, 0)
        stream.output()
    assert stream.feed(end + b"12345678") == DONE
    assert (stream.output(), stream.left) == (b"".join(parts), b"12345678")


def test_crc32() -> None:
    data = random.Random(7).randbytes(70000)
    source = ctypes.create_string_buffer(data, len(data))
    sizes = [*range(0, 200), *range(4090, 4200), 5000, 65535, 65536, 69000]
    for size in sizes:
        for start in (0, 1, 7, 15, 16, 33):
            for crc in (0, 0xFFFFFFFF, 0x12345678):
                got = NATIVE.ppr_crc32(crc, ctypes.addressof(source) + start, size)
                assert got == zlib.crc32(data[start : start + size], crc), (size, start)
    assert NATIVE.ppr_crc32(17, None, 0) == 17


@pytest.mark.parametrize("library", sorted(LIBRARIES.glob("*.so")), ids=lambda path: path.stem)
def test_stands_alone(library: Path) -> None:
    assert library.stat().st_size <= 65536
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    text = subprocess.check_output(["readelf", "-W", "-d", "-r", "--dyn-syms", library], text=True)
    for word in ("NEEDED", " UND ppr", "R_X86", "R_AARCH64", "INIT", "TEXTREL"):
        assert word not in text
    names = {line.split()[-1] for line in text.splitlines() if " FUNC " in line}
    assert {"ppr_inflate", "ppr_crc32"} <= names
    assert all(name.startswith("ppr_") for name in names)
    assert not [line for line in text.splitlines() if " UND " in line and not line.endswith("UND ")]

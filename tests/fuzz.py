"""Unpack mutated archives in process, and watch what must not happen.

    python tests/fuzz.py [--runs N] [--jobs N] [--seed N]
    python tests/fuzz.py --replay FILE --root DIRECTORY

The seeds are small archives of conda-pack in every format, and the hostile ones of
test_hostile_archives.  A mutation knows tar headers (and mends their checksums), pax
records, zip headers and prefix records, and packs the result anew where that is called
for.  An input fails when anything outside the target changes, when it ends in anything but
success or a ``Failure``, when it takes more than 5 s or 64 MiB, and when the manifest does
not agree with the tree that was made.

Then as many files of random contents are relocated, and compared with what conda-unpack's own code
makes of them.
"""

import argparse
import bz2
import collections
import concurrent.futures
import gzip
import hashlib
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path

_TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(_TESTS.parent / "src"), str(_TESTS)]

import test_hostile_archives  # noqa: E402

from poncho_package_run import pipeline  # noqa: E402
from poncho_package_run.archive import gzip as our_gzip  # noqa: E402
from poncho_package_run.durability.survey import damage  # noqa: E402
from poncho_package_run.telling.errors import Failure  # noqa: E402
from poncho_package_run.telling.report import Report  # noqa: E402
from support import relocations  # noqa: E402
from support.crash import MARKER  # noqa: E402
from support.tars import (  # noqa: E402
    BLOCK,
    checksum,
    environment,
    longname,
    member,
    number,
    pax,
    pax_record,
)

SECONDS = 5
"""Of processor time: other work on the machine does not count."""
MEMORY = 64 << 20
HUNG = 60
"""Seconds in all; a worker that gets no alarm through for twice as long is killed."""


class Overtime(BaseException):
    """Raised in the middle of the work; no ``except Exception`` is to catch it."""


class World:
    """A directory to unpack into, and what lies around it.

    Attributes:
        target (bytes): where archives go, anew for each input.
        outside, secret (bytes): what an archive would like to reach.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.archive = root / "archive"
        self.outside = os.fsencode(root / "outside")
        self.secret = os.fsencode(root / "outside" / "secret.txt")
        self.target = os.fsencode(root / "nest" / "target")
        for place in (root / "outside", root / "nest" / "outside"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "secret.txt").write_bytes(b"secret /opt/placeholder\n")
        self.archive.write_bytes(b"")
        self.before = self.around()

    def around(self) -> list[tuple]:
        """Everything but the target, with all that stat tells and reading does not change."""
        found = []
        for place, directories, files in os.walk(self.root):
            if place == os.fsdecode(os.path.dirname(self.target)) and "target" in directories:
                directories.remove("target")
            for name in (*directories, *files):
                path = os.path.join(place, name)
                if path == str(self.archive) or name == "nest":
                    continue
                status = os.lstat(path)
                found.append((path, status[:7], status.st_mtime_ns, status.st_ctime_ns))
        return sorted(found)

    def clear(self) -> None:
        try:
            shutil.rmtree(self.target)
        except FileNotFoundError:
            pass
        except (OSError, RecursionError):
            subprocess.run(["chmod", "-R", "u+rwX", self.target], check=True)
            subprocess.run(["rm", "-rf", self.target], check=True)


class Place:
    """What pipeline.fill wants of a private directory, without one."""

    def __init__(self, path: bytes) -> None:
        self.content_path = path
        self.content = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def sweep(self) -> None:
        """There is nothing beside it."""


def unpack(archive: Path, target: bytes) -> bool:
    """Unpack and relocate as the tool does; False if the archive was refused."""
    os.mkdir(target)
    place = Place(target)
    try:
        pipeline.fill(place, os.fsencode(archive), target, Report())
        marker = Path(os.fsdecode(target), MARKER).read_bytes()
        facts = json.loads(marker.decode("utf-8", "surrogateescape"))
        found = damage(target, facts["manifest"])
        assert not found, f"the manifest does not agree with the tree: {found}"
        return True
    except Failure as failure:
        message = str(failure)
        assert message and "\n" not in message, repr(message)
        return False
    finally:
        os.close(place.content)


def run_one(world: World, data: bytes) -> tuple[str, str]:
    """Unpack one input; what it came to ("unpacked", "refused", or "FAILED"), and why."""
    world.clear()
    with open(world.archive, "wb") as file:
        file.write(data)
    resident = _memory("VmRSS")
    _reset_peak()
    began = time.process_time()
    signal.signal(signal.SIGPROF, _overtime)
    signal.signal(signal.SIGALRM, _overtime)
    outcome, why = "FAILED", ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, HUNG)
    try:
        outcome = "unpacked" if unpack(world.archive, world.target) else "refused"
    except Overtime:
        why = f"it takes too long\n{traceback.format_exc()}"
    except BaseException:  # whatever it is, it is what is looked for here
        why = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.process_time() - began > SECONDS and not why:
        outcome, why = "FAILED", f"it took {time.process_time() - began:.1f} s of processor time"
    grown = _memory("VmHWM") - resident
    if grown > MEMORY:
        outcome, why = "FAILED", f"it took {grown >> 20} MiB"
    if world.around() != world.before:
        outcome, why = "FAILED", f"it changed {set(world.around()) ^ set(world.before)}"
    return outcome, why


def _memory(what: str) -> int:
    """VmRSS or VmHWM (the peak since the last reset) of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(what):
                return int(line.split()[1]) * 1024
    raise ValueError(what)


def _reset_peak() -> None:
    # proc(5): 5 sets the peak resident size to the current one.
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


# Seeds


def small_environment(folder: Path) -> Path:
    """A prefix with a bit of everything and no Python, for conda_pack.pack."""
    prefix = folder / "environment"
    for name, text in {
        "conda-meta/history": "",
        "bin/tool": f"#!{prefix}/bin/python\nprint()\n",
        "lib/text.txt": f"{prefix}/share\n",
        "lib/empty": "",
        "share/data": "data\n" * 300,
    }.items():
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(text)
    (prefix / "bin/tool").chmod(0o755)
    (prefix / "lib/program").write_bytes(b"\x7fELF\0" + (os.fsencode(prefix) + b"/lib\0") * 3)
    (prefix / "empty").mkdir()
    os.symlink("text.txt", prefix / "lib/link")
    os.link(prefix / "share/data", prefix / "share/again")
    return prefix


def packed() -> dict[str, bytes]:
    """The small environment as conda-pack packs it, by file name."""
    from conda_pack import pack

    found = {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        prefix = small_environment(folder)
        for format, options in (
            ("tar", {}),
            ("tar.gz", {"n_threads": 1}),
            ("tar.gz", {"n_threads": 2}),
            ("tar.bz2", {"n_threads": 2}),
            ("tar.xz", {"n_threads": 2}),
            ("zip", {}),
            ("zip", {"zip_symlinks": True}),
            ("tar", {"arcroot": "top"}),
        ):
            output = folder / f"{len(found)}.{format}"
            pack(prefix=str(prefix), output=str(output), **options)
            found[output.name] = output.read_bytes()
    return found


LARGEST = 120_000
"""Bytes of a seed at most; larger ones only take time."""


def seeds(world: World) -> list[bytes]:
    """Tar archives without compression, zip archives, and streams, in an order that stays."""
    place = test_hostile_archives.World(world.outside, world.secret, world.target)
    found = [case.build(place) for case in test_hostile_archives.CASES.values()]
    found += packed().values()
    return [data for data in map(plain, found) if len(data) <= LARGEST]


def plain(data: bytes) -> bytes:
    """The tar archive inside its compression; anything else as it is."""
    for magic, decompress in (b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma):
        if data.startswith(magic):
            try:
                return decompress.decompress(data)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
                return data
    return data


# Mutations

NUMBERS = (0, 1, 5, 511, 512, 513, 1024, 65535, 1 << 20, (1 << 31) - 1, 1 << 33, (1 << 63) - 1)
FIELDS = ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (157, 100),
          (257, 8), (345, 155))  # fmt: skip
TYPES = b"0001122225555LKxgSVD34678Z\0"
KEYS = (b"path", b"path", b"linkpath", b"size", b"size", b"mtime", b"mode", b"GNU.sparse.name",
        b"SCHILY.xattr.user.x", b"hdrcharset", b"")  # fmt: skip
TOKENS = (b"(", b")", b"[", b"]", b", ", b"'", b"\"", b"\\", b"\n", b"'text'", b"'binary'", b"'f'",
          b"'/opt/placeholder'", b"'../../outside/secret.txt'", b"'\\x00'", b"'\\ud800'", b"\xff",
          b"__import__('os')", b"1", b"-", b"*", b"None", b"f'{1}'",
          b"('f', '/opt/placeholder', 'text'),\n",
          b"('lib/program', '/opt/placeholder', 'binary'),\n")  # fmt: skip


class Mutator:
    """Makes input number N of a run, the same one each time."""

    def __init__(self, world: World, pool: list[bytes], seed: str) -> None:
        self.zips = [data for data in pool if data[:2] == b"PK"]
        self.tars = [data for data in pool if data[:2] != b"PK"]
        self.rng = random.Random(seed)
        self.names = [
            b"..", b"../evil", b"a/../../evil", b"/evil", b"", b".", b"./", b"a", b"a/b", b"d/",
            b"d", b"s", b"s/evil", b"h", b"f", b"f/g", b"conda-meta", b"conda-meta/history", b"bin",
            b"bin/conda-unpack", b"lib/link", b"lib/link/x", b"share/again",
            b".poncho_package_run_expanded", b".poncho_package_run_unpacking/x", b"n" * 256,
            b"d/" * 60 + b"f", b"\xff\0x",
            b"../outside/secret.txt", world.outside, world.secret, world.outside + b"/evil",
            b"/proc/self/cwd", b"../../outside",
        ]  # fmt: skip

    def input(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        data = rng.choice(self.zips if kind < 0.15 else self.tars)
        if kind > 0.9:
            data = self.records()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
            if data[:2] == b"PK":
                data = rng.choice((self.zip_field, self.zip_field, self.noise, self.cut))(data)
            else:
                data = rng.choice(
                    (self.header, self.header, self.header, self.blocks, self.extension, self.noise)
                )(data)
        if rng.random() < 0.1:
            data = self.cut(data)
        if rng.random() < 0.4:
            data = self.compress(data)
            if rng.random() < 0.5:
                data = rng.choice((self.noise, self.cut))(data)
        return data

    def noise(self, data: bytes) -> bytes:
        """Some bytes changed, taken out or put in."""
        rng, changed = self.rng, bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(changed) + 1)
            what = rng.random()
            if what < 0.6 and at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            elif what < 0.8:
                del changed[at : at + rng.choice((1, 4, 512))]
            else:
                changed[at:at] = rng.randbytes(rng.choice((1, 4, 512)))
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data) + 1)
        return data[:at] if self.rng.random() < 0.8 else data + data[at:]

    def header(self, data: bytes) -> bytes:
        """One field of one header changed, its checksum mended."""
        rng = self.rng
        places = [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if _is_header(data, at)]
        if not places:
            return self.noise(data)
        at = rng.choice(places)
        start, width = rng.choice(FIELDS)
        if width == 1:
            value = bytes([rng.choice(TYPES)])
        elif width in (100, 155):
            value = rng.choice(self.names)[:width].ljust(width, b"\0")
        elif rng.random() < 0.6:
            value = number(rng.choice((1, 1, 1, -1)) * rng.choice(NUMBERS), width)
        else:
            value = rng.randbytes(width)
        block = bytearray(data[at : at + BLOCK])
        block[start : start + width] = value
        if rng.random() < 0.95:
            block[148:156] = b"%06o\0 " % checksum(bytes(block))
        return data[:at] + bytes(block) + data[at + BLOCK :]

    def blocks(self, data: bytes) -> bytes:
        """Blocks moved, repeated, left out, or taken from another archive."""
        rng = self.rng
        count = len(data) // BLOCK + 1
        first, last = sorted((rng.randrange(count) * BLOCK, rng.randrange(count) * BLOCK))
        other = rng.choice(self.tars)
        there = rng.randrange(len(other) // BLOCK + 1) * BLOCK
        return rng.choice(
            (
                data[:first] + data[last:],
                data[:last] + data[first:],
                data[:first] + other[there:],
                data[:first] + other[there : there + 2 * BLOCK] + data[first:],
            )
        )

    def extension(self, data: bytes) -> bytes:
        """A pax header or a GNU long name put before some block."""
        rng = self.rng
        at = rng.randrange(len(data) // BLOCK + 1) * BLOCK
        name = rng.choice(self.names)
        if rng.random() < 0.4:
            extra = longname(name, type=rng.choice((b"L", b"K")))
        else:
            records = b""
            for _ in range(rng.choice((1, 1, 2, 3))):
                values = (
                    name,
                    b"%d" % rng.choice(NUMBERS),
                    b"-1",
                    b"1.5",
                    b"nan",
                    rng.randbytes(5),
                )
                records += pax_record(rng.choice(KEYS), rng.choice(values))
            if rng.random() < 0.3:
                records = self.noise(records)
            extra = pax(records, type=rng.choice((b"x", b"x", b"x", b"g")))
        return data[:at] + extra + data[at:]

    def zip_field(self, data: bytes) -> bytes:
        """A number in one of the zip structures changed."""
        rng, changed = self.rng, bytearray(data)
        signatures = [
            match.start()
            for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)", data)
        ]
        if not signatures:
            return self.noise(data)
        at = rng.choice(signatures) + rng.randrange(46)
        width = rng.choice((1, 2, 4))
        if rng.random() < 0.3:
            name = rng.choice(self.names)[:40]
            changed[at : at + len(name)] = name
        else:
            changed[at : at + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, "little")
        return bytes(changed)

    def records(self) -> bytes:
        """An environment whose conda-unpack holds records made of scraps."""
        rng = self.rng
        lines = b"".join(rng.choice(TOKENS) for _ in range(rng.randrange(1, 30)))
        text = (
            b"#!python\n_prefix_records = [\n" + lines + rng.choice((b"\n]\n", b"\n]\n", b"]", b""))
        )
        return environment(
            member(b"f", b"#!/opt/placeholder/bin/python\n"),
            member(b"lib/program", b"\x7fELF\0/opt/placeholder/lib:/opt/placeholder\0"),
            member(b"bin/conda-unpack", text, mode=0o755),
        )

    def compress(self, data: bytes) -> bytes:
        rng = self.rng
        what = rng.random()
        if what < 0.3:
            return gzip.compress(data, rng.choice((0, 1, 6)), mtime=0)
        if what < 0.6:
            # Blocks that can be inflated alone, as conda-pack -j N writes them.
            stream = zlib.compressobj(1, zlib.DEFLATED, 31)
            step = rng.choice((300, 3000))
            pieces = [data[at : at + step] for at in range(0, len(data), step)]
            flushed = [stream.compress(piece) + stream.flush(zlib.Z_FULL_FLUSH) for piece in pieces]
            return b"".join(flushed) + stream.flush()
        half = rng.randrange(len(data) + 1)
        pack = rng.choice((gzip.compress, bz2.compress, lzma.compress))
        return pack(data[:half]) + pack(data[half:])


def _is_header(data: bytes, at: int) -> bool:
    field = data[at + 148 : at + 154]
    return field.isdigit() and b"8" not in field and b"9" not in field and data[at] != 0


# Running


def work(options: argparse.Namespace) -> None:
    """Try this worker's share of the inputs; one line for each outcome on stdout."""
    world = World(Path(options.root))
    pool = seeds(world)
    for index in range(options.worker, options.runs, options.jobs):
        seed = f"{options.seed}:{index}"
        mutator = Mutator(world, pool, seed)
        data = mutator.input()
        # Small pieces, so that small archives too are decoded from several places at once.
        our_gzip._PIECE = mutator.rng.choice((64, 1 << 18))
        os.environ["PONCHO_PACKAGE_RUN_THREADS"] = mutator.rng.choice("12")
        outcome, why = run_one(world, data)
        print(outcome, flush=True)
        if outcome == "FAILED":
            report(options, world, data, f"input {seed}: {why}")
            world = World(Path(options.root))
    world.clear()


def _overtime(*_: object) -> None:
    raise Overtime


def report(options: argparse.Namespace, world: World, data: bytes, why: str) -> None:
    """Save a failing input, and say on stderr how to see it fail again."""
    folder = Path(options.failures)
    folder.mkdir(exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    print(
        f"{why}\nagain: {sys.executable} {__file__} --replay {path} --root {world.root}",
        file=sys.stderr,
        flush=True,
    )


def replay(options: argparse.Namespace) -> int:
    world = World(Path(options.root))
    data = Path(options.replay).read_bytes()
    outcomes = set()
    for piece in (64, 1 << 18):
        for threads in "12":
            our_gzip._PIECE = piece
            os.environ["PONCHO_PACKAGE_RUN_THREADS"] = threads
            outcome, why = run_one(world, data)
            print(f"pieces of {piece}, {threads} threads: {outcome} {why}")
            outcomes.add(outcome)
    world.clear()
    return "FAILED" in outcomes


class Worker:
    """A process that tries a share of the inputs."""

    def __init__(self, options: argparse.Namespace, number: int, scratch: Path) -> None:
        self.root = scratch / f"world-{number}"
        self.log = open(scratch / f"log-{number}", "w+b")
        command = [sys.executable, __file__, "--worker", str(number), "--root", str(self.root)]
        for name in ("runs", "jobs", "seed", "failures"):
            command += [f"--{name}", str(getattr(options, name))]
        self.process = subprocess.Popen(command, stdout=self.log)

    def is_stuck(self) -> bool:
        """Whether it has not begun a new input for long."""
        try:
            return time.time() - (self.root / "archive").stat().st_mtime > 2 * HUNG
        except FileNotFoundError:
            return False  # it is still making its seeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument(
        "--contents", type=int, help="files to relocate; as many as runs if not given"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--failures", default=os.path.join(tempfile.gettempdir(), "fuzz-failures"))
    parser.add_argument("--replay")
    parser.add_argument("--root")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        return replay(options)
    if options.worker is not None:
        work(options)
        return 0
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=base) as scratch:
        workers = [Worker(options, number, Path(scratch)) for number in range(options.jobs)]
        ended_badly = 0
        counts: collections.Counter[bytes] = collections.Counter()
        for worker in workers:
            while worker.process.poll() is None:
                time.sleep(0.2)
                for other in workers:
                    if other.is_stuck():
                        other.process.kill()
            if worker.process.returncode:
                ended_badly += 1
                data = (worker.root / "archive").read_bytes()
                status = worker.process.returncode
                report(options, World(worker.root), data, f"a worker ended with status {status}")
            worker.log.seek(0)
            counts.update(worker.log.read().split())
            worker.log.close()
    print(
        f"seed {options.seed}: {counts.total()} inputs, {counts[b'unpacked']} unpacked, "
        f"{counts[b'refused']} refused, {counts[b'FAILED'] + ended_badly} failed"
    )
    failed = bool(counts[b"FAILED"] or ended_badly or counts.total() < options.runs)
    return compare_contents(options) or failed


def compare_contents(options: argparse.Namespace) -> bool:
    """Relocate random contents beside conda-unpack's code; whether any differed."""
    count = options.runs if options.contents is None else options.contents
    step = 500
    found: collections.Counter[str] = collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        seeds = [f"{options.seed}.{number}" for number in range(0, count, step)]
        results = [pool.submit(relocations.check_many, step, seed) for seed in seeds]
        try:
            for result in results:
                found += result.result()
        except AssertionError as error:
            print(f"contents differ from conda-unpack's: {error}")
            return True
    print(
        f"seed {options.seed}: {found.total()} contents, {found['changed']} relocated as by "
        f"conda-unpack, {found['left']} left, {found['refused']} refused, 0 failed"
    )
    return False


if __name__ == "__main__":
    sys.exit(main())

"""End the tool at bad moments, again and again: each time it is over at once, and tidy.

    python tests/endings.py [--runs N] [--busy N] [--seed N]

Archives of every compression that several threads decode, each with a damaged or missing end
(the run must fail by itself), or whole (SIGTERM comes at a random instant).  All the while
``--busy`` processes keep the processors from the tool's threads.  A run that is not over within
``SECONDS``, less the time that its threads were ready and no processor was free, fails, as do
another status, a second line on stderr, and anything left in TMPDIR.
"""

import argparse
import bz2
import gzip
import lzma
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(_TESTS)]

from support import tars  # noqa: E402
from support.streams import in_blocks, members  # noqa: E402

ARTIFACT = os.environ.get("PONCHO_TEST_ARTIFACT") or _TESTS.parent / "dist/poncho_package_run.pyz"
SECONDS = 2.0
HUNG = 60.0
SIZE = 8 << 20

PACKERS = {
    "gzip": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH, level=1, block=90_000),
    "gzip of one block": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: members(lambda part: bz2.compress(part, 1), data, 1 << 20),
    "xz": lambda data: members(lambda part: lzma.compress(part, preset=0), data, 1 << 20),
}


def archives(folder: Path) -> dict[str, Path]:
    """A whole archive of each kind, of files that compress a little."""
    rng = random.Random(1)
    data = rng.randbytes(SIZE // 2).hex().encode()
    files, at = [], 0
    while at < len(data):
        size = rng.choice((100, 3_000, 50_000, 2_000_000))
        files.append(tars.member(b"lib/%d" % at, data[at : at + size]))
        at += size
    whole = tars.environment(*files)
    found = {}
    for name, pack in PACKERS.items():
        found[name] = folder / name.replace(" ", "-")
        found[name].write_bytes(pack(whole))
    return found


def damaged(whole: Path, rng: random.Random, into: Path) -> Path:
    """The same archive with its tail cut off, or one bit of it changed."""
    data = bytearray(whole.read_bytes())
    if rng.random() < 0.5:
        del data[-rng.choice((3, 9, 200, len(data) // 3)) :]
    else:  # where no bit is padding
        data[-rng.choice((5, 200, len(data) // 3))] ^= 1 << rng.randrange(8)
    into.write_bytes(data)
    return into


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Processes that always want to run."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def run(
    arguments: list, temporary: Path, after: float = 0.0, threads: str = "4"
) -> tuple[int, bytes, float]:
    """The status, stderr, and seconds since the signal (if ``after``) or the failure's line."""
    env = dict(os.environ, TMPDIR=str(temporary), PONCHO_PACKAGE_RUN_THREADS=threads)
    tool = subprocess.Popen(
        [sys.executable, ARTIFACT, *arguments], stderr=subprocess.PIPE, env=env
    )
    assert tool.stderr is not None
    hung = threading.Timer(HUNG, tool.kill)
    hung.start()
    line = b""
    try:
        if after:
            time.sleep(after)
            tool.send_signal(signal.SIGTERM)
        else:
            line = tool.stderr.readline()
        began = time.monotonic()
        delays = [_delays(tool.pid)]
        while tool.poll() is None:
            delays.append({**delays[-1], **_delays(tool.pid)})
            time.sleep(0.005)
        took = time.monotonic() - began
        excused = sum(delays[-1].values()) - sum(delays[0].values())
        return tool.returncode, line + tool.stderr.read(), max(took - excused, 0)
    finally:
        hung.cancel()
        tool.stderr.close()


def _delays(pid: int) -> dict[str, float]:
    """The seconds for which each thread was ready to run and did not (Linux, sched-stats)."""
    found = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            found[path.parent.name] = int(path.read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            pass  # it has ended
    return found


def endings(runs: int, busy: int, seed: int = 1) -> tuple[list[str], list[float]]:
    """Half of the runs fail, half are cancelled; what went wrong, and how long each end took."""
    rng = random.Random(seed)
    failures, seconds = [], []
    with tempfile.TemporaryDirectory() as name, ExitStack() as loaded:
        folder = Path(name)
        temporary = folder / "tmp"
        temporary.mkdir()
        whole = archives(folder)
        loaded.enter_context(load(busy))
        # Where threads are many, and where there is none; into a directory that is kept, and not.
        for number in range(runs):
            kind = rng.choice(list(whole))
            threads = rng.choice(("2", "4", "4", "1"))
            place = ["-d", folder / f"kept-{number}"] if rng.random() < 0.3 else []
            if number % 2:
                archive = damaged(whole[kind], rng, folder / "damaged")
                status, line, took = run(["-e", archive, *place], temporary, 0.0, threads)
                right = status == 65 and line.count(b"\n") == 1
            else:
                after = rng.uniform(0.03, 0.7)
                status, line, took = run(["-e", whole[kind], *place], temporary, after, threads)
                # 0: it was quicker.  Not yet ready for signals, it is ended by the signal itself.
                right = status in (143, -signal.SIGTERM, 0) and line == b""
            seconds.append(took)
            left = os.listdir(temporary) + [path.name for path in folder.glob(".*")]
            if not right or took > SECONDS or left:
                failures.append(
                    f"run {number} ({kind}, {threads} threads, {place and 'kept'}): status "
                    f"{status}, {took:.2f} s, {line!r}, left {left}"
                )
            for path in [*temporary.iterdir(), *folder.glob(".*"), *place[1:]]:
                subprocess.run(["rm", "-rf", path], check=True)
    return failures, seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=6000, help="half fail, half are cancelled")
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failures, seconds = endings(options.runs, options.busy, options.seed)
    seconds.sort()
    print(
        "seed {}: {} runs, {} failures; an end took {:.3f} s (median), {:.3f} s (most)".format(
            options.seed, options.runs, len(failures), seconds[len(seconds) // 2], seconds[-1]
        )
    )
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

"""Many processes on one directory, round after round, each in another mode and weather.

    python tests/storm.py                 100 processes x 30 rounds
    python tests/storm.py --mode inside   one mode only

The last line says how many ran, how often was unpacked, and how many failed.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Union

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import crash, environments, process, tracing, trees

# What happens to the calls of flock, process by process.
PLAIN: list = []
TRACED = ["trace=flock"]  # nothing, but they all start as slowly as the others
REFUSED = ["inject=flock:error=ENOLCK"]
REFUSED_LATER = ["inject=flock:error=EIO:when=2+"]
ANYBODY = ["inject=flock:retval=0"]  # two nodes, each with locks of its own

WEATHERS = {
    "granted": [PLAIN],
    "refused": [REFUSED],
    "refused to some": [TRACED, REFUSED],
    "granted to everybody": [ANYBODY],
    "each his own": [TRACED, REFUSED, REFUSED_LATER, ANYBODY],
}

# Where there is one lock for all, they unpack once.
EXCLUDING = ("granted", "refused")

MODES = {
    "beside": "a directory that is replaced by what is published",
    "inside": "the working directory of all, which cannot be replaced",
    "temporary": "no directory: each has its own",
    "cache": "a cache that is not there yet; its directory for the archive",
}


# What a cache has beside its environments.
REMEMBERED = (".poncho_package_run_memo", ".poncho_package_run_uses")


class Result(NamedTuple):
    """What became of one round: how many ran, unpacked, were killed; what went wrong."""

    runs: int
    unpackings: int
    killed: int
    failures: list[str]


class Storm:
    """Rounds of processes that all want ``archive`` in one directory below ``root``."""

    def __init__(self, artifact: Path, archive: Path, root: Path, mode: str = "beside") -> None:
        self.artifact = artifact
        self.archive = archive
        self.mode = mode
        self.root = root
        self.cache = root / "cache"
        self.target = root / "kept"
        if mode == "cache":
            self.target = self.cache / hashlib.sha256(archive.read_bytes()).hexdigest()
        self.tmp = root / "tmp"
        self.tmp.mkdir(exist_ok=True)
        self.chance = random.Random(0)
        self.word = ["sh", "-c", 'cat "$CONDA_PREFIX/conda-meta/history" && echo in']
        self._clear()
        first = self._start(PLAIN)
        output, errors = first.communicate(timeout=120)
        assert first.returncode == 0, errors
        self.expected = output
        self.tree = self._snapshot()
        self._clear()

    def round(
        self, weather: Union[str, Sequence[Sequence[str]]], count: int, kill: bool = False
    ) -> Result:
        """Start ``count`` processes at once; with ``kill``, kill the first that unpacks."""
        calls = WEATHERS[weather] if isinstance(weather, str) else weather
        running = [self._start(calls[index % len(calls)]) for index in range(count)]
        killed = self._kill(running) if kill else 0
        failures = []
        unpackings = 0
        for each in running:
            output, errors = each.communicate(timeout=300)
            unpackings += errors.count(b"poncho_package_run: unpack: ")
            if each.returncode == 0 and output == self.expected:
                continue
            if killed and each.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
                continue
            failures.append(f"status {each.returncode}: {os.fsdecode(errors)}")
        if self._snapshot() != self.tree:
            failures.append("the tree is not what one process makes of the archive")
        if killed:
            # What the dead have left goes with the next cold start.
            self._clear()
            self._start(PLAIN).communicate(timeout=60)
        if self._left():
            failures.append(f"left: {self._left()}")
        # The killed one may have come so far that it had said so; and its lease, which is a file,
        # may be replaced by two.
        most = 1 + killed * (1 if weather == "granted" else 2)
        if self.mode == "temporary" or weather not in EXCLUDING:
            most = count
        if not 1 <= unpackings <= most:
            failures.append(f"unpacked {unpackings} times")
        self._clear()
        if self.cache.exists():
            crash.remove(self.cache)  # with all that it remembers
        return Result(count, unpackings, killed, failures)

    def _start(self, calls: Sequence[str]) -> "subprocess.Popen[bytes]":
        traced = tracing.strace(*(word for each in calls for word in ("-e", each)))
        words = [self.artifact, "--debug", "-e", self.archive]
        if self.mode == "cache":
            words += ["--cache", self.cache]
        elif self.mode != "temporary":
            words += ["-d", "." if self.mode == "inside" else self.target]
        return subprocess.Popen(
            [*(traced if calls else []), sys.executable, *words, *self.word],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.tmp)},
            cwd=self.target if self.mode == "inside" else None,
        )

    def _private(self) -> list[Path]:
        inside = {"inside": self.target, "temporary": self.tmp}
        return crash.private_directories(inside.get(self.mode, self.target.parent))

    def _kill(self, running: list) -> int:
        """Kill the process that a private directory names, if one is caught at work."""

        def owner() -> int:
            for private in self._private():
                try:
                    return json.loads((private / crash.OWNER).read_bytes())["pid"]
                except (FileNotFoundError, ValueError):
                    pass
            published = (self.target / crash.MARKER).exists()
            return -1 if published or all(each.poll() is not None for each in running) else 0

        pid = process.wait_for(owner)
        if pid < 0:
            return 0
        time.sleep(self.chance.uniform(0, 0.3))  # anywhere in the unpacking, or just behind it
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return 0
        return 1

    def _left(self) -> list[str]:
        private = [path.name for path in self._private() if not crash.is_unowned(path)]
        leases = [path.name for path in self.target.parent.glob(".poncho_package_run_lease*")]
        inside = set(os.listdir(self.target)) if self.target.exists() else set()
        ours = {name for name in inside if name.startswith(".poncho")}
        if self.mode == "cache":
            private += os.listdir(self.tmp)  # nobody had to do without the cache
            unknown = set(os.listdir(self.cache)) - {self.target.name, *REMEMBERED}
            ours |= {name for name in unknown if not crash.is_unowned(self.cache / name)}
        return sorted({*private, *leases, *ours} - {crash.MARKER, crash.MANIFEST})

    def _snapshot(self) -> dict:
        if self.mode == "temporary":
            return {}
        # Relocated files are as new as their unpacking.
        found = trees.snapshot(self.target)
        return {path: entry._replace(mtime_ns=0) for path, entry in found.items()}

    def _clear(self) -> None:
        if self.target.exists():
            crash.remove(self.target)
        if self.mode == "inside":
            self.target.mkdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--mode", choices=MODES, action="append")
    built = Path(__file__).resolve().parents[1] / "dist" / "poncho_package_run.pyz"
    parser.add_argument("--artifact", type=Path, default=built)
    options = parser.parse_args()
    runs = unpackings = failed = 0
    modes = options.mode or list(MODES)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = environments.cached(root).archive()
        storms = {}
        for mode in modes:
            (root / mode).mkdir()
            storms[mode] = Storm(options.artifact, archive, root / mode, mode)
        order = itertools.cycle(itertools.product([False, True], WEATHERS, modes))
        for number, (kill, weather, mode) in zip(range(options.rounds), order):
            result = storms[mode].round(weather, options.processes, kill)
            runs += result.runs
            unpackings += result.unpackings
            failed += len(result.failures)
            note = ", one killed" if result.killed else ""
            print(
                f"round {number + 1}, {mode}, flock {weather}{note}: {result.runs} runs, "
                f"{result.unpackings} unpackings",
                flush=True,
            )
            for failure in result.failures:
                print(f"    {failure}", flush=True)
    print(f"{runs} runs in {options.rounds} rounds, {unpackings} unpackings, {failed} failures")
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main())

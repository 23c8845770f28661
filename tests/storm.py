"""Many processes on one directory, round after round, each under another weather.

    python tests/storm.py                 100 processes x 20 rounds

The last line says how many ran, how often was unpacked, and how many failed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import environments, process, tracing, trees

COMPLETE = ".poncho_package_run_expanded"
UNPACKING = ".poncho_package_run_unpacking"

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


class Result(NamedTuple):
    """What became of one round: how many ran, unpacked, were killed; what went wrong."""

    runs: int
    unpackings: int
    killed: int
    failures: list[str]


class Storm:
    """Rounds of processes that all want ``archive`` in one directory below ``root``."""

    def __init__(self, artifact: Path, archive: Path, root: Path) -> None:
        self.artifact = artifact
        self.archive = archive
        self.target = root / "kept"
        self.chance = random.Random(0)
        self.word = ["sh", "-c", 'cat "$CONDA_PREFIX/conda-meta/history" && echo in']
        first = self._start(PLAIN)
        output, errors = first.communicate(timeout=120)
        assert first.returncode == 0, errors
        self.expected = output
        self.tree = self._snapshot()
        self._clear()

    def round(self, weather: Sequence[Sequence[str]], count: int, kill: bool = False) -> Result:
        """Start ``count`` processes at once; with ``kill``, kill the first that unpacks."""
        running = [self._start(weather[index % len(weather)]) for index in range(count)]
        killed = self._kill() if kill else 0
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
        left = {name for name in os.listdir(self.target) if name.startswith(UNPACKING)}
        # Who is killed while he looks at a dead marker may leave a claim; a tree is complete
        # all the same.  Where none is killed, nothing is left.
        if left and not killed:
            failures.append(f"left in the directory: {left}")
        # The killed one may have come so far that it had said so.
        if not 1 <= unpackings <= 1 + killed:
            failures.append(f"unpacked {unpackings} times")
        self._clear()
        return Result(count, unpackings, killed, failures)

    def _start(self, calls: Sequence[str]) -> "subprocess.Popen[bytes]":
        traced = tracing.strace(*(word for each in calls for word in ("-e", each)))
        words = [self.artifact, "--debug", "-e", self.archive, "-d", self.target, *self.word]
        return subprocess.Popen(
            [*(traced if calls else []), sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _kill(self) -> int:
        """Kill the process that the marker names, if it is caught at work."""

        def owner() -> int:
            try:
                return json.loads((self.target / UNPACKING).read_bytes())["pid"]
            except (FileNotFoundError, ValueError):
                return -1 if (self.target / COMPLETE).exists() else 0

        pid = process.wait_for(owner)
        if pid < 0:
            return 0
        time.sleep(self.chance.uniform(0, 0.3))  # anywhere in the unpacking, or just behind it
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return 0
        return 1

    def _snapshot(self) -> dict:
        # Relocated files are as new as their unpacking.
        found = trees.snapshot(self.target)
        return {path: entry._replace(mtime_ns=0) for path, entry in found.items()}

    def _clear(self) -> None:
        shutil.rmtree(self.target)
        self.target.parent.joinpath(".kept.poncho_package_run.lock").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    built = Path(__file__).resolve().parents[1] / "dist" / "poncho_package_run.pyz"
    parser.add_argument("--artifact", type=Path, default=built)
    options = parser.parse_args()
    runs = unpackings = failed = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        storm = Storm(options.artifact, environments.cached(root).archive(), root)
        for number in range(options.rounds):
            weather = list(WEATHERS)[number % len(WEATHERS)]
            kill = number // len(WEATHERS) % 2 == 1
            result = storm.round(WEATHERS[weather], options.processes, kill)
            runs += result.runs
            unpackings += result.unpackings
            failed += len(result.failures)
            note = ", one killed" if result.killed else ""
            print(f"round {number + 1}, flock {weather}{note}: {result.runs} runs", flush=True)
            for failure in result.failures:
                print(f"    {failure}", flush=True)
    print(f"{runs} runs in {options.rounds} rounds, {unpackings} unpackings, {failed} failures")
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main())

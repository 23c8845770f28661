"""Kill, stop or interrupt the tool at many instants, and check what the next run makes of each.

    python tests/sweep.py                 1,200 kills, 400 stops, 2,000 signals
    python tests/sweep.py --kills 0       every point at which a run may be killed
    python tests/sweep.py --only Restarted --kill fsync:1
    python tests/sweep.py --only Temporary --stop mkdir:1
    python tests/sweep.py --only MountPoint --signals 500

Points are system calls, spread over all that a run makes of its own.  A killed run is followed
by another; a stopped one is overtaken by another, once with locks that exclude and once with
locks that are granted to both, and goes on; signals come at random.  The last lines say how many
there were of each, and how many failures.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import crash, scenarios

# What may be killed where: every scenario, and every way to read an archive.
ROWS = [(scenario, "tar.gz") for scenario in scenarios.SCENARIOS] + [
    (scenario, format)
    for scenario in (scenarios.Scenario, scenarios.Temporary, scenarios.MountPoint)
    for format in ("tar", "tar.gz -j", "zip", "tar.gz, library")
]
OVERTAKEN = [(scenario, "tar.gz") for scenario in scenarios.OVERTAKEN]
INTERRUPTED = [(scenario, "tar.gz") for scenario in scenarios.INTERRUPTED] + [
    (scenario, "tar.gz -j") for scenario in (scenarios.Scenario, scenarios.Temporary)
]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Locks as where each node has its own: everybody is granted them.
ANYBODY = "inject=flock:retval=0"

FAILURES = (AssertionError, OSError, subprocess.TimeoutExpired)


class Sweep:
    """All that is tried, each row in a place of its own."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root = root
        self.options = options
        self.failed = 0
        self._learned: dict[tuple, tuple[crash.Scenario, list[crash.Point]]] = {}

    def learn(self, rows: list) -> None:
        """Have each row run undisturbed; one that fails at that is told and left out."""
        for row in rows:
            if self.options.only not in (None, row[0].__name__):
                continue
            with Telling(row, "undisturbed") as told:
                root = self.root / str(len(self._learned))
                scenario = row[0](crash.Place(root, self.options.artifact, row[1]))
                self._learned[row] = scenario, scenario.points()
            self.failed += told.failed

    def learned(self, rows: list) -> list:
        return [row for row in rows if row in self._learned]

    def share(self, rows: list, wanted: int) -> float:
        """The share of all points that makes about ``wanted``; 0 is all of them."""
        points = sum(len(self._learned[row][1]) for row in rows)
        return min(1.0, wanted / points) if wanted and points else 1.0

    def chosen(self, points: list, given: list, share: float) -> list:
        if given:
            return [crash.Point(name, int(at)) for name, at in (each.split(":") for each in given)]
        return crash.spread(points, round(len(points) * share) or 1)

    def kill(self, row: tuple, share: float) -> tuple[int, int]:
        """Kill runs at a share of the points; how many were reached, and how many failed."""
        scenario, points = self._learned[row]
        killed, failed, unowned = 0, 0, 0
        for point in self.chosen(points, self.options.kill, share):
            with Telling(row, f"killed at {point}") as told:
                killed += scenario.strike(point)
                unowned += len(scenario.place.left(strict=True)) > 0
            failed += told.failed
        note = f"; {unowned} private directories that nobody owned yet were left" * bool(unowned)
        say(row, f"{len(points)} points, {killed} killed, {failed} failed{note}")
        return killed, failed

    def stop(self, row: tuple, share: float) -> tuple[int, int]:
        """Stop runs at a share of the points, and have each overtaken by another."""
        scenario, points = self._learned[row]
        points = [point for point in points if point.name != "flock"]
        stopped, failed = 0, 0
        for point in self.chosen(points, self.options.stop, share / 2):
            for calls, locks in (((), ""), ((ANYBODY,), ", locks granted to both")):
                with Telling(row, f"stopped at {point}{locks}") as told:
                    stopped += scenario.overtake(point, *calls)
                failed += told.failed
        say(row, f"{len(points)} points, {stopped} stopped, {failed} failed")
        return stopped, failed

    def interrupt(self, row: tuple, count: int) -> tuple[int, int]:
        """Send signals to runs at random instants of a cold start."""
        scenario, _ = self._learned[row]
        chance = random.Random(0)
        seconds = scenario.seconds()
        sent, failed, longest = 0, 0, 0.0
        for _ in range(count):
            instant, number = chance.uniform(0.01, seconds), chance.choice(SIGNALS)
            with Telling(row, f"{number.name} after {instant:.4f} s") as told:
                took = scenario.interrupt_at(instant, number)
                longest = max(longest, took)
                assert took < self.options.limit, f"it took {took:.3f} s to end"
                sent += 1
            failed += told.failed
        sent += failed
        say(row, f"{sent} signals within {seconds:.3f} s, {failed} failed, took {longest:.3f} s")
        return sent, failed


class Telling:
    """Tells a failure, counts it, and goes on."""

    def __init__(self, row: tuple, what: str) -> None:
        self.row = row
        self.what = what
        self.failed = 0

    def __enter__(self) -> "Telling":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if isinstance(error, pytest.skip.Exception):
            say(self.row, f"skipped: {error}")
        elif isinstance(error, FAILURES):
            self.failed = 1
            say(self.row, f"{self.what}: {type(error).__name__}: {error}")
        return isinstance(error, (pytest.skip.Exception, *FAILURES))


def say(row: tuple, text: str) -> None:
    print(f"{row[0].__name__}, {row[1]}: {text}", flush=True)


# A shell's background jobs ignore SIGINT, and so would what they start.
for _number in SIGNALS:
    signal.signal(_number, signal.SIG_DFL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1200, help="how many; 0: at all points")
    parser.add_argument("--stops", type=int, default=400, help="how many; 0: at all points")
    parser.add_argument("--signals", type=int, default=2000, help="how many")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that ending may take")
    parser.add_argument("--only", help="one scenario, by the name of its class")
    parser.add_argument("--kill", action="append", help="only at this point: CALL:NUMBER")
    parser.add_argument("--stop", action="append", help="only at this point: CALL:NUMBER")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--artifact",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "dist" / "poncho_package_run.pyz",
    )
    options = parser.parse_args()
    tried = []
    # In memory, where there is such a place: it is the tool that is tried, not the disk.
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as scratch, ThreadPoolExecutor(
        options.jobs
    ) as pool:
        sweep = Sweep(Path(scratch), options)
        # For other users, too.
        sweep.root.chmod(0o755)

        def go(what: str, function: Callable, rows: list, share: float) -> None:
            before = time.monotonic()
            results = list(pool.map(lambda row: function(row, share), rows)) or [(0, 0)]
            done, failed = (sum(column) for column in zip(*results))
            tried.append((what, done, failed, time.monotonic() - before))

        one_point = options.kill or options.stop
        sweep.learn([*dict.fromkeys([*ROWS, *OVERTAKEN, *INTERRUPTED])])
        if options.kill or not one_point:
            rows = sweep.learned(ROWS)
            go("runs killed", sweep.kill, rows, sweep.share(rows, options.kills))
        if options.stop or not one_point:
            rows = sweep.learned(OVERTAKEN)
            share = sweep.share(rows, options.stops)
            go("runs stopped and overtaken", sweep.stop, rows, share)
        if not one_point:
            rows = sweep.learned(INTERRUPTED)
            each = -(-options.signals // max(len(rows), 1))
            go("runs interrupted by a signal", sweep.interrupt, rows, each)
    if sweep.failed:
        print(f"{sweep.failed} scenarios failed undisturbed")
    for what, done, failed, took in tried:
        print(f"{done} {what}, {failed} failures behind them ({took:.0f} s)")
    return 1 if sweep.failed or any(failed or not done for _, done, failed, _ in tried) else 0


if __name__ == "__main__":
    sys.exit(main())

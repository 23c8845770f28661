"""Kill the tool at many system calls, and check what the next run makes of each.

    python tests/sweep.py                 1,200 points, spread over all there are
    python tests/sweep.py --points 0      all of them
    python tests/sweep.py --only Restarted --at fsync:1

The last line says how many runs were killed and how many of the next ones failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support import crash

# What may be killed where: every scenario, and every way to read an archive.
ROWS = [(scenario, "tar.gz") for scenario in crash.SCENARIOS] + [
    (scenario, format)
    for scenario in (crash.Scenario, crash.Temporary)
    for format in ("tar", "tar.gz -j", "zip")
]
LEAST = 1000


def sweep(row: tuple, share: float, options: argparse.Namespace, root: Path) -> tuple[int, int]:
    """Strike at a share of one row's points; how many were reached, and how many failed."""
    scenario_class, format = row
    name = f"{scenario_class.__name__}, {format}"
    place = crash.Place(root / name.replace(" ", ""), options.artifact, format)
    scenario = scenario_class(place)
    points = scenario.points()
    chosen = crash.spread(points, round(len(points) * share) or 1)
    if options.at:
        chosen = [
            crash.Point(name, int(at)) for name, at in (each.split(":") for each in options.at)
        ]
    killed = failed = 0
    for point in chosen:
        try:
            killed += scenario.strike(point)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"{name}, at {point}: {error}", flush=True)
    print(f"{name}: {len(points)} points, {killed} killed, {failed} failed", flush=True)
    return killed, failed


def count(rows: list, options: argparse.Namespace, root: Path) -> Iterator[int]:
    for index, (scenario, format) in enumerate(rows):
        place = crash.Place(root / f"count{index}", options.artifact, format)
        yield len(scenario(place).points())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=1200, help="how many; 0: all")
    parser.add_argument("--only", help="one scenario, by the name of its class")
    parser.add_argument("--at", action="append", help="only this point: CALL:NUMBER")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--artifact",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "dist" / "poncho_package_run.pyz",
    )
    options = parser.parse_args()
    rows = [row for row in ROWS if options.only in (None, row[0].__name__)]
    # In memory, where there is such a place: it is the tool that is tried, not the disk.
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as scratch, ThreadPoolExecutor(
        options.jobs
    ) as pool:
        root = Path(scratch)
        share = 1.0
        if options.points and not options.at:
            share = min(1.0, options.points / sum(count(rows, options, root)))
        results = list(pool.map(lambda row: sweep(row, share, options, root), rows))
    killed, failed = (sum(column) for column in zip(*results))
    print(f"{killed} runs killed, each at another system call; {failed} failures behind them")
    whole = not options.only and not options.at
    if whole and killed < LEAST:
        print(f"that is fewer than {LEAST}")
    return 1 if failed or (whole and killed < LEAST) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the benchmark: python -m tests.benchmarks [--quick] [--only CASE,...] (see --help)."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import cases, environments, measure, report
from .contenders import Commands

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent

DESCRIPTION = """
Measure cold, warm and crowded starts of dist/poncho_package_run.pyz beside what they replace,
and print each ratio beside its target. The first run downloads packages, builds an environment
from them and packs it in every format, which takes some 25 minutes and 7 GB below --cache;
measuring takes 40 minutes more (--quick: 2).
"""

EPILOG = """
cases: {}; serial (tar.bz2 and tar.xz of one thread) only when named.

Ours takes its number of threads from the usable cores; PONCHO_PACKAGE_RUN_THREADS caps it, which
is how the latency case gets its single writer. GNU tar is needed; bsdtar, unzip, zstd, igzip (of
the package isal), pigz, rapidgzip and strace are measured or used where the machine has them.
The case interpreters starts ours in --python, in /usr/bin/python3 and in pyenv's Python 3.11.
Other load on the machine is the largest error: run it alone, or compare ratios only.
""".format(", ".join(cases.CASES))


def count_of_cores(text):
    """Read the value of --cores."""
    return len(os.sched_getaffinity(0)) if text == "all" else int(text)


def parse(arguments):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--quick", action="store_true", help="a small environment, three rounds, "
                        "the cases that take long left out: 2 minutes once it is built")
    parser.add_argument("--only", metavar="CASE,...", help="these cases only")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 5, --quick: 3)")
    parser.add_argument("--cores", type=count_of_cores, default=2, metavar="N|all",
                        help="usable cores (default: %(default)s); the case cores varies them")
    parser.add_argument("--folder", type=Path, help="where to unpack (default: /dev/shm if it can "
                        "be written, else TMPDIR)")
    parser.add_argument("--cache", type=Path, default=os.environ.get(
        "PONCHO_BENCH_CACHE", ROOT / "build" / "bench"), help="where the environment and the "
        "archives are kept (default: PONCHO_BENCH_CACHE, else build/bench)")
    parser.add_argument("--python", type=Path, default=os.path.realpath(
        getattr(sys, "_base_executable", sys.executable)), help="interpreter of every Python "
        "contender (default: %(default)s)")
    parser.add_argument("--artifact", type=Path, default=ROOT / "dist" / "poncho_package_run.pyz")
    parser.add_argument("--build-only", action="store_true", help="build and pack, measure nothing")
    parser.add_argument("--keep", action="store_true", help="replace tests/benchmarks/results.*, "
                        "which the README shows (as a run without --only or --quick does)")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 5)
    if options.only:
        options.only = options.only.split(",")
        unknown = set(options.only) - set(cases.CASES)
        if unknown:
            parser.error("no such case: " + ", ".join(sorted(unknown)))
    if not options.build_only and not options.artifact.is_file():
        parser.error(f"{options.artifact} does not exist: build it first (make)")
    if options.folder is None:
        shm = Path("/dev/shm")
        options.folder = shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return options


def main(arguments=None) -> int:
    """Build what is missing, measure, report; return the exit status."""
    options = parse(arguments)
    options.cache = Path(options.cache).resolve()
    environment = environments.scientific(options.cache, options.quick)
    names = options.only or (cases.QUICK if options.quick else cases.DEFAULT)
    if options.build_only:
        for format in (*environments.FORMATS, *environments.LEVELS):
            if format not in ("tar.bz2", "tar.xz"):  # for the case serial only
                print(environment.archive(format))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is unpacked is removed then too
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        # On a worker the artifact lies beside the task, on the file system that is unpacked to.
        artifact = scratch / "poncho_package_run.pyz"
        shutil.copy2(options.artifact, artifact)
        bench = cases.Bench(
            cases.Options(options.folder, options.rounds, options.cores, options.quick),
            Commands(options.python, artifact, scratch), environment)
        machine = measure.describe_machine(options.python, options.folder)
        print(machine, file=sys.stderr)
        cases.run(bench, names)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = report.markdown(bench, machine)
    print(text)
    results = options.cache / "results"
    results.mkdir(exist_ok=True)
    folders = [results] + [HERE] * (options.keep or not (options.quick or options.only))
    for folder in folders:
        (folder / "results.md").write_text(text)
        report.draw(bench.results, machine, folder / "results.svg")
    (results / "results.json").write_text(report.raw(bench, machine))
    print("written: " + ", ".join(str(folder / "results.md") for folder in folders),
          file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

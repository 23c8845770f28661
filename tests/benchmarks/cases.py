"""The cases: who is measured against whom, and the target that the ratio is held to."""

import ast
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from . import environments, measure
from .contenders import PIPED, Commands, Contender
from .environments import say
from .measure import Summary

MIB = 1 << 20
PEAK_LIMIT = 64 * MIB
CROWD = 32
CROWD_ROUNDS = 7  # a start is one sample of a machine whose speed changes from start to start
WARM_RUNS = 20

OURS, PIPELINE, TAR = "ours", "shell pipeline", "GNU tar"
ALONE = "ours, Python alone"
CACHED, SUMMING = "ours, --cache", "sha256sum"
INFLATE = "inflating alone (zlib)"
TEMPORARY = "temporary directory, tar.gz"
CHOOSE = "choose"

# format -> the most of each rival's time, in whichever interpreter
LIMITS = {
    "tar.gz": {INFLATE: 0.60, PIPELINE: 0.30},
    "tar.zst": {PIPELINE: 0.70},
    "tar": {PIPELINE: 0.80, TAR: 1.10},
}


@dataclass
class Row:
    """One line of the table of targets; ``met`` is None where there is no target."""

    case: str
    ours: str
    rival: str
    ratio: str
    target: str
    met: Optional[bool] = None


@dataclass
class Options:
    """What the command line chose."""

    folder: Path
    rounds: int
    cores: int
    quick: bool


@dataclass
class Bench:
    """The state of a run: options, environment, and what was measured so far."""

    options: Options
    commands: Commands
    environment: environments.Environment
    results: dict[str, dict[str, Summary]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Where the environment is unpacked."""
        return self.commands.scratch / "environment"

    @property
    def few(self) -> int:
        """The rounds of what takes long."""
        return min(3, self.options.rounds)

    def compare(self, case, contenders, rounds=None, cores=None, repeat=1) -> None:
        """Measure ``contenders`` in turn, the order reversed in every other round.

        One more round comes first, not timed: it fills the page cache, and the memory is
        looked at in it.
        """
        summaries = self.results.setdefault(case, {})
        contenders = [one for one in contenders if possible(case, one)]
        cores = set(sorted(os.sched_getaffinity(0))[:cores or self.options.cores])
        samples: dict[str, list] = {one.name: [] for one in contenders}
        peaks = {one.name: self.once(one, cores, memory=True).peak for one in contenders}
        for number in range((rounds or self.options.rounds) * repeat):
            for one in contenders if number % 2 else contenders[::-1]:
                samples[one.name].append(self.once(one, cores))
        for name, taken in samples.items():
            summaries[name] = Summary.of(taken, peaks[name])
            say(f"{case:28} {name:30} {duration(summaries[name].wall):>9} "
                f"{summaries[name].cpu:6.2f} s CPU {peaks[name] / MIB:6.1f} MiB")

    def once(self, contender, cores, memory=False):
        contender.prepare()
        try:
            return measure.run(contender.argv, {**self.commands.environment,
                                                **contender.environment}, cores, memory)
        finally:
            contender.clean()

    def remove(self) -> None:
        """Remove what a contender unpacked."""
        if self.directory.exists():
            subprocess.run(["rm", "-rf", str(self.directory)], check=True)

    def fresh(self) -> None:
        """Make the directory that those want which only unpack."""
        self.remove()
        self.directory.mkdir()

    def keeping(self, name, argv, **others) -> Contender:
        """A contender that leaves a directory behind."""
        return Contender(name, argv, prepare=self.remove, clean=self.remove, **others)

    def extracting(self, archive, extractors=Commands.extractors) -> list[Contender]:
        """Those that only unpack."""
        return [Contender(name, argv, prepare=self.fresh, clean=self.remove)
                for name, argv in extractors(self.commands, archive, self.directory)]

    def starting(self, archive) -> list[Contender]:
        """The two that also relocate, activate and run: ours and the pipeline."""
        return [self.keeping(OURS, self.commands.ours(archive, self.directory)),
                self.keeping(PIPELINE, self.commands.pipeline(archive, self.directory))]

    def alone(self, archive) -> Contender:
        """Ours without its native library."""
        return self.keeping(ALONE, self.commands.ours(archive, self.directory),
                            environment={"PONCHO_PACKAGE_RUN_NATIVE": "no"})

    def limits(self, format, case, ours=OURS) -> None:
        """Add the rows of LIMITS for ``ours`` in ``case``."""
        for rival, limit in LIMITS[format].items():
            self.ratio(case if ours == OURS else f"{format}, {ours}", (case, ours), (case, rival),
                       limit)

    def first(self, case) -> None:
        """Add the rows of the fast decoders, which only unpack: ours has to be first."""
        for name in self.results[case]:
            if name.endswith(PIPED):
                self.ratio(case, (case, OURS), (case, name), 1.00)

    def ratio(self, case, ours: tuple[str, str], rival: tuple[str, str], limit=None,
              metric="wall") -> None:
        """Add the row ours/rival, each a (case, contender), if both were measured."""
        try:
            left, right = (getattr(self.results[one][name], metric) for one, name in (ours, rival))
        except KeyError:
            return
        unit = " CPU" if metric == "cpu" else ""
        name = rival[1] if rival[0] == ours[0] else f"{rival[1]}, {rival[0]}"
        self.rows.append(Row(
            case, duration(left) + unit, f"{duration(right) + unit} ({name})",
            "%.2f" % (left / right), f"≤ {limit:.2f}" if limit else "",
            left / right <= limit if limit else None))

    def excess(self, case, contender, rivals, limit) -> None:
        """Add the row ours - sum of rivals, in seconds, all of one case.

        The median of each round's difference: what changes the machine's speed between two rounds,
        10 ms of a start on some, changes both sides.
        """
        measured = self.results[case]
        total = sum(measured[name].wall for name in rivals)
        over = statistics.median(
            wall - sum(measured[name].walls[number] for name in rivals)
            for number, wall in enumerate(measured[contender].walls))
        self.rows.append(Row(
            case, f"{duration(measured[contender].wall)} ({contender})",
            "{} ({})".format(duration(total), " + ".join(rivals)), "%+.1f ms" % (over * 1000),
            "≤ +%.0f ms" % (limit * 1000), over <= limit))


def possible(case, contender) -> bool:
    """Tell whether the machine has the program; say so if not."""
    if contender.argv[0] is None:
        say(f"{case}: this machine has no program for {contender.name}")
    return contender.argv[0] is not None


def duration(seconds) -> str:
    """Write seconds as a person would."""
    return "%.1f ms" % (seconds * 1000) if seconds < 0.2 else f"{seconds:.2f} s"


# --- cold starts ----------------------------------------------------------------------------

def cold(bench, format, *contenders, extractors=True, rounds=None):
    """Measure a cold start from an archive of ``format``; return the case's name."""
    case = "cold, " + format
    archive = bench.environment.archive(format)
    bench.compare(case, [*bench.starting(archive), *contenders, *(
        [bench.alone(archive), *bench.extracting(archive)] if extractors else ())], rounds)
    return case


def gzip(bench):
    """Cold start, tar.gz of one thread"""
    archive = bench.environment.archive("tar.gz")
    case = cold(bench, "tar.gz", Contender(INFLATE, bench.commands.decoder("gz", archive)),
                Contender("gzip -dc", [bench.commands.program("gzip"), "-dc", str(archive)]),
                *bench.extracting(archive, Commands.pipes))
    bench.limits("tar.gz", case)
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.65, metric="cpu")
    bench.first(case)


def gzip_parallel(bench):
    """Cold start, tar.gz of conda-pack -j N"""
    archive = bench.environment.archive("tar.gz -j N")
    case = cold(bench, "tar.gz -j N", Contender(INFLATE, bench.commands.decoder("gz", archive)),
                bench.alone(archive), *bench.extracting(archive, Commands.pipes),
                extractors=False)
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.24)
    bench.ratio(case, (case, OURS), (case, INFLATE), 1.00)
    bench.first(case)


def bzip2(bench):
    """Cold start, tar.bz2 of conda-pack -j N"""
    archive = bench.environment.archive("tar.bz2 -j N")
    case = cold(bench, "tar.bz2 -j N",
                Contender("decoding alone (bz2)", bench.commands.decoder("bz2", archive)),
                extractors=False, rounds=bench.few)
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.60)


def xz(bench):
    """Cold start, tar.xz of conda-pack -j N"""
    archive = bench.environment.archive("tar.xz -j N")
    case = cold(bench, "tar.xz -j N",
                Contender("decoding alone (lzma)", bench.commands.decoder("xz", archive)),
                extractors=False, rounds=bench.few)
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.60)


def serial(bench):
    """Cold start, tar.bz2 and tar.xz of one thread (no target)"""
    for format, name in (("tar.bz2", "bz2"), ("tar.xz", "xz")):
        archive = bench.environment.archive(format)
        case = cold(bench, format, Contender("decoding alone", bench.commands.decoder(
            name, archive)), extractors=False, rounds=bench.few)
        bench.ratio(case, (case, OURS), (case, PIPELINE))


def zstd(bench):
    """Cold start, tar.zst"""
    archive = bench.environment.archive("tar.zst")
    case = cold(bench, "tar.zst",
                Contender("zstd -dc", [bench.commands.program("zstd"), "-dcq", str(archive)]))
    bench.limits("tar.zst", case)
    bench.ratio(case, (case, OURS), ("cold, tar.gz", PIPELINE), 0.32)


def tar(bench):
    """Cold start, plain tar"""
    bench.limits("tar", cold(bench, "tar"))


def zip(bench):
    """Cold start, zip"""
    case = cold(bench, "zip")
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.20)


def many(bench):
    """Cold start, 300,000 files of 10 bytes"""
    units = 300 if bench.options.quick else 3000
    archive = environments.grown(bench.environment, "bare", units)
    case = f"{units * environments.BARE:,} files of 10 bytes, tar.gz"
    bench.compare(case, [
        bench.keeping(OURS, bench.commands.ours(archive, bench.directory)), bench.alone(archive),
        *(one for one in bench.extracting(archive) if one.name == TAR),
        *bench.extracting(archive, Commands.pipes)])
    bench.ratio(case, (case, OURS), (case, TAR), 1.30)


def interpreters(bench):
    """Cold starts in this interpreter, the system's, and pyenv's Python 3.11"""
    each = dict(bench.commands.others())
    for format, limits in LIMITS.items():
        case, archive = f"{format}, each Python", bench.environment.archive(format)
        bench.compare(case, [
            *(bench.keeping(name, commands.ours(archive, bench.directory))
              for name, commands in each.items()),
            *bench.starting(archive)[1:],
            *([Contender(INFLATE, bench.commands.decoder("gz", archive))]
              if INFLATE in limits else ()),
            *(one for one in bench.extracting(archive) if one.name in limits)])
        for name in each:
            bench.limits(format, case, name)


def choose(bench):
    """Which archive to choose: cold starts from one environment"""
    zstd = bench.commands.program("zstd")
    if zstd is None:
        say("choose: this machine has no zstd")
    bench.compare(CHOOSE, [
        bench.keeping(format, bench.commands.ours(bench.environment.archive(format),
                                                  bench.directory))
        for format in ("tar.gz", "tar.gz -j N", "tar.zst", "tar.zst -3", "tar.zst -19",
                       "tar.xz -j N", "zip")
        if zstd or format not in environments.LEVELS])


def temporary(bench):
    """Temporary directory: unpack, run, remove; and removing alone"""
    case, archive = TEMPORARY, bench.environment.archive("tar.gz")
    bench.compare(case, [Contender(OURS, bench.commands.ours(archive)),
                         Contender(PIPELINE, bench.commands.pipeline(archive))])
    bench.ratio(case, (case, OURS), (case, PIPELINE), 0.32)

    case, plain = "removing", bench.environment.archive("tar")
    cores = set(sorted(os.sched_getaffinity(0))[:bench.options.cores])

    def unpack():
        bench.fresh()
        subprocess.run(["tar", "-xf", plain, "-C", bench.directory], check=True)

    rm = Contender("rm -rf", [bench.commands.program("rm"), "-rf", str(bench.directory)], unpack)
    seen = {OURS: [], rm.name: []}
    for _ in range(bench.options.rounds):
        seen[rm.name].append(bench.once(rm, cores))
        seen[OURS].append(after_command(bench, plain, cores))
    bench.results[case] = {name: Summary.of(samples) for name, samples in seen.items()}
    bench.ratio(case, (case, OURS), (case, rm.name), 1.10)


def after_command(bench, archive, cores):
    """Return how long ours went on after its command had told the time: the removal."""
    stamp = bench.commands.scratch / "stamp"
    argv = bench.commands.ours(archive, command=["date", "+%s.%N"])
    measure.run(argv, bench.commands.environment, cores, output=stamp)
    ended = time.time()
    seconds = ended - float(stamp.read_text())
    stamp.unlink()
    return measure.Sample(seconds, 0)


def relocation(bench):
    """Relocation alone, of every prefix record

    Ours is the phase of a cold start, in a process of its own. With ``-e DIR`` no file is written
    in place, each is on the disk before it is renamed, and a command is run.
    """
    case, tree = "relocation", bench.directory
    subset, count = relocation_subset(bench)

    def unpack():
        bench.fresh()
        subprocess.run(["tar", "-xf", subset, "-C", tree], check=True)

    bench.compare(case, [
        Contender(OURS, bench.commands.relocation(tree), unpack, bench.remove),
        Contender("ours, -e DIR", bench.commands.ours(tree), unpack, bench.remove),
        Contender("conda-unpack", [bench.commands.python, str(tree / "bin" / "conda-unpack")],
                  unpack, bench.remove)])
    bench.ratio(case, (case, OURS), (case, "conda-unpack"), 0.40)
    bench.rows[-1].case = f"relocation of {count:,} records"


def relocation_subset(bench):
    """Return a tar of those members only that relocation touches, and the number of records."""
    subset = bench.environment.folder / "relocation.tar"
    script = subprocess.run(["tar", "-xOf", bench.environment.archive("tar"), "bin/conda-unpack"],
                            check=True, stdout=subprocess.PIPE).stdout.decode()
    records = ast.literal_eval(script[script.index("= [") + 2:script.index("\n]\n") + 2])
    if not subset.exists():
        tree = bench.directory
        bench.fresh()
        names = sorted({record[0] for record in records} | {
            "bin/activate", "bin/conda-unpack", "bin/conda_unpack_progress.py",
            "conda-meta/history"})
        subprocess.run(["tar", "-xf", bench.environment.archive("tar"), "-C", tree, "-T", "-"],
                       input="\n".join(names).encode(), check=True)
        subprocess.run(["tar", "-cf", subset, "-C", tree, "."], check=True)
        bench.remove()
    return subset, len(records)


# --- warm and crowded starts ----------------------------------------------------------------

def warm(bench):
    """Warm start, with and without activation scripts"""
    commands, archive = bench.commands, bench.environment.archive("tar")
    bench.remove()
    environment = commands.environment
    measure.run(commands.ours(archive, bench.directory), environment)
    python = commands.python
    case = "warm start"
    bench.compare(case, [
        Contender("python3 x.pyz", commands.ours(archive, bench.directory)),
        Contender("./x", commands.ours(archive, bench.directory, direct=True)),
        Contender("shell script", commands.pipeline(archive, bench.directory)),
        Contender("empty zipapp", [python, str(commands.empty_zipapp)]),
        Contender("python3 -c pass", [python, "-c", "pass"]),
        Contender("python3 -S -E -c pass", [python, "-S", "-E", "-c", "pass"]),
        Contender("true", [commands.program("true")]),
    ], repeat=WARM_RUNS)
    bench.excess(case, "python3 x.pyz", ["empty zipapp"], 0.004)
    bench.excess(case, "./x", ["python3 -c pass"], 0.006)

    scripts = bench.directory / "etc" / "conda" / "activate.d"
    scripts.mkdir(parents=True)
    for number in range(3):
        (scripts / f"package{number}.sh").write_text(
            f'export PACKAGE{number}_HOME="$CONDA_PREFIX/share/package{number}"\n')
    case = "warm start, 3 scripts"
    sourcing = "; ".join(f". {script}" for script in sorted(scripts.iterdir()))
    bench.compare(case, [
        Contender("python3 x.pyz", commands.ours(archive, bench.directory)),
        Contender("./x", commands.ours(archive, bench.directory, direct=True)),
        Contender("shell script", commands.pipeline(archive, bench.directory)),
        Contender("bash and the scripts", ["/bin/bash", "-c", sourcing]),
        Contender("empty zipapp", [python, str(commands.empty_zipapp)]),
        Contender("python3 -c pass", [python, "-c", "pass"]),
    ], repeat=WARM_RUNS)
    bench.excess(case, "python3 x.pyz", ["empty zipapp", "bash and the scripts"], 0.007)
    bench.excess(case, "./x", ["python3 -c pass", "bash and the scripts"], 0.009)
    bench.remove()


def crowd(bench):
    """32 starts at once on one empty DIR"""
    crowded(bench, f"{CROWD} starts at once", "-d")


def crowded(bench, case, option):
    """Add the rows of many starts at once on the directory that ``option`` names."""
    archive = bench.environment.archive("tar.gz")
    last, single, unpackings = [], [], []
    for _ in range(max(bench.options.rounds, CROWD_ROUNDS)):
        single.append(together(bench, archive, 1, option)[0])
        seconds, count = together(bench, archive, CROWD, option)
        last.append(seconds)
        unpackings.append(count)
    bench.results[case] = {
        "the last command's start": Summary.of([measure.Sample(wall, 0) for wall in last]),
        "a single cold start": Summary.of([measure.Sample(wall, 0) for wall in single])}
    bench.ratio(case, (case, "the last command's start"), (case, "a single cold start"), 1.25)
    bench.rows.append(Row(case, f"{max(unpackings)} unpacking(s)", "", "", "1",
                          max(unpackings) == 1))


def together(bench, archive, count, option):
    """Start ``count`` commands at once; return when the last one began, and the unpackings."""
    bench.remove()
    scratch = bench.commands.scratch / "crowd"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    environment = {**bench.commands.environment, "PONCHO_PACKAGE_RUN_DEBUG": "yes"}
    argv = bench.commands.ours(archive, bench.directory, ["date", "+%s.%N"], option=option)
    cores = set(sorted(os.sched_getaffinity(0))[:bench.options.cores])
    processes = []
    began = time.time()
    for number in range(count):
        with open(scratch / f"errors-{number:02}", "wb") as errors:
            processes.append(measure.start(argv, environment, cores, scratch / str(number),
                                           errors.fileno())[0])
    for process in processes:
        if os.waitpid(process, 0)[1]:
            raise measure.Failed(f"one of {count} starts at once failed; see {scratch}")
    last = max(float((scratch / str(number)).read_text()) for number in range(count))
    unpackings = sum(b": unpack: " in path.read_bytes() for path in scratch.glob("errors-*"))
    bench.remove()
    return last - began, unpackings


def cache(bench):
    """The cache: warm, a copy of what it knows, cold, and 32 starts at once"""
    commands = bench.commands
    archive = bench.environment.archive("tar.gz")
    bench.fresh()
    kept, cached = bench.directory / "kept", bench.directory / "cache"
    measure.run(commands.ours(archive, cached, option="--cache"), commands.environment)
    measure.run(commands.ours(archive, kept), commands.environment)
    case = "warm start, cache"
    bench.compare(case, [
        Contender("python3 x.pyz", commands.ours(archive, kept)),
        Contender("python3 x.pyz, --cache", commands.ours(archive, cached, option="--cache")),
        Contender("python3 x.pyz, --cache, a limit",
                  commands.ours(archive, cached, option="--cache"),
                  environment={"PONCHO_PACKAGE_RUN_CACHE_LIMIT": "20G"}),
        Contender("./x", commands.ours(archive, kept, direct=True)),
        Contender("./x, --cache", commands.ours(archive, cached, direct=True, option="--cache")),
    ], repeat=WARM_RUNS)
    bench.excess(case, "python3 x.pyz, --cache", ["python3 x.pyz"], 0.001)
    bench.excess(case, "python3 x.pyz, --cache, a limit", ["python3 x.pyz"], 0.001)
    bench.excess(case, "./x, --cache", ["./x"], 0.001)

    case, copy = "a copy of a known archive", commands.scratch / "copy"
    known = bench.environment.archive("tar")
    measure.run(commands.ours(known, cached, option="--cache"), commands.environment)

    def another():
        shutil.copyfile(known, copy)

    bench.compare(case, [
        Contender(CACHED, commands.ours(copy, cached, option="--cache"), another, copy.unlink),
        Contender(SUMMING, [commands.program("sha256sum"), str(copy)], another, copy.unlink)])
    bench.ratio(case, (case, CACHED), (case, SUMMING))

    for format in ("tar", "tar.gz"):
        case, archive = f"cold into a cache, {format}", bench.environment.archive(format)
        bench.compare(case, [
            bench.keeping(CACHED, commands.ours(archive, bench.directory, option="--cache")),
            bench.keeping(OURS, commands.ours(archive, bench.directory)),
            Contender(SUMMING, [commands.program("sha256sum"), str(archive)])])
        bench.ratio(case, (case, CACHED), (case, OURS))
        bench.rows.append(summing(bench, case, archive.stat().st_size))
    crowded(bench, f"{CROWD} starts at once, cache", "--cache")


def summing(bench, case, size):
    """The row of what a cold start into a cache takes longer, which is the sum of the archive."""
    measured = bench.results[case]
    over = measured[CACHED].wall - measured[OURS].wall
    return Row(case, "{} longer for {:,} MB".format(duration(over), size // 10**6),
               f"{duration(measured[SUMMING].wall)} ({SUMMING})",
               "%+.2f s/GB" % (over / size * 10**9), "")


# --- memory, growth, cores, latency ---------------------------------------------------------

def memory(bench):
    """Peak memory, flat from 10 MB to 1 GB"""
    case = "memory"
    for units in (1, 10) if bench.options.quick else (1, 10, 100):
        archive = environments.grown(bench.environment, "memory", units)
        name = f"{10 * units} MB"
        bench.compare(case, [bench.keeping(name, bench.commands.ours(archive, bench.directory))],
                      rounds=1)
    peaks = [summary.peak for summary in bench.results[case].values()]
    least, most = min(peaks), max(peaks)
    bench.rows.append(Row(
        f"memory, 10 MB to {name}", f"{most / MIB:.1f} MiB at most",
        f"{least / MIB:.1f} MiB at least", f"{most / least:.2f}", "≤ 64 MiB, within 16 MiB",
        most <= PEAK_LIMIT and most - least <= 16 * MIB))


def growth(bench):
    """Time a unit, from 1x to 16x files and bytes"""
    units = (1, 4) if bench.options.quick else (1, 2, 4, 8, 16)
    for kind in ("files", "bytes"):
        case = "growth in " + kind
        bench.compare(case, [
            bench.keeping(f"{count}x", bench.commands.ours(
                environments.grown(bench.environment, kind, count), bench.directory))
            for count in units])
        each = {count: bench.results[case][f"{count}x"].wall / count for count in units}
        worst = max(units[1:], key=lambda count: each[count])
        bench.rows.append(Row(
            case, f"{duration(each[worst])} a unit at {worst}x",
            f"{duration(each[1])} a unit at 1x", f"{each[worst] / each[1]:.2f}",
            "≤ 1.20", each[worst] / each[1] <= 1.20))


def cores(bench):
    """One core, two, and as many as there are"""
    available = len(os.sched_getaffinity(0))
    for format in ("tar.gz", "tar.gz -j N", "zip"):
        archive = bench.environment.archive(format)
        for count in sorted({1, 2, available}):
            if count > available:
                continue
            case = f"{format}, {count} core{'s' * (count > 1)}"
            bench.compare(case, bench.starting(archive), bench.few, cores=count)
            bench.ratio(case, (case, OURS), (case, PIPELINE),
                        0.45 if case == "tar.gz, 1 core" else None)


def latency(bench):
    """1 ms at each call that creates a file: several writers against one"""
    case, commands = "1 ms a call", bench.commands
    archive = environments.grown(bench.environment, "files", 1 if bench.options.quick else 2)
    if commands.program("strace") is None:
        say("latency: this machine has no strace")
        return
    argv = commands.slowed(commands.ours(archive, bench.directory))
    bench.compare(case, [
        bench.keeping(OURS, argv),
        bench.keeping("ours, one writer", argv,
                      environment={"PONCHO_PACKAGE_RUN_THREADS": "1"}),
        Contender(TAR, commands.slowed(
            [commands.program("tar"), "-xf", str(archive), "-C", str(bench.directory)]),
            bench.fresh, bench.remove),
    ], bench.few)
    bench.ratio(case, (case, OURS), (case, "ours, one writer"), 0.25)
    bench.ratio(case, (case, OURS), (case, TAR))


def peak_of_all(bench) -> None:
    """Add the row of the largest peak of ours among all cases that were run."""
    peaks = [(summary.peak, case) for case, measured in bench.results.items()
             for name, summary in measured.items()
             if case != "1 ms a call" and (
                 name in (OURS, ALONE, CACHED, "python3 x.pyz", "./x") or case == CHOOSE
                 or case.endswith("each Python") and name.startswith("Python"))]
    if peaks:
        peak, case = max(peaks)
        bench.rows.append(Row(f"memory, the most of {len({case for _, case in peaks})} cases",
                              f"{peak / MIB:.1f} MiB ({case})", "", "", "≤ 64 MiB",
                              peak <= PEAK_LIMIT))


CASES = {
    "gzip": gzip, "gzip-parallel": gzip_parallel, "bzip2": bzip2, "xz": xz, "serial": serial,
    "zstd": zstd, "tar": tar, "zip": zip, "many": many, "interpreters": interpreters,
    "choose": choose, "temporary": temporary, "relocation": relocation, "warm": warm,
    "crowd": crowd, "cache": cache, "memory": memory, "growth": growth, "cores": cores,
    "latency": latency,
}
DEFAULT = [name for name in CASES if name != "serial"]
QUICK = [name for name in DEFAULT if name not in ("bzip2", "xz", "choose", "cores")]


def run(bench, names) -> None:
    """Run the cases ``names`` in order. A case that fails says why and leaves no rows."""
    for name in names:
        say(f"--- {CASES[name].__doc__.splitlines()[0]}")
        rows = len(bench.rows)
        try:
            CASES[name](bench)
        except measure.Failed as failure:
            print(failure, file=sys.stderr)
            del bench.rows[rows:]
            bench.rows.append(Row(name, "failed", "", "", "", False))
        finally:
            bench.remove()
    peak_of_all(bench)

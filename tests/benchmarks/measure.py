"""Run one command and measure it: wall clock, CPU and memory of its whole process tree."""

import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Between two looks at the memory of the tree.
SAMPLING_INTERVAL = 0.01


class Failed(Exception):
    """A measured command ended with another status than zero."""


@dataclass
class Sample:
    """One run: seconds on the wall, seconds of user and system time, peak bytes resident."""

    wall: float
    cpu: float
    peak: int = 0


@dataclass
class Summary:
    """The median run of one contender; ``walls`` are those of each round."""

    wall: float
    cpu: float
    peak: int
    walls: tuple

    @property
    def rounds(self) -> int:
        return len(self.walls)

    @classmethod
    def of(cls, samples, peak=0):
        return cls(statistics.median(sample.wall for sample in samples),
                   statistics.median(sample.cpu for sample in samples), peak,
                   tuple(sample.wall for sample in samples))


def run(argv, environment, cores=None, memory=False, output=os.devnull) -> Sample:
    """Run ``argv`` to its end, on the set ``cores`` of processors if one is given.

    With ``memory`` the tree is looked at every 10 ms, which costs the command a little: such
    a run is for the memory alone. Raises Failed with the end of stderr.
    """
    with tempfile.TemporaryFile() as errors:
        process, started = start(argv, environment, cores, output, errors.fileno())
        try:
            peak = watch(process) if memory else 0
            _, status, usage = os.wait4(process, 0)
        except BaseException:  # Ctrl-C, say: what is being measured ends too
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise
        wall = time.perf_counter() - started
        code = os.waitstatus_to_exitcode(status)
        if code:
            errors.seek(0)
            message = errors.read()[-2000:].decode(errors="replace")
            raise Failed(f"{' '.join(map(str, argv))}: status {code}\n{message}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, peak)


def start(argv, environment, cores, output, errors):
    """Start ``argv`` in a session of its own; return its pid and the time of the start."""
    argv = [os.fspath(word) for word in argv]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.fspath(output), os.O_WRONLY | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        started = time.perf_counter()
        return os.posix_spawn(argv[0], argv, environment, file_actions=actions,
                              setsid=True), started
    finally:
        os.sched_setaffinity(0, before)


def watch(session):
    """Return the peak of the resident bytes of ``session``'s processes, until its leader ends.

    That is the most that the processes held together at one look, pages that they share
    counted once (Pss), or the most that one of them ever held (VmHWM, which no look misses).
    """
    peak = 0
    while not os.waitid(os.P_PID, session, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        together = 0
        for pid in members(session):
            together += field(pid, "smaps_rollup", "Pss:")
            peak = max(peak, field(pid, "status", "VmHWM:"))
        peak = max(peak, together)
        time.sleep(SAMPLING_INTERVAL)
    return peak


def members(session):
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_bytes()  # a name may be any bytes
            except OSError:  # the process has ended since the listing
                continue
            if int(stat.rpartition(b")")[2].split()[3]) == session:
                yield name


def field(pid, file, name):
    """Return the bytes that one line of a file below /proc/pid tells in kB."""
    try:
        for line in Path("/proc", pid, file).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:  # the process has ended since the listing
        pass
    return 0  # a process that is ending holds no memory any more


def describe_machine(python, folder) -> str:
    """Return one line: processor, cores, kernel, interpreter, folder, date."""
    processor = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    version = subprocess.run([python, "--version"], stdout=subprocess.PIPE, check=True).stdout
    return (f"{processor}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, "
            f"{version.decode().strip()}, unpacked to {folder} ({file_system(folder)}), "
            f"{time.strftime('%Y-%m-%d')}, load average before {os.getloadavg()[0]:.1f}")


def file_system(folder):
    """Return the type of the file system that holds ``folder``."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, kind = line.split()[1:3]
        if os.path.join(os.path.realpath(folder), "").startswith(os.path.join(mount, "")):
            best = max(best, (mount, kind), key=lambda pair: len(pair[0]))
    return best[1]

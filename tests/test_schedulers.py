"""The tool under real schedulers: a Slurm of one node, on the loopback address."""

import re
import shutil
import time

import pytest

from support.process import wait_for
from support.slurm import PERIOD, Slurm, need_slurm

pytestmark = pytest.mark.network_engine

# The tool becomes the command; the tool waits for it, and forwards signals.
PLACES = {"kept": '-d "$TMPDIR"/env', "temporary": ""}
places = pytest.mark.parametrize("place", PLACES)

# Notes when it starts, in which directory, and each signal that it gets; goes on after SIGUSR1.
NOTING = """\
note() { echo "$1" >> "$NOTES"; }
trap 'note USR1' USR1
trap 'note TERM; exit 3' TERM
note "started $CONDA_PREFIX $(stat -c %i "$CONDA_PREFIX"/bin/hello)"
end=$(($(date +%s) + 200))
while [ "$(date +%s)" -lt $end ]; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def running_slurm():
    need_slurm()
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(running_slurm):
    yield running_slurm
    print(running_slurm.logs())  # which pytest shows where the test has failed


class Job:
    """A job of its own directory and TMPDIR, whose command is NOTING or another."""

    def __init__(self, slurm, folder, artifact, tiny, place):
        self.slurm, self.folder, self.place = slurm, folder, place
        self.tmp, self.notes = folder / "tmp", folder / "notes"
        self.tmp.mkdir(parents=True)
        shutil.copy(artifact, folder / "poncho_package_run.pyz")
        shutil.copy(tiny, folder / "env.tar.gz")
        (folder / "noting.sh").write_text(NOTING)

    def submit(self, *options, before="exec", archive="env.tar.gz"):
        tool = f"python3 poncho_package_run.pyz -e {archive} {PLACES[self.place]}"
        self.number = self.slurm.submit(
            f"{before} {tool} -- sh noting.sh", "--output=output", *options,
            cwd=self.folder, env={"TMPDIR": self.tmp, "NOTES": self.notes},
        )  # fmt: skip
        return self

    def wait_for_note(self, pattern, timeout=30.0):
        return wait_for(lambda: re.search(pattern, self.noted()), timeout, f"{pattern} noted")

    def noted(self):
        return self.notes.read_text() if self.notes.exists() else ""

    def end(self):
        """Its state at the end; nothing is left but what is to be kept."""
        state = self.slurm.wait_for_end(self.number)
        kept = ["env"] if self.place == "kept" else []
        assert sorted(path.name for path in self.tmp.iterdir()) == kept
        return state


@pytest.fixture
def job(slurm, artifact, tiny, tmp_path):
    jobs = []

    def job(place):
        folder = tmp_path / f"job{len(jobs)}"
        jobs.append(Job(slurm, folder, artifact, tiny, place))
        return jobs[-1]

    yield job
    for each in jobs:
        if hasattr(each, "number"):
            slurm.call("scancel", "--quiet", each.number)


@places
def test_scancel(job, place):
    cancelled = job(place).submit()
    cancelled.wait_for_note("started")
    cancelled.slurm.call("scancel", cancelled.number)
    assert cancelled.end() == "CANCELLED"
    assert re.search("^TERM$", cancelled.noted(), re.MULTILINE)


@places
def test_scancel_while_it_unpacks(job, place):
    """The rest of the archive does not come: of the half that is there, nothing stays."""
    half = "(head -c 300 env.tar.gz; exec sleep 100) | exec"
    cancelled = job(place).submit(before=half, archive="/dev/stdin")
    wait_for(lambda: list(cancelled.tmp.rglob("*poncho_package_run*")), what="its directory")
    cancelled.slurm.call("scancel", cancelled.number)
    state = cancelled.slurm.wait_for_end(cancelled.number)
    assert (state, list(cancelled.tmp.iterdir()), cancelled.noted()) == ("CANCELLED", [], "")


@places
def test_signal(job, place):
    """To the command itself, each once, and it runs on."""
    signalled = job(place).submit()
    signalled.wait_for_note("started")
    for number in (1, 2):
        signalled.slurm.call("scancel", "--batch", "--signal=USR1", signalled.number)
        signalled.wait_for_note("(USR1\n){%d}" % number)
    assert signalled.slurm.state(signalled.number) == "RUNNING"
    assert signalled.noted().count("USR1") == 2


@pytest.mark.slow
def test_time_limits(job):
    """The limits, and the signals before them, of several jobs at once.

    Slurm looks twice a minute for jobs whose time is up, so that this takes half a minute.
    """
    limited = [job(place).submit() for place in PLACES]
    # A limit of one minute is the least, and this signal is the earliest then.
    warned = [job(place).submit("--time=1", "--signal=B:USR1@30") for place in PLACES]
    for each in [*limited, *warned]:
        each.wait_for_note("started")
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
    for each in limited:
        each.slurm.call("scontrol", "update", f"JobId={each.number}", f"EndTime={soon}")
    for each in limited:
        each.wait_for_note("(?m)^TERM$", PERIOD + 30)
        assert each.end() == "TIMEOUT"
    for each in warned:
        each.wait_for_note("(?m)^USR1$", PERIOD + 30)


@pytest.mark.slow
def test_requeue(job):
    """The command is ended and started again, in the same kept environment."""
    requeued = [job(place).submit() for place in PLACES]
    for each in requeued:
        each.wait_for_note("started")
        each.slurm.call("scontrol", "requeue", each.number)
    for each in requeued:
        each.wait_for_note("TERM\n(.*\n)*started.*\n", 60)
        first, second = re.findall("started (.*)\n", each.noted())
        assert (first == second) == (each.place == "kept")
        # Of the first run nothing is left beside what the second uses.
        assert len(list(each.tmp.iterdir())) == 1
        each.slurm.call("scancel", each.number)
        assert each.end() == "CANCELLED"

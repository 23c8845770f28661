"""A real Slurm of one node, on the loopback address, bounded in time and gone after the tests.

As Debian packages it: munge, slurm-client, slurmctld and slurmd, release 22.05.  Nothing of it is
started by an init system, and nothing outside its own folder is read or written.
"""

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from . import commands
from .process import marked, marking, wait_for

KILL_WAIT = 5
"""Seconds between SIGTERM and SIGKILL."""

PERIOD = 30
"""Seconds between two looks of slurmctld at the time limits; it cannot be set."""

# No cgroups, which a container may not have; more processors than there are, so that jobs run side
# by side on any machine; a requeued job is held back for as long as a credential lives, of which
# five seconds are the least.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=1000
SlurmdParameters=config_overrides
KillWait={kill_wait}
OverTimeLimit=0
MinJobAge=300
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32
PartitionName=all Nodes=node Default=YES
"""


def need_slurm() -> None:
    """Skips the test, or fails it under PONCHO_CI=1, where Slurm cannot be run."""
    if os.geteuid() != 0:
        commands.missing("needs root, to run Slurm's daemons")
    for program in ("munged", "sbatch", "slurmctld", "slurmd"):
        commands.need(program)


class Slurm:
    """One controller and one node, to be used as a context manager.

    Attributes:
        tmp (Path): TMPDIR of the jobs that are given no other.
        environ (dict): what daemons and jobs get as environment.  A variable in it marks every
            process that descends from them, whatever became of its parents.
    """

    def __init__(self) -> None:
        # Not in pytest's own directory: the path of a socket has 107 bytes at most.
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.tmp = self.folder / "tmp"
        for each in ("tmp", "state", "spool"):
            (self.folder / each).mkdir()
        self._mark, self.environ = marking(
            USER="root", TMPDIR=str(self.tmp), SLURM_CONF=str(self.folder / "slurm.conf")
        )
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Slurm":
        try:
            self._start_all()
        except BaseException:
            print(self.logs())
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=host, folder=self.folder, ports=_free_ports(2), kill_wait=KILL_WAIT
            )
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        # Forced, it only warns of a folder that other users may not enter.
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        wait_for((self.folder / "munge.socket").exists, 30, "munged")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        wait_for(self._is_idle, 60, "the node to be idle")

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as file:
            process = subprocess.Popen(
                command, env=self.environ, cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started.append(process)

    def _is_idle(self) -> bool:
        for process in self._started:
            assert process.poll() is None, f"{process.args!r} ended: {process.returncode}"
        asked = self._run("sinfo", "--noheader", "--format=%t")
        return asked.stdout.strip() == "idle"

    def __exit__(self, *_error: object) -> None:
        # The daemons first, which would start more, and end what they have started to help them.
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # More than once: one may have forked as they were listed.
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended by itself after it was listed
            time.sleep(0.05)
        self._temporary.cleanup()

    def _run(self, *command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        options = {"cwd": self.folder, "env": self.environ, **options}
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False, **options,
        )  # fmt: skip

    def call(self, *command: str, **options: Any) -> str:
        """What a command of Slurm prints; ``options`` go to subprocess.run."""
        done = self._run(*command, **options)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{self.logs()}"
        return done.stdout

    def submit(
        self, script: Union[str, Path], *options: str, cwd: Path,
        env: Mapping[str, Union[str, Path]] = {},
    ) -> str:  # fmt: skip
        """Queue a batch script, its path or one shell line; the number of the job."""
        what = [str(script)] if isinstance(script, Path) else [f"--wrap={script}"]
        variables = {**self.environ, **{name: str(value) for name, value in env.items()}}
        return self.call("sbatch", "--parsable", *options, *what, cwd=cwd, env=variables).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, CANCELLED, ...: of an array, each that its tasks are in."""
        told = self.call("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        return " ".join(sorted(set(told.split())))

    def wait_for_end(self, job: str, timeout: float = 60) -> str:
        """The state of a job that has ended, and of which no process runs any more."""
        going_on = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
        try:
            wait_for(lambda: not going_on & set(self.state(job).split()), timeout, "its end")
            wait_for(lambda: not self.processes(job), timeout, "its processes' end")
        except AssertionError as error:
            raise AssertionError(f"job {job}, {self.state(job)}: {error}\n{self.logs()}")
        return self.state(job)

    def processes(self, job: str = "") -> list[int]:
        """Every living process of this Slurm, or only of the command of one job."""
        return marked(self._mark, *([f"SLURM_JOB_ID={job}"] if job else []))

    def logs(self) -> str:
        """The last lines of what the daemons have written."""
        told = []
        # What they print is the same, but it is there before there is a log.
        for pattern, count in (("*.out", 5), ("*.log", 30)):
            for path in sorted(self.folder.glob(pattern)):
                lines = path.read_text(errors="replace").splitlines()
                told += [f"--- {path.name}", *lines[-count:]]
        return "\n".join(told)


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to whoever asks for any."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports on the loopback address")

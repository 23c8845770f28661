"""A real Work Queue manager and its workers, on the loopback address and bounded in time.

As Debian packages them: coop-computing-tools and python3-workqueue, release 9.9.
"""

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from . import commands
from .process import marked, marking, wait_for

PYTHON = "/usr/bin/python3"
_MANAGER = Path(__file__).with_name("manager.py")


def need_work_queue() -> None:
    """Skips the test, or fails it under PONCHO_CI=1, where Work Queue is not installed."""
    commands.need("work_queue_worker")
    asked = subprocess.run(
        [PYTHON, "-I", "-c", "import work_queue, dill"], capture_output=True, check=False
    )
    if asked.returncode:
        commands.missing(
            "needs Work Queue: apt-get install coop-computing-tools python3-workqueue python3-dill"
        )


class WorkQueue:
    """One manager and its workers, to be used as a context manager.

    Attributes:
        sandboxes (Path): the workers' ``--workdir``; empty once they have ended.
        tmp (Path): the workers' TMPDIR.
        environ (dict): what workers and the manager get as environment.  A variable in it marks
            every process that descends from them, whatever became of its parents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sandboxes = folder / "sandboxes"
        self.tmp = folder / "worker-tmp"
        for each in (self.sandboxes, self.tmp, folder / "manager-tmp"):
            each.mkdir(parents=True)
        self._mark, self.environ = marking(
            CATALOG_HOST="127.0.0.1",
            TMPDIR=str(self.tmp),
            # A worker that outlives its test must not find the next test's manager at its port.
            TCP_LOW_PORT=str(random.randrange(20000, 30000)),
        )
        self.port = 0
        self._manager: Optional[subprocess.Popen[bytes]] = None
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "WorkQueue":
        return self

    def __exit__(self, *_error: object) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself after it was listed
        for process in self._started:
            process.wait()

    def submit(self, *tasks: dict[str, Any], path: str = "") -> None:
        """Start the manager with these tasks (see manager.py), ``path`` before its PATH."""
        described = self.folder / "tasks.json"
        described.write_text(json.dumps(tasks))
        path = os.pathsep.join([path, self.environ["PATH"]])
        self.start_manager([PYTHON, "-I", _MANAGER, described], {"PATH": path})
        self.port = int(wait_for(lambda: self._lines()[:1], what="the manager's port")[0])

    def start_manager(
        self, command: list[Any], variables: dict[str, str], cwd: Optional[Path] = None
    ) -> "subprocess.Popen[bytes]":
        """Start a manager program, any; what it prints is in ``printed``."""
        variables = {"TMPDIR": str(self.folder / "manager-tmp"), **variables}
        self._manager = self._start(command, "manager.out", variables, cwd)
        return self._manager

    def _start(
        self, command: list[Any], out: str, variables: dict[str, str], cwd: Optional[Path] = None
    ) -> "subprocess.Popen[bytes]":
        with open(self.folder / out, "ab") as file:
            process = subprocess.Popen(
                command, env={**self.environ, **variables}, cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    @property
    def printed(self) -> str:
        """What the manager has printed so far."""
        return (self.folder / "manager.out").read_text()

    def _lines(self) -> list[str]:
        assert self._manager and self._manager.poll() is None, f"manager ended: {self.printed}"
        # The last one may not be whole yet.
        return self.printed.split("\n")[:-1]

    def start_worker(
        self, cores: int = 2, wrapper: tuple[Any, ...] = (), variables: Mapping[str, str] = {}
    ) -> "subprocess.Popen[bytes]":
        """A worker for this manager, run by ``wrapper``; it leaves when the manager does.

        Args:
            variables: what its environment has more, and so that of its tasks.
        """
        command = [
            *wrapper, "work_queue_worker", "--single-shot", "--timeout", "30",
            "--workdir", self.sandboxes, "--cores", str(cores),
            "--memory", "4000", "--disk", "4000", "127.0.0.1", str(self.port),
        ]  # fmt: skip
        return self._start(command, "worker.out", dict(variables))

    def start_factory(self, wrapper: str, *inputs: Path) -> "subprocess.Popen[bytes]":
        """A factory that starts one worker, by ``wrapper`` and with ``inputs`` beside it.

        This is what its option --python-package stands for, but in 9.9 that one puts the
        names of the inputs where the wrapper belongs, and no worker starts.  Stopped, it
        ends the worker's shell alone; the worker leaves after 5 idle seconds.
        """
        scratch = self.folder / "factory"
        scratch.mkdir()
        for path in inputs:
            shutil.copy(path, scratch)
        command = [
            "work_queue_factory", "--batch-type", "local", "--catalog", "127.0.0.1:9097",
            "--min-workers", "1", "--max-workers", "1", "--timeout", "5", "--wrapper", wrapper,
            "--scratch-dir", scratch, "127.0.0.1", str(self.port),
        ]  # fmt: skip
        return self._start(command, "factory.out", {})

    def results(self, count: int) -> list[dict[str, Any]]:
        """The reports of ``count`` tasks, once so many have ended, in the order of submission."""
        lines = wait_for(
            lambda: self._lines() if len(self._lines()) > count else None, 90,
            f"{count} results of the manager",
        )  # fmt: skip
        return sorted(map(json.loads, lines[1:]), key=lambda report: report["number"])

    def processes(self) -> list[int]:
        """Every living process that descends from this manager or its workers."""
        return marked(self._mark)

    def stop(self, worker: "subprocess.Popen[bytes]") -> None:
        """End a worker as a batch system does, and wait until nothing of it is left."""
        worker.terminate()
        worker.wait(30)
        assert self._manager
        manager = self._manager.pid
        wait_for(lambda: set(self.processes()) <= {manager}, 30, "the last task to end")

    def leftovers(self) -> list[Path]:
        """What is still in the workers' directories."""
        return [*self.sandboxes.rglob("*"), *self.tmp.rglob("*")]

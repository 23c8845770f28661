"""The README's recipes: its own text, run as the engine or scheduler that it is for runs it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import conda_pack
import pytest

from support import commands, readme
from support.process import wait_for
from support.work_queue import PYTHON, WorkQueue, need_work_queue

PI = """\
import os, random, sys
assert sys.prefix == os.environ["CONDA_PREFIX"], "not in the environment"
random.seed(int(sys.argv[1]))
inside = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(1000))
print(inside / 250)
"""


@pytest.fixture
def project(tmp_path, artifact, environment):
    """A directory with what every recipe ships."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(artifact, folder / "poncho_package_run.pyz")
    shutil.copy(environment.archive(n_threads=4), folder / "env.tar.gz")
    (folder / "pi.py").write_text(PI)
    return folder


def is_pi(text):
    return 2.5 < float(text) < 3.8


@pytest.mark.network_engine
def test_work_queue_manager(project, environment, tmp_path):
    need_work_queue()
    text = readme.block("tests/test_recipes.py::test_work_queue_manager")
    assert len(text.splitlines()) <= 40
    (project / "manager.py").write_text(text)
    # Debian's Python has work_queue; conda_pack comes from the one that runs this.
    modules = os.path.dirname(os.path.dirname(conda_pack.__file__))
    (project / "env.tar.gz").unlink()
    with WorkQueue(tmp_path / "engine") as engine:
        manager = engine.start_manager(
            [PYTHON, "manager.py", environment.prefix],
            {"PYTHONPATH": modules},
            cwd=project,
        )
        told = wait_for(
            lambda: re.search(r"work_queue_worker HOST (\d+)\n", engine.printed), 60, "the port"
        )
        engine.port = int(told[1])
        engine.start_worker()
        assert manager.wait(90) == 0, engine.printed
        said = re.search(r"pi is about (\S+), says 20 tasks' mean\n", engine.printed)
        assert said and is_pi(said[1]), engine.printed


def test_gnu_parallel(project, variables, tmp_path):
    commands.need("parallel")
    line = readme.block("tests/test_recipes.py::test_gnu_parallel")
    home = os.fsencode(tmp_path / "parallel")
    done = subprocess.run(
        ["sh", "-c", line], cwd=project, env={**variables, b"PARALLEL_HOME": home},
        stdout=subprocess.PIPE, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert [is_pi(said) for said in done.stdout.split()] == [True] * 4
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["env"]


def test_slurm_job_array(project, variables, tmp_path):
    """Three tasks of one array at once, on one node."""
    (project / "script").write_text(readme.block("tests/test_recipes.py::test_slurm_job_array"))

    def task(number):
        job = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(number), "USER": "me"}
        return subprocess.run(
            ["sh", "script"], cwd=project, stdout=subprocess.PIPE, timeout=120,
            env={**variables, **{os.fsencode(k): os.fsencode(v) for k, v in job.items()}},
        )  # fmt: skip

    with ThreadPoolExecutor() as node:
        done = list(node.map(task, (1, 2, 3)))
    assert [each.returncode for each in done] == [0] * 3
    assert [is_pi(each.stdout) for each in done] == [True] * 3
    assert len({each.stdout for each in done}) > 1
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["env-me-4711"]


def test_htcondor(project, variables, tmp_path):
    """As a starter does: inputs copied to a scratch directory, the executable under a new name."""
    text = readme.block("tests/test_recipes.py::test_htcondor")
    job = dict(re.findall(r"^(\w+) += (.*)$", text, re.MULTILINE))
    [arguments] = re.findall(r'^"(.*)"$', job["arguments"])
    for process in ("0", "1"):
        scratch = tmp_path / f"dir_{process}"
        scratch.mkdir()
        for name in re.split(", *", job["transfer_input_files"]):
            shutil.copy(project / name, scratch)
        shutil.copy(project / job["executable"], scratch / "condor_exec.exe")
        (scratch / "condor_exec.exe").chmod(0o755)
        transferred = sorted(scratch.iterdir())
        done = subprocess.run(
            ["./condor_exec.exe", *arguments.replace("$(Process)", process).split()],
            cwd=scratch, stdout=subprocess.PIPE, timeout=120,
            env={**variables, b"TMPDIR": os.fsencode(scratch)},
        )  # fmt: skip
        assert done.returncode == 0 and is_pi(done.stdout)
        # What is new in the scratch directory would be transferred back.
        assert sorted(scratch.iterdir()) == transferred


def test_parsl(project, variables):
    if importlib.util.find_spec("parsl") is None:
        commands.missing("needs parsl: pip install parsl")
    (project / "recipe.py").write_text(readme.block("tests/test_recipes.py::test_parsl"))
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=project, env=variables, stdout=subprocess.PIPE,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"[0, 0, 0, 0]\n")
    assert [is_pi(Path(project, f"pi.{seed}").read_text()) for seed in range(4)] == [True] * 4

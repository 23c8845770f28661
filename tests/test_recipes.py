"""The README's recipes: its own text, run as the engine or scheduler that it is for runs it."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import conda_pack
import pytest
import venv_pack
from packaging.requirements import Requirement

from support import commands, readme
from support.process import group_members, wait_for
from support.slurm import Slurm, need_slurm
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


def need_module(name, package=None):
    if importlib.util.find_spec(name) is None:
        commands.missing(f"needs {package or name}: pip install {package or name}")


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


@pytest.mark.network_engine
def test_slurm_job_array(project):
    """Forty tasks, up to 32 of them at once on one node: one unpacks, for the next array too."""
    need_slurm()
    (project / "script").write_text(readme.block("tests/test_recipes.py::test_slurm_job_array"))
    with Slurm() as slurm:

        def array(tasks):
            number = slurm.submit(
                project / "script", f"--array={tasks[0]}-{tasks[-1]}", cwd=project,
                env={"PONCHO_PACKAGE_RUN_DEBUG": "yes"},
            )  # fmt: skip
            state = slurm.wait_for_end(number, 120)
            printed = [(project / f"pi.{task}").read_text() for task in tasks]
            assert state == "COMPLETED", printed
            return printed

        printed = array(range(1, 41))
        [cache] = slurm.tmp.iterdir()
        assert cache.name == f"envs-{os.getuid()}"
        archive = hashlib.sha256((project / "env.tar.gz").read_bytes()).hexdigest()
        assert [path.name for path in cache.iterdir() if path.name[0] != "."] == [archive]
        assert not any(map(unpacked, array(range(41, 43))))
    results = [text.splitlines()[-1] for text in printed]
    assert [is_pi(result) for result in results] == [True] * 40
    assert len(set(results)) > 10
    assert len(list(filter(unpacked, printed))) == 1


def unpacked(text):
    return "poncho_package_run: unpack: " in text


def test_htcondor(project, variables, tmp_path):
    """As a starter does: inputs copied to a scratch directory, the executable under a new name."""
    text = readme.block("tests/test_recipes.py::test_htcondor")
    job = dict(re.findall(r"^(\w+) += (.*)$", text, re.MULTILINE))
    [arguments] = re.findall(r'^"(.*)"$', job["arguments"])
    [(name, folder)] = re.findall(r'^"(\w+)=(\S+)"$', job["environment"])
    cache = tmp_path / Path(folder.replace("$ENV(USER)", "me")).relative_to("/")
    environment = {name: cache, "PONCHO_PACKAGE_RUN_DEBUG": "yes"}
    told = []
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
            cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
            env={**variables, **environment, b"TMPDIR": os.fsencode(scratch)},
        )  # fmt: skip
        assert done.returncode == 0 and is_pi(done.stdout)
        # What is new in the scratch directory would be transferred back.
        assert sorted(scratch.iterdir()) == transferred
        told.append(unpacked(done.stderr.decode()))
    assert told == [True, False]


def test_parsl(project, variables):
    need_module("parsl")
    (project / "recipe.py").write_text(readme.block("tests/test_recipes.py::test_parsl"))
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=project, env=variables, stdout=subprocess.PIPE,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"[0, 0, 0, 0]\n")
    assert [is_pi(Path(project, f"pi.{seed}").read_text()) for seed in range(4)] == [True] * 4


@pytest.mark.network_engine
def test_dask_jobqueue(project, variables):
    """With real workers in the environment: a venv with a copy of the distributed that is here.

    Its interpreter and standard library are those that the venv links to, as venv-pack has it.
    """
    need_module("dask_jobqueue", "dask-jobqueue")
    archive_with(project / "env.tar.gz", "distributed")
    (project / "recipe.py").write_text(readme.block("tests/test_recipes.py::test_dask_jobqueue"))
    loopback = {b"DASK_JOBQUEUE__LOCAL__INTERFACE": b"lo"}
    started = subprocess.Popen(
        [sys.executable, "recipe.py"], cwd=project, env={**variables, **loopback},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed = started.communicate(timeout=120)[0].splitlines()
        assert started.returncode == 0
        results, prefixes = map(str.split, printed)
        assert [is_pi(result) for result in results] == [True] * 4 and len(set(results)) > 1
        assert set(prefixes) == {str(project / "env")}
        # The cluster kills what it has started; what that has started notices.
        wait_for(lambda: not group_members(started.pid), 30, "the workers' end")
    finally:
        for pid in group_members(started.pid):
            os.kill(pid, signal.SIGKILL)
        started.wait()


def archive_with(archive, distribution):
    """Pack a virtual environment with ``distribution``, and what that needs, as installed here."""
    folder = archive.with_name("venv")
    venv.EnvBuilder(symlinks=True).create(folder)
    [site_packages] = folder.glob("lib/python*/site-packages")
    found, wanted = set(), [distribution]
    while wanted:
        installed = importlib.metadata.distribution(wanted.pop())
        if installed.name in found:
            continue
        found.add(installed.name)
        for requirement in map(Requirement, installed.requires or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for file in installed.files:
            if file.suffix != ".pyc" and not {"..", "tests"} & set(file.parts):
                (site_packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), site_packages / file)
    venv_pack.pack(prefix=str(folder), output=str(archive), compress_level=1, force=True)
    shutil.rmtree(folder)


# What the README promises of its prefix, and that a failure is one, wherever it is.
HARD_RULES = r"""
include: "recipe"

rule hard:
    output: "hard"
    shell:
        '''
        # the first line is none
        for word in "it's" '"quoted"' '$HOME'; do echo "$word"; done > {output}
        cd . && python -c 'import sys; print(sys.prefix)' | cat >> {output}
        '''

rule failing:
    output: "failing"
    shell: "false | cat > {output}; true"
"""


def test_snakemake(project, variables):
    need_module("snakemake")
    (project / "recipe").write_text(readme.block("tests/test_recipes.py::test_snakemake"))
    (project / "hard_rules").write_text(HARD_RULES)

    def snakemake(file, target):
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", file, target],
            cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
            env={**variables, b"XDG_CACHE_HOME": os.fsencode(project / "cache")},
        )  # fmt: skip

    done = snakemake("recipe", "all")
    assert done.returncode == 0, done.stdout
    assert [is_pi((project / f"pi.{seed}").read_text()) for seed in range(4)] == [True] * 4
    done = snakemake("hard_rules", "hard")
    assert done.returncode == 0, done.stdout
    said = (project / "hard").read_text().splitlines()
    assert said == ["it's", '"quoted"', "$HOME", str(project / "env")]
    assert snakemake("hard_rules", "failing").returncode == 1

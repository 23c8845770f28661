"""The tool under a real Work Queue: a manager, workers and tasks on the loopback address."""

import json
import os
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest

from support.process import wait_for
from support.work_queue import PYTHON, WorkQueue, need_work_queue

pytestmark = pytest.mark.network_engine

# What a task runs: into a directory that the worker's tasks share; into the TMPDIR that the worker
# sets, which goes with the task's sandbox; into one that outlives the worker, as sites set.
KEPT = './poncho_package_run --unpack-to "$WORK_QUEUE_SANDBOX"/env'
TEMPORARY = "./poncho_package_run"
ELSEWHERE = "TMPDIR={tmp} ./poncho_package_run"
PLACES = (KEPT, TEMPORARY, ELSEWHERE)

# The worker kills a task's process group.  In 9.9 it makes that group from outside, and where the
# task's shell was quicker there is none: the worker then waits for ever for what it cannot kill.
GROUP = "import os, sys; os.setpgid(0, 0); os.execvp('sh', ['sh', '-c', sys.argv[1]])"


@pytest.fixture
def engine(tmp_path):
    need_work_queue()
    with WorkQueue(tmp_path / "engine") as engine:
        yield engine


@pytest.fixture
def task(engine, artifact, tiny):
    """Describes a task that runs a command line in the tiny environment."""

    def describe(
        command, place=KEPT, after="", before="", archive="env.tar.gz", group=False, **more
    ):
        line = f"{before}{place.format(tmp=engine.tmp)} -e {archive} -- {command}{after}"
        return {
            "command": shlex.join(["exec", PYTHON, "-c", GROUP, line]) if group else line,
            # Both are sent once, and hard-linked into every sandbox.
            "inputs": {"poncho_package_run": str(artifact), "env.tar.gz": str(tiny)},
            **more,
        }

    return describe


@pytest.fixture
def leftovers_of_killed(engine, run, tiny):
    """What is left on the machine after SIGKILL and one more run of the tool there."""

    def leftovers():
        run("-e", tiny, check=True, env={"TMPDIR": engine.tmp})
        return engine.leftovers()

    return leftovers


def test_twenty_tasks_share_one_unpacking(engine, task):
    """All twenty see one directory: the same completion marker, the same file, not a copy of it."""
    show = """sh -c 'cat "$CONDA_PREFIX"/.poncho_package_run_expanded
                     stat -c " %i %Z" "$CONDA_PREFIX"/bin/hello; hello task {}'"""
    engine.submit(*(task(show.format(number)) for number in range(20)))
    engine.start_worker(cores=8)
    results = engine.results(20)
    assert [result["status"] for result in results] == [0] * 20, results
    lines = [result["output"].splitlines() for result in results]
    assert [each[-1].split()[-2:] for each in lines] == [["task", str(n)] for n in range(20)]
    [shared] = {"\n".join(each[:-1]) for each in lines}
    marker, _end = json.JSONDecoder().raw_decode(shared)
    assert os.path.dirname(os.path.dirname(marker["prefix"])) == str(engine.sandboxes)


def test_twenty_tasks_with_temporary_environments(engine, task):
    show = """sh -c 'echo "$CONDA_PREFIX"; ls -d "$CONDA_PREFIX"; hello task {}'"""
    places = [TEMPORARY, ELSEWHERE] * 10
    engine.submit(*(task(show.format(number), place) for number, place in enumerate(places)))
    worker = engine.start_worker(cores=2)
    results = engine.results(20)
    assert [result["status"] for result in results] == [0] * 20, results
    prefixes = set()
    for number, result in enumerate(results):
        prefix, found, said = result["output"].splitlines()
        assert prefix == found and said.endswith(f"task {number}")
        prefixes.add(prefix)
    assert len(prefixes) == 20
    assert [prefix for prefix in prefixes if os.path.exists(prefix)] == []
    engine.stop(worker)
    assert engine.leftovers() == []


def test_tasks_share_a_cache(engine, task, tmp_path):
    """The worker's variable is enough: they name no directory, and one unpacks for all of them."""
    cache = tmp_path / "cache"
    show = """sh -c 'stat -c "%n %i %Z" "$CONDA_PREFIX"/bin/hello; hello task {}'"""
    engine.submit(*(task(show.format(number), TEMPORARY) for number in range(20)))
    variables = {"PONCHO_PACKAGE_RUN_CACHE": str(cache), "PONCHO_PACKAGE_RUN_DEBUG": "yes"}
    worker = engine.start_worker(variables=variables)
    results = engine.results(20)
    assert [result["status"] for result in results] == [0] * 20, results
    lines = [result["output"].splitlines() for result in results]
    assert [each[-1] for each in lines] == [f"hello task {number}" for number in range(20)]
    [shared] = {each[-2] for each in lines}
    assert os.path.dirname(shared.partition("/bin/hello ")[0]) == str(cache)
    assert str(lines).count("poncho_package_run: unpack: ") == 1
    # It outlives the worker, whose own directories are empty.
    engine.stop(worker)
    assert engine.leftovers() == []
    assert os.path.exists(shared.partition(" ")[0])


def test_exit_status_reaches_the_manager(engine, task):
    engine.submit(
        *(task("sh -c 'exit 7'", place) for place in PLACES),
        *(task("sh -c 'kill -TERM $$'", place) for place in PLACES),
    )
    worker = engine.start_worker()
    *exited, killed, temporary, elsewhere = engine.results(6)
    assert [result["status"] for result in exited] == [7, 7, 7], exited
    assert (temporary["status"], elsewhere["status"]) == (128 + 15, 128 + 15)
    # With a kept environment the tool became the command: Work Queue itself sees the signal.
    assert killed["status"] in (15, 128 + 15), killed
    engine.stop(worker)
    assert engine.leftovers() == []


def test_tasks_over_their_run_time(engine, task, leftovers_of_killed):
    """What the worker's SIGKILL leaves behind ends by itself and takes its directory with it.

    With a second command after it the tool is the shell's child, and the signal hits the shell
    alone; without one, the shell has become the tool.
    """
    tasks = [
        task("sh -c 'hello; sleep 12'", place, after, seconds=1)
        for place in PLACES
        for after in ("", "; exit")
    ]
    # These go on unpacking when the sandbox has been deleted under them.
    late = {"before": "exec 4< env.tar.gz; (sleep 12; cat <&4) | ", "archive": "/dev/stdin"}
    tasks += [task("hello", place, "; exit", seconds=1, **late) for place in PLACES]
    engine.submit(*tasks)
    worker = engine.start_worker(cores=len(tasks))
    results = [result["result"] for result in engine.results(len(tasks))]
    assert results == [results[0]] * len(tasks) and "TIME" in results[0], results
    engine.stop(worker)
    assert leftovers_of_killed() == []


def test_cancelled_tasks(engine, task, tmp_path, leftovers_of_killed):
    started = [tmp_path / f"started{number}" for number in range(len(PLACES))]
    cancelled = [
        task(f"sh -c 'hello > {path}; sleep 300'; exit", place, group=True, cancel_when=str(path))
        for place, path in zip(PLACES, started)
    ]
    engine.submit(*cancelled, task("sh -c 'hello; sleep 2'"))
    worker = engine.start_worker(cores=4)
    wait_for(lambda: all(path.exists() for path in started), what="the tasks to start")
    [result] = engine.results(1)
    assert (result["number"], result["status"]) == (3, 0), result
    # The worker is alive yet: it was the cancelling that ended the others.
    wait_for(lambda: not running(engine, "sleep"), what="the cancelled tasks to end")
    engine.stop(worker)
    assert leftovers_of_killed() == []


def test_worker_stopped_by_its_batch_system(engine, task, tmp_path, leftovers_of_killed):
    started = [tmp_path / f"started{number}" for number in range(len(PLACES))]
    command = "sh -c 'if [ -e {0} ]; then hello; else hello > {0}; sleep 300; fi'; exit"
    engine.submit(
        *(task(command.format(path), place, group=True) for place, path in zip(PLACES, started))
    )
    worker = engine.start_worker(cores=3)
    wait_for(lambda: all(path.exists() for path in started), what="the tasks to start")
    engine.stop(worker)
    assert leftovers_of_killed() == []
    # Their manager gives the same tasks to the next worker, which finds nothing half done.
    worker = engine.start_worker()
    results = engine.results(3)
    assert [result["status"] for result in results] == [0, 0, 0], results
    engine.stop(worker)
    assert engine.leftovers() == []


@pytest.mark.parametrize("name", ["python_package_run", "poncho_package_run"])
def test_python_task(engine, artifact, tmp_path, name):
    """The manager finds the artifact on its PATH and builds the command line by itself."""
    submit_python_tasks(engine, artifact, tmp_path, name)
    worker = engine.start_worker()
    check_python_tasks(engine)
    engine.stop(worker)
    assert engine.leftovers() == []


def test_python_tasks_have_no_need_of_a_cache(engine, artifact, tmp_path):
    """Their command line names a directory, which they share: what it says is what is done."""
    submit_python_tasks(engine, artifact, tmp_path, "python_package_run")
    cache = tmp_path / "cache"
    engine.start_worker(variables={"PONCHO_PACKAGE_RUN_CACHE": str(cache)})
    check_python_tasks(engine)
    assert not cache.exists()


def submit_python_tasks(engine, artifact, folder, name):
    (folder / "bin").mkdir()
    shutil.copy(artifact, folder / "bin" / name)
    describe = {
        "function": "lambda x: (2 * x, __import__('os').environ['CONDA_PREFIX'],"
        " __import__('os').stat(__import__('os').environ['CONDA_PREFIX']).st_ino)",
        "environment": str(python_environment(folder)),
        "tool": name,
    }
    engine.submit(
        *({**describe, "args": [number]} for number in range(4)), path=str(folder / "bin")
    )


def check_python_tasks(engine):
    """They ran, in one directory, which is the worker's."""
    values = [eval(result["value"]) for result in engine.results(4)]
    assert [value for value, _prefix, _inode in values] == [0, 2, 4, 6]
    [(prefix, _inode)] = {(prefix, inode) for _value, prefix, inode in values}
    assert os.path.basename(prefix) == "env.tar.gz-env"
    assert engine.sandboxes in Path(prefix).parents


def test_worker_inside_an_environment(engine, task, artifact, tiny):
    """The tool runs a worker, whose tasks run the tool."""
    show = """sh -c 'echo "$CONDA_PREFIX"; hello inside'"""
    engine.submit(*(task(show, place) for place in (KEPT, TEMPORARY)))
    worker = engine.start_worker(wrapper=(PYTHON, artifact, "-e", tiny, "--"))
    results = engine.results(2)
    assert [result["status"] for result in results] == [0, 0], results
    for result in results:
        prefix, said = result["output"].splitlines()
        assert engine.sandboxes in Path(prefix).parents
        assert said == "hello inside"
    engine.stop(worker)
    assert engine.leftovers() == []


def test_factory(engine, artifact, tiny, tmp_path):
    """A factory starts its workers through the tool."""
    tool = tmp_path / "python_package_run"
    shutil.copy(artifact, tool)
    # The task itself has neither the tool nor the archive: it finds those of its worker.
    engine.submit({"command": "hello from the environment"})
    factory = engine.start_factory("./python_package_run -e tiny.tar.gz --", tool, tiny)
    [result] = engine.results(1)
    assert (result["status"], result["output"]) == (0, "hello from the environment\n")
    engine.stop(factory)
    assert engine.leftovers() == []


def running(engine, program):
    """The processes of this engine that run ``program``."""
    found = []
    for pid in engine.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text() == program + "\n":
                found.append(pid)
        except OSError:
            pass  # it ended after it was listed
    return found


def python_environment(folder):
    """An environment whose Python is Debian's, so that both ends of a PythonTask have one dill."""
    (folder / "conda-meta").mkdir()
    (folder / "conda-meta" / "history").touch()
    (folder / "python").symlink_to(PYTHON)
    archive = folder / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "conda-meta" / "history", "conda-meta/history")
        tar.add(folder / "python", "bin/python")
    return archive

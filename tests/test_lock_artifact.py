"""The writing lock as the artifact takes it: refused, granted to everybody, its holder gone."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter

import pytest
import storm

from support import commands, process, tracing
from support.messages import refused

COMPLETE = ".poncho_package_run_expanded"
UNPACKING = ".poncho_package_run_unpacking"
REFUSALS = ["ENOSYS", "ENOLCK", "EBADF", "ENOTSUPP", "EOPNOTSUPP", "EINVAL", "EIO"]


@pytest.fixture
def weather(artifact, environment, tmp_path):
    return storm.Storm(artifact, environment.archive(), tmp_path)


@pytest.mark.parametrize("when", ["1+", "2+"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_two_processes_unpack_once_when_one_is_refused(weather, refusal, when):
    other = [f"inject=flock:error={refusal}:when={when}"]
    result = weather.round([storm.TRACED, other], 2)
    assert result.failures == []
    assert result.unpackings == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", storm.WEATHERS)
def test_32_processes_unpack_once(weather, name):
    result = weather.round(storm.WEATHERS[name], 32)
    assert result.failures == []
    assert result.unpackings == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", storm.WEATHERS)
def test_a_killed_one_is_succeeded(weather, name):
    # Who is killed so late that it had published has no need of a successor: try again.
    for _ in range(3):
        result = weather.round(storm.WEATHERS[name], 12, kill=True)
        assert result.failures == []
        if result.killed:
            return
    raise AssertionError("none was caught at work")


@pytest.mark.slow
def test_100_processes(weather):
    result = weather.round(storm.WEATHERS["granted"], 100)
    assert result.failures == []
    assert result.runs == 100


def start_half(artifact, archive, target, before=()):
    """An unpacking that has set its marker and waits for the second half of its archive."""
    data = archive.read_bytes()
    worker = subprocess.Popen(
        [*before, sys.executable, artifact, "-e", "/dev/stdin", "-d", target, "date", "+%s.%N"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    worker.stdin.write(data[: len(data) // 2])
    worker.stdin.flush()
    process.wait_for((target / UNPACKING).exists)
    process.wait_for((target / UNPACKING).read_bytes)
    return worker, data[len(data) // 2 :]


@pytest.fixture
def half(artifact, tiny, tmp_path):
    """Start unpackings as ``start_half`` does; what is left of them is killed at the end."""
    workers = []

    def half(before=()):
        worker, rest = start_half(artifact, tiny, tmp_path / "kept", before)
        workers.append(worker)
        return worker, rest

    yield half
    for worker in workers:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()


def test_a_stopped_holder_is_named(run, half, tiny, tmp_path):
    worker, _ = half()
    os.kill(worker.pid, signal.SIGSTOP)
    before = time.monotonic()
    result = run("-e", tiny, "-d", tmp_path / "kept", "-w", "1", "hello")
    assert time.monotonic() - before >= 1
    refused(
        result,
        75,
        f"waited 1 s for the lock on {tmp_path / 'kept'}",
        f"pid {worker.pid} on host {os.uname().nodename}",
        "--wait-for-lock",
    )
    refused(run("-e", tiny, "-d", tmp_path / "kept", "-w", "0", "hello"), 75, "waited 0 s")


def test_a_stopped_holder_is_named_where_locks_are_refused(artifact, run, half, tiny, tmp_path):
    before = tracing.failing("flock", "ENOLCK")
    worker, _ = half(before)
    (pid,) = process.children_of(worker.pid)
    os.kill(pid, signal.SIGSTOP)
    words = ["-e", tiny, "-d", tmp_path / "kept", "-w", "0.5", "hello"]
    for start in ([], before):
        result = subprocess.run([*start, sys.executable, artifact, *words], capture_output=True)
        refused(result, 75, f"pid {pid} on host {os.uname().nodename}")


def test_waiters_run_within_a_tenth_of_a_second(half, spawn, tiny, tmp_path):
    # Of each start, the moment at which the command runs; the median, and the best of three
    # rounds, because the machine may be busy.
    delays = []
    for _ in range(3):
        worker, rest = half()
        words = ["-e", tiny, "-d", tmp_path / "kept", "date", "+%s.%N"]
        waiters = [spawn(*words) for _ in range(6)]
        time.sleep(1)
        assert {each.poll() for each in waiters} == {None}
        released = float(worker.communicate(rest, timeout=60)[0])
        ends = [each.communicate(timeout=60) for each in waiters]
        assert {errors for _, errors in ends} == {b""}
        delays.append(statistics.median(float(end) - released for end, _ in ends))
        shutil.rmtree(tmp_path / "kept")
    assert min(delays) < 0.1


def test_flock_from_a_shell_is_waited_for_and_named(run, tiny, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    words = [commands.need("flock"), str(kept), "sleep", "60"]
    with subprocess.Popen(words, start_new_session=True) as shell:
        try:
            process.wait_for(lambda: process.children_of(shell.pid))
            result = run("-e", tiny, "-d", kept, "-w", "0", "hello")
            refused(result, 75, str(kept), f"pid {shell.pid} on host")
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True).stdout == b"hello\n"


def test_the_command_holds_no_lock(spawn, tiny, tmp_path):
    kept = tmp_path / "kept"
    command = spawn("-e", tiny, "-d", kept, "sh", "-c", "echo in; exec sleep 60")
    assert command.stdout.readline() == b"in\n"
    assert subprocess.run([commands.need("flock"), "-n", kept, "true"]).returncode == 0


CCTOOLS = """
    mkdir -p "$1"
    exec 9< "$1"
    flock 9 || exit 1
    if [ -z "$(ls -A "$1")" ]; then
        tar xzf "$2" -C "$1" && echo unpack: >&2
        touch "$1/%s"
    fi
    exec 9<&-
    "$1/bin/hello"
"""


def test_the_cctools_protocol_at_the_same_time(spawn, tiny, tmp_path):
    commands.need("flock")
    # Whoever unpacks, it happens once, and everybody finds the whole of it.
    for number in range(6):
        kept = tmp_path / f"kept-{number}"
        words = ["sh", "-c", CCTOOLS % COMPLETE, "sh", kept, tiny]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        shells = [subprocess.Popen(words, **pipes) for _ in range(4)]
        tools = [spawn("--debug", "-e", tiny, "-d", kept, "hello") for _ in range(4)]
        ends = [each.communicate(timeout=60) for each in shells + tools]
        assert [output for output, _ in ends] == [b"hello\n"] * 8, ends
        assert sum(errors.count(b"unpack:") for _, errors in ends) == 1
        assert UNPACKING not in os.listdir(kept)


@pytest.mark.root
@pytest.mark.slow
def test_who_was_stopped_on_another_node_loses_the_directory_and_leaves_it_alone(
    artifact, half, tiny, tmp_path
):
    # Locks are local to a node, and /proc does not reach across: only the marker's beat tells.
    if os.geteuid():
        pytest.skip("needs root: gives a process a host name of its own")
    kept = tmp_path / "kept"
    strace = tracing.strace("-e", "inject=flock:retval=0")
    rename = 'hostname elsewhere; exec "$@"'
    worker, rest = half([*strace, commands.need("unshare"), "--uts", "sh", "-c", rename, "sh"])
    (pid,) = process.children_of(worker.pid)
    assert json.loads((kept / UNPACKING).read_bytes())["host"] == "elsewhere"
    words = [*strace, sys.executable, artifact, "-e", tiny, "-d", kept]
    refused(subprocess.run([*words, "-w", "4", "hello"], capture_output=True), 75, "elsewhere")
    os.kill(pid, signal.SIGSTOP)
    successor = subprocess.run([*words, "hello"], capture_output=True)
    assert (successor.stdout, successor.stderr) == (b"hello\n", b"")
    before = {path: path.lstat() for path in kept.rglob("*") if not path.is_dir()}
    os.kill(pid, signal.SIGCONT)
    output, errors = worker.communicate(rest, timeout=60)
    assert (worker.returncode, output) == (74, b"")
    assert b"taken over by another process" in errors
    assert COMPLETE in os.listdir(kept)
    assert {path.name for path in before} == {p.name for p in kept.rglob("*") if not p.is_dir()}
    again = subprocess.run([*words, "hello"], capture_output=True)
    assert (again.stdout, again.stderr) == (b"hello\n", b"")


@pytest.mark.slow
def test_a_directory_is_relocated_by_one_though_locks_do_not_exclude(
    artifact, environment, tmp_path
):
    kept = tmp_path / "kept"
    source = environment.archive("no-archive")
    starts = [tracing.strace("-e", calls[0]) for calls in storm.WEATHERS["each his own"]]
    for _ in range(5):
        shutil.copytree(source, kept, symlinks=True)
        words = [sys.executable, artifact, "--debug", "-e", kept]
        running = [
            subprocess.Popen([*starts[index % 4], *words], stderr=subprocess.PIPE)
            for index in range(8)
        ]
        ends = [each.communicate(timeout=60)[1].decode() for each in running]
        assert Counter(each.returncode for each in running) == {0: 8}, ends
        ours = {name for name in os.listdir(kept) if name.startswith(".poncho_package_run")}
        assert ours == {COMPLETE}
        records = [int(re.search(r"(\d+) records in", end)[1]) for end in ends]
        assert sum(number > 0 for number in records) == 1, records
        program = subprocess.run([kept / "bin" / "showprefix"], capture_output=True)
        assert program.stdout.decode().splitlines()[0] == str(kept)
        shutil.rmtree(kept)

"""The writing lock as the artifact takes it: refused, granted to everybody, its holder gone."""

import os
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
from support.crash import MANIFEST, MARKER, private_directories
from support.messages import refused

REFUSALS = ["ENOSYS", "ENOLCK", "EBADF", "ENOTSUPP", "EOPNOTSUPP", "EINVAL", "EIO"]


@pytest.fixture
def weather(artifact, environment, tmp_path):
    def weather(mode="beside"):
        return storm.Storm(artifact, environment.archive(), tmp_path, mode)

    return weather


@pytest.mark.parametrize("when", ["1+", "2+"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_two_processes_agree_when_one_is_refused(weather, refusal, when):
    """Their locks do not exclude each other: it may cost an unpacking, nothing else."""
    other = [f"inject=flock:error={refusal}:when={when}"]
    assert weather().round([storm.TRACED, other], 2).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("name", storm.EXCLUDING)
@pytest.mark.parametrize("mode", ["beside", "inside"])
def test_32_processes_unpack_once(weather, name, mode):
    result = weather(mode).round(name, 32)
    assert result.failures == []
    assert result.unpackings == 1


@pytest.mark.parametrize("name", storm.EXCLUDING)
def test_those_who_share_a_cache_unpack_once(weather, name):
    result = weather("cache").round(name, 4)
    assert result.failures == []
    assert result.unpackings == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in storm.WEATHERS if name not in storm.EXCLUDING])
@pytest.mark.parametrize("mode", ["beside", "inside"])
def test_where_locks_do_not_exclude_all_use_one_whole_environment(weather, name, mode):
    assert weather(mode).round(name, 8).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("name", storm.WEATHERS)
def test_a_killed_one_is_succeeded(weather, name):
    # Who is killed so late that it had published has no need of a successor: try again.
    for _ in range(3):
        result = weather().round(name, 8, kill=True)
        assert result.failures == []
        if result.killed:
            return
    raise AssertionError("none was caught at work")


@pytest.mark.slow
def test_100_processes(weather):
    result = weather().round("granted", 100)
    assert result.failures == []
    assert (result.runs, result.unpackings) == (100, 1)


def start_half(artifact, archive, target, before=()):
    """An unpacking that has begun and waits for the second half of its archive."""
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
    # What it holds while it unpacks, it holds before it makes its private directory.
    process.wait_for(lambda: private_directories(target.parent))
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
    for _ in range(2):
        result = subprocess.run([*before, sys.executable, artifact, *words], capture_output=True)
        refused(result, 75, f"pid {pid} on host {os.uname().nodename}")


def test_waiters_run_within_a_tenth_of_a_second(half, spawn, tiny, tmp_path):
    # Of each start, the moment at which the command runs; the median, and the best of three
    # rounds, because the machine may be busy.  So busy that as many warm starts take as long.
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
        began = time.time()
        starts = [spawn(*words) for _ in range(6)]
        ends = [each.communicate(timeout=60) for each in starts]
        delays[-1] -= statistics.median(float(end) - began for end, _ in ends)
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
        date > "$1/%s"
    fi
    exec 9<&-
    "$1/bin/hello"
"""


def test_the_cctools_protocol_at_the_same_time(spawn, tiny, tmp_path):
    commands.need("flock")
    # Whoever unpacks, it happens once, and everybody finds the whole of it.
    for number in range(6):
        kept = tmp_path / f"kept-{number}"
        words = ["sh", "-c", CCTOOLS % MARKER, "sh", kept, tiny]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        shells = [subprocess.Popen(words, **pipes) for _ in range(4)]
        tools = [spawn("--debug", "-e", tiny, "-d", kept, "hello") for _ in range(4)]
        ends = [each.communicate(timeout=60) for each in shells + tools]
        assert [output for output, _ in ends] == [b"hello\n"] * 8, ends
        assert sum(errors.count(b"unpack:") for _, errors in ends) == 1, ends
        assert {name for name in os.listdir(kept) if "package_run" in name} <= {MARKER, MANIFEST}


@pytest.mark.slow
def test_a_directory_is_relocated_though_locks_do_not_exclude(artifact, environment, tmp_path):
    kept = tmp_path / "kept"
    source = environment.archive("no-archive")
    starts = [tracing.strace("-e", calls[0]) for calls in storm.WEATHERS["each his own"]]
    for _ in range(3):
        shutil.copytree(source, kept, symlinks=True)
        words = [sys.executable, artifact, "-e", kept]
        running = [
            subprocess.Popen([*starts[index % 4], *words], stderr=subprocess.PIPE)
            for index in range(8)
        ]
        ends = [each.communicate(timeout=60)[1].decode() for each in running]
        assert Counter(each.returncode for each in running) == {0: 8}, ends
        ours = {name for name in os.listdir(kept) if name.startswith(".poncho_package_run")}
        assert ours == {MARKER}
        program = subprocess.run([kept / "bin" / "showprefix"], capture_output=True)
        assert program.stdout.decode().splitlines()[0] == str(kept)
        config = kept / "share" / "showprefix" / "config.ini"
        assert config.read_text() == f"root = {kept}\nlib = {kept}/lib\n"
        shutil.rmtree(kept)


def test_a_lock_that_another_holds_for_good_is_not_waited_for_where_it_is_complete(
    run, tiny, tmp_path
):
    kept = tmp_path / "kept"
    run("-e", tiny, "-d", kept, check=True)
    with subprocess.Popen(
        [commands.need("flock"), str(kept), "sleep", "60"], start_new_session=True
    ) as shell:
        try:
            process.wait_for(lambda: process.children_of(shell.pid))
            assert run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True).stdout == b"hello\n"
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize("error, status", [("EPERM", 0), ("ENOSPC", 74)])
def test_what_is_no_refusal_of_locks_is_told_or_done_without(run, tiny, tmp_path, error, status):
    kept = tmp_path / "kept"
    result = run("-e", tiny, "-d", kept, "hello", wrapper=tracing.failing("flock", error))
    assert result.returncode in (0, 73, status), result
    if result.returncode:
        refused(result, result.returncode, str(kept))
        assert not kept.exists()


@pytest.mark.parametrize("locks", ["granted", "refused"])
def test_two_names_of_a_directory_lead_to_one_lock(run, half, tiny, tmp_path, locks):
    (tmp_path / "link").symlink_to(tmp_path)
    before = [] if locks == "granted" else tracing.failing("flock", "ENOLCK")
    half(before)
    for name in ("link/kept", "./kept", "tmp/../kept/"):
        words = ["-e", tiny, "-d", name, "-w", "0", "hello"]
        refused(run(*words, wrapper=before, cwd=tmp_path), 75, str(tmp_path / "kept"))


def test_the_longest_name_has_a_lease(run, tiny, tmp_path):
    """Two that differ in their last letter have one each."""
    wrapper = tracing.failing("flock", "ENOLCK")
    for last in "ab":
        kept = tmp_path / ("x" * 254 + last)
        assert run("-e", tiny, "-d", kept, "hello", wrapper=wrapper).stdout == b"hello\n"
    assert {len(name) for name in os.listdir(tmp_path)} == {3, 255}


def test_what_is_published_is_used_whoever_holds_its_lock(spawn, run, tiny, tmp_path):
    """Also where it came from another copy of the archive: waiters are not to go one by one."""
    kept, made = tmp_path / "kept", tmp_path / "made"
    run("-e", tiny, "-d", made, check=True)
    marker = made / MARKER
    marker.write_bytes(marker.read_bytes().replace(bytes(made), bytes(kept)))
    copy = shutil.copy(tiny, tmp_path / "copy")
    os.utime(copy, (1, 1))
    kept.mkdir()
    holder = [commands.need("flock"), "-o", str(kept), "sleep", "60"]
    with subprocess.Popen(holder, start_new_session=True) as first:
        process.wait_for(lambda: process.children_of(first.pid))
        waiter = spawn("-e", copy, "-d", kept, "hello")
        time.sleep(0.5)
        assert waiter.poll() is None
        holder[2] = str(made)
        with subprocess.Popen(holder, start_new_session=True) as second:
            process.wait_for(lambda: process.children_of(second.pid))
            os.rename(made, kept)
            try:
                out, err = waiter.communicate(timeout=20)
            finally:
                for each in (first, second):
                    os.killpg(each.pid, signal.SIGKILL)
    assert (waiter.returncode, out) == (0, b"hello\n")
    assert err.count(b"\n") == 1, "that it was unpacked from another archive"

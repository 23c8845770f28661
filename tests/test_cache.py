"""A cache of environments, for all who do not name a directory."""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import pytest

from poncho_package_run.cache import memo, room
from poncho_package_run.telling.errors import UsageError
from poncho_package_run.telling.usage import size
from support import crash, process, readme, tracing, trees
from support.commands import missing, need
from support.crash import MANIFEST, MARKER
from support.messages import refused
from support.tars import add

SHOW = ["sh", "-c", 'echo "$CONDA_PREFIX"']


def make_archive(path, name, bytes_of_content=1000, random_content=True, executable=b""):
    """A tar.gz environment of its own content; what it holds can be checked by ``tool``."""
    content = os.urandom(bytes_of_content) if random_content else bytes(bytes_of_content)
    digest = hashlib.sha256(content).hexdigest()
    check = b'#!/bin/sh\nset -- $(sha256sum "$CONDA_PREFIX/lib/content")\n[ "$1" = %s ] || exit 9\n'
    files = {
        "bin/check": check % digest.encode(),
        "conda-meta/history": name.encode(),
        "lib/content": content,
    }
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        add(archive, files)
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    return path


def sum_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def let_clock_step():
    """What has just been written is not remembered: it may change within one step of the clock."""
    time.sleep(0.05)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def use(run, cache):
    """Run a command in an archive's environment in the cache."""

    def use(archive, *words, limit=None, wait=None, env=None, **options):
        more = ["--cache-limit", limit] if limit is not None else []
        more += ["-w", wait] if wait is not None else []
        command = ["--cache", cache, *more, "-e", archive, "--", *(words or SHOW)]
        return run(*command, env=env, **options)

    return use


def names(cache):
    return {name for name in os.listdir(cache) if not name.startswith(".")}


def uses_of(cache, path):
    """Where the uses of an archive's environment are noted: a file for each boot of a machine."""
    return cache / os.fsdecode(memo.USES) / sum_of(path)


def private(cache):
    return [path.name for path in crash.private_directories(cache)]


def stopped(spawn, tmp_path, call, number, *words):
    """A run that is stopped in one of its calls of a kind."""
    log = tmp_path / "log"
    log.write_bytes(b"")
    stopping = tracing.strace("-e", f"inject={call}:signal=STOP:when={number}", log=log)
    tool = spawn(*words, wrapper=stopping)
    process.wait_for(lambda: b"stopped by SIGSTOP" in log.read_bytes())
    return tool


# Where it lies, and when it is used


def test_an_environment_is_kept_by_the_sum_of_its_archive(use, tiny, cache):
    expected = bytes(cache / sum_of(tiny)) + b"\n"
    for _ in range(3):
        result = use(tiny, check=True)
        assert (result.stdout, result.stderr) == (expected, b"")
    assert names(cache) == {sum_of(tiny)}
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert private(cache) == []


def test_the_variable_is_the_option(run, tiny, cache, tmp_path):
    result = run("-e", tiny, "--", *SHOW, env={"PONCHO_PACKAGE_RUN_CACHE": cache}, check=True)
    assert result.stdout.startswith(bytes(cache))
    other = tmp_path / "other"
    words = ["--cache", other, "-e", tiny, "--", *SHOW]
    result = run(*words, env={"PONCHO_PACKAGE_RUN_CACHE": cache}, check=True)
    assert result.stdout.startswith(bytes(other))
    result = run("-e", tiny, "--", *SHOW, env={"PONCHO_PACKAGE_RUN_CACHE": ""}, check=True)
    assert result.stdout.startswith(bytes(tmp_path / "tmp"))


def test_a_relative_path_is_relative_to_the_working_directory(run, tiny, tmp_path):
    result = run("--cache", "c", "-e", tiny, "--", *SHOW, cwd=tmp_path, check=True)
    assert result.stdout.startswith(bytes(tmp_path / "c"))


def test_a_copy_under_another_name_is_not_unpacked(use, tiny, tmp_path):
    use(tiny, check=True)
    copy = shutil.copyfile(tiny, tmp_path / "copy")
    let_clock_step()
    result = use(copy, "true", env={"PONCHO_PACKAGE_RUN_DEBUG": "yes"}, check=True)
    assert b"unpack:" not in result.stderr
    log = tmp_path / "log"
    use(copy, "true", wrapper=tracing.recording(log), check=True)
    opened = [each.arguments[1] for each in tracing.calls(log) if each.name == "openat"]
    assert f'"{copy}"' not in opened


@pytest.mark.parametrize("times", ["as they were", "new"])
def test_a_changed_archive_is_another_environment(use, tmp_path, times):
    path = make_archive(tmp_path / "a", "first")
    let_clock_step()
    first = [use(path, check=True).stdout for _ in range(2)]
    before = path.stat()
    data = make_archive(tmp_path / "b", "again").read_bytes()
    data = data.ljust(before.st_size, b"\0")[: before.st_size]
    with open(path, "r+b") as file:
        file.write(data)
    if times == "as they were":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = use(path)
    if result.returncode == 0:
        assert result.stdout not in first
        assert result.stdout.strip().endswith(sum_of(path).encode())
    else:
        assert result.returncode == 65, "cut to the same size, it is refused"


def test_what_may_change_within_a_step_of_the_clock_is_not_remembered(use, cache, tmp_path):
    path = make_archive(tmp_path / "a", "a")
    coarse = (int(time.time()) * 10**9,) * 2
    os.utime(path, ns=coarse)
    now = path.stat().st_ctime_ns
    use(path, check=True)
    memories = cache / os.fsdecode(memo.MEMO)
    known = [name for name in os.listdir(memories) if name.endswith(f"-{now}")]
    let_clock_step()
    use(path, check=True)
    assert len(os.listdir(memories)) >= len(known)
    digest = sum_of(path)
    assert {os.readlink(memories / name) for name in os.listdir(memories)} <= {digest}


def test_a_directory_wins_over_the_cache_and_a_pipe_needs_none(run, tiny, cache, tmp_path):
    env = {"PONCHO_PACKAGE_RUN_CACHE": cache}
    result = run("-e", tiny, "-d", tmp_path / "kept", "--", *SHOW, env=env, check=True)
    assert result.stdout == bytes(tmp_path / "kept") + b"\n"
    result = run("-e", tmp_path / "kept", "--", *SHOW, env=env, check=True)
    assert result.stdout == bytes(tmp_path / "kept") + b"\n"
    assert not cache.exists()
    with open(tiny, "rb") as file:
        with subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
            result = run("-e", "/dev/stdin", "--", *SHOW, env=env, stdin=cat.stdout, check=True)
    assert result.stdout.startswith(bytes(tmp_path / "tmp"))
    assert names(cache) == set()


def test_without_a_command_it_is_prepared(run, tiny, cache):
    run("--cache", cache, "-e", tiny, check=True)
    assert (cache / sum_of(tiny) / MARKER).exists()


def test_an_archive_that_is_none_makes_no_entry(use, run, cache, tmp_path):
    path = tmp_path / "junk"
    path.write_bytes(b"junk" * 1000)
    refused(use(path), 65, "junk")
    refused(use(tmp_path / "missing"), 66, "missing")
    assert names(cache) == set()
    assert private(cache) == []


def test_32_at_once_unpack_once(spawn, tiny, cache):
    words = ["--debug", "--cache", cache, "--cache-limit", "1G", "-e", tiny, "--", *SHOW]
    running = [spawn(*words) for _ in range(32)]
    ended = [each.communicate(timeout=120) for each in running]
    assert {each.returncode for each in running} == {0}
    assert {out for out, _ in ended} == {bytes(cache / sum_of(tiny)) + b"\n"}
    assert sum(b"unpack:" in err for _, err in ended) == 1
    assert private(cache) == []


# Leases and the limit


def test_what_was_used_least_recently_goes_first(use, cache, tmp_path):
    paths = [make_archive(tmp_path / name, name, 100_000) for name in "abcd"]
    a, b, c, d = (sum_of(path) for path in paths)
    for path in paths[:3]:
        use(path, check=True, limit="320K")
        let_clock_step()
    assert names(cache) == {a, b, c}
    use(paths[0], check=True)
    let_clock_step()
    result = use(paths[3], "check", limit="320K", check=True)
    assert result.stderr == b""
    assert names(cache) == {a, c, d}
    assert private(cache) == []


# How a command may go on after the tool; each prints a line once it runs.
COMMANDS = {
    "itself": ["sh", "-c", "echo in; exec sleep 60"],
    "what it has left": ["sh", "-c", "sleep 60 & echo in; exit"],
    "what it has left, without descriptors": [
        sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '60']); print('in')",
    ],
    "without descriptors": [
        sys.executable, "-c",
        "import os, time; print('in', flush=True); os.closerange(3, 1000); "
        "os.chdir(os.environ['CONDA_PREFIX']); time.sleep(60)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", COMMANDS)
def test_what_is_in_use_is_never_removed(use, spawn, cache, tmp_path, kind):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    running = spawn("--cache", cache, "-e", first, "--", *COMMANDS[kind])
    assert running.stdout.readline() == b"in\n"
    if kind == "what it has left, without descriptors":
        process.wait_for(lambda: not os.path.exists(f"/proc/{running.pid}/exe"))
    if kind == "without descriptors":
        process.wait_for(lambda: os.readlink(f"/proc/{running.pid}/cwd").startswith(str(cache)))
    result = use(second, limit="150K")
    assert result.returncode == 0
    assert result.stdout.startswith(bytes(tmp_path / "tmp")), "as if there were no cache"
    assert result.stderr.count(b"\n") == 1
    assert b"no room" in result.stderr
    assert names(cache) == {sum_of(first)}
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    process.wait_for(lambda: not os.path.exists(f"/proc/{running.pid}"))
    result = use(second, "check", limit="150K", check=True)
    assert result.stderr == b""
    assert names(cache) == {sum_of(second)}


def test_by_how_much_leases_exceed_the_limit_is_told(use, spawn, cache, tmp_path):
    """Of zeros, an archive is much smaller than its content: that is known when it is unpacked."""
    first = make_archive(tmp_path / "a", "a", 100_000)
    second = make_archive(tmp_path / "b", "b", 400_000, random_content=False)
    running = spawn("--cache", cache, "-e", first, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    result = use(second, "check", limit="300K")
    assert result.returncode == 0
    told = re.search(rb"holds (\d+)K more than its limit", result.stderr)
    total = (100_000 + 400_000) / 1024
    assert told, result.stderr
    assert abs(int(told.group(1)) - (total - 300)) < 5
    assert b"alone takes 391K" in result.stderr
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    use(first, "check", limit="300K", check=True)  # is there: nothing is unpacked, nothing removed
    third = make_archive(tmp_path / "c", "c", 1000)
    use(third, limit="300K", check=True)
    assert sum(each.size for each in room.found(os.fsencode(cache))) <= 300 << 10


def test_200_runs_of_12_archives_in_a_cache_for_four(run, spawn, use, cache, tmp_path):
    rng = random.Random(12)
    paths = [make_archive(tmp_path / f"a{number}", str(number), 100_000) for number in range(12)]
    limit = "410K"
    running, killed = [], set()
    told = b"poncho_package_run: "
    for number in range(200):
        words = ["--cache", cache, "--cache-limit", limit, "-e", rng.choice(paths)]
        tool = spawn(*words, "--", "sh", "-c", "check && sleep 0.2 && check && echo whole")
        running.append(tool)
        if number % 10 == 9:
            victim = rng.choice(running[-10:])
            if victim.poll() is None:
                os.killpg(victim.pid, signal.SIGKILL)
                killed.add(victim.pid)
        while sum(each.poll() is None for each in running) >= 16:
            time.sleep(0.01)
    for each in running:
        out, err = each.communicate(timeout=120)
        if each.pid not in killed:
            assert (each.returncode, out) == (0, b"whole\n"), err
            assert all(line.startswith(told) for line in err.splitlines()), err
    # One more start finds no one at work, and the limit is kept.
    last = make_archive(tmp_path / "last", "last", 100_000)
    assert use(last, "check", limit=limit, check=True).stderr == b""
    whole = list(room.found(os.fsencode(cache)))
    assert all(each.is_whole for each in whole)
    assert sum(each.size for each in whole) <= 410 << 10
    assert len(whole) == 4
    # (Of one that was killed before it could sign an empty directory stays.)
    left = [path for path in crash.private_directories(cache) if not crash.is_unowned(path)]
    assert left == []


def test_what_another_machine_has_used_lately_is_left_alone(use, cache, tmp_path):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    other = uses_of(cache, first) / "00000000-1111-2222-3333-444444444444"
    other.write_text("another machine's")
    result = use(second, limit="150K")
    assert b"no room" in result.stderr
    assert names(cache) == {sum_of(first)}
    week = time.time() - 7 * 24 * 3600 - 60
    os.utime(other, (week, week))
    assert use(second, limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}
    assert not uses_of(cache, first).exists()


def test_a_cache_that_was_copied_from_another_disk_is_in_use_nowhere(use, cache, tmp_path):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    (own,) = uses_of(cache, first).iterdir()
    if not own.read_text() or not os.major(cache.stat().st_dev):
        pytest.skip("needs a machine id, and a disk, which no other machine can have")
    own.rename(own.with_name(own.name + "1"))  # a device of another number, in this boot
    assert use(second, limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}


def test_an_earlier_boot_of_this_machine_keeps_nothing(use, cache, tmp_path):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    (own,) = uses_of(cache, first).iterdir()
    machine = own.read_text()
    if not machine:
        pytest.skip("this machine has no machine id")
    if not os.major(cache.stat().st_dev):
        pytest.skip("needs a disk, which no other machine can have")
    earlier = own.rename(own.with_name("00000000-1111-2222-3333-444444444444-1"))
    with open("/proc/uptime", encoding="ascii") as file:
        booted = time.time() - float(file.read().split()[0])

    def used(seconds, text):
        earlier.write_text(text)
        os.utime(earlier, (seconds, seconds))

    # After this machine had started, or on another one, which was made from the same image.
    for seconds, text in ((booted + 60, machine), (booted - 60, machine + "2"), (booted - 60, "")):
        used(seconds, text)
        assert b"no room" in use(second, limit="150K").stderr
    used(booted - 60, machine)
    assert use(second, limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}


@pytest.mark.parametrize("error", ["ENOLCK", "EIO", "ENOSYS"])
def test_where_locks_are_refused_nothing_lately_used_is_removed(use, cache, tmp_path, error):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    refusing = tracing.strace("-e", f"inject=flock:error={error}")
    use(first, "check", check=True, wrapper=refusing)
    result = use(second, "check", limit="150K", wrapper=refusing)
    assert (result.returncode, names(cache)) == (0, {sum_of(first)})
    assert b"no room" in result.stderr
    for path in uses_of(cache, first).iterdir():
        os.utime(path, (1, 1))
    use(second, "check", limit="150K", wrapper=refusing, check=True)
    assert names(cache) == {sum_of(second)}


# A full disk


def mounting(script, *words):
    """The start of a command line behind a script that mounts something, seen by nobody else."""
    namespace = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    wrapper = [need("unshare"), *namespace, "sh", "-c", script, *words]
    if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode:
        missing("needs a mount namespace: run it as root, or allow user namespaces")
    return wrapper


def mounted(folder, options):
    """The start of a command line for which a new folder is a tmpfs."""
    folder.mkdir()
    return mounting(f'mount -t tmpfs -o {options} none "$0" && "$@"', folder)


@pytest.fixture
def small(tmp_path):
    """The start of a command line for which tmp_path/"small" is a file system of 64 MiB."""
    return mounted(tmp_path / "small", "size=64m")


@pytest.mark.parametrize("held", [False, True])
def test_a_full_disk_frees_what_is_unused_and_tries_once_more(artifact, tmp_path, small, held):
    paths = [make_archive(tmp_path / name, name, 25 << 20) for name in "abc"]
    tool = f'"{sys.executable}" "{artifact}" --cache "{tmp_path}/small/cache" -e'
    lines = []
    for path in paths[:2]:
        wait = f"sh -c 'echo >>\"{tmp_path}/in\"; exec sleep 60' &" if held else "check || exit"
        lines.append(f'{tool} "{path}" {wait}')
        if held:
            count = len(lines) // 2 + 1
            lines.append(f'until [ "$(wc -l <"{tmp_path}/in")" = {count} ]; do sleep 0.1; done')
    lines.append(f'{tool} "{paths[2]}" check; status=$?')
    lines.append(f'ls "{tmp_path}/small/cache"; kill $(jobs -p) 2>/dev/null; exit $status')
    command = [*small, "bash", "-c", "\n".join(lines)]
    result = subprocess.run(command, capture_output=True, timeout=120)
    found = set(result.stdout.decode().split())
    if held:
        assert result.returncode == 74, result
        assert b"No space left on device" in result.stderr
        assert result.stderr.count(b"poncho_package_run: ") == 1
        assert found == {sum_of(paths[0]), sum_of(paths[1])}
    else:
        assert (result.returncode, result.stderr) == (0, b"")
        assert sum_of(paths[2]) in found


# Others


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o1777])
def test_a_cache_that_others_may_write_is_refused(use, tiny, cache, mode):
    cache.mkdir()
    cache.chmod(mode)
    refused(use(tiny), 73, str(cache), "others may write", "chmod go-w")
    assert os.listdir(cache) == []


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_cache_that_is_no_directory_is_refused(use, tiny, cache, kind):
    cache.write_text("") if kind == "file" else cache.symlink_to("nowhere/at/all")
    result = use(tiny)
    if kind == "file":
        refused(result, 73, str(cache))
    else:
        assert result.returncode in (0, 73)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
class TestSeveralUsers:
    def as_user(self, number):
        return [need("setpriv"), "--reuid", str(number), "--regid", str(number), "--clear-groups"]

    @pytest.fixture
    def open_path(self, tmp_path):
        for path in [tmp_path, *tmp_path.parents]:
            if path != Path("/tmp") and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        (tmp_path / "tmp").chmod(0o1777)

    @pytest.fixture
    def everybody_s(self, artifact, tmp_path, open_path):
        """The artifact and an interpreter, where everybody can read them."""
        shutil.copy(artifact, tmp_path / "tool")
        (tmp_path / "tool").chmod(0o755)
        return tmp_path / "tool"

    def call(self, tool, number, cache, archive, tmp_path, *words):
        command = ["/usr/bin/python3", tool, "--cache", cache, "-e", archive, "--"]
        command += words or SHOW
        env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path / "tmp")}
        prefix = self.as_user(number) if number else []
        return subprocess.run([*prefix, *command], env=env, capture_output=True, cwd="/")

    def test_roots_cache_is_used_for_what_is_in_it(self, everybody_s, cache, tmp_path):
        first, second = (make_archive(tmp_path / name, name) for name in "ab")
        assert self.call(everybody_s, 0, cache, first, tmp_path).returncode == 0
        cache.chmod(0o755)
        before = sorted(str(path) for path in cache.rglob("*"))
        result = self.call(everybody_s, 12345, cache, first, tmp_path, "check")
        assert (result.returncode, result.stderr) == (0, b"")
        result = self.call(everybody_s, 12345, cache, first, tmp_path)
        assert result.stdout.strip() == bytes(cache / sum_of(first))
        result = self.call(everybody_s, 12345, cache, second, tmp_path)
        assert result.stdout.startswith(bytes(tmp_path / "tmp"))
        assert (result.returncode, result.stderr) == (0, b"")
        assert sorted(str(path) for path in cache.rglob("*")) == before

    def test_what_roots_cache_remembers_need_not_be_read(self, everybody_s, cache, tmp_path):
        """Filled as the README says."""
        path = make_archive(tmp_path / "a", "a")
        path.chmod(0o600)
        let_clock_step()
        cache.mkdir()
        cache.chmod(0o755)
        assert self.call(everybody_s, 0, cache, path, tmp_path).returncode == 0
        result = self.call(everybody_s, 12345, cache, path, tmp_path, "check")
        assert (result.returncode, result.stderr) == (0, b"")
        assert self.call(everybody_s, 12345, tmp_path / "x", path, tmp_path).returncode

    def test_two_users_have_a_cache_each(self, everybody_s, tmp_path):
        path = make_archive(tmp_path / "a", "a")
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch").chmod(0o1777)
        for number in (12345, 12346):
            own = tmp_path / "scratch" / f"envs-{number}"
            result = self.call(everybody_s, number, own, path, tmp_path)
            assert result.stdout.startswith(bytes(own)), result
        # The other one's cannot even be looked into.
        result = self.call(everybody_s, 12345, own, path, tmp_path)
        assert result.returncode in (0, 73)
        assert not result.stdout.startswith(bytes(own))

    @pytest.mark.parametrize("what", ["damaged", "moved", "restarted"])
    @pytest.mark.parametrize("owner", [0, 12345])
    def test_what_is_not_complete_in_anothers_is_neither_used_nor_written(
        self, everybody_s, cache, tmp_path, owner, what
    ):
        """Not by root, either, whom its owner may want to lead astray."""
        path = crash.archive(tmp_path / "a", "tar.gz")
        path.chmod(0o644)
        cache.mkdir()
        os.chown(cache, owner, owner)
        assert self.call(everybody_s, owner, cache, path, tmp_path).returncode == 0
        cache.chmod(0o755)
        if what == "damaged":
            shutil.rmtree(cache / sum_of(path) / "conda-meta")
            (cache / sum_of(path) / "bin/activate").unlink(missing_ok=True)
        elif what == "restarted":
            crash.restart(cache / sum_of(path))
        else:
            cache = cache.rename(tmp_path / "moved")
        before = trees.snapshot(cache)
        other = 12345 - owner
        result = self.call(everybody_s, other, cache, path, tmp_path, "hello")
        assert result.returncode == 0
        assert trees.snapshot(cache) == before
        if what == "restarted":  # it is compared with its manifest, and whole
            assert result.stdout == b"hello from " + bytes(cache / sum_of(path))
            assert result.stderr == b""
        else:
            assert result.stdout.startswith(b"hello from " + bytes(tmp_path / "tmp"))
            assert result.stderr.count(b"\n") == 1
            assert bytes(cache / sum_of(path)) in result.stderr

    def test_a_cache_that_cannot_be_listed_is_used_all_the_same(
        self, everybody_s, cache, tmp_path
    ):
        path = make_archive(tmp_path / "a", "a")
        path.chmod(0o644)
        cache.mkdir(mode=0o300)
        os.chown(cache, 12345, 12345)
        result = self.call(everybody_s, 12345, cache, path, tmp_path)
        assert (result.returncode, result.stderr.count(b"\n")) == (0, 1), result

    def test_root_writes_nothing_into_a_users_cache(self, everybody_s, cache, tmp_path):
        path = make_archive(tmp_path / "a", "a")
        cache.mkdir()
        os.chown(cache, 12345, 12345)
        result = self.call(everybody_s, 0, cache, path, tmp_path)
        assert result.stdout.startswith(bytes(tmp_path / "tmp"))
        assert os.listdir(cache) == []

    def test_one_that_a_stranger_has_planted_in_tmp_is_refused(self, everybody_s, tmp_path):
        path = make_archive(tmp_path / "a", "a")
        planted = tmp_path / "tmp" / "envs"
        planted.mkdir()
        os.chown(planted, 12346, 12346)
        planted.chmod(0o755)
        for number in (0, 12345):
            result = self.call(everybody_s, number, planted, path, tmp_path)
            refused(result, 73, str(planted), "another user")


# What somebody has changed by hand


def test_an_environment_may_be_removed_by_hand(use, tiny, cache):
    use(tiny, check=True)
    shutil.rmtree(cache / sum_of(tiny))
    assert use(tiny, check=True).stderr == b""
    shutil.rmtree(cache)
    assert use(tiny, check=True).stderr == b""


def test_one_may_be_removed_by_hand_whatever_goes_on(spawn, cache, tmp_path):
    path = make_archive(tmp_path / "a", "a", 100_000)
    for _ in range(8):
        running = [spawn("--cache", cache, "-e", path, "--", "true") for _ in range(4)]
        while any(each.poll() is None for each in running):
            subprocess.run(["rm", "-rf", cache / sum_of(path)], stderr=subprocess.DEVNULL)
            time.sleep(random.random() / 20)
        for each in running:
            _, err = each.communicate()
            assert each.returncode == 0, err
            assert err.count(b"\n") <= 1


@pytest.mark.parametrize("limit", [None, "100M"])
@pytest.mark.parametrize("gone", [[MARKER], [MARKER, MANIFEST], [MANIFEST], ["conda-meta", MARKER]])
def test_half_of_one_is_cleared_and_unpacked_again(use, run, cache, tmp_path, gone, limit):
    path, other = (make_archive(tmp_path / name, name) for name in "ab")
    use(path, check=True)
    entry = cache / sum_of(path)
    for name in gone:
        if (entry / name).is_dir():
            shutil.rmtree(entry / name)
        else:
            (entry / name).unlink()
    table = run("--cache", cache, "--list-cache", check=True).stdout.decode()
    assert ("damaged" in table) == (MARKER in gone), table
    result = use(path, "check")
    assert result.returncode == 0, result
    assert b"unpacking again" in result.stderr or MARKER not in gone
    assert (entry / MARKER).exists()
    if MARKER in gone:
        # As another run's leftover it goes, too.
        (entry / MARKER).unlink()
        use(other, "check", limit=limit, check=True)
        assert names(cache) == {sum_of(other)}
    assert private(cache) == []


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_one_whose_removal_by_hand_was_interrupted_is_unpacked_again(
    use, run, environment, cache, count
):
    """Whatever the order in which rm takes it: of directories, the first it takes is inside."""
    archive = environment.archive(scripts=False)
    use(archive, check=True)
    entry = cache / sum_of(archive)
    before = set(entry.rglob("*"))
    killing = tracing.strace("-e", f"inject=unlinkat,unlink,rmdir:signal=KILL:when={count}")
    subprocess.run([*killing, "rm", "-rf", entry], stderr=subprocess.DEVNULL)
    lost = before - set(entry.rglob("*"))
    assert len(lost) == count - 1
    state = b"damaged" if lost - {entry / MANIFEST} else b"free"
    assert state in run("--cache", cache, "--list-cache", check=True).stdout
    result = use(archive, "greet", check=True)
    assert result.stdout == b"hello\n"
    assert (b"unpacking again" in result.stderr) == (state == b"damaged")
    assert use(archive, "greet", check=True).stderr == b""


@pytest.mark.parametrize("name", [b"\xff\xfe", b'"', b"\\", b"\n", b"d'/\xc3\xa9"])
def test_whatever_the_names_in_it_a_start_is_a_warm_one(use, cache, tmp_path, name):
    path = tmp_path / "a"
    with tarfile.open(path, "w") as archive:
        for each in (name, b"conda-meta/" + name):
            add(archive, {each.decode("utf-8", "surrogateescape"): b""})
    for _ in range(2):
        assert use(path, "true", check=True).stderr == b""
    log = tmp_path / "log"
    use(path, "true", wrapper=tracing.recording(log), check=True)
    taken = [each for each in tracing.calls(log) if each.name == "flock"]
    assert len(taken) == 1, "the lease alone"


@pytest.mark.parametrize("target", ["../../victim", "/etc", "x" * 64, "A" * 64, "0" * 63, ".."])
def test_a_memory_that_makes_no_sense_is_none(use, tiny, cache, target):
    use(tiny, check=True)
    memories = cache / os.fsdecode(memo.MEMO)
    memories.mkdir(exist_ok=True)
    for path in memories.iterdir():
        path.unlink()
    (memories / os.fsdecode(memo.key(os.stat(tiny)))).symlink_to(target)
    assert use(tiny, check=True).stdout == bytes(cache / sum_of(tiny)) + b"\n"


def test_a_memory_of_what_is_gone_is_no_obstacle(use, tiny, cache):
    use(tiny, check=True)
    memories = cache / os.fsdecode(memo.MEMO)
    memories.mkdir(exist_ok=True)
    for path in memories.iterdir():
        path.unlink()
    (memories / os.fsdecode(memo.key(os.stat(tiny)))).symlink_to("0" * 64)
    # Nothing is there: it is unpacked to where it was remembered, or to where it belongs.
    assert use(tiny, "hello", check=True).stdout == b"hello\n"


@pytest.mark.parametrize("name", [os.fsdecode(memo.MEMO), os.fsdecode(memo.USES)])
@pytest.mark.parametrize("what", ["file", "fifo", "symlink"])
def test_what_lies_in_the_place_of_the_tool_s_own_is_no_obstacle(
    use, tiny, cache, tmp_path, name, what
):
    cache.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.mkdir()
    if what == "file":
        (cache / name).write_text("")
    elif what == "fifo":
        os.mkfifo(cache / name)
    else:
        (cache / name).symlink_to(victim)
    for _ in range(2):
        assert use(tiny, "hello", check=True, timeout=20).stdout == b"hello\n"


# What a person looks at


def test_the_table(run, spawn, use, cache, tmp_path):
    block = readme.block("tests/test_cache.py::test_the_table")
    assert block.strip() == "python3 poncho_package_run.pyz --list-cache"
    old = make_archive(tmp_path / "old.tar.gz", "old", 3_000_000)
    new = make_archive(tmp_path / "new.tar.gz", "new", 1000)
    use(old, check=True)
    for path in uses_of(cache, old).iterdir():
        os.utime(path, (10**9, 10**9))
    running = spawn("--cache", cache, "-e", new, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    (cache / ("0" * 64)).mkdir()
    (cache / ("0" * 64) / "left").write_bytes(b"x" * 5000)
    os.utime(cache / ("0" * 64), (10**8, 10**8))
    env = {"PONCHO_PACKAGE_RUN_CACHE": cache, "TZ": "UTC"}
    result = run("--list-cache", "--cache-limit", "20G", env=env, check=True)
    head, *rows, last = result.stdout.decode().splitlines()
    assert re.split("  +", head.strip()) == [
        "SIZE", "FILES", "LAST USE", "STATE", "ARCHIVE, AND WHERE IT LIES",
    ]  # fmt: skip
    assert [re.split(r"  +", row.strip())[-2] for row in rows] == ["new.tar.gz", "old.tar.gz", "?"]
    assert [re.search(r"in use|free|damaged", row).group() for row in rows] == [
        "in use", "free", "damaged",
    ]  # fmt: skip
    assert "2001-09-09 01:46" in rows[1]
    assert rows[1].split()[:2] == ["2.9M", "3"]
    assert rows[0].endswith(str(cache / sum_of(new)))
    assert last == f"2.9M of 20G in 3 environments, in {cache}"
    assert b"\033" not in result.stdout


def test_the_table_of_nothing(run, cache):
    result = run("--list-cache", "--cache", cache, check=True)
    assert result.stdout.decode().splitlines()[-1] == f"0B in 0 environments, in {cache}"
    assert not cache.exists()
    refused(run("--list-cache"), 64, "--cache", "PONCHO_PACKAGE_RUN_CACHE")


def test_the_line_for_a_profile(artifact, tiny, tmp_path):
    line = readme.block("tests/test_cache.py::test_the_line_for_a_profile")
    for _ in range(2):
        tool = f'"{sys.executable}" "{artifact}" -e "{tiny}"'
        script = f"{line}\n{tool} -- sh -c 'echo $CONDA_PREFIX'"
        env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
        done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, check=True)
        assert done.stdout.decode().strip() == f"{tmp_path}/envs-{os.getuid()}/{sum_of(tiny)}"


SIZES = {"0": 0, "1": 1, "512": 512, "1K": 1024, "1k": 1024, "1KB": 1024, "1KiB": 1024,
         "1.5M": 3 << 19, "20G": 20 << 30, "2T": 2 << 40, "500M": 500 << 20, "7B": 7}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_a_size(text):
    assert size(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "nan", "inf", "1e30", "1 000", "20GG", "x"])
def test_what_is_no_size(run, tiny, cache, text):
    with pytest.raises(UsageError):
        size(text)
    result = run("--cache", cache, f"--cache-limit={text}", "-e", tiny, "true")
    refused(result, 64, "cache-limit")


def test_sizes_as_people_read_them():
    shown = [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (10_200, "10K"), (1 << 20, "1.0M")]
    shown += [(999 << 20, "999M"), (1000 << 20, "1.0G"), (5 << 40, "5.0T"), (5000 << 40, "5000T")]
    assert [(number, room.shown(number)) for number, _ in shown] == shown


def test_the_facts_that_the_marker_has(use, tiny, cache):
    use(tiny, check=True)
    facts = json.loads((cache / sum_of(tiny) / MARKER).read_bytes())
    assert facts["archive"] == str(tiny)
    paths = (cache / sum_of(tiny)).rglob("[!.]*")
    assert facts["files"] == len([p for p in paths if p.is_file() and not p.is_symlink()])
    assert facts["archive_size"] is None, "whatever copy it came from"


# What a reviewer has found


@pytest.mark.parametrize("limit", [None, "20M"])
def test_an_archive_that_is_replaced_while_it_waits_is_not_taken_for_the_other(
    use, spawn, cache, tmp_path, limit
):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    path = Path(shutil.copyfile(first, tmp_path / "env"))
    entry = cache / sum_of(first)
    entry.mkdir(parents=True)
    cache.chmod(0o700)
    limits = ["--cache-limit", limit] if limit else []
    holder = [need("flock"), "-o", entry, "sleep", "60"]
    with subprocess.Popen(holder, start_new_session=True) as lock:
        process.wait_for(lambda: process.children_of(lock.pid))
        tool = spawn("--cache", cache, *limits, "-e", path, "--", *SHOW)
        time.sleep(1)
        assert tool.poll() is None
        os.replace(shutil.copyfile(second, tmp_path / "new"), path)
        os.killpg(lock.pid, signal.SIGKILL)
    out, err = tool.communicate(timeout=30)
    assert (tool.returncode, out, err) == (0, bytes(cache / sum_of(second)) + b"\n", b"")
    use(first, "check", check=True)
    use(second, "check", check=True)
    assert names(cache) == {sum_of(first), sum_of(second)}


@pytest.mark.parametrize("is_other", [True, False], ids=["written anew", "linked"])
def test_an_archive_that_is_written_while_it_is_unpacked_is_not_taken_for_the_other(
    spawn, cache, tmp_path, is_other
):
    """With its size and its time of modification, as ``cp -p`` gives them: its bytes tell."""
    first, second = (
        crash.archive(tmp_path / name, "tar", {"lib/x": bytes(1 << 25), "lib/name": name.encode()})
        for name in "ab"
    )
    for path in (first, second):
        os.utime(path, (1, 1))
    path = Path(shutil.copy2(first, tmp_path / "env"))
    let_clock_step()
    tool = stopped(spawn, tmp_path, "mkdirat", 3, "--cache", cache, "-e", path, "hello")
    if is_other:
        shutil.copyfile(second, path)
        os.utime(path, (1, 1))
    else:
        os.link(path, tmp_path / "link")
    process.go_on_to_the_end(tool)
    out, err = tool.communicate()
    expected = cache / sum_of(path)
    assert (tool.returncode, out, err) == (0, b"hello from " + bytes(expected), b"")
    assert names(cache) == {sum_of(path)}
    assert (expected / "lib/name").read_text() == ("b" if is_other else "a")


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_without_any_room_is_freed_as_well(artifact, tmp_path, what):
    paths = [make_archive(tmp_path / name, name, 1 << 20) for name in "abc"]
    small = tmp_path / "small"
    tool = f'"{sys.executable}" "{artifact}" --cache "{small}/cache" -e'
    options = "size=8m" + (",nr_inodes=60" if what == "inodes" else "")
    fill = f'dd if=/dev/zero of="{small}/fill" bs=64k 2>/dev/null'
    if what == "inodes":
        fill = f'n=0; while : >"{small}/f$n"; do n=$((n + 1)); done 2>/dev/null'
    script = f"""
        {tool} "{paths[0]}" check && {tool} "{paths[1]}" check || exit 98
        {fill}
        {tool} "{paths[2]}" check
    """
    command = [*mounted(small, options), "bash", "-c", script]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b""), result


def test_an_environment_that_is_none_any_more_is_unpacked_again(use, cache, tmp_path):
    path = make_archive(tmp_path / "a", "a")
    use(path, check=True)
    shutil.rmtree(cache / sum_of(path) / "conda-meta")
    result = use(path, "check")
    assert result.returncode == 0
    assert b"unpacking again" in result.stderr
    assert use(path, "check", check=True).stderr == b""


def test_without_its_manifest_one_is_used_and_removed_all_the_same(use, spawn, cache, tmp_path):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    (cache / sum_of(first) / MANIFEST).unlink()
    running = spawn("--cache", cache, "-e", first, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    assert b"no room" in use(second, limit="150K").stderr
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    (cache / sum_of(first) / MANIFEST).symlink_to("/etc/passwd")
    assert use(second, "check", limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_in_the_place_of_an_environment_is_not_followed(use, cache, tmp_path, there):
    path = make_archive(tmp_path / "a", "a")
    victim = tmp_path / "victim"
    if there:
        victim.mkdir()
        (victim / "precious").write_text("")
    cache.mkdir(mode=0o700)
    (cache / sum_of(path)).symlink_to(victim)
    assert use(path, check=True).stdout == bytes(cache / sum_of(path)) + b"\n"
    assert (os.listdir(victim) if there else victim.exists()) == (["precious"] if there else False)


# What an adversary has found


def hold_lock(path, seconds="60"):
    """A process that holds the exclusive lock on a file or directory, when this returns."""
    holder = subprocess.Popen([need("flock"), "-o", path, "sleep", seconds], start_new_session=True)
    process.wait_for(lambda: process.children_of(holder.pid))
    return holder


@pytest.fixture
def locked():
    """Hold exclusive locks until the test ends."""
    holders = []
    yield lambda *words: holders.append(hold_lock(*words))
    for holder in holders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def plant(path, what):
    """Put something that is no directory at a path."""
    if what == "file":
        path.write_bytes(b"x" * 500_000)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    elif what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("needs root, to make a device")


@pytest.mark.parametrize("what", ["file", "fifo", "socket", "device"])
def test_what_is_no_directory_in_the_place_of_an_environment_is_left(use, cache, tmp_path, what):
    """It may be the archive itself, where archives are kept by their sums."""
    path = make_archive(tmp_path / "a", "a")
    cache.mkdir(mode=0o700)
    plant(cache / sum_of(path), what)
    before = os.lstat(cache / sum_of(path))
    for _ in range(2):
        result = use(path, timeout=20)
        assert result.returncode == 0
        assert result.stdout.startswith(bytes(tmp_path / "tmp")), "as if there were no cache"
        assert result.stderr.count(b"\n") == 1
        assert bytes(cache / sum_of(path)) in result.stderr
    assert os.path.samestat(before, os.lstat(cache / sum_of(path)))
    assert private(cache) == []


@pytest.mark.parametrize("what", ["file", "fifo", "symlink"])
def test_what_is_no_environment_counts_nothing(use, run, cache, tmp_path, what):
    path = make_archive(tmp_path / "a", "a", 1000)
    cache.mkdir(mode=0o700)
    odd = cache / ("0" * 64)
    if what == "symlink":
        (tmp_path / "victim").mkdir()
        plant(tmp_path / "victim" / "large", "file")
        odd.symlink_to(tmp_path / "victim")
    else:
        plant(odd, what)
    result = use(path, limit="300K", check=True)
    assert (result.stdout, result.stderr) == (bytes(cache / sum_of(path)) + b"\n", b"")
    assert os.path.lexists(odd)
    assert run("--cache", cache, "--list-cache", check=True).stdout.count(b"\n") == 3


def test_no_lock_of_the_cache_is_waited_for_longer_than_was_said(use, cache, tmp_path, locked):
    path = make_archive(tmp_path / "a", "a")
    (cache / os.fsdecode(memo.MEMO)).mkdir(parents=True)
    cache.chmod(0o700)
    locked(cache)
    locked(cache / os.fsdecode(memo.MEMO))
    # Without that, each is waited for a minute.
    result = use(path, wait="0.1", limit="1G", check=True, timeout=30)
    assert result.stdout.startswith(bytes(tmp_path / "tmp"))
    assert b"other environments are being unpacked" in result.stderr


def test_a_lease_that_cannot_be_had_is_waited_for_once(use, cache, tmp_path, locked):
    """Once it was waited for ten times, a minute in all."""
    path = make_archive(tmp_path / "a", "a")
    use(path, check=True)
    locked(cache / sum_of(path) / os.fsdecode(MANIFEST))
    result = use(path, check=True, timeout=20)
    assert result.stdout.startswith(bytes(tmp_path / "tmp"))


@pytest.mark.parametrize("count", range(5, 17))
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_few_descriptors_are_enough_or_said_to_be_too_few(run, use, cache, tmp_path, count, warm):
    path = make_archive(tmp_path / "a", "a")
    if warm:
        use(path, check=True)
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))  # noqa: E731
    result = run("-e", path, "--cache", cache, "true", preexec_fn=limit, timeout=20)
    if result.returncode:
        refused(result, 74, str(tmp_path), "Too many open files", "ulimit -n")


def test_a_signal_ends_an_eviction_between_two_environments(use, cache, tmp_path):
    paths = [make_archive(tmp_path / name, name, 100_000) for name in "abcd"]
    for path in paths[:3]:
        use(path, check=True)
    calls = "rename,renameat,renameat2"
    wrapper = tracing.strace("-e", f"trace={calls}", "-e", f"inject={calls}:signal=TERM:when=1")
    result = use(paths[3], limit="150K", wrapper=wrapper)
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, b"")
    assert len(names(cache)) == 2, "one had been begun with"
    assert private(cache) == []


def test_a_signal_ends_the_removal_of_a_large_one(use, spawn, cache, tmp_path):
    large, small = tmp_path / "large", make_archive(tmp_path / "small", "small", 1000)
    with tarfile.open(large, "w") as archive:
        add(archive, {f"lib/{number}": b"" for number in range(100)})
        add(archive, {"conda-meta/history": b"", "lib/content": bytes(200_000)})
    use(large, "true", check=True)
    words = ["--cache", cache, "--cache-limit", "100K", "-e", small, "--", "true"]
    slowly = tracing.strace("-e", "inject=unlinkat:delay_enter=100000")
    tool = spawn(*words, wrapper=slowly, env={"PONCHO_PACKAGE_RUN_THREADS": "1"})
    process.wait_for(lambda: not (cache / sum_of(large)).exists())
    [child] = process.children_of(tool.pid)
    os.kill(child, signal.SIGTERM)
    _, err = tool.communicate(timeout=60)  # strace has something to say, too
    assert tool.returncode == 128 + signal.SIGTERM
    assert b"poncho_package_run: " not in err
    assert len(private(cache)) == 1, "it went on to the end of it, for ten seconds"
    use(small, "true", limit="100K", check=True)
    assert (names(cache), private(cache)) == ({sum_of(small)}, [])


def test_who_looks_whether_it_is_in_use_is_waited_for(use, cache, tmp_path, locked):
    path = make_archive(tmp_path / "a", "a")
    use(path, check=True)
    locked(cache / sum_of(path) / MANIFEST, "1.5")
    result = use(path, check=True)
    assert (result.stdout, result.stderr) == (bytes(cache / sum_of(path)) + b"\n", b"")
    locked(cache / sum_of(path) / MANIFEST)
    result = use(path, wait="0", check=True)
    assert result.stdout.startswith(bytes(tmp_path / "tmp"))


def lease_of(running):
    """What a process holds as its lease."""
    found = [os.readlink(f"/proc/{running.pid}/fd/{name}") for name in ("10", "11")
             if os.path.lexists(f"/proc/{running.pid}/fd/{name}")]  # fmt: skip
    return found[0] if found else ""


@pytest.mark.parametrize("gone", [MARKER, "conda-meta/history"])
def test_a_damaged_one_that_is_leased_is_left(use, spawn, cache, tmp_path, gone):
    first, second = (make_archive(tmp_path / name, name, 1000) for name in "ab")
    running = spawn("--cache", cache, "-e", first, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    assert lease_of(running) == str(cache / sum_of(first) / MANIFEST)
    (cache / sum_of(first) / gone).unlink()
    for path in (first, second):  # the second sweeps
        result = use(path, "check")
        assert result.returncode == 0
        assert lease_of(running) == str(cache / sum_of(first) / MANIFEST)
        assert (cache / sum_of(first) / "lib" / "content").exists()
        assert (b"is damaged" in result.stderr and b"in use" in result.stderr) == (path == first)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    result = use(first)
    assert result.stdout.strip() == bytes(cache / sum_of(first))
    assert b"unpacking again" in result.stderr
    assert private(cache) == []


# Times and numbers as nobody gives them.
TIMES = [-(10**10), 2**55, 10**15, 0, 253402300800]


@pytest.mark.parametrize("seconds", TIMES)
def test_times_of_use_as_nobody_has_them(use, run, cache, tmp_path, seconds):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    [own] = uses_of(cache, first).iterdir()
    other = own.with_name(str(uuid.uuid4()))
    other.write_bytes(b"nan\0\xff" * 1000)
    for path in (own, other):
        try:
            os.utime(path, (seconds, seconds))
        except (OSError, OverflowError):
            pytest.skip("this file system knows no such time")
    table = run("--cache", cache, "--list-cache", check=True).stdout
    assert table.count(b"\n") == 3
    assert use(second, limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}


NUMBERS = [10**400, -1, 1 << 70, 1e30, float("nan"), True, "1", None]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: repr(number)[:9])
def test_numbers_in_a_marker_as_nobody_writes_them(use, run, cache, tmp_path, number):
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    marker = cache / sum_of(first) / MARKER
    marker.write_text(json.dumps(dict(json.loads(marker.read_text()), bytes=number, files=number)))
    table = run("--cache", cache, "--list-cache", check=True).stdout
    assert re.search(rb"  (98|99)K  +5  ", table), "what it says makes no sense: it is measured"
    assert use(second, limit="150K", check=True).stderr == b""
    assert names(cache) == {sum_of(second)}


@pytest.mark.parametrize(
    "text", [b"a\\u0000b", b"a\0b", b"x" * 5000, b"/", b"../../etc", b"\xff", b"\\", b"/etc/passwd"]
)
@pytest.mark.parametrize("field", [b"first", b"root", b"prefix"])
def test_paths_in_a_marker_as_nobody_writes_them(use, cache, tmp_path, field, text):
    path = make_archive(tmp_path / "a", "a")
    use(path, check=True)
    marker = cache / sum_of(path) / MARKER
    if field == b"prefix":
        text = bytes(cache / sum_of(path)) + b"/" + text
    planted = b'"%s": "%s"' % (field, text)
    found = re.sub(b'"%s": "[^"]*"' % field, lambda _: planted, marker.read_bytes())
    marker.write_bytes(found)
    assert use(path, "check").returncode == 0
    assert use(path, check=True).stdout == bytes(cache / sum_of(path)) + b"\n"


@pytest.mark.parametrize("what", ["file", "fifo", "symlink", "directory", "dangling"])
def test_what_lies_in_the_place_of_a_time_of_use_is_no_obstacle(use, cache, tmp_path, what):
    first, second, third = (make_archive(tmp_path / name, name, 100_000) for name in "abc")
    use(first, check=True)
    use(second, check=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    before = victim.stat()
    for own in [*uses_of(cache, first).iterdir(), *uses_of(cache, second).iterdir()]:
        own.unlink()
        if what == "symlink":
            own.symlink_to(victim)
        elif what == "dangling":
            own.symlink_to(tmp_path / "nothing")
        elif what == "directory":
            (own / "below").mkdir(parents=True)
        else:
            plant(own, what)
    use(first, "check", check=True, timeout=20)
    # There is room for one more: what is removed is counted as such.
    assert use(third, "check", limit="230K", check=True, timeout=20).stderr == b""
    assert len(names(cache)) == 2
    assert (victim.stat(), victim.read_text()) == (before, "precious")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", [os.fsdecode(memo.MEMO), os.fsdecode(memo.USES)])
def test_a_symlink_in_the_place_of_the_tool_s_own_is_not_followed(use, tiny, cache, tmp_path, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    cache.mkdir(mode=0o700)
    (cache / name).symlink_to(victim)
    for _ in range(2):
        assert use(tiny, "hello", check=True).stdout == b"hello\n"
    assert os.listdir(victim) == []
    (cache / name).unlink()
    (cache / name).mkdir()
    (cache / name / sum_of(tiny)).symlink_to(victim)
    for _ in range(2):
        assert use(tiny, "hello", check=True).stdout == b"hello\n"
    assert os.listdir(victim) == []


def test_what_others_settle_is_not_removed(use, cache, tmp_path, locked):
    """After a restart of the machine somebody compares it with its manifest, under the lock."""
    first, second = (make_archive(tmp_path / name, name, 100_000) for name in "ab")
    use(first, check=True)
    crash.restart(cache / sum_of(first))
    locked(cache / sum_of(first))
    result = use(second, limit="150K", check=True)
    assert b"no room" in result.stderr
    assert names(cache) == {sum_of(first)}


@pytest.mark.parametrize("limit", [None, "1G"])
def test_an_archive_that_vanishes_while_it_waits_is_told(spawn, cache, tmp_path, limit):
    path = make_archive(tmp_path / "a", "a")
    (cache / sum_of(path)).mkdir(parents=True)
    cache.chmod(0o700)
    holder = hold_lock(cache / sum_of(path))
    limits = ["--cache-limit", limit] if limit else []
    tool = spawn("--cache", cache, *limits, "-e", path, "--", *SHOW)
    process.wait_for(lambda: os.path.lexists(cache / os.fsdecode(memo.MEMO)))
    time.sleep(1)
    path.unlink()
    os.killpg(holder.pid, signal.SIGKILL)
    holder.wait()
    out, err = tool.communicate(timeout=30)
    assert (tool.returncode, out) == (66, b""), err
    assert bytes(path) in err


def test_one_that_can_never_have_room_removes_nothing(use, cache, tmp_path):
    paths = [make_archive(tmp_path / name, name, 100_000) for name in "ab"]
    for path in paths:
        use(path, check=True)
    large = make_archive(tmp_path / "large", "large", 400_000)
    result = use(large, "check", limit="300K", check=True)
    assert result.stderr.count(b"\n") == 1 and b"no room" in result.stderr
    assert names(cache) == {sum_of(path) for path in paths}


def test_a_cache_that_is_removed_under_a_run_is_not_made_with_another_mode(spawn, cache, tmp_path):
    """While an archive is summed up, which takes seconds."""
    path = make_archive(tmp_path / "a", "a")
    folder = cache / os.fsdecode(memo.MEMO)
    wrapper = tracing.strace("-P", folder, "-e", "inject=openat:delay_exit=1000000")
    umask = os.umask(0o002)
    try:
        tool = spawn("--cache", cache, "-e", path, "--", *SHOW, wrapper=wrapper)
        process.wait_for(folder.exists)
        shutil.rmtree(cache)
    finally:
        os.umask(umask)
    assert tool.wait(timeout=60) == 0
    assert not cache.exists() or stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_an_archive_of_the_future_is_remembered(use, cache, tmp_path):
    path = make_archive(tmp_path / "a", "a")
    os.utime(path, (5 * 10**9, 5 * 10**9))
    let_clock_step()
    use(path, check=True)
    assert len(os.listdir(cache / os.fsdecode(memo.MEMO))) == 1


@pytest.mark.parametrize("what", ["symlink", "fifo", "directory"])
def test_what_lies_in_the_place_of_a_manifest_is_no_obstacle(use, cache, tmp_path, what):
    path = make_archive(tmp_path / "a", "a")
    use(path, check=True)
    manifest = cache / sum_of(path) / MANIFEST
    manifest.unlink()
    if what == "symlink":
        manifest.symlink_to("/etc/passwd")
    elif what == "directory":
        manifest.mkdir()
    else:
        plant(manifest, what)
    result = use(path, check=True, timeout=20)
    assert (result.stdout, result.stderr) == (bytes(cache / sum_of(path)) + b"\n", b"")


# Where it may lie


def test_one_that_has_moved_is_relocated_to_where_it_lies(run, cache, tmp_path):
    path = crash.archive(tmp_path / "a", "tar.gz")
    where, moved = cache / sum_of(path), tmp_path / "moved" / sum_of(path)
    for directory in (where, moved):
        result = run("--cache", directory.parent, "-e", path, "hello", check=True)
        assert (result.stdout, result.stderr) == (b"hello from " + bytes(directory), b"")
        if directory == where:
            cache.rename(moved.parent)
    result = run("--cache", moved.parent, "-e", path, "hello", check=True)
    assert (result.stdout, result.stderr) == (b"hello from " + bytes(moved), b"")


def test_one_that_has_moved_in_use_is_left_as_it_is(run, spawn, cache, tmp_path):
    """It may not have moved at all, but be seen by another path, as through a mount."""
    path = crash.archive(tmp_path / "a", "tar.gz")
    running = spawn("--cache", cache, "-e", path, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    moved = cache.rename(tmp_path / "moved")
    before = trees.snapshot(moved / sum_of(path))
    result = run("--cache", moved, "-e", path, "hello", check=True)
    assert result.stdout.startswith(b"hello from " + bytes(tmp_path / "tmp"))
    assert result.stderr.count(b"\n") == 1
    assert trees.snapshot(moved / sum_of(path)) == before
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    result = run("--cache", moved, "-e", path, "hello", check=True)
    assert result.stdout == b"hello from " + bytes(moved / sum_of(path))


def test_nobody_comes_to_use_one_while_it_is_relocated(spawn, run, cache, tmp_path):
    """By the path that it was relocated to before, and has in another mount namespace."""
    path = crash.archive(tmp_path / "a", "tar.gz")
    run("--cache", cache, "-e", path, "hello", check=True)
    moved = cache.rename(tmp_path / "moved")
    cache.mkdir(mode=0o700)
    seen = mounting('mount --bind "$0" "$1" && shift && "$@"', moved, cache)
    first = stopped(spawn, tmp_path, "fsync", 1, "--cache", moved, "-e", path, "hello")
    second = run("--cache", cache, "-w", "1", "-e", path, "hello", wrapper=seen, check=True)
    assert second.stdout.startswith(b"hello from " + bytes(tmp_path / "tmp"))
    assert second.stderr.count(b"\n") == 1
    process.go_on_to_the_end(first)
    out, err = first.communicate()
    assert (out, err) == (b"hello from " + bytes(moved / sum_of(path)), b"")


def test_what_has_no_room_for_its_path_is_used_without_it(use, tmp_path, cache):
    record = f"('lib/b', '/{'p' * 47}', 'binary'),"
    path = tmp_path / "a"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, {
            "conda-meta/history": b"",
            "lib/b": b"\x7fELF\0/%s/lib\0" % (b"p" * 47),
            "bin/conda-unpack": f"_prefix_records = [\n{record}\n]\n".encode(),
        })  # fmt: skip
    result = use(path, "sh", "-c", 'head -c 12 "$CONDA_PREFIX/lib/b"', check=True)
    assert result.stdout.startswith(b"\x7fELF\0/tmp/")
    assert result.stderr.count(b"\n") == 1
    assert b"has room for 48" in result.stderr and b"temporary directory" in result.stderr
    assert names(cache) == set()


PATHS = {
    "blank": b"a cache", "newline": b"a\ncache", "quotes": b"'\"$(x)\\", "no text": b"\xff\xfe",
    "trailing slash": b"cache//", "dots": b"./x/../cache", "below": b"x/y/z", "dash": b"-x",
    "long": b"/".join([b"d" * 200] * 10), "symlink": b"link/cache",
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_odd_paths(run, tmp_path, name):
    path = make_archive(tmp_path / "a", "a")
    (tmp_path / "x").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    expected = os.path.realpath(bytes(tmp_path) + b"/" + PATHS[name])
    for _ in range(2):
        result = run(b"--cache=" + PATHS[name], "-e", path, "--", *SHOW, cwd=tmp_path, check=True)
        assert result.stdout == expected + b"/" + sum_of(path).encode() + b"\n"
        assert result.stderr == b""
    result = run(b"--cache=" + PATHS[name], "--list-cache", cwd=tmp_path, check=True)
    assert result.stdout.count(b"\n") == 3


def test_a_cache_on_a_file_system_that_cannot_be_written(artifact, tmp_path, small):
    first, second = (make_archive(tmp_path / name, name) for name in "ab")
    (tmp_path / "tmp").mkdir()
    tool = f'"{sys.executable}" "{artifact}" --cache "{tmp_path}/small/cache" -e'
    script = f"""
        {tool} "{first}" && mount -o remount,bind,ro "{tmp_path}/small" || exit 99
        for archive in "{first}" "{second}"; do {tool} $archive sh -c 'echo $CONDA_PREFIX'; done
    """
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    result = subprocess.run([*small, "sh", "-c", script], capture_output=True, env=env, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    warm, cold = result.stdout.splitlines()
    assert warm == bytes(tmp_path / "small" / "cache" / sum_of(first))
    assert cold.startswith(bytes(tmp_path / "tmp"))


def test_after_a_restart_of_the_machine_it_is_compared(use, cache, tmp_path):
    path = make_archive(tmp_path / "a", "a", 100_000)
    for whole in (False, True):
        use(path, check=True)
        crash.restart(cache / sum_of(path))
        if not whole:
            crash.lose_content(cache / sum_of(path) / "lib" / "content", 0)
        result = use(path, "check", check=True)
        assert (b"unpacking again" in result.stderr) == (not whole)


def test_by_its_shell_header_as_well(artifact, tiny, cache, variables):
    env = {**variables, b"PONCHO_PACKAGE_RUN_CACHE": bytes(cache)}
    for _ in range(2):
        command = ["sh", artifact, "-e", tiny, "--", *SHOW]
        result = subprocess.run(command, env=env, capture_output=True, timeout=60)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout == bytes(cache / sum_of(tiny)) + b"\n"


def test_a_lease_is_held_behind_activation_scripts(run, spawn, environment, cache):
    archive = environment.archive(scripts=True)
    running = spawn("--cache", cache, "-e", archive, "--", *COMMANDS["itself"])
    assert running.stdout.readline() == b"in\n"
    assert lease_of(running) == str(cache / sum_of(archive) / MANIFEST)


def test_an_entry_that_is_half_removed_goes_from_a_full_disk_too(artifact, tmp_path):
    first = make_archive(tmp_path / "a", "a", 1 << 20)
    second = make_archive(tmp_path / "b", "b", 1 << 19)
    small = tmp_path / "small"
    tool = f'"{sys.executable}" "{artifact}" --cache "{small}/cache" -e'
    script = f"""
        {tool} "{first}" check || exit 98
        rm "{small}"/cache/*/{MARKER}
        dd if=/dev/zero of="{small}/fill" bs=4k 2>/dev/null
        {tool} "{second}" check
    """
    command = [*mounted(small, "size=2m"), "bash", "-c", script]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b""), result

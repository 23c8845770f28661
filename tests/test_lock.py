"""The writing lock: who gets it, who waits, and what becomes of it when its holder does not."""

import collections
import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from poncho_package_run.machine import holder
from poncho_package_run.place import claim, completion, lock, lockfile, marker
from poncho_package_run.telling import errors
from support import commands, process, unpacker

UNPACKER = Path(unpacker.__file__)
COMPLETE = unpacker.COMPLETE.decode()
LOCK_FILE = ".env.poncho_package_run.lock"
MARKER = completion.UNPACKING.decode()

# The table of refusals, by the names that strace knows; ENOTSUPP is 524.
REFUSALS = ["ENOSYS", "ENOLCK", "EBADF", "ENOTSUPP", "EOPNOTSUPP", "EINVAL", "EIO"]
NO_FLOCK = ["inject=flock:error=ENOLCK"]
NO_FILE_LOCKS = ["inject=flock,fcntl:error=ENOLCK"]
ANYBODY = ["inject=flock:retval=0"]  # each node its own lock manager: everybody is granted


class Unpacker:
    """A running tests/support/unpacker.py, under strace if there is something to inject."""

    def __init__(self, words, inject):
        command = [sys.executable, str(UNPACKER), *map(str, words)]
        self.traced = bool(inject)
        if inject:
            # Of fcntl, only the calls on what is locked: the interpreter itself needs it to start.
            target = Path(words[0])
            paths = [target, target.parent / LOCK_FILE] if "fcntl" in "".join(inject) else []
            options = [word for path in paths for word in ("-P", str(path))]
            options += [word for each in inject for word in ("-e", each)]
            command = [commands.need("strace"), "-f", "-qq", "-o", "/dev/null", *options, *command]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.lines = []

    @functools.cached_property
    def pid(self):
        # The first children of strace are not what it traces: it tries out what the kernel knows.
        return process.wait_for(self._traced_pid) if self.traced else self.popen.pid

    def _traced_pid(self):
        for pid in process.children_of(self.popen.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/cmdline").read_text().startswith(sys.executable + "\0"):
                    return pid
        return None

    def go(self):
        self.popen.stdin.close()
        return self

    def until(self, start):
        """The first line that begins so."""
        for line in self.popen.stdout:
            self.lines.append(line.decode().strip())
            if self.lines[-1].startswith(start):
                return self.lines[-1]
        raise AssertionError((start, self.lines, self.popen.stderr.read()))

    def outcome(self):
        """What became of it, and when."""
        what, when = re.match("(.*) at (.*)", self.until("")).groups()
        return what, float(when)

    def end(self):
        for line in self.popen.stdout:
            self.lines.append(line.decode().strip())
        self.errors = self.popen.stderr.read().decode()
        self.popen.wait(60)
        assert self.lines and " at " in self.lines[-1], (self.lines, self.errors)
        what, when = self.lines[-1].split(" at ")
        return what, float(when)


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "place" / "env"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def start(target, tmp_path):
    """Start an unpacker of ``target``: ``start("--seconds", 1, inject=[...], go=True)``."""
    running = []

    def start(*words, inject=(), go=True):
        each = Unpacker([target, "--log", tmp_path / "log", *words], inject)
        running.append(each)
        return each.go() if go else each

    yield start
    for each in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.popen.pid, signal.SIGKILL)
        each.popen.wait()
        for stream in (each.popen.stdin, each.popen.stdout, each.popen.stderr):
            stream.close()


def unpackings(tmp_path):
    return (tmp_path / "log").read_text().count("\n")


def check_complete(target, beside=()):
    """The tree is whole, and nothing is left of the making but what ``beside`` names."""
    members = {f"member-{number}" for number in range(unpacker.MEMBERS)}
    assert set(os.listdir(target)) == members | {COMPLETE}
    assert all((target / name).read_text() == "content" for name in members)
    assert sorted(os.listdir(target.parent)) == sorted(["env", *beside])


def take_part(start, injections, *words):
    """Start one unpacker for each of ``injections``, let all go at once, count the outcomes."""
    group = [start("--seconds", 0.3, *words, inject=each, go=False) for each in injections]
    for each in group:
        each.go()
    return collections.Counter(each.end()[0] for each in group)


# Who excludes whom


@pytest.mark.parametrize("when", ["1+", "2+", "3"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_at_any_call_leaves_one_unpacking(start, target, tmp_path, refusal, when):
    # Half of them are refused and half are not: the locks that they hold do not exclude.
    refused = [f"inject=flock:error={refusal}:when={when}"]
    outcomes = take_part(start, [refused, [], refused, []])
    assert outcomes == {"unpacked": 1, "found complete": 3}
    assert unpackings(tmp_path) == 1
    check_complete(target, [LOCK_FILE] if (target.parent / LOCK_FILE).exists() else [])


MIXTURES = {
    "granted": [[]],
    "refused": [NO_FLOCK],
    "refused later": [["inject=flock:error=ENOLCK:when=2+"]],
    "all refused": [NO_FILE_LOCKS],
    "granted to everybody": [ANYBODY],
    "each his own": [[], NO_FLOCK, NO_FILE_LOCKS, ANYBODY],
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_32_processes_unpack_once(start, target, tmp_path, mixture):
    injections = MIXTURES[mixture]
    outcomes = take_part(start, injections * (32 // len(injections)))
    assert outcomes == {"unpacked": 1, "found complete": 31}
    assert unpackings(tmp_path) == 1
    check_complete(target, [LOCK_FILE] if (target.parent / LOCK_FILE).exists() else [])


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_dead_are_succeeded_by_one(start, target, tmp_path, mixture):
    injections = MIXTURES[mixture]
    first = start("--seconds", 60, inject=injections[-1])
    first.until("holds")
    process.wait_for((target / "member-0").exists)
    group = [start("--seconds", 0.3, inject=each) for each in injections * (12 // len(injections))]
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    outcomes = collections.Counter(each.end()[0] for each in group)
    assert outcomes == {"unpacked": 1, "found complete": 11}
    assert unpackings(tmp_path) == 2
    check_complete(target, [LOCK_FILE] if (target.parent / LOCK_FILE).exists() else [])


WAYS = [
    ("flock", []),
    ("lock file, flock", ["inject=flock:error=ENOLCK:when=1"]),
    ("lock file, fcntl", NO_FLOCK),
    ("lock file, exclusive", NO_FILE_LOCKS),
]


@pytest.mark.parametrize(("how", "inject"), WAYS)
def test_each_way_excludes_by_itself(start, how, inject):
    # Without a marker, so that nothing but the lock counts.
    first = start("--only-lock", "--seconds", 60, inject=inject)
    assert first.until("holds") == "holds " + how
    second = start("--only-lock", "--wait", 0.3, inject=inject)
    assert second.end()[0] == "status 75"
    assert f"pid {first.pid} on host {os.uname().nodename}" in second.errors
    third = start("--only-lock", inject=inject)
    third.until(f"waiting {first.pid}")
    os.kill(first.pid, signal.SIGKILL)
    assert third.end()[0] == "locked"


def test_the_cctools_protocol_from_a_shell(start, target, tmp_path):
    commands.need("flock")
    script = f"""
        read -r _
        exec 9< "$1"
        flock 9
        if [ ! -e "$1/{COMPLETE}" ] && [ -z "$(ls -A "$1")" ]; then
            echo $$ >> "$2"
            for number in $(seq 0 {unpacker.MEMBERS - 1}); do
                printf content > "$1/member-$number"
            done
            sleep 0.3
            touch "$1/{COMPLETE}"
        fi
    """
    for _ in range(5):
        shells = [
            subprocess.Popen(
                ["sh", "-c", script, "sh", target, tmp_path / "log"], stdin=subprocess.PIPE
            )
            for _ in range(3)
        ]
        group = [start("--seconds", 0.3, go=False) for _ in range(3)]
        for shell, each in zip(shells, group):
            shell.stdin.close()
            each.go()
        outcomes = collections.Counter(each.end()[0] for each in group)
        assert [shell.wait(60) for shell in shells] == [0, 0, 0]
        assert outcomes in ({"unpacked": 1, "found complete": 2}, {"found complete": 3})
        assert unpackings(tmp_path) == 1
        check_complete(target)
        (tmp_path / "log").unlink()
        for name in os.listdir(target):
            (target / name).unlink()


def test_flock_from_a_shell_is_waited_for_and_named(start, target):
    flock = commands.need("flock")
    with subprocess.Popen([flock, str(target), "sleep", "60"], start_new_session=True) as shell:
        try:
            process.wait_for(lambda: process.children_of(shell.pid))
            late = start("--wait", 0)
            assert late.end()[0] == "status 75"
            assert f"pid {shell.pid} on host" in late.errors
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    mine = start("--only-lock", "--seconds", 60)
    mine.until("holds")
    assert subprocess.run([flock, "-n", str(target), "true"]).returncode == 1


def test_the_command_does_not_inherit_the_lock(start, target):
    flock = commands.need("flock")
    command = start("--only-lock", "--exec", "sleep")
    command.until("holds flock")
    process.wait_for(lambda: Path(f"/proc/{command.pid}/comm").read_text() == "sleep\n")
    assert subprocess.run([flock, "-n", str(target), "true"]).returncode == 0


# Waiting


def test_a_stopped_holder_is_named(start, target):
    first = start("--seconds", 60)
    first.until("holds")
    process.wait_for((target / "member-0").exists)
    os.kill(first.pid, signal.SIGSTOP)
    second = start("--wait", 1.5)
    assert second.end()[0] == "status 75"
    assert second.errors == (
        f"waited 1.5 s for the lock on {target}, which pid {first.pid} on host "
        f"{os.uname().nodename} holds; try again, or wait longer with --wait-for-lock\n"
    )
    assert f"waiting {first.pid}" in second.lines


def test_a_stopped_holder_is_waited_for_however_long_it_is_silent(start, target):
    first = start("--seconds", 60, inject=ANYBODY)
    first.until("holds")
    process.wait_for((target / "member-0").exists)
    os.kill(first.pid, signal.SIGSTOP)
    second = start("--wait", 2, "--silence", 0.2, inject=ANYBODY)
    assert second.end()[0] == "status 75"


def test_no_time_is_one_try(target):
    with lock.acquire(os.fsencode(target), 0) as held:
        assert held.how == "flock"
        before = time.monotonic()
        with pytest.raises(errors.LockTimeout, match=r"waited 0 s"):
            lock.acquire(os.fsencode(target), 0)
        # Not a poll's worth of waiting; a slow machine may still take a while.
        assert time.monotonic() - before < 5
    held.release()
    with lock.acquire(os.fsencode(target), 0):
        pass


def test_waiters_end_within_a_tenth_of_a_second(start, target):
    # The median, and the best of three rounds, because the machine may be busy.
    delays = []
    for _ in range(3):
        first = start("--seconds", 1.5, go=False)
        waiters = [start(go=False) for _ in range(8)]
        first.go().until("holds")
        for each in waiters:
            each.go()
        what, released = first.end()
        assert what == "unpacked"
        ends = [each.end() for each in waiters]
        assert {what for what, _ in ends} == {"found complete"}
        delays.append(statistics.median(when - released for _, when in ends))
        for name in os.listdir(target):
            (target / name).unlink()
    assert min(delays) < 0.1


def test_waiters_end_when_the_work_is_done_not_when_the_lock_is_free(target):
    done = []
    with lock.acquire(os.fsencode(target), 0):
        told = []

        def waiting(owner, waited):
            told.append((owner["pid"], waited))
            done.append(True)

        assert lock.acquire(os.fsencode(target), 60, lambda: bool(done), waiting) is None
    assert told[0][0] == os.getpid()
    assert 1 <= told[0][1] < 60


def test_what_was_done_before_the_lock_was_granted_needs_no_lock(target):
    answers = [False, True]
    assert lock.acquire(os.fsencode(target), 60, lambda: answers.pop(0)) is None
    assert answers == []
    lock.acquire(os.fsencode(target), 0).release()


# The marker


def mark(target, **changes):
    """Leave a marker and one member, as a process that dies would."""
    dead = dict(holder.describe(), **changes)
    (target / MARKER).write_bytes(holder.encode(dead) + b"\n")
    (target / "member-3").write_text("cont")


def ended_pid():
    with subprocess.Popen(["true"]) as child:
        child.wait()
    return child.pid


def test_an_empty_directory_is_marked_before_the_lock_is_handed_out(target):
    directory = os.fsencode(target)
    with lock.acquire(directory, 0, vacant=lambda: unpacker.is_vacant(directory)) as held:
        assert held.marked
        assert not held.taken_over
        assert json.loads((target / MARKER).read_bytes()) == holder.describe()
        assert held.is_ours()
    assert os.listdir(target) == [MARKER]


def test_a_filled_directory_is_not_marked(target):
    directory = os.fsencode(target)
    (target / "something").write_text("")
    with lock.acquire(directory, 0, vacant=lambda: unpacker.is_vacant(directory)) as held:
        assert not held.marked
    assert os.listdir(target) == ["something"]


def test_a_marker_set_after_the_work_was_done_is_taken_back(target):
    directory = os.fsencode(target)

    def published():
        return os.path.exists(target / MARKER)  # as if it had been done in just that moment

    assert lock.acquire(directory, 0, published, vacant=lambda: True) is None
    assert os.listdir(target) == []


def test_a_living_process_of_another_way_is_waited_for(target):
    with subprocess.Popen(["sleep", "60"]) as other:
        start_time = holder._stat(b"%d" % other.pid)[2]
        mark(target, pid=other.pid, start_time=start_time)
        with pytest.raises(errors.LockTimeout, match=f"pid {other.pid} on host"):
            lock.acquire(os.fsencode(target), 0.2, vacant=lambda: True)
        other.kill()
        with lock.acquire(os.fsencode(target), 20, vacant=lambda: True) as held:
            assert held.taken_over


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 4000, b"null\n", b"[]", b"\xff\0", b'{"pid": 1}', b"{" + b" " * 9000 + b"}"],
)
def test_a_marker_that_names_nobody_is_watched(target, monkeypatch, content):
    monkeypatch.setattr(marker, "SILENCE", 0.5)
    monkeypatch.setattr(marker, "SILENCE_EMPTY", 0.5)
    (target / MARKER).write_bytes(content)
    with pytest.raises(errors.LockTimeout, match="which another process holds"):
        lock.acquire(os.fsencode(target), 0.2, vacant=lambda: True)
    with lock.acquire(os.fsencode(target), 20, vacant=lambda: True) as held:
        assert held.taken_over
        assert os.listdir(target) == [MARKER]


def test_silence_counts_from_the_last_proof_of_life(target, monkeypatch):
    # /proc may be unreadable for once, when a stopped process has been silent for long.
    now, alive = [1000.0], [True]
    monkeypatch.setattr(marker, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(holder, "is_alive", lambda theirs: alive[0])
    mark(target, pid=os.getppid(), host="elsewhere")
    watched = marker.Marker(os.fsencode(target), completion.UNPACKING)
    for now[0] in (1000.0, 2000.0):
        assert not watched.is_free()
    alive[0] = False
    for now[0], free in ((2001.0, False), (2000 + marker.SILENCE, True)):
        assert watched.is_free() == free


def test_a_holder_on_another_host_is_known_by_its_beat(start, target, tmp_path):
    quick = ("--beat", 0.1, "--silence", 1.5)
    first = start("--seconds", 4, "--host", "elsewhere", *quick, inject=ANYBODY)
    first.until("holds")
    second = start("--seconds", 0.1, *quick, inject=ANYBODY)
    assert first.end()[0] == "unpacked"
    assert second.end()[0] == "found complete"
    assert unpackings(tmp_path) == 1


def test_a_silent_holder_on_another_host_is_succeeded_and_does_not_publish(start, target):
    quick = ("--beat", 0.1, "--silence", 1.5)
    first = start("--seconds", 2, "--host", "elsewhere", *quick, inject=ANYBODY)
    first.until("holds")
    process.wait_for((target / "member-1").exists)
    os.kill(first.pid, signal.SIGSTOP)
    second = start("--seconds", 0.1, *quick, inject=ANYBODY)
    assert second.end()[0] == "unpacked"
    check_complete(target)
    (target / "member-19").unlink()  # which the first would have made and now fails to make
    for number in range(19):
        (target / (f"member-{number}")).rename(target / (f"moved-{number}"))
    os.kill(first.pid, signal.SIGCONT)
    assert first.end()[0] == "lost"


def trace_of(tmp_path, target):
    """The system calls of one succession, as (name, how many of that name came before)."""
    trace = tmp_path / "trace"
    command = [commands.need("strace"), "-f", "-qq", "-o", trace, sys.executable, UNPACKER, target]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, capture_output=True)
    counts = collections.Counter()
    calls = []
    for line in trace.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            counts[match[1]] += 1
            calls.append((match[1], counts[match[1]], line))
    first = next(i for i, call in enumerate(calls) if call[0] == "symlink")
    last = next(i for i, call in enumerate(calls) if call[0] == "rename") + 6
    return calls[first : last + 1]


def test_a_successor_killed_anywhere_is_succeeded(start, target, tmp_path):
    mark(target, pid=ended_pid())
    calls = trace_of(tmp_path, target)
    assert {"symlink", "rename", "unlink"} <= {name for name, _, _ in calls}
    for name, count, _ in calls:
        for path in target.iterdir():
            path.unlink()
        mark(target, pid=ended_pid())
        killed = start(inject=[f"inject={name}:signal=KILL:when={count}"])
        assert killed.popen.wait(60) == -signal.SIGKILL, (name, count)
        group = [start(), start()]
        outcomes = collections.Counter(each.end()[0] for each in group)
        assert outcomes == {"unpacked": 1, "found complete": 1}, (name, count)
        check_complete(target)


# Claims


def test_a_dead_process_is_succeeded_by_one_of_many(start, target, tmp_path):
    # Each in turn dies with the lock held: every lock but the first is an inherited one.
    group = [
        start("--only-lock", "--seconds", 60, inject=NO_FILE_LOCKS, go=False) for _ in range(6)
    ]
    for each in group:
        each.go()
    held = target.parent / (LOCK_FILE + ".held")
    dead = set()

    def successor():
        pid = owner(held)
        return None if pid in dead else pid

    for _ in group:
        pid = process.wait_for(successor)
        (holder_of_it,) = [each for each in group if each.pid == pid]
        process.wait_for(lambda each=holder_of_it: says_holds(each))
        time.sleep(0.2)  # a second one would have come by now
        assert [each.pid for each in group if each.pid not in dead and says_holds(each)] == [pid]
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
    left = [name for name in os.listdir(target.parent) if name.startswith(LOCK_FILE + ".held.")]
    assert left == []


def owner(path):
    """The pid in the claim; None between a dead one's removal and its successor's."""
    try:
        return json.loads(os.readlink(path))["pid"]
    except FileNotFoundError:
        return None


def says_holds(each):
    os.set_blocking(each.popen.stdout.fileno(), False)
    each.said = getattr(each, "said", b"") + (each.popen.stdout.read() or b"")
    return b"holds" in each.said


def test_a_claim_of_this_process_is_its_own_again(tmp_path):
    path = os.fsencode(tmp_path / "claim")
    assert claim.take(path)
    assert claim.take(path)
    claim.give_up(path)
    assert not os.path.lexists(path)
    claim.give_up(path)


def test_something_else_under_the_name_of_a_claim_is_not_taken(tmp_path):
    path = tmp_path / "claim"
    path.write_text("not a claim")
    assert not claim.take(os.fsencode(path))
    assert path.read_text() == "not a claim"
    path.unlink()
    path.symlink_to("nobody")
    assert not claim.take(os.fsencode(path))


# The lock file


def test_two_names_of_a_directory_lead_to_one_lock_file(target, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(target)
    monkeypatch.chdir(target.parent)
    names = [os.fsencode(target), os.fsencode(link), b"env", b"env/", b"../place/./env"]
    paths = {tuple(way.path for way in lockfile.ways(name)[1:]) for name in names}
    lock_file = os.fsencode(target.parent / LOCK_FILE)
    assert paths == {(lock_file, lock_file, lock_file + b".held")}


def test_the_longest_name_has_a_lock_file(tmp_path, monkeypatch):
    refuse(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for last in "ab":
        target = tmp_path / ("x" * 254 + last)
        target.mkdir()
        held = lock.acquire(os.fsencode(target), 0)
        assert held.how == "lock file, exclusive"
    assert len([path for path in tmp_path.iterdir() if path.is_symlink()]) == 2


def refuse(monkeypatch, operation, number=errno.ENOLCK):
    def refused(fd, asked):
        assert asked == operation
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(fcntl, "lockf", refused)


def test_a_lock_file_stays_and_names_its_last_holder(target):
    way = lockfile.ways(os.fsencode(target))[1]
    assert way.attempt()
    way.release()
    assert json.loads((target.parent / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_lock_on_a_removed_file_does_not_count(target):
    first, second = (lockfile.ways(os.fsencode(target))[1] for _ in range(2))
    assert first.attempt()
    assert not second.attempt()  # and has the file open now
    (target.parent / LOCK_FILE).unlink()
    first.release()
    assert not second.attempt()
    assert second.attempt()
    second.release()


def test_a_link_in_place_of_the_lock_file_is_not_followed(target, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (target.parent / LOCK_FILE).symlink_to(victim)
    refuse(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(errors.CannotCreate, match=re.escape(LOCK_FILE)):
        lock.acquire(os.fsencode(target), 0)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("number", "failure"),
    [(errno.EPERM, errors.CannotCreate), (errno.ENOSPC, errors.InputOutputError)],
)
def test_what_is_no_refusal_is_told(target, monkeypatch, number, failure):
    refuse(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, number)
    with pytest.raises(failure, match=re.escape(f"cannot lock {target}: ")):
        lock.acquire(os.fsencode(target), 0)


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(errors.CannotCreate, match="No such file"):
        lock.acquire(os.fsencode(tmp_path / "missing"), 0)


# Holders


def start_time(pid):
    return holder._stat(b"%d" % pid)[2]


def test_the_living_are_alive_even_if_stopped():
    me = holder.describe()
    assert holder.is_alive(me)
    assert not holder.is_dead(me)
    assert holder.parse(holder.encode(me)) == me
    with subprocess.Popen(["sleep", "60"]) as child:
        other = dict(me, pid=child.pid, start_time=start_time(child.pid))
        os.kill(child.pid, signal.SIGSTOP)
        process.wait_for(lambda: process.state_of(child.pid) == "T")
        assert holder.is_alive(other)
        assert not holder.is_dead(other)
        child.kill()


def test_the_dead_are_dead():
    me = holder.describe()
    assert holder.is_dead(dict(me, pid=ended_pid()))
    assert holder.is_dead(dict(me, start_time=me["start_time"] + 1))
    with subprocess.Popen(["sleep", "60"]) as child:
        zombie = dict(me, pid=child.pid, start_time=start_time(child.pid))
        child.kill()
        process.wait_for(lambda: process.state_of(child.pid) == "Z")
        assert holder.is_dead(zombie)
        assert not holder.is_alive(zombie)
    assert not any(holder.is_alive(dict(me, pid=pid)) for pid in (ended_pid(), 1))


def test_a_process_whose_threads_outlive_its_leader_is_alive():
    script = (
        "import ctypes, threading, time;"
        "threading.Thread(target=time.sleep, args=(60,)).start();"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        other = dict(holder.describe(), pid=child.pid, start_time=start_time(child.pid))
        process.wait_for(lambda: process.state_of(child.pid) == "Z")
        assert holder.is_alive(other)
        assert not holder.is_dead(other)
        child.kill()
        child.wait()
        assert holder.is_dead(other)


def test_of_others_nothing_is_proved():
    me = dict(holder.describe(), pid=ended_pid())
    strangers = [
        dict(me, host="elsewhere"),
        dict(me, host="elsewhere", boot_id="0"),
        dict(me, boot_id=None),
        dict(me, pid_namespace="pid:[1]"),
        dict(me, pid_namespace="pid:[1]", boot_id="0"),
    ]
    for each in strangers:
        assert not holder.is_dead(each), each
        assert not holder.is_alive(each), each


def test_a_boot_since_is_proof_of_death_outside_containers(monkeypatch):
    here = {"boot_id": "1", "host": "node1", "pid": 5, "start_time": 7}
    monkeypatch.setattr(holder, "describe", lambda: here)
    assert holder.is_dead(dict(here, boot_id="0"))
    assert not holder.is_dead(dict(here, boot_id=None))
    here["host"] = "localhost"
    assert not holder.is_dead(dict(here, boot_id="0"))
    here.update(host="node1", pid_namespace="pid:[3]")
    assert not holder.is_dead(dict(here, boot_id="0"))


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 0},
        {"pid": -1},
        {"pid": 1 << 31},
        {"pid": True},
        {"pid": "1"},
        {"pid": None},
        {"start_time": -1},
        {"start_time": 1 << 64},
        {"start_time": 1.5},
        {"host": "two\nlines"},
        {"host": None},
        {"boot_id": "../.."},
        {"boot_id": 7},
        {"boot_id": ["0"]},
    ],
)
def test_a_malformed_holder_is_none(change):
    assert holder.parse(json.dumps(dict(holder.describe(), **change)).encode()) is None

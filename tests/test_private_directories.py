"""Private directories: nothing in use is removed, and nothing is left of who is proved dead."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import crash, process, scenarios, tracing, trees
from support.commands import missing
from support.crash import OWNER, private_directories

LEAVE = """
import os, sys
prefix = os.environ["CONDA_PREFIX"]
os.closerange(3, 4096)
os.chdir(prefix if sys.argv[1] == "stands in it" else "/")
if sys.argv[1] == "runs a program of it":
    os.execv(prefix + "/bin/stay", ["stay", "60"])
if sys.argv[1] == "runs a script of it":
    os.execv("/bin/sh", ["sh", prefix + "/bin/script"])
os.execv("/bin/sleep", ["sleep", "60"])
"""


@pytest.fixture
def archive(tmp_path):
    """An environment with a program that stays."""
    sleep = Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    others = {"bin/stay": sleep, "bin/script": b"#!/bin/sh\nread x < /dev/zero; sleep 60; true\n"}
    others["bin/script"] = b"sleep 60; true\n"
    return crash.archive(tmp_path / "archive", "tar", others)


@pytest.fixture
def dead(spawn, tiny, tmp_path):
    """Make a private directory of a temporary environment whose owner was killed; its path."""

    def dead():
        before = private_directories(tmp_path / "tmp")
        worker = spawn("-e", tiny, "sh", "-c", "echo ready; exec sleep 600")
        assert worker.stdout.readline() == b"ready\n"
        os.killpg(worker.pid, signal.SIGKILL)
        process.wait_for(lambda: not process.group_members(worker.pid))
        worker.wait()
        (new,) = set(private_directories(tmp_path / "tmp")) - set(before)
        return new

    return dead


def everything(path):
    """A tree, the owner's file in it too."""
    return trees.snapshot(path, ignore=())


@pytest.mark.parametrize(
    "how", ["stands in it", "runs a program of it", "runs a script of it", "has its variables"]
)
def test_a_command_that_closed_every_descriptor_keeps_its_environment(
    run, spawn, archive, tmp_path, how
):
    tool = spawn("-e", archive, sys.executable, "-c", LEAVE, how)
    (command,) = process.wait_for(lambda: process.children_of(tool.pid))
    staying = {"runs a program of it": "stay", "runs a script of it": "sh"}
    name = staying.get(how, "sleep") + "\n"
    process.wait_for(lambda: Path(f"/proc/{command}/comm").read_text() == name)
    (used,) = private_directories(tmp_path / "tmp")
    before = everything(used)
    tool.kill()
    tool.wait()
    run("-e", archive, "hello", check=True)
    assert everything(used) == before
    os.killpg(tool.pid, signal.SIGKILL)
    process.wait_for(lambda: not process.group_members(tool.pid))
    run("-e", archive, "hello", check=True)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_lock_that_is_granted_to_everybody_is_no_proof_of_death(run, spawn, tiny, tmp_path):
    worker = spawn("-e", tiny, "sh", "-c", "echo ready; exec sleep 60")
    assert worker.stdout.readline() == b"ready\n"
    (used,) = private_directories(tmp_path / "tmp")
    run("-e", tiny, "hello", wrapper=tracing.strace("-e", "inject=flock:retval=0"), check=True)
    assert private_directories(tmp_path / "tmp") == [used]
    assert os.listdir(used / "env"), "it was emptied"


def test_starts_without_a_directory_do_not_remove_each_other_while_they_begin(
    run, tiny, dead, tmp_path
):
    for _ in range(3):
        dead()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: run("-e", tiny, "hello"), range(48)))
    assert {(each.returncode, each.stdout, each.stderr) for each in results} == {
        (0, b"hello\n", b"")
    }
    assert os.listdir(tmp_path / "tmp") == []


# What is another's


def identity(kind):
    """How this boot, or this namespace, is named in an owner's file, in any form of it."""
    if kind == "boot":
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    link = os.readlink(f"/proc/self/ns/{kind}")
    return [link, link[link.index("[") + 1 : -1]]


def change(owner, names, new):
    """Replace what is among ``names``, in an owner's file."""
    facts = json.loads(owner.read_text())
    keys = [key for key, value in facts.items() if str(value) in names]
    assert keys, (facts, names)
    for key in keys:
        facts[key] = type(facts[key])(new)
    owner.write_text(json.dumps(facts))


ELSEWHERE = {"boot": "11111111-2222-3333-4444-555555555555", "pid": "1", "time": "1"}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_owner_elsewhere_is_not_proved_dead_before_a_day_has_passed(
    run, tiny, dead, tmp_path, kind
):
    left = dead()
    names = identity(kind)
    new = ELSEWHERE[kind] if kind == "boot" else names[0].replace(names[1], "1")
    change(left / OWNER, names, new)
    before = everything(left)
    run("-e", tiny, "hello", check=True)
    assert everything(left) == before
    scenarios.age(tmp_path / "tmp")
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    run("-e", tiny, "hello", check=True)
    assert everything(left).keys() == before.keys(), "its lease is held"
    os.close(descriptor)
    run("-e", tiny, "hello", check=True)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_pid_that_another_process_has_now_is_no_life(run, tiny, dead, tmp_path):
    left = dead()
    facts = json.loads((left / OWNER).read_text())
    change(left / OWNER, [str(facts["pid"])], os.getpid())
    run("-e", tiny, "hello", check=True)
    assert os.listdir(tmp_path / "tmp") == []


def no_owner(path):
    (path / OWNER).unlink()


def empty_owner(path):
    (path / OWNER).write_bytes(b"")


def brackets(path):
    (path / OWNER).write_bytes(b"[" * 30_000)


def huge(path):
    os.truncate(path / OWNER, 1 << 32)


def not_an_object(path):
    (path / OWNER).write_bytes(b'[{"pid": 1}]')


def odd_fields(path):
    facts = json.loads((path / OWNER).read_text())
    (path / OWNER).write_text(json.dumps({key: [value] for key, value in facts.items()}))


def link_to_it(path):
    (path / OWNER).rename(path / "owner")
    (path / OWNER).symlink_to("owner")


def fifo(path):
    (path / OWNER).unlink()
    os.mkfifo(path / OWNER)


def folder(path):
    (path / OWNER).unlink()
    (path / OWNER).mkdir()


def open_to_others(path):
    path.chmod(0o777)


def open_to_the_group(path):
    path.chmod(0o770)


def renamed_to_a_link(path):
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)


NOT_OURS = [
    no_owner, empty_owner, brackets, huge, not_an_object, odd_fields, link_to_it, fifo, folder,
    open_to_others, open_to_the_group, renamed_to_a_link,
]  # fmt: skip


@pytest.mark.parametrize("disguise", NOT_OURS, ids=lambda function: function.__name__)
def test_what_has_no_valid_owner_is_never_touched(run, tiny, dead, tmp_path, disguise):
    left = dead()
    disguise(left)
    scenarios.age(tmp_path / "tmp")
    before = {path: path.lstat()[:6] for path in [left, *left.rglob("*")]}
    run("-e", tiny, "hello", check=True, timeout=30)
    assert {path: path.lstat()[:6] for path in [left, *left.rglob("*")]} == before


@pytest.mark.root
@pytest.mark.parametrize("whose", ["root's", "another's"])
def test_what_another_user_has_renamed_to_our_pattern_is_not_touched(
    run, tiny, dead, tmp_path, whose
):
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    left = dead()
    uid = 0 if whose == "another's" else scenarios.NOBODY
    theirs = left.with_name(left.name.replace("-0-", f"-{uid}-"))
    left.rename(theirs)
    for path in [theirs, *theirs.rglob("*")]:
        os.chown(path, scenarios.NOBODY, scenarios.NOBODY, follow_symlinks=False)
    scenarios.age(tmp_path / "tmp")
    before = everything(theirs)
    run("-e", tiny, "hello", check=True)
    assert everything(theirs) == before


@pytest.mark.parametrize("mounted_at", ["env/lib", "env"])
@pytest.mark.parametrize("file_system", ["the same", "another"])
def test_what_is_mounted_inside_the_remains_of_the_dead_is_not_emptied(
    run, tiny, dead, tmp_path, mounted_at, file_system
):
    left = dead()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if file_system == "another" else None) as name:
        victim = Path(name)
        (victim / "below").mkdir()
        (victim / "below" / "precious").write_text("ten years of work")
        before = everything(victim)
        wrapper = scenarios.mounting(victim, left / mounted_at)
        run("-e", tiny, "hello", wrapper=wrapper, check=True)
        assert everything(victim) == before


def test_what_the_command_has_mounted_inside_is_not_emptied(run, tiny, tmp_path):
    victim, other = tmp_path / "victim", tmp_path / "other"
    victim.mkdir()
    other.mkdir()
    (victim / "precious").write_text("ten years of work")
    script = 'mount --bind "$0" "$CONDA_PREFIX/lib" && echo mounted'
    # A mount namespace for the tool, too: its removal comes upon the mount.
    wrapper = scenarios.mounting(other, other)
    result = run("-e", tiny, "sh", "-c", script, victim, wrapper=wrapper)
    if result.stdout != b"mounted\n":
        missing("needs to mount")
    assert (result.returncode, result.stderr) == (0, b"")
    assert (victim / "precious").read_text() == "ten years of work"


def test_its_mode_and_name_are_private_and_its_owner_is_named(run, tiny, tmp_path):
    script = 'cd "$CONDA_PREFIX/.." && stat -c %a . && basename "$PWD" && cat ' + OWNER
    mode, name, *owner = (
        run("-e", tiny, "sh", "-c", script, check=True, umask=0).stdout.decode().splitlines()
    )
    assert mode == "700"
    assert name.startswith(f"poncho_package_run-{os.geteuid()}-")
    facts = json.loads("\n".join(owner))
    assert facts["host"] == os.uname().nodename
    for kind in ("boot", "pid", "time"):
        assert set(map(str, facts.values())) & set(identity(kind)), f"{kind} is not named"


def test_names_cannot_be_foreseen(run, tiny, tmp_path):
    names = {
        run("-e", tiny, "sh", "-c", 'echo "$CONDA_PREFIX"', check=True).stdout for _ in range(4)
    }
    assert len(names) == 4
    random = [os.fsdecode(name).split("-")[-1].split("/")[0] for name in names]
    assert min(map(len, random)) >= 8


def test_many_remains_are_removed_and_cost_no_failure(run, tiny, dead, tmp_path):
    left = dead()
    for number in range(30):
        subprocess.run(["cp", "-a", left, f"{left}{number}"], check=True)
    run("-e", tiny, "hello", check=True)
    assert os.listdir(tmp_path / "tmp") == []

"""One rename decides: what is published is whole, keeps what DIR was, and stays usable."""

import gzip
import os
import shutil
import signal
import stat
import subprocess

import pytest

from support import crash, process, scenarios, tars, tracing, trees
from support.commands import missing, need
from support.crash import MANIFEST, MARKER
from support.environments import PLACEHOLDER

RENAMES = {"rename", "renameat", "renameat2"}


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.Scenario,
        scenarios.Empty,
        scenarios.MountPoint,
        scenarios.WorkingDirectory,
        scenarios.UnwritableParent,
        scenarios.Damaged,
        scenarios.DamagedMountPoint,
    ],
    ids=scenarios.name_of,
)
def test_killed_at_any_rename_it_is_absent_or_complete(ground, scenario):
    """All of them, where test_crash takes a sample of all calls."""
    killed = scenario(ground())
    points = [point for point in killed.points() if point.name in RENAMES]
    assert points
    for point in points:
        try:
            killed.strike(point)
        except AssertionError as error:
            raise AssertionError(f"killed at {point}: {error}")


@pytest.mark.parametrize("scenario", [scenarios.MountPoint, scenarios.WorkingDirectory])
def test_stopped_between_its_renames_another_finishes_for_it(ground, scenario):
    stopped = scenario(ground())
    points = [point for point in stopped.points() if point.name in RENAMES]
    for point in crash.spread(points, 4):
        for calls in ((), ("inject=flock:retval=0",)):
            try:
                stopped.overtake(point, *calls)
            except AssertionError as error:
                raise AssertionError(f"stopped at {point}, {calls}: {error}")


def test_one_who_is_late_with_a_publication_does_not_mind_that_another_begins_one(ground):
    """Three: one is about to publish, one is about to rename up, one does it for him and ends.

    Who goes on then finds another's publication under the name of the one he had opened.
    """
    late = scenarios.WorkingDirectory(ground())
    points, place = late.points(), late.place
    renaming = next(
        index
        for index, point in enumerate(points)
        if point.name in RENAMES and crash.PUBLISHING in point.arguments
    )
    # Of the file that it opens they are few, however many private directories it comes upon.
    path = place.kept / crash.PUBLISHING
    opened = [point.name == "openat" and str(path) in point.arguments for point in points]
    opening = crash.Point("openat", sum(opened[:renaming]) + 1)
    anybody = "inject=flock:retval=0"
    before = next(p for p in reversed(points[:renaming]) if p.name != points[renaming].name)
    then = f"inject={points[renaming].name}:signal=STOP:when={points[renaming].number}"
    wrapper = tracing.strace("-e", anybody)
    # On a busy machine one may be past its stop before another is where it is wanted: all is well
    # then too, and is tried again.
    for _ in range(4):
        late.prepare()
        second = crash.Stopped(place, late.killed, before, anybody, then)
        first = crash.Stopped(place, late.killed, opening, only=path)
        there = [crash.PUBLISHING in os.listdir(place.kept)]
        assert place.run(*late.words, wrapper=wrapper).returncode == 0
        second.go_on_to_the_next_stop()
        there.append(crash.PUBLISHING in os.listdir(place.kept))
        results = [first.end(), second.end(), place.run(*late.words)]
        assert [(each.returncode, each.stderr) for each in results] == [(0, b"")] * 3
        late.compare(late.tree())
        assert place.left() == []
        if all(there):
            break
    assert all(there)


def whole(kept, tmp_path, archive):
    """Assert that an environment is what another program unpacks, relocated."""
    fresh = tmp_path / "fresh"
    scenarios.extract(archive, fresh)
    expected, found = trees.snapshot(fresh), trees.snapshot(kept)
    for name, content in crash.relocated(str(kept)).items():
        assert (kept / name).read_bytes() == content
        del expected[name.encode()], found[name.encode()]
    assert not trees.differences(expected, found)
    crash.remove(fresh)


@pytest.mark.parametrize("format", ["tar", "tar.gz", "tar.gz -j"])
@pytest.mark.parametrize("where", ["absent", "empty", "working directory", "mount point"])
def test_the_tree_is_what_another_program_unpacks(run, tmp_path, format, where):
    archive, kept = crash.archive(tmp_path / "archive", format), tmp_path / "kept"
    wrapper, cwd, given, seen = [], tmp_path, kept, kept
    if where != "absent":
        kept.mkdir()
    if where == "working directory":
        cwd, given = kept, "."
    if where == "mount point":
        seen = tmp_path / "seen"
        seen.mkdir()
        wrapper = scenarios.mounting(seen, kept)
    result = run("-e", archive, "-d", given, "hello", wrapper=wrapper, cwd=cwd, check=True)
    assert (result.stdout, result.stderr) == (b"hello from " + bytes(kept), b"")
    if where == "mount point":
        kept.rmdir()
        seen.rename(kept)
    whole(kept, tmp_path, archive)


def test_a_dead_runs_files_that_cannot_be_removed_do_not_get_into_the_environment(run, tmp_path):
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    kept.mkdir()
    kept.chmod(0o751)
    words = ["-e", archive, "-d", kept, "hello"]
    run(*words, wrapper=tracing.strace("-e", "inject=?symlink,symlinkat:signal=KILL:when=1"))
    wrapper = tracing.failing("?unlink,unlinkat,?rmdir", "EIO")
    result = run(*words, wrapper=wrapper, check=True)
    assert (result.stdout, result.stderr) == (b"hello from " + bytes(kept), b"")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o751
    whole(kept, tmp_path, archive)
    assert {name for name in os.listdir(kept) if name.startswith(".")} == {MARKER, MANIFEST}


# What the directory itself is


def keeping(kept):
    """What must be the same behind it."""
    status = kept.stat()
    facts = [stat.filemode(status.st_mode), status.st_uid, status.st_gid]
    return facts + [(name, os.getxattr(kept, name)) for name in sorted(os.listxattr(kept))]


def attribute(kept):
    os.setxattr(kept, "user.note", b"mine")


def no_dump(kept):
    subprocess.run([need("chattr"), "+d", kept], check=True)


MARKS = {
    "closed": lambda kept: kept.chmod(0o700),
    "setgid": lambda kept: kept.chmod(0o2775),
    "sticky": lambda kept: kept.chmod(0o1777),
    "an attribute": attribute,
    "an access list": lambda kept: os.setxattr(
        kept, scenarios.DefaultAcl.ACCESS, scenarios.acl(user=4242)
    ),
    "a flag": no_dump,
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_directory_that_existed_stays_what_it_was(run, tiny, tmp_path, mark):
    kept = tmp_path / "kept"
    kept.mkdir()
    try:
        MARKS[mark](kept)
    except (OSError, subprocess.CalledProcessError) as error:
        missing(f"needs a file system that has it: {error}")
    before = keeping(kept)
    flags = subprocess.run(["lsattr", "-d", kept], capture_output=True).stdout
    result = run("-e", tiny, "-d", kept, "hello", check=True)
    assert (result.stdout, result.stderr) == (b"hello\n", b"")
    assert keeping(kept) == before
    assert subprocess.run(["lsattr", "-d", kept], capture_output=True).stdout == flags


@pytest.mark.root
@pytest.mark.parametrize("group", [4242, scenarios.NOBODY])
def test_a_directory_of_a_group_that_one_may_not_give_stays_of_it(ground, group):
    """A user makes what is of his own groups only, so this one must be filled where it is."""
    place = ground()
    scenarios.be_nobody(place)
    os.chown(place.root, scenarios.NOBODY, -1)
    place.kept.mkdir()
    os.chown(place.kept, scenarios.NOBODY, group)
    place.kept.chmod(0o2770)
    before = keeping(place.kept)
    result = place.run("-e", place.archive, "-d", place.kept, "hello")
    assert (result.returncode, result.stderr) == (0, b"")
    assert keeping(place.kept) == before
    assert place.left() == []


@pytest.mark.root
def test_the_directory_of_another_user_that_root_fills_stays_the_others(run, tiny, tmp_path):
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    kept = tmp_path / "kept"
    kept.mkdir()
    os.chown(kept, scenarios.NOBODY, 4242)
    before = keeping(kept)
    run("-e", tiny, "-d", kept, "hello", check=True)
    assert keeping(kept) == before


# Relocation where it lies


@pytest.mark.root
def test_root_relocating_a_users_directory_leaves_its_files_to_the_user(run, tmp_path):
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    kept = tmp_path / "kept"
    scenarios.extract(crash.archive(tmp_path / "archive", "tar"), kept)
    for path in [kept, *kept.rglob("*")]:
        os.chown(path, scenarios.NOBODY, 4242, follow_symlinks=False)
    run("-e", kept, "hello", check=True)
    owners = {
        path.relative_to(kept).as_posix(): (path.lstat().st_uid, path.lstat().st_gid)
        for path in [kept, *kept.rglob("*")]
    }
    for name in crash.relocated(str(kept)):
        assert owners[name] == (scenarios.NOBODY, 4242), name


@pytest.mark.parametrize("locale", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_killed_under_one_encoding_and_continued_under_another_all_is_relocated(
    run, tmp_path, locale
):
    """Records name files in bytes, whatever the locale makes of them."""
    name = "lib/b\u00fcro.txt"
    text = f"root = {PLACEHOLDER}\n".encode()
    records = [(name, PLACEHOLDER, "text"), ("bin/hello", PLACEHOLDER, "text")]
    lines = "".join(f"{record!r},\n" for record in records)
    script = f"# -*- coding: utf-8 -*-\n_prefix_records = [\n{lines}]\n".encode()
    kept = tmp_path / "kept"
    members = {"bin/conda-unpack": script}
    archive = crash.archive(tmp_path / "archive", "tar", members)
    scenarios.extract(archive, kept)
    path = os.fsencode(kept) + b"/" + name.encode()
    with open(path, "wb") as file:
        file.write(text)
    wrapper = tracing.strace("-e", "inject=?rename,renameat:signal=KILL:when=1")
    run("-e", kept, "hello", wrapper=wrapper, env={"LC_ALL": "C.UTF-8"})
    run("-e", kept, "hello", env=locale, check=True)
    with open(path, "rb") as file:
        assert file.read() == text.replace(PLACEHOLDER.encode(), bytes(kept))
    assert (kept / "bin" / "hello").read_bytes() == crash.relocated(str(kept))["bin/hello"]


@pytest.mark.parametrize("recorded", ["bin/first", "bin/second"])
@pytest.mark.parametrize("given", ["-e", "-d"])
def test_hard_links_of_which_one_name_has_a_record_are_both_relocated(
    run, tmp_path, recorded, given
):
    text = f"#!/bin/sh\nprintf %s {PLACEHOLDER}\n".encode()
    records = f"\n_prefix_records = [\n({recorded!r}, {PLACEHOLDER!r}, 'text'),\n]\n".encode()
    members = [
        tars.member(b"bin/first", text, mode=0o755),
        tars.hardlink(b"bin/second", b"bin/first"),
        tars.member(b"bin/conda-unpack", records),
    ]
    archive, kept = tmp_path / "archive", tmp_path / "kept"
    archive.write_bytes(tars.environment(*members))
    if given == "-e":
        scenarios.extract(archive, kept)
    words = ["-e", kept] if given == "-e" else ["-e", archive, "-d", kept]
    for name in ("first", "second"):
        assert run(*words, name, check=True).stdout == bytes(kept)
    assert os.path.samefile(kept / "bin" / "first", kept / "bin" / "second")


# What is there stays usable


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "another directory"])
def test_something_beside_the_top_directory_does_not_make_it_no_environment(run, tmp_path, name):
    hello = b'#!/bin/sh\nprintf "hello from %s" "$CONDA_PREFIX"\n'
    members = [
        tars.member(b"env/conda-meta/history"),
        tars.member(b"env/bin/hello", hello, mode=0o755),
    ]
    archive, kept = tmp_path / "archive", tmp_path / "kept"
    archive.write_bytes(gzip.compress(b"".join(members) + tars.END))
    words = ["-e", archive, "-d", kept, "hello"]
    first = run(*words, check=True)
    assert first.stdout == b"hello from " + bytes(kept / "env")
    (kept / name).mkdir() if "directory" in name else (kept / name).write_text("mine")
    again = run(*words, check=True)
    assert (again.stdout, again.stderr) == (first.stdout, b"")
    # Nor what the guess would take for another environment.
    shutil.copytree(kept / "env", kept / "copy")
    again = run(*words, check=True)
    assert (again.stdout, again.stderr) == (first.stdout, b"")


def test_a_process_that_stands_in_an_empty_directory_is_not_left_in_a_removed_one(
    run, tiny, tmp_path
):
    """`cd env; tool -d . pwd -P`: the command is in a directory that still has a name."""
    kept = tmp_path / "kept"
    kept.mkdir()
    script = 'test "$(pwd -P)" -ef . && test -e bin/hello && test . -ef "$CONDA_PREFIX" && pwd -P'
    for cwd, given in ((kept, "."), (kept, kept), (kept, "../kept")):
        result = run("-e", tiny, "-d", given, "sh", "-c", script, cwd=cwd)
        assert (result.returncode, result.stderr) == (0, b""), given
        assert result.stdout.decode() == f"{kept}\n"
        shutil.rmtree(kept)
        kept.mkdir()


def test_the_command_below_the_directory_stands_where_it_stood(run, tiny, tmp_path):
    """The working directory is an empty one's parent: nothing of that is touched."""
    work = tmp_path / "work"
    work.mkdir()
    inode = work.stat().st_ino
    for _ in range(2):
        run("-e", tiny, "-d", "kept", "test", "-e", "kept/bin/hello", cwd=work, check=True)
        assert work.stat().st_ino == inode


def test_who_is_stopped_keeps_the_others_waiting_but_not_for_ever(spawn, run, tiny, tmp_path):
    """Where locks hold, a wait ends with 75; killed, the stopped one is in nobody's way."""
    kept = tmp_path / "kept"
    first = spawn("-e", "/dev/stdin", "-d", kept, "hello", stdin=subprocess.PIPE)
    first.stdin.write(tiny.read_bytes()[:100])
    first.stdin.flush()
    process.wait_for(lambda: list(tmp_path.glob(".*/env")))
    os.kill(first.pid, signal.SIGSTOP)
    assert run("-e", tiny, "-d", kept, "-w", "0.3", "hello").returncode == 75
    first.kill()
    first.wait()
    assert run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True).stdout == b"hello\n"
    assert crash.private_directories(tmp_path) == []


def test_a_short_wait_does_not_prevent_recovery_from_containers_that_died(run, tiny, tmp_path):
    """One killed while it unpacked, one while it took over, in other pid namespaces."""
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    words = ["-e", archive, "-d", kept, "-w", "5", "hello"]
    for _ in range(2):
        inside = scenarios.in_a_container()
        killing = tracing.strace("-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
        run(*words, wrapper=[*inside, *killing])
        assert not (kept / MARKER).exists()
    words[words.index("5")] = "0"
    assert run(*words, check=True).stdout == b"hello from " + bytes(kept)
    whole(kept, tmp_path, archive)


@pytest.mark.parametrize("then", ["from elsewhere", "from elsewhere, without a wait"])
def test_what_a_container_left_inside_the_directory_keeps_nobody_out(run, tmp_path, then):
    """It was the working directory of a run of which nobody can tell that it is dead.

    Seen from elsewhere the directory could be replaced, but for what is left in it.
    """
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    kept.mkdir()
    killing = tracing.strace("-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
    wrapper = [*scenarios.in_a_container(), *killing]
    run("-e", archive, "-d", ".", "hello", wrapper=wrapper, cwd=kept)
    assert len(crash.private_directories(kept)) == 1
    seconds = "0" if "without" in then else "5"
    result = run("-e", archive, "-d", kept, "-w", seconds, "hello", timeout=20)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"hello from " + bytes(kept)
    scenarios.age(kept)
    for private in crash.private_directories(kept):
        crash.remove(private)
    whole(kept, tmp_path, archive)


def test_a_directory_that_is_being_filled_inside_is_not_run_in_by_its_name(run, tmp_path):
    """``-e DIR`` while the entries of DIR are renamed up, and after a kill in between."""
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    kept.mkdir()
    killing = tracing.strace("-e", "inject=?rename,renameat:signal=KILL:when=3")
    run("-e", archive, "-d", ".", "hello", cwd=kept, wrapper=killing)
    assert not (kept / MARKER).exists()
    result = run("-e", kept, "hello", check=True)
    assert result.stdout == b"hello from " + bytes(kept)
    whole(kept, tmp_path, archive)


def test_a_damaged_directory_is_moved_aside_by_one_rename(run, tmp_path):
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    run("-e", archive, "-d", kept, check=True)
    (kept / MARKER).write_text("")
    killing = tracing.strace("-e", "inject=?rename,renameat:signal=KILL:when=1")
    run("-e", archive, "-d", kept, "hello", wrapper=killing)
    assert not kept.exists() or (kept / MARKER).read_bytes() == b""
    result = run("-e", archive, "-d", kept, "hello", check=True)
    assert result.stdout == b"hello from " + bytes(kept)
    whole(kept, tmp_path, archive)
    assert crash.private_directories(tmp_path) == []

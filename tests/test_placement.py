"""Contract 3, where the environment goes: each row of its table, then each rule below it."""

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from support import crash, process, trees
from support.messages import refused

_F_SETPIPE_SZ = 1031
"""Linux's fcntl.F_SETPIPE_SZ, which Python names from 3.10 on."""

MARKER = ".poncho_package_run_expanded"
MANIFEST = ".poncho_package_run_manifest"


@contextmanager
def locked(directory):
    """Hold the writing lock, as another process would."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def state(directory):
    """Everything that a write would change, times of inode changes too."""
    paths = [directory, *directory.rglob("*")]
    return {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in paths}


def names(directory):
    return sorted(os.listdir(directory))


@pytest.fixture
def stalled(spawn, environment, tmp_path):
    """An unpacking to tmp_path/"kept" that has begun and waits for the rest of its archive.

    Returns the process and a function that hands it the rest.
    """
    data = environment.archive("tar").read_bytes()
    words = ["-e", "/dev/stdin", "-d", tmp_path / "kept", "sh", "-c", "echo first"]
    worker = spawn(*words, stdin=subprocess.PIPE)
    # Room for all of the first part: this test must not hang with a tool that does not read.
    size = fcntl.fcntl(worker.stdin, _F_SETPIPE_SZ, 1 << 20)
    first, rest = data[:size], data[size:]
    assert rest
    os.write(worker.stdin.fileno(), first)
    process.wait_for(lambda: list(tmp_path.glob(".*/env/bin")), what="the first files")

    def finish():
        with worker.stdin:
            worker.stdin.write(rest)

    return worker, finish


class TestArchiveWithoutDirectory:
    def test_it_goes_to_a_fresh_private_directory_under_tmpdir(self, run, tiny, tmp_path):
        script = 'umask; d=$CONDA_PREFIX; while [ "$d" != / ]; do stat -c "%a %n" "$d"; d=${d%/*};'
        result = run("-e", tiny, "sh", "-c", script + ' [ -n "$d" ] || d=/; done', check=True)
        modes = dict(
            reversed(line.split(" ", 1)) for line in result.stdout.decode().splitlines()[1:]
        )
        below = [path for path in modes if path.startswith(f"{tmp_path}/tmp/")]
        assert below
        outermost = min(below, key=len)
        assert modes[outermost] == "700"
        assert os.path.dirname(outermost) == f"{tmp_path}/tmp"

    def test_it_is_removed_when_the_command_has_ended(self, run, tiny, tmp_path):
        assert run("-e", tiny, "hello", check=True).stdout == b"hello\n"
        assert names(tmp_path / "tmp") == []

    def test_it_is_removed_whatever_the_command_made_of_it(self, run, tiny, tmp_path):
        script = (
            'cd "$CONDA_PREFIX" && mkdir -p a/b/c && touch a/b/c/d "$(printf "x\\377")"'
            " && ln -s / root && mkfifo fifo && chmod 0 a/b/c a/b && chmod 555 a . && rm bin/hello"
        )
        run("-e", tiny, "sh", "-c", script, check=True)
        assert names(tmp_path / "tmp") == []

    def test_two_runs_have_one_each(self, run, tiny, spawn):
        first = spawn("-e", tiny, "sh", "-c", 'echo "$CONDA_PREFIX"; read x', stdin=-1)
        one = first.stdout.readline()
        two = run("-e", tiny, "sh", "-c", 'echo "$CONDA_PREFIX"', check=True).stdout
        assert one != two
        assert os.path.isdir(one.strip())
        first.communicate(b"\n", timeout=60)
        assert first.returncode == 0


class TestArchiveAndDirectory:
    def test_that_does_not_exist_is_created_with_its_parents(self, run, tiny, tmp_path):
        kept = tmp_path / "a" / "b" / "kept"
        assert run("-e", tiny, "-d", kept, "hello", check=True).stdout == b"hello\n"
        assert (kept / "lib" / "data.txt").read_bytes() == b"data\n"
        assert names(kept.parent) == ["kept"]
        assert names(tmp_path / "tmp") == []

    def test_that_is_empty_is_filled_and_kept(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        kept.mkdir(mode=0o750)
        kept.chmod(0o2751)
        if os.geteuid() == 0:
            os.chown(kept, 65534, 12)
        before = kept.stat()
        assert run("-e", tiny, "-d", kept, "hello", check=True).stdout == b"hello\n"
        after = kept.stat()
        assert stat.filemode(after.st_mode) == stat.filemode(before.st_mode)
        assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
        assert (kept / MARKER).is_file()
        assert names(tmp_path) == ["kept", "tmp"]

    def test_that_is_given_relative_to_the_working_directory(self, run, tiny, tmp_path):
        script = 'pwd; echo "$CONDA_PREFIX"'
        result = run("-e", tiny, "-d", "kept/", "sh", "-c", script, cwd=tmp_path, check=True)
        assert result.stdout.decode() == f"{tmp_path}\n{tmp_path}/kept\n"

    def test_that_is_a_symlink_to_a_directory(self, run, tiny, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        run("-e", tiny, "-d", tmp_path / "link", "hello", check=True)
        assert (tmp_path / "real" / MARKER).is_file()
        assert (tmp_path / "link").is_symlink()

    def test_that_is_complete_is_used_as_it_is(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        run("-e", tiny, "-d", kept, check=True)
        before = state(kept)
        assert run("-e", tiny, "-d", kept, "hello", check=True).stdout == b"hello\n"
        assert state(kept) == before
        assert names(tmp_path) == ["kept", "tmp"]

    def test_that_is_complete_needs_no_lock(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        run("-e", tiny, "-d", kept, check=True)
        with locked(kept):
            result = run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True)
        assert result.stdout == b"hello\n"

    def test_that_is_complete_may_be_read_only(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        run("-e", tiny, "-d", kept, check=True)
        for path in [kept, *kept.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        try:
            result = run("-e", tiny, "-d", kept, "hello", check=True)
        finally:
            for path in [kept, *(each for each in kept.rglob("*") if each.is_dir())]:
                path.chmod(0o755)
        assert (result.stdout, result.stderr) == (b"hello\n", b"")

    def test_that_is_complete_needs_no_archive_content(self, run, tiny, tmp_path):
        archive, kept = tmp_path / "archive", tmp_path / "kept"
        shutil.copy2(tiny, archive)
        run("-e", archive, "-d", kept, check=True)
        status = archive.stat()
        archive.write_bytes(bytes(status.st_size))
        os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
        result = run("-e", archive, "-d", kept, "hello", check=True)
        assert (result.stdout, result.stderr) == (b"hello\n", b"")

    def test_that_another_process_is_unpacking_is_waited_for(
        self, spawn, environment, stalled, tmp_path
    ):
        first, finish = stalled
        words = ["-e", environment.archive(), "-d", tmp_path / "kept", "-w", "60"]
        second = spawn(*words, "sh", "-c", "cat $CONDA_PREFIX/conda-meta/history; echo second")
        time.sleep(0.5)
        assert second.poll() is None
        finish()
        assert first.stdout.read() == b"first\n"
        assert first.wait(timeout=60) == 0
        out, _ = second.communicate(timeout=60)
        assert out.endswith(b"second\n")
        assert out.startswith(b"==> ")
        # The first one's marker, so the second did not unpack again.
        marker = json.loads((tmp_path / "kept" / MARKER).read_text())
        assert marker["archive"] == "/dev/stdin"

    def test_that_another_process_is_unpacking_is_not_waited_for_longer_than_said(
        self, run, tiny, stalled, tmp_path
    ):
        kept = tmp_path / "kept"
        refused(run("-e", tiny, "-d", kept, "-w", "0", "hello"), 75, str(kept))
        assert list(tmp_path.glob(".*/env/bin")), "the other's work is left alone"

    def test_where_an_unpacking_died_is_unpacked_again_and_its_remains_go(
        self, run, environment, stalled, tmp_path
    ):
        first, _ = stalled
        kept = tmp_path / "kept"
        assert names(kept) == []
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        words = ["-e", environment.archive("tar"), "-d"]
        run(*words, kept, "true", check=True)
        assert names(tmp_path) == ["kept", "tmp"]
        run(*words, tmp_path / "fresh", "true", check=True)
        found, expected = trees.snapshot(kept), trees.snapshot(tmp_path / "fresh")
        # Relocated files hold their own prefix, and so differ in content and time.
        fields = ["type", "mode", "target", "nlink_group"]
        assert not trees.differences(expected, found, fields=fields)

    def test_without_a_mark_is_used_as_it_is(self, run, tiny, tmp_path):
        mine = tmp_path / "mine"
        (mine / "conda-meta").mkdir(parents=True)
        (mine / "bin").mkdir()
        (mine / "bin" / "hello").write_text("#!/bin/sh\necho mine\n")
        (mine / "bin" / "hello").chmod(0o755)
        before = state(mine)
        assert run("-e", tiny, "-d", mine, "hello", check=True).stdout == b"mine\n"
        assert state(mine) == before

    def test_without_a_mark_is_waited_for_until_its_lock_is_free(self, run, spawn, tiny, tmp_path):
        mine = tmp_path / "mine"
        (mine / "conda-meta").mkdir(parents=True)
        with locked(mine):
            refused(run("-e", tiny, "-d", mine, "-w", "0", "true"), 75, str(mine))
            waiter = spawn("-e", tiny, "-d", mine, "-w", "60", "echo", "in")
            time.sleep(0.5)
            assert waiter.poll() is None
        assert waiter.communicate(timeout=60) == (b"in\n", b"")

    def test_without_a_mark_or_an_environment_is_a_clear_error(self, run, tiny, tmp_path):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("ten years of work")
        before = state(mine)
        refused(run("-e", tiny, "-d", mine, "true"), 65, str(mine))
        assert state(mine) == before

    def test_that_is_a_file_is_error_73(self, run, tiny, tmp_path):
        (tmp_path / "file").touch()
        refused(run("-e", tiny, "-d", tmp_path / "file", "true"), 73, str(tmp_path / "file"))


class TestDirectoryAsEnvironment:
    @pytest.fixture
    def unpacked(self, environment, tmp_path):
        """What `conda-pack --format no-archive` leaves, or `tar xf` of an archive."""
        target = tmp_path / "unpacked"
        shutil.copytree(environment.archive("no-archive", scripts=False), target, symlinks=True)
        return target

    def test_it_is_used_where_it_is(self, run, unpacked, tmp_path):
        result = run("-e", unpacked, "sh", "-c", 'echo "$CONDA_PREFIX"', check=True)
        assert result.stdout.decode() == f"{unpacked}\n"
        assert names(tmp_path) == ["tmp", "unpacked"]
        assert names(tmp_path / "tmp") == []

    def test_it_is_relocated_once(self, run, unpacked):
        out = run("-e", unpacked, "showprefix", check=True).stdout.decode()
        assert out == f"{unpacked}\n{unpacked}/share/showprefix:{unpacked}/lib\n"
        before = state(unpacked)
        assert run("-e", unpacked, "showprefix", check=True).stdout.decode() == out
        assert state(unpacked) == before

    def test_it_is_relocated_under_the_lock(self, run, unpacked):
        before = state(unpacked)
        with locked(unpacked):
            refused(run("-e", unpacked, "-w", "0", "true"), 75, str(unpacked))
        assert state(unpacked) == before

    def test_relocating_it_leaves_the_package_cache_alone(self, run, environment, tmp_path):
        # conda-pack makes this tree of hard links to its sources, where they are on one device.
        target = tmp_path / "unpacked"
        source = tmp_path / "source"
        shutil.copytree(environment.archive("no-archive", scripts=False), source, symlinks=True)
        before = trees.snapshot(source)
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
        run("-e", target, "showprefix", check=True)
        assert not trees.differences(before, trees.snapshot(source))

    def test_the_directory_option_is_ignored_with_one_line(self, run, unpacked, tmp_path):
        result = run("-e", unpacked, "-d", tmp_path / "kept", "showprefix", check=True)
        assert result.stdout.decode().splitlines()[0] == str(unpacked)
        assert result.stderr.count(b"\n") == 1
        assert result.stderr.startswith(b"poncho_package_run: ")
        assert b"--unpack-to" in result.stderr
        assert not (tmp_path / "kept").exists()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only directory")
    def test_it_is_used_unrelocated_where_it_cannot_be_written(self, run, unpacked):
        for path in [unpacked, *(each for each in unpacked.rglob("*") if each.is_dir())]:
            path.chmod(0o555)
        try:
            result = run("-e", unpacked, "echo", "used", check=True)
        finally:
            for path in [unpacked, *(each for each in unpacked.rglob("*") if each.is_dir())]:
                path.chmod(0o755)
        assert result.stdout == b"used\n"

    def test_without_a_command_it_is_prepared(self, run, unpacked):
        result = run("-e", unpacked, check=True)
        assert (result.stdout, result.stderr) == (b"", b"")
        config = unpacked / "share" / "showprefix" / "config.ini"
        assert config.read_text() == f"root = {unpacked}\nlib = {unpacked}/lib\n"

    def test_one_that_is_no_environment_is_refused(self, run, tmp_path):
        (tmp_path / "other").mkdir()
        refused(run("-e", tmp_path / "other", "true"), 65, str(tmp_path / "other"))


class TestCompletionMarker:
    def test_it_holds_what_the_contract_says(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        earliest = int(time.time())
        run("-e", tiny, "-d", kept, "true", check=True)
        marker = json.loads((kept / MARKER).read_text())
        version = run("--version", check=True).stdout.decode().split()
        assert marker["version"] in version
        assert marker["archive"] == str(tiny)
        assert marker["archive_size"] == tiny.stat().st_size
        assert marker["archive_mtime_ns"] == tiny.stat().st_mtime_ns
        assert marker["prefix"] == str(kept)
        assert marker["host"] == socket.gethostname()
        assert isinstance(marker["pid"], int)
        written = datetime.strptime(marker["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        assert earliest <= written <= time.time()

    def test_it_and_the_manifest_are_all_there_is_of_ours_in_the_directory(
        self, run, tiny, tmp_path
    ):
        run("-e", tiny, "-d", tmp_path / "kept", check=True)
        assert names(tmp_path / "kept") == [MARKER, MANIFEST, "bin", "conda-meta", "lib"]

    def test_a_directory_made_by_the_cctools_script_is_complete(self, run, tiny, tmp_path):
        kept = tmp_path / "kept"
        shutil.unpack_archive(tiny, kept, "gztar")
        (kept / MARKER).write_text("Wed Nov 25 18:01:58 UTC 2026\n")
        before = state(kept)
        result = run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True)
        assert (result.stdout, result.stderr) == (b"hello\n", b"")
        assert state(kept) == before


@pytest.mark.parametrize("text", ["", "{", '{"prefix": "/x", "archive_size": nu', "[" * 30_000])
def test_an_empty_or_cut_off_marker_is_damage(run, tiny, tmp_path, text):
    kept = tmp_path / "kept"
    kept.mkdir(0o750)
    run("-e", tiny, "-d", kept, check=True)
    if text[:1] == "[":
        text = '{"prefix": ' + text
    (kept / MARKER).write_text(text)
    (kept / "lib" / "data.txt").unlink()
    refused(run("-e", kept, "hello"), 74, str(kept), "damaged")
    result = run("-e", tiny, "-d", kept, "-w", "0", "hello", check=True)
    assert result.stdout == b"hello\n"
    warned(result, kept, "damaged", "unpacking again")
    assert (kept / "lib" / "data.txt").read_bytes() == b"data\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o750
    assert names(tmp_path) == ["kept", "tmp"]
    assert run("-e", tiny, "-d", kept, "hello", check=True).stderr == b""


def warned(result, *words):
    """Assert one line of warning and no more."""
    assert result.stderr.count(b"\n") == 1, result.stderr
    assert result.stderr.startswith(b"poncho_package_run: ")
    for word in words:
        assert os.fsencode(word) in result.stderr


@pytest.mark.parametrize("change", ["size", "mtime"])
def test_a_directory_of_another_archive_is_used_with_a_warning(run, tiny, tmp_path, change):
    kept, other = tmp_path / "kept", tmp_path / "other"
    shutil.copy2(tiny, other)
    run("-e", other, "-d", kept, check=True)
    status = other.stat()
    if change == "size":
        other.write_bytes(other.read_bytes() + b"\0")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(other, (1, 1))
    result = run("-e", other, "-d", kept, "hello", check=True)
    assert result.stdout == b"hello\n"
    warned(result, kept, other)


def test_a_directory_of_the_same_archive_elsewhere_is_used_in_silence(run, tiny, tmp_path):
    kept, other = tmp_path / "kept", tmp_path / "other"
    shutil.copy2(tiny, other)
    run("-e", tiny, "-d", kept, check=True)
    assert run("-e", other, "-d", kept, "hello", check=True).stderr == b""


@pytest.mark.parametrize(("given", "name"), [("-e", "new"), ("-d", "a longer name"), ("-d", "n")])
def test_a_directory_that_has_moved_is_relocated_where_it_lies_now(
    run, environment, tmp_path, given, name
):
    archive = environment.archive(scripts=False)
    old, new = tmp_path / "old", tmp_path / name
    run("-e", archive, "-d", old, check=True)
    for _ in range(2):
        old.rename(new)
        words = ["-e", new] if given == "-e" else ["-e", archive, "-d", new]
        with locked(new):
            refused(run(*words, "-w", "0", "showprefix"), 75, str(new))
        result = run(*words, "showprefix", check=True)
        assert result.stdout.decode().splitlines()[0] == str(new)
        assert result.stderr == b""
        config = new / "share" / "showprefix" / "config.ini"
        assert config.read_text() == f"root = {new}\nlib = {new}/lib\n"
        before = state(new)
        with locked(new):
            assert run(*words, "-w", "0", "showprefix", check=True).stdout == result.stdout
        assert state(new) == before
        old, new = new, old
    assert names(tmp_path) == sorted(["tmp", old.name])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only directory")
def test_a_directory_that_has_moved_and_cannot_be_written_is_used_with_a_warning(
    run, tiny, tmp_path
):
    run("-e", tiny, "-d", tmp_path / "old", check=True)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new").chmod(0o555)
    result = run("-e", tiny, "-d", tmp_path / "new", "hello", check=True)
    (tmp_path / "new").chmod(0o755)
    assert result.stdout == b"hello\n"
    warned(result, tmp_path / "old", tmp_path / "new")


class TestSweeping:
    def test_a_temporary_directory_of_a_killed_run_is_removed_by_the_next(
        self, run, spawn, tiny, tmp_path
    ):
        worker = spawn("-e", tiny, "sh", "-c", "echo ready; sleep 600")
        assert worker.stdout.readline() == b"ready\n"
        os.killpg(worker.pid, signal.SIGKILL)
        process.wait_for(lambda: not process.group_members(worker.pid))
        assert names(tmp_path / "tmp") != []
        run("-e", tiny, "hello", check=True)
        assert names(tmp_path / "tmp") == []

    def test_one_whose_command_outlived_the_tool_is_left(self, run, spawn, tiny, tmp_path):
        worker = spawn("-e", tiny, "sh", "-c", "echo ready; sleep 600; true")
        assert worker.stdout.readline() == b"ready\n"
        (used,) = names(tmp_path / "tmp")
        worker.kill()
        worker.wait()
        run("-e", tiny, "hello", check=True)
        assert names(tmp_path / "tmp") == [used]
        os.killpg(worker.pid, signal.SIGKILL)
        process.wait_for(lambda: not process.group_members(worker.pid))
        run("-e", tiny, "hello", check=True)
        assert names(tmp_path / "tmp") == []

    def test_one_in_use_is_left(self, run, spawn, tiny, tmp_path):
        worker = spawn("-e", tiny, "sh", "-c", "echo ready; read x; hello", stdin=-1)
        assert worker.stdout.readline() == b"ready\n"
        run("-e", tiny, "hello", check=True)
        assert worker.communicate(b"\n", timeout=60)[0] == b"hello\n"

    def test_what_is_not_ours_is_left(self, run, tiny, tmp_path):
        for name in ("poncho_package_run", "poncho-user-data", "tmp1234", ".hidden"):
            (tmp_path / "tmp" / name).mkdir()
        before = names(tmp_path / "tmp")
        run("-e", tiny, "hello", check=True)
        assert names(tmp_path / "tmp") == before


@pytest.mark.parametrize("where", ["temporary", "kept"])
def test_nothing_is_written_to_home_the_working_directory_or_beside_the_archive(
    run, tiny, tmp_path, where
):
    folders = {name: tmp_path / name for name in ("home", "work", "archives")}
    for folder in folders.values():
        folder.mkdir()
    archive = Path(shutil.copy2(tiny, folders["archives"] / "env.tar.gz"))
    before = {folder: state(folder) for folder in folders.values()}
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    words = ["-e", archive, *place, "hello"]
    run(*words, cwd=folders["work"], env={"HOME": folders["home"]}, check=True)
    assert {folder: state(folder) for folder in folders.values()} == before


def test_modes_are_less_the_umask_and_never_setuid(run, tiny, tmp_path):
    run("-e", tiny, "-d", tmp_path / "kept", check=True, umask=0o077)
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "kept" / "bin" / "hello").stat().st_mode) == 0o700


def test_one_that_is_moved_to_where_its_parent_was_is_relocated_again(run, environment, tmp_path):
    # So that the old prefix begins with the new one's path.
    archive, old = environment.archive(scripts=False), tmp_path / "w" / "env" / "sub"
    run("-e", archive, "-d", old, check=True)
    old.rename(tmp_path / "sub")
    (tmp_path / "w" / "env").rmdir()
    (tmp_path / "sub").rename(tmp_path / "w" / "env")
    for words in (["-e", tmp_path / "w" / "env"], ["-e", archive, "-d", tmp_path / "w" / "env"]):
        out = run(*words, "showprefix", check=True).stdout.decode()
        assert out.splitlines()[0] == str(tmp_path / "w" / "env")


def test_only_paths_are_taken_for_the_old_prefix_when_it_has_moved(run, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("bin", "conda-meta"):
        (old / name).mkdir(parents=True)
    record = "\n_prefix_records = [\n('bin/tool', '/opt/placeholder', 'text'),\n]\n"
    (old / "bin" / "conda-unpack").write_text(record)
    text = "#!/usr{0} x\n{0} {0}/a '{0}' {0}-data {0}2 x{0} -L{0}/lib file://{0}/b {0}:{0}\n"
    (old / "bin" / "tool").write_text(text.format("/opt/placeholder"))
    run("-e", old, check=True)
    assert (old / "bin" / "tool").read_text() == text.format(old)
    old.rename(new)
    for _ in range(2):
        run("-e", new, check=True)
        expected = "#!/usr{1} x\n{0} {0}/a '{0}' {1}-data {1}2 x{1} -L{0}/lib"
        expected += " file://{0}/b {0}:{0}\n"
        assert (new / "bin" / "tool").read_text() == expected.format(new, old)


@pytest.mark.parametrize("given", ["-e", "-d"])
def test_a_colon_in_the_path_is_refused_however_it_came_there(run, tiny, tmp_path, given):
    kept, moved = tmp_path / "kept", tmp_path / "12:00"
    run("-e", tiny, "-d", kept, check=True)
    kept.rename(moved)
    words = ["-e", moved] if given == "-e" else ["-e", tiny, "-d", moved]
    for _ in range(2):
        refused(run(*words, "hello"), 73, str(moved), "colon")
    refused(run("-e", tiny, "-d", tmp_path / "new:er", "hello"), 73, "colon")
    assert not (tmp_path / "new:er").exists()


def test_a_marker_that_is_written_anew_is_read_by_whom_the_old_one_was(run, tiny, tmp_path):
    run("-e", tiny, "-d", tmp_path / "old", check=True, umask=0o022)
    (tmp_path / "old").rename(tmp_path / "new")
    run("-e", tiny, "-d", tmp_path / "new", "hello", check=True, umask=0o077)
    assert stat.S_IMODE((tmp_path / "new" / MARKER).stat().st_mode) == 0o644


def test_a_directory_in_the_markers_place_counts_as_none(run, environment, tmp_path):
    target = tmp_path / "unpacked"
    shutil.copytree(environment.archive("no-archive", scripts=False), target, symlinks=True)
    (target / MARKER / "below").mkdir(parents=True)
    for _ in range(2):
        out = run("-e", target, "showprefix", check=True).stdout.decode()
        assert out.splitlines()[0] == str(target)
    assert (target / MARKER).is_file()


def test_a_kept_environment_below_a_directory_may_have_files_beside_it(run, tiny, tmp_path):
    top, archive = tmp_path / "top", tmp_path / "archive.tar"
    shutil.unpack_archive(tiny, top / "envs" / "my", "gztar")
    subprocess.run(["tar", "cf", archive, "-C", top, "envs"], check=True)
    run("-e", archive, "-d", tmp_path / "kept", check=True)
    (tmp_path / "kept" / "notes.txt").touch()
    (tmp_path / "kept" / "envs" / "other").mkdir()
    script = 'echo "$CONDA_PREFIX"'
    out = run("-e", archive, "-d", tmp_path / "kept", "sh", "-c", script, check=True).stdout
    assert out.decode() == f"{tmp_path}/kept/envs/my\n"


def test_a_directory_whose_name_begins_like_its_old_one_is_not_taken_for_it(run, tmp_path):
    """/w/env2 becomes /w/env, and another /w/env2 takes its place: each names itself."""
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    old, new = tmp_path / "env2", tmp_path / "env"
    run("-e", archive, "-d", old, check=True)
    old.rename(new)
    run("-e", archive, "-d", old, check=True)
    for place in (old, new, old, new):
        result = run("-e", archive, "-d", place, "hello", check=True)
        assert result.stdout == b"hello from " + bytes(place)

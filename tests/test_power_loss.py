"""A completion marker never vouches for data that did not reach the disk.

The machine going down is played by another boot_id in the marker, as if that had been written
before a restart; the loss by cutting, zeroing or removing files, with their times kept.
"""

import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from support import crash, tars, tracing, trees
from support.commands import missing, need
from support.crash import MANIFEST, MARKER, lose_content, restart
from support.environments import PLACEHOLDER
from support.messages import refused


@pytest.fixture
def words(tmp_path):
    return ["-e", tmp_path / "archive", "-d", tmp_path / "kept", "-w", "20", "hello"]


@pytest.fixture
def kept(run, tmp_path, words):
    """An environment in tmp_path/"kept"."""
    crash.archive(tmp_path / "archive", "tar.gz")
    run(*words, check=True)
    return tmp_path / "kept"


def marker(kept):
    return json.loads((kept / MARKER).read_text())


def files(kept):
    """What unpacking again would change, but for the markers."""
    return {
        path: (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in kept.rglob("*")
        if not path.name.startswith(".poncho")
    }


def used_in_silence(run, words, kept):
    before = files(kept)
    result = run(*words, check=True)
    assert (result.stdout, result.stderr) == (b"hello from " + bytes(kept), b"")
    assert files(kept) == before


def unpacked_again(run, words, kept, expected, said):
    """Assert that the next run says in one line what is damaged, and mends it."""
    result = run(*words, check=True)
    assert result.stdout == b"hello from " + bytes(kept)
    assert result.stderr.startswith(b"poncho_package_run: " + bytes(kept) + b" is damaged: ")
    assert result.stderr.count(b"\n") == 1
    assert said.encode() in result.stderr
    now = ("type", "mode", "size", "sha256", "target", "nlink_group")
    assert not trees.differences(expected, trees.snapshot(kept), fields=now)
    names = sorted(name for name in os.listdir(kept) if name.startswith("."))
    assert names == [MARKER, MANIFEST]
    used_in_silence(run, words, kept)


def cut(path, size):
    status = path.stat()
    with open(path, "r+b") as file:
        file.truncate(size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_as_before(path, data):
    """Have a file hold something else, as if it had never been written anew."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path):
    """Remove a name, as if it had never come to disk: its directory has its old time."""
    status = path.parent.stat()
    path.unlink()
    os.utime(path.parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def unrelocated(kept, name):
    """A relocated file's content of before, of the size that it has now."""
    now = (kept / name).read_bytes()
    if b"\0" in now:
        relocated = re.compile(re.escape(bytes(kept)) + rb"(/lib)(\0+)")
        lost = relocated.sub(lambda found: PLACEHOLDER.encode() + found[1] + b"\0", now, count=1)
        return lost
    return now.replace(bytes(kept), PLACEHOLDER.encode())[: len(now)]


def second_page(path):
    lose_content(path, 4096, 8192)


LOSSES = {
    "a file is cut off": ("lib/large.bin", lambda path: cut(path, 65536)),
    "a file is empty": ("lib/site-packages/package1/module1.py", lambda path: cut(path, 0)),
    "a file is zeros": ("lib/large.bin", lambda path: lose_content(path, 0)),
    "a small file is zeros": ("conda-meta/history", lambda path: lose_content(path, 0)),
    "one page is zeros": ("lib/large.bin", second_page),
    "the last bytes are zeros": ("lib/large.bin", lambda path: lose_content(path, -5)),
    "a file is missing": ("lib/site-packages/package2/module5.py", remove),
    "a hard link is missing": ("lib/large-again.bin", remove),
    "a symlink is missing": ("lib/large-link.bin", remove),
    "a file at the top is missing": ("top.txt", remove),
    "a relocated script is as it was": ("bin/hello", None),
    "a relocated program is as it was": ("bin/tool", None),
    "a relocated read-only file is as it was": ("etc/read-only.conf", None),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_lost_is_noticed_and_unpacked_again(run, words, kept, loss):
    name, lose = LOSSES[loss]
    expected = trees.snapshot(kept)
    if lose is None:
        write_as_before(kept / name, unrelocated(kept, name))
    else:
        lose(kept / name)
    assert trees.differences(expected, trees.snapshot(kept)), "something is lost"
    restart(kept)
    unpacked_again(run, words, kept, expected, name)


def test_a_lost_page_of_a_large_relocated_program_is_noticed(run, words, tmp_path):
    # Above a window of memory, only the strings that hold the prefix are rewritten.
    path, placeholder = tmp_path / "archive", PLACEHOLDER.encode()
    size = 9 << 20
    program = bytearray(bytes(range(1, 256)) * (size // 255))
    for at in (5000, size // 2):
        program[at : at + 300] = placeholder + b"/lib" + bytes(300 - 4 - len(placeholder))
    records = [("bin/large", PLACEHOLDER, "binary"), ("bin/hello", PLACEHOLDER, "text")]
    lines = "".join(f"{record!r},\n" for record in records)
    script = f"\n_prefix_records = [\n{lines}]\n".encode()
    crash.archive(path, "tar", {"bin/large": bytes(program), "bin/conda-unpack": script})
    run(*words, check=True)
    kept = tmp_path / "kept"
    restart(kept)
    at_first = (kept / MARKER).read_bytes()
    used_in_silence(run, words, kept)
    (kept / MARKER).write_bytes(at_first)
    for at in (5000, size // 2):
        expected = trees.snapshot(kept)
        stale = bytearray((kept / "bin" / "large").read_bytes())
        assert stale[at : at + len(bytes(kept))] == bytes(kept)
        stale[at : at + 300] = program[at : at + 300]
        write_as_before(kept / "bin" / "large", stale)
        restart(kept)
        unpacked_again(run, words, kept, expected, "bin/large")


@pytest.mark.parametrize("lose", [remove, lambda path: cut(path, 100), lambda path: cut(path, 0)])
def test_a_lost_manifest_is_noticed(run, words, kept, lose):
    expected = trees.snapshot(kept)
    lose(kept / MANIFEST)
    restart(kept)
    unpacked_again(run, words, kept, expected, "list of its files")


@pytest.mark.parametrize("format", ["tar", "tar.gz", "tar.gz -j", "zip"])
def test_where_nothing_was_lost_nothing_is_said_or_changed(run, words, tmp_path, format):
    crash.archive(tmp_path / "archive", format)
    run(*words, check=True)
    restart(tmp_path / "kept")
    used_in_silence(run, words, tmp_path / "kept")
    assert marker(tmp_path / "kept")["on_disk"] is True


@pytest.mark.parametrize("format", ["tar.gz", "zip", "squashfs"])
def test_where_nothing_of_a_real_environment_was_lost(run, environment, tmp_path, format):
    if format == "squashfs":
        need("mksquashfs")
        need("unsquashfs")
    kept = tmp_path / "kept"
    words = ["-e", environment.archive(format), "-d", kept]
    run(*words, check=True)
    restart(kept)
    at_first, before = (kept / MARKER).read_bytes(), files(kept)
    assert run(*words, check=True).stderr == b""
    assert files(kept) == before
    (kept / MARKER).write_bytes(at_first)
    cut(kept / "bin" / "activate", 10)
    assert b"bin/activate" in run(*words, check=True).stderr


def archives():
    folder = os.environ.get("PONCHO_TEST_CORPUS")
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip("PONCHO_TEST_CORPUS names no folder"))]
    return sorted(Path(folder, "conda-pack").iterdir())


@pytest.mark.parametrize("archive", archives(), ids=lambda path: path and path.name)
def test_where_nothing_of_an_archive_from_elsewhere_was_lost(run, tmp_path, archive):
    kept = tmp_path / "kept"
    if run("-e", archive, "-d", kept).returncode:
        pytest.skip("the tool refuses it, whole as it is")
    restart(kept)
    before = files(kept)
    assert run("-e", archive, "-d", kept, check=True).stderr == b""
    assert files(kept) == before


def test_it_is_looked_at_once(run, words, kept):
    restart(kept)
    used_in_silence(run, words, kept)
    before = (kept / MARKER).read_bytes()
    # Neither a later start nor one after another restart needs the manifest again.
    (kept / MANIFEST).unlink()
    restart(kept)
    used_in_silence(run, words, kept)
    assert (kept / MARKER).read_bytes() != before, "by another boot_id only"


def test_before_a_restart_nothing_is_looked_at(run, words, kept):
    lose_content(kept / "lib" / "large.bin", 0)
    (kept / MANIFEST).unlink()
    used_in_silence(run, words, kept)


@pytest.mark.parametrize("change", ["machine_id", "boot_id", "date"])
def test_a_marker_that_says_nothing_about_this_machine_is_trusted(run, words, kept, change):
    facts = marker(kept)
    restart(kept)
    lose_content(kept / "lib" / "large.bin", 0)
    text = (kept / MARKER).read_text()
    if change == "date":  # the CCTools script's
        text = "Wed Nov 25 18:01:58 UTC 2026\n"
    elif change == "machine_id":
        text = text.replace(json.dumps(facts["machine_id"]), '"another"')
    else:
        text = re.sub('"boot_id": "[^"]*"', '"boot_id": null', text)
    (kept / MARKER).write_text(text)
    used_in_silence(run, words, kept)


def dated(tmp_path, times):
    """Write an archive whose files and directories have times of their own, in seconds from now."""
    now = int(time.time())
    pieces = [tars.member(b"conda-meta/history", b"history\n", mtime=now)]
    pieces.append(
        tars.member(
            b"bin/hello",
            b"#!/bin/sh\nprintf 'hello from %s' $CONDA_PREFIX\n",
            mode=0o755,
            mtime=now,
        )
    )
    for name, after in times.items():
        kind = tars.directory if name.endswith(b"/") else tars.member
        body = {} if name.endswith(b"/") else {"data": name * 3000}
        pieces.append(kind(name, mtime=now + after, **body))
    (tmp_path / "archive").write_bytes(b"".join(pieces) + tars.END)


FUTURE = {"seconds": 2, "an hour": 3600, "years": 10**8, "beyond every clock": 10**17}


class TestArchivesFromTheFuture:
    """A file's own time comes from the archive, and proves nothing about who changed it last."""

    @pytest.fixture(params=FUTURE)
    def kept(self, run, tmp_path, words, request):
        after = FUTURE[request.param]
        dated(tmp_path, {b"lib/": after, b"lib/file": after, b"lib/other": after})
        run(*words, check=True)
        kept = tmp_path / "kept"
        if after < 10:  # that time has come when it is looked at
            time.sleep(after + 1)
        return kept

    def chmod(self, kept):
        for path in [kept / "lib", kept / "lib" / "file"]:
            path.chmod(path.stat().st_mode ^ 0o011)

    @pytest.mark.parametrize("touched", [False, True], ids=["", "modes changed"])
    @pytest.mark.parametrize("lose", [lambda path: lose_content(path, 0), remove])
    def test_what_was_lost_is_noticed(self, run, words, kept, lose, touched):
        if touched:
            self.chmod(kept)
        lose(kept / "lib" / "file")
        restart(kept)
        result = run(*words, check=True)
        assert b"lib/file" in result.stderr and result.stderr.count(b"\n") == 1

    def test_what_someone_has_changed_is_as_he_wants_it(self, run, words, kept):
        time.sleep(0.1)
        (kept / "lib" / "file").write_text("mine")
        (kept / "lib" / "other").unlink()
        restart(kept)
        used_in_silence(run, words, kept)


def test_what_was_lost_of_a_file_of_several_names_is_noticed_under_either(run, words, tmp_path):
    crash.archive(tmp_path / "archive", "tar")
    run(*words, check=True)
    kept = tmp_path / "kept"
    lose_content(kept / "lib" / "large-again.bin", 0)
    restart(kept)
    assert b"lib/large.bin" in run(*words, check=True).stderr


@pytest.mark.parametrize("recorded", ["bin/one", "bin/two", "bin/one bin/two"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_relocated_file_of_several_names_is_whole_whichever_is_recorded(
    run, words, tmp_path, recorded, lost
):
    text = f"#!/bin/sh\nroot={PLACEHOLDER}\nprintf 'hello from %s' $root\n".encode()
    records = "".join(f"({name!r}, {PLACEHOLDER!r}, 'text'),\n" for name in recorded.split())
    members = [
        tars.member(b"conda-meta/history"),
        tars.member(b"bin/one", text, mode=0o755),
        tars.hardlink(b"bin/two", b"bin/one"),
        tars.hardlink(b"bin/hello", b"bin/two"),
        tars.member(b"bin/conda-unpack", f"\n_prefix_records = [\n{records}]\n".encode()),
    ]
    (tmp_path / "archive").write_bytes(b"".join(members) + tars.END)
    run(*words, check=True)
    kept = tmp_path / "kept"
    if lost:
        write_as_before(kept / "bin" / "one", text[: (kept / "bin" / "one").stat().st_size])
    restart(kept)
    if lost:
        assert b"is damaged: bin/" in run(*words, check=True).stderr
    else:
        used_in_silence(run, words, kept)


def planted(kept, content):
    """Have the marker vouch for a manifest that someone else has written."""
    facts = marker(kept)
    (kept / MARKER).chmod(0o644)
    facts["manifest"] = f"{len(content)} {zlib.crc32(content):08x}"
    (kept / MARKER).write_text(json.dumps(facts, sort_keys=True))
    (kept / MANIFEST).write_bytes(content)


HOSTILE = {
    "leads out": b"f 1 0 ../../victim\0",
    "is absolute": b"f 1 0 /etc/passwd\0",
    "ends with dots": b"f 1 0 lib/..\0",
    "has no path": b"f 1 0 \0",
    "has no numbers": b"f x y z\0",
    "is cut off": b"f 1",
    "has negative numbers": b"f -1 -1 top.txt\0",
    "has huge numbers": b"p 99999999999999999999999999 9 0 top.txt\0",
    "has a number of 5000 digits": b"f %s 0 top.txt\0" % (b"9" * 5000),
    "is of an unknown kind": b"x 1 0 top.txt\0",
    "is one endless record": b"f 1 0 " + b"x" * 3_000_000,
    "is no manifest": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_damage_and_leads_nowhere(run, words, kept, what):
    expected = trees.snapshot(kept)
    planted(kept, HOSTILE[what])
    restart(kept)
    unpacked_again(run, words, kept, expected, "list of its files is malformed")


def test_a_manifest_that_asks_for_much_gets_it_bounded(run, words, kept):
    size = (kept / "top.txt").stat().st_size
    planted(kept, b"p %d %d 0 top.txt\0" % (1 << 62, 1 << 62) + b"f %d 0 top.txt\0" % size)
    restart(kept)
    assert b"top.txt" in run(*words, check=True).stderr


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory", "socket", "sparse"])
def test_a_manifest_that_is_no_plain_file_is_lost(run, words, kept, tmp_path, kind):
    expected = trees.snapshot(kept)
    path = kept / MANIFEST
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        # In a process of the name's own directory: a socket's path has room for 108 bytes.
        code = f"import socket; socket.socket(socket.AF_UNIX).bind({MANIFEST!r})"
        subprocess.run([sys.executable, "-c", code], cwd=kept, check=True)
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    restart(kept)
    unpacked_again(run, words, kept, expected, "list of its files")


def rewrite(kept):
    (kept / "lib" / "site-packages" / "package1" / "module1.py").write_text("mine = True\n")


def replace_by_an_older_one(kept):
    new = kept / "lib" / "new"
    new.write_bytes(b"of another package")
    os.utime(new, (1, 1))
    new.rename(kept / "lib" / "large.bin")


def remove_some(kept):
    (kept / "lib" / "site-packages" / "package2" / "module5.py").unlink()
    (kept / "lib" / "large-link.bin").unlink()


def remove_a_directory(kept):
    for path in (kept / "lib" / "site-packages" / "package2").iterdir():
        path.unlink()
    (kept / "lib" / "site-packages" / "package2").rmdir()


def add(kept):
    (kept / "lib" / "site-packages" / "package2" / "another.py").touch()


def make_read_only(kept):
    for path in kept.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


@pytest.mark.parametrize(
    "change",
    [rewrite, replace_by_an_older_one, remove_some, remove_a_directory, add, make_read_only],
    ids=lambda change: change.__name__,
)
def test_what_someone_has_changed_is_as_he_wants_it(run, words, kept, change):
    change(kept)
    restart(kept)
    used_in_silence(run, words, kept)


def test_changed_modes_hide_no_loss(run, words, kept):
    make_read_only(kept)
    lose_content(kept / "lib" / "large.bin", 0)
    restart(kept)
    assert b"lib/large.bin" in run(*words, check=True).stderr


def test_what_is_damaged_and_whose_archive_is_gone_is_no_environment(run, words, kept, tmp_path):
    lose_content(kept / "lib" / "large.bin", 0)
    restart(kept)
    (tmp_path / "archive").unlink()
    result = run(*words)
    assert result.returncode == 66
    assert result.stdout == b""
    assert not (kept / MARKER).exists()


def test_many_at_once_look_at_it_in_turn_and_one_unpacks_again(spawn, words, kept):
    lose_content(kept / "lib" / "large.bin", 0)
    restart(kept)
    results = [process.communicate(timeout=60) for process in [spawn(*words) for _ in range(8)]]
    assert [out for out, _ in results] == [b"hello from " + bytes(kept)] * 8
    assert b"".join(err for _, err in results).count(b"is damaged") == 1


class TestEnvironmentDirectory:
    """The same directory, named by --environment: there is no archive to mend it from."""

    def test_that_has_survived_is_used(self, run, kept):
        restart(kept)
        used_in_silence(run, ["-e", kept, "hello"], kept)
        assert marker(kept)["on_disk"] is True

    def test_that_is_damaged_is_an_error(self, run, kept):
        cut(kept / "lib" / "large.bin", 5)
        restart(kept)
        before = files(kept)
        refused(run("-e", kept, "hello"), 74, str(kept), "lib/large.bin", "5 bytes instead of")
        assert files(kept) == before


@pytest.fixture
def read_only(kept):
    """The start of a command line that sees ``kept`` on a read-only file system."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    namespace = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    wrapper = [need("unshare"), *namespace, "sh", "-c", script, kept]
    if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode:
        missing("needs a mount namespace: run it as root, or allow user namespaces")
    return wrapper


class TestReadOnly:
    def test_that_has_survived_is_used(self, run, words, kept, read_only):
        restart(kept)
        before = (kept / MARKER).read_bytes()
        result = run(*words, wrapper=read_only, check=True)
        assert (result.stdout, result.stderr) == (b"hello from " + bytes(kept), b"")
        assert (kept / MARKER).read_bytes() == before

    def test_that_is_damaged_is_an_error(self, run, words, kept, read_only):
        lose_content(kept / "lib" / "large.bin", 0)
        restart(kept)
        result = run(*words, wrapper=read_only)
        refused(result, 74, str(kept), "lib/large.bin", "cannot be written")


def order_of(log, *wanted):
    """Where in a log of calls each of the (call, end of its path) first comes, or raise."""
    places = []
    for name, path in wanted:
        for index, call in enumerate(log):
            if call.name == name and any(path in argument for argument in call.arguments):
                places.append(index)
                break
        else:
            raise AssertionError(f"{name} of {path} is not in the log")
    return places


class TestForcedToDisk:
    """The order in which a cold start forces what decides to the disk."""

    def traced(self, run, tmp_path, *words):
        log = tmp_path / "log"
        names = "fsync,rename,renameat"
        wrapper = tracing.strace("-y", "-s", "4096", "-e", f"trace={names}", log=log)
        run(*words, wrapper=wrapper, check=True)
        return tracing.calls(log)

    def test_the_completion_marker_before_the_environment_gets_its_name(
        self, run, words, tmp_path
    ):
        crash.archive(tmp_path / "archive", "tar.gz")
        log = self.traced(run, tmp_path, *words)
        order = order_of(log, ("fsync", f"env/{MARKER}>"), ("rename", f"{tmp_path}/kept"))
        assert order == sorted(order)

    def test_relocated_files_before_they_take_the_place_of_the_old(self, run, tmp_path):
        kept = tmp_path / "kept"
        kept.mkdir()
        crash.archive(tmp_path / "archive", "tar")
        subprocess.run([need("bsdtar"), "-xf", tmp_path / "archive", "-C", kept], check=True)
        log = self.traced(run, tmp_path, "-e", kept, "hello")
        changes = [call for call in log if call.name in ("fsync", "rename", "renameat")]
        # All files, and then the marker.
        kinds = [call.name[:6] for call in changes]
        count = kinds.index("rename")
        assert count >= 3
        assert kinds == ["fsync"] * count + ["rename"] * count + ["fsync", "rename", "rename"]
        assert any(MARKER in argument for argument in changes[-1].arguments)


def test_a_temporary_environment_has_no_manifest(run, tmp_path):
    crash.archive(tmp_path / "archive", "tar.gz")
    script = 'ls -A "$CONDA_PREFIX"'
    names = run("-e", tmp_path / "archive", "sh", "-c", script, check=True).stdout.split()
    assert b"bin" in names
    assert not [name for name in names if name.startswith(b".poncho")]


def test_hard_linked_names_of_a_package_are_both_relocated(run, tmp_path):
    """-e DIR stages new files: one for each of the two names, or they would part."""
    kept = tmp_path / "kept"
    text = f"#!/bin/sh\nroot={PLACEHOLDER}\nprintf %s $root\n".encode()
    names = ("bin/one", "bin/two")
    records = "".join(f"({name!r}, {PLACEHOLDER!r}, 'text'),\n" for name in names)
    for name in ("bin", "conda-meta"):
        (kept / name).mkdir(parents=True)
    (kept / "bin" / "one").write_bytes(text)
    (kept / "bin" / "one").chmod(0o755)
    os.link(kept / "bin" / "one", kept / "bin" / "two")
    (kept / "bin" / "conda-unpack").write_text(f"\n_prefix_records = [\n{records}]\n")
    for name in ("one", "two"):
        assert run("-e", kept, name, check=True).stdout == bytes(kept)
    assert os.path.samefile(kept / "bin" / "one", kept / "bin" / "two")

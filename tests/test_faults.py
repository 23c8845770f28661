"""Whatever the system refuses: a status of the contract, one line with the path, nothing left.

Faults are injected by strace(1) into the calls that a run makes itself, first, middle and last
of each kind; the interpreter's own start is left alone.
"""

import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from support import crash, interpreters, process, scenarios, tracing, trees
from support.commands import missing, need
from support.messages import PREFIX, refused

ERRORS = {
    "ENOSPC": 74,
    "EDQUOT": 74,
    "EIO": 74,
    "EINTR": 74,
    "EMFILE": 74,
    "EROFS": 73,
    "EACCES": 73,
}

# Calls that start the command, and a call that may fail without consequence.
_STARTING = ("clone", "clone3", "vfork", "pipe2", "execve", "wait4", "rt_sigtimedwait")


class Temporary(scenarios.Temporary):
    """With one thread: several that remove a tree may meet the fault each, and once more."""

    def __init__(self, place):
        place.variables["PONCHO_PACKAGE_RUN_THREADS"] = "1"
        super().__init__(place)

    def prepare(self):
        self.place.clean()


def occurrences(scenario, count):
    """The first, the middle and the last call of each kind (or as many as ``count`` says).

    A zip's files, and all by the library, are written by threads, whose calls strace counts one by
    one: with theirs, the message would fail as well, or the command.
    """
    threads = scenario.place.format == "zip" or scenario.place.format.endswith(crash.LIBRARY)
    kinds = {}
    for point in scenario.points():
        kinds.setdefault(point.name, []).append(point)
    return [
        point
        for name, points in kinds.items()
        if name not in _STARTING
        and not (threads and name in ("write", "close"))
        for point in crash.spread(points, count)
    ]


def allowed(point, error, place):
    """The statuses that may follow; 0 where the tool knows another way."""
    if str(place.archive) in point.arguments:
        # It cannot be opened, or not be read; or it was asked for its time only.
        return {0, 66, 74}
    if point.name == "newfstatat" and f'"{place.kept}"' in point.arguments:
        return {0, 66, ERRORS[error]}  # no directory, then, but an archive that is one
    return {0, ERRORS[error]}


def judge(scenario, point, error):
    """What is wrong with a run in which a call failed, in a few words each."""
    place = scenario.place
    result = scenario.disturb(point, f"error={error}")
    text = os.fsdecode(result.stderr)
    if result.returncode not in allowed(point, error, place):
        yield f"status {result.returncode}: {text}"
    if result.returncode == 0:
        if not result.stdout.startswith(b"hello from "):
            yield f"the command said {result.stdout!r}"
        if text and (text.count("\n") != 1 or not result.stderr.startswith(PREFIX)):
            yield f"said {text}"
    else:
        if not re.fullmatch(r"poncho_package_run: [^A-Z\n][^\n]*\n", text):
            yield f"not one proper line: {text}"
        if str(place.root) not in text:
            yield f"names no path: {text}"
        if result.stdout:
            yield f"wrote {result.stdout!r} to stdout"
        if (place.kept / crash.MARKER).exists():
            yield "published an environment"
        if "kept" in map(str, scenario.words) and os.listdir(place.kept):
            yield f"left {os.listdir(place.kept)}"
    if os.listdir(place.tmp):
        yield "left a temporary directory"
    try:
        scenario.check()
    except AssertionError as assertion:
        yield f"the next run: {assertion}"


ROWS = [(crash.Scenario, "tar.gz", error) for error in ERRORS]
ROWS += [
    (scenario, "tar.gz", error)
    for scenario in (Temporary, scenarios.Directory)
    for error in ("ENOSPC", "EIO", "EACCES")
]
ROWS += [(crash.Scenario, "zip", "EIO"), (crash.Scenario, "tar.gz -j", "EMFILE")]
ROWS += [(crash.Scenario, "tar.gz, library", error) for error in ("ENOSPC", "EINTR", "EACCES")]
ROWS += [(crash.Scenario, "zip, library", "EIO"), (Temporary, "tar.gz, library", "EIO")]


@pytest.mark.parametrize(
    "scenario, format, error", ROWS, ids=[f"{row[0].__name__}-{row[1]}-{row[2]}" for row in ROWS]
)
def test_any_call_may_fail(artifact, tmp_path, scenario, format, error):
    failing = scenario(crash.Place(tmp_path / "place", artifact, format))
    # What means the same as another is injected into one call of each kind.
    count = 3 if (scenario, format) == (crash.Scenario, "tar.gz") else 2
    points = occurrences(failing, 1 if error in ("EDQUOT", "EINTR", "EROFS") else count)
    assert len(points) > 10
    wrong = {str(point): list(judge(failing, point, error)) for point in points}
    assert not {point: complaints for point, complaints in wrong.items() if complaints}


@pytest.mark.parametrize("place", ["temporary", "kept"])
@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
@pytest.mark.parametrize("format", ["tar.gz", "tar.gz -j", "zip"])
def test_without_threads_it_works_all_the_same(run, tmp_path, place, error, format):
    archive, log = crash.archive(tmp_path / "archive", format), tmp_path / "log"
    words = ["-d", tmp_path / "kept"] if place == "kept" else []
    # Threads are started with clone3, or clone where the C library is older; a command with
    # fork, which is clone without these flags, but strace cannot tell them apart.
    wrapper = tracing.failing("clone3", error, log=log)
    result = run("-e", archive, *words, "hello", wrapper=wrapper, check=True)
    assert "INJECTED" in log.read_text(), "threads are wanted"
    assert result.stdout.startswith(b"hello from ")
    assert result.stderr == b""


def test_a_command_that_cannot_be_started_is_126(run, tiny, tmp_path):
    wrapper = tracing.failing("pipe2", "EMFILE")
    refused(run("-e", tiny, "hello", wrapper=wrapper), 126, "hello", "Too many open files")
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("count", [8, 12, 16, 24, 40])
@pytest.mark.parametrize("place", ["temporary", "kept"])
def test_few_descriptors_are_enough_or_said_to_be_too_few(run, tmp_path, place, count):
    crash.archive(tmp_path / "archive", "tar.gz")
    words = ["-e", tmp_path / "archive", *(["-d", tmp_path / "kept"] if place == "kept" else [])]
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))  # noqa: E731
    result = run(*words, "hello", preexec_fn=limit)
    if result.returncode:
        refused(result, 74, str(tmp_path), "Too many open files", "ulimit -n")
        assert not (tmp_path / "kept").exists()
    else:
        assert result.stdout.startswith(b"hello from ")
    assert os.listdir(tmp_path / "tmp") == []


# A file system that is full


@pytest.fixture
def small(tmp_path):
    """The start of a command line for which tmp_path/"small" is a file system with 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$0" && shift && "$@"; status=$?; ls -A "$0" >&2; '
    script += "exit $status"
    namespace = ["-m"] if os.geteuid() == 0 else ["-Urm"]

    def small(options="size=1m"):
        wrapper = [need("unshare"), *namespace, "sh", "-c", script, folder, options]
        if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode:
            missing("needs a mount namespace: run it as root, or allow user namespaces")
        return wrapper

    return small


@pytest.mark.parametrize("place", ["temporary", "kept"])
@pytest.mark.parametrize("format", ["tar", "tar.gz -j", "zip"])
def test_a_full_disk_is_told_with_what_is_needed_and_free(run, tmp_path, small, place, format):
    more = {"lib/much.bin": bytes(range(256)) * 2000}
    archive = crash.archive(tmp_path / "archive", format, more)
    folder = tmp_path / "small"
    words = ["-d", folder / "kept"] if place == "kept" else []
    env = {"TMPDIR": folder}
    result = run("-e", archive, *words, "hello", wrapper=small(), env=env)
    # ls said nothing more: all that was written is removed.
    text = refused(result, 74, str(folder), "No space left on device")
    found = re.search(r"\((\d+) bytes needed, (\d+) bytes and \d+ files free\)", text)
    assert found, text
    needed, free = map(int, found.groups())
    # A zip is written by several threads: any of its files may be the first to meet the end.
    if format != "zip":
        assert ("lib/much.bin" in text, needed) == (True, 512000)
    assert free < needed


def test_a_file_system_without_room_for_more_files(run, tmp_path, small):
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    wrapper = small("size=8m,nr_inodes=20")
    result = run("-e", archive, "-d", tmp_path / "small" / "kept", "hello", wrapper=wrapper)
    refused(result, 74, str(tmp_path / "small"), "No space left", "0 files free")


# An archive that changes while it is read


class Stopped:
    """A run that is stopped at a call, by default before it makes its ninth directory."""

    def __init__(self, start, archive, kept, call="mkdirat:signal=STOP:when=9", made="env/lib"):
        self.archive, self.kept, self.made = archive, kept, made
        wrapper = tracing.strace("-e", "inject=" + call)
        self.process = start("-e", archive, "-d", kept, "hello", wrapper=wrapper)
        process.wait_for(self.is_stopped, what="the run to stop")

    def is_stopped(self):
        assert self.process.poll() is None, self.process.communicate()
        tool = process.children_of(self.process.pid)
        made = list(self.kept.parent.glob(f".poncho_package_run-*/{self.made}"))
        return made and tool and process.state_of(tool[0]) in "tT"

    def end(self):
        # Again and again: under strace a process looks stopped at each call.
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            for tool in process.children_of(self.process.pid):
                os.kill(tool, signal.SIGCONT)
            time.sleep(0.05)
        out, err = self.process.communicate(timeout=1)
        return subprocess.CompletedProcess([], self.process.returncode, out, err)


@pytest.fixture
def stopped(spawn, tmp_path):
    """Start a run that is stopped with much of its archive unread: more than is read ahead."""

    def stopped(format):
        block = os.urandom(1 << 20)
        big = {f"zz/{number}.bin": block for number in range(48)}
        archive = crash.archive(tmp_path / "archive", format, big)
        return Stopped(spawn, archive, tmp_path / "kept")

    return stopped


FORMATS = ["tar", "tar.gz", "tar.gz -j", "zip"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_archive_that_is_cut_off_while_it_is_read(stopped, format):
    run = stopped(format)
    os.truncate(run.archive, run.archive.stat().st_size * 3 // 4)
    refused(run.end(), 65, str(run.archive))
    assert not run.kept.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_an_archive_that_is_overwritten_while_it_is_read(stopped, format):
    run = stopped(format)
    with open(run.archive, "r+b") as file:
        file.seek(run.archive.stat().st_size * 3 // 4)
        file.write(os.urandom(1 << 20))
    refused(run.end(), 65, str(run.archive))
    assert not run.kept.exists()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_an_archive_that_loses_its_name_while_it_is_read(stopped, change):
    first = stopped("tar.gz -j")
    first.archive.unlink()
    if change == "replaced":
        crash.archive(first.archive, "tar")
    result = first.end()
    assert (result.returncode, result.stdout) == (0, b"hello from " + bytes(first.kept))
    assert len(os.listdir(first.kept / "zz")) == 48


# What is taken away from under it


def test_a_directory_that_is_removed_under_it(stopped):
    run = stopped("tar.gz")
    (private,) = run.kept.parent.glob(".poncho_package_run-*")
    shutil.rmtree(private)
    refused(run.end(), 74, str(private))
    assert not run.kept.exists()


def test_a_directory_that_is_removed_while_another_run_waits_for_it(spawn, tmp_path):
    """The first finds its archive cut off and removes what it made; the second makes it anew."""
    good = crash.archive(tmp_path / "archive", "tar.gz")
    bad = tmp_path / "cut"
    bad.write_bytes(good.read_bytes()[:-100])
    kept = tmp_path / "kept"
    first = Stopped(spawn, bad, kept)
    second = spawn("-e", good, "-d", kept, "hello")
    time.sleep(0.5)
    assert second.poll() is None
    refused(first.end(), 65, str(bad))
    assert second.communicate(timeout=60) == (b"hello from " + bytes(kept), b"")


def test_a_sandbox_that_is_removed_is_not_made_again(spawn, tmp_path):
    """An engine deletes a task's sandbox while two orphans are busy in it."""
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    kept = tmp_path / "sandbox" / "place" / "kept"
    first = Stopped(spawn, archive, kept)
    second = spawn("-e", archive, "-d", kept, "hello")
    time.sleep(0.5)
    assert second.poll() is None
    shutil.rmtree(tmp_path / "sandbox")
    refused(first.end(), 74, str(kept.parent))
    output, errors = second.communicate(timeout=60)
    refused(subprocess.CompletedProcess((), second.returncode, output, errors), 73, str(kept))
    assert not (tmp_path / "sandbox").exists()


def test_the_artifact_that_is_removed_under_it(spawn, artifact, tmp_path):
    """As when the sandbox of an orphan is deleted: once it is at work it has all that it needs."""
    copy = Path(shutil.copy(artifact, tmp_path / "copy"))
    archive = crash.archive(tmp_path / "archive", "tar.gz")

    def start(*words, wrapper):
        """Run the copy instead of the artifact."""
        script = 'python=$1; shift 2; exec "$python" "$0" "$@"'
        return spawn(*words, wrapper=[*wrapper, "sh", "-c", script, copy])

    for stop in (("mkdir:signal=STOP:when=2", ""), ()):
        run = Stopped(start, archive, tmp_path / "kept", *stop)
        copy.rename(tmp_path / "moved")
        assert run.end().stdout.startswith(b"hello from ")
        shutil.rmtree(tmp_path / "kept")
        (tmp_path / "moved").rename(copy)


@pytest.mark.parametrize("end", ["free", "timeout", "signal"])
@pytest.mark.parametrize("by", ["rm", "mv", "cp"])
def test_the_artifact_may_go_while_a_start_waits(artifact, tmp_path, by, end):
    """For minutes, perhaps: it has read all that it may need, before it waits."""
    copy = Path(shutil.copy(artifact, tmp_path / "copy"))
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    words = ["-e", archive, "-d", tmp_path / "kept", "-w", "2" if end == "timeout" else "60"]
    (tmp_path / "kept").mkdir()
    holder = os.open(tmp_path / "kept", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waiter = subprocess.Popen(
        [sys.executable, copy, *words, "hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.wait_for(lambda: str(tmp_path / "kept") in process.open_files(waiter.pid))
    other = tmp_path / "other"
    other.write_bytes(b"#" + artifact.read_bytes()[:-1])
    subprocess.run({"rm": ["rm", copy]}.get(by, [by, other, copy]), check=True)
    if end == "signal":
        waiter.terminate()
    elif end == "free":
        os.close(holder)
    output, errors = waiter.communicate(timeout=60)
    if end != "free":
        os.close(holder)
    if end == "timeout":
        refused(subprocess.CompletedProcess((), waiter.returncode, output, errors), 75)
    elif end == "signal":
        assert (waiter.returncode, output) == (128 + signal.SIGTERM, b"")
    else:
        assert output.startswith(b"hello from "), errors


def without(artifact, part):
    """The artifact's bytes; where an entry begins, or each of the entries of a part, are zeros."""
    data = artifact.read_bytes()
    with zipfile.ZipFile(artifact) as entries:
        for info in entries.infolist():
            if info.filename.partition("-")[0] == part:
                data = data[: info.header_offset] + bytes(4) + data[info.header_offset + 4 :]
    return data


def test_an_artifact_that_was_overwritten_says_so(run, artifact, tmp_path):
    """Its list of entries was read, or is whole; what the start needs lies elsewhere."""
    copy = Path(shutil.copy(artifact, tmp_path / "copy"))
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    copy.write_bytes(without(copy, "cold"))
    words = ["-e", archive, "-d", tmp_path / "kept", "hello"]
    result = subprocess.run([sys.executable, copy, *words], capture_output=True, timeout=60)
    refused(result, 74, str(copy))
    assert not (tmp_path / "kept").exists()
    run(*words, check=True)
    # A warm start needs nothing of it.
    result = subprocess.run([sys.executable, copy, *words], capture_output=True, timeout=60)
    assert result.stdout.startswith(b"hello from ")


@pytest.mark.parametrize("what", ["rm -f", ": >", "printf PK >", "truncate -s 9000"])
def test_an_artifact_that_an_activation_script_spoils_is_told(artifact, tmp_path, what):
    """The interpreter starts anew behind the scripts."""
    copy = Path(shutil.copy(artifact, tmp_path / "copy"))
    folder = tmp_path / "env" / "etc" / "conda" / "activate.d"
    folder.mkdir(parents=True)
    (tmp_path / "env" / "conda-meta").mkdir()
    (tmp_path / "env" / "conda-meta" / "history").touch()
    (folder / "spoil.sh").write_text("export PATH=/usr/bin:/bin:$PATH\n" + f"{what} {copy}")
    words = ["-e", tmp_path / "env", "echo", "run"]
    result = subprocess.run([sys.executable, copy, *words], capture_output=True, timeout=60)
    refused(result, 74, str(copy))


@pytest.mark.parametrize("name", ["entry.py", "warm", "cold"])
@pytest.mark.parametrize("how", [[sys.executable], []], ids=["by an interpreter", "directly"])
def test_an_artifact_without_a_part_of_it_says_so(artifact, tmp_path, name, how):
    if name == "entry.py" and not how:
        pytest.skip("it is in the header as well")
    copy = tmp_path / "copy"
    copy.write_bytes(without(artifact, name))
    copy.chmod(0o755)
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    result = subprocess.run([*how, copy, "-e", archive, "hello"], capture_output=True, timeout=60)
    refused(result, 74, str(copy))


@pytest.mark.parametrize("part", ["warm", "cold"])
@pytest.mark.parametrize("debug", ["", "traceback"], ids=["compiled", "text"])
def test_a_module_of_another_artifact_is_not_run(artifact, tmp_path, part, debug):
    """An artifact that is replaced as it starts, by another version whose entries lie alike."""
    copy = tmp_path / "copy"
    data = artifact.read_bytes()
    with zipfile.ZipFile(artifact) as entries:
        modules = [name for name in entries.namelist() if name.partition("-")[0] == part]
        assert len(modules) > 1
        for name in modules:
            held = entries.read(name)
            assert data.count(held) == 1
            data = data.replace(held, b"0" * 64 + held[64:])
    copy.write_bytes(data)
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    env = {**os.environ, "PONCHO_PACKAGE_RUN_DEBUG": debug}
    for python in interpreters.find():
        command = [python.path, copy, "-e", archive, "hello"]
        refused(subprocess.run(command, capture_output=True, timeout=60, env=env), 74, str(copy))


@pytest.mark.parametrize("place", ["temporary", "kept"])
def test_a_signal_ends_it_at_once_though_nothing_comes_out_of_its_pipe(spawn, tmp_path, place):
    archive = crash.archive(tmp_path / "archive", "tar.gz").read_bytes()
    words = ["-d", tmp_path / "kept"] if place == "kept" else []
    tool = spawn("-e", "/dev/stdin", *words, "hello", stdin=subprocess.PIPE)
    tool.stdin.write(archive[:3000])
    tool.stdin.flush()
    private = "*poncho_package_run-*/env/conda-meta"
    folder = tmp_path if words else tmp_path / "tmp"
    process.wait_for(lambda: list(folder.glob(private)), what="the first member")
    tool.terminate()
    # The pipe stays open: only the signal can end it.
    assert tool.wait(timeout=20) == 128 + signal.SIGTERM
    assert list(folder.glob("*poncho_package_run*")) == []


# Standard error closed

CLOSED = ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"]


def closing(which):
    return ["sh", "-c", f'exec "$@" {which}', "sh"]


@pytest.mark.parametrize("which", CLOSED)
def test_closed_streams_get_nothing_and_no_file_gets_their_messages(run, tmp_path, which):
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    run("-e", archive, "-d", tmp_path / "reference", check=True)
    kept = tmp_path / "kept"
    # With the phases told there is much to say, while files are open for writing.
    result = run("--debug", "-e", archive, "-d", kept, "true", wrapper=closing(which))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    paths = ("type", "mode", "size", "target", "nlink_group")
    text = {"bin/hello", "bin/tool", "etc/read-only.conf"}
    expected, found = trees.snapshot(tmp_path / "reference"), trees.snapshot(kept)
    for name in map(os.fsencode, text):
        del expected[name], found[name]
    assert not trees.differences(expected, found, fields=(*paths, "sha256"))


@pytest.mark.parametrize("which", CLOSED)
def test_the_status_is_the_same_without_a_stderr(run, tmp_path, which):
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    archive.write_bytes(archive.read_bytes()[:-50])
    result = run("-e", archive, "-d", tmp_path / "kept", "hello", wrapper=closing(which))
    assert (result.returncode, result.stdout, result.stderr) == (65, b"", b"")
    assert not (tmp_path / "kept").exists()


def test_a_stderr_that_nobody_reads_is_no_reason_to_fail(run, spawn, tmp_path):
    archive = crash.archive(tmp_path / "archive", "tar.gz")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run("--debug", "-e", archive, "hello", stderr=writer)
    finally:
        os.close(writer)
    assert result.returncode == 0
    assert result.stdout.startswith(b"hello from ")

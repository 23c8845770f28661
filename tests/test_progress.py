"""What a user sees while waiting: on a terminal, elsewhere, and with --debug."""

import fcntl
import os
import pty
import re
import select
import subprocess
import threading
import time

import pytest

from support import commands, tars
from support.process import wait_for
from support.trees import differences, snapshot


class Terminal:
    """A pseudo-terminal to be some process's stderr."""

    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        self.written = b""

    def read(self):
        """Everything written to it so far."""
        while select.select([self.ours], [], [], 0)[0]:
            try:
                self.written += os.read(self.ours, 65536)
            except OSError:
                break  # EIO: nobody has the other end open any more, and all has been read
        return self.written

    def screen(self):
        """The lines that a terminal now shows: a carriage return begins the line anew."""
        lines = []
        for line in self.read().decode().replace("\r\n", "\n").split("\n"):
            cells = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            lines.append("".join(cells).rstrip())
        return lines

    def close(self):
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


PROGRESS = re.compile(rb"unpacking: [0-9.]+ MB, [0-9.]+ MB/s")


@pytest.fixture
def slow_archive(tmp_path):
    """A pipe through which an archive of two megabytes comes over two seconds."""
    path = tmp_path / "slow"
    os.mkfifo(path)
    content = tars.environment(tars.member(b"lib/data", os.urandom(2_000_000)))

    def feed():
        with open(path, "wb") as pipe:
            for start in range(0, len(content), 100_000):
                pipe.write(content[start : start + 100_000])
                pipe.flush()
                time.sleep(0.1)

    feeder = threading.Thread(target=feed)
    feeder.start()
    yield path
    # Where the tool failed before it opened the pipe, the feeder still waits for a reader.
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    feeder.join()


def test_progress_on_a_terminal(spawn, slow_archive, terminal):
    process = spawn("-e", slow_archive, "--", "true", stderr=terminal.theirs)
    wait_for(lambda: PROGRESS.search(terminal.read()), what="a progress line")
    assert process.wait(30) == 0
    assert terminal.screen() == [""], "the progress line stayed"


def test_no_progress_elsewhere(run, slow_archive):
    done = run("-e", slow_archive, "--", "true", check=True)
    assert done.stderr == b""


def test_nothing_on_a_terminal_when_it_is_quick(run, tiny, terminal):
    run("-e", tiny, "--", "true", stderr=terminal.theirs, check=True)
    assert terminal.read() == b""


def test_time_left_of_an_archive_of_known_size(prepare, environment, tmp_path, terminal):
    """Each read of the archive is held up by strace, so that a second passes."""
    archive = environment.archive("tar")
    options = prepare(("-e", archive, "-d", tmp_path / "env"), None, None, {})
    slow = [
        commands.need("strace"), "-f", "-qq", "-o", "/dev/null", "-P", archive,
        "-e", "inject=read,pread64:delay_enter=100000",
    ]  # fmt: skip
    process = subprocess.run(
        [*slow, *options.pop("args")], **{**options, "stderr": terminal.theirs}, timeout=120
    )
    assert process.returncode == 0, terminal.read()
    assert re.search(rb" MB of [0-9.]+ MB \([0-9]+%\), [0-9.]+ MB/s, \d+ s left", terminal.read())
    assert terminal.screen() == [""]


def test_waiting_names_the_holder(spawn, slow_archive, tiny, tmp_path, terminal):
    target = tmp_path / "env"
    holder = spawn("-e", slow_archive, "-d", target, "--", "true")
    wait_for(lambda: list(tmp_path.glob(".*/env/*")), what="the unpacking to begin")
    waiter = spawn("-e", tiny, "-d", target, "--", "true", stderr=terminal.theirs)
    wait_for(lambda: b"waiting for" in terminal.read(), what="the waiter's line")
    assert b"%d" % holder.pid in terminal.read()
    assert (holder.wait(30), waiter.wait(30)) == (0, 0)
    assert b"waiting for" not in "".join(terminal.screen()).encode()


def test_waiting_for_an_unknown_holder(spawn, tiny, tmp_path, terminal):
    target = tmp_path / "env"
    target.mkdir()
    directory = os.open(target, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    waiter = spawn("-e", tiny, "-d", target, "--", "true", stderr=terminal.theirs)
    wait_for(lambda: b"waiting for" in terminal.read(), what="the waiter's line")
    os.close(directory)
    assert waiter.wait(30) == 0
    assert terminal.screen() == [""]


DURATION = r"\d+\.\d{3} seconds"


@pytest.mark.parametrize("how", [["--debug"], []], ids=["option", "variable"])
def test_debug_tells_phases_and_sums_up(run, environment, tmp_path, how):
    env = None if how else {"PONCHO_PACKAGE_RUN_DEBUG": "yes"}
    archive = environment.archive(scripts=False)
    done = run(*how, "-e", archive, "-d", tmp_path / "env", "--", "true", env=env, check=True)
    *lines, last = done.stderr.decode().splitlines()
    assert re.fullmatch("poncho_package_run: running /.*/true", last)
    assert all(line.startswith("poncho_package_run: ") for line in lines)
    phases = re.findall(rf"^poncho_package_run: ([a-z ]+): {DURATION}$", "\n".join(lines), re.M)
    assert phases == ["lock", "sweep", "unpack", "relocate"]
    summary = re.fullmatch(
        rf"poncho_package_run: (\d+) files, (\d+) bytes, (\d+) records in {DURATION}", lines[-1]
    )
    assert summary, lines
    files, size, records = map(int, summary.groups())
    unpacked = [
        path for path in (tmp_path / "env").rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".poncho")
    ]  # fmt: skip
    assert files == len(unpacked)
    assert size >= sum(path.stat().st_size for path in unpacked if path.stat().st_nlink == 1)
    unpack = (tmp_path / "env" / "bin" / "conda-unpack").read_text()
    # And those of conda's metadata for which conda-pack saw no need.
    count = sum(line.startswith("('") for line in unpack.splitlines())
    assert count <= records <= count + 5


def test_debug_with_a_temporary_environment(run, tiny):
    """The summing up comes after the removal, and stdout is the command's."""
    done = run("--debug", "-e", tiny, "--", "hello", "x", check=True)
    assert done.stdout == b"hello x\n"
    lines = done.stderr.decode().splitlines()
    assert re.search(rf" remove: {DURATION}$", lines[-2])
    assert re.search(rf" 4 files, \d+ bytes, 0 records in {DURATION}$", lines[-1])


def test_debug_of_a_warm_start(run, tiny, tmp_path):
    run("-e", tiny, "-d", tmp_path / "env", check=True)
    done = run("--debug", "-e", tiny, "-d", tmp_path / "env", check=True)
    assert re.search(rf" 0 files, 0 bytes, 0 records in {DURATION}$", done.stderr.decode().strip())


def test_debug_of_a_directory(run, environment, tmp_path):
    subprocess.run(["tar", "xf", environment.archive("tar"), "-C", tmp_path], check=True)
    done = run("--debug", "-e", tmp_path, check=True)
    assert re.search(rf" [1-9]\d* records in {DURATION}$", done.stderr.decode().strip())


@pytest.mark.parametrize("words", [["--debug"], ["--no-such-option"]])
def test_closed_stderr(run, tiny, tmp_path, words):
    """Nobody to tell is no reason to fail, and the file that now has its number is not told."""
    told = run(*words, "-e", tiny, "-d", tmp_path / "told", "--", "hello")
    closed = run(
        *words, "-e", tiny, "-d", tmp_path / "closed", "--", "hello", stderr=None,
        preexec_fn=lambda: os.close(2),
    )  # fmt: skip
    assert (closed.returncode, closed.stdout) == (told.returncode, told.stdout)
    if told.returncode == 0:
        expected, found = snapshot(tmp_path / "told"), snapshot(tmp_path / "closed")
        assert differences(expected, found) == []

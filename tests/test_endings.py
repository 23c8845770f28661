"""A failure and a signal end the tool at once, whatever its threads are at.

``python tests/endings.py`` does thousands of what is done here with forty of each.
"""

import os
import resource
import signal
import subprocess
import time

import endings
import pytest

from support import process
from support.messages import refused, status_of


@pytest.mark.slow
def test_no_hang_in_20_failing_and_20_cancelled_runs():
    failures, _ = endings.endings(40, busy=2)
    assert failures == []


@pytest.mark.parametrize("place", ["temporary", "kept"])
@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize("when", ["before a writer", "before a byte", "in the middle"])
def test_a_signal_while_a_pipe_is_silent(spawn, tiny, tmp_path, when, threads, place):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    options = ["-d", tmp_path / "kept"] if place == "kept" else []
    tool = spawn("-e", fifo, *options, "true", env={"PONCHO_PACKAGE_RUN_THREADS": threads})
    if when != "before a writer":
        writer = os.open(fifo, os.O_RDWR)
        if when == "in the middle":
            data = tiny.read_bytes()
            os.write(writer, data[: len(data) // 2])
    time.sleep(0.7)
    assert tool.poll() is None
    tool.send_signal(signal.SIGTERM)
    assert tool.wait(5) in (143, -signal.SIGTERM)
    assert tool.stderr.read() == b""
    assert os.listdir(tmp_path / "tmp") == []
    assert sorted(os.listdir(tmp_path)) == ["fifo", "tmp"]


def test_a_pipe_whose_writer_comes_late(spawn, tiny, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    tool = spawn("-e", fifo, "hello")
    time.sleep(0.5)
    fifo.write_bytes(tiny.read_bytes())
    assert tool.communicate(timeout=20) == (b"hello\n", b"")


@pytest.fixture
def decoder(tmp_path):
    """Puts a shell script in the place of a decoder program, and hides the library."""

    def decoder(name, script):
        folder = tmp_path / "programs"
        folder.mkdir()
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(0o755)
        (tmp_path / "sitecustomize.py").write_text(
            "import ctypes\ndef missing(*args, **more): raise OSError\nctypes.CDLL = missing\n"
        )
        return {"PYTHONPATH": tmp_path, "PATH": f"{folder}:{os.environ['PATH']}"}

    return decoder


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_signal_while_a_decoder_program_is_silent(spawn, environment, tmp_path, decoder, threads):
    env = decoder("zstd", "exec sleep 60\n")
    archive = environment.archive("tar.zst")
    tool = spawn("-e", archive, "true", env={**env, "PONCHO_PACKAGE_RUN_THREADS": threads})
    (child,) = process.wait_for(lambda: process.children_of(tool.pid), what="the program")
    time.sleep(0.3)
    tool.send_signal(signal.SIGTERM)
    tool.wait(5)
    assert status_of(tool) == 143
    process.wait_for(lambda: not process.is_alive(child))
    assert os.listdir(tmp_path / "tmp") == []


def ignoring_children():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_program_s_failure_is_seen_also_by_a_caller_that_ignores_sigchld(
    run, environment, tmp_path, decoder, threads, ignored
):
    # All of the archive comes out, so that only the status tells.
    env = decoder("zstd", f"PATH='{os.environ['PATH'].partition(':')[2]}'; zstd \"$@\"; exit 3\n")
    result = run(
        "-e", environment.archive("tar.zst"), "true",
        env={**env, "PONCHO_PACKAGE_RUN_THREADS": threads},
        preexec_fn=ignoring_children if ignored else None,
    )  # fmt: skip
    refused(result, 65, "zstd")


def test_the_command_still_ignores_sigchld_as_its_caller_does(run, environment, decoder):
    archive = environment.archive("tar.zst")
    script = "import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN)"
    result = run("-e", archive, "python3", "-c", script, preexec_fn=ignoring_children, check=True)
    assert result.stdout == b"True\n"


@pytest.mark.parametrize("native", ["yes", "no"])
@pytest.mark.parametrize("format", ["tar.gz", "tar.zst", "zip", "squashfs"])
def test_a_low_limit_of_descriptors_is_told_in_a_line(run, environment, decoder, format, native):
    archive = environment.archive(format)
    env = decoder("none", "") if format == "tar.zst" else {}
    env["PONCHO_PACKAGE_RUN_NATIVE"] = native
    for limit in (7, 8, 9, 10, 12):  # Python itself wants some

        def lower(limit=limit):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        result = run("-e", archive, "true", env=env, preexec_fn=lower, timeout=20)
        line = refused(result, 74)
        assert "Too many open files" in line and "ulimit -n" in line


def test_no_program_is_left_when_the_tool_is_killed(spawn, environment, decoder):
    env = decoder("zstd", "exec cat\n")
    tool = spawn("-e", "/dev/stdin", "true", stdin=subprocess.PIPE, env=env)
    tool.stdin.write(environment.archive("tar.zst").read_bytes()[:100_000])
    tool.stdin.flush()
    (child,) = process.wait_for(lambda: process.children_of(tool.pid), what="the program")
    tool.kill()
    process.wait_for(lambda: not process.is_alive(child))

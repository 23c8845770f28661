"""A signal during a cold start: ended within a second, 128+N, nothing left, DIR as it was found.

A sample; ``make sweep`` sends 2,000.
"""

import os
import pty
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from support import crash, interpreters, process, scenarios, tracing
from support.commands import need
from support.messages import status_of

# Of the machine's, not the tool's: several tests run at once.
LIMIT = 2.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("scenario", scenarios.INTERRUPTED, ids=scenarios.name_of)
def test_a_signal_at_any_instant_ends_it_and_leaves_nothing(ground, scenario, number):
    interrupted = scenario(ground())
    chance = random.Random(number)
    seconds = interrupted.seconds()
    for _ in range(3):
        instant = chance.uniform(0.01, seconds)
        try:
            took = interrupted.interrupt_at(instant, number)
            assert took < LIMIT, f"it took {took:.3f} s to end"
        except AssertionError as error:
            raise AssertionError(f"signal {number} after {instant:.4f} s: {error}")


# Comes to the artifact by way of an import in whose callback something happens: a Ctrl-C, that
# is, or the wait of another thread.
CALLBACK = """\
import os, runpy, sys, _thread, time
event, what = sys.argv[1:3]
del sys.argv[:3]
def hook(frame, now, of):
    if (frame.f_code.co_name, now) == ("cb", event):
        if now == "call" or of.__name__ == "acquire_lock":
            sys.setprofile(None)
            os.kill(os.getpid(), 2) if what == "ctrl-c" else time.sleep(60)
def importing():
    sys.setprofile(hook)
    import this_is_nowhere
try:
    importing() if what == "ctrl-c" else _thread.start_new_thread(importing, ())
except ImportError:
    sys.setprofile(None)
time.sleep(0.1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("each", interpreters.find(), ids=lambda each: each.name)
@pytest.mark.parametrize("event", ["call", "c_return"])
def test_an_early_one_that_the_interpreter_drops_ends_it(artifact, tiny, each, event):
    command = [each.path, "-c", CALLBACK, event, "ctrl-c", artifact, "-e", tiny, "hello"]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert b"Exception ignored in" in result.stderr, "nothing was dropped"
    assert (result.returncode, result.stdout) == (-signal.SIGINT, b"")


# Comes to a line of the artifact's first file, and has a Ctrl-C there.
LINE = """\
import os, runpy, sys
line = int(sys.argv[1])
del sys.argv[:2]
def called(frame, event, of):
    return at if frame.f_code.co_filename.endswith("__main__.py") else None
def at(frame, event, of):
    if event == "line" and frame.f_lineno == line:
        sys.settrace(None)
        frame.f_trace = None
        os.kill(os.getpid(), 2)
    return at
sys.settrace(called)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("each", interpreters.find(), ids=lambda each: each.name)
def test_one_within_the_first_lines_makes_no_traceback(artifact, tiny, each):
    with zipfile.ZipFile(artifact) as entries:
        lines = entries.read("__main__.py").decode().splitlines()
    reached = 0
    for line in range(2, lines.index("except KeyboardInterrupt:") + 1):
        command = [each.path, "-c", LINE, str(line), artifact, "-e", tiny, "hello"]
        result = subprocess.run(command, capture_output=True, timeout=60)
        if result.returncode:
            reached += 1
            assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, b"", b"")
    assert reached > 6, "these lines were not run"


@pytest.mark.parametrize("each", interpreters.find(), ids=lambda each: each.name)
def test_an_import_of_another_thread_is_none(artifact, tiny, each):
    """A site's own hooks may have started one before the tool begins."""
    command = [each.path, "-c", CALLBACK, "call", "wait", artifact, "-e", tiny, "hello"]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")


def test_the_thread_of_a_hook_is_given_no_signal(artifact, tiny):
    """Of a process's threads the kernel gives a signal to one that waits for it, or to any."""
    command = ["sh", "-c", "trap 'echo 10; n=$n.' USR1; trap 'echo 12; n=$n.' USR2; echo; "
               "while [ ! \"$n\" = ... ]; do sleep 0.01; done; exit 5"]  # fmt: skip
    words = [sys.executable, "-c", CALLBACK, "call", "wait", artifact, "-e", tiny, *command]
    tool = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    given_up = threading.Timer(30, os.killpg, (tool.pid, signal.SIGKILL))
    given_up.start()
    try:
        assert tool.stdout.readline() == b"\n"
        assert len(os.listdir(f"/proc/{tool.pid}/task")) == 1
        (child,) = process.children_of(tool.pid)
        os.kill(child, signal.SIGSTOP)
        process.wait_for(lambda: process.state_of(tool.pid) == "T")
        for number in (signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
            tool.send_signal(number)
        assert {tool.stdout.readline(), tool.stdout.readline()} == {b"10\n", b"12\n"}
        tool.send_signal(signal.SIGUSR1)
        out, err = tool.communicate()
    finally:
        given_up.cancel()
        if tool.poll() is None:
            os.killpg(tool.pid, signal.SIGKILL)
    assert (tool.returncode, out, err) == (5, b"10\n", b"")


def test_where_it_cannot_start_once_more_it_goes_on(artifact, tiny):
    """Beside the thread of a hook, in a host that names another program as its interpreter."""
    hook = (
        "import sys, threading, time, runpy\n"
        "del sys.argv[0]\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "sys.executable = '/bin/false'\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", hook, artifact, "-e", tiny, "hello"]
    result = subprocess.run(command, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")


THREAD = """\
#include <pthread.h>
#include <unistd.h>
static void *wait(void *none) { for (;;) pause(); return none; }
__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    pthread_create(&thread, 0, wait, 0);
}
"""


def test_a_thread_of_a_preloaded_library_keeps_nobody_waiting(artifact, tiny, tmp_path):
    """It is given the news of the child that ends before it is waited for."""
    (tmp_path / "thread.c").write_text(THREAD)
    library = tmp_path / "thread.so"
    source = tmp_path / "thread.c"
    subprocess.run(
        [need("gcc"), "-shared", "-fPIC", "-pthread", "-o", library, source], check=True
    )
    late = ["-e", "trace=rt_sigtimedwait", "-e", "inject=rt_sigtimedwait:delay_enter=1s:when=1"]
    words = [need("env"), f"LD_PRELOAD={library}", sys.executable, artifact, "-e", tiny, "hello"]
    result = subprocess.run([*tracing.strace(*late), *words], capture_output=True, timeout=20)
    assert (result.returncode, result.stdout) == (0, b"hello\n")


def test_a_ctrl_c_just_before_the_command_starts_reaches_it(artifact, tiny, tmp_path):
    """What waits from before the fork is not the child's, though a terminal sent it to both."""
    log = tmp_path / "log"
    late = ["-e", "trace=pipe2", "-e", "inject=pipe2:delay_enter=1s"]
    command = ["sh", "-c", "echo started; sleep 5; echo not interrupted"]
    words = [*tracing.strace(*late, log=log), sys.executable, artifact, "-e", tiny, *command]
    pid, terminal = pty.fork()
    if not pid:
        os.execvp(words[0], list(map(os.fspath, words)))
    process.wait_for(lambda: log.exists() and "pipe2" in log.read_text())
    os.write(terminal, b"\3")
    said = b""
    while True:
        try:
            said += os.read(terminal, 1000)
        except OSError:  # nobody has it open any more
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"not interrupted" not in said
    assert os.waitstatus_to_exitcode(status) in (-signal.SIGINT, 128 + signal.SIGINT)


MAKING = {"mkdir", "mkdirat", "openat", "flock", "rename", "renameat", "clone3", "rmdir"}


@pytest.mark.parametrize("scenario", scenarios.INTERRUPTED, ids=scenarios.name_of)
def test_a_signal_within_any_call_is_not_lost(ground, scenario):
    """As within mkdir, between the directory's being made and its being taken note of."""
    interrupted = scenario(ground())
    points = [point for point in interrupted.points() if point.name in MAKING]
    # Where directories are made and locks are taken it is decided what there is to clean up.
    first = {name: next((p for p in points if p.name == name), None) for name in MAKING}
    chosen = [point for point in first.values() if point] + crash.spread(points, 4)
    for point in chosen:
        try:
            interrupted.interrupt(point, signal.SIGTERM)
        except AssertionError as error:
            raise AssertionError(f"within {point.name}:{point.number}: {error}")


@pytest.mark.parametrize("where", ["temporary", "kept"])
def test_a_second_signal_ends_it_at_once(spawn, tmp_path, where):
    """Though it is at removing what it has made of half an archive, which takes its time."""
    archive, log = crash.archive(tmp_path / "archive", "tar"), tmp_path / "log"
    os.truncate(archive, archive.stat().st_size * 9 // 10)
    words = ["-d", tmp_path / "kept"] if where == "kept" else []
    removal = "?unlink,unlinkat,?rmdir"
    slowly = ["-e", f"trace={removal}", "-e", f"inject={removal}:delay_enter=1s"]
    one = {"PONCHO_PACKAGE_RUN_THREADS": "1"}
    tool = spawn("-e", archive, *words, "true", wrapper=tracing.strace(*slowly, log=log), env=one)
    process.wait_for(lambda: log.exists() and log.read_text(), what="the removal to begin")
    (pid,) = process.children_of(tool.pid)
    os.kill(pid, signal.SIGTERM)
    # Two that come within one call are one.
    process.wait_for(lambda: "SIGTERM" in log.read_text())
    time.sleep(0.3)
    assert process.is_alive(pid), "it cleans up first"
    os.kill(pid, signal.SIGTERM)
    sent = time.monotonic()
    process.wait_for(lambda: not process.is_alive(pid))
    # One removal may be under way, which strace holds back.
    assert time.monotonic() - sent < LIMIT
    assert status_of(subprocess.CompletedProcess((), tool.wait(20))) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("where", ["temporary", "kept", "in place"])
def test_a_signal_while_it_waits_for_more_of_a_pipe_ends_it(spawn, tmp_path, where, number):
    """Python goes on with a read that a signal interrupts: somebody must look in between."""
    archive = crash.archive(tmp_path / "archive", "tar.gz").read_bytes()
    kept = tmp_path / "kept"
    if where == "in place":
        kept.mkdir()
        words, cwd = ["-d", "."], kept
    else:
        words, cwd = (["-d", kept] if where == "kept" else []), tmp_path
    tool = spawn("-e", "/dev/stdin", *words, "true", stdin=subprocess.PIPE, cwd=cwd)
    tool.stdin.write(archive[:3000])
    tool.stdin.flush()
    process.wait_for(lambda: list(tmp_path.glob("**/conda-meta/history")))
    tool.send_signal(number)
    # The pipe stays open: only the signal can end it.
    assert status_of(subprocess.CompletedProcess((), tool.wait(LIMIT))) == 128 + number
    assert os.listdir(tmp_path / "tmp") == []
    names = {path.name for path in tmp_path.iterdir()} - {"archive", "tmp"}
    assert names == ({"kept"} if where == "in place" else set())
    assert where != "in place" or os.listdir(kept) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_waits_for_the_lock_ends_it(spawn, tiny, tmp_path, number):
    kept = tmp_path / "kept"
    kept.mkdir()
    with subprocess.Popen(["flock", str(kept), "sleep", "60"], start_new_session=True) as holder:
        try:
            process.wait_for(lambda: process.children_of(holder.pid))
            tool = spawn("-e", tiny, "-d", kept, "true")
            time.sleep(0.5)
            assert tool.poll() is None
            tool.send_signal(number)
            assert status_of(subprocess.CompletedProcess((), tool.wait(LIMIT))) == 128 + number
            assert os.listdir(kept) == []
        finally:
            os.killpg(holder.pid, signal.SIGKILL)

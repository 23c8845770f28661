"""Watching processes from outside (Linux: by reading /proc)."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def wait_for(predicate: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """The first true value that ``predicate`` returns; AssertionError after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s in vain for {what or predicate}")
        time.sleep(0.01)


def _stat(pid: int) -> list[str]:
    """State, parent, process group, ... of ``pid``; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            # The name comes second, in parentheses, and may hold spaces and parentheses.
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether ``pid`` exists and is not a zombie."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def state_of(pid: int) -> str:
    """The letter that ps(1) shows (R, S, T, Z, ...), empty when there is no such process."""
    return (_stat(pid) or [""])[0]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def marked(*variables: str) -> list[int]:
    """The living processes whose environment has all of these ("NAME=VALUE")."""
    found = []
    for pid in _pids():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue  # it ended just now, or is not ours to read
        if set(map(os.fsencode, variables)) <= set(environ.split(b"\0")):
            found.append(pid)
    return found


def marking(**variables: str) -> tuple[str, dict[str, str]]:
    """A variable that ``marked`` finds, and an environment that has it beside what all need."""
    name, value = "PONCHO_TEST_MARK", str(uuid.uuid4())
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables, name: value}
    return f"{name}={value}", environ


def children_of(pid: int, ended: bool = False) -> list[int]:
    """The living direct children of ``pid``; with ``ended`` also those it has not waited for."""
    children = [each for each in _pids() if _stat(each)[1:2] == [str(pid)]]
    return [each for each in children if ended or is_alive(each)]


def group_members(pgid: int) -> list[int]:
    """The living processes of process group ``pgid``."""
    return [each for each in _pids() if _stat(each)[2:3] == [str(pgid)] and is_alive(each)]


def descendants_of(pid: int) -> list[int]:
    """The living processes that ``pid`` started, and theirs."""
    children = children_of(pid)
    return [*children, *(each for child in children for each in descendants_of(child))]


def go_on(pid: int) -> None:
    """Continue all that a process started, where something has stopped it."""
    for each in descendants_of(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)


def go_on_to_the_end(started: "subprocess.Popen[bytes]", seconds: float = 60.0) -> None:
    """``go_on`` until it has ended, or for so long: under strace who is told once may not hear."""
    end = time.monotonic() + seconds
    while started.poll() is None and time.monotonic() < end:
        go_on(started.pid)
        time.sleep(0.05)


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:
            pass  # closed meanwhile
    return found

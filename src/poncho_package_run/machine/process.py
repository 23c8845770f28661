"""Processes: described, so that another process can tell whether one has ended.

A pid alone proves nothing: it is used again, another machine has one like it, a container counts
its own, and start times are told by clocks that a time namespace may shift.  The boot id is
drawn at random at every start of a kernel, so that one boot id is one machine, whatever its name;
with it and both namespaces the same, a pid means the same process.  The number of a namespace
may be used again, but only when every process of the old one has ended.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Optional

    Process = Dict[str, Any]

# The words of a process, and its environment, may take some megabytes.
_MOST = 1 << 23

_WHERE = ("boot_id", "pid_namespace", "time_namespace")


def describe() -> "Process":
    """This process: "boot_id", "host", "machine_id", "pid", "pid_namespace", "start_time" (clock
    ticks after boot) and "time_namespace".  What the system does not tell is None.
    """
    pid = os.getpid()
    stat = _stat(pid) if _is_own_proc(pid) else None
    return {
        "boot_id": _line(b"/proc/sys/kernel/random/boot_id"),
        "host": os.uname().nodename.encode("ascii", "backslashreplace").decode("ascii"),
        "machine_id": machine_id(),
        "pid": pid,
        "pid_namespace": _namespace("pid") if stat else None,
        "start_time": int(stat[19]) if stat else None,
        # Kernels before 5.6 have none; then there is no clock to be shifted either.
        "time_namespace": _namespace("time") or "none",
    }


def machine_id() -> "Optional[str]":
    """What machine-id(5) says: it survives restarts, but images may share one."""
    return _line(b"/etc/machine-id")


def parse(data: bytes) -> "Optional[Process]":
    """The process that the JSON in ``data`` describes, among other things; None if it does not.

    Anybody may have written it: every field is checked.  Only a positive number may reach
    kill(2), to which 0 and -1 mean many processes; the host's name is shown.
    """
    import json

    try:
        process = json.loads(data.decode("ascii"))
        pid, start_time, host = process["pid"], process["start_time"], process["host"]
        where = [process[key] for key in _WHERE]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not (
        (type(pid) is int and 0 < pid < 1 << 31)
        and (start_time is None or (type(start_time) is int and 0 <= start_time < 1 << 64))
        and (type(host) is str and host.isprintable() and len(host) < 256)
        and all(each is None or type(each) is str for each in where)
    ):
        return None
    return {
        "pid": pid, "start_time": start_time, "host": host, **dict(zip(_WHERE, where)),
    }  # fmt: skip


def is_here(process: "Process") -> bool:
    """Whether the process is, or was, one of this machine, boot and namespaces."""
    here = describe()
    return all(process[key] is not None and process[key] == here[key] for key in _WHERE)


def is_dead(process: "Process") -> bool:
    """Whether it is proved that the process has ended, with every thread of it.

    The proof: it was one of ours, and its pid is free (asked of kill(2), because /proc may hide
    other users' processes), or a process of another start time or a zombie has it.
    """
    if not is_here(process):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it runs, as another user
    stat = _stat(process["pid"])
    if stat is None:
        return False
    # Threads may outlive their zombie leader, stuck in a write for instance.
    if stat[0] in (b"Z", b"X") and int(stat[17]) <= 1:
        return True
    return process["start_time"] not in (None, int(stat[19]))


def uses(directory: bytes) -> bool:
    """Whether a process of this user (of any, for root) runs a program from below a directory,
    stands there, or names it among its words, as a script's shell does, or in its environment, as
    all do that a command has started there.  True if nobody can tell.

    Args:
        directory: absolute and real.
    """
    if not _is_own_proc(os.getpid()):
        return True
    below = directory + b"/"
    for pid in _pids():
        if pid == os.getpid():
            continue
        for link in (b"exe", b"cwd"):
            try:
                path = os.readlink(b"/proc/%d/%s" % (pid, link)) + b"/"
            except OSError:
                continue  # it has ended, or is another user's
            if path.startswith(below):
                return True
        for name in (b"cmdline", b"environ"):
            if below in _read(b"/proc/%d/%s" % (pid, name), _MOST):
                return True
    return False


def _pids() -> "Iterator[int]":
    for name in os.listdir(b"/proc"):
        if name.isdigit():
            yield int(name)


def _stat(pid: int) -> "Optional[list]":
    """The fields of proc(5)'s stat from the third on: [0] is the state, [17] the number of
    threads, [19] the start time.
    """
    # The second field, the command in parentheses, may hold spaces and parentheses itself.
    fields = _read(b"/proc/%d/stat" % pid).rpartition(b")")[2].split()
    return fields if len(fields) > 19 else None


def _is_own_proc(pid: int) -> bool:
    """Whether /proc shows the processes that kill(2) knows by these numbers."""
    try:
        return os.readlink(b"/proc/self") == b"%d" % pid
    except OSError:
        return False  # there is none, or it is another namespace's


def _namespace(kind: str) -> "Optional[str]":
    try:
        return os.readlink("/proc/self/ns/" + kind)
    except OSError:
        return None


def _line(path: bytes) -> "Optional[str]":
    return _read(path).decode("ascii", "replace").strip() or None


def _read(path: bytes, size: int = 4096) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""  # a process that has ended, or a system without /proc

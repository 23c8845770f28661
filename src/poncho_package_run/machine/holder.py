"""Holders: a process, described so that another process can tell whether it still runs.

A pid alone proves nothing: it is used again, another machine has one like it, and a
container counts its own.  A description therefore carries what makes a pid unique, and
the answer may be "cannot tell": ``is_dead`` and ``is_alive`` are both false then.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    Holder = Dict[str, Any]

# PROC_PID_INIT_INO of Linux's include/linux/proc_ns.h: not in a container.
_INITIAL_NAMESPACE = "pid:[4026531836]"
_UNKNOWN = "unknown"
_HEXADECIMAL = "0123456789abcdef-"
_SHARED_NAMES = ("", "(none)", "localhost", "localhost.localdomain")


def describe() -> "Holder":
    """This process: "boot_id", "host", "pid" and "start_time" (clock ticks after boot).

    A process in a container adds "pid_namespace".  What the system does not tell is None.
    """
    pid = os.getpid()
    own = _stat(b"self")
    holder = {
        "boot_id": _boot_id(),
        "host": os.uname().nodename.encode("ascii", "backslashreplace").decode("ascii"),
        "pid": pid,
        "start_time": own[2] if own else None,
    }
    namespace = _namespace(pid)
    if namespace != _INITIAL_NAMESPACE:
        holder["pid_namespace"] = namespace
    return holder


def encode(holder: "Holder") -> bytes:
    """One line of JSON, without its newline: the form in which a holder is written down."""
    import json

    return json.dumps(holder, sort_keys=True).encode("ascii")


def parse(data: bytes) -> "Optional[Holder]":
    """The holder that the JSON in ``data`` describes, among other things; None if it does not."""
    import json

    try:
        holder = json.loads(data.decode("ascii"))
        return holder if _is_valid(holder) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


# A holder may come from anybody who can write there.  Only a positive number may reach kill(2),
# to which 0 and -1 mean many processes; "host" is shown, "boot_id" is used in a file name.
def _is_valid(holder: "Holder") -> bool:
    pid, start_time = holder.get("pid"), holder.get("start_time")
    boot_id = holder.get("boot_id")
    return (
        (type(pid) is int and 0 < pid < 1 << 31)
        and (start_time is None or (type(start_time) is int and 0 <= start_time < 1 << 64))
        and (type(holder.get("host")) is str and holder["host"].isprintable())
        and (boot_id is None or (type(boot_id) is str and set(boot_id) <= set(_HEXADECIMAL)))
    )


def is_dead(holder: "Holder") -> bool:
    """Whether it is proved that the process has ended, with every thread of it.

    The proof: its pid is free (asked of kill(2), because /proc may hide other users'
    processes), or a process of another start time or a zombie has it; or this host has
    booted since.  The last counts between processes outside containers only: many
    machines run containers of one name, and a name like "localhost" is no machine's own.
    """
    here = describe()
    if _same_processes(holder, here):
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it runs, as another user
        seen = _stat(str(holder["pid"]).encode())
        return seen is not None and not _is_running(seen, holder)
    return (
        holder["host"] == here["host"]
        and holder["host"] not in _SHARED_NAMES
        and None not in (holder.get("boot_id"), here["boot_id"])
        and holder["boot_id"] != here["boot_id"]
        and "pid_namespace" not in holder
        and "pid_namespace" not in here
    )


def is_alive(holder: "Holder") -> bool:
    """Whether it is proved that the process runs, be it stopped: pid and start time are its."""
    if holder.get("start_time") is None or not _same_processes(holder, describe()):
        return False
    seen = _stat(str(holder["pid"]).encode())
    return seen is not None and _is_running(seen, holder)


def _same_processes(holder: "Holder", here: "Holder") -> bool:
    """Whether a pid means the same process to both."""
    return (
        all(holder.get(key) == here.get(key) for key in ("host", "boot_id", "pid_namespace"))
        and here.get("pid_namespace") != _UNKNOWN
    )


def _is_running(seen: "Tuple[bytes, int, int]", holder: "Holder") -> bool:
    state, threads, start_time = seen
    # Threads may outlive their zombie leader, stuck in a write for instance.
    if state in (b"Z", b"X") and threads <= 1:
        return False
    return holder.get("start_time") in (None, start_time)


def _stat(process: bytes) -> "Optional[Tuple[bytes, int, int]]":
    """State, number of threads and start time: fields 3, 20 and 22 of proc(5)'s stat."""
    # The second field, the command in parentheses, may hold spaces and parentheses itself.
    fields = _read(b"/proc/" + process + b"/stat").rpartition(b")")[2].split()
    return (fields[0], int(fields[17]), int(fields[19])) if len(fields) > 19 else None


def _boot_id() -> "Optional[str]":
    return _read(b"/proc/sys/kernel/random/boot_id").decode("ascii").strip() or None


def _namespace(pid: int) -> "Optional[str]":
    """The pid namespace's name; "unknown" where /proc is missing or another namespace's."""
    try:
        if os.readlink(b"/proc/self") == str(pid).encode():
            return os.readlink("/proc/self/ns/pid")
    except OSError:
        pass
    # Other systems have no such namespaces, and no /proc like this.
    return _UNKNOWN if os.uname().sysname == "Linux" else _INITIAL_NAMESPACE


def _read(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # a process that has ended, or a system without /proc

"""How many processors this process may use."""

import os

# Making or removing a file takes some 10 microseconds on a local file system and a millisecond
# over a network; several threads overlap such waits.  The quickest of a number of calls tells:
# on a busy machine single ones take as long, never all of them.  (Beside other threads that work
# they would: each call also waits for the interpreter.)
SLOW_SECONDS = 0.0003
SAMPLES = 16
OVERLAPPING = 16


def usable() -> int:
    """The number of usable processors, at least 1.

    The affinity mask and the cgroup's quota count, so that a task that was given one core of
    a large machine does not start a thread for each of them.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota:
        count = min(count, quota)
    return capped(count)


def capped(threads: int) -> int:
    """So many threads, or as many as PONCHO_PACKAGE_RUN_THREADS allows; at least 1."""
    cap = os.environ.get("PONCHO_PACKAGE_RUN_THREADS", "")
    # Not isdigit, which is true of a superscript; int refuses thousands of digits.
    if cap.isdecimal() and len(cap) < 10 and int(cap) > 0:
        threads = min(threads, int(cap))
    return max(threads, 1)


def _cgroup_quota() -> int:
    """The processors that the cgroup's quota amounts to, rounded up; 0 if there is none.

    cpu.max of version 2 holds "QUOTA PERIOD" in microseconds ("max" for none), version 1 has a
    file for each (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1).
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as lines:
            groups = [line.rstrip("\n").split(":", 2) for line in lines]
        for _, controllers, path in groups:
            if not controllers:
                name = "/sys/fs/cgroup{}/cpu.max".format(path if path != "/" else "")
                if not os.path.exists(name):
                    name = "/sys/fs/cgroup/cpu.max"  # seen from inside a container
                text = _words(name)
            elif "cpu" in controllers.split(","):
                name = "/sys/fs/cgroup/{}{}/cpu.cfs_".format(controllers, path)
                text = _words(name + "quota_us") + _words(name + "period_us")
            else:
                continue
            if len(text) == 2 and text[0].isdigit() and int(text[1]) > 0:
                return max(-(-int(text[0]) // int(text[1])), 1)
    except (OSError, ValueError):  # not Linux, or no such file: no quota is known
        pass
    return 0


def _words(name: str) -> list:
    try:
        with open(name, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []

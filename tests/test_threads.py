"""No thread of the tool takes a signal: the main thread waits for them, and must get them all."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import process
from support.commands import need

_F_SETPIPE_SZ = 1031
NAMES = ("CHLD", "TERM", "INT", "HUP", "USR1", "CONT", "TSTP", "WINCH")


def blocked(status):
    """The signals that a thread blocks, as /proc tells."""
    (line,) = [line for line in status.splitlines() if line.startswith("SigBlk:")]
    mask = int(line.split()[1], 16)
    return {name for name in NAMES if mask >> (getattr(signal, "SIG" + name) - 1) & 1}


@pytest.mark.parametrize("where", ["temporary", "kept"])
@pytest.mark.parametrize("how", ["tar.gz", "tar.xz", "tar.zst by program"])
def test_threads_block_every_signal(spawn, environment, tmp_path, where, how):
    env = {}
    if how == "tar.zst by program":
        # A folder of Python's own in which ctypes finds no library: only the program is left.
        (tmp_path / "sitecustomize.py").write_text(
            "import ctypes\ndef missing(*args, **more): raise OSError\nctypes.CDLL = missing\n"
        )
        need("zstd")
        env = {"PYTHONPATH": tmp_path}
    archive = environment.archive(how.partition(" ")[0], scripts=False)
    data = archive.read_bytes()
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    worker = spawn("-e", "/dev/stdin", *place, "true", stdin=subprocess.PIPE, env=env)
    size = fcntl.fcntl(worker.stdin, _F_SETPIPE_SZ, 1 << 20)
    os.write(worker.stdin.fileno(), data[: min(size, len(data) - 1)])
    tasks = Path(f"/proc/{worker.pid}/task")
    process.wait_for(lambda: len(os.listdir(tasks)) > 1, what="threads")
    # Long enough for those that start later, the reader's and the writers'.
    time.sleep(0.5)
    others = [task for task in tasks.iterdir() if task.name != str(worker.pid)]
    assert others
    for task in others:
        assert blocked((task / "status").read_text()) == set(NAMES)
    assert not blocked((tasks / str(worker.pid) / "status").read_text())

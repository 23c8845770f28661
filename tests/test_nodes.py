"""Several machines on one directory: locks that end at the node, no locks at all, other namespaces.

Two nodes are two FUSE mounts of one directory, each with a pid and a host name of its own.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from poncho_package_run.cache.memo import USES
from support import crash, nodes, process, scenarios, tracing, trees
from support.commands import missing, need
from support.crash import MARKER, private_directories

ENTER = """
hostname "$1" && mount --bind "$2" "$3" && shift 3 && exec "$@"
"""


class Cluster:
    """A directory that two nodes see under the same path.

    Attributes:
        path: where they see it.
        real: where it is seen from here, without FUSE.
    """

    def __init__(self, root, artifact):
        self.real, self.path = root / "real", root / "shared"
        self.mounts = [root / "mount0", root / "mount1"]
        self.artifact = artifact
        self.running = []
        self.real.mkdir()
        self.path.mkdir()
        (self.real / "tmp").mkdir()
        self.archive = crash.archive(self.real / "archive", "tar")
        self.kept = self.path / "kept"

    def node(self, number, name=None, apart=True):
        """The start of a command line that runs on a node.

        Args:
            name: its host name, by default one of its own.
            apart: in a pid namespace of its own; otherwise only the locks are.
        """
        namespaces = ["-m", "--uts", *(["-p", "-f", "--kill-child", "--mount-proc"] * apart)]
        start = [need("unshare"), *namespaces, "sh", "-c", ENTER, "sh"]
        return [*start, name or f"node{number}", self.mounts[number], self.path]

    def start(self, node, *words, wrapper=()):
        """Start the tool on a node."""
        variables = {"PATH": os.environ["PATH"], "TMPDIR": str(self.path / "tmp"), "HOME": "/proc"}
        archive = self.path / "archive"
        started = subprocess.Popen(
            [*node, *wrapper, sys.executable, "-S", self.artifact, "-e", archive, *words],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self.running.append(started)
        return started

    def run(self, node, *words, wrapper=()):
        return crash.finish(self.start(node, *words, wrapper=wrapper))

    def at_once(self, starts, count, *words):
        """Start the tool so often, on the nodes in turn; how often each outcome came."""
        running = [self.start(starts[index % 2], *words) for index in range(count)]
        results = [crash.finish(each) for each in running]
        return Counter((each.returncode, each.stdout, each.stderr) for each in results)

    def check(self, other=None):
        """The environment is the whole tree, and nothing is beside it."""
        kept = self.real / "kept"
        fresh = self.real.parent / "fresh"
        scenarios.extract(self.archive, fresh)
        expected, found = trees.snapshot(fresh), trees.snapshot(kept)
        crash.remove(fresh)
        for name, content in crash.relocated(str(self.kept)).items():
            assert (kept / name).read_bytes() == content, name
            del expected[name.encode()], found[name.encode()]
        assert not trees.differences(expected, found)
        left = [path.name for path in private_directories(self.real) if not crash.is_unowned(path)]
        assert left == []


@pytest.fixture
def cluster(tmp_path, artifact):
    made = Cluster(tmp_path, artifact)
    with nodes.mounted(made.real, *made.mounts):
        yield made
        for each in made.running:
            if each.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
            each.communicate()


KINDS = {
    "two machines": ({}, {}),
    "two machines of one name": ({"name": "localhost"}, {"name": "localhost"}),
    "two views of one machine": ({"apart": False}, {"apart": False}),
}


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_of_one_node_leaves_what_another_runs_in(cluster, kind):
    """Both are granted every lock."""
    first, second = (cluster.node(number, **KINDS[kind][number]) for number in (0, 1))
    used = cluster.start(first, "sh", "-c", "echo ready; read line; hello")
    assert used.stdout.readline() == b"ready\n"
    for _ in range(2):
        result = cluster.run(second, "hello")
        assert result.returncode == 0, result
    output, errors = used.communicate(b"\n", timeout=60)
    assert (used.returncode, errors) == (0, b"")
    assert output.startswith(b"hello from " + bytes(cluster.path))
    assert os.listdir(cluster.real / "tmp") == []


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_starts_on_two_nodes_at_once_use_one_whole_environment(cluster, kind):
    starts = [cluster.node(number, **KINDS[kind][number]) for number in (0, 1)]
    words = ["-d", cluster.kept, "-w", "60", "hello"]
    for _ in range(2):
        outcomes = cluster.at_once(starts, 8, *words)
        assert outcomes == {(0, b"hello from " + bytes(cluster.kept), b""): 8}
        cluster.check()
        crash.remove(cluster.real / "kept")


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_starts_on_two_nodes_at_once_share_a_cache(cluster, kind):
    starts = [cluster.node(number, **KINDS[kind][number]) for number in (0, 1)]
    name = hashlib.sha256(cluster.archive.read_bytes()).hexdigest()
    cluster.kept = cluster.path / "cache" / name
    for _ in range(2):
        words = ["--cache", cluster.path / "cache", "-w", "60", "hello"]
        outcomes = cluster.at_once(starts, 8, *words)
        assert outcomes == {(0, b"hello from " + bytes(cluster.kept), b""): 8}
        whole = [each for each in os.listdir(cluster.real / "cache") if not each.startswith(".")]
        assert whole == [name]
        (cluster.real / "cache" / name).rename(cluster.real / "kept")
        cluster.check()
        crash.remove(cluster.real / "kept")
        # Behind the nodes' backs: for a second (libfuse's entry_timeout) they believe it is there.
        time.sleep(1.1)


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_node_runs_in_stays_in_the_cache_of_another(cluster, kind):
    """Both are granted every lock."""
    first, second = (cluster.node(number, **KINDS[kind][number]) for number in (0, 1))
    cache = ["--cache", cluster.path / "cache", "--cache-limit", "3M"]
    crash.archive(cluster.archive, "tar", {"lib/other": os.urandom(2 << 20)})
    used = cluster.start(first, *cache, "sh", "-c", "echo ready; read line; hello")
    assert used.stdout.readline() == b"ready\n"
    (kept,) = (path for path in (cluster.real / "cache").iterdir() if path.name[0] != ".")
    crash.archive(cluster.archive, "tar", {"lib/other": os.urandom(2 << 20)})
    time.sleep(1.1)  # as above
    result = cluster.run(second, *cache, "hello")
    assert (result.returncode, result.stderr.count(b"no room")) == (0, 1), result
    assert result.stdout.startswith(b"hello from " + bytes(cluster.path / "tmp"))
    output, errors = used.communicate(b"\n", timeout=60)
    assert (used.returncode, errors) == (0, b"")
    assert output == b"hello from " + bytes(cluster.path / "cache" / kept.name)
    week = time.time() - 7 * 24 * 3600 - 60
    for file in (cluster.real / "cache" / os.fsdecode(USES) / kept.name).iterdir():
        os.utime(file, (week, week))
    time.sleep(1.1)  # as above
    result = cluster.run(second, *cache, "hello")
    assert (result.returncode, result.stderr) == (0, b"")
    assert not kept.exists()


@pytest.mark.root
@pytest.mark.parametrize("phase", ["mkdirat:2", "symlinkat:1", "rename:1", "flock:2"])
def test_who_is_stopped_on_one_node_finds_what_the_other_has_published(cluster, phase):
    """And leaves it alone: it emptied it once, and the remains stayed marked complete."""
    call, number = phase.split(":")
    log = cluster.real.parent / "log"
    stop = tracing.strace("-e", f"trace={call}", "-e", f"inject={call}:signal=STOP:when={number}",
                          log=log)  # fmt: skip
    words = ["-d", cluster.kept, "-w", "30", "hello"]
    first = cluster.start(cluster.node(0), *words, wrapper=stop)
    process.wait_for(
        lambda: (
            first.poll() is not None or (log.exists() and b"stopped by SIGSTOP" in log.read_bytes())
        )
    )
    second = cluster.run(cluster.node(1), *words)
    assert (second.returncode, second.stdout) == (0, b"hello from " + bytes(cluster.kept))
    inode = (cluster.real / "kept" / "bin" / "hello").stat().st_ino
    process.go_on_to_the_end(first)
    result = crash.finish(first)
    assert result.returncode in (0, 75), result
    assert (cluster.real / "kept" / "bin" / "hello").stat().st_ino == inode
    cluster.check()


@pytest.mark.root
@pytest.mark.parametrize("mode", ["beside", "inside"])
def test_a_node_that_died_keeps_no_other_waiting(cluster, mode):
    kill = tracing.strace("-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
    words = ["-d", cluster.kept, "-w", "0", "hello"]
    if mode == "inside":
        cluster.artifact = cluster.artifact.resolve()
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', cluster.kept]
        (cluster.real / "kept").mkdir()
    else:
        inside = []
    cluster.run([*cluster.node(0), *inside], *words, wrapper=kill)
    assert not (cluster.real / "kept" / MARKER).exists()
    result = cluster.run([*cluster.node(1), *inside], *words)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"hello from " + bytes(cluster.kept)
    # Nobody here can tell that its owner is dead, for a day.
    scenarios.age(cluster.real)
    crash.remove(cluster.real / "kept")
    (cluster.real / "kept").mkdir()
    # Behind the node's back: for a second (libfuse's entry_timeout) it believes the old one there.
    time.sleep(1.1)
    assert cluster.run([*cluster.node(1), *inside], *words).returncode == 0
    cluster.check()


@pytest.mark.root
def test_a_directory_is_relocated_on_two_nodes_at_once(cluster):
    # Once: what is replaced behind its back confuses the file system of the test.
    scenarios.extract(cluster.archive, cluster.real / "kept")
    starts = [cluster.node(number) for number in (0, 1)]
    outcomes = cluster.at_once(starts, 6, "-e", cluster.kept, "hello")
    assert outcomes == {(0, b"hello from " + bytes(cluster.kept), b""): 6}
    cluster.check()


# Time namespaces


@pytest.mark.root
def test_an_owner_in_another_time_namespace_is_not_taken_for_another_process(
    run, spawn, tiny, tmp_path
):
    """Its start time reads otherwise in there; the pid is the same."""
    apart = [need("unshare"), "-T", "--boottime", "1000000", "-f", "--kill-child"]
    if subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL).returncode:
        missing("needs a time namespace: run it as root, on Linux 5.6 or later")
    # The command keeps no lease, and the tool's own lock is granted to everybody.
    script = "import os, sys; os.closerange(3, 99); os.chdir('/'); print(1, flush=True); "
    script += "sys.stdin.read()"
    tool = spawn("-e", tiny, sys.executable, "-c", script, stdin=subprocess.PIPE, wrapper=apart)
    assert tool.stdout.readline() == b"1\n"
    (used,) = private_directories(tmp_path / "tmp")
    run("-e", tiny, "hello", wrapper=tracing.strace("-e", "inject=flock:retval=0"), check=True)
    assert os.listdir(used / "env") != []
    tool.communicate(timeout=20)
    assert os.listdir(tmp_path / "tmp") == []


# No locks at all

REFUSED = ["inject=flock:error=ENOLCK"]


@pytest.fixture
def without_locks(run, tmp_path):
    """Starts the artifact where flock is refused."""
    archive = crash.archive(tmp_path / "archive", "tar")

    def without_locks(*words):
        wrapper = tracing.failing("flock", "ENOLCK")
        return run("-e", archive, "-d", tmp_path / "kept", *words, wrapper=wrapper)

    return without_locks


def leases(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".poncho_package_run_lease")]


def test_without_locks_a_lease_is_taken_and_given_back(without_locks, tmp_path):
    result = without_locks("hello")
    assert (result.returncode, result.stderr) == (0, b"")
    assert leases(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["archive", "kept", "tmp"]


def test_without_locks_starts_at_once_unpack_once(spawn, tmp_path):
    archive = crash.archive(tmp_path / "archive", "tar")
    wrapper = tracing.failing("flock", "ENOLCK")
    words = ["--debug", "-e", archive, "-d", tmp_path / "kept", "hello"]
    ends = [
        each.communicate(timeout=60) for each in [spawn(*words, wrapper=wrapper) for _ in range(8)]
    ]
    assert {output for output, _ in ends} == {b"hello from " + bytes(tmp_path / "kept")}
    assert sum(errors.count(b"poncho_package_run: unpack: ") for _, errors in ends) == 1
    assert leases(tmp_path) == []


@pytest.mark.slow
def test_a_lease_whose_holder_died_is_replaced_after_ten_seconds(without_locks, run, tmp_path):
    kill = tracing.strace("-e", REFUSED[0], "-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
    # In a container, of which nobody can tell that it is dead.
    wrapper = [*scenarios.in_a_container(), *kill]
    run("-e", tmp_path / "archive", "-d", tmp_path / "kept", "hello", wrapper=wrapper)
    assert len(leases(tmp_path)) == 1
    assert without_locks("-w", "1", "hello").returncode == 75
    begin = time.monotonic()
    result = without_locks("-w", "60", "hello")
    assert (result.returncode, result.stderr) == (0, b"")
    assert time.monotonic() - begin < 25
    assert leases(tmp_path) == []


def test_a_lease_whose_holder_is_proved_dead_is_replaced_at_once(without_locks, run, tmp_path):
    kill = tracing.strace("-e", REFUSED[0], "-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
    run("-e", tmp_path / "archive", "-d", tmp_path / "kept", "hello", wrapper=kill)
    assert len(leases(tmp_path)) == 1
    result = without_locks("-w", "3", "hello")
    assert (result.returncode, result.stderr) == (0, b"")
    assert leases(tmp_path) == []
    assert [path for path in private_directories(tmp_path) if not crash.is_unowned(path)] == []


@pytest.mark.slow
def test_a_lease_that_is_touched_is_waited_for(spawn, without_locks, tmp_path):
    archive = (tmp_path / "archive").read_bytes()
    wrapper = tracing.failing("flock", "ENOLCK")
    words = ["-e", "/dev/stdin", "-d", tmp_path / "kept", "hello"]
    first = spawn(*words, wrapper=wrapper, stdin=subprocess.PIPE)
    first.stdin.write(archive[:3000])
    first.stdin.flush()
    process.wait_for(lambda: leases(tmp_path))
    begin = time.monotonic()
    assert without_locks("-w", "13", "hello").returncode == 75
    assert time.monotonic() - begin >= 13
    assert first.poll() is None
    output, errors = first.communicate(archive[3000:], timeout=60)
    assert (first.returncode, output, errors) == (0, b"hello from " + bytes(tmp_path / "kept"), b"")

"""A warm start imports, writes and leaves nothing; a cold one writes only where it says."""

import fcntl
import os
import re
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from support import process, tracing

SOURCES = Path(__file__).parents[1] / "src" / "poncho_package_run"

# What a warm start may not import: of ours, and of the standard library.
COLD = [
    "archive", "durability", "relocation", "tree",
    "place/fresh", "place/private", "place/publication", "place/settle",
]  # fmt: skip
SLOW = {
    "argparse", "bz2", "concurrent.futures", "ctypes", "dataclasses", "hashlib", "inspect",
    "logging", "lzma", "multiprocessing", "pathlib", "queue", "random", "shutil", "socket",
    "subprocess", "tarfile", "tempfile", "threading", "typing", "zipfile",
}  # fmt: skip


@pytest.fixture
def kept(run, environment, tmp_path):
    """A kept environment without activation scripts, and the options that name it."""
    words = ["-e", environment.archive(scripts=False), "-d", tmp_path / "kept"]
    run(*words, check=True)
    return words


@pytest.fixture
def cached(run, environment, tmp_path):
    """The same in a cache."""
    words = ["-e", environment.archive(scripts=False), "--cache", tmp_path / "cache"]
    run(*words, check=True)
    return words


@pytest.fixture
def start(prepare):
    """Start the artifact under -X importtime.

    With -S, because site-packages may hold .pth files that import anything.
    """

    def start(*words):
        arguments = prepare(words, None, None, {})
        python, *rest = arguments.pop("args")
        return subprocess.Popen([python, b"-S", b"-X", b"importtime", *rest], **arguments)

    return start


@pytest.fixture
def importing(start):
    """Run the artifact; returns the names that were imported."""
    return lambda *words: imported(start(*words))


def imported(process):
    """Wait for a process to end well; the names in what -X importtime wrote."""
    with process:
        errors = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, errors
    lines = re.findall(r"^import time:[^|]*\|[^|]*\| +(\S+)$", errors, re.M)
    return {name for name in lines if name != "imported"}


def test_the_modules_that_a_warm_start_avoids_exist():
    for name in COLD:
        assert (SOURCES / f"{name}.py").is_file() or (SOURCES / name / "__init__.py").is_file()


def test_a_warm_start_imports_no_unpacking_module(importing, kept):
    names = importing(*kept, "true")
    ours = {name.partition(".")[2] for name in names if name.startswith("poncho_package_run.")}
    assert "cli" in ours
    assert not {name for name in ours if name.replace(".", "/").startswith(tuple(COLD))}
    assert not names & SLOW


def test_a_warm_start_from_a_cache_imports_its_memory_only(importing, kept, cached):
    more = importing(*cached, "true") - importing(*kept, "true")
    assert more - {"fcntl"} == {"poncho_package_run.cache", "poncho_package_run.cache.memo"}


def test_a_start_that_waits_imports_hardly_more(importing, start, kept, tmp_path):
    # What each of many waiters computes is taken from the one that unpacks.
    warm = importing(*kept, "true")
    marker, hidden = tmp_path / "kept" / ".poncho_package_run_expanded", tmp_path / "marker"
    marker.rename(hidden)
    holder = os.open(tmp_path / "kept", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waiter = start(*kept, "true")
    process.wait_for(lambda: str(tmp_path / "kept") in process.open_files(waiter.pid))
    time.sleep(0.2)
    assert waiter.poll() is None
    hidden.rename(marker)
    more = imported(waiter) - warm
    os.close(holder)
    names = ["machine", "machine.signals", "pipeline", "place.lock"]
    names += ["telling", "telling.errors", "telling.messages", "telling.report"]
    ours = {"poncho_package_run." + name for name in names}
    assert more - {"fcntl", "zlib"} == ours


@pytest.mark.parametrize("place", ["-d kept", "-d kept -w 60", "--cache cache"])
@pytest.mark.parametrize("locale", ["C.UTF-8", None])
@pytest.mark.parametrize("script", ["", "export A=1", "PATH=/nowhere:$PATH"])
def test_a_warm_start_reads_nothing_of_a_cold_one(
    run, artifact, environment, tmp_path, place, locale, script
):
    """One had it all read, 2 ms, for a function: with a relative DIR, in the C locale, and behind
    activation scripts."""
    words = ["-e", environment.archive(scripts=False), *place.split()]
    run(*words, "true", check=True, cwd=tmp_path)
    if script:
        prefix = next(tmp_path.glob("*/**/conda-meta")).parent
        folder = prefix / "etc" / "conda" / "activate.d"
        folder.mkdir(parents=True)
        (folder / "set.sh").write_text(script)
    log = tmp_path / "log"
    seek = tracing.strace("-e", "trace=lseek", "-y", log=log)
    env = {"LANG": locale, "LC_ALL": None, "LC_CTYPE": None}
    run(*words, "true", wrapper=seek, check=True, cwd=tmp_path, env=env)
    lines = [line for line in log.read_text().splitlines() if str(artifact) in line]
    offsets = {int(line.rsplit("=", 1)[1]) for line in lines if line[-1].isdigit()}
    with zipfile.ZipFile(artifact) as entries:
        read = {info.filename for info in entries.infolist() if info.header_offset in offsets}
    parts = {name.partition("-")[0] for name in read}
    assert parts - {"__main__.py"} == {"entry.py", "warm"}


def test_a_cold_start_imports_them(importing, environment, tmp_path):
    # So that the test above cannot pass because the names have changed.
    words = ["-e", environment.archive(scripts=False), "-d", tmp_path / "new"]
    assert "poncho_package_run.tree.unpack" in importing(*words, "true")


@pytest.mark.parametrize("option", ["-d", "--cache"])
@pytest.mark.parametrize("scripts", [False, True], ids=["no scripts", "scripts"])
def test_a_warm_start_leaves_no_process_behind(spawn, run, environment, tmp_path, scripts, option):
    words = ["-e", environment.archive(scripts=scripts), option, tmp_path / "kept"]
    run(*words, check=True)
    worker = spawn(*words, "sh", "-c", "echo $$; read x", stdin=-1)
    # The command has the tool's own pid: the tool is no more.
    assert int(worker.stdout.readline()) == worker.pid
    assert process.children_of(worker.pid) == []
    assert process.group_members(worker.pid) == [worker.pid]
    worker.communicate(b"\n", timeout=60)
    assert process.group_members(worker.pid) == []


def is_a_file(path):
    return not path.startswith(("pipe:[", "socket:[", "anon_inode:")) and path != "/dev/null"


def test_a_warm_start_writes_nothing(run, kept, tmp_path):
    log = tmp_path / "log"
    run(*kept, "true", wrapper=tracing.recording(log), check=True)
    found = tracing.calls(log, until_execve_of="/true")
    assert found[-1].name == "execve", "the command was reached"
    assert [path for path in tracing.changed(found) if is_a_file(path)] == []
    # No lock and no child either.
    assert not {call.name for call in found} & {"flock", "fork", "vfork", "clone", "clone3"}


def changes(folder, but):
    """When each path below a folder was last changed."""
    return {path: path.lstat().st_ctime_ns for path in folder.rglob("*") if path != but}


def test_a_warm_start_from_a_cache_writes_the_time_of_use(run, cached, tmp_path):
    """And nothing else; it reads nothing of the archive either."""
    cache, log = tmp_path / "cache", tmp_path / "log"
    [use] = (cache / ".poncho_package_run_uses").glob("*/*")
    os.utime(use, (1, 1))
    before = changes(cache, use)
    began = time.time()
    run(*cached, "true", wrapper=tracing.recording(log), check=True)
    assert began - 1 < use.stat().st_mtime < time.time() + 1
    assert changes(cache, use) == before
    found = tracing.calls(log, until_execve_of="/true")
    assert found[-1].name == "execve", "the command was reached"
    assert [path for path in tracing.changed(found) if is_a_file(path)] == [str(use)]
    assert not {call.name for call in found} & {"fork", "vfork", "clone", "clone3"}
    opened = " ".join(word for call in found if "open" in call.name for word in call.arguments)
    assert ".poncho_package_run_expanded" in opened and os.fspath(cached[1]) not in opened


@pytest.mark.parametrize("where", ["temporary", "kept"])
@pytest.mark.parametrize("options", [{}, {"n_threads": 4}, {"format": "zip"}], ids=repr)
def test_a_cold_start_writes_only_to_its_directory(run, environment, tmp_path, where, options):
    log, work = tmp_path / "log", tmp_path / "work"
    work.mkdir()
    archive = environment.archive(scripts=False, **options)
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    run("-e", archive, *place, "true", wrapper=tracing.recording(log), cwd=work, check=True)
    found = tracing.calls(log)
    outside = {
        path
        for path in tracing.changed(found)
        if is_a_file(path) and not os.path.join(work, path).startswith(allowed(where, tmp_path))
    }
    assert outside == set()
    assert any("showprefix" in path for path in tracing.changed(found)), "the log is complete"


def allowed(where, tmp_path):
    """TMPDIR, or DIR and the private directory beside it."""
    if where == "kept":
        return str(tmp_path / "kept"), str(tmp_path / ".poncho_package_run-")
    return str(tmp_path / "tmp") + "/"

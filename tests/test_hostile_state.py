"""What is read back from disk is not trusted: names of the tool's own, planted in every form.

A table: (name, by an archive or by somebody in the directory) x (form) x (way of starting).  In
each cell the victim's files are unchanged, there is no traceback and no hang, and the status is one
that the contract has for it.
"""

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from support import crash, scenarios, tars, tracing, trees
from support.commands import missing
from support.crash import MANIFEST, MARKER, OWNER, PUBLISHING
from support.messages import status_of

LIMIT = 10  # seconds
STATUSES = {0, 65, 73, 74}

PLAN = {
    "files": ["../../victim/precious", "../victim/precious"],
    "records": [["../../victim/precious", "/opt", "text"]],
    "prefix": "/opt",
    "env": "../victim",
    "root": "../victim",
    "pid": 1,
}

PRIVATE = f".poncho_package_run-{os.geteuid()}-0123456789abcdef"

# What has been a name of the tool's own in any version of it, and the beginning of it.
NAMES = [
    MARKER,
    MARKER + ".new",
    MANIFEST,
    OWNER,
    PUBLISHING,
    ".poncho_package_run_lease-kept",
    ".poncho_package_run_unpacking",
    ".poncho_package_run_unpacking.new",
    ".poncho_package_run_relocating.plan",
    ".poncho_package_run_relocating.0",
    PRIVATE,
    PRIVATE[1:],
]

# What decides is planted alone, the rest together.
GROUPS = [[MARKER], [PUBLISHING], [name for name in NAMES if name not in (MARKER, PUBLISHING)]]


class Victim:
    """Files that nobody may touch."""

    def __init__(self, root):
        self.root = root / "victim"
        self.root.mkdir()
        self.file = self.root / "precious"
        self.file.write_text("ten years of work at /opt/build\n")
        self.file.chmod(0o640)
        os.utime(self.file, (1, 1))
        self.before = self.state()

    def state(self):
        status = self.root.stat()
        return trees.snapshot(self.root, ignore=()), status.st_mode, status.st_mtime_ns

    def check(self, what):
        assert self.state() == self.before, f"{what}: the victim was changed"


@pytest.fixture
def victim(tmp_path):
    return Victim(tmp_path)


def junk(path, victim):
    path.write_bytes(b"\x00\xffjunk")


def empty(path, victim):
    path.touch()


def symlink_to_file(path, victim):
    path.symlink_to(victim.file)


def symlink_to_directory(path, victim):
    path.symlink_to(victim.root)


def dangling(path, victim):
    path.symlink_to(victim.root / "made-by-the-tool")


def fifo(path, victim):
    os.mkfifo(path)


def directory(path, victim):
    path.mkdir()
    (path / "inside").write_text("x")


def hard_link(path, victim):
    os.link(victim.file, path)


def huge(path, victim):
    path.touch()
    os.truncate(path, 1 << 40)


def malformed(path, victim):
    path.write_text(
        '{"prefix": 7, "pid": "x", "host": ["h"], "archive_size": -1e999, "boot_id": {}}'
    )


def not_an_object(path, victim):
    path.write_text("[null]")


def brackets(path, victim):
    path.write_bytes(b"[" * 30_000)


def nested(path, victim):
    path.write_bytes(b'{"prefix": ' + b"[" * 30_000 + b"]" * 30_000 + b"}")


def long_number(path, victim):
    path.write_bytes(b'{"archive_size": ' + b"9" * 50_000 + b"}")


def plan(path, victim):
    path.write_text(json.dumps(PLAN))


FORMS = [
    junk, empty, symlink_to_file, symlink_to_directory, dangling, fifo, directory, hard_link, huge,
    malformed, not_an_object, brackets, nested, long_number, plan,
]  # fmt: skip


def function_name(function):
    return function.__name__


def sensible(result, what, statuses=STATUSES):
    text = os.fsdecode(result.stderr)
    assert status_of(result) in statuses, f"{what}: status {status_of(result)}: {text}"
    assert "Traceback" not in text, f"{what}: {text}"
    if status_of(result):
        assert text.startswith("poncho_package_run: "), f"{what}: {text}"
        assert text.count("\n") == 1, f"{what}: {text}"


def clear(*paths):
    for path in paths:
        if os.path.lexists(path):
            crash.remove(path)


# Planted in the directory by somebody who may write there


@pytest.mark.parametrize("form", FORMS, ids=function_name)
@pytest.mark.parametrize("found", ["otherwise empty", "an environment", "complete"])
def test_planted_in_the_directory(run, victim, tmp_path, form, found):
    kept, source, archive = tmp_path / "kept", tmp_path / "source", tmp_path / "archive.tar"
    archive.write_bytes(environment_of())
    if found == "otherwise empty":
        source.mkdir()
    elif found == "an environment":
        scenarios.extract(archive, source)
    else:
        run("-e", archive, "-d", kept, check=True)
        kept.rename(source)
    for names in GROUPS:
        for way in ("-d", "-e"):
            clear(kept)
            shutil.copytree(source, kept, symlinks=True)
            for name in names:
                clear(kept / name)
                form(kept / name, victim)
            what = f"{names[0]} as {form.__name__}, {way} DIR"
            words = ["-e", archive, "-d", kept] if way == "-d" else ["-e", kept]
            sensible(run(*words, "-w", "2", "true", timeout=LIMIT), what)
            victim.check(what)


@pytest.mark.parametrize("form", FORMS, ids=function_name)
def test_planted_beside_the_directory(run, victim, tiny, tmp_path, form):
    """Where leases and stagings lie; with locks and without."""
    kept = tmp_path / "place" / "kept"
    kept.parent.mkdir()
    for name in (".poncho_package_run_lease-kept", PRIVATE, ".kept.poncho_package_run.lock"):
        form(kept.parent / name, victim)
    for wrapper in ([], tracing.failing("flock", "ENOLCK")):
        clear(kept)
        what = f"{form.__name__}, {'without locks' if wrapper else 'with locks'}"
        # A lease that nobody touches is waited for: ten seconds, unless it is none.
        words = ["-e", tiny, "-d", kept, "-w", "0", "hello"]
        result = run(*words, wrapper=wrapper, timeout=LIMIT)
        sensible(result, what, STATUSES | ({75} if wrapper else set()))
        victim.check(what)


def test_planted_leases_are_succeeded(run, victim, tiny, tmp_path):
    """What can be no lease of a living process keeps nobody out for ever."""
    from concurrent.futures import ThreadPoolExecutor

    forms = [junk, empty, symlink_to_file, dangling, fifo, hard_link, huge, brackets, plan]

    def start(form):
        kept = tmp_path / form.__name__ / "kept"
        kept.parent.mkdir()
        path = kept.parent / ".poncho_package_run_lease-kept"
        form(path, victim)
        wrapper = tracing.failing("flock", "ENOLCK")
        return form, run("-e", tiny, "-d", kept, "-w", "40", "hello", wrapper=wrapper, timeout=60)

    with ThreadPoolExecutor(len(forms)) as pool:
        for form, result in pool.map(start, forms):
            sensible(result, form.__name__, {0, 73})
    victim.check("leases")


@pytest.mark.parametrize("form", FORMS, ids=function_name)
def test_planted_among_temporary_directories(run, victim, tiny, tmp_path, form):
    """Under the name of a private directory, or in one of the right mode as its owner's file."""
    for name in (PRIVATE, PRIVATE[1:]):
        path = tmp_path / "tmp" / name
        form(path, victim)
        sensible(run("-e", tiny, "hello", timeout=LIMIT), f"{name} as {form.__name__}", {0})
        victim.check(name)
        assert os.path.lexists(path)
        clear(path)
        path.mkdir(0o700)
        (path / "env").symlink_to(victim.root)
        form(path / OWNER, victim)
        scenarios.age(tmp_path / "tmp")
        if form is hard_link:
            os.utime(victim.file, (1, 1))
        sensible(run("-e", tiny, "hello", timeout=LIMIT), f"owner as {form.__name__}", {0})
        victim.check(name)
        clear(path)


# Brought in by an archive


def members(name, victim, at):
    """The forms that an archive can give a name, below ``at``, as tar members."""
    name = at + name.encode()
    target = os.fsencode(victim.file)
    for data in (b"junk", b"", b"[" * 30_000, json.dumps(PLAN).encode(), b"Wed Nov 25 2026\n"):
        yield tars.member(name, data)
    yield tars.symlink(name, target)
    yield tars.symlink(name, os.fsencode(victim.root))
    yield tars.directory(name) + tars.member(name + b"/inside", b"x")
    yield tars.directory(name) + tars.symlink(name + b"/env", os.fsencode(victim.root))
    yield tars.member(at + b"lib/x", b"x") + tars.hardlink(name, at + b"lib/x")
    yield tars.member(name, b"x") + tars.hardlink(at + b"lib/y", name)
    yield tars.symlink(name, target) + tars.member(name, b"through it")


def environment_of(*extra, at=b""):
    hello = b"#!/bin/sh\necho hello\n"
    script = b"\n_prefix_records = [\n('lib/x', '/opt/build', 'text'),\n]\n"
    return b"".join(
        [
            tars.member(at + b"conda-meta/history"),
            tars.member(at + b"bin/hello", hello, mode=0o755),
            tars.member(at + b"lib/x", b"root = /opt/build\n"),
            tars.member(at + b"bin/conda-unpack", script),
            *extra,
            tars.END,
        ]
    )


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("below", ["", "env/", "lib/", "env/lib/"])
def test_brought_in_by_an_archive(run, victim, tmp_path, number, below):
    archive, kept = tmp_path / "archive.tar", tmp_path / "kept"
    top = b"env/" if below.startswith("env/") else b""
    # Names with a dash are of private directories: other packages' files may be called so.
    names = [name for name in NAMES if name.startswith(".poncho_package_run_")]
    planted = [list(members(name, victim, below.encode()))[number] for name in names]
    archive.write_bytes(environment_of(*planted, at=top))
    first = run("-e", archive, "-d", kept, timeout=LIMIT)
    sensible(first, "-d", {0, 65})
    victim.check("-d")
    if first.returncode == 0:
        # Nothing of it has come in, and our own is our own.
        assert json.loads((kept / MARKER).read_text())["archive"] == str(archive)
        ours = list(kept.rglob(".poncho_package_run_*"))
        assert [path.relative_to(kept).as_posix() for path in sorted(ours)] == [MARKER, MANIFEST]
        # As -e DIR, where there is no marker of ours: relocated, with whatever lies there.
        (kept / MARKER).unlink()
        sensible(run("-e", kept / "env" if top else kept, timeout=LIMIT), "-e DIR", {0, 65, 74})
        victim.check("-e DIR")
    sensible(run("-e", archive, "hello", timeout=LIMIT), "temporary", {0, 65})
    victim.check("temporary")
    assert os.listdir(tmp_path / "tmp") == []


def test_a_package_that_is_called_like_a_private_directory_is_unpacked(run, tmp_path):
    """As this tool itself, installed by pip: poncho_package_run-1.0.dist-info."""
    archive, kept = tmp_path / "archive.tar", tmp_path / "kept"
    name = "lib/site-packages/poncho_package_run-1.0.dist-info/RECORD"
    archive.write_bytes(environment_of(tars.member(name.encode(), b"x")))
    run("-e", archive, "-d", kept, check=True)
    assert (kept / name).read_bytes() == b"x"


def test_unpacked_by_another_program_with_names_of_ours_below_a_top_directory(
    run, victim, tmp_path
):
    """Proven once: a plan that names ../../victim, and a .new that is a symlink."""
    kept = tmp_path / "kept"
    extra = []
    for name in NAMES:
        at = b"env/" + name.encode()
        extra.append(
            tars.symlink(at, os.fsencode(victim.file))
            if name.endswith(".new")
            else tars.member(at, json.dumps(PLAN).encode())
        )
    archive = tmp_path / "archive.tar"
    archive.write_bytes(environment_of(*extra, at=b"env/"))
    scenarios.extract(archive, kept)
    sensible(run("-e", kept / "env", "hello", timeout=LIMIT), "-e DIR")
    victim.check("-e DIR")
    clear(kept)
    run("-e", archive, "-d", kept, check=True, timeout=LIMIT)
    sensible(run("-e", kept / "env", "hello", timeout=LIMIT), "-d, then -e DIR")
    victim.check("-d, then -e DIR")


def test_names_of_ours_in_another_case_are_passed_over_where_case_is_folded(run, tmp_path):
    """Here it is not folded: they are files like any other, and harm nobody."""
    archive, kept = tmp_path / "archive.tar", tmp_path / "kept"
    archive.write_bytes(environment_of(tars.member(MARKER.upper().encode(), b"junk")))
    assert run("-e", archive, "-d", kept, "hello", check=True).stdout == b"hello\n"
    assert json.loads((kept / MARKER).read_text())["prefix"] == str(kept)


# Planted by another user, where anyone may write


@pytest.fixture
def shared(tmp_path):
    """A directory like /tmp."""
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def give(*paths):
    for path in paths:
        for each in [path, *path.rglob("*")]:
            os.chown(each, scenarios.NOBODY, scenarios.NOBODY, follow_symlinks=False)


def plant_environment(path):
    (path / "bin").mkdir(parents=True)
    (path / "conda-meta").mkdir()
    (path / "conda-meta" / "history").touch()
    (path / "bin" / "python").write_text("#!/bin/sh\necho planted\n")
    (path / "bin" / "python").chmod(0o755)


MARKS = {
    "no marker": None,
    "the script's marker": "Wed Nov 25 18:01:58 UTC 2026\n",
    "a marker like ours": json.dumps({"prefix": "PREFIX", "version": "1", "host": "h", "pid": 1}),
    "an empty marker": "",
}


@pytest.mark.root
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("below", ["", "env"])
def test_a_directory_planted_in_tmp_is_not_used(run, tiny, shared, mark, below):
    kept = shared / "x"
    plant_environment(kept / below)
    kept.chmod(0o777)
    if MARKS[mark] is not None:
        (kept / MARKER).write_text(MARKS[mark].replace("PREFIX", str(kept / below)))
    give(kept)
    before = trees.snapshot(kept, ignore=())
    result = run("-e", tiny, "-d", kept, "python", timeout=LIMIT)
    sensible(result, mark, {73})
    assert result.stdout == b"", "the planted program was run"
    assert str(kept) in result.stderr.decode()
    assert trees.snapshot(kept, ignore=()) == before


@pytest.mark.root
@pytest.mark.parametrize("whose", ["root", "this user's"])
def test_a_directory_in_tmp_of_roots_or_ones_own_is_used(run, tiny, shared, tmp_path, whose):
    kept = shared / "x"
    run("-e", tiny, "-d", kept, check=True)
    if whose == "root":
        assert run("-e", tiny, "-d", kept, "hello", check=True).stdout == b"hello\n"


@pytest.mark.root
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pytest.mark.parametrize(
    "form", [symlink_to_file, symlink_to_directory, dangling, fifo, directory], ids=function_name
)
def test_links_that_another_user_planted_in_an_open_directory_are_not_followed(
    run, tiny, shared, victim, names, form
):
    """Root's file was overwritten, without a word."""
    kept = shared / "x"
    kept.mkdir()
    kept.chmod(0o777)
    for name in names:
        form(kept / name, victim)
    give(kept)
    for wrapper in ([], tracing.failing("flock", "ENOLCK")):
        result = run("-e", tiny, "-d", kept, "-w", "0", "hello", wrapper=wrapper, timeout=LIMIT)
        sensible(result, f"{names[0]} as {form.__name__}", STATUSES | {75})
        victim.check(names[0])
        if (kept / MARKER).is_file() and not (kept / MARKER).is_symlink():
            break


@pytest.mark.root
def test_an_unfinished_publication_of_another_user_is_not_finished(run, shared):
    """Or his environment would be ours."""
    kept = shared / "x"
    kept.mkdir()
    plant_environment(kept / PUBLISHING)
    (kept / PUBLISHING / MARKER).write_text(json.dumps({"prefix": str(kept)}))
    give(kept)
    archive = crash.archive(shared.parent / "archive", "tar")
    result = run("-e", archive, "-d", kept, "-w", "1", "python", timeout=LIMIT)
    sensible(result, "publishing", {73})
    assert not (kept / "bin").exists()


def test_a_foreign_publication_in_ones_own_directory_is_not_finished(run, tmp_path):
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    kept = tmp_path / "kept"
    kept.mkdir()
    plant_environment(kept / PUBLISHING)
    (kept / PUBLISHING / MARKER).write_text(json.dumps({"prefix": str(kept)}))
    give(kept / PUBLISHING)
    archive = crash.archive(tmp_path / "archive", "tar")
    result = run("-e", archive, "-d", kept, "-w", "1", "python", timeout=LIMIT)
    assert b"planted" not in result.stdout
    sensible(result, "publishing", {0, 73, 127})


# Locks


def test_a_lease_that_is_another_files_hard_link_is_not_written(run, victim, tiny, tmp_path):
    """It was truncated."""
    kept = tmp_path / "kept"
    for name in (".poncho_package_run_lease-kept", ".kept.poncho_package_run.lock"):
        os.link(victim.file, tmp_path / name)
    victim.before = victim.state()
    words = ["-e", tiny, "-d", kept, "-w", "30", "hello"]
    run(*words, wrapper=tracing.failing("flock", "ENOLCK"), timeout=60)
    assert victim.file.read_text() == "ten years of work at /opt/build\n"


# The caller's own state


def test_ignoring_sigchld_does_not_make_a_failing_decoder_a_success(run, tmp_path):
    """The zstd program's status is lost then, but not that it failed."""
    import signal

    archive = tmp_path / "archive.tar.zst"
    data = environment_of(tars.member(b"lib/much", os.urandom(300_000)))
    try:
        packed = subprocess.run(["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True)
    except FileNotFoundError:
        missing("needs zstd: apt-get install zstd")
    archive.write_bytes(packed.stdout[:-1000])
    for wrapper in ([], tracing.without_libzstd(follow=False)):
        result = run(
            "-e", archive, "-d", tmp_path / "kept", "hello",
            wrapper=wrapper, timeout=LIMIT,
            preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        )  # fmt: skip
        sensible(result, "SIGCHLD ignored", {65})
        assert not (tmp_path / "kept").exists()


def test_a_damaged_directory_is_moved_aside_though_links_lie_in_it(run, victim, tmp_path):
    """Its removal follows none."""
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    words = ["-e", archive, "-d", kept, "hello"]
    run(*words, check=True)
    (kept / "victim").symlink_to(victim.root)
    os.link(victim.file, kept / "linked")
    victim.before = victim.state()
    facts = (kept / MARKER).read_text()
    (kept / MARKER).write_text(facts.replace(json.loads(facts)["boot_id"], str(uuid.uuid4())))
    crash.lose_content(kept / "lib" / "large.bin", 0)
    assert run(*words, check=True).stdout == b"hello from " + bytes(kept)
    (found,) = trees.snapshot(victim.root).values()
    assert found.sha256 == victim.before[0][b"precious"].sha256


def test_the_manifest_names_nothing_outside(run, victim, tmp_path):
    """What it lists is looked at, and never more than looked at."""
    archive, kept = crash.archive(tmp_path / "archive", "tar"), tmp_path / "kept"
    words = ["-e", archive, "-d", kept, "hello"]
    run(*words, check=True)
    good = (kept / MANIFEST).read_bytes()
    lines = [b"../victim/precious", os.fsencode(victim.file), b"lib/../../victim/precious"]
    for name in lines:
        facts = (kept / MARKER).read_text()
        (kept / MARKER).write_text(facts.replace(json.loads(facts)["boot_id"], str(uuid.uuid4())))
        (kept / MANIFEST).write_bytes(good.replace(b"top.txt", name))
        sensible(run(*words, timeout=LIMIT), name)
        victim.check(name)
        assert Path(kept / "bin" / "hello").exists()

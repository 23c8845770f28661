"""The library in C does what Python does: the same trees, statuses and messages, or it is not used.

``PONCHO_PACKAGE_RUN_NATIVE`` is "yes" here, so that small archives have it too; test_native tries
its functions one by one, and conftest names the modules that run both ways as a whole.
"""

import gzip
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import zipfile
import zlib

import pytest

from poncho_package_run.archive import source
from poncho_package_run.archive.archive import Archive
from poncho_package_run.telling.errors import ArchiveError
from poncho_package_run.tree.unpack import Tree
from support import tars
from support.commands import need
from support.messages import refused
from support.streams import in_blocks
from support.trees import snapshot

MIB = 1 << 20
RECENT = (int(time.time()) - 86400) * 10**9
SAYS = b"native library: "


def outcome(run, archive, target, way, **options):
    """(status, what is said, the tree, what its manifest records), and nothing is left of it."""
    result = run(
        "-e", archive, "-d", target, "true", env={"PONCHO_PACKAGE_RUN_NATIVE": way}, **options
    )
    tree, records = {}, []
    if target.exists():
        tree = {
            # Directories that are not in the archive have the time of the run.
            path: entry._replace(mtime_ns=0) if entry.mtime_ns > RECENT else entry
            for path, entry in snapshot(target).items()
        }
        if result.returncode == 0:
            records = sorted((target / ".poncho_package_run_manifest").read_bytes().split(b"\0"))
        shutil.rmtree(target)
    return result.returncode, result.stderr, tree, records


def same(run, tmp_path, archive, **options):
    """Assert that both ways have one outcome, and give it."""
    library, python = (
        outcome(run, archive, tmp_path / "target", way, **options) for way in ("yes", "no")
    )
    assert library[0] == python[0], (library[1], python[1])
    assert library[1] == python[1]
    assert library[2] == python[2]
    assert library[3] == python[3]
    return library


def said(run, archive, *words, **options):
    """What --debug says of the library."""
    result = run("--debug", "-e", archive, *words, "--", "true", check=True, **options)
    return next(
        line.split(SAYS)[1].decode() for line in result.stderr.splitlines() if SAYS in line
    )


def content(rng, size):
    """Some text, some noise, some zeros."""
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return rng.getrandbits(8 * size).to_bytes(size, "little") if size else b""
    words = [b"%x " % rng.getrandbits(24) for _ in range(200)]
    return b"".join(rng.choices(words, k=size // 5 + 1))[:size]


# Around every constant of the way that a body goes: empty, a block, a page, joined, gathered (or
# not), a chunk of the decoders.
SIZES = [
    at + step
    for at in (0, 512, 4096, 1 << 16, MIB, 2 * MIB)
    for step in (-513, -1, 0, 1, 511)
    if at + step >= 0
]


@pytest.fixture(scope="module")
def mixed():
    """Members of all those sizes, between many small ones, as a tar."""
    rng = random.Random(20)
    data = tars.member(b"conda-meta/history")
    for number, size in enumerate(rng.sample(SIZES, len(SIZES)) + rng.sample(SIZES, 8)):
        for small in range(rng.randrange(40)):
            name = b"lib/%d/%d/f" % (number, small % 3) + b"%d" % small
            mode = rng.choice((0o400, 0o644))
            data += tars.member(name, content(rng, rng.randrange(40)), mode=mode)
        data += tars.member(b"share/%d" % number, content(rng, size), mtime=number - 3)
    # The last of a name wins, also in the batch of the first; a link sees what was before it.
    for again in range(70):
        data += tars.member(b"again", b"%d" % again)
    data += tars.hardlink(b"other", b"again") + tars.member(b"again", b"last")
    return data + tars.END


PACKED = {
    "tar": lambda data: data,
    "tar.gz": lambda data: gzip.compress(data, 6),
    "tar.gz, stored": lambda data: gzip.compress(data, 0),
    "tar.gz, two members": lambda data: gzip.compress(data[:MIB]) + gzip.compress(data[MIB:]),
    "tar.gz, flushed": lambda data: in_blocks(data, zlib.Z_FULL_FLUSH),
    "tar.gz, flushed, not apart": lambda data: in_blocks(data, zlib.Z_SYNC_FLUSH, fresh=False),
}


@pytest.mark.parametrize("threads", ["1", "2", "8"])
@pytest.mark.parametrize("kind", PACKED)
def test_trees_and_manifests_are_the_same(run, tmp_path, mixed, kind, threads, variables):
    archive = tmp_path / "env"
    archive.write_bytes(PACKED[kind](mixed))
    variables[b"PONCHO_PACKAGE_RUN_THREADS"] = threads.encode()
    status, message, tree, records = same(run, tmp_path, archive)
    assert (status, message) == (0, b"")
    assert len(tree) > 500 and len(records) > 500
    assert tree[b"again"].size == 4 and tree[b"other"].size == 2


def test_trees_of_zip_are_the_same(run, tmp_path):
    rng = random.Random(21)
    archive = tmp_path / "env.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("conda-meta/history", b"")
        for number, size in enumerate(SIZES):
            for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                name = "lib/%d/%d" % (number, method)
                file.writestr(name, content(rng, size), method, rng.choice((1, 6, 9)))
    status, message, tree, _ = same(run, tmp_path, archive)
    assert (status, message) == (0, b"")
    assert len(tree) > 2 * len(SIZES)


def damaged(rng, data):
    """The same with a bit, a byte or its end changed."""
    data = bytearray(data)
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at : at + rng.randrange(1, 9)] = rng.getrandbits(64).to_bytes(8, "little")
    elif kind == 2:
        del data[at:]
    else:
        del data[at : at + rng.randrange(1, 600)]
    return bytes(data)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.gz, flushed", "zip"])
def test_of_damage_zlib_has_the_last_word(run, tmp_path, kind):
    rng = random.Random(22)
    members = {b"f%d" % number: content(rng, rng.randrange(90000)) for number in range(30)}
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("conda-meta/history", b"")
            for name, data in members.items():
                file.writestr(name.decode(), data)
        whole = buffer.getvalue()
    else:
        whole = PACKED[kind](tars.environment(*[tars.member(*each) for each in members.items()]))
    archive = tmp_path / "env"
    statuses = set()
    for _ in range(40):
        archive.write_bytes(damaged(rng, whole))
        status, _, tree, _ = same(run, tmp_path, archive)
        assert status or tree
        statuses.add(status)
    assert 65 in statuses


def test_what_follows_a_stream_is_looked_at(run, tmp_path, tiny):
    archive = tmp_path / "env.tar.gz"
    for behind in (b"\0" * 700, b"x", tiny.read_bytes()[:20], gzip.compress(b"more")):
        archive.write_bytes(tiny.read_bytes() + behind)
        same(run, tmp_path, archive)
    for cut in range(1, 12):
        archive.write_bytes(tiny.read_bytes()[:-cut])
        assert same(run, tmp_path, archive)[0] == 65


CLASHES = {
    "a file in a directory's place": [
        tars.member(b"a/b", b"1"), tars.member(b"c", b"2"), tars.member(b"a", b"3"),
    ],
    "a directory in a file's place": [
        tars.member(b"a", b"1"), tars.member(b"c", b"2"), tars.directory(b"a"),
        tars.member(b"a/b", b"3"),
    ],
    "an empty directory gives way": [tars.directory(b"a"), tars.member(b"a", b"1")],
    "below a file": [tars.member(b"a", b"1"), tars.member(b"a/b", b"2")],
    "through a symlink": [tars.symlink(b"a", b"/tmp"), tars.member(b"a/zz-moo", b"2")],
    "a name too long": [tars.longname(b"n" * 256) + tars.member(b"x", b"1")],
    "out through ..": [tars.member(b"a/../../zz-moo", b"1")],
    "absolute": [tars.member(b"/tmp/zz-moo", b"1")],
}  # fmt: skip


@pytest.mark.parametrize("clash", CLASHES)
def test_clashes_end_alike(run, tmp_path, clash):
    some = [tars.member(b"lib/%d" % number, b"some") for number in range(40)]
    archive = tmp_path / "env.tar"
    for before, behind in ((some, []), ([], some), (some, some)):
        archive.write_bytes(tars.environment(*[*before, *CLASHES[clash], *behind]))
        same(run, tmp_path, archive)


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=3m", "nr_inodes=60", "size=3m,noexec"])
def test_a_full_disk_is_told_alike(run, tmp_path, options):
    if os.geteuid():
        pytest.skip("mounting needs root")
    rng = random.Random(23)
    many = [tars.member(b"lib/%d" % each, content(rng, 60000)) for each in range(120)]
    archive = tmp_path / "env.tar"
    archive.write_bytes(tars.environment(*many))
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", full], check=True)
    try:
        results = [
            run("-e", archive, "-d", full / "env", "true", env={"PONCHO_PACKAGE_RUN_NATIVE": way})
            for way in ("yes", "no")
        ]
        for result in results:
            assert result.returncode == 74 and b"No space left" in result.stderr
            assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", full], check=True)


# Where it is loaded from, and where it is not


def test_it_is_loaded_for_archives_of_some_megabytes(run, tmp_path, tiny):
    assert said(run, tiny).startswith("no, for so small")
    rng = random.Random(24)
    big = [tars.member(b"big%d" % each, rng.randbytes(MIB)) for each in range(5)]
    archive = tmp_path / "env.tar.gz"
    archive.write_bytes(gzip.compress(tars.environment(*big), 1))
    assert said(run, archive).startswith("yes, " + os.uname().machine)
    assert said(run, archive, env={"PONCHO_PACKAGE_RUN_NATIVE": "no"}).startswith("no, as PONCHO")


YES = {"PONCHO_PACKAGE_RUN_NATIVE": "yes"}


@pytest.mark.root
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "none"])
def test_a_file_system_that_runs_no_programs_does_not_matter(run, tmp_path, tiny, memory):
    if os.geteuid():
        pytest.skip("mounting needs root")
    place = tmp_path / "noexec"
    place.mkdir()
    wrapper = [] if memory else [need("strace"), "-f", "-qq", "-o", "/dev/null"]
    wrapper += [] if memory else ["-e", "inject=memfd_create:error=ENOSYS"]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", place], check=True)
    try:
        how = said(run, tiny, "-d", place / "env", env=YES, wrapper=wrapper)
        assert how.startswith("yes, " if memory else "no, unnamed: ")
        assert memory or "in_memory" in how
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("machine", ["i686"])
def test_another_processor_has_none(run, tiny, machine):
    setarch = need("setarch")
    assert said(run, tiny, env=YES, wrapper=[setarch, machine]).startswith("no, for " + machine)


def test_nothing_is_left_of_its_file(run, tmp_path, tiny):
    target = tmp_path / "env"
    run("-e", tiny, "-d", target, "true", env=YES, check=True)
    assert not [path for path in target.rglob("*") if path.name.endswith(".so")]
    assert set(os.listdir(tmp_path)) == {"env", "tmp"} and not os.listdir(tmp_path / "tmp")


def test_the_command_inherits_nothing_of_it(run, tiny):
    result = run("-e", tiny, "/bin/sh", "-c", "ls -l /proc/self/fd", env=YES, check=True)
    assert b"memfd" not in result.stdout and b"deleted" not in result.stdout


# What is decoded anew, because the library did not take it, has to begin with what was written


@pytest.mark.parametrize("kind", ["tar.gz", "tar.gz, flushed", "zip"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_what_is_read_wrong_once_is_never_kept(monkeypatch, tmp_path, kind, threads):
    # Python's way reads it once, and refuses it; two readings must not be mixed.
    rng = random.Random(25)
    noise = [rng.randbytes(1 << 19) for _ in range(12)]  # in stored blocks: inflating goes on
    path = tmp_path / "env"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("big", b"".join(noise))
    else:
        members = [tars.member(b"f%d" % number, data) for number, data in enumerate(noise)]
        path.write_bytes(PACKED[kind](tars.environment(*members)))
    monkeypatch.setenv("PONCHO_PACKAGE_RUN_NATIVE", "yes")
    monkeypatch.setenv("PONCHO_PACKAGE_RUN_THREADS", threads)
    whole, wrong = path.read_bytes(), []

    def pread(handle, count, offset):
        data = bytearray(whole[offset : offset + count])
        if not wrong and offset <= 5 * MIB < offset + count:  # behind what is searched for flushes
            data[5 * MIB - offset] ^= 1
            wrong.append(offset)
        return bytes(data)

    target = tmp_path / "target"
    target.mkdir()
    directory = os.open(target, os.O_RDONLY)
    monkeypatch.setattr(source.os, "pread", pread)
    try:
        with pytest.raises(ArchiveError, match="damaged"):
            with Archive(os.fsencode(path), directory) as archive, Tree(directory, b"t") as tree:
                assert archive.native is not None
                members = archive.members(lambda *_: None)
                tree.unpack(members, archive.writers, archive.native)
        assert wrong
    finally:
        os.close(directory)


# What a member is refused for comes before the end of an archive that was cut off in it


@pytest.mark.parametrize("name", [b"../evil", b"f0/below", b"n" * 300, b"share/fine"])
@pytest.mark.parametrize("size", [1 << 15, 1 << 20])
def test_a_member_that_is_cut_off_is_judged_first(run, tmp_path, name, size):
    rng = random.Random(26)
    some = [tars.member(b"f%d" % number, rng.randbytes(30000)) for number in range(40)]
    start = tars.longname(name) if len(name) > 100 else b""
    whole = tars.environment(*some)[: -len(tars.END)] + start
    whole += tars.member(name[:100], bytes(size))
    archive = tmp_path / "env.tar.gz"
    archive.write_bytes(gzip.compress(whole[: -size // 2], 1))
    status, message, _, _ = same(run, tmp_path, archive)
    assert status == 65
    # What is small is read to its end before anybody asks.
    assert (b"truncated" in message) == (name == b"share/fine" or size < 1 << 16)


@pytest.mark.parametrize("limit", [1 << 20])
def test_what_a_writer_met_is_told_before_later_damage(run, tmp_path, limit):
    some = [tars.member(b"f%d" % number, bytes(30000)) for number in range(40)]
    large = tars.member(b"large", bytes(limit + 4096))
    archive = tmp_path / "env.tar"
    archive.write_bytes(tars.environment(*some, large)[: -len(tars.END)])
    for threads in ("1", "2", "8"):
        env = {"PONCHO_PACKAGE_RUN_THREADS": threads}
        limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
        for way in ("yes", "no"):
            result = run(
                *("-e", archive, "-d", tmp_path / "target", "true"),
                env={**env, "PONCHO_PACKAGE_RUN_NATIVE": way},
                **limited,
            )
            refused(result, 74, "large")


# Bodies keep the whole chunk alive that they lie in


@pytest.mark.parametrize("threads", ["1", "2", "8"])
@pytest.mark.parametrize("way", ["yes", "no"])
def test_tiny_bodies_keep_no_more_chunks_than_may_wait(run, tmp_path, way, threads):
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    passed_over = tars.member(b".poncho_package_run_expanded/x", bytes(1100 << 10))
    with open(tmp_path / "env", "wb") as file:
        file.write(packer.compress(tars.member(b"conda-meta/history")))
        for number in range(300):
            file.write(packer.compress(tars.member(b"f%d" % number, b"a")))
            if number > 50:
                file.write(packer.compress(passed_over))
        file.write(packer.compress(tars.END) + packer.flush())
    env = {"PONCHO_PACKAGE_RUN_NATIVE": way, "PONCHO_PACKAGE_RUN_THREADS": threads}
    result = run("-e", tmp_path / "env", sys.executable, "-c", PEAK, env=env, check=True)
    assert int(result.stdout) < 64 << 10


PEAK = """\
import os
with open("/proc/%d/status" % os.getppid()) as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""

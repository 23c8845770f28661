"""squashfs images, which the machine's unsquashfs unpacks."""

import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from poncho_package_run.archive import squashfs
from poncho_package_run.telling.errors import ArchiveError, DecoderUnavailable, InputOutputError
from poncho_package_run.tree.names import is_ours
from support import process, trees
from support.commands import need
from support.messages import refused, status_of


def pack(root: Path, image: Path, *options: str) -> Path:
    command = [need("mksquashfs"), root, image, "-noappend", "-no-progress", "-quiet", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of each thing that an image may hold, with modes that stand in the way."""
    root = tmp_path / "tree"
    (root / "conda-meta").mkdir(parents=True)
    (root / "conda-meta/history").touch()
    (root / "bin").mkdir()
    (root / "bin/run").write_bytes(b"#!/bin/sh\n" * 1000)
    (root / "bin/run").chmod(0o4755)
    os.link(root / "bin/run", root / "bin/same")
    (root / "link").symlink_to("bin/run")
    (root / "dangling").symlink_to("/nowhere")
    (root / "new\nline").write_bytes(random.Random(1).randbytes(300_000))
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    (root / "read-only").mkdir()
    (root / "read-only/file").write_bytes(b"content")
    (root / "read-only/file").chmod(0o400)
    for index, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (1_000_000_000 + index, 1_000_000_000 + index), follow_symlinks=False)
    (root / "read-only").chmod(0o555)
    yield root
    (root / "read-only").chmod(0o755)


@pytest.fixture
def image(tree: Path, tmp_path: Path) -> Path:
    # Of somebody else; to be made by anyone, so not by chown.
    return pack(tree, tmp_path / "image", "-force-uid", "4711", "-force-gid", "4711")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def unpack(image: Path, target: Path) -> None:
    need("unsquashfs")
    squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)


def fake(tmp_path: Path, script: str) -> dict[str, str]:
    """A PATH whose unsquashfs is a shell script."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "unsquashfs").write_text("#!/bin/sh\n" + script)
    (folder / "unsquashfs").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_tree_is_that_of_the_image_less_its_owner_and_special_bits(tree, image, target, capfd):
    before = os.umask(0o027)
    try:
        unpack(image, target)
    finally:
        os.umask(before)
    found, expected = trees.snapshot(target), trees.snapshot(tree)
    fields = ("type", "size", "sha256", "mtime_ns", "target", "nlink_group")
    kinds = ("file", "symlink", "directory")
    assert not trees.differences(expected, found, fields, mtime_of=kinds)
    for name, entry in expected.items():
        if entry.type != "symlink":
            assert found[name].mode == entry.mode & 0o750, name
        status = os.lstat(os.path.join(os.fsencode(target), name))
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()), name
    assert capfd.readouterr() == ("", "")


def test_target_keeps_its_own_mode(image, target):
    target.chmod(0o700)
    unpack(image, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert [name for name in os.listdir(target) if name.startswith("tmp")] == []


def test_nobody_else_reaches_what_is_not_yet_put_right(image, tmp_path, target, monkeypatch):
    """Setuid files of another owner exist for a moment: in a directory that is closed."""
    seen = []
    normalise = squashfs._normalise

    def watch(root: bytes, reserved: object) -> None:
        seen.append(stat.S_IMODE(os.stat(os.path.dirname(root)).st_mode))
        normalise(root, reserved)

    monkeypatch.setattr(squashfs, "_normalise", watch)
    unpack(image, target)
    assert seen == [0o700]


def test_directory_closed_to_its_owner(tmp_path, target):
    root = tmp_path / "tree"
    (root / "closed" / "below").mkdir(parents=True)
    (root / "closed" / "below" / "file").touch()
    definition = ["-p", "closed m 0 0 0", "-p", "closed/below m 0555 0 0"]
    unpack(pack(root, tmp_path / "image", *definition), target)
    assert stat.S_IMODE((target / "closed").stat().st_mode) == 0
    (target / "closed").chmod(0o700)
    assert stat.S_IMODE((target / "closed" / "below").stat().st_mode) == 0o555
    (target / "closed" / "below").chmod(0o700)


def test_the_tool_s_own_names_are_passed_over(tmp_path, target):
    root = tmp_path / "tree"
    root.mkdir()
    (root / "file").touch()
    (root / ".poncho_package_run_expanded").write_bytes(b"forged")
    below = root / "lib" / ".Poncho_Package_Run_manifest"
    (below / "deep" / "er").mkdir(parents=True)
    (below / "deep" / "file").touch()
    (below / "deep").chmod(0o555)
    (target / ".poncho_package_run_unpacking").write_bytes(b"ours")
    unpack(pack(root, tmp_path / "image"), target)
    assert sorted(os.listdir(target)) == [".poncho_package_run_unpacking", "file", "lib"]
    assert os.listdir(target / "lib") == []


@pytest.mark.parametrize(
    "definition",
    [
        "special c 666 0 0 1 3",
        "special b 666 0 0 8 0",
        "special i 666 0 0 f",
        "special i 666 0 0 s",
    ],
    ids=["character device", "block device", "fifo", "socket"],
)
def test_special_files_are_refused_before_anything_is_made(tmp_path, target, tree, definition):
    image = pack(tree, tmp_path / "image", "-p", definition)
    with pytest.raises(ArchiveError, match="special is a device, fifo or socket"):
        unpack(image, target)
    assert os.listdir(target) == []


def test_truncated_image(image, target):
    with open(image, "r+b") as file:
        file.truncate(image.stat().st_size // 8192 * 4096)
    with pytest.raises(ArchiveError, match="unsquashfs says"):
        unpack(image, target)


def test_damaged_data(image, target):
    """Data come first in an image, behind a superblock of 96 bytes."""
    root = image.parent / "zeros"
    root.mkdir()
    (root / "file").write_bytes(b"compressible " * 100_000)
    pack(root, image)
    data = bytearray(image.read_bytes())
    data[96:600] = random.Random(2).randbytes(504)
    image.write_bytes(data)
    with pytest.raises(ArchiveError, match="unsquashfs says"):
        unpack(image, target)


def test_damage_anywhere_is_refused_or_harmless(image, tmp_path):
    """Metadata has no checks in squashfs: the tree may change, nothing else may."""
    whole = image.read_bytes()
    generator = random.Random(3)
    for index in range(25):
        data = bytearray(whole)
        for _ in range(8):
            at = generator.randrange(96, len(data))
            data[at] = generator.randrange(256)
        image.write_bytes(data)
        target = tmp_path / f"target-{index}"
        target.mkdir()
        try:
            unpack(image, target)
        except (ArchiveError, DecoderUnavailable, InputOutputError):
            continue
        for entry in trees.snapshot(target).values():
            assert entry.type != "other"
            assert entry.type == "symlink" or entry.mode & 0o7000 == 0


def test_name_that_begins_with_a_hyphen(tree, target, tmp_path, monkeypatch):
    pack(tree, tmp_path / "-image")
    monkeypatch.chdir(tmp_path)
    need("unsquashfs")
    squashfs.unpack(b"-image", os.fsencode(target), is_ours)
    assert (target / "bin/run").exists()


def test_missing_unsquashfs_says_what_to_do(image, target, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DecoderUnavailable, match=r"install squashfs-tools, or pack as tar\.gz"):
        squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)


def test_compression_that_this_unsquashfs_lacks(image, target, monkeypatch, tmp_path):
    """As its version 4.5 says it when it was built without one."""
    script = (
        'echo "Filesystem uses zstd compression, this is unsupported by this version" >&2\n'
        'echo "Decompressors available:" >&2\necho "   gzip" >&2\nexit 1\n'
    )
    monkeypatch.setenv("PATH", fake(tmp_path, script)["PATH"])
    with pytest.raises(DecoderUnavailable, match="lacks the compression"):
        squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)


def test_complaint_with_status_0_is_an_error(image, target, monkeypatch, tmp_path):
    """Up to version 4.4 a file that could not be written did not change the status."""
    script = 'case $1 in -lln) ;; *) echo "write_file: failed to write file x" >&2; esac\n'
    monkeypatch.setenv("PATH", fake(tmp_path, script)["PATH"])
    with pytest.raises(ArchiveError, match="failed to write file x"):
        squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)


@pytest.mark.parametrize(
    "reason", ["No space left on device", "Disk quota exceeded", "Input/output error"]
)
def test_trouble_with_the_disk(image, target, monkeypatch, tmp_path, reason):
    script = f'case $1 in -lln) ;; *) echo "write failed because {reason}" >&2; exit 1; esac\n'
    monkeypatch.setenv("PATH", fake(tmp_path, script)["PATH"])
    with pytest.raises(InputOutputError, match=reason):
        squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)


@pytest.mark.root
def test_full_disk(tmp_path, target):
    root = tmp_path / "large"
    root.mkdir()
    (root / "file").write_bytes(random.Random(4).randbytes(3 << 20))
    image = pack(root, tmp_path / "image")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", target], capture_output=True
    )
    if mount.returncode:
        pytest.skip("may not mount a tmpfs: " + os.fsdecode(mount.stderr).strip())
    try:
        with pytest.raises(InputOutputError, match="No space left on device"):
            unpack(image, target)
    finally:
        subprocess.run(["umount", target], check=True)


def test_interrupted_unpacking_leaves_no_unsquashfs(image, target, monkeypatch, tmp_path):
    script = "case $1 in -lln) ;; *) echo begun >&2; exec sleep 60; esac\n"
    monkeypatch.setenv("PATH", fake(tmp_path, script)["PATH"])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            squashfs.unpack(os.fsencode(image), os.fsencode(target), is_ours)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert process.children_of(os.getpid()) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_tool_takes_unsquashfs_along(image, tmp_path, spawn, signum):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can have a process end with its parent")
    script = 'case $1 in -lln) ;; *) echo $$ > "$PIDFILE"; exec sleep 60; esac\n'
    pidfile = tmp_path / "pid"
    variables = dict(fake(tmp_path, script), PIDFILE=str(pidfile))
    tool = spawn("-e", image, "-d", tmp_path / "env", "true", env=variables)
    pid = int(process.wait_for(lambda: pidfile.exists() and pidfile.read_text()))
    assert process.is_alive(pid)
    tool.send_signal(signum)
    tool.wait(20)
    assert status_of(tool) == 128 + signum
    process.wait_for(lambda: not process.is_alive(pid))


def test_environment_runs(environment, run):
    need("unsquashfs")
    archive = environment.archive("squashfs")
    result = run("-e", archive, "python3", "-c", "import greeter; print(6 * 7)", check=True)
    assert result.stdout == b"42\n"


def test_device_is_refused_by_name(tree, tmp_path, run):
    need("unsquashfs")
    image = pack(tree, tmp_path / "image", "-p", "special c 666 0 0 1 3")
    refused(run("-e", image, "-d", tmp_path / "env", "true"), 65, "special is a device")
    assert not os.path.lexists(tmp_path / "env" / "special")

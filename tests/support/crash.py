"""Killing the tool at a chosen system call, and what the next run must make of the remains.

A point is a system call by its name and number (the third openat); strace sends SIGKILL at
its entry, so that the call itself does not happen.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Optional, Union

from . import tars, tracing, trees, zips
from .commands import need
from .environments import PLACEHOLDER
from .streams import in_blocks

MARKER = ".poncho_package_run_expanded"
MANIFEST = ".poncho_package_run_manifest"
UNPACKING = ".poncho_package_run_unpacking"

Word = Union[str, Path]

_RELOCATED = ("bin/hello", "bin/tool", "etc/read-only.conf")

# Names that this machine's kernel does not have are no error for strace with a "?".
_CALLS = (
    "clone clone3 close dup execve fchmod fchmodat flock fstat fsync ftruncate getdents64 "
    "link linkat lseek lstat mkdir mkdirat newfstatat openat pipe2 pread64 pwrite64 read readlink "
    "rename renameat rmdir rt_sigtimedwait stat symlink symlinkat unlink unlinkat utimensat vfork "
    "wait4 write"
)

# Calls that name no file, and are points all the same once the tool is at work.
_PATHLESS = {"clone", "clone3", "execve", "pipe2", "rt_sigtimedwait", "vfork", "wait4"}

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")

_SCRIPT = """\
#!/bin/sh
prefix={prefix}
printf "hello from %s" "$prefix"
"""


def _members(others: Mapping[str, bytes]) -> Iterable[tuple[str, str, int, bytes]]:
    """(kind, path, mode, content or target) of a small environment that has everything."""
    text, binary = PLACEHOLDER, PLACEHOLDER.encode()
    yield "file", "conda-meta/history", 0o644, b"==> 2023-11-14 22:13:20 <==\n"
    yield "file", "bin/hello", 0o755, _SCRIPT.format(prefix=text).encode()
    yield "file", "bin/tool", 0o755, b"\x7fELF\0" + (binary + b"/lib\0") * 3 + bytes(3000)
    yield "file", "etc/read-only.conf", 0o444, f"root = {text}\n".encode() * 20
    yield "file", "top.txt", 0o644, b"top\n"
    yield "file", "lib/large.bin", 0o644, bytes(range(1, 256)) * 3000
    for number in range(20):
        yield (
            "file",
            f"lib/site-packages/package{number % 3}/module{number}.py",
            0o644,
            (f"number = {number}\n".encode() * number),
        )
    yield "hard link", "lib/large-again.bin", 0o644, b"lib/large.bin"
    yield "symlink", "lib/large-link.bin", 0o777, b"large.bin"
    yield "symlink", "bin/sh", 0o777, b"/bin/sh"
    yield "directory", "var/empty", 0o555, b""
    records = [("bin/hello", "text"), ("bin/tool", "binary"), ("etc/read-only.conf", "text")]
    lines = "".join(f"({path!r}, {text!r}, {mode!r}),\n" for path, mode in records)
    yield "file", "bin/conda-unpack", 0o755, f"\n_prefix_records = [\n{lines}]\n".encode()
    for name, content in others.items():
        yield "file", name, 0o755, content


def archive(path: Path, format: str, others: Mapping[str, bytes] = MappingProxyType({})) -> Path:
    """Write the environment to ``path`` as "tar", "tar.gz", "tar.gz -j" or "zip".

    Args:
        others: more files, or later members of the same names.
    """
    if format == "zip":
        entries = []
        for kind, name, mode, content in _members(others):
            if kind == "symlink":
                entries.append(zips.symlink(name.encode(), content))
            elif kind == "file":
                entries.append(zips.Entry(name.encode(), content, 0o100000 | mode, zips.DEFLATED))
        path.write_bytes(zips.build(entries))
        return path
    make = {
        "directory": lambda name, mode, _: tars.directory(name, mode),
        "file": lambda name, mode, content: tars.member(name, content, mode=mode),
        "hard link": lambda name, _, target: tars.hardlink(name, target),
        "symlink": lambda name, _, target: tars.symlink(name, target),
    }
    data = b"".join(make[kind](name.encode(), *rest) for kind, name, *rest in _members(others))
    data += tars.END
    if format == "tar.gz":
        data = gzip.compress(data, mtime=0)
    elif format == "tar.gz -j":
        # A level at which little is compressed, so that the archive is worth several pieces.
        data = in_blocks(data, zlib.Z_FULL_FLUSH, level=0, block=1 << 16)
    path.write_bytes(data)
    return path


class Point(NamedTuple):
    """The ``number``-th (from 1) call of ``name`` that the tool's main thread makes.

    ``arguments`` is what strace shows of it.
    """

    name: str
    number: int
    arguments: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


class Place:
    """A directory for the runs of one process, and how the tool is run in it."""

    def __init__(self, root: Path, artifact: Path, format: str = "tar.gz") -> None:
        self.root = root
        self.format = format
        self.artifact = artifact
        self.kept = root / "kept"
        self.tmp = root / "tmp"
        self.variables = {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp), "HOME": "/proc"}
        root.mkdir(parents=True, exist_ok=True)
        self.archive = archive(root / "archive", format)
        self.tmp.mkdir(exist_ok=True)

    def run(
        self, *words: Word, wrapper: Sequence[Word] = ()
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the tool to its end, in two minutes at most."""
        return subprocess.run(
            [*wrapper, sys.executable, "-S", self.artifact, *words],
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=120,
            cwd="/",
        )

    def clean(self) -> None:
        """Remove what runs have left; only the archive stays."""
        for path in self.root.iterdir():
            if path not in (self.archive, self.tmp):
                _remove(path)
        for path in self.tmp.iterdir():
            _remove(path)

    def left(self) -> list[str]:
        """The names of what runs have left, less an environment in ``kept``."""
        beside = {path.name for path in self.root.iterdir()} - {"archive", "tmp", "kept", "copy"}
        inside = set(os.listdir(self.kept)) if self.kept.exists() else set()
        ours = {name for name in inside if name.startswith(".poncho")} - {MARKER, MANIFEST}
        return sorted(beside | ours | set(os.listdir(self.tmp)))


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o755)
    shutil.rmtree(path)


class Scenario:
    """What a run that is killed finds, and what must be so behind it and behind the next one.

    This one unpacks to a directory that does not exist.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.words: list[Word] = ["-e", place.archive, "-d", place.kept, "-w", "5", "hello"]
        self.killed = self.words
        self.place.clean()
        self.learn()

    def learn(self) -> None:
        """Note the tree that an undisturbed run makes."""
        result = self.place.run(*self.words)
        assert (result.returncode, result.stderr) == (0, b""), result.stderr
        self.expected = self.tree()

    def prepare(self) -> None:
        """Make the state that the run to be killed finds."""
        self.place.clean()

    def points(self) -> list[Point]:
        """Every point from the first call that has to do with the place on, in their order."""
        log = self.place.root / "log"
        self.prepare()
        names = ",".join("?" + name for name in _CALLS.split())
        wrapper = tracing.strace("-y", "-e", f"trace={names}", log=log)
        self.place.run(*self.killed, wrapper=wrapper)
        found: list[Point] = []
        # The interpreter's own start is in the log, but strace does not count it.
        counts = Counter(execve=-1)
        main = None
        for line in log.read_text(errors="surrogateescape").splitlines():
            match = _LINE.match(line)
            if match is None:
                continue
            thread, name, rest = match.groups()
            main = main or thread
            if thread != main:
                continue
            counts[name] += 1
            if found and name == "execve" and rest.endswith(" = 0"):
                return [*found, Point(name, counts[name], rest)]  # what follows is the command's
            if found and name in _PATHLESS or str(self.place.root) in rest and name != "execve":
                found.append(Point(name, counts[name], rest))
        return found

    def disturb(self, point: Point, effect: str) -> "subprocess.CompletedProcess[bytes]":
        """Have one call of a run fail ("error=EIO") or end it ("signal=KILL")."""
        self.prepare()
        injection = f"inject={point.name}:{effect}:when={point.number}"
        wrapper = tracing.strace("-e", f"trace={point.name}", "-e", injection)
        return self.place.run(*self.killed, wrapper=wrapper)

    def strike(self, point: Point) -> bool:
        """Kill a run at a point and check what follows; False if it ended before the point."""
        result = self.disturb(point, "signal=KILL")
        if (self.place.kept / MARKER).exists():
            self.look()
        self.check()
        return result.returncode == -signal.SIGKILL

    def look(self) -> None:
        """What whoever sees the completion marker must see."""
        assert not (self.place.kept / UNPACKING).exists()
        self.compare(self.tree())

    def check(self) -> None:
        """Run once more; that succeeds, and nothing is left of the dead run."""
        result = self.place.run(*self.words)
        assert result.returncode == 0, result.stderr
        assert result.stdout == b"hello from " + bytes(self.place.kept)
        self.check_stderr(result.stderr)
        self.compare(self.tree())
        assert self.place.left() == []

    def check_stderr(self, text: bytes) -> None:
        assert text == b""

    def tree(self) -> dict[bytes, trees.Entry]:
        return trees.snapshot(self.place.kept)

    def compare(self, tree: dict[bytes, trees.Entry]) -> None:
        differences = trees.differences(self.expected, tree)
        # Relocated files have the time of their relocation.
        relocated = tuple(f"{name.encode()!r}: mtime" for name in _RELOCATED)
        unexpected = [line for line in differences if not line.startswith(relocated)]
        assert not unexpected, unexpected


class TakenOver(Scenario):
    """An unpacking has died in the directory."""

    def prepare(self) -> None:
        self.place.clean()
        wrapper = tracing.strace("-e", "inject=mkdirat:signal=KILL:when=4")
        self.place.run(*self.words, wrapper=wrapper)
        assert (self.place.kept / UNPACKING).exists()


class Refused(Scenario):
    """The archive is cut off: the directory is to be left as it was found."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.killed = ["-e", place.root / "cut", *self.words[2:]]

    def prepare(self) -> None:
        self.place.clean()
        data = self.place.archive.read_bytes()
        (self.place.root / "cut").write_bytes(data[: len(data) * 9 // 10])

    def look(self) -> None:
        raise AssertionError("an environment was made of a damaged archive")

    def check(self) -> None:
        (self.place.root / "cut").unlink()
        super().check()


class Restarted(Scenario):
    """The machine was down since the directory was unpacked; nothing was lost."""

    def prepare(self) -> None:
        self.place.clean()
        assert self.place.run(*self.words).returncode == 0
        restart(self.place.kept)


class Damaged(Restarted):
    """The machine was down since the directory was unpacked, and files were lost."""

    def prepare(self) -> None:
        super().prepare()
        lose_content(self.place.kept / "lib" / "large.bin", 200_000)
        self.noted = (self.place.kept / MARKER).read_bytes()

    def look(self) -> None:
        # Until it is noticed the old marker stands there; who reads it looks at the files first.
        if (self.place.kept / MARKER).read_bytes() != self.noted:
            super().look()

    def check_stderr(self, text: bytes) -> None:
        # The line that tells it may have been the dead run's.
        assert text == b"" or (text.count(b"\n") == 1 and b"large.bin" in text)


class Temporary(Scenario):
    """No directory is given; a dead run's is there to be removed."""

    def __init__(self, place: Place) -> None:
        self.copy = place.root / "copy"
        super().__init__(place)

    def learn(self) -> None:
        self.killed = ["-e", self.place.archive, "hello"]
        script = 'cp -a "$CONDA_PREFIX" "$1" && hello'
        self.words = ["-e", self.place.archive, "sh", "-c", script, "sh", self.copy]
        super().learn()

    def prepare(self) -> None:
        self.place.clean()
        wrapper = tracing.strace("-e", "inject=mkdirat:signal=KILL:when=4")
        self.place.run(*self.killed, wrapper=wrapper)
        assert len(os.listdir(self.place.tmp)) == 1

    def check(self) -> None:
        result = self.place.run(*self.words)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.startswith(b"hello from " + bytes(self.place.tmp))
        self.compare(self.tree())
        assert self.place.left() == []

    def tree(self) -> dict[bytes, trees.Entry]:
        # Each run's prefix is another, of the same length.
        found = trees.snapshot(self.copy)
        for name in _RELOCATED:
            content = re.sub(
                rb"/poncho_package_run-\d+-\w+", b"/X", (self.copy / name).read_bytes()
            )
            found[name.encode()] = found[name.encode()]._replace(
                sha256=hashlib.sha256(content).hexdigest()
            )
        return found


class Directory(Scenario):
    """An environment that is a directory already, to be relocated where it is."""

    def learn(self) -> None:
        self.words = ["-e", self.place.kept, "-w", "5", "hello"]
        self.killed = self.words
        self.prepare()
        super().learn()

    def prepare(self) -> None:
        self.place.clean()
        self.place.kept.mkdir()
        bsdtar = need("bsdtar")
        subprocess.run([bsdtar, "-xf", self.place.archive, "-C", self.place.kept], check=True)


SCENARIOS = [Scenario, TakenOver, Refused, Restarted, Damaged, Temporary, Directory]


def restart(kept: Path) -> None:
    """Make a completion marker say that it was written in an earlier boot of this machine."""
    path = kept / MARKER
    marker = json.loads(path.read_text())
    assert marker["boot_id"]
    path.chmod(0o644)
    path.write_text(path.read_text().replace(marker["boot_id"], str(uuid.uuid4())))


def lose_content(path: Path, start: int, end: Optional[int] = None) -> None:
    """Have a file read as zeros from ``start`` on, as when its pages never came to disk."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[start:end] = bytes(len(data[start:end]))
    mode = status.st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """``count`` of the points (or all), evenly spread, the first and the last among them."""
    if count >= len(points):
        return list(points)
    step = (len(points) - 1) / max(count - 1, 1)
    return [points[round(index * step)] for index in range(count)]

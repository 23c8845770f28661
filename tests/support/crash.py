"""Killing or stopping the tool at a chosen system call, and what the next run makes of it.

A point is a system call by its name and number (the third openat); strace sends SIGKILL at
its entry, so that the call itself does not happen, or SIGSTOP, which stops it behind the call.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Optional, Union

from . import process, tars, tracing, trees, zips
from .environments import PLACEHOLDER
from .streams import in_blocks

MARKER = ".poncho_package_run_expanded"
MANIFEST = ".poncho_package_run_manifest"
OWNER = ".poncho_package_run_owner"
PUBLISHING = ".poncho_package_run_publishing"

# What private directories are called: of temporary environments, and of stagings.
_PRIVATE = re.compile(r"\.?poncho_package_run-\d+-[^/]+")

Word = Union[str, Path]

RELOCATED = ("bin/hello", "bin/tool", "etc/read-only.conf")

# Names that this machine's kernel does not have are no error for strace with a "?".
_CALLS = (
    "clone clone3 close dup execve fchmod fchmodat flock fstat fsync ftruncate getdents64 "
    "link linkat lseek lstat mkdir mkdirat newfstatat openat pipe2 pread64 pwrite64 read readlink "
    "rename renameat renameat2 rmdir rt_sigtimedwait stat symlink symlinkat unlink unlinkat "
    "utimensat vfork wait4 write"
)

# Calls that name no file, and are points all the same once the tool is at work.
_PATHLESS = {"clone", "clone3", "execve", "pipe2", "rt_sigtimedwait", "vfork", "wait4"}

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")

_SCRIPT = """\
#!/bin/sh
prefix={prefix}
printf "hello from %s" "$prefix"
"""


LIBRARY = ", library"
"""The end of a format that is to be unpacked with the library in C, whatever the size."""


def _members(
    others: Mapping[str, bytes], text: str = PLACEHOLDER
) -> Iterable[tuple[str, str, int, bytes]]:
    """(kind, path, mode, content or target) of a small environment that has everything."""
    binary = PLACEHOLDER.encode()
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
    records = [
        ("bin/hello", text, "text"),
        ("bin/tool", PLACEHOLDER, "binary"),
        ("etc/read-only.conf", text, "text"),
    ]
    lines = "".join(f"{record!r},\n" for record in records)
    yield "file", "bin/conda-unpack", 0o755, f"\n_prefix_records = [\n{lines}]\n".encode()
    for name, content in others.items():
        yield "file", name, 0o755, content


def archive(
    path: Path,
    format: str,
    others: Mapping[str, bytes] = MappingProxyType({}),
    packed_at: str = PLACEHOLDER,
) -> Path:
    """Write the environment to ``path`` as "tar", "tar.gz", "tar.gz -j" or "zip".

    Args:
        others: more files, or later members of the same names.
        packed_at: the prefix that the text files name; the program has the long placeholder.
    """
    members = list(_members(others, packed_at))
    if format == "zip":
        entries = []
        for kind, name, mode, content in members:
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
    data = b"".join(make[kind](name.encode(), *rest) for kind, name, *rest in members)
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

    ``arguments`` is what strace shows of it; ``before_command``, whether no command runs yet.
    """

    name: str
    number: int
    arguments: str = ""
    before_command: bool = False

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


def relocated(prefix: str) -> dict[str, bytes]:
    """What the files with records in ``archive`` hold once they are relocated to ``prefix``."""
    old, new = PLACEHOLDER.encode(), prefix.encode()
    contents = {path: content for _, path, _, content in _members({}, prefix)}
    string = (new + b"/lib").ljust(len(old + b"/lib"), b"\0")
    program = contents["bin/tool"].replace(old + b"/lib", string)
    return {**{name: contents[name] for name in RELOCATED}, "bin/tool": program}


def private_directories(folder: Path) -> list[Path]:
    """The private directories in ``folder``."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PRIVATE.fullmatch(path.name))


def is_unowned(path: Path) -> bool:
    """Whether this is a private directory whose maker died before he had written who he is."""
    if not _PRIVATE.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
        return False
    for inside in path.iterdir():
        if not inside.name.startswith(OWNER) or _is_json(inside.read_bytes()):
            return False
    return True


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def mark_before_command(points: Sequence[Point]) -> list[Point]:
    """The points, of which those are marked that come before the command is started."""
    starting = [
        index
        for index, point in enumerate(points)
        if point.name in ("clone", "clone3", "vfork") and "CLONE_THREAD" not in point.arguments
    ]
    # The call itself starts it; what is sent within is forwarded.
    first = starting[-1] if starting else len(points) - 1
    return [point._replace(before_command=at < first) for at, point in enumerate(points)]


class Place:
    """A directory for the runs of one process, and how the tool is run in it.

    Attributes:
        kept: what the tool knows as DIR.
        seen: where DIR's content is for those who are outside of the tool's mount namespace.
        outer: the start of every command line, before strace: namespaces.
        inner: the same, behind strace: another user.
    """

    def __init__(self, root: Path, artifact: Path, format: str = "tar.gz") -> None:
        self.root = root
        self.format = format
        self.artifact = artifact
        self.kept = self.seen = root / "kept"
        self.tmp = root / "tmp"
        self.outer: list[Word] = []
        self.inner: list[Word] = []
        self.python: list[Word] = [sys.executable, "-S"]
        self.cwd = Path("/")
        self.variables = {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp), "HOME": "/proc"}
        if format.endswith(LIBRARY):
            self.variables["PONCHO_PACKAGE_RUN_NATIVE"] = "yes"
        root.mkdir(parents=True, exist_ok=True)
        self.archive = archive(root / "archive", format.replace(LIBRARY, ""))
        self.tmp.mkdir(exist_ok=True)
        self.known = {self.archive, self.tmp}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *words: Word, wrapper: Sequence[Word] = (), outer: Sequence[Word] = ()
    ) -> "subprocess.Popen[bytes]":
        """Start the tool, by default in a session of its own."""
        started = subprocess.Popen(
            [*outer, *self.outer, *wrapper, *self.inner, *self.python, self.artifact, *words],
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            start_new_session=True,
        )
        self._started.append(started)
        return started

    def run(
        self, *words: Word, wrapper: Sequence[Word] = (), outer: Sequence[Word] = ()
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the tool to its end, in two minutes at most."""
        return finish(self.start(*words, wrapper=wrapper, outer=outer))

    def end(self) -> None:
        """Kill what still runs: a test that fails leaves none to those that come behind it."""
        for started in self._started:
            if started.stdout is not None and not started.stdout.closed:  # nobody has waited for it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)
                started.communicate(timeout=60)

    def clean(self) -> None:
        """Remove what runs have left; only the archive stays."""
        for path in self.root.iterdir():
            if path not in self.known:
                remove(path)
        for path in self.tmp.iterdir():
            remove(path)

    def left(self, strict: bool = False) -> list[str]:
        """The names of what runs have left, less an environment in ``kept``.

        Args:
            strict: count what nobody can know the owner of, too.
        """
        known = {path.name for path in self.known} | {"kept", "copy", self.seen.name}
        found = [path for path in self.root.iterdir() if path.name not in known]
        if self.seen.exists():
            found += [
                path
                for path in self.seen.iterdir()
                if path.name.startswith(".poncho") and path.name not in (MARKER, MANIFEST)
            ]
        found += self.tmp.iterdir()
        return sorted(path.name for path in found if strict or not is_unowned(path))


def finish(process: "subprocess.Popen[bytes]") -> "subprocess.CompletedProcess[bytes]":
    """Wait for the end, two minutes at most, after which everything that it started is killed."""
    try:
        out, err = process.communicate(timeout=120)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lost_by_python(result: "subprocess.CompletedProcess[bytes]", number: int) -> bool:
    """Whether the interpreter has dropped a Ctrl-C that came before it handed over to the tool.

    Its handler raises an exception wherever it stands; in the callback of a weak reference, as
    the import system has some, nothing comes of that but a message.  The tool takes that handler
    away in its first lines, and ends if it finds a trace of such a one; some leave none (1 of
    1,000 within the first 12 ms).
    """
    text = os.fsdecode(result.stderr)
    dropped = re.match(r"Exception ignored in: .*\n(?:.*\n)*KeyboardInterrupt: ?\n", text)
    return number == signal.SIGINT and result.returncode == 0 and dropped is not None


def remove(path: Path) -> None:
    """Remove whatever is there, read-only directories too."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o755)
    shutil.rmtree(path)


class Stopped:
    """A run of the tool that is stopped at a point (or has ended before it).

    Args:
        calls: what else strace is to do.
        only: the point's number counts only calls on this file.

    Attributes:
        reached: whether it came to the point.
    """

    def __init__(
        self,
        place: Place,
        words: Sequence[Word],
        point: "Point",
        *calls: Word,
        only: Optional[Path] = None,
    ) -> None:
        self.place = place
        self.log = place.root / f"stopped-{time.monotonic_ns()}.log"
        self.log.write_bytes(b"")
        place.known.add(self.log)
        names = "flock,rename,renameat," + point.name if calls else point.name
        injections = [*calls, f"inject={point.name}:signal=STOP:when={point.number}"]
        options = [word for each in [f"trace={names}", *injections] for word in ("-e", each)]
        options += ["-P", only] if only else []
        self.process = place.start(*words, wrapper=tracing.strace(*options, log=self.log))
        process.wait_for(lambda: self._is_stopped() or self.process.poll() is not None)
        self.reached = self._is_stopped()

    def _is_stopped(self, times: int = 1) -> bool:
        return self.log.read_bytes().count(b"stopped by SIGSTOP") >= times

    def go_on_to_the_next_stop(self) -> None:
        """Let it go on until it is stopped once more."""
        sent = 0.0

        def stopped_again() -> bool:
            nonlocal sent
            # Whoever is told twice may be told behind the next stop, and goes on from there.
            if b"SIGCONT" not in self.log.read_bytes() and time.monotonic() > sent + 5:
                process.go_on(self.process.pid)
                sent = time.monotonic()
            return self._is_stopped(2) or self.process.poll() is not None

        process.wait_for(stopped_again)
        assert self._is_stopped(2), self.process.communicate()

    def end(self) -> "subprocess.CompletedProcess[bytes]":
        """Let it go on, to its end."""
        process.go_on_to_the_end(self.process)
        self.place.known.discard(self.log)
        self.log.unlink()
        return finish(self.process)


class Scenario:
    """What a run that is killed finds, and what must be so behind it and behind the next one.

    This one unpacks to a directory that does not exist.

    Attributes:
        words: of the run that follows; ``killed`` of the one that is killed; ``options`` are
            the latter's without its command.
        killed_in: the start of the command line of the run that is killed; ``next_in`` of the next.
    """

    packed_at = PLACEHOLDER

    def __init__(self, place: Place) -> None:
        self.place = place
        self.killed_in: list[Word] = []
        self.next_in: list[Word] = []
        self.options: list[Word] = ["-e", place.archive, "-d", place.kept, "-w", "5"]
        self.words: list[Word] = [*self.options, "hello"]
        self.killed = self.words
        self.greeting = b"hello from " + bytes(place.kept)
        self.last: Optional[Point] = None
        self.published = False
        self.learn()

    def learn(self) -> None:
        """Note the tree that an undisturbed run makes."""
        self.place.clean()
        self.lay_out()
        result = self.place.run(*self.words, outer=self.next_in)
        assert (result.returncode, result.stderr) == (0, b""), result.stderr
        self.expected = self.tree()
        for name, content in relocated(str(self.place.kept)).items():
            assert (self.place.seen / name).read_bytes() == content, f"{name} is not relocated"

    def lay_out(self) -> None:
        """Make what any run needs."""

    def prepare(self) -> None:
        """Make the state that the run to be killed finds."""
        self.place.clean()
        self.lay_out()

    def points(self) -> list[Point]:
        """Every point from the first call that has to do with the place on, in their order."""
        log = self.place.root / "log"
        self.prepare()
        names = ",".join("?" + name for name in _CALLS.split())
        wrapper = tracing.strace("-y", "-e", f"trace={names}", log=log)
        self.place.run(*self.killed, wrapper=wrapper, outer=self.killed_in)
        self.last = None
        found: list[Point] = []
        # The interpreter's own start is in the log, but strace does not count it.
        counts = Counter(execve=-1)
        main, here = None, self.place.cwd
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
                # What follows is the command's.
                return mark_before_command([*found, Point(name, counts[name], rest)])
            # The working directory may be the place's, and the tool lie in it.
            named = rest.replace(str(self.place.artifact), "").replace(f"AT_FDCWD<{here}>", "")
            if found and name in _PATHLESS or str(self.place.root) in named and name != "execve":
                found.append(Point(name, counts[name], rest))
        self.last = found[-1]
        return mark_before_command(found)

    def disturb(self, point: Point, effect: str) -> "subprocess.CompletedProcess[bytes]":
        """Have one call of a run fail ("error=EIO") or end it ("signal=KILL")."""
        self.prepare()
        self.found = set(self.place.left(strict=True))
        injection = f"inject={point.name}:{effect}:when={point.number}"
        wrapper = tracing.strace("-e", f"trace={point.name}", "-e", injection)
        return self.place.run(*self.killed, wrapper=wrapper, outer=self.killed_in)

    def strike(self, point: Point) -> bool:
        """Kill a run at a point and check what follows; False if it ended before the point."""
        result = self.disturb(point, "signal=KILL")
        self.published = (self.place.seen / MARKER).exists()
        if self.published:
            self.look()
        self.check()
        return result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)

    def overtake(self, point: Point, *calls: str) -> bool:
        """Stop a run at a point until another has run; False if it ended before the point.

        Args:
            calls: what strace is to do to the locks of both, as in "inject=flock:retval=0".
        """
        self.prepare()
        stopped = Stopped(self.place, self.killed, point, *calls)
        self.published = (self.place.seen / MARKER).exists()
        wrapper = tracing.strace(*(word for each in calls for word in ("-e", each)))
        words = ["0.2" if word == "5" else word for word in self.words]
        other = self.place.run(*(self.words if calls else words), wrapper=wrapper if calls else ())
        if (self.place.seen / MARKER).exists():
            self.look()
        first = stopped.end()
        # Where locks hold, the other may have had to wait for who is stopped.
        assert other.returncode == 0 or not calls and other.returncode == 75, other
        assert first.returncode in (0, 75), first
        for result in (first, other):
            assert b"Traceback" not in result.stderr, result
            assert result.returncode or result.stdout.startswith(self.greeting), result
        self.compare(self.tree())
        self.check_nothing_left()
        return stopped.reached

    def seconds(self) -> float:
        """How long a start takes, until a little behind the start of its command."""
        took = []
        for _ in range(5):
            self.prepare()
            begin = time.monotonic()
            self.place.run(*self.options, "true", outer=self.killed_in)
            took.append(time.monotonic() - begin)
        return sorted(took)[2] * 1.1

    def interrupt(self, point: Point, number: int) -> bool:
        """Send signal ``number`` to a run at a point: it ends of it, and leaves nothing.

        Returns:
            False if the run did not come to the point: threads share the work.
        """
        self.prepare()
        self.found = set(self.place.left(strict=True))
        name, log = signal.Signals(number).name, self.place.root / "log"
        injection = f"inject={point.name}:signal={name}:when={point.number}"
        traced = f"trace={point.name},execve"
        wrapper = tracing.strace("-e", traced, "-e", injection, log=log)
        command = self.killed[len(self.options) :]
        if point.before_command:
            # A signal that was taken note of, and then forgotten, shows in one that goes on.
            command = ["sh", "-c", "sleep 2; echo went on"]
        result = self.place.run(*self.options, *command, wrapper=wrapper, outer=self.killed_in)
        before, reached, _ = log.read_text().partition(f"--- {name} ")
        log.unlink()
        if "went on" in before:
            return False  # and more of the calls before the command were another thread's
        if reached and (result.returncode or point != self.last):
            # Behind the removal of a temporary environment there is nothing to give up.
            self.check_interrupted(result, number)
            assert b"went on" not in result.stdout, "the command was run all the same"
        return reached

    def interrupt_at(self, instant: float, number: int) -> float:
        """Send signal ``number`` to a run ``instant`` seconds after its start.

        Returns:
            the seconds that the run took to end of it.
        """
        for _ in range(3):
            took, result = self._interrupted_at(instant, number)
            if not lost_by_python(result, number):
                break
        self.check_interrupted(result, number)
        return took

    def _interrupted_at(
        self, instant: float, number: int
    ) -> "tuple[float, subprocess.CompletedProcess[bytes]]":
        self.prepare()
        self.found = set(self.place.left(strict=True))
        tool = self.place.start(*self.options, "sleep", "20", outer=self.killed_in)
        time.sleep(instant)
        tool.send_signal(number)
        sent = time.monotonic()
        result = finish(tool)
        return time.monotonic() - sent, result

    def check_interrupted(self, result: "subprocess.CompletedProcess[bytes]", number: int) -> None:
        text = os.fsdecode(result.stderr)
        # Before the tool has begun, Python says in its own way that it was interrupted.
        early = number == signal.SIGINT and re.search("KeyboardInterrupt|Fatal Python error", text)
        statuses = (-number, 128 + number, *([1] if early else []))
        assert result.returncode in statuses, (result.returncode, text)
        # Nothing can be said before the first instruction.
        first = re.compile(re.escape(f'File "{self.place.artifact}/__main__.py", line ') + "[01],")
        frames = re.findall(r'File "([^"]*)"', first.sub("", text) if early else text)
        assert not any(f"{self.place.artifact}/" in frame for frame in frames), text
        left = set(self.place.left(strict=True)) - self.found
        assert not left, f"left {left}"
        if (self.place.seen / MARKER).exists():
            self.look()
        else:
            self.check_as_found()

    def check_as_found(self) -> None:
        """Nothing was made, and the directory is as the run had found it."""
        assert not self.place.kept.exists(), "the directory was made and is left"

    def look(self) -> None:
        """What whoever sees the completion marker must see."""
        self.compare(self.tree())

    def check(self) -> None:
        """Run once more; that succeeds, and nothing is left of the dead run."""
        result = self.place.run(*self.words, outer=self.next_in)
        assert result.returncode == 0, (result.returncode, result.stderr)
        assert result.stdout == self.greeting, result.stdout
        self.check_stderr(result.stderr)
        self.compare(self.tree())
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        left = self.place.left()
        if left and self.published:
            # What lay beside a directory that was complete goes with the next that is made there.
            other = self.place.root / "other"
            self.place.run("-e", self.place.archive, "-d", other, "true", outer=self.next_in)
            if other.exists():
                remove(other)
            left = self.place.left()
        assert not left, f"left {left}"

    def check_stderr(self, text: bytes) -> None:
        assert text == b"", text

    def tree(self) -> dict[bytes, trees.Entry]:
        return trees.snapshot(self.place.seen)

    def compare(self, tree: dict[bytes, trees.Entry]) -> None:
        differences = trees.differences(self.expected, tree)
        # Relocated files have the time of their relocation.
        names = tuple(f"{name.encode()!r}: mtime" for name in RELOCATED)
        unexpected = [line for line in differences if not line.startswith(names)]
        assert not unexpected, unexpected


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

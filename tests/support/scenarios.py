"""What runs that are killed or stopped may find: one class each; see crash.Scenario."""

import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from . import crash, tracing, trees
from .commands import missing, need
from .crash import MARKER, OWNER, Place, Scenario, Word, lose_content, restart

NOBODY = 65534


def name_of(value: object) -> str:
    """What pytest calls a parameter."""
    return value.__name__ if isinstance(value, type) else str(value)


class Empty(Scenario):
    """An empty directory is given, which keeps its mode."""

    def lay_out(self) -> None:
        super().lay_out()
        self.place.kept.mkdir()
        self.place.kept.chmod(0o2750)

    def compare(self, tree: dict[bytes, trees.Entry]) -> None:
        super().compare(tree)
        if (self.place.seen / MARKER).exists():
            self.check_directory()

    def check_as_found(self) -> None:
        assert os.listdir(self.place.seen) == []
        self.check_directory()

    def check_directory(self) -> None:
        mode = stat.S_IMODE(self.place.seen.stat().st_mode)
        assert mode == 0o2750, f"the directory's mode is {mode:o}"


class TakenOver(Scenario):
    """An unpacking has died on the way."""

    def prepare(self) -> None:
        super().prepare()
        die(self)
        assert not (self.place.seen / MARKER).exists()
        assert self.place.left() != []


def die(scenario: Scenario) -> None:
    """Kill a run when most of its tree is made: at its first symlink."""
    wrapper = tracing.strace("-e", "inject=?symlink,symlinkat:signal=KILL:when=1")
    scenario.place.run(*scenario.killed, wrapper=wrapper)


class Refused(Scenario):
    """The archive is cut off: the directory is to be left as it was found."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.killed = ["-e", place.root / "cut", *self.words[2:]]

    def prepare(self) -> None:
        super().prepare()
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
        super().prepare()
        assert self.place.run(*self.words).returncode == 0
        restart(self.place.seen)


class Damaged(Restarted):
    """The machine was down since the directory was unpacked, and files were lost."""

    def prepare(self) -> None:
        super().prepare()
        lose_content(self.place.seen / "lib" / "large.bin", 200_000)
        self.noted = (self.place.seen / MARKER).read_bytes()

    def look(self) -> None:
        # Until it is noticed the old marker stands there; who reads it looks at the files first.
        # Then, until it is mended, there is none, or an empty one, which says that all is damaged.
        marker = self.place.seen / MARKER
        if (marker.read_bytes() if marker.exists() else b"") not in (b"", self.noted):
            super().look()

    def check_stderr(self, text: bytes) -> None:
        # The line that tells it may have been the dead run's.
        assert text == b"" or (text.count(b"\n") == 1 and b" is damaged: " in text), text


class Moved(Scenario):
    """The directory has been moved since it was unpacked, to a path that the old one begins."""

    def lay_out(self) -> None:
        super().lay_out()
        first = self.place.root / "kep"
        assert self.place.run(*self.words[:3], first).returncode == 0
        first.rename(self.place.kept)
        self.noted = (self.place.kept / MARKER).read_bytes()

    def look(self) -> None:
        # Until it is relocated anew the marker says where it lay before.
        if (self.place.kept / MARKER).read_bytes() != self.noted:
            super().look()


class Temporary(Scenario):
    """No directory is given; a dead run's is there to be removed."""

    def __init__(self, place: Place) -> None:
        self.copy = place.root / "copy"
        super().__init__(place)
        self.greeting = b"hello from " + bytes(place.tmp)

    def learn(self) -> None:
        self.options = ["-e", self.place.archive]
        self.killed = [*self.options, "hello"]
        self.place.clean()
        script = 'cp -a "$CONDA_PREFIX" "$1" && hello'
        self.words = ["-e", self.place.archive, "sh", "-c", script, "sh", self.copy]
        result = self.place.run(*self.words, outer=self.next_in)
        assert (result.returncode, result.stderr) == (0, b""), result.stderr
        self.expected = self.tree()

    def prepare(self) -> None:
        super().prepare()
        die(self)
        assert len(os.listdir(self.place.tmp)) == 1

    def check_as_found(self) -> None:
        pass

    def check(self) -> None:
        result = self.place.run(*self.words, outer=self.next_in)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.startswith(self.greeting), result.stdout
        self.compare(self.tree())
        self.check_nothing_left()

    def tree(self) -> dict[bytes, trees.Entry]:
        # Each run's prefix is another, of the same length.
        found = trees.snapshot(self.copy)
        for name in crash.RELOCATED:
            content = re.sub(
                rb"/poncho_package_run-\d+-[^/\s\0]+", b"/X", (self.copy / name).read_bytes()
            )
            found[name.encode()] = found[name.encode()]._replace(
                sha256=hashlib.sha256(content).hexdigest()
            )
        return found


class Directory(Scenario):
    """An environment that is a directory already, to be relocated where it is."""

    def learn(self) -> None:
        self.options = ["-e", self.place.kept, "-w", "5"]
        self.words = self.killed = [*self.options, "hello"]
        super().learn()

    def lay_out(self) -> None:
        super().lay_out()
        extract(self.place.archive, self.place.kept)

    def check_as_found(self) -> None:
        # Some files may be relocated already; the next run does not mind.
        self.check()


def extract(archive: Path, folder: Path) -> None:
    """Unpack with another program."""
    folder.mkdir()
    subprocess.run([need("bsdtar"), "-xf", archive, "-C", folder], check=True)


class Unmarked(Directory):
    """The same with -d: somebody has unpacked there, by another program."""

    def learn(self) -> None:
        options = self.options
        super().learn()
        self.options = options
        self.words = self.killed = [*options, "hello"]


class Contained(Directory):
    """The directory's path begins with the path at which it was packed."""

    def __init__(self, place: Place) -> None:
        crash.archive(place.archive, place.format, packed_at=str(place.root / "kep"))
        super().__init__(place)


class UnpackedByHand(Contained):
    """conda-unpack was run by hand before."""

    def lay_out(self) -> None:
        super().lay_out()
        for name, content in crash.relocated(str(self.place.kept)).items():
            path = self.place.kept / name
            status = path.stat()
            path.chmod(0o644)
            path.write_bytes(content)
            path.chmod(status.st_mode)


# Directories that cannot be replaced


class WorkingDirectory(Empty):
    """The directory is the one that the tool stands in, and must stay that one."""

    def __init__(self, place: Place) -> None:
        place.cwd = place.kept
        super().__init__(place)

    def learn(self) -> None:
        script = '[ . -ef "$CONDA_PREFIX" ] && [ -e bin/hello ] && pwd -P >/dev/null && hello'
        self.options = ["-e", self.place.archive, "-d", ".", "-w", "5"]
        self.words = self.killed = [*self.options, "sh", "-c", script]
        super().learn()

    def lay_out(self) -> None:
        super().lay_out()
        self.inode = self.place.kept.stat().st_ino

    def check_directory(self) -> None:
        super().check_directory()
        assert self.place.kept.stat().st_ino == self.inode, "the directory was replaced"


class MountPoint(Empty):
    """The directory is a mount point (of what lies in ``seen``)."""

    def __init__(self, place: Place) -> None:
        place.seen = place.root / "mounted"
        place.outer = mounting(place.seen, place.kept)
        super().__init__(place)

    def lay_out(self) -> None:
        super().lay_out()
        self.place.seen.mkdir()
        self.place.seen.chmod(0o2750)


def mounting(what: Path, where: Path) -> list[Word]:
    """The start of a command line for which ``what`` is mounted at ``where``."""
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    wrapper = [need("unshare"), *(["-m"] if os.geteuid() == 0 else ["-Urm"]), "sh", "-c", script]
    probe = [need("unshare"), *wrapper[1:-3], "true"]
    if subprocess.run(probe, stderr=subprocess.DEVNULL).returncode:
        missing("needs a mount namespace: run it as root, or allow user namespaces")
    return [*wrapper, what, where]


class TakenOverMountPoint(MountPoint, TakenOver):
    """An unpacking has died in it."""


class DamagedMountPoint(MountPoint, Damaged):
    """The machine was down since it was filled, and files were lost."""


class DefaultAcl(Empty):
    """What is made in the directory gets an access control list, and so does what replaces it."""

    ACCESS = "system.posix_acl_access"
    DEFAULT = "system.posix_acl_default"

    def lay_out(self) -> None:
        super().lay_out()
        try:
            for name in (self.ACCESS, self.DEFAULT):
                os.setxattr(self.place.kept, name, acl(user=4242))
        except OSError as error:
            missing(f"needs access control lists, and: {error}")
        self.mode = self.place.kept.stat().st_mode
        self.lists = [os.getxattr(self.place.kept, name) for name in (self.ACCESS, self.DEFAULT)]

    def check_directory(self) -> None:
        found = [os.getxattr(self.place.kept, name) for name in (self.ACCESS, self.DEFAULT)]
        assert found == self.lists, f"the directory has {found}"
        assert self.place.kept.stat().st_mode == self.mode, "the directory's mode has changed"
        for path in self.place.kept.glob("conda-meta"):
            assert os.getxattr(path, self.DEFAULT) == self.lists[1], "it has inherited nothing"


def acl(user: int) -> bytes:
    """An access control list, as the kernel has it, that lets ``user`` read and write."""
    entries = [(0x01, 7, -1), (0x02, 7, user), (0x04, 5, -1), (0x10, 7, -1), (0x20, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)


class UnwritableParent(Empty):
    """The directory belongs to a user who may not write beside it."""

    def __init__(self, place: Place) -> None:
        be_nobody(place)
        super().__init__(place)

    def lay_out(self) -> None:
        super().lay_out()
        os.chown(self.place.kept, NOBODY, NOBODY)
        self.place.kept.chmod(0o2750)


def be_nobody(place: Place) -> None:
    """Have every run of a place be one of the user nobody, who may write in its tmp only."""
    if os.geteuid() != 0:
        missing("needs root, to be another user")
    place.artifact = Path(shutil.copy(place.artifact, place.root / "artifact"))
    place.known.add(place.artifact)
    place.root.chmod(0o755)
    os.chown(place.tmp, NOBODY, NOBODY)
    place.inner = as_nobody()
    for interpreter in (place.python[0], "/usr/bin/python3"):
        probe = [*place.inner, interpreter, "-c", ""]
        if subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0:
            place.python = [interpreter, "-S"]
            return
    missing("needs a Python that other users may run: apt-get install python3")


def as_nobody() -> list[Word]:
    """The start of a command line of another user than this one, without any rights."""
    groups = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [need("setpriv"), *groups, "--no-new-privs"]


# Other containers


def in_a_container(user: str = "--map-root-user") -> list[Word]:
    """The start of a command line with a pid namespace of its own, and a /proc of it.

    ``user`` is who an ordinary user is in there.
    """
    user = [] if os.geteuid() == 0 else ["--user", user]
    wrapper = [need("unshare"), *user, "-m", "-p", "-f", "--kill-child", "--mount-proc"]
    if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL).returncode:
        missing("needs a pid namespace: run it as root, or allow user namespaces")
    return wrapper


def age(*folders: Path) -> None:
    """Have what is known of owners look as if it had not been touched for more than a day."""
    long_ago = time.time() - 26 * 3600
    for folder in folders:
        for private in crash.private_directories(folder):
            for path in (private / OWNER, private):
                if os.path.lexists(path):
                    os.utime(path, (long_ago, long_ago), follow_symlinks=False)


class KilledInside(Scenario):
    """The run is killed in a container, and the next is outside of it."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.enter()

    def enter(self) -> None:
        self.killed_in = in_a_container()

    def check_nothing_left(self) -> None:
        # Nobody can tell who died in there; but what nobody touched for a day is removed.
        age(self.place.root, self.place.tmp)
        if self.place.kept.exists():
            crash.remove(self.place.kept)
        if (self.place.root / "copy").exists():
            crash.remove(self.place.root / "copy")
        self.place.run(*self.words, outer=self.next_in)
        super().check_nothing_left()


class KilledOutside(KilledInside):
    """The run is killed outside of the container in which the next one is."""

    def enter(self) -> None:
        self.next_in = in_a_container()


class TemporaryKilledInside(KilledInside, Temporary):
    """The same of temporary environments."""


class TemporaryKilledOutside(KilledOutside, Temporary):
    """The same of temporary environments, whose paths hold the user's number: it stays."""

    def enter(self) -> None:
        self.next_in = in_a_container("--map-current-user")


class MountPointKilledInside(KilledInside, MountPoint):
    """The same where the directory cannot be replaced."""

    def check_nothing_left(self) -> None:
        # What lies in an environment that is complete is nobody's business any more.
        pass


SCENARIOS: Sequence[Callable[[Place], Scenario]] = [
    Scenario,
    Empty,
    TakenOver,
    Refused,
    Restarted,
    Damaged,
    Moved,
    Temporary,
    Directory,
    Unmarked,
    Contained,
    UnpackedByHand,
    WorkingDirectory,
    MountPoint,
    TakenOverMountPoint,
    DamagedMountPoint,
    DefaultAcl,
    UnwritableParent,
    KilledInside,
    KilledOutside,
    TemporaryKilledInside,
    TemporaryKilledOutside,
    MountPointKilledInside,
]

OVERTAKEN: Sequence[Callable[[Place], Scenario]] = [
    Scenario,
    Empty,
    TakenOver,
    Damaged,
    Moved,
    Temporary,
    Directory,
    Contained,
    WorkingDirectory,
    MountPoint,
    DamagedMountPoint,
    UnwritableParent,
]
"""Of which one run may be stopped while another comes and goes."""

INTERRUPTED: Sequence[Callable[[Place], Scenario]] = [
    Scenario,
    Empty,
    Temporary,
    Directory,
    Moved,
    WorkingDirectory,
    MountPoint,
    UnwritableParent,
]
"""Which a signal ends."""

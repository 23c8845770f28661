"""What a tree remembers while it is made: little, and its time is linear, whatever comes."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from poncho_package_run.archive import tar
from poncho_package_run.archive.member import FILE, Member
from poncho_package_run.machine.signals import Terminated, interruptible
from poncho_package_run.tree import unpack
from poncho_package_run.tree.directories import Directories, components
from poncho_package_run.tree.unpack import Tree
from poncho_package_run.tree.writers import Writers, create
from support import trees
from support.commands import need
from support.tars import END, directory, hardlink, header, longname, member, symlink

MARKER = b".poncho_package_run_expanded"


@pytest.fixture
def root(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    yield handle
    os.close(handle)


def unpacked(root, *pieces):
    with Tree(root, b"/the/target") as tree:
        tree.unpack(tar.members([b"".join(pieces) + END]))
        tree.set_attributes()
    return tree


class TestPackedMarker:
    """A completion marker in an archive says to which prefix its files were relocated."""

    def test_it_is_kept_and_not_unpacked(self, root, tmp_path):
        tree = unpacked(root, member(b"conda-meta/history"), member(MARKER, b'{"prefix": "/a"}'))
        assert tree.packed_marker == b'{"prefix": "/a"}'
        assert os.listdir(tmp_path) == ["conda-meta"]

    def test_the_one_with_the_fewest_directories_above_counts_and_of_two_the_later(self, root):
        tree = unpacked(
            root,
            member(b"env/" + MARKER, b"1"),
            member(b"./env/" + MARKER, b"2"),
            member(b"env/share/" + MARKER, b"3"),
        )
        assert tree.packed_marker == b"2"

    @pytest.mark.parametrize(
        "planted",
        [
            symlink(MARKER, b"/etc/passwd"),
            hardlink(MARKER, b"f"),
            directory(MARKER),
            member(MARKER + b"/f", b"x"),
            member(MARKER.upper(), b"x"),
            b"",
        ],
    )
    def test_nothing_but_a_file_of_just_that_name_is_one(self, root, planted):
        assert unpacked(root, member(b"f", b"f"), planted).packed_marker == b""

    def test_it_is_bounded(self, root):
        assert unpacked(root, member(MARKER, b"x" * (3 << 20))).packed_marker == b"x" * (1 << 16)


@pytest.mark.parametrize(
    "path, is_one",
    [
        (b"conda-meta/history", True),
        (b"a/b/conda-meta/x.json", True),
        (b"env/bin/activate", True),
        (b"pyvenv.cfg", True),
        (b"bin/python", False),
        (b"README", False),
    ],
)
def test_it_is_known_at_any_time_whether_there_can_be_an_environment(root, path, is_one):
    assert unpacked(root, member(b"zz"), member(path)).holds_environment == is_one


class TestDirectoriesAttributes:
    """With room for a few: most directories get their modes and times long before the end."""

    @pytest.fixture(autouse=True)
    def little_room(self, monkeypatch):
        monkeypatch.setattr(unpack, "_LATER_LIMIT", 2000)

    def test_all_get_theirs_in_the_order_of_tar(self, root, tmp_path):
        pieces, paths = [], []
        for top, below in itertools.product(range(20), range(5)):
            if not below:
                pieces.append(directory(b"%d" % top, mode=0o555, mtime=1000 + top))
                paths.append((f"{top}", 0o555, 1000 + top))
            pieces.append(directory(b"%d/%d" % (top, below), mode=0o700, mtime=2000 + below))
            pieces.append(member(b"%d/%d/f" % (top, below), b"x"))
            paths.append((f"{top}/{below}", 0o700, 2000 + below))
        tree = unpacked(root, *pieces)
        for path, mode, mtime in paths:
            status = (tmp_path / path).stat()
            assert (status.st_mode & 0o7777, status.st_mtime) == (mode, mtime), path
        assert len(tree._attributes) == 0

    def test_what_is_remembered_stays_small(self, root, monkeypatch):
        most = 0
        before = Tree._directory

        def watched(tree, entry):
            nonlocal most
            before(tree, entry)
            most = max(most, len(tree._attributes))

        monkeypatch.setattr(Tree, "_directory", watched)
        unpacked(root, *(directory(b"d%d" % number) for number in range(500)))
        assert most < 10

    def test_a_chain_is_gone_through_again_only_now_and_then(self, root, monkeypatch):
        """All of it is on the way to the member at hand, and none may get its mode yet."""
        calls = []
        before = Tree.set_attributes

        def watched(tree, above=b""):
            calls.append(len(tree._attributes))
            before(tree, above)

        monkeypatch.setattr(Tree, "set_attributes", watched)
        chain = [b"/".join([b"d"] * depth) for depth in range(1, 200)]
        unpacked(root, *(longname(path) + directory(b"d") for path in chain))
        assert sum(calls) < 4 * len(chain)


def test_hard_links_to_a_symlink_that_is_not_made_yet_are_bounded(root, monkeypatch):
    monkeypatch.setattr(unpack, "_LATER_LIMIT", 2000)
    most = 0
    before = Tree._make_later

    def watched(tree, *arguments):
        nonlocal most
        before(tree, *arguments)
        most = max(most, len(tree._symlinks))

    monkeypatch.setattr(Tree, "_make_later", watched)
    unpacked(root, symlink(b"s", b"t"), *(hardlink(b"h%d" % n, b"s") for n in range(300)))
    assert most < 10
    assert os.lstat(b"h299", dir_fd=root).st_ino == os.lstat(b"s", dir_fd=root).st_ino


def steps(call):
    """How many lines of Python a call goes through."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


class TestSteps:
    """Twice as much takes twice as many steps."""

    def spell(self, root, count):
        directories = Directories(root)
        most = 0
        for number in range(count):
            directories.of(b"d/" + b"./" * number, True)
            most = max(most, len(directories.known))
        directories.close()
        assert most <= 256
        return count

    def test_of_one_directory_in_many_spellings(self, root):
        once, twice = steps(lambda: self.spell(root, 300)), steps(lambda: self.spell(root, 600))
        assert twice < 2.5 * once

    def test_of_one_path_with_much_that_means_nothing(self):
        once = steps(lambda: components(b"d" + b"/." * 100 + b"/f"))
        many = steps(lambda: components(b"d" + b"/." * 1600 + b"/f"))
        assert many < 2 * once

    def test_of_a_deep_path(self, root):
        def walk(depth):
            directories = Directories(root)
            directories.of(b"/".join([b"d"] * depth), True)
            directories.of(b"/".join([b"d"] * depth) + b"/.")
            directories.close()

        once, twice = steps(lambda: walk(150)), steps(lambda: walk(300))
        assert twice < 2.5 * once


class TestWriters:
    """Whatever the threads are at, the main thread ends soon."""

    @pytest.fixture
    def stuck(self):
        """Writers whose threads wait in a system call, and what lets them go on."""
        free = threading.Event()

        def create_slowly(directory, name, entry):
            free.wait(30)
            return create(directory, name, entry.mode)

        writers = Writers(2, 1, create_slowly, lambda error, path, size: error)
        yield writers, free
        # Or they would go on in the next test's directory, which gets the same number.
        writers.close()
        free.set()
        for thread in writers._threads:
            thread.join(10)

    def file(self, name, body=(b"x",)):
        return Member(FILE, name, 0o644, None, sum(map(len, body)), b"", body)

    @pytest.mark.parametrize("wait", ["drain", "settle", "write"])
    def test_a_signal_ends_every_wait(self, root, stuck, wait):
        writers, _ = stuck
        writers.write(root, b"one", self.file(b"one"))
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
        began = time.monotonic()
        with pytest.raises(Terminated), interruptible():
            timer.start()
            if wait == "drain":
                writers.drain()
            elif wait == "settle":
                writers.settle(root, b"one")
            else:
                for number in range(100):
                    writers.write(root, b"%d" % number, self.file(b"f"))
        assert 0.2 < time.monotonic() - began < 2
        timer.join()

    def test_closing_waits_for_a_second_and_then_nothing_is_begun(self, root, stuck, tmp_path):
        writers, free = stuck
        for number in range(8):
            writers.write(root, b"%d" % number, self.file(b"f"))
        began = time.monotonic()
        writers.close()
        assert time.monotonic() - began < 1.5
        free.set()
        for thread in writers._threads:
            thread.join(10)
        # Two were in the call that creates a file; their content was no more written.
        assert len(os.listdir(tmp_path)) <= 2
        assert all((tmp_path / name).stat().st_size == 0 for name in os.listdir(tmp_path))

    def test_closing_ends_an_endless_body(self, root):
        writers = Writers(1, 1, lambda at, name, entry: create(at, name, 0o644), None)
        begun = threading.Event()

        def endless():
            while True:
                begun.set()
                yield bytes(1)

        endless_file = Member(FILE, b"f", 0o644, None, 1 << 40, b"", endless())
        writers.write(root, b"f", endless_file)
        assert begun.wait(10)
        writers.close()
        assert not any(thread.is_alive() for thread in writers._threads)

    def test_what_is_put_off_does_not_pile_up(self, root, monkeypatch):
        """A file where there is a directory waits, and keeps its body, until all is written."""
        most = 0
        before = Writers.write

        def watched(writers, *arguments):
            nonlocal most
            most = max(most, len(writers.put_off))
            before(writers, *arguments)

        monkeypatch.setattr(Writers, "write", watched)
        pieces = [member(b"f%d" % number, b"x") for number in range(16)]
        for number in range(400):
            pieces += [directory(b"d%d" % number), member(b"d%d" % number, b"x")]
        with Tree(root, b"/the/target") as tree:
            tree._start(4, 1)
            tree.unpack(tar.members([b"".join(pieces) + END]))
        assert most < 64
        assert os.path.isfile(os.path.join(f"/proc/self/fd/{root}", "d399"))


def test_files_in_the_place_of_others_are_not_taken_for_a_slow_file_system(root):
    tree = unpacked(root, *(member(b"f", b"%d" % number) for number in range(100)))
    assert tree.overlap == 1


@pytest.mark.parametrize("type", [b"\0", b"0", b"7", b"5"])
def test_what_a_header_says_of_a_body_is_taken_as_gnu_tar_takes_it(run, tmp_path, type):
    """Old archives give directories a size and no body, which is not the next member then."""
    wrong, compared = [], 0
    for name, size, body, magic in itertools.product(
        (b"x", b"d/x/"), (0, 512, 513), (False, True), ("ustar", "v7")
    ):
        content = os.urandom(size) if body else b""
        data = b"".join(
            (
                member(b"conda-meta/history", b""),
                member(b"before", b"b"),
                header(name, size=size, type=type, linkname=b"before", mode=0o755, magic=magic),
                content.ljust(-(-len(content) // 512) * 512, b"\0"),
                member(b"after", b"a"),
                END,
            )
        )
        archive, theirs, ours = tmp_path / "a", tmp_path / "theirs", tmp_path / "ours"
        archive.write_bytes(data)
        for place in (theirs, ours):
            shutil.rmtree(place, ignore_errors=True)
        theirs.mkdir()
        tar = [need("tar"), "-xf", archive, "-C", theirs, "--no-same-owner"]
        done = subprocess.run(tar, capture_output=True)
        result = run("-e", archive, "-d", ours)
        case = (name, size, body, magic)
        if result.returncode == 0:
            found = trees.snapshot(ours)
            found = {key: each for key, each in found.items() if not key.startswith(b".poncho")}
            expected = trees.snapshot(theirs)
            fields = ("type", "size", "sha256", "target", "nlink_group")
            different = trees.differences(expected, found, fields=fields)
            if done.returncode == 0 and different:
                wrong.append((case, different))
            compared += 1
        elif result.returncode != 65:
            wrong.append((case, result.stderr))
    assert not wrong
    assert compared >= 12

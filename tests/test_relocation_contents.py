"""What becomes of a file's bytes: as conda-unpack has it, and the same when done again.

The tool's own functions are called, thousands of times; test_relocation has the artifact.
"""

import itertools
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conda_pack.prefixes import replace_prefix

from poncho_package_run.machine.signals import Terminated
from poncho_package_run.relocation import edits
from poncho_package_run.relocation import relocate as relocate_module
from poncho_package_run.relocation.relocate import batches, relocate
from poncho_package_run.telling.errors import ArchiveError, InputOutputError, RelocationError
from support.relocations import WINDOW, Case, check_many, environment, ours, theirs

CASES = int(os.environ.get("PONCHO_TEST_CASES", "2000"))


def test_random_contents_of_any_size_become_what_conda_unpack_makes_of_them():
    found = check_many(CASES, 20)
    assert found["changed"] > CASES // 2


def test_a_text_that_grows_beyond_what_is_read_at_a_time_keeps_its_end():
    # The size that showed it: no multiple of 1 MiB, and 15 MB once the prefix is in it.
    data = b"/p" * 2_500_000
    assert ours(Case(data, b"/prefix", [(b"/p", False)])) == b"/prefix" * 2_500_000


def words(length: int) -> list[bytes]:
    return [
        b"/" + bytes(rest) for n in range(1, length) for rest in itertools.product(b"ab/", repeat=n)
    ]


def test_text_is_relocated_once_however_placeholder_and_prefix_overlap():
    """All texts of up to five bytes, all placeholders and prefixes of up to three and four.

    Those that one pass leaves with a placeholder in them cannot be told from unrelocated ones:
    they are to be seen (``holds``), so that who may come twice can refuse them.
    """
    told = 0
    for placeholder, prefix in itertools.product(words(3), words(4)):
        if placeholder == prefix:
            continue
        asked = [(placeholder, False, 0)]
        for length in range(2, 6):
            for data in map(bytes, itertools.product(b"ab/", repeat=length)):
                if placeholder not in data:
                    continue
                after = edits.replaced(data, asked, prefix)
                expected = theirs(Case(data, prefix, [(placeholder, False)]))
                assert expected in (None, after)
                if edits.holds(after, asked, prefix):
                    told += 1
                else:
                    assert edits.replaced(after, asked, prefix) == after
    assert told


@pytest.mark.parametrize(
    "placeholder, prefix",
    [
        (b"/w/env", b"/w/env2"),
        (b"/w/env", b"/x/w/env"),
        (b"/w/env", b"/w/env/w/env"),
        (b"/w/env", b"/w/env/w/env/w/env3"),
        (b"/w/env2", b"/w/env"),
        (b"/w/env", b"/w"),
        (b"/opt/a", b"/srv/b"),
    ],
)
@pytest.mark.parametrize("size", [0, 3 * WINDOW])
@pytest.mark.parametrize("binary", [False, True])
def test_twice_is_once_where_one_path_is_in_the_other(placeholder, prefix, size, binary):
    if binary and len(prefix) > len(placeholder):
        pytest.skip("no room")
    parts = [placeholder + rest for rest in (b"/lib", b":", b"4", b"/bin ", b"x/w/env ")]
    data = b"\0".join([*parts, b"".join(parts)]) + b"\0" + b"x" * size + placeholder + b"\0"
    case = Case(data, prefix, [(placeholder, binary)])
    after = ours(case)
    assert after != data
    assert ours(case._replace(data=after)) == after
    # Also where conda-unpack came first.
    mode = "binary" if binary else "text"
    by_hand = replace_prefix(data, mode, placeholder.decode(), prefix.decode())
    assert after == by_hand
    assert ours(case._replace(data=by_hand)) == by_hand


def strings(rng: random.Random, placeholder: bytes, binary: bool, size: int) -> bytes:
    """Placeholders, as parts of other words only where padding tells that they are placeholders."""
    rest = [b"", b"/lib", b":", b"/a b", b"\xff"] if binary else [b"=", b":", b"/lib:", b'/a "']
    found = b"\0".join(
        b"".join(rng.choice(rest) + rng.choice((placeholder, b"z")) for _ in range(3))
        + rng.choice(rest)
        for _ in range(12)
    )
    return b"\x7fELF" + found + b"\0" + b"y" * size + b"\0" + placeholder + b"/end\0"


@pytest.mark.parametrize("binary", [False, True])
def test_what_moves_again_is_as_if_it_had_gone_there_at_once(binary):
    """P to A to B, with B shorter and longer than A, and one in the other."""
    rng = random.Random(4)
    placeholder = b"/build/" + b"_placehold" * 8
    for number in range(300):
        first, second = rng.sample([b"/w/e", b"/w/env", b"/w/env2", b"/v/w/env", b"/o" * 30], 2)
        size = (0, 0, 0, WINDOW - 40, 2 * WINDOW)[number % 5]
        data = strings(rng, placeholder, binary, size)
        case = Case(data, first, [(placeholder, binary)])
        moved = Case(ours(case), second, case.records)
        after = ours(moved, first)
        assert after == ours(case._replace(prefix=second)), (first, second)
        assert ours(moved._replace(data=after), first) == after, (first, second)


def test_a_string_without_the_padding_of_a_relocation_is_not_one_that_moves():
    data = b"/w/a/lib\0/w/b/lib\0" + b"\0" * 20
    case = Case(data, b"/w/longer", [(b"/build/_placeholder", True)])
    assert ours(case, b"/w/a") == data
    width = len(b"/build/_placeholder") - len(b"/w/b")
    after = b"/w/a/lib\0/w/longer/lib".ljust(17 + width, b"\0") + data[17 + width :]
    assert ours(case, b"/w/b") == after


def test_only_the_padding_is_used_up_when_a_string_grows_again():
    placeholder, first, second = b"/build/placeholder", b"/w/a", b"/w/a/longer"
    data = b"\0".join([placeholder + b"/lib", b"next", placeholder + b":" + placeholder, b"next\0"])
    case = Case(data, first, [(placeholder, True)])
    moved = ours(Case(ours(case), second, case.records), first)
    assert len(moved) == len(data)
    assert [moved.index(b"next"), moved.rindex(b"next")] == [
        data.index(b"next"),
        data.rindex(b"next"),
    ]
    assert moved == ours(case._replace(prefix=second))


def test_a_path_that_no_string_has_room_for_is_refused_with_both_lengths(tmp_path):
    placeholder, first, second = b"/build/_placeholder", b"/w/a", b"/w/" + b"l" * 30
    env = environment(tmp_path / "e", {"f": (b"\0%s/lib\0" % placeholder, placeholder, "binary")})
    handle = os.open(env, os.O_RDONLY)
    relocate(handle, first)
    before = (env / "f").read_bytes()
    for previous in (first, None):
        if previous is None:
            (env / "f").write_bytes(b"\0%s/lib\0" % placeholder)
            before = (env / "f").read_bytes()
        with pytest.raises(RelocationError, match=rf"has {len(second)} bytes.* f has room for 19"):
            relocate(handle, second, previous)
        assert (env / "f").read_bytes() == before
    os.close(handle)


def test_records_of_one_path_are_gone_through_once_each(tmp_path):
    """Counts steps: twice as many records are twice as many comparisons of records."""

    def steps(count: int) -> int:
        env = environment(tmp_path / str(count), {})
        lines = "".join(f"('f', '/p{n}', 'text'),\n" for n in range(count))
        (env / "bin/conda-unpack").write_text(f"_prefix_records = [\n{lines}]\n")
        (env / "f").write_text("none of them")
        calls = 0

        def count_lines(frame, event, argument):
            nonlocal calls
            calls += event == "line"
            return count_lines

        handle = os.open(env, os.O_RDONLY)
        before = sys.gettrace()
        sys.settrace(count_lines)
        try:
            assert relocate(handle, b"/x") == count
        finally:
            sys.settrace(before)
            os.close(handle)
        return calls

    assert steps(8000) < 2.2 * steps(4000)


def test_16000_placeholders_of_one_path_take_no_second(tmp_path):
    env = environment(tmp_path / "e", {})
    lines = "".join(f"('f', '/p{n}', 'text'),\n" for n in range(16_000))
    (env / "bin/conda-unpack").write_text(f"_prefix_records = [\n{lines}]\n")
    (env / "f").write_text("/p15999/x")
    handle = os.open(env, os.O_RDONLY)
    before = os.times()
    assert relocate(handle, b"/x") == 16_000
    spent = os.times()
    assert (env / "f").read_text() == "/x5999/x"  # by "/p1", which comes before
    assert spent.user + spent.system - before.user - before.system < 1.5
    os.close(handle)


@pytest.mark.parametrize("threads", [1, 4])
def test_records_in_any_number_fit_into_little_memory(tmp_path, threads):
    env = environment(tmp_path / "e", {})
    with open(env / "bin/conda-unpack", "w") as file:
        file.write("_prefix_records = [\n")
        file.writelines(f"('f{n}', '/p{n % 7}', 'text'),\n" for n in range(300_000))
        file.write("]\n")
    (env / "f299999").write_text("/p0/x")
    program = (
        "import os, resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from poncho_package_run.relocation.relocate import relocate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "number = relocate(os.open(sys.argv[2], os.O_RDONLY), b'/x', threads=int(sys.argv[3]))\n"
        "assert number == 300000, number\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    source = Path(__file__).parent.parent / "src"
    command = [sys.executable, "-c", program, source, env, str(threads)]
    grown = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert (env / "f299999").read_text() == "/x/x"
    assert grown < 24 << 10, f"{grown} KiB"


@pytest.mark.parametrize("mode", ["text", "binary"])
@pytest.mark.parametrize("sought", [b"/", b"/p", b"/placeholder"])
def test_placeholders_back_to_back_fit_into_little_memory(tmp_path, mode, sought):
    data = sought * (3_000_000 // len(sought)) + b"\0"
    env = environment(tmp_path / "e", {"f": (data, sought, mode)})
    prefix = b"/x" if mode == "binary" and len(sought) > 1 else b"/" if mode == "binary" else b"/xy"
    program = (
        "import os, resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from poncho_package_run.relocation.relocate import relocate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "relocate(os.open(sys.argv[2], os.O_RDONLY), os.fsencode(sys.argv[3]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    source = Path(__file__).parent.parent / "src"
    command = [sys.executable, "-c", program, source, env, prefix]
    grown = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    expected = data.replace(sought, prefix)
    assert (env / "f").read_bytes() == expected.ljust(len(data) * (mode == "binary"), b"\0")
    assert grown < 16 << 10, f"{grown} KiB"


def test_what_came_before_is_replaced_before_the_placeholder_that_is_part_of_it():
    case = Case(b"/w/env2/lib /w/env2", b"/new", [(b"/w/env", False)])
    assert ours(case, b"/w/env2") == b"/new/lib /new"


def test_records_of_a_path_are_merged_within_a_batch_only(tmp_path):
    env = environment(tmp_path / "e", {})
    lines = [f"('d/f{n}', '/p{n % 3}', 'text'),\n" for n in range(40_000)]
    lines[5] = lines[39_999] = "('twice', '/p', 'text'),\n"
    text = "".join(lines)
    (env / "bin/conda-unpack").write_text(f"_prefix_records = [\n{text}]\n")
    handle = os.open(env, os.O_RDONLY)
    found = list(batches(handle, b"/x", None))
    os.close(handle)
    assert sum(number for number, _ in found) == 40_000
    assert max(len(files) for _, files in found) <= 1 << 14
    assert sum(b"twice" in files for _, files in found) == 2


@pytest.mark.parametrize(
    "path",
    [".poncho_package_run_x", "a/.PONCHO_package_run_x", "a/../b", "./.poncho_package_run_y/f"],
)
def test_a_record_of_a_file_of_the_tool_s_own_is_refused_at_any_depth(tmp_path, path):
    env = environment(tmp_path / "e", {})
    (env / "bin/conda-unpack").write_text(f"_prefix_records = [\n({path!r}, '/p', 'text'),\n]\n")
    handle = os.open(env, os.O_RDONLY)
    with pytest.raises(ArchiveError, match=re.escape(path.rpartition("/")[2])):
        relocate(handle, b"/x")
    os.close(handle)


def slow_text(path: Path) -> bytes:
    """Files of several parts, and more than a thread takes at a time."""
    data = b"/p/" + b"x" * WINDOW + b"/p"
    environment(path, {f"d/{n}": (data, b"/p", "text") for n in range(400)})
    return data


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_signal_is_looked_at_between_files_and_within_one(tmp_path, monkeypatch, threads):
    data = slow_text(tmp_path / "e")
    handle = os.open(tmp_path / "e", os.O_RDONLY)
    looks = iter(range(1_000_000))

    def look() -> None:
        # Of several threads, the main one may get little to do.
        if next(looks) == (50 if threads == 1 else 2):
            raise Terminated(15)

    monkeypatch.setattr(relocate_module, "check", look)
    with pytest.raises(Terminated):
        relocate(handle, b"/prefix", threads=threads)
    os.close(handle)
    # Within a dozen files, for each is looked at several times; the other threads stop as well.
    left = [path for path in (tmp_path / "e/d").iterdir() if path.read_bytes() == data]
    assert 400 - len(left) < (25 if threads == 1 else 400)
    after = [path.stat().st_mtime_ns for path in sorted((tmp_path / "e/d").iterdir())]
    time.sleep(0.2)
    assert after == [path.stat().st_mtime_ns for path in sorted((tmp_path / "e/d").iterdir())]


@pytest.mark.parametrize("threads", [1, 8])
def test_what_fails_in_any_thread_is_told_and_ends_the_others(tmp_path, threads):
    slow_text(tmp_path / "e")
    handle = os.open(tmp_path / "e", os.O_RDONLY)

    def rewritten(path: bytes, handle: int, pieces: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputOutputError, match=r"/prefix/d/.*No space left"):
        relocate(handle, b"/prefix", None, rewritten, threads)
    os.close(handle)


def test_many_threads_edit_a_file_of_many_names_once_at_a_time(tmp_path):
    data = b"/p/" + b"x" * WINDOW + b"/p"
    files = {f"d/{n}": (b"", b"/p", "text") for n in range(200)}
    env = environment(tmp_path / "e", files)
    (env / "d/0").write_bytes(data)
    for number in range(1, 200):
        (env / f"d/{number}").unlink()
        os.link(env / "d/0", env / f"d/{number}")
    handle = os.open(env, os.O_RDONLY)
    assert relocate(handle, b"/x/p/y", threads=8) == 200
    os.close(handle)
    assert (env / "d/199").read_bytes() == data.replace(b"/p", b"/x/p/y")
    assert (env / "d/199").stat().st_nlink == 200

"""Prefix records: what conda-unpack's own code makes of a file, ours makes of it too.

The real environments are compared in test_formats and test_corpus; here are the contents that
no real environment has, and what is refused or done better.
"""

import os
import random
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conda_pack.prefixes import update_prefix

from poncho_package_run.relocation.edits import WINDOW
from support.environments import PLACEHOLDER
from support.messages import refused
from support.tars import directory, environment, hardlink, member, symlink

OTHER = PLACEHOLDER[:-6] + "_other"
"""A second placeholder of the same length."""

LONGER = PLACEHOLDER + "_and_more"
"""One that the first is the beginning of."""

Record = tuple[str, str, str]


def unpacker(records: Sequence[Record]) -> bytes:
    lines = "".join(f"{record!r},\n" for record in records)
    return member(b"bin/conda-unpack", f"\n_prefix_records = [\n{lines}]\n".encode(), mode=0o755)


def pack(path: Path, records: Sequence[Record], *members: bytes) -> Path:
    path.write_bytes(environment(*members, unpacker(records)))
    return path


def contents(rng: random.Random) -> bytes:
    """Placeholders whole and cut short, in strings that end in a NUL or do not."""
    pieces = [text.encode() for text in (PLACEHOLDER, PLACEHOLDER[:-1], OTHER, LONGER)]
    pieces += [b"\0", b"\0\0\0", b"\n", b"/lib", b":", b"/", b" ", b"\xff\xfe", b"x" * 300]
    return b"".join(rng.choices(pieces, k=rng.randrange(40)))


def test_contents_become_what_conda_unpack_makes_of_them(run, tmp_path):
    rng = random.Random(20)
    files, records = {}, []
    for number in range(600):
        name = f"share/{number}"
        files[name] = contents(rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            placeholder = rng.choice((PLACEHOLDER, PLACEHOLDER, OTHER, LONGER))
            records.append((name, placeholder, rng.choice(("text", "binary"))))
    rng.shuffle(records)
    members = [member(name.encode(), data) for name, data in files.items()]
    kept = tmp_path / "kept"
    run("-e", pack(tmp_path / "packed", records, *members), "-d", kept, check=True)

    expected = tmp_path / "expected"
    (expected / "share").mkdir(parents=True)
    for name, data in files.items():
        (expected / name).write_bytes(data)
    for name, placeholder, mode in records:
        update_prefix(str(expected / name), str(kept), placeholder, mode)
    changed = 0
    for name, data in files.items():
        after = (kept / name).read_bytes()
        assert after == (expected / name).read_bytes(), name
        changed += after != data
    assert changed > 300


LARGE = 9 << 20
"""More than is read into memory at once."""


@pytest.mark.parametrize(
    "strings",
    [
        [f"{PLACEHOLDER}/lib:{OTHER}/lib"],
        [f"{OTHER}/lib:{PLACEHOLDER}/lib", f"{PLACEHOLDER}{OTHER}"],
        [f"{LONGER}/a:{PLACEHOLDER}/b", f"{PLACEHOLDER}/" + "long" * 30000, "none"],
    ],
)
def test_a_large_program_becomes_what_conda_unpack_makes_of_it(run, tmp_path, strings):
    data = bytearray(bytes(range(1, 256)) * (LARGE // 255))
    window = 8 * WINDOW
    # In the middle, across the border of two windows, and at the end, where no NUL closes it.
    for number, at in enumerate((5000, window - 150, window + 300_000)):
        string = b"\0" + strings[number % len(strings)].encode() + b"\0"
        data[at : at + len(string)] = string
    data += PLACEHOLDER.encode()
    records = [("bin/large", placeholder, "binary") for placeholder in (PLACEHOLDER, OTHER, LONGER)]
    packed = pack(tmp_path / "packed", records, member(b"bin/large", bytes(data)))
    kept, expected = tmp_path / "kept", tmp_path / "expected"
    run("-e", packed, "-d", kept, check=True)
    expected.write_bytes(data)
    for _, placeholder, mode in records:
        update_prefix(str(expected), str(kept), placeholder, mode)
    assert (kept / "bin" / "large").read_bytes() == expected.read_bytes()
    assert expected.read_bytes() != data


def test_a_large_text_becomes_what_conda_unpack_makes_of_it(run, tmp_path):
    # Once behind 4 MiB of result, bytes came twice.
    data = f"{PLACEHOLDER[:20]}/x\n".encode() * 220_000 + b"end"
    records = [("share/large", PLACEHOLDER[:20], "text")]
    packed = pack(tmp_path / "packed", records, member(b"share/large", data))
    kept = tmp_path / ("kept" + "t" * 60)
    run("-e", packed, "-d", kept, check=True)
    expected = data.replace(PLACEHOLDER[:20].encode(), bytes(kept))
    assert (kept / "share" / "large").read_bytes() == expected


@pytest.mark.parametrize("size", [2 * WINDOW + 1000, LARGE])
@pytest.mark.parametrize("mode", ["text", "binary"])
def test_a_placeholder_is_found_wherever_two_windows_meet(run, tmp_path, mode, size):
    length = len(PLACEHOLDER)
    borders = [0, WINDOW, 2 * WINDOW, size - length - 1]
    places = {at + n for at in borders for n in (-length, -2, -1, 0, 1, 2, 3, length)}
    places = sorted(at for at in places if 0 <= at <= size - length)
    if size == LARGE:
        places = places[::5]
    packed, kept = tmp_path / "packed", tmp_path / "kept"

    def content(at, prefix):
        rest = bytes(size - at - length)
        return bytes(at) + (prefix if mode == "text" else prefix.ljust(length, b"\0")) + rest

    packed = pack(
        packed,
        [(f"lib/{at}", PLACEHOLDER, mode) for at in places],
        *[member(b"lib/%d" % at, content(at, PLACEHOLDER.encode())) for at in places],
    )
    run("-e", packed, "-d", kept, check=True)
    for at in places:
        closed = mode == "text" or at + length < size  # a string that no NUL closes stays
        new = content(at, bytes(kept)) if closed else content(at, PLACEHOLDER.encode())
        assert (kept / "lib" / str(at)).read_bytes() == new, at


def test_every_record_is_checked_before_the_first_file_is_written(run, tmp_path):
    # The first file could be relocated; the second has no room for the path.
    records = [("bin/a", PLACEHOLDER, "text"), ("bin/b", "/short", "binary")]
    members = [member(b"bin/a", PLACEHOLDER.encode()), member(b"bin/b", b"\0/short/lib\0")]
    packed = pack(tmp_path / "packed", records, *members)
    kept = tmp_path / "kept"
    line = refused(run("-e", packed, "-d", kept), 78, str(kept), "bin/b", "6")
    assert f"{len(os.fsencode(kept))} bytes" in line
    assert not kept.exists()
    # With -e DIRECTORY nothing is taken away, and nothing was written.
    subprocess.run(["mkdir", kept], check=True)
    subprocess.run(["tar", "-xf", packed, "-C", kept], check=True)
    refused(run("-e", kept), 78, "bin/b")
    assert (kept / "bin" / "a").read_text() == PLACEHOLDER


@pytest.mark.parametrize("prefix", ["/short", PLACEHOLDER])
def test_a_record_whose_placeholder_is_not_there_does_not_matter(run, tmp_path, prefix):
    packed = pack(tmp_path / "packed", [("bin/b", prefix, "binary")], member(b"bin/b", b"\0none\0"))
    run("-e", packed, "-d", tmp_path / "kept", check=True)
    assert (tmp_path / "kept" / "bin" / "b").read_bytes() == b"\0none\0"


def script(tmp_path: Path, prefix: Path, line: str, rest: str, name: bytes = b"bin/tool") -> Path:
    """An archive with a script below ``bin`` and a python that is the running one."""
    path = name.decode()
    text = f"#!{PLACEHOLDER}/{line}\n{rest}".encode()
    return pack(
        tmp_path / "packed",
        [(path, PLACEHOLDER, "text")],
        member(name, text, mode=0o755),
        symlink(b"bin/python3", os.fsencode(os.path.realpath(sys.executable))),
        symlink(b"bin/sh-of-ours", b"/bin/sh"),
    )


DEEP = "d" * 60 + "/" + "e" * 60


@pytest.mark.parametrize("place", [DEEP, "with a space", "quote's", "ümlaut " + "d" * 120])
@pytest.mark.parametrize(
    "line, rest",
    [
        ("bin/python3", "import sys; print('ran', __file__, sys.argv[1:])\n"),
        ("bin/python3 -I", "import sys; print('ran', __file__, sys.argv[1:])\n"),
        ("bin/sh-of-ours", 'echo ran "$0" "$@"\n'),
    ],
)
def test_a_script_starts_however_long_the_path_is(run, tmp_path, place, line, rest):
    kept = tmp_path / place
    result = run(
        "-e", script(tmp_path, kept, line, rest), "-d", kept, "tool", "one  two", "", check=True
    )
    assert result.stdout.startswith(b"ran"), result
    assert os.fsencode(kept) in result.stdout
    assert b"one  two" in result.stdout


def test_a_shebang_line_that_the_system_can_use_is_left_to_conda_unpack(run, tmp_path):
    kept = tmp_path / "kept"
    run("-e", script(tmp_path, kept, "bin/python3 -E", "pass\n"), "-d", kept, check=True)
    assert (kept / "bin/tool").read_bytes() == b"#!%s/bin/python3 -E\npass\n" % bytes(kept)


def test_a_read_only_file_is_relocated_and_stays_read_only(run, tmp_path):
    read_only = member(b"etc/f", PLACEHOLDER.encode(), mode=0o444)
    packed = pack(tmp_path / "packed", [("etc/f", PLACEHOLDER, "text")], read_only)
    kept = tmp_path / "kept"
    run("-e", packed, "-d", kept, check=True)
    assert (kept / "etc" / "f").read_bytes() == bytes(kept)
    assert stat.S_IMODE((kept / "etc" / "f").stat().st_mode) == 0o444


def test_a_patched_file_has_a_new_time_and_others_the_archive_s(run, tmp_path):
    packed = pack(
        tmp_path / "packed",
        [("lib/a.py", PLACEHOLDER, "text"), ("lib/b.py", PLACEHOLDER, "text")],
        member(b"lib/a.py", PLACEHOLDER.encode(), mtime=1_500_000_000),
        member(b"lib/b.py", b"nothing to patch", mtime=1_500_000_000),
    )
    kept = tmp_path / "kept"
    before = packed.stat().st_mtime
    run("-e", packed, "-d", kept, check=True)
    assert (kept / "lib" / "a.py").stat().st_mtime >= before - 1
    assert (kept / "lib" / "b.py").stat().st_mtime == 1_500_000_000


def test_names_of_one_file_are_relocated_once_and_stay_one(run, tmp_path):
    # The new prefix holds the placeholder, so that a second time would show.
    kept = Path(str(tmp_path) + "/opt/placeholder")
    placeholder = "/opt/placeholder"
    packed = pack(
        tmp_path / "packed",
        [("bin/a", placeholder, "text"), ("bin/b", placeholder, "text")],
        member(b"bin/a", b"at /opt/placeholder/bin"),
        hardlink(b"bin/b", b"bin/a"),
    )
    run("-e", packed, "-d", kept, check=True)
    assert (kept / "bin" / "a").read_bytes() == b"at %s/bin" % bytes(kept)
    assert (kept / "bin" / "a").samefile(kept / "bin" / "b")


@pytest.mark.parametrize("path", ["etc/f", "f"])
@pytest.mark.parametrize("mode", ["text", "binary"])
def test_relocating_twice_changes_nothing(run, tmp_path, path, mode):
    data = b"\0%s/lib\0" % PLACEHOLDER.encode()
    packed = pack(tmp_path / "packed", [(path, PLACEHOLDER, mode)], member(path.encode(), data))
    kept = tmp_path / "kept"
    run("-e", packed, "-d", kept, check=True)
    first = (kept / path).read_bytes()
    assert bytes(kept) in first
    (kept / ".poncho_package_run_expanded").unlink()  # so that it is looked at again
    run("-e", kept, check=True)
    assert (kept / path).read_bytes() == first


RECORDS: dict[str, str] = {
    "a quote": "bin/it's",
    "a double quote": 'bin/say "hi"',
    "both quotes": "bin/'\"",
    "a backslash": "bin/back\\slash",
    "not ASCII": "bin/ümläut",
    "a comma and a bracket": "bin/a, b], (",
    "a newline": "bin/a\nb",
}


# Texts before and behind the placeholder, and what is none of its after a move.
AROUND = [
    b"-isystem%s/include -I%s/include -Wl,-rpath,%s/lib", b'"a\\n%s/lib\\t%s"',
    b"see %s. Or %s, %s.", b"file://%s file:%s .%s",
    b"a=%s:%s;b='%s'", b"[%s](%s)",
]  # fmt: skip
APART = [
    b"%s.bak %s-x %s1 %s_ %s.1 %s.$X %s.*", b"/x%s x%s x-y%s x.%s 1%s ./x%s /-x%s",
    b"/web-application%s /my-environment%s x-idirafter%s", "/home/jos\xe9%s/lib".encode(),
]  # fmt: skip


def test_what_has_moved_names_the_place_where_it_lies(run, tmp_path):
    """Whatever the text around it; but not what only looks like that place."""
    text = b"\n".join(AROUND).replace(b"%s", PLACEHOLDER.encode())
    archive = pack(tmp_path / "a", [("f", PLACEHOLDER, "text")], member(b"f", text))
    one, two = tmp_path / "one", tmp_path / "two"
    run("-e", archive, "-d", one, check=True)
    assert (one / "f").read_bytes() == text.replace(PLACEHOLDER.encode(), bytes(one))
    apart = b"\n".join(APART).replace(b"%s", bytes(one))
    with open(one / "f", "ab") as file:
        file.write(apart)
    one.rename(two)
    run("-e", archive, "-d", two, check=True)
    assert (two / "f").read_bytes() == text.replace(PLACEHOLDER.encode(), bytes(two)) + apart


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_s_path_may_be_spelled_as_python_spells_it(run, tmp_path, name):
    path = RECORDS[name]
    packed = pack(
        tmp_path / "packed",
        [(path, PLACEHOLDER, "text")],
        directory(b"bin/"),
        member(path.encode(), PLACEHOLDER.encode()),
    )
    run("-e", packed, "-d", tmp_path / "kept", check=True)
    assert (tmp_path / "kept" / path).read_bytes() == bytes(tmp_path / "kept")

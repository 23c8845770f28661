"""Random contents, edited by the tool's own functions and by conda-unpack's."""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Optional, Union

from conda_pack.prefixes import replace_prefix

from poncho_package_run.relocation import edits, relocate
from poncho_package_run.relocation.shebang import startable

WINDOW = edits.WINDOW

_LONG = "/home/conda/feedstock_root/build_artifacts/x_1600000000000/_h_env" + "_placehold" * 18

_PLACEHOLDERS = ["/opt/placeholder", _LONG, _LONG + "_2", "/w/env", "/p", _LONG[:60]]
_PREFIXES = ["/x", "/short/prefix", "/w/env2", "/x/w/env", "/tmp/" + "d" * 90, "/a b/" + "c" * 130]


class Case(NamedTuple):
    """A file and what its records ask for."""

    data: bytes
    prefix: bytes
    records: Sequence[tuple[bytes, bool]]


def random_case(rng: random.Random, large: bool) -> Case:
    """A case whose size and placeholders lie about the constants of the module."""
    prefix = rng.choice(_PREFIXES).encode()
    records = [
        (rng.choice(_PLACEHOLDERS).encode(), rng.random() < 0.5)
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    pieces = [placeholder for placeholder, _ in records] * 3
    pieces += [placeholder[:-1] for placeholder, _ in records]
    pieces += [b"\0", b"\0\0\0", b"\n", b"/lib", b":", b"/", b"\xff", b"x" * 300]
    first = [b"", b"", b"#!" + records[0][0] + b"/bin/python3.11 -E\n", b"#!/bin/sh\n"]
    data = rng.choice(first) + b"".join(rng.choices(pieces, k=rng.randrange(30)))
    if large:
        # The parts' borders, and twice as much where a copy was read in parts of 1 MiB.
        about = rng.choice((WINDOW, 2 * WINDOW, 3 * WINDOW, 8 * WINDOW, 9 * WINDOW))
        size = max(len(data), about + rng.randrange(-300, 300))
        content = bytearray(rng.choice((b"\0", b"y", b"ab\0")) * (size // 3 + 1))[:size]
        content[: len(data)] = data
        for _ in range(rng.randrange(8)):
            piece = b"".join(rng.choices(pieces, k=3))
            border = rng.randrange(1 + size // WINDOW) * WINDOW
            at = max(len(data), min(size - len(piece), border + rng.randrange(-300, 300)))
            content[at : at + len(piece)] = piece
        if rng.random() < 0.1:  # nothing but placeholders: what grows most
            # (Closed: for each that is not, conda-unpack reads on to the end.)
            content += records[0][0] * (WINDOW // len(records[0][0]) + 1) + b"\0"
        data = bytes(content)
    return Case(data, prefix, records)


def ours(case: Case, previous: Optional[bytes] = None, wide: Optional[int] = None) -> bytes:
    """What the tool makes of a file, in the file system.

    Args:
        wide: the bytes for which a string has room, if not those of what is replaced.

    Raises:
        edits.TooLong: a placeholder has no room for the prefix.
    """
    asked: dict[edits.Edit, None] = {}
    for placeholder, binary in case.records:
        room = (wide or len(placeholder)) * binary
        found = edits.edits_of(placeholder, binary, room, case.prefix, previous)
        asked.update(dict.fromkeys(found))
    merged = sorted(asked, key=lambda edit: edit[0] != previous)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        directory = os.open(folder, os.O_RDONLY)
        try:
            edits.write(file.fileno(), 0, case.data)
            editor = relocate.Editor(directory, case.prefix, previous)
            handle, size = file.fileno(), len(case.data)
            changed, new = editor.changed(handle, size, merged, lambda: None)
            if changed:
                pieces = editor.edit(handle, size, merged, new, lambda: None)
                after = os.pread(handle, 1 << 30, 0)
                assert pieces != [] or after == case.data
                for offset, piece in pieces or ():
                    assert after[offset : offset + len(piece)] == piece
            assert os.listdir(folder) == []
            return os.pread(handle, 1 << 30, 0)
        finally:
            os.close(directory)


def theirs(case: Case) -> Optional[bytes]:
    """What conda-unpack makes of it; None if it cannot, or if the prefix stands there already."""
    data = case.data
    asked = dict.fromkeys(case.records)
    for placeholder, binary in asked:
        if placeholder in case.prefix and case.prefix in data:
            return None
        with suppress(ValueError):  # negative padding
            mode = "binary" if binary else "text"
            data = replace_prefix(data, mode, placeholder.decode(), case.prefix.decode())
            continue
        return None
    return data


def check(rng: random.Random, large: bool) -> str:
    """Compare one random case; what came of it: "changed", "left" or "refused".

    Raises AssertionError.
    """
    case = random_case(rng, large)
    asked = [(record[0], record[1], len(record[0]) * record[1]) for record in case.records]
    try:
        after = ours(case)
    except edits.TooLong:
        with suppress(ValueError):
            data = case.data
            for placeholder, binary in case.records:
                mode = "binary" if binary else "text"
                data = replace_prefix(data, mode, placeholder.decode(), case.prefix.decode())
            assert any(old in case.prefix for old, _ in case.records), "refused without a need"
        return "refused"
    expected = theirs(case)
    if expected is not None:
        if expected[:2] == b"#!":
            expected = startable(expected, case.prefix)
        assert after == expected, case.records
    if not edits.holds(after, asked, case.prefix):
        assert ours(case._replace(data=after)) == after, case.records
    return "left" if after == case.data else "changed"


def check_many(count: int, seed: Union[int, str]) -> "Counter[str]":
    """Compare ``count`` cases, one in eight of a file that is edited in parts.

    Raises AssertionError, whose message ends with what to give ``random.Random`` to have it again.
    """
    found: Counter[str] = Counter()
    for number in range(count):
        name = f"{seed}.{number}"
        try:
            found[check(random.Random(name), number % 8 == 0)] += 1
        except AssertionError as error:
            raise AssertionError(
                f"{error}: check(random.Random({name!r}), {number % 8 == 0})"
            ) from None
    return found


def environment(path: Path, files: Mapping[str, tuple[bytes, bytes, str]]) -> Path:
    """A tree with these files, by name: content, and the placeholder and mode of its record."""
    for name in ("bin", "conda-meta"):
        (path / name).mkdir(parents=True)
    lines = []
    for name, (content, placeholder, mode) in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
        lines.append(f"({name!r}, {placeholder.decode()!r}, {mode!r}),\n")
    text = "".join(lines)
    (path / "bin" / "conda-unpack").write_text(f"\n_prefix_records = [\n{text}]\n")
    return path

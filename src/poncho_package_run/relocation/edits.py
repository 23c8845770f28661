"""Placeholders in a file's content to the prefix: the rules of conda-unpack.

They are (conda_pack/prefixes.py), record after record: text, every occurrence; binary, from
each occurrence to the next NUL, all occurrences, and NULs to the old length; a string that no
NUL closes stays as it is.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Optional, Tuple

    Edits = List[Tuple[bytes, bool]]
    Piece = Tuple[int, bytes]

# Above this, a file is gone through in parts (contract: 64 MiB for everything).  Programs sooner:
# only the strings that hold a placeholder are written then.
_WHOLE = 4 << 20
_WHOLE_PROGRAM = 1 << 18

# No string of a program is as long.
_STRING = 8 << 20

# Linux took 127 bytes of a shebang line until 5.1, and other systems still do.
_SHEBANG_LIMIT = 127

_PART = 1 << 20

# What is searched at a time: read and gone through while it is in the processor's cache, and in
# memory that is used again (190 MB with 39 placeholders: 0.11 seconds file by file, 0.09 so).
WINDOW = 1 << 17

# What was written in place is told piece by piece, unless it is too much to remember.
_PIECES = 1 << 20


def is_large(data_size: int, edits: "Edits", prefix: bytes) -> bool:
    """Whether a file of so many bytes is to be edited in place, part by part."""
    if data_size * len(prefix) <= _WHOLE_PROGRAM:
        return False  # whatever the placeholders: so are most
    shortest = min(len(placeholder) for placeholder, _ in edits)
    limit = _WHOLE_PROGRAM if all(binary for _, binary in edits) else _WHOLE
    return data_size * max(1, len(prefix) // shortest) > limit


def replaced(data: bytes, edits: "Edits", prefix: bytes) -> bytes:
    """A file's content with its placeholders replaced.

    Args:
        data: the content.
        edits: (placeholder, is it binary) pairs, in the records' order.
        prefix: what replaces the placeholders.
    """
    shebang = data[:2] == b"#!"
    for placeholder, binary in edits:
        if placeholder in data:
            if binary:
                data = _replaced_strings(data, placeholder, prefix)
            else:
                data = data.replace(placeholder, prefix)
    return _startable(data, prefix) if shebang else data


def edit(source: int, output: int, edits: "Edits", prefix: bytes) -> "Optional[List[Piece]]":
    """The same with an open file of any size, in place.

    Args:
        source, output: descriptors of the file, to read and to write it.
        edits, prefix: see ``replaced``.

    Returns:
        What was written at which offset, or None for "most of it".

    Raises:
        OSError: what the system said.
    """
    pieces = None
    for placeholder, binary in edits:
        if binary:
            pieces = _edit_strings(source, output, placeholder, prefix)
        else:
            _edit_text(source, output, placeholder, prefix)
    return pieces if len(edits) == 1 else None


def occurrences(source: int, sought: bytes) -> "Iterator[int]":
    """The offsets of ``sought`` in an open file, read in parts of bounded size."""
    start = 0
    part = WINDOW + len(sought)
    while True:
        data = os.pread(source, part, start)
        at = data.find(sought)
        while at >= 0:
            yield start + at
            at = data.find(sought, at + len(sought))
        if len(data) < part:
            return
        start += len(data) - len(sought) + 1


def _edit_strings(
    source: int, output: int, placeholder: bytes, prefix: bytes
) -> "Optional[List[Piece]]":
    """One binary placeholder: only the strings that hold it are written."""
    pieces: Optional[List[Piece]] = []
    behind = total = 0
    for found in occurrences(source, placeholder):
        if found < behind:
            continue  # in a string that has been replaced as a whole
        string = os.pread(source, 1 << 12, found)
        while b"\0" not in string and len(string) <= _STRING:
            more = os.pread(source, _PART, found + len(string))
            if not more:
                return pieces  # no NUL closes it
            string += more
        end = string.find(b"\0")
        behind = found + (end if end >= 0 else len(string))
        if end < 0:
            continue
        new = string[:end].replace(placeholder, prefix).ljust(end, b"\0")
        write(output, found, new)
        total += len(new)
        if total > _PIECES:
            pieces = None
        elif pieces is not None:
            pieces.append((found, new))
    return pieces


def _edit_text(source: int, output: int, placeholder: bytes, prefix: bytes) -> None:
    """One placeholder in a text."""
    size = os.fstat(source).st_size
    growth = 1 << 16 if os.pread(source, 2, 0) == b"#!" else 0  # room for another shebang line
    longer = len(prefix) - len(placeholder)
    if longer > 0:
        growth += longer * sum(1 for _ in occurrences(source, placeholder))
    # What is written must stay behind what is still to be read: else that goes out of the way.
    begin = size + growth if growth else 0
    if growth:
        for offset in range(0, size, _PART):
            write(output, begin + offset, os.pread(source, _PART, offset))
    part = max(4096, _PART // max(1, len(prefix) // len(placeholder)))
    held, keep, at = b"", len(placeholder) - 1, 0
    for offset in range(begin, begin + size, part):
        pieces = (held + os.pread(source, part, offset)).split(placeholder)
        # The end of a part may be the beginning of a placeholder.
        cut = max(0, len(pieces[-1]) - keep)
        held = pieces[-1][cut:]
        pieces[-1] = pieces[-1][:cut]
        new = prefix.join(pieces)
        if at == 0 and new[:2] == b"#!":
            new = _startable(new, prefix)
        at = write(output, at, new)
    os.ftruncate(output, write(output, at, held))


def _replaced_strings(data: bytes, placeholder: bytes, prefix: bytes) -> bytes:
    pieces = []
    at = 0
    while True:
        found = data.find(placeholder, at)
        closed = data.find(b"\0", found + len(placeholder)) if found >= 0 else -1
        if closed < 0:
            break
        pieces.append(data[at:found])
        string = data[found:closed]
        pieces.append(string.replace(placeholder, prefix).ljust(len(string), b"\0"))
        at = closed
    return b"".join(pieces) + data[at:]


def _startable(data: bytes, prefix: bytes) -> bytes:
    """The same script, with a shebang line that the system can use.

    A line over 127 bytes is cut, and one is split at a space in the prefix.  Then a Python
    script is started by a shell through a line that is a string to Python (what pip and
    distlib write); any other by env, which finds the interpreter in the activated environment.
    """
    line, newline, rest = data.partition(b"\n")
    interpreter = line[2:].lstrip(b" \t")
    if not interpreter.startswith(prefix + b"/") or not (
        len(line) > _SHEBANG_LIMIT or b" " in prefix or b"\t" in prefix
    ):
        return data
    words = interpreter[len(prefix) :].rstrip(b"\r").split(None, 1)
    path, options = prefix + words[0], words[1:]
    name = path.rpartition(b"/")[2]
    if name.startswith((b"python", b"pypy")):
        quoted = b"'" + path.replace(b"'", b"'\"'\"'") + b"'"
        # Both a command of the shell and, between triple quotes, a string of Python.
        start = b" ".join([b"'''exec'", quoted] + options + [b'"$0" "$@"'])
        return b"#!/bin/sh\n" + start + b"\n' '''\n" + rest
    return b" ".join([b"#!/usr/bin/env", name] + options) + newline + rest


def write(output: int, offset: int, data: bytes) -> int:
    """Write all of ``data``; the offset behind it."""
    view = memoryview(data)
    while view:
        count = os.pwrite(output, view, offset)
        view, offset = view[count:], offset + count
    return offset

"""Zip archives made record by record, so that a test can make any of them wrong.

PKWARE's APPNOTE.TXT 6.3, section 4.3.
"""

import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

STORED, DEFLATED = 0, 8
MS_DOS, UNIX = 0, 3
UTF8, DESCRIPTOR_FOLLOWS = 1 << 11, 1 << 3


@dataclass
class Entry:
    """One file of a zip archive. What is None follows from the rest.

    ``mode`` is the whole st_mode, with the type bits; ``host`` the system that made the entry;
    what begins with ``local`` makes the local header differ from the central one.
    """

    name: bytes
    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    method: int = STORED
    flags: int = 0
    host: int = UNIX
    time: int = 0
    date: int = 0x5821
    extra: bytes = b""
    comment: bytes = b""
    crc: Optional[int] = None
    size: Optional[int] = None
    compressed: Optional[int] = None
    body: Optional[bytes] = None
    offset: Optional[int] = None
    local_name: Optional[bytes] = None
    local_extra: Optional[bytes] = None
    local_crc: Optional[int] = None
    local_method: Optional[int] = None
    local_size: Optional[int] = None
    local_compressed: Optional[int] = None
    descriptor: bytes = field(default=b"")


def _body(entry: Entry) -> bytes:
    if entry.body is not None:
        return entry.body
    if entry.method == DEFLATED:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        return deflate.compress(entry.data) + deflate.flush()
    return entry.data


def _first(*values: Optional[int]) -> int:
    return next(value for value in values if value is not None)


def _numbers(entry: Entry) -> tuple[int, int, int]:
    return (
        _first(entry.crc, zlib.crc32(entry.data)),
        _first(entry.compressed, len(_body(entry))),
        _first(entry.size, len(entry.data)),
    )


def local(entry: Entry) -> bytes:
    """The local file header and the body."""
    crc, compressed, size = _numbers(entry)
    name = entry.name if entry.local_name is None else entry.local_name
    extra = entry.extra if entry.local_extra is None else entry.local_extra
    fixed = struct.pack(
        "<4s5H3I2H",
        b"PK\x03\x04",
        20,
        entry.flags,
        _first(entry.local_method, entry.method),
        entry.time,
        entry.date,
        _first(entry.local_crc, crc),
        _first(entry.local_compressed, compressed),
        _first(entry.local_size, size),
        len(name),
        len(extra),
    )
    return fixed + name + extra + _body(entry) + entry.descriptor


def central(entry: Entry, offset: int) -> bytes:
    """The central directory's record of ``entry``."""
    fixed = struct.pack(
        "<4s6H3I5H2I",
        b"PK\x01\x02",
        entry.host << 8 | 20,
        20,
        entry.flags,
        entry.method,
        entry.time,
        entry.date,
        *_numbers(entry),
        len(entry.name),
        len(entry.extra),
        len(entry.comment),
        0,
        0,
        entry.mode << 16,
        _first(entry.offset, offset),
    )
    return fixed + entry.name + entry.extra + entry.comment


def end(count: int, size: int, offset: int, comment: bytes = b"") -> bytes:
    """The end of central directory record."""
    return (
        struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, offset, len(comment))
        + comment
    )


def end64(count: int, size: int, offset: int, at: int) -> bytes:
    """The zip64 end record, and the locator that says it stands ``at`` this offset."""
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    return record + struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)


def extra(number: int, data: bytes) -> bytes:
    """One part of an extra field."""
    return struct.pack("<2H", number, len(data)) + data


def build(
    entries: Sequence[Entry],
    before: bytes = b"",
    between: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    count: Optional[int] = None,
) -> bytes:
    """A whole archive.

    Args:
        before: bytes in front of the first local header (offsets count them).
        between: bytes between the central directory and its end record.
        after: bytes behind the end record.
        count: the number of entries that the end record states.
    """
    data, directory = before, b""
    for entry in entries:
        directory += central(entry, len(data))
        data += local(entry)
    stated = len(entries) if count is None else count
    return data + directory + between + end(stated, len(directory), len(data), comment) + after


def symlink(name: bytes, target: bytes) -> Entry:
    """A symlink as Info-ZIP and conda-pack store it: the target is the content."""
    return Entry(name, target, mode=stat.S_IFLNK | 0o777)


def environment(*entries: Entry) -> bytes:
    """The least that makes an environment, then ``entries``."""
    return build([Entry(b"conda-meta/history"), *entries])

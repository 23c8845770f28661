"""Tar archives made header by header, so that a test can make any of them wrong.

POSIX.1-2017, pax, "ustar Interchange Format"; the GNU dialect as in GNU tar's
manual, "Basic Tar Format".
"""

import tarfile
from collections.abc import Mapping
from io import BytesIO
from typing import Union

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive: two blocks of zeros."""

_MAGIC = {"ustar": b"ustar\x0000", "gnu": b"ustar  \x00", "v7": bytes(8)}

Number = Union[int, bytes]


def number(value: Number, width: int) -> bytes:
    """A numeric field: octal and a NUL, base-256 where octal does not suffice; bytes as given."""
    if isinstance(value, bytes):
        return value.ljust(width, b"\0")[:width]
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    sign = 0x80 if value >= 0 else 0xFF
    return bytes([sign]) + (value % 256 ** (width - 1)).to_bytes(width - 1, "big")


def checksum(block: bytes) -> int:
    """The sum of a header's bytes, its own field counted as spaces."""
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:])


def header(
    name: bytes,
    size: Number = 0,
    type: bytes = b"0",
    mode: Number = 0o644,
    mtime: Number = 0,
    linkname: bytes = b"",
    magic: str = "ustar",
    **overrides: Union[int, bytes],
) -> bytes:
    """One 512-byte header block.

    Numbers may be given as bytes, which go in as they are. ``overrides`` sets the
    fields that seldom matter: uid, gid, uname, gname, devmajor, devminor, prefix,
    checksum, and ``tail`` (the 12 bytes after the prefix).
    """
    fields: dict[str, Union[int, bytes]] = {
        "uid": 0, "gid": 0, "uname": b"root", "gname": b"root",
        "devmajor": 0, "devminor": 0, "prefix": b"", "checksum": b"", "tail": b"",
    }  # fmt: skip
    unknown = overrides.keys() - fields.keys()
    if unknown:
        raise TypeError(f"no such header field: {', '.join(sorted(unknown))}")
    fields.update(overrides)

    def text(value: Union[int, bytes], width: int) -> bytes:
        if not isinstance(value, bytes) or len(value) > width:
            raise ValueError(f"{value!r} does not fit in {width} bytes")
        return value.ljust(width, b"\0")

    block = b"".join(
        (
            text(name, 100),
            number(mode, 8),
            number(fields["uid"], 8),
            number(fields["gid"], 8),
            number(size, 12),
            number(mtime, 12),
            bytes(8),
            text(type, 1),
            text(linkname, 100),
            _MAGIC[magic],
            text(fields["uname"], 32),
            text(fields["gname"], 32),
            number(fields["devmajor"], 8),
            number(fields["devminor"], 8),
            text(fields["prefix"], 155),
            text(fields["tail"], 12),
        )
    )
    own = fields["checksum"]
    if own == b"":
        own = b"%06o\0 " % checksum(block)
    return block[:148] + number(own, 8) + block[156:]


def pad(data: bytes) -> bytes:
    """``data`` filled up with NULs to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes = b"", **fields: Union[int, bytes, str]) -> bytes:
    """A header and its body; ``size`` is that of ``data`` unless given. Fields as in header()."""
    fields.setdefault("size", len(data))
    return header(name, **fields) + pad(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: Union[int, bytes, str]) -> bytes:
    """A directory member."""
    return header(name, type=b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: Union[int, bytes, str]) -> bytes:
    """A symlink member, its target verbatim."""
    return header(name, type=b"2", mode=0o777, linkname=target, **fields)  # type: ignore[arg-type]


def hardlink(name: bytes, target: bytes, **fields: Union[int, bytes, str]) -> bytes:
    """A hard link member; ``target`` is an earlier member's name."""
    return header(name, type=b"1", linkname=target, **fields)  # type: ignore[arg-type]


def pax_record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where LENGTH counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length != rest + len(str(length)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def pax(
    records: Union[bytes, dict[bytes, bytes]], type: bytes = b"x", name: bytes = b"PaxHeader"
) -> bytes:
    """An extended header (``type=b"g"``: a global one); raw bytes go in unchanged."""
    if not isinstance(records, bytes):
        records = b"".join(pax_record(key, value) for key, value in records.items())
    return member(name, records, type=type)


def longname(name: bytes, type: bytes = b"L") -> bytes:
    """GNU's long name for the member that follows (``type=b"K"``: its long link target)."""
    return member(b"././@LongLink", name + b"\0", type=type, magic="gnu", mode=0)


def environment(*members: bytes) -> bytes:
    """A whole archive: the least that makes an environment, then ``members``, then the end."""
    return member(b"conda-meta/history") + b"".join(members) + END


def add(archive: tarfile.TarFile, content: Mapping[str, bytes]) -> None:
    """Add files, all of mode 0755, to an archive that ``tarfile`` writes."""
    for name, data in content.items():
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, BytesIO(data))

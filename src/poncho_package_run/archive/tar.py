"""The tar format: a stream of decoded chunks to members.

ustar and pax are POSIX.1-2017, "pax - portable archive interchange"; the GNU extensions
(long names, base-256 numbers) are those of the GNU tar manual, "Basic Tar Format".
Python's ``tarfile`` is not used: it ends in silence at a damaged header and at a link
member with a body, and costs three times as much a member.
"""

import functools

from ..telling.errors import ArchiveError
from ..telling.messages import printable
from .member import DIRECTORY, FILE, HARDLINK, SYMLINK, Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    adler32: Optional[Callable[[bytes], int]]
try:
    from zlib import adler32
except ImportError:  # an interpreter built without zlib still unpacks a plain tar
    adler32 = None

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FLAT = 1 << 16  # a body up to this size that spans two chunks is joined, to be detached

# Of fields of one kind the same few occur again and again (7 % of 300,000 small files).
_KEPT = 4096

# Where bodies are written from where they lie, one up to this size is detached in its pieces: the
# chunks that hold them wait with it.
_GATHERED = 2 << 20

# An extended header holds names and times; PATH_MAX is 4 KiB.  The limit keeps a header
# that claims gigabytes (gh-151497, gh-155633) from being believed.
_EXTENSION_LIMIT = 1 << 20

# How far ahead a link member's doubtful body is looked over (see _body_follows).
_LOOK_AHEAD = 4 << 20


def recognises(head: bytes) -> bool:
    """Whether the first 512 bytes of a stream are a tar header, or an empty archive's end."""
    return len(head) >= BLOCK and (_is_header(head[:BLOCK]) or head[:BLOCK] == _ZEROS)


def members(
    chunks: "Iterable[bytes]",
    is_environment: "Optional[Callable[[], bool]]" = None,
    address_of: "Optional[Callable[[bytes], int]]" = None,
) -> "Iterator[Member]":
    """Read a tar stream member by member.

    The chunks are used up to their end even behind the end-of-archive marker, so that
    every check the decoder makes is made.

    Args:
        chunks: the decoded stream, in pieces of any size.
        is_environment: asked at the end-of-archive marker; False leaves the rest unread.
        address_of: tells where a chunk lies in memory, if the members are to tell that.

    Yields:
        Member: in archive order.

    Raises:
        ArchiveError: a damaged or truncated header or body, a member type that an
            environment cannot hold, or no end-of-archive marker.
    """
    stream = _Stream(chunks, address_of)
    # Each has at most the five keywords that `_pax` keeps, of a MiB together for each header.
    defaults: Dict[bytes, bytes] = {}
    records: Dict[bytes, bytes] = {}
    longname = longlink = None
    while True:
        block = stream.header()
        if block is None:
            if records or longname is not None or longlink is not None:
                raise ArchiveError(
                    "the archive is damaged: it ends behind an extended header, without the member "
                    "that this describes; pack it again"
                )
            break
        kind = block[156:157]
        size = _octal(block[124:136])
        if size is None:
            size = _number(block[124:136], "size", block)
        if kind in b"xXgLK":
            body = stream.extension(size, block)
            if kind == b"x" or kind == b"X":
                records = _pax(body)
            elif kind == b"g":
                defaults.update(_pax(body))
            elif kind == b"L":
                longname = body.split(b"\0", 1)[0]
            else:
                longlink = body.split(b"\0", 1)[0]
            continue

        path = _name(block) if longname is None else longname
        target = None if longlink is None else longlink
        mtime_ns = None
        extended = bool(records)
        if extended or defaults:
            if defaults:
                records = dict(list(defaults.items()) + list(records.items()))
            for key, value in records.items():
                if key == b"mtime":
                    mtime_ns = _nanoseconds(value)
                elif key == b"path":
                    path = value
                elif key == b"linkpath":
                    target = value
                elif key == b"size":
                    size = _decimal(value, path)
                elif key == _SPARSE:
                    raise ArchiveError(_unsupported(path, "a sparse file"))
            records = {}
        longname = longlink = None
        if mtime_ns is None:
            mtime_ns = _number(block[136:148], "mtime", block) * 1000000000
        mode = _octal(block[100:108])
        if mode is None:
            mode = _number(block[100:108], "mode", block)
        mode &= 0o7777

        if kind in b"0\x007" and path[-1:] == b"/":
            # BSD's and V7's way to say directory; judged by the whole name, never by the
            # 100 bytes in the header (CVE-2025-13462).
            kind = b"5"
        if kind in b"0\x007":
            yield stream.file(path, mode, mtime_ns, size)
        elif kind in b"5D2V":
            # Only GNU's directory of type D always has a body, a list of names.
            if size and (kind == b"D" or stream.body_follows(size, False)):
                stream.skip_body(size)
            if kind == b"2":
                yield Member(SYMLINK, path, mode, mtime_ns, 0, _link(block, target))
            elif kind != b"V":  # a volume label names the archive and makes no file
                yield Member(DIRECTORY, path, mode, mtime_ns)
        elif kind == b"1":
            target = _link(block, target)
            # Where both would do: conda-pack writes pax headers, and the body; in the older
            # dialects GNU tar and bsdtar expect none.
            if size and stream.body_follows(size, extended):
                member = stream.file(path, mode, mtime_ns, size)
                member.kind = HARDLINK
                member.target = target
                yield member
            else:
                yield Member(HARDLINK, path, mode, mtime_ns, 0, target)
        else:
            what = _TYPES.get(kind) or "a member of type {!r}".format(kind.decode("latin-1"))
            raise ArchiveError(_unsupported(path, what))
        stream.finish_body()
    if is_environment is None or is_environment():
        stream.drain()


_TYPES = {b"3": "a character device", b"4": "a block device", b"6": "a fifo", b"S": "a sparse file"}


class _Stream:
    """The chunks as one run of bytes, with a position on a 512-byte grid."""

    def __init__(
        self, chunks: "Iterable[bytes]", address_of: "Optional[Callable[[bytes], int]]" = None
    ) -> None:
        self._chunks = iter(chunks)
        self._address_of = address_of
        self._use(b"")
        self._at = 0  # the next unread byte of _data
        self._before = 0  # bytes of the stream before _data
        self._rest = b""  # a chunk of which the beginning was joined to _data, up to _rest_at
        self._rest_at = 0
        self._owed = 0  # what the consumer has left unread of the current body
        self._padding = 0

    def _use(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._base = 0 if self._address_of is None else self._address_of(data)

    def _advance(self) -> bool:
        """Go on to the next chunk once this one is used up; False at the end."""
        data, at = self._rest, self._rest_at
        self._rest, self._rest_at = b"", 0
        if not data:
            for data in self._chunks:
                if data:
                    break
            else:
                return False
        self._before += len(self._data) - at
        self._use(data)
        self._at = at
        return True

    def _look_ahead(self, count: int) -> bool:
        """Make ``count`` bytes beyond the position available at once; False if there are fewer.

        Only what spans two chunks is joined, not the chunks: nearly every one of them ends amid
        a member, and a gigabyte would be copied once more.
        """
        if self._at == len(self._data):
            self._advance()
        missing = count - (len(self._data) - self._at)
        if missing <= 0:
            return True
        before = self._before + self._at
        pieces = [self._data[self._at :]]
        self._at = len(self._data)
        while missing > 0 and self._advance():
            pieces.append(self._data[self._at : self._at + missing])
            self._at += len(pieces[-1])
            missing -= len(pieces[-1])
        if self._at < len(self._data):
            self._rest, self._rest_at = self._data, self._at
        self._use(b"".join(pieces))
        self._before = before
        self._at = 0
        return missing <= 0

    def header(self) -> "Optional[bytes]":
        """The next header block, its checksum verified; None at the end-of-archive marker."""
        at = self._at
        block = self._data[at : at + BLOCK]
        if len(block) == BLOCK:
            self._at = at + BLOCK
        elif self._look_ahead(BLOCK):
            at = self._at
            block = self._data[at : at + BLOCK]
            self._at = at + BLOCK
        else:
            raise ArchiveError(
                "the archive is truncated: it ends at byte {} of its tar stream without an "
                "end-of-archive marker; copy or pack it again".format(
                    self._before + len(self._data)
                )
            )
        if not _is_header(block):
            # One zero block is taken for the end, as GNU tar does; pax wants two.
            if block == _ZEROS:
                return None
            raise ArchiveError(
                "the archive is damaged: no valid tar header at byte {} of its tar stream; "
                "copy or pack it again".format(self._before + self._at - BLOCK)
            )
        return block

    def extension(self, size: int, block: bytes) -> bytes:
        """The body of an extended header (pax records or a GNU long name)."""
        if not 0 <= size <= _EXTENSION_LIMIT:
            raise ArchiveError(
                "the archive is unsafe or damaged: an extended header of {} bytes (at most {} make "
                "sense); pack it again".format(size, _EXTENSION_LIMIT)
            )
        padded = -(-size // BLOCK) * BLOCK
        if self._at + padded > len(self._data) and not self._look_ahead(padded):
            raise self._truncated(_name(block))
        data = self._data[self._at : self._at + size]
        self._at += padded
        return data

    def file(self, path: bytes, mode: int, mtime_ns: int, size: int) -> Member:
        """A member whose body of ``size`` bytes starts here."""
        if size < 0:
            raise ArchiveError(
                "the archive is damaged: {} claims {} bytes; pack it again".format(
                    printable(path), size
                )
            )
        at = self._at
        end = at + size
        if end <= len(self._data):
            body: Tuple[memoryview, ...] = (self._view[at:end],) if size else ()
            # Mostly the padding is here too, and there is nothing left to pass.
            padding = -size % BLOCK
            if end + padding <= len(self._data):
                self._at = end + padding
            else:
                self._at = end
                self._padding = padding
            addresses = (self._base + at,) if size and self._base else ()
            return Member(FILE, path, mode, mtime_ns, size, b"", body, True, addresses)
        if size <= _FLAT and not self._base:
            if not self._look_ahead(size):
                raise self._truncated(path)
            at = self._at
            self._at = end = at + size
            self._padding = -size % BLOCK
            return Member(FILE, path, mode, mtime_ns, size, b"", (self._view[at:end],))
        self._owed = size
        self._padding = -size % BLOCK
        if size <= _GATHERED and self._base:
            pieces, places = [], []
            try:
                for piece in self._pieces(path):
                    pieces.append(piece)
                    places.append(self._base + self._at - len(piece))
            except Exception as error:
                if size <= _FLAT:
                    raise
                # As of a larger body, told by who uses it: the member itself may be worse.
                return Member(FILE, path, mode, mtime_ns, size, b"", _broken(pieces, error), False)
            body = tuple(pieces)
            return Member(FILE, path, mode, mtime_ns, size, b"", body, True, tuple(places))
        return Member(FILE, path, mode, mtime_ns, size, b"", self._pieces(path), False)

    def _pieces(self, path: bytes) -> "Iterator[memoryview]":
        while self._owed:
            at = self._at
            count = min(len(self._data) - at, self._owed)
            if count:
                self._at = at + count
                self._owed -= count
                yield self._view[at : at + count]
            elif not self._advance():
                raise self._truncated(path)

    def finish_body(self) -> None:
        """Pass what is left of the member's body, and its padding."""
        if self._owed or self._padding:
            count = self._owed + self._padding
            self._owed = self._padding = 0
            self._skip(count)

    def skip_body(self, size: int) -> None:
        """Pass a body that no one wants, and its padding."""
        if size > 0:
            self._skip(-(-size // BLOCK) * BLOCK)

    def _skip(self, count: int) -> None:
        while count:
            step = min(len(self._data) - self._at, count)
            self._at += step
            count -= step
            if count and not self._advance():
                raise self._truncated(b"")

    def body_follows(self, size: int, expected: bool) -> bool:
        """Whether a member that needs no body, but has a size, is followed by one.

        conda-pack writes link members with a body and the size of it; old tars write the
        size without the body.  What follows tells: the next header (or the end) stands
        either behind ``size`` bytes or here.  Where both would do, ``expected`` decides.
        """
        padded = -(-size // BLOCK) * BLOCK
        if size < 0:
            return False
        if padded <= _LOOK_AHEAD:
            self._look_ahead(padded + BLOCK)
            behind = self._header_at(padded)
        else:
            self._look_ahead(BLOCK)
            behind = True
        here = self._header_at(0)
        return behind if expected or not here else False

    def _header_at(self, offset: int) -> bool:
        block = self._data[self._at + offset : self._at + offset + BLOCK]
        return len(block) == BLOCK and (block == _ZEROS or _is_header(block))

    def drain(self) -> None:
        """Use the stream up to its end, for the decoder's checks."""
        for _ in self._chunks:
            pass

    def _truncated(self, path: bytes) -> ArchiveError:
        return ArchiveError(
            "the archive is truncated: it ends inside {}; copy or pack it again".format(
                printable(path) or "a member"
            )
        )


def _broken(pieces: "List[memoryview]", error: Exception) -> "Iterator[memoryview]":
    """A body that could not be read to its end."""
    yield from pieces
    raise error


def _is_header(block: bytes) -> bool:
    """Whether the checksum field of a header block is right.

    It is the sum of all bytes, the field itself taken as spaces.  The low half of Adler-32
    is one plus the sum of all bytes modulo 65,521, and ten times quicker than ``sum`` (0.2
    against 2.6 microseconds, two header blocks a member).
    """
    stated, low = _stated(block[148:156])
    if stated < 0:
        return False
    if adler32 is not None:
        if adler32(block) & 0xFFFF == low:
            return True
    elif stated == sum(block) - sum(block[148:156]) + 256:
        return True
    # Some old tars summed signed bytes.
    plain = block[:148] + b" " * 8 + block[156:]
    return stated == sum(plain) - 256 * sum(byte > 127 for byte in plain)


@functools.lru_cache(_KEPT)
def _stated(field: bytes) -> "Tuple[int, int]":
    """What a checksum field says (-1: nothing), and the low half of such a block's Adler-32."""
    text = field.strip(b" \0")
    try:
        stated = int(text, 8) if text.isdigit() else -1
    except ValueError:
        stated = -1
    if adler32 is None:
        return stated, -1
    return stated, (stated - 256 + (adler32(field) & 0xFFFF)) % 65521


@functools.lru_cache(_KEPT)
def _octal(field: bytes) -> "Optional[int]":
    """A numeric field as most write it, digits and an end; None for any other: see _number."""
    if field[-1] not in b"\0 " or not field[:-1].isdigit():
        return None
    try:
        return int(field[:-1], 8)
    except ValueError:
        return None


def _number(field: bytes, what: str, block: bytes) -> int:
    """A numeric header field: octal digits, or GNU's base-256 with the top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field))  # negative, two's complement
        else:
            value -= 1 << (8 * len(field) - 1)
        if -(1 << 63) <= value < 1 << 63:
            return value
        raise ArchiveError(
            "the archive is damaged: {} has a {} of more than 64 bits; pack it again".format(
                printable(_name(block)), what
            )
        )
    text = field[:-1]
    if not text.isdigit() or field[-1] not in b"\0 ":  # as few write it
        text = field.split(b"\0", 1)[0].strip(b" ")
        if not text:
            return 0
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            pass  # an 8 or a 9: told below, as any other byte that is not octal
    raise ArchiveError(
        "the archive is damaged: {} has {!r} for its {}; pack it again".format(
            printable(_name(block)), text.decode("latin-1"), what
        )
    )


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        # star keeps times behind a prefix of 131 bytes, and says so at the end of the block.
        end = 476 if block[508:512] == b"tar\0" else 500
        return block[345:end].split(b"\0", 1)[0] + b"/" + name
    return name


def _link(block: bytes, target: "Optional[bytes]") -> bytes:
    return block[157:257].split(b"\0", 1)[0] if target is None else target


def _pax(body: bytes) -> "Dict[bytes, bytes]":
    """Extended header records, each ``LENGTH KEY=VALUE\\n`` where LENGTH counts all of it."""
    records = {}
    at, end = 0, len(body)
    if body[2:9] == b" mtime=" and body[:2] == b"%d" % end and body[-1] == 10:
        return {b"mtime": body[9:-1]}  # nearly always, from conda-pack
    while at < end:
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > 0 else b""
        stop = at + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if not (space + 2 < stop <= end and body[stop - 1] == 10 and equals and key):
            raise ArchiveError("the archive is damaged: a malformed pax header; pack it again")
        if b"\0" in value and key in (b"path", b"linkpath"):
            raise ArchiveError(
                "the archive is unsafe: the name {} holds a NUL; pack it again".format(
                    printable(value)
                )
            )
        # Nothing else is kept, nor how often it came: global headers add up.
        if key in _USED:
            records[key] = value
        elif key.startswith(_SPARSE):
            records[_SPARSE] = b""
        at = stop
    return records


_USED = (b"path", b"linkpath", b"size", b"mtime")
_SPARSE = b"GNU.sparse."


def _decimal(text: bytes, path: bytes) -> int:
    if not text.isdigit() or len(text.lstrip(b"0")) > 18:
        raise ArchiveError(
            "the archive is damaged: {} has the size {}; pack it again".format(
                printable(path), printable(text)
            )
        )
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """A pax time: decimal seconds, with a fraction of any length, possibly negative."""
    whole, _, fraction = text.partition(b".")
    digits = whole + fraction.ljust(9, b"0")
    if whole and len(digits) <= 19 and digits.isdigit() and len(fraction) <= 9:
        return int(digits)  # nearly always
    digits = whole[1:] if whole[:1] == b"-" else whole
    if not digits.isdigit() or len(digits) > 18 or not (fraction + b"0").isdigit():
        raise ArchiveError(
            "the archive is damaged: the time {}; pack it again".format(printable(text))
        )
    seconds, nanoseconds = int(whole), int((fraction + b"000000000")[:9])
    if whole[:1] == b"-":
        nanoseconds = -nanoseconds
    return seconds * 1000000000 + nanoseconds


def _unsupported(path: bytes, what: str) -> str:
    return "the archive holds {}, {}: an environment has none; pack it without".format(
        printable(path), what
    )

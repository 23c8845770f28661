"""Zip archives, read through their central directory (PKWARE APPNOTE.TXT 6.3.10).

The directory at the end of the file is what counts; every local header must agree with
it, because archives that show one tree to one reader and another tree to the next live
on that difference.  A name that occurs twice is handed out twice, in order, so that the
last one wins: conda-pack writes one entry for each package that owns a path, and unzip,
bsdtar and zipfile all let the last one stand.
"""

import array
import bisect
import functools
import stat
import struct
import time
import zlib

from ..telling.errors import ArchiveError
from ..telling.messages import printable
from .given import Given
from .inflate import Unsure, inflated
from .member import DIRECTORY, FILE, SYMLINK, Member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

    from ..machine.native import Native
    from .member import Buffer
    from .source import Source

    Header = Tuple[Any, ...]
    Entry = Tuple[Header, bytes, Dict[int, bytes], int, int, int]

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MAGIC, _END64_MAGIC, _LOCATOR64_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_CENTRAL_MAGIC, _LOCAL_MAGIC, _DESCRIPTOR_MAGIC = b"PK\1\2", b"PK\3\4", b"PK\7\x08"

_STORED, _DEFLATED = 0, 8
_METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 20: "zstd"}
_METHODS.update({93: "zstd", 95: "xz", 98: "ppmd", 99: "AES"})
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_PATCHED = 1 << 5
_DESCRIPTOR_FOLLOWS = 1 << 3
_UTF8 = 1 << 11
_SAME_FLAGS = _ENCRYPTED | _PATCHED | _UTF8

_MS_DOS, _UNIX, _MAC_OS = 0, 3, 19
_ZIP64_FIELD, _UNICODE_PATH_FIELD = 0x0001, 0x7075
# Info-ZIP's extended timestamp and "UX", PKWARE's of Unix; and where the time of modification is.
_TIME_FIELDS = ((0x5455, 1), (0x5855, 4), (0x000D, 4))
_YEAR_2038 = 2038 - 1980 << 9  # as a date of MS-DOS
_SATURATED = 0xFFFFFFFF
_PATH_MAX = 4096

_LONGEST_ENTRY = _CENTRAL.size + 3 * 0xFFFF

# Members that may lie in another order than the directory's: of each, eight bytes are kept, and
# forty more while they are sorted.
_UNORDERED = 1 << 18

# Big enough that a member of the usual size costs one read and one inflate.
_INPUT, _OUTPUT = 1 << 18, 1 << 20

# Up to here zlib's CRC-32 keeps the interpreter's lock, which another thread would take meanwhile.
_FEW = 5 << 10


def recognises(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (4 bytes or more) is a zip archive."""
    return head[:4] in (_LOCAL_MAGIC, _END_MAGIC)


def recognises_tail(source: "Source") -> bool:
    """Whether ``source`` ends as a zip archive does: one with a program in front of it."""
    return source.seekable and bool(_ends(_tail(source)))


def members(source: "Source", native: "Optional[Native]" = None) -> "Iterator[Member]":
    """The members of a zip archive, in the order of its central directory.

    Bodies are detached: each reads, inflates and checks its own member whenever and in
    whichever thread it is run, and raises the errors below.  A body of size 0 has checks
    to make too.

    Raises:
        ArchiveError: damaged, truncated, encrypted, ambiguous, of a compression method
            other than deflate, with a member that is no file, directory or symlink, or
            in a pipe.
        InputOutputError: the system could not read it.
    """
    if not source.seekable:
        raise ArchiveError(
            "{} is a zip archive in a pipe, and its directory comes last; "
            "give the path of a file, or pack as tar.gz".format(source.name)
        )
    start, end, count, shift = _locate(source)
    bounds = _bounds(source, start, end, count, shift)
    for entry, limit in _limited(_entries(source, start, end, shift), bounds, start):
        header, name, fields, usize, csize, offset = entry
        _, made_by, _, flags, method, clock, date, crc = header[:8]
        # A name that is not marked as UTF-8 stays as it is: so do unzip and bsdtar.
        path = fields and _unicode_path(fields, name) or name
        if b"\0" in path:
            raise _refused(source, path, "has a NUL byte in its name")
        if flags & (_ENCRYPTED | _PATCHED):
            raise _refused(source, path, "is encrypted or a patch")
        if method != _DEFLATED and method != _STORED:
            raise _refused(
                source,
                path,
                "is compressed by {}, not deflate".format(
                    _METHODS.get(method, "method {}".format(method))
                ),
            )
        host = made_by >> 8
        # unzip and bsdtar take such a backslash for a separator, zipfile does not.
        if host == _MS_DOS and b"\\" in path:
            raise _refused(source, path, "has a backslash in its name and comes from MS-DOS")
        mode = header[15] >> 16 if host in (_UNIX, _MAC_OS) else 0
        member = Member(FILE, path, mode & 0o7777 if mode else 0o644, _dos_time(date, clock), usize)
        sizes = crc, csize, usize
        body = _body(source, name, offset, limit, flags, method, sizes, date, member, native)
        kind = stat.S_IFMT(mode)
        if path.endswith(b"/"):
            kind = kind or stat.S_IFDIR
            if kind != stat.S_IFDIR:
                raise _refused(source, path, "is named as a directory and is none")
        if kind == stat.S_IFREG or not kind:
            member.body = body
            yield member
        elif kind == stat.S_IFDIR:
            if usize:
                raise _refused(source, path, "is a directory with content")
            for _ in body:
                pass
            yield Member(DIRECTORY, path, mode & 0o7777 if mode else 0o755, member.mtime_ns)
        elif kind == stat.S_IFLNK:
            if not 0 < usize < _PATH_MAX:
                raise _refused(source, path, "is a symlink of {} bytes".format(usize))
            target = b"".join(body)
            if b"\0" in target:
                raise _refused(source, path, "is a symlink with a NUL byte in it")
            yield Member(SYMLINK, path, mode & 0o7777, member.mtime_ns, 0, target)
        else:
            raise _refused(source, path, "is a device, fifo or socket")


def _body(
    source: "Source",
    name: bytes,
    offset: int,
    limit: int,
    flags: int,
    method: int,
    sizes: "Tuple[int, int, int]",
    date: int,
    member: Member,
    native: "Optional[Native]",
) -> "Iterator[Buffer]":
    """The content of the member whose local header is at ``offset`` of the file.

    Its header, data and descriptor have to end by ``limit``, where the next member or the
    directory starts: members that share bytes are how small archives become huge.  The
    exact time, which unzip and bsdtar take from that header alone, is set in ``member``.
    """
    crc, csize, usize = sizes
    head = source.pread(max(min(limit - offset, _INPUT), 0), offset)
    if len(head) < _LOCAL.size or head[:4] != _LOCAL_MAGIC:
        raise _damaged(source, name, "has no header where the directory says")
    _, _, own_flags, own_method, _, _, own_crc, own_csize, own_usize, length, extra = (
        _LOCAL.unpack_from(head)
    )
    data = _LOCAL.size + length + extra
    position = offset + data
    end = position + csize
    if end > limit:
        raise _damaged(source, name, "reaches into the next member or the directory")
    if head[_LOCAL.size : _LOCAL.size + length] != name:
        raise _damaged(source, name, "has another name in its own header")
    if own_method != method or (own_flags ^ flags) & _SAME_FLAGS:
        raise _damaged(source, name, "has another method or other flags in its own header")
    if extra:
        exact = _timestamp(head[data - extra : data], date)
        member.mtime_ns = member.mtime_ns if exact is None else exact
    if own_csize == _SATURATED or own_usize == _SATURATED:
        fields = _fields(source, name, head[data - extra : data])
        own_usize, own_csize, _ = _widen(source, name, fields, own_usize, own_csize, 0)
    if own_flags & _DESCRIPTOR_FOLLOWS:
        if own_crc in (0, crc) and own_csize in (0, csize) and own_usize in (0, usize):
            own_crc, own_csize, own_usize = crc, csize, usize
        _check_descriptor(source, name, end, limit, crc, csize, usize)
    if (own_crc, own_csize, own_usize) != (crc, csize, usize):
        raise _damaged(source, name, "has another size or checksum in its own header")

    piece = memoryview(head)[data : data + csize]
    content = _content(source, name, method, sizes, piece, position)
    if native is not None and method == _DEFLATED:
        # zlib's does not let go of the interpreter for so few bytes.
        given = Given(zlib.crc32 if usize <= _FEW else native.crc32)
        try:
            first = piece.tobytes()
            for chunk in inflated(native, source, first, position, end, crc, usize, given):
                source.look()
                yield chunk
            return
        except Unsure:
            pass
        content = given.beyond(content)
    for output in content:
        source.look()
        yield output


def _content(
    source: "Source",
    name: bytes,
    method: int,
    sizes: "Tuple[int, int, int]",
    piece: "Buffer",
    position: int,
) -> "Iterator[Buffer]":
    """The content of a member, whose data begin with ``piece`` at ``position`` of the file."""
    crc, csize, usize = sizes
    end = position + csize
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if method == _DEFLATED else None
    position += len(piece)
    left, checksum = usize, 0
    while True:
        if inflate is None:
            output, piece = piece, b""
            done = position == end
        else:
            # One byte more than is due, so that a lie shows without inflating all of it.
            try:
                output = inflate.decompress(piece, min(left + 1, _OUTPUT))
            except zlib.error as error:
                raise _damaged(source, name, "does not inflate ({})".format(error))
            piece = inflate.unconsumed_tail
            done = inflate.eof
        if output:
            left -= len(output)
            if left < 0:
                raise _damaged(source, name, "is longer than its header says")
            checksum = zlib.crc32(output, checksum)
            yield output
        if done:
            break
        if not piece:
            piece = source.pread(min(_INPUT, end - position), position)
            position += len(piece)
            if not piece and not output:
                raise _damaged(source, name, "is cut short")
    if position != end or piece or (inflate and inflate.unused_data):
        raise _damaged(source, name, "has bytes after its end")
    if left:
        raise _damaged(source, name, "is shorter than its header says")
    if checksum != crc:
        raise _damaged(source, name, "fails its checksum")


def _check_descriptor(
    source: "Source",
    name: bytes,
    end: int,
    limit: int,
    crc: int,
    csize: int,
    usize: int,
) -> None:
    """Compare the data descriptor at ``end``, which has four forms and no sign of which."""
    found = source.pread(min(24, limit - end), end)
    forms = ("<LQQ",) if max(csize, usize) > _SATURATED else ("<3L", "<LQQ")
    for form in forms:
        expected = struct.pack(form, crc, csize, usize)
        if found.startswith((expected, _DESCRIPTOR_MAGIC + expected)):
            return
    raise _damaged(source, name, "has another size or checksum in its data descriptor")


def _tail(source: "Source") -> bytes:
    length = min(source.size or 0, _END.size + 0xFFFF)
    return source.pread(length, (source.size or 0) - length)


def _ends(tail: bytes) -> "List[int]":
    """Where in ``tail`` an end record stands whose comment ends with the file."""
    found = []
    at = tail.rfind(_END_MAGIC)
    while at >= 0:
        comment = at + _END.size
        if comment <= len(tail) and comment + _END.unpack_from(tail, at)[-1] == len(tail):
            found.append(at)
        at = tail.rfind(_END_MAGIC, 0, at + 3)
    return found


def _locate(source: "Source") -> "Tuple[int, int, int, int]":
    """Where the central directory starts and ends, its entries, and the shift of offsets.

    A program in front of the archive shifts every offset in it by its own length, unless
    it was accounted for (``zip -A``).
    """
    tail = _tail(source)
    found = _ends(tail)
    if len(found) != 1:
        if found:
            fault = "has two end records"
        elif _END_MAGIC in tail:
            fault = "has bytes after its end"
        else:
            fault = "is cut short: its directory is missing"
        raise _unusable(source, fault)
    end = (source.size or 0) - len(tail) + found[0]
    record = _END.unpack_from(tail, found[0])
    narrow = record[1:7]
    disk, first_disk, here, count, size, offset = narrow
    locator = source.pread(_LOCATOR64.size, end - _LOCATOR64.size) if end >= 20 else b""
    where = None
    if locator[:4] == _LOCATOR64_MAGIC:
        where = _LOCATOR64.unpack(locator)[2]
        end, wide = _find_end64(source, end - _LOCATOR64.size, where)
        # Readers differ in which of the two records they believe.
        for value, other, saturated in zip(narrow, wide, (0xFFFF,) * 4 + (_SATURATED,) * 2):
            if value != other and value != saturated:
                raise _unusable(source, "has two end records that disagree")
        disk, first_disk, here, count, size, offset = wide
    if disk or first_disk or here != count:
        raise _unusable(source, "is one part of several")
    start = end - size
    shift = start - offset
    if start < 0 or shift < 0 or (where is not None and where + shift != end):
        raise _unusable(source, "has a directory outside the file")
    return start, end, count, shift


def _find_end64(source: "Source", locator: int, where: int) -> "Tuple[int, Tuple[int, ...]]":
    """The zip64 end record before ``locator``: its offset and its six counts and sizes.

    It stands at ``where``, or, with a program in front, just before its locator.
    """
    for at in (where, locator - _END64.size):
        if 0 <= at <= locator - _END64.size:
            record = _END64.unpack(source.pread(_END64.size, at))
            if record[0] == _END64_MAGIC and at + 12 + record[1] == locator:
                return at, record[4:]
    raise _unusable(source, "has no zip64 end record where its locator says")


def _bounds(
    source: "Source",
    start: int,
    end: int,
    count: int,
    shift: int,
) -> "Optional[array.array[int]]":
    """The sorted offsets at which local headers start, and at last the directory's own.

    None if the directory names them in that order, as nearly all do: then nothing is kept.
    """
    found, previous = 0, -1
    ordered = True
    for entry in _entries(source, start, end, shift):
        ordered = ordered and previous < entry[-1]
        previous = entry[-1]
        found += 1
    if found != count:
        raise _unusable(source, "holds {} members and claims {}".format(found, count))
    if ordered:
        return None
    if count > _UNORDERED:
        raise _unusable(source, "has {} members in no order".format(count))
    offsets = array.array("Q", sorted(e[-1] for e in _entries(source, start, end, shift)))
    for index in range(1, len(offsets)):
        if offsets[index - 1] == offsets[index]:
            raise _unusable(source, "has members that overlap")
    offsets.append(start)
    return offsets


def _limited(
    entries: "Iterator[Entry]", bounds: "Optional[array.array[int]]", start: int
) -> "Iterator[Tuple[Entry, int]]":
    """Each entry with the offset at which the next member's bytes, or the directory's, start."""
    waiting = None
    for entry in entries:
        if bounds is not None:
            yield entry, bounds[bisect.bisect_right(bounds, entry[-1])]
            continue
        if waiting is not None:
            yield waiting, entry[-1]
        waiting = entry
    if waiting is not None:
        yield waiting, start


def _entries(source: "Source", start: int, end: int, shift: int) -> "Iterator[Entry]":
    """Of each member: fixed header, name, extra fields, size, compressed size, offset."""
    for header, name, extra in _central(source, start, end):
        csize, usize, offset = header[8], header[9], header[16]
        fields: Dict[int, bytes] = {}
        if extra:
            fields = _fields(source, name, extra)
            usize, csize, offset = _widen(source, name, fields, usize, csize, offset)
        if offset + shift >= start:
            raise _damaged(source, name, "lies outside the archive")
        yield header, name, fields, usize, csize, offset + shift


def _central(source: "Source", position: int, end: int) -> "Iterator[Tuple[Header, bytes, bytes]]":
    """The entries of the directory: fixed header, name, extra field."""
    buffer, at = b"", 0
    while True:
        if len(buffer) - at < _LONGEST_ENTRY and position < end:
            more = source.pread(min(_OUTPUT, end - position), position)
            buffer, at = buffer[at:] + more, 0
            position = position + len(more) if more else end
        if at == len(buffer):
            return
        name_at = at + _CENTRAL.size
        if name_at > len(buffer):
            raise _unusable(source, "has a damaged directory")
        header = _CENTRAL.unpack_from(buffer, at)
        extra_at = name_at + header[10]
        comment_at = extra_at + header[11]
        at = comment_at + header[12]
        if header[0] != _CENTRAL_MAGIC or at > len(buffer):
            raise _unusable(source, "has a damaged directory")
        yield header, buffer[name_at:extra_at], buffer[extra_at:comment_at]


def _fields(source: "Source", name: bytes, extra: bytes) -> "Dict[int, bytes]":
    """The parts of an extra field by their number; fewer than 4 bytes at its end are padding."""
    fields: Dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        at += 4 + length
        twice = number in fields and number in (_ZIP64_FIELD, _UNICODE_PATH_FIELD)
        if twice or at > len(extra):
            raise _damaged(source, name, "has a damaged extra field")
        fields.setdefault(number, extra[at - length : at])
    return fields


def _widen(
    source: "Source",
    name: bytes,
    fields: "Dict[int, bytes]",
    usize: int,
    csize: int,
    offset: int,
) -> "Tuple[int, int, int]":
    """The numbers, those that did not fit in 32 bits taken from the zip64 field."""
    wide = fields.get(_ZIP64_FIELD)
    if wide is None:
        return usize, csize, offset
    numbers = [usize, csize, offset]
    at = 0
    for index, number in enumerate(numbers):
        if number == _SATURATED:
            if at + 8 > len(wide):
                raise _damaged(source, name, "has a damaged zip64 field")
            (numbers[index],) = struct.unpack_from("<Q", wide, at)
            at += 8
    return numbers[0], numbers[1], numbers[2]


def _unicode_path(fields: "Dict[int, bytes]", name: bytes) -> "Optional[bytes]":
    """The name in UTF-8 that Info-ZIP stores beside one in another charset, if it is its."""
    field = fields.get(_UNICODE_PATH_FIELD, b"")
    if field[:1] != b"\1" or field[1:5] != struct.pack("<L", zlib.crc32(name)):
        return None
    return field[5:]


def _timestamp(extra: bytes, date: int) -> "Optional[int]":
    """The modification time in a local header's extra field, in nanoseconds.

    It has 32 bits, which are read without a sign if the date of MS-DOS is as late, as unzip
    does it.  One before 1970 that way is no use.
    """
    times: Dict[int, int] = {}
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        at += 4 + length
        field = extra[at - length : at] if at <= len(extra) else b""
        for known, place in _TIME_FIELDS:
            if number == known and len(field) >= place + 4 and (place == 4 or field[0] & 1):
                (times[number],) = struct.unpack_from("<L", field, place)
    for known, _ in _TIME_FIELDS:
        if known in times:
            seconds = times[known]
            return seconds * 10**9 if seconds < 1 << 31 or date >= _YEAR_2038 else None
    return None


# mktime looks at the system's time zone file on every call: 3 of 8 microseconds a member.
@functools.lru_cache(maxsize=1024)
def _dos_time(date: int, clock: int) -> "Optional[int]":
    """The nanoseconds of a time given to two seconds, in the zone of whoever unpacks it."""
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    hour, minute, second = clock >> 11, clock >> 5 & 63, (clock & 31) * 2
    try:
        return int(time.mktime((year, month, day, hour, minute, second, 0, 0, -1))) * 10**9
    except OverflowError:  # after 2038, where time_t has 32 bits
        return None


def _unusable(source: "Source", fault: str) -> ArchiveError:
    return ArchiveError(
        "the zip archive {} {}; copy it anew or pack it again".format(source.name, fault)
    )


def _damaged(source: "Source", name: bytes, fault: str) -> ArchiveError:
    return ArchiveError(
        "the zip archive {} is damaged: its member {} {}; copy it anew or pack it again".format(
            source.name, printable(name), fault
        )
    )


def _refused(source: "Source", name: bytes, fault: str) -> ArchiveError:
    return ArchiveError(
        "the zip archive {} cannot be used: its member {} {}; pack it again".format(
            source.name, printable(name), fault
        )
    )

"""The prefix records of ``bin/conda-unpack``, read as data; no line of that script is run.

Behind them come those that conda-pack should have made (see ``unrecorded``).

The script is Python, written by conda-pack (its core.py has the template): among its code
stands one list, with a tuple ``(path, placeholder, mode)`` on each line.
"""

import os
import stat

from ..telling.errors import ArchiveError
from ..telling.messages import printable
from ..tree.directories import Directories, components
from ..tree.names import is_ours
from .unrecorded import ABSENT, Unrecorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, Tuple

    from .unrecorded import Record

SCRIPT = b"bin/conda-unpack"

_BEGIN, _END = b"_prefix_records = [\n", b"]"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# A record has two paths: a line is longer only if it is meant to be.  90,000 records fit, and no
# list that grows with the records can outgrow the script.
_LINE_LIMIT = 1 << 16
_SCRIPT_LIMIT = 32 << 20
_PATH_LIMIT = 4096


def records(directory: int) -> "Iterator[Record]":
    """The (path, placeholder, is it binary, bytes that this has room for in a string) of each.

    None without a script of conda-pack.

    Args:
        directory: descriptor of the environment's directory.

    Raises:
        ArchiveError: a record is malformed, or names something outside the environment.
        OSError: nobody can tell what there is.
    """
    directories = Directories(directory)
    try:
        handle = os.open(b"conda-unpack", _OPEN, dir_fd=directories.of(b"bin"))
    except OSError as error:
        if error.errno in ABSENT:
            return  # an environment that needs no relocation
        error.filename = SCRIPT
        raise
    finally:
        directories.close()
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        return
    unrecorded = Unrecorded(directory)
    with open(handle, "rb") as script:
        if status.st_size > _SCRIPT_LIMIT:
            raise malformed("a list of records of more than {} bytes".format(_SCRIPT_LIMIT))
        lines = iter(lambda: script.readline(_LINE_LIMIT), b"")
        if _BEGIN not in lines:
            return
        for line in lines:
            fields = line.split(b"'")
            odd = b"\\" in line or b"\0" in line
            if len(fields) == 7 and not odd and fields[::2] in _PLAIN:
                # All but a few: twenty times quicker than a parse (thousands of records).
                _, path, _, placeholder, _, mode, _ = fields
            elif line.rstrip() == _END:
                yield from unrecorded.records()
                return
            elif line.strip():
                path, placeholder, mode = _parsed(line)
            else:
                continue
            if not 0 < len(placeholder) < _PATH_LIMIT or mode not in (b"text", b"binary"):
                raise malformed("the record of " + printable(path))
            # Most paths are plain, and need no second look; a file of this tool has a leading dot.
            if b"/." in path or b"//" in path or path[:1] in b"./" or path[-1:] == b"/":
                parts = components(path)
                if is_ours(b"/".join(parts)):
                    raise malformed("the record of " + printable(path) + ", a file of this tool,")
                path = b"/".join(parts)
            binary = mode == b"binary"
            unrecorded.passes(path, placeholder, binary)
            yield path, placeholder, binary, len(placeholder) if binary else 0
    raise malformed("a list of records without an end")


_PLAIN = [
    [before, b", ", b", ", after]
    for before in (b"(", b"    (")
    for after in (b"),\n", b")\n", b")")
]


def _parsed(line: bytes) -> "Tuple[bytes, bytes, bytes]":
    import ast  # 5 ms, for names with a quote or a byte that is not ASCII

    try:
        record = ast.literal_eval(line.decode("utf-8").strip().rstrip(","))
        path, placeholder, mode = [field.encode("utf-8", "surrogateescape") for field in record]
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        raise malformed("the record " + printable(line))
    if b"\0" in path + placeholder:
        raise malformed("the record of " + printable(path))
    return path, placeholder, mode


def malformed(what: str) -> ArchiveError:
    """The error that says so of ``what``."""
    message = "the archive is damaged: {} in bin/conda-unpack makes no sense; pack it again"
    return ArchiveError(message.format(what))

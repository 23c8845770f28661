"""Reading archives, one format a file: recognise, decode, give the members."""

from ..errors import ArchiveError
from . import tar
from .member import Member
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

# What a serial decoder may be ahead of the writer: enough to ride out a slow file.
_AHEAD = 8 << 20


def recognise(source: Source) -> str:
    """Tell the format by content, never by name: callers pass names with no suffix.

    Returns:
        "gzip", "bzip2", "xz", "zstd", "tar", "zip" or "squashfs".

    Raises:
        ArchiveError: none of them.
    """
    head = source.peek(tar.BLOCK)
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if tar.recognises(head):
        return "tar"
    from . import bzip2, squashfs, xz, zip, zstd

    for name, module in (("bzip2", bzip2), ("zstd", zstd), ("zip", zip), ("squashfs", squashfs)):
        if module.recognises(head):
            return name
    if xz.recognises(head):
        return "xz"
    if zip.recognises_tail(source):
        return "zip"
    raise ArchiveError(
        "{} is of an unknown format (tar, zip or squashfs is wanted; tar may be packed with gzip, "
        "bzip2, xz or zstd); pack it with conda-pack".format(source.name)
    )


def members(source: Source, kind: str, cores: int) -> "Iterator[Member]":
    """The members of an archive that is no squashfs image.

    Args:
        source: open, at its start.
        kind: what ``recognise`` told.
        cores: how many threads may decode; with one, all is done in the caller's thread.

    Raises:
        ArchiveError: damaged, truncated or unsafe; also while the members are gone through.
        DecoderUnavailable: no decoder for it on this machine.
    """
    if kind == "zip":
        from . import zip

        return zip.members(source)
    if kind == "tar":
        return tar.members(_blocks(source))
    if kind == "gzip":
        from . import gzip

        chunks = gzip.decode(source, cores)
    elif kind == "bzip2":
        from . import bzip2

        chunks = bzip2.decode(source, cores)
    elif kind == "xz":
        from . import xz

        chunks = xz.decode(source, cores)
    else:
        from . import zstd

        chunks = zstd.decode(source)
    if cores > 1:
        from .parallel import prefetch

        chunks = prefetch(chunks, _AHEAD)
    return tar.members(_checked(chunks, source))


def _blocks(source: Source) -> "Iterator[bytes]":
    data = source.read(1 << 20)
    while data:
        yield data
        data = source.read(1 << 20)


def _checked(chunks: "Iterator[bytes]", source: Source) -> "Iterator[bytes]":
    """The same chunks, the first made long enough to tell a tar from something else."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= tar.BLOCK:
            break
    if not tar.recognises(head):
        raise ArchiveError(
            "{} holds no tar archive inside its compression; pack it with conda-pack".format(
                source.name
            )
        )
    yield head
    for chunk in chunks:
        yield chunk

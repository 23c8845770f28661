"""Reading archives, one format a file: recognise, decode, give the members."""

from ..machine import memory
from ..machine.processors import usable
from ..telling.errors import ArchiveError
from . import tar
from .member import Member
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Generator, Iterator, Optional

# What a serial decoder may be ahead of the writer: enough to ride out a slow file.
_AHEAD = 4 << 20


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


class Archive:
    """An open archive of a recognised format; a context manager, and decoded from its start on.

    Args:
        path: the archive.

    Attributes:
        source (Source): its bytes.
        kind (str): what ``recognise`` tells.
        writers (int): how many threads are to write its members (0: the caller's own);
            more than one only for zip, whose members are decoded as they are written.

    Raises:
        ArchiveNotReadable, InputOutputError, ArchiveError: see Source and recognise.
    """

    def __init__(self, path: bytes) -> None:
        self.source = Source(path)
        memory.keep()
        self._cores = usable()
        if self._cores > 2:
            memory.share()
        try:
            self.kind = recognise(self.source)
        except Exception:
            self.source.close()
            raise
        self.writers = self._cores if self.kind == "zip" and self._cores > 1 else 0
        self._ahead: Optional[Generator[bytes, None, None]] = None

    def __enter__(self) -> "Archive":
        if self._cores > 1 and self.kind not in ("zip", "squashfs"):
            from .parallel import prefetch

            # Before the members are asked for: meanwhile the other modules are imported.
            self._ahead = prefetch(self._chunks(), _AHEAD)
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self.source.close()
        # Whoever found the fault knew a member or a stream, not the file that it came from.
        if isinstance(error, ArchiveError) and self.source.name not in str(error):
            error.args = ("{}: {}".format(self.source.name, error),)

    def members(self, progress: "Callable[[int, Optional[int]], None]") -> "Iterator[Member]":
        """The members, in archive order; ``progress`` is told bytes read, and bytes in all.

        Raises:
            ArchiveError: damaged, truncated or unsafe; also while they are gone through.
            DecoderUnavailable: no decoder for it on this machine.
        """
        source = self.source
        if self.kind == "zip":
            from . import zip

            for member in zip.members(source):
                yield member
                progress(source.position, source.size)
            return
        chunks = self._ahead or self._chunks()
        for member in tar.members(_checked(chunks, source, progress)):
            yield member
        # Of these no checksum would tell that two versions were read as one.
        if self.kind in ("tar", "zstd") and source.has_changed():
            raise ArchiveError(
                "{} was written while it was read; try again when it is complete".format(
                    source.name
                )
            )

    def _chunks(self) -> "Iterator[bytes]":
        """The tar stream; decoded in as many threads as there are processors to use."""
        if self.kind == "tar":
            return iter(lambda: self.source.read(1 << 20), b"")
        if self.kind == "gzip":
            from . import gzip

            return gzip.decode(self.source, self._cores)
        if self.kind == "bzip2":
            from . import bzip2

            return bzip2.decode(self.source, self._cores)
        if self.kind == "xz":
            from . import xz

            return xz.decode(self.source, self._cores)
        from . import zstd

        return zstd.decode(self.source)

    def extract(self, directory: bytes, reserved: bytes) -> None:
        """Unpack a squashfs image, which has no members to go through, with its own tool."""
        from . import squashfs

        squashfs.unpack(self.source.path, directory, reserved)


def _checked(
    chunks: "Iterator[bytes]",
    source: Source,
    progress: "Callable[[int, Optional[int]], None]",
) -> "Iterator[bytes]":
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
        progress(source.position, source.size)
        yield chunk

"""Reading archives, one format a file: recognise, decode, give the members."""

import _signal as signal  # type: ignore[import-not-found]  # signal takes 2 ms, for its enums

from ..machine import memory, native
from ..machine.processors import usable
from ..telling.errors import ArchiveError
from . import tar
from .member import Member
from .parallel import Pool, prefetch
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, Optional

# What a serial decoder may be ahead of the writer: enough to ride out a slow file.
_AHEAD = 4 << 20

# Each holds a piece of input and one of output: more would only take memory.
_WRITERS = 8

# As many write faster than anything is decoded.  On two processors a third thread only takes time
# from the one that decodes (a gigabyte of tar.gz: 2.4 seconds without, 2.8 with one).
_NATIVE_WRITERS = 2


def recognise(source: Source) -> str:
    """Tell the format by content, never by name: callers pass names with no suffix.

    Returns:
        "gzip", "bzip2", "xz", "zstd", "tar", "zip" or "squashfs".

    Raises:
        ArchiveError: none of them.
    """
    head = source.peek(tar.BLOCK)
    if not head:
        raise ArchiveError("{} is empty (0 bytes); copy it again".format(source.name))
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
        directory: descriptor of the one that its members will be written to.

    Attributes:
        source (Source): its bytes.
        kind (str): what ``recognise`` tells.
        native (Native or None): the library that helps, if it is worth it and to be had.
        library (str): whether it does, and why not.
        writers (int): how many threads are to write its members (0: the caller's own).
            Those of a zip are decoded as they are written; those of a tar are written by
            several only where the library does it, without the interpreter.

    Raises:
        ArchiveNotReadable, InputOutputError, ArchiveError: see Source and recognise.
    """

    def __init__(self, path: bytes, directory: int) -> None:
        self._pool = Pool(usable())
        self.source = Source(path, self._pool.look)
        memory.keep()
        try:
            self.kind = recognise(self.source)
            small = self.kind == "squashfs"  # for which there is another program
            self.native, self.library = native.load(directory, 0 if small else self.source.size)
            if self._pool.cores > 2 or self.native is not None:
                memory.share()
        except BaseException:
            self.source.close()
            raise
        self.writers = 0
        if self.kind == "zip":
            self.writers = min(self._pool.cores, _WRITERS)
        elif self.native is not None and self._pool.cores > 2:
            self.writers = _NATIVE_WRITERS
        self._chunks: Any = ()
        self._sigchld: Any = None

    def __enter__(self) -> "Archive":
        # Where the caller ignores it, the status of a decoder program would be lost (wait(2)).
        self._sigchld = signal.getsignal(signal.SIGCHLD)
        if self._sigchld == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.kind not in ("zip", "squashfs"):
            try:
                self._chunks = self._decoded()
                if self._pool.cores > 1:
                    # Before the members are asked for: meanwhile the other modules are imported.
                    self._chunks = prefetch(self._pool, self._chunks, _AHEAD)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        ended = self._pool.close()
        if hasattr(self._chunks, "close"):
            self._chunks.close()  # now, not when the error that refers to it is forgotten
        if ended:  # else its number might soon be another file's, and that be read
            self.source.close()
        if self._sigchld == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # Whoever found the fault knew a member or a stream, not the file that it came from.
        if isinstance(error, ArchiveError) and self.source.name not in str(error):
            error.args = ("{}: {}".format(self.source.name, error),)

    def members(
        self,
        progress: "Callable[[int, Optional[int]], None]",
        is_environment: "Optional[Callable[[], bool]]" = None,
    ) -> "Iterator[Member]":
        """The members, in archive order.

        Args:
            progress: told bytes read, and bytes in all.
            is_environment: asked when the last member of a tar has been given, whether they make
                an environment.  If not, what follows, which may be endless, is not read: they
                are of no use, and the caller is to refuse them.  By default all is read.

        Raises:
            ArchiveError: damaged, truncated or unsafe; also while they are gone through.
            DecoderUnavailable: no decoder for it on this machine.
        """
        source = self.source
        if self.kind == "zip":
            from . import zip

            for member in zip.members(source, self.native):
                yield member
                progress(source.position, source.size)
            return
        chunks = _checked(self._chunks, source, progress)
        address_of = self.native.address_of if self.native is not None else None
        for member in tar.members(chunks, is_environment, address_of):
            yield member
        # Of these no checksum would tell that two versions were read as one.
        if self.kind in ("tar", "zstd") and source.has_changed():
            raise ArchiveError(
                "{} was written while it was read; try again when it is complete".format(
                    source.name
                )
            )

    def _decoded(self) -> "Iterator[bytes]":
        """The tar stream; decoded in as many threads as there are processors to use."""
        if self.kind == "tar":
            return iter(lambda: self.source.read(1 << 20), b"")
        if self.kind == "gzip":
            from . import gzip

            return gzip.decode(self.source, self._pool, self.native)
        if self.kind == "bzip2":
            from . import bzip2

            return bzip2.decode(self.source, self._pool)
        if self.kind == "xz":
            from . import xz

            return xz.decode(self.source, self._pool)
        from . import zstd

        return zstd.decode(self.source)

    def extract(self, directory: bytes, reserved: "Callable[[bytes], bool]") -> bytes:
        """Unpack a squashfs image, which has no members to go through (see ``squashfs.unpack``)."""
        from . import squashfs

        return squashfs.unpack(self.source.path, directory, reserved)


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
        source.look()
        progress(source.position, source.size)
        yield chunk

"""What every archive format is read into: a sequence of members."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Optional, Union

    Buffer = Union[bytes, memoryview]

FILE, DIRECTORY, SYMLINK, HARDLINK = "file", "directory", "symlink", "hard link"


class Member:
    """One entry of an archive.

    Attributes:
        kind (str): FILE, DIRECTORY, SYMLINK or HARDLINK.
        path (bytes): the name as the archive gives it, not yet checked.
        mode (int): permission bits, 0 to 0o7777.
        mtime_ns (int or None): modification time in nanoseconds since the epoch.
        size (int): bytes of content: of a file, or of a hard link that carries its
            content along (conda-pack writes those).
        target (bytes): what a symlink or hard link names.
        body (iterable of bytes-like): the content, in order; to be used up before the
            next member is asked for, unless ``detached``.
        detached (bool): the body may be read later and in another thread.
        addresses (tuple of int): where in memory the pieces of a body lie that is a tuple; empty
            where that is not known.
    """

    __slots__ = (
        "kind", "path", "mode", "mtime_ns", "size", "target", "body", "detached", "addresses"
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        path: bytes,
        mode: int,
        mtime_ns: "Optional[int]",
        size: int = 0,
        target: bytes = b"",
        body: "Iterable[Buffer]" = (),
        detached: bool = True,
        addresses: tuple = (),
    ) -> None:
        self.kind = kind
        self.path = path
        self.mode = mode
        self.mtime_ns = mtime_ns
        self.size = size
        self.target = target
        self.body = body
        self.detached = detached
        self.addresses = addresses

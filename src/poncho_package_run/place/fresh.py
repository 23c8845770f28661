"""An environment that was just unpacked, and that nobody else knows of yet: found and relocated."""

import os

from ..relocation.elsewhere import left_behind, packed_for
from ..relocation.relocate import relocate
from ..telling.errors import ArchiveError, RelocationError
from ..telling.failures import located
from ..telling.refusal import check_prefix
from .marker import join, parse, prefix_of
from .prefix import check_python, find_prefix
from .requirements import glibc_wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Tuple

    from ..durability.manifest import Manifest
    from ..telling.report import Report
    from ..tree.unpack import Tree


def relocate_fresh(
    content: int,
    tree: "Tree",
    final: bytes,
    name: str,
    manifest: "Optional[Manifest]",
    report: "Report",
    shorter: "Optional[Callable[[], Optional[bytes]]]" = None,
) -> "Tuple[bytes, bytes]":
    """Relocate what was unpacked to where it will be used.

    Args:
        content: descriptor of the directory that was unpacked to.
        tree: what unpacked it.
        final: the path that the directory will have, absolute and real.
        name: the archive's, for messages.
        shorter: makes a path of fewer bytes that leads to the directory, in case that the
            placeholder of some record has no room for this one.

    Returns:
        The path by which the directory is used, and where below it the environment lies.

    Raises:
        ArchiveError: there is none, or one that can never run, or a malformed one.
        RelocationError: the path is too long.
        CannotCreate, InputOutputError: the system refused.
    """
    root = find_prefix(content)
    if root is None:
        raise ArchiveError(
            "{} holds no environment (no conda-meta, bin/activate or pyvenv.cfg in it or in its "
            "only directory); pack one with conda-pack".format(name)
        )
    check_python(content, root, final)
    prefix = join(final, root)
    check_prefix(prefix)
    # Where a directory that was relocated has been packed, its marker tells to where that was.
    packed = parse(tree.packed_marker) if tree.packed_marker else None
    rewritten: Optional[Callable[[bytes, int, Optional[List[Tuple[int, bytes]]]], None]] = None
    if manifest is not None:
        record = manifest.rewritten

        def rewritten(path: bytes, *change: "object") -> None:
            record(os.path.join(root, path), *change)  # type: ignore[arg-type]

    own = os.open(root or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=content)
    try:
        previous = prefix_of(packed) if packed else None
        try:
            report.records = relocate(own, prefix, previous, rewritten, tree.overlap)
        except RelocationError:
            short = shorter() if shorter is not None and previous is None else None
            if short is None:
                raise
            # What was relocated by then names the other path, which is as good.
            final, long, prefix = short, prefix, join(short, root)
            report.records = relocate(own, prefix, long, rewritten, tree.overlap)
        if report.debug:
            report.left = left_behind(own, prefix)
        elsewhere = packed_for(own)
        wanted = glibc_wanted(own)
    except OSError as error:
        raise located(error, prefix)
    finally:
        os.close(own)
    if elsewhere not in (None, prefix, previous):
        report.warn(
            "{} was packed for {} and lies at {}, which its scripts do not know; unpack it there, "
            "or pack it without --dest-prefix".format(
                name, os.fsdecode(elsewhere or b""), os.fsdecode(prefix)
            )
        )
    if wanted is not None:
        report.warn(wanted)
    return final, root

"""Names that are the tool's own, compared as any file system may compare names."""

from .. import OURS

_STEM = OURS.rstrip(b"_").decode("ascii")
_BELOW = "/" + _STEM


def is_ours(path: bytes) -> bool:
    """Whether a component of a path begins like the names of the tool's own files.

    Some file systems fold case, some normalise (ZFS's formKC takes a full-width letter for a plain
    one), and some leave out characters that show nothing (HFS+, ext4's casefold).  So whatever is
    not ASCII after decomposition and folding counts for nothing: names may be taken for ours that
    no file system takes for ours, but never the other way round.
    """
    try:
        text = path.decode("ascii")
        if "/." not in text and text[:1] != ".":
            return False  # all but a few
        text = text.lower()
    except UnicodeDecodeError:
        from unicodedata import normalize

        text = normalize("NFKD", path.decode("utf-8", "ignore")).casefold()
        text = normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return _BELOW in text or text.startswith(_STEM)

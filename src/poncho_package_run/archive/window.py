"""How large a window a stream may ask for: what was decoded last, and may be referred to."""

# Beside it the tool itself takes up to 64 MiB.  The compressors' own highest levels ask for 64 MiB
# (xz -9) and 128 MiB (zstd --ultra -22).
LARGEST_LOG = 27
LARGEST = 1 << LARGEST_LOG


def too_large(name: str, asked: int) -> str:
    """What to tell of a stream that asks for more; ``asked`` is less where that is not known."""
    window = "{} MiB".format(asked >> 20)
    if asked <= LARGEST:
        window = "more than {} MiB".format(LARGEST >> 20)
    return (
        "its {} stream needs a window of {}, and at most {} MiB are granted; "
        "pack it again with a smaller one".format(name, window, LARGEST >> 20)
    )

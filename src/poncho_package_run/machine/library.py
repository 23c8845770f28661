"""The interpreter's own library, where that will be gone before this process ends."""

import sys

# All that this tool imports, wherever, once something may be removed; a test holds it against the
# sources.
MODULES = (
    "_signal", "_thread", "array", "ast", "bisect", "bz2", "collections", "compression.zstd",
    "ctypes", "encodings.ascii", "encodings.latin_1", "encodings.utf_8",
    "encodings.utf_8_sig", "errno", "fcntl", "functools", "gc", "itertools", "json",
    "linecache", "lzma", "os", "re", "select", "signal", "stat", "struct", "subprocess", "sys",
    "tempfile", "threading", "time", "traceback", "types", "unicodedata", "zlib",
)  # fmt: skip


def stays(directory: bytes) -> None:
    """Import what may still be needed, if the interpreter lies below a directory that goes.

    Args:
        directory: absolute and real.
    """
    if not (sys.executable or "").encode("utf-8", "surrogateescape").startswith(directory + b"/"):
        return
    for name in MODULES:
        try:
            __import__(name)
        except ImportError:
            pass  # not in this version, or left out of this build: it was not there before, either

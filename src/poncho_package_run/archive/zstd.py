"""Zstandard streams (RFC 8878), by whichever decoder this machine has.

In order: the standard library's (Python 3.14), the system's libzstd through ctypes, the
``zstd`` program.  All three check what the frames carry, read to the end of the input,
and take frames in a row and skippable frames.
"""

from ..telling.errors import ArchiveError, DecoderUnavailable, Failure
from .window import LARGEST_LOG, too_large

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Optional

    from .program import Program
    from .source import Source

_INPUT, _OUTPUT = 1 << 17, 1 << 20
_LIBRARIES = ("libzstd.so.1", "libzstd.1.dylib")


def recognises(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (4 bytes or more) is a zstd stream.

    It may start with a skippable frame, as pzstd's do.
    """
    return head[:4] == b"\x28\xb5\x2f\xfd" or (
        head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    )


def decode(source: "Source") -> "Iterator[bytes]":
    """The content of ``source``, to its physical end, in chunks of at most 1 MiB.

    Closing the iterator early frees the decoder and ends the program, if one runs.

    Raises:
        ArchiveError: damaged, truncated, or followed by something else.
        DecoderUnavailable: no decoder here, or no memory for the window that it needs.
        InputOutputError: the system could not read the source, or start the program.
    """
    for decoder in (_standard_library, _system_library, _program):
        chunks = decoder(source)
        if chunks is not None:
            return chunks
    raise DecoderUnavailable(
        "{} is compressed by zstd, and this machine has neither Python 3.14, libzstd nor a "
        "zstd program; install zstd, or pack as tar.gz".format(source.name)
    )


def _standard_library(source: "Source") -> "Optional[Iterator[bytes]]":
    try:
        from compression import zstd  # type: ignore[import-not-found]
    except ImportError:
        return None
    return _by_standard_library(zstd, source)


def _by_standard_library(zstd: "Any", source: "Source") -> "Iterator[bytes]":
    options = {zstd.DecompressionParameter.window_log_max: LARGEST_LOG}
    data = source.read(_INPUT)
    while data:
        frame = zstd.ZstdDecompressor(options=options)
        while not frame.eof:
            if frame.needs_input and not data:
                data = source.read(_INPUT)
                if not data:
                    raise _truncated(source)
            try:
                chunk = frame.decompress(data, _OUTPUT)
            except zstd.ZstdError as error:
                raise _failed(source, str(error))
            data = b""
            if chunk:
                yield chunk
        data = frame.unused_data or source.read(_INPUT)


def _system_library(source: "Source") -> "Optional[Iterator[bytes]]":
    try:
        import ctypes
    except ImportError:
        return None
    if not hasattr(ctypes, "pythonapi"):  # not every Python is CPython
        return None
    # By name alone: ctypes.util.find_library starts ldconfig or a compiler.
    for name in _LIBRARIES:
        try:
            return _by_system_library(ctypes, ctypes.CDLL(name), source)
        except OSError:
            continue
    return None


def _by_system_library(ctypes: "Any", library: "Any", source: "Source") -> "Iterator[bytes]":
    # The library writes into bytes that nobody has seen yet, which the C API allows; to copy each
    # chunk out of a buffer would take a tenth of the whole unpacking.
    new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
    new_bytes.argtypes, new_bytes.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
    address_of = ctypes.pythonapi.PyBytes_AsString
    address_of.argtypes, address_of.restype = (ctypes.py_object,), ctypes.c_void_p

    class Buffer(ctypes.Structure):  # type: ignore[misc]
        """ZSTD_inBuffer and ZSTD_outBuffer: the same three fields."""

        _fields_ = (
            ("data", ctypes.c_void_p),
            ("size", ctypes.c_size_t),
            ("position", ctypes.c_size_t),
        )

    create, decompress = library.ZSTD_createDStream, library.ZSTD_decompressStream
    create.restype = ctypes.c_void_p
    decompress.argtypes = (ctypes.c_void_p, ctypes.POINTER(Buffer), ctypes.POINTER(Buffer))
    decompress.restype = ctypes.c_size_t
    library.ZSTD_freeDStream.argtypes = (ctypes.c_void_p,)
    library.ZSTD_isError.argtypes = library.ZSTD_getErrorName.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    stream = create()
    if not stream:
        raise MemoryError
    try:
        if hasattr(library, "ZSTD_DCtx_setParameter"):  # since 1.4.0
            library.ZSTD_DCtx_setParameter.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
            library.ZSTD_DCtx_setParameter(stream, 100, LARGEST_LOG)  # ZSTD_d_windowLogMax
        chunk = new_bytes(None, _OUTPUT)
        output = Buffer(address_of(chunk), _OUTPUT, 0)
        wanted = 0
        while True:
            data = source.read(_INPUT)
            if not data:
                break
            feed = Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
            full = False
            # 0: a frame is done and handed out; else a full output may not be all there is.
            while feed.position < feed.size or (full and wanted):
                wanted = decompress(stream, output, feed)
                if library.ZSTD_isError(wanted):
                    raise _failed(source, library.ZSTD_getErrorName(wanted).decode())
                full = output.position == _OUTPUT
                if full:
                    yield chunk
                    chunk = new_bytes(None, _OUTPUT)
                    output = Buffer(address_of(chunk), _OUTPUT, 0)
        if wanted:
            raise _truncated(source)
        if output.position:
            yield chunk[: output.position]
    finally:
        library.ZSTD_freeDStream(stream)


def _program(source: "Source") -> "Optional[Iterator[bytes]]":
    from subprocess import PIPE

    from .program import Program

    command = ("zstd", "-dcq", "--memory={}".format(1 << LARGEST_LOG))
    try:
        program = Program(command, source.look, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except OSError:
        return None
    return _by_program(program, source)


def _by_program(program: "Program", source: "Source") -> "Iterator[bytes]":
    yield from program.output(source)
    if program.status:
        complaint = program.complaints.decode("utf-8", "replace").strip()
        raise _failed(source, complaint or "zstd failed")


def _failed(source: "Source", complaint: str) -> Failure:
    if "Allocation error" in complaint:
        return DecoderUnavailable(
            "{} needs a window that is more than this machine's memory ({}); "
            "raise the limit, or pack as tar.gz".format(source.name, complaint)
        )
    if "too much memory" in complaint:
        return ArchiveError(too_large("zstd", _window(source.head)))
    return ArchiveError(
        "the archive {} is damaged: its zstd stream cannot be decoded ({}); "
        "copy it anew or pack it again".format(source.name, complaint.splitlines()[-1])
    )


def _window(head: bytes) -> int:
    """The window that the first frame asks for (RFC 8878, 3.1.1.1); 0 if it does not tell."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    flags = head[4]
    if not flags & 0x20:
        base = 1 << (head[5] >> 3) + 10
        return base + base // 8 * (head[5] & 7)
    # A single segment: the window is the content, whose size follows the dictionary's number.
    at, size = 5 + (0, 1, 2, 4)[flags & 3], 1 << (flags >> 6)
    return int.from_bytes(head[at : at + size], "little")


def _truncated(source: "Source") -> ArchiveError:
    return ArchiveError(
        "the archive {} is cut short: it ends inside a zstd frame; copy it anew".format(source.name)
    )

"""The library of our own, in C (``src/native``): where there is one for this machine, and it works.

It does what Python does too, only quicker.  Whoever is given ``None`` goes Python's way, and what
the library does not take (a damaged stream, a refused system call) is gone through once more in
Python, which has the last word.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Tuple

# To load it takes 7 ms, which so many compressed bytes win back.
_LEAST = 4 << 20

MORE_INPUT, MORE_OUTPUT, DONE = 0, 1, 2

# Of struct ppr_inflate, whose public part is ``Stream``: see native.h, as for all that follows.
_STREAM_BYTES = 12288


_TEXT = b"".join([b"%d bottles of beer on the wall, " % number for number in range(32)])


def load(directory: int, size: "Optional[int]") -> "Tuple[Optional[Native], str]":
    """The library, or None where Python's way is to be gone; and why, for ``--debug``.

    Args:
        directory: descriptor of one whose file system is to run programs.
        size: bytes of the archive; None for a pipe.
    """
    wanted = os.environ.get("PONCHO_PACKAGE_RUN_NATIVE", "")
    if wanted == "no":
        return None, "no, as PONCHO_PACKAGE_RUN_NATIVE says"
    if (size or 0) < _LEAST and wanted != "yes":
        return None, "no, for so small an archive"
    if sys.implementation.name != "cpython" or sys.maxsize >> 32 == 0:
        return None, "no, for this interpreter"
    above, machine = os.path.dirname, os.uname().machine
    try:
        import ctypes

        name = above(above(above(__file__))) + "/native/" + machine + ".so"
        code = __loader__.get_data(name)  # type: ignore[name-defined]
    except Exception as error:  # whatever it is: Python's way is open
        return None, "no, for {}: {}".format(machine, error)
    why = "no"
    for opened in (_unnamed, _in_memory):
        try:
            handle = opened(directory, ctypes)
        except Exception as error:
            why += ", {}: {}".format(opened.__name__.strip("_"), error)
            continue
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(code)
            native = Native(ctypes, ctypes.CDLL("/proc/self/fd/{}".format(handle)))
            if native.works():
                return native, "yes, " + machine
            return None, "no: it does not work on this machine"
        except Exception as error:  # noexec, SELinux, no /proc, no room, no memory
            why += ", {}: {}".format(opened.__name__.strip("_"), error)
        finally:
            os.close(handle)
    return None, why


def _unnamed(directory: int, ctypes: "Any") -> int:
    """A file without a name: where that cannot be had (NFS), one that is removed gets another."""
    return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o700, dir_fd=directory)


def _in_memory(directory: int, ctypes: "Any") -> int:
    """The same in memory; os.memfd_create is there since Python 3.8."""
    handle: int = ctypes.CDLL(None).memfd_create(b"poncho_package_run", 1)  # MFD_CLOEXEC
    if handle < 0:
        raise OSError
    return handle


class Native:
    """The library's functions, and what they need of the interpreter.

    Attributes:
        write: ``ppr_write(pieces, count, names, stop, error)``.
    """

    def __init__(self, ctypes: "Any", library: "Any") -> None:
        from struct import Struct

        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t

        class Stream(ctypes.Structure):  # type: ignore[misc]
            _fields_ = (
                ("input", pointer),
                ("input_left", ctypes.c_uint64),
                ("output", pointer),
                ("output_size", ctypes.c_uint64),
                ("output_at", ctypes.c_uint64),
                ("history", pointer),
                ("history_size", ctypes.c_uint64),
                ("bits_left", ctypes.c_uint64),
                ("at_block", ctypes.c_uint64),
                ("private", ctypes.c_uint8 * (_STREAM_BYTES - 9 * 8)),
            )

        self.stream = Stream
        self.integer = ctypes.c_int32
        self.piece = Struct("<iIQQqq")  # struct ppr_piece
        # Who makes bytes may write into them until somebody else sees them (the C API).
        self.new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
        self.new_bytes.argtypes, self.new_bytes.restype = (pointer, size), ctypes.py_object
        self.address_of = ctypes.pythonapi.PyBytes_AsString
        self.address_of.argtypes, self.address_of.restype = (ctypes.py_object,), pointer
        self.inflate = library.ppr_inflate
        self.inflate.argtypes = (ctypes.POINTER(Stream),)
        self.inflate.restype = ctypes.c_int32
        self._crc32 = library.ppr_crc32
        self._crc32.argtypes = (ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint64)
        self._crc32.restype = ctypes.c_uint32
        self.write = library.ppr_write
        self.write.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p) + (
            ctypes.POINTER(ctypes.c_int32),
        ) * 2
        self.write.restype = ctypes.c_uint64

    def crc32(self, data: bytes, crc: int = 0) -> int:
        """As ``zlib.crc32``."""
        checksum: int = self._crc32(crc, data, len(data))
        return checksum

    def works(self) -> bool:
        """Whether it does to some hundred bytes what zlib does."""
        import zlib

        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(_TEXT) + packer.flush()
        stream, text = self.stream(), self.new_bytes(None, len(_TEXT))
        stream.input, stream.input_left = self.address_of(packed), len(packed)
        stream.output, stream.output_size = self.address_of(text), len(text)
        return (
            self.inflate(stream) == DONE
            and text == _TEXT
            and stream.input_left == 0
            and self.crc32(text) == zlib.crc32(text)
        )

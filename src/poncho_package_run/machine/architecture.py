"""What kind of machine a program is for, and whether this one runs it."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, Optional, Tuple

# So much of a program's beginning is looked at.
HEAD = 64

# e_machine of ELF (elf.h), with the byte order where there are two, to what uname(1) says.
_ELF = {
    (3, "little"): "i686",
    (21, "big"): "ppc64",
    (21, "little"): "ppc64le",
    (22, "big"): "s390x",
    (40, "little"): "armv7l",
    (62, "little"): "x86_64",
    (183, "little"): "aarch64",
    (243, "little"): "riscv64",
    (258, "little"): "loongarch64",
}

# The same of others, and what a machine runs beside its own: 64-bit kernels run programs of 32
# bits, and may tell them (setarch) that they are such a kernel.
_SPELLED = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "armv6l": "armv7l",
    "armv8l": "armv7l",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
}
_RUNS = {
    "x86_64": ("x86_64", "i686"),
    "i686": ("x86_64", "i686"),
    "aarch64": ("aarch64", "armv7l"),
    "armv7l": ("aarch64", "armv7l"),
}

# Mach-O (mach-o/loader.h): its magic number, and the type of processor.
_MACH = {0x01000007: "x86_64", 0x0100000C: "aarch64"}

_HANDLERS = "/proc/sys/fs/binfmt_misc"


def foreign(head: bytes, handlers: str = _HANDLERS) -> "Optional[Tuple[str, str]]":
    """What a program is for and what this machine is; None if it runs here, or nobody can tell.

    Args:
        head: the first bytes of the program, HEAD of them if there are.
        handlers: where the system tells for which programs it has an interpreter (Linux' own
            Documentation/admin-guide/binfmt-misc.rst).
    """
    theirs = _kind(head)
    if theirs is None:
        return None
    system, _, _, _, machine = os.uname()
    system = "macOS" if system == "Darwin" else system
    machine = _SPELLED.get(machine, machine)
    if system == theirs[0] == "macOS":
        return None  # with Rosetta one runs the other's
    known, runs = machine in _ELF.values(), _RUNS.get(machine, (machine,))
    # ELF does not tell of which system it is.
    if theirs[0] == "Linux" and system != "macOS" and (not known or theirs[1] in runs):
        return None
    if _is_handled(head, handlers):
        return None
    return "{} on {}".format(*theirs), "{} on {}".format(system, machine)


def glibc() -> "Optional[str]":
    """The version of this machine's GNU C library, such as "2.36"; None if it has another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        return None
    return version if name == "glibc" else None


def _kind(head: bytes) -> "Optional[Tuple[str, str]]":
    if head[:4] == b"\x7fELF" and len(head) >= 20:
        order = "big" if head[5] == 2 else "little"
        number = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
        return "Linux", _ELF.get((number, order), "another processor (ELF {})".format(number))
    if head[:4] == b"\xcf\xfa\xed\xfe":
        number = int.from_bytes(head[4:8], "little")
        return "macOS", _MACH.get(number, "another processor")
    if head[:4] == b"\xca\xfe\xba\xbe":
        return "macOS", "several processors"
    if head[:2] == b"MZ":
        return "Windows", "another processor"
    return None


def _is_handled(head: bytes, folder: str) -> bool:
    """Whether the system has an interpreter for programs that begin like this (qemu, Wine)."""
    return any(_fits(head, path) for path in _handlers(folder))


def _handlers(folder: str) -> "Iterator[str]":
    try:
        names = os.listdir(folder)
    except OSError:
        return  # not Linux, or not mounted
    for name in names:
        if name not in ("register", "status"):
            yield folder + "/" + name


def _fits(head: bytes, path: str) -> bool:
    try:
        with open(path, "rb") as file:
            lines = file.read(4096).split(b"\n")
        words = dict(line.split(b" ", 1) for line in lines if b" " in line)
        if lines[0] != b"enabled" or b"magic" not in words:
            return False
        magic = bytes.fromhex(words[b"magic"].decode("ascii"))
        mask = bytes.fromhex(words.get(b"mask", b"ff" * len(magic)).decode("ascii"))
        offset = int(words.get(b"offset", b"0"))
    except (OSError, ValueError):
        return False
    found = head[offset : offset + len(magic)]
    return len(found) == len(magic) and all(
        (one ^ other) & bits == 0 for one, other, bits in zip(found, magic, mask)
    )

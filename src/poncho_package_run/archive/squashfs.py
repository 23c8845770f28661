"""Squashfs images, through the ``unsquashfs`` of squashfs-tools.

Python has no reader for them and mounting needs privileges, so this is the one format that
another program unpacks.  What it makes is put right before anyone else can reach it.
"""

import os
import re
import signal
import stat
import subprocess
import tempfile

from .. import MARKER
from ..machine.processors import usable
from ..machine.signals import check
from ..telling.errors import ArchiveError, DecoderUnavailable, Failure, InputOutputError
from ..telling.failures import failure, unsafe
from ..telling.messages import printable
from .program import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator, List, Optional, Tuple

# A line of ``unsquashfs -lln`` for a block or character device, a fifo or a socket.  A name
# with a newline in it may look like one, which costs it a refusal; none can hide one.
_SPECIAL = re.compile(rb"[bcps](?:[-r][-w][-xsStT]){3} .*?squashfs-root/(.*)")

# MiB of each of its two queues, 256 if it is not told.
_QUEUE = "16"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# The last bytes of a failing program's output, which say why.
_COMPLAINTS = 1 << 12

# Of a line that lists a member: its path may be long, its symlink's target has 64 KiB at most.
_LINE = 1 << 20


def recognises(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (4 bytes or more) is a squashfs image."""
    return head[:4] in (b"hsqs", b"sqsh")


def unpack(source_path: bytes, target: bytes, reserved: "Callable[[bytes], bool]") -> bytes:
    """Unpack an image into ``target``, an existing directory.

    After an error the remains are the caller's to remove.

    Args:
        reserved: whether a name is one of this tool's own; what has such a name in the image,
            at any depth, is skipped.

    Returns:
        The beginning of a completion marker that was skipped; b"" if there was none at the top.

    Raises:
        ArchiveError: damaged, truncated, with a device, fifo or socket, or in a pipe.
        DecoderUnavailable: no unsquashfs, or one that lacks the image's compression.
        InputOutputError: the disk is full, or the system could not read or write.
    """
    image = os.path.abspath(source_path)  # so that no name is an option
    if stat.S_ISFIFO(os.stat(image).st_mode):
        raise ArchiveError(
            "{} is a squashfs image in a pipe, where unsquashfs cannot look things up; "
            "give the path of a file, or pack as tar.gz".format(printable(source_path))
        )
    for line in _listing(image):
        special = _SPECIAL.match(line)
        if special:
            raise ArchiveError(unsafe(special.group(1), "is a device, fifo or socket"))
    try:
        # Nobody else gets in here to meet setuid files and foreign owners.  The name is new
        # each time, so that an unsquashfs which outlives us spoils nothing of the next run's.
        private = tempfile.mkdtemp(dir=target)
        root = os.path.join(private, b"root")
        queues = ("-da", _QUEUE, "-fr", _QUEUE, "-p", str(usable()))
        for _ in _unsquashfs(image, "-n", "-no-xattrs", *queues, "-d", root):
            pass
        marker = _packed_marker(root)
        _normalise(root, reserved)
        for name in os.listdir(root):
            _move(os.path.join(root, name), os.path.join(target, name))
        os.rmdir(root)
        os.rmdir(private)
        return marker
    except OSError as error:
        raise failure(error, error.filename or target, -1)


def _packed_marker(root: bytes) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(os.path.join(root, MARKER), flags)
    except OSError:
        return b""
    try:
        return os.read(handle, 1 << 16) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)


def _listing(image: bytes) -> "Iterator[bytes]":
    rest = b""
    for chunk in _unsquashfs(image, "-lln"):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LINE:
            raise _failed(image, "a name of more than {} bytes".format(_LINE))
        yield from lines
    yield rest


def _unsquashfs(image: bytes, *arguments: "str | bytes") -> "Iterator[bytes]":
    """A listing, in chunks, or else the complaints of unsquashfs; it never outlives this.

    Raises:
        ArchiveError, DecoderUnavailable, InputOutputError: by what its complaints say.
    """
    listing = arguments == ("-lln",)
    try:
        program = Program(
            ("unsquashfs", *arguments, image),
            check,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if listing else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if listing else subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C"),  # its complaints are read below
            preexec_fn=_ended_with_parent(),
        )
    except OSError as error:
        raise DecoderUnavailable(
            "{} is a squashfs image, and unsquashfs cannot be run here ({}); "
            "install squashfs-tools, or pack as tar.gz".format(printable(image), error.strerror)
        )
    last = b""
    output = program.output()
    try:
        for chunk in output:
            last = (last + chunk)[-_COMPLAINTS:]
            yield chunk
    finally:
        output.close()  # now, not when the error that refers to it is forgotten
    # Up to version 4.4 the status is 0 although files could not be written.
    if program.status or (last and not listing):
        raise _failed(image, last.decode("utf-8", "replace"))


def _ended_with_parent() -> "Optional[Callable[[], object]]":
    """For the child, before it runs unsquashfs: to be killed when we are (Linux)."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _failed(image: bytes, complaints: str) -> Failure:
    name, why = printable(image), printable(complaints.strip().split("\n")[-1].encode())
    if "unsupported by this version" in complaints:
        return DecoderUnavailable(
            "the unsquashfs of this machine lacks the compression of {}; install a newer "
            "squashfs-tools, or pack as tar.gz".format(name)
        )
    for reason in ("No space left on device", "Disk quota exceeded", "Input/output error"):
        if reason in complaints:
            return InputOutputError(
                "unpacking {} failed: {}; make room or choose another directory".format(
                    name, reason
                )
            )
    return ArchiveError(
        "the archive {} is damaged: unsquashfs says {!r}; copy it anew or pack it again".format(
            name, why
        )
    )


def _normalise(root: bytes, reserved: "Callable[[bytes], bool]") -> None:
    """Give the tree the owner and the modes of any other that this user unpacks.

    What has a reserved name is removed.  ``root`` itself stays closed to others.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    owner = (os.geteuid(), os.getegid())
    # The directories from the root to where we are: each with its mode (None: it is removed), the
    # names of the directories in it, with a slash behind each, and how far these are done.  That is
    # a few bytes for each directory in one of these, as in the image.
    way: List[Tuple[bytes, Optional[int], bytearray, int]] = []
    path, wanted = root, 0o700  # type: bytes, Optional[int]
    while True:
        os.chmod(path, 0o700)
        names = bytearray()
        with os.scandir(path) as entries:
            for entry in entries:
                check()
                status = entry.stat(follow_symlinks=False)
                if owner[0] == 0 and (status.st_uid, status.st_gid) != owner:
                    os.chown(entry.path, *owner, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    names += entry.name + b"/"
                elif wanted is None or reserved(entry.name):
                    os.unlink(entry.path)
                elif not stat.S_ISLNK(status.st_mode):
                    mode = stat.S_IMODE(status.st_mode)
                    if mode != mode & 0o777 & ~umask:
                        os.chmod(entry.path, mode & 0o777 & ~umask)
        way.append((path, wanted, names, 0))
        # Children before their parents, which may be closed to us.
        while way:
            path, wanted, names, at = way.pop()
            if at < len(names):
                break
            if wanted is None:
                os.rmdir(path)
            else:
                os.chmod(path, wanted)
        else:
            return
        end = names.index(b"/", at)
        way.append((path, wanted, names, end + 1))
        name = bytes(names[at:end])
        path = os.path.join(path, name)
        if wanted is None or reserved(name):
            wanted = None
        else:
            wanted = stat.S_IMODE(os.lstat(path).st_mode) & 0o777 & ~umask


def _move(path: bytes, to: bytes) -> None:
    """Rename, also a directory that may not be written to, whose ``..`` would change."""
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    closed = mode & 0o200 == 0 and os.path.isdir(path) and not os.path.islink(path)
    if closed:
        os.chmod(path, mode | 0o200)
    os.rename(path, to)
    if closed:
        os.chmod(to, mode)

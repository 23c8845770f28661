"""What can go wrong, and the exit status of each (a leaf: imports nothing of ours).

The numbers are those of sysexits.h, and 126 and 127 of the POSIX shells.  Each
class carries its status and its meaning, so that the table in ``--help`` and the
mapping in ``cli`` are one thing and cannot disagree.
"""


class Failure(Exception):
    """A failure of the tool itself, told to the user in one line.

    The message starts in lower case, names the path or the limit, and ends with
    what to do about it.

    Attributes:
        full (bool): it is room that was missing.
        gone (bool): what was to be read or written is not there any more.
        elsewhere (bool): another directory may do.
    """

    full = gone = elsewhere = False
    status = 70
    meaning = "a defect of this tool"


class UsageError(Failure):
    status = 64
    meaning = "the command line is wrong"


class ArchiveError(Failure):
    status = 65
    meaning = (
        "the archive is damaged, truncated, unsafe, of an unknown format, or holds no environment"
    )


class ArchiveNotReadable(Failure):
    status = 66
    meaning = "the archive does not exist or cannot be read"


class DecoderUnavailable(Failure):
    status = 69
    meaning = "a decoder that this archive needs is not to be had on this machine"


class CannotCreate(Failure):
    elsewhere = True
    status = 73
    meaning = "DIR or the temporary directory cannot be created or written"


class InputOutputError(Failure):
    status = 74
    meaning = "reading or writing failed: disk full, quota, I/O error"


class LockTimeout(Failure):
    status = 75
    meaning = "the lock was not to be had in time (a retry may succeed)"


class RelocationError(Failure):
    elsewhere = True
    status = 78
    meaning = (
        "the environment cannot be relocated to this path (path too long for a binary placeholder)"
    )


class CommandNotExecutable(Failure):
    status = 126
    meaning = "the command cannot be executed"


class CommandNotFound(Failure):
    status = 127
    meaning = "the command was not found"

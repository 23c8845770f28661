"""Run a command inside a packed Conda environment, on any machine with a Python 3.6 or later."""

__version__ = "1.0.0"

# What has a name that begins like this is the tool's own, wherever it lies.
OURS = b".poncho_package_run_"

# The completion marker, by the name that the CCTools script gives it: what either has unpacked
# is complete to both.
MARKER = b".poncho_package_run_expanded"

# What a directory that was unpacked to holds, by name and sum (see ``durability``).
MANIFEST = b".poncho_package_run_manifest"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Options:
    """What the command line says (here, because this file is read at every start anyway).

    Attributes:
        environment (bytes): path of the archive, or of a directory that holds an environment.
        unpack_to (bytes or None): where to keep the environment; None for a temporary one.
        wait_for_lock (float): seconds.
        cache (bytes or None): where environments are kept that have no directory of their own.
        cache_limit (str): what that may hold, as it was given; empty for whatever there is.
        list_cache (bool): show it.
        debug (bool): tell the phases.
        command (list of bytes): argv of the command; may be empty.
        copy (place.copy.Copy or None): of the environment, if this interpreter is of one.
    """

    environment = b""
    unpack_to = None  # type: bytes | None
    wait_for_lock = 300.0
    cache = None  # type: bytes | None
    cache_limit = ""
    list_cache = False
    debug = False
    command = []  # type: list
    copy: "Any" = None

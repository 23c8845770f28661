"""``--list-cache``: what is in a cache, as a table for people."""

import os
import time

from ..place.completion import locate
from ..telling import help, usage
from ..telling.errors import InputOutputError, UsageError
from ..telling.messages import printable
from . import room

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_ROW = "{:>6}  {:>7}  {:<16}  {:<7}  {}\n"


def show(path: "Optional[bytes]", limit: str) -> int:
    """Write the table to stdout: the environment that was used last comes first.

    Returns:
        The exit status.

    Raises:
        UsageError: no cache is named.
        InputOutputError: it cannot be read, or stdout does not take the table.
    """
    if path is None:
        raise UsageError("--list-cache needs --cache, or PONCHO_PACKAGE_RUN_CACHE; see --help")
    cache = locate(path)
    try:
        found = list(room.found(cache)) if os.path.lexists(cache) else []
    except OSError as error:
        raise InputOutputError(
            "cannot read the cache {}: {}; check --cache".format(
                os.fsdecode(cache), error.strerror
            )
        )
    text = _ROW.format("SIZE", "FILES", "LAST USE", "STATE", "ARCHIVE, AND WHERE IT LIES")
    for each in sorted(found, key=lambda each: each.used, reverse=True):
        try:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        except (OverflowError, ValueError, OSError):
            used = "?"  # a time that no calendar has
        name = printable(os.path.basename(each.archive)) or "?"
        where = "{}  {}".format(name, printable(each.path))
        text += _ROW.format(room.shown(each.size), each.files, used, _state(each), where)
    size = room.shown(sum(each.size for each in found))
    of = " of {}".format(room.shown(usage.size(limit))) if limit else ""
    count = "{} environment{}".format(len(found), "" if len(found) == 1 else "s")
    text += "{}{} in {}, in {}\n".format(size, of, count, printable(cache))
    help.show(text)
    return 0


def _state(entry: room.Entry) -> str:
    if not entry.is_whole:
        return "damaged"
    try:
        handles = entry.seize()
    except OSError:
        return "?"
    for handle in handles:
        os.close(handle)
    return "free" if handles else "in use"



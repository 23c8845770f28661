"""Claims: exclusive creation that names its holder, and its race-free inheritance.

A claim is a symbolic link whose text is a holder.  symlink(2) fails if the name exists, on
NFS too, and makes the name and its content in one step: a claim is never seen half written,
and a process killed anywhere leaves none or one that names it.

Removing a dead process's claim is where such locks fail: two processes read that D is dead,
the first removes D's claim and makes its own, and the second removes that.  So nobody touches
what D left behind but D's successor, who is whoever holds the claim ``STEM.ID-OF-D``.

* Only one process at a time is D's successor, because that is a claim itself.  A successor
  S that dies has a successor of its own, who removes S's claim and no other.
* The successor looks again once it is that.  If D is still named, nobody else can change
  this: D is dead, and no other is D's successor.  If not, another successor was faster.
* A name never comes back: the dead make no claims.  A late successor finds nothing to do.

``is_dead`` must be true only of the dead; it may be false for ever, and then a claim stays.
A process is named once, so one process must not take the same claim twice at a time.
"""

import os

from ..machine import holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


def take(path: bytes, stem: bytes = b"") -> bool:
    """Make the claim ``path``; False if it is, or may be, that of another living process.

    ``stem`` starts the names of the successors' claims (``path`` itself by default).
    Raises OSError, from symlink(2), where the directory cannot be written.
    """
    stem = stem or path
    mine = holder.encode(holder.describe())
    while True:
        try:
            os.symlink(mine, path)
            return True
        except FileExistsError:
            text = _text(path)
        if text == mine:
            return True  # an NFS server that hears a request twice says "exists" to the second
        if text is None:
            continue
        theirs = holder.parse(text)
        if theirs is None or not holder.is_dead(theirs):
            return False
        right = successor(stem, theirs)
        # The two are the same only where the system tells no start times.
        if right == path or not take(right, stem):
            return False
        try:
            if _text(path) == text:
                give_up(path)
        finally:
            give_up(right)


def successor(stem: bytes, dead: "Optional[holder.Holder]") -> bytes:
    """The claim whose holder alone may change what ``dead`` left (None: an unnamed process)."""
    if dead is None:
        return stem + b".unnamed"
    boot = (dead.get("boot_id") or "")[:8]
    return stem + ".{}-{}-{}".format(dead["pid"], dead.get("start_time"), boot).encode("ascii")


def owner(path: bytes) -> "Optional[holder.Holder]":
    """Who holds the claim, for a message."""
    return holder.parse(_text(path) or b"")


def give_up(path: bytes) -> None:
    """Remove a claim, of this process or of one that it succeeds."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # whoever took over the directory has emptied it


def _text(path: bytes) -> "Optional[bytes]":
    """What the claim says; None if there is none, b"" if something else has its name."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError:
        return b""

"""An archive to the directory of its environment, for all who do not name one.

In: CACHE, its limit, and an archive.  Out: ``CACHE/<sha256>``, a DIR like any other, with a lease.
Promised: a changed archive is another environment; nothing that is leased is removed; a run that
finds no room goes on as if there were no cache.

In CACHE lie the environments, by the sum of their archive's bytes;
``.poncho_package_run_memo``, with a symlink for each archive that was seen, from what stat(2) says
of it to its sum; ``.poncho_package_run_uses``, with a directory for each environment, in which a
file for each boot of a machine and device is dated with its last use there; and private
directories of runs at work.
"""

__all__ = ["cache", "listing", "memo"]

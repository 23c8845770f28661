"""Members to a tree on disk, and its removal.

In: members, and an open directory.  Out: files.  Promised: nothing outside that directory is made,
changed, linked to or read, whatever the members are called, and nothing is written through a link.
"""

__all__ = ["directories", "names", "removal", "unpack"]

"""Prefix records to rewritten files.

In: an environment's directory, and the path that it is to name.  Out: files that name it.
Promised: all records are checked before the first write; no line of the environment is run.
"""

__all__ = ["elsewhere", "in_use", "relocate"]

"""Prefix records to rewritten files.

In: an environment's directory, and the path that it is to name.  Out: files that name it.
Promised: an error leaves no file of an environment in use changed, and doing it again changes
nothing; memory is bounded, whatever the records and files; no line of the environment is run.
"""

__all__ = ["elsewhere", "in_use", "relocate"]

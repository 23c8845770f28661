"""The command in its environment.

In: a prefix, and argv.  Out: the process that the command is, or its exit status.  Promised: the
caller's variables, descriptors, signals and status, but for what activation sets.
"""

__all__ = ["activate", "again", "execute", "supervise"]

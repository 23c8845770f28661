"""The machine and this process: processors, memory, threads, signals, who we are.

In: nothing.  Out: what the system says of itself.  Promised: a leaf, which knows no other room.
"""

__all__ = [
    "architecture",
    "library",
    "memory",
    "native",
    "process",
    "processors",
    "signals",
    "threads",
]

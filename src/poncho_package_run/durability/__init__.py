"""What is looked at once a machine was down.

In: the files as they are unpacked, and later the directory.  Out: what of it was lost.
Promised: an environment that lost something is never taken for whole.
"""

__all__ = ["manifest", "survey"]

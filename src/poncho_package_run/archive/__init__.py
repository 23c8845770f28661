"""An archive's bytes to its members.

In: a path.  Out: ``Member`` after ``Member``, in the archive's order.  Promised: the format is
told by content; every check that the stream carries has been made when the last member has been
given; memory is bounded whatever the archive holds; other threads decode ahead.
"""

__all__ = ["archive", "member"]

"""Where an environment lies.

In: the path of a directory.  Out: a complete environment there.  Promised: absent or complete, for
every observer, after a kill at any instant.
"""

"""Where an environment lies.

In: the path of a directory, or none.  Out: a complete environment there, or in a temporary
directory.  Promised: absent or complete, for every observer, after a kill at any instant, whatever
locks there are and on however many machines; nothing that another may be working in is removed.

P is a private directory of one run (see ``private``), DIR what the caller named.  Every instant at
which a run may be killed, stopped, or overtaken by another, and what the next run sees then:

=====================================  ===========================================================
the run stands between                 the next run sees
=====================================  ===========================================================
mkdir(DIR) and mkdir(P)                DIR empty, its lock free: it unpacks
mkdir(P) and its owner's file          the same, and an empty P of which nobody can prove whose it
                                       is: it stays (a directory of mode 0700, the one remainder)
the owner's file and the publication   the same, and P, which is removed once its owner is proved
                                       dead, or a day after it was touched; never waited for
rename(P/env, DIR): publication        DIR complete; P as before
  inside: rename(P/env, PUBLISHING)    PUBLISHING, complete: it renames its entries up, as any
                                       number of others may at the same time; the marker last
  inside: two of these renames up      the same
relocating DIR where it lies           no marker, or one with another prefix: it does the same
                                       again, which changes what was changed already no more
rename(P/marker, DIR/marker)           DIR complete
damage: rename(DIR, P/env)             no DIR: it unpacks
  inside: two renames into P/env       the old marker, which goes last: damaged as before
removing P: rename(env, env.removed)   P; the owner's file goes last, so that the next one goes on
=====================================  ===========================================================

*Two at once*, because locks are refused, lost, or end at the node: both fill a P of their own.  The
second rename finds DIR taken (ENOTEMPTY): who comes second removes his P and uses DIR.
*Stopped and continued*: his P is as he left it, and then as above.  If he was silent for a day on
a machine that nobody here can ask, ``env`` is gone and his rename fails (ENOENT).
*Another pid namespace, another node*: neither life nor death can be proved of the owner, and
nothing has to be: only the removal of his P waits for a day.
"""

__all__ = [
    "completion", "copy", "fresh", "lock", "marker", "plain", "private", "publication", "settle",
]  # fmt: skip

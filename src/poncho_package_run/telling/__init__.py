"""What the user hears: errors and their statuses, messages, progress, help.

In: what happened.  Out: lines on stderr, an exit status.  Promised: one line each, which
names the path and ends with what to do.
"""

__all__ = ["errors", "explain", "failures", "help", "messages", "refusal", "report"]

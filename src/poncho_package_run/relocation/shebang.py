r"""First lines of scripts that the system can use, however long the prefix is.

A line over 127 bytes is cut, and one is split at a space in the prefix.  Then a Python script
is started by a shell, through a line that is a comment to Python: it begins with a form feed,
which is white space to Python, and to the shell a part of the word ``\f#``.  There is no command
of that name, and the shell goes on to the next one.  So Python sees comments only: a docstring
stays one, ``from __future__`` may follow, and a coding line (PEP 263) keeps its place on line 2.
(What pip and distlib write, a string of Python that is a command as well, allows neither.)

It names the interpreter by its path, so that the script also starts, and with that interpreter,
where the environment is not activated.  Scripts of other languages are started by env, which
finds the interpreter in the activated environment: in ``bin``, which is all of it on PATH.  For
one elsewhere (``libexec/ash``) the line stays where Linux takes it, since 5.1 up to 255 bytes.

Tried with dash, bash (as sh too) and busybox, Python 2.7, 3.6 to 3.13 and PyPy.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

# Linux took 127 bytes of a shebang line until 5.1, and other systems still do.
_LIMIT = 127
_LIMIT_NOW = 255  # of Linux since 5.1

_SHELL = b"#!/bin/sh\n"

# Where there is no coding line: for the path may hold "coding:", which line 2 must not.
_SECOND = b"# A path too long for the first line: a comment to Python, a command to sh.\n"

_BEGIN, _END = b"\f# 2>/dev/null; exec '", b'\' "$0" "$@"\n'
_QUOTE, _QUOTED = b"'", b"'\\''"


def startable(data: bytes, prefix: bytes, previous: "Optional[bytes]" = None) -> bytes:
    """The same script, with a beginning that the system can use.

    Args:
        data: a relocated script, or the beginning of one.
        prefix: what it was relocated to.
        previous: what it may have been relocated to before, where it got such a beginning.
    """
    line, _, rest = data.partition(b"\n")
    started = _started(data)
    if started is not None:
        path, options, rest = started
        if previous is not None and path.startswith(previous + b"/"):
            path = prefix + path[len(previous) :]
        if not path.startswith(prefix + b"/"):
            return data
    else:
        interpreter = line[2:].lstrip(b" \t")
        words = interpreter[len(prefix) :].split()
        fits = len(line) <= _LIMIT and not _splits(prefix)
        if fits or not words or not interpreter.startswith(prefix + b"/"):
            return data
        path, options = prefix + words[0], words[1:]
    plain = b" ".join([b"#!" + path] + options)
    name = path.rpartition(b"/")[2]
    if len(plain) <= _LIMIT and not _splits(prefix):
        return plain + b"\n" + rest
    if not name.startswith((b"python", b"pypy")):
        is_found = list(filter(None, path[len(prefix) :].split(b"/"))) == [b"bin", name]
        if not is_found and len(plain) <= _LIMIT_NOW and not _splits(prefix):
            return data
        # One word is all that most systems hand on of the rest of the line.
        env = b"#!/usr/bin/env -S " if options else b"#!/usr/bin/env "
        return env + b" ".join([name] + options) + b"\n" + rest
    second = _SECOND
    comment, newline, after = rest.partition(b"\n")
    comment = comment.lstrip(b" \t\f")
    if comment[:1] == b"#" and (b"coding:" in comment or b"coding=" in comment):
        second, rest = comment + newline, after
    quoted = [word.replace(_QUOTE, _QUOTED) for word in [path] + options]
    return _SHELL + second + _BEGIN + b"' '".join(quoted) + _END + rest


def _splits(prefix: bytes) -> bool:
    return b" " in prefix or b"\t" in prefix


def _started(data: bytes) -> "Optional[Tuple[bytes, List[bytes], bytes]]":
    """(interpreter, options, what follows) of a script that has such a beginning already."""
    if not data.startswith(_SHELL):
        return None
    second, newline, rest = data[len(_SHELL) :].partition(b"\n")
    third, end, after = rest.partition(_END)
    if not third.startswith(_BEGIN) or not end or b"\n" in third:
        return None
    words = third[len(_BEGIN) :].replace(_QUOTED, b"\0").split(b"' '")
    path, *options = [word.replace(b"\0", _QUOTE) for word in words]
    return path, options, after if second + newline == _SECOND else second + newline + after

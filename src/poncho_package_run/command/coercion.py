"""CPython's coercion of the C locale (PEP 538), undone."""


def undo(environ: dict) -> None:
    """Give LC_CTYPE back its value from before CPython changed it, or none."""
    try:
        with open("/proc/self/environ", "rb") as file:
            given = [each for each in file.read().split(b"\0") if each.startswith(b"LC_CTYPE=")]
    except OSError:
        # Not Linux.  CPython coerces where nothing but the C locale is asked for.
        if not environ.get(b"LC_ALL") and environ.get(b"LANG", b"") in (b"", b"C", b"POSIX"):
            del environ[b"LC_CTYPE"]
        return
    if given:
        environ[b"LC_CTYPE"] = given[0][9:]
    else:
        del environ[b"LC_CTYPE"]

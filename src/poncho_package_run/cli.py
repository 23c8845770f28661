"""The command line: argv to options, and every failure to one line and an exit status.

Compiled at every start: what a warm start does not need is imported where it is used.
"""

import _signal  # type: ignore[import-not-found]  # the module signal takes 2 ms, for its enums
import _thread
import os
import sys

from . import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

VALUES = {
    "-e": "environment",
    "--environment": "environment",
    "-d": "unpack_to",
    "-u": "unpack_to",
    "--unpack-to": "unpack_to",
    "-w": "wait_for_lock",
    "--wait-for-lock": "wait_for_lock",
    "--cache": "cache",
    "--cache-limit": "cache_limit",
}

# How words are read and written again, whatever the locale.
_TEXT = ("utf-8", "surrogateescape")

_CACHE = "PONCHO_PACKAGE_RUN_CACHE"

# Of CCTools releases; what they ask for is so here in any case, or has no counterpart.
_WITHOUT_EFFECT = ("-k", "--keep-alive", "-r", "--remove-locking")


def parse(argv: list) -> Options:
    """Read the words behind the program's name, bytes.

    Raises:
        UsageError: they make no sense.
        CannotCreate: a relative path is of a directory that has been removed.
    """
    options = Options()
    words = [word.decode(*_TEXT) for word in argv]
    values = {}
    debug = os.environ.get("PONCHO_PACKAGE_RUN_DEBUG", "no") not in ("", "0", "no")
    prepare_only = False
    at, count = 0, len(words)
    while at < count:
        word = words[at]
        if word[:1] != "-" or word == "-":
            break
        at += 1
        if word == "--":
            break
        if word[:2] == "--":
            name, given, value = word.partition("=")
        else:
            name = word[:2]
            given = value = word[2:]
        if name in VALUES:
            if not given:
                following = words[at : at + 1]
                if name == "-d" and (not following or following[0][:1] == "-" != following[0]):
                    # Later CCTools releases: debugging.  No one unpacks to "-e".
                    debug = True
                    continue
                if not following:
                    raise _usage("{} needs a value".format(name))
                value = following[0]
                at += 1
            if not value:
                raise _usage("the value of {} is empty".format(name))
            values[VALUES[name]] = value
        elif word == "--list-cache":
            options.list_cache = True
        elif word == "--debug":
            debug = True
        elif word in ("-n", "--no-command"):
            prepare_only = True
        elif word in _WITHOUT_EFFECT:
            pass
        else:
            from .telling.help import answer

            answer(word)
    options.command = [] if prepare_only else argv[at:]
    options.debug = debug
    variable = os.environb.get(_CACHE.encode(), b"")
    options.cache = (values["cache"].encode(*_TEXT) if "cache" in values else variable) or None
    options.cache_limit = os.environ.get(_CACHE + "_LIMIT", "")
    if "cache_limit" in values:
        from .telling.usage import size

        options.cache_limit = values["cache_limit"]
        size(options.cache_limit)
    if options.list_cache:
        return options
    if "environment" not in values:
        raise _usage("--environment is missing")
    options.environment = values["environment"].encode(*_TEXT)
    if "unpack_to" in values:
        options.unpack_to = values["unpack_to"].encode(*_TEXT)
        if values["unpack_to"][0] != "/":
            try:
                os.getcwdb()
            except OSError as error:
                from .telling.usage import unanchored

                raise unanchored(values["unpack_to"], error)
    if "wait_for_lock" in values:
        from .telling.usage import seconds

        options.wait_for_lock = seconds(values["wait_for_lock"])
    return options


def main(
    ignored: int = 0,
    copy: "tuple | None" = None,
    start: "Callable[[], int] | None" = None,
) -> None:
    """Do what ``sys.argv`` says; ends the process, or becomes the command.

    Args:
        ignored: the signals that our caller ignores, as in /proc/PID/status, if that is known.
        copy: the private directory of a copy of the environment, of which this interpreter is,
            and the signals that are blocked until they can be taken note of.
        start: what to do; its result is the exit status.
    """
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        # CPython ignores them, and so would what we start; what is caught, an exec resets.
        if not ignored >> (number - 1) & 1:
            _signal.signal(number, lambda *_: None)
    try:
        if copy is not None:
            from .place.copy import Copy

            with Copy(*copy) as Options.copy:
                status = _start()
        else:
            status = (start or _start)()
    except BaseException as error:
        try:
            from .telling.explain import status_of

            status = status_of(error)
        except Exception:
            # The artifact has been removed or replaced under us, so that nothing can be imported.
            status = 74
            text = "poncho_package_run: {} was removed or changed while it ran; copy it anew\n"
            if isinstance(error, MemoryError):
                text = "poncho_package_run: out of memory; give the task more\n"
            try:
                os.write(2, os.fsencode(text.format(__file__.rsplit("/", 3)[0])))
            except OSError:
                pass
    # No finalisation: it would wait for threads, and obey PYTHONINSPECT.
    os._exit(status)


def _start() -> int:
    from . import warm
    from .command.activate import arguments, variables

    words = arguments()
    options = parse(words)
    if options.list_cache:
        from .cache.listing import show

        return show(options.cache, options.cache_limit)
    if options.copy is None and warm.run(options):
        return 0
    if _thread._count() and not sys.flags.no_site:
        from .command.again import again

        again(words, variables())
    import gc

    from .pipeline import run

    gc.enable()
    return run(options)


def _usage(message: str) -> Exception:
    from .telling.errors import UsageError

    return UsageError(message + "; see --help")

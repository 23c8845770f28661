"""The command line: argv to Options, and every failure to one line and an exit status.

Compiled at every start: what a warm start does not need is imported where it is used.
"""

import os
import sys

_VALUES = {
    "-e": "environment",
    "--environment": "environment",
    "-d": "unpack_to",
    "-u": "unpack_to",
    "--unpack-to": "unpack_to",
    "-w": "wait_for_lock",
    "--wait-for-lock": "wait_for_lock",
}


class Options:
    """What the command line says.

    Attributes:
        environment (bytes): path of the archive, or of a directory that holds an environment.
        unpack_to (bytes or None): where to keep the environment; None for a temporary one.
        wait_for_lock (float): seconds.
        debug (bool): tell the phases.
        command (list of bytes): argv of the command; may be empty.
    """

    def __init__(self, words: list) -> None:
        """Read the words behind the program's name.

        Raises:
            UsageError: they make no sense.
        """
        values = {"wait_for_lock": "300"}
        debug = os.environ.get("PONCHO_PACKAGE_RUN_DEBUG", "no") not in ("", "0", "no")
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
            if name in _VALUES:
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
                values[_VALUES[name]] = value
            elif word == "--debug":
                debug = True
            else:
                _tell(word)
        self.command = [os.fsencode(word) for word in words[at:]]
        self.debug = debug
        if "environment" not in values:
            raise _usage("--environment is missing")
        self.environment = os.fsencode(values["environment"])
        unpack_to = values.get("unpack_to")
        self.unpack_to = os.fsencode(unpack_to) if unpack_to else None
        try:
            self.wait_for_lock = float(values["wait_for_lock"])
        except ValueError:
            self.wait_for_lock = -1.0
        if not 0 <= self.wait_for_lock < float("inf"):
            raise _usage(
                "--wait-for-lock takes a number of seconds, not " + ascii(values["wait_for_lock"])
            )


def main() -> None:
    """Do what ``sys.argv`` says; ends the process, or becomes the command."""
    try:
        from . import warm

        options = Options(sys.argv[1:])
        status = 0
        if not warm.run(options):
            import gc

            from .pipeline import run

            gc.enable()
            status = run(options)
    except BaseException as error:
        try:
            from .telling.explain import status_of

            status = status_of(error)
        except Exception:
            # The artifact has been removed or replaced under us, so that nothing can be imported.
            status = 74
            if sys.stderr:
                archive = __file__.partition("/site-packages")[0]
                text = "poncho_package_run: {} was removed or changed while it ran; copy it anew\n"
                sys.stderr.write(text.format(archive))
    sys.exit(status)


def _usage(message: str) -> Exception:
    from .telling.errors import UsageError

    return UsageError(message + "; see --help")


def _tell(word: str) -> None:
    """Answer an option that asks for a text, and end; any other is unknown."""
    from .telling.help import text_for

    text = text_for(word)
    if text is None:
        raise _usage("unknown option " + ascii(word)[1:-1])
    sys.stdout.write(text)
    sys.stdout.flush()
    sys.exit(0)

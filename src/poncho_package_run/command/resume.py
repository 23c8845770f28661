"""Behind the shell of activation scripts: the command is looked for as without them.

The shell comes back here where it is not plain from the start what it is to become, so that one
rule, and its messages, is all there is.
"""

import _signal  # type: ignore[import-not-found]

from .activate import arguments, variables
from .execute import execute


def resume() -> int:
    """Become the command that the arguments hold: see ``scripts._resumption``.

    Raises:
        CommandNotFound, CommandNotExecutable: as ``execute``.
    """
    words = arguments()
    folder, debug, mask, count = words[0], words[1] == b"debug", int(words[2]), int(words[3])
    blocked = [number for number in range(1, _signal.NSIG) if mask >> number - 1 & 1]
    blocked = [number for number in blocked if number not in (32, 33)]  # the C library's own
    _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)
    environ = variables()
    for each in words[4 : 4 + count]:
        name, given, value = each.partition(b"=")
        if given:
            environ[name] = value
        else:
            environ.pop(name, None)
    execute(words[4 + count :], environ, folder, debug)
    return 0

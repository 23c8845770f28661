"""Behind the shell of activation scripts: the command is looked for as without them.

The shell comes back here where it is not plain from the start what it is to become, so that one
rule, and its messages, is all there is.
"""

import os
import sys

from .activate import variables
from .execute import execute


def resume() -> int:
    """Become the command that ``sys.argv`` holds: see ``scripts.resumption``.

    Raises:
        CommandNotFound, CommandNotExecutable: as ``execute``.
    """
    words = [os.fsencode(word) for word in sys.argv[1:]]
    folder, debug, count = words[0], words[1] == b"debug", int(words[2])
    environ = variables()
    for each in words[3 : 3 + count]:
        name, given, value = each.partition(b"=")
        if given:
            environ[name] = value
        else:
            environ.pop(name, None)
    execute(words[3 + count :], environ, folder, debug)
    return 0

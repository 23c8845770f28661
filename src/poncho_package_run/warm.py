"""The warm start, the commonest: all is there, and the command runs at once.

Compiled at every start, as what it imports; the rest is not, where there is nothing to do for it.
"""

import os

from .command.activate import activated
from .command.execute import execute
from .place.completion import locate, ready_prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Options


def run(options: "Options") -> bool:
    """Become the command, where its environment is ready and there is nothing to tell about it.

    Returns:
        False if it is not ready, True if it is and there is no command.
    """
    if options.debug:
        return False
    if os.path.isdir(options.environment):
        if options.unpack_to is not None:
            return False
        directory = locate(options.environment)
        prefix = ready_prefix(directory, None)
        if prefix is None:
            from .place.plain import is_plain

            prefix = directory if is_plain(directory) else None
    elif options.unpack_to is not None:
        prefix = ready_prefix(locate(options.unpack_to), options.environment)
    elif options.cache is not None:
        from .cache.memo import warm

        prefix = warm(options.cache, options.environment)
    else:
        return False
    if prefix is None:
        return False
    if options.command:
        execute(*activated(prefix, options.command))
    return True

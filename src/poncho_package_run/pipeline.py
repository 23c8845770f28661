"""The whole flow: open the archive, unpack, relocate, publish, activate, run."""

import os

from . import OURS
from .command.activate import activated
from .command.execute import execute
from .machine.signals import interruptible
from .place.completion import is_complete, prefix_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Tuple

    from . import Options
    from .telling.report import Report


def run(options: "Options") -> int:
    """Have the environment ready and run the command in it.

    Returns:
        The exit status, unless this process becomes the command.
    """
    if os.path.isdir(options.environment):
        directory = os.path.realpath(options.environment)
        relocate_once(options, directory)
    elif options.unpack_to is not None:
        directory = os.path.realpath(options.unpack_to)
        unpack_once(options, directory)
    else:
        return run_in_temporary(options)
    prefix = prefix_in(directory)
    if options.command:
        execute(*activated(prefix, options.command, options.debug))
    return 0


def relocate_once(options: "Options", directory: bytes) -> None:
    """Relocate a directory that is used where it is, unless that was done or cannot be."""
    from .place.adopt import adopt
    from .telling.report import Report

    with Report(options.debug) as report:
        adopt(options, directory, report)


def unpack_once(options: "Options", directory: bytes) -> None:
    """Unpack into a directory that is kept, unless it is populated or another process does."""
    from .place.turn import wait

    with interruptible():
        turn = wait(
            directory,
            options.wait_for_lock,
            lambda: is_complete(directory, options.environment),
            not os.isatty(2),
        )
        if turn.over and not options.debug:
            return
        from .place.publish import Target
        from .telling.report import Report

        with Report(options.debug) as report, Target(directory, options, report, turn) as target:
            if target.is_ours:
                target.publish(*fill(options.environment, target, report))


def run_in_temporary(options: "Options") -> int:
    """Unpack, run, remove."""
    from .command.supervise import supervise
    from .place.temporary import Temporary
    from .telling.report import Report

    with Report(options.debug) as report, interruptible(), Temporary(report) as target:
        prefix, _ = fill(options.environment, target, report)
        if not options.command:
            return 0
        return supervise(*activated(prefix, options.command, options.debug), target.descriptor)


def fill(path: bytes, target: "Any", report: "Report") -> "Tuple[bytes, Any]":
    """Unpack an archive into an empty directory and relocate what is there.

    Returns:
        The environment's prefix, and the open archive's source.
    """
    from .archive.archive import Archive

    manifest = target.manifest
    with Archive(path) as archive:
        from .relocation.relocate import relocate  # while other threads decode already
        from .tree.unpack import Tree

        with Tree(target.descriptor, target.path, OURS, manifest) as tree:
            with report.phase("unpack"):
                if archive.kind == "squashfs":
                    archive.extract(target.path, OURS)
                    if manifest is not None:
                        manifest.survey()
                else:
                    tree.unpack(archive.members(report.progress), archive.writers)
            prefix = prefix_in(target.path)
            with report.phase("relocate"):
                rewritten = manifest.rewritten if manifest is not None else None
                report.records = relocate(prefix, rewritten, tree.overlap)
            tree.set_attributes()
            report.files, report.bytes = tree.files, tree.bytes
            return prefix, archive.source

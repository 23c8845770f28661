"""The whole flow: open the archive, unpack, relocate, publish, activate, run."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    from .cli import Options
    from .report import Report


def run(options: "Options") -> int:
    """Have the environment ready and run the command in it.

    Returns:
        The exit status, unless this process becomes the command.
    """
    from .completion import is_complete, is_settled, prefix_in

    if os.path.isdir(options.environment):
        directory = os.path.realpath(options.environment)
        if options.unpack_to or options.debug or not is_settled(directory):
            from .adopt import adopt
            from .report import Report

            with Report(options.debug) as report:
                adopt(options, directory, report)
    elif options.unpack_to is None:
        return run_in_temporary(options)
    else:
        directory = os.path.realpath(options.unpack_to)
        if options.debug or not is_complete(directory, options.environment):
            unpack_once(options, directory)
    prefix = prefix_in(directory)
    if options.command:
        from .execute import execute

        execute(*activated(prefix, options))
    return 0


def unpack_once(options: "Options", directory: bytes) -> None:
    """Unpack into a directory that is kept, unless it is populated or another process does."""
    from .publish import Target
    from .report import Report
    from .signals import interruptible

    with Report(options.debug) as report, interruptible(), Target(
        directory, options, report
    ) as target:
        if target.is_ours:
            target.publish(*fill(options.environment, target, report))


def run_in_temporary(options: "Options") -> int:
    """Unpack, run, remove."""
    from .report import Report
    from .signals import interruptible
    from .supervise import supervise
    from .temporary import Temporary

    with Report(options.debug) as report, interruptible(), Temporary(report) as target:
        prefix, _ = fill(options.environment, target, report)
        if not options.command:
            return 0
        return supervise(*activated(prefix, options), target.descriptor)


def fill(path: bytes, target: "Any", report: "Report") -> "Tuple[bytes, Any]":
    """Unpack an archive into an empty directory and relocate what is there.

    Returns:
        The environment's prefix, and the open archive's source.
    """
    from .archive import Archive
    from .completion import OURS, prefix_in
    from .relocate import relocate
    from .unpack import Tree

    manifest = target.manifest
    with Archive(path) as archive, Tree(target.descriptor, target.path, OURS, manifest) as tree:
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


def activated(prefix: bytes, options: "Options") -> "Tuple[list, Dict[bytes, bytes]]":
    """The command's argv and environment; a shell comes first if there are activation scripts."""
    from .activate import activate, scripts

    environ = activate(prefix, dict(os.environb))
    sourced = scripts(prefix)
    if sourced:
        from .scripts import shell_command

        return shell_command(prefix, sourced, options.command, environ)
    return options.command, environ

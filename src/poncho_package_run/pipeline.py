"""The whole flow: a private directory, fill it, then publish it or run in it."""

import os

from . import MARKER
from .command.activate import activated
from .command.execute import execute
from .machine.signals import interruptible
from .place.completion import locate, ready_prefix
from .place.lock import Lock
from .telling.errors import CannotCreate
from .telling.report import Report

# How often one is second, and then finds nothing of the first, before he gives up.
_ROUNDS = 10

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from . import Options
    from .cache.cache import Cache, Unpacking
    from .place.private import PrivateDirectory


def run(options: "Options") -> int:
    """Have the environment ready and run the command in it.

    Returns:
        The exit status, unless this process becomes the command.
    """
    if os.path.isdir(options.environment):
        if options.unpack_to is not None:
            from .telling.messages import warn

            name = os.fsdecode(options.environment)
            warn("--unpack-to is ignored: {} is a directory".format(name))
        prefix = prepared(options.environment, None, options)
    elif options.unpack_to is not None:
        prefix = prepared(options.unpack_to, options.environment, options)
    else:
        cached = in_cache(options.cache, options) if options.cache is not None else None
        if cached is None:
            return run_in_temporary(options)
        prefix = cached
    if options.copy is not None:
        with interruptible():
            options.copy.leave(prefix)
    if options.command:
        execute(*activated(prefix, options.command, options.debug))
    return 0


def in_cache(path: bytes, options: "Options") -> "Optional[bytes]":
    """The prefix of the environment in the cache, held; None if it is not to be had there."""
    from .cache.cache import Cache, Changed, NoRoom
    from .telling.errors import InputOutputError, RelocationError
    from .telling.messages import warn
    from .telling.usage import size

    with interruptible():
        limit = size(options.cache_limit) if options.cache_limit else None
        cache = Cache(path, limit, options.wait_for_lock)
        directory = cache.entry(options.environment)
    freed = False
    for attempt in range(_ROUNDS):
        if directory is None:
            return None
        try:
            prefix = prepared(directory, options.environment, options, cache)
        except NoRoom as reason:
            warn(str(reason))
            break
        except Changed:  # between being summed up and unpacked
            with interruptible():
                directory = cache.entry(options.environment)
            continue
        except (CannotCreate, InputOutputError, RelocationError) as error:
            if error.gone and attempt < 2:  # removed by hand
                continue
            if error.full and not freed:
                with interruptible():
                    freed = cache.free(directory)
                if freed:
                    continue  # once more, now that what is unused is gone
            if cache.is_writable and not error.elsewhere:
                raise
            warn("the environment is unpacked to a temporary directory: {}".format(error))
            break
        if cache.hold(directory):  # else it was removed again to make room, for one
            return prefix
    else:
        warn(
            "the environment is unpacked to a temporary directory: others remove or relocate that "
            "in {}".format(os.fsdecode(path))
        )
    cache.let_go()
    return None


def prepared(
    path: bytes, archive: "Optional[bytes]", options: "Options", cache: "Optional[Cache]" = None
) -> bytes:
    """The prefix of the environment in a directory that is kept; unpacked there if it is empty."""
    directory = locate(path)
    is_others = cache is not None and not cache.is_writable
    with Report(options.debug) as report, interruptible():

        def found() -> "Optional[bytes]":
            if not os.path.lexists(directory + b"/" + MARKER):
                return None  # told by one call, for those who wait
            prefix = ready_prefix(directory, archive)
            if prefix is None:
                from .place.settle import at_once

                prefix = at_once(directory, archive, report, is_others)
            return prefix

        prefix = found()
        if prefix is not None:
            return prefix
        if is_others:
            raise CannotCreate(
                "{} is damaged or has moved, and only its owner can mend that".format(
                    os.fsdecode(directory)
                )
            )
        # A cache is made by itself alone, with its mode.
        make = None if archive is None else os.makedirs if cache is None else os.mkdir
        with Lock(directory, options.wait_for_lock, make) as lock:
            for _ in range(_ROUNDS):
                with report.phase("lock"):
                    prefix = lock.wait(found, report.waiting)
                if prefix is None:
                    from .place.settle import settle

                    prefix = settle(directory, archive, report, cache is not None)
                if prefix is None and archive is not None and lock.is_current():
                    if cache is None:
                        prefix = unpack(archive, directory, report)
                    else:
                        prefix = unpack_in_cache(archive, directory, report, cache)
                if prefix is not None:
                    return prefix
    raise CannotCreate(
        "{} is emptied and filled again and again by others; choose another directory".format(
            os.fsdecode(directory)
        )
    )


def unpack(
    archive: bytes,
    directory: bytes,
    report: "Report",
    unpacking: "Optional[Unpacking]" = None,
) -> "Optional[bytes]":
    """Unpack into a directory that is kept, and empty; None if another process was faster."""
    from .place.publication import publish, staging

    with staging(directory) as private:
        prefix = fill(private, archive, directory, report, unpacking)
        if unpacking is not None:
            unpacking.admit(private.content_path, report.bytes, report)
        return prefix if publish(private, directory) else None


def unpack_in_cache(
    archive: bytes, directory: bytes, report: "Report", cache: "Cache"
) -> "Optional[bytes]":
    """The same, within the cache's limit."""
    from .telling.failures import located

    with cache.unpacking(archive, directory) as unpacking:
        try:
            return unpack(archive, directory, report, unpacking)
        except OSError as error:
            raise located(error, directory)


def run_in_temporary(options: "Options") -> int:
    """Unpack, run, remove."""
    from .command.supervise import supervise
    from .place.private import temporary

    with Report(options.debug) as report, interruptible(), temporary() as private:
        try:
            prefix = fill(private, options.environment, None, report)
            if options.copy is not None:
                options.copy.leave(prefix)
            if not options.command:
                return 0
            command = activated(prefix, options.command, options.debug)
            return supervise(*command, private.leases, private.touch)
        finally:
            with report.phase("remove"):
                private.remove()


def fill(
    private: "PrivateDirectory",
    path: bytes,
    directory: "Optional[bytes]",
    report: "Report",
    unpacking: "Optional[Unpacking]" = None,
) -> bytes:
    """Unpack an archive into a private directory, and relocate it to where it will be used.

    Args:
        directory: where it will be published; None if it is used where it is.
        unpacking: into a cache, where it is the same for all archives of these bytes.

    Returns:
        The environment's final prefix.
    """
    from .archive.archive import Archive
    from .telling.refusal import check_prefix

    final = directory or private.content_path
    check_prefix(final)
    with report.phase("sweep"):
        private.sweep()
    with Archive(path, private.content) as archive:
        from .durability.manifest import Manifest  # while other threads decode already
        from .place.fresh import relocate_fresh
        from .place.marker import facts, first_of, join, put
        from .tree.names import is_ours
        from .tree.unpack import Tree

        content, source = private.content, archive.source
        if report.debug:
            report.warn("native library: " + archive.library)
        if unpacking is not None:
            unpacking.verify(source.fd)
        manifest = None if directory is None else Manifest(content, private.content_path)
        try:
            with Tree(content, private.content_path, manifest) as tree:
                with report.phase("unpack"):
                    if archive.kind == "squashfs":
                        tree.packed_marker = archive.extract(private.content_path, is_ours)
                        if manifest is not None:
                            manifest.survey()
                    else:
                        members = archive.members(report.progress, lambda: tree.holds_environment)
                        tree.unpack(members, archive.writers, archive.native)
                with report.phase("relocate"):
                    shorter = private.shorter if directory is None else None
                    final, root = relocate_fresh(
                        content, tree, final, source.name, manifest, report, shorter
                    )
                tree.set_attributes()
                report.files, report.bytes = tree.files, tree.bytes
            if manifest is not None:
                known = manifest.finish()
                size, mtime, first = source.size, source.mtime_ns, None
                if unpacking is not None:
                    unpacking.verify(source.fd, ended=True)
                    size = mtime = None
                    first = first_of(private.content_path)
                sizes = tree.files, tree.bytes
                put(content, facts(final, root, path, size, mtime, known, *sizes, first))
        finally:
            if manifest is not None:
                manifest.close()
    return join(final, root)

"""A stand-in for the pipeline: one process that wants a directory unpacked, as a script.

It waits for its standard input to end, so that many can be started at once, follows the
protocol of ``lock.acquire``, and prints one line: what became of it, and when that was (in
seconds of the monotonic clock, which all processes share).
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from poncho_package_run.machine import holder
from poncho_package_run.place import lock, marker
from poncho_package_run.place.completion import MARKER as COMPLETE
from poncho_package_run.place.completion import UNPACKING
from poncho_package_run.telling import errors

MEMBERS = 20


def is_complete(directory):
    return os.path.exists(os.path.join(directory, COMPLETE))


def is_vacant(directory):
    names = os.listdir(directory)
    return UNPACKING in names or all(name.startswith(UNPACKING) for name in names)


def unpack(directory, held, options):
    """Make the members, each of which must be missing: two at work here would meet."""
    if held.taken_over:
        for name in os.listdir(directory):
            if name != UNPACKING:
                os.unlink(os.path.join(directory, name))
    options.log.write(b"%d\n" % os.getpid())
    for number in range(MEMBERS):
        with open(os.path.join(directory, b"member-%d" % number), "x") as member:
            member.write("content")
        time.sleep(options.seconds / MEMBERS)
    if not held.is_ours():
        return "lost"
    os.rename(os.path.join(directory, UNPACKING), os.path.join(directory, COMPLETE))
    return "unpacked"


def prepare(directory, options):
    held = lock.acquire(
        directory,
        options.wait,
        published=lambda: is_complete(directory),
        waiting=lambda owner, waited: print("waiting", owner and owner["pid"], flush=True),
        vacant=None if options.only_lock else lambda: is_vacant(directory),
    )
    if held is None:
        return "found complete"
    with held:
        print("holds", held.how, flush=True)
        if options.exec:
            os.execvp(options.exec, [options.exec, "60"])
        if options.only_lock:
            time.sleep(options.seconds)
            return "locked"
        return unpack(directory, held, options) if held.marked else "found unmarked"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=os.fsencode)
    parser.add_argument("--wait", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long unpacking takes")
    parser.add_argument("--log", type=lambda name: open(name, "ab", 0), default=sys.stderr.buffer)
    parser.add_argument("--only-lock", action="store_true", help="set no marker, unpack nothing")
    parser.add_argument("--exec", help="with the lock held, run this program instead")
    parser.add_argument("--host", help="claim to run there")
    parser.add_argument("--beat", type=float, default=marker.BEAT)
    parser.add_argument("--silence", type=float, default=marker.SILENCE)
    options = parser.parse_args()
    marker.BEAT, marker.SILENCE = options.beat, options.silence
    if options.host:
        describe = holder.describe
        holder.describe = lambda: dict(describe(), host=options.host, boot_id="0")
    sys.stdin.read()
    try:
        outcome = prepare(options.directory, options)
    except errors.Failure as error:
        print(error, file=sys.stderr)
        outcome = f"status {error.status}"
    print(f"{outcome} at {time.monotonic()}", flush=True)


if __name__ == "__main__":
    main()

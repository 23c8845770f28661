"""Claims and markers under random schedules: any step of any process may come next, or be its last.

Simulated processes run as threads of which one moves at a time, from one system call to the
next. A killed one makes no call any more, not even those of its finally clauses.
"""

import itertools
import os
import random
import threading
import types

import pytest

from poncho_package_run.machine import holder
from poncho_package_run.place import claim, marker
from poncho_package_run.place.completion import UNPACKING

SCHEDULES = int(os.environ.get("PONCHO_TEST_SCHEDULES", "1000"))
COMPLETE = b"complete"
STEPS = ("listdir", "open", "readlink", "rename", "symlink", "unlink", "write")


class Killed(BaseException):
    """Not an Exception, as SIGKILL is none."""


class Process:
    """One simulated process: ``program(process)`` in a thread that moves when it is told to."""

    def __init__(self, world, pid, program):
        self.world = world
        self.description = {"host": "h", "boot_id": "b", "pid": pid, "start_time": pid}
        self.dead = False
        self.error = None
        self._program = program
        self._turn = threading.Semaphore(0)
        self._moved = threading.Semaphore(0)
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        self.world.local.process = self
        try:
            self.pause()
            self._program(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._moved.release()

    def pause(self):
        """Before each system call: wait for this process's next turn."""
        if self.dead:
            raise Killed
        self._moved.release()
        self._turn.acquire()
        if self.dead:
            raise Killed

    def move(self):
        """Make the call that it stands before, and go on to the next or to the end."""
        self._moved.acquire()
        if not self.ended:
            self._turn.release()
            self._moved.acquire()
        self._moved.release()

    def kill(self):
        """It ends where it stands."""
        self._moved.acquire()
        self.dead = True
        self._moved.release()
        if not self.ended:
            self._turn.release()
        self._thread.join()

    def finish(self):
        while not self.ended:
            self.move()
        self._thread.join()


class World:
    """A directory, the processes, and who is dead."""

    def __init__(self, directory, monkeypatch):
        self.directory = os.fsencode(directory)
        self.local = threading.local()
        self.processes = [None]  # pids begin at 1
        self.owners = []
        # Time stands still until all but one have ended: nobody is taken for dead who is slow.
        self.clock = itertools.repeat(0.0)
        for module in (claim, marker):
            monkeypatch.setattr(module, "os", self)
        monkeypatch.setattr(marker, "time", types.SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(holder, "describe", lambda: dict(self.local.process.description))
        monkeypatch.setattr(holder, "is_dead", lambda theirs: self.state(theirs)[1])
        monkeypatch.setattr(holder, "is_alive", lambda theirs: self.state(theirs)[0])
        monkeypatch.setattr(marker.Marker, "_beat", lambda self: None)

    def __getattr__(self, name):
        # Takes the place of the module os where the code under test looks for it.
        if name not in STEPS:
            return getattr(os, name)

        def step(*args):
            self.local.process.pause()
            return getattr(os, name)(*args)

        return step

    def monotonic(self):
        return next(self.clock)

    def state(self, theirs):
        """Whether it is proved to live, and to be dead; an ended process is dead, too."""
        process = self.processes[theirs["pid"]]
        return (not process.dead, process.dead)

    def start(self, program):
        self.processes.append(None)
        self.processes[-1] = Process(self, len(self.processes) - 1, program)
        return self.processes[-1]

    def entry(self, name):
        return os.path.join(self.directory, name)

    def enter(self, process):
        """``process`` is told that it is alone."""
        others = [each.description["pid"] for each in self.owners if not each.dead]
        assert not others, f"{process.description['pid']} holds together with {others}"
        self.owners.append(process)

    def leave(self, process):
        self.owners.remove(process)

    def run(self, chance, program, count, deaths):
        """Start ``count`` processes, let them move at random, kill ``deaths`` on the way."""
        running = [self.start(program) for _ in range(count)]
        while running:
            process = chance.choice(running)
            if deaths and chance.random() < 0.05:
                deaths -= 1
                process.kill()
            else:
                process.move()
            if process.ended or process.dead:
                # Whoever ended has left; that he is dead as well lets others take his place.
                running.remove(process)
                if process.error is not None:
                    raise process.error
                process.dead = True


def lock(process):
    """Hold the claim for a moment, a few times."""
    world = process.world
    for _ in range(3):
        if claim.take(world.entry(b"claim")):
            world.enter(process)
            process.pause()
            world.leave(process)
            claim.give_up(world.entry(b"claim"))


def unpack(process):
    """What ``lock.acquire`` and the pipeline do, with a lock that everybody is granted."""
    world = process.world
    for _ in range(20):
        process.pause()
        if os.path.exists(world.entry(COMPLETE)):
            return
        mark = marker.Marker(world.directory, UNPACKING)
        if mark.is_free() and not os.path.exists(world.entry(COMPLETE)) and mark.take():
            if os.path.exists(world.entry(COMPLETE)):
                mark.remove()
                return
            world.enter(process)
            for name in world.listdir(world.directory):
                if name != UNPACKING:
                    process.pause()
                    claim.give_up(world.entry(name))  # which bears that it has gone
            process.pause()
            with open(world.entry(b"member"), "xb"):
                pass
            assert mark.is_ours()
            facts = dict(holder.describe(), version="1")
            with open(world.entry(UNPACKING + b".done"), "wb") as file:
                file.write(holder.encode(facts))
            world.rename(world.entry(UNPACKING + b".done"), world.entry(UNPACKING))
            process.pause()
            world.leave(process)
            os.rename(world.entry(UNPACKING), world.entry(COMPLETE))
            return


def leave_behind(world, program):
    """What process 1, which is dead, had begun."""
    mine = holder.encode(world.processes[1].description)
    if program is lock:
        os.symlink(mine, world.entry(b"claim"))
    else:
        with open(world.entry(UNPACKING), "wb") as file:
            file.write(mine + b"\n")
        with open(world.entry(b"member"), "xb"):
            pass


@pytest.mark.parametrize("program", [lock, unpack])
def test_no_schedule_has_two_holders(tmp_path, monkeypatch, program):
    chance = random.Random(program.__name__)
    for number in range(SCHEDULES):
        directory = tmp_path / str(number)
        directory.mkdir()
        with monkeypatch.context() as patch:
            world = World(directory, patch)
            if chance.random() < 0.5:
                world.start(program).kill()
                leave_behind(world, program)
            deaths = chance.randrange(6)
            world.run(chance, program, chance.choice((2, 3, 5)), deaths)
            # All have ended or are dead; the next one is not kept from anything.
            world.clock = itertools.count(1000.0, 10.0)
            last = world.start(program)
            last.finish()
            assert last.error is None, (number, last.error)
        left = set(os.listdir(world.directory))
        if program is unpack:
            assert {COMPLETE, b"member"} <= left, number
            left -= {COMPLETE, b"member"}
            assert all(name.startswith(UNPACKING) for name in left), number
        # What two deaths in a row may leave beside a complete tree is harmless.
        assert not left or deaths, number

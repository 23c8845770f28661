"""Absent or complete: killed or stopped at any system call, whatever the next run finds.

A sample; ``make sweep`` goes through thousands of points.
"""

import pytest
import sweep

from support import crash, scenarios

KILLED = [
    (scenarios.Scenario, "tar.gz", 12),
    (scenarios.Scenario, "tar.gz -j", 6),
    (scenarios.Scenario, "zip", 6),
    (scenarios.Scenario, "tar.gz, library", 8),
    (scenarios.Scenario, "zip, library", 4),
    (scenarios.Temporary, "tar.gz, library", 6),
    (scenarios.Empty, "tar.gz", 6),
    (scenarios.TakenOver, "tar.gz", 8),
    (scenarios.Refused, "tar.gz", 6),
    (scenarios.Restarted, "tar.gz", 6),
    (scenarios.Damaged, "tar.gz", 8),
    (scenarios.Moved, "tar.gz", 8),
    (scenarios.Temporary, "tar.gz", 12),
    (scenarios.Directory, "tar.gz", 8),
    (scenarios.Unmarked, "tar.gz", 6),
    (scenarios.Contained, "tar.gz", 8),
    (scenarios.UnpackedByHand, "tar.gz", 6),
    (scenarios.WorkingDirectory, "tar.gz", 8),
    (scenarios.MountPoint, "tar.gz", 10),
    (scenarios.TakenOverMountPoint, "tar.gz", 8),
    (scenarios.DamagedMountPoint, "tar.gz", 8),
    (scenarios.DefaultAcl, "tar.gz", 6),
    (scenarios.UnwritableParent, "tar.gz", 8),
    (scenarios.KilledInside, "tar.gz", 5),
    (scenarios.KilledOutside, "tar.gz", 5),
    (scenarios.TemporaryKilledInside, "tar.gz", 5),
    (scenarios.TemporaryKilledOutside, "tar.gz", 5),
    (scenarios.MountPointKilledInside, "tar.gz", 5),
]


@pytest.mark.parametrize("scenario, format, count", KILLED, ids=scenarios.name_of)
def test_a_run_killed_anywhere_leaves_nothing_to_the_next(ground, scenario, format, count):
    killed = scenario(ground(format))
    points = killed.points()
    chosen = [points.index(point) for point in crash.spread(points, count)]
    assert len(chosen) == count
    for at in chosen:
        try:
            # Threads share the removal: a late point is not reached each time, the one before is.
            while not killed.strike(points[at]):
                at -= 1
        except AssertionError as error:
            raise AssertionError(f"killed at {points[at].name}:{points[at].number}: {error}")


@pytest.mark.parametrize("locks", ["locks exclude", "locks are granted to both"])
@pytest.mark.parametrize("scenario", scenarios.OVERTAKEN, ids=scenarios.name_of)
def test_a_run_stopped_anywhere_and_overtaken_does_no_harm_when_it_goes_on(ground, scenario, locks):
    stopped = scenario(ground())
    points = [point for point in stopped.points() if point.name != "flock"]
    calls = () if locks == "locks exclude" else (sweep.ANYBODY,)
    for point in crash.spread(points, 4):
        try:
            stopped.overtake(point, *calls)
        except AssertionError as error:
            raise AssertionError(f"stopped at {point.name}:{point.number}: {error}")

"""Absent or complete: killed at any system call, the next run succeeds and leaves nothing behind.

A sample; ``make sweep`` goes through more than a thousand points.
"""

import pytest

from support import crash

# 72 points in all.
ROWS = [
    (crash.Scenario, "tar.gz", 12),
    (crash.Scenario, "tar.gz -j", 6),
    (crash.Scenario, "zip", 6),
    (crash.TakenOver, "tar.gz", 8),
    (crash.Refused, "tar.gz", 6),
    (crash.Restarted, "tar.gz", 6),
    (crash.Damaged, "tar.gz", 8),
    (crash.Temporary, "tar.gz", 12),
    (crash.Directory, "tar.gz", 8),
]


@pytest.mark.parametrize(
    "scenario, format, count", ROWS, ids=[f"{row[0].__name__}-{row[1]}" for row in ROWS]
)
def test_a_run_killed_anywhere_leaves_nothing_to_the_next(
    artifact, tmp_path, scenario, format, count
):
    killed = scenario(crash.Place(tmp_path / "place", artifact, format))
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

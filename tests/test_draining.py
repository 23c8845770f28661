"""What lies behind a tar's end is read for its checks, but not where there is nothing to check."""

import bz2
import os

import pytest

from poncho_package_run.archive.archive import Archive
from support import tars

ZEROS = bz2.compress(bytes(16 << 20))


@pytest.fixture
def archive(tmp_path):
    """8 GiB of zeros behind the end of a tar of one member, in 6 KB."""
    path = tmp_path / "archive"
    path.write_bytes(bz2.compress(tars.member(b"f", b"x") + tars.END) + ZEROS * 512)
    return path


def members(archive, is_environment):
    decoded = []
    with Archive(os.fsencode(archive), -1) as opened:
        found = [
            (member.path, b"".join(member.body))
            for member in opened.members(lambda *_: decoded.append(1), is_environment)
        ]
    return found, len(decoded)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_what_is_no_environment_is_not_read_on(archive, monkeypatch, threads):
    monkeypatch.setenv("PONCHO_PACKAGE_RUN_THREADS", threads)
    asked = []
    found, decoded = members(archive, lambda: asked.append(1))
    assert found == [(b"f", b"x")]
    assert len(asked) == 1
    assert decoded <= 1


def test_an_environment_is_read_to_its_physical_end(archive):
    with open(archive, "r+b") as file:
        file.truncate(10 * len(ZEROS))
    with pytest.raises(Exception, match="truncated"):
        members(archive, lambda: True)
    with pytest.raises(Exception, match="truncated"):
        members(archive, None)

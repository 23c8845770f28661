"""Each reason to refuse what others unpack: it is met, named, and in the README."""

import bz2
import gzip
import lzma
import struct

import pytest

from support import readme, tars, zips
from support.messages import refused
from support.reasons import HEADING, REASONS, reason_of
from support.zips import Entry

FIRST = Entry(b"conda-meta/history")


def plain(*members):
    return tars.environment(*members)


def descriptor(crc):
    return struct.pack("<4s3L", b"PK\x07\x08", crc, 7, 7)


EXAMPLES = {
    "ABSOLUTE": [
        plain(tars.member(b"/absolute")),
        plain(tars.member(b"a/../../b")),
        zips.environment(Entry(b"/absolute")),
    ],
    "THROUGH": [
        plain(tars.symlink(b"a", b"/tmp"), tars.member(b"a/b")),
        plain(tars.member(b"a"), tars.member(b"a/b")),
    ],
    "SPECIAL": [plain(tars.header(b"a", type=kind)) for kind in (b"3", b"4", b"6")],
    "SPARSE": [
        plain(tars.header(b"a", type=b"S")),
        plain(tars.pax({b"GNU.sparse.major": b"1"}), tars.member(b"a")),
    ],
    "TYPE": [plain(tars.header(b"a", type=kind)) for kind in (b"M", b"N", b"Z")],
    "HARD_LINK": [plain(tars.hardlink(b"a", b"nothing"))],
    "NUL": [
        plain(tars.pax({b"path": b"a\0b"}), tars.member(b"a")),
        zips.environment(Entry(b"a\0b")),
    ],
    "LONG": [plain(tars.longname(b"a/" * 2048), tars.member(b"a"))],
    "NUMBER": [
        plain(tars.member(b"a", mtime=b"tomorrow")),
        plain(tars.pax({b"mtime": b"tomorrow"}), tars.member(b"a")),
        plain(tars.pax({b"size": b"-1"}), tars.member(b"a")),
        plain(tars.header(b"a", size=b"\xff" * 12)),
    ],
    "EXTENDED": [
        plain(tars.pax({b"comment": bytes(1 << 20)}), tars.member(b"a")),
        plain(tars.pax({b"path": b"a"})),
    ],
    "UNENDED": [plain(tars.member(b"a", b"a"))[: -len(tars.END)]],
    "OURS": [plain(tars.directory(b".poncho_package_run_expanded"))],
    "BEHIND": [pack(plain()) + b"rubbish" for pack in (gzip.compress, bz2.compress, lzma.compress)],
    "WINDOW": [
        lzma.compress(plain(), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]),
        b"\x28\xb5\x2f\xfd\0\xa0" + bytes(20),
    ],
    "ZIP_BACKSLASH": [zips.environment(Entry(b"a\\b", host=zips.MS_DOS))],
    "ZIP_DISAGREES": [
        zips.environment(Entry(b"a", local_name=b"b")),
        zips.environment(Entry(b"a", b"content", crc=1)),
    ],
    "ZIP_DESCRIPTOR": [
        zips.environment(
            Entry(b"a", b"content", flags=zips.DESCRIPTOR_FOLLOWS, descriptor=descriptor(1))
        ),
        zips.environment(Entry(b"a", b"content", flags=zips.DESCRIPTOR_FOLLOWS)),
    ],
    "ZIP_EXTRA": [zips.environment(Entry(b"a", extra=b"\x55\x54\xff\xff"))],
    "ZIP_BEHIND": [zips.build([FIRST], after=b"rubbish")],
    "ZIP_OVERLAP": [zips.build([FIRST, Entry(b"a", offset=0)])],
    "ZIP_METHOD": [zips.environment(Entry(b"a", method=number)) for number in (1, 9, 12, 93)],
    "ZIP_ENCRYPTED": [zips.environment(Entry(b"a", b"a", flags=1))],
    "ZIP_KIND": [
        zips.environment(Entry(b"a/", b"content", mode=0o040755)),
        zips.environment(zips.symlink(b"a", b"")),
    ],
}


def test_there_is_an_example_of_each_reason():
    assert list(EXAMPLES) == list(REASONS)


@pytest.mark.parametrize("reason", EXAMPLES)
def test_reason_is_given(run, tmp_path, reason):
    archive = tmp_path / "archive"
    for number, data in enumerate(EXAMPLES[reason]):
        archive.write_bytes(data)
        line = refused(run("-e", archive, "true"), 65, str(archive))
        assert reason_of(line) == reason, f"example {number}: {line}"


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("where", ["file", "pipe"])
def test_nothing_at_all_is_to_be_copied_again(run, tmp_path, where, threads):
    archive = tmp_path / "archive"
    archive.write_bytes(b"")
    with open(archive, "rb") as nothing:
        name = archive if where == "file" else "/dev/stdin"
        env = {"PONCHO_PACKAGE_RUN_THREADS": threads}
        line = refused(run("-e", name, "true", stdin=nothing, env=env), 65, str(name), "0 bytes")
    assert "copy it again" in line and "pack" not in line.replace("poncho_package_run", "")


@pytest.mark.xfail(reason="until the README lists them one by one", strict=False)
def test_the_readme_lists_the_reasons():
    section = readme.pages().split(HEADING + "\n")[1].split("\n##")[0]
    listed = [" ".join(item.split()).rstrip(";.") for item in section.split("\n* ")[1:]]
    assert listed == [reason.text for reason in REASONS.values()]

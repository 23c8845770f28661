"""Where GNU tar and bsdtar agree on what an archive holds, so do we; or the reason is listed.

Takes the tar and zip archives of the folder PONCHO_TEST_CORPUS, and those that the suite
packs itself.  Each of the corpus is tried as it is, and with a ``conda-meta/history`` in
front that makes it an environment, so that its tree can be seen.
"""

import os
import shutil
import time
from pathlib import Path

import pytest

from support import corpus, differential
from support.commands import need
from support.messages import refused
from support.reasons import reason_of

# Of support.reasons, whose texts are the README's.
REFUSED = {
    "absolute1.tar": "ABSOLUTE",
    "absolute2.tar": "ABSOLUTE",
    "gnu-multi-hdrs.tar": "UNENDED",
    "gnu-nil-sparse-data.tar": "SPARSE",
    "gnu-nil-sparse-hole.tar": "SPARSE",
    "name-nul-pax.tar": "NUL",
    "no-end-marker.tar": "UNENDED",
    "pax-bad-mtime-file.tar": "NUMBER",
    "pax-nil-sparse-data.tar": "SPARSE",
    "pax-nil-sparse-hole.tar": "SPARSE",
    "pax-nul-path.tar": "NUL",
    "pax-pos-size-file.tar": "UNENDED",
    "special-chardev.tar": "SPECIAL",
    "special-fifo.tar": "SPECIAL",
    "ustar-file-reg.tar": "UNENDED",
    "zip-absolute.zip": "ABSOLUTE",
    "zip-bad-crc.zip": "ZIP_DISAGREES",
    "zip-name-mismatch.zip": "ZIP_DISAGREES",
    "zipdir_backslash.zip": "ZIP_BACKSLASH",
}
"""Why we refuse what GNU tar and bsdtar unpack alike (zip: bsdtar alone)."""

COMPLAINTS = {
    "hardlink-self.tar": "bsdtar complains of a hard link to itself, and keeps the file",
    "hardlink-with-data.tar": "GNU tar takes no body of a hard link, which conda-pack writes",
    "pax-nul-xattrs.tar": "both complain of an extended attribute, which we do not restore",
}
"""Why we unpack, as bsdtar does, what one of the two complains about."""

OTHERWISE = {
    "zip-backslash.zip": "a backslash is a character of the name; bsdtar takes it for a slash",
    "zip-slip-win.zip": "a backslash is a character of the name; bsdtar takes it for a slash",
}
"""Zip archives that we unpack otherwise than bsdtar, and why."""

ELSEWHERE = {
    "bomb-1GiB-zeros.tar.gz": "a gigabyte of zeros: test_hostile_resources has such",
    "deep-2000.tar": "too deep for paths to be compared: test_hostile_resources unpacks it",
}

ESCAPES = ("/tmp/zz-escaped-moo", "/tmp/zz-f", "/tmp/zz-moo", "/tmp/evil.txt")
"""Where archives of the corpus would like to write."""


def is_environment(tree):
    """Whether the tree of an archive is one, at its root or one level below."""
    signs = (b"conda-meta", b"bin/activate", b"pyvenv.cfg")
    tops = {path for path in tree if b"/" not in path}
    roots = [b"", *(top + b"/" for top in tops if len(tops) == 1)]
    return any(root + sign in tree for root in roots for sign in signs)


def check(archive, name, run):
    """Compare what we make of ``archive`` with what the references make of it."""
    with differential.scratch() as place:
        started = time.time_ns()
        target = place / "inner" / "target"
        target.parent.mkdir()
        expected = differential.agreed(archive, target, started)
        if expected is None and name in COMPLAINTS:
            shutil.rmtree(target)
            expected = differential.extract(differential.BSDTAR, archive, target).tree
        relocated = differential.relocate(target) if expected else set()
        if expected:
            expected = differential.look(target)
        shutil.rmtree(target)

        result = run("-d", target, "-e", archive, "true", umask=differential.UMASK, cwd=place)

        assert not any(os.path.lexists(path) for path in ESCAPES)
        if result.returncode == 0:
            assert name not in REFUSED
            found = differential.look(target)
            if name not in OTHERWISE:
                assert expected is not None, "GNU tar and bsdtar do not agree on a tree"
                assert not differential.compare(expected, found, started, but_mtime_of=relocated)
            shutil.rmtree(target)
        else:
            line = refused(result, 65)
            assert not target.exists() or os.listdir(target) == []
            if expected is not None and is_environment(expected):
                assert reason_of(line) == REFUSED.get(name), line
            if target.exists():
                target.rmdir()
        assert os.listdir(place) == ["inner"]
        assert os.listdir(target.parent) == []


@pytest.mark.parametrize("history", [False, True], ids=["as-it-is", "with-history"])
@pytest.mark.parametrize(
    "name", corpus.parameters("generated", "cpython", "go-archive-tar", "snyk-zip-slip")
)
def test_corpus_archive(name, history, tmp_path, run):
    need("bsdtar")
    original, archive = Path(corpus.FOLDER, name), tmp_path / "archive"
    if original.name in ELSEWHERE:
        pytest.skip(ELSEWHERE[original.name])
    if not history:
        shutil.copyfile(original, archive)
    elif not corpus.with_history(original, archive):
        pytest.skip("no member can be added to this archive")
    check(archive, original.name, run)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("tar", {}),
        ("tar.gz", {"n_threads": 1}),
        ("tar.gz", {"n_threads": 2}),
        ("tar.bz2", {"n_threads": 2}),
        ("tar.xz", {"n_threads": 2}),
        ("tar.zst", {}),
        ("zip", {}),
        ("zip", {"zip_symlinks": True}),
        ("tar.gz", {"arcroot": "top"}),
        ("tar.gz", {"dest_prefix": "/opt/elsewhere"}),
    ],
)
def test_own_environment(format, options, environment, tmp_path, run):
    need("bsdtar")
    archive = tmp_path / "archive"
    shutil.copyfile(environment.archive(format, **options), archive)
    check(archive, format, run)

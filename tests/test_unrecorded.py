"""Packed after "conda clean -a": what has no record is relocated by conda's metadata."""

import io
import json
import os
import random
import shutil
import subprocess
import tarfile

import pytest
from conda_pack.prefixes import replace_prefix

from poncho_package_run.relocation.records import records
from support import trees
from support.commands import need
from support.environments import PLACEHOLDER
from support.relocations import WINDOW, Case, ours
from support.tars import add

BUILT = PLACEHOLDER.encode()
PACKED = b"/opt/conda/envs/work"

# What differs: the list of records, and what names this run.
OWN = ("bin/conda-unpack", ".poncho_package_run_expanded", ".poncho_package_run_manifest")


def tree(path):
    found = trees.snapshot(path)
    return {name: entry for name, entry in found.items() if os.fsdecode(name) not in OWN}


SAME = ("type", "mode", "size", "sha256", "target", "nlink_group")


@pytest.mark.parametrize("format", ["tar.gz", "tar.zst", "zip", "squashfs"])
def test_the_bytes_are_those_of_the_same_environment_packed_with_its_cache(
    run, environment, tmp_path, format
):
    kept, whole = tmp_path / "kept", tmp_path / "whole"
    # What a zip has in place of a symlink has no record in either.
    options = {"zip_symlinks": True} if format == "zip" else {}
    run("-e", environment.archive(format, **options), "-d", kept, check=True)
    kept.rename(whole)
    cleaned = environment.archive(format, cleaned=True, **options)
    result = run("-e", cleaned, "-d", kept, "showprefix", check=True)
    assert result.stdout.decode().splitlines()[0] == str(kept)
    # Nor is it the tool's doing which links mksquashfs is given.
    fields = SAME[:-1] if format == "squashfs" else SAME
    assert not trees.differences(tree(whole), tree(kept), fields=fields)


def test_conda_unpack_would_have_left_it_where_it_was_packed(environment, tmp_path):
    """The test environment is one of those that this is about."""
    archive = environment.archive(cleaned=True)
    subprocess.run([need("bsdtar"), "-xf", archive, "-C", tmp_path], check=True)
    text = (tmp_path / "bin" / "conda-unpack").read_text()
    assert "'binary')" not in text
    assert os.fsencode(environment.prefix) in (tmp_path / "bin" / "showprefix").read_bytes()


def test_it_moves_again_and_is_relocated_where_tar_has_unpacked_it(run, environment, tmp_path):
    archive = environment.archive(cleaned=True)
    there, moved = tmp_path / "kept", tmp_path / "another-name"
    run("-e", archive, "-d", there, check=True)
    there.rename(moved)
    first = run("-e", archive, "-d", moved, "showprefix", check=True)
    assert first.stdout.decode().splitlines()[0] == str(moved)
    second = tree(moved)
    shutil.rmtree(moved)
    moved.mkdir()
    subprocess.run([need("bsdtar"), "-xf", archive, "-C", moved], check=True)
    run("-e", moved, "showprefix", check=True)
    fields = [field for field in SAME if field != "mode"]  # bsdtar's, by the umask
    assert not trees.differences(second, tree(moved), fields=fields)


@pytest.mark.parametrize("count", [400])
def test_as_conda_installs_and_conda_unpack_relocates(count):
    """Built -> packed -> here is as built -> here, for random contents of a program."""
    rng, changed = random.Random(11), 0
    for number in range(count):
        pieces = [BUILT, BUILT, BUILT + b"/lib", b"\0", b"\0", b"\0\0\0", b":", b"x" * 70, b"/opt"]
        data = b"\x7fELF" + b"".join(rng.choices(pieces, k=rng.randrange(40))) + b"\0"
        if number % 10 == 0:
            data += b"\0" * (WINDOW - len(data) % 300) + b"".join(rng.choices(pieces, k=9)) + b"\0"
        prefix = rng.choice([b"/x", PACKED + b"2", b"/work/" + b"y" * 60, b"/opt/conda/envs"])
        installed = replace_prefix(data, "binary", BUILT.decode(), PACKED.decode())
        expected = replace_prefix(data, "binary", BUILT.decode(), prefix.decode())
        found = ours(Case(installed, prefix, [(PACKED, True)]), wide=len(BUILT))
        assert found == expected, number
        changed += found != installed
        # And once more: nothing is left to be done.
        assert ours(Case(found, prefix, [(PACKED, True)]), wide=len(BUILT)) == found
    assert changed > count / 2


def archive_of(path, metadata, files, records=()):
    """An environment with metadata; by its records, it was packed at PACKED."""
    lines = [("share/text", PACKED.decode(), "text"), *records]
    script = "_prefix_records = [\n" + "".join(f"    {line!r},\n" for line in lines) + "]\n"
    content = {
        "conda-meta/history": b"",
        "share/text": PACKED + b"/share\n",
        "bin/conda-unpack": script.encode(),
        **{f"conda-meta/{name}.json": data for name, data in metadata.items()},
        **files,
    }
    with tarfile.open(path, "w:gz") as archive:
        add(archive, content)
    return path


def padded(*strings):
    return b"\x7fELF" + b"".join(
        replace_prefix(string + b"\0", "binary", BUILT.decode(), PACKED.decode())
        for string in strings
    )


def entry(path, mode="binary", **more):
    return {"_path": path, "file_mode": mode, "prefix_placeholder": PLACEHOLDER, **more}


def metadata(*entries, **options):
    document = {"name": "x", "files": [], "paths_data": {"paths": list(entries)}}
    return json.dumps(document, **options).encode()


def test_a_string_without_padding_is_left_and_counted(run, tmp_path):
    content = padded(BUILT + b"/lib") + PACKED + b"/of-its-own\0" + padded(BUILT) + PACKED + b"\0z"
    path = archive_of(tmp_path / "a", {"x": metadata(entry("lib/x"))}, {"lib/x": content})
    result = run("--debug", "-e", path, "-d", tmp_path / "kept", check=True)
    assert b" 2 records, 2 strings without padding left in " in result.stderr
    after = (tmp_path / "kept/lib/x").read_bytes()
    assert len(after) == len(content)
    assert after.count(PACKED) == 2
    assert after.count(os.fsencode(tmp_path / "kept")) == 2


def test_a_text_that_conda_pack_took_for_a_program_is_relocated_as_conda_would(run, tmp_path):
    """It guesses from the content; conda knows."""
    content = b"prefix=" + PACKED + b"\0\x01\x02\n" + PACKED + b"\n"
    path = archive_of(tmp_path / "a", {"x": metadata(entry("x.txt", "text"))}, {"x.txt": content})
    run("-e", path, "-d", tmp_path / "kept", check=True)
    after = (tmp_path / "kept/x.txt").read_bytes()
    assert after == content.replace(PACKED, os.fsencode(tmp_path / "kept"))


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")},
                                     {"ensure_ascii": False}])  # fmt: skip
def test_metadata_are_read_however_they_are_spelled(run, tmp_path, options):
    names = ["lib/plain", "lib/{a}", "lib/}{", 'lib/quo"te', "lib/caf\u00e9", "lib/ b", "file_mode"]
    order = [entry(name, sha256="0" * 64, size_in_bytes=3) for name in names]
    order += [dict(reversed(list(each.items()))) for each in order]
    files = {name: padded(BUILT + b"/lib") for name in names}
    path = archive_of(tmp_path / "a", {"x": metadata(*order, **options)}, files)
    run("-e", path, "-d", tmp_path / "kept", check=True)
    for name in names:
        assert PACKED not in (tmp_path / "kept" / name).read_bytes(), name


def test_a_file_has_one_path_however_metadata_spell_it(tmp_path):
    """What is one file is not edited by two threads."""
    entries = metadata(entry("./share//text", "text"), entry("x/./y", "text"))
    path = archive_of(tmp_path / "a", {"x": entries}, {"x/y": PACKED})
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "env")
    handle = os.open(tmp_path / "env", os.O_RDONLY)
    paths = [found for found, _, _, _ in records(handle)]
    os.close(handle)
    assert paths == [b"share/text", b"share/text", b"x/y"]


HOSTILE = {
    "outside": metadata(entry("../victim"), entry("/etc/passwd"), entry("lib/../../victim")),
    "symlink": metadata(entry("link"), entry("dir/victim"), entry("lib"), entry("no/such")),
    "ours": metadata(entry(".poncho_package_run_expanded"), entry("a/.poncho_package_run_x")),
    "types": metadata(entry(5), entry(None), {"prefix_placeholder": {}}, entry("a\0b")),
    "nested": b'{"prefix_placeholder":' * 20000,
    "braces": b"{" * 50000 + b'"prefix_placeholder"' * 3000 + b"}" * 50000,
    "one-object": (b"{" + b'"prefix_placeholder":1,' * 860 + b'"a":1}') * 100,
    "nothing": b'"prefix_placeholder"' * 100000,
    "empty-path": metadata(entry(""), entry("."), entry("x" * 5000), entry("a/" * 3000 + "b")),
    "surrogate": metadata(entry("\ud800")),
    "many": metadata(*[entry(f"n/{number}") for number in range(150000)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_do_no_harm(run, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_bytes(padded(BUILT))
    before = victim.read_bytes()
    path = archive_of(tmp_path / "a", {"x": HOSTILE[name]}, {"lib/x": padded(BUILT)})
    with tarfile.open(path, "r:gz") as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]
    with tarfile.open(path, "w:gz") as archive:
        for link, target in (("link", str(victim)), ("dir", str(tmp_path))):
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    run("-e", path, "-d", tmp_path / "kept", check=True)
    assert victim.read_bytes() == before
    assert os.fsencode(tmp_path / "kept") in (tmp_path / "kept/share/text").read_bytes()


def test_a_short_place_is_found_only_where_it_is_a_path(run, tmp_path):
    """Packed at /env, "#!/usr/bin/env" has no prefix in it: conda-unpack leaves that alone."""
    script = "_prefix_records = [\n    ('share/text', '/env', 'text'),\n]\n"
    texts = {
        "bin/tool": b"#!/usr/bin/env python\n",
        "share/other": b"/env-data/x /usr/env/y /env/lib=/env\n",
    }
    after = {
        "bin/tool": b"#!/usr/bin/env python\n",
        "share/other": b"/env-data/x /usr/env/y %s/lib=%s\n" % ((bytes(tmp_path / "kept"),) * 2),
    }
    content = {
        "conda-meta/x.json": metadata(*[entry(name, "text") for name in texts]),
        "share/text": b"/env/x\n",
        "bin/conda-unpack": script.encode(),
        **texts,
    }
    with tarfile.open(tmp_path / "a", "w:gz") as archive:
        add(archive, content)
    run("-e", tmp_path / "a", "-d", tmp_path / "kept", check=True)
    assert {name: (tmp_path / "kept" / name).read_bytes() for name in texts} == after


def test_a_signal_is_heard_while_metadata_are_read(spawn, tmp_path):
    document = (b"{" + b'"prefix_placeholder":1,' * 300 + b'"a":1}') * 1500
    documents = {f"x{number}": document for number in range(12)}
    path = archive_of(tmp_path / "a", documents, {})
    tool = spawn("--debug", "-e", path, "-d", tmp_path / "kept", "true")
    assert b"lock" in tool.stderr.readline()
    while b"unpack:" not in tool.stderr.readline():
        assert tool.poll() is None
    tool.terminate()
    assert tool.wait(timeout=10) in (0, 143)

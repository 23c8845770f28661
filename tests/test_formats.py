"""Contract 5, archives: each row of its table, compared with bsdtar and conda-unpack."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import interpreters, references, tars, tracing, trees
from support.commands import need
from support.messages import refused
from support.streams import members

PACKED = [
    pytest.param({"format": "tar"}, id="tar"),
    pytest.param({"format": "tar.gz"}, id="tar.gz-1"),
    pytest.param({"format": "tar.gz", "n_threads": 4}, id="tar.gz-4"),
    pytest.param({"format": "tar.gz", "compress_level": 0}, id="tar.gz-stored"),
    pytest.param({"format": "tar.gz", "compress_level": 9, "n_threads": 4}, id="tar.gz-9-4"),
    pytest.param({"format": "tar.bz2"}, id="tar.bz2-1"),
    pytest.param({"format": "tar.bz2", "n_threads": 4}, id="tar.bz2-4"),
    pytest.param({"format": "tar.xz"}, id="tar.xz-1"),
    pytest.param({"format": "tar.xz", "n_threads": 4}, id="tar.xz-4"),
    pytest.param({"format": "tar.zst"}, id="tar.zst-1"),
    pytest.param({"format": "tar.zst", "n_threads": 4}, id="tar.zst-4"),
    pytest.param({"format": "zip"}, id="zip"),
    pytest.param({"format": "zip", "zip_symlinks": True}, id="zip-symlinks"),
    pytest.param({"format": "zip", "zip_64": False, "zip_symlinks": True}, id="zip-not-64"),
    pytest.param({"format": "squashfs"}, id="squashfs"),
]

STREAMS = [param for param in PACKED if str(param.id).startswith("tar")]


def expected_at(archive, place):
    """The reference tree, made at ``place`` because the path is in it, and removed again."""
    references.extract(archive, place)
    result = references.reference(place)
    shutil.rmtree(place)
    return result


def prefix_line(prefix):
    return f"{prefix}\n{prefix}/share/showprefix:{prefix}/lib\n"


@pytest.mark.parametrize("options", PACKED)
def test_format_unpacks_to_the_reference_tree(run, environment, tmp_path, options):
    if options["format"] == "squashfs":
        need("unsquashfs")
    archive, kept = environment.archive(**options), tmp_path / "kept"
    expected = expected_at(archive, kept)
    run("-e", archive, "-d", kept, check=True)
    assert not references.differences(expected, trees.snapshot(kept))
    assert b"share/showprefix/read-only.bin" in expected.patched


@pytest.mark.parametrize("options", PACKED)
def test_format_runs_in_a_temporary_environment(run, environment, options):
    if options["format"] == "squashfs":
        need("unsquashfs")
    script = 'echo "$CONDA_PREFIX"; showprefix; show-both'
    result = run("-e", environment.archive(**options), "sh", "-c", script, check=True)
    prefix, *rest = result.stdout.decode().splitlines()
    assert "\n".join(rest[:2]) + "\n" == prefix_line(prefix)
    assert rest[3] == f"{prefix}/share"


@pytest.mark.parametrize("options", STREAMS)
def test_format_unpacks_from_a_pipe(run, environment, tmp_path, options):
    archive, kept = environment.archive(**options), tmp_path / "kept"
    expected = expected_at(archive, kept)
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
        name = f"/dev/fd/{cat.stdout.fileno()}"
        run("-e", name, "-d", kept, pass_fds=[cat.stdout.fileno()], check=True)
    assert not references.differences(expected, trees.snapshot(kept))


def test_a_pipe_of_process_substitution(run, environment, artifact, variables, tmp_path):
    script = '"$1" "$2" -e <(gzip -dc "$3") -d "$4" showprefix'
    words = ["-c", script, "bash", sys.executable, artifact, environment.archive()]
    result = subprocess.run(
        [need("bash"), *words, tmp_path / "kept"], env=variables, capture_output=True, check=True
    )
    assert result.stdout.decode() == prefix_line(tmp_path / "kept")


@pytest.mark.parametrize("format", ["zip", "squashfs"])
def test_a_pipe_of_what_needs_seeking_is_refused(run, environment, format):
    data = environment.archive(format).read_bytes()
    result = run("-e", "/dev/stdin", "true", stdin=None, input=data)
    refused(result, 65, "/dev/stdin", "in a pipe", "give the path of a file")


@pytest.mark.parametrize("options", PACKED)
@pytest.mark.parametrize("name", ["cached-input", "misleading"])
def test_format_is_recognised_by_content(run, environment, tmp_path, options, name):
    if options["format"] == "squashfs":
        need("unsquashfs")
    if name == "misleading":
        name = "env.tar.gz" if options["format"] == "zip" else "env.zip"
    (tmp_path / name).symlink_to(environment.archive(**options))
    result = run("-e", name, "-d", "kept", "showprefix", cwd=tmp_path, check=True)
    assert result.stdout.decode() == prefix_line(tmp_path / "kept")


def compressed(command, data):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize(
    "command",
    [
        "gzip -1", "gzip -9", "pigz -p 4", "pigz -p 4 -i", "bzip2",
        "xz -0", "xz -0 -T2 --block-size=1MiB", "xz -0 --check=crc32", "xz -0 --check=sha256",
        "xz -0 --format=lzma", "zstd -1", "zstd -9", "zstd -T2", "zstd --no-check", "zstd --check",
        "zstd --long=27",
    ],
)  # fmt: skip
def test_streams_of_the_fields_own_compressors(run, environment, tmp_path, command):
    program, *options = command.split()
    packed = compressed([need(program), *options], environment.archive("tar").read_bytes())
    (tmp_path / "archive").write_bytes(packed)
    kept = tmp_path / "kept"
    result = run("-e", tmp_path / "archive", "-d", kept, "showprefix", check=True)
    assert result.stdout.decode() == prefix_line(kept)


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz", "zstd"])
def test_streams_of_several_members(run, environment, tmp_path, program):
    data, kept = environment.archive("tar").read_bytes(), tmp_path / "kept"
    third = len(data) // 3
    parts = [data[:third], data[third : 2 * third], b"", data[2 * third :]]
    packed = b"".join(compressed([need(program), "-1"], part) for part in parts)
    (tmp_path / "archive").write_bytes(packed)
    result = run("-e", tmp_path / "archive", "-d", kept, "showprefix", check=True)
    assert result.stdout.decode() == prefix_line(kept)


EVERYTHING = tars.environment(
    *[tars.member(b"lib/%d" % size, os.urandom(size)) for size in (0, 1, 511, 512, 513, 5000)],
    tars.longname(b"lib/" + b"n" * 250),
    tars.member(b"short", b"of a long name"),
    tars.pax({b"path": b"lib/" + b"p" * 90, b"mtime": b"1500000000.123456789"}),
    tars.member(b"short", os.urandom(70_000)),
    tars.member(b"lib/large", os.urandom(200_000)),
    tars.directory(b"share", mode=0o700),
    tars.symlink(b"share/link", b"../lib/large"),
    # conda-pack writes a hard link with a body; other tars one with a size and none.
    tars.pax({b"mtime": b"1500000000.5"}),
    tars.hardlink(b"share/body", b"lib/5000", size=3000) + tars.pad(os.urandom(3000)),
    tars.hardlink(b"share/none", b"lib/large", size=200_000),
    tars.member(b"share/last", b"last"),
)


@pytest.mark.parametrize("size", [31, 509, 512, 4099])
def test_a_chunk_may_end_anywhere_in_a_tar(run, tmp_path, size):
    # The decoder hands on member by member, so that every size makes other chunks.
    def unpack(name, data):
        archive = tmp_path / name
        archive.write_bytes(data)
        return run("-e", archive, "-d", tmp_path / "kept", "true")

    def found():
        tree = trees.snapshot(tmp_path / "kept")
        shutil.rmtree(tmp_path / "kept")
        return tree

    assert unpack("plain", EVERYTHING).returncode == 0
    whole = found()
    assert len(whole) == 17
    assert unpack("members", members(gzip.compress, EVERYTHING, size)).returncode == 0
    assert not trees.differences(whole, found())

    # In a header, in an extended one's body, in what may be a link's, in a file's, and at the end.
    places = [EVERYTHING.index(name) for name in (b"short\0", b"n" * 250, b"share/none")]
    places += [200_000, len(EVERYTHING) - len(tars.END)]
    for at in places:
        lines = [
            refused(unpack(name, data), 65).replace(name, "")
            for name, data in (
                ("plain", EVERYTHING[:at]),
                ("members", members(gzip.compress, EVERYTHING[:at], size)),
            )
        ]
        assert lines[0] == lines[1], at


@pytest.mark.parametrize("dialect", ["gnu", "posix", "ustar"])
def test_tar_as_gnu_tar_writes_it(run, tmp_path, dialect):
    source, kept = tmp_path / "source", tmp_path / "kept"
    (source / "conda-meta").mkdir(parents=True)
    (source / "conda-meta" / "history").touch()
    (source / "plain").write_text("plain")
    (source / "again").hardlink_to(source / "plain")
    (source / "link").symlink_to("plain")
    if dialect != "ustar":
        (source / ("d" * 120)).mkdir()
        (source / ("d" * 120) / ("f" * 200)).write_text("long")
        (source / "long-link").symlink_to("t" * 300)
    archive = tmp_path / "archive"
    subprocess.run(
        [need("tar"), f"--format={dialect}", "-cf", archive, "-C", source, "."], check=True
    )
    references.extract(archive, kept)
    expected = trees.snapshot(kept)
    shutil.rmtree(kept)
    run("-e", archive, "-d", kept, check=True)
    assert not trees.differences(expected, trees.snapshot(kept))


def test_zip_as_info_zip_writes_it(run, tmp_path):
    source, kept = tmp_path / "source", tmp_path / "kept"
    (source / "conda-meta").mkdir(parents=True)
    (source / "conda-meta" / "history").write_text("history\n" * 100)
    (source / "tool").write_text("#!/bin/sh\n")
    (source / "tool").chmod(0o755)
    (source / "link").symlink_to("tool")
    archive = tmp_path / "archive.zip"
    subprocess.run([need("zip"), "-q", "-r", "-y", archive, "."], cwd=source, check=True)
    references.extract(archive, kept)
    expected = trees.snapshot(kept)
    shutil.rmtree(kept)
    run("-e", archive, "-d", kept, check=True)
    fields = ["type", "mode", "size", "sha256", "target", "nlink_group"]
    assert not trees.differences(expected, trees.snapshot(kept), fields=fields)


def prefix_of(run, *words):
    out = run(*words, "sh", "-c", 'printf %s "$CONDA_PREFIX"', check=True).stdout
    return Path(out.decode())


@pytest.mark.parametrize("format", ["tar.gz", "zip"])
def test_an_environment_below_a_top_directory_is_found(run, environment, tmp_path, format):
    archive, kept = environment.archive(format, arcroot="top"), tmp_path / "kept"
    prefix = prefix_of(run, "-e", archive, "-d", kept)
    assert kept == prefix or kept in prefix.parents
    found = trees.snapshot(prefix)
    assert run("-e", archive, "-d", kept, "showprefix", check=True).stdout.decode() == prefix_line(
        prefix
    )
    shutil.rmtree(kept)
    references.extract(archive, tmp_path / "elsewhere")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere" / "top").rename(prefix)
    assert not references.differences(references.reference(prefix), found)


def test_a_parcel_unpacks_and_keeps_its_own_prefix(run, environment, tmp_path):
    archive, kept = environment.archive("parcel"), tmp_path / "kept"
    prefix = prefix_of(run, "-e", archive, "-d", kept)
    assert kept == prefix or kept in prefix.parents
    found = trees.snapshot(prefix)
    references.extract(archive, tmp_path / "elsewhere")
    expected = trees.snapshot(tmp_path / "elsewhere" / "environment-1.0")
    assert not trees.differences(expected, found)
    # Packed with --dest-prefix, it holds no prefix records: nothing is there to relocate.
    result = run("-e", archive, "-d", kept, "showprefix", check=True)
    assert result.stdout.startswith(b"/opt/cloudera/parcels/environment-1.0\n")


def test_a_directory_is_an_environment(run, environment, tmp_path):
    target = tmp_path / "unpacked"
    shutil.copytree(environment.archive("no-archive"), target, symlinks=True)
    expected = references.reference(target)
    shutil.rmtree(target)
    shutil.copytree(environment.archive("no-archive"), target, symlinks=True)
    run("-e", target, check=True)
    assert not references.differences(expected, trees.snapshot(target))


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    """A virtual environment, packed by venv-pack into a given format."""
    import venv_pack

    folder = tmp_path_factory.mktemp("virtual")
    prefix = folder / "venv"
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    subprocess.run([base, "-m", "venv", "--without-pip", prefix], check=True)
    script = prefix / "bin" / "say"
    script.write_text(f"#!{prefix}/bin/python\nimport sys\nprint(sys.prefix)\n")
    script.chmod(0o755)

    def pack(format):
        output = folder / f"venv.{format}"
        if not output.exists():
            venv_pack.pack(prefix=str(prefix), output=str(output), format=format)
        return output

    return pack


# It warns of its own: pyvenv.cfg goes in twice.
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("format", ["tar", "tar.gz", "tar.bz2", "zip"])
def test_an_environment_of_venv_pack(run, virtual, tmp_path, format):
    archive, kept = virtual(format), tmp_path / "kept"
    script = 'echo "$VIRTUAL_ENV"; python -c "import sys; print(sys.prefix)"; say'
    result = run("-e", archive, "-d", kept, "sh", "-c", script, check=True)
    assert result.stdout.decode().splitlines() == [str(kept)] * 3
    if format != "zip":
        references.extract(archive, tmp_path / "elsewhere")
        expected = trees.snapshot(tmp_path / "elsewhere")
        assert not trees.differences(expected, trees.snapshot(kept))
        links = {entry.target[:1] for entry in expected.values() if entry.type == "symlink"}
        assert b"/" in links, "absolute ones are kept"


@pytest.mark.parametrize(
    "mark", [b"conda-meta/history", b"bin/activate", b"pyvenv.cfg", b"conda-meta/python-3.json"]
)
def test_an_environment_is_known_by(run, tmp_path, mark):
    data = tars.member(mark) + tars.member(b"bin/tool", b"#!/bin/sh\necho tool\n", mode=0o755)
    (tmp_path / "archive").write_bytes(data + tars.END)
    assert run("-e", tmp_path / "archive", "tool", check=True).stdout == b"tool\n"


@pytest.mark.parametrize("decoder", ["standard", "system", "program"])
def test_zstd_is_decoded_in_each_of_three_ways(run, environment, tmp_path, decoder):
    archive, kept = environment.archive("tar.zst"), tmp_path / "kept"
    found = interpreters.find()
    with_zstd = [each.path for each in found if each.version >= (3, 14)]
    without = [each.path for each in found if each.version < (3, 14)]
    env, wrapper = {"PATH": "/nonexistent"}, []
    if decoder == "standard":
        if not with_zstd:
            pytest.skip("needs a Python 3.14, whose standard library has zstd")
        python = with_zstd[0]
    elif not without:
        pytest.skip("needs a Python before 3.14, whose standard library has no zstd")
    else:
        python = without[0]
    if decoder == "program":
        env = {"PATH": os.path.dirname(need("zstd"))}
        wrapper = tracing.without_libzstd(follow=False)
    result = run(
        *["-e", archive, "-d", kept, "showprefix"],
        interpreter=python,
        env=env,
        wrapper=wrapper,
        check=True,
    )
    assert result.stdout.decode() == prefix_line(kept)

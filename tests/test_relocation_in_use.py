"""Relocation of a directory that is used where it is: by renames, and as often as one likes."""

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conda_pack.prefixes import update_prefix

from poncho_package_run.relocation import codesign, in_use, relocate
from poncho_package_run.telling.errors import CannotCreate, RelocationError
from support.commands import need
from support.relocations import WINDOW, environment

OLD = b"/build/" + b"_placehold" * 20

FILES = {
    "bin/tool": (b"#!%s/bin/python\nprint()\n" % OLD, OLD, "text"),
    "lib/program": (b"\x7fELF\0%s/lib\0rest\0" % OLD, OLD, "binary"),
    "lib/large.so": (b"x" * WINDOW + b"\0%s/lib:%s\0rest\0" % (OLD, OLD), OLD, "binary"),
    "share/large.txt": (b"%s/share\n" % OLD + b"y" * (WINDOW - 1) + b"\n" + OLD, OLD, "text"),
    "share/none": (b"nothing\n", OLD, "text"),
}


def relocated(env: Path, prefix: "bytes | None" = None, previous: "bytes | None" = None) -> int:
    scratch = env.parent / f"scratch-{random.random()}"
    scratch.mkdir()
    handles = [os.open(path, os.O_RDONLY) for path in (env, scratch)]
    try:
        return in_use.relocate_in_use(handles[0], prefix or bytes(env), handles[1], previous)
    finally:
        for handle in handles:
            os.close(handle)


def contents(env: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(env)): path.read_bytes() for path in env.rglob("*") if path.is_file()
    }


def expected(env: Path) -> dict[str, bytes]:
    """What conda-unpack makes of the files where they are."""
    copy = env.parent / "by-conda-unpack"
    environment(copy, FILES)
    for name, (_, placeholder, mode) in FILES.items():
        update_prefix(str(copy / name), str(env), placeholder.decode(), mode)
    return contents(copy)


@pytest.fixture
def env(tmp_path) -> Path:
    return environment(tmp_path / "env", FILES)


def test_files_are_as_conda_unpack_makes_them_and_no_old_one_is_written(env):
    others = env.parent / "others"
    subprocess.run(["cp", "-al", env, others], check=True)
    before = contents(others)
    changed = {name for name, (data, _, _) in FILES.items() if OLD in data}
    inodes = {name: (env / name).stat().st_ino for name in FILES}
    assert relocated(env) == len(FILES)
    assert contents(env) == expected(env)
    assert contents(others) == before
    for name in FILES:
        assert ((env / name).stat().st_ino != inodes[name]) == (name in changed), name
    inodes = {name: (env / name).stat().st_ino for name in FILES}
    relocated(env)
    assert inodes == {name: (env / name).stat().st_ino for name in FILES}


def test_files_to_which_a_file_system_gives_one_number_are_told_apart(env, monkeypatch):
    def alike(*arguments):
        opened = relocate.open_record(*arguments)
        if opened is None:
            return None
        handle, status, rest = opened
        return handle, os.stat_result((status.st_mode, 7, *status[2:10])), rest

    monkeypatch.setattr(in_use, "open_record", alike)
    assert relocated(env) == len(FILES)
    assert contents(env) == expected(env)


class Killed(BaseException):
    """In the place of a SIGKILL: nothing of the tool's catches it."""


@pytest.mark.parametrize("name", ["env", "build", OLD.decode()[7:60] + "-env"])
def test_a_kill_before_any_rename_or_link_is_mended_by_the_next_run(tmp_path, monkeypatch, name):
    """Also where the path holds the placeholder: packed /w/env, lying at /w/env2."""
    old = bytes(tmp_path / name)[:-1]
    files = {
        f"share/{number}": (b"%s/lib %d %s" % (old, number, old), old, "text")
        for number in range(4)
    }
    env = tmp_path / name
    for point in range(20):
        subprocess.run(["rm", "-rf", env], check=True)
        environment(env, files)
        os.link(env / "share/1", env / "share/unrecorded")
        os.link(env / "share/1", env / "share/0-unrecorded")
        steps = iter(range(100))
        with monkeypatch.context() as patch:
            for call in ("rename", "link"):
                real = getattr(os, call)

                def killed(*arguments, real=real, steps=steps, point=point, **named):
                    if next(steps) == point:
                        raise Killed
                    return real(*arguments, **named)

                patch.setattr(os, call, killed)
            try:
                relocated(env)
                finished = True
            except Killed:
                finished = False
        relocated(env)
        for number in range(4):
            text = b"%s/lib %d %s" % (bytes(env), number, bytes(env))
            assert (env / f"share/{number}").read_bytes() == text, point
        for other in ("unrecorded", "0-unrecorded"):
            assert (env / "share" / other).read_bytes() == (env / "share/1").read_bytes()
        if finished:
            assert (env / "share/unrecorded").samefile(env / "share/1")
            assert (env / "share/0-unrecorded").samefile(env / "share/1")
            return
    raise AssertionError("it never ended")


def test_what_conda_unpack_has_done_by_hand_stays(env):
    for name, (_, placeholder, mode) in FILES.items():
        update_prefix(str(env / name), str(env), placeholder.decode(), mode)
    before = contents(env)
    relocated(env)
    assert contents(env) == before


def test_it_moves_again_and_again(env):
    expect = expected(env)
    for previous, prefix in [(None, b"/w/a"), (b"/w/a", b"/w/a/much/longer"), (None, None)]:
        relocated(env, prefix, previous)
    relocated(env, None, b"/w/a/much/longer")
    assert contents(env) == expect


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have files of other users")
def test_root_leaves_a_user_s_files_the_user_s(env):
    for name in FILES:
        os.chown(env / name, 12345, 23456)
    os.chmod(env / "lib/program", 0o2551)
    relocated(env)
    for name in FILES:
        status = (env / name).stat()
        assert (status.st_uid, status.st_gid) == (12345, 23456), name
    assert stat.S_IMODE((env / "lib/program").stat().st_mode) == 0o2551


@pytest.mark.parametrize("what", ["owner", "attribute", "directory"])
def test_what_cannot_be_kept_is_found_before_the_first_rename(env, monkeypatch, what):
    last = list(FILES)[3]

    def refused(*arguments, **named):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if what == "owner":
        real = os.fstat
        made = (env / last).stat().st_ino

        def another(handle):
            found = real(handle)
            if found.st_ino == made:
                found = os.stat_result([*found[:4], 54321, *found[5:]])
            return found

        monkeypatch.setattr(os, "fstat", another)
        monkeypatch.setattr(os, "fchown", refused)
    elif what == "attribute":
        try:
            os.setxattr(env / last, "user.x", b"y")
        except OSError:
            pytest.skip("no extended attributes here")
        monkeypatch.setattr(os, "setxattr", refused)
    else:
        monkeypatch.setattr(os, "access", lambda *a, **n: False)
    before = contents(env)
    with pytest.raises(CannotCreate, match=last if what != "directory" else "bin/tool"):
        relocated(env)
    assert contents(env) == before


def test_attributes_and_access_lists_are_kept_and_none_comes_in(env):
    name = env / "bin/tool"
    try:
        os.setxattr(name, "user.kept", b"value")
    except OSError:
        pytest.skip("no extended attributes here")
    need("setfacl")
    subprocess.run(["setfacl", "-m", "u:12345:rx", name], check=True)
    # What is made in the private directory gets this.
    subprocess.run(["setfacl", "-d", "-m", "u:23456:rwx", env.parent], check=True)
    before = {each: os.getxattr(name, each) for each in os.listxattr(name)}
    plain = os.listxattr(env / "lib/program")
    relocated(env)
    assert {each: os.getxattr(name, each) for each in os.listxattr(name)} == before
    assert os.listxattr(env / "lib/program") == plain


def test_no_record_is_missed_and_no_file_changed_when_one_has_no_room(env):
    before = contents(env)
    with pytest.raises(RelocationError, match=f"has {len(OLD) + 1} bytes.*room for {len(OLD)}"):
        relocated(env, b"/" + b"x" * len(OLD))
    assert contents(env) == before


def test_a_path_that_would_read_as_unrelocated_afterwards_is_refused(tmp_path):
    env = environment(
        tmp_path / "e",
        {
            "a": (b"%s/lib/x" % bytes(tmp_path / "e/lib"), bytes(tmp_path / "e/lib"), "text"),
        },
    )
    before = contents(env)
    with pytest.raises(RelocationError, match="to another directory"):
        relocated(env)
    assert contents(env) == before


APART = 17_000
"""Records that are more than one batch."""

A, B = b"/opt/first", b"/opt/second"


def record_apart(env: Path, *records: "tuple[str, bytes]") -> None:
    """Give an environment these text records, each in another batch than the one before."""
    between = [f"('none/{number}', '/p', 'text'),\n" for number in range(APART)]
    lines = [f"({name!r}, {placeholder.decode()!r}, 'text'),\n" for name, placeholder in records]
    text = "".join(between).join(lines)
    (env / "bin/conda-unpack").write_text(f"_prefix_records = [\n{text}]\n")


@pytest.mark.parametrize(
    ("names", "previous", "size"),
    [(1, None, 0), (3, None, 2 * WINDOW), (1, b"/w/before", 2 * WINDOW), (3, b"/w/before", 0)],
)
@pytest.mark.parametrize("order", [(A, B), (b"/not/in/it", A, B), (A, B, A), (A, b"/not/in/it", B)])
def test_records_of_a_file_are_all_carried_out_however_far_apart(
    tmp_path, names, previous, size, order
):
    env = environment(tmp_path / "env", {})
    name, before = env / "share/x", previous or A
    name.parent.mkdir()
    name.write_bytes(b"%s/lib %s/lib\n" % (before, B) + b"y" * size + b"\n%s %s" % (B, before))
    expect = name.read_bytes().replace(before, bytes(env)).replace(B, bytes(env))
    for other in range(names - 1):
        os.link(name, env / f"share/{other}")
    name.chmod(0o400)
    record_apart(env, *[("share/x", placeholder) for placeholder in order])
    relocated(env, previous=previous)
    status = name.stat()
    assert name.read_bytes() == expect
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o400, names)
    relocated(env, previous=previous)
    assert name.stat().st_ino == status.st_ino


def test_records_far_apart_are_carried_out_fresh_and_where_the_environment_lies(run, tmp_path):
    packed = environment(tmp_path / "packed", {"share/x": (A + b"/lib " + B, A, "text")})
    record_apart(packed, ("share/x", A), ("share/x", B))
    archive = tmp_path / "packed.tar"
    subprocess.run(["tar", "cf", archive, "-C", packed, "."], check=True)
    fresh = tmp_path / "fresh"
    run("-e", archive, "-d", fresh, check=True)
    run("-e", packed, check=True)
    for env in (fresh, packed):
        assert (env / "share/x").read_bytes() == b"%s/lib %s" % (bytes(env), bytes(env))


def test_what_a_later_record_leaves_to_an_earlier_one_is_refused(tmp_path):
    """/w/lib goes to /w, and later /b does: of /b/lib the next run would make /w."""
    old = bytes(tmp_path / "w/lib")
    env = environment(tmp_path / "w", {"share/x": (old + b"/y /b/lib", old, "text")})
    record_apart(env, ("share/x", old), ("share/x", b"/b"))
    before = contents(env)
    with pytest.raises(RelocationError, match="to another directory"):
        relocated(env)
    assert contents(env) == before


def test_a_link_in_the_place_of_a_directory_or_file_leads_nowhere(env):
    victim = env.parent / "victim"
    victim.write_bytes(OLD)
    (env / "share/none").unlink()
    (env / "share/none").symlink_to(victim)
    with pytest.raises(Exception, match="share/none"):
        relocated(env)
    assert victim.read_bytes() == OLD
    assert (env / "bin/tool").read_bytes() == FILES["bin/tool"][0]


CODESIGN = """\
#!{python}
import os, sys
if len(sys.argv) > 4:
    open({log!r}, "a").write(repr(sys.argv[1:]) + "\\n")
for name in sys.argv[4:]:
    data = open(name, "rb").read()
    os.unlink(name)
    open(name, "wb").write(data + b"signed")
"""


@pytest.mark.parametrize("used", [True, False])
def test_on_apple_s_processors_changed_programs_are_signed_in_one_call(tmp_path, monkeypatch, used):
    program = b"\xcf\xfa\xed\xfe\0%s/lib\0" % OLD
    files = {f"lib/{n}.dylib": (program, OLD, "binary") for n in range(3)}
    files["lib/fat"] = (b"\xca\xfe\xba\xbe\0\0\0\2" + program, OLD, "binary")
    files["lib/A.class"] = (b"\xca\xfe\xba\xbe\0\0\0\x34" + program, OLD, "binary")
    files["lib/unchanged"] = (b"\xcf\xfa\xed\xfe\0", OLD, "binary")
    files["text"] = (OLD, OLD, "text")
    env = environment(tmp_path / "env", files)
    log = tmp_path / "log"
    (tmp_path / "commands").mkdir()
    fake = tmp_path / "commands" / "codesign"
    fake.write_text(CODESIGN.format(python=sys.executable, log=str(log)))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "commands"), prepend=":")
    monkeypatch.setattr(sys, "platform", "darwin")
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: (*real[:4], "arm64"))
    told = {}

    def rewritten(path, handle, pieces):
        told[path] = os.pread(handle, 1000, 0), pieces

    if used:
        relocated(env)
    else:
        handle = os.open(env, os.O_RDONLY)
        relocate.relocate(handle, bytes(env), None, rewritten)
        os.close(handle)
    calls = log.read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].startswith("['-s', '-', '-f', './")
    signed = {name for name, data in contents(env).items() if data.endswith(b"signed")}
    assert signed == {"lib/0.dylib", "lib/1.dylib", "lib/2.dylib", "lib/fat"}
    for name in signed:
        assert bytes(env) in (env / name).read_bytes()
        assert stat.S_IMODE((env / name).stat().st_mode) == 0o644
        # What was told for the manifest is what is there.
        assert used or told[name.encode()] == ((env / name).read_bytes(), None)
    assert used or set(told) == {name.encode() for name in (*signed, "lib/A.class", "text")}


def test_programs_that_cannot_be_signed_are_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    handle = os.open(tmp_path, os.O_RDONLY)
    codesign.sign(handle, [b"f"])
    os.close(handle)
    assert "codesign" in capfd.readouterr().err


def test_more_programs_than_a_command_line_holds_are_signed_in_several_calls(tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake = tmp_path / "codesign"
    fake.write_text(f'#!/bin/sh\necho $(($# - 3)) >> "{log}"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    handle = os.open(tmp_path, os.O_RDONLY)
    codesign.sign(handle, [b"n" * 200] * 1000)
    os.close(handle)
    counts = [int(line) for line in log.read_text().split()]
    assert sum(counts) == 1000
    assert 1 < len(counts) < 8

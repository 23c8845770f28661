"""Scripts whose first line cannot hold the prefix are started, by every interpreter there is."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from poncho_package_run.relocation.shebang import startable
from support import relocations
from support.environments import PLACEHOLDER
from support.tars import environment, member, symlink

LONG = b"/" + b"d" * 140

SHELLS = [["dash"], ["busybox", "sh"], ["bash"], ["bash", "--posix"]]


def interpreters() -> list[Path]:
    """Every Python that is found on PATH or that pyenv has, one of each version."""
    names = ["python2.7", "pypy3", *(f"python3.{minor}" for minor in range(6, 16))]
    found = {}
    for name in names:
        pattern = name.replace("python", "") + ".*/bin/python"
        homes = [*Path("~/.pyenv/versions").expanduser().glob(pattern), shutil.which(name)]
        for each in filter(None, homes):
            command = [each, "-c", "import sys; print(sys.version)"]
            # pyenv puts commands on PATH that only say that there is none.
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if result.returncode == 0:
                found.setdefault(result.stdout, Path(each))
                break
    return list(found.values())


SCRIPT = b'''\
# A licence; nothing here is for a shell: $(exit 3) `exit 4` "
"""Usage: a docstring, which is \xe4 one."""
from __future__ import division
import sys
assert "docstring" in __doc__ and len(__doc__) == 35, repr(__doc__)
assert 1 / 2 == 0.5
sys.stdout.write("%r %d" % (sys.argv[1:], sys.flags.ignore_environment))
'''


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_docstring_a_future_and_a_coding_line_survive_a_long_path(tmp_path, shell):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"needs {shell[0]}")
    place = tmp_path / ("a path's " + "d" * 120)
    place.mkdir()
    prefix = os.fsencode(place)
    (place / "bin").mkdir()
    pythons = interpreters()
    assert pythons
    for number, python in enumerate(pythons):
        # A name in bin, as an environment has it; its own home is found through the link.
        os.symlink(os.path.realpath(python), place / "bin" / f"python{number}")
        first = b"#!%s/bin/python%d -E\n" % (prefix, number)
        script = place / "script"
        script.write_bytes(startable(first + b"# -*- coding: latin-1 -*-\n" + SCRIPT, prefix))
        assert script.read_bytes().split(b"\n")[1] == b"# -*- coding: latin-1 -*-"
        command = [*shell, script, "one  two", "$x", ""]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert (result.stderr, result.returncode) == (b"", 0), (python, result.stderr)
        assert result.stdout == b"['one  two', '$x', ''] 1", python


@pytest.mark.parametrize("place", ["d" * 140, "a b", "it's " + "d" * 120, "coding=no " + "d" * 120])
@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"# coding: latin-1\n",
        b"\t # vim: set fileencoding=latin-1 :\n",
        b"'''a docstring'''\n",
        b"# coding: latin-1\n'''\xe4'''\nfrom __future__ import annotations\n",
        b"from __future__ import annotations\n",
    ],
)
def test_a_script_starts_outside_of_its_environment_too(run, tmp_path, place, beginning):
    kept = tmp_path / place
    script = (
        f"#!{PLACEHOLDER}/bin/python3\n".encode() + beginning + b"import sys; print(sys.argv)\n"
    )
    records = f"_prefix_records = [\n('bin/tool', {PLACEHOLDER!r}, 'text'),\n]\n".encode()
    packed = tmp_path / "packed"
    packed.write_bytes(
        environment(
            member(b"bin/tool", script, mode=0o755),
            symlink(b"bin/python3", os.fsencode(os.path.realpath(shutil.which("python3") or ""))),
            member(b"bin/conda-unpack", records, mode=0o755),
        )
    )
    inside = run("-e", packed, "-d", kept, "tool", "a  b", check=True)
    outside = subprocess.run(
        [kept / "bin" / "tool", "a  b"],
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert outside.stderr == b""
    assert outside.stdout == inside.stdout
    assert b"a  b" in inside.stdout


OUTSIDE = [b"libexec/ash", b"bin/sub/ash", b"bin/../libexec/ash", b"libexec/bin/ash"]
"""Interpreters of an environment that are not found on its PATH."""


@pytest.mark.parametrize("shell", OUTSIDE)
@pytest.mark.parametrize("way", ["fresh", "in place", "zip"])
def test_an_interpreter_outside_of_bin_is_named_by_its_path(run, tmp_path, way, shell):
    kept = tmp_path / ("d" * 100)
    packed, moved = tmp_path / "packed", Path(f"{kept}-moved")
    placeholder = PLACEHOLDER.encode()
    script = b"#!%s/%s -e\necho started\n" % (placeholder, shell)
    relocations.environment(packed, {"bin/tool": (script, placeholder, "text")})
    (packed / "bin/tool").chmod(0o755)
    interpreter = packed / os.path.normpath(os.fsdecode(shell))
    interpreter.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/sh", interpreter)
    if way == "in place":
        packed.rename(kept)
        run("-e", kept, check=True)
    else:
        archive = shutil.make_archive(str(packed), "zip" if way == "zip" else "tar", packed)
        run("-e", archive, "-d", kept, check=True)
    tool = "bin/tool"

    def expected(prefix):
        return b"#!%s/%s -e\necho started\n" % (bytes(prefix), shell)

    assert (kept / tool).read_bytes() == expected(kept)
    (kept / ".poncho_package_run_expanded").unlink()  # so that it is looked at again
    run("-e", kept, check=True)
    assert (kept / tool).read_bytes() == expected(kept)
    kept.rename(moved)
    run("-e", moved, check=True)
    assert (moved / tool).read_bytes() == expected(moved)
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release >= (5, 1) and expected(moved).index(b"\n") <= 255:
        assert run("-e", moved, "tool", check=True).stdout == b"started\n"


def test_where_no_system_takes_its_path_an_interpreter_is_looked_for_in_bin(run, tmp_path):
    """As R has it: lib/R/bin/Rscript is bin/Rscript, too."""
    placeholder = PLACEHOLDER.encode()
    script = b"#!%s/lib/R/bin/Rscript\necho started\n" % placeholder
    packed = tmp_path / "packed"
    relocations.environment(packed, {"bin/tool": (script, placeholder, "text")})
    (packed / "bin/tool").chmod(0o755)
    for name in ("lib/R/bin/Rscript", "bin/Rscript"):
        (packed / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/sh", packed / name)
    archive = shutil.make_archive(str(packed), "tar", packed)
    for name in ("a b", "/".join(["d" * 100] * 3)):
        result = run("-e", archive, "-d", tmp_path / name, "tool", check=True)
        assert result.stdout == b"started\n"


def test_an_interpreter_in_bin_is_found_however_its_path_is_spelled():
    for path in (b"/bin/perl", b"//bin/perl", b"/bin//perl"):
        assert startable(b"#!%s%s\n" % (LONG, path), LONG) == b"#!/usr/bin/env perl\n"


LINES = [
    b"/bin/python",
    b"/bin/python3.11 -E -s",
    b"/bin/pypy3",
    b"/bin/perl",
    b"/bin/perl -w",
    b"/bin/bash\r",
    b" ",
]
SECOND = [
    b"",
    b"# coding: utf-8\n",
    b"# -*- x -*-\n",
    b"#coding=latin-1",
    b"\n\n",
    b"print('\f#')\n",
]
PREFIXES = [LONG, b"/a b", b"/a'b c", b"/it's/" + b"x" * 130, b"/short", b"/a\tb"]


def test_a_start_that_was_made_stays_and_moves_with_the_environment():
    for line, second, first, then in itertools.product(LINES, SECOND, PREFIXES, PREFIXES):
        for space in (b"", b" ", b"\t "):
            original = b"#!" + space + first + line + b"\n" + second + b"import sys\n"
            once = startable(original, first)
            assert startable(once, first) == once
            if space or not line.startswith(b"/bin/py"):
                continue
            # As an edit of the text leaves it, and where that does not find the quoted path.
            fresh = startable(original.replace(first, then), then)
            moved = {once.replace(first, then), once if once.startswith(b"#!/bin/sh") else b""}
            for script in moved - {b""}:
                assert startable(script, then, first) == fresh


def test_what_other_tools_write_as_a_start_stays():
    script = b"#!/bin/sh\n'''exec' \"%s/bin/python\" \"$0\" \"$@\"\n' '''\nimport sys\n" % LONG
    assert startable(script, LONG, LONG) == script
    for data in (b"#!/bin/sh\n", b"#!/bin/sh", b"#!", b"#!/bin/sh\n#\n\f# 2>/dev/null; exec '"):
        assert startable(data, LONG, b"/x") == data


def test_options_of_other_languages_are_split_by_env(tmp_path):
    assert startable(b"#!%s/bin/perl\n" % LONG, LONG) == b"#!/usr/bin/env perl\n"
    script = startable(b"#!%s/bin/perl -w -T\nx\n" % LONG, LONG)
    assert script == b"#!/usr/bin/env -S perl -w -T\nx\n"

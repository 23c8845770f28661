"""Contract 9, which program a command is: one rule, with and without activation scripts."""

import os
import sys
from pathlib import Path

import pytest

from support import interpreters, tracing
from support.commands import missing, need
from support.messages import refused

WRONG = "#!/bin/sh\necho the wrong program\n"


SCRIPTS = ["scripts in bash", "scripts in sh"]


@pytest.fixture(params=["no scripts", *SCRIPTS])
def kind(request):
    return request.param


@pytest.fixture
def wrapper(kind):
    """The start of a command line that lets the machine have the shell in question."""
    if kind != "scripts in sh":
        return []
    places = [os.path.join(folder, "bash") for folder in os.environ["PATH"].split(os.pathsep)]
    paths = [path for path in [*places, "/bin/bash", "/usr/bin/bash"] if os.path.exists(path)]
    real = sorted({*paths, *map(os.path.realpath, paths)})
    return tracing.failing("access,faccessat,faccessat2", "ENOENT", paths=real, follow=False)


@pytest.fixture
def prefix(kind, tmp_path):
    """An environment; behind it on PATH lies another that has a ``tool`` as well."""
    path = tmp_path / "env"
    (path / "conda-meta").mkdir(parents=True)
    (path / "bin").mkdir()
    (tmp_path / "behind").mkdir()
    program(tmp_path / "behind" / "tool", WRONG)
    if kind != "no scripts":
        script(path, "export SCRIPT=1")
    return path


@pytest.fixture
def start(run, wrapper, prefix, tmp_path):
    def start(*words, **options):
        path = f"{tmp_path}/behind:{os.environ['PATH']}"
        options.setdefault("env", {"PATH": path})
        return run("-e", prefix, *words, wrapper=wrapper, cwd=tmp_path, **options)

    return start


def script(prefix, text):
    folder = prefix / "etc/conda/activate.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.sh").write_text(text + "\n")


def program(path, text, mode=0o755):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def foreign():
    """The first bytes of a program for another machine."""
    data = bytearray(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])
    data[18:20] = b"\x15\x00" if data[18:20] != b"\x15\x00" else b"\x3e\x00"
    return bytes(data)


BROKEN = {
    "a dangling link": (lambda path: path.symlink_to("/no/such/python"), "/no/such/python"),
    "a circle of links": (lambda path: path.symlink_to("tool"), "link"),
    "no x bit": (lambda path: program(path, WRONG, 0o644), "chmod"),
    "empty": (lambda path: program(path, ""), "empty"),
    "a directory": (lambda path: path.mkdir(), "directory"),
    "no interpreter": (lambda path: program(path, "#!/no/such/python\n"), "interpreter"),
    "for another machine": (lambda path: program(path, foreign()), "machine"),
    "a damaged program": (lambda path: program(path, b"\x7fELF\2\1\1" + bytes(99)), "machine"),
}


@pytest.mark.parametrize("make, word", BROKEN.values(), ids=BROKEN)
def test_what_the_environment_has_is_looked_for_nowhere_else(start, prefix, make, word):
    make(prefix / "bin" / "tool")
    refused(start("tool"), 126, str(prefix / "bin" / "tool"), word)


@pytest.mark.parametrize("make, word", BROKEN.values(), ids=BROKEN)
def test_a_path_is_refused_in_the_same_words(start, tmp_path, make, word):
    make(tmp_path / "tool")
    if word in ("/no/such/python", "link"):
        refused(start("./tool"), 126, "./tool", "link")
    else:
        refused(start("./tool"), 126, "./tool", word)


@pytest.mark.parametrize("name", ["a dangling link", "no x bit", "a directory"])
def test_elsewhere_what_is_no_program_is_passed_over(start, tmp_path, name):
    (tmp_path / "first").mkdir()
    BROKEN[name][0](tmp_path / "first" / "tool")
    path = f"{tmp_path}/first:{tmp_path}/behind:{os.environ['PATH']}"
    assert start("tool", env={"PATH": path}, check=True).stdout == b"the wrong program\n"


@pytest.mark.root
def test_on_a_file_system_mounted_noexec_the_systems_own_is_not_run(start, wrapper, prefix):
    if os.geteuid():
        missing("needs root: it mounts a file system")
    program(prefix / "bin" / "tool", WRONG)
    # A bind mount; the rest is as it was.
    mount = f"mount --bind {prefix} {prefix} && mount -o remount,bind,noexec {prefix}"
    wrapper[:0] = [need("unshare"), "-m", "sh", "-c", mount + ' && exec "$@"', "sh"]
    refused(start("tool"), 126, str(prefix / "bin" / "tool"), "noexec", "TMPDIR")


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_may_put_a_directory_in_front(start, prefix, tmp_path):
    program(prefix / "bin" / "tool", WRONG)
    (tmp_path / "added").mkdir()
    program(tmp_path / "added" / "tool", "#!/bin/sh\necho added $SCRIPT\n")
    script(prefix, f'export SCRIPT=1 PATH="{tmp_path}/added:$PATH"')
    assert start("tool", check=True).stdout == b"added 1\n"


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_may_make_the_program(start, prefix):
    made = prefix / "bin" / "tool"
    script(prefix, f"printf '#!/bin/sh\\necho made\\n' >{made}; chmod +x {made}")
    assert start("tool", check=True).stdout == b"made\n"


@pytest.mark.parametrize("word", ["tool", "./tool", "absolute"])
def test_the_command_has_the_name_that_was_given(start, prefix, tmp_path, word):
    # Of a program its first word; a script gets its path from the system.
    for path in (prefix / "bin" / "tool", tmp_path / "tool"):
        path.symlink_to(os.path.realpath("/bin/sh"))
    word = str(tmp_path / "tool") if word == "absolute" else word
    result = start(word, "-c", "tr '\\0' '\\n' </proc/$$/cmdline; :", check=True)
    assert result.stdout.decode().splitlines()[0] == word


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_loaders_variables_are_the_scripts_for_the_command_alone(start, prefix, tmp_path):
    (tmp_path / "behind" / "libc.so.6").write_text("no library")
    script(prefix, f'export LD_LIBRARY_PATH="{tmp_path}/behind"; unset LD_PRELOAD; PATH=/x:$PATH')
    program(prefix / "bin" / "tool", foreign())
    refused(start("tool"), 126, "machine")


NAMES = ["exit", "cd", "source", ".", "export", "ulimit"]


@pytest.mark.parametrize("name", NAMES)
def test_a_builtin_of_shells_is_not_found_and_the_line_says_how_to_run_it(start, name):
    env = {"PATH": "/nonexistent"}  # some systems have a program of that name
    refused(start("--", name, "7", env=env), 127, f"sh -c '{name} ...'")


def test_debug_names_the_program(start, prefix, tmp_path):
    program(prefix / "bin" / "tool", "#!/bin/sh\necho right\n")
    result = start("--debug", "-e", prefix, "tool", check=True)
    assert result.stdout == b"right\n"
    assert f"poncho_package_run: running {prefix}/bin/tool\n".encode() in result.stderr
    assert result.stderr.count(b"running") == 1
    result = start("--debug", "-e", prefix, "./behind/tool", check=True)
    assert f"running {tmp_path}/behind/tool\n".encode() in result.stderr


@pytest.mark.parametrize("name", ["SHELLOPTS", "PPID", "POSIXLY_CORRECT"])
def test_variables_that_no_shell_hands_on_are_the_callers(start, prefix, name):
    value = {"SHELLOPTS": "braceexpand:nounset", "PPID": "x"}.get(name, "1")
    env = {"PATH": os.environ["PATH"], name: value, "SHLVL": None}
    listing = dict(
        each.split(b"=", 1) for each in start("env", "-0", env=env).stdout.split(b"\0")[:-1]
    )
    assert listing[name.encode()] == value.encode()
    assert b"SHLVL" not in listing


@pytest.mark.parametrize("interpreter", interpreters.find(), ids=lambda each: each.name)
def test_every_interpreter_looks_behind_the_scripts(start, prefix, interpreter):
    (prefix / "bin" / "tool").symlink_to("/no/such/python")
    result = start("tool", interpreter=interpreter.path)
    refused(result, 126, "/no/such/python")


def test_a_prefix_with_a_colon_cannot_be_used():
    from poncho_package_run.telling import errors, refusal

    refusal.check_prefix(b"/a b/c;d")
    with pytest.raises(errors.CannotCreate, match=r"2026-11-25T12:00:00.*colon"):
        refusal.check_prefix(b"/w/2026-11-25T12:00:00")


def test_a_limit_of_threads_that_is_no_number(run, tiny):
    for value in ("\u00b2", "9" * 5000, "", "-1", "x"):
        env = {"PONCHO_PACKAGE_RUN_THREADS": value}
        result = run("-e", tiny, "hello", env=env, check=True)
        assert (result.stdout, result.stderr) == (b"hello\n", b"")

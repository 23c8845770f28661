"""Contract 8, activation: what the command's variables are, and the one shell that sources."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import interpreters, tracing
from support.commands import need
from support.process import children_of, group_members, wait_for

LINE = "poncho_package_run: activation script {} failed with status {};"


class Prefix:
    """An environment as a directory, used where it lies, so that nothing is unpacked."""

    def __init__(self, path):
        self.path = path
        self.write("conda-meta/history", "")
        (path / "bin").mkdir()

    def write(self, name, text, mode=0o644):
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, errors="surrogateescape")
        file.chmod(mode)
        return file

    def script(self, name, text):
        return self.write(f"etc/conda/activate.d/{name}", text)


@pytest.fixture
def prefix(tmp_path):
    return Prefix(tmp_path / "env")


@pytest.fixture(params=["bash", "sh"])
def shell(request):
    """The start of a command line; under "sh" the machine seems to have no bash."""
    if request.param == "bash":
        need("bash")
        return []
    places = [os.path.join(folder, "bash") for folder in os.environ["PATH"].split(os.pathsep)]
    paths = [path for path in [*places, "/bin/bash", "/usr/bin/bash"] if os.path.exists(path)]
    real = {*paths, *map(os.path.realpath, paths)}
    calls = "access,faccessat,faccessat2"
    return tracing.failing(calls, "ENOENT", paths=sorted(real), follow=False) if real else []


def parsed(listing):
    pairs = (entry.partition(b"=") for entry in listing.split(b"\0")[:-1])
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


@pytest.fixture
def variables_of(run, prefix):
    """What variables a command has that is run in ``prefix``."""

    def variables_of(where=None, **options):
        result = run("-e", where or prefix.path, "env", "-0", **options)
        assert result.returncode == 0, result.stderr
        return parsed(result.stdout)

    return variables_of


@pytest.fixture
def changes(variables_of, variables):
    """How those differ from the variables that the tool was given: new value, or None."""

    def changes(where=None, env=None, **options):
        before = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
        for name, value in (env or {}).items():
            before[name] = value
        before = {name: value for name, value in before.items() if value is not None}
        after = variables_of(where, env=env, **options)
        return {
            name: after.get(name)
            for name in {*before, *after}
            if before.get(name) != after.get(name)
        }

    return changes


def name_of(pid):
    """The name of the program that a process runs; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def first(path, rest=None):
    """PATH with the environment first."""
    return f"{path}/bin:{os.environ['PATH'] if rest is None else rest}"


def fresh(path, rest=None):
    """What activation sets where nothing was active."""
    return {
        "PATH": first(path, rest),
        "CONDA_PREFIX": str(path),
        "CONDA_DEFAULT_ENV": str(path),
        "CONDA_SHLVL": "1",
        "PYTHONNOUSERSITE": "1",
        "PONCHO_PREFIX": str(path),
    }


def test_01_only_the_variables_of_the_contract_change(changes, prefix):
    assert changes() == fresh(prefix.path)


def test_02_default_env_is_a_name_below_envs(changes, tmp_path):
    named = Prefix(tmp_path / "envs" / "named")
    assert changes(named.path)["CONDA_DEFAULT_ENV"] == "named"


@pytest.mark.parametrize("interpreter", interpreters.find(), ids=lambda each: each.name)
def test_03_no_interpreter_leaves_a_trace(run, variables, prefix, interpreter, tmp_path):
    # Nothing but this: in the C locale CPython sets LC_CTYPE (PEP 538).
    result = subprocess.run(
        ["env", "-i", f"PATH={os.environ['PATH']}", interpreter.path]
        + [os.environ.get("PONCHO_TEST_ARTIFACT") or artifact_path(), "-e", prefix.path]
        + ["env", "-0"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert parsed(result.stdout) == fresh(prefix.path)


def artifact_path():
    return Path(__file__).parents[1] / "dist" / "poncho_package_run.pyz"


@pytest.mark.parametrize("value", ["C.UTF-8", "C.utf8", "UTF-8", "C", "POSIX", "", "xx_YY.UTF-8"])
def test_04_the_callers_lc_ctype_is_handed_on(changes, prefix, value):
    locale = {"LC_ALL": None, "LANG": None, "LC_CTYPE": value}
    assert changes(env=locale) == fresh(prefix.path)


def test_05_previously_active_conda_environment(changes, prefix, tmp_path):
    old = tmp_path / "old"
    env = {
        "CONDA_PREFIX": str(old),
        "CONDA_DEFAULT_ENV": str(old),
        "CONDA_SHLVL": "1",
        "CONDA_PROMPT_MODIFIER": "(old) ",
        "PATH": f"/first:{old}/bin:/usr/bin:/bin:{old}/bin/",
    }
    assert changes(env=env) == {
        **fresh(prefix.path, "/first:/usr/bin:/bin"),
        "CONDA_SHLVL": "2",
        "CONDA_PREFIX_1": str(old),
    }


def test_06_previously_active_by_conda_pack_alone(changes, prefix, tmp_path):
    # Its bin/activate sets CONDA_PREFIX but no CONDA_SHLVL.
    old = tmp_path / "old"
    env = {"CONDA_PREFIX": str(old), "PATH": f"{old}/bin:/usr/bin:/bin"}
    assert changes(env=env) == fresh(prefix.path, "/usr/bin:/bin")


def test_07_previously_active_venv(changes, prefix, tmp_path):
    old = tmp_path / "old"
    env = {"VIRTUAL_ENV": str(old), "PATH": f"{old}/bin:/usr/bin:/bin"}
    assert changes(env=env) == {**fresh(prefix.path, "/usr/bin:/bin"), "VIRTUAL_ENV": None}


def test_08_the_same_environment_is_not_stacked(changes, prefix):
    env = {
        **fresh(prefix.path),
        "CONDA_SHLVL": "3",
        "PATH": f"/first:{prefix.path}/bin:/usr/bin:/bin",
    }
    assert changes(env=env) == {"PATH": first(prefix.path, "/first:/usr/bin:/bin")}


@pytest.mark.parametrize("level", ["", "many", "-3", "0"])
def test_09_a_level_that_makes_no_sense(changes, prefix, level):
    assert changes(env={"CONDA_SHLVL": level, "CONDA_PREFIX": "/old"}) == fresh(prefix.path)


def test_10_nested(run, artifact, prefix, tmp_path):
    inner = Prefix(tmp_path / "inner")
    outer = ["-e", prefix.path, sys.executable, artifact]
    after = parsed(run(*outer, "-e", inner.path, "env", "-0", check=True).stdout)
    assert after["CONDA_SHLVL"] == "2"
    assert after["CONDA_PREFIX_1"] == str(prefix.path)
    assert after["CONDA_PREFIX"] == str(inner.path)
    assert after["PATH"] == first(inner.path)


def test_11_path_is_unset(run, prefix):
    prefix.write("bin/own", "#!/bin/sh\nenv -0\n", 0o755)
    result = run("-e", prefix.path, "own", env={"PATH": None}, check=True)
    assert parsed(result.stdout)["PATH"] == first(prefix.path, "/bin:/usr/bin")


@pytest.mark.parametrize("value", [":/usr/bin", "", "/usr/bin:", "/usr/bin::/bin"])
def test_12_an_empty_word_in_path_stays(variables_of, prefix, value):
    # It means the working directory, and whether that is wanted is the caller's affair.
    env = {"PATH": value}
    prefix.write("bin/env", f'#!/bin/sh\nexec {need("env")} "$@"\n', 0o755)
    assert variables_of(env=env)["PATH"] == first(prefix.path, value)


@pytest.mark.parametrize("scripts", [False, True])
def test_13_cdpath(changes, prefix, tmp_path, scripts):
    (tmp_path / "elsewhere" / "env").mkdir(parents=True)
    if scripts:
        prefix.script("a.sh", "")
    env = {"CDPATH": str(tmp_path / "elsewhere")}
    assert changes(env=env, cwd=tmp_path) == fresh(prefix.path)


def test_14_python_path_and_home(changes, prefix):
    env = {"PYTHONPATH": "/a", "PYTHONNOUSERSITE": "", "PYTHONDONTWRITEBYTECODE": "x"}
    expected = {**fresh(prefix.path), "PYTHONPATH": None}
    del expected["PYTHONNOUSERSITE"]
    assert changes(env=env) == expected


def test_15_python_home(run, artifact, prefix):
    # The header starts the interpreter without heed to it; started by name it would not start.
    result = run("-e", prefix.path, "env", "-0", wrapper=["env", f"PYTHONHOME={sys.base_prefix}"])
    assert result.returncode == 0, result.stderr
    assert "PYTHONHOME" not in parsed(result.stdout)


def test_16_venv(changes, tmp_path):
    venv = Prefix(tmp_path / "venv")
    venv.write("pyvenv.cfg", "home = /usr/bin\n")
    (venv.path / "conda-meta" / "history").unlink()
    (venv.path / "conda-meta").rmdir()
    env = {
        "CONDA_PREFIX": "/old",
        "CONDA_PREFIX_1": "/older",
        "CONDA_SHLVL": "2",
        "CONDA_DEFAULT_ENV": "old",
        "CONDA_EXE": "/conda/bin/conda",
        "PATH": "/old/bin:/usr/bin:/bin",
    }
    assert changes(venv.path, env=env) == {
        "PATH": first(venv.path, "/usr/bin:/bin"),
        "VIRTUAL_ENV": str(venv.path),
        "PYTHONNOUSERSITE": "1",
        "PONCHO_PREFIX": str(venv.path),
        "CONDA_PREFIX": None,
        "CONDA_PREFIX_1": None,
        "CONDA_SHLVL": None,
        "CONDA_DEFAULT_ENV": None,
    }


def test_17_variables_of_packages_then_of_the_environment(changes, prefix):
    packages = "etc/conda/env_vars.d"
    prefix.write(f"{packages}/b.json", json.dumps({"BOTH": "b", "LAST": "b", "OFF": "b"}))
    prefix.write(f"{packages}/a.json", json.dumps({"BOTH": "a", "lower": "a", "NUMBER": 1}))
    prefix.write(f"{packages}/.hidden.json", json.dumps({"HIDDEN": "x"}))
    prefix.write(f"{packages}/README", "no JSON")
    state = {"LAST": "state", "OFF": "***unset***", "KEPT": "***unset***", "GONE": None}
    prefix.write("conda-meta/state", json.dumps({"version": 1, "env_vars": state}))
    env = {"KEPT": "the caller's", "GONE": "the caller's", "BOTH": "the caller's"}
    assert changes(env=env) == {
        **fresh(prefix.path),
        "BOTH": "b",
        "LAST": "state",
        "LOWER": "a",
        "NUMBER": "1",
        "GONE": None,
    }


@pytest.mark.parametrize("scripts", [False, True])
def test_18_quotes_and_newlines_in_values(changes, prefix, scripts):
    values = {
        "QUOTES": 'it\'s "quoted" `x` $(y) $HOME \\ ; & | *',
        "NEWLINES": "\na\n\nb\n",
        "ACCENTS": "é ☃ \u00a0",
        "EMPTY": "",
    }
    prefix.write("conda-meta/state", json.dumps({"env_vars": values}))
    if scripts:
        prefix.script("a.sh", "")
    own = {f"OWN_{name}": value for name, value in values.items()}
    assert changes(env=own) == {**fresh(prefix.path), **values}


@pytest.mark.parametrize("scripts", [False, True])
def test_18_bytes_that_are_no_text(run, prefix, scripts):
    if scripts:
        prefix.script("a.sh", "")
    result = run("-e", prefix.path, "env", "-0", env={"RAW": b"\xff\xfe\n"}, check=True)
    assert b"\0RAW=\xff\xfe\n\0" in b"\0" + result.stdout


MALFORMED = {
    "cut": b'{"A": "b"',
    "empty": b"",
    "no object": b'["A", "b"]',
    "not utf-8": b'{"A": "\xff"}',
    "lone surrogate": b'{"A": "\\ud800"}',
    "a name with =": b'{"A=B": "c"}',
    "no name": b'{"": "c"}',
    "a NUL": b'{"A": "b\\u0000"}',
    "deep": b"[" * 100000,
}


@pytest.mark.parametrize("name", ["etc/conda/env_vars.d/a.json", "conda-meta/state"])
@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_19_malformed_json(run, prefix, name, content):
    prefix.write("etc/conda/env_vars.d/good.json", json.dumps({"GOOD": "x"}))
    file = prefix.write(name, "")
    if name == "conda-meta/state" and content.startswith(b"{"):
        content = b'{"env_vars": %s}' % content
    file.write_bytes(content)
    result = run("-e", prefix.path, "env", "-0", check=True)
    assert parsed(result.stdout)["GOOD"] == "x"
    assert "A" not in parsed(result.stdout)
    assert result.stderr.startswith(b"poncho_package_run: ")
    assert os.fsencode(file) in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_20_variables_that_are_of_the_wrong_kind(run, prefix):
    prefix.write("conda-meta/state", json.dumps({"env_vars": ["A"]}))
    result = run("-e", prefix.path, "true", check=True)
    assert b"conda-meta/state" in result.stderr


HOSTILE = ["/dev/zero", "/dev/stdin", "fifo", "directory", "long"]


@pytest.mark.parametrize("name", ["etc/conda/env_vars.d/a.json", "conda-meta/state"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_20_what_is_no_file_or_never_ends(run, prefix, name, kind):
    prefix.write("etc/conda/env_vars.d/good.json", json.dumps({"GOOD": "x"}))
    path = prefix.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "long":
        path.write_text(json.dumps({"env_vars": {"A": " " * (1 << 20)}}))
    else:
        path.symlink_to(kind)
    reader, writer = os.pipe()
    words = ["-e", prefix.path, "env", "-0"]
    result = run(*words, stdin=reader, timeout=20, check=True, preexec_fn=limit_memory)
    os.close(reader)
    os.close(writer)
    assert parsed(result.stdout)["GOOD"] == "x"
    assert "A" not in parsed(result.stdout)
    assert os.fsencode(path) in result.stderr
    assert result.stderr.count(b"\n") == 1


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def test_20_poncho_prefix_is_the_environments(changes, prefix):
    # One of an environment around this one would lead tasks to its programs.
    assert changes(env={"PONCHO_PREFIX": "/outer"}) == fresh(prefix.path)


class TestScripts:
    def test_21_in_order(self, changes, prefix, shell):
        prefix.write("poncho/set_env", 'export ORDER="$ORDER set_env"; export GIVEN="$1"\n')
        for name in ("b.sh", "a.sh", "B.sh", "10.sh", "9.sh"):
            prefix.script(name, f'export ORDER="$ORDER {name}"\n')
        prefix.script(".hidden.sh", "export HIDDEN=1\n")
        prefix.script("c.csh", "setenv WRONG 1\n")
        assert changes(wrapper=shell) == {
            **fresh(prefix.path),
            "ORDER": " 10.sh 9.sh B.sh a.sh b.sh set_env",
            "GIVEN": str(prefix.path),
        }

    def test_22_they_see_the_activated_variables(self, variables_of, prefix, shell):
        prefix.write("conda-meta/state", json.dumps({"env_vars": {"STATE": "x"}}))
        prefix.write("bin/own-tool", "#!/bin/sh\necho found\n", 0o755)
        text = 'export SEEN="$CONDA_PREFIX $STATE $(own-tool)"\nexport PATH="/added:$PATH"\n'
        prefix.script("a.sh", text)
        after = variables_of(wrapper=shell)
        assert after["SEEN"] == f"{prefix.path} x found"
        assert after["PATH"] == "/added:" + first(prefix.path)

    def test_23_what_they_print_goes_to_stderr(self, run, prefix, shell):
        prefix.script("a.sh", "echo out; echo err >&2\n")
        result = run("-e", prefix.path, "echo", "command", wrapper=shell, check=True)
        assert result.stdout == b"command\n"
        assert result.stderr == b"out\nerr\n"

    FAILING = {
        "return": ("export A=1; return 3", 3),
        "exit": ("export A=1; exit 4", 4),
        "exit after set --": ("export A=1; set -- a b c d; exit 4", 4),
        "no such command": ("export A=1; no-such-command 2>/dev/null", 127),
        "syntax error": ("if then fi (", 2),
    }

    @pytest.mark.parametrize("text, status", FAILING.values(), ids=FAILING)
    def test_24_failing(self, run, prefix, shell, text, status):
        failing = prefix.script("b.sh", text + "\n")
        prefix.script("a.sh", "export BEFORE=1\n")
        prefix.script("c.sh", "export AFTER=1\n")
        words = ["a b", "", "*", "c\nd"]
        command = ["sh", "-c", 'printf "<%s>" "$BEFORE" "$AFTER" "$@"', "sh", *words]
        result = run("-e", prefix.path, *command, wrapper=shell, check=True)
        assert result.stdout == b"<1><1><a b><><*><c\nd>"
        told = LINE.format(failing, status).encode()
        assert [told in line for line in result.stderr.splitlines()].count(True) == 1

    MERELY_FALSE = {
        "false": "false",
        "a test": '[ -n "$NO_SUCH_VARIABLE" ]',
        "a test and more": '[ -n "$NO_SUCH_VARIABLE" ] && export B=1',
        "grep": "echo a | grep -q b",
        "exit 0": "exit 0",
    }

    @pytest.mark.parametrize("text", MERELY_FALSE.values(), ids=MERELY_FALSE)
    def test_24_a_last_test_that_was_false_is_no_failure(self, run, prefix, shell, text):
        prefix.script("a.sh", f"export A=1\n{text}\n")
        result = run("-e", prefix.path, "sh", "-c", "echo $A", wrapper=shell, check=True)
        assert (result.stdout, result.stderr) == (b"1\n", b"")

    @pytest.mark.parametrize("kind", ["fifo", "directory", "device", "dangling"])
    def test_24_what_is_no_file_is_told_and_passed_over(self, run, prefix, shell, kind):
        path = prefix.script("a.sh", "")
        prefix.script("b.sh", "export B=1\n")
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "device" else "/no/such/file")
        command = ["sh", "-c", "echo $B"]
        result = run("-e", prefix.path, *command, wrapper=shell, timeout=20, check=True)
        assert result.stdout == b"1\n"
        assert LINE.format(path, 126).encode() in result.stderr
        assert result.stderr.count(b"\n") == 1

    ENDING = {
        "exit 0": "exit 0",
        "unset variable": "set -u; echo $NO_SUCH_VARIABLE",
        "demanded variable": ": ${NO_SUCH_VARIABLE?is missing}",
        "set -e": "set -e; false",
        "read-only": "readonly FIXED=1; FIXED=2",
        "shift": "shift 5",
        "its own trap": "trap 'echo bye' EXIT",
        "what we would remove": "readonly PS1 PS4 PWD",
        "break": "break; continue",
    }

    @pytest.mark.parametrize("text", ENDING.values(), ids=ENDING)
    def test_25_ending_the_shell_does_not_end_the_run(self, run, prefix, shell, text):
        prefix.script("a.sh", f"export BEFORE=1\n{text}\n")
        prefix.script("b.sh", f"export AFTER=1\n{text}\n")
        command = ["sh", "-c", 'echo "$BEFORE $AFTER" "$@"', "sh", "x  y"]
        result = run("-e", prefix.path, *command, wrapper=shell, check=True)
        assert result.stdout == b"1 1 x  y\n"

    DISTURBING = {
        "set --": "set -- x y z",
        "shift": "shift 2>/dev/null || true; set -- x; shift",
        "IFS": "IFS=,x",
        "set -f": "set -f",
        "set -a": "set -a",
        "set -eu": "set -eu",
        "set -xv": "set -xv",
        "alias": "alias exec=false set=false cd=false 2>/dev/null",
        "cd": "cd /",
        "stdout closed": "exec >&-",
        "stdout moved": "exec >/dev/null",
        "umask": "umask 077; umask 022",
        "traps": "trap 'echo noise' DEBUG ERR RETURN 2>/dev/null || true",
        "a trap of ours": "trap - EXIT; trap 0; trap '' EXIT",
    }

    @pytest.mark.parametrize("text", DISTURBING.values(), ids=DISTURBING)
    def test_26_arguments_output_and_directory_stay_intact(
        self, run, prefix, shell, tmp_path, text
    ):
        if "exec" in text and shell:
            text = f"({text})"  # an exec in the shell itself outlasts "." in any shell but bash
        prefix.script("a.sh", text + "\n")
        # It is sourced as if it were the first.
        prefix.script("b.sh", "false; : $NO_SUCH_VARIABLE; export LATER=$((1 + $#))\n")
        words = ["a b", "", "*", "c\nd", "'", '"', "\\", "$HOME", "-x", "é\udcff"]
        command = ["sh", "-c", 'printf "<%s>" "$PWD" "$LATER" "$@"', "sh", *words]
        result = run("-e", prefix.path, *command, wrapper=shell, cwd=tmp_path, check=True)
        assert result.stdout == b"".join(
            b"<%s>" % os.fsencode(each) for each in [tmp_path, "1", *words]
        )

    def test_26_their_own_traps_work(self, variables_of, prefix, shell, tmp_path):
        """Of a function's end, of a subshell's, and of errors: as where a shell sources them."""
        text = f"""
            A=$(file={tmp_path}/file; trap 'rm "$file"' EXIT; echo a >"$file"; cat "$file")
            B=$(trap 'echo done' 0; :)
            export A B
        """
        of_bash = """
            work() { local file=$1; trap 'rm "$file"' RETURN; echo c >"$file"; read -r C <"$file"; }
            trap 'D=$D+' ERR
            D=0
            false
            trap - ERR
            false
            export C D
            work %s
            trap - RETURN
        """
        prefix.script("a.sh", text + ("" if shell else of_bash % (tmp_path / "file")))
        found = variables_of(wrapper=shell)
        assert (found["A"], found["B"]) == ("a", "done")
        assert shell or (found["C"], found["D"]) == ("c", "0+")
        assert not (tmp_path / "file").exists()

    def test_27_only_their_variables_are_added(self, changes, prefix, shell):
        prefix.script("a.sh", "export A=1; LOCAL=2; f() { :; }; cd /; cd - >/dev/null\n")
        assert changes(wrapper=shell) == {**fresh(prefix.path), "A": "1"}

    @pytest.mark.parametrize("name", ["PWD", "OLDPWD", "SHLVL", "_", "PS1", "PS2", "PS4"])
    @pytest.mark.parametrize("given", [True, False])
    def test_28_the_shells_own_variables_are_the_callers(
        self, changes, prefix, shell, name, given, tmp_path
    ):
        prefix.script("a.sh", f"cd /; {name}=x\n" if name != "_" else "cd /\n")
        value = "7" if name == "SHLVL" else "the caller's"
        if name == "SHLVL":
            prefix.script("a.sh", "")
        env = {name: value if given else None}
        assert changes(env=env, wrapper=shell, cwd=tmp_path) == fresh(prefix.path)

    ODD = {
        "SHELLOPTS": "braceexpand:errexit:nounset:xtrace",
        "BASHOPTS": "extglob",
        "POSIXLY_CORRECT": "1",
        "IFS": ",",
        "ENV": "/no/such/file",
        "PPID": "1",
        "OPTIND": "x",
        "SHLVL": "007",
        "BASHPID": "1",
        "BASH_VERSION": "5",
        "RANDOM": "7",
        "LINENO": "x",
        "EPOCHSECONDS": "0",
        "COMP_WORDBREAKS": " ",
        "a.b": "no name in a shell",
        "BASH_FUNC_hello%%": "() {  echo hello\n}",
    }

    @pytest.mark.parametrize("name", ODD)
    def test_29_odd_variables_of_the_caller_are_handed_on(self, changes, prefix, shell, name):
        prefix.script("a.sh", "export A=1\n")
        expected = {**fresh(prefix.path), "A": "1"}
        assert changes(env={name: self.ODD[name]}, wrapper=shell) == expected

    def test_30_bash_env_is_for_the_command(self, run, prefix, shell, tmp_path):
        (tmp_path / "startup").write_text("echo startup\n")
        prefix.script("a.sh", "echo script; exit 1\n")
        env = {"BASH_ENV": str(tmp_path / "startup")}
        # A copy, because where there is to be no bash the system's own cannot be seen.
        shutil.copy(need("bash"), tmp_path / "copy")
        words = ["-e", prefix.path, tmp_path / "copy", "-c", "echo command"]
        result = run(*words, env=env, wrapper=shell, check=True)
        assert result.stdout == b"startup\ncommand\n"
        assert result.stderr.count(b"startup") == 0

    @pytest.mark.parametrize("given", ["(mine) ", None])
    def test_31_a_prompt_is_set_while_they_run(self, changes, prefix, shell, given):
        prefix.script("a.sh", 'set -u; export SEEN="${PS1:+set}"; PS1="(env) $PS1"\n')
        expected = {**fresh(prefix.path), "SEEN": "set"}
        assert changes(env={"PS1": given}, wrapper=shell) == expected

    def test_32_declarations_of_bash_are_global(self, changes, prefix):
        need("bash")
        prefix.script("a.sh", "declare -x A=1; typeset -x B=2; declare -i C=3; export C\n")
        expected = {**fresh(prefix.path), "A": "1", "B": "2", "C": "3"}
        assert changes() == expected

    def test_33_their_variables_may_hold_anything(self, variables_of, prefix, shell):
        prefix.script("a.sh", "export A='it'\"'\"'s\n\"new\" $(no)\n'\n")
        assert variables_of(wrapper=shell)["A"] == 'it\'s\n"new" $(no)\n'

    def test_34_stdin_is_the_commands(self, run, prefix, shell):
        prefix.script("a.sh", "export A=1\n")
        result = run("-e", prefix.path, "cat", stdin=None, input=b"in\n", wrapper=shell)
        assert result.stdout == b"in\n"

    def test_35_one_shell_and_no_other_process(self, run, prefix, tmp_path):
        log = tmp_path / "log"
        for name in "abc":
            prefix.script(f"{name}.sh", f"export {name}=1\n")
        wrapper = tracing.strace("-e", "execve,fork,vfork,clone,clone3", log=log)
        run("-e", prefix.path, "/bin/echo", wrapper=wrapper, check=True)
        calls = [line for line in log.read_text().splitlines() if " = 0" in line or "clone" in line]
        programs = [line.split('"')[1] for line in calls]
        assert len(programs) == 3, programs
        assert programs[1].endswith("/bash")
        assert programs[2] == "/bin/echo"

    def test_36_no_shell_without_scripts(self, run, prefix, tmp_path):
        log = tmp_path / "log"
        (prefix.path / "etc/conda/activate.d").mkdir(parents=True)
        wrapper = tracing.strace("-e", "execve,fork,vfork,clone,clone3", log=log)
        run("-e", prefix.path, "/bin/echo", wrapper=wrapper, check=True)
        programs = [line for line in log.read_text().splitlines() if " = 0" in line]
        assert len(programs) == 2, programs

    def test_37_a_missing_command(self, run, prefix, shell, tmp_path):
        prefix.script("a.sh", "")
        (tmp_path / "plain").write_text("")
        (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
        (tmp_path / "orphan").chmod(0o755)
        (tmp_path / "windows").write_bytes(b"#!/bin/sh\r\necho it\r\n")
        (tmp_path / "windows").chmod(0o755)
        for word, status in [
            ("no-such-command", 127),
            ("./no-such-command", 127),
            ("", 127),
            ("-x", 127),
            ("two\nlines", 127),
            ("./plain", 126),
            ("/", 126),
            ("./orphan", 126),
            ("./windows", 126),
        ]:
            words = ["--", word, "touch", "harm"]
            result = run("-e", prefix.path, *words, wrapper=shell, cwd=tmp_path)
            assert result.returncode == status, word
            assert not (tmp_path / "harm").exists(), "an argument was run as a command"
            assert result.stderr.startswith(b"poncho_package_run: "), word
            assert result.stderr.count(b"\n") == 1, result.stderr

    def test_37_an_exec_that_fails_unforeseen(self, run, prefix, shell, tmp_path):
        prefix.script("a.sh", "")
        shutil.copy(shutil.which("true"), tmp_path / "busy")
        with open(tmp_path / "busy", "ab"):
            words = ["./busy", "touch", "harm"]
            result = run("-e", prefix.path, *words, wrapper=shell, cwd=tmp_path)
        assert result.returncode == 126
        assert result.stderr.splitlines()[-1].startswith(b"poncho_package_run: cannot run ./busy")
        assert not (tmp_path / "harm").exists(), "an argument was run as a command"

    def test_38_the_signal_mask_is_the_callers(self, run, prefix, shell):
        prefix.script("a.sh", "export X=$(env true)\n")
        blocked = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMAX}

        def block():
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

        command = ["grep", "SigBlk", "/proc/self/status"]
        expected = subprocess.run(command, preexec_fn=block, capture_output=True).stdout
        result = run("-e", prefix.path, *command, wrapper=shell, preexec_fn=block, check=True)
        assert result.stdout == expected

    def test_38_stdout_closed(self, run, prefix, shell):
        prefix.script("a.sh", "echo noise\n")
        command = ["sh", "-c", "echo x 2>/dev/null || echo closed >&2"]
        closing = ["sh", "-c", 'exec "$@" >&-', "sh"]
        result = run("-e", prefix.path, *command, wrapper=[*closing, *shell], check=True)
        assert result.stderr == b"noise\nclosed\n"

    def test_39_stderr_closed(self, run, prefix, shell):
        prefix.script("a.sh", "echo noise\n")
        closing = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
        result = run("-e", prefix.path, "echo", "x", wrapper=[*closing, *shell], check=True)
        assert result.stdout == b"x\n"

    @pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "PIPE", "SEGV"])
    @pytest.mark.parametrize("body", ["sleep 60", "while :; do :; done"])
    def test_39_a_signal_while_they_run_ends_the_run(self, spawn, prefix, shell, name, body):
        prefix.script("a.sh", f"echo ready >&2; {body}\n")
        words = ["-e", prefix.path, "echo", "the command was run"]
        tool = spawn(*words, wrapper=shell)
        assert tool.stderr.readline() == b"ready\n"
        if body.startswith("sleep"):
            # dash loses an INT that comes while it forks.
            wait_for(lambda: b"sleep" in map(name_of, group_members(tool.pid)))
        number = getattr(signal, f"SIG{name}")
        if shell:  # one by one, because strace, as it ends, would lose what it passes on
            (sh,) = children_of(tool.pid)
            for pid in [sh, *children_of(sh)]:
                os.kill(pid, number)
        else:  # to the whole group, as a terminal does
            os.killpg(tool.pid, number)
        assert tool.wait(30) == -number
        assert tool.stdout.read() == b""


class TestLeaving:
    """The scripts that end what the environment active in the caller had begun."""

    @pytest.fixture
    def outer(self, tmp_path):
        outer = Prefix(tmp_path / "outer")
        text = 'export ORDER="$ORDER {0}" SEEN{0}="$CONDA_PREFIX"\n'
        for name in "ac":
            outer.write(f"etc/conda/deactivate.d/{name}.sh", text.format(name))
        text = "export ORDER=\"$ORDER b\"; unset OUTER PROJ_DATA; exit 3\n"
        outer.write("etc/conda/deactivate.d/b.sh", text)
        return outer

    @staticmethod
    def active(outer):
        return {
            "CONDA_PREFIX": str(outer.path),
            "CONDA_SHLVL": "1",
            "OUTER": "1",
            "PROJ_DATA": "outer",
            "PATH": f"{outer.path}/bin:{os.environ['PATH']}",
        }

    @pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "none of its own"])
    def test_38_in_reverse_order_and_before_what_is_entered(
        self, run, prefix, outer, shell, scripts
    ):
        if scripts:
            prefix.script("x.sh", 'export ORDER="$ORDER x" SEENx="$CONDA_PREFIX"\n')
        prefix.write("conda-meta/state", json.dumps({"env_vars": {"PROJ_DATA": "mine"}}))
        result = run("-e", prefix.path, "env", "-0", env=self.active(outer), wrapper=shell)
        after = parsed(result.stdout)
        assert after["ORDER"] == " c b a" + (" x" if scripts else "")
        assert after["SEENc"] == after["SEENa"] == str(outer.path)
        assert after.get("SEENx", str(prefix.path)) == str(prefix.path)
        assert "OUTER" not in after
        assert after["PROJ_DATA"] == "mine"
        assert after["CONDA_PREFIX"] == after["PONCHO_PREFIX"] == str(prefix.path)
        assert after["CONDA_PREFIX_1"] == str(outer.path)
        assert after["PATH"] == first(prefix.path)
        path = outer.path / "etc/conda/deactivate.d/b.sh"
        assert result.stderr == LINE.format(path, 3).encode() + (
            b" the command is run without what it would have set\n"
        )

    def test_38_not_of_the_same_environment(self, run, outer):
        env = self.active(outer)
        after = parsed(run("-e", outer.path, "env", "-0", env=env, check=True).stdout)
        assert after["OUTER"] == "1"

    @pytest.mark.parametrize("value", ["", "relative", "/no/such/directory"])
    def test_38_not_of_what_is_no_environment(self, variables_of, prefix, outer, value, tmp_path):
        outer.path.rename(tmp_path / "relative")
        env = {"CONDA_PREFIX": value, "CONDA_SHLVL": "1", "OUTER": "1"}
        assert variables_of(env=env, cwd=tmp_path)["OUTER"] == "1"


class TestAgainstCondaPack:
    def sourced(self, environ, prefix):
        """What bash has after sourcing the activate script that conda-pack has put there."""
        program = '. "$1" >/dev/null; exec env -0'
        result = subprocess.run(
            [need("bash"), "--norc", "--noprofile", "-c", program, "bash", prefix / "bin/activate"],
            env=environ,
            stdout=subprocess.PIPE,
            check=True,
        )
        return parsed(result.stdout)

    def test_40_the_same_variables_but_for_the_contracts(
        self, run, environment, variables, tmp_path
    ):
        kept = tmp_path / "kept"
        listing = run("-e", environment.archive(), "-d", kept, "env", "-0", check=True).stdout
        ours, theirs = parsed(listing), self.sourced(variables, kept)
        assert ours["SHOWPREFIX_BUILT"] == f"{kept}/share"
        shells = {"PWD", "OLDPWD", "SHLVL", "_", "PS1", "_CONDA_PACK_OLD_PS1"}
        different = {
            name: ours.get(name)
            for name in {*ours, *theirs} - shells
            if ours.get(name) != theirs.get(name)
        }
        # conda-pack leaves these to conda.
        assert different == {
            "CONDA_DEFAULT_ENV": str(kept),
            "CONDA_SHLVL": "1",
            "PYTHONNOUSERSITE": "1",
            "PONCHO_PREFIX": str(kept),
            "SHOWPREFIX_MODE": "from env_vars.d",
            "SHOWPREFIX_BOTH": "from state",
            "STATE_VARIABLE": "from state",
        }

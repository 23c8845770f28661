"""Contract 1, the command line: a test for each row of its table and each rule below it."""

import os
import subprocess
import sys

import pytest

from support.messages import refused

PRINT_WORDS = ("sh", "-c", 'for word; do printf "%s\\0" "$word"; done', "sh")

AWKWARD = [
    b"",
    b" ",
    b"two words",
    b"'single' \"double\"",
    b"$HOME `id` $(id)",
    b"*",
    b"~",
    b"back\\slash\\n",
    b"line\nbreak",
    b"tab\t",
    b"-",
    b"--",
    b"-e",
    b"--help",
    b"--environment=other",
    b"a=b",
    b"!",
    "caf\u00e9 \u2603 \U0001f600".encode(),
    b"\xff\xfe not utf-8 \x80",
    b"\xed\xa0\x80 a lone surrogate",
]


def words_of(result):
    return result.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("spelling", ["-e {}", "-e{}", "--environment {}", "--environment={}"])
def test_environment_option(run, tiny, spelling):
    result = run(*spelling.format(tiny).split(), "hello", "there", check=True)
    assert result.stdout == b"hello there\n"
    assert result.stderr == b""


def test_environment_option_names_a_directory(run, tiny, tmp_path):
    kept = tmp_path / "kept"
    run("-e", tiny, "-d", kept, check=True)
    assert run("-e", kept, "hello", check=True).stdout == b"hello\n"


def test_environment_option_is_required(run):
    refused(run("true"), 64, "--environment", "--help")


@pytest.mark.parametrize(
    "spelling", ["-d {}", "-d{}", "--unpack-to {}", "--unpack-to={}", "-u {}", "-u{}"]
)
@pytest.mark.parametrize("order", ["before -e", "after -e"])
def test_unpack_to_option(run, tiny, tmp_path, spelling, order):
    kept = tmp_path / "kept"
    option, archive = spelling.format(kept).split(), ["-e", tiny]
    words = [*option, *archive] if order == "before -e" else [*archive, *option]
    result = run(*words, "sh", "-c", 'echo "$CONDA_PREFIX"', check=True)
    assert result.stdout.decode() == f"{kept}\n"
    assert (kept / "bin" / "hello").is_file()


@pytest.mark.parametrize("spelling", ["-w {}", "-w{}", "--wait-for-lock {}", "--wait-for-lock={}"])
@pytest.mark.parametrize("seconds", ["0", "1", "100000"])
def test_wait_for_lock_option(run, tiny, tmp_path, spelling, seconds):
    words = spelling.format(seconds).split()
    result = run("-e", tiny, "-d", tmp_path / "kept", *words, "hello", check=True)
    assert result.stdout == b"hello\n"


@pytest.mark.parametrize("seconds", ["", "soon", "-1", "1s", "nan", "inf", "1,5"])
def test_wait_for_lock_option_wants_a_number(run, tiny, seconds):
    refused(run("-e", tiny, f"--wait-for-lock={seconds}", "hello"), 64, "--wait-for-lock")


def test_debug_option(run, tiny):
    result = run("--debug", "-e", tiny, "hello", check=True)
    assert result.stdout == b"hello\n"
    assert b"unpack" in result.stderr


def test_debug_variable(run, tiny):
    result = run("-e", tiny, "hello", env={"PONCHO_PACKAGE_RUN_DEBUG": "yes"}, check=True)
    assert result.stdout == b"hello\n"
    assert b"unpack" in result.stderr


def test_without_debug_nothing_is_said(run, tiny):
    assert run("-e", tiny, "true", check=True).stderr == b""


@pytest.mark.parametrize("spelling", ["--help-env-creation", "--help-env", "--help-environment"])
def test_help_env_creation_option(run, spelling):
    result = run(spelling, check=True)
    assert b"conda-pack" in result.stdout
    assert b"conda create" in result.stdout
    assert result.stderr == b""


@pytest.mark.parametrize("spelling", ["-h", "--help"])
@pytest.mark.parametrize("before", [[], ["-d"], ["-e", "nowhere"]])
def test_help_option(run, spelling, before):
    result = run(*before, spelling, check=True)
    assert result.stderr == b""
    for option in (b"--environment", b"--unpack-to", b"--wait-for-lock", b"--debug", b"--version"):
        assert option in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_help_names_the_default_wait(run):
    assert b"300" in run("--help", check=True).stdout


def test_version_option(run):
    import poncho_package_run

    result = run("--version", check=True)
    assert poncho_package_run.__version__ in result.stdout.decode().split()
    assert result.stderr == b""


def test_options_end_at_the_first_other_word(run, tiny):
    result = run("-e", tiny, "hello", "-e", "x", "--debug", "--", "--help", check=True)
    assert result.stdout == b"hello -e x --debug -- --help\n"


def test_options_end_at_two_dashes(run, tiny):
    result = run("-e", tiny, "--", "hello", "--", "-d", check=True)
    assert result.stdout == b"hello -- -d\n"


def test_two_dashes_may_stand_before_a_command_that_looks_like_an_option(run, tiny, tmp_path):
    kept = tmp_path / "kept"
    run("-e", tiny, "-d", kept, check=True)
    (kept / "bin" / "hello").rename(kept / "bin" / "--hello")
    result = run("-e", tiny, "-d", kept, "--", "--hello", "x", check=True)
    assert result.stdout == b"hello x\n"


@pytest.mark.parametrize("where", ["temporary", "kept"])
@pytest.mark.parametrize("dashes", [[], ["--"]], ids=["plain", "dashes"])
def test_words_reach_the_command_byte_for_byte(run, tiny, tmp_path, where, dashes):
    place = ["-d", tmp_path / "kept"] if where == "kept" else []
    result = run("-e", tiny, *place, *dashes, *PRINT_WORDS, *AWKWARD, check=True)
    assert words_of(result) == AWKWARD


def test_words_pass_the_shell_of_activation_scripts_byte_for_byte(run, environment, tmp_path):
    words = ["-e", environment.archive(), "-d", tmp_path / "kept"]
    result = run(*words, *PRINT_WORDS, *AWKWARD, check=True)
    assert words_of(result) == AWKWARD


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "xx_YY.ISO-8859-15", None])
def test_words_reach_the_command_byte_for_byte_in_any_locale(run, tiny, locale):
    result = run("-e", tiny, *PRINT_WORDS, *AWKWARD, env={"LC_ALL": locale}, check=True)
    assert words_of(result) == AWKWARD


def test_option_values_may_hold_any_byte(run, tiny, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"\xff \xe9\n")
    os.mkdir(folder)
    archive, kept = os.path.join(folder, b"\xfe.tar"), os.path.join(folder, b"kept \xfd")
    with open(archive, "wb") as file:
        file.write(tiny.read_bytes())
    for words in ([b"-e", archive, b"-d", kept], [b"--environment=" + archive, b"-u" + kept]):
        result = run(*words, "sh", "-c", 'printf %s "$CONDA_PREFIX"', check=True)
        assert result.stdout == kept


class TestDashD:
    """``-d`` is both "unpack to" and, from later CCTools releases, "debug"."""

    def test_with_a_directory_it_unpacks_there(self, run, tiny, tmp_path):
        result = run("-d", "kept", "-e", tiny, "hello", cwd=tmp_path, check=True)
        assert result.stderr == b""
        assert (tmp_path / "kept" / "bin" / "hello").is_file()

    @pytest.mark.parametrize("option", ["-e {}", "--environment {}", "--environment={}", "-e{}"])
    def test_before_an_option_it_debugs(self, run, tiny, tmp_path, option):
        result = run("-d", *option.format(tiny).split(), "hello", cwd=tmp_path, check=True)
        assert result.stdout == b"hello\n"
        assert b"unpack" in result.stderr
        assert sorted(os.listdir(tmp_path)) == ["tmp"], "nothing was unpacked here"

    def test_before_another_d_it_debugs(self, run, tiny, tmp_path):
        result = run("-d", "-d", "kept", "-e", tiny, "hello", cwd=tmp_path, check=True)
        assert b"unpack" in result.stderr
        assert (tmp_path / "kept").is_dir()

    def test_before_two_dashes_it_debugs(self, run, tiny, tmp_path):
        result = run("-e", tiny, "-d", "--", "hello", cwd=tmp_path, check=True)
        assert result.stdout == b"hello\n"
        assert b"unpack" in result.stderr
        assert not (tmp_path / "--").exists()

    def test_at_the_end_of_the_line_it_debugs(self, run, tiny, tmp_path):
        result = run("-e", tiny, "-d", cwd=tmp_path, check=True)
        assert result.stdout == b""
        assert b"unpack" in result.stderr

    def test_as_coffea_gives_it(self, run, tiny, tmp_path):
        words = ["-d", "-e", tiny, "-u", tmp_path / "kept", "--", "hello", "1"]
        result = run(*words, check=True)
        assert result.stdout == b"hello 1\n"
        assert b"unpack" in result.stderr
        assert (tmp_path / "kept" / "bin" / "hello").is_file()

    def test_a_directory_named_like_an_option_remains_possible(self, run, tiny, tmp_path):
        run("-d", "./-e", "-e", tiny, "hello", cwd=tmp_path, check=True)
        assert (tmp_path / "-e" / "bin" / "hello").is_file()

    def test_the_long_option_has_one_reading(self, run, tiny, tmp_path):
        run("--unpack-to", "-e", "-e", tiny, "hello", cwd=tmp_path, check=True)
        assert (tmp_path / "-e" / "bin" / "hello").is_file()


def test_without_a_command_the_environment_is_prepared(run, tiny, tmp_path):
    result = run("-e", tiny, "-d", tmp_path / "kept", check=True)
    assert (result.stdout, result.stderr) == (b"", b"")
    assert (tmp_path / "kept" / "bin" / "hello").is_file()


@pytest.mark.parametrize("dashes", [[], ["--"]], ids=["plain", "dashes"])
def test_without_a_command_a_temporary_environment_is_tried_out(run, tiny, tmp_path, dashes):
    result = run("-e", tiny, *dashes, check=True)
    assert (result.stdout, result.stderr) == (b"", b"")
    assert os.listdir(tmp_path / "tmp") == []


def test_without_a_command_a_bad_archive_is_found(run, tmp_path):
    (tmp_path / "bad").write_bytes(b"not an archive")
    refused(run("-e", tmp_path / "bad"), 65, str(tmp_path / "bad"))


class TestOptionsOfCCTools:
    """What poncho_package_run and python_package_run had, in any release, does not stop a task."""

    @pytest.mark.parametrize("option", ["-k", "--keep-alive", "-r", "--remove-locking"])
    @pytest.mark.parametrize("place", [[], ["-u", "kept"]], ids=["temporary", "kept"])
    def test_it_is_accepted(self, run, tiny, tmp_path, option, place):
        for words in ([option, "-e", tiny], ["-e", tiny, option]):
            result = run(*words, *place, "--", "hello", option, cwd=tmp_path, check=True)
            assert result.stdout == f"hello {option}\n".encode()
            assert result.stderr == b""
        assert os.listdir(tmp_path / "tmp") == []

    @pytest.mark.parametrize("option", ["-n", "--no-command"])
    def test_without_its_command_the_environment_is_prepared(self, run, tiny, tmp_path, option):
        result = run("-e", tiny, "-u", "kept", option, "hello", cwd=tmp_path, check=True)
        assert (result.stdout, result.stderr) == (b"", b"")
        assert (tmp_path / "kept" / "bin" / "hello").is_file()


@pytest.mark.parametrize("option", ["--help", "--version", "--help-env-creation"])
@pytest.mark.parametrize("how", [">&-", ">/dev/full", ">&- 2>&-", "2>&-", "<&-"])
@pytest.mark.parametrize("direct", [True, False], ids=["directly", "by python3"])
def test_a_text_that_cannot_be_written(artifact, variables, option, how, direct):
    first = [] if direct else [sys.executable]
    words = ["sh", "-c", f'exec "$@" {how}', "sh", *first, artifact, option]
    result = subprocess.run(words, env=variables, capture_output=True)
    if "2>&-" in how or "<&-" in how:
        assert result.returncode == (74 if ">&- " in how else 0)
        assert result.stderr == b""
    else:
        refused(result, 74, "stdout")


@pytest.mark.parametrize("option", ["-d", "--unpack-to=", "-u"])
def test_a_relative_directory_when_the_working_directory_is_gone(run, tiny, tmp_path, option):
    (tmp_path / "work").mkdir()
    wrapper = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"]
    words = [f"{option}kept"] if option[-1] == "=" else [option, "kept"]
    result = run("-e", tiny, *words, "hello", wrapper=wrapper, cwd=tmp_path / "work")
    refused(result, 73, "kept", "working directory", "/")


def test_pythoninspect_does_not_keep_the_interpreter(run, tiny, tmp_path):
    env = {"PYTHONINSPECT": "1"}
    assert run("-e", tiny, "sh", "-c", "exit 7", env=env).returncode == 7
    refused(run("-e", tiny, "no-such-command", env=env), 127)
    refused(run("-e", tmp_path / "nowhere", env=env), 66)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing at all"),
        pytest.param(["--"], id="two dashes alone"),
        pytest.param(["-d"], id="-d alone"),
        pytest.param(["-e"], id="-e without its value"),
        pytest.param(["--environment"], id="--environment without its value"),
        pytest.param(["-e", "TINY", "-u"], id="-u without its value"),
        pytest.param(["-e", "TINY", "--unpack-to"], id="--unpack-to without its value"),
        pytest.param(["-e", "TINY", "-w"], id="-w without its value"),
        pytest.param(["-e", "TINY", "--unpack-to=", "true"], id="--unpack-to with no directory"),
        pytest.param(["--environment=", "true"], id="--environment with no path"),
        pytest.param(["-e", "TINY", "--nonsense", "true"], id="an unknown long option"),
        pytest.param(["-e", "TINY", "--nonsense=1", "true"], id="an unknown option with a value"),
        pytest.param(["-x", "-e", "TINY", "true"], id="an unknown short option"),
        pytest.param(["--debug=yes", "-e", "TINY", "true"], id="a value for an option without"),
        pytest.param([b"--\xff\xfe", "-e", "TINY"], id="an unknown option not in utf-8"),
    ],
)
def test_usage_error(run, tiny, words):
    result = run(*[tiny if word == "TINY" else word for word in words])
    refused(result, 64, "--help")


def test_usage_error_is_one_line_whatever_the_word(run):
    refused(run("--two\nlines"), 64, "--help")

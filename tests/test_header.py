"""The /bin/sh header of the artifact: what the caller gives reaches the command byte for byte."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.commands import missing, need
from support.process import wait_for

SHELLS = [
    ["dash"],
    ["bash", "--posix"],
    ["busybox", "sh"],
    ["mksh"],
    ["zsh", "--emulate", "sh"],
    ["yash"],
]
"""The shells that some system has as /bin/sh."""

PRINTER = """\
#include <stdio.h>
extern char **environ;
int main(void) {
    for (char **each = environ; *each; each++)
        fwrite(*each, 1, __builtin_strlen(*each) + 1, stdout);
    return 0;
}
"""

SET = [b"CONDA_DEFAULT_ENV", b"CONDA_PREFIX", b"CONDA_SHLVL", b"PONCHO_PREFIX"]
"""What activation sets, besides PATH and PYTHONNOUSERSITE."""

ODD = {
    b"BASH_FUNC_module%%": b"() { eval `modulecmd bash $*`; }",
    b"my.var": b"a dot",
    b"A-B": b"a dash",
    b"1": b"a digit",
    b"IFS": b",",
    b"OPTIND": b"7",
    b"PPID": b"1",
    b"PWD": b"/no/such/directory",
    b"OLDPWD": b"",
    b"PS1": b"\\w ",
    b"PS2": b"\n",
    b"PS4": b"\xff",
    b"_": b"/usr/bin/env",
    b"SHLVL": b"41",
    b"LINENO": b"1234",
    b"LC_CTYPE": b"C.UTF-8",
    b"ENV": b"/no/such/file",
    b"SHELLOPTS": b"braceexpand:errexit:nounset",
    # Names that the header once had, and has.
    b"entry": b"1",
    b"python": b"2",
    b"signal": b"3",
    b"caught": b"4",
    b"ignored": b"5",
    b"_ppr_fd": b"6",
    b"_ppr_entry": b"7",
    b"_ppr_notes": b"",
    b"PONCHO_PREFIX": b"/elsewhere",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An environment whose bin/printer prints its variables, and nothing else."""
    path = tmp_path_factory.mktemp("header") / "env"
    (path / "conda-meta").mkdir(parents=True)
    (path / "bin").mkdir()
    (path.parent / "printer.c").write_text(PRINTER)
    compiler = need("gcc")
    words = [compiler, "-o", path / "bin" / "printer", path.parent / "printer.c"]
    subprocess.run(words, check=True)
    return path


@pytest.fixture(params=SHELLS, ids=lambda words: words[0])
def shell(request):
    """The start of a command line by which that shell runs the header."""
    return [need(request.param[0]), *request.param[1:]]


def environment_of(variables):
    """What the command is to have of these variables."""
    expected = {name: value for name, value in variables.items() if name not in (*SET, b"PATH")}
    expected.pop(b"PYTHONPATH", None)
    expected.pop(b"PYTHONHOME", None)
    return {b"PYTHONNOUSERSITE": b"1", **expected}


def printed(output):
    pairs = [each.partition(b"=")[::2] for each in output.split(b"\0")[:-1]]
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: value for name, value in pairs if name not in (*SET, b"PATH")}


def check(artifact, world, shell, variables, **options):
    variables = {**variables, b"PATH": os.environb[b"PATH"]}
    words = [*shell, artifact, "-e", world, "printer"]
    result = subprocess.run(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **options
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert printed(result.stdout) == environment_of(variables)


def test_the_callers_variables_pass_every_shell(artifact, world, shell):
    if shell[-1] == "--posix":
        check(artifact, world, shell, ODD)
    else:
        # Elsewhere it would be a variable like another, but the tests' own bash reads it, too.
        check(artifact, world, shell, {k: v for k, v in ODD.items() if k != b"SHELLOPTS"})


def test_an_empty_environment_passes(artifact, world, shell):
    check(artifact, world, shell, {})


def test_a_large_environment_passes(artifact, world, shell):
    check(artifact, world, shell, {b"my.%d" % each: b"x" * 5000 for each in range(60)})


VARIABLES = st.dictionaries(
    st.one_of(
        st.sampled_from(sorted(ODD)).filter(lambda name: name not in (b"SHELLOPTS", b"LC_CTYPE")),
        st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x3D} & {*name}),
    ),
    st.binary(max_size=40).filter(lambda value: 0 not in value),
    max_size=12,
)

# These would have the interpreter or the loader work in another way, or the tool itself.
STEERING = (b"LD_", b"PYTHON", b"PONCHO", b"LC_", b"LANG", b"CONDA", b"VIRTUAL_ENV", b"TMPDIR")


@pytest.mark.parametrize("name", ["sh", "busybox"])
def test_any_environment_passes(artifact, world, name):
    words = [need(name), *(["sh"] if name == "busybox" else [])]

    @settings(max_examples=25, deadline=None, database=None)
    @given(VARIABLES)
    def passes(variables):
        kept = {name: v for name, v in variables.items() if not name.startswith(STEERING)}
        kept.pop(b"PATH", None)
        # dash runs no script at all where this is no number.
        kept.pop(b"OPTIND", None)
        check(artifact, world, words, kept)

    passes()


@pytest.mark.parametrize("free", [9, 6, 3])
def test_descriptors_stay_the_callers(artifact, world, shell, free):
    # All but one of those that a shell can name, so that the header has to find it.
    taken = [each for each in range(3, 10) if each != free]

    def take():
        null = os.open(os.devnull, os.O_WRONLY)
        for each in taken:
            os.dup2(null, each)

    variables = {name: value for name, value in ODD.items() if name != b"SHELLOPTS"}
    check(artifact, world, shell, variables, pass_fds=taken, preexec_fn=take)
    words = ["python3", "-c", "import os; print(*os.listdir('/proc/self/fd'))"]
    options = {"pass_fds": taken, "preexec_fn": take, "stdout": subprocess.PIPE, "check": True}
    expected = subprocess.run(words, **options).stdout
    assert subprocess.run([*shell, artifact, "-e", world, *words], **options).stdout == expected


def test_closed_standard_streams_pass(artifact, world, shell, tmp_path):
    script = f'exec "$@" <&- >{tmp_path}/out 2>&-'
    env = {k: v for k, v in ODD.items() if k != b"SHELLOPTS"}
    env[b"PATH"] = os.environb[b"PATH"]
    words = ["dash", "-c", script, "sh", "env", "-i"]
    words += [name + b"=" + value for name, value in env.items()]
    subprocess.run([*words, *shell, artifact, "-e", world, "printer"], check=True)
    assert printed((tmp_path / "out").read_bytes()) == environment_of(env)


def test_nothing_of_the_header_stays(artifact, world, tmp_path):
    # Neither while the command runs, nor if the tool is killed as it starts.
    marker = f"{tmp_path}/{'x' * 20}"
    shutil.copy(artifact, marker)

    def left():
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(pid))
        return found

    tool = subprocess.Popen([marker, "-e", world, "sleep", "60"])
    wait_for(lambda: Path(f"/proc/{tool.pid}/comm").read_text() == "sleep\n", what="the command")
    wait_for(lambda: left() == [], what="the header's processes to end")
    tool.kill()
    tool.wait()
    for delay in range(30):
        tool = subprocess.Popen([marker, "-e", world, "true"])
        time.sleep(delay / 2000)
        tool.kill()
        tool.wait()
    wait_for(lambda: left() == [], what="the header's processes to end")


def test_variables_without_a_name_or_a_value_are_passed_over(artifact, world):
    """Of which Python makes none either; no shell and no Python starts anything with them."""
    source = world.parent / "odd.c"
    source.write_text(
        "#include <unistd.h>\n"
        "int main(int count, char **words) {\n"
        '    char *given[] = {"PATH=/usr/bin:/bin", "=no=name", "=", "NOVALUE", "A=1", 0};\n'
        "    return execve(words[1], words + 1, given);\n"
        "}\n"
    )
    subprocess.run([need("gcc"), "-o", world.parent / "odd", source], check=True)
    for words in ([artifact], ["/usr/bin/env", "python3", artifact]):
        command = [world.parent / "odd", *words, "-e", world, "printer"]
        result = subprocess.run(command, capture_output=True)
        assert (result.returncode, result.stderr) == (0, b"")
        assert printed(result.stdout).items() >= {(b"A", b"1")}
        assert {b"", b"NOVALUE"}.isdisjoint(printed(result.stdout))


def test_a_python_of_another_name_is_found(artifact, world, shell, tmp_path):
    """And a directory is passed over."""
    (tmp_path / "python3").mkdir()
    (tmp_path / "python3.6").symlink_to(os.path.realpath(sys.executable))
    program = shutil.which(shell[0])
    words = [program, *shell[1:], artifact, "-e", world, "printer"]
    result = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"CONDA_PREFIX=" in result.stdout


def test_the_proc_of_another_pid_namespace_is_not_ours(artifact, world, shell, tmp_path):
    """Where it has other processes under the numbers of our own."""
    if os.geteuid():
        missing("needs root: the kernel keeps an ordinary user from what this is about")
    (tmp_path / "data").write_text("theirs\n")
    sleepers = "for each in 2 3 4 5 6 7 8 9; do OTHERS=1 sleep 60 <data & done; sleep 0.2; "
    words = [need("unshare"), "-pf", *shell, str(artifact), "-e", str(world), "printer"]
    outer = [need("unshare"), "-pf", "--kill-child", "--mount-proc", "sh", "-c"]
    script = sleepers + 'OURS=1 "$@"; exit $?'
    result = subprocess.run([*outer, script, "sh", *words], cwd=tmp_path, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"OURS" in printed(result.stdout) and b"OTHERS" not in printed(result.stdout)
    assert (tmp_path / "data").read_text() == "theirs\n"


def test_a_warm_start_needs_no_process(artifact, world):
    """Nor does it need the holder, where there may be no process more."""

    def limit():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    for path in (world, *world.parents):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(path.stat().st_mode | 0o055)
    result = subprocess.run(
        [need("dash"), artifact, "-e", world, "printer"], preexec_fn=limit, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"CONDA_PREFIX=" in result.stdout


@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no proc"])
def test_without_dev_the_header_still_starts(artifact, world, shell, proc):
    if os.geteuid():
        missing("needs root: it hides /dev")
    script = "mount -t tmpfs none /dev && " + ("" if proc else "mount -t tmpfs none /proc && ")
    words = [need("unshare"), "-m", "sh", "-c", script + 'exec "$@"', "sh"]
    for closing in ("", "exec 2>&-; "):
        inner = ["sh", "-c", closing + 'exec "$@"', "sh", *shell, artifact, "-e", world, "printer"]
        result = subprocess.run([*words, *inner], capture_output=True)
        assert (result.returncode, result.stderr) == (0, b""), closing
        assert b"CONDA_PREFIX=" in result.stdout


def test_without_proc_the_header_still_starts(artifact, world):
    if os.geteuid():
        missing("needs root: it hides /proc")
    script = f"mount -t tmpfs none /proc && exec {artifact} -e {world} printer"
    words = [need("unshare"), "-m", "sh", "-c", script]
    result = subprocess.run(words, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"CONDA_PREFIX=" in result.stdout


@pytest.mark.parametrize("ignored", [[], ["PIPE"], ["PIPE", "XFSZ"]], ids="+".join)
@pytest.mark.parametrize("blocked", [[], ["PIPE"], ["PIPE", "XFSZ", "USR1"]], ids="+".join)
def test_signals_that_the_caller_blocks_are_not_taken_for_ignored(
    artifact, world, shell, ignored, blocked
):
    def prepare():
        for name in ("PIPE", "XFSZ"):
            handler = signal.SIG_IGN if name in ignored else signal.SIG_DFL
            signal.signal(getattr(signal, "SIG" + name), handler)
        signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, "SIG" + n) for n in blocked])

    if "zsh" in shell[0] and ignored:
        pytest.skip("zsh resets ignored signals in what it forks")

    def seen(words):
        result = subprocess.run(
            [*words, "cat", "/proc/self/status"],
            stdout=subprocess.PIPE,
            preexec_fn=prepare,
            restore_signals=False,
            check=True,
        )
        lines = result.stdout.decode().splitlines()
        kept = ("SigPnd", "ShdPnd", "SigIgn", *([] if "mksh" in shell[0] else ["SigBlk"]))
        return [line for line in lines if line.startswith(kept)]  # mksh clears it as it starts

    assert seen([*shell, artifact, "-e", world]) == seen([])


def test_a_message_that_nobody_reads_does_not_change_the_status(artifact, world):
    reader, writer = os.pipe()
    os.close(reader)
    for first in ([], [need("python3")]):
        for blocked in ([], [signal.SIGPIPE]):
            result = subprocess.run(
                [*first, artifact, "-e", world, "no-such-command"],
                stderr=writer,
                preexec_fn=lambda blocked=blocked: signal.pthread_sigmask(
                    signal.SIG_BLOCK, blocked
                ),
            )
            assert result.returncode == 127
    os.close(writer)


def test_the_command_has_no_children_of_the_header(artifact, world):
    script = 'children=$(</proc/$$/task/$$/children); echo "<$children>"; :'
    result = subprocess.run([artifact, "-e", world, "bash", "-c", script], stdout=subprocess.PIPE)
    assert result.stdout == b"<>\n"

"""Contract 9, running the command: processes, signals, terminals, what is inherited.

Exit codes, deaths by signal, 126 and 127 are in test_exit_status.py; the variables are in
test_activation.py.
"""

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from support import interpreters, tracing
from support.commands import missing, need
from support.messages import refused, status_of
from support.process import children_of, group_members, is_alive, state_of, wait_for

RECEIVER = """\
import os, signal
numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
os.write(1, b"ready\\n")
while True:
    number = signal.sigwait(numbers)
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGTERM:
        break
"""
"""Prints the number of every signal it gets; ends with TERM."""

FAULTS = {"ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP"}
NOT_FORWARDED = {*FAULTS, "CHLD", "KILL", "STOP", "TTIN", "TTOU"}


@pytest.fixture(params=["temporary", "kept"])
def place(request, tmp_path, tiny):
    """The options for either kind of environment."""
    return ["-e", tiny, *(["-d", tmp_path / "kept"] if request.param == "kept" else [])]


@pytest.fixture(params=interpreters.find(), ids=lambda each: each.name)
def interpreter(request):
    return request.param.path


def left(tmp_path):
    return os.listdir(tmp_path / "tmp")


def number_of(name):
    if name.startswith("RTM"):
        base, _, more = name.partition("+")
        return getattr(signal, "SIG" + base) + int(more or 0)
    return int(getattr(signal, "SIG" + name))


def command_of(tool):
    """The pid of the command that a tool with a temporary environment waits for."""
    return wait_for(lambda: children_of(tool.pid), what="the command")[0]


def line_of(process, timeout=30):
    """The next line of its output."""
    line = b""
    while not line.endswith(b"\n"):
        # Unbuffered: what has been read is not left in a buffer that select does not see.
        poll = select.poll()  # for which a descriptor may have any number
        poll.register(process.stdout, select.POLLIN)
        ready = poll.poll(max(0, timeout) * 1000)
        assert ready, f"nothing more than {line!r} in {timeout} s"
        more = os.read(process.stdout.fileno(), 1)
        assert more, f"nothing more than {line!r}"
        line += more
    return line.decode().rstrip("\n")


class TestForwarding:
    SIGNALS = sorted(
        {each.name[3:] for each in signal.Signals} - NOT_FORWARDED - {"TERM"}
        | {"RTMIN+1", "RTMIN+2", "RTMAX"}
    )

    def test_01_every_signal_once(self, spawn, tiny, interpreter):
        tool = spawn("-e", tiny, sys.executable, "-c", RECEIVER, interpreter=interpreter)
        assert line_of(tool) == "ready"
        assert {"HUP", "INT", "QUIT", "USR1", "ALRM", "TSTP", "CONT", "WINCH"} < {*self.SIGNALS}
        for name in [*self.SIGNALS, "TERM"]:
            os.kill(tool.pid, number_of(name))
            assert line_of(tool) == str(number_of(name)), name
        assert tool.stdout.read() == b""
        assert tool.wait(20) == 0

    def test_02_real_time_signals_are_not_merged(self, spawn, tiny):
        tool = spawn("-e", tiny, sys.executable, "-c", RECEIVER)
        assert line_of(tool) == "ready"
        for _ in range(20):
            os.kill(tool.pid, signal.SIGRTMIN + 3)
        assert [line_of(tool) for _ in range(20)] == [str(signal.SIGRTMIN + 3)] * 20

    def test_03_ignored_signals_reach_a_command_that_wants_them(self, spawn, tiny):
        # CPython ignores PIPE; the caller ignores USR1.
        def ignore():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

        tool = spawn("-e", tiny, sys.executable, "-c", RECEIVER, preexec_fn=ignore)
        assert line_of(tool) == "ready"
        for name in ("USR1", "PIPE"):
            os.kill(tool.pid, number_of(name))
            assert line_of(tool) == str(number_of(name))

    @pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "RTMIN+5"])
    def test_04_a_signal_that_ends_the_command_ends_the_tool(self, spawn, place, tmp_path, name):
        script = "ulimit -c 0; echo ready; exec sleep 60"
        tool = spawn(*place, "sh", "-c", script, cwd=tmp_path)
        assert line_of(tool) == "ready"
        os.kill(tool.pid, number_of(name))
        tool.wait(20)
        assert status_of(tool) == 128 + number_of(name)
        assert left(tmp_path) == []

    def test_05_the_status_that_the_command_chooses(self, spawn, place, tmp_path):
        script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"
        tool = spawn(*place, "sh", "-c", script)
        assert line_of(tool) == "ready"
        tool.terminate()
        assert tool.wait(20) == 3
        assert left(tmp_path) == []

    def test_06_a_command_in_another_group_is_signalled_too(self, spawn, tiny):
        # It has left the foreground group; the tool is its only way to hear of a Ctrl-C.
        child = f"import os\nos.setpgid(0, 0)\n{RECEIVER}"
        tool = spawn("-e", tiny, sys.executable, "-c", child)
        assert line_of(tool) == "ready"
        os.kill(tool.pid, signal.SIGINT)
        assert line_of(tool) == str(int(signal.SIGINT))

    def test_07_the_kill_of_a_whole_group_leaves_no_process(self, spawn, place):
        tool = spawn(*place, "sh", "-c", "echo ready; sleep 60; true")
        assert line_of(tool) == "ready"
        os.killpg(tool.pid, signal.SIGKILL)
        tool.wait(20)
        wait_for(lambda: not group_members(tool.pid), what="the group to end")

    def test_08_waiting_takes_no_processor_time(self, spawn, tiny):
        def ticks():
            stat = Path(f"/proc/{tool.pid}/stat").read_text().rpartition(")")[2].split()
            return int(stat[11]) + int(stat[12])

        tool = spawn("-e", tiny, "sh", "-c", "echo ready; exec sleep 60")
        assert line_of(tool) == "ready"
        command_of(tool)
        wait_for(lambda: state_of(tool.pid) == "S", what="the tool to wait")
        before = ticks()
        time.sleep(0.5)
        assert ticks() == before


    def test_08_once_an_hour_the_caller_is_called(self, tmp_path):
        # In a process of its own, because it waits for children.
        script = (
            "import sys\n"
            "from poncho_package_run.command import supervise\n"
            "supervise._HOUR = 0.1\n"
            "calls = []\n"
            "command = [b'/bin/sh', b'-c', b'sleep 1; exit 3']\n"
            "status = supervise.supervise(command, {}, b'', False, (), lambda: calls.append(1))\n"
            "assert status == 3, status\n"
            "assert 5 <= len(calls) <= 10, calls\n"
        )
        source = Path(__file__).parents[1] / "src"
        subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": source}, check=True)

    @pytest.mark.root
    def test_08_as_process_1_it_reaps_orphans(self, artifact, tiny, variables):
        if os.geteuid():
            missing("needs root: it makes a pid namespace")
        script = (
            "n=0; while [ $n -lt 20 ]; do (sleep 0.01 & exit); n=$((n + 1)); done; sleep 0.5; "
            "cat /proc/[0-9]*/stat | grep -c ') Z '; exit 9"
        )
        words = [need("unshare"), "-pf", "--mount-proc", sys.executable, artifact, "-e", tiny]
        result = subprocess.run(
            [*words, "sh", "-c", script], env=variables, capture_output=True, timeout=60
        )
        assert (result.returncode, result.stdout, result.stderr) == (9, b"0\n", b"")

    def test_08_other_children_of_the_caller_are_left_alone(self, run, tiny):
        # They were there before the tool took their parent's place.
        script = 'sleep 0.3 & exec "$@"'
        counting = "sleep 0.6; cat /proc/[0-9]*/stat | grep -c \") Z $PPID \""
        wrapper = ["sh", "-c", script, "sh"]
        result = run("-e", tiny, "sh", "-c", counting, wrapper=wrapper)
        assert result.stdout == b"1\n"


def in_a_group_of_its_own():
    os.setpgid(0, 0)


class TestStopping:
    @pytest.mark.parametrize("name", ["TSTP", "STOP", "TTIN", "TTOU"])
    def test_09_stops_and_continues_with_the_command(self, spawn, tiny, name):
        script = f"echo ready; kill -{name} $$; echo continued; exit 5"
        tool = spawn(
            *("-e", tiny, "sh", "-c", script),
            start_new_session=False,  # a session's leader is not stopped but by STOP
            preexec_fn=in_a_group_of_its_own,
        )
        assert line_of(tool) == "ready"
        _, status = os.waitpid(tool.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == number_of(name)
        os.kill(tool.pid, signal.SIGCONT)
        assert line_of(tool) == "continued"
        assert tool.wait(20) == 5

    def test_10_whether_to_stop_is_for_the_command_to_say(self, spawn, tiny):
        script = "trap 'echo refused' TSTP; echo ready; while :; do sleep 0.01; done"
        tool = spawn("-e", tiny, "sh", "-c", script)
        assert line_of(tool) == "ready"
        os.kill(tool.pid, signal.SIGTSTP)
        assert line_of(tool) == "refused"
        assert state_of(tool.pid) == "S"

    def test_11_again_and_again(self, spawn, tiny):
        script = "echo ready; for n in 1 2 3 4 5; do kill -TSTP $$; echo $n; done"
        tool = spawn(
            *("-e", tiny, "sh", "-c", script),
            start_new_session=False,
            preexec_fn=in_a_group_of_its_own,
        )
        assert line_of(tool) == "ready"
        for turn in range(1, 6):
            os.waitpid(tool.pid, os.WUNTRACED)
            # As a shell does it: to the whole group.
            os.killpg(tool.pid, signal.SIGCONT)
            assert line_of(tool) == str(turn)
        assert tool.wait(20) == 0


class Terminal:
    """A pseudo-terminal with a process that leads its session."""

    def __init__(self, args, env):
        self.master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)

        def take_terminal():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            args,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - here are no threads
        )
        os.close(slave)
        self.shown = b""

    def send(self, text):
        os.write(self.master, text.encode())

    def expect(self, pattern, timeout=30):
        """Read until a line matches ``pattern``; what was shown up to its end."""
        end = time.monotonic() + timeout
        while True:
            found = re.search(rb"(?m)^(?:%s)\r?$" % pattern.encode(), self.shown)
            if found:
                before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
                return before
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.shown!r}"
            self.shown += os.read(self.master, 65536)

    def close(self):
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


@pytest.fixture
def terminal(variables):
    """Start a command on a terminal of its own."""
    opened = []

    def terminal(*args):
        opened.append(Terminal([os.fspath(each) for each in args], variables))
        return opened[-1]

    yield terminal
    for each in opened:
        each.close()
        each.process.kill()
        each.process.wait()


@pytest.fixture
def shell(terminal, artifact):
    """An interactive shell on a terminal, where ``$TOOL`` is the tool."""
    started = terminal(need("bash"), "--norc", "--noprofile", "--noediting", "-i")
    started.send(f"PS1= PS2=; TOOL='{sys.executable} {artifact}'; echo; echo at your service\n")
    started.expect("at your service")
    return started


class TestTerminal:
    def test_12_ctrl_c_reaches_the_command_once(self, terminal, artifact, tiny):
        tool = terminal(sys.executable, artifact, "-e", tiny, sys.executable, "-c", RECEIVER)
        tool.expect("ready")
        tool.send("\x03")
        tool.expect("2")
        tool.send("\x1c")
        tool.expect("3")
        os.kill(tool.process.pid, signal.SIGTERM)
        # Two signals that are pending at once would be one: what came before is not it.
        assert tool.expect("15").split() == [b"15"]
        assert tool.process.wait(20) == 0

    def test_13_ctrl_c_ends_command_and_tool(self, shell, place, tmp_path):
        words = " ".join(map(str, place))
        outer = "sh -c 'trap : INT; \"$@\"; echo status $?' sh"
        shell.send(f"{outer} $TOOL {words} sh -c 'echo ready; exec sleep 60'\n")
        shell.expect("ready")
        shell.send("\x03")
        shell.expect("status 130")
        wait_for(lambda: not left(tmp_path), what="the directory to be removed")

    def test_14_ctrl_z_and_fg(self, shell, place, tmp_path):
        words = " ".join(map(str, place))
        # Not a loop in sh: a program that is stopped between its vfork and exec cannot be.
        shell.send(f"$TOOL {words} sh -c 'echo $$; exec sleep 60'\n")
        command = int(shell.expect("[0-9]+").split()[-1])
        group = os.getpgid(command)
        for _ in range(3):
            shell.send("\x1a")
            shell.expect(r".*Stopped.*")
            for pid in {command, group}:
                # The shell reports the group as soon as its leader is stopped.
                wait_for(lambda pid=pid: state_of(pid) == "T", what=f"{pid} to be stopped")
            shell.send("fg\n")
            wait_for(lambda: state_of(command) != "T", what="the command to continue")
        shell.send("\x03")
        shell.send("echo again $?\n")
        shell.expect("again 130")
        assert left(tmp_path) == []

    def test_15_writing_in_the_background(self, shell, place):
        words = " ".join(map(str, place))
        shell.send(f"$TOOL {words} sh -c 'echo written; exit 4' & wait $!; echo status $?\n")
        shell.expect("written")
        shell.expect("status 4")

    def test_16_writing_in_the_background_where_that_stops(self, shell, place):
        words = " ".join(map(str, place))
        script = "echo writ''ten; exit 4"  # so that a list of jobs does not look like it
        shell.send(f'stty tostop; $TOOL {words} sh -c "{script}" &\n')
        shell.send("until jobs | grep Stopped; do sleep 0.05; done; echo seen\n")
        assert b"written" not in shell.expect("seen")
        shell.send("fg; echo status $?\n")
        shell.expect("written")
        shell.expect("status 4")

    def test_17_reading_in_the_background(self, shell, place):
        words = " ".join(map(str, place))
        shell.send(f"$TOOL {words} sh -c 'read line; echo \"got $line\"' &\n")
        shell.send("until jobs | grep Stopped; do sleep 0.05; done; echo seen\n")
        shell.expect("seen")
        shell.send("fg\n")
        shell.expect(".*read line.*")  # the shell names what it continues
        shell.send("this\n")
        shell.expect("got this")

    def test_18_hanging_up(self, terminal, artifact, place, tmp_path):
        child = "echo ready; sleep 60; true"
        tool = terminal(sys.executable, artifact, *place, "sh", "-c", child)
        tool.expect("ready")
        group = tool.process.pid
        tool.close()
        tool.process.wait(20)
        assert status_of(tool.process) == 128 + signal.SIGHUP
        wait_for(lambda: not group_members(group), what="the group to end")
        assert left(tmp_path) == []

    def test_19_a_background_command_that_reads_the_terminal_stays_stopped(
        self, terminal, artifact, tiny
    ):
        def ticks():
            stat = Path(f"/proc/{tool.process.pid}/stat").read_text().rpartition(")")[2].split()
            return int(stat[11]) + int(stat[12])

        script = "import os, sys\nos.setpgid(0, 0)\nprint('ready', flush=True)\nsys.stdin.read(1)\n"
        tool = terminal(sys.executable, artifact, "-e", tiny, sys.executable, "-c", script)
        tool.expect("ready")
        command = command_of(tool.process)
        wait_for(lambda: state_of(command) == "T", what="the command to be stopped")
        before = ticks()
        time.sleep(0.5)
        assert ticks() - before <= 2
        assert state_of(command) == "T"
        assert state_of(tool.process.pid) == "S"
        os.kill(tool.process.pid, signal.SIGTERM)
        os.kill(tool.process.pid, signal.SIGCONT)
        tool.process.wait(20)

    def test_19_the_size_of_the_window_is_told_once(self, terminal, artifact, tiny):
        tool = terminal(sys.executable, artifact, "-e", tiny, sys.executable, "-c", RECEIVER)
        tool.expect("ready")
        termios.tcsetwinsize(tool.master, (33, 44))
        tool.expect(str(int(signal.SIGWINCH)))
        os.kill(tool.process.pid, signal.SIGTERM)
        assert tool.expect("15").split() == [b"15"]


def unsettle():
    """Leave the shell's defaults: in the child, before it becomes the tool."""
    for name in ("HUP", "USR1", "TTOU", "CHLD", "RTMIN+1"):
        signal.signal(number_of(name), signal.SIG_IGN)
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD, signal.SIGRTMIN + 2]
    )
    os.umask(0o027)
    os.nice(3)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))


class TestInherited:
    @staticmethod
    def state(listing):
        """What a process inherits, of /proc/PID/status, limits and stat."""
        lines = listing.decode().splitlines()
        kept = re.compile("Sig(Blk|Ign|Cgt)|Umask|Groups|Cap|NoNewPrivs|Seccomp:|Max ")
        stat = lines[-1].rpartition(")")[2].split()
        return [line for line in lines if kept.match(line)], {
            "session": stat[3],
            "terminal": stat[4],
            "niceness": stat[16],
        }

    @pytest.mark.parametrize("prepared", [None, unsettle], ids=["defaults", "unsettled"])
    def test_20_signals_limits_and_the_rest(
        self, run, variables, place, interpreter, prepared, tmp_path
    ):
        # Not a shell: dash unblocks every signal as it starts.
        command = ["cat", "/proc/self/status", "/proc/self/limits", "/proc/self/stat"]
        options = {"preexec_fn": prepared, "cwd": tmp_path}
        expected = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options
        )
        result = run(*place, *command, interpreter=interpreter, check=True, **options)
        assert self.state(result.stdout) == self.state(expected.stdout)

    def test_20_working_directory(self, run, place, tmp_path):
        (tmp_path / "here").mkdir()
        result = run(*place, "pwd", "-P", cwd=tmp_path / "here", check=True)
        assert result.stdout == os.fsencode(tmp_path / "here") + b"\n"

    @pytest.mark.parametrize("names", [[], ["PIPE"], ["XFSZ"], ["PIPE", "XFSZ", "HUP"]])
    def test_21_ignored_signals_when_run_directly(self, artifact, variables, place, names):
        # The header is a shell, and can tell what CPython cannot.
        def ignore():
            for name in ("PIPE", "XFSZ", "HUP"):
                ignored = signal.SIG_IGN if name in names else signal.SIG_DFL
                signal.signal(number_of(name), ignored)

        command = ["sh", "-c", "grep '^Sig[IC]' /proc/self/status; env | grep -c -i _ppr"]
        options = {"env": variables, "preexec_fn": ignore, "restore_signals": False}
        expected = subprocess.run(command, stdout=subprocess.PIPE, **options).stdout
        result = subprocess.run([artifact, *place, *command], stdout=subprocess.PIPE, **options)
        assert result.stdout == expected

    @pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_22_descriptors(self, run, variables, place, tmp_path, closed):
        listing = (
            "import json, os, sys\n"
            "found = {}\n"
            "for each in range(1000):\n"
            "    try: found[each] = os.readlink('/proc/self/fd/%d' % each)\n"
            "    except OSError: pass\n"
            "json.dump(found, open(sys.argv[1], 'w'))\n"
        )
        reader, writer = os.pipe()
        high = fcntl.fcntl(reader, fcntl.F_DUPFD, 77)
        options = {"pass_fds": (reader, writer, high), "stdin": subprocess.DEVNULL}
        options.update(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wrapper = ["sh", "-c", f'exec "$@" {closed}', "sh"]
        command = [sys.executable, "-c", listing]
        first, second = tmp_path / "first", tmp_path / "second"
        subprocess.run([*wrapper, *command, first], env=variables, check=True, **options)
        run(*place, *command, second, wrapper=wrapper, check=True, **options)
        for each in (reader, writer, high):
            os.close(each)
        expected, found = json.loads(first.read_text()), json.loads(second.read_text())
        more = {name: found[name] for name in found if name not in expected}
        assert {name: found.get(name) for name in expected} == expected
        if "-d" in place:
            assert more == {}
        else:  # the lease
            ((number, target),) = more.items()
            assert int(number) >= 10
            assert target.startswith(str(tmp_path / "tmp"))

    def test_23_output_is_not_held_back(self, spawn, place):
        script = "printf partial; read line; printf more >&2; read line"
        tool = spawn(*place, "sh", "-c", script, stdin=subprocess.PIPE)
        assert tool.stdout.read(7) == b"partial"
        tool.stdin.write(b"\n")
        tool.stdin.flush()
        assert tool.stderr.read(4) == b"more"

    def test_24_input_reaches_the_command_whole(self, run, place):
        data = os.urandom(3 << 20)
        result = run(*place, "cat", stdin=None, input=data, check=True)
        assert result.stdout == data

    WORDS = {
        "empty": [""],
        "spaces": ["a  b", " ", "\t", "\n", "a\nb\n"],
        "quotes": ["'", '"', "\\", "`x`", "$HOME", "$(x)", "!!", "a'b\"c"],
        "globs": ["*", "?", "[a]", "~", "{a,b}"],
        "options": ["-e", "--environment", "--", "-", "-h", "--help", "-d", "--debug"],
        "operators": [";", "|", "&", ">", "<", "#", "a=b"],
        "not utf-8": [b"\xff\xfe", b"\xed\xa0\x80", "é☃".encode()],
        "long": ["x" * 100_000],
        "many": [str(number) for number in range(5000)],
    }

    @pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
    def test_25_odd_arguments(self, run, place, words):
        command = ["sh", "-c", 'printf "%s\\0" "$@"', "sh", *words]
        result = run(*place, *command, env={"LC_ALL": "C"}, check=True)
        assert result.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]

    def test_26_the_commands_own_name(self, run, place):
        result = run(*place, "sh", "-c", "tr '\\0' ' ' </proc/$$/cmdline; true", check=True)
        assert result.stdout.startswith(b"sh -c tr ")

    def test_27_same_process_if_kept_same_group_if_not(self, spawn, place):
        script = 'echo $$; read pid name state parent group rest </proc/$$/stat; echo "$group"'
        tool = spawn(*place, "sh", "-c", script)
        pid, group = int(line_of(tool)), int(line_of(tool))
        assert group == tool.pid
        assert (pid == tool.pid) == ("-d" in place)

    def test_28_nohup(self, spawn, place):
        tool = spawn(
            *(*place, "sh", "-c", "echo ready; read line; echo alive"),
            wrapper=[need("nohup")],
            stdin=subprocess.PIPE,
        )
        assert line_of(tool) == "ready"
        os.killpg(tool.pid, signal.SIGHUP)
        tool.stdin.write(b"\n")
        tool.stdin.close()
        assert line_of(tool) == "alive"
        assert tool.wait(20) == 0

    def test_29_what_outlives_the_command_is_not_waited_for(self, run, place):
        script = "sleep 60 </dev/null >/dev/null 2>&1 & echo $!"
        result = run(*place, "sh", "-c", script, check=True, timeout=30)
        survivor = int(result.stdout)
        assert is_alive(survivor)
        os.kill(survivor, signal.SIGKILL)

    def test_30_a_caller_that_reaps_no_children(self, run, place):
        def ignore():
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        result = run(*place, "sh", "-c", "exit 7", preexec_fn=ignore)
        assert result.returncode == 7

    def test_31_a_pipe_that_nobody_reads_ends_the_command_quietly(self, run, place):
        pipeline = ["sh", "-c", '"$@" | head -n 1', "sh"]
        result = run(*place, "sh", "-c", "while echo y; do :; done", wrapper=pipeline, check=True)
        assert (result.stdout, result.stderr) == (b"y\n", b"")


class TestExecuting:
    def test_32_a_script_without_a_first_line(self, run, place, tmp_path):
        script = tmp_path / "script"
        script.write_text('echo "run by a shell: $1"; exit 6\n')
        script.chmod(0o755)
        result = run(*place, script, "word")
        assert (result.returncode, result.stdout) == (6, b"run by a shell: word\n")

    def test_34_a_program_for_another_machine(self, run, place, tmp_path):
        (tmp_path / "program").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\xff" * 99)
        (tmp_path / "program").chmod(0o755)
        refused(run(*place, tmp_path / "program"), 126, str(tmp_path / "program"), "machine")
        assert left(tmp_path) == []

    def test_37_variables_that_are_too_long(self, run, tmp_path):
        (tmp_path / "env" / "conda-meta").mkdir(parents=True)
        state = {"env_vars": {"LONG": "x" * 900_000}}
        (tmp_path / "env" / "conda-meta" / "state").write_text(json.dumps(state))
        refused(run("-e", tmp_path / "env", "true"), 126, "bytes", "pass")


class TestEnding:
    @pytest.fixture
    def stalled(self, spawn, tiny, tmp_path):
        """A tool that has read half of its archive from a pipe and waits for the rest."""

        def stalled(*options, **more):
            fifo = tmp_path / "fifo"
            os.mkfifo(fifo)
            writer = os.open(fifo, os.O_RDWR)
            data = tiny.read_bytes()
            os.write(writer, data[: len(data) // 2])
            tool = spawn("-e", fifo, *options, "echo", "never", **more)
            place = tmp_path if options else tmp_path / "tmp"
            wait_for(lambda: list(place.glob("*poncho_*/env")), what="unpacking to begin")
            wait_for(lambda: state_of(tool.pid) == "S", what="the tool to read")
            return tool

        return stalled

    @pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "ALRM", "RTMIN+1"])
    def test_39_a_signal_while_unpacking(self, stalled, tmp_path, name):
        tool = stalled()
        os.kill(tool.pid, number_of(name))
        assert tool.communicate(timeout=20) == (b"", b"")
        assert status_of(tool) == 128 + number_of(name)
        assert left(tmp_path) == []

    def test_40_a_signal_while_unpacking_for_every_interpreter(
        self, stalled, tmp_path, interpreter
    ):
        tool = stalled(interpreter=interpreter)
        tool.terminate()
        assert tool.communicate(timeout=20) == (b"", b"")
        assert status_of(tool) == 143
        assert left(tmp_path) == []

    def test_41_a_signal_while_unpacking_to_a_directory_that_is_kept(
        self, run, stalled, tiny, tmp_path
    ):
        tool = stalled("-d", tmp_path / "kept")
        tool.terminate()
        assert tool.communicate(timeout=20) == (b"", b"")
        assert status_of(tool) == 143
        result = run("-e", tiny, "-d", tmp_path / "kept", "hello", check=True)
        assert result.stdout == b"hello\n"

    def test_42_a_signal_that_the_caller_ignores_while_unpacking(self, stalled):
        def ignore():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        tool = stalled(preexec_fn=ignore)
        os.kill(tool.pid, signal.SIGHUP)
        time.sleep(0.2)
        assert tool.poll() is None

    # Three system calls of the removal take their time.
    SLOW = "inject=unlinkat,rmdir:delay_enter=300000:when=1..3"

    @pytest.mark.parametrize("names", [["TERM"], ["INT"]], ids="+".join)
    def test_43_signals_while_removing(self, spawn, tiny, tmp_path, names):
        tool = spawn("-e", tiny, "echo", "done", wrapper=tracing.strace("-e", self.SLOW))
        assert line_of(tool) == "done"
        (python,) = children_of(tool.pid)
        wait_for(lambda: not children_of(python, ended=True), what="the command to be reaped")
        assert left(tmp_path) != []
        for name in names:
            os.kill(python, number_of(name))
            time.sleep(0.05)
        tool.wait(60)
        assert status_of(tool) == 128 + number_of(names[0])
        assert left(tmp_path) == []

    def test_44_a_signal_while_removing_after_no_command(self, spawn, tiny, tmp_path):
        tool = spawn("-e", tiny, wrapper=tracing.strace("-e", self.SLOW))
        last = "*/env/lib/data-link.txt"
        wait_for(lambda: list((tmp_path / "tmp").glob(last)), what="unpacking to end")
        (python,) = children_of(tool.pid)
        time.sleep(0.4)
        os.kill(python, signal.SIGTERM)
        tool.wait(60)
        assert status_of(tool) == 143
        assert left(tmp_path) == []

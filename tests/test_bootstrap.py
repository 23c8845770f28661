"""A machine without Python: the tool starts with that of the environment.

In a root file system that holds a shell, tar, gzip, the C library, and nothing else.  (Libraries
that the modules of Python's need are there too: conda's Python brings its own, that of these tests
is this machine's.)
"""

import ast
import io
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from poncho_package_run import cli
from poncho_package_run.machine import library
from poncho_package_run.telling.errors import UsageError
from support import process, trees
from support.commands import missing, need
from support.crash import MARKER
from support.messages import refused

SOURCES = Path(__file__).parents[1] / "src"

# Mounts what a container has, enters a root file system and becomes a program there.  (No shell,
# which would change the variables before the tool sees them.)
ENTER = """
import json, os, signal, subprocess, sys
root, variables, *words = sys.argv[1:]
for name in ("proc", "dev"):
    if os.path.isdir(root + "/" + name):
        subprocess.run(["/bin/mount", "--rbind", "/" + name, root + "/" + name], check=True)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.chroot(root)
os.chdir("/")
os.execve(words[0], words, json.loads(variables))
"""

# In the place of tar: waits where it is told to, before or behind what the real one does.
SLOW = """#!/bin/sh
case "$*" in
    *env.tar*)
        [ "$WAIT" != before ] || {{ echo >/there; read -r line </gate; }}
        {tar} "$@"
        status=$?
        [ "$WAIT" != behind ] || {{ echo >/there; read -r line </gate; }}
        exit $status
        ;;
esac
exec {tar} "$@"
"""


def libraries(program):
    """The shared objects that a program is linked with."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]


class Root:
    """A root file system; a command line of the tool that is run in it."""

    def __init__(self, path, shell, artifact, archive):
        self.path, self.shell = path, shell
        for name in ("bin", "proc", "tmp", "etc"):
            (path / name).mkdir(parents=True)
        (path / "tmp").chmod(0o1777)
        (path / "usr").mkdir()
        (path / "usr/bin").symlink_to("../bin")
        if shell == "busybox":
            self.program("busybox")
            for name in ("sh", "tar", "gzip"):
                (path / "bin" / name).symlink_to("busybox")
        else:
            self.program("dash", "sh")
            self.program("tar")
            self.program("gzip")
        standard = Path(os.__file__).parent / "lib-dynload"
        for module in standard.glob("*.so"):
            self.add(libraries(module))
        self.add(libraries(os.path.realpath(sys.executable)))
        shutil.copy(artifact, path / "tool")
        shutil.copy(archive, path / "env.tar.gz")

    def program(self, name, as_name=None):
        source = need(name)
        shutil.copy(source, self.path / "bin" / (as_name or name))
        self.add(libraries(source))

    def add(self, paths):
        for path in paths:
            target = self.path / str(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() and "libpython" not in path.name:
                shutil.copy(path, target)

    def wait_in_tar(self):
        """Make tar wait for the FIFO "gate"; "there" tells when it does."""
        tar = self.path / "bin" / "tar"
        real = "busybox tar" if tar.is_symlink() else "/bin/real-tar"
        os.rename(tar, self.path / "bin" / "real-tar")
        tar.write_text(SLOW.format(tar=real))
        tar.chmod(0o755)
        for name in ("gate", "there"):
            os.mkfifo(self.path / name)

    def await_tar(self):
        with open(os.open(self.path / "there", os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            assert select.select([file], [], [], 20)[0], "tar was not started"

    def command(self, variables, *words):
        """A command line that runs another one in it."""
        namespace = ["-m"] if os.geteuid() == 0 else ["-Urm"]
        python = [sys.executable, "-IS", "-c", ENTER, self.path, json.dumps(variables)]
        return [need("unshare"), *namespace, *python, *words]

    def start(self, *words, env=None, **options):
        variables = {"PATH": "/bin", "MARK": "caller's", "PYTHONDONTWRITEBYTECODE": "1"}
        variables.update(env or {})
        return subprocess.Popen(
            self.command(variables, "./tool", *words),
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *words, check=False, **options):
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=120)
        result = subprocess.CompletedProcess(words, process.returncode, out, err)
        if check:
            assert (result.returncode, result.stderr) == (0, b""), result
        return result

    @property
    def left(self):
        return os.listdir(self.path / "tmp")


@pytest.fixture(scope="module")
def master(artifact, environment, tmp_path_factory):
    """Root file systems to be copied, one for each shell."""
    made = {}

    def master(shell):
        if shell not in made:
            archive = environment.archive(scripts=False)
            made[shell] = Root(tmp_path_factory.mktemp(shell) / "root", shell, artifact, archive)
            if subprocess.run(made[shell].command({}, "/bin/sh", "-c", ":")).returncode:
                missing("needs a mount namespace: run it as root, or allow user namespaces")
        return made[shell]

    return master


@pytest.fixture(params=["dash", "busybox without /dev", "dash without /dev"])
def root(request, master, tmp_path):
    shell, _, without = request.param.partition(" ")
    if request.param.startswith("dash w") and request.function not in (
        test_a_temporary_environment,
        test_cold_and_warm,
        test_what_has_no_python_that_runs_here_says_so,
    ):
        pytest.skip("as with the other two")
    whole = master(shell)
    root = Root.__new__(Root)
    root.path, root.shell = tmp_path / "root", whole.shell
    shutil.copytree(whole.path, root.path, symlinks=True)
    root.has_devices = not without
    if root.has_devices:
        (root.path / "dev").mkdir()
    return root


WHERE = "import os, sys; print(sys.executable, len(os.listdir('/tmp')), os.environ['MARK'])"


def test_a_temporary_environment(root):
    result = root.run("-e", "env.tar.gz", "python3", "-c", WHERE, check=True)
    path, count, mark = result.stdout.decode().split(" ", 2)
    assert re.fullmatch(r"/tmp/poncho_package_run-\d+-\w{8}/env/bin/python3", path)
    assert (count, mark) == ("1", "caller's\n"), "the copy is gone before the command starts"
    assert root.left == []


def test_cold_and_warm(root, environment, run, tmp_path):
    words = ["-e", "env.tar.gz", "-d", "kept", "python3", "-c", WHERE]
    for _ in range(2):
        result = root.run(*words, check=True)
        assert result.stdout == b"/kept/bin/python3 0 caller's\n"
        (root.path / "bin" / "tar").unlink(missing_ok=True)  # a warm start has no use for it
    run("-e", root.path / "env.tar.gz", "-d", tmp_path / "other", check=True)
    there, here = trees.snapshot(root.path / "kept"), trees.snapshot(tmp_path / "other")
    assert not trees.differences(here, there, fields=("type", "mode", "target", "nlink_group"))
    result = root.run("-e", "kept", "python3", "-c", WHERE, check=True)
    assert result.stdout == b"/kept/bin/python3 0 caller's\n"


def test_a_standard_output_that_is_closed(root):
    """It is the command's to find it so."""
    look = "import os, sys; os.path.exists('/proc/self/fd/1') and sys.exit(9); sys.exit(3)"
    for words in (["-e", "env.tar.gz"], ["-e", "env.tar.gz", "-d", "kept"], ["-e", "kept"]):
        closing = ["-c", 'exec "$@" >&-', "sh", "./tool", *words, "python3", "-c", look]
        command = root.command({"PATH": "/bin"}, "/bin/sh", *closing)
        result = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
        assert (result.returncode, result.stderr) == (3, b""), words


def test_a_directory_that_was_unpacked_by_tar(root):
    kept = root.path / "kept"
    kept.mkdir()
    archive = root.path / "env.tar.gz"
    subprocess.run([need("bsdtar"), "-xf", archive, "-C", kept], check=True)
    result = root.run("-e", "kept", "showprefix", check=True)
    assert result.stdout.splitlines()[0] == b"/kept"
    assert (kept / MARKER).exists()
    assert not list(kept.glob("lib/*/encodings/__pycache__")), "nothing else is written"


def test_an_environment_below_top_directories(root, environment):
    archive = environment.archive(scripts=False, arcroot="a/b")
    shutil.copy(archive, root.path / "env.tar.gz")
    for _ in range(2):
        result = root.run("-e", "env.tar.gz", "-d", "kept", "python3", "-c", WHERE, check=True)
        assert result.stdout == b"/kept/a/b/bin/python3 0 caller's\n"


def test_activation_scripts_and_their_way_back(root, environment):
    """Behind them the tool is started once more, when the copy is gone."""
    shutil.copy(environment.archive(), root.path / "env.tar.gz")
    for place in ([], ["-d", "kept"]):
        result = root.run("-e", "env.tar.gz", *place, "no-such", env={"a.b": "c"})
        assert result.returncode == 127
        assert b"command not found: no-such" in result.stderr
        words = ["python3", "-c", "import os; print(os.environ['SHOWPREFIX_ROOT'])"]
        result = root.run("-e", "env.tar.gz", *place, *words, env={"a.b": "c"})
        assert result.stdout.endswith(b"/share\n"), result
        assert root.left == []


@pytest.mark.parametrize("wait", ["before", "behind"])
@pytest.mark.parametrize("place", [[], ["-d", "kept"]], ids=["temporary", "kept"])
def test_killed_while_the_copy_is_made_the_next_run_removes_it(root, wait, place):
    root.wait_in_tar()
    words = ["-e", "env.tar.gz", *place, "python3", "-c", WHERE]
    killed = root.start(*words, env={"WAIT": wait})
    root.await_tar()
    assert len(root.left) == 1
    (copy,) = (root.path / "tmp").iterdir()
    assert copy.stat().st_mode & 0o777 == 0o700
    # Another run leaves the copy of a living one alone.
    assert root.run(*words, env={"WAIT": "no"}, check=True).stdout
    assert copy.exists()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    process.wait_for(lambda: not processes_below(root.path))
    shutil.rmtree(root.path / "kept", ignore_errors=True)
    assert root.run(*words, env={"WAIT": "no"}, check=True).stdout
    assert root.left == []


def processes_below(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "root").startswith(str(folder)):
                found.append(path.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("wait", ["before", "behind"])
def test_a_signal_while_the_copy_is_made_leaves_nothing(root, wait, number):
    root.wait_in_tar()
    stopped = root.start("-e", "env.tar.gz", "-d", "kept", "true", env={"WAIT": wait})
    root.await_tar()
    os.killpg(stopped.pid, number)
    out, err = stopped.communicate(timeout=20)
    assert (stopped.returncode, out, err) == (128 + number, b"", b"")
    assert root.left == []
    assert not (root.path / "kept").exists()


def test_a_damaged_archive_is_refused_by_the_tool(root):
    archive = root.path / "env.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-30])
    for place in ([], ["-d", "kept"]):
        refused(root.run("-e", "env.tar.gz", *place, "true"), 65, "env.tar.gz")
        assert root.left == []
    assert not (root.path / "kept").exists()


def test_what_has_no_python_that_runs_here_says_so(root, tiny):
    archive = root.path / "env.tar.gz"
    content = archive.read_bytes()
    shutil.copy(tiny, archive)
    refused(root.run("-e", "env.tar.gz", "hello"), 127, "no Python 3.6", "env.tar.gz holds none")
    archive.write_bytes(b"no archive at all\n" * 100)
    refused(root.run("-e", "env.tar.gz", "hello"), 127, "none comes out of env.tar.gz: ")
    archive.write_bytes(content)
    refused(root.run("-e", "missing", "hello"), 66, "missing")
    refused(root.run("-e", "env.tar.gz", "x", env={"TMPDIR": "/no"}), 73, "/no", "TMPDIR")
    refused(root.run("hello"), 127, "no Python 3.6")
    # Where there is neither rm nor /dev/null, two copies wait for a run that finds a Python.
    assert len(root.left) == (2 if root.shell == "dash" and not root.has_devices else 0)
    (root.path / "bin" / "tar").unlink()
    refused(root.run("-e", "env.tar.gz", "hello"), 127, "no tar")


@pytest.mark.parametrize("format, program", [("tar", None), ("tar.bz2", "bzip2"), ("tar.xz", "xz"),
                                             ("tar.zst", "zstd")])  # fmt: skip
def test_other_compressions_as_far_as_tar_can(root, environment, format, program):
    shutil.copy(environment.archive(format, scripts=False), root.path / "env.tar.gz")
    words = ["-e", "env.tar.gz", "python3", "-c", WHERE]
    if program is not None and root.shell == "dash":
        refused(root.run(*words), 127, "none comes out of env.tar.gz", program)
        root.program(program)
    if format == "tar.zst":
        if root.shell == "busybox":
            refused(root.run(*words), 127, "none comes out of env.tar.gz")
            return
        root.add(Path("/usr/lib").glob("*/libzstd.so.1"))
    assert root.run(*words, check=True).stdout.startswith(b"/tmp/poncho")
    assert root.left == []


@pytest.mark.parametrize("name", ["a:b.tar.gz", "-x", "a b'c\"$(d)*", "\\n"])
def test_whatever_the_archive_is_called(root, name):
    os.rename(root.path / "env.tar.gz", root.path / name)
    words = ["-e", name, "python3", "-c", WHERE]
    variables = {"POSIXLY_CORRECT": "1", "TAR_OPTIONS": "--version", "LC_ALL": "C"}
    assert root.run(*words, env=variables, check=True).stdout.startswith(b"/tmp/poncho")
    (root.path / name).write_bytes(b"\0" * 3000)
    refused(root.run(*words, env=variables), 127, name)
    assert root.left == []


@pytest.mark.parametrize("mask", [0o777, 0o077, 0o000])
def test_whatever_the_umask(root, mask):
    result = root.run("-e", "env.tar.gz", "python3", "-c", WHERE, umask=mask)
    if mask != 0o777:
        assert result.stdout.startswith(b"/tmp/poncho"), result
    assert result.returncode == 0 or b"holds none" not in result.stderr, result
    assert root.left == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory to another user")
def test_no_python_is_taken_from_what_another_user_may_have_planted(root):
    planted = root.path / "tmp" / "kept"
    (planted / "bin").mkdir(parents=True)
    (planted / "conda-meta").mkdir()
    (planted / MARKER).write_text("yesterday\n")
    (planted / "bin" / "python3").write_text("#!/bin/sh\necho planted\n")
    (planted / "bin" / "python3").chmod(0o755)
    os.chown(planted, 12345, 12345)
    for words in (["-e", "env.tar.gz", "-d", "/tmp/kept"], ["-e", "/tmp/kept"]):
        result = root.run(*words, "python3", "-c", "print()")
        assert result.returncode in (73, 127)
        assert b"planted" not in result.stdout
    assert root.left == ["kept"]


def test_the_caller_s_variables_and_signal_mask_are_the_command_s(root):
    given = {"BASH_FUNC_m%%": "() {  echo; }", "A-B": "1", "TAR_OPTIONS": "-v", "_ppr_env": "x"}
    script = (
        "import json, os, signal\n"
        "mask = sorted(map(int, signal.pthread_sigmask(0, [])))\n"
        "print(json.dumps([mask, dict(os.environ)]))\n"
    )
    mask = {signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD, signal.SIGRTMIN + 3}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        for _ in range(2):
            words = ["-e", "env.tar.gz", "-d", "kept", "python3", "-c", script]
            blocked, environ = json.loads(root.run(*words, env=given, check=True).stdout)
            assert set(blocked) == mask
            if root.has_devices:
                assert {name: environ.get(name) for name in given} == given
            else:  # no process beside the shell, so that this has what the shell has left
                assert environ["TAR_OPTIONS"] == "-v"
            assert not [name for name in environ if name.startswith("_ppr_") and name not in given]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_damage_of_the_directory_whose_python_runs_the_tool_is_mended(root):
    words = ["-e", "env.tar.gz", "-d", "kept", "python3", "-c", WHERE]
    root.run(*words, check=True)
    kept = root.path / "kept"
    marker = json.loads((kept / MARKER).read_text())
    marker["boot_id"] = "0" * 8 + marker["boot_id"][8:]
    (kept / MARKER).write_text(json.dumps(marker, sort_keys=True) + "\n")
    damaged = kept / "share" / "showprefix" / "prefix.txt"
    if not damaged.exists():
        damaged = next(path for path in sorted((kept / "share").rglob("*")) if path.is_file())
    size = damaged.stat().st_size
    times = damaged.stat()
    os.truncate(damaged, 0)
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = root.run(*words)
    assert (result.returncode, result.stdout) == (0, b"/kept/bin/python3 0 caller's\n"), result
    assert b"unpacking again" in result.stderr
    assert damaged.stat().st_size == size


def with_python(archive, content):
    """Put something in the place of an archive's Python."""
    with tarfile.open(archive) as old:
        members = [(info, info.isfile() and old.extractfile(info).read()) for info in old]
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as new:
        for info, data in members:
            if re.fullmatch(r"bin/python3\.\d+", info.name):
                data, info.size = content, len(content)
            new.addfile(info, io.BytesIO(data) if info.isfile() else None)


@pytest.mark.parametrize("content", [b"", b"\0" * 99_999, b"no program\n", b"\x7fELF" + b"\1" * 60])
def test_a_python_that_does_not_run_is_none(root, content):
    """A shell takes an empty file for a script, and ends with status 0."""
    archive = root.path / "env.tar.gz"
    with_python(archive, content)
    result = root.run("-e", "env.tar.gz", "python3", "-c", WHERE)
    assert result.returncode == 127, result
    assert result.stderr.count(b"\n") == 1
    assert root.left == []


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000])
@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_directory_whose_python_is_damaged(root, content, boot):
    words = ["-e", "env.tar.gz", "-d", "kept", "python3", "-c", WHERE]
    root.run(*words, check=True)
    kept = root.path / "kept"
    (python,) = [path for path in kept.glob("bin/python3.*") if not path.is_symlink()]
    times = python.stat()
    python.write_bytes(content)
    os.utime(python, ns=(times.st_atime_ns, times.st_mtime_ns))
    if boot == "another":
        marker = json.loads((kept / MARKER).read_text())
        marker["boot_id"] = "0" * 8 + marker["boot_id"][8:]
        (kept / MARKER).write_text(json.dumps(marker, sort_keys=True) + "\n")
    result = root.run(*words)
    assert (result.returncode, result.stdout) != (0, b""), "the command has not run"
    if boot == "another":
        assert (result.returncode, result.stdout) == (0, b"/kept/bin/python3 0 caller's\n"), result
        assert b"unpacking again" in result.stderr
    result = root.run("-e", "kept", "python3", "-c", WHERE)
    assert (result.returncode, result.stdout) != (0, b"")
    assert root.left == []


def test_a_signal_before_tar_is_started_ends_it_as_well(root):
    root.wait_in_tar()
    tar = root.path / "bin" / "tar"
    kill = "--version) until [ -s /pid ]; do :; done; read -r pid </pid; kill -TERM $pid ;;"
    tar.write_text(tar.read_text().replace("\ncase", f'\ncase "$*" in {kill} esac\ncase', 1))
    stopped = root.start("-e", "env.tar.gz", "-d", "kept", "true", env={"WAIT": "before"})
    (root.path / "pid").write_text(f"{stopped.pid}\n")
    out, err = stopped.communicate(timeout=20)
    assert stopped.returncode in (143, -signal.SIGTERM), (out, err)
    assert not (root.path / "kept").exists()


def test_where_cd_would_go_elsewhere(root):
    for name in ("other/rel", "rel", "other/kept"):
        (root.path / name).mkdir(parents=True)
    env = {"CDPATH": "/other", "TMPDIR": "rel"}
    words = ["-e", "env.tar.gz", "-d", "kept", "python3", "-c", WHERE]
    for _ in range(2):
        assert root.run(*words, env=env, check=True).stdout == b"/kept/bin/python3 0 caller's\n"
    assert os.listdir(root.path / "rel") == os.listdir(root.path / "other/rel") == []


# The rules of the command line, in sh and in Python

POOL = [*cli.VALUES, *cli.VALUES, "-k", "-n", "--", "-", "a", "b c", "./-x", "-eE", "-dD", "-uU",
        "-w5", "--environment=E2", "--unpack-to=D2", "--wait-for-lock=3", "--cache=C",
        "--cache-limit=2G", "--debug", "--keep-alive", "7"]  # fmt: skip

ASK = '\n_ppr_env= _ppr_dir=\n_ppr_parse "$@"\nprintf "%s\\n%s\\n" "$_ppr_env" "$_ppr_dir"\n'


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["bash", "--posix"], ["mksh"]])
def test_which_environment_and_directory_are_meant_is_found_by_the_same_rules(shell):
    text = (SOURCES / "header.sh").read_text()
    (function,) = re.findall(r"^_ppr_parse\(\) \{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    rng, compared = random.Random(7), 0
    while compared < 300:
        words = rng.choices(POOL, k=rng.randrange(1, 7))
        try:
            options = cli.parse([os.fsencode(word) for word in words])
        except UsageError:
            continue
        except SystemExit:
            continue
        command = [need(shell[0]), *shell[1:], "-c", function + ASK, "sh", *words]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        expected = [os.fsdecode(options.environment), os.fsdecode(options.unpack_to or b"")]
        assert found.split("\n")[:2] == expected, words
        compared += 1


def test_all_of_the_library_that_the_tool_may_need_is_known():
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module)
    found -= {"typing", "compression", "hashlib"}  # the last is needed before anything else
    assert found <= set(library.MODULES), found - set(library.MODULES)

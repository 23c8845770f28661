"""Every known caller's command line, run in a sandbox laid out as the caller lays it out."""

import ast
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from support.trees import snapshot

RECORDER = """\
#!/usr/bin/env python3
import json, os, sys
print(json.dumps({
    "argv": sys.argv,
    "prefix": sys.prefix,
    "environ": {k: os.environ.get(k) for k in ("CONDA_PREFIX", "PONCHO_PREFIX", "PYTHONPATH")},
    "cwd": os.getcwd(),
    "path": os.environ["PATH"].split(":"),
}))
"""

RUN_IN_ENV = """\
#!/bin/sh
export PONCHO_PREFIX=$(dirname "$(cd "$(dirname "$0")" && pwd)")
exec "$PONCHO_PREFIX"/bin/poncho_package_run -e "$PONCHO_PREFIX" "$@"
"""
"""What poncho_package_create writes beside the tool, as far as its callers can tell."""


class Call(NamedTuple):
    """A command line as seen; ``kept`` says whether it asks for the environment to stay."""

    caller: str
    line: str
    kept: bool

    @property
    def tool(self) -> str:
        return self.line.split()[0][len("./") :]

    @property
    def archive(self) -> str:
        words = self.line.split()
        return words[words.index("-e") + 1]


CALLS = [
    Call(
        "work_queue-9.9-PythonTask",
        './python_package_run -e env.tar.gz --unpack-to "$WORK_QUEUE_SANDBOX"/env.tar.gz-env'
        " python command function_1.p args_1.p out_1.p",
        kept=True,
    ),
    Call(
        "work_queue-PythonTask",
        './poncho_package_run -e env.tar.gz --unpack-to "$WORK_QUEUE_SANDBOX"/env.tar.gz-env'
        " python command function_1.p args_1.p out_1.p",
        kept=True,
    ),
    Call(
        "coffea",
        './py_wrapper -d -e env_file -u "$WORK_QUEUE_SANDBOX"/env_file-env-4711 --'
        " python command function_1.p out_1.p",
        kept=True,
    ),
    Call(
        "work_queue_factory-9.9",
        "./python_package_run -e env.tar.gz -- ./command 127.0.0.1 9123 -t 300 -C localhost:9097",
        kept=False,
    ),
    Call(
        "factory",
        "./poncho_package_run -e env.tar.gz  ./command 127.0.0.1 9123 -t 300 -C localhost:9097",
        kept=False,
    ),
    Call(
        "submit_workers",
        "./poncho_package_run -e env.tar.gz -- ./command --cores 2 -M project",
        kept=False,
    ),
]


class Sandbox:
    """A worker's directory with its cache and one task's sandbox, whose inputs are hard links."""

    def __init__(self, worker):
        self.worker = worker
        self.cache = worker / "cache"
        self.task = worker / "t.1"
        self.tmp = self.task / "cctools-temp"
        self.cache.mkdir(parents=True)
        self.tmp.mkdir(parents=True)

    def put(self, name, content):
        """An input: a file's content, or the path of a file."""
        cached = self.cache / name
        if isinstance(content, Path):
            shutil.copyfile(content, cached)
        else:
            cached.write_text(content)
        cached.chmod(0o755)
        os.link(cached, self.task / name)

    def sh(self, line, variables, **options):
        """Run a task as a worker does; its output is one stream."""
        environ = {
            **variables,
            b"WORK_QUEUE_SANDBOX": os.fsencode(self.worker),
            b"TMPDIR": os.fsencode(self.tmp),
            b"PYTHONPATH": b"/nonexistent/modules",
            # What a Python of the environment caches beside its modules is its own affair.
            b"PYTHONDONTWRITEBYTECODE": b"1",
        }
        before = snapshot(self.cache)
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.task, env=environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, **options,
        )  # fmt: skip
        assert snapshot(self.cache) == before, "the worker's cache was written to"
        assert list(self.tmp.iterdir()) == []
        return done


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path / "worker")


def recorded(done):
    """What RECORDER saw, which must be all the output there is."""
    assert done.returncode == 0, done.stdout
    [line] = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("call", CALLS, ids=[call.caller for call in CALLS])
def test_command_line(call, artifact, environment, sandbox, variables):
    sandbox.put(call.tool, artifact)
    sandbox.put(call.archive, environment.archive(n_threads=4, scripts=False))
    sandbox.put("command", RECORDER)
    done = sandbox.sh(call.line, variables)
    if call.caller == "coffea":
        # Its -d asks for debugging messages; the command's own line comes after them.
        *debugging, last = done.stdout.splitlines(keepends=True)
        assert debugging and all(line.startswith(b"poncho_package_run: ") for line in debugging)
        done.stdout = last
    seen = recorded(done)
    command = call.line[call.line.index("command") :].split()
    assert [os.path.basename(seen["argv"][0]), *seen["argv"][1:]] == command
    assert seen["prefix"] == seen["environ"]["CONDA_PREFIX"]
    assert seen["environ"]["PYTHONPATH"] is None
    assert seen["cwd"] == str(sandbox.task)
    if call.kept:
        assert os.path.dirname(seen["prefix"]) == str(sandbox.worker)
        # The worker's next task finds it there.
        assert recorded_last(sandbox.sh(call.line, variables)) == seen
    else:
        assert sandbox.tmp in Path(seen["prefix"]).parents
        assert not os.path.exists(seen["prefix"])


def recorded_last(done):
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def package(artifact, environment, tmp_path_factory):
    """What poncho_package_create makes: an environment that carries the tool in its bin/."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    tree.mkdir()
    subprocess.run(["tar", "xf", environment.archive("tar", scripts=False), "-C", tree], check=True)
    shutil.copy(artifact, tree / "bin" / "poncho_package_run")
    (tree / "bin" / "run_in_env").write_text(RUN_IN_ENV)
    for name in ("poncho_package_run", "run_in_env"):
        (tree / "bin" / name).chmod(0o755)
    with tarfile.open(folder / "package.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in sorted(tree.iterdir()):
            archive.add(path, path.name)
    shutil.rmtree(tree)
    return folder / "package.tar.gz"


UNPACK = "mkdir output && tar xf package.tar.gz -C output && "


def test_taskvine_declare_poncho(package, sandbox, variables):
    """No command: the directory is prepared, and the status is 0."""
    sandbox.put("package.tar.gz", package)
    done = sandbox.sh(UNPACK + "output/bin/run_in_env", variables)
    assert (done.returncode, done.stdout) == (0, b"")
    assert unrelocated(sandbox.task / "output") == []
    shown = subprocess.run([sandbox.task / "output/bin/showprefix"], stdout=subprocess.PIPE)
    assert shown.stdout.splitlines()[0] == os.fsencode(sandbox.task / "output")


def unrelocated(tree):
    """The files that still hold the prefix placeholder of their record."""
    lines = (tree / "bin" / "conda-unpack").read_text().splitlines()
    records = [ast.literal_eval(line.rstrip(",]")) for line in lines if line.startswith("('")]
    assert records
    return [path for path, old, _mode in records if os.fsencode(old) in (tree / path).read_bytes()]


def test_dask_taskvine(package, sandbox, variables):
    sandbox.put("package.tar.gz", package)
    sandbox.put("command", RECORDER)
    seen = recorded(sandbox.sh(UNPACK + "output/bin/run_in_env ./command 'a b'", variables))
    assert seen["argv"] == ["./command", "a b"]
    assert seen["prefix"] == str(sandbox.task / "output")
    assert seen["environ"] == {
        "CONDA_PREFIX": str(sandbox.task / "output"),
        "PONCHO_PREFIX": str(sandbox.task / "output"),
        "PYTHONPATH": None,
    }


@pytest.fixture
def cached_package(package, sandbox):
    """The package as TaskVine keeps it: unpacked in the cache, a symlink in each sandbox."""
    unpacked = sandbox.cache / "package"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", package, "-C", unpacked], check=True)
    (sandbox.task / "env").symlink_to(unpacked)
    sandbox.put("command", RECORDER)
    return unpacked


def test_taskvine_task_through_a_symlink(cached_package, sandbox, variables):
    prepare(cached_package, variables)
    seen = recorded(sandbox.sh("env/bin/run_in_env ./command", variables))
    assert os.path.realpath(seen["prefix"]) == str(cached_package)
    assert os.path.realpath(seen["environ"]["CONDA_PREFIX"]) == str(cached_package)
    assert seen["environ"]["PONCHO_PREFIX"] == str(cached_package)


def prepare(directory, variables):
    """Relocate an unpacked package where it is, as ``declare_poncho`` does."""
    done = subprocess.run(
        [directory / "bin" / "run_in_env"], env=variables, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")


def test_relocating_leaves_other_links_alone(cached_package, sandbox, tmp_path, variables):
    """The same files may be hard-linked into another task's tree, and may be read-only.

    The prefix written is the real one, though a symlink led to it.
    """
    twin = tmp_path / "twin"
    shutil.copytree(cached_package, twin, symlinks=True, copy_function=os.link)
    for path in twin.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o555)
    before = snapshot(twin)
    prepare(sandbox.task / "env", variables)
    assert unrelocated(cached_package) == []
    shown = subprocess.run([cached_package / "bin" / "showprefix"], stdout=subprocess.PIPE)
    assert shown.stdout.splitlines()[0] == os.fsencode(cached_package)
    after = snapshot(twin)
    assert {path: each.sha256 for path, each in after.items()} == {
        path: each.sha256 for path, each in before.items()
    }
    modes = snapshot(cached_package)
    assert [path for path, each in before.items() if modes[path].mode != each.mode] == []


# A library answers over pipes whose numbers it is told: with a kept environment the tool becomes
# the library, with a temporary one it waits for it.
@pytest.mark.parametrize(
    "tool",
    ["env/bin/run_in_env", "./poncho_package_run -e env.tar.gz --"],
    ids=["kept", "temporary"],
)
def test_taskvine_library_pipes(tool, artifact, environment, sandbox, cached_package, variables):
    prepare(cached_package, variables)
    sandbox.put("poncho_package_run", artifact)
    sandbox.put("env.tar.gz", environment.archive(scripts=False))
    sandbox.put(
        "library.py",
        "import os, sys\n"
        "number = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2])))\n"
        "asked = os.read(number['--in-pipe-fd'], 100)\n"
        "os.write(number['--out-pipe-fd'], b'answer to ' + asked)\n",
    )
    (question, ask), (answer, reply) = os.pipe(), os.pipe()
    os.write(ask, b"question")

    def inherit():
        # Away from both numbers first, so that neither call closes the other's source.
        apart = [os.dup2(question, 106), os.dup2(reply, 109)]
        os.dup2(apart[0], 6)
        os.dup2(apart[1], 9)

    try:
        done = sandbox.sh(
            f"{tool} python library.py --in-pipe-fd 6 --out-pipe-fd 9", variables,
            preexec_fn=inherit, pass_fds=(6, 9),
        )  # fmt: skip
        os.set_blocking(answer, False)
        assert (done.returncode, done.stdout) == (0, b"")
        assert os.read(answer, 100) == b"answer to question"
    finally:
        for end in (question, ask, answer, reply):
            os.close(end)


def test_tool_packed_into_an_environment(package, sandbox, variables):
    """On a machine whose only Python is the one beside the tool."""
    programs = sandbox.worker / "programs"
    programs.mkdir()
    for name in ("sh", "dirname", "mkdir", "tar", "gzip", "env"):
        (programs / name).symlink_to(shutil.which(name))
    sandbox.put("package.tar.gz", package)
    sandbox.put("command", RECORDER)
    bare = {**variables, b"PATH": os.fsencode(programs)}
    seen = recorded(sandbox.sh(UNPACK + "output/bin/run_in_env ./command", bare))
    assert seen["prefix"] == str(sandbox.task / "output")


def test_task_wrapper(artifact, environment, sandbox, variables):
    """A worker's or factory's ``--task-wrapper``, which is put before /bin/sh -c and the task."""
    sandbox.put("poncho_package_run", artifact)
    sandbox.put("env.tar.gz", environment.archive(scripts=False))
    sandbox.put("command", RECORDER)
    wrapper = "./poncho_package_run -e env.tar.gz -u env --"
    task = "X=\"two  words\"; exec ./command \"$X\" $((6 * 7)) | cat"
    for _ in ("cold", "warm"):
        seen = recorded(sandbox.sh(f"{wrapper} /bin/sh -c '{task}'", variables))
        assert seen["argv"] == ["./command", "two  words", "42"]
        assert seen["prefix"] == seen["environ"]["PONCHO_PREFIX"]
    assert sandbox.sh(f"{wrapper} /bin/sh -c 'exit 7'", variables).returncode == 7



@pytest.mark.parametrize("place", ["", '-d "$WORK_QUEUE_SANDBOX"/inner'], ids=["temporary", "kept"])
def test_nested_in_itself(place, artifact, tiny, environment, sandbox, variables):
    """The inner environment is the one that counts; of the outer one's PATH nothing is left."""
    sandbox.put("poncho_package_run", artifact)
    sandbox.put("outer", tiny)
    sandbox.put("inner", environment.archive(scripts=False))
    sandbox.put("command", RECORDER)
    seen = recorded(
        sandbox.sh(
            f"./poncho_package_run -e outer ./poncho_package_run -e inner {place} ./command x",
            variables,
        )
    )
    assert seen["prefix"] == seen["environ"]["CONDA_PREFIX"]
    assert seen["argv"] == ["./command", "x"]
    ours = [folder for folder in seen["path"] if folder.startswith(str(sandbox.worker))]
    assert ours == [seen["prefix"] + "/bin"]


def test_directory_that_cannot_be_written(package, variables):
    """Someone else's read-only directory, once prepared, serves everybody."""
    # Not under pytest's directory, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="poncho-test-"))
    try:
        unpacked = folder / "package"
        unpacked.mkdir()
        subprocess.run(["tar", "xf", package, "-C", unpacked], check=True)
        (folder / "command").write_text(RECORDER)
        (folder / "command").chmod(0o755)
        prepare(unpacked, variables)
        subprocess.run(["chmod", "-R", "a-w,a+rX", folder], check=True)
        before = snapshot(unpacked, ignore=())
        done = subprocess.run(
            [unpacked / "bin" / "run_in_env", folder / "command"], cwd=folder, env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **unprivileged(),
        )  # fmt: skip
        assert recorded(done)["prefix"] == str(unpacked)
        assert snapshot(unpacked, ignore=()) == before
    finally:
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
        shutil.rmtree(folder)


def unprivileged():
    """For root, whom no permission bits hold back: another user to run as."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}

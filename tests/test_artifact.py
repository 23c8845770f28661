"""Contract 11, the artifact: one file that runs anywhere, built the same everywhere."""

import ast
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from support import interpreters, tars
from support.commands import need
from support.messages import refused

TOP = Path(__file__).parents[1]
DIST = TOP / "dist" / "poncho_package_run.pyz"
IDS = [each.name for each in interpreters.find()]


def prefix_line(prefix):
    return f"{prefix}\n{prefix}/share/showprefix:{prefix}/lib\n"


class TestBuild:
    def build(self, folder, umask, when, **env):
        """Build a copy of the sources whose every file has another mode and time."""
        for name in ("src", "build.py", "pyproject.toml", "README.md"):
            source = TOP / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder / name, ignore=ignore)
            elif source.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)
        for path in folder.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
            os.utime(path, (when, when))
        command = [sys.executable, "build.py"]
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
        subprocess.run(command, cwd=folder, umask=umask, env=environ, check=True)
        return folder / "dist" / "poncho_package_run.pyz"

    def test_it_is_reproducible_in_any_directory_umask_and_time(self, tmp_path):
        one = self.build(tmp_path / "one", 0o022, 1_000_000_000, TZ="UTC", LC_ALL="C")
        two = self.build(
            tmp_path / "a longer name" / "two",
            0o077,
            int(time.time()),
            TZ="Pacific/Auckland",
            LC_ALL="C.UTF-8",
            SOURCE_DATE_EPOCH="1234567890",
            PYTHONHASHSEED="7",
        )
        assert one.read_bytes() == two.read_bytes()

    def test_what_is_committed_is_what_the_source_builds(self, tmp_path):
        built = self.build(tmp_path / "one", 0o027, 1_600_000_000)
        assert built.read_bytes() == DIST.read_bytes()

    def test_a_change_of_the_source_is_compiled_anew(self, tmp_path):
        """And nothing else: what was interrupted, cut off or is of another source is not taken."""
        folder = tmp_path / "one"
        shutil.copytree(TOP / "tests" / "support", folder / "tests" / "support")
        self.build(folder, 0o022, 1_600_000_000)
        usage = folder / "src" / "poncho_package_run" / "__init__.py"
        usage.write_text(re.sub(r'(__version__ = ")[^"]*', r"\g<1>9.8.7", usage.read_text()))
        command = [sys.executable, "build.py"]

        def refused_by_check():
            check = [*command, "--check"]
            result = subprocess.run(check, cwd=folder, capture_output=True, text=True)
            told = "src/compiled.zip is not of the source" in result.stderr
            return result.returncode == 1 and told and result.stderr.count("\n") == 1

        compiled = folder / "src" / "compiled.zip"
        assert refused_by_check()
        subprocess.run(command, cwd=folder, check=True)
        assert not refused_by_check()
        data = compiled.read_bytes()
        for damaged in (data[:-2000], data[:40_000], data[:70_000] + b"?" + data[70_001:], b""):
            compiled.write_bytes(damaged)
            assert refused_by_check()
        compiled.unlink()
        assert refused_by_check()
        # Two at once.
        builds = [subprocess.Popen(command, cwd=folder) for _ in range(2)]
        assert [build.wait() for build in builds] == [0, 0]
        subprocess.run([*command, "--check"], cwd=folder, check=True)
        assert sorted(os.listdir(folder / "src")) == sorted(os.listdir(TOP / "src"))
        with zipfile.ZipFile(folder / "dist" / DIST.name) as entries:
            made = [name for name in entries.namelist() if name.startswith("warm-")]
        assert len(made) == len({each.version[:2] for each in interpreters.find()})
        words = [folder / "dist" / DIST.name, "--version"]
        for python in (sys.executable, *(each.path for each in interpreters.find())):
            assert "9.8.7" in subprocess.check_output([python, *words], text=True)

    def test_its_sha256_lies_beside_it(self):
        digest, name = Path(f"{DIST}.sha256").read_text().split()
        assert digest == hashlib.sha256(DIST.read_bytes()).hexdigest()
        assert name.lstrip("*") == DIST.name

    def test_it_may_be_executed(self):
        assert os.access(DIST, os.X_OK)

    def test_shiv_info_reads_it(self, artifact):
        tool = Path(sys.executable).parent / "shiv-info"
        if not tool.exists():
            tool = Path(shutil.which("shiv-info") or pytest.skip("needs shiv"))
        command = [tool, "--json", artifact]
        listing = subprocess.run(command, check=True, capture_output=True).stdout
        assert json.loads(listing)["shiv_version"]


@pytest.mark.parametrize("path", sorted((TOP / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_the_source_is_python_3_6(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("interpreter", interpreters.find(), ids=IDS)
class TestEveryInterpreter:
    @pytest.mark.parametrize("format", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "zip"])
    def test_unpacks_relocates_and_runs(self, run, environment, tmp_path, interpreter, format):
        kept = tmp_path / "kept"
        words = ["-e", environment.archive(format), "-d", kept, "showprefix"]
        for _ in ("cold", "warm"):
            result = run(*words, interpreter=interpreter.path, check=True)
            assert result.stdout.decode() == prefix_line(kept)

    def test_runs_in_a_temporary_environment(self, run, environment, tmp_path, interpreter):
        words = ["-e", environment.archive(n_threads=4), "sh", "-c", "showprefix; exit 7"]
        result = run(*words, interpreter=interpreter.path)
        assert result.returncode == 7
        assert result.stdout.decode().startswith(str(tmp_path / "tmp"))
        assert os.listdir(tmp_path / "tmp") == []

    def test_hands_on_words_that_are_not_utf_8(self, run, tiny, interpreter):
        words = [b"\xff\xfe", "caf\u00e9".encode(), b""]
        for locale in ("C", "C.UTF-8", "POSIX"):
            env = {"LC_ALL": locale}
            result = run("-e", tiny, "hello", *words, interpreter=interpreter.path, env=env)
            assert result.stdout == b"hello \xff\xfe caf\xc3\xa9 \n"

    def test_needs_no_home_and_no_site_packages(self, run, tiny, interpreter):
        isolated = [interpreter.path, "-I", "-S"]
        result = run("-e", tiny, "hello", wrapper=isolated, interpreter="-B", env={"HOME": None})
        assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")

    def test_says_what_is_wrong_without_a_traceback(self, run, tmp_path, interpreter):
        (tmp_path / "bad").write_bytes(tars.member(b"../x", b"y") + tars.END)
        result = run("-e", tmp_path / "bad", "true", interpreter=interpreter.path)
        assert result.returncode == 65
        assert result.stderr.count(b"\n") == 1
        assert result.stderr.startswith(b"poncho_package_run: ")


# What a Python is asked about the code that the artifact has for it.
LOOK = """\
import importlib.util, marshal, sys, zipfile, zlib
number = int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")
with zipfile.ZipFile(sys.argv[1]) as entries:
    for part in ("warm", "cold"):
        data = entries.read("%s-%d" % (part, number))[64:]
        codes = marshal.loads(data)
        words = entries.read(part)[64:].decode().split("\\0")
        texts = dict(zip(words[::2], words[1::2]))
        assert list(codes) == list(texts)
        for name, text in texts.items():
            code = zlib.decompress(*codes[name]) if part == "cold" else codes[name]
            assert marshal.loads(code) == compile(text, name, "exec", optimize=2), name
"""

# The artifact, counting characters that are compiled.
COUNT = """\
import os, runpy, sys
sizes = []
def hook(event, words):
    if event == "compile":
        sizes.append(len(words[0] or ""))
    elif event in ("os.exec", "os._exit", "os.posix_spawn", "subprocess.Popen"):
        os.write(9, b"%d\\n" % sum(sizes))
sys.addaudithook(hook)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("interpreter", interpreters.find(), ids=IDS)
class TestCompiled:
    """The artifact holds the modules as each Python compiles them, and their text for others."""

    def test_the_code_is_that_of_the_text(self, artifact, interpreter):
        with zipfile.ZipFile(TOP / "src" / "compiled.zip") as compiled:
            _, *versions = compiled.comment.decode().split()
        if "{}.{}.{}".format(*interpreter.version) not in versions:
            pytest.skip("another {} compiled it: {}".format(interpreter.name, versions))
        result = subprocess.run(
            [interpreter.path, "-c", LOOK, artifact], stderr=subprocess.PIPE, text=True
        )
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.parametrize("place", ["temporary", "kept", "again", "cache"])
    def test_no_start_compiles_more_than_the_entry(
        self, artifact, run, tiny, tmp_path, interpreter, place
    ):
        if interpreter.version < (3, 8):
            pytest.skip("Python 3.7 and older tell no events")
        with zipfile.ZipFile(artifact) as entries:
            entry = entries.getinfo("entry.py").file_size
            main = entries.getinfo("__main__.py").file_size
        words = ["-e", tiny, "hello"]
        words[2:2] = {"temporary": [], "cache": ["--cache", tmp_path / "c"]}.get(
            place, ["-d", tmp_path / "kept"]
        )
        if place == "again":
            run(*words, check=True)
        # Descriptor 9 is where it counts: the command has the standard ones.
        script = 'exec "$@" 9>count'
        command = ["sh", "-c", script, "sh", interpreter.path, "-c", COUNT, artifact, *words]
        subprocess.run(command, cwd=tmp_path, check=True)
        counts = [int(line) for line in (tmp_path / "count").read_text().splitlines()]
        # (Those of the standard library that are made as classes are: namedtuple compiles a line.)
        assert counts and all(entry <= count <= 2 * main + entry + 2000 for count in counts)

    def test_the_text_does_the_same(self, artifact, tiny, environment, tmp_path, interpreter):
        """As where there is no code for a Python, or who debugs wants the names of files."""
        copy = tmp_path / "copy"
        copy.write_bytes(artifact.read_bytes().split(b"PK\3\4")[0])
        with zipfile.ZipFile(artifact) as entries, zipfile.ZipFile(copy, "a") as kept:
            for info in entries.infolist():
                data = entries.read(info)
                if info.filename == "entry.py":
                    data, count = re.subn(rb"in \[[0-9, ]+\] and", b"in [] and", data)
                    assert count == 1
                kept.writestr(info, data)
        # Code is not for who wants tracebacks: they name files.
        debugged = {**os.environ, "PONCHO_PACKAGE_RUN_DEBUG": "traceback"}
        for which, env in ((copy, None), (artifact, debugged)):
            folder = tmp_path / "of" / which.name
            words = ["-e", environment.archive(), "-d", folder / "kept", "showprefix"]
            folder.mkdir(parents=True)
            for _ in ("cold", "warm"):
                result = subprocess.run(
                    [interpreter.path, which, *words], env=env, capture_output=True, timeout=60
                )
                assert result.stdout.decode() == prefix_line(folder / "kept"), result.stderr


class TestPyPy:
    """An interpreter that is not CPython, and lacks some of what that has."""

    @pytest.fixture
    def pypy(self):
        return need("pypy3")

    @pytest.mark.parametrize("format", ["tar.gz", "tar.zst", "zip"])
    def test_unpacks_relocates_and_runs(self, run, environment, tmp_path, pypy, format):
        kept = tmp_path / "kept"
        for _ in ("cold", "warm"):
            words = ["-e", environment.archive(format), "-d", kept, "showprefix"]
            result = run(*words, interpreter=pypy, check=True)
            assert result.stdout.decode() == prefix_line(kept)
            assert result.stderr == b"showprefix is active\n"

    def test_runs_in_a_temporary_environment(self, run, environment, tmp_path, pypy):
        words = ["-e", environment.archive(n_threads=4), "sh", "-c", "showprefix; exit 7"]
        result = run(*words, interpreter=pypy)
        assert (result.returncode, result.stderr) == (7, b"showprefix is active\n")
        assert result.stdout.decode().startswith(str(tmp_path / "tmp"))
        assert os.listdir(tmp_path / "tmp") == []

    def test_says_what_is_wrong_without_a_traceback(self, run, tmp_path, pypy):
        (tmp_path / "bad").write_bytes(tars.member(b"../x", b"y") + tars.END)
        refused(run("-e", tmp_path / "bad", "true", interpreter=pypy), 65)
        (tmp_path / "env" / "conda-meta").mkdir(parents=True)
        refused(run("-e", tmp_path / "env", "no-such-command", interpreter=pypy), 127)


class TestTooOld:
    def check(self, result):
        assert result.returncode not in (0, -11)
        assert result.stdout == b""
        assert result.stderr.count(b"\n") == 1, result.stderr
        assert result.stderr.startswith(b"poncho_package_run: ")
        assert b"3.6" in result.stderr

    @pytest.mark.parametrize(
        "interpreter",
        interpreters.find_too_old() or [None],
        ids=lambda each: each.name if each else "none",
    )
    def test_an_old_interpreter_gets_one_line(self, run, tiny, interpreter):
        if interpreter is None:
            pytest.skip("needs an interpreter before 3.6, such as python2")
        self.check(run("-e", tiny, "hello", interpreter=interpreter.path))

    def test_python_3_5_gets_one_line(self, artifact, tiny, variables):
        # It cannot parse f-strings, so the check must come before anything is imported.
        script = (
            "import runpy, sys\n"
            "sys.version_info = (3, 5, 10, 'final', 0)\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        command = [sys.executable, "-c", script, artifact, "-e", tiny, "hello"]
        self.check(subprocess.run(command, env=variables, capture_output=True))


@pytest.mark.parametrize("home", [None, "", "/nonexistent", "/proc", "/dev/null"])
def test_home_is_not_needed(run, tiny, tmp_path, home):
    for words in (["-e", tiny], ["-e", tiny, "-d", tmp_path / "kept"]):
        result = run(*words, "hello", env={"HOME": home}, check=True)
        assert (result.stdout, result.stderr) == (b"hello\n", b"")


def test_the_working_directory_may_be_read_only(run, tiny, tmp_path):
    # /proc: not even root can write there.
    for words in (["-e", tiny], ["-e", tiny, "-d", tmp_path / "kept"]):
        result = run(*words, "sh", "-c", "pwd; hello", cwd="/proc", check=True)
        assert result.stdout == b"/proc\nhello\n"


def test_the_working_directory_may_be_gone(run, spawn, tiny, tmp_path):
    (tmp_path / "work").mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    words = ["-e", tiny, "-d", tmp_path / "kept", "hello"]
    result = run(*words, wrapper=["sh", "-c", script, "sh"], cwd=tmp_path / "work", check=True)
    assert result.stdout == b"hello\n"


class TestAnyName:
    @pytest.mark.parametrize(
        "name",
        [
            b"poncho_package_run", b"python_package_run", b"py_wrapper", b"env.zip", b"x.py", b"-",
            b"two words.pyz", b"quote'\"$HOME`id`;", b"caf\xc3\xa9.pyz", b"\xff\xfe.pyz", b"n\n",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["by python3", "directly"])
    @pytest.mark.parametrize("kind", ["copy", "symlink", "hard link"])
    def test_it_runs(self, artifact, tiny, variables, tmp_path, name, how, kind):
        folder = os.path.join(os.fsencode(tmp_path), b"some \xe9 folder")
        os.mkdir(folder)
        path = os.path.join(folder, name)
        if kind == "copy":
            shutil.copy(artifact, path)
        elif kind == "symlink":
            os.symlink(artifact, path)
        else:
            shutil.copy(artifact, path + b".first")
            os.link(path + b".first", path)
        command = [path] if how == "directly" else [sys.executable, path]
        words = [*command, "-e", tiny, "hello", b"\xff"]
        result = subprocess.run(words, env=variables, capture_output=True)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout == b"hello \xff\n"

    @pytest.mark.parametrize("command", [["./tool"], [sys.executable, "tool"], ["tool"]], ids=repr)
    def test_it_runs_by_a_relative_name(self, artifact, tiny, variables, tmp_path, command):
        shutil.copy(artifact, tmp_path / "tool")
        words = ["-e", tiny, "-d", "kept", "hello"]
        path = os.fsencode(tmp_path) + b":" + variables[b"PATH"]
        result = subprocess.run(
            ["env", *command, *words], cwd=tmp_path, env={**variables, b"PATH": path},
            capture_output=True,
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (0, b"hello\n")

    def test_it_runs_from_a_read_only_place(self, artifact, tiny, variables, tmp_path):
        folder = tmp_path / "read-only"
        folder.mkdir()
        shutil.copy(artifact, folder / "tool")
        (folder / "tool").chmod(0o555)
        folder.chmod(0o555)
        before = sorted(os.listdir(folder))
        result = subprocess.run(
            [folder / "tool", "-e", tiny, "hello"], cwd="/proc", env=variables, capture_output=True
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"hello\n", b"")
        assert sorted(os.listdir(folder)) == before
        folder.chmod(0o755)


class TestPythonPath:
    """Modules come from the interpreter's own library, whatever PYTHONPATH holds."""

    @pytest.fixture(params=["by an interpreter", "directly"])
    def started(self, request, artifact, variables, tiny):
        def started(pythonpath):
            env = {**variables, b"PYTHONPATH": os.fsencode(pythonpath)}
            first = [sys.executable] if request.param == "by an interpreter" else []
            command = [*first, artifact, "-e", tiny, "/bin/echo", "found"]
            return subprocess.run(command, env=env, capture_output=True)

        return started

    def test_modules_of_the_librarys_names_are_passed_over(self, started, tmp_path):
        for name in ("json", "threading", "signal", "stat", "zlib", "poncho_package_run"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
        result = started(tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")

    @pytest.mark.parametrize("isolated", [[], ["-S"]], ids=["with site", "without site"])
    @pytest.mark.parametrize("words", [":/x", "/x:", "/x::/y", ".", "./", "{}/", "{}/.", "/x:{}//"])
    def test_the_working_directory_by_any_name(
        self, artifact, variables, tiny, tmp_path, words, isolated
    ):
        """An empty word is what PYTHONPATH=$PYTHONPATH:/x leaves of an unset one."""
        for name in ("json", "fcntl"):  # the interpreter itself wants neither
            (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
        env = {**variables, b"PYTHONPATH": os.fsencode(words.format(tmp_path))}
        for each in interpreters.find():
            command = [each.path, *isolated, artifact, "-e", tiny, "/bin/echo", "found"]
            result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True)
            assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")

    def test_the_library_itself_may_stand_in_it(self, started):
        library = os.path.dirname(os.__file__)
        result = started(f"{library}:{library}/lib-dynload")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")


class TestRunDirectly:
    @pytest.fixture
    def tool(self, artifact, tmp_path):
        """The artifact as a worker gets it, in a directory of its own."""
        folder = tmp_path / "sandbox"
        folder.mkdir()
        shutil.copy(artifact, folder / "poncho_package_run")
        (folder / "poncho_package_run").chmod(0o755)
        return folder / "poncho_package_run"

    @pytest.fixture
    def direct(self, tool, variables, tmp_path):
        """Run ``tool`` with a PATH that holds only the given names for interpreters."""

        def direct(names, *words):
            folder = tmp_path / "only"
            folder.mkdir(exist_ok=True)
            for name, interpreter in names.items():
                (folder / name).symlink_to(interpreter)
            env = {**variables, b"PATH": os.fsencode(folder)}
            return subprocess.run([tool, *words], env=env, capture_output=True)

        return direct

    @pytest.mark.parametrize("interpreter", interpreters.find(), ids=IDS)
    def test_it_finds_a_versioned_interpreter(self, direct, tiny, tmp_path, interpreter):
        words = ["-e", tiny, "-d", tmp_path / "kept", "/bin/echo", "found"]
        result = direct({f"python{interpreter.name}": interpreter.path}, *words)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")

    def test_it_prefers_python3(self, direct, tiny, tmp_path):
        (tmp_path / "wrapper").write_text(
            f'#!/bin/sh\necho "by python3" >&2\nexec {sys.executable} "$@"\n'
        )
        (tmp_path / "wrapper").chmod(0o755)
        names = {"python3": tmp_path / "wrapper", "python3.9": "/bin/false"}
        result = direct(names, "-e", tiny, "/bin/echo", "found")
        assert (result.stdout, result.stderr) == (b"found\n", b"by python3\n")

    def test_it_finds_the_platforms_own(self, direct, tiny):
        if not os.access("/usr/libexec/platform-python", os.X_OK):
            pytest.skip("needs a machine with /usr/libexec/platform-python (Red Hat's)")
        result = direct({}, "-e", tiny, "/bin/echo", "found")
        assert (result.returncode, result.stdout) == (0, b"found\n")

    def test_it_finds_the_python_beside_it(self, tool, direct, tiny):
        (tool.parent / "python3").symlink_to(sys.executable)
        result = direct({}, "-e", tiny, "/bin/echo", "found")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")

    def test_it_finds_the_python_beside_what_a_symlink_names(self, tool, direct, tiny, tmp_path):
        (tool.parent / "python3").symlink_to(sys.executable)
        tool.rename(tool.parent / "target")
        (tmp_path / "elsewhere").mkdir()
        os.rename(tool.parent / "target", tmp_path / "elsewhere" / "tool")
        (tool.parent / "python3").rename(tmp_path / "elsewhere" / "python3")
        tool.symlink_to(tmp_path / "elsewhere" / "tool")
        names = {"readlink": shutil.which("readlink")}
        result = direct(names, "-e", tiny, "/bin/echo", "found")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"found\n", b"")

    def test_it_finds_the_python_of_the_environment_it_was_packed_into(
        self, run, artifact, environment, variables, tmp_path
    ):
        kept = tmp_path / "kept"
        run("-e", environment.archive(scripts=False), "-d", kept, check=True)
        tool = Path(shutil.copy(artifact, kept / "bin" / "poncho_package_run"))
        tool.chmod(0o755)
        # TaskVine reaches an environment through a symlink into the worker's cache.
        (tmp_path / "link").symlink_to(kept)
        for name in (tool, tmp_path / "link" / "bin" / "poncho_package_run"):
            env = {**variables, b"PATH": b"/nonexistent"}
            command = [name, "-e", kept, "showprefix"]
            result = subprocess.run(command, env=env, capture_output=True)
            assert (result.returncode, result.stderr) == (0, b"")
            assert result.stdout.decode() == prefix_line(kept)

    @pytest.mark.skipif(
        os.access("/usr/libexec/platform-python", os.X_OK), reason="this machine has a platform one"
    )
    def test_without_any_it_says_so_in_one_line(self, direct, tiny):
        result = direct({}, "-e", tiny, "/bin/echo", "found")
        assert (result.returncode, result.stdout) == (127, b"")
        assert result.stderr.count(b"\n") == 1, result.stderr
        assert result.stderr.startswith(b"poncho_package_run: ")
        assert b"python3" in result.stderr

    def test_the_shell_that_finds_it_does_not_stay(self, direct, tiny, tmp_path):
        words = ["-e", tiny, "-d", tmp_path / "kept", "/bin/sh", "-c", "echo $$ $PPID"]
        result = direct({"python3": sys.executable}, *words)
        assert int(result.stdout.split()[1]) == os.getpid()

    def test_words_and_status_pass_the_header(self, direct, tiny):
        words = [b"", b"two words", b"$HOME", b"*", b"\xff", b"'", b'"', b"a\nb", b"\\"]
        script = 'for w; do printf "%s\\0" "$w"; done; exit 7'
        names = {"python3": sys.executable}
        result = direct(names, "-e", tiny, "/bin/sh", "-c", script, "sh", *words)
        assert result.returncode == 7
        assert result.stdout.split(b"\0")[:-1] == words


def test_it_never_unpacks_itself(run, tiny, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    run("-e", tiny, "hello", env={"HOME": home}, check=True)
    assert (os.listdir(home), os.listdir(tmp_path / "tmp")) == ([], [])


def test_it_may_be_replaced_while_it_runs(artifact, tiny, variables, tmp_path):
    # A worker's cache may drop the file as soon as the task has started.
    tool = Path(shutil.copy(artifact, tmp_path / "tool"))
    worker = subprocess.Popen(
        [sys.executable, tool, "-e", tiny, "sh", "-c", "echo ready; read x; exit 7"],
        stdin=-1, stdout=-1, stderr=-1, env=variables,
    )  # fmt: skip
    assert worker.stdout.readline() == b"ready\n"
    tool.unlink()
    _, errors = worker.communicate(b"\n", timeout=60)
    assert (worker.returncode, errors) == (7, b"")
    assert os.listdir(tmp_path / "tmp") == []


def test_its_members_have_plain_modes(artifact):
    import zipfile

    with zipfile.ZipFile(artifact) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            assert stat.S_IMODE(mode) in (0o644, 0o755), info.filename

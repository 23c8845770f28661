"""Fixtures that every test may use; the tool is always run as a user runs it."""

import os
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional, Union

import pytest

from support import crash, environments

Word = Union[str, bytes, "os.PathLike[str]"]
Variables = Mapping[str, Union[str, bytes, Path, None]]

_TESTS = Path(__file__).parent

# What pytest's caller ignores, each process that it starts would ignore: nohup ignores SIGHUP, a
# shell's background SIGINT and SIGQUIT.  The tests are about signals that nobody ignores.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def artifact() -> Path:
    """The built artifact: dist/poncho_package_run.pyz, or what PONCHO_TEST_ARTIFACT names."""
    path = os.environ.get("PONCHO_TEST_ARTIFACT")
    built = Path(path) if path else _TESTS.parent / "dist" / "poncho_package_run.pyz"
    if not built.is_file():
        pytest.fail(f"{built} does not exist: build it with make all")
    return built.resolve()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> environments.Environment:
    """The small real environment; kept between sessions in tests/.cache where that can be."""
    cache = _TESTS / ".cache"
    try:
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError:
        # A checkout that belongs to someone else: build it for this session only.
        cache = tmp_path_factory.mktemp("environment")
    return environments.cached(cache)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar.gz environment that unpacks in milliseconds; its bin/hello prints its arguments."""
    return environments.tiny(tmp_path_factory.mktemp("tiny") / "tiny.tar.gz")


@pytest.fixture
def ground(artifact: Path) -> Iterator[Callable[..., crash.Place]]:
    """Make the place of a scenario, in a folder that other users may enter too."""
    with tempfile.TemporaryDirectory() as root, ExitStack() as ending:
        os.chmod(root, 0o755)

        def make(format: str = "tar.gz") -> crash.Place:
            place = crash.Place(Path(root, "place"), artifact, format)
            ending.callback(place.end)
            return place

        yield make


# Where it matters how bytes are decoded and files written, all is tried with the library in C and
# without (test_crash, test_faults and sweep have rows of each).
_BOTH_WAYS = {
    "test_corpus",
    "test_formats",
    "test_hostile_archives",
    "test_zip",
}

# Here each test goes one of the two ways, by its name: there are many, and they take long.
_EITHER_WAY = {
    "test_hostile_archives.test_hostile_to_a_temporary_directory",
    "test_hostile_resources",
    "test_parallel",
}


def _goes_either_way(module: ModuleType, function: Callable[..., object]) -> bool:
    name = module.__name__
    return name in _EITHER_WAY or f"{name}.{function.__name__}" in _EITHER_WAY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    either = _goes_either_way(metafunc.module, metafunc.function)
    both = metafunc.module.__name__ in _BOTH_WAYS and not either
    if both and "library" in metafunc.fixturenames:
        metafunc.parametrize("library", ["library", "python"], indirect=True)


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Optional[str]:
    """Whether the library in C is to be used, whatever the size; None: as the tool has it."""
    way = {"library": "yes", "python": "no"}.get(getattr(request, "param", ""))
    if _goes_either_way(request.module, request.function):
        way = ("yes", "no")[zlib.crc32(request.node.name.encode()) % 2]
    if way is not None:
        monkeypatch.setenv("PONCHO_PACKAGE_RUN_NATIVE", way)
    return way


@pytest.fixture
def variables(tmp_path: Path, library: Optional[str]) -> dict[bytes, bytes]:
    """The environment variables of ``run`` and ``spawn``.

    Nothing of the caller's Python or Conda, TMPDIR in a directory of the test, and a
    HOME in which not even root can write.
    """
    ours = ("PYTHON", "CONDA", "VIRTUAL_ENV", "PONCHO", "_CONDA", "PYTEST", "PIP", "MAKE")
    kept = {
        os.fsencode(name): os.fsencode(value)
        for name, value in os.environ.items()
        if not name.startswith(ours)
    }
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    home = "/proc" if os.path.isdir("/proc") else "/dev/null"
    kept.update({b"TMPDIR": os.fsencode(temporary), b"HOME": os.fsencode(home)})
    if library is not None:
        kept[b"PONCHO_PACKAGE_RUN_NATIVE"] = os.fsencode(library)
    return kept


@pytest.fixture
def prepare(artifact: Path, variables: dict[bytes, bytes]) -> Callable[..., dict[str, Any]]:
    """What ``run`` and ``spawn`` have in common: the arguments for subprocess."""

    def prepare(
        words: tuple[Word, ...],
        interpreter: Optional[Word],
        env: Optional[Variables],
        options: dict[str, Any],
    ) -> dict[str, Any]:
        merged = dict(variables)
        for name, value in (env or {}).items():
            if value is None:
                merged.pop(os.fsencode(name), None)
            else:
                merged[os.fsencode(name)] = os.fsencode(value)
        wrapper = options.pop("wrapper", ())
        args = [*wrapper, interpreter or sys.executable, artifact, *words]
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return {"args": [os.fsencode(word) for word in args], "env": merged, **options}

    return prepare


@pytest.fixture
def run(
    prepare: Callable[..., dict[str, Any]],
) -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    """Run the artifact to its end: ``run(*args, interpreter=, env=, cwd=, timeout=, check=)``.

    ``env`` is laid over the fixture ``variables``; None as a value removes a variable.
    ``check=True`` asserts status 0.  ``wrapper`` is the start of a command line to run it
    under (strace and its options, say).  Other arguments go to subprocess.run.
    """

    def run(
        *words: Word,
        interpreter: Optional[Word] = None,
        env: Optional[Variables] = None,
        timeout: float = 120,
        check: bool = False,
        **options: Any,
    ) -> "subprocess.CompletedProcess[bytes]":
        result = subprocess.run(
            **prepare(words, interpreter, env, options), timeout=timeout, check=False
        )
        if check:
            assert result.returncode == 0, os.fsdecode(result.stderr or b"")
        return result

    return run


@pytest.fixture
def spawn(
    prepare: Callable[..., dict[str, Any]],
) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start the artifact in a session of its own, and kill what is left of it at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def spawn(
        *words: Word,
        interpreter: Optional[Word] = None,
        env: Optional[Variables] = None,
        **options: Any,
    ) -> "subprocess.Popen[bytes]":
        options.setdefault("start_new_session", True)
        process = subprocess.Popen(**prepare(words, interpreter, env, options))
        running.append(process)
        return process

    yield spawn
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # Everything in its group has ended, or it was not made a group's leader.
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

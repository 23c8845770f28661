"""Contract 2, the exit status: each row of its table, by the status in the test's name."""

import fcntl
import gzip
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from support import interpreters, tars, tracing
from support.commands import missing
from support.environments import PLACEHOLDER
from support.messages import refused, status_of

TOP = Path(__file__).parents[1]


@pytest.fixture(params=["temporary", "kept"])
def place(request, tmp_path):
    """The options for either kind of environment."""
    return ["-d", tmp_path / "kept"] if request.param == "kept" else []


@pytest.fixture
def write(tmp_path):
    """Write an archive into the test's directory."""

    def write(data, name="archive"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def left(tmp_path):
    return os.listdir(tmp_path / "tmp")


@pytest.mark.parametrize("status", [0, 1, 7, 64, 65, 75, 125, 126, 127, 128, 255])
def test_the_status_of_the_command_is_handed_on(run, tiny, place, tmp_path, status):
    result = run("-e", tiny, *place, "sh", "-c", f"exit {status}")
    assert result.returncode == status
    assert result.stderr == b""
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "SEGV", "PIPE", "TERM", "USR1"])
def test_128_plus_n_when_a_signal_killed_the_command(run, tiny, place, tmp_path, name):
    # No core file: a dump of the tool's own would land in the working directory.
    script = f"ulimit -c 0; kill -{name} $$; exit 99"
    result = run("-e", tiny, *place, "sh", "-c", script, cwd=tmp_path)
    assert status_of(result) == 128 + getattr(signal, f"SIG{name}")
    assert left(tmp_path) == []


def test_64_the_command_line_is_wrong(run, tiny):
    refused(run("-e", tiny, "--nonsense", "true"), 64, "--nonsense", "--help")


class Test65TheArchive:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"x", id="one byte"),
            pytest.param(b"not an archive\n" * 100, id="text"),
            pytest.param(bytes(4096), id="zeros"),
            pytest.param(b"\x7fELF" + bytes(range(256)) * 8, id="a program"),
        ],
    )
    def test_65_is_of_an_unknown_format(self, run, write, place, data):
        archive = write(data)
        refused(run("-e", archive, *place, "hello"), 65, str(archive))

    def test_65_is_damaged(self, run, environment, write, place):
        data = bytearray(environment.archive().read_bytes())
        data[len(data) // 2] ^= 0x55
        archive = write(data)
        refused(run("-e", archive, *place, "true"), 65, str(archive))

    def test_65_has_a_wrong_checksum_at_its_end(self, run, tiny, write, place):
        data = bytearray(tiny.read_bytes())
        data[-8] ^= 1
        archive = write(data)
        refused(run("-e", archive, *place, "hello"), 65, str(archive))

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
    def test_65_is_truncated(self, run, environment, write, place, tmp_path, kept):
        data = environment.archive().read_bytes()
        archive = write(data[: int(len(data) * kept)])
        refused(run("-e", archive, *place, "true"), 65, str(archive))
        assert left(tmp_path) == []

    @pytest.mark.parametrize(
        "member",
        [
            pytest.param(tars.member(b"../escaped", b"x"), id="dotdot"),
            pytest.param(tars.member(b"/escaped", b"x"), id="absolute"),
            pytest.param(tars.hardlink(b"x", b"../../etc/passwd"), id="hard link outside"),
            pytest.param(
                tars.symlink(b"out", b"..") + tars.member(b"out/escaped", b"x"),
                id="through a symlink",
            ),
            pytest.param(tars.header(b"null", type=b"3"), id="a device"),
            pytest.param(tars.header(b"pipe", type=b"6"), id="a fifo"),
        ],
    )
    def test_65_is_unsafe(self, run, write, place, tmp_path, member):
        archive = write(tars.environment(member))
        refused(run("-e", archive, *place, "true"), 65, str(archive))
        assert not list(tmp_path.rglob("escaped"))

    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
    def test_65_holds_no_environment(self, run, write, place, pack):
        archive = write(pack(tars.member(b"some/file", b"x") + tars.END))
        refused(run("-e", archive, *place, "true"), 65, str(archive))


class Test66TheArchive:
    def test_66_does_not_exist(self, run, place, tmp_path):
        name = tmp_path / "nowhere.tar.gz"
        refused(run("-e", name, *place, "true"), 66, str(name))
        assert not (tmp_path / "kept").exists()

    def test_66_lies_behind_something_that_is_no_directory(self, run, tiny, place):
        refused(run("-e", tiny / "x.tar", *place, "true"), 66, str(tiny / "x.tar"))

    def test_66_is_a_circle_of_symlinks(self, run, place, tmp_path):
        (tmp_path / "circle").symlink_to("circle")
        refused(run("-e", tmp_path / "circle", *place, "true"), 66, str(tmp_path / "circle"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_66_may_not_be_read(self, run, tiny, write, place):
        archive = write(tiny.read_bytes())
        archive.chmod(0)
        refused(run("-e", archive, *place, "true"), 66, str(archive))

    def test_66_may_not_be_read_even_by_root(self, run, tiny, place, tmp_path):
        wrapper = tracing.failing("openat", "EACCES", paths=[tiny])
        refused(run("-e", tiny, *place, "true", wrapper=wrapper), 66, str(tiny))


class Test69ADecoder:
    def test_69_of_squashfs_is_missing(self, run, write, place):
        archive = write(b"hsqs" + bytes(8192))
        env = {"PATH": "/nonexistent"}
        refused(run("-e", archive, *place, "true", env=env), 69, str(archive), "unsquashfs")

    def test_69_of_zstd_is_missing(self, run, environment, place, tmp_path):
        result = run(
            *["-e", environment.archive("tar.zst", scripts=False), *place, "true"],
            interpreter=without_zstd(),
            wrapper=tracing.without_libzstd(),
            env={"PATH": "/nonexistent"},
        )
        refused(result, 69, "zstd", str(environment.archive("tar.zst", scripts=False)))


def without_zstd():
    """An interpreter whose standard library has no zstd: one before 3.14."""
    if sys.version_info < (3, 14):
        return sys.executable
    for each in interpreters.find():
        if each.version < (3, 14):
            return each.path
    missing("needs a Python before 3.14, whose standard library has no zstd")


class Test73TheDirectory:
    def test_73_is_a_file(self, run, tiny, tmp_path):
        (tmp_path / "file").write_bytes(b"mine")
        result = run("-e", tiny, "-d", tmp_path / "file", "hello")
        refused(result, 73, str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == b"mine"

    def test_73_lies_in_a_file(self, run, tiny, tmp_path):
        (tmp_path / "file").touch()
        result = run("-e", tiny, "-d", tmp_path / "file" / "kept", "hello")
        refused(result, 73, str(tmp_path / "file"))

    def test_73_cannot_be_created(self, run, tiny):
        refused(run("-e", tiny, "-d", "/proc/nothing/can/be/made/here", "hello"), 73, "/proc/")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write in every directory")
    def test_73_may_not_be_written(self, run, tiny, tmp_path):
        (tmp_path / "kept").mkdir(mode=0o555)
        refused(run("-e", tiny, "-d", tmp_path / "kept", "hello"), 73, str(tmp_path / "kept"))

    def test_73_may_not_be_written_even_by_root(self, run, tiny, tmp_path):
        result = run(
            *["-e", tiny, "-d", tmp_path / "kept", "hello"],
            wrapper=tracing.failing("mkdir,mkdirat", "EROFS"),
        )
        refused(result, 73, str(tmp_path / "kept"))

    @pytest.mark.parametrize("temporary", ["/proc", "/nonexistent/tmp", "FILE"])
    def test_73_the_temporary_directory_cannot_be_written(self, run, tiny, tmp_path, temporary):
        (tmp_path / "file").touch()
        path = temporary.replace("FILE", str(tmp_path / "file"))
        refused(run("-e", tiny, "hello", env={"TMPDIR": path}), 73, path)


class Test74ReadingOrWriting:
    def test_74_a_file_grows_over_the_limit(self, run, environment, place, tmp_path):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        result = run("-e", environment.archive(), *place, "true", preexec_fn=limit)
        refused(result, 74, "File too large", "(ulimit -f)")
        assert left(tmp_path) == []

    @pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
    def test_74_writing_fails(self, run, environment, place, tmp_path, error):
        # Not the first ones, which are the interpreter's.
        calls, log = "write,pwrite64,writev,pwritev", tmp_path / "trace"
        wrapper = tracing.failing(calls, error, when="3+", log=log)
        archive = environment.archive("tar", scripts=False)
        result = run("-e", archive, *place, "true", wrapper=wrapper)
        # The message itself is written with the same call, and lost.
        assert result.returncode == 74
        assert result.stdout == b""
        assert "INJECTED" in log.read_text()
        assert left(tmp_path) == []

    def test_74_reading_fails(self, run, environment, place, tmp_path):
        archive = environment.archive()
        wrapper = tracing.failing("read,pread64", "EIO", when="3+", paths=[archive])
        refused(run("-e", archive, *place, "true", wrapper=wrapper), 74, str(archive))
        assert left(tmp_path) == []


class Test75TheLock:
    @pytest.mark.parametrize("seconds", ["0", "1"])
    def test_75_is_not_to_be_had_in_time(self, run, tiny, tmp_path, seconds):
        kept = tmp_path / "kept"
        kept.mkdir()
        descriptor = os.open(kept, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            result = run("-e", tiny, "-d", kept, "-w", seconds, "hello")
        finally:
            os.close(descriptor)
        refused(result, 75, str(kept), f"{seconds} s")
        assert os.listdir(kept) == []


class Test78Relocation:
    def deep(self, tmp_path, length):
        """A path of exactly ``length`` bytes that does not exist yet."""
        path = str(tmp_path)
        while length - len(path) > 200:
            path += "/" + "d" * 100
        path += "/" + "d" * (length - len(path) - 1)
        assert len(path) == length
        return Path(path)

    def test_78_the_path_is_too_long_for_a_binary_placeholder(self, run, environment, tmp_path):
        kept = self.deep(tmp_path, len(PLACEHOLDER) + 1)
        result = run("-e", environment.archive(), "-d", kept, "true")
        refused(result, 78, str(kept), str(len(PLACEHOLDER)))
        assert not kept.exists() or os.listdir(kept) == []

    def test_the_longest_path_that_fits(self, run, environment, tmp_path):
        kept = self.deep(tmp_path, len(PLACEHOLDER))
        result = run("-e", environment.archive(), "-d", kept, "showprefix", check=True)
        assert result.stdout.decode().splitlines()[0] == str(kept)


class Test126And127TheCommand:
    def test_126_may_not_be_executed(self, run, tiny, place, tmp_path):
        (tmp_path / "script").write_text("#!/bin/sh\n")
        result = run("-e", tiny, *place, tmp_path / "script")
        refused(result, 126, str(tmp_path / "script"))
        assert left(tmp_path) == []

    def test_126_is_a_directory(self, run, tiny, place, tmp_path):
        refused(run("-e", tiny, *place, tmp_path), 126, str(tmp_path))

    def test_126_on_the_path_may_not_be_executed(self, run, tiny, place, tmp_path):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "not-executable").write_text("#!/bin/sh\n")
        result = run("-e", tiny, *place, "not-executable", env={"PATH": str(tmp_path / "bin")})
        refused(result, 126, "not-executable")

    @pytest.mark.parametrize("name", ["no-such-command", "./no-such-command", "/no/such/command"])
    def test_127_was_not_found(self, run, tiny, place, tmp_path, name):
        refused(run("-e", tiny, *place, name, cwd=tmp_path), 127, name)
        assert left(tmp_path) == []

    def test_127_has_an_empty_name(self, run, tiny, place):
        refused(run("-e", tiny, *place, ""), 127)

    def test_127_behind_the_shell_of_activation_scripts(self, run, environment, place):
        result = run("-e", environment.archive(), *place, "no-such-command")
        assert result.returncode == 127
        assert b"no-such-command" in result.stderr
        assert b"Traceback" not in result.stderr


def failures():
    from poncho_package_run.telling import errors

    return sorted((kind.status, kind.meaning) for kind in errors.Failure.__subclasses__())


def rows(text):
    """Text without line breaks and table rules, so that a wrapped row can be found in it."""
    return " ".join(text.replace("|", " ").split())


def test_the_statuses_are_the_contracts():
    assert sorted({status for status, _ in failures()}) == [
        64, 65, 66, 69, 73, 74, 75, 78, 126, 127
    ]  # fmt: skip


def test_help_shows_every_row(run):
    text = rows(run("--help", check=True).stdout.decode())
    for status, meaning in failures():
        assert f"{status} {meaning}" in text


def test_the_readme_shows_every_row():
    text = rows((TOP / "README.md").read_text())
    for status, meaning in failures():
        assert f"{status} {meaning}" in text


def test_cleaning_up_never_changes_the_status(run, tiny, tmp_path):
    wrapper = tracing.failing("unlink,unlinkat,rmdir", "EBUSY", log=tmp_path / "trace")
    result = run("-e", tiny, "sh", "-c", "exit 7", wrapper=wrapper)
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert (result.returncode, result.stdout, result.stderr) == (7, b"", b"")

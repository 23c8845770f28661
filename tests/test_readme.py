"""What the README says: its commands work, its tables agree with the tool and name real tests."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import readme

STATUSES = {
    "64": "the command line is wrong",
    "65": "the archive is damaged, truncated, unsafe, of an unknown format,"
    " or holds no environment",
    "66": "the archive does not exist or cannot be read",
    "69": "a decoder that this archive needs is not to be had on this machine",
    "73": "DIR or the temporary directory cannot be created or written",
    "74": "reading or writing failed: disk full, quota, I/O error",
    "75": "the lock was not to be had in time (a retry may succeed)",
    "78": "the environment cannot be relocated to this path"
    " (path too long for a binary placeholder)",
    "126": "the command cannot be executed",
    "127": "was not found",
}
"""The failures of the tool itself that callers may rely on."""

OPTIONS = {
    "-e", "--environment", "-d", "--unpack-to", "-u", "-w", "--wait-for-lock", "--debug",
    "--cache", "--cache-limit", "--list-cache", "--help-env-creation", "--version", "-h", "--help",
}  # fmt: skip

BLOCKS = [each for each in readme.blocks() if each.language == "sh" or each.test]


@pytest.fixture(scope="session")
def collected():
    """The ids of all tests there are."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=readme.TOP, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_every_block_is_seen():
    """None is written in a way that support.readme passes over."""
    fences = re.findall(r"^ *(?:```|~~~)", readme.pages(), re.MULTILINE)
    assert len(fences) == 2 * len(readme.blocks())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.text.split("\n")[0][:40])
def test_block_is_run(block, artifact, environment, variables, tmp_path, collected):
    """By the test that the comment above it names, or here as it stands."""
    if block.test:
        assert block.test in collected
        return
    shutil.copy(artifact, tmp_path / "poncho_package_run.pyz")
    shutil.copy(environment.archive(), tmp_path / "env.tar.gz")
    (tmp_path / "example.py").write_text("import sys; print(sys.argv, sys.prefix)\n")
    done = subprocess.run(
        ["sh", "-e", "-c", block.text], cwd=tmp_path, env=variables, timeout=120,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.fixture
def help_text(run):
    return run("--help", check=True).stdout.decode()


def table(first):
    """The one table of the README whose first heading is ``first``, without the heading."""
    [found] = [rows for rows in readme.tables() if rows[0][0] == first]
    return found[1:]


def test_status_table(help_text):
    helped = " ".join(help_text.split())
    for row in table("status"):
        for number in re.findall(r"\d+", row[0]):
            assert number in STATUSES or int(number) in (0, 128), row
    documented = " ".join(" ".join(row) for row in table("status"))
    for number, meaning in STATUSES.items():
        assert re.search(rf"\b{number}\b", documented) and meaning in documented
        assert re.search(rf"\b{number}\b", helped) and meaning in helped


def test_option_table(help_text):
    spelling = r"(?<![\w-])--?[a-z][a-z-]*"
    documented = {word for row in table("option") for word in re.findall(spelling, row[0])}
    assert documented == OPTIONS
    assert set(re.findall(spelling, help_text)) >= OPTIONS


def test_every_caller_has_a_test(collected):
    for caller, _line, tick, shown_by in table("caller"):
        tests = re.findall(r"`([^`]+)`", shown_by)
        assert tick == "✓" and tests and set(tests) <= collected, caller


def test_environment_recipe(run, environment, tmp_path):
    """Its packing works as it is written, and its other options are those of conda-pack."""
    text = run("--help-env-creation", check=True).stdout.decode()
    assert text == run("--help-env", check=True).stdout.decode()
    for line in readme.block("tests/test_readme.py::test_environment_recipe").splitlines():
        assert f" {line}\n" in text
    conda_pack = Path(sys.executable).with_name("conda-pack")
    line = re.search(r"^ +\./my-env/bin/conda-pack (.*)$", text, re.MULTILINE)[1]
    words = line.replace("./my-env", str(environment.prefix)).split()
    subprocess.run([conda_pack, "--quiet", *words], cwd=tmp_path, check=True)
    run("-e", tmp_path / "my-env.tar.gz", "--", "python", "-c", "import json", check=True)

    helped = subprocess.run([conda_pack, "--help"], stdout=subprocess.PIPE, text=True).stdout
    faster = text[text.index("What makes the archive fast") :]
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", faster))
    assert options == {"--n-threads", "-j", "--output", "--exclude"}
    assert [option for option in options if not re.search(rf"{option}\b", helped)] == []

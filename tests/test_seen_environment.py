"""README, "What the command sees of your environment": each row, in both ways of starting."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"

# Of each row of the table: what the caller has, and what the command is to have; None for nothing.
FUNCTION = {"BASH_FUNC_module%%": "() {  echo $1; }"}
ROWS = {
    "module": (FUNCTION, FUNCTION),
    "LD_LIBRARY_PATH": ({"LD_LIBRARY_PATH": "/site/lib"}, {"LD_LIBRARY_PATH": "/site/lib"}),
    "PYTHONPATH": (
        {"PYTHONPATH": "/mine", "PYTHONHOME": sys.base_prefix},
        {"PYTHONPATH": None, "PYTHONHOME": None},
    ),
    "PYTHONNOUSERSITE": ({}, {"PYTHONNOUSERSITE": "1"}),
    "PYTHON*": ({"PYTHONUNBUFFERED": "1"}, {"PYTHONUNBUFFERED": "1"}),
    "CONDA_PREFIX": (
        {"CONDA_PREFIX": "/opt/other", "CONDA_SHLVL": "1"},
        {"CONDA_PREFIX_1": "/opt/other", "CONDA_SHLVL": "2"},
    ),
    "CONDA_EXE": (
        {"CONDA_EXE": "/opt/conda/bin/conda", "_CE_CONDA": "", "CONDA_PYTHON_EXE": "/opt/python"},
        {"CONDA_EXE": "/opt/conda/bin/conda", "_CE_CONDA": "", "CONDA_PYTHON_EXE": "/opt/python"},
    ),
    "VIRTUAL_ENV": ({"VIRTUAL_ENV": "/home/me/venv"}, {"VIRTUAL_ENV": None}),
    "PATH": ({}, {}),
    "proxies": (
        {"https_proxy": "http://proxy:3128", "LANG": "de_DE.UTF-8", "OMP_NUM_THREADS": "4"},
        {"https_proxy": "http://proxy:3128", "LANG": "de_DE.UTF-8", "OMP_NUM_THREADS": "4"},
    ),
}


@pytest.fixture(params=["by python3", "directly"])
def seen(request, artifact, environment, tmp_path):
    """What the command sees of given variables."""
    archive = environment.archive(scripts=False)  # what scripts do is theirs

    def seen(given, *before):
        python = [sys.executable] if request.param == "by python3" else []
        words = [*python, artifact, "-e", archive, "-d", tmp_path / "kept", "--", *before]
        variables = {"PATH": os.environ["PATH"], **given}
        result = subprocess.run(
            [*words, "python3", "-c", SHOW], env=variables, capture_output=True, check=True
        )
        return json.loads(result.stdout)

    return seen


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table(seen, row, tmp_path):
    given, expected = ROWS[row]
    found = seen(given)
    assert {name: found.get(name) for name in expected} == expected
    assert found["CONDA_PREFIX"] == str(tmp_path / "kept")
    assert found["PATH"].split(":")[0] == str(tmp_path / "kept" / "bin")


def test_there_are_no_other_rows():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    table = text.partition("### What the command sees of your environment")[2].partition("\n###")[0]
    rows = re.findall(r"^\| (?=[^|-])(.*?) \|", table, re.MULTILINE)
    assert len(rows) == len(ROWS)
    for row in ROWS:
        assert any(row in each for each in rows), row


def test_more_is_set_behind_the_tool(seen):
    found = seen({"PYTHONPATH": "/mine"}, "env", "PYTHONPATH=/lib/of/mine", "OTHER=1")
    assert (found["PYTHONPATH"], found["OTHER"]) == ("/lib/of/mine", "1")


def test_the_user_s_own_packages_are_let_in_by_an_empty_variable(seen):
    assert seen({"PYTHONNOUSERSITE": ""})["PYTHONNOUSERSITE"] == ""

"""Words and names in locales whose text is not UTF-8: they reach the command byte for byte.

The C library decodes what Python gets, and a codec of Python's own encodes it again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import missing, need

LOCALES = {
    "ja_JP.EUCJP": ("ja_JP", "EUC-JP"),
    "ja_JP.SJIS": ("ja_JP", "SHIFT_JIS"),
    "ko_KR.EUCKR": ("ko_KR", "EUC-KR"),
    "zh_CN.GB18030": ("zh_CN", "GB18030"),
    "zh_TW.BIG5": ("zh_TW", "BIG5"),
}
WORDS = [
    "日本.txt".encode(),
    "한글".encode(),
    "漢字".encode("euc_jp"),
    "表\\~".encode("shift_jis"),
    b"\x83\x87\\\xfe~",
    b"\x87\x90",
    b"\xff\xfe plain",
    b"",
]


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """The directory for LOCPATH."""
    if not Path("/usr/share/i18n/charmaps").is_dir():
        missing("needs the sources of locales: apt-get install locales")
    folder = tmp_path_factory.mktemp("locales")
    for name, (language, charmap) in LOCALES.items():
        # It warns of what is not as in ASCII, with status 1.
        words = [need("localedef"), "-c", "-i", language, "-f", charmap, folder / name]
        subprocess.run(words, capture_output=True)
        assert (folder / name).is_dir()
    return folder


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "python"])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
@pytest.mark.parametrize("name", LOCALES)
def test_words_pass(artifact, locales, tmp_path, name, scripts, direct):
    prefix = tmp_path / "環境"
    (prefix / "conda-meta").mkdir(parents=True)
    if scripts:
        script = prefix / "etc/conda/activate.d/a.sh"
        script.parent.mkdir(parents=True)
        # With another PATH the tool itself looks for the command, behind the shell.
        script.write_text('PATH=$PATH:"$CONDA_PREFIX/x"\n')
    variables = {"PATH": os.environ["PATH"], "LC_ALL": name, "LOCPATH": str(locales)}
    start = [artifact] if direct else [sys.executable, artifact]
    command = [*start, "-e", prefix, "printf", "<%s>", *WORDS]
    result = subprocess.run(command, env=variables, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"".join(b"<%s>" % word for word in WORDS)


def test_the_words_of_a_host_are_its_own(artifact, locales, tmp_path):
    """Which runs the tool within its own process, whose words are others."""
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    host = (
        "import runpy, sys\n"
        f"sys.argv = [sys.argv[1], '-e', {str(tmp_path / 'env')!r}, 'echo', sys.argv[2]]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    for name in LOCALES:
        variables = {"PATH": os.environ["PATH"], "LC_ALL": name, "LOCPATH": str(locales)}
        command = [sys.executable, "-c", host, artifact, "one", "-x", "-e", "none", "two"]
        result = subprocess.run(command, env=variables, capture_output=True, timeout=60)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"one\n", b"")

"""The command lines that are measured: ours, and each of what it replaces or is limited by."""

import os
import shutil
import subprocess
import sys
import zipapp
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

HERE = Path(__file__).parent

VERSION = """
import sys
print("Python %d.%d.%d" % sys.version_info[:3], "in", sys.base_prefix)
"""

TARFILE = """
import sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2], filter="tar")
"""

PIPED = " and tar"

# Calls that are a round trip to the server where files are created on a network file system.
SLOW_CALLS = ("openat,close,mkdir,mkdirat,symlinkat,linkat,unlinkat,renameat,renameat2,"
              "fchmod,fchmodat,utimensat,ftruncate")


def nothing():
    """Prepare or clean nothing."""


@dataclass
class Contender:
    """A command, what makes the ground ready for it, and what clears it away; both untimed."""

    name: str
    argv: list[str]
    prepare: Callable = nothing
    clean: Callable = nothing
    environment: dict = field(default_factory=dict)


RELOCATION = """
import os, sys
sys.path.insert(0, sys.argv[1])
from poncho_package_run.machine import memory
from poncho_package_run.relocation.relocate import relocate
memory.keep()
directory = os.path.realpath(os.fsencode(sys.argv[2]))
relocate(os.open(directory, os.O_RDONLY), directory)
"""
"""The phase of a cold start, compiled from source as it is there."""


class Commands:
    """Builds command lines for one interpreter and one artifact, and their environment.

    Every Python contender runs in one interpreter: ``python``, in a bare virtual environment,
    so that neither a launcher that looks for an interpreter (a pyenv shim costs 50 ms and more)
    nor what happens to lie in its site-packages (.pth files: as much again) is measured.
    """

    def __init__(self, python: Path, artifact: Path, scratch: Path) -> None:
        subprocess.run([python, "-m", "venv", "--without-pip", scratch / "python"], check=True)
        names = scratch / "python" / "bin"
        self.base, self.artifact, self.scratch = str(python), str(artifact), scratch
        self.python = str(names / "python3")
        self.environment = {
            "PATH": f"{names}:/usr/local/bin:/usr/bin:/bin",
            "HOME": "/nonexistent", "LANG": "C.UTF-8", "TMPDIR": str(scratch),
        }
        self.empty_zipapp = scratch / "empty.pyz"
        (scratch / "empty").mkdir()
        (scratch / "empty" / "__main__.py").write_text("")
        zipapp.create_archive(scratch / "empty", self.empty_zipapp)

    def others(self):
        """Yield this and the machine's other interpreters of interest, each with its name."""
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        found = [self.base, "/usr/bin/python3", *sorted(pyenv.glob("3.11.*/bin/python3.11"))[-1:]]
        found = dict.fromkeys(os.path.realpath(one) for one in found if os.path.exists(one))
        for number, python in enumerate(found):
            name = subprocess.run([python, "-c", VERSION], check=True, stdout=subprocess.PIPE,
                                  text=True).stdout.strip().replace(str(Path.home()), "~")
            yield name, Commands(python, self.artifact, self.scratch / str(number))

    def program(self, name: str) -> Optional[str]:
        """Return the path of ``name``, or None where the machine has it not."""
        # The last folder is that of the benchmark's own pins.
        return shutil.which(name, path=self.environment["PATH"] + ":" +
                            os.path.dirname(sys.executable))

    def ours(self, archive, directory=None, command=("true",), direct=False, option="-d"):
        """Ours, in ``python``, or started by its own first line."""
        return ([] if direct else [self.python]) + [
            self.artifact, "-e", str(archive), *([option, str(directory)] if directory else []),
            "--", *command]

    def relocation(self, directory):
        """Ours, only the phase that a cold start has for it."""
        source = Path(__file__).parent.parent.parent / "src"
        return [self.python, "-B", "-c", RELOCATION, str(source), str(directory)]

    def pipeline(self, archive, directory=None, command=("true",)):
        """The shell pipeline that the manual describes."""
        return ["/bin/bash", str(HERE / "pipeline.sh"), "-e", str(archive),
                *(["-d", str(directory)] if directory else []), *command]

    def decoder(self, format, archive):
        """The decoder of Python's own library, in one process, to nothing."""
        return [self.python, str(HERE / "decode.py"), format, str(archive)]

    def extractors(self, archive, directory):
        """Yield those that only unpack, each with its name."""
        archive, directory = str(archive), str(directory)
        if archive.endswith(".zip"):
            yield "unzip", [self.program("unzip"), "-q", archive, "-d", directory]
        else:
            yield "GNU tar", [self.program("tar"), "-xf", archive, "-C", directory]
        yield "bsdtar", [self.program("bsdtar"), "-xf", archive, "-C", directory]
        if ".tar" in archive and not archive.endswith(".zst"):
            yield "Python's tarfile", [self.python, "-c", TARFILE, archive, directory]

    def pipes(self, archive, directory):
        """Yield the fast decoders of gzip, each before a tar: they only unpack, too."""
        for name in ("igzip", "pigz", "rapidgzip"):
            program = self.program(name)
            yield name + PIPED, [program and "/bin/sh", "-c", '"$0" -dc "$1" | tar -x -C "$2"',
                                 program, str(archive), str(directory)]

    def slowed(self, argv, milliseconds=1):
        """``argv`` under strace, with latency at every call that creates or closes a file.

        seccomp-bpf stops the tracees at these calls only. Delays of several threads overlap,
        as they do on a network.
        """
        return [self.program("strace"), "-f", "--seccomp-bpf", "-qq", "-o", os.devnull,
                "-e", "trace=" + SLOW_CALLS,
                "-e", f"inject={SLOW_CALLS}:delay_exit={milliseconds * 1000}", *argv]

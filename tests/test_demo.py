"""The demonstration that the README begins with."""

import os
import subprocess
import sys

from support import commands, readme


def test_make_demo(artifact):
    """It runs the command cold and warm; artifact and tools are taken as they are here."""
    done = subprocess.run(
        [
            commands.need("make"), "demo", f"RUN={sys.executable}",
            "-o", ".venv/dev", "-o", "dist/poncho_package_run.pyz",
        ],
        cwd=readme.TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120,
        # Not the variables that tell a make that another make runs it.
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )  # fmt: skip
    assert done.returncode == 0
    greetings = [line for line in done.stdout.splitlines() if b" hello from " in line]
    assert len(greetings) >= 3 and all(b"as task 1" in line for line in greetings)

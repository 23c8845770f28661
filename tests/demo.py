"""make demo: a command in a freshly packed environment, cold and then warm."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import environments

_TOP = Path(__file__).parents[1]
_ARTIFACT = _TOP / "dist" / "poncho_package_run.pyz"
_SCRIPT = "import os, sys; print('    hello from', sys.executable, 'as task', os.environ['TASK'])"


def _show(what: str, words: list[str], folder: Path) -> None:
    print(f"\n{what}\n    $ {shlex.join(words)}", flush=True)
    start = time.monotonic()
    subprocess.run(words, cwd=folder, check=True, env={**os.environ, "TASK": "1"})
    print(f"    status 0 after {time.monotonic() - start:.2f} s", flush=True)


def main() -> None:
    print("Packing a small real environment with conda-pack ...", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        cache.mkdir()
        archive = environments.cached(cache).archive()
        (folder / "env.tar.gz").symlink_to(archive)
        (folder / "poncho_package_run.pyz").symlink_to(_ARTIFACT)
        (folder / "example.py").write_text(_SCRIPT)
        print(f"    env.tar.gz: {archive.stat().st_size} bytes")
        tool = [sys.executable, "poncho_package_run.pyz"]
        once = [*tool, "-e", "env.tar.gz", "python3", "example.py"]
        kept = [*tool, "-d", "my_env", "-e", "env.tar.gz", "python3", "example.py"]
        _show("In a temporary directory, removed at the end:", once, folder)
        _show("Cold, unpacked to my_env and kept:", kept, folder)
        _show("Warm, from my_env as it is:", kept, folder)


if __name__ == "__main__":
    main()

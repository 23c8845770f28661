"""``python -m poncho_package_run``; the artifact enters ``cli.main`` straight (see build.py)."""

from .cli import main

if __name__ == "__main__":
    main()

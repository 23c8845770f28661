"""Run a command inside a packed Conda environment, on any machine with a Python 3.6 or later."""

__version__ = "1.0.0"

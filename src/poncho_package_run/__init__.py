"""Run a command inside a packed Conda environment, on any machine with a Python 3.6 or later."""

__version__ = "1.0.0"

# What has a name that begins like this is the tool's own, wherever it lies.
OURS = b".poncho_package_run_"

# The completion marker, by the name that the CCTools script gives it: what either has unpacked
# is complete to both.
MARKER = b".poncho_package_run_expanded"

"""The text of ``--help-env-creation``: from a list of packages to an archive."""

TEXT = """\
How to make an environment archive. Do this once, where packages can be installed, on the
operating system and kind of processor that the workers have. mamba and micromamba take the
same options as conda here.

  1. Create the environment, with conda-pack in it:

       conda create --yes --prefix ./my-env --channel conda-forge python=3.12 conda-pack numpy

     What only pip has: ./my-env/bin/python -m pip install PACKAGE
     (not with --editable: such a package stays where it was and cannot be packed).

  2. Pack it:

       ./my-env/bin/conda-pack --prefix ./my-env --output my-env.tar.gz --n-threads 4

  3. Run in it, here or on any worker:

       python3 poncho_package_run.pyz -e my-env.tar.gz python -c 'import numpy'

Neither conda nor conda-pack is needed where it runs, and ./my-env may be deleted.

What makes the archive fast to unpack:

  --n-threads N (-j N)       with two threads or more, a .tar.gz, .tar.bz2 or .tar.xz is written
                             so that several can unpack it too; written by one, only one can.
  --output my-env.tar.zst    small and quick to unpack. To write it, conda-pack needs the package
                             zstandard; to read it, a worker needs Python 3.14, libzstd or zstd.
  --exclude PATTERN          leave out what no task reads, such as 'include/*' or '*.a'.
"""

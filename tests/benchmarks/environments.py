"""The environments that the benchmark unpacks: real packages, packed by the real conda-pack.

The scientific environment holds a Python and two kinds of packages. Those of ``CONDA_MANAGED``
lie in a package cache, with the records that conda keeps (``info/paths.json``,
``conda-meta/*.json``) and with prefix placeholders; those of ``PIP_INSTALLED`` were put into the
prefix by pip alone, so conda-pack makes a prefix record for each of their text files.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

# The pins have wheels for every interpreter from 3.11 to 3.14.
PIP_INSTALLED = """
bokeh==3.8.0 cloudpickle==3.1.1 contourpy==1.3.3 dask==2025.10.0 distributed==2025.10.0
dill==0.4.0 locket==1.0.0 mpmath==1.3.0 networkx==3.5 partd==1.4.2 seaborn==0.13.2 sympy==1.14.0
tblib==3.1.0 toolz==1.0.0 xarray==2025.10.1 xyzservices==2025.4.0 zict==3.0.0
"""
CONDA_MANAGED = """
click==8.3.0 cycler==0.12.1 fonttools==4.60.1 fsspec==2025.9.0 greenlet==3.2.4 h5py==3.15.1
imageio==2.37.0 Jinja2==3.1.6 joblib==1.5.2 kiwisolver==1.4.9 lazy_loader==0.4 MarkupSafe==3.0.3
matplotlib==3.10.7 msgpack==1.1.2 narwhals==2.10.0 nltk==3.9.2 numpy==2.3.4 packaging==25.0
pandas==2.3.3 patsy==1.0.2 pillow==12.0.0 pip==25.3 psutil==7.1.2 pyarrow==22.0.0 pyparsing==3.2.5
python-dateutil==2.9.0.post0 pytz==2025.2 PyYAML==6.0.3 regex==2025.10.23 scikit-image==0.26.0
scikit-learn==1.7.2 scipy==1.16.3 setuptools==80.9.0 six==1.17.0 sortedcontainers==2.4.0
SQLAlchemy==2.0.44 statsmodels==0.14.6 threadpoolctl==3.6.0 tifffile==2025.10.16 tornado==6.5.2
tqdm==4.67.1 typing_extensions==4.15.0 tzdata==2025.2 urllib3==2.5.0 wheel==0.45.1
"""
QUICK = "networkx numpy pip setuptools tzdata wheel"

# As conda-build makes it: the build prefix, padded to 255 bytes.
PLACEHOLDER = ("/home/conda/feedstock_root/build_artifacts/bench_1750000000000/" + "_h_env" +
               "_placehold" * 20)[:255]
assert len(PLACEHOLDER) == 255

VERSION = sysconfig.get_python_version()
SITE_PACKAGES = f"lib/python{VERSION}/site-packages"
BUILD = f"py{VERSION.replace('.', '')}_0"

# name in the tables -> (suffix, thread count is N)
FORMATS = {
    "tar": ("tar", False),
    "tar.gz": ("tar.gz", False),
    "tar.gz -j N": ("tar.gz", True),
    "tar.bz2": ("tar.bz2", False),
    "tar.bz2 -j N": ("tar.bz2", True),
    "tar.xz": ("tar.xz", False),
    "tar.xz -j N": ("tar.xz", True),
    "tar.zst": ("tar.zst", False),
    "zip": ("zip", False),
}

# The same tar, compressed by zstd -T2.
LEVELS = {"tar.zst -3": "-3", "tar.zst -19": "-19"}

BARE = 100  # files of a unit of small ones

THREADS = max(2, os.cpu_count() or 2)


def say(message):
    """Tell on stderr what takes time."""
    print("bench: " + message, file=sys.stderr, flush=True)


@dataclass
class Environment:
    """A prefix on disk and the folder that keeps what conda-pack makes of it."""

    prefix: Path
    folder: Path

    def archive(self, format: str) -> Path:
        """Return the archive in ``format`` (of FORMATS or LEVELS), packed on first demand."""
        if format in LEVELS:
            return self.compressed(LEVELS[format])
        suffix, threaded = FORMATS[format]
        name = f"env-j{THREADS}.{suffix}" if threaded else "env." + suffix
        path = self.folder / name
        if not path.exists():
            say("packing " + str(path))
            pack(self.prefix, path, suffix, THREADS if threaded else 1)
        return path

    def compressed(self, level: str) -> Path:
        """Return the tar, compressed by zstd."""
        path, tar = self.folder / f"env{level}.tar.zst", self.archive("tar")
        if not path.exists():
            say("compressing " + str(path))
            partial = path.with_name("partial-" + path.name)
            subprocess.run(["zstd", "-qfT2", level, tar, "-o", partial], check=True)
            partial.rename(path)
        return path


def pack(prefix: Path, path: Path, format: str, threads: int) -> None:
    """Pack ``prefix`` to ``path`` with conda-pack; the name appears when it is whole."""
    import conda_pack

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial-" + path.name)
    before = tempfile.tempdir
    # conda-pack writes to TMPDIR first, which may be too small for an environment.
    tempfile.tempdir = str(path.parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            conda_pack.pack(prefix=str(prefix), output=str(partial), format=format,
                            n_threads=threads, force=True)
    finally:
        tempfile.tempdir = before
    partial.rename(path)


def scientific(cache: Path, quick: bool = False) -> Environment:
    """Return the scientific environment under ``cache``, built on first demand.

    ``quick`` makes the small one, a fraction of the packages, for a short run.
    """
    folder = cache / ("quick" if quick else "scientific")
    prefix = folder / "prefix"
    environment = Environment(prefix, folder)
    # The prefix is renamed into place when it is whole.
    if prefix.exists():
        return environment
    quickly = QUICK.split()
    managed = [pin for pin in CONDA_MANAGED.split() if not quick or name_of(pin) in quickly]
    pip_installed = [pin for pin in PIP_INSTALLED.split() if not quick or name_of(pin) in quickly]
    wheels = download(cache / "wheels", managed + pip_installed)
    shutil.rmtree(folder / "pkgs", ignore_errors=True)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "conda-meta").mkdir(parents=True)
    (partial / "conda-meta" / "history").write_text("")
    say(f"linking {len(managed) + 1} packages into {prefix}")
    link(python_package(folder / "pkgs"), partial, prefix)
    for pin in managed:
        link(wheel_package(folder / "pkgs", pin, wheels), partial, prefix)
    say(f"installing {len(pip_installed)} packages with pip")
    pip_install(wheels, partial, pip_installed)
    for script in (partial / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            replace(script, sys.executable, str(prefix / "bin" / ("python" + VERSION)))
    partial.rename(prefix)
    return environment


def name_of(pin):
    return pin.partition("==")[0]


def download(folder, pins):
    say(f"downloading {len(pins)} wheels")
    pip("download", "--no-deps", "--only-binary", ":all:", "--dest", folder, *pins)
    return folder


def pip(*arguments):
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
                           *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"bench: pip {arguments[0]} failed:\n{done.stderr}")


def pip_install(wheels, prefix, pins):
    pip("install", "--no-deps", "--no-index", "--find-links", wheels, "--ignore-installed",
        "--no-warn-script-location", "--prefix", prefix, *pins)


def replace(path, old, new):
    data = path.read_bytes()
    if os.fsencode(old) in data:
        path.write_bytes(data.replace(os.fsencode(old), os.fsencode(new)))


# --- the package cache ----------------------------------------------------------------------

def python_package(pkgs):
    """Put the running interpreter and its standard library into the cache, as conda would."""
    version = platform.python_version()
    package = pkgs / f"python-{version}-{BUILD}"
    bin_directory, library = package / "bin", package / "lib"
    bin_directory.mkdir(parents=True)
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    shutil.copy2(executable, bin_directory / ("python" + VERSION))
    for alias in ("python", "python3"):
        (bin_directory / alias).symlink_to("python" + VERSION)
    shutil.copytree(
        sysconfig.get_path("stdlib"), library / ("python" + VERSION), symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests",
                                      "idle_test", "lib*.a", "EXTERNALLY-MANAGED"))
    (package / SITE_PACKAGES).mkdir()
    (package / SITE_PACKAGES / "README.txt").write_text("Packages go here.\n")
    shared = sysconfig.get_config_var("INSTSONAME") or ""
    source = Path(sysconfig.get_config_var("LIBDIR") or "") / shared
    if ".so" in shared and source.is_file():
        shutil.copy2(source, library / shared)
    pkgconfig = source.parent / "pkgconfig"
    if pkgconfig.is_dir():
        shutil.copytree(pkgconfig, library / "pkgconfig", ignore=lambda folder, names: [
            name for name in names if not name.startswith("python")])
    return finish_package(package, "python", version, sys.base_prefix)


def wheel_package(pkgs, pin, wheels):
    """Put one wheel into the cache."""
    name, _, version = pin.lower().partition("==")
    package = pkgs / (f"{name}-{version}-{BUILD}")
    pip_install(wheels, package, [pin])
    bin_directory = package / "bin"
    for script in bin_directory.iterdir() if bin_directory.is_dir() else ():
        replace(script, sys.executable, PLACEHOLDER + "/bin/python" + VERSION)
    return finish_package(package, name, version, PLACEHOLDER)


def finish_package(package, name, version, built_prefix):
    """Write placeholders where ``built_prefix`` stands, and the records of the package."""
    paths = []
    for path in sorted(package.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        record = {"_path": str(path.relative_to(package)), "path_type": "hardlink"}
        if path.is_symlink():
            record["path_type"] = "softlink"
        else:
            mode = put_placeholder(path, built_prefix)
            if mode:
                record.update(file_mode=mode, prefix_placeholder=PLACEHOLDER)
            data = path.read_bytes()
            record.update(sha256=hashlib.sha256(data).hexdigest(), size_in_bytes=len(data))
        paths.append(record)
    index = {"name": name, "version": version, "build": BUILD, "build_number": 0,
             "depends": [], "license": "", "subdir": "linux-64", "arch": "x86_64",
             "platform": "linux"}
    info = package / "info"
    info.mkdir()
    (info / "index.json").write_text(json.dumps(index))
    (info / "paths.json").write_text(json.dumps({"paths": paths, "paths_version": 1}))
    return package


def put_placeholder(path, built_prefix):
    """Return the file mode of the prefix record that ``path`` gets, or None."""
    data = path.read_bytes()
    if b"\0" not in data:
        # An interpreter's prefix may be as short as /usr, which other files hold by chance.
        if os.fsencode(built_prefix) not in data or (
                built_prefix != PLACEHOLDER
                and not path.name.startswith(("_sysconfigdata", "Makefile", "python"))):
            return None
        path.write_bytes(data.replace(os.fsencode(built_prefix), os.fsencode(PLACEHOLDER)))
        return "text"
    # A wheel's shared libraries are what conda ships as packages of their own (OpenBLAS, HDF5,
    # image codecs), and there they hold paths below their prefix. No loader reads the bytes
    # behind the last section of an ELF file, so that is where these paths go.
    if path.parent.name.endswith(".libs") or path.name.startswith("libpython"):
        path.write_bytes(data + b"\0" + b"".join(
            os.fsencode(PLACEHOLDER) + tail + b"\0" for tail in (b"/lib", b"/share", b"/etc")))
        return "binary"
    return None


def link(package, prefix, final):
    """Link ``package`` into ``prefix``, which will be ``final``, and record it there."""
    index = json.loads((package / "info" / "index.json").read_text())
    paths = json.loads((package / "info" / "paths.json").read_text())
    for record in paths["paths"]:
        source, target = package / record["_path"], prefix / record["_path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if "file_mode" not in record:
            os.link(source, target, follow_symlinks=False)
            continue
        new, old = os.fsencode(str(final)), os.fsencode(PLACEHOLDER)
        data = source.read_bytes()
        if record["file_mode"] == "binary":
            # Each path written by put_placeholder is one NUL-terminated string.
            for tail in (b"/lib", b"/share", b"/etc"):
                padding = b"\0" * (len(old) - len(new))
                data = data.replace(old + tail + b"\0", new + tail + padding + b"\0")
        target.write_bytes(data.replace(old, new))
        shutil.copymode(source, target)
    dist_name = "{name}-{version}-{build}".format(**index)
    index.update(
        files=[record["_path"] for record in paths["paths"]], paths_data=paths,
        link={"source": str(package), "type": 1}, extracted_package_dir=str(package),
        package_tarball_full_path=str(package) + ".conda", fn=dist_name + ".conda",
        channel="conda-forge", url="", requested_spec=index["name"])
    (prefix / "conda-meta" / (dist_name + ".json")).write_text(json.dumps(index, indent=2))


# --- sizes that grow ------------------------------------------------------------------------

def grown(environment: Environment, kind: str, units: int) -> Path:
    """Return a tar.gz of ``units`` copies of one unit of ``kind``, packed on first demand.

    A unit of "files" is 1,500 small text files, one in eight of them with a prefix record (about
    as many as in the scientific environment); a unit of "bytes" is 40 MB of shared libraries;
    both come from ``environment``. A unit of "memory" is 10 MB of bytes that do not compress,
    packed in parallel blocks; a unit of "bare" is 100 files of 10 bytes, none with a record: tar
    adds them to what conda-pack has packed, which would give each of them one.
    """
    folder = environment.folder / "grown"
    path = folder / f"{kind}-{units:02}.tar.gz"
    if path.exists():
        return path
    scratch = folder / f"{kind}-{units:02}"
    shutil.rmtree(scratch, ignore_errors=True)
    tree, package = scratch / "tree", scratch / "pkgs" / "unit-1-0"
    for directory in (tree / "conda-meta", package):
        directory.mkdir(parents=True)
    (tree / "conda-meta" / "history").write_text("")
    sources = unit(environment.prefix, kind) if kind in ("files", "bytes") else []
    for number in range(units):
        part = Path("share", f"part{number:03}")
        for index, source in enumerate(sources):
            # pip's files get records, conda's do not.
            target = package if index % 8 else tree
            target = target / part / f"{index % 40:02}" / f"{index:04}{source.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            # A copy: names of one file would become hard links in the archive.
            shutil.copy2(source, target)
        if kind == "memory":
            (tree / part).mkdir(parents=True)
            for index in range(20):
                (tree / part / f"{index:02}.bin").write_bytes(os.urandom(1 << 19))
    link(finish_package(package, "unit", "1", PLACEHOLDER), tree, tree)
    # With a python in bin/, conda-unpack runs in it.
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to(
        os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    say("packing " + str(path))
    pack(tree, path, "tar.gz", THREADS if kind == "memory" else 1)
    if kind == "bare":
        whole = scratch / "whole"
        whole.mkdir()
        subprocess.run(["tar", "-xzf", path, "-C", whole], check=True)
        for number in range(units):
            part = whole / "share" / f"part{number:03}"
            part.mkdir(parents=True)
            for index in range(BARE):
                (part / f"{index:02}.bin").write_bytes(b"\0%09d" % (number * BARE + index))
        partial = path.with_suffix(".partial")
        command = ["tar", "--sort=name", "-I", "gzip -4", "-C", whole, "-cf", partial]
        subprocess.run([*command, *sorted(os.listdir(whole))], check=True)
        partial.rename(path)
    shutil.rmtree(scratch)
    return path


def unit(prefix, kind):
    """Choose the files of one unit, the same ones every time."""
    if kind == "files":
        small = (path for path in sorted(prefix.rglob("*.py"))
                 if not path.is_symlink() and 0 < path.stat().st_size <= 1 << 14)
        return [path for path, _ in zip(small, range(1500))]
    libraries, total = [], 0
    for path in sorted(prefix.rglob("*.so")):
        size = path.stat().st_size
        if 1 << 16 < size < 1 << 23 and total + size <= 40 << 20:
            libraries.append(path)
            total += size
    return libraries

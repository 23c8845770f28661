"""Environments for the tests: a small real one, packed by conda-pack, and a tiny made-up one.

The real one is laid out as conda leaves a prefix: package records in ``conda-meta``,
the packages themselves with their build-time placeholders in a package cache beside
it, and files that pip installed on top.  It holds one of each thing that has broken
an unpacker.
"""

import compileall
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Optional

from .commands import missing, need

PLACEHOLDER = ("/opt/build/bld/package_1700000000/_h_env" + "_placehold" * 30)[:255]
"""As conda-build pads it, so that any prefix of at most 255 bytes fits in its place."""

_VERSION = "{}.{}.{}".format(*sys.version_info[:3])
_LIBRARY = "python{}.{}".format(*sys.version_info[:2])
_SITE_PACKAGES = f"lib/{_LIBRARY}/site-packages"

_MODULES = (
    "argparse ast base64 bisect codecs collections.abc concurrent.futures.thread contextlib copy"
    " csv ctypes dataclasses datetime encodings.ascii encodings.cp437 encodings.idna"
    " encodings.latin_1 encodings.utf_16 encodings.utf_8_sig"
    " errno fcntl functools glob gzip hashlib heapq importlib.util inspect io"
    " json logging math multiprocessing.pool operator os pathlib pickle platform pprint queue"
    " random re resource runpy select shlex shutil signal site socket stat string struct"
    " subprocess tempfile textwrap threading time timeit traceback types weakref"
    " zipfile zlib"
)
"""What the environment's Python can import: its files are found by importing them."""

_PROGRAM = """\
#include <stdio.h>
static const char *volatile prefix = PREFIX;
static const char *volatile path = PREFIX "/share/showprefix:" PREFIX "/lib";
int main(void) { printf("%s\\n%s\\n", prefix, path); return 0; }
"""

_ENTRY_POINT = """\
#!{prefix}/bin/python3
import sys
from {module} import main
sys.exit(main())
"""


class _Package:
    """A package in the cache, to be linked into the prefix as conda does it."""

    def __init__(self, cache: Path, name: str, version: str, build: str) -> None:
        self.name, self.version, self.build = name, version, build
        self.noarch = build.startswith("pyh")
        self.root = cache / f"{name}-{version}-{build}"
        self.paths: list[dict[str, Any]] = []
        self.linked_only: list[str] = []
        (self.root / "info").mkdir(parents=True)

    def file(self, path: str, data: bytes, mode: int = 0o644, prefix: str = "") -> None:
        """Add a file; ``prefix`` is "text" or "binary" where ``data`` holds the placeholder."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data)
        full.chmod(mode)
        self.record(path, "hardlink", hashlib.sha256(data).hexdigest(), len(data), prefix)

    def symlink(self, path: str, target: str) -> None:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.symlink_to(target)
        self.record(path, "softlink", hashlib.sha256(b"").hexdigest(), 0)

    def hardlink(self, path: str, first: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(self.root / first, self.root / path)
        record = next(each for each in self.paths if each["_path"] == first)
        self.paths.append(dict(record, _path=path))

    def record(self, path: str, kind: str, digest: str, size: int, prefix: str = "") -> None:
        entry = {"_path": path, "path_type": kind, "sha256": digest, "size_in_bytes": size}
        if prefix:
            entry.update(prefix_placeholder=PLACEHOLDER, file_mode=prefix)
        self.paths.append(entry)

    def target(self, path: str) -> str:
        """Where ``path`` goes in the prefix."""
        if self.noarch and path.startswith("site-packages/"):
            return _SITE_PACKAGES + path[len("site-packages") :]
        if self.noarch and path.startswith("python-scripts/"):
            return "bin" + path[len("python-scripts") :]
        return path

    def install(self, prefix: Path) -> None:
        """Write the package's own records, link its files into ``prefix``, record that there."""
        info = self.root / "info"
        (info / "paths.json").write_text(json.dumps({"paths": self.paths, "paths_version": 1}))
        if self.noarch:
            link = {"noarch": {"type": "python"}, "package_metadata_version": 1}
            (info / "link.json").write_text(json.dumps(link))
        for entry in self.paths:
            source, place = self.root / entry["_path"], prefix / self.target(entry["_path"])
            place.parent.mkdir(parents=True, exist_ok=True)
            if "file_mode" in entry:
                data = _relocated(source.read_bytes(), os.fsencode(prefix), entry["file_mode"])
                place.write_bytes(data)
                shutil.copystat(source, place)
            elif source.is_symlink():
                place.symlink_to(os.readlink(source))
            else:
                os.link(source, place)
        subdir = "noarch" if self.noarch else "linux-64"
        channel = "https://conda.anaconda.org/conda-forge"
        archive = f"{self.root.name}.conda"
        record = {
            "build": self.build,
            "build_number": 0,
            "channel": f"{channel}/{subdir}",
            "constrains": [],
            "depends": [] if self.name == "python" else ["python"],
            "extracted_package_dir": str(self.root),
            "files": [self.target(each["_path"]) for each in self.paths] + self.linked_only,
            "fn": archive,
            "link": {"source": str(self.root), "type": 1},
            "md5": hashlib.md5(self.root.name.encode()).hexdigest(),
            "name": self.name,
            "package_tarball_full_path": str(self.root) + ".conda",
            "paths_data": {
                "paths": [dict(each, _path=self.target(each["_path"])) for each in self.paths],
                "paths_version": 1,
            },
            "requested_spec": self.name,
            "sha256": hashlib.sha256(self.root.name.encode()).hexdigest(),
            "size": sum(each["size_in_bytes"] for each in self.paths),
            "subdir": subdir,
            "timestamp": 1700000000000,
            "url": f"{channel}/{subdir}/{archive}",
            "version": self.version,
        }
        if self.noarch:
            record["noarch"] = "python"
        meta = prefix / "conda-meta"
        meta.mkdir(exist_ok=True)
        (meta / f"{self.root.name}.json").write_text(json.dumps(record, indent=2))


def _relocated(data: bytes, prefix: bytes, mode: str) -> bytes:
    placeholder = PLACEHOLDER.encode()
    if mode == "text":
        return data.replace(placeholder, prefix)
    parts = data.split(b"\0")
    return b"\0".join(part.replace(placeholder, prefix).ljust(len(part), b"\0") for part in parts)


def _base_python() -> Path:
    """The interpreter that the running virtual environment was made from."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


def _loaded_files(python: Path) -> list[Path]:
    script = (
        f"for name in {_MODULES!r}.split(): __import__(name)\n"
        "import sys\n"
        "for module in list(sys.modules.values()):\n"
        "    print(getattr(module, '__file__', None) or '')\n"
    )
    command = [str(python), "-I", "-B", "-c", script]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted({Path(line) for line in listing.splitlines() if line})


def _without_absolute_runpath(program: bytes, library: Path) -> bytes:
    """The ELF file with its path to libpython made relative to itself, as conda builds it."""
    old, new = os.fsencode(library) + b"\0", b"$ORIGIN/../lib\0"
    if len(old) < len(new) or old not in program:
        return program
    return program.replace(old, new.ljust(len(old), b"\0"))


def _python(cache: Path) -> _Package:
    package = _Package(cache, "python", _VERSION, "0_cpython")
    python = _base_python()
    standard = Path(os.__file__).resolve().parent
    library = Path(sysconfig.get_config_var("LIBDIR") or python.parent.parent / "lib")
    sources = {f"bin/{_LIBRARY}": python}
    for path in _loaded_files(python):
        # sitecustomize and the like belong to the machine.
        if standard in path.parents and "customize" not in path.name:
            sources[f"lib/{_LIBRARY}/{path.relative_to(standard)}"] = path
    shared = sysconfig.get_config_var("INSTSONAME") or ""
    # Debian's libpython, say, is found by the dynamic loader itself, and not linked anyway.
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and (library / shared).is_file():
        sources[f"lib/{shared}"] = library / shared
        package.symlink("lib/" + shared.partition(".so")[0] + ".so", shared)
    with tempfile.TemporaryDirectory() as scratch:
        copies = {path: Path(scratch, str(n)) for n, path in enumerate(sorted(sources))}
        for path, copy in copies.items():
            shutil.copyfile(sources[path], copy)
        programs = [copy for path, copy in copies.items() if not path.endswith(".py")]
        if shutil.which("strip"):
            # An interpreter built from source carries more symbols than code.
            subprocess.run(["strip", "--strip-unneeded", *programs], check=False)
        for path, copy in copies.items():
            data, mode = copy.read_bytes(), 0o644 if path.endswith(".py") else 0o755
            package.file(path, _without_absolute_runpath(data, library), mode)
    package.symlink("bin/python3", _LIBRARY)
    package.symlink("bin/python", "python3")
    # Without this directory the interpreter warns that it cannot find its exec_prefix.
    package.file(f"lib/{_LIBRARY}/lib-dynload/README", b"extension modules\n")
    for path in standard.glob("_sysconfigdata_*.py"):
        text = path.read_bytes().replace(os.fsencode(sys.base_prefix), PLACEHOLDER.encode())
        package.file(f"lib/{_LIBRARY}/{path.name}", text, prefix="text")
    return package


def _compiled_program() -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc") or need("cc")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "showprefix")
        command = [compiler, "-x", "c", "-", "-o", str(program), f'-DPREFIX="{PLACEHOLDER}"']
        subprocess.run(command, input=_PROGRAM.encode(), check=True)
        return program.read_bytes()


def _showprefix(cache: Path) -> _Package:
    """A compiled package: placeholders of both kinds, links, read-only files, activation."""
    package = _Package(cache, "showprefix", "1.4", "h1234567_0")
    prefix = PLACEHOLDER.encode()
    package.file("bin/showprefix", _compiled_program(), mode=0o755, prefix="binary")
    # One occurrence, so that conda-pack makes it "#!/usr/bin/env python3" while packing.
    package.file(
        "bin/show-argv",
        b"#!%s/bin/python3\nimport sys\nprint(sys.argv[1:])\n" % prefix,
        mode=0o755,
        prefix="text",
    )
    # Two occurrences, so that conda-pack leaves the shebang to conda-unpack.
    package.file(
        "bin/show-both",
        b"#!%s/bin/python3\nimport sys\nprint(sys.executable)\nprint(%r)\n"
        % (prefix, PLACEHOLDER + "/share"),
        mode=0o755,
        prefix="text",
    )
    share = "share/showprefix"
    package.file(f"{share}/config.ini", b"root = %s\nlib = %s/lib\n" % (prefix, prefix), 0o644,
                 prefix="text")  # fmt: skip
    package.file(f"{share}/read-only.ini", b"root = %s\n" % prefix, 0o444, prefix="text")
    package.file(f"{share}/read-only.bin", b"\x7f\0root=%s/lib\0\xff\xfe" % prefix, 0o444,
                 prefix="binary")  # fmt: skip
    package.file(f"{share}/plain-read-only.txt", b"no prefix here\n", 0o444)
    package.file(f"{share}/empty", b"")
    package.file(f"{share}/name with spaces \u00e9.txt", "\u00e9\n".encode())
    package.file(f"{share}/{'d' * 90}/{'long' * 40}.txt", b"a path over 100 bytes\n")
    package.file(f"{share}/data.bin", bytes(range(256)) * 2000)
    package.hardlink(f"{share}/data-again.bin", f"{share}/data.bin")
    package.symlink(f"{share}/current.ini", "config.ini")
    package.symlink(f"{share}/dangling", "nowhere/at/all")
    package.symlink("share/deep", f"showprefix/{'d' * 90}")
    module = f"{_SITE_PACKAGES}/showprefix_paths.py"
    package.file(module, b"PREFIX = '%s'\n" % PLACEHOLDER.encode(), prefix="text")
    compileall.compile_file(package.root / module, quiet=1)
    for compiled in (package.root / module).parent.glob("__pycache__/*.pyc"):
        package.file(str(compiled.relative_to(package.root)), compiled.read_bytes())
    package.file(
        "etc/conda/activate.d/showprefix.sh",
        b'export SHOWPREFIX_ROOT="$CONDA_PREFIX/share"\nexport SHOWPREFIX_BUILT="%s/share"\n'
        b"echo showprefix is active\n" % prefix,
        prefix="text",
    )
    package.file("etc/conda/deactivate.d/showprefix.sh", b"unset SHOWPREFIX_ROOT\n")
    variables = {"SHOWPREFIX_MODE": "from env_vars.d", "SHOWPREFIX_BOTH": "from env_vars.d"}
    package.file("etc/conda/env_vars.d/showprefix.json", json.dumps(variables).encode())
    return package


def _greeter(cache: Path) -> _Package:
    """A noarch package: its script is made when it is installed, not when it is built."""
    package = _Package(cache, "greeter", "2.1", "pyhd8ed1ab_0")
    package.file("site-packages/greeter/__init__.py", b"def main():\n    print('hello')\n")
    package.file("site-packages/greeter-2.1.dist-info/METADATA",
                 b"Metadata-Version: 2.1\nName: greeter\nVersion: 2.1\n")  # fmt: skip
    package.file("python-scripts/greeter-info", b"#!%s/bin/python3\nprint('info')\n"
                 % PLACEHOLDER.encode(), mode=0o755, prefix="text")  # fmt: skip
    package.linked_only.append("bin/greet")
    return package


def _pip_install(prefix: Path) -> None:
    """What pip leaves behind: a module, a script with the prefix in it, a dist-info."""
    site = prefix / _SITE_PACKAGES
    info = site / "pipped-0.3.dist-info"
    info.mkdir(parents=True)
    files = {
        site / "pipped.py": "def main():\n    print('pipped')\n",
        prefix / "bin" / "pipped": _ENTRY_POINT.format(prefix=prefix, module="pipped"),
        info / "METADATA": "Metadata-Version: 2.1\nName: pipped\nVersion: 0.3\n",
        info / "INSTALLER": "pip\n",
        info / "direct_url.json": json.dumps({"url": f"file://{prefix}/src", "dir_info": {}}),
    }
    for path, text in files.items():
        path.write_text(text)
    (prefix / "bin" / "pipped").chmod(0o755)
    names = [os.path.relpath(path, site) for path in files]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (info / "RECORD").chmod(0o444)


def build(directory: Path) -> Path:
    """Make the prefix ``directory/environment`` and its package cache ``directory/pkgs``."""
    prefix, cache = directory / "environment", directory / "pkgs"
    prefix.mkdir(parents=True)
    for make in (_python, _showprefix, _greeter):
        make(cache).install(prefix)
    greet = prefix / "bin" / "greet"
    greet.write_text(_ENTRY_POINT.format(prefix=prefix, module="greeter"))
    greet.chmod(0o755)
    _pip_install(prefix)
    meta = prefix / "conda-meta"
    state = {"env_vars": {"STATE_VARIABLE": "from state", "SHOWPREFIX_BOTH": "from state"}}
    (meta / "state").write_text(json.dumps(state))
    (meta / "history").write_text("==> 2023-11-14 22:13:20 <==\n# cmd: conda create\n")
    (prefix / "var" / "empty").mkdir(parents=True)
    # Debian's site module looks only here; elsewhere this is a symlink like any other.
    (prefix / "lib" / "python3").mkdir()
    (prefix / "lib" / "python3" / "dist-packages").symlink_to(f"../{_LIBRARY}/site-packages")
    # Old, distinct times: an unpacker that does not restore them is found out.
    for number, path in enumerate(sorted(prefix.rglob("*"))):
        if stat.S_ISREG(path.lstat().st_mode):
            os.utime(path, (1700000000 + number, 1700000000 + number))
    return prefix


class Environment:
    """The small real environment.

    Attributes:
        prefix (Path): where it was built.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prefix = directory / "environment"

    def archive(
        self,
        format: str = "tar.gz",
        n_threads: int = 1,
        scripts: bool = True,
        cleaned: bool = False,
        **options: Any,
    ) -> Path:
        """The archive that conda_pack.pack makes.

        Packed when first asked for, then kept.  Skips the test where the machine
        lacks a program that conda-pack needs.  For "no-archive" it is a directory whose
        files are hard links to the environment's own: copy it before you change it.

        Args:
            scripts: False leaves the activation scripts out.
            cleaned: pack as if the package cache was gone ("conda clean -a").
            options: further arguments of conda_pack.pack.
        """
        what = json.dumps([n_threads, scripts, cleaned, sorted(options.items())])
        name = f"{format}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
        folder = self.directory / "archives" / name
        path = folder / f"environment.{format}"
        with _locked(self.directory):
            if not folder.exists():
                cache, gone = self.directory / "pkgs", self.directory / "pkgs.gone"
                if cleaned:
                    cache.rename(gone)
                try:
                    self._pack(folder, format, n_threads, scripts, options)
                finally:
                    if cleaned:
                        gone.rename(cache)
        return path

    def _pack(
        self, folder: Path, format: str, n_threads: int, scripts: bool, options: dict[str, Any]
    ) -> None:
        # Here, because conda-pack is not needed when every archive is in the cache.
        from conda_pack import pack

        if format == "squashfs":
            need("mksquashfs")
        if format == "tar.zst":
            try:
                import zstandard  # noqa: F401
            except ImportError:
                missing("needs the zstandard module, with which conda-pack writes tar.zst")
        if format == "tar.xz":
            # 1 s instead of 12, for the same format.
            options = {"compress_level": 0, **options}
        if format == "parcel":
            # conda-pack takes the name of a parcel from these, and wants no dashes in them.
            options = {"parcel_name": "environment", "parcel_version": "1.0", **options}
        filters = options.pop("filters", [])
        if not scripts:
            filters = [*filters, ("exclude", "etc/conda/*activate.d/*")]
        if format == "zip" and not options.get("zip_symlinks"):
            # It stores what a symlink leads to, and fails where that is nothing.
            filters = [*filters, ("exclude", "*/dangling")]
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            output = Path(scratch, "new", f"environment.{format}")
            output.parent.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pack(
                    prefix=str(self.prefix),
                    output=str(output),
                    format="infer" if format == "parcel" else format,
                    filters=filters,
                    n_threads=n_threads,
                    **options,
                )
            if output.is_file():
                output.chmod(0o644)
            output.parent.rename(folder)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time: pytest-xdist runs several of us."""
    with open(directory / "lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(cache: Path) -> Environment:
    """The environment, built in ``cache`` unless one of this very source is there."""
    source = Path(__file__).read_bytes()
    key = hashlib.sha256(
        b"\0".join([source, sys.version.encode(), os.fsencode(_base_python()), os.fsencode(cache)])
    ).hexdigest()
    directory = cache / key[:16]
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if not (directory / "built").exists():
            for leftover in ("environment", "pkgs", "archives"):
                shutil.rmtree(directory / leftover, ignore_errors=True)
            build(directory)
            (directory / "built").touch()
    return Environment(directory)


def tiny(path: Path) -> Path:
    """Write the tiny environment to ``path``: a tar.gz that unpacks in milliseconds."""

    def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "",
               data: Optional[bytes] = None) -> None:  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.mtime = kind, mode, link, 1700000000
        info.size = len(data or b"")
        archive.addfile(info, BytesIO(data or b""))

    hello = b'#!/bin/sh\nprintf "hello"\nfor word; do printf " %s" "$word"; done\nprintf "\\n"\n'
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member("bin/hello", mode=0o755, data=hello)
        member("conda-meta/history", data=b"==> 2023-11-14 22:13:20 <==\n")
        member("lib/data.txt", data=b"data\n")
        member("lib/data-again.txt", kind=tarfile.LNKTYPE, link="lib/data.txt")
        member("lib/data-link.txt", kind=tarfile.SYMTYPE, mode=0o777, link="data.txt")
    return path

"""Build dist/poncho_package_run.pyz from src with shiv, the same bytes wherever it runs.

    python build.py            build, and write the sha256 beside it; src/compiled.zip is made
                               anew if it is not of the source as it is
    python build.py --check    fail if dist/ is not what the source builds

shiv bundles the package and describes it (``shiv-info``).  Two things of its output are then
replaced, because shiv's bootstrap copies the package to a directory under HOME before it
runs it, which costs 30 ms at every start and fails where nothing can be written:

* ``__main__.py``, by way of ``entry.py``, enters the package where it lies, inside the archive;
* the first line becomes a /bin/sh header that finds an interpreter.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "poncho_package_run"
ARTIFACT = ROOT / "dist" / "poncho_package_run.pyz"
CHECKSUM = ROOT / "dist" / "poncho_package_run.pyz.sha256"
# The modules as each Python compiled them: committed, so that the artifact's bytes do not depend
# on which Pythons a machine has.  A zip archive, of whose entries the numbers are those that .pyc
# files begin with; its comment is the sha256 of what they were made from, and the versions.
COMPILED = ROOT / "src" / "compiled.zip"

# shiv dates its own entries with SOURCE_DATE_EPOCH; the year is the first that zip can tell.
EPOCH = 315532800
DATE = (1980, 1, 1, 0, 0, 0)

# What runs before anything of the package does.  It must be understood by any Python, to tell
# an old one in a line.  A Ctrl-C before the command starts ends the tool like any program,
# without a traceback (``command/again`` says so once more, for the way back from a shell).
# One that came before may have been dropped: where Python's handler raises KeyboardInterrupt in a
# callback of a weak reference, as the import system has at each of its locks, a message is all that
# comes of it (1 of 300 in the first 12 ms).  Such a callback leaves its reference behind, or the
# lock that it had taken, which any thread that imports would wait for.  (PyPy's callbacks come when
# it collects garbage; another thread's lock, or callback to come, is no such trace.)
FIRST = """\
try:
    import sys
    if sys.version_info < (3, 6):
        old = "poncho_package_run: Python %d.%d is too old; use 3.6 or later"
        sys.stderr.write(old % sys.version_info[:2] + chr(10))
        sys.exit(69)
    import _signal
    if _signal.getsignal(2) is _signal.default_int_handler:
        _signal.signal(2, _signal.SIG_DFL)
        import _imp, _thread
        if sys.implementation.name == "cpython" and not _thread._count():
            locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
            if _imp.lock_held() or None in [lock() for lock in locks.values()]:
                raise KeyboardInterrupt
except KeyboardInterrupt:
    import _signal, posix
    _signal.signal(2, _signal.SIG_DFL)
    posix.kill(posix.getpid(), 2)
"""

# The package has a loader of its own because it comes compiled, for each Python that build.py had,
# which saves 4 to 6 ms of a warm start's 27, and 45 to 65 of a cold one's 80 to 110.  The same
# number says the same instructions, as for a .pyc file.  To any other Python, to one without zlib,
# and to who wants tracebacks, which need the text, the text is compiled at each start; zipimport
# would do that twice since Python 3.10, the first time only to tell a file's name, and compile()
# makes a hundred types first, for syntax trees: 1 ms.  A room's own file only says what is
# promised, and is not read.  Collecting garbage finds none in a warm start, and takes 0.3 ms.
# All that is read begins with the digest of the modules: an artifact that takes the place of this
# one as it starts is of another version.
ENTRY = """\
import gc, marshal, os
gc.disable()
{archive}
unread, sources = ["cold", "warm"], {{}}
number = getattr(sys.modules.get("_frozen_importlib_external"), "MAGIC_NUMBER", b"")
number = int.from_bytes(number[:2], "little")
traceback = os.environ.get("PONCHO_PACKAGE_RUN_DEBUG") == "traceback"
compiled = number in {numbers} and not traceback
def modules(part):
    global compiled, zlib
    if compiled and part == "cold":
        try:
            import zlib
        except ImportError:
            compiled = False
    name = "%s-%d" % (part, number) if compiled else part
    data = archive.get_data(name)
    if data[:64] != b"{digest}":
        raise ValueError(name)
    if compiled:
        return marshal.loads(data[64:])
    words = data[64:].decode().split(chr(0))
    return zip(words[::2], words[1::2])
class Loader:
    def find_spec(self, name, path=None, target=None):
        package, _, below = name.partition(".")
        if package != "poncho_package_run":
            return None
        path = "site-packages/" + name.replace(".", "/") + ".py"
        room = below in {rooms}
        if room:
            path = path[:-3] + "/__init__.py"
        if room and below:
            sources[path] = ""
        while path not in sources:
            if not unread:
                return None
            sources.update(modules(unread.pop()))
        spec = type(os.__spec__)(name, self, is_package=room)
        spec.origin = archive.archive + "/" + path
        spec.has_location = True
        spec.loader_state = sources[path]
        return spec
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        source = module.__spec__.loader_state
        if type(source) is tuple:
            source = marshal.loads(zlib.decompress(source[0]))
        elif type(source) is bytes:
            source = marshal.loads(source)
        elif traceback:
            source = compile(source, module.__file__, "exec")
        exec(source, module.__dict__)
    def get_data(self, path):
        return archive.get_data(path)
sys.meta_path.insert(0, Loader())
"""

# What a warm start may need, and one that waits for another, lies in one entry of the archive, all
# else in another, since listing one costs 7 microseconds of every start, and opening one 40; and
# once both are read, whoever removes or replaces the artifact under a run does it no harm.  (So the
# pipeline is not among these, which comes before any wait.)
WARM = (
    "__init__", "cli", "warm", "cache/memo", "command/activate", "command/again",
    "command/coercion", "command/env_vars", "command/execute", "command/resume",
    "command/scripts", "command/sound", "machine/signals", "place/completion", "place/lock",
    "place/plain", "telling/errors", "telling/messages", "telling/report", "telling/usage",
)  # fmt: skip

# Makes of modules, names and texts in turn on standard input, what the loader takes: a marshalled
# dict of marshalled code, so that of modules that are read and not run nothing more is made.  Where
# the argument says so each is compressed, here and not in the zip archive, so that the artifact is
# the same whichever zlib builds that, and a tuple.
COMPILE = """\
import importlib.util, marshal, sys, zlib
words = sys.stdin.buffer.read().decode().split("\\0")
codes = {}
for name, text in zip(words[::2], words[1::2]):
    code = marshal.dumps(compile(text, name, "exec", optimize=2))
    codes[name] = (zlib.compress(code, 9),) if sys.argv[1:] == ["cold"] else code
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER[:2] + marshal.dumps(codes))
"""

# What was read of the artifact is not what it was when it was listed, or is not there any more.
BROKEN = """\
except Exception as error:
    text = "poncho_package_run: {} was removed or changed as it started; copy it anew ({})"
    sys.stderr.write(text.format(archive.archive, error) + chr(10))
    sys.exit(74)
"""

# The interpreter compiles this twice as well: 0.4 ms if it were the whole entry.  The shell that
# sources activation scripts comes back by way of the same entry (see ``command/again``).
MAIN = FIRST + """\
archive = __loader__
try:
    exec(archive.get_data("entry.py"))
    from poncho_package_run.cli import main
""" + BROKEN + """\
main()
"""

# Modules must come from the interpreter's own library, not from PYTHONPATH, where a task may
# keep a json.py; an empty word there is the working directory.  (The library's own directories
# stay, should someone have put them there.)
IN_ZIPAPP = """\
archive = __loader__
if os.environ.get("PYTHONPATH"):
    library = os.path.dirname(os.__file__)
    def whole(path):
        try:
            return os.path.abspath(path)
        except OSError:
            return path
    given = {whole(path) for path in os.environ["PYTHONPATH"].split(":")}
    sys.path[:] = [
        path for path in sys.path if path.startswith(library) or whole(path) not in given
    ]"""
# Run directly, the header's shell has come first, and has changed what its caller gave: dash drops
# variables whose names it cannot have (exported functions of bash), every shell sets some anew.
# Of two words that the header hands on, "PID FD", the first names a process that has the caller's
# environment still, and lives until the second, a descriptor, is closed.  It also tells which
# signals the caller ignores: CPython ignores SIGPIPE and SIGXFSZ itself, and forgets what they
# were.  Without it the second word is this number, as the shell found it out.  Where the shell has
# started programs, a third word is the mask of the signals that are to be blocked (dash forgets
# it), and a fourth the private directory of a copy of the environment, with this interpreter:
# then signals wait until somebody can look after the copy.
IN_HEADER = """\
import zipimport
archive = zipimport.zipimporter(sys.argv.pop(1))
notes = sys.argv.pop(1).split(" ", 3)
holder, number = notes[:2]
ignored = int(number)
if notes[2:]:
    blocked = int(notes[2], 16)
    numbers = {each for each in range(1, 65) if blocked >> each - 1 & 1}
    early = {1, 2, 3, 15} - numbers if notes[3:] else set()
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers - {32, 33} | early)
if holder != "-":
    try:
        with open("/proc/" + holder + "/environ", "rb") as file:
            given = file.read().split(bytes(1))[:-1]
        with open("/proc/" + holder + "/stat", "rb") as file:
            ignored = int(file.read().rpartition(b")")[2].split()[30])
    except OSError:
        ignored = 0
    else:
        # Of two with one name the first counts, as for getenv.  A name there must be.
        given = [each.partition(b"=")[::2] for each in given if b"=" in each and each[:1] != b"="]
        given = dict(reversed(given))
        for name in list(os.environb):
            if name not in given:
                del os.environb[name]
        os.environb.update(given)
    os.close(int(number))"""

# By then the holder has ended.  (It is no child of ours where another has made it.)
FROM_HEADER = """\
try:
    from poncho_package_run.cli import main
""" + BROKEN + """\
try:
    holder == "-" or os.waitpid(int(holder), 0)
except OSError:
    pass
main(ignored, (os.fsencode(notes[3]), early) if notes[3:] else None)
"""

# What is the same in each header of the archives that header.sh makes, for their checksum, which
# counts itself as eight spaces.
FIXED = b"poncho_package_run-/env" + b"0000700" + b"0" * 36 + b" " * 8 + b"5ustar00"


def build(check: bool) -> bytes:
    """The artifact's bytes.

    Args:
        check: they are only to be compared: nothing is compiled.

    Raises:
        SystemExit: shiv is not installed; or src/compiled.zip is not of the source, in a check.
        subprocess.CalledProcessError: shiv failed, or a Python that compiles.
    """
    shiv = shutil.which("shiv", path=os.path.dirname(sys.executable)) or shutil.which("shiv")
    if shiv is None:
        sys.exit("build.py: shiv is missing; run make, which installs it into .venv")
    texts = parts()
    digest = hashlib.sha256(b"\0".join([COMPILE.encode(), *texts.values()])).hexdigest()
    if not is_compiled(digest):
        if check:
            sys.exit("build.py: src/compiled.zip is not of the source; run make and commit it")
        compile_with_all(texts, digest)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch, "site-packages")
        sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "src" / "native").glob("*.so")]
        for source in sorted(sources):
            target = staged / source.relative_to(ROOT / "src")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(0o644)  # shiv keeps modes; the umask must not show
        output = Path(scratch, "artifact")
        subprocess.run(
            # Stored, not compressed: inflating would make every start import zlib first.
            [shiv, "--site-packages", str(staged), "--output-file", str(output), "--uncompressed"]
            + ["--entry-point", PACKAGE + ".cli:main", "--reproducible"],
            env=dict(os.environ, SOURCE_DATE_EPOCH=str(EPOCH)),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return entered_straight(output, texts, digest)


def parts() -> "dict[str, bytes]":
    """The modules: of each part names, as in the archive, and texts in turn."""
    paths = {path.relative_to(ROOT / "src"): path for path in (ROOT / "src").rglob("*.py")}
    texts = {"site-packages/" + str(name): path.read_bytes() for name, path in paths.items()}
    warm = {"site-packages/{}/{}.py".format(PACKAGE, name) for name in WARM}
    return {
        part: b"\0".join(word for name in sorted(names) for word in (name.encode(), texts[name]))
        for part, names in (("warm", warm), ("cold", texts.keys() - warm))
    }


def is_compiled(digest: str) -> bool:
    """Whether src/compiled.zip is of this source, and whole."""
    try:
        with zipfile.ZipFile(COMPILED) as entries:
            return entries.comment.startswith(digest.encode()) and entries.testzip() is None
    except Exception:  # there is none, or it is damaged: the ways are many
        return False


def compile_with_all(texts: "dict[str, bytes]", digest: str) -> None:
    """Make src/compiled.zip, with every Python that the tests find.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from support import interpreters  # type: ignore[import-not-found]

    pythons = interpreters.find()
    compiled = {}
    for python in pythons:
        for part, text in texts.items():
            command = [python.path, "-IS", "-c", COMPILE, part]
            made = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout
            compiled["{}-{}".format(part, int.from_bytes(made[:2], "little"))] = made[2:]
    versions = ["{}.{}.{}".format(*python.version) for python in pythons]
    whole = zipped(b"", compiled, " ".join([digest, *versions]))
    # By a rename: two may build at once, and one may be interrupted.
    with tempfile.TemporaryDirectory(dir=COMPILED.parent) as scratch:
        partial = Path(scratch, COMPILED.name)
        partial.write_bytes(whole)
        partial.chmod(0o644)
        partial.replace(COMPILED)
    print("compiled by Python {}; any other compiles at each start".format(", ".join(versions)))


def zipped(before: bytes, entries: "dict[str, bytes]", comment: str = "") -> bytes:
    """A zip archive of these entries, behind what is to come before it."""
    result = io.BytesIO()
    result.write(before)
    with zipfile.ZipFile(result, "a") as archive:
        archive.comment = comment.encode()
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, DATE)
            info.create_system = 3  # Unix, whatever builds it
            info.external_attr = 0o100644 << 16
            archive.writestr(info, entries[name])
    return result.getvalue()


def entered_straight(bundle: Path, texts: "dict[str, bytes]", digest: str) -> bytes:
    """The bundle that shiv wrote, with our header and ``__main__.py``, without its bootstrap."""
    with zipfile.ZipFile(bundle) as shivs:
        entries = {
            info.filename: shivs.read(info)
            for info in shivs.infolist()
            if not info.filename.startswith("_bootstrap/") and not info.filename.endswith(".py")
        }
    with zipfile.ZipFile(COMPILED) as compiled:
        modules = {**texts, **{name: compiled.read(name) for name in compiled.namelist()}}
    entries.update((name, digest.encode() + data) for name, data in modules.items())
    numbers = sorted(int(name[5:]) for name in modules if name.startswith("warm-"))
    rooms = sorted(path.parent.name for path in (ROOT / "src" / PACKAGE).glob("*/__init__.py"))
    values = {"digest": digest, "numbers": numbers, "rooms": json.dumps(["", *rooms])}
    entries["__main__.py"] = MAIN.encode()
    entries["entry.py"] = ENTRY.format(archive=IN_ZIPAPP, **values).encode()
    program = FIRST + ENTRY.format(archive=IN_HEADER, **values) + FROM_HEADER
    if {"\\", "~"} & set(program):
        sys.exit("build.py: Shift JIS has no \\ and no ~: a program behind -c can have neither")
    return zipped(header(program), entries)


def header(started: str) -> bytes:
    """What /bin/sh runs, where the artifact is run directly; it starts Python with this text."""
    version = next(
        line.split('"')[1]
        for line in (ROOT / "src" / PACKAGE / "__init__.py").read_text().splitlines()
        if line.startswith("__version__")
    )
    assert "'" not in started, "the header quotes it with apostrophes"
    lines = (ROOT / "src" / "header.sh").read_text().splitlines(keepends=True)
    # The first two lines are for whoever looks into the file; the others the shell would read.
    text = "".join(lines[:2] + [line for line in lines[2:] if not line.strip().startswith("#")])
    for word, value in {
        "@version@": version,
        "@versions@": " ".join("python3.%d" % minor for minor in range(14, 5, -1)),
        "@entry@": started,
        "@sum@": str(sum(FIXED)),
    }.items():
        text = text.replace(word, value)
    return text.encode()


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    artifact = build(check)
    checksum = "{}  {}\n".format(hashlib.sha256(artifact).hexdigest(), ARTIFACT.name)
    if check:
        if not ARTIFACT.exists() or ARTIFACT.read_bytes() != artifact:
            sys.exit("build.py: dist/ is not what the source builds; run make and commit it")
        if CHECKSUM.read_text() != checksum:
            sys.exit("build.py: the checksum in dist/ is not the artifact's; run make")
        return
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_bytes(artifact)
    ARTIFACT.chmod(0o755)
    CHECKSUM.write_text(checksum)
    print("{}: {} bytes".format(ARTIFACT.relative_to(ROOT), len(artifact)))


if __name__ == "__main__":
    main()

"""Activation scripts: the one shell that sources them and then becomes the command."""

import _signal  # type: ignore[import-not-found]
import fcntl
import os

from .again import mask, started
from .execute import candidates
from .sound import is_sound

# What a shell sets or forgets of its own accord: kept from it, and given to the command again.
_RESTORED = (b"PWD", b"OLDPWD", b"PS1", b"PS2", b"PS4", b"IFS", b"_")

# The same for names that a shell lets nobody assign, or that change the way it works.  They
# reach the command by way of ``resume``; few callers have any.
_CARRIED = (
    *(b"SHELLOPTS", b"BASHOPTS", b"POSIXLY_CORRECT", b"PPID", b"OPTIND", b"OPTERR", b"BASH"),
    *(b"BASH_VERSION", b"BASH_VERSINFO", b"BASHPID", b"BASH_SUBSHELL", b"BASH_COMMAND"),
    *(b"BASH_ARGV0", b"BASH_EXECUTION_STRING", b"LINENO", b"HISTCMD", b"COMP_WORDBREAKS"),
    *(b"RANDOM", b"SRANDOM", b"EPOCHSECONDS", b"EPOCHREALTIME"),
)

# What the interpreter of ``resume`` may need as it is, and the command as the scripts want it.
_LOADERS = (b"LD_LIBRARY_PATH", b"LD_PRELOAD")

# The words of the shell are this program, the number of scripts that are done, and the command.
# A script that ends the shell ("exit", an unset variable under "set -u", an error in a special
# builtin) reaches the EXIT trap, where a new shell goes on with the next script.  A script fails
# if it ends the shell with another status than 0, or itself with one above 1 (an error of the
# shell, a command that is missing, "return 2"): 1 is what a test says that was false, and a script
# whose last command is "[ -n "$X" ] && ..." has not failed.
_BEGIN = b"""
_ppr_failed() {
printf 'poncho_package_run: activation script %%s failed with status %%s; the command is run \
without what it would have set\\n' "$_ppr_script" "$1" >&2
}
_ppr_ended() {
_ppr_status=$?
[ "$_ppr_status" -le 1 ] || _ppr_failed "$_ppr_status"
}
_ppr_resume() {
_ppr_status=$?
[ "$_ppr_status" = 0 ] || _ppr_failed "$_ppr_status"
_ppr_program=$1
shift 2
BASH_ENV= exec %(shell)s -c 'eval "$1"' poncho_package_run "$_ppr_program" "$_ppr_done" "$@"
}
_ppr_done=$2
"""
_SCRIPT = b"""
if [ "$_ppr_done" -lt %(number)d ]; then
_ppr_done=%(number)d
_ppr_script=%(path)s
trap '_ppr_resume %(words)s' EXIT
if [ -f "$_ppr_script" ] && [ -r "$_ppr_script" ]; then
%(source)s %(argument)s || _ppr_ended
else
_ppr_failed 126
fi
{ set +aefuvx; } 2>/dev/null
fi
"""
# Between what is left and what is entered, the variables of the latter.
_CHANGE = b"""
if [ "$_ppr_done" -le %d ]; then
%s
fi
"""
# The last trap is for an exec that fails, as is "execfail" in bash, which forgets its traps
# before it tries: the command is there, but cannot be executed.  What a script has made readonly
# only ``resume`` can undo.
_END = b"""
shift 2
unset -v _ppr_status _ppr_program _ppr_done _ppr_script
command unset -v PWD OLDPWD PS1 PS2 PS4 2>&-
_ppr_readonly=$?
trap 'exit 126' EXIT
"""

# In bash "set --" in a script changes our own arguments, and in a function its "declare -x"
# would be a local variable: so keep the arguments in an array.  "exit" does not undo the
# redirections of the "." that it leaves: so redirect the shell, and back at the end.
# A signal that ends the shell must not run the EXIT trap, which would run the command.  Bash 5.2
# leaves a signal at its default if it is reset both before and after the first EXIT trap is set;
# only INT needs a trap.
_BASH_BEGIN = b"""
_ppr_words=("$@")
_ppr_reset() {
trap : HUP ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM SYS
trap - HUP ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM SYS
}
_ppr_reset
trap : EXIT
_ppr_reset
trap 'trap - EXIT INT; kill -s INT "$$"' INT
exec >%(messages)s
"""
_BASH_END = b"""
set +o posix
shopt -s execfail
trap - INT DEBUG ERR RETURN
set -- "${_ppr_words[@]}"
exec %(output)s
"""

# Any other shell has no "declare", gives a function arguments of its own, undoes redirections
# before the trap, and is killed by signals in the ordinary way.
_SH_BEGIN = b"""
_ppr_source() {
. "$_ppr_script"
}
"""


def shell_command(
    prefix: bytes,
    leaving: list,
    entering: list,
    command: list,
    before: dict,
    environ: dict,
    debug: bool,
) -> tuple:
    """Wrap a command so that a shell sources the scripts first and then becomes the command.

    The shell is bash where PATH, /bin or /usr/bin has one, else sh.  The scripts have stdout
    sent to stderr and PS1 set; ``poncho/set_env`` has the prefix as ``$1``.  A script that fails
    is told on stderr.  Of what they change, variables, limits and the like reach the command;
    the working directory, shell options and what a shell sets for itself (``_RESTORED``,
    ``_CARRIED``, SHLVL) are the caller's again, and the signal mask.

    Bash becomes the command itself where that is sound and PATH is as it was.  Else the shell
    becomes this program once more, which costs 10 ms: ``resume`` looks for the command.

    Args:
        prefix: absolute path of the environment.
        leaving: absolute paths of scripts that see the variables as they were ``before``.
        entering: absolute paths of those that see the activated ones.
        command: argv, bytes.
        before: the variables of the caller, bytes to bytes.
        environ: the activated ones.
        debug: tell which program is run.

    Returns:
        The arguments of ``execute``.
    """
    bash = _bash(environ)
    variables = dict(environ)
    restored = {name: variables.pop(name) for name in _RESTORED if name in variables}
    carried = {name: variables.pop(name) for name in _CARRIED if name in variables}
    changes = []
    if leaving:
        for name in {*before, *variables}:
            new = variables.get(name)
            if new != before.get(name) and _is_name(name) and name not in _RESTORED + _CARRIED:
                changes.append(
                    b"unset -v " + name if new is None else _export(name, new),
                )
                variables.pop(name, None)
                if name in before:
                    variables[name] = before[name]
    # Bash sources this as it starts, so it must not be there yet.
    startup = variables.pop(b"BASH_ENV", None)
    level = variables.get(b"SHLVL", b"1")
    if not level.isdigit() or level[:1] == b"0" != level or len(level) > 2:
        # Bash would count from there, or warn of it.
        carried[b"SHLVL"] = variables.pop(b"SHLVL")
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, [])
    messages = b"&2" if _is_open(2) else b"/dev/null"
    if bash:
        shell = [bash, b"--noprofile", b"--norc"]
        begin, end = _BASH_BEGIN, _BASH_END
        words, source, redirection = b'"${_ppr_words[@]}"', b'set --; . "$_ppr_script"', b""
        output = b">&-"
        if _is_open(1):
            spare = b"%d" % fcntl.fcntl(1, fcntl.F_DUPFD, 10)
            output = b">&" + spare + b" " + spare + b">&-"
        if b"SHLVL" not in variables:
            # Bash counts down before it execs, and would export that; an array it cannot export.
            end += b"unset -v SHLVL\ndeclare -a SHLVL\n"
    else:
        shell = [b"/bin/sh"]
        begin, end = _SH_BEGIN, b""
        words, source, redirection = b'"$@"', b"_ppr_source", b" >" + messages
        output = b""

    begin = _BEGIN + begin
    lines = [begin % {b"shell": b" ".join(map(_quoted, shell)), b"messages": messages}]
    lines.append(b"PS1=" + _quoted(restored.get(b"PS1", b"$ ")))
    lines.append(b"unset -v BASH_ENV" if startup is None else _export(b"BASH_ENV", startup))
    for number, path in enumerate(leaving + entering, 1):
        if number == len(leaving) + 1 and changes:
            lines.append(_CHANGE % (len(leaving), b"\n".join(changes)))
        argument = _quoted(prefix) if path == prefix + b"/poncho/set_env" else b""
        lines.append(
            _SCRIPT
            % {
                b"number": number,
                b"path": _quoted(path),
                b"words": words,
                b"source": source,
                b"argument": argument + redirection,
            }
        )
    if changes and not entering:
        lines += changes
    lines.append(end % {b"output": output})
    lines += [b"trap - EXIT", _go_back(), _END]
    if bash and not carried and not debug and _signal.SIGCHLD not in blocked:
        lines.append(_become(command[0], prefix, environ, restored))
    lines += [*_resumption(prefix, environ, debug, blocked, not bash), b"exit 126"]
    # In braces, so that it is read to its end before a script can define an alias.
    program = b"{\n" + b"\n".join(lines) + b"\n}"
    shell += [b"-c", b'eval "$1"', b"poncho_package_run", program, b"0"]
    return shell + command, variables, b"", False


def _become(word: bytes, prefix: bytes, environ: dict, restored: dict) -> bytes:
    """Lines of bash that become the command, if what is found now is found then, and is sound."""
    for path in candidates(word, environ):
        if os.path.lexists(path):
            break
    else:
        return b""
    if not is_sound(path):
        return b""
    condition = b'[ "$_ppr_readonly" = 0 ]'
    if b"/" not in word:
        own = prefix + b"/bin/" + word
        condition += b' && [ "$PATH" = %s ]' % _quoted(environ.get(b"PATH", b""))
        if path != own:
            condition += b" && [ ! -e %s ]" % _quoted(own)
    assignments = b" ".join(name + b"=" + _quoted(value) for name, value in restored.items())
    # (The words stay as they are for who comes behind an exec that fails.)
    return b'if %s; then\n%s exec -a %s -- %s "${@:2}"\nfi' % (
        condition,
        assignments,
        _quoted(word),
        _quoted(path),
    )


def _resumption(
    prefix: bytes, environ: dict, debug: bool, blocked: set, everything: bool
) -> list:
    """Lines of shell that go on with ``resume``.

    Its words: the environment's bin, "debug" or "", the mask of the signals that the caller blocks
    (dash forgets it when it starts a program, and bash unblocks SIGCHLD), the number of variables,
    these as "NAME=VALUE" to set or "NAME" to remove, and the command.
    """
    names = {*_RESTORED, *_CARRIED, b"SHLVL"}
    if everything:
        # Other shells drop what cannot be a variable of theirs, exported functions for one.
        names.update(name for name in environ if not _is_name(name))
    given = [name + b"=" + environ[name] if name in environ else name for name in sorted(names)]
    pairs = list(map(_quoted, given))
    pairs += [b'"%s${%s+=$%s}"' % (name, name, name) for name in _LOADERS]
    words = [
        *started(b"resume"),
        prefix + b"/bin",
        b"debug" if debug else b"",
        b"%d" % mask(blocked),
        b"%d" % len(pairs),
    ]
    lines = [b"set -- " + b" ".join([*map(_quoted, words), *pairs]) + b' "$@"']
    for name in _LOADERS:
        removal = b"command unset -v " + name + b" 2>&-"
        lines.append(_export(name, environ[name]) if name in environ else removal)
    return [*lines, b'exec "$@"']


def _bash(environ: dict) -> bytes:
    """The path of bash, empty if there is none."""
    for folder in [*environ.get(b"PATH", b"").split(b":"), b"/bin", b"/usr/bin"]:
        path = os.path.join(folder, b"bash")
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return b""


def _go_back() -> bytes:
    """A shell line that undoes a script's "cd": the command starts where the caller is."""
    try:
        here = _quoted(os.getcwdb())
    except OSError:  # it has been removed: there is no way back
        return b""
    return b'[ "$PWD" = %s ] || command cd -- %s' % (here, here)


def _export(name: bytes, value: bytes) -> bytes:
    return b"export " + name + b"=" + _quoted(value)


def _is_name(name: bytes) -> bool:
    return name.replace(b"_", b"a").isalnum() and not name[:1].isdigit()


def _is_open(descriptor: int) -> bool:
    """Whether the shell will have it."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def _quoted(word: bytes) -> bytes:
    """A word of a shell program that stands for these bytes."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"

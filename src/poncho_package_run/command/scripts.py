"""Activation scripts: the one shell that sources them and then becomes the command."""

import fcntl
import os

from ..telling.messages import line
from ..telling.refusal import IS_DIRECTORY, NOT_PERMITTED, not_executable, not_found

# What a shell sets or forgets of its own accord: kept from it, and given to the command again.
_RESTORED = (b"PWD", b"OLDPWD", b"PS1", b"PS2", b"PS4", b"IFS", b"_")

# The same for names that a shell lets nobody assign, or that change the way it works.  They
# reach the command by way of env(1), at the price of one more exec; few callers have any.
_CARRIED = (b"SHELLOPTS", b"BASHOPTS", b"POSIXLY_CORRECT", b"PPID", b"OPTIND", b"OPTERR")

# The words of the shell are this program, the number of scripts that are done, and the command.
# A script that ends the shell ("exit", an unset variable under "set -u", an error in a special
# builtin) reaches the EXIT trap, where a new shell goes on with the next script.
_BEGIN = b"""
_ppr_failed() {
printf 'poncho_package_run: activation script %%s failed with status %%s; the command is run \
without what it would have set\\n' "$_ppr_script" "$1" >&2
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
%(source)s %(argument)s || _ppr_failed "$?"
{ set +aefuvx; } 2>/dev/null
fi
"""
# The last trap is for an exec that fails, as is "execfail" in bash, which forgets its traps
# before it tries: the command is there, but cannot be executed.
_END = b"""
shift 2
unset -v PWD OLDPWD PS1 PS2 PS4 _ppr_status _ppr_program _ppr_done _ppr_script
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
trap : HUP ALRM TERM XCPU VTALRM USR1 USR2
trap - HUP ALRM TERM XCPU VTALRM USR1 USR2
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
trap - INT
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


def shell_command(prefix: bytes, scripts: list, command: list, environ: dict) -> tuple:
    """Wrap a command so that a shell sources the scripts first and then becomes the command.

    The shell is bash where PATH, /bin or /usr/bin has one, else sh.  The scripts have stdout
    sent to stderr and PS1 set; ``poncho/set_env`` has the prefix as ``$1``.  A script that fails
    is told on stderr.  Of what they change, variables, limits and the like reach the command;
    the working directory, shell options and what a shell sets for itself (``_RESTORED``,
    ``_CARRIED``, SHLVL) are the caller's again.

    Args:
        prefix: absolute path of the environment.
        scripts: absolute paths, in order.
        command: argv, bytes.
        environ: the activated variables, bytes to bytes.

    Returns:
        (argv, environ) for ``execute``.
    """
    bash = _bash(environ)
    variables = dict(environ)
    restored = {name: variables.pop(name) for name in _RESTORED if name in variables}
    carried = {name: variables.pop(name) for name in _CARRIED if name in variables}
    if not bash:
        # Other shells drop what cannot be a variable of theirs, exported functions for one.
        for name in [each for each in variables if not _is_name(each)]:
            carried[name] = variables.pop(name)
    # Bash sources this as it starts, so it must not be there yet.
    startup = variables.pop(b"BASH_ENV", None)
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
    lines.append(
        b"unset -v BASH_ENV" if startup is None else b"export BASH_ENV=" + _quoted(startup)
    )
    for number, path in enumerate(scripts, 1):
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
    lines.append(end % {b"output": output})
    lines += [b"trap - EXIT", _go_back(), _check(command[0]), _END]
    assignments = [name + b"=" + _quoted(value) for name, value in restored.items()]
    assignments.append(b'exec -- "$@"' if bash else b'exec "$@"')
    lines += [b" ".join(assignments), b"exit 126"]
    if carried and b"=" not in command[0]:
        pairs = [name + b"=" + value for name, value in carried.items()]
        command = [b"/usr/bin/env", *pairs, *command]
    # In braces, so that it is read to its end before a script can define an alias.
    program = b"{\n" + b"\n".join(lines) + b"\n}"
    shell += [b"-c", b'eval "$1"', b"poncho_package_run", program, b"0"]
    return shell + command, variables


def _bash(environ: dict) -> bytes:
    """The path of bash, empty if there is none."""
    for folder in [*environ.get(b"PATH", b"").split(b":"), b"/bin", b"/usr/bin"]:
        path = os.path.join(folder, b"bash")
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return b""


def _check(word: bytes) -> bytes:
    """Shell lines that refuse in our words what the shell would refuse in its own."""
    tests = [(b"command -v -- %s >/dev/null 2>&1", not_found(word))]
    if b"/" in word:
        tests = [
            (b"[ -e %s ]", not_found(word)),
            (b"[ ! -d %s ]", not_executable(word, IS_DIRECTORY)),
            (b"[ -x %s ]", not_executable(word, NOT_PERMITTED)),
        ]
    lines = b"%s || {\nprintf '%%s\\n' %s >&2\nexit %d\n}"
    return b"\n".join(
        lines % (test % _quoted(word), _quoted(os.fsencode(line(str(told)))), told.status)
        for test, told in tests
    )


def _go_back() -> bytes:
    """A shell line that undoes a script's "cd": the command starts where the caller is."""
    try:
        here = _quoted(os.getcwdb())
    except OSError:  # it has been removed: there is no way back
        return b""
    return b'[ "$PWD" = %s ] || command cd -- %s' % (here, here)


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

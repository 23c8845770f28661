#!/bin/sh
# poncho_package_run @version@: a Python program in a zip archive, behind this header.
# build.py leaves out all lines of comment but these two, and fills in the words between @.
#
# The shell script that the tool is when run directly.  It finds an interpreter, and hands on what a
# shell would lose of what its caller gave: dash drops variables whose names it cannot have
# (exported functions of bash), and every shell sets some anew.
set +eu

# Where nothing but a file system was mounted there may be no /dev/null; then no shell can start
# anything in the background, either.
_ppr_null=/dev/null
[ -e /dev/null ] || _ppr_null=/proc/self/fd/2
_ppr_entry='@entry@'

# The holder is a child of the shell that only waits, and as a copy of the shell has the environment
# that the shell was started with (Linux shows it in /proc; after its exec the shell has another).
# It costs 0.4 ms, where the shell's looking for what it would lose costs 2 (dash reads /proc byte
# by byte), and a program to carry it over 1.  It waits at the end of a pipe to which nobody writes;
# once the last descriptor that could is closed, by the interpreter or because that has ended,
# however it did, "read" returns.  Most shells make a pipe of a here-document.  In others it is that
# of a command substitution: there "read" would return at once until the shell has opened the pipe
# for writing, so the holder watches it do that; the count is for a shell that waits for background
# processes (ksh93).  Only builtins are used, because dash forgets which signals its caller blocks
# when it starts a program, and only descriptors that the caller has not open (3 to 9 are those that
# every shell can name), taken before a shell makes a pipe, which might else get them.  In a pid
# namespace with the /proc of another, what has our number there is not us.
_ppr_holder=
_ppr_notes='- 0'
_ppr_in=
_ppr_out=
if [ /proc/self -ef /proc/$$ ] && [ -e /proc/$$/exe ] && [ -e /dev/null ]; then
    for _ppr_fd in 3 4 5 6 7 8 9; do
        [ -e "/proc/$$/fd/$_ppr_fd" ] || { _ppr_in=$_ppr_out _ppr_out=$_ppr_fd; }
    done
fi
if [ "$_ppr_in" ]; then
    { eval "command exec $_ppr_in<<E
x
E"; } 2>>"$_ppr_null"
    if [ -p "/proc/$$/fd/$_ppr_in" ]; then
        # (It comes back where no process may be started; then it does without a holder.)
        { command eval "exec $_ppr_out>/proc/$$/fd/$_ppr_in
        { exec $_ppr_out>&-; read -r _ppr_in; read -r _ppr_in; } <&$_ppr_in $_ppr_in<&- 2>&- &
        _ppr_holder=\$!"; } 2>>"$_ppr_null"
        [ "$_ppr_holder" ] || { eval "exec $_ppr_out>&-" && _ppr_out=; }
    fi
    eval "exec $_ppr_in<&-"
fi
if [ "$_ppr_out" ] && [ ! "$_ppr_holder" ]; then
    eval "exec $_ppr_out<$_ppr_null"
    _ppr_holder=$(
        {
            exec </proc/self/fd/1 >&-
            _ppr_count=0
            while [ /proc/$$/exe -ef /proc/self/exe ] && [ "$_ppr_count" -lt 99999 ] &&
                ! [ "/proc/$$/fd/$_ppr_out" -ef /proc/self/fd/0 ]; do
                _ppr_count=$((_ppr_count + 1))
            done
            read -r _ppr_count
        } 2>>"$_ppr_null" &
        echo $!
    )
    { eval "command exec $_ppr_out>/proc/$_ppr_holder/fd/0"; } 2>>"$_ppr_null" || {
        _ppr_holder=
        eval "exec $_ppr_out>&-"
    }
fi

# Without /proc the shell tells what it can: which signals cannot be trapped were ignored.
_ppr_keep=
if [ "$_ppr_holder" ]; then
    _ppr_notes="$_ppr_holder $_ppr_out"
    _ppr_keep="$_ppr_out>&$_ppr_out" # in some shells a program inherits only what is named with it
else
    for _ppr_signal in PIPE:4096 XFSZ:16777216; do
        _ppr_caught=
        trap _ppr_caught=1 ${_ppr_signal%:*} && kill -s ${_ppr_signal%:*} $$
        [ "$_ppr_caught" ] || _ppr_notes="- $((${_ppr_notes#-} + ${_ppr_signal#*:}))"
        trap - ${_ppr_signal%:*}
    done 2>&-
fi

# -I keeps PYTHON* variables, the working directory and the user's packages out, -S spares the
# search for others (4 ms), -B writes no bytecode into an environment.
_ppr_exec=exec
_ppr_run() {
    eval "$_ppr_exec"' "$_ppr_python" -BIS -c "$_ppr_entry" "$0" "$_ppr_notes" "$@"' "$_ppr_keep"
}
# "hash" knows everything in Korn shells, and in zsh needs an open stderr; "command -v" writes, and
# there may be nowhere to (dash then takes each later output for failed).
_ppr_has() {
    case $1 in
        */*)
            [ -f "$1" ] && [ -x "$1" ]
            return
            ;;
    esac
    if [ -e /dev/null ]; then
        hash "$1" 2>>/dev/null && command -v "$1" >>/dev/null 2>&1
    else
        hash "$1" 2>&-
    fi
}
for _ppr_python in python3 @versions@ /usr/libexec/platform-python "${0%/*}/python3"; do
    _ppr_has "$_ppr_python" && _ppr_run "$@"
done
# Beside the file itself, if this is a symlink to it.
if [ -L "$0" ]; then
    _ppr_python=$(readlink -f "$0" 2>>"$_ppr_null")
    _ppr_python=${_ppr_python%/*}/python3
    [ -x "$_ppr_python" ] && _ppr_run "$@"
fi

# There is no Python on this machine.  The environment has one, though, and it runs wherever it
# lies: what is to be relocated is not needed to start it.
IFS=' 	
'
_ppr_exec='command exec' # which comes back where that Python cannot be executed
# Without a standard output some shells cannot read that of another either.
{ command : >&1; } 2>&- || {
    exec >>"$_ppr_null"
    _ppr_keep="$_ppr_keep >&-"
}
_ppr_say() {
    printf 'poncho_package_run: %s\n' "$1" >&2
    exit "$2"
}
_ppr_give_up() {
    _ppr_say "no Python 3.6 or later on PATH, $1; install one, or name it: python3 $0" 127
}

# From here on programs are started, which lets dash forget what its caller blocks.
_ppr_mask=0
_ppr_uid=0
[ -r /proc/self/status ] && while read -r _ppr_key _ppr_value _ppr_rest; do
    case $_ppr_key in
        SigBlk:) _ppr_mask=$_ppr_value ;;
        Uid:) _ppr_uid=${_ppr_rest%%[!0-9]*} ;;
    esac
done </proc/self/status
_ppr_notes="$_ppr_notes $_ppr_mask"

# Which are the environment and the directory: the rules of the command line (cli.py).
_ppr_env=
_ppr_dir=
_ppr_parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --) return ;;
            --environment=*) _ppr_env=${1#*=} ;;
            --unpack-to=*) _ppr_dir=${1#*=} ;;
            -e | --environment) shift && _ppr_env=$1 ;;
            -u | --unpack-to) shift && _ppr_dir=$1 ;;
            -w | --wait-for-lock | --cache | --cache-limit) shift ;;
            -d)
                case $2 in
                    - | [!-]*) shift && _ppr_dir=$1 ;;
                esac
                ;;
            -e*) _ppr_env=${1#-e} ;;
            -[du]*) _ppr_dir=${1#-?} ;;
            -?*) ;;
            *) return ;;
        esac
        [ $# -gt 0 ] && shift
    done
}
_ppr_parse "$@" # a function: in it, shift leaves the words of the command line alone
[ "$_ppr_env" ] || _ppr_give_up "and the command line names no environment that may have one"

# Whether a Python runs.  (A shell takes an empty file for a script that does nothing.)
_ppr_ask='import sys, json, os; print(sys.version_info >= (3, 6))'
_ppr_runs() {
    _ppr_why=$("$_ppr_python" -BIS -c "$_ppr_ask" 2>&1)
    [ "$_ppr_why" = True ]
}

# Whether there is a Python in an environment, which may lie below top directories.
_ppr_find() {
    for _ppr_python in "$1/bin/python3" "$1"/*/bin/python3 "$1"/*/*/bin/python3; do
        [ -f "$_ppr_python" ] && [ -x "$_ppr_python" ] && return
    done
    false
}

# The one of a directory.  In /tmp anybody could have made it.  After a power loss it may be
# damaged; a completion marker of this boot proves that there was none.
_ppr_try() {
    _ppr_why="and none in $1"
    _ppr_real=$(CDPATH='' command cd -P "$1" >>"$_ppr_null" && pwd -P) || return
    if [ ! -O "$_ppr_real" ] && [ -k "${_ppr_real%/*}/" ]; then
        _ppr_why="and $1 is not yours, in a directory where anyone may have made it"
        return 1
    fi
    _ppr_find "$_ppr_real" || return
    _ppr_marker=
    _ppr_boot=
    [ -f "$_ppr_real/.poncho_package_run_expanded" ] &&
        read -r _ppr_marker <"$_ppr_real/.poncho_package_run_expanded"
    [ -r /proc/sys/kernel/random/boot_id ] && read -r _ppr_boot </proc/sys/kernel/random/boot_id
    # A program, or a script: anything else a shell may take for a script that does nothing.
    _ppr_head=
    [ -s "$_ppr_python" ] && IFS= read -r _ppr_head <"$_ppr_python"
    case $_ppr_head in
        '#!'* | "$(printf '\177ELF')"*) ;;
        *) _ppr_marker= ;;
    esac
    case $_ppr_marker in
        *'"on_disk": true'* | *"\"boot_id\": \"${_ppr_boot:-none}\""*) ;;
        *) _ppr_runs || { _ppr_why="and that of $1 does not run here: ${_ppr_why%%
*}" && false; } ;;
    esac
}
if [ -d "$_ppr_env" ]; then
    _ppr_try "$_ppr_env" && _ppr_run "$@"
    _ppr_give_up "$_ppr_why"
elif [ -f "$_ppr_dir/.poncho_package_run_expanded" ]; then
    _ppr_try "$_ppr_dir" && _ppr_run "$@"
fi

# A copy, then, in a private directory, made as place/private.py makes them; but without any
# program but tar.  The tool removes it before the command starts.
[ -e "$_ppr_env" ] || _ppr_say "$_ppr_env does not exist; check --environment" 66
[ -f "$_ppr_env" ] || _ppr_give_up "and none can be taken from $_ppr_env, which is no file"
[ "$(command -v tar)" ] || _ppr_give_up "and no tar to take that of the environment"
_ppr_tmp=
[ -d "${TMPDIR:-/tmp}" ] && _ppr_tmp=$(CDPATH='' command cd -P "${TMPDIR:-/tmp}" >>"$_ppr_null" && pwd -P)
[ "$_ppr_tmp" ] || _ppr_say "${TMPDIR:-/tmp} is no directory; set TMPDIR to one with room" 73

# Signals end it once tar has ended, and nothing is left; a second one does at once.
_ppr_caught=
_ppr_tar=
_ppr_note() {
    [ "$_ppr_caught" ] && exit $((128 + $1))
    _ppr_caught=$1
    [ "$_ppr_tar" ] && kill "$_ppr_tar" 2>>"$_ppr_null"
}
for _ppr_signal in HUP:1 INT:2 QUIT:3 TERM:15; do
    trap "_ppr_note ${_ppr_signal#*:}" "${_ppr_signal%:*}"
done 2>>"$_ppr_null"
_ppr_clean() {
    [ "$(command -v chmod)" ] && chmod -R u+rwx "$_ppr_copy" 2>>"$_ppr_null"
    if [ "$(command -v rm)" ]; then
        rm -rf "$_ppr_copy"
    elif [ "$(command -v busybox)" ]; then
        busybox rm -rf "$_ppr_copy"
    elif [ -e /dev/null ]; then # with GNU tar; others leave it to a later run
        TAR_OPTIONS= tar -cf /dev/null --remove-files -C "$_ppr_tmp" "./$_ppr_name"
    fi 2>>"$_ppr_null"
    [ "$_ppr_caught" ] && exit $((128 + _ppr_caught))
}

# A name that nobody can foresee, and then what tells others whether this process lives.
_ppr_random=$$
[ -r /proc/sys/kernel/random/uuid ] && read -r _ppr_random </proc/sys/kernel/random/uuid
_ppr_name=poncho_package_run-$_ppr_uid-
while [ "$_ppr_random" ]; do
    _ppr_rest=${_ppr_random#?}
    _ppr_key=${_ppr_random%"$_ppr_rest"}
    [ "$_ppr_key" = - ] || _ppr_name=$_ppr_name$_ppr_key
    _ppr_random=$_ppr_rest
done
_ppr_copy=$_ppr_tmp/$_ppr_name
[ -e "$_ppr_copy" ] && _ppr_say "$_ppr_copy exists; remove it" 73

# An archive of one directory, with the checksum of its header: tar is what makes directories.
_ppr_zeros() {
    _ppr_count=$1
    while [ "$_ppr_count" -gt 0 ]; do
        printf '\0'
        _ppr_count=$((_ppr_count - 1))
    done
}
_ppr_archive() {
    _ppr_sum=@sum@
    _ppr_rest=${1#poncho_package_run-}
    _ppr_rest=${_ppr_rest%/env}
    while [ "$_ppr_rest" ]; do
        _ppr_key=${_ppr_rest%"${_ppr_rest#?}"}
        case $_ppr_key in
            -) _ppr_sum=$((_ppr_sum + 45)) ;;
            [0-9]) _ppr_sum=$((_ppr_sum + 48 + _ppr_key)) ;;
            *) _ppr_sum=$((_ppr_sum + 87 + 0x$_ppr_key)) ;;
        esac
        _ppr_rest=${_ppr_rest#?}
    done
    printf %s "$1"
    _ppr_zeros $((100 - ${#1}))
    printf '0000700\0%s\0%s\0%s\0%s\0%06o\0 5' 0000000 0000000 00000000000 00000000000 "$_ppr_sum"
    _ppr_zeros 100
    printf 'ustar\00000'
    _ppr_zeros $((247 + 1024))
}
(
    umask 077
    _ppr_archive "$_ppr_name/env" | TAR_OPTIONS= tar -xmof - -C "$_ppr_tmp"
) >>"$_ppr_null" 2>&1
if [ ! -d "$_ppr_copy/env" ] || [ -L "$_ppr_copy" ] || [ ! -O "$_ppr_copy" ]; then
    _ppr_say "cannot make a directory in $_ppr_tmp; set TMPDIR to one with room" 73
fi

# The owner's file: see machine/process.py.  Only a symlink names a namespace, and only tar reads it.
_ppr_line() {
    _ppr_value=
    [ -r "$1" ] && read -r _ppr_value 2>>"$_ppr_null" <"$1"
    case $_ppr_value in
        '' | *[!A-Za-z0-9._-]*) _ppr_value=null ;;
        *) _ppr_value="\"$_ppr_value\"" ;;
    esac
}
_ppr_space() {
    _ppr_value=${_ppr_links#*"$1:["}
    if [ "$_ppr_value" = "$_ppr_links" ]; then
        _ppr_value=$2
    else
        _ppr_value="\"$1:[${_ppr_value%%]*}]\""
    fi
}
{ _ppr_links=$(TAR_OPTIONS= tar -cf - -C /proc/self/ns pid time); } 2>>"$_ppr_null"
_ppr_start=
[ -r /proc/$$/stat ] && read -r _ppr_start </proc/$$/stat
_ppr_line /proc/sys/kernel/random/boot_id
_ppr_owner="{\"boot_id\": $_ppr_value"
_ppr_line /proc/sys/kernel/hostname
[ "$_ppr_value" = null ] && _ppr_value='"localhost"'
_ppr_owner="$_ppr_owner, \"host\": $_ppr_value"
_ppr_line /etc/machine-id
_ppr_owner="$_ppr_owner, \"machine_id\": $_ppr_value, \"pid\": $$"
_ppr_space pid null
_ppr_owner="$_ppr_owner, \"pid_namespace\": $_ppr_value"
_ppr_space time '"none"'
_ppr_owner="$_ppr_owner, \"time_namespace\": $_ppr_value"
_ppr_twentieth() {
    shift 19
    _ppr_owner="$_ppr_owner, \"start_time\": ${1:-null}}"
}
[ "$_ppr_start" ] && _ppr_twentieth ${_ppr_start##*') '}
[ "$_ppr_start" ] || _ppr_owner="$_ppr_owner, \"start_time\": null}"
(
    umask 077
    set -C
    echo "$_ppr_owner" >"$_ppr_copy/.poncho_package_run_owner"
) 2>>"$_ppr_null" || {
    _ppr_clean
    _ppr_say "cannot write $_ppr_copy; set TMPDIR to a directory with room" 74
}

# Not every tar knows a compression by itself, and what is half of most environments is not needed.
_ppr_how=
IFS= read -r _ppr_how 2>>"$_ppr_null" <"$_ppr_env"
case $_ppr_how in
    "$(printf '\037\213')"*) _ppr_how=z ;;
    BZh*) _ppr_how=j ;;
    "$(printf '\3757zXZ')"*) _ppr_how=J ;;
    *) _ppr_how= ;;
esac
_ppr_less=-o
case $(tar --version 2>&1) in
    *GNU* | *bsdtar*) _ppr_less='--exclude=*/site-packages/*' ;;
esac
_ppr_file=$_ppr_env
[ "${_ppr_env#/}" = "$_ppr_env" ] && _ppr_file=./$_ppr_env # "host:file" is another machine's
_ppr_umask=$(umask)
umask 077
[ "$_ppr_caught" ] && _ppr_clean
# In the background, so that a signal is heard at once; unless the caller blocks SIGCHLD (bit 16),
# without which some shells wait for ever.
_ppr_background=
[ -e /dev/null ] && case ${_ppr_mask%????} in
    *[13579bdfBDF]) ;;
    *) _ppr_background=1 ;;
esac
if [ "$_ppr_background" ]; then
    TAR_OPTIONS= LC_ALL=C tar "-xo${_ppr_how}f" "$_ppr_file" -C "$_ppr_copy/env" "$_ppr_less" \
        2>"$_ppr_copy/said" &
    _ppr_tar=$!
    [ "$_ppr_caught" ] && kill "$_ppr_tar" 2>>"$_ppr_null"
    wait "$_ppr_tar" 2>>"$_ppr_null" # some shells tell how it ended
else
    TAR_OPTIONS= LC_ALL=C tar "-xo${_ppr_how}f" "$_ppr_file" -C "$_ppr_copy/env" "$_ppr_less" \
        2>"$_ppr_copy/said"
fi
umask "$_ppr_umask"
[ "$_ppr_caught" ] && [ "$_ppr_tar" ] && wait "$_ppr_tar" 2>>"$_ppr_null"
_ppr_tar=
[ "$_ppr_caught" ] && _ppr_clean

# What is wrong with the archive the tool will say, if only its Python was in what came.
_ppr_why="and $_ppr_env holds none"
if _ppr_find "$_ppr_copy/env"; then
    if _ppr_runs; then
        [ "$_ppr_caught" ] && _ppr_clean
        trap - HUP INT QUIT TERM
        _ppr_notes="$_ppr_notes $_ppr_copy"
        _ppr_run "$@"
        _ppr_why="it could not be executed"
    fi
    _ppr_why="and that of $_ppr_env does not run here: ${_ppr_why%%
*}"
fi
if [ -s "$_ppr_copy/said" ]; then
    while read -r _ppr_why && [ ! "$_ppr_why" ]; do :; done <"$_ppr_copy/said"
    _ppr_why="and none comes out of $_ppr_env: $_ppr_why"
fi
_ppr_clean
_ppr_give_up "$_ppr_why"

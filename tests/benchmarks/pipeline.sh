#!/bin/bash
# What the manual describes, in plain shell: the rival of the benchmark.
#   pipeline.sh -e ARCHIVE [-d DIR] COMMAND...
set -e
dir=
while getopts +e:d: option; do
    case $option in
        e) archive=$OPTARG ;;
        d) dir=$OPTARG ;;
        *) exit 64 ;;
    esac
done
shift $((OPTIND - 1))

unpack() {
    case $archive in
        *.zip) unzip -q "$archive" -d "$1" ;;
        *) tar -xf "$archive" -C "$1" ;;
    esac
    (PATH=$1/bin:$PATH && conda-unpack)
    touch "$1/.poncho_package_run_expanded"
}

if [ -z "$dir" ]; then
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    unpack "$dir"
    source "$dir/bin/activate"
    "$@"
    exit
fi

if [ ! -f "$dir/.poncho_package_run_expanded" ]; then
    mkdir -p "$dir"
    exec {lock}<"$dir"
    flock -w 300 "$lock"
    [ -f "$dir/.poncho_package_run_expanded" ] || unpack "$dir"
    exec {lock}<&-
fi
source "$dir/bin/activate"
exec "$@"

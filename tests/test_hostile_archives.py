"""Tar archives made to do harm: each is unpacked exactly, or refused whole; nothing else changes.

Every archive holds ``conda-meta/history``, so that what is refused is the attack and
not an archive without an environment.  Where an attack has a name, the case bears it.
"""

import bz2
import io
import json
import lzma
import os
import stat
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Union

import pytest

from support.messages import refused
from support.tars import (
    BLOCK,
    END,
    directory,
    environment,
    hardlink,
    header,
    longname,
    member,
    pad,
    pax,
    pax_record,
    symlink,
)
from support.trees import Entry, snapshot

HISTORY = member(b"conda-meta/history")
DIR = None
"""In an expected tree: a directory."""


class Link(NamedTuple):
    """In an expected tree: a symlink with this target."""

    target: bytes


class Same(NamedTuple):
    """In an expected tree: another name of this file (or of this symlink)."""

    path: bytes


class World(NamedTuple):
    """What an attacker would like to reach: absolute paths outside the target."""

    outside: bytes
    secret: bytes
    target: bytes


Build = Callable[[World], bytes]
Found = dict[bytes, Union[bytes, Link, None]]
Tree = Mapping[bytes, Union[bytes, Link, Same, None]]


class Unpacked(NamedTuple):
    """The archive is harmless: this tree, besides ``conda-meta/history``, and the command runs."""

    tree: Tree
    build: Build
    modes: Mapping[bytes, int] = {}


class Refused(NamedTuple):
    """One line that holds ``says``, and nothing is left."""

    says: bytes
    build: Build
    status: int = 65


Case = Union[Unpacked, Refused]


def env(*members: bytes) -> Build:
    """An archive that does not depend on where the world is."""
    archive = environment(*members)
    return lambda world: archive


def raw(archive: bytes) -> Build:
    """These bytes and no others."""
    return lambda world: archive


def x(name: bytes, data: bytes = b"evil") -> bytes:
    return member(name, data)


def zipped(*names: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name.decode(), b"x")
    return buffer.getvalue()


LONG = b"n" * 98 + b"y/r"

TRAVERSAL: dict[str, Case] = {
    "CVE-2007-4559-parent": Refused(b"../evil", env(x(b"../evil"))),
    "parent-of-parent": Refused(b"../../evil", env(x(b"../../evil"))),
    "down-and-out": Refused(b"a/../../evil", env(x(b"a/../../evil"))),
    "dotdot-that-stays-inside": Refused(b"a/../b", env(x(b"a/../b"))),
    "dotdot-at-the-end": Refused(b"a/..", env(x(b"a/.."))),
    "dotdot-alone-as-file": Refused(b"..", env(x(b".."))),
    "dotdot-alone-as-directory": Refused(b"..", env(directory(b"..", mode=0o777))),
    "dotdot-behind-dot": Refused(b"./../evil", env(x(b"./../evil"))),
    "dotdot-between-slashes": Refused(b"a//..//..//evil", env(x(b"a//..//..//evil"))),
    "dotdot-directory-slash": Refused(b"../new", env(directory(b"../new/"))),
    "dotdot-symlink-name": Refused(b"../link", env(symlink(b"../link", b"x"))),
    "dotdot-hard-link-name": Refused(b"../hard", env(hardlink(b"../hard", b"conda-meta/history"))),
    "dotdot-in-gnu-long-name": Refused(b"../evil", env(longname(b"../evil"), x(b"good"))),
    "dotdot-in-pax-path": Refused(b"../evil", env(pax({b"path": b"../evil"}), x(b"good"))),
    "dotdot-in-ustar-prefix": Refused(b"../evil", env(member(b"evil", b"x", prefix=b".."))),
    "dotdot-in-global-pax-path": Refused(
        b"../evil", env(pax({b"path": b"../evil"}, type=b"g"), x(b"good"))
    ),
    "dotdot-with-terminal-escape": Refused(b"evil", env(x(b"../\x1b]0;evil\x07"))),
    "dotdot-with-newlines": Refused(b"evil", env(x(b"../a\nevil\r\nb"))),
    "dotdot-not-utf8": Refused(b"../caf", env(x(b"../caf\xe9\xff"))),
    "CVE-2025-4435-between-good-members": Refused(
        b"../evil", env(x(b"good1"), x(b"../evil"), x(b"good2"))
    ),
    "CVE-2026-19672-exit-and-reenter": Refused(
        b"../evil/",
        lambda w: environment(x(b"../evil/../" + os.path.basename(w.target) + b"/sub/file")),
    ),
    "absolute": Refused(b"/evil", lambda w: environment(x(w.outside + b"/evil"))),
    "absolute-two-slashes": Refused(
        b"/evil", lambda w: environment(x(b"/" + w.outside + b"/evil"))
    ),
    "absolute-inside-the-target": Refused(b"/f", lambda w: environment(x(w.target + b"/f"))),
    "absolute-directory": Refused(
        b"outside", lambda w: environment(directory(w.outside, mode=0o777))
    ),
    "absolute-in-pax-path": Refused(
        b"secret", lambda w: environment(pax({b"path": w.secret}), x(b"good"))
    ),
    "root-as-name": Refused(b"/", env(x(b"/"))),
    # The other cases of zip are in test_zip; in this one, threads were waited for in vain.
    "dotdot-in-zip-while-others-are-written": Refused(
        b"../evil", lambda w: zipped(b"conda-meta/history", b"f", b"g", b"../evil", b"h")
    ),
    "empty-name-file": Refused(b"", env(x(b""))),
    "empty-name-directory": Unpacked({}, env(directory(b"", mode=0o777))),
    "dot-as-file": Refused(b".", env(x(b"."))),
    "dot-slash-as-file": Unpacked({}, env(member(b"./", b"evil", magic="gnu"))),  # a directory
    "dot-as-directory": Unpacked({b"f": b"x"}, env(directory(b"./"), member(b"./f", b"x"))),
    "dots-and-slashes": Unpacked({b"a/b": b"x"}, env(member(b"./a//./b", b"x"))),
    "three-dots": Unpacked({b".../..x": b"x"}, env(member(b".../..x", b"x"))),
    "backslashes": Unpacked({b"..\\..\\evil": b"x"}, env(member(b"..\\..\\evil", b"x"))),
    "drive-letter": Unpacked({b"C:/x": b"x"}, env(member(b"C:/x", b"x"))),
    "newline-in-name": Unpacked({b"a\nb": b"x"}, env(member(b"a\nb", b"x"))),
    "name-not-utf8": Unpacked({b"caf\xe9": b"x"}, env(member(b"caf\xe9", b"x"))),
    "nul-hides-a-traversal": Unpacked({b"ok": b""}, env(header(b"ok\0/../../evil"))),
    "nul-in-pax-path": Refused(b"good", env(pax({b"path": b"good\0../evil"}), x(b"good"))),
    "name-of-255-bytes": Unpacked({b"m" * 255: b"x"}, env(longname(b"m" * 255), x(b"m", b"x"))),
    "name-of-256-bytes": Refused(b"mmm", env(longname(b"m" * 256), x(b"m"))),
    "case-collision": Unpacked({b"A": b"1", b"a": b"2"}, env(x(b"A", b"1"), x(b"a", b"2"))),
}


def realpath_limit(world: World) -> bytes:
    """CVE-2025-4517: a chain of links so long that realpath() gives up, and lets the last pass."""
    step, members, deep = b"d" * 247, b"", b""
    for letter in b"abcdefghijklmnop":
        members += longname(deep + step) + directory(b"d")
        members += longname(step, type=b"K") + longname(deep + b"%c" % letter)
        members += symlink(b"l", b"")
        deep += step + b"/"
    chain = b"/".join(b"%c" % letter for letter in b"abcdefghijklmnop")
    far = chain + b"/" + b"l" * 254
    members += longname(b"../" * 16, type=b"K") + longname(far) + symlink(b"l", b"")
    members += longname(far + b"/.." * 3, type=b"K") + symlink(b"escape", b"")
    return environment(members, x(b"escape/flag"))


PARTS = b"/".join(b"p%d" % number for number in range(40))

SYMLINKS: dict[str, Case] = {
    "absolute-target": Unpacked(
        {b"bin/python": Link(b"/usr/bin/python3")}, env(symlink(b"bin/python", b"/usr/bin/python3"))
    ),
    "target-outside": Unpacked({b"up": Link(b"../..")}, env(symlink(b"up", b"../.."))),
    "write-through": Refused(
        b"door", lambda w: environment(symlink(b"door", w.outside), x(b"door/evil"))
    ),
    "write-through-onto-the-secret": Refused(
        b"door",
        lambda w: environment(symlink(b"door", w.outside), x(b"door/secret.txt")),
    ),
    "write-through-relative": Refused(
        b"door", env(symlink(b"door", b"../outside"), x(b"door/evil"))
    ),
    "write-through-proc": Refused(
        b"door", env(symlink(b"door", b"/proc/self/cwd"), x(b"door/evil"))
    ),
    "write-through-chain": Refused(
        b"par", env(symlink(b"cur", b"."), symlink(b"par", b"cur/.."), x(b"par/evil"))
    ),
    "link-made-through-a-link": Refused(
        b"cur", env(symlink(b"cur", b"."), symlink(b"cur/par", b".."), x(b"par/evil"))
    ),
    "write-through-deep": Refused(
        b"a/b/door", env(symlink(b"a/b/door", b"../../.."), x(b"a/b/door/evil"))
    ),
    "write-through-in-root-link": Refused(
        b"lib64", env(directory(b"lib/"), symlink(b"lib64", b"lib"), x(b"lib64/f"))
    ),
    "directory-made-through": Refused(
        b"door", lambda w: environment(symlink(b"door", w.outside), directory(b"door/new/"))
    ),
    "write-through-the-second-of-two": Refused(
        b"door",
        lambda w: environment(
            symlink(b"door", b"lib"), symlink(b"door", w.outside), x(b"door/evil")
        ),
    ),
    "write-through-a-link-in-place-of-an-empty-directory": Refused(
        b"door",
        lambda w: environment(directory(b"door/"), symlink(b"door", w.outside), x(b"door/evil")),
    ),
    "write-through-a-link-in-place-of-a-full-directory": Refused(
        b"door",
        lambda w: environment(x(b"door/b"), symlink(b"door", w.outside), x(b"door/evil")),
    ),
    "link-in-place-of-a-full-directory": Refused(
        b"door", lambda w: environment(x(b"door/b"), symlink(b"door", w.outside))
    ),
    "link-in-place-of-an-empty-directory": Unpacked(
        {b"d": Link(b"../outside")}, env(directory(b"d/"), symlink(b"d", b"../outside"))
    ),
    "link-in-place-of-a-file": Unpacked(
        {b"f": Link(b"../x")}, env(x(b"f"), symlink(b"f", b"../x"))
    ),
    "file-in-place-of-a-link": Unpacked(
        {b"moo": b"x"}, lambda w: environment(symlink(b"moo", w.secret), member(b"moo", b"x"))
    ),
    "file-in-place-of-a-link-to-nothing": Unpacked(
        {b"moo": b"x"},
        lambda w: environment(symlink(b"moo", w.outside + b"/evil"), member(b"moo", b"x")),
    ),
    "link-in-place-of-a-link": Unpacked(
        {b"s": Link(b"two")}, env(symlink(b"s", b"one"), symlink(b"s", b"two"))
    ),
    "directory-in-place-of-a-link": Unpacked(
        {b"d": DIR, b"d/f": b"x"},
        lambda w: environment(
            symlink(b"d", w.outside), directory(b"d/", mode=0o711), member(b"d/f", b"x")
        ),
        {b"d": 0o711},
    ),
    "CVE-2024-12718-chmod-outside": Unpacked(
        {b"a/pwn": Link(b"x/../"), b"a/x": Link(b"../")},
        env(
            symlink(b"a/pwn", b"."),
            directory(b"a/pwn/", mode=0o777),
            symlink(b"a/pwn", b"x/../"),
            symlink(b"a/x", b"../"),
        ),
    ),
    "CVE-2025-4138-exfiltration": Unpacked(
        {b"escape": Link(b"link/link/../../link-here"), b"link": Link(b"./")},
        env(symlink(b"escape", b"link/link/../../link-here"), symlink(b"link", b"./")),
    ),
    "CVE-2025-4138-then-write": Refused(
        b"escape",
        env(symlink(b"escape", b"link/../.."), symlink(b"link", b"./"), x(b"escape/evil")),
    ),
    "CVE-2025-4330-hard-link-fallback": Refused(
        b"c",
        env(
            x(b"a/t/dummy"),
            directory(b"b/"),
            symlink(b"c", b"a/t"),
            symlink(b"c/escape", b"../../link_here"),
            symlink(b"c", b"b"),
            hardlink(b"boom", b"c/escape"),
        ),
    ),
    "CVE-2025-4517-realpath-limit": Refused(b"a/b/c/", realpath_limit),
    "CVE-2026-7774-trailing-slash": Refused(
        b"door", env(symlink(b"door/", b".."), x(b"door/escaped"))
    ),
    "trailing-slash-alone": Unpacked({b"x": Link(b"lib")}, env(symlink(b"x/", b"lib"))),
    "CVE-2026-7774-link-at-destination-empty": Refused(b"", env(symlink(b"", b"."))),
    "CVE-2026-7774-link-at-destination-dot": Refused(b".", env(symlink(b".", b".."))),
    "CVE-2026-7774-link-at-destination-dot-slash": Refused(b"./", env(symlink(b"./", b".."))),
    "CVE-2026-7774-empty-name-chain": Refused(
        b"",
        env(
            symlink(b"", b""),
            symlink(b"a/", b".."),
            symlink(b"", b"dummy"),
            symlink(b"", b"a"),
            symlink(b"b/", b".."),
            symlink(b"", b"a/b"),
            x(b"escaped"),
        ),
    ),
    "CVE-2026-7774-normpath": Unpacked(
        {b"a": Link(PARTS), b"escape": Link(b"a/" + b"../" * 40 + b"flag")},
        env(
            longname(PARTS, type=b"K"),
            symlink(b"a", b""),
            longname(b"a/" + b"../" * 40 + b"flag", type=b"K"),
            symlink(b"escape", b""),
        ),
    ),
    "conda-meta-is-a-link": Refused(
        b"conda-meta",
        lambda w: symlink(b"conda-meta", w.outside) + HISTORY + END,
    ),
    "only-top-directory-is-a-link-to-an-environment": Refused(
        b"", lambda w: symlink(b"env", w.outside + b"/env") + END
    ),
    "bin-is-a-link": Refused(
        b"bin",
        lambda w: environment(symlink(b"bin", w.outside), x(b"bin/conda-unpack")),
    ),
    "link-below-an-earlier-link": Refused(
        b"door", lambda w: environment(symlink(b"door", w.outside), symlink(b"door/evil", b"x"))
    ),
    "link-below-a-later-link": Refused(
        b"door", lambda w: environment(symlink(b"door/evil", b"x"), symlink(b"door", w.outside))
    ),
    "link-below-a-link-in-place-of-an-empty-directory": Refused(
        b"door",
        lambda w: environment(
            directory(b"door/"), symlink(b"door", w.outside), symlink(b"door/evil", b"x")
        ),
    ),
    "loop": Unpacked(
        {b"a": Link(b"b"), b"b": Link(b"a"), b"c": Link(b"c")},
        env(symlink(b"a", b"b"), symlink(b"b", b"a"), symlink(b"c", b"c")),
    ),
    "write-through-loop": Refused(b"door", env(symlink(b"door", b"door"), x(b"door/evil"))),
    "empty-target": Refused(b"s", env(symlink(b"s", b""))),
    "target-longer-than-a-path": Refused(
        b"s", env(longname(b"t" * 5000, type=b"K"), symlink(b"s", b""))
    ),
    "nul-in-pax-linkpath": Refused(b"s", env(pax({b"linkpath": b"a\0/etc"}), symlink(b"s", b"a"))),
    "file-in-place-of-a-full-directory": Refused(b"f", env(x(b"f/g"), x(b"f"))),
    "directory-in-place-of-a-file": Unpacked(
        {b"f": DIR, b"f/g": b"x"}, env(x(b"f"), directory(b"f/"), member(b"f/g", b"x"))
    ),
    "file-below-a-file": Refused(b"f/g", env(x(b"f"), x(b"f/g"))),
    "last-of-two-files": Unpacked({b"f": b"2"}, env(x(b"f", b"first"), x(b"f", b"2"))),
}

HARD_LINKS: dict[str, Case] = {
    "to-outside": Refused(b"h", lambda w: environment(hardlink(b"h", b"../outside/secret.txt"))),
    "to-absolute": Refused(b"h", lambda w: environment(hardlink(b"h", w.secret))),
    "to-absolute-then-overwrite": Refused(
        b"h", lambda w: environment(hardlink(b"h", w.secret), x(b"h"))
    ),
    "to-absolute-in-pax-linkpath": Refused(
        b"h", lambda w: environment(pax({b"linkpath": w.secret}), hardlink(b"h", b"ok"))
    ),
    "to-dotdot-that-stays-inside": Refused(b"h", env(x(b"a"), hardlink(b"h", b"conda-meta/../a"))),
    "to-missing": Refused(b"h", env(hardlink(b"h", b"missing"))),
    "to-a-later-member": Refused(b"h", env(hardlink(b"h", b"f"), x(b"f"))),
    "to-empty-name": Refused(b"h", env(hardlink(b"h", b""))),
    "to-directory": Refused(b"h", env(directory(b"d/"), hardlink(b"h", b"d"))),
    "to-the-root": Refused(b"h", env(hardlink(b"h", b"."))),
    "through-a-link": Refused(
        b"h", lambda w: environment(symlink(b"d", w.outside), hardlink(b"h", b"d/secret.txt"))
    ),
    "CVE-2026-7774-normpath": Refused(
        b"escape",
        env(
            longname(PARTS, type=b"K"),
            symlink(b"a", b""),
            longname(b"a/" + b"../" * 40 + b"flag", type=b"K"),
            hardlink(b"escape", b""),
        ),
    ),
    "to-itself": Unpacked({b"a": b"x"}, env(member(b"a", b"x"), hardlink(b"a", b"a"))),
    "gh-157190-to-a-link-then-chmod": Unpacked(
        {b"s": Link(b"../outside/secret.txt"), b"h": Link(b"../outside/secret.txt")},
        env(
            symlink(b"s", b"../outside/secret.txt"),
            hardlink(b"h", b"s", mode=0o777, mtime=1_000_000_000),
        ),
    ),
    "to-a-link-to-the-secret": Unpacked(
        {b"s": Link(b"../outside/secret.txt"), b"h": b"x"},
        env(symlink(b"s", b"../outside/secret.txt"), hardlink(b"h", b"s"), member(b"h", b"x")),
    ),
    "to-a-link-with-a-body": Unpacked(
        {b"s": Link(b"../outside/secret.txt"), b"h": Link(b"../outside/secret.txt")},
        env(
            symlink(b"s", b"../outside/secret.txt"),
            pax({b"mtime": b"1"}),
            hardlink(b"h", b"s", size=4) + pad(b"evil"),
        ),
    ),
    "to-missing-with-a-body": Unpacked(
        {b"h": b"hello"},
        env(pax({b"mtime": b"1"}), hardlink(b"h", b"missing", size=5) + pad(b"hello")),
    ),
    "to-outside-with-a-body": Refused(
        b"h",
        env(pax({b"mtime": b"1"}), hardlink(b"h", b"../outside/secret.txt", size=4) + pad(b"evil")),
    ),
    "with-a-body-that-is-a-header": Unpacked(
        {b"a": b"x", b"h": Same(b"a"), b"smuggled": b"", b"after": b"x"},
        env(
            member(b"a", b"x"),
            hardlink(b"h", b"a", size=BLOCK) + member(b"smuggled"),
            member(b"after", b"x"),
        ),
    ),
    "to-a-link-then-write-through": Refused(
        b"door",
        lambda w: environment(symlink(b"s", w.outside), hardlink(b"door", b"s"), x(b"door/evil")),
    ),
    "to-a-file-that-became-a-link": Unpacked(
        {b"a": Link(b"../outside/secret.txt"), b"h": Link(b"../outside/secret.txt")},
        env(x(b"a"), symlink(b"a", b"../outside/secret.txt"), hardlink(b"h", b"a")),
    ),
    "CVE-2026-11940-to-a-deeper-link": Unpacked(
        {b"a/b/s": Link(b"../../outside"), b"h": Link(b"../../outside")},
        env(directory(b"a/b/"), symlink(b"a/b/s", b"../../outside"), hardlink(b"h", b"a/b/s")),
    ),
    "CVE-2026-11940-then-write": Refused(
        b"door",
        env(symlink(b"a/b/s", b"../../outside"), hardlink(b"door", b"a/b/s"), x(b"door/evil")),
    ),
    "in-place-of-a-link": Unpacked(
        {b"a": b"x", b"s": Same(b"a")},
        lambda w: environment(symlink(b"s", w.secret), member(b"a", b"x"), hardlink(b"s", b"a")),
    ),
    "then-the-first-name-again": Unpacked(
        {b"a": b"new", b"b": b"old"},
        env(member(b"a", b"old"), hardlink(b"b", b"a"), member(b"a", b"new")),
    ),
    "then-its-own-name-again": Unpacked(
        {b"a": b"old", b"b": b"new"},
        env(member(b"a", b"old"), hardlink(b"b", b"a"), member(b"b", b"new")),
    ),
    "of-a-hard-link": Unpacked(
        {b"a": b"x", b"b": Same(b"a"), b"c": Same(b"a")},
        env(member(b"a", b"x"), hardlink(b"b", b"a"), hardlink(b"c", b"b")),
    ),
    "with-other-mode-and-time": Unpacked(
        {b"a": b"x", b"h": Same(b"a")},
        env(member(b"a", b"x"), hardlink(b"h", b"a", mode=0o6777, mtime=99)),
        {b"a": 0o644},
    ),
    "CVE-2026-4360-owner": Unpacked(
        {b"a": b"x", b"h": Same(b"a")},
        env(
            member(b"a", b"x", uid=4242, gid=4242),
            hardlink(b"h", b"a", uid=4243, gid=4243, uname=b"nobody", gname=b"nogroup"),
        ),
    ),
    "with-a-size-and-no-body": Unpacked(
        {b"a": b"7" * 700, b"b": Same(b"a"), b"after": b"x"},
        env(member(b"a", b"7" * 700), hardlink(b"b", b"a", size=700), member(b"after", b"x")),
    ),
    "with-a-body-as-conda-pack-writes-it": Unpacked(
        {b"bin/a": b"#!/bin/sh\n", b"bin/b": b"#!/bin/sh\n", b"after": b"x"},
        env(
            pax({b"mtime": b"1.5"}),
            member(b"bin/a", b"#!/bin/sh\n", mode=0o755),
            pax({b"mtime": b"1.5"}),
            hardlink(b"bin/b", b"bin/a", size=10, mode=0o755) + pad(b"#!/bin/sh\n"),
            pax({b"mtime": b"1.5"}),
            member(b"after", b"x"),
        ),
    ),
    "with-a-body-in-the-gnu-dialect": Unpacked(
        {b"bin/a": b"#!/bin/sh\n", b"bin/b": b"#!/bin/sh\n", b"after": b"x"},
        env(
            member(b"bin/a", b"#!/bin/sh\n", magic="gnu"),
            hardlink(b"bin/b", b"bin/a", size=10, magic="gnu") + pad(b"#!/bin/sh\n"),
            member(b"after", b"x", magic="gnu"),
        ),
    ),
}


def sized(size: Union[int, bytes], data: bytes = b"hello", **fields: bytes) -> bytes:
    """A file member whose header claims ``size``, and another after it."""
    return header(b"f", size=size, **fields) + pad(data) + member(b"after", b"x")


INNER = member(b"smuggled", b"evil") + END
"""What a reader that uses the wrong size takes for members."""

SIZES: dict[str, Case] = {
    "CVE-2025-62518-tarmageddon": Unpacked(
        {b"nested": INNER, b"after": b"x"},
        env(
            pax({b"size": b"%d" % len(INNER)}),
            header(b"nested", size=0) + INNER,
            member(b"after", b"x"),
        ),
    ),
    "CVE-2026-33055-pax-size-over-base": Unpacked(
        {b"nested": INNER, b"after": b"x"},
        env(
            pax({b"size": b"%d" % len(INNER)}),
            header(b"nested", size=BLOCK) + INNER,
            member(b"after", b"x"),
        ),
    ),
    "pax-size-zero-over-base": Unpacked(
        {b"empty": b"", b"after": b"x"},
        env(pax({b"size": b"0"}), header(b"empty", size=BLOCK), member(b"after", b"x")),
    ),
    "pax-size-before-gnu-long-name": Unpacked(
        {b"long": INNER, b"after": b"x"},
        env(
            pax({b"size": b"%d" % len(INNER)}),
            longname(b"long"),
            header(b"f", size=0) + INNER,
            member(b"after", b"x"),
        ),
    ),
    "pax-size-does-not-last": Unpacked(
        {b"one": b"12345", b"two": b"x"},
        env(pax({b"size": b"5"}), header(b"one") + pad(b"12345"), member(b"two", b"x")),
    ),
    "CVE-2025-8194-negative-base-256": Refused(b"f", env(sized(-224))),
    "negative-octal": Refused(b"f", env(sized(b"-0000000001"))),
    "negative-pax": Refused(b"f", env(pax({b"size": b"-512"}), sized(5))),
    "not-octal": Refused(b"f", env(sized(b"00000000009"))),
    "base-256-over-63-bits": Refused(b"f", env(sized(b"\x80" + b"\xff" * 11))),
    "spaces-before": Unpacked({b"f": b"hello", b"after": b"x"}, env(sized(b"         5 "))),
    "nuls-only": Unpacked({b"f": b"", b"after": b"x"}, env(sized(bytes(12), b""))),
    "base-256-small": Unpacked(
        {b"f": b"hello", b"after": b"x"}, env(sized(b"\x80" + bytes(10) + b"\x05"))
    ),
    "pax-not-a-number": Refused(b"f", env(pax({b"size": b"five"}), sized(5))),
    "pax-underscore": Refused(b"f", env(pax({b"size": b"0_5"}), sized(5))),
    "pax-plus": Refused(b"f", env(pax({b"size": b"+5"}), sized(5))),
    "pax-arabic-digit": Refused(b"f", env(pax({b"size": b"\xd9\xa5"}), sized(5))),
    "pax-fraction": Refused(b"f", env(pax({b"size": b"5.0"}), sized(5))),
    "pax-4301-digits": Refused(b"f", env(pax({b"size": b"9" * 4301}), sized(5))),
    "directory-with-a-size": Unpacked(
        {b"d": DIR, b"after": b"x"},
        env(header(b"d/", size=BLOCK, type=b"5", mode=0o755), member(b"after", b"x")),
    ),
    "symlink-with-a-size": Unpacked(
        {b"s": Link(b"t"), b"after": b"x"},
        env(symlink(b"s", b"t", size=BLOCK), member(b"after", b"x")),
    ),
    "symlink-with-a-body": Unpacked(
        {b"s": Link(b"t"), b"after": b"x"},
        env(symlink(b"s", b"t", size=5) + pad(b"hello"), member(b"after", b"x")),
    ),
    "CVE-2025-13462-file-behind-a-long-name": Unpacked(
        {LONG: b"hello", b"after": b"x"},
        env(
            longname(LONG),
            member(LONG[:99] + b"/", b"hello", type=b"\0", magic="gnu"),
            member(b"after", b"x"),
        ),
    ),
    "old-directory": Unpacked({b"d": DIR}, env(header(b"d/", type=b"\0", mode=0o755, magic="v7"))),
    "CVE-2026-11972-end-behind-the-header": Refused(
        b"big", raw(HISTORY + header(b"big", size=8 << 30))
    ),
    "an-exbibyte-claimed": Refused(b"big", raw(HISTORY + header(b"big", size=1 << 60) + END)),
}


def broken_checksum(name: bytes) -> bytes:
    return header(name, checksum=b"000000\0 ")


def gz(data: bytes, flags: int = 0, extra: bytes = b"", crc: int = 0, isize: int = 0) -> bytes:
    """One gzip member (RFC 1952); ``crc`` and ``isize`` are added to the right values."""
    raw_deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (
        struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, flags, 0, 0, 255)
        + extra
        + raw_deflate.compress(data)
        + raw_deflate.flush()
        + struct.pack("<II", (zlib.crc32(data) + crc) % 2**32, (len(data) + isize) % 2**32)
    )


GOOD = environment(member(b"f", b"x"))
GOOD_TREE: Tree = {b"f": b"x"}
ALL_FIELDS = b"\4\0" + b"ab\0\0" + b"name\0" + b"comment\0"
"""The optional fields of a gzip header: two-byte subfield "ab", name, comment."""
HEADER_CRC = struct.pack(
    "<H", zlib.crc32(struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, 0x1E, 0, 0, 255) + ALL_FIELDS) & 0xFFFF
)

INTEGRITY: dict[str, Case] = {
    "empty-file": Refused(b"", raw(b"")),
    "one-byte": Refused(b"", raw(b"\x1f")),
    "zeros-only": Refused(b"", raw(bytes(10240))),
    "error-page-of-a-server": Refused(b"", raw(b"<!DOCTYPE html>\n<title>404</title>\n" * 40)),
    "noise": Refused(b"", raw(bytes(range(1, 256)) * 8)),
    "bad-checksum-first": Refused(b"", raw(broken_checksum(b"f") + GOOD)),
    "bad-checksum-in-the-middle": Refused(
        b"", env(x(b"one"), broken_checksum(b"two"), x(b"three"))
    ),
    "bad-checksum-instead-of-the-end": Refused(b"", raw(HISTORY + broken_checksum(b"f"))),
    "signed-checksum": Unpacked(
        {b"caf\xe9": b""},
        env(
            header(
                b"caf\xe9",
                checksum=b"%06o\0 "
                % (
                    sum(header(b"cafe")[:148])
                    - 0x65
                    + 0xE9
                    - 256
                    + 8 * 32
                    + sum(header(b"cafe")[156:])
                ),
            )
        ),
    ),
    "truncated-in-header": Refused(b"", raw(HISTORY + header(b"f")[:300])),
    "truncated-in-data": Refused(b"f", raw(HISTORY + header(b"f", size=5000) + bytes(1000))),
    "truncated-in-padding": Refused(b"truncated", raw(HISTORY + header(b"f", size=5) + b"hello")),
    "truncated-in-pax-body": Refused(b"", raw(HISTORY + pax({b"path": b"p" * 3000})[: 2 * BLOCK])),
    "truncated-in-long-name": Refused(b"", raw(HISTORY + longname(b"p" * 3000)[: 2 * BLOCK])),
    "pax-header-of-nothing": Refused(b"", env(pax({b"path": b"f"}))),
    "long-name-of-nothing": Refused(b"", env(longname(b"f"))),
    "no-end-marker": Refused(b"", raw(HISTORY + x(b"f"))),
    "data-after-the-end": Unpacked(GOOD_TREE, raw(GOOD + x(b"../evil"))),
    "noise-after-the-end": Unpacked(GOOD_TREE, raw(GOOD + b"noise" * 500)),
    "one-zero-block-then-a-member": Unpacked(
        GOOD_TREE, raw(HISTORY + member(b"f", b"x") + bytes(BLOCK) + x(b"../evil") + END)
    ),
    "gzip-bad-crc": Refused(b"", raw(gz(GOOD, crc=1))),
    "gzip-bad-length": Refused(b"", raw(gz(GOOD, isize=512))),
    "gzip-truncated-trailer": Refused(b"", raw(gz(GOOD)[:-4])),
    "gzip-no-trailer": Refused(b"", raw(gz(GOOD)[:-8])),
    "gzip-truncated-data": Refused(b"", raw(gz(GOOD)[:-20])),
    "gzip-truncated-behind-the-tar-end": Refused(b"", raw(gz(GOOD + bytes(1 << 20))[:-100])),
    "gzip-header-only": Refused(b"", raw(gz(GOOD)[:10])),
    "gzip-trailing-garbage": Refused(b"", raw(gz(GOOD) + b"garbage")),
    "gzip-trailing-zeros": Unpacked(GOOD_TREE, raw(gz(GOOD) + bytes(512))),
    "gzip-trailing-zeros-then-garbage": Refused(b"", raw(gz(GOOD) + bytes(512) + b"garbage")),
    "gzip-two-members": Unpacked(GOOD_TREE, raw(gz(GOOD[:700]) + gz(GOOD[700:]))),
    "gzip-second-member-bad-crc": Refused(b"", raw(gz(GOOD[:700]) + gz(GOOD[700:], crc=1))),
    "gzip-second-member-cut": Refused(b"", raw(gz(GOOD) + gz(bytes(512))[:5])),
    "gzip-second-member-behind-the-tar-end-bad": Refused(
        b"", raw(gz(GOOD) + gz(bytes(512), crc=1))
    ),
    "gzip-20000-empty-members": Unpacked(GOOD_TREE, raw(gz(b"") * 20_000 + gz(GOOD))),
    "gzip-all-header-fields": Unpacked(
        GOOD_TREE, raw(gz(GOOD, flags=0x1E, extra=ALL_FIELDS + HEADER_CRC))
    ),
    "gzip-bad-header-crc": Refused(
        b"", raw(gz(GOOD, flags=0x1E, extra=ALL_FIELDS + bytes([HEADER_CRC[0] ^ 1, HEADER_CRC[1]])))
    ),
    "gzip-endless-name": Refused(b"", raw(gz(GOOD)[:3] + b"\x08" + bytes(6) + b"n" * (1 << 20))),
    "gzip-reserved-flags": Refused(b"", raw(gz(GOOD, flags=0x80))),
    "gzip-unknown-method": Refused(b"", raw(b"\x1f\x8b\x07" + gz(GOOD)[3:])),
    "gzip-bad-block": Refused(b"", raw(gz(GOOD)[:10] + b"\x07" + gz(GOOD)[11:])),
    "gzip-of-text": Refused(b"", raw(gz(b"not a tar\n" * 100))),
    "gzip-of-nothing": Refused(b"", raw(gz(b""))),
    "bzip2-bad-crc": Refused(b"", lambda w: flip(bz2.compress(GOOD), 12)),
    "bzip2-truncated": Refused(b"", raw(bz2.compress(GOOD)[:-6])),
    "bzip2-second-stream-cut": Refused(b"", raw(bz2.compress(GOOD) + bz2.compress(GOOD)[:20])),
    "xz-bad-check": Refused(b"", lambda w: flip(lzma.compress(GOOD), -33)),
    "xz-truncated": Refused(b"", raw(lzma.compress(GOOD)[:-6])),
    "xz-second-stream-cut": Refused(b"", raw(lzma.compress(GOOD) + lzma.compress(GOOD)[:20])),
    "xz-trailing-garbage": Refused(b"", raw(lzma.compress(GOOD) + b"garbage")),
}


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def pax_raw(records: bytes) -> Build:
    return env(pax(records), member(b"f", b"x"))


PAX: dict[str, Case] = {
    "CVE-2019-20907-length-zero": Refused(b"", pax_raw(b"0 path=x\n")),
    "length-beyond-the-header": Refused(b"", pax_raw(b"900 path=x\n")),
    "length-of-24-digits": Refused(b"", pax_raw(b"9" * 24 + b" path=x\n")),
    "length-of-5000-digits": Refused(b"", pax_raw(b"9" * 5000 + b" path=x\n")),
    "length-negative": Refused(b"", pax_raw(b"-9 path=x\n")),
    "length-too-short": Refused(b"", pax_raw(b"3 path=x\n")),
    "length-with-a-plus": Refused(b"", pax_raw(b"+11 path=x\n")),
    "length-with-an-underscore": Refused(b"", pax_raw(b"1_2 path=x\n")),
    "no-equals-sign": Refused(b"", pax_raw(b"10 pathxx\n")),
    "no-newline": Refused(b"", pax_raw(b"10 path=x!")),
    "no-length": Refused(b"", pax_raw(b"path=x\n")),
    "rest-that-is-no-record": Refused(b"", pax_raw(pax_record(b"path", b"f") + b"rest")),
    "newline-in-a-path": Unpacked(
        {b"a\n20 path=../evil": b"x"},
        pax_raw(pax_record(b"path", b"a\n20 path=../evil")),
    ),
    "size-in-a-comment": Unpacked(
        {b"f": b"x"}, pax_raw(pax_record(b"comment", b"\n12 size=99999\n"))
    ),
    "last-of-two-paths": Unpacked(
        {b"g": b"x"}, pax_raw(pax_record(b"path", b"../evil") + pax_record(b"path", b"g"))
    ),
    "mtime-nan": Refused(b"nan", pax_raw(pax_record(b"mtime", b"nan"))),
    "mtime-infinite": Refused(b"f", pax_raw(pax_record(b"mtime", b"inf"))),
    "mtime-of-5000-digits": Refused(b"99999", pax_raw(pax_record(b"mtime", b"9" * 5000))),
    "header-mtime-of-80-bits": Refused(b"f", env(member(b"f", b"x", mtime=2**80))),
    "header-mtime-of-62-bits": Unpacked({b"f": b"x"}, env(member(b"f", b"x", mtime=2**62))),
    "header-mtime-negative": Unpacked({b"f": b"x"}, env(member(b"f", b"x", mtime=-5))),
    "header-mtime-of-a-link-of-80-bits": Refused(b"s", env(symlink(b"s", b"t", mtime=2**80))),
    "header-mtime-of-a-directory-of-80-bits": Refused(b"d", env(directory(b"d/", mtime=-(2**80)))),
    "mtime-of-18-digits": Unpacked({b"f": b"x"}, pax_raw(pax_record(b"mtime", b"9" * 18))),
    "mtime-negative": Unpacked({b"f": b"x"}, pax_raw(pax_record(b"mtime", b"-1.5"))),
    "mtime-of-5000-decimals": Unpacked(
        {b"f": b"x"}, pax_raw(pax_record(b"mtime", b"1." + b"9" * 5000))
    ),
    "xattrs-and-owner": Unpacked(
        {b"f": b"x"},
        pax_raw(
            pax_record(b"SCHILY.xattr.user.evil", b"\0\xff=\n")
            + pax_record(b"uid", b"4242")
            + pax_record(b"gid", b"9" * 50)
            + pax_record(b"uname", b"../../evil")
        ),
    ),
    "sparse-0.1": Refused(
        b"f",
        pax_raw(
            pax_record(b"GNU.sparse.map", b"0,1")
            + pax_record(b"GNU.sparse.size", b"99999999999")
            + pax_record(b"GNU.sparse.name", b"../evil")
        ),
    ),
    "sparse-1.0": Refused(
        b"f",
        pax_raw(
            pax_record(b"GNU.sparse.major", b"1")
            + pax_record(b"GNU.sparse.minor", b"0")
            + pax_record(b"GNU.sparse.name", b"../evil")
            + pax_record(b"GNU.sparse.realsize", b"1")
        ),
    ),
}


def special(type: bytes, **fields: int) -> Build:
    return env(header(b"dev/thing", type=type, **fields))


SPECIAL: dict[str, Case] = {
    "character-device": Refused(b"dev/thing", special(b"3", devmajor=1, devminor=3)),
    "block-device": Refused(b"dev/thing", special(b"4", devmajor=7, devminor=0)),
    "fifo": Refused(b"dev/thing", special(b"6")),
    "gnu-sparse": Refused(b"dev/thing", special(b"S")),
    "multi-volume-rest": Refused(b"dev/thing", special(b"M")),
    "unknown-type": Refused(b"dev/thing", special(b"Z")),
    "contiguous-file": Unpacked({b"f": b"x"}, env(member(b"f", b"x", type=b"7"))),
    "setuid-setgid": Unpacked(
        {b"s": b"x", b"g": b"x"},
        env(member(b"s", b"x", mode=0o6777), member(b"g", b"x", mode=0o2711)),
        {b"s": 0o755, b"g": 0o711},
    ),
    "sticky-and-setgid-directories": Unpacked(
        {b"t": DIR, b"g": DIR},
        env(directory(b"t/", mode=0o1777), directory(b"g/", mode=0o2775)),
        {b"t": 0o755, b"g": 0o755},
    ),
    "setuid-symlink": Unpacked(
        {b"s": Link(b"t")}, env(header(b"s", type=b"2", mode=0o6777, linkname=b"t"))
    ),
    "mode-beyond-the-bits": Unpacked(
        {b"f": b"x"}, env(member(b"f", b"x", mode=b"7777777")), {b"f": 0o755}
    ),
    "mode-nothing": Unpacked({b"f": b"x"}, env(member(b"f", b"x", mode=0)), {b"f": 0}),
    "directory-without-permissions": Unpacked(
        {b"d": DIR, b"d/e": DIR, b"d/e/f": b"x"},
        env(directory(b"d/", mode=0), directory(b"d/e/", mode=0), member(b"d/e/f", b"x")),
        {b"d": 0, b"d/e": 0},
    ),
    "directory-read-only-then-its-content-again": Unpacked(
        {b"d": DIR, b"d/f": b"2"},
        env(directory(b"d/", mode=0o555), x(b"d/f", b"1"), x(b"d/f", b"2")),
        {b"d": 0o555},
    ),
    "root-without-permissions": Unpacked(
        {b"f": b"x"}, env(directory(b"./", mode=0), member(b"f", b"x"))
    ),
    "owner-by-number-and-name": Unpacked(
        {b"f": b"x"}, env(member(b"f", b"x", uid=4242, gid=4242, uname=b"nobody"))
    ),
}

OURS = b".poncho_package_run_"
MARK, UNDER_WAY, MANIFEST = OURS + b"expanded", OURS + b"unpacking", OURS + b"manifest"

RESERVED: dict[str, Case] = {
    "marker-as-file": Unpacked(GOOD_TREE, env(x(MARK, b"{}"), member(b"f", b"x"))),
    "marker-as-directory": Unpacked({}, env(directory(MARK + b"/"))),
    "marker-as-symlink": Unpacked({}, lambda w: environment(symlink(MARK, w.secret))),
    "marker-as-hard-link": Unpacked({}, env(hardlink(MARK, b"conda-meta/history"))),
    "marker-behind-dots": Unpacked({}, env(x(b"././/" + MARK))),
    "marker-as-parent": Unpacked({}, env(x(MARK + b"/f"), symlink(MARK + b"/d/s", b"/"))),
    "marker-as-parent-of-the-outside": Refused(MARK, env(x(MARK + b"/../../outside/evil"))),
    "marker-then-truncated": Refused(
        b"", raw(environment(x(MARK, b"{}"))[: -len(END)] + header(b"f", size=99))
    ),
    "unpacking-marker-as-file": Unpacked({}, env(x(UNDER_WAY))),
    "unpacking-marker-as-symlink": Unpacked(
        {}, lambda w: environment(symlink(UNDER_WAY, w.secret))
    ),
    "unpacking-marker-as-directory": Unpacked({}, env(directory(UNDER_WAY + b"/"))),
    "unpacking-marker-as-hard-link-target": Unpacked({}, env(hardlink(b"h", UNDER_WAY))),
    "manifest-as-directory": Unpacked({}, env(directory(MANIFEST + b"/"))),
    "manifest-as-file": Unpacked({}, env(x(MANIFEST))),
    "manifest-as-symlink": Unpacked({}, lambda w: environment(symlink(MANIFEST, w.secret))),
    "manifest-as-hard-link-target": Unpacked({}, env(hardlink(b"h", MANIFEST))),
    "manifest-overwritten-through-a-hard-link": Unpacked(
        {}, env(pax({b"mtime": b"1"}), hardlink(b"h", MANIFEST, size=4) + pad(b"evil"))
    ),
    "target-outside-through-a-hard-link": Refused(b"h", env(hardlink(b"h", b"../outside/" + MARK))),
    "deeper": Unpacked(
        {b"share": None, b"share/ok": b"x"},
        env(
            x(b"share/" + MARK),
            x(b"share/" + OURS + b"x/y/z"),
            symlink(b"share/" + MANIFEST, b"/"),
            hardlink(b"share/" + MARK + b".new", b"conda-meta/history"),
            hardlink(b"share/h", b"share/" + MARK),
            member(b"share/ok", b"x"),
        ),
    ),
    "below-a-top-directory": Unpacked(
        {b"env": DIR}, env(directory(b"env"), x(b"env/" + OURS + b"relocating.plan"))
    ),
    # As some file systems compare names: without regard to case, composed otherwise, or to
    # characters that show nothing.
    "in-capitals": Unpacked({}, env(x(MARK.upper()), x(b".Poncho_Package_Run_Manifest/f"))),
    "in-full-width": Unpacked({}, env(x(MARK.replace(b"p", "\uff50".encode())))),
    "with-a-kelvin-sign": Unpacked({}, env(x(MARK.replace(b"k", "\u212a".encode())))),
    "with-a-dot-leader": Unpacked({}, env(x("\u2024".encode() + MARK[1:]))),
    "with-what-shows-nothing": Unpacked(
        {},
        env(*(x(MARK[:3] + c.encode() + MARK[3:]) for c in "\u200b\u200d\u00ad\u034f\ufe0f\ufeff")),
    ),
    "begins-with-what-shows-nothing": Unpacked({}, env(x("\u200c".encode() + MARK))),
    "is-not-utf-8": Unpacked({}, env(x(b"\xff" + MARK))),
    "ends-otherwise": Unpacked({}, env(x(MARK + b" "), x(MARK + b"::$DATA"))),
    "not-ours": Unpacked(
        {
            b"poncho_package_run": b"x",
            b".poncho": b"x",
            "\u00e9.poncho".encode(): b"x",
            b"a.poncho_package_run_x": b"x",
        },
        env(
            member(b"poncho_package_run", b"x"),
            member(b".poncho", b"x"),
            member("\u00e9.poncho".encode(), b"x"),
            member(b"a.poncho_package_run_x", b"x"),
        ),
    ),
}

OLD = b"/opt/placeholder"


def unpacker(body: bytes) -> bytes:
    """A ``bin/conda-unpack`` with this text in place of its records."""
    script = (
        b"#!/usr/bin/env python\nimport os\n\n"
        + body
        + b"\n\nif __name__ == '__main__':\n    pass\n"
    )
    return member(b"bin/conda-unpack", script, mode=0o755)


def records(*lines: bytes) -> bytes:
    return unpacker(b"_prefix_records = [\n" + b",\n".join(lines) + b"\n]")


def record(path: bytes, placeholder: bytes = OLD, mode: bytes = b"text") -> bytes:
    return records(b"(%r, %r, %r)" % (path.decode(), placeholder.decode(), mode.decode()))


def unpacked_script(script: bytes) -> dict[bytes, Union[bytes, Link, Same, None]]:
    return {b"bin/conda-unpack": script[BLOCK:].rstrip(b"\0")}


BEFORE = b"raise SystemExit(9)\n_prefix_records = [\n]"


def code(expression: str) -> Build:
    """Records with an expression that leaves ``evil`` outside when it is evaluated."""
    return lambda w: environment(
        member(b"f", OLD),
        records(expression.replace("EVIL", repr(os.fsdecode(w.outside + b"/evil"))).encode()),
    )


RECORDS: dict[str, Case] = {
    "path-outside": Refused(
        b"../outside/secret.txt", env(record(b"../outside/secret.txt", b"secret"))
    ),
    "path-outside-by-detour": Refused(
        b"bin/../../outside", env(record(b"bin/../../outside/secret.txt", b"secret"))
    ),
    "path-absolute": Refused(
        b"outside/secret.txt", lambda w: environment(record(w.secret, b"secret"))
    ),
    "path-of-a-link-outside": Refused(
        b"s", lambda w: environment(symlink(b"s", w.secret), record(b"s", b"secret"))
    ),
    "path-below-a-link-outside": Refused(
        b"d/secret.txt",
        lambda w: environment(symlink(b"d", w.outside), record(b"d/secret.txt", b"secret")),
    ),
    "path-of-a-directory": Refused(b"conda-meta", env(record(b"conda-meta"))),
    "path-missing": Unpacked(unpacked_script(record(b"missing")), env(record(b"missing"))),
    "path-with-nul": Refused(b"", env(records(b"('f\\0g', 'secret', 'text')"))),
    "path-with-a-lone-surrogate": Refused(b"", env(records(b"('\\ud800', 'secret', 'text')"))),
    "path-too-long": Refused(b"", env(record(b"n" * 300))),
    "path-of-the-unpacking-marker": Refused(UNDER_WAY, env(record(UNDER_WAY))),
    "code-import": Refused(b"", code("('f', 'x', __import__('os').system('touch ' + EVIL))")),
    "code-open": Refused(b"", code("('f', open(EVIL, 'w').name, 'text')")),
    "code-comprehension": Refused(b"", code("*[('f', open(EVIL, 'w').name, 'text') for _ in '1']")),
    "code-f-string": Refused(b"", code("('f', f'{open(EVIL, \"w\").name}', 'text')")),
    "code-lambda": Refused(b"", code("(lambda: open(EVIL, 'w'))()")),
    "code-before-the-records": Unpacked(unpacked_script(unpacker(BEFORE)), env(unpacker(BEFORE))),
    "power-of-a-number": Refused(b"", env(records(b"('f', 9**9**9**9, 'text')"))),
    "string-times-a-billion": Refused(b"", env(records(b"('f', 'x' * 10**12, 'text')"))),
    "nested-100000-deep": Refused(b"", env(records(b"(" * 100_000 + b")" * 100_000))),
    "minus-100000-times": Refused(b"", env(records(b"-" * 100_000 + b"1"))),
    "pair": Refused(b"", env(member(b"f", OLD), records(b"('f', 'x')"))),
    "numbers": Refused(b"", env(records(b"(1, 2, 3)"))),
    "bytes": Refused(b"", env(member(b"f", OLD), records(b"(b'f', b'/opt', b'text')"))),
    "unknown-mode": Refused(b"", env(member(b"f", OLD), record(b"f", OLD, b"exec"))),
    "empty-placeholder-text": Refused(b"", env(member(b"f", OLD), record(b"f", b""))),
    "empty-placeholder-binary": Refused(
        b"", env(member(b"f", OLD + b"\0"), record(b"f", b"", b"binary"))
    ),
    "list-not-closed": Refused(b"", env(unpacker(b"_prefix_records = [\n('f', 'x', 'text')"))),
    "path-not-utf8": Unpacked(
        {b"caf\xe9": b"x", **unpacked_script(records(b"('caf\xe9', 'y', 'text')"))},
        env(member(b"caf\xe9", b"x"), records(b"('caf\xe9', 'y', 'text')")),
    ),
    "script-with-nul": Refused(b"", env(records(b"('f\0', 'x', 'text')"))),
    "script-is-a-link-outside": Unpacked(
        {b"bin/conda-unpack": Link(b"../../outside/records"), b"f": b"x"},
        env(symlink(b"bin/conda-unpack", b"../../outside/records"), member(b"f", b"x")),
    ),
    "placeholder-too-short": Refused(
        b"f", env(member(b"f", b"\0/p/lib\0"), record(b"f", b"/p", b"binary")), status=78
    ),
    "text-of-a-hard-linked-file": Unpacked(
        {
            b"a": b"no prefix here",
            b"b": Same(b"a"),
            **unpacked_script(record(b"b")),
        },
        env(member(b"a", b"no prefix here"), hardlink(b"b", b"a"), record(b"b")),
    ),
}

CASES: dict[str, Case] = {
    f"{group}-{name}": case
    for group, cases in {
        "name": TRAVERSAL,
        "symlink": SYMLINKS,
        "hard-link": HARD_LINKS,
        "size": SIZES,
        "damage": INTEGRITY,
        "pax": PAX,
        "special": SPECIAL,
        "reserved": RESERVED,
        "record": RECORDS,
    }.items()
    for name, case in cases.items()
}


def test_there_are_at_least_64_attacks() -> None:
    assert len(CASES) >= 64


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Files beside and above the target, which every attack would like to change."""
    for place in (tmp_path, tmp_path / "nest", tmp_path / "outside", tmp_path / "nest" / "outside"):
        place.mkdir(exist_ok=True)
        secret = place / "secret.txt"
        secret.write_bytes(b"secret\n")
        secret.chmod(0o640)
        os.utime(secret, ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
        os.symlink("secret.txt", place / "link-here")
        # Records that would write to the secret, for whoever follows a link to them.
        (place / "records").write_bytes(
            b"\n_prefix_records = [\n('f', 'x', 'text')\n]\n",
        )
        # An environment that its owner has not relocated yet.
        (place / "env" / "conda-meta").mkdir(parents=True)
        (place / "env" / "bin").mkdir()
        (place / "env" / "f").write_bytes(b"/old/prefix\n")
        (place / "env" / "bin" / "conda-unpack").write_bytes(
            b"\n_prefix_records = [\n('f', '/old/prefix', 'text')\n]\n"
        )
    target = tmp_path / "nest" / "target"
    target.mkdir()
    (tmp_path / "nest" / "outside").chmod(0o750)
    outside = os.fsencode(tmp_path / "nest" / "outside")
    yield World(outside, outside + b"/secret.txt", os.fsencode(target))
    open_up(tmp_path)


def open_up(path: Path) -> None:
    """Give every directory its owner's permissions, so that an ordinary user can remove it."""
    for each, names, _ in os.walk(path):
        for name in names:
            below = os.path.join(each, name)
            if not os.path.islink(below):
                os.chmod(below, stat.S_IMODE(os.lstat(below).st_mode) | 0o700)


def around(tmp_path: Path) -> dict[bytes, Entry]:
    """The world without the target's content and the temporary directory's.

    And without the time of the directory in which the target is made, beside what is private.
    """
    own = (b"nest/target", b"tmp")
    return {
        path: entry._replace(mtime_ns=0) if path == b"nest" else entry
        for path, entry in snapshot(tmp_path, ignore=()).items()
        if not any(path == name or path.startswith(name + b"/") for name in own)
    }


def describe(target: Path) -> tuple[Found, dict[bytes, int]]:
    """The tree in the terms of the table, and the modes; the tool's own markers left out."""
    tree: Found = {}
    modes: dict[bytes, int] = {}
    todo = [b""]
    root = os.fsencode(target)
    while todo:
        below = todo.pop()
        for name in os.listdir(os.path.join(root, below)):
            path = os.path.join(below, name)
            full = os.path.join(root, path)
            if path.startswith(OURS):
                continue
            status = os.lstat(full)
            assert status.st_uid == os.geteuid(), f"{path!r} belongs to {status.st_uid}"
            modes[path] = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                tree[path] = Link(os.readlink(full))
                continue
            if not status.st_mode & 0o400:
                os.chmod(full, 0o700)
            if stat.S_ISDIR(status.st_mode):
                tree[path] = DIR
                todo.append(path)
            else:
                assert stat.S_ISREG(status.st_mode), f"{path!r} has mode {status.st_mode:o}"
                tree[path] = Path(os.fsdecode(full)).read_bytes()
    return tree, modes


def expected(tree: Tree) -> Found:
    whole: Found = {b"conda-meta/history": b""}
    for path, content in tree.items():
        original = content
        if isinstance(content, Same):
            original = tree[content.path]
        assert not isinstance(original, Same)
        whole[path] = original
    for path in list(whole):
        parent = os.path.dirname(path)
        while parent:
            whole[parent] = DIR
            parent = os.path.dirname(parent)
    return whole


def check_refusal(result: "subprocess.CompletedProcess[bytes]", case: Refused) -> None:
    text = os.fsencode(refused(result, case.status))
    assert not any(byte < 0x20 or byte == 0x7F for byte in text[:-1]), text
    assert b"Traceback" not in text
    assert case.says in text


@pytest.mark.parametrize("name", CASES)
def test_hostile(
    name: str,
    world: World,
    tmp_path: Path,
    run: "Callable[..., subprocess.CompletedProcess[bytes]]",
) -> None:
    attack(CASES[name], True, world, tmp_path, run)


@pytest.mark.parametrize("name", CASES)
def test_hostile_to_a_temporary_directory(
    name: str,
    world: World,
    tmp_path: Path,
    run: "Callable[..., subprocess.CompletedProcess[bytes]]",
) -> None:
    attack(CASES[name], False, world, tmp_path, run)


def attack(
    case: Case,
    kept: bool,
    world: World,
    tmp_path: Path,
    run: "Callable[..., subprocess.CompletedProcess[bytes]]",
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(case.build(world))
    target = Path(os.fsdecode(world.target))
    before = around(tmp_path)
    words: list[Union[str, Path]] = ["-e", archive, "/bin/echo", "ran"]
    if kept:
        words[:0] = ["-d", target]
    result = run(*words, umask=0o022, cwd=tmp_path / "nest" / "outside")
    # Before all else, because it makes readable what is not.
    found, modes = describe(target) if kept and target.exists() else ({}, {})
    assert around(tmp_path) == before
    assert os.listdir(tmp_path / "tmp") == []
    if isinstance(case, Refused):
        check_refusal(result, case)
        assert not target.exists() or os.listdir(target) == []
        return
    assert (result.returncode, result.stdout, result.stderr) == (0, b"ran\n", b"")
    if kept:
        assert found == expected(case.tree)
        assert case.modes.items() <= modes.items()
        for path, content in case.tree.items():
            if isinstance(content, Same):
                assert os.path.samestat(
                    os.lstat(target / os.fsdecode(path)),
                    os.lstat(target / os.fsdecode(content.path)),
                )
        assert not any(mode & 0o7000 for mode in modes.values())
        marker = os.lstat(target / os.fsdecode(MARK))
        assert stat.S_ISREG(marker.st_mode) and marker.st_nlink == 1
        assert json.loads((target / os.fsdecode(MARK)).read_bytes())


@pytest.mark.parametrize("existing", [True, False], ids=["empty", "absent"])
def test_a_refused_directory_can_be_used_again(
    existing: bool,
    tmp_path: Path,
    tiny: Path,
    run: "Callable[..., subprocess.CompletedProcess[bytes]]",
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(environment(x(b"a/b/c"), symlink(b"s", b"a"), x(b"s/evil")))
    target = tmp_path / "parent" / "target"
    if existing:
        target.mkdir(parents=True)
    assert run("-d", target, "-e", archive, "true").returncode == 65
    assert not target.exists() or os.listdir(target) == []
    assert run("-d", target, "-e", tiny, "hello", check=True).stdout


@pytest.mark.parametrize(
    "name",
    [
        "damage-gzip-bad-crc",
        "damage-bzip2-truncated",
        "damage-xz-bad-check",
        "damage-no-end-marker",
        "damage-truncated-in-data",
        "damage-bad-checksum-in-the-middle",
        "damage-noise",
        "pax-no-newline",
        "size-not-octal",
        "name-CVE-2007-4559-parent",
        "record-pair",
    ],
)
def test_refusal_names_the_archive(
    name: str,
    world: World,
    tmp_path: Path,
    run: "Callable[..., subprocess.CompletedProcess[bytes]]",
) -> None:
    archive = tmp_path / "the-archive"
    archive.write_bytes(CASES[name].build(world))
    refused(run("-d", tmp_path / "nest" / "target", "-e", archive, "true"), 65, str(archive))

"""Decode a compressed file to nothing: the limit of every unpacker with one core.

usage: decode.py gz|bz2|xz FILE
"""

import bz2
import lzma
import sys
import typing
import zlib

# Measured on gzip: of 16 KiB to 4 MiB, this block inflates fastest.
BLOCK = 1 << 18

new: typing.Any = {"gz": lambda: zlib.decompressobj(31), "bz2": bz2.BZ2Decompressor,
       "xz": lzma.LZMADecompressor}[sys.argv[1]]
with open(sys.argv[2], "rb") as stream:
    decoder = new()
    block = stream.read(BLOCK)
    while block:
        decoder.decompress(block)
        if decoder.eof:
            block = decoder.unused_data or stream.read(BLOCK)
            if block:
                decoder = new()
            continue
        block = stream.read(BLOCK)
    if not decoder.eof:
        sys.exit("decode.py: cut short: " + sys.argv[2])

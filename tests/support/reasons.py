"""Why an archive is refused that GNU tar, bsdtar or unzip unpacks: the README's list.

The names are what tests call the reasons; the README shows the texts, in this order.
"""

import re
from typing import NamedTuple

HEADING = "### Archives that tar accepts and this refuses"


class Reason(NamedTuple):
    """``text``: the README's line; ``said``: what the message of such a refusal matches."""

    text: str
    said: str


REASONS = {
    "ABSOLUTE": Reason(
        "an absolute name, or one with `..`, which tar rewrites",
        "is an absolute path|leads out through '..'",
    ),
    "THROUGH": Reason(
        "a member below a symlink, or in the place of a directory, of the same archive",
        "would be written through it|lies below a member|takes the place of another member",
    ),
    "SPECIAL": Reason("a device, a fifo or a socket", "device|a fifo"),
    "SPARSE": Reason("a sparse file", "a sparse file"),
    "TYPE": Reason("a member of a type that makes no file", "a member of type"),
    "HARD_LINK": Reason(
        "a hard link to what is no file of the archive", "is a hard link|links to itself"
    ),
    "NUL": Reason("a NUL in a name", "a NUL"),
    "LONG": Reason("a name of 4,096 bytes and more", "longer than any path"),
    "NUMBER": Reason(
        "a time or a size that is no number, is negative, or has more than 64 bits",
        "for its (size|mtime|mode)|more than 64 bits|the time|has the size|claims -",
    ),
    "EXTENDED": Reason(
        "an extended header of more than 1 MiB, or without a member behind it",
        "an extended header",
    ),
    "UNENDED": Reason("no end-of-archive marker: the rest may be missing", "end-of-archive marker"),
    "OURS": Reason(
        "a directory where this tool has a file of its own", "where this tool has a file"
    ),
    "BEHIND": Reason(
        "bytes behind a compressed stream that are neither zeros nor another such stream",
        "bytes that are no gzip member|(bzip2|xz) says|zstd stream cannot be decoded",
    ),
    "WINDOW": Reason(
        "an xz dictionary or a zstd window of more than 128 MiB", "at most 128 MiB are granted"
    ),
    "ZIP_BACKSLASH": Reason("a zip from MS-DOS with backslashes in its names", "has a backslash"),
    "ZIP_DISAGREES": Reason(
        "a zip whose directory disagrees with its members' headers or with what they hold",
        "in its own header|no header where|fails its checksum|than its header says",
    ),
    "ZIP_DESCRIPTOR": Reason("a zip with a wrong or a missing data descriptor", "data descriptor"),
    "ZIP_EXTRA": Reason(
        "a zip with a damaged extra field", "damaged extra field|damaged zip64 field"
    ),
    "ZIP_BEHIND": Reason(
        "a zip with bytes behind its end, or with two ends", "bytes after its end|two end records"
    ),
    "ZIP_OVERLAP": Reason(
        "a zip whose members overlap, or more than 262,144 of which are in another order than its "
        "directory",
        "overlap|reaches into|in no order",
    ),
    "ZIP_METHOD": Reason("a zip compressed otherwise than by deflate", "not deflate"),
    "ZIP_ENCRYPTED": Reason("an encrypted zip", "is encrypted"),
    "ZIP_KIND": Reason(
        "a zip with a directory that has content, or with a symlink of no bytes or over 4,095",
        "a directory with content|is a symlink of|named as a directory",
    ),
}


def reason_of(line: str) -> str:
    """The name of the reason that a refusal gives; empty if it is none of the list."""
    return next((name for name, reason in REASONS.items() if re.search(reason.said, line)), "")

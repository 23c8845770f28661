"""The README's fenced blocks, so that tests run the text itself and it cannot go stale."""

import re
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parents[2]

# An HTML comment right above a block names the test that runs it.
_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<test>\S+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its language as written, its lines, the test named above it (or "")."""

    language: str
    text: str
    test: str


def pages() -> str:
    """The README, all of it."""
    return "\n".join(path.read_text() for path in sorted(TOP.glob("README*.md")))


def blocks() -> list[Block]:
    """Every fenced block, in order."""
    return [
        Block(found["language"], found["text"], found["test"] or "")
        for found in _BLOCK.finditer(pages())
    ]


def block(test: str) -> str:
    """The text of the one block that the comment above it says ``test`` runs."""
    [found] = [each.text for each in blocks() if each.test == test]
    return found


def tables() -> list[list[list[str]]]:
    """Every table: its rows, each a list of its cells; the heading comes first, no rule."""
    found: list[list[list[str]]] = [[]]
    for line in pages().splitlines():
        if line.startswith("|"):
            # A bar inside code is written with a backslash before it.
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if set("".join(cells)) - set("-: "):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]

"""The code blocks of a Markdown page, and how they are run.

A page is run from top to bottom, in one namespace, as a reader would type it in. Two marks say what belongs to a
``python`` block:

- ``<!-- server: Reply(...), Reply(...) -->`` on the line before it is what the server answers to it. The replies are
  read as Python, and each must be asked for.
- A ``text`` block right after it is what it prints; ``...`` stands for anything.

A ``py`` block is Python too, of another package's users: tests/peers runs it where that package is installed.

A page on which there is a ``def test_`` is a test file instead, and pytest runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z-]+)(?:: (?P<said>[^\n]*))? -->\n)?"
    r"^```(?P<language>\S*)\n(?P<code>.*?)^```$"
    r"(?:\n+^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@attrs.frozen
class Block:
    """A fenced block of a page.

    Attributes:
        page: The page's file.
        line: The number of its first line of code.
        language: What the fence says, such as ``python``.
        code: What is in it.
        mark: The word of the comment before it; None where there is none.
        said: What follows that word and a colon; "" where nothing does.
        printed: The ``text`` block right after it, or None.
    """

    page: Path
    line: int
    language: str
    code: str
    mark: str | None
    said: str
    printed: str | None

    @property
    def placed(self) -> str:
        """The code, moved to the line at which it stands in the page, so that a traceback names that line."""
        return "\n" * (self.line - 1) + self.code


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, but those of Sphinx."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        if found["language"].startswith("{"):
            continue
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(
            page, line, found["language"], found["code"], found["mark"], found["said"] or "", found["printed"]
        )  # fmt: skip


def python_blocks(page: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    return [block for block in blocks(page) if block.language == "python"]


def is_test_file(page: Path) -> bool:
    """Return whether the blocks of a page are for pytest."""
    return any("def test_" in block.code for block in python_blocks(page))


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, row by row, without its head."""
    section = page.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]

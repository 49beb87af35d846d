"""The documentation: every Python block in it runs, and prints what it says that it prints."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chanstream.testing import Reply
from tests.docs.blocks import PAGES, Block, python_blocks
from tests.docs.conftest import Internet

RUN = [page for page in PAGES if any(not block.is_for_pytest for block in python_blocks(page))]
TESTED = [page for page in PAGES if any(block.is_for_pytest for block in python_blocks(page))]


def scripted(block: Block) -> tuple[Reply | str, ...]:
    """Return the replies that the comment before a block asks for."""
    if block.mark != "server":
        return ()
    return tuple(eval(f"[{block.said}]", {"Reply": Reply, "inf": float("inf")}))


def run(block: Block, names: dict[str, Any], internet: Internet, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block, and check what it prints and asks."""
    where = f"{block.page.name}, line {block.line}"
    internet.replies.extend(scripted(block))
    exec(compile(block.placed, str(block.page), "exec"), names)
    printed = capsys.readouterr().out
    assert not internet.replies, f"{where}: the block asked less than the comment before it says"
    if block.printed is not None:
        matches = doctest.OutputChecker().check_output(block.printed, printed, doctest.ELLIPSIS)
        assert matches, f"{where}: it printed:\n{printed}"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page(page: Path, internet: Internet, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python blocks of a page, run from top to bottom, work and print what the page says."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        if not block.is_for_pytest:
            run(block, names, internet, capsys)
    names.clear()


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.stem)
def test_the_tests_of_a_page(page: Path, tmp_path: Path) -> None:
    """The tests that a page shows pass when pytest is given them as one file."""
    file = tmp_path / "test_page.py"
    file.write_text("\n\n".join(block.code for block in python_blocks(page) if block.is_for_pytest), "utf-8")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", tmp_path, file],
        cwd=root, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

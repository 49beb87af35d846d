"""The documentation: every Python block in it runs, and prints what it says that it prints."""

from __future__ import annotations

import doctest
import gc
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chanstream import ChanstreamError, Timeout
from chanstream.dialects import DIALECTS
from chanstream.testing import Reply
from tests.conftest import SCALE, Link
from tests.docs.blocks import PAGES, ROOT, Block, is_test_file, python_blocks, table
from tests.docs.conftest import Internet

TESTED = [page for page in PAGES if is_test_file(page)]
RUN = [page for page in PAGES if page not in TESTED and python_blocks(page)]

DIALECT_ROWS = table(ROOT / "docs" / "tutorial.md", "Other servers")
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:chanstream", "-p", "chanstream.testing.plugin")
"""The last two: the plugin of this checkout, whether one is installed or not."""
FAULTS = table(ROOT / "docs" / "testing.md", "A catalogue of faults")


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


@pytest.mark.usefixtures("nothing_left", "usual_log")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page(
    page: Path, internet: Internet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The Python blocks of a page, run from top to bottom, work and print what the page says."""
    monkeypatch.chdir(tmp_path)  # for what a page writes
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        run(block, names, internet, capsys)
    names.clear()
    gc.collect()  # the page does not close its clients; what is left of one is for the collector


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.stem)
def test_the_tests_of_a_page(page: Path, tmp_path: Path) -> None:
    """A page that shows tests is a test file that pytest passes, with the plugin that comes with chanstream."""
    file = tmp_path / "test_page.py"
    file.write_text("\n\n".join(block.code for block in python_blocks(page)), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *PLUGINS, "--rootdir", tmp_path, file],
        cwd=ROOT, env={**os.environ, "no_proxy": "*"}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("fault", "reply", "end"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_fault_of_the_catalogue(fault: str, reply: str, end: str, plain: Link) -> None:
    """Each reply of the catalogue does to a stream what the page says."""
    scripted = eval(reply.strip("`"), {"Reply": Reply, "math": math})
    clocks = Timeout(first_chunk=0.5 * SCALE, idle=0.5 * SCALE)
    try:
        *_, last = plain.stream(scripted, timeout=clocks)
    except ChanstreamError as error:
        told = f"`{type(error).__name__}`, raised"
    else:
        told = f"`{type(last.error).__name__}`" if last.error else "the last chunk"
        assert last.is_last_chunk is (last.error is None)
    assert told == end


def test_the_dialects_of_the_tutorial() -> None:
    """The tutorial's table of dialects is that of the library."""
    told = [[cell.removesuffix(" (the default)") for cell in row] for row in DIALECT_ROWS]
    assert told == [[f'`"{d.name}"`', f"`{d.base_url}`", f"`{d.key_variable}`"] for d in DIALECTS.values()]

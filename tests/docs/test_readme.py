"""The README: its first example is what it seems, its two commands can be found, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import chanstream
from tests.docs.blocks import PAGES, ROOT, Block, blocks, python_blocks
from tests.docs.conftest import Internet

README = ROOT / "README.md"
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))]


def marked(mark: str) -> list[Block]:
    """Return the README's blocks that follow a comment."""
    return [block for block in blocks(README) if block.mark == mark]


@pytest.mark.usefixtures("nothing_left")
def test_the_first_example(internet: Internet, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example, on its own, asks Mistral with the key of the environment and prints the answer."""
    internet.replies.append("Hello from far away.")
    exec(python_blocks(README)[0].code, {})
    (asked,) = internet.secure.requests
    assert (asked.headers["Host"], asked.path) == ("api.mistral.ai", "/v1/chat/completions")
    assert asked.headers["Authorization"] == "Bearer a-key"
    assert asked.json == {
        "model": "mistral-small-latest",
        "messages": [{"role": "user", "content": "Tell me a joke."}],
        "stream": True,
    }
    assert re.fullmatch(r"Hello from far away\.\n8 tokens in \d\.\d\d s\n", capsys.readouterr().out)


def test_the_first_example_is_short() -> None:
    """The first example has twelve lines at most, blank ones included."""
    assert len(python_blocks(README)[0].code.splitlines()) <= 12


@pytest.mark.parametrize("mark", ["demo-command", "test-command"])
def test_a_command(mark: str) -> None:
    """Each of the two commands is one line of bash, in one place: .ci/run reads them from there and runs them."""
    (block,) = marked(mark)
    assert block.language == "bash"
    assert block.code.count("\n") == 1


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.stem} {link}" for page, link in LINKS])
def test_a_link(page: Path, link: str) -> None:
    """A link to a file of the project leads to one, and to a heading that is there."""
    parts = urlsplit(link)
    if parts.scheme:
        assert parts.scheme == "https"
        return
    target = page.parent / parts.path if parts.path else page
    assert target.exists()
    if parts.fragment:
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        assert parts.fragment in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", sorted(set(chanstream.__all__) - {"__version__"}))
def test_the_reference_has_every_name(name: str) -> None:
    """Every public name is in the reference."""
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert re.search(rf"^\.\. auto(class|data|exception|function):: {name}(\(.*\))?$", reference, re.MULTILINE)

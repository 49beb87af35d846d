"""The page for those who come from another package: the code that it shows of that package works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque

import pytest

from chanstream.testing import Reply, StreamServer
from tests.docs.blocks import ROOT, Block, blocks
from tests.peers.conftest import Peer

BLOCKS = [block for block in blocks(ROOT / "docs" / "coming-from.md") if block.language == "py"]

# The blocks of one package are run from top to bottom, as ours are. Mistral's package has no variable for its server.
_RUN = """
import functools, json, os, sys
url, codes = json.load(sys.stdin)
os.environ.update(OPENAI_BASE_URL=url + "/v1", GROQ_BASE_URL=url)
os.environ.update({name + "_API_KEY": "a-key" for name in ("OPENAI", "GROQ", "MISTRAL")})
if sys.argv[1] == "mistralai":
    from mistralai import client
    client.Mistral = functools.partial(client.Mistral, server_url=url)
names = {"os": os, "__name__": "__main__"}
for code in codes:
    exec(compile(code, "coming-from.md", "exec"), names)
"""


def test_every_block_says_whose_it_is() -> None:
    """Each block of other packages' code names its package."""
    assert {block.mark for block in BLOCKS} == {"groq", "mistralai", "openai"}


def test_their_code(peer: Peer) -> None:
    """The code that the page shows of a package runs with that package, and asks what the page says that it asks."""
    theirs = [block for block in BLOCKS if block.mark == peer.name]
    replies: deque[Reply | str] = deque()
    for block in theirs:
        replies.extend(eval(f"[{block.said}]", {"Reply": Reply}))
    with StreamServer(reply_with=lambda _: replies.popleft()) as server:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, peer.name], input=json.dumps([server.url, [block.placed for block in theirs]]),
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not replies


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_it_is_python(block: Block) -> None:
    """Each block compiles, where its package is not installed too."""
    compile(block.placed, "coming-from.md", "exec")

"""The official packages, each in a process of its own that serves all tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest

PROGRAM = Path(__file__).with_name("peer.py")


@attrs.frozen
class Peer:
    """One of the packages.

    Attributes:
        name: Its name.
        process: Where it runs.
    """

    name: str
    process: subprocess.Popen[str]

    @property
    def dialect(self) -> str:
        """What the servers that it is made for take."""
        return {"mistralai": "mistral"}.get(self.name, self.name)

    def ask(self, url: str, stream: bool, request: dict[str, Any]) -> dict[str, Any]:
        """Return its answer to a request, whose options are in its own words."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"url": url, "stream": stream, "request": request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{self.name} ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session", params=["groq", "mistralai", "openai"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Each of the packages; skipped where it is not installed, which the extra ``peers`` would do."""
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: pip install 'chanstream[peers]'")
    with subprocess.Popen(
        [sys.executable, PROGRAM, request.param], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Peer(request.param, process)

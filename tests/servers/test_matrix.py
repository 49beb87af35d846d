"""What a browser sees of an answer, and a model of a browser that leaves: each framework in each server."""

from __future__ import annotations

import json
import statistics
import time

import pytest

from tests.conftest import SCALE, USUALLY

from .browser import PATIENCE
from .process import COMMANDS, Server
from .upstream import Upstream

pytestmark = pytest.mark.slow

FRAMEWORKS = ("wsgi", "flask", "django", "bottle", "proxy")

PAIRS = [(server, name) for server in COMMANDS for name in FRAMEWORKS if server != "runserver" or name == "django"]
"""All that go together: Django's own server serves Django."""

FEW = [pair for pair in PAIRS if pair[0] == "gunicorn-gthread" or pair[1] == "django"]
"""Each server and each framework at least once, for what takes its time."""

PIECES = ("Zwölf ", "Boxkämpfer", " 跨过", " \U0001f94a\U0001f3fd", "\u2028", "\r\n\n", "data: ", "e\u0301")
"""An answer in scripts of one to four bytes for a letter, with what ends lines and begins events."""

HEARTBEAT = 1.0


def pairs(which: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Return what runs a test with pairs of a server and a framework."""
    return pytest.mark.parametrize(("server", "framework"), which, indirect=["server"])


@pairs(PAIRS)
def test_tokens_one_by_one(server: Server, framework: str, upstream: Upstream) -> None:
    """The head is there before the model speaks, and each token before the next is said; the text is exact."""
    delays = []
    with server.ask(framework) as browser:
        assert browser.head.startswith("HTTP/1.1 200 OK")
        for piece in PIECES:
            said = time.monotonic()
            upstream.say(piece)
            assert browser.piece() == piece
            delays.append(time.monotonic() - said)
        upstream.end()
        browser.rest()
        assert browser.text == "".join(PIECES)
    assert statistics.median(delays) < USUALLY  # from the model's side of the application to the browser's
    assert upstream.busy(0, SCALE)


@pairs(PAIRS)
def test_nothing_gathers_or_keeps(server: Server, framework: str, upstream: Upstream) -> None:
    """The head that arrives forbids to cache, to compress and to gather, and is an event stream's."""
    with server.ask(framework, "error") as browser:
        head = browser.head.lower()
    assert "content-type: text/event-stream" in head
    assert "cache-control: no-store, no-transform" in head
    assert "x-accel-buffering: no" in head
    assert "content-length" not in head


@pairs(FEW)
def test_error(server: Server, framework: str, upstream: Upstream) -> None:
    """An error in the middle is the last event, in the server's words, after the text so far; no end follows."""
    with server.ask(framework, "error") as browser:
        assert browser.piece() == "Half"
        (told,) = browser.rest()
    kind, _, data = told.partition(": ")
    assert kind == "error"
    assert json.loads(data)["error"]["message"] == "The model fell over."
    assert upstream.busy(0, SCALE)


@pairs(FEW)
def test_leaving_in_the_middle(server: Server, framework: str, upstream: Upstream) -> None:
    """A browser that leaves while the model speaks frees the model within a second."""
    with server.ask(framework) as browser:
        assert browser.head
        upstream.say("a")
        assert browser.piece() == "a"
    left = time.monotonic()
    while not upstream.busy(0, 0.05) and time.monotonic() < left + SCALE:
        upstream.say("b")
    assert upstream.open_connections == 0


@pairs(FEW)
def test_leaving_in_silence(server: Server, framework: str, upstream: Upstream) -> None:
    """A browser that leaves while the model is silent frees it within a heartbeat and a second."""
    with server.ask(framework) as browser:
        assert browser.head  # and the beginning of the body: the next heartbeat is as far away as can be
        assert upstream.open_connections == 1
    assert upstream.busy(0, HEARTBEAT + SCALE)


@pairs([pair for pair in PAIRS if pair[1] in ("proxy", "django")])
def test_leaving_before_the_answer(server: Server, framework: str, upstream: Upstream) -> None:
    """So does one who leaves before the model's server has answered at all, where a view has a context for that."""
    with server.ask(framework, "think"):
        assert upstream.busy(1, PATIENCE)
    assert upstream.busy(0, HEARTBEAT + SCALE)

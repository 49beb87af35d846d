"""Many readers at once, each with an answer of its own; and how many are served at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.conftest import SCALE

from .browser import PATIENCE, read_all
from .process import Server
from .upstream import Upstream

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """Let this process have the two sockets that each stream takes here."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("server", "count"), [("gunicorn-gthread", 100), ("gunicorn-gevent", 500)], indirect=["server"]
)
@pytest.mark.parametrize("framework", ["flask", "proxy"])
def test_all_get_all(server: Server, framework: str, count: int, upstream: Upstream) -> None:
    """So many answers are under way at the same time, and each is its own and whole."""
    with contextlib.ExitStack() as exits:
        browsers = [exits.enter_context(server.ask(framework, f"echo {number}")) for number in range(count)]
        assert upstream.busy(count, PATIENCE)
        for number, browser in enumerate(browsers):
            assert browser.piece() == f"echo {number}"
        for word in (" one", " two", " three", " vier", " пять"):
            upstream.say(word)
        upstream.end()
        read_all(browsers)
        wrong = [n for n, browser in enumerate(browsers) if browser.text != f"echo {n} one two three vier пять"]
    assert not wrong


@pytest.mark.parametrize("server", ["gunicorn-gthread", "gunicorn-gevent"], indirect=True)
def test_all_leave(server: Server, upstream: Upstream) -> None:
    """A hundred that leave at the same time free the model as fast as one."""
    browsers = [server.ask("wsgi") for _ in range(100)]
    assert upstream.busy(100, PATIENCE)
    for browser in browsers:
        assert browser.head
    for browser in browsers:
        browser.leave()
    assert upstream.busy(0, 1 + SCALE)


@pytest.mark.parametrize(
    ("server", "places"),
    [("gunicorn-sync", 2), ("gunicorn-gthread", 100), ("waitress", 8), ("uwsgi", 8)],
    indirect=["server"],
)
def test_one_more_waits(server: Server, places: int, upstream: Upstream) -> None:
    """Where all threads, or workers, are busy with streams, one more waits until others end, and is then served."""
    with contextlib.ExitStack() as exits:
        browsers = [exits.enter_context(server.ask("wsgi")) for _ in range(places)]
        assert upstream.busy(places, PATIENCE)
        late = exits.enter_context(server.ask("wsgi", "echo"))
        assert not upstream.busy(places + 1, 0.2)
        for browser in browsers:
            assert browser.head
        upstream.end()
        read_all(browsers)
        assert late.piece() == "echo"
        upstream.end()
        assert late.rest()[-1] == "[DONE]"

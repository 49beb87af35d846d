"""Workers that end and are replaced while answers are under way, and servers that are told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import within

from .browser import PATIENCE, read_all
from .process import COMMANDS, Server, missing
from .upstream import Upstream

GUNICORNS = ("gunicorn-sync", "gunicorn-gthread", "gunicorn-gevent")


pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> Iterator[Upstream]:
    """A model of the test's own."""
    with Upstream() as running:
        yield running


@contextlib.contextmanager
def started(name: str, model: Upstream, *options: str, **environment: str) -> Iterator[Server]:
    """Run a server of the test's own."""
    if reason := missing(name):
        pytest.skip(reason)
    patient = () if options or name == "uwsgi" else ("--graceful-timeout=30",)
    with Server(
        [*COMMANDS[name][:-1], *options, *patient, COMMANDS[name][-1]], model.url, FRAMEWORKS="wsgi,pid", **environment
    ) as server:
        yield server
        server.stop()
        assert "Traceback" not in server.log or "WORKER TIMEOUT" in server.log, server.log


def is_gone(pid: int) -> bool:
    """Return whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("name", [*GUNICORNS, "uwsgi"])
def test_reload(name: str, model: Upstream) -> None:
    """SIGHUP replaces the workers; no answer that ends in the grace time is lost or half, nor is a new question's.

    All with a client that was made before the fork, and was busy then; but for uWSGI, which forks behind Python's back.
    """
    busy = {} if name == "uwsgi" else {"ASK_AT_IMPORT": "yes"}
    with started(name, model, **busy) as server, server.ask("wsgi") as browser:
        old = server.pid()
        assert browser.head
        model.say("be")
        assert browser.piece() == "be"
        with Asking(server) as others:
            server.process.send_signal(signal.SIGHUP)
            if name != "uwsgi":  # whose new workers come when the old have ended
                assert within(PATIENCE, lambda: server.pid() != old)
            model.say("fo", "re")
            model.end()
            browser.rest()
            assert browser.text == "before"
            assert within(PATIENCE, lambda: is_gone(old) or (name == "uwsgi" and server.pid() != old))
        assert others.answers == {"I am here."}, server.log


@pytest.mark.parametrize("name", ["gunicorn-gthread", "gunicorn-gevent"])
def test_max_requests(name: str, model: Upstream) -> None:
    """A worker that has served enough is replaced; an answer that is under way at that moment is whole."""
    with started(name, model, "--max-requests=5", "--graceful-timeout=30") as server, server.ask("wsgi") as browser:
        old = server.pid()
        assert browser.head
        others = [server.ask("wsgi", "import") for _ in range(8)]  # some of them wait for the next worker
        assert within(PATIENCE, lambda: "Autorestarting" in server.log)
        model.say("the ", "text")
        model.end()
        browser.rest()
        assert browser.text == "the text"
        read_all(others)
        assert {other.text for other in others} == {"I am here."}
        assert within(PATIENCE, lambda: server.pid() != old)  # gevent's worker looks once a second whether to go


@pytest.mark.parametrize("name", ["gunicorn-gthread", "gunicorn-gevent"])
def test_grace_time_is_over(name: str, model: Upstream) -> None:
    """An answer that does not end in the grace time is cut, without a full stop; the model is free, the worker gone.

    A worker with threads is then held by them until the server finds after ``--timeout`` that it does not move.
    """
    with started(name, model, "--graceful-timeout=1", "--timeout=2") as server, server.ask("wsgi") as browser:
        old = server.pid()
        assert browser.head
        server.process.send_signal(signal.SIGHUP)
        assert browser.rest() == []
        assert model.busy(0, PATIENCE)
        assert within(PATIENCE, lambda: is_gone(old))
        with server.ask("wsgi", "import") as other:
            assert other.rest()[-1] == "[DONE]"


def test_exit(running: Callable[[str], Server]) -> None:
    """Every server ends when it is told to, though an answer is under way and its model is silent."""
    with contextlib.ExitStack() as exits:
        servers = [running(name) for name in COMMANDS if not missing(name)]
        for server in servers:
            assert exits.enter_context(server.ask("django")).head
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.wait(PATIENCE)
            assert "Traceback" not in server.log, server.log


def test_patched_after_the_import(model: Upstream) -> None:
    """Where gunicorn patches for gevent after a preloaded application has used its client, greenlets stream as ever."""
    command = [part for part in COMMANDS["gunicorn-gevent"] if not part.startswith("--config")]
    if reason := missing("gunicorn-gevent"):
        pytest.skip(reason)
    with Server(command, model.url, ASK_AT_IMPORT="yes", FRAMEWORKS="wsgi") as server:
        browsers = [server.ask("wsgi", "echo") for _ in range(50)]
        for browser in browsers:
            assert browser.piece() == "echo"  # so all are under way
        model.end()
        read_all(browsers)
        assert {browser.text for browser in browsers} == {"echo"}
        server.stop()
        assert "Traceback" not in server.log, server.log


class Asking:
    """Asks all the time, in a thread.

    Attributes:
        answers: What was answered, each different text once; bytes where there is no whole one.
    """

    def __init__(self, server: Server) -> None:
        self.answers: set[str | bytes] = set()
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            with self._server.ask("wsgi", "import") as browser:
                read_all([browser])
                self.answers.add(browser.text if b"[DONE]" in browser.data else browser.data)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

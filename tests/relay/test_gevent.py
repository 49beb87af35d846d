"""Bodies and the proxy in a process with gevent's monkey patching, served by gevent's own server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chanstream.testing import Reply, StreamServer
from tests.conftest import SCALE
from tests.relay.conftest import Site, request, until
from tests.relay.reading import read
from tests.relay.test_frameworks import body_in

pytest.importorskip("gevent")

HEARTBEAT = 0.2 * SCALE
READERS = 100

_SERVER = """
from gevent import monkey
monkey.patch_all()
import sys
from gevent.os import tp_read
from gevent.pywsgi import WSGIServer
from chanstream import Client
from chanstream.relay.wsgi import proxy
seconds = float(sys.argv[2])
with Client("", base_url=sys.argv[1], dialect="openai") as client:
    server = WSGIServer(("127.0.0.1", 0), proxy(client, heartbeat=seconds, body_timeout=seconds), log=None)
    server.start()
    print(server.server_port, flush=True)
    tp_read(0, 1)  # until its end, while the other greenlets go on
    server.stop()
"""


def answer(asked: str) -> Reply:
    """Return a reply: silence for some models, for others tokens in their own time."""
    return Reply("a b", stall_after=1) if asked == "silent" else Reply(["Grüß ", "Gott"] * 5, pace=0.01)


@pytest.fixture(scope="module")
def upstream() -> Iterator[StreamServer]:
    """A model's server."""
    with StreamServer(reply_with=lambda request: answer(request.json["model"])) as server:
        yield server


@pytest.fixture(scope="module")
def site(upstream: StreamServer) -> Iterator[Site]:
    """A proxy in front of it, in a process of its own."""
    command = [sys.executable, "-c", _SERVER, upstream.url, str(HEARTBEAT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Site(int(process.stdout.readline()))
        process.communicate(timeout=20 * SCALE)  # it ends by itself when its input does
        assert process.returncode == 0


def asking(model: str) -> bytes:
    """Return a request for a stream."""
    asked = {"model": model, "stream": True, "messages": [{"role": "user", "content": "?"}]}
    return request("/v1/chat/completions", json.dumps(asked).encode())


def test_many_readers(site: Site) -> None:
    """A hundred readers at once get their answers, whole and exact."""
    with contextlib.ExitStack() as exits:
        readers = [exits.enter_context(site.say(asking("any"))) for _ in range(READERS)]
        for reader in readers:
            seen = read([body_in(until(reader, b"\r\n0\r\n\r\n"))])
            assert (seen.text, seen.done) == ("Grüß Gott" * 5, True)


def test_readers_who_leave(site: Site, upstream: StreamServer) -> None:
    """Readers who leave silent models free them within a heartbeat."""
    before = len(upstream.requests)
    with contextlib.ExitStack() as exits:
        for reader in [exits.enter_context(site.say(asking("silent"))) for _ in range(20)]:
            until(reader, b'"a"')
        assert len(upstream.requests) == before + 20
        busy = upstream.open_connections
    assert upstream.wait_for(lambda server: server.open_connections <= busy - 20, HEARTBEAT + SCALE)


def test_a_body_that_stops(site: Site) -> None:
    """A body that is shorter than its length is refused in time, and no other reader waits for it."""
    stopped = request("/v1/chat/completions", b"{", "Content-Length: 100")
    with site.say(stopped) as connection:
        assert b"[DONE]" in site.answer(asking("any"))
        assert b" 408 " in until(connection, b"}}")

"""Web servers for the tests of bodies and of the proxy: real ones, on real sockets."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import attrs
import pytest

from tests.conftest import SCALE

_LOOK = 0.01
"""Seconds after which a server looks whether it shall end."""

Serve = Callable[[Any], "Site"]


class _Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@attrs.frozen
class Site:
    """An application that is being served."""

    port: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """Return a connection to it; one that hangs fails its test."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20 * SCALE)

    def say(self, data: bytes) -> socket.socket:
        """Return a connection on which this was sent."""
        connection = self.connect()
        connection.sendall(data)
        return connection

    def answer(self, data: bytes, *, half_closed: bool = False) -> bytes:
        """Return all that is answered to some bytes."""
        with self.say(data) as connection:
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
            return to_end(connection)


def to_end(connection: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection, be it with a reset."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            data += more
    return data


def until(connection: socket.socket, wanted: bytes) -> bytes:
    """Return what comes until these bytes are in it."""
    data = b""
    while wanted not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


def request(path: str, body: bytes = b"", *head: str, method: str = "") -> bytes:
    """Return the bytes of a request, after which the connection ends."""
    lines = [f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1", "Host: here", "Connection: close", *head]
    if body:
        lines += ["Content-Type: application/json"] * (not any(line.startswith("Content-Type") for line in head))
        lines += [f"Content-Length: {len(body)}"] * (not any(line.startswith("Content-Length") for line in head))
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextlib.contextmanager
def _wsgiref(app: Any) -> Iterator[int]:
    with make_server("127.0.0.1", 0, app, _Threading, _Quiet) as server, _running(partial(server.serve_forever, _LOOK)):
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def _werkzeug(app: Any) -> Iterator[int]:
    serving = pytest.importorskip("werkzeug.serving")

    class Quiet(serving.WSGIRequestHandler):  # type: ignore[name-defined,misc]  # known at run time
        def log(self, *args: Any) -> None:
            pass

    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = False  # so that their end is waited for
    with _running(partial(server.serve_forever, _LOOK)):
        yield server.port
        server.shutdown()
    server.server_close()
    gc.collect()  # for each request it leaves a selector to the garbage collector


@contextlib.contextmanager
def _waitress(app: Any) -> Iterator[int]:
    waitress = pytest.importorskip("waitress.server")
    map_: dict[Any, Any] = {}
    server = waitress.create_server(app, map=map_, host="127.0.0.1", port=0, threads=4, channel_request_lookahead=1)
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            waitress.wasyncore.loop(timeout=_LOOK, map=map_, count=1)

    with _running(run):
        yield server.effective_port
        over.set()
    server.task_dispatcher.shutdown()
    for channel in list(map_.values()):
        channel.close()


@contextlib.contextmanager
def _running(serve: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


SERVERS = {"wsgiref": _wsgiref, "werkzeug": _werkzeug, "waitress": _waitress}


@pytest.fixture
def web_server() -> str:
    """Which server serves; tests of what differs among servers run with each."""
    return "werkzeug"


@pytest.fixture
def serve(web_server: str) -> Iterator[Serve]:
    """Serve applications until the test ends."""
    with contextlib.ExitStack() as exits:
        yield lambda app: Site(exits.enter_context(SERVERS[web_server](app)))

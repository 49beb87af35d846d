"""What the tests of the server share: a way to start one, plain or with TLS, and to talk to it byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any

import attrs
import pytest
import trustme

from chanstream.testing import Reply, StreamServer

STREAM = {"stream": True, "messages": [{"role": "user", "content": "Say it."}]}


@attrs.frozen
class Peers:
    """Starts servers, and clients of them that trust their certificate."""

    server_context: ssl.SSLContext | None
    client_context: ssl.SSLContext | None
    exits: contextlib.ExitStack

    def serve(self, *replies: Reply | str, **settings: Any) -> StreamServer:
        """Returns a running server, which ends with the test."""
        return self.exits.enter_context(StreamServer(*replies, tls=self.server_context, **settings))

    def dial(self, server: StreamServer, **settings: int) -> socket.socket:
        """Returns a connected socket; settings such as `SO_RCVBUF=4096` are made before connecting."""
        plain = self.exits.enter_context(socket.socket())
        for option, value in settings.items():
            plain.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        plain.settimeout(5)
        plain.connect((server.host, server.port))
        if self.client_context is None:
            return plain
        return self.exits.enter_context(self.client_context.wrap_socket(plain, server_hostname="127.0.0.1"))

    def http(self, server: StreamServer) -> HTTPConnection:
        """Returns an HTTP connection that is yet to connect."""
        address = server.host, server.port
        if self.client_context is None:
            connection = HTTPConnection(*address, timeout=5)
        else:
            connection = HTTPSConnection(*address, timeout=5, context=self.client_context)
        self.exits.callback(connection.close)
        return connection

    def ask(self, server: StreamServer, request: object = STREAM) -> HTTPResponse:
        """Returns the response, its head read, to a request on a connection of its own."""
        connection = self.http(server)
        connection.request("POST", "/v1/chat/completions", json.dumps(request))
        return self.exits.enter_context(connection.getresponse())


def _plain(_: trustme.CA) -> tuple[None, None]:
    return None, None


def _tls(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1", "::1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The one that all certificates of these tests come from."""
    return trustme.CA()


@pytest.fixture
def plain() -> Iterator[Peers]:
    """Peers without TLS, for what does not differ."""
    with contextlib.ExitStack() as exits:
        yield Peers(None, None, exits)


@pytest.fixture(params=[_plain, _tls], ids=["plain", "tls"])
def peers(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[Peers]:
    """Peers without TLS, then with it."""
    contexts: Callable[[trustme.CA], tuple[ssl.SSLContext | None, ssl.SSLContext | None]] = request.param
    with contextlib.ExitStack() as exits:
        yield Peers(*contexts(authority), exits)

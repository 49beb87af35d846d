"""An internet for the documentation: whatever host its code asks, a scripted server answers.

The code is run as it stands. Two things around it are ours: the system's name resolution, which leads every name to
loopback, and the certificate authority that requests is told to trust. So ``Client()`` asks for
``https://api.mistral.ai`` over real TLS, and nothing of the library is replaced.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from chanstream.dialects import DIALECTS
from chanstream.testing import RecordedRequest, Reply, StreamServer

HTTPS = 443

_resolve = socket.getaddrinfo


@attrs.define
class Internet:
    """Two servers that stand for all: one for https, one for http.

    Attributes:
        replies: What they answer, first to last; a joke when there is nothing left.
        secure: The server for https. plain: that for http.
    """

    replies: deque[Reply | str] = attrs.field(factory=deque)
    secure: StreamServer = attrs.field(init=False)
    plain: StreamServer = attrs.field(init=False)

    def answer(self, request: RecordedRequest) -> Reply | str:
        """Return the next reply."""
        return self.replies.popleft() if self.replies else "Two threads walk into a bar. The barman says: in order!"

    def resolve(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        """Look a name up, as `socket.getaddrinfo`; addresses stay what they are."""
        if not isinstance(host, str) or host[:1].isdigit():
            return _resolve(host, port, *args, **kwargs)
        server = self.secure if port == HTTPS else self.plain
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (server.host, server.port))]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A TLS context that proves to be any of the dialects' hosts, and the file with the authority to trust."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    hosts = (dialect.base_url.split("/")[2] for dialect in DIALECTS.values())
    ca.issue_cert(*hosts).configure_cert(context)
    bundle = tmp_path_factory.mktemp("internet") / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    return context, bundle


@pytest.fixture
def usual_log() -> Iterator[None]:
    """Set the log back to what it was: what a page sets it to would hold for all tests after it."""
    logger = logging.getLogger("chanstream")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def internet(authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    """The internet, and a key for every provider in the environment."""
    context, bundle = authority
    net = Internet()
    for dialect in DIALECTS.values():
        monkeypatch.setenv(dialect.key_variable, "a-key")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", net.resolve)
    with (
        StreamServer(reply_with=net.answer, tls=context) as net.secure,
        StreamServer(reply_with=net.answer) as net.plain,
    ):
        yield net

"""Requests as they arrive on the wire: whole, in parts, and broken."""

from __future__ import annotations

import json

import pytest

from chanstream.testing.http11 import MalformedRequestError, RequestReader
from chanstream.testing.request import RecordedRequest

PLAIN = (
    b"POST /v1/chat/completions?a=1&b HTTP/1.1\r\nHost: x\r\nX-Two:  one \r\nx-two: two\r\n"
    b'Content-Length: 15\r\n\r\n{"stream":true}'
)
CHUNKED = (
    b"POST /v1/chat/completions?a=1&b HTTP/1.1\r\nHost: x\r\nX-Two: one\r\nX-Two:\ttwo\r\n"
    b'Transfer-Encoding: Chunked\r\n\r\n5\r\n{"str\r\n00A;name=value\r\neam":true}\r\n0\r\nX-Trailer: 1\r\n\r\n'
)
GET = b"\r\n\r\nGET /a%20b HTTP/1.0\r\n\r\n"


def read(*parts: bytes) -> list[RecordedRequest]:
    """Returns the requests that arrive in these parts."""
    reader, requests = RequestReader(7), []
    for part in parts:
        reader.feed(part)
        while request := reader.next_request():
            requests.append(request)
    return requests


@pytest.mark.parametrize("wire", [PLAIN, CHUNKED], ids=["content-length", "chunked"])
def test_request(wire: bytes) -> None:
    """All parts of a request are recorded, however its body is framed."""
    (request,) = read(wire)
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", "a=1&b")
    assert (request.headers["x-TWO"], request.body, request.json) == ("one, two", b'{"stream":true}', {"stream": True})
    assert (request.connection, request.http_version) == (7, "1.1")
    assert request.streaming
    assert request.keep_alive


def test_every_split() -> None:
    """The same requests are read whole, byte by byte, and split at every position."""
    wire = PLAIN + CHUNKED + GET
    whole = read(wire)
    assert [request.method for request in whole] == ["POST", "POST", "GET"]
    assert read(*(wire[at : at + 1] for at in range(len(wire)))) == whole
    for at in range(len(wire)):
        assert read(wire[:at], wire[at:]) == whole


def test_simple_get() -> None:
    """A request without headers and body is one; empty lines before it do not matter, and escapes are undone."""
    (request,) = read(GET)
    assert (request.path, request.body, request.json, dict(request.headers)) == ("/a b", b"", None, {})
    assert not request.streaming
    assert not request.keep_alive


def test_whole_url() -> None:
    """A client that takes the server for its proxy sends a whole URL; its path counts."""
    (request,) = read(b"GET http://test:1/v1/models?a HTTP/1.1\r\n\r\n")
    assert (request.path, request.query) == ("/v1/models", "a")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "open", "binary", "deep"])
def test_no_json(body: bytes) -> None:
    """A body that is no JSON is kept as bytes and its JSON is None."""
    (request,) = read(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert (request.body, request.json) == (body, None)


@pytest.mark.parametrize(
    ("body", "streaming"), [({"stream": True}, True), ({"stream": "yes"}, False), ({}, False), ([True], False)]
)
def test_streaming(body: object, streaming: bool) -> None:
    """Only `"stream": true` asks for a stream."""
    data = json.dumps(body).encode()
    (request,) = read(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert request.streaming is streaming


def test_connection_close() -> None:
    """A request says whether its client will use the connection again."""
    (request,) = read(b"GET / HTTP/1.1\r\nConnection: TE, Close\r\n\r\n")
    assert not request.keep_alive


def test_no_secrets() -> None:
    """The representation of a request shows neither header values nor the body, where keys and prompts are."""
    (request,) = read(b"POST / HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: 6\r\n\r\nsecret")
    assert request.headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(request)
    assert "secret" not in repr(request.headers)
    assert "Authorization" in repr(request.headers)


def test_header_mapping() -> None:
    """Headers are a mapping that keeps the spelling and does not care about it."""
    (request,) = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Odd: b\r\n\r\n")
    assert list(request.headers) == ["Host", "X-Odd"]
    assert len(request.headers) == 2
    assert "HOST" in request.headers
    assert request.headers.get("missing") is None


def test_continue() -> None:
    """A client that waits for permission to send the body is noticed once, and only while the body is missing."""
    reader = RequestReader(1)
    reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n")
    assert reader.next_request() is None
    assert [reader.take_continue(), reader.take_continue()] == [True, False]
    reader.feed(b"a")
    assert reader.next_request() is not None
    reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na")
    assert reader.next_request() is not None
    assert not reader.take_continue()


@pytest.mark.parametrize(
    "wire",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nSpace : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nFolded: 1\r\n 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: ²\r\n\r\n".encode("latin-1"),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nsize\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"GET / HTTP/1.1\r\nEndless: " + b"a" * 70_000,
    ],
)
def test_malformed(wire: bytes) -> None:
    """What breaks the rules of HTTP is refused, as soon as that is certain."""
    with pytest.raises(MalformedRequestError):
        read(wire)

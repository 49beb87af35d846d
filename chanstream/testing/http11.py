"""HTTP/1.1 as far as a server needs it, without I/O: bytes in and requests out, heads and chunks as bytes.

The reader is a generator that runs until it lacks bytes and goes on where it stopped, so that a request may arrive in
any number of parts. https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from .request import Headers, RecordedRequest
from .wording import encode_json, reason_phrase

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
HEAD_END = b"\r\n\r\n"

# Keeps a client that never ends its head from filling the memory. Apache and nginx allow 8 to 32 KiB.
_MAX_HEAD_BYTES = 64 * 1024
_MAX_LINE_BYTES = 1024

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_NAME}) (\S+) HTTP/(1\.[01])")
_HEADER_LINE = re.compile(rf"({_NAME}):[ \t]*(.*?)[ \t]*", re.DOTALL)
_DIGITS = re.compile(r"[0-9]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;.*)?")


class MalformedRequestError(Exception):
    """The client broke the rules of HTTP; the message says how."""


class RequestReader:
    """Turns the bytes of one connection into requests.

    Feeding stores, asking parses: `feed` what arrives, then ask for `next_request` until it returns None.
    """

    def __init__(self, connection: int) -> None:
        """Begins an empty connection, whose number goes into every request."""
        self._connection = connection
        self._buffer = bytearray()
        self._parser = self._request()
        self._continue = False

    def feed(self, data: bytes) -> None:
        """Stores bytes that have arrived."""
        self._buffer += data

    def next_request(self) -> RecordedRequest | None:
        """Returns the next whole request, or None while bytes of it are missing.

        Raises:
            MalformedRequestError: The bytes are no HTTP request. Nothing after them can be understood.
        """
        try:
            next(self._parser)
        except StopIteration as stop:
            self._parser = self._request()
            request: RecordedRequest = stop.value
            return request
        return None

    def take_continue(self) -> bool:
        """Tells, once per request, whether the client waits for `100 Continue` before it sends the body."""
        wanted, self._continue = self._continue, False
        return wanted

    def _request(self) -> Generator[None, None, RecordedRequest]:
        yield from self._first_byte()
        method, target, version, headers = _parse_head((yield from self._until(HEAD_END, _MAX_HEAD_BYTES)))
        self._continue = headers.get("Expect", "").lower() == "100-continue"
        body = yield from self._body(headers)
        self._continue = False
        path, query = _parse_target(target)
        return RecordedRequest(method, path, query, version, headers, body, _decoded(body), self._connection)

    def _first_byte(self) -> Generator[None, None, None]:
        """Waits for the request line, and refuses at once what cannot be one.

        A TLS handshake on a plain port has no line end: without this, both sides would wait for the other.
        Empty lines before a request are to be ignored (RFC 9112, section 2.2).
        """
        while not self._buffer.lstrip(b"\r\n"):
            yield
        del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))]
        if not re.match(_NAME.encode(), self._buffer):
            raise MalformedRequestError("this is not HTTP")

    def _body(self, headers: Headers) -> Generator[None, None, bytes]:
        if "Transfer-Encoding" in headers:
            if headers["Transfer-Encoding"].lower() != "chunked":
                raise MalformedRequestError("the only transfer coding known here is chunked")
            return (yield from self._chunks())
        length = headers.get("Content-Length", "0")
        if not _DIGITS.fullmatch(length):
            raise MalformedRequestError("the content length is no number")
        return (yield from self._exactly(int(length)))

    def _chunks(self) -> Generator[None, None, bytes]:
        body = bytearray()
        while size := _parse_chunk_size((yield from self._until(b"\r\n", _MAX_LINE_BYTES))):
            body += yield from self._exactly(size)
            if (yield from self._exactly(2)) != b"\r\n":
                raise MalformedRequestError("a chunk is longer than its size")
        while (yield from self._until(b"\r\n", _MAX_HEAD_BYTES)):
            pass  # trailer fields
        return bytes(body)

    def _exactly(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size:
            yield
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _until(self, mark: bytes, limit: int) -> Generator[None, None, bytes]:
        """Takes what stands before `mark`, and the mark; looks at every byte once, however they arrive."""
        seen = 0
        while (end := self._buffer.find(mark, max(0, seen - len(mark) + 1))) < 0:
            seen = len(self._buffer)
            if seen > limit:
                raise MalformedRequestError(f"more than {limit} bytes without an end")
            yield
        data = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return data


def _parse_head(head: bytes) -> tuple[str, str, str, Headers]:
    first, *rest = head.decode("latin-1").split("\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    fields = [_HEADER_LINE.fullmatch(line) for line in rest]
    if request is None:
        raise MalformedRequestError("the request line is malformed")
    if not all(fields):
        raise MalformedRequestError("a header field is malformed")
    method, target, version = request.groups()
    return method, target, version, Headers((field[1], field[2]) for field in fields if field)


def _parse_target(target: str) -> tuple[str, str]:
    """Returns path and query; a client that takes this server for its proxy sends a whole URL (RFC 9112, 3.2.2)."""
    if not target.startswith("/"):
        parts = urlsplit(target)
        return unquote(parts.path), parts.query
    path, _, query = target.partition("?")
    return unquote(path), query


def _parse_chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise MalformedRequestError("the size of a chunk is no number")
    return int(match[1], 16)


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Returns the head of a response, its empty line included."""
    lines = [f"HTTP/1.1 {status} {reason_phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Returns `data` as one HTTP chunk; empty data is none, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def refusal(problem: MalformedRequestError) -> bytes:
    """Returns the whole `400 Bad Request` for a request that could not be read."""
    error = {"message": str(problem), "type": "invalid_request_error", "param": None, "code": None}
    body = encode_json({"error": error})
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    return head(400, fields) + body


def ends_itself(response_head: bytes) -> bool:
    """Tells whether the client of this response can find its end without a close: the connection may live on."""
    fields = [_HEADER_LINE.fullmatch(line) for line in response_head.decode("latin-1").split("\r\n")[1:]]
    headers = Headers((field[1], field[2]) for field in fields if field)
    framed = headers.says("Transfer-Encoding", "chunked") or "Content-Length" in headers
    return framed and not headers.says("Connection", "close")

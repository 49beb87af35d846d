"""How the tests read the wire: just enough of HTTP and event streams, written without regard to the code under test."""

from __future__ import annotations

import json
import socket
from typing import Any


def post(body: object, version: str = "1.1", **headers: str) -> bytes:
    """Returns the bytes of a request with a JSON body."""
    data = json.dumps(body).encode()
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: test\r\nContent-Length: {len(data)}\r\n{fields}\r\n"
    return head.encode() + data


def read_until(peer: socket.socket, end: bytes) -> bytes:
    """Returns what arrives up to and including `end`, and maybe more that came with it."""
    received = b""
    while end not in received:
        data = peer.recv(65536)
        assert data, f"the server left after {received!r}"
        received += data
    return received


def read_all(peer: socket.socket) -> bytes:
    """Returns what arrives until the server closes the connection."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


def body_of(response: bytes) -> bytes:
    """Returns what follows the head."""
    return response.partition(b"\r\n\r\n")[2]


def http_chunks(body: bytes) -> list[bytes]:
    """Returns the HTTP chunks of a body, the last, empty one among them if it is there."""
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        chunk, body = rest[: int(size, 16)], rest[int(size, 16) :]
        assert body[:2] == b"\r\n"
        body = body[2:]
        chunks.append(chunk)
    return chunks


def data_of(stream: bytes) -> list[Any]:
    """Returns the data of each event: decoded if it is JSON, else as text."""
    events = [line.removeprefix(b"data: ").decode() for line in stream.split(b"\n\n") if line.startswith(b"data: ")]
    return [json.loads(event) if event.startswith("{") else event for event in events]


def deltas_of(stream: bytes) -> list[dict[str, Any]]:
    """Returns the delta of each chunk that has a choice."""
    return [event["choices"][0]["delta"] for event in data_of(stream) if event != "[DONE]" and event["choices"]]

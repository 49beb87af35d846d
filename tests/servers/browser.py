"""The browser's side of the wire: a socket, and what its bytes say so far."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Sequence
from typing import Any

from tests.conftest import SCALE

PATIENCE = 30 * SCALE
"""Seconds after which a test gives up waiting for bytes."""


class Browser:
    """One request, and its answer as far as it has arrived.

    Args:
        address: Host and port.
        path: What is asked.
        question: What the model is asked.
    """

    def __init__(self, address: tuple[str, int], path: str, question: str) -> None:
        self.data = b""
        self.over = False
        self._given = 0
        self.socket = socket.create_connection(address, PATIENCE)
        body = json.dumps(
            {"model": "test-model", "messages": [{"role": "user", "content": question}], "stream": True}
        ).encode()
        self.socket.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )

    def read(self) -> None:
        """Read what there is, waiting for something; at the end close, as browsers do. gunicorn waits for that."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        self.data += data
        self.over = not data
        if self.over:
            self.socket.close()

    @property
    def head(self) -> str:
        """The head, once it is there."""
        while b"\r\n\r\n" not in self.data:
            self.read()
            assert not self.over, self.data
        return self.data.partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        """The body so far."""
        head = self.head.lower()  # it may have to be read
        body = self.data.partition(b"\r\n\r\n")[2]
        return unchunked(body) if "transfer-encoding: chunked" in head else body

    @property
    def events(self) -> list[str]:
        """The events so far, without comments; an error's begins with its name."""
        blocks = self.body.decode().split("\n\n")[:-1]
        events = [block for block in blocks if not block.startswith(":")]
        return [event.removeprefix("data: ").replace("event: error\ndata: ", "error: ") for event in events]

    def event(self) -> str:
        """Return the next event, waiting for it."""
        while len(self.events) <= self._given:
            assert not self.over, f"ended after {self.data!r}"
            self.read()
        self._given += 1
        return self.events[self._given - 1]

    def piece(self) -> str:
        """Return the next piece of text, waiting for it."""
        return text_of(self.event())

    def rest(self) -> list[str]:
        """Return all events that were not given yet, waiting for the end of the body."""
        while not self.over:
            self.read()
        given, self._given = self._given, len(self.events)
        return self.events[given:]

    @property
    def text(self) -> str:
        """The text of the whole answer, which must have a full stop."""
        assert self.events[-1] == "[DONE]", self.data
        return "".join(map(text_of, self.events[:-1]))

    def leave(self) -> None:
        """Close the connection, with all read: the peer gets a FIN and learns nothing more until it writes."""
        self.socket.close()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def unchunked(data: bytes) -> bytes:
    """Return what HTTP chunks hold, the last of which may not be all there."""
    body = b""
    while b"\r\n" in data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body


def text_of(event: str) -> str:
    """Return the text in an event."""
    assert event, event
    choices: list[Any] = json.loads(event)["choices"]
    return choices[0]["delta"].get("content") or "" if choices else ""


def read_all(browsers: Sequence[Browser]) -> None:
    """Read many answers to their ends, each when it has something."""
    with selectors.DefaultSelector() as selector:
        for browser in browsers:
            selector.register(browser.socket, selectors.EVENT_READ, browser)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            assert ready, f"{len(selector.get_map())} answers do not end"
            for key, _ in ready:
                key.data.read()
                if key.data.over:
                    selector.unregister(key.fileobj)

"""The server that all clients are measured against: one process, one thread, a heap of timers, one send per event.

``python -m tests.benchmarks.server`` prints its port and serves until its standard input is closed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import itertools
import json
import os
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

from . import scenario

_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


@contextlib.contextmanager
def running() -> Iterator[int]:
    """Run a server in a process of its own and give its port."""
    command = [sys.executable, "-m", "tests.benchmarks.server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.stdin.close()


def control(port: int, words: str) -> dict[str, float]:
    """Send control words to the server and return its answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(scenario.request(words))
        return json.loads(sock.makefile("rb").read().partition(b"\r\n\r\n")[2])


class _Connection:
    """A client's connection: what it has sent of its next request, and what it has not taken yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = b""
        self.outbox = bytearray()
        self.open = True


class _Paced:
    """A stream with pauses: where it goes, and what is left of it."""

    def __init__(self, connection: _Connection, words: list[str]) -> None:
        self.connection = connection
        self.group = words[0]
        index, of, self.left = map(int, words[1:4])
        rate, tick_ms = map(float, words[4:])
        self.tick = int(tick_ms * 1e6) or 1
        self.phase = int(scenario.phase(index, of, rate) * 1e9)
        self.interval = int(1e9 / rate)
        self.ideal = 0

    def due(self) -> int:
        """Return when the next event is due: at the first tick of the server's clock that is not too early."""
        return -(-self.ideal // self.tick) * self.tick


class _Server:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(sys.stdin, selectors.EVENT_READ, lambda _: os._exit(0))
        self.waiting: dict[str, list[_Paced]] = defaultdict(list)
        self.late: dict[str, list[int]] = defaultdict(list)
        self.due: list[tuple[int, int, _Paced]] = []
        self.order = itertools.count()

    def run(self) -> None:
        while True:
            # select() on the poller's own descriptor: epoll would round the pauses up to whole milliseconds.
            pause = max(0, self.due[0][0] - time.monotonic_ns()) / 1e9 if self.due else None
            if select.select([self.selector], [], [], pause)[0]:
                for key, mask in self.selector.select(0):
                    key.data(mask)
            for _ in range(64):  # behind its time, the server still listens
                if not self.due or self.due[0][0] > time.monotonic_ns():
                    break
                self._tick(*heapq.heappop(self.due))

    def _accept(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _address = self.listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _Connection(sock)
                self.selector.register(sock, selectors.EVENT_READ, functools.partial(self._serve, connection))

    def _serve(self, connection: _Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(connection)
        if mask & selectors.EVENT_READ and connection.open:
            try:
                data = connection.sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._close(connection)
                return
            connection.inbox += data
            self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        """Answer the request, if all of it is here."""
        head, blank, body = connection.inbox.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not blank or len(body) < length:
            return
        connection.inbox = b""  # nobody pipelines
        kind, *words = json.loads(body)["model"].split(":")
        {"fast": self._fast, "paced": self._paced, "go": self._go, "report": self._report}[kind](connection, words)

    def _fast(self, connection: _Connection, words: list[str]) -> None:
        self._send(connection, scenario.HEAD + _fast_body(int(words[0]), int(words[1])))

    def _paced(self, connection: _Connection, words: list[str]) -> None:
        self._send(connection, scenario.HEAD + scenario.stamped(time.monotonic_ns(), last=False))
        stream = _Paced(connection, words)
        if stream.group:
            self.waiting[stream.group].append(stream)
        else:
            self._start(stream, time.monotonic_ns() + stream.interval)

    def _go(self, connection: _Connection, words: list[str]) -> None:
        self._reply(connection, {})
        now = time.monotonic_ns()
        for stream in self.waiting.pop(words[0], ()):
            self._start(stream, now + stream.phase)

    def _report(self, connection: _Connection, words: list[str]) -> None:
        """Tell how late the server itself was, so that nobody takes its delay for a client's."""
        late = sorted(self.late.pop(words[0], [0]))
        self._reply(connection, {"server_late_p99_ms": late[len(late) * 99 // 100] / 1e6})

    def _reply(self, connection: _Connection, answer: dict[str, float]) -> None:
        self._send(connection, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(answer).encode())
        self._close(connection)

    def _start(self, stream: _Paced, ideal: int) -> None:
        stream.ideal = ideal
        heapq.heappush(self.due, (stream.due(), next(self.order), stream))

    def _tick(self, when: int, _: int, stream: _Paced) -> None:
        """Send a stream's next event."""
        if not stream.connection.open:
            return
        now = time.monotonic_ns()
        stream.left -= 1
        self.late[stream.group].append(now - when)
        self._send(stream.connection, scenario.stamped(now, last=not stream.left))
        if stream.left:
            self._start(stream, stream.ideal + stream.interval)

    def _send(self, connection: _Connection, data: bytes) -> None:
        connection.outbox += data
        if len(connection.outbox) == len(data):  # else it waits behind what the client has not taken yet
            self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        try:
            del connection.outbox[: connection.sock.send(connection.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
            return
        wanted = _BOTH if connection.outbox else selectors.EVENT_READ
        key = self.selector.get_key(connection.sock)
        if key.events != wanted:
            self.selector.modify(connection.sock, wanted, key.data)

    def _close(self, connection: _Connection) -> None:
        if connection.open:
            connection.open = False
            self.selector.unregister(connection.sock)
            connection.sock.close()


@functools.cache
def _fast_body(count: int, size: int) -> bytes:
    return scenario.fast_body(count, size)


if __name__ == "__main__":
    server = _Server()
    sys.stdout.write(f"{server.listener.getsockname()[1]}\n")
    sys.stdout.flush()
    gc.freeze()
    server.run()

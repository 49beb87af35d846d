"""Without any library: the floor. A socket, `orjson`, and just enough HTTP to find the chunks of this one server."""

# ruff: noqa: D102 - what the methods do, the base class says

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .. import scenario
from .base import Client


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the HTTP chunks that are whole, and the rest. An empty chunk is the end of the body."""
    chunks, position = [], 0
    while (eol := buffer.find(b"\r\n", position)) >= 0:
        start = eol + 2
        stop = start + int(buffer[position:eol], 16)
        if stop + 2 > len(buffer):
            break
        chunks.append(buffer[start:stop])
        position = stop + 2
    return chunks, buffer[position:]


class RawSocket(Client):
    label = "raw socket + orjson (the floor)"
    packages = ("orjson",)
    statement = "import socket, orjson"

    def __init__(self, port: int) -> None:
        import orjson

        self._loads = orjson.loads
        self._address = ("127.0.0.1", port)
        self._idle: list[socket.socket] = []

    def stream(self, model: str) -> Iterator[Any]:
        sock = self._idle.pop() if self._idle else socket.create_connection(self._address)
        sock.sendall(scenario.request(model))
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        return self._items(sock, data.partition(b"\r\n\r\n")[2])

    def _items(self, sock: socket.socket, rest: bytes) -> Iterator[Any]:
        loads, chunk = self._loads, b"..."
        while chunk:
            chunks, rest = split(rest)
            for chunk in chunks:
                if chunk.startswith(b"data: {"):
                    yield loads(chunk[6:])
            if chunk:
                rest += sock.recv(65536)
        self._idle.append(sock)

    def text(self, item: Any) -> str:
        return item["choices"][0]["delta"]["content"]

    def count(self, model: str) -> int:  # the floor pays for no call that it does not need
        return sum([len(item["choices"][0]["delta"]["content"]) for item in self.stream(model)])

    def merged(self, models: list[str], seen: Callable[[int, str], None]) -> None:
        selector = selectors.DefaultSelector()
        for key, model in enumerate(models):
            sock = socket.create_connection(self._address)
            sock.sendall(scenario.request(model))
            selector.register(sock, selectors.EVENT_READ, [key, b""])
        left = len(models)
        while left:
            for ready, _ in selector.select():
                state = ready.data
                data = state[1] + ready.fileobj.recv(65536)
                if data.startswith(b"HTTP/"):  # one send brings the head and the first event
                    data = data.partition(b"\r\n\r\n")[2]
                chunks, state[1] = split(data)
                for chunk in chunks:
                    if chunk.startswith(b"data: {"):
                        seen(state[0], self.text(self._loads(chunk[6:])))
                if chunks and not chunks[-1]:
                    selector.unregister(ready.fileobj)
                    left -= 1


class RawAsyncio(Client):
    label = "raw asyncio + orjson"
    packages = ("orjson",)
    statement = "import asyncio, orjson"
    threads = False

    def __init__(self, port: int) -> None:
        import orjson

        self._loads = orjson.loads
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._loop = asyncio.new_event_loop()

    async def _read(self, model: str, seen: Callable[[str], None]) -> None:
        loads, chunk = self._loads, b"..."
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(scenario.request(model))
        await reader.readuntil(b"\r\n\r\n")
        rest = b""
        while chunk:
            rest += await reader.read(65536)
            chunks, rest = split(rest)
            for chunk in chunks:
                if chunk.startswith(b"data: {"):
                    seen(loads(chunk[6:])["choices"][0]["delta"]["content"])
        self._idle.append((reader, writer))

    def count(self, model: str) -> int:
        texts: list[str] = []
        self._loop.run_until_complete(self._read(model, texts.append))
        return sum(map(len, texts))

    def first(self, model: str) -> float:
        started, times = time.perf_counter(), []
        self._loop.run_until_complete(self._read(model, lambda _: times.append(time.perf_counter())))
        return times[0] - started

    def hold(self, models: list[str]) -> object:
        arrived = threading.Semaphore(0)
        thread = threading.Thread(target=self.merged, args=(models, lambda *_: arrived.release()), daemon=True)
        thread.start()
        for _ in models:
            arrived.acquire()
        return thread

    def merged(self, models: list[str], seen: Callable[[int, str], None]) -> None:
        async def one(key: int, model: str) -> None:
            await self._read(model, lambda text: seen(key, text))

        async def everything() -> None:
            await asyncio.gather(*(one(key, model) for key, model in enumerate(models)))

        self._loop.run_until_complete(everything())

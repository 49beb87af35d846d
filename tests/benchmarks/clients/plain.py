"""What one writes oneself in twenty lines, on requests or httpx."""

# ruff: noqa: D102 - what the methods do, the base class says

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .base import PROMPT, Client


class _Requests(Client):
    packages: tuple[str, ...] = ("requests",)
    statement = "import requests"

    def __init__(self, port: int) -> None:
        import requests

        super().__init__(port)
        self._session = requests.Session()

    def post(self, model: str) -> Any:
        body = {"model": model, "messages": PROMPT, "stream": True}
        return self._session.post(f"{self.url}/v1/chat/completions", json=body, stream=True)

    def text(self, item: Any) -> str:
        return item["choices"][0]["delta"]["content"]


class BareRequests(_Requests):
    """The whole body at once: what a short answer costs in requests."""

    label = "requests, the body read at once"
    only = "requests"

    def stream(self, model: str) -> Iterable[Any]:
        lines = self.post(model).content.split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


class IterLines(_Requests):
    label = "requests + iter_lines"

    def stream(self, model: str) -> Iterator[Any]:
        response = self.post(model)
        return (json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data: {"))


class Pool(_Requests):
    """The best that one writes oneself: a session for each thread, since sharing one costs more, and orjson."""

    label = "ThreadPoolExecutor + requests + orjson"
    packages = ("requests", "orjson")
    only = "batch"

    def __init__(self, port: int) -> None:
        import orjson
        import requests

        super().__init__(port)
        self._loads = orjson.loads
        self._own = threading.local()
        self._new_session = requests.Session

    def count(self, model: str) -> int:
        try:
            session = self._own.session
        except AttributeError:
            session = self._own.session = self._new_session()
        body = {"model": model, "messages": PROMPT, "stream": True}
        with session.post(f"{self.url}/v1/chat/completions", json=body, stream=True) as response:
            response.raise_for_status()
            values = [self._loads(line[6:]) for line in response.iter_lines(65536) if line.startswith(b"data: {")]
        return len("".join([value["choices"][0]["delta"]["content"] for value in values]))


class Sseclient(_Requests):
    label = "requests + sseclient-py, no queue"
    packages = ("requests", "sseclient")
    statement = "import requests, sseclient"

    def stream(self, model: str) -> Iterator[Any]:
        return _events(self.post(model))


class Naive(_Requests):
    label = "requests + sseclient-py + queue.Queue"
    packages = ("requests", "sseclient")
    statement = "import queue, threading, requests, sseclient"

    def stream(self, model: str) -> Iterator[Any]:
        items: queue.Queue[Any] = queue.Queue()
        _produce(self.post(model), items.put)
        return iter(items.get, None)

    def merged(self, models: list[str], seen: Callable[[int, str], None]) -> None:
        items: queue.Queue[tuple[int, Any]] = queue.Queue()
        for key, model in enumerate(models):
            _produce(self.post(model), lambda item, key=key: items.put((key, item)))
        left = len(models)
        while left:
            key, item = items.get()
            if item is None:
                left -= 1
            else:
                seen(key, self.text(item))


def _events(response: Any) -> Iterator[Any]:
    import sseclient

    for event in sseclient.SSEClient(response).events():
        if event.data == "[DONE]":
            break
        yield json.loads(event.data)


def _produce(response: Any, put: Callable[[Any], None]) -> None:
    """Start a thread that puts the items of a response, and None at its end."""

    def produce() -> None:
        for item in _events(response):
            put(item)
        put(None)

    threading.Thread(target=produce, daemon=True).start()


class HttpxSse(Client):
    label = "httpx-sse"
    packages = ("httpx", "httpx_sse")
    statement = "import httpx, httpx_sse"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._http = wide_httpx()

    def stream(self, model: str) -> Iterator[Any]:
        from httpx_sse import connect_sse

        body = {"model": model, "messages": PROMPT, "stream": True}
        entered = connect_sse(self._http, "POST", f"{self.url}/v1/chat/completions", json=body)
        source = entered.__enter__()

        def items() -> Iterator[Any]:
            try:
                for event in source.iter_sse():
                    if event.data != "[DONE]":
                        yield event.json()
            finally:
                entered.__exit__(None, None, None)

        return items()

    def text(self, item: Any) -> str:
        return item["choices"][0]["delta"]["content"]


def wide_httpx() -> Any:
    """Return an httpx client for any number of streams at once; by default the 101st would wait for ever."""
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return httpx.Client(limits=limits, timeout=None)  # whoever measures has a clock

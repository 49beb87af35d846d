"""chanstream, with each engine, with and without orjson."""

# ruff: noqa: D102 - what the methods do, the base class says

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from .base import Client


class Threaded(Client):
    label = "chanstream, threaded"
    packages: tuple[str, ...] = ("requests", "sseclient", "attrs", "orjson")
    statement = "import chanstream"
    engine = "threaded"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        if "orjson" not in self.packages:
            sys.modules["orjson"] = None  # as if it were not installed
        import chanstream

        self._chanstream = chanstream
        self._client = chanstream.Client("key", base_url=self.url, dialect="openai", engine=self.engine)

    def stream(self, model: str) -> Iterable[Any]:
        request = self._chanstream.ChatCompletionRequest(model, [self._chanstream.UserMessage("x")])
        return self._client.chat_completion_stream(request)

    def text(self, item: Any) -> str:
        if item.error:
            raise item.error
        return item.text

    def batch(self, models: list[str], concurrency: int) -> int:
        prompt = [self._chanstream.UserMessage("x")]
        requests = (self._chanstream.ChatCompletionRequest(model, prompt) for model in models)
        return sum([len(result.response.text) for result in self._client.batch(requests, concurrency=concurrency)])

    def merged(self, models: list[str], seen: Callable[[int, str], None]) -> None:
        for key, item in self._chanstream.merge([self.stream(model) for model in models]):
            seen(key, self.text(item))


class ThreadedJson(Threaded):
    label = "chanstream, threaded, without orjson"
    packages = ("requests", "sseclient", "attrs")


class Poller(Threaded):
    label = "chanstream, poller"
    engine = "poller"


class PollerJson(Poller):
    label = "chanstream, poller, without orjson"
    packages = ("requests", "sseclient", "attrs")

"""What a client must be able to do to be measured."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROMPT = [{"role": "user", "content": "x"}]


class Client:
    """A client as its documentation says to use it. A subclass gives `stream` and `text`, and what else it can do.

    Attributes:
        label: The client's name in tables.
        packages: The packages without which it cannot be measured, as they are imported.
        statement: What a program imports to use it.
        threads: Whether a thread for each stream makes sense.
        only: The one measure that it is there for, if it is.
    """

    label = ""
    packages: tuple[str, ...] = ()
    statement = ""
    threads = True
    only = ""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    def missing(cls) -> list[str]:
        """Return the packages that are not installed."""
        return [package for package in cls.packages if importlib.util.find_spec(package) is None]

    def stream(self, model: str) -> Iterable[Any]:
        """Send the request and return the stream, once the head is in."""
        raise NotImplementedError

    def text(self, item: Any) -> str:
        """Return the text of an item of a stream."""
        raise NotImplementedError

    def count(self, model: str) -> int:
        """Return the number of characters of a whole stream."""
        text = self.text
        return sum([len(text(item)) for item in self.stream(model)])

    def first(self, model: str) -> float:
        """Read a whole stream and return the seconds from the call to its first item."""
        started, arrived = time.perf_counter(), 0.0
        for item in self.stream(model):
            if self.text(item) and not arrived:
                arrived = time.perf_counter()
        return arrived - started

    def hold(self, models: list[str]) -> object:
        """Open streams, take the first item of each, and return whatever keeps them open."""
        streams = [self.stream(model) for model in models]
        iterators = [iter(stream) for stream in streams]
        for iterator in iterators:
            next(iterator)
        return streams, iterators

    def batch(self, models: list[str], concurrency: int) -> int:
        """Read all streams, so many at a time, and return the number of characters of all."""
        with ThreadPoolExecutor(concurrency) as pool:
            return sum(pool.map(self.count, models))

    def merged(self, models: list[str], seen: Callable[[int, str], None]) -> None:
        """Read all streams in this thread to their ends, telling of each text the position of its stream."""
        raise NotImplementedError

    @classmethod
    def can_merge(cls) -> bool:
        """Return whether the client has a way to read many streams with one consumer."""
        return cls.merged is not Client.merged

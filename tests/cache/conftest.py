"""What the tests of the cache share: an engine in memory that can be looked into, and cached clients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from chanstream import CachedClient, CacheEngine
from chanstream.cache import tapes
from chanstream.testing import StreamServer
from tests.conftest import PATIENCE, SCALE, Link

# How long the end waits for the answer to be stored, which many tests look for right after it.
tapes._STORE_SECONDS *= SCALE * min(PATIENCE, 4)


class MemoryEngine:
    """Keeps entries in a dict, and counts what it is asked. Fails as long as it has an error to fail with."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.gets = 0
        self.get_error: Exception | None = None
        self.set_error: Exception | None = None
        self.may_set = threading.Event()
        self.may_set.set()

    def get(self, key: str) -> bytes | None:
        """Return an entry."""
        self.gets += 1
        if self.get_error is not None:
            raise self.get_error
        return self.entries.get(key)

    def set(self, key: str, data: bytes) -> None:
        """Keep an entry, once it may."""
        self.may_set.wait(30)
        if self.set_error is not None:
            raise self.set_error
        self.entries[key] = data


@pytest.fixture
def memory() -> MemoryEngine:
    """An empty engine."""
    return MemoryEngine()


Cached = Callable[..., CachedClient]


@pytest.fixture
def cached(plain: Link, memory: MemoryEngine) -> Cached:
    """Make cached clients of a server, all with the same engine unless they are given another."""

    def make(
        server: StreamServer, engine: CacheEngine | None = None, replay: Any = "fast", **settings: Any
    ) -> CachedClient:
        return CachedClient(plain.client(server, **settings), memory if engine is None else engine, replay=replay)

    return make

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from chanstream import CacheEngine, CacheError, RedisCache
from chanstream.testing import Reply
from tests.cache.conftest import Cached
from tests.conftest import REQUEST, Link
from tests.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]  # the fixture

KEY = "ab" * 32


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """A client of an empty Redis."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def store(client: Any, redis_server: RedisServer) -> Iterator[RedisCache]:
    """An engine that was given a URL."""
    store = RedisCache(redis_server.url)
    yield store
    store.close()


def test_set_and_get(store: CacheEngine, client: Any) -> None:
    """What was set under a key is got, by that name with the prefix; another key is a miss."""
    assert store.get(KEY) is None
    store.set(KEY, b"\x00data\xff")
    assert store.get(KEY) == b"\x00data\xff"
    assert client.keys() == [b"chanstream:" + KEY.encode()]
    assert client.pttl(f"chanstream:{KEY}") == -1  # never


def test_prefix_and_ttl(client: Any) -> None:
    """Another prefix is another cache, and Redis forgets an entry after the seconds of ``ttl``, fractions included."""
    store = RedisCache(client, prefix="mine:", ttl=90.5)
    store.set(KEY, b"x")
    assert client.get(f"mine:{KEY}") == b"x"
    assert 60_000 < client.pttl(f"mine:{KEY}") <= 90_500
    assert RedisCache(client).get(KEY) is None


def test_a_client_that_decodes(redis_server: RedisServer, client: Any) -> None:
    """A caller's own client may be one that turns bytes into texts."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as decoding:
        store = RedisCache(decoding)
        store.set(KEY, "é".encode())
        assert store.get(KEY) == "é".encode()


def test_answers(plain: Link, cached: Cached, store: RedisCache, redis_server: RedisServer) -> None:
    """Streams, whole answers and whoever else uses the same Redis: all are served from it."""
    server = plain.serve("Hello big world")
    first, second = cached(server, store), cached(server, RedisCache(redis_server.url))
    told = list(first.chat_completion_stream(REQUEST))
    assert list(second.chat_completion_stream(REQUEST)) == told
    assert second.chat_completion(REQUEST) == first.chat_completion(REQUEST)
    assert len(server.requests) == 2


def test_no_redis(plain: Link, cached: Cached, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that is not there is a CacheError; a client goes to the server then, and says so in the log."""
    store = RedisCache("unix:///nowhere/socket?password=a-secret-word")
    with pytest.raises(CacheError, match=r"^cannot read from Redis: "):
        store.get(KEY)
    with pytest.raises(CacheError, match=r"^cannot write to Redis: "):
        store.set(KEY, b"x")
    server = plain.serve("Hello")
    with caplog.at_level(logging.WARNING, "chanstream"):
        assert cached(server, store).chat_completion_stream(REQUEST).collect().text == "Hello"
    assert "cannot read from Redis" in caplog.text
    assert "cannot write to Redis" in caplog.text
    assert "a-secret-word" not in caplog.text + repr(store)


@pytest.mark.parametrize(
    ("given", "settings", "error", "named"),
    [
        (None, {}, TypeError, "client_or_url"),
        (7, {}, TypeError, "client_or_url"),
        ("http://x", {}, ValueError, "client_or_url"),
        ("redis://x", {"prefix": None}, TypeError, "prefix"),
        ("redis://x", {"ttl": "1"}, TypeError, "ttl"),
        ("redis://x", {"ttl": True}, TypeError, "ttl"),
        ("redis://x", {"ttl": 0}, ValueError, "ttl"),
        ("redis://x", {"ttl": -1.0}, ValueError, "ttl"),
        ("redis://x", {"ttl": float("inf")}, ValueError, "ttl"),
    ],
)
def test_wrong_arguments(given: Any, settings: Any, error: type[Exception], named: str) -> None:
    """A wrong argument is refused at once, by name."""
    with pytest.raises(error, match=f"^{named}: "):
        RedisCache(given, **settings)


def test_a_key_is_no_other_name(store: RedisCache) -> None:
    """A key that is not made of hexadecimal digits is refused."""
    with pytest.raises(ValueError, match=r"^key: expected hexadecimal digits"):
        store.get("user:1")
    with pytest.raises(ValueError, match=r"^key: expected hexadecimal digits"):
        store.set("user:1", b"x")


def test_pickle(store: RedisCache) -> None:
    """A copy in another process asks the same Redis."""
    store.set(KEY, b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get(KEY) == b"x"
    copy.close()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where redis is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r"pip install 'chanstream\[redis\]'"):
        RedisCache("redis://localhost")


def test_a_text_that_is_no_entry(plain: Link, cached: Cached, store: RedisCache, client: Any) -> None:
    """What others wrote under the name of an entry is a miss, and is overwritten."""
    server = plain.serve(reply_with=lambda request: Reply("Hello"))
    asking = cached(server, store)
    asking.chat_completion(REQUEST)
    (name,) = client.keys()
    client.set(name, "something else")
    assert [asking.chat_completion(REQUEST).text for _ in range(2)] == ["Hello", "Hello"]
    assert len(server.requests) == 2

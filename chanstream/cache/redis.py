"""An engine that keeps entries in Redis, for many machines."""

from __future__ import annotations

import math
from typing import Any

from ..errors import CacheError
from .engine import checked

_PATIENCE = 1.0
"""Seconds for which a Redis that says nothing is waited for: a cache must not take longer than the answer would."""


class RedisCache:
    """Keeps entries in Redis. Needs the extra ``redis``.

    Args:
        client_or_url: A `redis.Redis`, whose timeouts and connections stay the caller's business; or a URL such as
            ``redis://localhost:6379/0`` or ``unix:///run/redis.sock``, for a client that waits one second at most.
        prefix: What the name of each entry in Redis begins with.
        ttl: Seconds after which Redis forgets an entry; None for never.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.
        ImportError: The extra is not installed.

    Nothing is asked of Redis before the first entry is looked for.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, client_or_url: Any, *, prefix: str = "chanstream:", ttl: float | None = None) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected str, got {prefix!r}")
        if ttl is not None:
            _check_ttl(ttl)
        self._settings = {"client_or_url": client_or_url, "prefix": prefix, "ttl": ttl}
        self._prefix = prefix
        self._milliseconds = None if ttl is None else max(1, round(1000 * ttl))
        self._redis = _client(client_or_url)

    def get(self, key: str) -> bytes | None:
        """Return an entry; None where there is none.

        Raises:
            CacheError: Redis cannot be asked.
            ValueError: ``key`` is not made of hexadecimal digits.
        """
        name = self._prefix + checked(key)
        try:
            data = self._redis.get(name)
        except Exception as error:  # clients that are none of redis-py's have errors of their own
            raise CacheError(f"cannot read from Redis: {error}") from error
        return data.encode() if isinstance(data, str) else data  # a text: the caller's client decodes

    def set(self, key: str, data: bytes) -> None:
        """Keep an entry.

        Raises:
            CacheError: Redis cannot be asked, or does not take it.
            ValueError: ``key`` is not made of hexadecimal digits.
        """
        name = self._prefix + checked(key)
        try:
            self._redis.set(name, data, px=self._milliseconds)
        except Exception as error:  # as above
            raise CacheError(f"cannot write to Redis: {error}") from error

    def close(self) -> None:
        """Close the connections to Redis; a client that the caller brought stays open."""
        if isinstance(self._settings["client_or_url"], str):
            self._redis.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]  # a copy is made as the original was

    def __repr__(self) -> str:
        return f"<RedisCache {self._prefix!r}>"  # a URL may hold a password


def _check_ttl(ttl: Any) -> None:
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"ttl: expected a number of seconds, got {ttl!r}")
    if not 0 < ttl < math.inf:
        raise ValueError(f"ttl: expected seconds above 0, got {ttl!r}; None is for ever")


def _client(client_or_url: Any) -> Any:
    if not isinstance(client_or_url, str):
        if not all(callable(getattr(client_or_url, name, None)) for name in ("get", "set")):
            raise TypeError(f"client_or_url: expected a redis.Redis or a URL, got {client_or_url!r}")
        return client_or_url
    try:
        import redis
    except ImportError as error:
        raise ImportError("RedisCache needs redis: pip install 'chanstream[redis]'") from error
    try:
        return redis.Redis.from_url(client_or_url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE)
    except ValueError as error:  # not shown whole: it may hold a password
        raise ValueError(f"client_or_url: {error}") from None

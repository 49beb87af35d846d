"""Rate limiters for a client, on pyrate-limiter: in one process, or shared among processes and machines.

Needs the extra ``limits``. What a limiter has to be for a client says `chanstream.RateLimiter`.

pyrate's own ``Limiter`` is not used: it waits itself, where no cancel can end it, and has a thread that clears buckets
of what is out of date. Here a bucket says yes or no, and the wait is the transport's.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from .transport.limits import RateLimiter

if TYPE_CHECKING:
    from pyrate_limiter import AbstractBucket

__all__ = ["BucketLimit", "RateLimit", "RateLimiter"]

_SOON = 0.001
"""Seconds after which to ask again whom only a lock, or the resolution of a bucket's clock, kept from an answer."""

_TURN = 0.020
"""Seconds that a thread waits for the others of its process. A bucket on a network may hang: that is then one thread's
trouble, and the others still see that they were cancelled."""


class BucketLimit:
    """The limit that a bucket of pyrate-limiter keeps; see https://pyratelimiter.readthedocs.io.

    Its ``SQLiteBucket`` (made with ``use_file_lock=True``) is shared by the processes of a machine, its ``RedisBucket``
    by machines. To close a bucket is the caller's business, as it was to make it.

    Args:
        bucket: The bucket.

    Raises:
        TypeError: It is none, or one for asyncio.
        ImportError: The extra is not installed.

    Thread safety: all clients and threads of a process may share one. Each process makes its own.
    """

    def __init__(self, bucket: AbstractBucket) -> None:
        pyrate = _pyrate()
        if not isinstance(bucket, pyrate.AbstractBucket):
            raise TypeError(
                f"bucket: expected a bucket of pyrate-limiter, as InMemoryBucket([Rate(...)]), got {bucket!r}"
            )
        if inspect.isawaitable(counted := bucket.count()):
            getattr(counted, "close", bool)()  # a coroutine that is dropped warns
            raise TypeError(f"bucket: expected one that is not for asyncio, got {bucket!r}")
        self._bucket: Any = _in_order(bucket) if isinstance(bucket, pyrate.RedisBucket) else bucket
        self._item = pyrate.RateItem
        self._lock = threading.Lock()  # guards what follows, and the bucket, whose steps are several
        self._process = os.getpid()
        self._full_until = self._leak_at = 0  # milliseconds, on the bucket's clock

    def ask(self) -> float:
        """Return 0 if a request may be sent now, which then counts; else the seconds after which to ask again."""
        if self._process != os.getpid():
            self._be_a_child()
        with _held(self._lock, _TURN) as mine:
            return self._asked() / 1000 if mine else _SOON

    def _asked(self) -> float:
        """Return the milliseconds for `ask`."""
        # Room comes with time alone. So of a hundred threads that wake up for one place, two ask the bucket.
        if (left := self._full_until - self._bucket.now()) > 0:
            return float(left)
        shared = self._bucket.limiter_lock()  # with other processes, which are not waited for
        with contextlib.nullcontext(True) if shared is None else _held(shared, 0) as ours:
            return self._put() if ours else 1000 * _SOON

    def _put(self) -> float:
        bucket = self._bucket
        item = self._item("chanstream", bucket.now())  # the time under the locks: grants are in its order
        decision = bucket.put_decision(item)
        if decision.allowed:
            self._leak(item.timestamp)
            return 0.0
        pause: int | None = decision.retry_after_ms
        pause = max(1, bucket.waiting(item) if pause is None else pause)
        self._full_until = item.timestamp + pause
        return float(pause)

    def _leak(self, now: int) -> None:
        """Clear the bucket of what is out of date, once per window."""
        if now >= self._leak_at:
            self._leak_at = now + max(rate.interval for rate in self._bucket.rates)
            self._bucket.leak(now - 1)  # not what still counts in this very millisecond, as Redis' bucket would

    def _be_a_child(self) -> None:
        """Go on after a fork, in which another thread of the parent may have held the locks."""
        self._bucket = copy.copy(self._bucket)  # a bucket in memory makes its lock anew
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be sent to another process: make one there, on a shared bucket")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {type(self._bucket).__name__} {self._bucket.rates}>"


class RateLimit(BucketLimit):
    """So many requests in so many seconds, over any window of that length, for the threads of this process.

    ::

        client = Client(rate_limiter=RateLimit(50, per=10))

    Args:
        requests: How many.
        per: In how many seconds.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.
        ImportError: The extra is not installed.

    Thread safety: all clients and threads of a process may share one. A forked child counts on by itself.
    """

    def __init__(self, requests: int, *, per: float = 1.0) -> None:
        if isinstance(requests, bool) or not isinstance(requests, int):
            raise TypeError(f"requests: expected a whole number, got {requests!r}")
        if isinstance(per, bool) or not isinstance(per, (int, float)):
            raise TypeError(f"per: expected a number of seconds, got {per!r}")
        if requests < 1:
            raise ValueError(f"requests: expected 1 or more, got {requests!r}")
        if not 0.001 <= per < math.inf:
            raise ValueError(f"per: expected seconds, a thousandth or more, got {per!r}")
        pyrate = _pyrate()
        super().__init__(pyrate.InMemoryBucket([pyrate.Rate(requests, math.ceil(1000 * per))]))


@contextlib.contextmanager
def _held(lock: Any, seconds: float) -> Iterator[bool]:
    """Give whether the lock could be had within so many seconds; if so it is held for the block."""
    try:
        held = lock.acquire(timeout=seconds) is not False
    except TimeoutError:  # as filelock says it
        held = False
    try:
        yield held
    finally:
        if held:
            lock.release()


# -- Redis ------------------------------------------------------------------------------------------------------------

_PUT = """
local rates = tonumber(ARGV[4])
for rate = 0, rates - 1 do
    local from, limit, rank = ARGV[5 + 3 * rate], tonumber(ARGV[6 + 3 * rate]), tonumber(ARGV[7 + 3 * rate])
    if redis.call('ZCOUNT', KEYS[1], from, '+inf') >= limit then
        local blocking = rank >= 0 and redis.call('ZRANGE', KEYS[1], -1 - rank, -1 - rank, 'WITHSCORES')[2]
        return {rate, tonumber(blocking or -1)}
    end
end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[3])
return {-1, -1}
"""
"""What a bucket in Redis does for one request; arguments and answer are those of pyrate's script.

The time in ARGV[1] was read before, and meanwhile others may have been let through with a later one. pyrate's script
counts up to that time only, misses them, and lets one too many pass now and then. This one counts them.
"""


class _Scripted:
    """A client of Redis that runs our script for pyrate's, and loads it again where the server has lost it."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._script = redis.register_script(_PUT)

    def evalsha(self, _: str, __: int, key: str, *args: Any) -> Any:
        return self._script([key], args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)


def _in_order(bucket: Any) -> Any:
    """Return a bucket in Redis that keeps its limit although several processes ask it at the same time."""
    bucket = copy.copy(bucket)
    bucket.redis = _Scripted(bucket.redis)
    return bucket


def _pyrate() -> Any:
    try:
        import pyrate_limiter
    except ImportError as error:
        raise ImportError("a rate limit needs pyrate-limiter: pip install 'chanstream[limits]'") from error
    return pyrate_limiter

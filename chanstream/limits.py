"""Rate limiters for a client, on pyrate-limiter: in one process, or shared among processes and machines.

Needs the extra ``limits``. What a limiter has to be for a client says `chanstream.RateLimiter`.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from typing import TYPE_CHECKING, Any

from .transport.limits import RateLimiter

if TYPE_CHECKING:
    from pyrate_limiter import AbstractBucket

__all__ = ["BucketLimit", "RateLimit", "RateLimiter"]

_SOONEST = 0.001
"""Seconds: a bucket that has no room and says 0 is asked again after this."""


class BucketLimit:
    """The limit that a bucket of pyrate-limiter keeps; see https://pyratelimiter.readthedocs.io.

    Its ``SQLiteBucket`` (made with ``use_file_lock=True``) is shared by the processes of a machine, its ``RedisBucket``
    by machines. The bucket is used without pyrate's own ``Limiter``, which waits itself, where no cancel can end it,
    and has a thread that clears buckets of what is out of date.

    Args:
        bucket: The bucket.

    Raises:
        TypeError: It is none, or one for asyncio.
        ImportError: The extra is not installed.

    Thread safety: all clients and threads of a process may share one.
    """

    def __init__(self, bucket: AbstractBucket) -> None:
        if not isinstance(bucket, _pyrate().AbstractBucket):
            raise TypeError(f"bucket: expected a bucket of pyrate-limiter, got {bucket!r}")
        self._bucket: Any = bucket
        self._lock = threading.Lock()  # a bucket's steps are several
        self._shared_lock: Any = bucket.limiter_lock() or contextlib.nullcontext()  # with other processes
        if inspect.iscoroutine(counted := self._bucket.count()):
            counted.close()
            raise TypeError(f"bucket: expected one that is not for asyncio, got {bucket!r}")

    def ask(self) -> float:
        """Return 0 if a request may be sent now, which then counts; else the seconds after which to ask again."""
        bucket = self._bucket
        with self._lock, self._shared_lock:
            item = _pyrate().RateItem("chanstream", bucket.now())
            decision = bucket.put_decision(item)
            if decision.allowed:
                bucket.leak(item.timestamp)  # what is out of date
                return 0.0
            pause: int | None = decision.retry_after_ms
            return max(_SOONEST, float(bucket.waiting(item) if pause is None else pause) / 1000)


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
    """

    def __init__(self, requests: int, *, per: float = 1.0) -> None:
        if isinstance(requests, bool) or not isinstance(requests, int):
            raise TypeError(f"requests: expected a whole number, got {requests!r}")
        if isinstance(per, bool) or not isinstance(per, (int, float)):
            raise TypeError(f"per: expected a number of seconds, got {per!r}")
        if requests < 1:
            raise ValueError(f"requests: expected 1 or more, got {requests!r}")
        if not 0.001 <= per < float("inf"):
            raise ValueError(f"per: expected seconds, a thousandth or more, got {per!r}")
        pyrate = _pyrate()
        super().__init__(pyrate.InMemoryBucket([pyrate.Rate(requests, round(1000 * per))]))


def _pyrate() -> Any:
    try:
        import pyrate_limiter
    except ImportError as error:
        raise ImportError("a rate limit needs pyrate-limiter: pip install 'chanstream[limits]'") from error
    return pyrate_limiter

"""When a request may be sent: what a rate limiter is to the transport."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol, runtime_checkable

from ..context import Context

_log = logging.getLogger("chanstream")


@runtime_checkable
class RateLimiter(Protocol):
    """Says when the next request may be sent; see `chanstream.limits.RateLimit` for a ready one.

    Thread safety: `ask` is called from all threads that use a client.
    """

    def ask(self) -> float:
        """Return 0 if a request may be sent now, which then counts; else the seconds after which to ask again.

        It must not wait itself: the wait is the library's, so that cancel and deadlines end it. What it raises is
        raised to the caller, and nothing is sent.
        """


def wait_for_turn(limiter: RateLimiter, context: Context) -> None:
    """Wait until the limiter lets a request be sent.

    Raises:
        ChanstreamError: The context was done before.
        TypeError: The limiter's answer is no number of seconds.
    """
    while (pause := asked(limiter)) > 0:
        _log.debug("the rate limiter says to ask again in %.3f s", pause)
        context.wait(pause)
        context.raise_if_done()


def asked(limiter: RateLimiter) -> float:
    """Return what a limiter answers, which is somebody else's code. Infinity counts: as long as one can wait.

    Raises:
        TypeError: It is no number of seconds.
    """
    pause: Any = limiter.ask()
    if isinstance(pause, bool) or not isinstance(pause, (int, float)) or not pause >= 0:
        raise TypeError(f"rate_limiter: expected ask() to return seconds, 0 or more, got {pause!r}")
    return min(pause, threading.TIMEOUT_MAX)

"""One request of a batch, asked: a function from a value to a value, which can be called in another process too."""

from __future__ import annotations

import time
from typing import Any, Protocol

import attrs

from ..context import Context, Timeout
from ..errors import APIStatusError
from ..models.chat import ChatCompletionRequest, ChatCompletionResponse
from ..quotas import RateLimits
from ..transport.session import Tally


class Asker(Protocol):
    """What a batch needs of a client."""

    def collected(
        self,
        request: ChatCompletionRequest,
        tally: Tally,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> ChatCompletionResponse:
        """Return the answer to a request, and note how it came."""


@attrs.frozen(kw_only=True)
class Job:
    """What a worker is told.

    Attributes:
        index: The request's place; id: what it is called. request: What to ask.
        client: Who asks; None on the way to another process.
        timeout: The clocks of this request; None for the client's.
        context: Cancels it; likewise.
        adaptive: Whether the answer's rate limits are wanted.
    """

    index: int
    id: str
    request: ChatCompletionRequest
    client: Any
    timeout: Timeout | float | None = None
    context: Context | None = None
    adaptive: bool = False


@attrs.frozen(kw_only=True)
class Outcome:
    """What a worker tells; see `BatchResult`.

    Attributes:
        pause: Seconds for which the server wants no more requests; 0 where it does not say.
    """

    response: ChatCompletionResponse | None = None
    error: Exception | None = None
    attempts: int = 0
    time_to_first_chunk: float | None = None
    latency: float = 0.0
    pause: float = 0.0


def work(job: Job) -> Outcome:
    """Return what becomes of a request. Raises nothing but what is no `Exception`."""
    started, tally = time.monotonic(), Tally()
    response: ChatCompletionResponse | None = None
    error: Exception | None = None
    try:
        response = job.client.collected(job.request, tally, timeout=job.timeout, context=job.context)
    except Exception as failure:  # noqa: BLE001 - one request's failure is its result
        error = failure
    return Outcome(
        response=response,
        error=error,
        attempts=tally.tries,
        time_to_first_chunk=tally.first_chunk,
        latency=time.monotonic() - started if response is None else response.latency,
        pause=_pause(tally, error) if job.adaptive else 0.0,
    )


def _pause(tally: Tally, error: Exception | None) -> float:
    """Return the seconds for which the server wants no more requests."""
    if isinstance(error, APIStatusError):
        return max(error.retry_after or 0.0, pause_of(error.rate_limits))
    return 0.0 if tally.head is None else pause_of(tally.head.rate_limits)


def pause_of(limits: RateLimits) -> float:
    """Return the seconds for which there shall be no more requests: until there are some left again."""
    return max(
        limits.reset_requests or 0.0 if limits.remaining_requests == 0 else 0.0,
        limits.reset_tokens or 0.0 if limits.remaining_tokens == 0 else 0.0,
    )

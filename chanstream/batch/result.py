"""What a batch gives: a result for each request, and how far it is."""

from __future__ import annotations

import attrs

from ..models.chat import ChatCompletionRequest, ChatCompletionResponse


@attrs.frozen(kw_only=True)
class BatchResult:
    """What became of one request of a batch: an answer or an error. It can be pickled.

    Attributes:
        index: The request's place among all, from 0.
        id: The id that was given with it; its index, as a text, where none was.
        request: What was asked.
        response: The answer; None where there is an error.
        error: What went wrong, nearly always a `ChanstreamError`; None where there is an answer.
        attempts: How often the request was sent.
        time_to_first_chunk: Seconds from the first try to the answer's first chunk; None where none came.
        latency: Seconds from the first try to the end.
    """

    index: int
    id: str
    request: ChatCompletionRequest = attrs.field(repr=False)
    response: ChatCompletionResponse | None = attrs.field(default=None, repr=False)
    error: Exception | None = None
    attempts: int = 0
    time_to_first_chunk: float | None = None
    latency: float = 0.0


@attrs.frozen(kw_only=True)
class BatchProgress:
    """How far a batch is, at the moment at which a result is given.

    Attributes:
        done: Results so far, those with errors among them; failed: how many have one.
        running: Requests on their way.
        tokens: Tokens of all answers so far, where the server says.
        elapsed: Seconds since the batch began.
        total: How many requests there are; None where their iterable does not say.
    """

    done: int
    failed: int
    running: int
    tokens: int
    elapsed: float
    total: int | None

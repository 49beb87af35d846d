"""A large batch against a server that does everything that servers do."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    BatchResult,
    ChanstreamError,
    InternalServerError,
    Retry,
    StreamError,
    Timeout,
)
from chanstream.testing import RecordedRequest, Reply
from tests.conftest import SCALE, Link
from tests.contract.test_13_threads import asking

COUNT = int(os.environ.get("CHANSTREAM_BATCH", "1000"))
"""How many requests there are; a small batch by default."""

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.timeout((60 + COUNT / 20) * SCALE)]

FAULTS = ("limited", "failed", "reset", "cut", "stalled")
ERRORS: dict[str, type[ChanstreamError] | tuple[type[ChanstreamError], ...]] = {
    "failed": InternalServerError,
    "reset": (APIConnectionError, StreamError),
    "cut": StreamError,
    "stalled": APITimeoutError,
}


def kind_of(number: int) -> str:
    """Return what happens to a request: each fault to two of a hundred."""
    place = random.Random(f"kind {number}").randrange(100)
    return FAULTS[place // 2] if place < 2 * len(FAULTS) else "whole"


class Server:
    """Answers by number. Who is limited is so once; 500 comes once or for ever."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def __call__(self, request: RecordedRequest) -> Reply:
        """Answer, or fail in the way of this number."""
        number = int(request.json["messages"][0]["content"])
        self.seen[number] += 1
        whole = Reply(f"{number} is my number")
        if kind_of(number) == "limited" and self.seen[number] == 1:
            return Reply.error(429, headers={"retry-after-ms": "20"})
        if kind_of(number) == "failed" and (number % 2 or self.seen[number] == 1):
            return Reply.error(500)
        faults = {
            "reset": Reply(whole.text, cut_at=number % 700, end="reset"),
            "cut": Reply(whole.text, cut_at=number % 700, end="cut"),
            "stalled": Reply(whole.text, stall_after=number % 3),
        }
        return faults.get(kind_of(number), whole)


def fault_in(result: BatchResult) -> str | None:
    """Return what is wrong with a result; None if it is as it may be."""
    number, kind = result.index, kind_of(result.index)
    if result.error is None:
        whole = result.response is not None and result.response.text == f"{number} is my number"
        return None if whole and kind != "stalled" else "is complete, and yet is not"
    if result.response is not None:
        return "has an answer and an error"
    if kind not in ERRORS or not isinstance(result.error, ERRORS[kind]):
        return f"ended with {result.error!r}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
def test_faults(plain: Link, adaptive: bool) -> None:
    """Each request has exactly one result, with its own answer or an error of the right type, and nothing is left."""
    count = COUNT // 2 if adaptive else COUNT
    server = Server()
    # All faults but 429 and 500 come after the head, and are not tried again: a reset may come with it.
    client = plain.client(
        plain.serve(reply_with=server, keep=1),
        retry=Retry(max_retries=2, min_delay=0.001, max_delay=0.01),
        timeout=Timeout(first_chunk=2 * SCALE, idle=2 * SCALE),
    )
    results = list(client.batch(map(asking, map(str, range(count))), concurrency=64, adaptive=adaptive))
    assert sorted(result.index for result in results) == list(range(count))
    faults = [f"{fault}: {result!r}" for result in results if (fault := fault_in(result))]
    assert faults[:5] == []
    assert all(result.attempts == server.seen[result.index] for result in results)
    kinds = {kind_of(result.index) for result in results if result.error is not None}
    assert kinds == set(ERRORS)

"""A concurrency that follows the server: the rule alone, with a clock of its own, and then with a real server."""

from __future__ import annotations

import heapq
import math
import random
import statistics
import time
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream import InternalServerError, RateLimitError, Retry
from chanstream.batch.adaptive import Adaptive
from chanstream.testing import RecordedRequest, Reply
from tests.conftest import REQUEST, Link

pytestmark = pytest.mark.usefixtures("nothing_left")


@attrs.define
class Told:
    """How a simulated batch went. Times are those of one answer."""

    took: float = 0.0
    tries: int = 0
    refused: int = 0
    most: int = 0


def simulated(pace: Adaptive, allowed: int, total: int, *, seed: int = 0, pause: float = 0.0) -> Told:
    """Return how it goes with a server that allows so many at a time and refuses what comes above."""
    chance, told = random.Random(seed), Told()
    ends: list[tuple[float, int, bool, int]] = []
    now, left, served = 0.0, total, 0
    while left or ends:
        while left and not (wait := pace.wait(len(ends), now)):
            left, told.tries = left - 1, told.tries + 1
            is_served = served < allowed
            served += is_served
            took = chance.uniform(0.75, 1.25) if is_served else 0.05
            ends_at = now + took
            heapq.heappush(ends, (ends_at, told.tries, is_served, pace.sent(len(ends) + 1)))
            told.most = max(told.most, len(ends))
        if not ends:
            assert math.isfinite(wait), "nothing is on its way, and nothing may be sent: it would wait for ever"
            now += wait
            continue
        now, _, is_served, generation = heapq.heappop(ends)
        if is_served:
            served -= 1
            pace.answered(generation, len(ends), 0.0, now)
        else:
            left, told.refused = left + 1, told.refused + 1
            pace.refused(generation, len(ends), pause, now)
    told.took = now
    return told


class TestTheRule:
    """Without a server."""

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("allowed", [3, 20, 50])
    def test_close_to_what_is_allowed(self, allowed: int, seed: int) -> None:
        """With a fixed limit at the server, nine tenths of what it allows are used, and one in twenty is refused."""
        total = max(500, 50 * allowed)
        told = simulated(Adaptive(64), allowed, total, seed=seed)
        assert total / told.took >= 0.9 * allowed
        assert told.refused < 0.05 * told.tries

    def test_all_there_is(self) -> None:
        """A server that refuses nothing is asked by as many at a time as there may be, after a few rounds."""
        told = simulated(Adaptive(64), 1000, 3000)
        assert (told.most, told.refused) == (64, 0)
        assert told.took < 1.15 * 3000 / 64

    def test_halved(self) -> None:
        """A refusal in the beginning halves the limit, and the rest of its burst does no more."""
        pace = Adaptive(64)
        generations = [pace.sent(running) for running in range(1, 9)]
        for running, generation in zip(range(7, -1, -1), generations, strict=True):
            pace.refused(generation, running, 0.0, 0.0)
        assert pace.limit == 4

    def test_a_server_that_allows_less_and_more(self) -> None:
        """The limit follows a server that allows a tenth of what it did, and then all of it again."""
        pace = Adaptive(64)
        simulated(pace, 50, 1000)
        assert 45 <= pace.limit <= 50
        simulated(pace, 5, 500)
        assert 4 <= pace.limit <= 6
        simulated(pace, 1000, 3000)
        assert pace.limit >= 15

    def test_refusals_at_random(self) -> None:
        """A server that refuses one in fifty, whatever it is asked, is still asked by several at a time."""
        pace, chance, limits = Adaptive(64), random.Random(1), []
        for _ in range(5000):
            tell = pace.refused if chance.random() < 0.02 else pace.answered
            tell(pace.sent(pace.limit), pace.limit - 1, 0.0, 0.0)
            limits.append(pace.limit)
        assert statistics.fmean(limits) >= 4

    def test_pauses(self) -> None:
        """For as long as the server wants no requests none is sent; the longest that was asked for counts."""
        pace = Adaptive(4)
        assert pace.wait(0, 10.0) == 0
        pace.refused(pace.sent(1), 0, 2.0, 10.0)
        pace.answered(0, 0, 1.0, 10.5)
        assert pace.wait(0, 11.0) == 1.0
        assert pace.wait(0, 12.0) == 0

    @given(
        most=st.integers(1, 100),
        allowed=st.integers(1, 100),
        seed=st.integers(0, 1000),
        pause=st.sampled_from([0.0, 0.01, 3.0]),
    )
    @settings(max_examples=60, deadline=None)
    def test_it_always_comes_to_an_end(self, most: int, allowed: int, seed: int, pause: float) -> None:
        """Whatever the server allows, all requests are answered, and never are more on their way than there may be."""
        pace = Adaptive(most)
        told = simulated(pace, allowed, 150, seed=seed, pause=pause)
        assert told.tries - told.refused == 150
        assert 1 <= pace.limit <= most
        assert told.most <= most

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 70)), max_size=300), st.integers(1, 64))
    def test_between_1_and_all(self, facts: list[tuple[bool, int, int]], most: int) -> None:
        """Whatever it is told, in whatever order, the limit is between 1 and what there may be."""
        pace = Adaptive(most)
        for is_refused, age, running in facts:
            tell = pace.refused if is_refused else pace.answered
            tell(pace.sent(running) - age, running, 0.0, 0.0)
            assert 1 <= pace.limit <= most


class Busy:
    """A server's answers: so many at a time, each takes a while, and what comes above is refused."""

    def __init__(self, allowed: int, seconds: float) -> None:
        self.refused = 0
        self.answered = 0
        self.used: list[int] = []  # places, whenever a request comes
        self._allowed = allowed
        self._seconds = seconds
        self._ends: list[float] = []

    def __call__(self, _: RecordedRequest) -> Reply:
        """Answer or refuse."""
        now = time.monotonic()
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        if len(self._ends) >= self._allowed:
            self.refused += 1
            return Reply.error(429, headers={"retry-after-ms": "5"})
        self.answered += 1
        heapq.heappush(self._ends, now + self._seconds)
        self.used.append(len(self._ends))
        return Reply("well", head_delay=self._seconds)


@pytest.mark.slow
def test_against_a_real_limit(plain: Link) -> None:
    """Of a server that allows 20 at a time nine tenths are used, and fewer than one try in twenty is refused."""
    for _ in range(4):  # a machine that is busy elsewhere may spoil one
        fixed, adaptive = [
            at_work(plain, 500, concurrency=20),
            at_work(plain, 1500, concurrency=64, adaptive=True),
        ]
        used = statistics.fmean(adaptive.used) / statistics.fmean(fixed.used)
        refused = adaptive.refused / (adaptive.answered + adaptive.refused)
        if used >= 0.9 and refused < 0.05:
            return
    pytest.fail(f"{used:.2f} are used, {refused:.3f} refused")


def at_work(plain: Link, total: int, **how: Any) -> Busy:
    """Return a server that allows 20 at a time, after a batch of so many."""
    busy = Busy(20, 0.08)
    client = plain.client(plain.serve(reply_with=busy, keep=1), retry=Retry())
    results = list(client.batch([REQUEST] * total, **how))
    assert all(result.error is None for result in results)
    assert sum(result.attempts for result in results) == busy.answered + busy.refused
    return busy


@pytest.mark.parametrize(
    ("reply", "pause"),
    [
        (Reply.error(429, headers={"retry-after-ms": "150"}), 0.15),
        (Reply("a", headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "150ms"}), 0.15),
        (Reply("a", headers={"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "0.15s"}), 0.15),
    ],
)
def test_nothing_is_sent_before_its_time(plain: Link, reply: Reply, pause: float) -> None:
    """While the server wants no requests none of the batch is sent, be it the refused one or another."""
    times = []

    def answer(_: RecordedRequest) -> Reply:
        times.append(time.monotonic())
        return reply if len(times) == 1 else Reply("b")

    client = plain.client(plain.serve(reply_with=answer), retry=Retry())
    results = list(client.batch([REQUEST] * 3, concurrency=1, adaptive=True))
    assert [result.error for result in results] == [None] * 3
    assert times[1] - times[0] >= pause


def test_a_refused_request_gives_its_place_back(plain: Link) -> None:
    """While a refused request waits for its next try another is asked in its place; its latency covers it all."""
    replies = {1: Reply.error(429)}
    server = plain.serve(reply_with=lambda _: replies.get(len(server.requests), Reply("well")))
    client = plain.client(server, retry=Retry(min_delay=1e9, max_delay=0.2))
    first, second = client.batch([REQUEST] * 2, concurrency=1, adaptive=True)
    assert {first.attempts, second.attempts} == {1, 2}
    refused = first if first.attempts == 2 else second
    assert refused.index == 0
    assert refused.latency >= refused.time_to_first_chunk > 0  # type: ignore[operator]


def test_a_server_that_always_refuses(plain: Link) -> None:
    """A request that is refused again and again has that for a result in the end."""
    server = plain.serve(Reply.error(429))
    client = plain.client(server, retry=Retry(max_retries=2, min_delay=0.001))
    results = list(client.batch([REQUEST] * 2, adaptive=True))
    assert {type(result.error) for result in results} == {RateLimitError}
    assert [result.attempts for result in results] == [7, 7]
    assert len(server.requests) == 14


def test_without_retries(plain: Link) -> None:
    """A client that never tries again does not in an adaptive batch either."""
    server = plain.serve(Reply.error(429), "well")
    results = list(plain.client(server).batch([REQUEST] * 2, concurrency=1, adaptive=True))
    assert [(type(result.error), result.attempts) for result in results] == [(RateLimitError, 1), (type(None), 1)]


def test_other_failures_are_the_clients(plain: Link) -> None:
    """What is no refusal for want of room is tried again by the client, as ever."""
    server = plain.serve(Reply.error(500), Reply.error(500), "well", Reply.error(500))
    client = plain.client(server, retry=Retry(max_retries=2, min_delay=0.001))
    results = list(client.batch([REQUEST] * 2, concurrency=1, adaptive=True))
    assert [(type(result.error), result.attempts) for result in results] == [
        (type(None), 3),
        (InternalServerError, 3),
    ]

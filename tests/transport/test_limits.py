"""The wait for a rate limiter: on its own, without a request."""

from __future__ import annotations

import math
import threading
import time
from decimal import Decimal
from typing import Any

import pytest

from chanstream import APITimeoutError, Context, StreamCancelledError
from chanstream.limits import BucketLimit, RateLimit
from chanstream.transport.limits import RateLimiter, asked, wait_for_turn
from tests.concurrency import spawn
from tests.conftest import PROMPT, SCALE


class Says:
    """A limiter that gives one answer after the other, the last one again and again.

    Attributes:
        asks: When it was asked, on `time.monotonic`.
        asked: Set once it has been asked.
    """

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asks: list[float] = []
        self.asked = threading.Event()

    def ask(self) -> Any:
        """Return the next answer, or raise it."""
        self.asks.append(time.monotonic())
        self.asked.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


NONSENSE = pytest.mark.parametrize(
    "answer", [None, True, False, "1", b"", -1, -0.001, -math.inf, math.nan, Decimal(1), 1j, [0.0], Ellipsis], ids=repr
)


class TestProtocol:
    def test_what_is_a_limiter(self) -> None:
        """Whatever has an `ask` is a limiter, ours among them; nothing has to be inherited."""
        limiters: list[RateLimiter] = [RateLimit(1), Says(0)]
        assert all(isinstance(limiter, RateLimiter) for limiter in limiters)
        assert issubclass(RateLimit, BucketLimit)
        assert not isinstance(object(), RateLimiter)


class TestAsked:
    @pytest.mark.parametrize("answer", [0, 0.0, -0.0, 1, 0.25, 1e6])
    def test_seconds(self, answer: float) -> None:
        """Any number from 0 is an answer."""
        assert asked(Says(answer)) == answer

    @pytest.mark.parametrize("answer", [10**400, 1e300, math.inf])
    def test_more_than_can_be_waited(self, answer: float) -> None:
        """An answer beyond what can be waited for, infinity among them, is what can be waited for at most."""
        assert asked(Says(answer)) == threading.TIMEOUT_MAX

    @NONSENSE
    def test_nonsense(self, answer: Any) -> None:
        """What is no number of seconds is a TypeError that names the argument and shows the answer."""
        with pytest.raises(TypeError, match=r"^rate_limiter: expected ask\(\) to return seconds") as caught:
            asked(Says(answer))
        assert repr(answer) in str(caught.value)


class TestWait:
    def test_no_wait(self) -> None:
        """0 is the turn: the limiter is asked once."""
        limiter = Says(0)
        wait_for_turn(limiter, Context())
        assert len(limiter.asks) == 1

    def test_until_it_is_the_turn(self) -> None:
        """The limiter is asked again after each pause that it wants, until it says 0."""
        limiter = Says(0.02, 0.04, 0.0)
        wait_for_turn(limiter, Context())
        first, second, third = limiter.asks
        assert second - first >= 0.02
        assert third - second >= 0.04

    @pytest.mark.parametrize("pause", [1000, 10**400, math.inf])
    def test_cancel(self, pause: float) -> None:
        """A cancel ends any wait at once, one without end too."""
        limiter, context = Says(pause), Context()
        waiting = spawn(wait_for_turn, limiter, context)
        assert limiter.asked.wait(5)
        begun = time.monotonic()
        context.cancel()
        assert isinstance(waiting.exception(5), StreamCancelledError)
        assert time.monotonic() - begun < PROMPT
        assert len(limiter.asks) == 1

    def test_a_deadline(self) -> None:
        """A deadline ends the wait with its error, although the turn would come later."""
        begun = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            wait_for_turn(Says(1000), Context(0.05))
        assert caught.value.clock == "context"
        assert 0.05 <= time.monotonic() - begun < 0.05 + PROMPT * SCALE

    def test_a_limiter_that_raises(self) -> None:
        """What a limiter raises goes to the caller as it is, and it is not asked again."""
        limiter = Says(LookupError("no such bucket"))
        with pytest.raises(LookupError, match=r"^'?no such bucket'?$"):
            wait_for_turn(limiter, Context())
        assert len(limiter.asks) == 1

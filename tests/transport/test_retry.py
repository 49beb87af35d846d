"""When to try again, and after how long: arithmetic, without a clock or a server."""

from __future__ import annotations

import email.utils
import math
import time
from typing import Any

import pytest

from chanstream import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    ChanstreamError,
    RateLimitError,
    Retry,
    StreamCancelledError,
    StreamInterruptedError,
)
from chanstream.transport.retry import RETRIED_STATUSES, retry_after

LOST = APIConnectionError("lost")
DRAWS = 2000


class TestDelay:
    @pytest.mark.parametrize(("retries", "bound"), [(0, 0.2), (1, 0.4), (2, 0.8), (3, 1.0), (4, 1.0), (2000, 1.0)])
    def test_is_full_jitter(self, retries: int, bound: float) -> None:
        """Waits are spread over all of 0 to a bound that doubles from 0.2 s and stays at 1 s."""
        draws = [Retry().delay(LOST, retries) for _ in range(DRAWS)]
        assert all(0 <= draw <= bound for draw in draws)
        for tenth in range(10):
            share = sum(tenth * bound / 10 <= draw < (tenth + 1) * bound / 10 for draw in draws)
            assert share > DRAWS / 20  # a tenth is due; half of that does not happen by chance

    def test_bounds_can_be_set(self) -> None:
        """Both bounds are the caller's choice, and 0 is no wait."""
        eager = Retry(min_delay=0.0)
        short = Retry(min_delay=5.0, max_delay=0.01)
        assert {eager.delay(LOST, retries) for retries in range(5)} == {0.0}
        assert all(short.delay(LOST, 0) <= 0.01 for _ in range(DRAWS))

    @pytest.mark.parametrize(("asked", "waited"), [(0.0, 0.0), (0.5, 0.5), (7.0, 7.0), (60.0, 60.0), (61.0, 60.0)])
    def test_is_what_the_server_asks_for(self, asked: float, waited: float) -> None:
        """A server that says how long is obeyed to the letter, up to the cap."""
        error = RateLimitError("slow down", status_code=429, retry_after=asked)
        assert {Retry().delay(error, retries) for retries in range(3)} == {waited}

    def test_is_our_own_where_the_server_does_not_ask(self) -> None:
        """A refusal without a word about it is waited for like a lost connection."""
        error = RateLimitError("slow down", status_code=429)
        assert all(0 <= Retry().delay(error, 0) <= 0.2 for _ in range(DRAWS))


class TestAllows:
    @pytest.mark.parametrize("status", range(400, 600))
    def test_statuses(self, status: int) -> None:
        """Of all refusals exactly those are tried again that a second try may mend."""
        allowed = Retry().allows(APIStatusError(status_code=status), 0)
        assert allowed == (status in (408, 409, 429, 500, 502, 503, 504)) == (status in RETRIED_STATUSES)

    @pytest.mark.parametrize(
        ("error", "allowed"),
        [
            (LOST, True),
            (APITimeoutError(clock="connect", seconds=1), True),
            (APITimeoutError(clock="first_chunk", seconds=1), True),
            (APITimeoutError(clock="idle", seconds=1), False),
            (APITimeoutError(clock="total", seconds=1), False),
            (APITimeoutError(clock="context", seconds=1), False),
            (APIError("in an answer of status 200"), False),
            (StreamInterruptedError("in the middle"), False),
            (StreamCancelledError("by the caller"), False),
        ],
        ids=lambda value: getattr(value, "clock", None) or str(value),
    )
    def test_errors(self, error: ChanstreamError, allowed: bool) -> None:
        """Failures to connect and to get a head are tried again; what ends the call or has begun to answer is not."""
        assert Retry().allows(error, 0) is allowed

    @pytest.mark.parametrize("most", [0, 1, 3])
    def test_count(self, most: int) -> None:
        """After max_retries there is no further try."""
        retry = Retry(max_retries=most)
        assert [retry.allows(LOST, retries) for retries in range(5)] == [retries < most for retries in range(5)]

    def test_statuses_of_the_callers_choice(self) -> None:
        """Other statuses can be given in place of the usual ones, in any collection."""
        retry = Retry(statuses=[418])
        assert retry.allows(APIStatusError(status_code=418), 0)
        assert not retry.allows(APIStatusError(status_code=503), 0)
        assert retry.statuses == frozenset({418})


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "3"}, 3.0),
            ({"retry-after": " 3 "}, 3.0),
            ({"retry-after": "0"}, 0.0),
            ({"retry-after": "0.25"}, 0.25),
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after-ms": "0"}, 0.0),
            ({"retry-after-ms": "20", "retry-after": "3"}, 0.02),
            ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
            ({"retry-after-ms": "-1", "retry-after": "3"}, 3.0),
            ({"retry-after-ms": "inf"}, None),
            ({"retry-after-ms": "nan"}, None),
            ({"retry-after": ""}, None),
            ({"retry-after": "-3"}, None),
            ({"retry-after": "1e999"}, None),
            ({"retry-after": "soon"}, None),
            ({"retry-after": "Wed, 21 Oct 999999999 07:28:00 GMT"}, None),
            ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
            ({"retry-after": "Wednesday, 21-Oct-15 07:28:00 GMT"}, 0.0),
            ({"retry-after": "Wed Oct 21 07:28:00 2015"}, 0.0),
        ],
        ids=str,
    )
    def test_forms(self, headers: dict[str, str], seconds: float | None) -> None:
        """Seconds, milliseconds and dates are read; what is neither counts as not said."""
        assert retry_after(headers) == seconds

    def test_a_date_to_come(self) -> None:
        """A date says how long it is until then."""
        seconds = retry_after({"retry-after": email.utils.formatdate(time.time() + 100, usegmt=True)})
        assert seconds is not None
        assert 98 < seconds <= 100


class TestBadValues:
    @pytest.mark.parametrize("name", ["max_retries", "min_delay", "max_delay", "max_retry_after"])
    @pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, "1", None, True])
    def test_are_refused(self, name: str, value: Any) -> None:
        """A number that cannot be is refused at once, by name."""
        with pytest.raises((TypeError, ValueError), match=name):
            Retry(**{name: value})

    def test_half_a_retry(self) -> None:
        """There is no half of a retry."""
        with pytest.raises(TypeError, match="max_retries"):
            Retry(max_retries=1.5)  # type: ignore[arg-type]

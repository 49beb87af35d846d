"""What the head of an answer says: ids, limits, durations."""

from __future__ import annotations

import math

import pytest
from requests.structures import CaseInsensitiveDict

from chanstream import RateLimitError, RateLimits, ResponseHead
from chanstream.quotas import seconds_in
from chanstream.testing import Reply
from tests.conftest import REQUEST, Link


def head(**headers: str) -> ResponseHead:
    """Return a head with these headers, ``_`` in their names standing for ``-``."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return ResponseHead(200, CaseInsensitiveDict(fields))


class TestSecondsIn:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("7.66s", 7.66),
            ("2m59.56s", 179.56),
            ("1h2m3s", 3723.0),
            ("1d", 86400.0),
            ("6ms", 0.006),
            ("1s500ms", 1.5),
            ("250us", 0.00025),
            ("250\u00c2\u00b5s", 0.00025),  # Go writes µs, in UTF-8, and headers are read as Latin-1
            ("9ns", 9e-9),
            ("0s", 0.0),
            ("60", 60.0),
            ("1.5", 1.5),
        ],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        """Durations as Go writes them, and bare numbers of seconds, are read."""
        assert seconds_in(text) == pytest.approx(seconds)

    @pytest.mark.parametrize("text", ["", "soon", "7 s", "s", "3x", "1m later", "m5s", "2026-01-01T00:00:00Z", "1..2s"])
    def test_anything_else(self, text: str) -> None:
        """What is no duration is None, and no error."""
        assert seconds_in(text) is None

    @pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e999", "9" * 400 + "h"])
    def test_no_time_that_can_come(self, text: str) -> None:
        """A number that is no time is not taken for one."""
        seconds = seconds_in(text)
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


class TestRateLimits:
    def test_of_groq(self) -> None:
        """All six numbers are read, the resets as seconds."""
        limits = head(
            x_ratelimit_limit_requests="14400",
            x_ratelimit_remaining_requests="14370",
            x_ratelimit_reset_requests="2m59.56s",
            x_ratelimit_limit_tokens="18000",
            x_ratelimit_remaining_tokens="17997",
            x_ratelimit_reset_tokens="7.66s",
        ).rate_limits
        assert limits == RateLimits(14400, 14370, 2 * 60 + 59.56, 18000, 17997, 7.66)

    def test_of_a_refusal(self, plain: Link) -> None:
        """A refusal has them as an answer has."""
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}
        client = plain.client(plain.serve(Reply.error(429, headers=headers)))
        with pytest.raises(RateLimitError) as caught:
            client.chat_completion_stream(REQUEST)
        assert caught.value.rate_limits == RateLimits(remaining_requests=0, reset_requests=360.0)

    def test_of_a_server_that_says_nothing(self) -> None:
        """What the server does not say is None."""
        assert head().rate_limits == RateLimits()

    @pytest.mark.parametrize("text", ["", "many", "-1", "1.5", "1e3", "٣", "1" * 400, "1, 2"])
    def test_no_number(self, text: str) -> None:
        """What is no count is None, and no error."""
        assert head(x_ratelimit_limit_requests=text).rate_limits.limit_requests is None

    def test_over_the_wire(self, plain: Link) -> None:
        """A stream's response has status, headers, id and limits of the answer it belongs to."""
        headers = {"X-RateLimit-Remaining-Tokens": "5", "X-Request-ID": "req-1", "Date-Of-Nothing": "x"}
        stream = plain.stream(Reply("one", headers=headers))
        assert stream.response.status_code == 200
        assert stream.response.request_id == "req-1"
        assert stream.response.rate_limits.remaining_tokens == 5
        assert stream.response.headers["date-of-nothing"] == "x"
        assert stream.response.content_type == "text/event-stream"
        assert stream.collect().text == "one"


class TestIds:
    @pytest.mark.parametrize("name", ["x-request-id", "Request-Id", "mistral-correlation-id", "X-Groq-Request-Id"])
    def test_by_any_name(self, name: str) -> None:
        """The id of a request is found under each of the names that servers give it."""
        assert head(**{name: "req-1"}).request_id == "req-1"

    def test_none(self) -> None:
        """Without one it is None."""
        assert head().request_id is None


class TestContentType:
    def test_none(self) -> None:
        """Without one the body counts as an event stream."""
        assert head().content_type == "text/event-stream"
        assert head(Content_Type="application/json; charset=utf-8").content_type == "application/json; charset=utf-8"

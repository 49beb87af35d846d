"""Promise 10: retries are safe.

What failed before the first chunk is tried again, with patience and as the server asks; what has begun to answer is
not. Every wait can be cancelled, and no refused body stays open.
"""

from __future__ import annotations

import email.utils
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chanstream import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    Client,
    Context,
    InternalServerError,
    RateLimitError,
    Retry,
    StreamCancelledError,
    StreamError,
    Timeout,
)
from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

HASTY = Retry(min_delay=0.001, max_delay=0.002)
"""Three retries, with no wait to speak of."""

NO_HEAD = Reply(head_delay=math.inf)
HANG_UP = Reply(raw=b"", end="cut")
RESET = Reply(raw=b"", end="reset")
OK = Reply("at last")

WAYS: dict[str, Callable[[Client], str]] = {
    "stream": lambda client: client.chat_completion_stream(REQUEST).collect().text,
    "whole": lambda client: client.chat_completion(REQUEST).text,
}
BOTH_WAYS = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


class Timed:
    """Answers one reply after the other, and notes when each was asked for."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked_at: list[float] = []

    def __call__(self, request: RecordedRequest) -> Reply:
        """Return the next reply; the last one again and again."""
        self.asked_at.append(time.monotonic())
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def waits(self) -> list[float]:
        """Return the seconds between one request and the next."""
        return [later - earlier for earlier, later in zip(self.asked_at, self.asked_at[1:], strict=False)]


class TestWhatIsTriedAgain:
    @BOTH_WAYS
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
    def test_a_status_that_may_pass(self, plain: Link, status: int, ask: Callable[[Client], str]) -> None:
        """A refusal that may be over in a moment is tried again."""
        server = plain.serve(Reply.error(status), OK)
        assert ask(plain.client(server, retry=HASTY)) == "at last"
        assert len(server.requests) == 2

    @BOTH_WAYS
    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 451, 501, 505])
    def test_a_status_that_stays(self, plain: Link, status: int, ask: Callable[[Client], str]) -> None:
        """A refusal that would be the same again is raised at once."""
        server = plain.serve(Reply.error(status), OK)
        client = plain.client(server, retry=HASTY)
        with pytest.raises(APIStatusError) as caught:
            ask(client)
        assert caught.value.status_code == status
        assert len(server.requests) == 1

    @BOTH_WAYS
    @pytest.mark.parametrize("failure", [HANG_UP, RESET], ids=["hangs up", "resets"])
    def test_no_head(self, link: Link, failure: Reply, ask: Callable[[Client], str]) -> None:
        """A server that takes the request and ends the connection without a head is asked again."""
        server = link.serve(failure, failure, OK)
        assert ask(link.client(server, retry=HASTY)) == "at last"
        assert [request.connection for request in server.requests] == [1, 2, 3]

    @BOTH_WAYS
    def test_a_connection_that_died_in_the_pool(self, link: Link, ask: Callable[[Client], str]) -> None:
        """A server that ends a connection between two requests costs the second one nothing but a retry."""
        server = link.serve(OK, HANG_UP, OK)
        client = link.client(server, retry=HASTY)
        assert [ask(client), ask(client)] == ["at last"] * 2

    @BOTH_WAYS
    def test_a_silent_head(self, link: Link, ask: Callable[[Client], str]) -> None:
        """A server that says nothing until the clock for the head runs out is asked again, on another connection."""
        server = link.serve(NO_HEAD, OK)
        client = link.client(server, retry=HASTY, timeout=Timeout(first_chunk=0.15 * SCALE))
        assert ask(client) == "at last"
        assert [request.connection for request in server.requests] == [1, 2]
        assert server.wait_for(lambda s: s.open_connections <= 1, PROMPT)

    @BOTH_WAYS
    def test_a_refused_connection(self, plain: Link, ask: Callable[[Client], str]) -> None:
        """A server that is about to start is asked until it is there."""
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
            port = reserved.getsockname()[1]
            with pytest.raises(APIConnectionError, match="refused"):
                ask(plain.client(f"http://127.0.0.1:{port}", retry=Retry(max_retries=0)))
        patient = Retry(max_retries=100, min_delay=0.05, max_delay=0.05)
        answers: list[str] = []
        client = plain.client(f"http://127.0.0.1:{port}", retry=patient)
        caller = threading.Thread(target=lambda: answers.append(ask(client)))
        caller.start()
        with StreamServer(OK, port=port):
            caller.join(10)
        assert answers == ["at last"]

    def test_a_connection_that_does_not_come_about(self, plain: Link) -> None:
        """A connect timeout is tried again, with its whole time."""
        with socket.create_server(("127.0.0.1", 0)) as mute:  # which takes part in no handshake of TLS
            url = f"https://127.0.0.1:{mute.getsockname()[1]}"
            client = plain.client(url, retry=Retry(max_retries=2, min_delay=0.0), timeout=Timeout(connect=0.1))
            begun = time.monotonic()
            with pytest.raises(APITimeoutError) as caught:
                client.chat_completion_stream(REQUEST)
        assert caught.value.clock == "connect"
        assert 0.3 <= time.monotonic() - begun < 0.3 + 4 * PROMPT

    @pytest.mark.parametrize("link", ["tls"], indirect=True)
    def test_an_unknown_certificate(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that the client does not trust is told by the words of TLS, without its key having been sent."""
        server = link.serve(OK)
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(APIConnectionError, match="certificate verify failed"):
            link.client(server).chat_completion_stream(REQUEST)
        assert server.requests == ()


class TestHowOften:
    def test_three_times_by_default(self, plain: Link) -> None:
        """After three retries the last refusal is raised; the waits between are short and grow."""
        timed = Timed(Reply.error(500, "one"), Reply.error(502, "two"), Reply.error(503, "three"), Reply.error(504))
        server = plain.serve(reply_with=timed)
        with pytest.raises(InternalServerError) as caught:
            plain.client(server, retry=Retry()).chat_completion_stream(REQUEST)
        assert caught.value.status_code == 504
        slack = 2 * PROMPT
        bounds = [0.2 + slack, 0.4 + slack, 0.8 + slack]
        assert all(wait < bound for wait, bound in zip(timed.waits(), bounds, strict=True))

    @pytest.mark.parametrize("most", [0, 1, 5])
    def test_as_often_as_set(self, link: Link, most: int) -> None:
        """max_retries is the number of tries after the first."""
        server = link.serve(Reply.error(503))
        client = link.client(server, retry=Retry(max_retries=most, min_delay=0.0))
        with pytest.raises(InternalServerError):
            client.chat_completion_stream(REQUEST)
        assert len(server.requests) == most + 1

    def test_for_other_statuses(self, plain: Link) -> None:
        """The statuses that are tried again can be chosen."""
        server = plain.serve(Reply.error(425), OK, Reply.error(503))
        client = plain.client(server, retry=Retry(statuses={425}, min_delay=0.0))
        assert client.chat_completion_stream(REQUEST).collect().text == "at last"
        with pytest.raises(InternalServerError):
            client.chat_completion_stream(REQUEST)
        assert len(server.requests) == 3

    def test_each_time_with_the_same_body(self, link: Link) -> None:
        """Every try sends the same request, key and all."""
        server = link.serve(Reply.error(503), RESET, OK)
        link.client(server, retry=HASTY).chat_completion_stream(REQUEST).collect()
        first, second, third = server.requests
        assert first.body == second.body == third.body != b""
        assert {request.headers["Authorization"] for request in server.requests} == {"Bearer test-key"}


class TestWhatTheServerAsksFor:
    @pytest.mark.parametrize(
        ("headers", "least", "most"),
        [
            ({"retry-after-ms": "150"}, 0.15, 0.15),
            ({"retry-after-ms": "150.5"}, 0.15, 0.15),
            ({"Retry-After": "1"}, 1.0, 1.0),
            ({"Retry-After": "0.2"}, 0.2, 0.2),
            ({"Retry-After": "0"}, 0.0, 0.0),
            ({"Retry-After": "30", "retry-after-ms": "150"}, 0.15, 0.15),
            ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0, 0.0),
            ({"Retry-After": "soon"}, 0.0, 0.01),
            ({"Retry-After": "-5"}, 0.0, 0.01),
            ({"Retry-After": "nan", "retry-after-ms": "inf"}, 0.0, 0.01),
        ],
        ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
    )
    def test_is_done(self, plain: Link, headers: dict[str, str], least: float, most: float) -> None:
        """Seconds, a date and milliseconds are waited for; what cannot be read counts as not said."""
        timed = Timed(Reply.error(429, headers=headers), OK)
        client = plain.client(plain.serve(reply_with=timed), retry=Retry(min_delay=0.01, max_delay=0.01))
        assert client.chat_completion_stream(REQUEST).collect().text == "at last"
        (wait,) = timed.waits()
        assert least <= wait < most + 2 * PROMPT

    def test_a_date_to_come(self, plain: Link) -> None:
        """A date is waited for: the next try is not before it."""
        due = math.ceil(time.time() + 0.2)
        timed = Timed(Reply.error(503, headers={"Retry-After": email.utils.formatdate(due, usegmt=True)}), OK)
        client = plain.client(plain.serve(reply_with=timed), retry=HASTY)
        client.chat_completion_stream(REQUEST).collect()
        assert due - 0.01 <= time.time() < due + 4 * PROMPT

    @pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"retry-after-ms": "1e9"}], ids=["s", "ms"])
    def test_up_to_a_cap(self, link: Link, headers: dict[str, str]) -> None:
        """A server cannot have the client wait for longer than the cap."""
        timed = Timed(Reply.error(429, headers=headers), OK)
        client = link.client(link.serve(reply_with=timed), retry=Retry(max_retry_after=0.15))
        client.chat_completion_stream(REQUEST).collect()
        assert 0.15 <= timed.waits()[0] < 0.15 + 2 * PROMPT

    def test_is_told(self, link: Link) -> None:
        """A refusal that is raised says how long the server asked to wait."""
        server = link.serve(Reply.error(429, headers={"Retry-After": "7"}))
        with pytest.raises(RateLimitError) as caught:
            link.client(server).chat_completion_stream(REQUEST)
        assert caught.value.retry_after == 7.0


class TestTheWait:
    @BOTH_WAYS
    @pytest.mark.parametrize("headers", [{"Retry-After": "30"}, {}], ids=["asked for", "of our own"])
    def test_can_be_cancelled(self, link: Link, ask: Callable[..., str], headers: dict[str, str]) -> None:
        """context.cancel() ends the wait before a retry at once, and nothing more is sent."""
        server = link.serve(Reply.error(503, headers=headers), OK)
        context = Context()
        client = link.client(server, retry=Retry(min_delay=1e6, max_delay=1e6))
        call = client.chat_completion_stream if ask is WAYS["stream"] else client.chat_completion
        caught: list[tuple[float, BaseException]] = []

        def consume() -> None:
            try:
                call(REQUEST, context=context)
            except StreamCancelledError as error:
                caught.append((time.monotonic(), error))

        caller = threading.Thread(target=consume)
        caller.start()
        # The refusal has been read once its connection is back in the pool, hence idle: give that a moment.
        assert server.wait_for(lambda s: len(s.requests) == 1)
        assert not within(0.05, lambda: not caller.is_alive())
        begun = time.monotonic()
        context.cancel()
        caller.join(5)
        assert caught[0][0] - begun < PROMPT
        assert len(server.requests) == 1


class TestRefusedBodies:
    @BOTH_WAYS
    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_the_connection_is_used_again(self, link: Link, ask: Callable[[Client], str], framing: Any) -> None:
        """A refusal that was read to its end leaves its connection to the next try."""
        refusal = Reply(body=b'{"detail": "no"}', status=503, content_type="application/json", framing=framing)
        server = link.serve(refusal, refusal, OK)
        assert ask(link.client(server, retry=HASTY)) == "at last"
        assert server.connections == 1

    @pytest.mark.parametrize(
        "refusal",
        [
            Reply(body=b"x" * 1_000_000, status=503),
            Reply(body=b"no", status=503, end="hold"),
            Reply(body=b"no", status=503, end="reset"),
            Reply(body=b"no", status=503, framing="close"),
        ],
        ids=["too long to read", "without an end", "reset", "close-delimited"],
    )
    def test_the_connection_is_closed(self, link: Link, refusal: Reply) -> None:
        """A refusal that was not read to its end, or whose connection ends with it, leaves no socket open."""
        server = link.serve(refusal, OK)
        client = link.client(server, retry=HASTY, timeout=Timeout(first_chunk=0.15 * SCALE))
        assert client.chat_completion_stream(REQUEST).collect().text == "at last"
        assert [request.connection for request in server.requests] == [1, 2]
        assert server.wait_for(lambda s: s.open_connections == 1)

    @pytest.mark.parametrize("size", [10, 1_000_000])
    def test_of_the_last_refusal(self, link: Link, size: int) -> None:
        """The error that is raised in the end holds no connection, be it kept or not."""
        server = link.serve(Reply(body=b"x" * size, status=500))
        client = link.client(server)
        for _ in range(3):
            with pytest.raises(InternalServerError, match=r"\[500\] xxxxxxxxxx"):
                client.chat_completion_stream(REQUEST)
        assert server.wait_for(lambda s: s.open_connections <= 1)
        assert server.connections == (1 if size == 10 else 3)


class TestNoRetryAfterTheHead:
    @pytest.mark.parametrize(
        "reply",
        [
            Reply("one two", cut_at=0, end="cut"),
            Reply("one two", cut_at=0, end="reset"),
            Reply("one two", cut_at=250, end="cut"),
            Reply("one two", cut_at=250, end="reset"),
            Reply(body=b""),
            Reply(chunks=[{"error": {"message": "overloaded", "code": 503}}]),
            Reply("one two", stall_after=0),
            Reply("one two", stall_after=1),
        ],
        ids=["cut at once", "reset at once", "cut", "reset", "empty", "error", "silent", "silent in the middle"],
    )
    def test_of_a_stream(self, link: Link, reply: Reply) -> None:
        """Whatever happens to a stream after its head is delivered, and nothing is sent a second time."""
        server = link.serve(reply, OK)
        client = link.client(server, retry=HASTY, timeout=Timeout(first_chunk=0.3 * SCALE, idle=0.1 * SCALE))
        *_, last = client.chat_completion_stream(REQUEST)
        assert isinstance(last.error, (StreamError, APIError, APITimeoutError))
        assert len(server.requests) == 1

    def test_of_an_error_in_a_whole_answer(self, plain: Link) -> None:
        """Without streaming, an error in an answer of status 200 is raised and not tried again."""
        server = plain.serve(Reply.json({"error": {"message": "overloaded"}}), OK)
        with pytest.raises(APIError, match="overloaded"):
            plain.client(server, retry=HASTY).chat_completion(REQUEST)
        assert len(server.requests) == 1

"""Promise 1: head first.

The call returns once the head of the answer is in: what goes wrong before is raised, what goes wrong later comes in
band, as one chunk with ``error`` set, or is raised by the iteration where the caller wants that.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from typing import Any, Literal

import attrs
import pytest

from chanstream import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChannelClosedError,
    ChanstreamError,
    ConflictError,
    EventTooLargeError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
    UnprocessableEntityError,
)
from chanstream.testing import Reply, StreamServer
from tests.conftest import REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

AT_ONCE = Retry(max_retries=2, min_delay=0, max_delay=0)


class TestTheCallReturns:
    def test_once_the_head_is_in(self, link: Link) -> None:
        """The call returns with the head, though the server has not sent one event and never will."""
        with link.stream(Reply(stall_after=0, headers={"X-Request-Id": "r-1"})) as stream:
            assert stream.response.status_code == 200
            assert stream.response.content_type == "text/event-stream"
            assert stream.response.request_id == "r-1"
            assert (stream.state, stream.qsize()) == ("streaming", 0)

    def test_not_before_the_head_is_in(self, link: Link) -> None:
        """The call waits for a head that is late."""
        begun = time.monotonic()
        with link.stream(Reply("late", head_delay=0.2)) as stream:
            assert time.monotonic() - begun >= 0.2
            assert "".join(evt.text for evt in stream) == "late"

    def test_after_it_sent_the_request(self, link: Link) -> None:
        """The call sends the request itself: the first look at the stream is not what starts it."""
        server = link.serve("yes")
        with link.client(server).chat_completion_stream(REQUEST):
            [asked] = server.requests
        assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
        assert asked.json["stream"] is True
        assert asked.json["model"] == REQUEST.model
        assert asked.json["messages"] == [{"role": "user", "content": "Say it."}]


# -- before the head -------------------------------------------------------------------------------------------------

FINDING = {"type": "extra_forbidden", "loc": ["body", "parallel_tool_callss"], "msg": "Extra inputs are not permitted"}
MISSING = {"type": "missing", "loc": ["body", "messages", 0], "msg": "Field required"}
MISTRAL = {"object": "error", "message": {"detail": [FINDING]}, "type": "invalid_request_error", "code": None}

REFUSALS: list[Any] = [
    pytest.param(
        Reply.json(MISTRAL, 400),
        BadRequestError,
        "[400] invalid_request_error: extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss)",
        id="400 Mistral",
    ),
    pytest.param(
        Reply.json({"detail": [FINDING, MISSING]}, 422),
        UnprocessableEntityError,
        "[422] extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss);"
        " missing: Field required (body.messages.0)",
        id="422 FastAPI",
    ),
    pytest.param(
        Reply.json(
            {"object": "error", "message": "no such model", "type": "NotFoundError", "param": None, "code": 404}, 404
        ),
        NotFoundError,
        "[404] NotFoundError: no such model",
        id="404 older vLLM",
    ),
    pytest.param(
        Reply.json({"detail": "Unauthorized"}, 401), AuthenticationError, "[401] Unauthorized", id="401 Mistral"
    ),
    pytest.param(Reply.json({"error": "Unauthorized"}, 401), AuthenticationError, "[401] Unauthorized", id="401 text"),
    pytest.param(
        Reply.error(401, "Incorrect API key provided", type="invalid_request_error", code="invalid_api_key"),
        AuthenticationError,
        "[401] invalid_request_error: Incorrect API key provided",
        id="401 OpenAI",
    ),
    pytest.param(
        Reply.json({"error": "SyntaxError", "message": "Unexpected token"}, 400),
        BadRequestError,
        "[400] SyntaxError: Unexpected token",
        id="400 two texts",
    ),
    pytest.param(Reply.error(403, "not yours"), PermissionDeniedError, "[403] api_error: not yours", id="403"),
    pytest.param(Reply.error(409, "busy"), ConflictError, "[409] api_error: busy", id="409"),
    pytest.param(Reply.error(418, "teapot"), APIStatusError, "[418] api_error: teapot", id="418"),
    pytest.param(Reply.error(429, "slow down", type="tokens"), RateLimitError, "[429] tokens: slow down", id="429"),
    pytest.param(
        Reply(body=b"Internal Server Error", status=500, content_type="text/plain; charset=utf-8"),
        InternalServerError,
        "[500] Internal Server Error",
        id="500 text",
    ),
    pytest.param(
        Reply.html("<html>\n<h1>Bad Gateway</h1>\n</html>", 502),
        InternalServerError,
        "[502] <html> <h1>Bad Gateway</h1> </html>",
        id="502 HTML",
    ),
    pytest.param(Reply.error(503), InternalServerError, "[503] api_error: Service Unavailable", id="503"),
    pytest.param(Reply.error(529, "overloaded"), InternalServerError, "[529] api_error: overloaded", id="529"),
    pytest.param(Reply(body=b"", status=500), InternalServerError, "[500]", id="500 nothing"),
    pytest.param(Reply(body=b'{"error": {', status=400), BadRequestError, '[400] {"error": {', id="400 half JSON"),
    pytest.param(
        Reply(chunks=[{"error": {"message": "odd"}}], status=400, framing="close"),
        BadRequestError,
        '[400] data: {"error":{"message":"odd"}}',
        id="400 event stream",
    ),
]


class TestRaisedBeforeTheHead:
    @pytest.mark.parametrize(("reply", "kind", "text"), REFUSALS)
    def test_a_refusal(self, link: Link, reply: Reply, kind: type[APIStatusError], text: str) -> None:
        """A status of 400 or above raises the class that belongs to it, with the server's words in the Go form."""
        with pytest.raises(APIStatusError) as caught:
            link.stream(reply)
        assert type(caught.value) is kind
        assert str(caught.value) == text
        assert caught.value.status_code == reply.status

    def test_the_facts_of_a_refusal(self, plain: Link) -> None:
        """The error holds all that the server said: type, code, param, body, headers, request id, time to wait."""
        body = {"error": {"message": "no", "type": "t", "code": "c", "param": "p"}}
        headers = {"X-Request-Id": "r-1", "Retry-After": "7"}
        with pytest.raises(RateLimitError) as caught:
            plain.stream(attrs.evolve(Reply.json(body, 429), headers=headers))
        error = caught.value
        assert (error.message, error.type, error.code, error.param, error.body) == ("no", "t", "c", "p", body)
        assert (error.request_id, error.retry_after, error.headers["retry-after"]) == ("r-1", 7.0, "7")

    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
    def test_a_refusal_that_may_pass(self, link: Link, status: int) -> None:
        """A refusal that may pass is raised when the retries are used up."""
        server = link.serve(Reply.error(status))
        with pytest.raises(APIStatusError) as caught:
            link.client(server, retry=AT_ONCE).chat_completion_stream(REQUEST)
        assert (caught.value.status_code, len(server.requests)) == (status, 3)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501, 505])
    def test_a_refusal_that_stays(self, link: Link, status: int) -> None:
        """A refusal that will not pass is raised at the first try."""
        server = link.serve(Reply.error(status))
        with pytest.raises(APIStatusError) as caught:
            link.client(server, retry=AT_ONCE).chat_completion_stream(REQUEST)
        assert (caught.value.status_code, len(server.requests)) == (status, 1)

    def test_a_refusal_that_passed(self, link: Link) -> None:
        """Of a refusal that passed nothing is seen but the answer."""
        client = link.client(link.serve(Reply.error(503), "well"), retry=AT_ONCE)
        assert [evt.error for evt in client.chat_completion_stream(REQUEST)] == [None, None]

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"HTT",
            b"HTTP/1.1 2",
            b"no HTTP at all\r\n\r\n",
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"HTTP/1.1 abc OK\r\n\r\n",
        ],
        ids=["nothing", "half", "half a status", "text", "TLS alert", "no status"],
    )
    @pytest.mark.parametrize("end", ["cut", "reset"])
    def test_no_head(self, link: Link, raw: bytes, end: Literal["cut", "reset"]) -> None:
        """A connection that ends without a head, or with something else in its place, raises APIConnectionError."""
        server = link.serve(Reply(raw=raw, end=end))
        with pytest.raises(APIConnectionError, match="no answer from"):
            link.client(server, retry=AT_ONCE).chat_completion_stream(REQUEST)
        assert len(server.requests) == 3

    def test_nobody_listens(self, plain: Link) -> None:
        """A refused connection raises APIConnectionError."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(APIConnectionError, match=f"127.0.0.1:{port}"):
            plain.client(f"http://127.0.0.1:{port}").chat_completion_stream(REQUEST)

    def test_a_certificate_that_nobody_signed(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server with a certificate that is not trusted, or without TLS where it is asked for, is no answer."""
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        server = link.serve("secret")
        with pytest.raises(APIConnectionError):
            link.client(server.url.replace("http:", "https:")).chat_completion_stream(REQUEST)
        assert server.requests == ()

    def test_a_late_head(self, link: Link) -> None:
        """A head that does not come in time raises APITimeoutError, which names its clock."""
        with pytest.raises(APITimeoutError) as caught:
            link.stream(Reply("late", head_delay=math.inf), timeout=Timeout(first_chunk=0.1))
        assert (caught.value.clock, caught.value.seconds) == ("first_chunk", 0.1)

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_whatever_the_mode(self, plain: Link, errors: str) -> None:
        """How errors of the stream are given has no say in errors before it: they are raised."""
        with pytest.raises(BadRequestError):
            plain.stream(Reply.error(400), errors=errors)
        with pytest.raises(BadRequestError):
            plain.client(plain.serve(Reply.error(400))).chat_completion_stream(REQUEST, errors=errors)  # type: ignore[arg-type]


# -- after it --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Fault:
    """What goes wrong after the head, and how it is told."""

    reply: Reply
    kind: type[ChanstreamError]
    texts: tuple[str, ...] = ("one", " two")
    words: str = ""
    settings: dict[str, Any] = attrs.field(factory=dict)


HALF = Reply("one two", finish_reason=None, done=False)
GZIP = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip"
)


def said(text: str) -> dict[str, Any]:
    """Return the JSON object of a chunk with a piece of text."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


FAULTS = {
    "cut": Fault(attrs.evolve(HALF, end="cut"), StreamInterruptedError),
    "cut in an event": Fault(
        attrs.evolve(Reply(chunks=[said("one"), said(" two")]), cut_at=150, end="cut"), StreamInterruptedError, ("one",)
    ),
    "reset": Fault(attrs.evolve(HALF, pace=0.05, end="reset"), StreamInterruptedError),
    "clean end": Fault(HALF, StreamTruncatedError),
    "clean end, close-delimited": Fault(attrs.evolve(HALF, framing="close"), StreamTruncatedError),
    "no event": Fault(Reply(chunks=[]), StreamTruncatedError, ()),
    "error event": Fault(
        Reply(chunks=[said("one"), {"error": {"message": "no room"}}, "[DONE]"]), StreamAPIError, ("one",), "no room"
    ),
    "finish reason error": Fault(Reply("one two", finish_reason="error"), StreamAPIError),
    "garbage": Fault(Reply.garbage(), StreamDecodeError, ()),
    "bad JSON": Fault(Reply(chunks=[said("one"), '{"choices": [', said("two")]), StreamDecodeError, ("one",)),
    "HTML": Fault(Reply.html("<html>Bad Gateway</html>"), StreamDecodeError, (), "Bad Gateway"),
    "JSON error": Fault(Reply.json({"error": {"message": "no room"}}), StreamAPIError, (), "no room"),
    "broken gzip": Fault(Reply(raw=GZIP), StreamDecodeError, ()),
    "too large": Fault(Reply(["one", "x" * 999]), EventTooLargeError, ("one",), "600", {"max_event_bytes": 600}),
    "silence": Fault(
        Reply("one two", stall_after=2), APITimeoutError, words="idle", settings={"timeout": Timeout(idle=0.1 * SCALE)}
    ),
    "first silence": Fault(
        Reply(stall_after=0), APITimeoutError, (), "first_chunk", {"timeout": Timeout(first_chunk=0.3 * SCALE)}
    ),
    "deadline": Fault(
        Reply("one two", stall_after=2), APITimeoutError, words="total", settings={"timeout": 0.2 * SCALE}
    ),
}

EVERY_FAULT = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())


class TestInBand:
    @EVERY_FAULT
    def test_a_fault_is_one_chunk(self, link: Link, fault: Fault) -> None:
        """What goes wrong after the head comes as one chunk with `error` set, after all that came before it."""
        *before, last = link.stream(fault.reply, **fault.settings)
        assert [evt.error for evt in before] == [None] * len(before)
        assert "".join(evt.text for evt in before) == "".join(fault.texts)
        assert type(last.error) is fault.kind
        assert fault.words in str(last.error)
        with pytest.raises(fault.kind) as caught:
            last.raise_for_error()
        assert caught.value is last.error

    def test_a_good_chunk_has_no_error(self, plain: Link) -> None:
        """`raise_for_error` does nothing on the chunks of an answer that is well."""
        stream = plain.stream("all of it")
        for evt in stream:
            evt.raise_for_error()
        assert stream.state == "complete"


class TestRaised:
    @EVERY_FAULT
    @pytest.mark.parametrize("where", ["call", "client"])
    def test_a_fault_is_raised(self, link: Link, fault: Fault, where: str) -> None:
        """With errors="raise", on the call or on the client, the iteration raises the error in the chunk's place."""
        mode: dict[str, Any] = {"errors": "raise"}
        client = link.client(link.serve(fault.reply), **fault.settings, **(mode if where == "client" else {}))
        stream = client.chat_completion_stream(REQUEST, **(mode if where == "call" else {}))
        texts: list[str] = []
        with pytest.raises(ChanstreamError) as caught:
            texts.extend(evt.text for evt in stream)
        assert "".join(texts) == "".join(fault.texts)
        assert type(caught.value) is fault.kind
        assert fault.words in str(caught.value)
        assert stream.state == "failed"
        assert list(stream) == []

    @pytest.mark.parametrize("client_mode", ["inband", "raise"])
    @pytest.mark.parametrize("call_mode", ["inband", "raise", None])
    def test_the_call_has_the_last_word(self, plain: Link, client_mode: str, call_mode: Any) -> None:
        """The call's mode goes before the client's; None leaves it to the client."""
        client = plain.client(plain.serve(HALF), errors=client_mode)
        stream = client.chat_completion_stream(REQUEST, errors=call_mode)
        if (call_mode or client_mode) == "raise":
            with pytest.raises(StreamTruncatedError):
                list(stream)
        else:
            assert isinstance(list(stream)[-1].error, StreamTruncatedError)

    def test_by_get_and_next(self, plain: Link) -> None:
        """`get` and `next` raise the error too, once; then the stream is over."""
        first = plain.stream(Reply(chunks=[]), errors="raise")
        with pytest.raises(StreamTruncatedError):
            first.get(timeout=5)
        with pytest.raises(ChannelClosedError):
            first.get(timeout=5)
        second = plain.stream(Reply(chunks=[]), errors="raise")
        with pytest.raises(StreamTruncatedError):
            next(second)
        with pytest.raises(StopIteration):
            next(second)

    def test_by_async_for(self, plain: Link) -> None:
        """The asynchronous iteration raises the error as well."""
        stream = plain.stream(HALF, errors="raise")
        texts = []

        async def consume() -> None:
            async for evt in stream:
                texts.append(evt.text)  # noqa: PERF401 - as above

        with pytest.raises(StreamTruncatedError):
            asyncio.run(consume())
        assert texts == ["one", " two"]

    def test_a_good_answer_is_not_touched(self, link: Link) -> None:
        """With errors="raise" an answer that is well raises nothing."""
        stream = link.stream("all of it", errors="raise")
        assert "".join(evt.text for evt in stream) == "all of it"
        assert stream.state == "complete"

    def test_a_mode_that_is_none(self, plain: Link) -> None:
        """A mode that does not exist is refused at once, by client and call, and nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(ValueError, match="errors"):
            plain.client(server, errors="ignore")
        with pytest.raises(ValueError, match="errors"):
            plain.client(server).chat_completion_stream(REQUEST, errors="ignore")  # type: ignore[arg-type]
        assert server.connections == 0


class TestCollect:
    @EVERY_FAULT
    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_it_raises_with_what_had_come(self, link: Link, fault: Fault, errors: str) -> None:
        """`collect` raises what ended the stream, in either mode, and `partial` is the answer so far."""
        with pytest.raises(ChanstreamError) as caught:
            link.stream(fault.reply, errors=errors, **fault.settings).collect()
        assert type(caught.value) is fault.kind
        assert caught.value.partial.text == "".join(fault.texts)  # type: ignore[attr-defined]

    def test_it_returns_the_answer(self, link: Link) -> None:
        """`collect` returns the answer of a stream that ends well, and its time from the sending on."""
        begun = time.monotonic()
        answer = link.stream(Reply("one two", pace=0.05)).collect()
        assert answer.text == "one two"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert 0.1 <= answer.latency <= time.monotonic() - begun

    def test_it_takes_what_is_left(self, plain: Link) -> None:
        """After some chunks were taken, `collect` returns the rest."""
        stream = plain.stream("one two three")
        assert next(stream).text == "one"
        assert stream.collect().text == " two three"

    def test_of_a_closed_stream(self, plain: Link) -> None:
        """`collect` on a stream that was closed raises StreamCancelledError."""
        stream = plain.stream(Reply("one two", stall_after=1))
        stream.close()
        with pytest.raises(StreamCancelledError):
            stream.collect()

    def test_it_leaves_nothing_open(self, link: Link) -> None:
        """`collect` frees the producer when it raises."""
        server = link.serve(Reply("one two", stall_after=1))
        stream = link.client(server, timeout=Timeout(idle=0.1)).chat_completion_stream(REQUEST)
        with pytest.raises(APITimeoutError):
            stream.collect()
        assert within(SCALE, lambda: producers() == 0)
        assert server.wait_for(_all_gone, SCALE)


def _all_gone(server: StreamServer) -> bool:
    return server.open_connections == 0

"""A result as a line of JSON: nothing that matters is lost on the way, and nothing private is on it."""

from __future__ import annotations

import builtins
import json
import pickle
from typing import Any

import pytest

from chanstream import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AssistantMessage,
    ChanstreamError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Choice,
    InternalServerError,
    RateLimitError,
    StreamAPIError,
    StreamInterruptedError,
    UsageInfo,
    UserMessage,
    errors,
)
from chanstream.batch.record import BEGINNING, Record, digest_of, line_of
from chanstream.batch.result import BatchResult
from chanstream.transport.head import head_of
from tests.conftest import REQUEST

TEXT = "Gr\u00fc\u00df\u2028 Gott,\n\x85 \U0001f600 \ud83d and \0."
ANSWER = ChatCompletionResponse(
    [Choice(0, AssistantMessage(TEXT), "stop", extra={"logprobs": None})],
    "chatcmpl-1", created=1700000000, model="a-model", usage=UsageInfo(1, 2, 3), latency=0.5,
)  # fmt: skip
PARTIAL = ChatCompletionResponse([Choice(0, AssistantMessage("half an"))], "chatcmpl-2")


def result(response: ChatCompletionResponse | None = None, error: Exception | None = None) -> BatchResult:
    """Return a result with this in it."""
    return BatchResult(
        index=7, id="an id", request=REQUEST, response=response, error=error,
        attempts=2, time_to_first_chunk=0.25, latency=0.5,
    )  # fmt: skip


def back(line: bytes) -> BatchResult:
    """Return the result that a line keeps."""
    return Record.of(line).result(7, REQUEST)


def with_partial(error: Any) -> Any:
    """Return an error that holds a part of an answer."""
    error.partial = PARTIAL
    return error


def after(error: ChanstreamError, *earlier: ChanstreamError) -> ChanstreamError:
    """Return an error before which other servers failed."""
    error.earlier = earlier
    return error


REFUSAL = {"error": {"message": "Slow down.", "type": "requests", "code": 1300}}
REFUSED = APIStatusError.from_status(
    429, REFUSAL, retry_after=1.5, headers=head_of(0, {"X-Request-Id": "r1", "Retry-After": "1.5"}).headers
)
ERRORS = {
    "a refusal": REFUSED,
    "words of a proxy": APIStatusError.from_status(502, "<html>Bad gateway</html>"),
    "in the stream": with_partial(StreamAPIError.from_body(REFUSAL)),
    "a cut": with_partial(StreamInterruptedError("the connection was lost")),
    "a clock": APITimeoutError(clock="first_chunk", seconds=2.5),
    "several servers": after(APIConnectionError("no route"), REFUSED, APITimeoutError(clock="idle", seconds=1)),
    "a wrong argument": ValueError("n: expected 1 or more, got 0"),
}


def facts(error: BaseException) -> Any:
    """Return all that there is to compare of an error."""
    state = {name: value for name, value in vars(error).items() if name != "earlier"}
    return type(error), str(error), error.args, state, [facts(each) for each in getattr(error, "earlier", ())]


class TestAnAnswer:
    def test_it_is_the_same(self) -> None:
        """What is read is what was written, the latency and all; the index is that of the request which asks."""
        read = Record.of(line_of(result(ANSWER))).result(3, REQUEST)
        assert (read.index, read.id, read.request) == (3, "an id", REQUEST)
        assert read.response == ANSWER
        assert read.response is not None
        assert read.response.latency == 0.5
        assert (read.error, read.attempts, read.time_to_first_chunk, read.latency) == (None, 2, 0.25, 0.5)

    def test_the_format(self) -> None:
        """The line is as batch APIs write it, and what they do not know stands under a name of its own."""
        data = json.loads(line_of(result(ANSWER)))
        own = data.pop("chanstream")
        assert data.pop("id").startswith("batch_req_")
        assert data == {
            "custom_id": "an id",
            "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": ANSWER.to_dict()},
            "error": None,
        }
        digest = digest_of(REQUEST)
        assert own == {"index": 7, "digest": digest, "attempts": 2, "time_to_first_chunk": 0.25, "latency": 0.5}

    def test_it_is_one_line_to_everybody(self) -> None:
        """There is no other end of line in it for anybody, and no byte that some encoding reads otherwise."""
        line = line_of(result(ANSWER))
        assert line.startswith(BEGINNING)
        assert line.isascii()
        assert len(line.decode().splitlines()) == 1

    def test_numbers_that_json_does_not_have(self) -> None:
        """An infinite number, which some servers send, is no reason to lose an answer."""
        odd = ChatCompletionResponse.from_dict({"choices": [], "score": float("inf")})
        assert back(line_of(result(odd))).response == odd


class TestAnError:
    @pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
    def test_it_is_the_same(self, error: Exception) -> None:
        """An error comes back with its class, its words and all that it holds, and can still be pickled."""
        read = back(line_of(result(error=error)))
        assert read.response is None
        assert read.error is not None
        assert facts(read.error) == facts(error)
        assert facts(pickle.loads(pickle.dumps(read.error))) == facts(error)

    def test_every_class(self) -> None:
        """Every exception of the library comes back as what it was."""
        classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ChanstreamError)]
        assert len(classes) > 20
        assert [type(back(line_of(result(error=cls("words")))).error) for cls in classes] == classes

    def test_headers_in_any_case(self) -> None:
        """The headers of a refusal are found by any spelling, as before."""
        read: Any = back(line_of(result(error=REFUSED))).error
        assert read.headers["RETRY-AFTER"] == "1.5"
        assert read.request_id == "r1"

    def test_the_format(self) -> None:
        """A refusal has its status and its body where batch APIs have them; what was no answer has none."""
        data = json.loads(line_of(result(error=REFUSED)))
        assert data["response"] == {"status_code": 429, "request_id": "r1", "body": REFUSAL}
        assert data["error"] == {"code": "rate_limit_error", "message": str(REFUSED)}
        data = json.loads(line_of(result(error=ERRORS["a clock"])))
        assert data["response"] is None
        assert data["error"]["code"] == "api_timeout_error"

    def test_what_is_private_is_left_out(self) -> None:
        """Cookies and the like that came with a refusal are not kept."""
        headers = {"Set-Cookie": "session=s3cret", "Openai-Organization": "s3cret", "X-RateLimit-Limit-Requests": "9"}
        error = RateLimitError("Slow down.", status_code=429, headers=headers)
        line = line_of(result(error=error))
        assert b"s3cret" not in line
        read: Any = back(line).error
        assert read.rate_limits.limit_requests == 9

    @pytest.mark.parametrize("name", ["OSError", "Exception"])
    def test_an_error_of_others(self, name: str) -> None:
        """An error of somebody else's class comes back as the nearest that every program has, with its words alone."""

        class TheirError(vars(builtins)[name]):  # type: ignore[misc]
            pass

        error = TheirError("no luck")
        error.request = {"headers": {"Authorization": "s3cret"}}
        line = line_of(result(error=error))
        assert b"s3cret" not in line
        assert facts(back(line).error or error)[:2] == (vars(builtins)[name], "TheirError: no luck")

    def test_an_error_of_a_newer_version(self) -> None:
        """An error whose class is not known here is a `ChanstreamError` with its name and its words."""
        line = line_of(result(error=InternalServerError("no luck"))).replace(b'"InternalServerError"', b'"NewError"')
        assert facts(back(line).error or ValueError())[:2] == (ChanstreamError, "NewError: no luck")


class TestTheDigest:
    def test_it_tells_requests_apart(self) -> None:
        """Requests that differ in anything that is sent have different digests."""
        messages = [UserMessage("Say it.")]
        many = [
            REQUEST,
            ChatCompletionRequest("other", messages),
            ChatCompletionRequest("test-model", [UserMessage("Say it!")]),
            ChatCompletionRequest("test-model", messages, temperature=0),
            ChatCompletionRequest("test-model", messages, extra={"top_k": 1}),
            ChatCompletionRequest("test-model", messages, extra={"top_k": "1"}),
        ]
        assert len({digest_of(request) for request in many}) == len(many)

    def test_it_is_the_same_for_the_same(self) -> None:
        """Neither the form that messages are given in nor the order of members makes a difference."""
        schema = {"type": "object", "properties": {}}
        one = ChatCompletionRequest("m", [UserMessage("Hi")], extra={"a": schema, "b": 1})
        two = ChatCompletionRequest(
            "m", [{"content": "Hi", "role": "user"}], extra={"b": 1, "a": dict(reversed(schema.items()))}
        )
        assert digest_of(one) == digest_of(two)

    @pytest.mark.parametrize("odd", [{1: "x", "a": "y"}, {1, 2}, float("nan")], ids=["names", "a set", "no number"])
    def test_a_request_that_is_no_json(self, odd: Any) -> None:
        """A request that cannot be sent has a digest too, so that its refusal can be kept."""
        request = ChatCompletionRequest("m", [UserMessage("Hi")], extra={"odd": odd})
        assert digest_of(request) == digest_of(request)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "it is no JSON"),
        (b"hello\n", "it is no JSON"),
        (b"[]\n", "it was not written by chanstream"),
        (b'{"id":"batch_req_1","custom_id":"a","response":null,"error":null}\n', "it was not written by chanstream"),
        (b'{"custom_id":1,"chanstream":{"digest":"d"}}\n', "it is damaged"),
        (b'{"custom_id":"a","chanstream":{"digest":1}}\n', "it is damaged"),
    ],
)
def test_what_is_no_line_of_a_journal(line: bytes, why: str) -> None:
    """What is no line of a journal is told, with what is wrong about it."""
    with pytest.raises(ValueError, match=f"^{why}$"):
        Record.of(line)


@pytest.mark.parametrize("part", [b'"choices"', b'"latency"', b'"body"', b'"attempts"'])
def test_a_line_that_is_damaged(part: bytes) -> None:
    """A line in which something is missing or in the wrong place is told as damaged."""
    line = line_of(result(ANSWER)).replace(part, b'"' + b"x" * (len(part) - 2) + b'"', 1)
    if part == b'"choices"':
        line = line.replace(b'"xxxxxxx":[', b'"choices":7,"x":[')
    with pytest.raises(ValueError, match=r"^it is damaged$"):
        back(line)

"""The exceptions: their tree, their words, and that they travel."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

import chanstream
from chanstream import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    CacheError,
    ChannelClosedError,
    ChanstreamError,
    ChatCompletionResponse,
    ConflictError,
    EventTooLargeError,
    InternalServerError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
    UnprocessableEntityError,
    WorkerLostError,
    errors,
)

TREE: dict[type[Exception], type[Exception]] = {
    ChanstreamError: Exception,
    APIError: ChanstreamError,
    APIStatusError: APIError,
    BadRequestError: APIStatusError,
    AuthenticationError: APIStatusError,
    PermissionDeniedError: APIStatusError,
    NotFoundError: APIStatusError,
    ConflictError: APIStatusError,
    UnprocessableEntityError: APIStatusError,
    RateLimitError: APIStatusError,
    InternalServerError: APIStatusError,
    StreamAPIError: APIError,
    APIConnectionError: ChanstreamError,
    APITimeoutError: APIConnectionError,
    StreamError: ChanstreamError,
    StreamInterruptedError: StreamError,
    StreamTruncatedError: StreamError,
    StreamDecodeError: StreamError,
    EventTooLargeError: StreamError,
    StreamCancelledError: ChanstreamError,
    ChannelClosedError: ChanstreamError,
    CacheError: ChanstreamError,
    JournalError: ChanstreamError,
    WorkerLostError: ChanstreamError,
}


class TestTree:
    def test_it_is_as_drawn(self) -> None:
        """Every exception has its one parent, and there is no other exception."""
        classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]
        assert {cls: cls.__base__ for cls in classes if cls.__module__ == errors.__name__} == TREE

    @pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
    def test_it_is_public_and_described(self, cls: type[Exception]) -> None:
        """Each is importable from the package and says what it means."""
        assert getattr(chanstream, cls.__name__) is cls
        assert cls.__doc__

    def test_the_drawing(self) -> None:
        """The picture in the module's docstring shows each, below its parent."""
        lines = [line.strip(" │├└─").split() for line in (errors.__doc__ or "").splitlines()]
        drawn = [words[0] for words in lines if words and words[0].endswith("Error") and words[0].isidentifier()]
        assert drawn == [cls.__name__ for cls in TREE]


class TestOthers:
    def test_what_else_failed(self) -> None:
        """An error of any kind can have those that others failed with beside it, but never itself, and is the same."""
        other = StreamError("no")
        for error in (StreamError("it broke"), ZeroDivisionError()):
            assert errors.with_others(error, [error, other]) is error
            assert vars(error)["others"] == (other,)
        assert [str(each) for each in pickle.loads(pickle.dumps(error_with(other))).others] == ["no"]

    def test_nothing_else(self) -> None:
        """Where nothing else failed nothing is beside it."""
        assert errors.with_others(StreamError("it broke"), []).others == ()
        assert vars(errors.with_others(ZeroDivisionError(), [])) == {}

    def test_one_without_room(self) -> None:
        """An error that cannot be given one more attribute stays as it is."""

        class Strict(Exception):  # noqa: N818 - it is nobody's error
            """One that takes nothing."""

            def __setattr__(self, name: str, value: object) -> None:
                raise AttributeError(name)

        error = Strict()
        assert errors.with_others(error, [StreamError("no")]) is error


def error_with(other: Exception) -> StreamError:
    """Return an error with another beside it."""
    return errors.with_others(StreamError("it broke"), [other])


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, UnprocessableEntityError),
        (429, RateLimitError),
        (500, InternalServerError),
        (501, InternalServerError),
        (502, InternalServerError),
        (503, InternalServerError),
        (504, InternalServerError),
        (529, InternalServerError),
        (402, APIStatusError),
        (405, APIStatusError),
        (408, APIStatusError),
        (413, APIStatusError),
        (418, APIStatusError),
        (304, APIStatusError),
    ],
)
def test_the_class_of_a_status(status: int, cls: type[APIStatusError]) -> None:
    """Each HTTP status has its class; the ones without one of their own share a base."""
    error = APIStatusError.from_status(status, {"error": {"message": "no"}})
    assert type(error) is cls
    assert isinstance(error, APIStatusError)
    assert error.status_code == status


EXTRA_FORBIDDEN = {
    "type": "extra_forbidden",
    "loc": ["body", "parallel_tool_callss"],
    "msg": "Extra inputs are not permitted",
    "input": True,
}
MISSING = {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": {}}

BODIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    # name: (body, attributes, text)
    "mistral": (
        {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "param": None, "code": "1500"},
        {"message": "Invalid model: x", "type": "invalid_model", "code": "1500", "param": None},
        "invalid_model: Invalid model: x",
    ),
    "mistral, a finding": (
        {
            "object": "error",
            "message": {"detail": [EXTRA_FORBIDDEN]},
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
        {
            "message": "extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss)",
            "type": "invalid_request_error",
            "code": None,
        },
        "invalid_request_error: extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss)",
    ),
    "mistral, findings": (
        {"object": "error", "message": {"detail": [EXTRA_FORBIDDEN, MISSING]}, "type": "invalid_request_error"},
        {"type": "invalid_request_error"},
        (
            "invalid_request_error: extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss);"
            " missing: Field required (body.messages.0.content)"
        ),
    ),
    "mistral, no key": ({"detail": "Unauthorized"}, {"message": "Unauthorized", "type": None}, "Unauthorized"),
    "openai": (
        {
            "error": {
                "message": "No such model",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        },
        {"message": "No such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"},
        "invalid_request_error: No such model",
    ),
    "groq": (
        {"error": {"message": "Slow down", "type": "tokens", "code": "rate_limit_exceeded"}},
        {"message": "Slow down", "type": "tokens", "code": "rate_limit_exceeded", "param": None},
        "tokens: Slow down",
    ),
    "a code that is a number": (
        {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}},
        {"code": 400},
        "invalid_request_error: no",
    ),
    "fastapi": ({"detail": [MISSING]}, {"type": None}, "missing: Field required (body.messages.0.content)"),
    "fastapi, a text": ({"detail": "Not Found"}, {"message": "Not Found"}, "Not Found"),
    "fastapi, no place": ({"detail": [{"msg": "no"}]}, {"message": "no"}, "no"),
    "an error that is a text": ({"error": "overloaded"}, {"message": "overloaded", "type": None}, "overloaded"),
    "a kind with its words beside it": (
        {"error": "SyntaxError", "message": "Unexpected end of JSON input"},
        {"message": "Unexpected end of JSON input", "type": "SyntaxError"},
        "SyntaxError: Unexpected end of JSON input",
    ),
    "older vllm": (
        {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400},
        {"message": "too long", "type": "BadRequestError", "code": 400},
        "BadRequestError: too long",
    ),
    "an error in an error": (
        {"error": {"message": {"detail": [MISSING]}, "type": "invalid_request_error"}},
        {"type": "invalid_request_error"},
        "invalid_request_error: missing: Field required (body.messages.0.content)",
    ),
    "google, a list": (
        [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}],
        {"message": "API key not valid", "code": 400},
        "API key not valid",
    ),
    "no words": ({"error": {"code": 17}}, {"code": 17}, '{"error": {"code": 17}}'),
    "empty words": (
        {"error": {"message": ""}},
        {"message": '{"error": {"message": ""}}'},
        '{"error": {"message": ""}}',
    ),
    "another object": ({"status": "no"}, {"message": '{"status": "no"}'}, '{"status": "no"}'),
    "an empty object": ({}, {"message": "{}"}, "{}"),
    "a text": ("upstream connect error", {"message": "upstream connect error", "type": None}, "upstream connect error"),
    "a page": ("<html>\n <h1>502</h1>\r\n</html>\n", {}, "<html> <h1>502</h1> </html>"),
    "an empty body": ("", {"message": ""}, ""),
    "null": (None, {"message": ""}, ""),
    "a number": (5, {"message": "5"}, "5"),
    "an empty list": ([], {"message": "[]"}, "[]"),
    "a list of texts": (["no"], {"message": "no"}, "no"),
}


@pytest.mark.parametrize(("body", "facts", "text"), BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("cls", [APIError, StreamAPIError, BadRequestError])
def test_an_error_body(cls: type[APIError], body: Any, facts: dict[str, Any], text: str) -> None:
    """The server's own words are found in every form in which servers send them, and the body is kept."""
    error = cls.from_body(body)
    assert type(error) is cls
    assert {name: getattr(error, name) for name in facts} == facts
    assert error.body == body
    assert str(error).removeprefix("[0]").strip() == text


class TestWords:
    def test_a_refusal(self) -> None:
        """A refusal reads as it does in the Go client: status, kind, finding, and where it is."""
        error = APIStatusError.from_status(
            400, {"object": "error", "message": {"detail": [EXTRA_FORBIDDEN]}, "type": "invalid_request_error"}
        )
        assert str(error) == (
            "[400] invalid_request_error: extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss)"
        )

    def test_a_refusal_without_words(self) -> None:
        """A refusal with an empty body still tells its status."""
        assert str(APIStatusError.from_status(503, "")) == "[503]"

    def test_a_long_page(self) -> None:
        """A proxy's long page is cut to what fits a log, and its length told; the body has all of it."""
        page = "x" * 10_000
        error = APIStatusError.from_status(502, page)
        assert str(error) == f"[502] {'x' * 500}... (10000 characters)"
        assert error.body == page

    @pytest.mark.parametrize("clock", ["connect", "first_chunk", "idle", "total", "context"])
    def test_a_timeout(self, clock: Any) -> None:
        """A timeout names its clock, and what that was set to."""
        error = APITimeoutError(clock=clock, seconds=2.5)
        assert (error.clock, error.seconds) == (clock, 2.5)
        assert f"clock: {clock}" in str(error)
        assert "2.5 s" in str(error)


class TestAttributes:
    @pytest.mark.parametrize("name", ["x-request-id", "request-id", "mistral-correlation-id", "x-groq-request-id"])
    def test_the_request_id(self, name: str) -> None:
        """The server's id for the request is found under each of its names, in any case."""
        headers = CaseInsensitiveDict({name.title(): "r-1"})
        error = APIStatusError.from_status(429, "", headers=headers, retry_after=1.5)
        assert isinstance(error, RateLimitError)
        assert (error.request_id, error.retry_after) == ("r-1", 1.5)

    def test_what_is_not_told(self) -> None:
        """What the server does not tell is None, and the headers are empty."""
        error = APIStatusError.from_status(429, "slow down")
        assert isinstance(error, APIStatusError)
        assert (error.request_id, error.retry_after, error.type, error.code, error.param) == (None,) * 5
        assert dict(error.headers) == {}

    @pytest.mark.parametrize(
        "cls", [StreamAPIError, APITimeoutError, StreamCancelledError, *StreamError.__subclasses__()]
    )
    def test_the_partial_answer(self, cls: type[Any]) -> None:
        """An error that may end a stream has room for what came before, and none until `collect` puts it there."""
        assert cls("x").partial is None


def samples() -> list[ChanstreamError]:
    """Return one of each, with everything set that can be."""
    told = {"type": "t", "code": 17, "param": "p", "body": {"error": [1, None]}}
    headers = CaseInsensitiveDict({"X-Request-Id": "r-1", "Retry-After": "2"})
    made: list[ChanstreamError] = []
    for cls in TREE:
        if issubclass(cls, APIStatusError):
            made.append(cls("words", status_code=418, headers=headers, retry_after=2.0, **told))
        elif issubclass(cls, APIError):
            made.append(cls("words", **told))
        elif issubclass(cls, APITimeoutError):
            made.append(cls(clock="idle", seconds=1.5))
        elif issubclass(cls, ChanstreamError):
            made.append(cls("words"))
    return made


@pytest.mark.parametrize("error", samples(), ids=lambda error: type(error).__name__)
class TestTravel:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle(self, error: ChanstreamError, protocol: int) -> None:
        """Every exception can be pickled: class, words and all attributes arrive."""
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))

    def test_pickle_with_a_partial_answer(self, error: ChanstreamError) -> None:
        """What had come of the answer travels with the error."""
        sent = copy.copy(error)
        sent.partial = ChatCompletionResponse.from_dict({"id": "1", "choices": [{"message": {"content": "so"}}]})  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(sent))
        assert again.partial.text == "so"

    def test_copy(self, error: ChanstreamError) -> None:
        """Every exception can be copied."""
        again = copy.copy(error)
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))

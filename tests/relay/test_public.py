"""What is shown of errors: enough to understand them, and nothing that is nobody's business."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from chanstream import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ChannelClosedError,
    ChanstreamError,
    EventTooLargeError,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from chanstream import errors as all_errors
from chanstream.relay import PublicError, public_error


def refusal(status: int, message: str = "Not like this.", **more: Any) -> Any:
    """Return a server's refusal, in the form of OpenAI's API."""
    return APIStatusError.from_status(status, {"error": {"message": message, "type": "a_type", **more}})


PRIVATE = {
    "an address": "for more see https://console.example/keys?org=1.",
    "an address inside": "could not reach http://10.1.2.3:8000/v1)",
    "a host by its number": "no route to 10.1.2.3:8000.",
    "a key": "the key sk-proj-AbCdEf0123456789 is over its limit",
    "half a key": "Incorrect key: sk-ab***************xyz!",
    "another's key": "(gsk_a1b2c3d4e5f6g7h8)",
    "an organisation": "Rate limit reached in organization org_01jabcdef2gh on tokens",
    "a header": "got Authorization: Bearer abc.def-123 in it",
}
SECRETS = ("console.example", "10.1.2.3", "AbCdEf0123456789", "sk-ab", "a1b2c3d4", "01jabcdef2gh", "abc.def-123")


@pytest.mark.parametrize("message", PRIVATE.values(), ids=PRIVATE)
def test_what_is_private(message: str) -> None:
    """Addresses, keys and accounts in a server's words are not shown; the other words are."""
    for error in (refusal(400, message), StreamAPIError.from_body({"error": {"message": message}})):
        shown = public_error(error)
        assert "***" in shown.message
        assert shown.message.endswith(message[-1])
        assert not any(secret in str(shown) for secret in SECRETS)


def test_words_that_only_look_private() -> None:
    """Words of the API that begin like keys stay."""
    message = "user_location: key-value pairs wanted, organization not found (org_disabled); use gpt-4.1"
    shown = public_error(refusal(400, message, code="key_not_found", param="user_location"))
    assert (shown.message, shown.code, shown.param) == (message, "key_not_found", "user_location")


@pytest.mark.parametrize(
    "message",
    ["Traceback (most recent call last):\n  x", '  File "/srv/app.py", line 7', "<html><h1>Bad</h1>", "x" * 2000, ""],
)
def test_what_is_no_message(message: str) -> None:
    """A traceback, a page, and words without end are no message: general words take their place."""
    assert public_error(refusal(500, message)).message == "The model's server failed."


def test_a_body_that_is_no_error() -> None:
    """A body that is no JSON, such as a proxy's page, is not shown."""
    error = APIStatusError.from_status(502, "upstream db-7.internal is down")
    assert public_error(error).message == "The model's server failed."


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (APIConnectionError("https://inside:8000"), "connection_error", 502),
        (APITimeoutError(clock="idle", seconds=3), "timeout", 504),
        (StreamInterruptedError("inside"), "interrupted", 502),
        (StreamTruncatedError("inside"), "interrupted", 502),
        (StreamDecodeError("inside"), "interrupted", 502),
        (EventTooLargeError("inside"), "server_error", 502),
        (StreamCancelledError("inside"), "cancelled", 503),
        (ChannelClosedError("inside"), "cancelled", 503),
        (ChanstreamError("inside"), "server_error", 502),
        (refusal(401, "inside"), "server_error", 502),
        (refusal(403, "inside"), "server_error", 502),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_general_words(error: ChanstreamError, kind: str, status: int) -> None:
    """What is not the server's word about the request is said in general words, with a kind and a status."""
    shown = public_error(error)
    assert (shown.type, shown.status) == (kind, status)
    assert "inside" not in str(shown)
    assert shown.message.endswith(".")


def test_every_error_can_be_shown() -> None:
    """There are words for every error of the library."""
    kinds = [kind for kind in vars(all_errors).values() if isinstance(kind, type) and issubclass(kind, ChanstreamError)]
    assert len(kinds) > 15
    for kind in kinds:
        assert public_error(kind("inside")).message


@pytest.mark.parametrize("status", [400, 404, 413, 418, 429, 500, 503, 529])
def test_general_words_alone(status: int) -> None:
    """With ``show_errors=False`` not even a harmless refusal is shown in the server's words; its status is kept."""
    shown = public_error(refusal(status, "Not like this."), show_errors=False)
    assert shown.status == status
    assert "Not like this." not in str(shown)
    assert shown.code is None


def test_a_function_decides() -> None:
    """A function says what is shown: words, more than words, or the general ones."""
    error = refusal(429)
    assert public_error(error, lambda _: "Later!").to_dict()["error"]["message"] == "Later!"
    own = {"message": "Later!", "type": "mine", "code": 7, "param": "p", "status": 200, "other": 1}
    assert public_error(error, lambda _: own).to_dict() == {
        "error": {"message": "Later!", "type": "mine", "code": 7, "param": "p"}
    }
    assert public_error(error, lambda _: own).status == 429
    assert public_error(error, lambda _: None) == public_error(error, show_errors=False)


def test_a_function_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A function that fails is told in the log, and general words are shown."""

    def decide(_: ChanstreamError) -> str:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.ERROR, "chanstream"):
        assert public_error(refusal(429), decide) == public_error(refusal(429), show_errors=False)
    assert "a bug" in caplog.text


def test_the_time_to_wait() -> None:
    """The time that the server asked to wait is told."""
    error = APIStatusError.from_status(429, {"error": {"message": "x"}}, retry_after=2.5)
    assert public_error(error).retry_after == 2.5


def test_its_form() -> None:
    """The form is that of OpenAI's API."""
    told = PublicError("No.", "a_type", 7, "model").to_dict()
    assert told == {"error": {"message": "No.", "type": "a_type", "param": "model", "code": 7}}

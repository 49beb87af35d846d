"""What may be shown of an error to whoever is on the other side: a browser, a caller of the proxy."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from ..errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    ChannelClosedError,
    ChanstreamError,
    EventTooLargeError,
    StreamAPIError,
    StreamCancelledError,
    StreamError,
    kind_of,
)

ShowErrors: TypeAlias = "bool | Callable[[ChanstreamError], str | Mapping[str, Any] | None]"

_log = logging.getLogger("chanstream")

_BAD_GATEWAY, _UNAVAILABLE, _GATEWAY_TIMEOUT = 502, 503, 504

_ABOUT_THE_KEY = frozenset({401, 402, 403, 407})
"""Statuses that are about the key or the account of whoever runs this, and none of a visitor's business."""

_LONGEST = 1000
"""Characters: longer words are no message but a page or a traceback."""

_PRIVATE = re.compile(
    r"https?://\S*[\w/]"  # where the server is, or the account's page there
    # Keys, also those half hidden, and who owns them. No words: they have no digits.
    r"|\b(?:sk|gsk|pk|rk|key|org|proj|user|acct)[-_](?=[\w*.-]*[\d*])[\w*.-]{5,}[\w*]"
    r"|\bBearer\s+\S+"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b",
    re.IGNORECASE,
)
_INTERNAL = re.compile(r"Traceback \(most recent call last\)|<html|<!doctype|\bFile \"|^\s*[{\[]", re.IGNORECASE)
"""What is in words that are no message: a traceback, a page, or a body in which no message was found."""


@attrs.frozen
class PublicError:
    """An error as it may be shown.

    Attributes:
        message: A sentence for whoever reads it.
        type: A word for the kind of error: the server's own, or one of ours such as ``"timeout"``.
        code: The server's code, or None. param: The field of the request that it objects to, or None.
        status: The HTTP status for it, where none was sent yet.
        retry_after: Seconds after which to try again, or None.
    """

    message: str
    type: str = "server_error"
    code: str | int | None = None
    param: str | None = None
    status: int = _BAD_GATEWAY
    retry_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, in the form of OpenAI's API."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}


def public_error(error: ChanstreamError, show_errors: ShowErrors = True) -> PublicError:
    """Return what may be shown of an error.

    By default the server's own words about the request are shown (message, type, code, param) where it said them in an
    error's usual JSON form, without addresses and whatever looks like a key or an account. A refusal of your key or
    account (401, 402, 403) is said in general words, and so is whatever is not the server's word: connections, clocks,
    broken streams. Never shown are keys, headers, addresses and tracebacks.

    Args:
        error: What a call raised, or a chunk's ``error``.
        show_errors: True for that; False for general words in all cases; or a function that is given the error and
            returns the message, or a mapping with any of message, type, code and param, or None for the general words.
            What it returns is shown as it is.
    """
    general = _general(error)
    if callable(show_errors):
        return _decided(error, show_errors, general)
    if show_errors and isinstance(error, APIError) and general.status not in _ABOUT_THE_KEY:
        return _in_its_words(error, general)
    return attrs.evolve(general, status=_shown_status(general.status))


def _shown_status(status: int) -> int:
    """Return a status that says nothing of our own key: the caller would take it for his."""
    return _BAD_GATEWAY if status in _ABOUT_THE_KEY else status


def _decided(error: ChanstreamError, decide: Callable[[ChanstreamError], Any], general: PublicError) -> PublicError:
    general = attrs.evolve(general, status=_shown_status(general.status))
    try:
        shown = decide(error)
        if isinstance(shown, Mapping):
            return attrs.evolve(general, **{name: shown[name] for name in _SHOWN if name in shown})
        return general if shown is None else attrs.evolve(general, message=str(shown))
    except Exception:  # noqa: BLE001 - whatever it is: who waits must be told of the error all the same
        _log.exception("show_errors failed; general words are shown")
        return general


_SHOWN = ("message", "type", "code", "param")


def checked(show_errors: ShowErrors) -> ShowErrors:
    """Return what says what is shown of errors, if it can be that."""
    if not (isinstance(show_errors, bool) or callable(show_errors)):
        raise TypeError(f"show_errors: expected a bool or a function, got {show_errors!r}")
    return show_errors


def _in_its_words(error: APIError, general: PublicError) -> PublicError:
    body, message = error.body, error.message
    if not isinstance(body, (Mapping, list)) or len(message) > _LONGEST or _INTERNAL.search(message) or not message:
        message = general.message  # a proxy's page, say
    return attrs.evolve(
        general,
        message=_clean(message),
        type=_clean(error.type) if error.type else general.type,
        code=_clean(error.code) if isinstance(error.code, str) else error.code,
        param=_clean(error.param) if error.param else None,
    )


def _clean(text: str) -> str:
    return _PRIVATE.sub("***", text)


def _general(error: ChanstreamError) -> PublicError:
    """Return what an error is without its own words, with its true status."""
    if isinstance(error, APIStatusError):
        return _refused(error)
    for kind, told in _KINDS:
        if isinstance(error, kind):
            return told
    _log.error("an error of no known kind: %s", kind_of(error))
    return PublicError("Something went wrong.")


def _refused(error: APIStatusError) -> PublicError:
    message, kind = _BY_STATUS.get(error.status_code, _FAILED if error.status_code >= 500 else _REFUSED)
    return PublicError(message, kind, status=error.status_code, retry_after=error.retry_after)


_REFUSED = ("The model's server refused the request.", "invalid_request_error")
_FAILED = ("The model's server failed.", "server_error")
_OURS = ("The model cannot be asked at the moment.", "server_error")
_BY_STATUS: Mapping[int, tuple[str, str]] = {
    **dict.fromkeys(_ABOUT_THE_KEY, _OURS),
    404: ("There is no such model.", "not_found_error"),
    413: ("The request is too large for the model's server.", "invalid_request_error"),
    429: ("The model is asked too much at the moment. Please try again later.", "rate_limit_error"),
    503: ("The model's server is overloaded. Please try again later.", "server_error"),
}
_CANCELLED = PublicError("The answer was cancelled.", "cancelled", status=_UNAVAILABLE)
_KINDS: tuple[tuple[type[ChanstreamError], PublicError], ...] = (
    (StreamAPIError, PublicError("The model's server ended the answer with an error.")),
    (APITimeoutError, PublicError("The model took too long.", "timeout", status=_GATEWAY_TIMEOUT)),
    (APIConnectionError, PublicError("The model's server cannot be reached.", "connection_error")),
    (EventTooLargeError, PublicError("The answer was too large.")),
    (StreamError, PublicError("The answer was cut off.", "interrupted")),
    (StreamCancelledError, _CANCELLED),
    (ChannelClosedError, _CANCELLED),
)

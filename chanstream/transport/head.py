"""What the head of an answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs
from requests.structures import CaseInsensitiveDict

from ..errors import request_id_in

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_STEP = re.compile(rf"({_NUMBER.pattern})(ms|us|ns|d|h|m|s)")


@attrs.frozen
class RateLimits:
    """What is left of the caller's quota, from the ``x-ratelimit-*`` headers; None where the server does not say.

    Attributes:
        limit_requests: Requests allowed in the window; remaining_requests: how many of them are left.
        reset_requests: Seconds until there are all of them again.
        limit_tokens: Tokens allowed in the window; remaining_tokens: how many of them are left.
        reset_tokens: Seconds until there are all of them again.
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


@attrs.frozen
class ResponseHead:
    """The head of an answer.

    Attributes:
        status_code: The HTTP status.
        headers: The headers; names in any case.
    """

    status_code: int
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """The ``Content-Type``, an event stream's where there is none."""
        return self.headers.get("content-type", "text/event-stream")

    @property
    def request_id(self) -> str | None:
        """The server's id for the request, where it sent one."""
        return request_id_in(self.headers)

    @property
    def rate_limits(self) -> RateLimits:
        """What is left of the caller's quota."""

        def said(what: str) -> str:
            return self.headers.get(f"x-ratelimit-{what}", "")

        return RateLimits(
            _count(said("limit-requests")),
            _count(said("remaining-requests")),
            seconds_in(said("reset-requests")),
            _count(said("limit-tokens")),
            _count(said("remaining-tokens")),
            seconds_in(said("reset-tokens")),
        )


def head_of(status_code: int, headers: Mapping[str, str]) -> ResponseHead:
    """Return a head that says this, as one that came from a server does."""
    return ResponseHead(status_code, CaseInsensitiveDict(headers))


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None  # 64 bits


def seconds_in(text: str) -> float | None:
    """Return the seconds of a duration as Groq and OpenAI write it (``2m59.56s``, ``6ms``), or of a bare number."""
    text = text.encode("latin-1", "replace").decode("utf-8", "replace").replace("µ", "u")  # a header is read as Latin-1
    steps = _STEP.findall(text)
    if steps and "".join(number + unit for number, unit in steps) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in steps)
    return float(text) if _NUMBER.fullmatch(text) else None

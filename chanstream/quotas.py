"""What an answer's headers say of the caller's quota, as Groq and OpenAI send them.

Sources: https://console.groq.com/docs/rate-limits and https://platform.openai.com/docs/guides/rate-limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

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

    @classmethod
    def in_headers(cls, headers: Mapping[str, str]) -> RateLimits:
        """Return what headers say; their names may be in any case that the mapping knows."""

        def said(what: str) -> str:
            return headers.get(f"x-ratelimit-{what}", "")

        return cls(
            _count(said("limit-requests")),
            _count(said("remaining-requests")),
            seconds_in(said("reset-requests")),
            _count(said("limit-tokens")),
            _count(said("remaining-tokens")),
            seconds_in(said("reset-tokens")),
        )


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None  # 64 bits


def seconds_in(text: str) -> float | None:
    """Return the seconds of a duration as Groq and OpenAI write it (``2m59.56s``, ``6ms``), or of a bare number."""
    text = text.encode("latin-1", "replace").decode("utf-8", "replace").replace("µ", "u")  # a header is read as Latin-1
    steps = _STEP.findall(text)
    if steps and "".join(number + unit for number, unit in steps) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in steps)
    return float(text) if _NUMBER.fullmatch(text) else None

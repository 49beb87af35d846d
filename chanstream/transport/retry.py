"""When to try again, and after how long. No clock and no I/O here: the caller waits, so that a cancel ends the wait."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import attrs
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry as _Arithmetic

from ..errors import APIConnectionError, APIStatusError, APITimeoutError, ChanstreamError

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})

_CERTIFICATES = re.compile(
    "certificate|unknown ca|handshake failure|key values mismatch|pem lib|tls key file", re.IGNORECASE
)
"""Words of OpenSSL and requests for: one side does not accept the other's certificate, or a file of ours is not there,
or is none. What a server says that missed ours is the third in TLS 1.2 and the first in 1.3."""


def _not_negative(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field.name}: expected a number, got {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{field.name}: expected 0 or more, got {value!r}")


def _whole(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{field.name}: expected a whole number, got {value!r}")


@attrs.frozen(kw_only=True)
class Retry:
    """How often and how patiently to try again before the first chunk.

    The wait before try n is drawn between 0 and ``min_delay * 2**n``, at most ``max_delay``: "full jitter", so that
    clients that failed together do not come back together. A server that says ``Retry-After`` is obeyed, up to
    ``max_retry_after``. What is wrong with a certificate is told at once.

    Attributes:
        max_retries: Tries after the first; 0 for none.
        min_delay: Bound of the first wait, in seconds.
        max_delay: Bound of all waits that the server does not set, in seconds.
        max_retry_after: The longest wait that a server may ask for, in seconds.
        statuses: The HTTP statuses that are tried again.
    """

    max_retries: int = attrs.field(default=3, validator=[_whole, _not_negative])
    min_delay: float = attrs.field(default=0.2, validator=_not_negative)
    max_delay: float = attrs.field(default=1.0, validator=_not_negative)
    max_retry_after: float = attrs.field(default=60.0, validator=_not_negative)
    statuses: frozenset[int] = attrs.field(default=RETRIED_STATUSES, converter=frozenset)

    def allows(self, error: ChanstreamError, retries: int) -> bool:
        """Return whether to try again after ``error``, when there were so many retries before."""
        if retries >= self.max_retries:
            return False
        if isinstance(error, APIStatusError):
            return error.status_code in self.statuses
        if isinstance(error, APITimeoutError):
            return error.clock in ("connect", "first_chunk")
        # What is wrong with a certificate is so in a second too.
        return isinstance(error, APIConnectionError) and not _CERTIFICATES.search(str(root_cause(error)))

    def delay(self, error: ChanstreamError, retries: int) -> float:
        """Return the seconds to wait before trying again."""
        if isinstance(error, APIStatusError) and error.retry_after is not None:
            return min(error.retry_after, self.max_retry_after)
        # The exponent is bounded because a float is not: 2.0**1100 overflows.
        return random.uniform(0, min(self.max_delay, self.min_delay * 2.0 ** min(retries, 60)))  # noqa: S311 - jitter


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost cause of an error: requests and urllib3 wrap each other several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date.

    See https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3; the date's arithmetic is urllib3's.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return _Arithmetic().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None

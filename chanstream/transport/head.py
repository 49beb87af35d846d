"""What the head of an answer says."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from requests.structures import CaseInsensitiveDict

from ..errors import request_id_in
from ..quotas import RateLimits


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
        return RateLimits.in_headers(self.headers)


def head_of(status_code: int, headers: Mapping[str, str]) -> ResponseHead:
    """Return a head that says this, as one that came from a server does."""
    return ResponseHead(status_code, CaseInsensitiveDict(headers))

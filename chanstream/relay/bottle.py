"""A stream as a response of Bottle. Needs the extra ``bottle``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..stream import CompletionStream
from .body import Relay, body_of

if TYPE_CHECKING:
    from bottle import HTTPResponse


def stream_response(stream: CompletionStream | Relay, **options: Any) -> HTTPResponse:
    """Return a response of Bottle that streams an answer as events, unbuffered, uncached and uncompressed.

    Args:
        stream: The stream; or a body that `sse` or `text` made.
        **options: As for `sse`.

    Raises:
        ImportError: The extra is not installed.
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    try:
        from bottle import HTTPResponse
    except ImportError as error:
        raise ImportError("relay.bottle needs Bottle: pip install 'chanstream[bottle]'") from error
    body = body_of(stream, options)
    return HTTPResponse(body, headers=body.headers)

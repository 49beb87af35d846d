"""A stream as a response of Flask. Needs the extra ``flask``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..stream import CompletionStream
from .body import Relay, body_of

if TYPE_CHECKING:
    from flask import Response


def stream_response(stream: CompletionStream | Relay, **options: Any) -> Response:
    """Return a response of Flask that streams an answer as events, unbuffered, uncached and uncompressed.

    Args:
        stream: The stream; or a body that `sse` or `text` made.
        **options: As for `sse`.

    Raises:
        ImportError: The extra is not installed.
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    try:
        from flask import Response
    except ImportError as error:
        raise ImportError("relay.flask needs Flask: pip install 'chanstream[flask]'") from error
    body = body_of(stream, options)
    return Response(body, headers=body.headers)

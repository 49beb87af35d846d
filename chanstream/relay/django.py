"""A stream as a response of Django, under WSGI and under ASGI. Needs the extra ``django``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cache
from typing import TYPE_CHECKING, Any

from ..stream import CompletionStream
from .body import Relay, body_of

if TYPE_CHECKING:
    from django.http import StreamingHttpResponse


def stream_response(stream: CompletionStream | Relay, **options: Any) -> StreamingHttpResponse:
    """Return a response of Django that streams an answer as events, unbuffered, uncached and uncompressed.

    It is for views of both kinds and servers of both kinds: under ASGI it is iterated without a thread.

    Args:
        stream: The stream; or a body that `sse` or `text` made.
        **options: As for `sse`.

    Raises:
        ImportError: The extra is not installed.
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    body = body_of(stream, options)
    return _response_class()(body, headers=dict(body.headers))


@cache
def _response_class() -> type[StreamingHttpResponse]:
    try:
        from django.http import StreamingHttpResponse
    except ImportError as error:
        raise ImportError("relay.django needs Django: pip install 'chanstream[django]'") from error

    class RelayResponse(StreamingHttpResponse):  # type: ignore[misc]  # Django comes without types
        """A body that is there for both: Django itself takes an iterator for WSGI's alone, and gathers it for ASGI."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            body = self._iterator
            is_ours = isinstance(body, Relay)  # else a middleware has put its own around it
            async with aclosing(body.__aiter__() if is_ours else super().__aiter__()) as blocks:
                async for block in blocks:
                    yield block

    return RelayResponse

"""A stream as the body of an HTTP response: an iterator of bytes for any WSGI server, and an async one for ASGI.

One wait is for both, the next chunk and the heartbeat; what is there when it ends goes out as one block. That the other
side has left a WSGI server learns only when it writes: hence the heartbeat. It then calls `close`, as it does at the
end of every body, and that frees the model at once.
"""

from __future__ import annotations

import queue
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, ClassVar, get_args

from ..arguments import one_of, seconds, typed
from ..channel import pipe_of
from ..errors import ChanstreamError
from ..models.chunk import CompletionChunk
from ..stream import CompletionStream
from .public import ShowErrors, checked, public_error
from .wording import Usage, Wording, encoded

_AGAIN = 0.5
"""Seconds after which a heartbeat is repeated. The first thing that is written to somebody who has left is answered by
his system, and only the next one fails; so it need not wait for the next heartbeat."""

_OPENING, _PING, _DONE = b":\n\n", b": ping\n\n", b"data: [DONE]\n\n"

_HEADERS = (
    ("Cache-Control", "no-store, no-transform"),
    # Makes what compresses, Django's GZipMiddleware and its like, leave a body alone: it would gather tokens.
    ("Content-Encoding", "identity"),
    ("X-Accel-Buffering", "no"),  # nginx gathers otherwise
    ("X-Content-Type-Options", "nosniff"),  # a browser gathers the beginning of a text to guess what it is
)


class Relay(ABC):
    """A stream as the body of a response; `sse` and `text` make one.

    Iterating gives blocks of bytes, none of them empty; ``async for`` gives the same without blocking the event loop.
    Dropping the last reference closes it.

    Attributes:
        content_type: The body's media type.

    Thread safety: one thread iterates; `close` may be called from any.
    """

    content_type: ClassVar[str]

    def __init__(self, stream: CompletionStream, heartbeat: float | None, on_close: Callable[[], object]) -> None:
        self._stream: CompletionStream = typed("stream", stream, CompletionStream)
        if not callable(on_close):
            raise TypeError(f"on_close: expected a function, got {on_close!r}")
        self._heartbeat = heartbeat
        self._failure: ChanstreamError | None = None
        self._opening = b""
        self._is_asking = False  # whether there was one heartbeat and not yet the second
        self._over = False
        self._on_close = [on_close]  # at last: it tells that there is something to close

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of a response with this body."""
        return [("Content-Type", self.content_type), *_HEADERS]

    def close(self) -> None:
        """Cancel what is still to come, and free the connection to the model; does not wait for it. Idempotent."""
        self._over = True
        self._stream.close()
        self._tell()

    def _tell(self) -> None:
        """Tell that the body is over, once."""
        try:
            on_close = self._on_close.pop()  # one step: of two threads one gets it
        except IndexError:
            return
        on_close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next block, waiting for it."""
        while not self._over:
            block = self._opened() or self._said(self._taken())
            if block:
                return block
        self.close()
        raise self._failure or StopIteration

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Give the blocks without blocking the event loop; leaving early closes."""
        try:
            while not self._over:
                block = self._opened() or self._said(await self._awaited())
                if block:
                    yield block
            if self._failure is not None:
                raise self._failure
        finally:
            self.close()

    def _opened(self) -> bytes:
        """Return what goes before all else, the first time."""
        opening, self._opening = self._opening, b""
        return opening

    def _taken(self) -> list[CompletionChunk]:
        """Return the chunks that are there, waiting for the first; none after a silence."""
        try:
            return self._stream.get_many(timeout=self._patience())
        except queue.Empty:
            return []
        except ChanstreamError as error:
            return [CompletionChunk(error=error)]

    async def _awaited(self) -> list[CompletionChunk]:
        """Return as `_taken`."""
        import asyncio

        from ..channel.asynchronous import next_item

        try:
            first = await asyncio.wait_for(next_item(self._stream, pipe_of(self._stream)), self._patience())
        except asyncio.TimeoutError:
            return []
        except ChanstreamError as error:
            return [CompletionChunk(error=error)]
        return [first, *pipe_of(self._stream).take()]

    def _patience(self) -> float | None:
        """Return the seconds of silence to wait through."""
        return min(_AGAIN, self._heartbeat) if self._heartbeat and self._is_asking else self._heartbeat

    def _said(self, chunks: list[CompletionChunk]) -> bytes:
        """Return the bytes for chunks, or for a silence."""
        if self._over:  # closed meanwhile
            return b""
        self._is_asking = not (chunks or self._is_asking)
        block = self._block(chunks)
        if chunks and (chunks[-1].is_last_chunk or chunks[-1].error is not None):
            self._over = True
            self._tell()  # before anybody sees the end, and comes back for more
        return block

    @abstractmethod
    def _block(self, chunks: list[CompletionChunk]) -> bytes:
        """Return the bytes that say these chunks, or that there are none; b"" to say nothing."""

    def __del__(self) -> None:
        if hasattr(self, "_on_close") and not sys.is_finalizing():  # the former: else __init__ did not get far
            self.close()


class _Events(Relay):
    content_type = "text/event-stream; charset=utf-8"

    def __init__(
        self, stream: CompletionStream, heartbeat: float | None, show: ShowErrors, usage: Usage, on_close: Any
    ) -> None:
        self._show = show
        self._wording = Wording(usage)
        super().__init__(stream, heartbeat, on_close)
        self._opening = _OPENING

    def _block(self, chunks: list[CompletionChunk]) -> bytes:
        return b"".join(part for chunk in chunks for part in self._events(chunk)) if chunks else _PING

    def _events(self, chunk: CompletionChunk) -> Iterator[bytes]:
        if chunk.error is not None:
            yield b"event: error\ndata: %b\n\n" % encoded(public_error(chunk.error, self._show).to_dict())
            return
        for data in self._wording.objects(chunk):
            yield b"data: %b\n\n" % encoded(data)
        if chunk.is_last_chunk:
            yield _DONE


class _Text(Relay):
    content_type = "text/plain; charset=utf-8"

    def _block(self, chunks: list[CompletionChunk]) -> bytes:
        if chunks:
            self._failure = chunks[-1].error
        return "".join(chunk.text for chunk in chunks).encode("utf-8", "replace")


def sse(
    stream: CompletionStream,
    *,
    heartbeat: float | None = 15.0,
    show_errors: ShowErrors = True,
    usage: Usage = "last_chunk",
    on_close: Callable[[], object] = lambda: None,
) -> Relay:
    """Return a stream as an event stream: a response's body, which a browser and the official packages understand.

    Each chunk is an event ``data: {...}`` in the form of OpenAI's API, whatever the server's; the end is
    ``data: [DONE]``. An error is the last event, ``event: error`` with ``data: {"error": {"message": ..., "type": ...,
    "param": ..., "code": ...}}``, and no ``[DONE]`` follows. A body with neither at its end was cut off.

    The first block comes at once: a comment, with which the response's head can go out before the model speaks. Chunks
    that are there together are one block.

    Args:
        stream: The stream. It belongs to the body from now on.
        heartbeat: Seconds of silence after which a comment is sent, ``: ping``, so that the server finds out whether
            anybody is still there. It is sent twice, half a second apart: what is written to somebody who has left
            fails only the second time. None for never.
        show_errors: What is shown of errors; see `public_error`.
        usage: Where token counts go: ``"last_chunk"``, or ``"own_chunk"`` for one after it that has no choices, as
            OpenAI has it.
        on_close: Called once, when the body is closed or dropped, or just before its last block is given; must neither
            block nor raise.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    beat = None if heartbeat is None else seconds("heartbeat", heartbeat)
    return _Events(stream, beat, checked(show_errors), one_of("usage", usage, get_args(Usage)), on_close)


def text(stream: CompletionStream, *, on_close: Callable[[], object] = lambda: None) -> Relay:
    """Return a stream as plain text in UTF-8: a response's body with nothing but the text of the first choice.

    Where the stream ends with an error, so does the iteration: it raises that error, and the server closes the
    connection without ending the body, which is how the other side learns that something is missing. Plain text has no
    heartbeat: that a caller has left is noticed with the next piece of text.

    Args:
        stream: The stream. It belongs to the body from now on.
        on_close: As for `sse`.

    Raises:
        TypeError: That is no stream.
    """
    return _Text(stream, None, on_close)


def body_of(stream: CompletionStream | Relay, options: dict[str, Any]) -> Relay:
    """Return the body of a response for a stream, or for a body that was made before."""
    if not isinstance(stream, Relay):
        return sse(stream, **options)
    if options:
        raise TypeError(f"{', '.join(options)}: said when the body is made, and this one is")
    return stream

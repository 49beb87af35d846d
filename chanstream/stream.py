"""The stream that a caller holds: a channel of chunks, how to cancel it, and what the answer's head said."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Literal, TypeAlias

from .channel import Channel, FedChannel, Pipe
from .context import Context
from .errors import ChannelClosedError, StreamCancelledError, with_partial
from .models.chat import ChatCompletionResponse
from .models.chunk import CompletionChunk
from .models.events import CompletionEvent, Failed
from .transport.head import ResponseHead
from .wire.assembly import Assembler
from .wire.events import EventMachine

Errors: TypeAlias = Literal["inband", "raise"]
State: TypeAlias = Literal["streaming", "complete", "failed", "cancelled"]

_DRAIN_GRACE = 0.04
"""Seconds that `close` gives a stream whose last chunk is out to read the body's end, so that ``break`` at the last
chunk keeps the connection for the next request. In the usual case it takes well under a millisecond."""


class CompletionStream(FedChannel[CompletionChunk]):
    """The chunks of one answer, as they come.

    ::

        for evt in client.chat_completion_stream(request):
            if evt.error:
                raise evt.error
            print(evt.text, end="", flush=True)

    Iterating gives each chunk and ends after the one that ends the stream: the last chunk, or one with ``error`` set
    (raised instead, with ``errors="raise"``). Leaving the loop early, with ``break``, ``return`` or an exception,
    closes the stream; to go on later, take chunks with ``next(stream)`` or `get`, or keep ``iter(stream)`` in a
    variable. The stream is also closed by `close`, at the end of a ``with`` block, and when the last reference to it is
    dropped.

    Thread safety: every method may be called from any thread. With several consumers each chunk goes to exactly one,
    and one that leaves its loop early closes the stream for all.
    """

    _kind = "stream"

    def __init__(
        self, pipe: Pipe[CompletionChunk], context: Context, response: ResponseHead, errors: Errors = "inband"
    ) -> None:
        self._context = context
        self._errors = errors
        self._closed_here = False
        self.response = response
        super().__init__(pipe=pipe)

    @property
    def state(self) -> State:
        """How the stream stands: ``"streaming"``, ``"complete"``, ``"failed"`` or ``"cancelled"``.

        It is that of the producer: chunks may still wait to be taken.
        """
        final = self._pipe.final
        if final is None:
            return "cancelled" if self._closed_here else "streaming"
        if final.error is None:
            return "complete"
        return "cancelled" if isinstance(final.error, StreamCancelledError) else "failed"

    def get(self, block: bool | float = True, timeout: float | None = None) -> CompletionChunk:
        """Take the next chunk, waiting for it if need be.

        Args:
            block: Whether to wait; a number is the ``timeout``.
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            ChannelClosedError: The stream is over, and all its chunks are taken.
            queue.Empty: Nothing came (in time).
            StreamInterruptedError: This is a forked child, and the stream the parent's.
            ChanstreamError: With ``errors="raise"``: what ended the stream.
        """
        chunk = super().get(block, timeout)
        if chunk.error is not None and self._errors == "raise":
            raise chunk.error
        return chunk

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[CompletionChunk]:
        """Take all chunks that are there, at most ``most``, waiting for the first one as `get` does.

        Raises:
            As `get`. With ``errors="raise"`` the chunks before an error are given first, and it is raised by the next
            call.
        """
        chunks = super().get_many(most, timeout)
        error = chunks[-1].error  # only the last of a stream can have one
        if error is not None and self._errors == "raise":
            if len(chunks) == 1:
                raise error
            self._pipe.put_back(chunks.pop())
        return chunks

    def collect(self) -> ChatCompletionResponse:
        """Take all chunks that are left and return the answer that they make.

        Raises:
            ChanstreamError: What ended the stream, if it did not end well; its ``partial`` is the answer so far.
            StreamCancelledError: The stream was closed before it ended.
        """
        self._check_process()
        answer = Assembler()
        last = CompletionChunk()
        try:
            while not (last.is_last_chunk or last.error):
                last = self._pipe.get()
                answer.add(last)
        except ChannelClosedError:
            pass
        finally:
            self.close()
        if not last.is_last_chunk:
            error = last.error or StreamCancelledError("the stream was closed")
            raise with_partial(error, answer.response())
        return answer.response()

    def events(self) -> CompletionEvents:
        """Return what the chunks that are left say, as events: what each adds, and what is complete."""
        return CompletionEvents(self, Channel(pipe=self._pipe), self._check_process, self._errors)

    def close(self, error: BaseException | None = None) -> None:
        """Cancel what is still to come, drop what was not taken, and free the socket and every blocked thread.

        Does nothing on a stream that has ended. Does not wait for the server.

        Args:
            error: Not used; there because a `Channel` has it.
        """
        super().close(error)

    def _leave(self) -> None:
        if self._pipe.final is not None and self._pipe.over:
            return  # it came to its end, and all is taken: nothing is left to free
        if self._pipe.ended:
            self._pipe.wait_closed(_DRAIN_GRACE)
        else:
            self._closed_here = True
        self._pipe.abandon()
        self._context.cancel(StreamCancelledError("the stream was closed"))

    def __iter__(self) -> Generator[CompletionChunk, None, None]:
        """Take chunks to the end of the stream; leaving early closes it."""
        chunks = super().__iter__()
        return chunks if self._errors == "inband" else _raising(chunks)

    def __next__(self) -> CompletionChunk:
        """Take the next chunk; leaves the stream open."""
        try:
            return self.get()
        except ChannelClosedError:
            raise StopIteration from None

    def __repr__(self) -> str:
        return f"<CompletionStream {self.state}, {self.qsize()} chunks waiting>"


class CompletionEvents:
    """What happens to an answer, event by event; made by `CompletionStream.events`.

    ::

        for event in client.chat_completion_stream(request).events():
            match event:
                case TextDelta(text):
                    print(text, end="", flush=True)
                case ToolCallDone(tool_call=call):
                    start(call)
                case Failed(error):
                    raise error

    An iterator, for ``for`` and for ``async for``. The last event is `Finished`, or `Failed` (raised instead, with
    ``errors="raise"``, and then the error's ``partial`` is the answer so far). Leaving the loop early closes the
    stream; ``next(events)`` takes one event and leaves it open.

    Thread safety: none; one thread takes them. The stream may be closed from any other.
    """

    def __init__(
        self,
        stream: CompletionStream,
        chunks: Channel[CompletionChunk],
        check_process: Callable[[], None],
        errors: Errors,
    ) -> None:
        self._stream = stream  # which would close if nobody held it
        self._chunks = chunks  # the stream's, but an error is a chunk here, whatever the stream does with one
        self._check_process = check_process
        self._errors = errors
        self._machine = EventMachine()
        self._ready: deque[CompletionEvent] = deque()

    def __next__(self) -> CompletionEvent:
        """Take the next event; leaves the stream open."""
        while not self._ready:
            self._check_process()
            try:
                self._ready += self._machine.feed(self._chunks.get())
            except ChannelClosedError:
                raise StopIteration from None
        return self._take()

    def __iter__(self) -> Iterator[CompletionEvent]:
        """Take events to the end of the stream; leaving early closes it."""
        try:
            while True:
                try:
                    event = next(self)
                except StopIteration:
                    return
                yield event
        finally:
            self._close()

    async def __aiter__(self) -> AsyncIterator[CompletionEvent]:
        """Take events to the end of the stream without blocking the event loop; leaving early closes it."""
        self._check_process()
        try:
            while self._ready:
                yield self._take()
            async for chunk in self._chunks:
                self._ready += self._machine.feed(chunk)
                while self._ready:
                    yield self._take()
        finally:
            self._close()

    def _take(self) -> CompletionEvent:
        event = self._ready.popleft()
        if isinstance(event, Failed) and self._errors == "raise":
            raise with_partial(event.error, event.partial)
        return event

    def _close(self) -> None:
        self._ready.clear()
        self._stream.close()

    def __repr__(self) -> str:
        return f"<CompletionEvents of {self._stream!r}>"


def _raising(chunks: Generator[CompletionChunk, None, None]) -> Generator[CompletionChunk, None, None]:
    """Give chunks, and raise the error of one that has one."""
    with contextlib.closing(chunks):
        for chunk in chunks:
            chunk.raise_for_error()
            yield chunk

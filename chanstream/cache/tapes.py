"""Recorded answers that can be followed: one that is kept, and one that is still on its way.

A live tape belongs to nobody, neither to who asked first: all who ask the same while it is there follow it, each with a
channel, a context and a pace of its own. It reads on as long as one of them has room, so that the slowest holds nobody
back, and all together still hold back the server. When the last one has left, the request is cancelled.

It is stored once somebody has taken the last chunk, in a thread of its own: the threads that take chunks and those that
bring them (the event loop of an ``async for``, the poller of all streams) wait for no disk and no network. The channels
are closed when that is done, so who sees the end of a loop knows that the answer is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import attrs

from .. import timers
from ..channel import Feeder, Pipe, pipe_of
from ..context import Context
from ..errors import ChanstreamError
from ..models.chunk import CompletionChunk
from ..stream import CompletionStream
from ..transport.head import ResponseHead
from .entry import line_of
from .replay import Line, PacedReplay, Replay

_BATCH = 64
"""Chunks that are taken at a time."""

_STORE_SECONDS = 0.25
"""How long the end of a loop waits for the answer to be stored; the last chunk does not wait at all."""


@attrs.frozen
class KeptTape:
    """An answer that was stored.

    Attributes:
        head: The head of the stream.
        lines: Its chunks.
        is_paced: Whether it is replayed in the recorded rhythm.
    """

    head: ResponseHead
    lines: Sequence[bytes]
    is_paced: bool

    def follow(self, maxsize: int, context: Context) -> Pipe[CompletionChunk]:
        """Return the pipe of one more consumer, with all chunks on their way to it."""
        pipe: Pipe[CompletionChunk] = Pipe(maxsize)
        (PacedReplay if self.is_paced else Replay)(self.lines, pipe, context).begin()
        return pipe


class LiveTape(Feeder):
    """An answer on its way, and all who follow it.

    Args:
        stream: The answer; only the tape takes chunks of it.
        keep: Stores a complete answer; must not raise.
        on_over: Called when nobody can follow the tape any more.

    Attributes:
        head: The head of the stream.

    Thread safety: every method may be called from any thread, and from a finalizer all but `follow`.
    """

    def __init__(
        self, stream: CompletionStream, keep: Callable[[list[Line]], None], on_over: Callable[[], None]
    ) -> None:
        super().__init__()
        self.head = stream.response
        self._stream = stream
        self._source = pipe_of(stream)
        self._keep = keep
        self._on_over: Callable[[], None] | None = on_over
        self._lines: list[Line] = []
        self._followers: list[Replay] = []
        self._lock = threading.RLock()  # guards that nobody follows a tape whose last follower has left
        self._over = False
        self._complete = False
        self._drained = False
        self._stored = False
        self._storing = threading.Lock()  # taken, for ever, by who starts to store
        self._forget = self._source.add_waiter(self.move)

    def follow(self, maxsize: int, context: Context) -> Pipe[CompletionChunk] | None:
        """Return the pipe of one more consumer; None where the tape is over."""
        pipe = _ToldPipe(maxsize, self._on_taken)
        replay = Replay(self._lines, pipe, context, self)
        with self._lock:
            # In this order, because a finalizer may let the last one leave in between.
            self._followers.append(replay)
            if self._over:
                self._followers.remove(replay)
                return None
        replay.begin()
        self.move()
        return pipe

    def left(self, replay: Replay) -> None:
        """Forget a follower, and the whole answer if it was the last."""
        with self._lock:
            if replay in self._followers:
                self._followers.remove(replay)
            if self._over or self._followers or self._storing.locked():
                return
            self._over = True
        self._say_over()
        if not self._source.ended:  # else what is left of the body is read, so that the connection can be used again
            self._stream.close()

    def fail(self, error: ChanstreamError) -> None:
        """End it for all who follow."""
        for replay in list(self._followers):
            replay.fail(error)

    def _say_over(self) -> None:
        on_over, self._on_over = self._on_over, None  # which knows this tape: a circle
        if on_over is not None:
            on_over()

    # -- from the server ----------------------------------------------------------------------------------------------

    def _move(self) -> None:
        source = self._source
        while source.readable() and (source.over or any(not replay.waiting for replay in list(self._followers))):
            chunks = source.take(_BATCH)
            if not chunks and source.over:
                self._forget()
                self._drained = True
                self._release_if_done()
                return
            self._lines += [chunk if chunk.error is not None else line_of(chunk) for chunk in chunks]
            self._complete = self._complete or any(chunk.is_last_chunk for chunk in chunks)
            for replay in list(self._followers):
                replay.move()

    # -- at the end ---------------------------------------------------------------------------------------------------

    def _on_taken(self) -> None:
        """Store the answer, now that somebody has taken the last chunk of it."""
        if not self._storing.acquire(blocking=False):
            return
        patience = timers.call_at(time.monotonic() + _STORE_SECONDS, self._release)
        thread = threading.Thread(target=self._store, args=(patience,), name="chanstream-cache")
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._store(patience)

    def _store(self, patience: timers.Timer) -> None:
        try:
            self._keep(self._lines)
        finally:
            self._stored = True
            patience.stop()
            self._release_if_done()

    def _release_if_done(self) -> None:
        """Let the consumers see the end once the connection is free, and the answer stored if it is to be."""
        if self._drained and (self._stored or not self._complete):
            self._release()

    def _release(self) -> None:
        with self._lock:
            was_over, self._over = self._over, True
        if not was_over:
            self._say_over()
        for replay in list(self._followers):
            replay.release()


class _ToldPipe(Pipe[CompletionChunk]):
    """A pipe that tells when its last chunk is taken, in whichever way."""

    def __init__(self, maxsize: int, on_taken: Callable[[], None]) -> None:
        super().__init__(maxsize)
        self._on_taken = on_taken
        self._is_taken = False

    def get(self, timeout: float | None = None) -> CompletionChunk:
        chunk = super().get(timeout)
        if chunk.is_last_chunk:
            self._tell()
        return chunk

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[CompletionChunk]:
        return self._looked_at(super().get_many(most, timeout))

    def take(self, most: int | None = None) -> list[CompletionChunk]:
        return self._looked_at(super().take(most))

    def wait_closed(self, timeout: float) -> bool:
        # Whoever leaves before the last chunk has nothing to wait for: only its taking leads to a close.
        return self._is_taken and super().wait_closed(timeout)

    def _looked_at(self, chunks: list[CompletionChunk]) -> list[CompletionChunk]:
        if chunks and chunks[-1].is_last_chunk:
            self._tell()
        return chunks

    def _tell(self) -> None:
        self._is_taken = True
        self._on_taken()

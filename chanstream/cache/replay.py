"""From recorded lines to the channel of one consumer, without a thread.

A replay moves chunks whenever something has changed: there are more of them, there is room in the channel again, or
their time has come. It does so in whatever thread brings the news. One thread at a time is at it, which keeps the
order; who comes too late leaves word, see `chanstream.channel.feeding`.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import attrs

from .. import timers
from ..channel import Feeder, Offer, Pipe
from ..context import Context
from ..errors import ChannelClosedError, ChanstreamError
from ..models.chunk import CompletionChunk
from .entry import chunk_of

Line: TypeAlias = bytes | CompletionChunk
"""A chunk as `entry.line_of` writes it; or the one with the error that ended a live stream."""

_BATCH = 64
"""Chunks that are decoded at a time: what a full channel has no room for is not worth the work yet."""


class Owner(Protocol):
    """Where the lines of a replay come from, while more may come."""

    def move(self) -> None:
        """Bring more of them, as there is room again."""

    def left(self, replay: Replay) -> None:
        """Forget one that needs no more of them."""


class Replay(Feeder):
    """The chunks of one recording on their way to one consumer.

    Args:
        lines: The recording; the owner may append more until one ends it.
        pipe: Where they go.
        context: Whose end ends the replay.
        owner: Who tells when the consumer may see the end (see `release`); None where there is nothing to wait for.

    Attributes:
        waiting: Chunks that found no room.

    Thread safety: every method may be called from any thread, and from a finalizer.
    """

    def __init__(
        self, lines: Sequence[Line], pipe: Pipe[CompletionChunk], context: Context, owner: Owner | None = None
    ) -> None:
        super().__init__()
        self.waiting: Offer[CompletionChunk] = Offer()
        self._lines = lines
        self._next = 0
        self._pipe = pipe
        self._context = context
        self._owner = owner
        self._released = owner is None
        self._at_end = False
        self._latency = 0.0
        self._error: ChanstreamError | None = None
        self._forget: Callable[[], None] | None = None

    def begin(self) -> None:
        """Let the context reach the replay, and move what can be moved."""
        self._forget = self._context.on_done(self.fail)
        self.move()

    def release(self) -> None:
        """Let the consumer see the end, once it has all chunks."""
        self._released = True
        if self._at_end:
            self._finish()

    def fail(self, error: ChanstreamError) -> None:
        """End the replay with an error, unless its end is in already."""
        # The end is put in by who moves, after what is being moved. That may be another thread, which then closes too.
        self._error = error
        self.move()
        if self._pipe.ended:
            self._pipe.close()
        self._let_go()

    def _move(self) -> None:
        pipe = self._pipe
        while not pipe.ended:
            if self._error is not None:
                pipe.end([CompletionChunk(error=self._error, total_latency=self._latency)])
                pipe.close()
            elif self.waiting or not (chunks := self._due()):
                return
            else:
                self._hand_over(chunks)

    def _due(self) -> list[CompletionChunk]:
        """Return the next chunks; none where there are none yet."""
        lines = self._lines[self._next : self._next + _BATCH]
        self._next += len(lines)
        return [_chunk(line) for line in lines]

    def _hand_over(self, chunks: list[CompletionChunk]) -> None:
        if not (chunks[-1].is_last_chunk or chunks[-1].error is not None):
            with contextlib.suppress(ChannelClosedError):  # its consumer has left
                self.waiting = self._pipe.offer(chunks, self._on_room)
                self._latency += sum(chunk.chunk_latency for chunk in chunks)
            return
        self._pipe.end(chunks)
        self._at_end = True  # first: `release` and `fail` look in the other order, so that one of the two closes
        if self._released or self._error is not None:
            self._finish()

    def _on_room(self) -> None:
        self.move()
        if self._owner is not None:
            self._owner.move()

    def _finish(self) -> None:
        self._pipe.close()
        self._let_go()

    def _let_go(self) -> None:
        """Free everything: the consumer has all, or wants no more."""
        if self._forget is not None:
            self._forget()
        self._context.release()
        if self._owner is not None:
            self._owner.left(self)


class PacedReplay(Replay):
    """A replay in which each chunk comes as long after the one before it as it came at first.

    A consumer that was slow for a while finds what came due meanwhile, as with a server.
    """

    def __init__(self, lines: Sequence[Line], pipe: Pipe[CompletionChunk], context: Context) -> None:
        super().__init__(lines, pipe, context)
        self._due_at = time.monotonic()
        self._early: CompletionChunk | None = None
        self._timer: timers.Timer | None = None

    def _due(self) -> list[CompletionChunk]:
        chunk = self._early
        if chunk is None:
            chunk = self._early = _chunk(self._lines[self._next])  # there is one: the last one ends it all
            self._next += 1
            self._due_at += chunk.chunk_latency
        if time.monotonic() >= self._due_at:
            self._early = None
            return [chunk]
        if self._timer is None:
            self._timer = timers.Timer(self._on_time)
            self._timer.start(self._due_at)
        return []

    def _on_time(self) -> None:
        self._timer = None
        self.move()

    def _let_go(self) -> None:
        timer = self._timer
        if timer is not None:
            timer.stop()
        super()._let_go()


def _chunk(line: Line) -> CompletionChunk:
    if isinstance(line, bytes):
        return chunk_of(line)
    return attrs.evolve(line, error=copy.copy(line.error))  # each may raise it, and so put a traceback on it

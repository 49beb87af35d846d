"""One stream on its way from the wire to the channel: what the engines have in common.

An engine feeds bytes; the flow gives them to the machine, hands the chunks over, keeps the clocks, and ends the stream
when it is cancelled. A cancel, from whatever thread, ends the stream itself: it puts the error chunk in, closes the
pipe and shuts the connection down, so that the consumer never waits for the engine to notice. The timer thread does
the same when a clock runs out.

Locking: ``_lock`` guards the machine, and that its chunks go into the pipe in the order in which it made them: whoever
feeds or fails the machine hands its chunks over before letting go of the lock. The pipe's lock is taken inside it,
never the other way round. Nothing blocks under it: chunks that find no room are in the pipe's hands already, so that a
cancel at that moment ends the stream after them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .. import timers
from ..channel import Offer, Pipe
from ..errors import APITimeoutError, ChannelClosedError, ChanstreamError
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..wire.machine import HOLD_SECONDS, StreamMachine

DRAIN_BYTES = 64 * 1024
"""How much is read after the end of the answer, so that the connection can be used again. Enough for what servers
send there (``[DONE]``, usage, a blank line); a server that sends more loses its connection."""

DRAIN_SECONDS = 0.25
"""How long that may take. Where the server is done it takes no time; where it holds the body open, the consumer's loop
ends this much after the last chunk."""

_NEVER = float("inf")

_log = logging.getLogger("chanstream")


class Line(Protocol):
    """Where the bytes come from, as far as a flow has to do with it."""

    def cancel(self) -> None:
        """Wake the reader and let the rest go, from any thread."""

    def close(self) -> None:
        """Free the connection."""


class Flow:
    """One stream between its line and its pipe.

    Attributes:
        context: Whose end ends the stream.
        over: Whether nothing more is to be read: the stream was cancelled, or the server goes on after its end.
        on_room: Called, from any thread, when chunks that waited for room wait no longer.

    Thread safety: one thread at a time begins, feeds and ends; `fail` and `cancel` may be called from any thread.
    """

    def __init__(
        self, call: Call, answer: Answer, line: Line, machine: StreamMachine, pipe: Pipe[CompletionChunk]
    ) -> None:
        self.on_room: Callable[[], None] | None = None
        self.context = call.context
        self.over = False
        self._line = line
        self._machine = machine
        self._pipe = pipe
        self._timeout = call.timeout
        self._lock = threading.RLock()
        self._timer: timers.Timer | None = None
        self._timer_due = _NEVER
        self._idle_is_next = False
        self._blocked = False
        self._began_at = answer.began_at  # no clock counts from before this
        self._forgiven: float | None = 0.0  # after which event they began anew once, None before the first
        self._ended_at: float | None = None
        self._last: CompletionChunk | None = None
        self._drained = 0
        self._forget: Callable[[], None] | None = None

    def begin(self) -> None:
        """Let the context reach the stream."""
        self._forget = self.context.on_done(self.cancel)

    def feed(self, data: bytes, now: float) -> Offer[CompletionChunk] | None:
        """Take in bytes of the body that were read at ``now``, b"" for its clean end.

        Returns:
            The chunks that wait for room, if any do.
        """
        if self._machine.ended:
            self._drained += len(data)
            self.over |= self._drained > DRAIN_BYTES
            return None
        machine = self._machine
        with self._lock:
            chunks = machine.feed(data, now) if data else machine.eof(now)
            waiting = self._hand_over(chunks) if chunks else None
            self._blocked = waiting is not None
        return waiting

    def resume(self) -> None:
        """Note that there is room again: until now it was the consumer who was slow, and no clock ran."""
        with self._lock:
            self._began_at = time.monotonic()
            self._blocked = False

    def fail(self, error: ChanstreamError) -> None:
        """End the stream with ``error``, unless it has ended."""
        with self._lock:
            if self._last is None:
                # If the machine has ended, so has whoever fed it: by Ctrl-C, before the end was in the pipe.
                self._machine.ended = False
            self._hand_over(self._machine.fail(error, time.monotonic()))

    def cancel(self, error: ChanstreamError) -> None:
        """End the stream with ``error`` now."""
        try:
            self.fail(error)
        finally:  # Ctrl-C may come, in an observer too
            self.over = True  # not before: the thread that reads sees it, and closes the pipe
            self._pipe.close()
            self._line.cancel()

    def end(self) -> None:
        """Free everything, after the last byte."""
        if self._forget is not None:
            self._forget()
        self._disarm()
        try:
            self._line.close()
        finally:
            self.context.release()
            # Another thread may have ended the machine, in the lock, and not have handed the end over yet.
            with self._lock:
                pass
            self._pipe.close()  # after the connection went back: the next request of the consumer finds it
        if self._last is not None:
            _log_end(self._last)

    def _hand_over(self, chunks: list[CompletionChunk]) -> Offer[CompletionChunk] | None:
        """Put chunks into the pipe, in the lock, without blocking; return those that wait for room."""
        if self._machine.ended:
            if chunks:
                self._ended_at = time.monotonic()
                self._pipe.end(chunks)
                self._last = chunks[-1]
            return None
        try:
            return self._pipe.offer(chunks, self.on_room) or None
        except ChannelClosedError:  # nobody takes them: the context says so too, in a moment
            return None

    # -- clocks -----------------------------------------------------------------------------------------------------

    def _due(self) -> float:
        """Return when the next clock runs out, as things stand."""
        machine = self._machine
        if self._ended_at is not None:
            return max(self._ended_at, self._began_at) + DRAIN_SECONDS
        if self._blocked:
            return _NEVER
        if machine.hold_until is not None:
            return max(machine.hold_until, self._began_at + HOLD_SECONDS)
        if machine.last_event is None:
            return self._began_at + _or_never(self._timeout.first_chunk)
        return max(machine.last_event, self._began_at) + _or_never(self._timeout.idle)

    def keep_time(self) -> None:
        """See to it that the clocks reach the stream; to be called before each wait for more of it."""
        usual = self._ended_at is None and self._machine.hold_until is None
        if usual and self._idle_is_next and self._timer_due < _NEVER:
            return  # a timer for the idle clock is there, and that clock can only have moved to later
        self._idle_is_next = self._machine.last_event is not None and not self._blocked
        due = self._due()  # only a clock that now ends earlier needs a new timer
        if due < self._timer_due:
            self._disarm()
            self._timer_due = due
            self._timer = timers.Timer(self._on_time)
            self._timer.start(due)

    def _disarm(self) -> None:
        timer = self._timer
        if timer is not None:
            timer.stop()
            self._timer = None  # last, and not instead: Ctrl-C may come first

    def _on_time(self) -> float | None:
        """Act on a clock that has run out, in the timer thread; return when to come back if none has."""
        with self._lock:
            due = self._due()
            if timers.held_up_after(due) and self._forgiven != self._machine.last_event:
                # What came meanwhile is yet to be read. Once for a silence: else, where that happens all the time, no
                # clock would ever run out.
                self._forgiven = self._machine.last_event
                self._began_at = time.monotonic()
                due = self._due()
            if time.monotonic() < due:
                self._timer_due = due
                return None if due == _NEVER else due
            ended = self._ended_at is not None
            if not ended and self._machine.hold_until is not None:
                self._hand_over(self._machine.tick(time.monotonic()))
                ended = True
        if ended:
            self._line.cancel()  # enough of draining, or of waiting for the usage
        else:
            self.context.cancel(self._timed_out())
        return None

    def _timed_out(self) -> APITimeoutError:
        if self._machine.last_event is None:
            return APITimeoutError(clock="first_chunk", seconds=self._timeout.first_chunk or 0.0)
        return APITimeoutError(clock="idle", seconds=self._timeout.idle or 0.0)


def _log_end(last: CompletionChunk) -> None:
    """Log how a stream ended; of an error its kind alone, because its words may be those of the answer."""
    how = type(last.error).__name__ if last.error else last.choices[0].finish_reason
    _log.debug("stream ended after %.3f s: %s", last.total_latency, how)


def _or_never(seconds: float | None) -> float:
    return _NEVER if seconds is None else seconds

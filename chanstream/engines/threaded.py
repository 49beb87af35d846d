"""A producer thread per stream: works for every response, with public parts of requests and urllib3 only.

Who does what: the producer thread reads, feeds the machine and puts chunks into the pipe. A cancel, from whatever
thread, ends the stream itself: it puts the error chunk in, closes the pipe and shuts the connection down, so that the
consumer never waits for the producer to notice. The timer thread does the same when a clock runs out.

Locking: ``_lock`` guards the machine, and that its chunks go into the pipe in the order in which it made them: whoever
feeds or fails the machine hands its chunks over before letting go of the lock. The pipe's lock is taken inside it,
never the other way round. Nothing blocks under it: waiting for room is done outside, and chunks that wait for room are
already in the pipe's hands, so that a cancel at that moment ends the stream after them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque

from .. import timers
from ..channel import Pipe
from ..errors import APITimeoutError, ChannelClosedError, ChanstreamError, StreamError
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..wire.machine import StreamMachine

DRAIN_BYTES = 64 * 1024
"""How much is read after the end of the answer, so that the connection can be used again. Enough for what servers
send there (``[DONE]``, usage, a blank line); a server that sends more loses its connection."""

DRAIN_SECONDS = 0.25
"""How long that may take. Where the server is done it takes no time; where it holds the body open, the consumer's loop
ends this much after the last chunk."""

_log = logging.getLogger("chanstream")


def start(call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> None:
    """Start to move an answer into ``pipe``; return at once.

    Args:
        call: Whose context ends the stream when it is done, and is released when the stream has ended; and whose
            ``first_chunk`` and ``idle`` clocks are kept here.
        answer: The body to read, and when it was asked for.
        machine: Makes the chunks of it.
        pipe: Where the chunks go; it is closed after the chunk that ends the stream.
    """
    producer = _Producer(call, answer, machine, pipe)
    thread = threading.Thread(target=producer.run, name="chanstream-producer", daemon=True)
    try:
        thread.start()
    except BaseException:  # no more threads, or Ctrl-C
        answer.source.close()
        call.context.release()
        raise


class _Producer:
    """One stream on its way from source to pipe."""

    def __init__(self, call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> None:
        self._source = answer.source
        self._machine = machine
        self._pipe = pipe
        self._context = call.context
        self._timeout = call.timeout
        self._asked_at = answer.asked_at
        self._lock = threading.RLock()
        self._timer: timers.Timer | None = None
        self._timer_due = float("inf")
        self._waiting_for_room = False
        self._resumed_at = answer.asked_at
        self._ended_at: float | None = None

    def run(self) -> None:
        """Read to the end; the body of the thread."""
        forget = self._context.on_done(self._cancel)
        try:
            self._arm()
            self._pump()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must not wait for ever
            _log.exception("the producer of a stream failed")
            self._cancel(StreamError(f"chanstream failed: {error!r}"))
        finally:
            forget()
            self._disarm()
            self._source.close()
            self._context.release()
            self._pipe.close()  # after the connection went back: the next request of the consumer finds it

    def _pump(self) -> None:
        drained = 0
        while drained <= DRAIN_BYTES:
            try:
                data = self._source.read()
            except ChanstreamError as error:
                self._fail(error)
                return
            # A cut connection still gives what the kernel holds, as much as a flooding server likes: look first.
            if self._context.done():
                return
            if self._machine.ended:
                drained += len(data)
            else:
                self._feed(data)
            if not data:
                return

    def _feed(self, data: bytes) -> None:
        """Give the machine bytes, or the end of the body, and hand over what it makes of them."""
        now = time.monotonic()
        with self._lock:
            chunks = self._machine.feed(data, now) if data else self._machine.eof(now)
            waiting = self._hand_over(chunks)
        self._arm()
        if waiting:
            self._wait_for_room(waiting)

    def _hand_over(self, chunks: list[CompletionChunk]) -> deque[CompletionChunk] | None:
        """Put chunks into the pipe, in the lock, without blocking; return those that wait for room."""
        if not chunks:
            return None
        if self._machine.ended:
            self._ended_at = time.monotonic()
            self._pipe.end(chunks)
            return None
        with contextlib.suppress(ChannelClosedError):  # nobody takes them: the context says so too, in a moment
            return self._pipe.offer(chunks)
        return None

    def _wait_for_room(self, waiting: deque[CompletionChunk]) -> None:
        self._waiting_for_room = True
        try:
            self._pipe.wait_for_room(waiting)
        except ChannelClosedError:
            pass  # as above
        finally:
            self._resumed_at = time.monotonic()
            self._waiting_for_room = False

    def _fail(self, error: ChanstreamError) -> None:
        with self._lock:
            self._hand_over(self._machine.fail(error, time.monotonic()))

    def _cancel(self, error: ChanstreamError) -> None:
        """End the stream now, from any thread."""
        self._fail(error)
        self._pipe.close()
        self._source.cancel()

    # -- clocks -----------------------------------------------------------------------------------------------------

    def _due(self) -> float:
        """Return when the next clock runs out, as things stand."""
        machine = self._machine
        if self._ended_at is not None:
            return self._ended_at + DRAIN_SECONDS
        if machine.hold_until is not None:
            return machine.hold_until
        if machine.last_event is None:
            return self._asked_at + _or_never(self._timeout.first_chunk)
        idle = _or_never(self._timeout.idle)
        # While the channel is full it is the consumer who is slow.
        since = time.monotonic() if self._waiting_for_room else max(machine.last_event, self._resumed_at)
        return since + idle

    def _arm(self) -> None:
        """See to it that the timer calls in time. Only a clock that now ends earlier needs a new timer."""
        due = self._due()
        if due < self._timer_due:
            self._disarm()
            self._timer_due = due
            self._timer = timers.call_at(due, self._on_time)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()

    def _on_time(self) -> float | None:
        """Act on a clock that has run out, in the timer thread; return when to come back if none has."""
        with self._lock:
            due = self._due()
            if time.monotonic() < due:
                self._timer_due = due
                return None if due == float("inf") else due
            ended = self._ended_at is not None
            if not ended and self._machine.hold_until is not None:
                self._hand_over(self._machine.tick(time.monotonic()))
                ended = True
        if ended:
            self._source.cancel()  # enough of draining, or of waiting for the usage
        else:
            self._context.cancel(self._timed_out())
        return None

    def _timed_out(self) -> APITimeoutError:
        if self._machine.last_event is None:
            return APITimeoutError(clock="first_chunk", seconds=self._timeout.first_chunk or 0.0)
        return APITimeoutError(clock="idle", seconds=self._timeout.idle or 0.0)


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds

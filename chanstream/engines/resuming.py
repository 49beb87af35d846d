"""A stream that goes on after a cut: the answer so far is sent back as a prefix, and the rest comes in the same stream.

Each part of the answer is a stream like any other, moved by its engine into a pipe of its own. A feeder (see
`chanstream.channel.feeding`) moves its chunks on, by way of the `Joint`, into the pipe that the consumer has; so there
is no thread while a part is coming. Where one was cut the feeder waits for the pipe of the next one. To ask for that
takes a thread, "chanstream-resume", which lives until the head is in.

All parts run under the context of the whole, each with a child of it: so a cancel or a deadline reaches whichever is
on, and an idle clock ends its part alone. Between two parts the next one listens to the context itself, and ends
before it has begun. So whatever happens, when it happens, is the end of the part that is on, and comes to the
feeder as the chunk that ends it.

The feeder takes no more while what it has put into the consumer's pipe waits for room: the part's pipe fills up, and
its engine stops reading. Only what an ended part has left is taken all the same, so that the consumer's pipe is known
to have ended as soon as its stream has.

Feeder and thread refer to pipes and contexts only, never to the stream: dropping that is noticed.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import attrs

from ..channel import Feeder, Offer, Pipe
from ..context import Context
from ..errors import ChannelClosedError, ChanstreamError, kind_of
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..wire.joining import Joint
from ..wire.machine import StreamMachine

TRIES = 3
"""How often an answer is taken up again: a server that cuts one off for the fourth time will cut off the next too."""

_AHEAD = 64
"""Chunks that the pipe of a part has room for."""

_log = logging.getLogger("chanstream")

Begin: TypeAlias = Callable[[Call, Answer, StreamMachine, Pipe[CompletionChunk]], None]
"""Starts to move an answer into a pipe: another engine's ``start``."""

Rest: TypeAlias = Callable[[str, float, Context], "tuple[Call, Answer, StreamMachine]"]
"""Asks for the rest of an answer, from the text so far on, with latencies counted from a given time, under a context;
returns what came when the head is in, or raises, and has released the context then."""


def start(
    call: Call,
    answer: Answer,
    machine: StreamMachine,
    pipe: Pipe[CompletionChunk],
    *,
    begin: Begin,
    rest: Rest,
    started: float,
) -> None:
    """Start to move an answer into ``pipe``, whatever cuts it; return at once.

    Args:
        call: Whose context ends the stream when it is done, and is released when the stream has ended.
        answer: The first part.
        machine: Makes the chunks of it.
        pipe: Where the chunks go; it is closed after the chunk that ends the stream.
        begin: Moves each part.
        rest: Asks for each further part.
        started: When the request was first sent, on `time.monotonic`.
    """
    resuming = _Resuming(call, pipe, begin, rest, started)
    part = attrs.evolve(call, context=call.context.with_cancel())
    try:
        begin(part, answer, machine, resuming.part)
    except BaseException:
        call.context.release()
        raise


class _Resuming(Feeder):
    """Moves the chunks of each part into the consumer's pipe; it lives as long as the part's pipe knows it.

    Attributes:
        part: The pipe of the part that is on.
    """

    def __init__(self, call: Call, pipe: Pipe[CompletionChunk], begin: Begin, rest: Rest, started: float) -> None:
        super().__init__()
        self._context = call.context
        self._retry = call.retry
        self._pipe = pipe
        self._begin = begin
        self._rest = rest
        self._started = started
        self._joint = Joint(TRIES)
        self._vars = contextvars.copy_context()  # the caller's: its current span, say
        self._waiting: Offer[CompletionChunk] = Offer()
        self._over = False
        self.part = self._new_part()

    def _new_part(self) -> Pipe[CompletionChunk]:
        part: Pipe[CompletionChunk] = Pipe(_AHEAD)
        self._forget = part.add_waiter(self.move)
        return part

    def _move(self) -> None:
        while self._can_move():
            chunks = self.part.take(_AHEAD)
            if chunks:
                self._hand_on([passed for chunk in chunks for passed in self._joint.feed(chunk)])
            elif self.part.over:
                self._end_part()
        if self._over or self._pipe.closed:
            self._forget()

    def _can_move(self) -> bool:
        if self._over or self._pipe.closed or not self.part.readable():
            return False
        return self.part.ended or not self._waiting

    def _hand_on(self, chunks: list[CompletionChunk]) -> None:
        if not chunks:
            return
        if chunks[-1].is_last_chunk or chunks[-1].error is not None:
            self._pipe.end(chunks)
            return
        with contextlib.suppress(ChannelClosedError):  # nobody takes them
            self._waiting = self._pipe.offer(chunks, self.move)

    def _end_part(self) -> None:
        """End the stream with its part, whose connection is free by now; or go on with the next one."""
        self._forget()
        if self._joint.cut is None:
            self._over = True
            self._context.release()
            self._pipe.close()
            return
        self.part = self._new_part()
        self._resume(self._joint.cut)

    def _resume(self, cut: ChanstreamError) -> None:
        joint = self._joint
        wait = self._retry.delay(cut, joint.cuts - 1)
        _log.info("resuming a cut answer in %.2f s, try %d of %d, after: %s", wait, joint.cuts, TRIES, kind_of(cut))
        since = self._started + joint.elapsed
        part = _NextPart(self._context, self.part, cut, since)
        if self._context.done():  # which has ended the part
            return
        ask = partial(self._rest, joint.prefix, since)
        try:
            run = partial(part.run, wait, ask, self._begin)
            threading.Thread(target=self._vars.copy().run, args=(run,), name="chanstream-resume", daemon=True).start()
        except Exception as error:  # noqa: BLE001 - no more threads, or the interpreter is about to end
            part.give_up(error)

    def fail(self, error: ChanstreamError) -> None:
        self._pipe.end(StreamMachine(self._started).fail(error, time.monotonic()))
        self._pipe.close()
        self._context.cancel(error)


class _NextPart:
    """A part that is yet to begin, after a cut."""

    def __init__(self, context: Context, pipe: Pipe[CompletionChunk], cut: ChanstreamError, since: float) -> None:
        self._context = context
        self._pipe = pipe
        self._cut = cut
        self._since = since
        self._forget = context.on_done(self._end)

    def run(self, wait: float, ask: Callable[[Context], tuple[Call, Answer, StreamMachine]], begin: Begin) -> None:
        """Ask for it after so many seconds, and begin it; the body of the thread."""
        try:
            if not self._context.wait(wait):
                begin(*ask(self._context.with_cancel()), self._pipe)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must not wait for ever
            self.give_up(error)
        self._forget()

    def give_up(self, error: BaseException) -> None:
        """End the stream as the cut had ended it, or as its context says."""
        self._forget()
        cancelled = self._context.error
        if cancelled is None:
            _log.warning("a cut answer cannot be resumed: %s", kind_of(error))
            self._cut.__cause__ = error
        self._end(cancelled or self._cut)

    def _end(self, error: ChanstreamError) -> None:
        self._pipe.end(StreamMachine(self._since).fail(error, time.monotonic()))
        self._pipe.close()

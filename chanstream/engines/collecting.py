"""A stream read to its end in the caller's own thread, for callers that want the whole answer and nothing before.

Nothing is handed over, so there is neither a channel to wait for nor anybody to wake. What a stream is stays the same:
its clocks, its cancel, its observers, and what counts as its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..channel import Offer, Pipe
from ..errors import StreamCancelledError, with_partial
from ..models.chat import ChatCompletionResponse
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..transport.takeover import Line, take_over
from ..wire.assembly import Assembler
from ..wire.body import Body, body_of
from ..wire.machine import StreamMachine
from . import threaded
from .flow import Flow
from .polled import told
from .watched import flow_of

_DRAIN_GRACE = 0.04
"""Seconds for which the body's end is waited for once the answer is whole, so that its connection is kept."""


class Whole(Pipe[CompletionChunk]):
    """Puts chunks together as they are put in. Nothing ever waits for room.

    Attributes:
        answer: What has come. first: The latency of the first chunk. last: The chunk that ended the stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer = Assembler()
        self.first: float | None = None
        self.last: CompletionChunk | None = None

    def offer(self, items: Iterable[CompletionChunk], on_room: object = None) -> Offer[CompletionChunk]:  # noqa: ARG002
        """Take chunks in; see `Pipe.offer`."""
        chunks = list(items)
        if self.first is None and chunks and chunks[0].error is None:
            self.first = chunks[0].chunk_latency
        self.answer.add_all(chunks)
        return _NOTHING

    def end(self, items: Iterable[CompletionChunk]) -> None:
        """Take the last chunks in; of several ends only the first counts."""
        if self.last is None:
            chunks = list(items)
            self.offer(chunks)
            self.last = chunks[-1]


_NOTHING: Offer[CompletionChunk] = Offer()


def collect(call: Call, answer: Answer, machine: StreamMachine, *, takes_over: bool = True) -> ChatCompletionResponse:
    """Return the whole of an answer whose head is in.

    Args:
        call: Whose context ends the stream when it is done, and is released here; its tally is told of the first chunk.
        answer: The body to read.
        machine: Makes chunks of it.
        takes_over: Whether the connection may be taken over.

    Raises:
        ChanstreamError: What ended the stream, if it did not end well; its ``partial`` is the answer so far.
    """
    whole = Whole()
    line = take_over(answer.source, blocks=True) if takes_over else None
    flow = flow_of(call, answer, line or answer.source, machine, whole)
    if line is None:
        threaded.run(flow, answer.source, whole)
    else:
        _read(flow, line, whole)
    if call.tally is not None:
        call.tally.first_chunk = whole.first
    response = whole.answer.response()
    if whole.last is None or whole.last.error is not None:
        error = None if whole.last is None else whole.last.error
        # None: whoever cancelled was interrupted (Ctrl-C) before the error was put in.
        raise with_partial(error or call.context.error or StreamCancelledError("the stream was closed"), response)
    return response


def _read(flow: Flow, line: Line, whole: Whole) -> None:
    """Read a connection that was taken over to the end of its body."""
    body = body_of(line.framing)
    try:
        flow.begin()
        _pump(flow, line, body, whole)
        if body.done and not body.spoilt:
            line.give_back()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this answer's alone
        flow.fail(told(error))
    finally:
        flow.end()


def _pump(flow: Flow, line: Line, body: Body, whole: Whole) -> None:
    while not (flow.over or body.done):
        flow.keep_time()
        data = line.read(None if whole.last is None else _DRAIN_GRACE)
        if data is None:  # the answer is whole, and the server holds the body open
            return
        if not data:
            body.eof()
        now = time.monotonic()
        if payload := body.feed(data):
            flow.feed(payload, now)
    if body.done:  # a length of 0 is, before all
        flow.feed(b"", time.monotonic())

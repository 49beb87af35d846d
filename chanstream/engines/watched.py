"""A flow whose client has observers. A client without any has plain flows, and they cost it nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..channel import Offer, Pipe
from ..errors import ChanstreamError
from ..models.chunk import CompletionChunk
from ..observers import FirstChunk
from ..transport.session import Answer, Call
from ..wire.assembly import Assembler
from ..wire.machine import StreamMachine
from .flow import Flow, Line


def flow_of(call: Call, answer: Answer, line: Line, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> Flow:
    """Return the flow of a stream."""
    if call.watch is None:
        return Flow(call, answer, line, machine, pipe)
    return WatchedFlow(call, answer, line, machine, pipe)


class WatchedFlow(Flow):
    """A flow that notes what its observers are to know, under the lock, and tells them after."""

    def __init__(
        self, call: Call, answer: Answer, line: Line, machine: StreamMachine, pipe: Pipe[CompletionChunk]
    ) -> None:
        super().__init__(call, answer, line, machine, pipe)
        assert call.watch is not None
        self._watch = call.watch
        self._latencies: list[float] = []
        self._reasons: dict[int, str] = {}
        self._first: Mapping[str, Any] = {}
        self._assembler = Assembler() if call.watch.wants_answer else None

    def feed(self, data: bytes, now: float) -> Offer[CompletionChunk] | None:
        """As `Flow.feed`."""
        waiting = super().feed(data, now)
        self._watch.tell()
        return waiting

    def fail(self, error: ChanstreamError) -> None:
        """As `Flow.fail`."""
        super().fail(error)
        self._watch.tell()

    def _on_time(self) -> float | None:
        again = super()._on_time()
        self._watch.tell()
        return again

    def _hand_over(self, chunks: list[CompletionChunk]) -> Offer[CompletionChunk] | None:
        for chunk in chunks:
            if chunk.error is None:
                self._note(chunk)
        if chunks and self._machine.ended:
            self._note_end(chunks[-1])
        return super()._hand_over(chunks)

    def _note(self, chunk: CompletionChunk) -> None:
        if not self._latencies:
            self._first = chunk.raw  # the chunk itself is the consumer's, once it is delivered
            self._watch.note(FirstChunk(call=self._watch.call, elapsed=chunk.chunk_latency))
        self._latencies.append(chunk.chunk_latency)
        if chunk.piece is None:  # else it is a piece of text, whose choices are not made yet
            self._reasons |= {choice.index: choice.finish_reason for choice in chunk.choices if choice.finish_reason}
        if self._assembler is not None:
            self._assembler.add(chunk)

    def _note_end(self, last: CompletionChunk) -> None:
        about: dict[str, Any] = {"answer": self._assembler.response()} if self._assembler else {}
        self._watch.note_end(
            last.error,
            elapsed=last.total_latency,
            chunk_latencies=tuple(self._latencies),
            finish_reasons=tuple(reason for _, reason in sorted(self._reasons.items())),
            usage=last.usage,
            response_id=self._first.get("id") or None,
            response_model=self._first.get("model") or None,
            **about,
        )

"""The state of one stream: bytes and the time go in, finished chunks come out.

``feed``, ``eof`` and ``fail`` return the chunks to hand on; ``tick`` does when ``hold_until`` has come. Whatever
order they are called in, exactly one of the chunks ends the stream: the last chunk, or one with an error.

The last chunk is held back, because its usage may follow in an event of its own, and because a server may go on after
a finish reason. It is let go when the wire ends, when its usage is there, or after `HOLD_SECONDS`.
"""

from __future__ import annotations

from ..errors import (
    ChanstreamError,
    EventTooLargeError,
    StreamAPIError,
    StreamTruncatedError,
    redact,
)
from ..models.chat import UsageInfo
from ..models.chunk import CompletionChunk, StreamChoice
from .decoding import Decoder, Signal, failed
from .framing import Framing, blocks_of
from .whole import WholeBody, is_whole

HOLD_SECONDS = 1.0
"""How long a finish chunk waits for its usage where the server neither sends it nor ends."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""The largest event that is read: well above any real one (a chunk with an image in it), well below trouble."""

_TICKS = 2.0**30
"""Latencies are whole multiples of 2**-30 s, about a nanosecond: so floats add them up exactly, in any order."""


class StreamMachine:
    """Turns the body of one streamed answer into chunks, and knows when it is complete.

    Args:
        started: When the request was first sent; any clock, the same for every ``now``.
        content_type: The head's ``Content-Type``.
        n: How many choices were asked for.
        max_event_bytes: The limit for one event.
        require_finish_reason: Whether ``[DONE]`` alone does not count as a full stop.
        secret: What no error may show, though the server repeats it.

    Attributes:
        ended: Whether the chunk that ends the stream was returned; all later input is ignored.
        hold_until: When `tick` wants to be called; None while nothing is held back.
        last_event: When the last data event came; None before the first. Comments do not count.

    Thread safety: none; whoever shares one among threads guards it.
    """

    def __init__(
        self,
        started: float,
        *,
        content_type: str = "text/event-stream",
        n: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
        require_finish_reason: bool = False,
        secret: str = "",
    ) -> None:
        self.ended = False
        self.hold_until: float | None = None
        self.last_event: float | None = None
        self._started = started
        self._n = n
        self._max_event_bytes = max_event_bytes
        self._require_finish_reason = require_finish_reason
        self._secret = secret
        self._whole = WholeBody(content_type) if is_whole(content_type) else None
        self._framing = Framing()
        self._decoder = Decoder()
        self._held: CompletionChunk | None = None
        self._previous = CompletionChunk()
        self._usage: UsageInfo | None = None
        self._finished: dict[int, str] = {}
        self._unfinished: set[int] = set()
        self._stamped_at: float | None = None
        self._elapsed = 0.0  # from the start to the newest chunk, hence the sum of all latencies

    # -- input ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> list[CompletionChunk]:
        """Return the chunks that these bytes complete."""
        out: list[CompletionChunk] = []
        if self.ended:
            return out
        if self._whole is not None:
            data = self._feed_whole(data)
        events = self._framing.feed(data)
        if 0 < len(events) <= self._max_event_bytes and (0 in self._unfinished or not self._finished):
            # While the first choice is not finished nothing is held back, and `_hand_on` would do no more than this for
            # the events at the front that only go on with it.
            out, blocks = self._decoder.pieces(events)
            if out:
                self._stamp(out[0], now)  # the others came in the same bytes: no time has passed
                self._previous = out[-1]
                self._unfinished.add(0)
                self.last_event = now
        else:
            blocks = blocks_of(events)
        for block in blocks:
            if len(block) > self._max_event_bytes:
                return self._too_large(out, now)
            if self._take(block, now, out):
                return out
        if self._whole is None and len(self._framing.unfinished) <= self._max_event_bytes:
            return out
        held = self._framing.rest_size if self._whole is None else self._whole.size
        return out if held <= self._max_event_bytes else self._too_large(out, now)

    def eof(self, now: float) -> list[CompletionChunk]:
        """Return the chunks that a clean end of the body completes, the one that ends the stream among them.

        An unterminated block counts if it is ``[DONE]`` or one whole JSON object: some servers leave out the last
        blank line. Any other half event is never delivered.
        """
        out: list[CompletionChunk] = []
        if self._whole is not None:
            return self._end(self._whole.answer(), now, out)
        rest = bytes(self._framing.unfinished)
        decoded = self._decoder.decode(rest) if rest.strip() and not self.ended else None
        if decoded is Signal.DONE or (decoded is not None and _readable(decoded)):
            self._step(decoded, now, out)
        if self.ended:
            return out
        if self._held is not None:
            return self._complete(now, out)
        return self._end(failed(StreamTruncatedError(self._missing())), now, out)

    def fail(self, error: ChanstreamError, now: float) -> list[CompletionChunk]:
        """Return the chunks that end the stream with ``error``; none if it has ended already."""
        return self._end(failed(error), now, [])

    def tick(self, now: float) -> list[CompletionChunk]:
        """Return the chunk that was held back, as the last one, once its time is over."""
        if self.hold_until is None or now < self.hold_until:
            return []
        return self._complete(now, [])

    # -- one event --------------------------------------------------------------------------------------------------

    def _take(self, block: bytes, now: float, out: list[CompletionChunk]) -> bool:
        """Act on one block; return whether the stream has ended with it."""
        decoded = self._decoder.decode(block)
        if decoded is not None:
            self._step(decoded, now, out)
        return self.ended

    def _step(self, decoded: CompletionChunk | Signal, now: float, out: list[CompletionChunk]) -> None:
        self.last_event = now
        if isinstance(decoded, Signal):
            self._done(now, out)
        elif decoded.error is not None:
            self._end(decoded, now, out)
        elif decoded.usage is not None and self._only_usage(decoded):
            self._usage = decoded.usage
            self._let_go_if_single(now, out)
        else:
            self._hand_on(decoded, now, out)

    def _hand_on(self, chunk: CompletionChunk, now: float, out: list[CompletionChunk]) -> None:
        self._release(out)
        self._stamp(chunk, now)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            if choice.finish_reason:
                self._finished[choice.index] = choice.finish_reason
                self._unfinished.discard(choice.index)
            elif choice.index not in self._finished:
                self._unfinished.add(choice.index)
        if not self._finished or self._unfinished:
            out.append(chunk)
            return
        self._hold(chunk, now)
        if chunk.usage is not None:  # one that came earlier may be a running count
            self._let_go_if_single(now, out)

    def _only_usage(self, chunk: CompletionChunk) -> bool:
        """Return whether a chunk adds nothing but usage: no choices, or (LiteLLM and others) a dummy one."""
        return all(
            choice.index in self._finished
            and not (choice.delta.text or choice.delta.tool_calls or choice.delta.reasoning)
            for choice in chunk.choices
        )

    # -- the end ----------------------------------------------------------------------------------------------------

    def _hold(self, chunk: CompletionChunk, now: float) -> None:
        self._held = chunk
        # Fewer choices than asked for: another may begin at any time, so only the wire's end tells.
        self.hold_until = now + HOLD_SECONDS if len(self._finished) >= self._n else None

    def _release(self, out: list[CompletionChunk]) -> None:
        """Hand on what was held back as a chunk like any other: the stream goes on after it, or fails."""
        if self._held is not None:
            out.append(self._held)
        self._held, self.hold_until = None, None

    def _let_go_if_single(self, now: float, out: list[CompletionChunk]) -> None:
        """End the stream with the chunk held back, whose usage has come.

        With several choices a server may send usage for each: then only the wire's end tells which is the last.
        """
        if self._held is not None and max(self._n, len(self._finished)) == 1:
            self._complete(now, out)

    def _done(self, now: float, out: list[CompletionChunk]) -> None:
        """Act on ``[DONE]``: a full stop even without a finish reason, unless one is required."""
        missing = self._unfinished or not self._finished
        if missing and self._require_finish_reason:
            self._end(failed(StreamTruncatedError("[DONE] came without a finish reason")), now, out)
        else:
            self._complete(now, out)

    def _complete(self, now: float, out: list[CompletionChunk]) -> list[CompletionChunk]:
        """End the stream well: with the chunk held back, or one made up where there is none."""
        last, self._held, self.hold_until = self._held, None, None
        if last is None:
            last = self._made_up()
            self._stamp(last, now)
        last.choices = last.choices or self._all_choices()
        for choice in last.choices:
            choice.finish_reason = choice.finish_reason or self._finished.get(choice.index)
        last.usage = self._usage
        last.is_last_chunk = True
        return self._finish(last, out)

    def _end(self, last: CompletionChunk, now: float, out: list[CompletionChunk]) -> list[CompletionChunk]:
        """End the stream with a chunk of its own, an error as a rule."""
        if self.ended:
            return out
        self._release(out)
        self._stamp(last, now)
        last.usage = last.usage or self._usage
        return self._finish(last, out)

    def _finish(self, last: CompletionChunk, out: list[CompletionChunk]) -> list[CompletionChunk]:
        if last.error is not None:
            redact(last.error, self._secret)
        last.total_latency = self._elapsed
        self.ended = True
        out.append(last)
        return out

    def _made_up(self) -> CompletionChunk:
        """Return an empty chunk for a stream that ended with ``[DONE]`` and gave no (or not every) finish reason."""
        like = self._previous
        return CompletionChunk(like.id, like.object, like.created, like.model)

    def _all_choices(self) -> list[StreamChoice]:
        """Return empty choices, for a last chunk without any to look at: those without a reason, or else all."""
        return [StreamChoice(index) for index in sorted(self._unfinished) or sorted(self._finished) or [0]]

    def _stamp(self, chunk: CompletionChunk, now: float) -> None:
        if now != self._stamped_at:  # else it came in the same bytes as the one before
            elapsed = max(self._elapsed, int((now - self._started) * _TICKS) / _TICKS)
            chunk.chunk_latency, self._elapsed = elapsed - self._elapsed, elapsed
            self._stamped_at = now
        self._previous = chunk

    # -- what is no stream ------------------------------------------------------------------------------------------

    def _feed_whole(self, data: bytes) -> bytes:
        """Gather a body that is not labelled as an event stream; return it as one if it turns out to be one."""
        assert self._whole is not None
        stream = self._whole.feed(data)
        if stream is None:
            return b""
        self._whole = None
        return stream

    def _too_large(self, out: list[CompletionChunk], now: float) -> list[CompletionChunk]:
        error = EventTooLargeError(f"an event is larger than {self._max_event_bytes} bytes (max_event_bytes)")
        return self._end(failed(error), now, out)

    def _missing(self) -> str:
        if self.last_event is None:
            rest = self._framing.unfinished.decode("utf-8", "replace").strip()[:200]
            return "the body ended without one event" + (f"; it began with {rest!r}" if rest else "")
        return "the body ended before the answer did: no [DONE] and no finish reason for every choice"


def _readable(decoded: CompletionChunk) -> bool:
    return decoded.error is None or isinstance(decoded.error, StreamAPIError)

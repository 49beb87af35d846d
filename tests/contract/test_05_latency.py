"""Promise 5: latency is measured where bytes arrive.

Each chunk tells how long after the one before it its bytes came, the ending chunk tells the exact sum, and how slow the
consumer is changes neither.
"""

from __future__ import annotations

import time

import pytest

from chanstream import CompletionChunk, CompletionStream, Context, Retry, Timeout
from chanstream.testing import Reply
from tests.conftest import PROMPT, REQUEST, Link

pytestmark = pytest.mark.usefixtures("nothing_left")

PACE = 0.05
JITTER = 0.8 * PROMPT  # what a busy machine adds
PACED = Reply("one two three four", pace=PACE)


def dawdled(stream: CompletionStream, seconds: float = 0.02) -> list[CompletionChunk]:
    """Return all chunks of a stream, taken by a consumer that works for a while on each."""
    taken = []
    for chunk in stream:
        taken.append(chunk)
        time.sleep(seconds)
    return taken


ENDS = {
    "usage on the finish chunk": Reply("one two three", pace=0.003),
    "trailing usage": Reply("one two three", pace=0.003, usage_chunk=True),
    "no finish reason": Reply("one two three", pace=0.003, finish_reason=None),
    "no usage, no full stop": Reply("one two three", pace=0.003, usage=False, done=False),
    "cut": Reply("one two three", pace=0.003, finish_reason=None, done=False),
    "reset": Reply("one two three", pace=0.003, cut_at=200, end="reset"),
    "error": Reply(chunks=[{"choices": [{"delta": {"content": "one"}}]}, {"error": {"message": "no"}}], pace=0.003),
    "whole answer": Reply.json({"choices": [{"message": {"content": "one"}, "finish_reason": "stop"}]}),
    "garbage": Reply.garbage(),
    "silence": Reply("one two three", stall_after=2),
}


class TestTheSum:
    @pytest.mark.parametrize("reply", ENDS.values(), ids=ENDS)
    def test_is_exact(self, link: Link, reply: Reply) -> None:
        """However a stream ends, its total latency is the sum of its chunks' latencies to the last bit."""
        chunks = dawdled(link.stream(reply, timeout=Timeout(idle=0.1)), 0.005)
        assert sum(chunk.chunk_latency for chunk in chunks) == chunks[-1].total_latency > 0
        assert all(chunk.chunk_latency >= 0 for chunk in chunks)

    def test_stands_on_the_ending_chunk_alone(self, plain: Link) -> None:
        """No chunk but the one that ends the stream has a total latency."""
        *others, last = plain.stream("one two three")
        assert [chunk.total_latency for chunk in others] == [0.0] * 3
        assert last.total_latency > 0

    def test_of_a_cancelled_stream(self, link: Link) -> None:
        """A stream that a context cancels tells how long it ran."""
        context = Context()
        server = link.serve(Reply("one two", stall_after=1))
        begun = time.monotonic()
        stream = link.client(server).chat_completion_stream(REQUEST, context=context)
        chunks = [stream.get()]
        time.sleep(0.1)
        context.cancel()
        chunks += stream
        assert sum(chunk.chunk_latency for chunk in chunks) == chunks[-1].total_latency <= time.monotonic() - begun
        assert chunks[-1].chunk_latency >= 0.1

    def test_is_the_collected_latency(self, link: Link) -> None:
        """collect() tells the same total, retries included, as iterating would."""
        refusal = Reply.error(503, headers={"retry-after-ms": "100"})
        server = link.serve(refusal, Reply("one two", first_delay=0.1))
        begun = time.monotonic()
        answer = link.client(server, retry=Retry()).chat_completion_stream(REQUEST).collect()
        assert 0.2 <= answer.latency <= time.monotonic() - begun


class TestASlowConsumer:
    def test_changes_no_latency(self, link: Link) -> None:
        """A consumer that takes twice as long as the server sees the server's pace in every latency."""
        begun = time.monotonic()
        chunks = dawdled(link.stream(PACED), 2 * PACE)
        taken_in = time.monotonic() - begun
        for chunk in chunks[1:]:
            assert PACE - JITTER < chunk.chunk_latency < PACE + JITTER
        assert chunks[-1].total_latency < 4 * PACE + 2 * PROMPT  # five chunks, four waits, and the way to the first
        assert taken_in > 5 * 2 * PACE

    def test_that_comes_when_all_is_over(self, link: Link) -> None:
        """A consumer that takes the first chunk after the last has come sees the same latencies."""
        stream = link.stream(PACED)
        assert stream.response.status_code == 200
        time.sleep(6 * PACE)
        chunks = list(stream)
        assert [chunk.text for chunk in chunks] == ["one", " two", " three", " four", ""]
        for chunk in chunks[1:]:
            assert PACE - JITTER < chunk.chunk_latency < PACE + JITTER

    def test_of_events_in_one_piece(self, link: Link) -> None:
        """Events whose bytes arrived together are no time apart, however long the consumer takes over each."""
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        stream = link.stream(Reply(body=event * 4 + b"data: [DONE]\n\n", first_delay=0.05))
        chunks = dawdled(stream)
        assert [chunk.chunk_latency for chunk in chunks[1:]] == [0.0] * 4
        assert chunks[0].chunk_latency == chunks[-1].total_latency >= 0.05


class TestTheFirstChunk:
    def test_counts_from_the_first_try(self, link: Link) -> None:
        """The first chunk's latency holds the refused tries, the waits between them, the head's delay and its own."""
        refusal = Reply.error(503, headers={"retry-after-ms": "100"}, message="Not yet.")
        server = link.serve(refusal, refusal, Reply("one", head_delay=0.1, first_delay=0.1))
        stream = link.client(server, retry=Retry()).chat_completion_stream(REQUEST)
        first, last = stream
        assert 0.4 <= first.chunk_latency < 0.4 + 3 * PROMPT
        assert last.total_latency == first.chunk_latency + last.chunk_latency

    def test_counts_the_head_once(self, link: Link) -> None:
        """The time until the head is in the total exactly once."""
        begun = time.monotonic()
        *_, last = link.stream(Reply("one two", head_delay=0.3))
        assert 0.3 <= last.total_latency <= time.monotonic() - begun < 0.3 + 6 * PROMPT

    def test_that_ends_the_stream(self, link: Link) -> None:
        """An error in place of a first chunk has both latencies, and they are equal."""
        (only,) = link.stream(Reply(body=b"", first_delay=0.05))
        assert only.chunk_latency == only.total_latency >= 0.05


class TestTheClock:
    def test_is_monotonic(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wall clock that somebody turns back an hour at every look at it changes no latency."""
        hours = iter(range(int(time.time()), 0, -3600))
        monkeypatch.setattr(time, "time", lambda: float(next(hours)))
        begun = time.monotonic()
        chunks = list(link.stream(PACED))
        assert all(0 <= chunk.chunk_latency < 60 for chunk in chunks)  # and none is an hour; how exact, others tell
        assert 4 * PACE <= chunks[-1].total_latency <= time.monotonic() - begun

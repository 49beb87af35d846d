"""The machine alone, without a socket: what ends a stream, what the last chunk holds, and what the clock says.

The same promises are kept over real sockets in ``tests/contract``; here every split and every order of calls is tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream.errors import (
    EventTooLargeError,
    StreamAPIError,
    StreamDecodeError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from chanstream.models.chunk import CompletionChunk
from chanstream.wire.machine import HOLD_SECONDS, MAX_EVENT_BYTES, StreamMachine

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOST = StreamInterruptedError("the connection was lost")


def event(data: Any) -> bytes:
    """Return an event on the wire."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """Return the event of a chunk with one choice."""
    content = {} if text is None else {"content": text}
    return event({"id": "c-1", "choices": [{"index": index, "delta": content, "finish_reason": finish}], **more})


def usage(**counts: int) -> bytes:
    """Return the event of a chunk that holds usage alone."""
    return event({"id": "c-1", "choices": [], "usage": {**USAGE, **counts}})


def fed(machine: StreamMachine, *blocks: bytes) -> list[CompletionChunk]:
    """Return the chunks of bytes of which one block arrives each second."""
    return [chunk for second, block in enumerate(blocks, start=1) for chunk in machine.feed(block, float(second))]


def chunks(*blocks: bytes, **settings: Any) -> list[CompletionChunk]:
    """Return the chunks of a whole body that ends cleanly."""
    machine = StreamMachine(0.0, **settings)
    return fed(machine, *blocks) + machine.eof(len(blocks) + 1.0)


def outline(found: Iterable[CompletionChunk]) -> list[tuple[Any, ...]]:
    """Return everything about chunks that must not depend on time or on how the bytes were split."""
    return [
        (
            chunk.id,
            chunk.raw,
            [(choice.index, choice.delta.text, choice.finish_reason) for choice in chunk.choices],
            chunk.usage,
            chunk.is_last_chunk,
            type(chunk.error),
            str(chunk.error),
        )
        for chunk in found
    ]


def ends(found: Iterable[CompletionChunk]) -> list[CompletionChunk]:
    """Return the chunks that end a stream."""
    return [chunk for chunk in found if chunk.is_last_chunk or chunk.error]


class TestTheLastChunk:
    def test_finish_with_usage_is_let_go_at_once(self) -> None:
        """A finish chunk that holds the usage ends the stream before anything else comes."""
        machine = StreamMachine(0.0)
        found = fed(machine, delta("a"), delta(finish="stop", usage=USAGE))
        assert [chunk.is_last_chunk for chunk in found] == [False, True]
        assert machine.ended
        assert machine.hold_until is None

    def test_finish_without_usage_is_held(self) -> None:
        """A finish chunk without usage waits, and `hold_until` says for how long."""
        machine = StreamMachine(0.0)
        assert len(fed(machine, delta("a"), delta(finish="stop"))) == 1
        assert machine.hold_until == 2.0 + HOLD_SECONDS
        assert not machine.ended

    def test_tick_before_its_time(self) -> None:
        """`tick` does nothing while nothing is held, nor before the time is over."""
        machine = StreamMachine(0.0)
        fed(machine, delta("a"))
        assert machine.tick(1e9) == []
        machine.feed(delta(finish="stop"), 2.0)
        assert machine.tick(2.0 + HOLD_SECONDS - 0.001) == []
        assert not machine.ended

    def test_tick_at_its_time(self) -> None:
        """`tick` lets the finish chunk go as the last one, once, with the latency of its arrival."""
        machine = StreamMachine(0.0)
        fed(machine, delta("a"), delta(finish="stop"))
        [last] = machine.tick(2.0 + HOLD_SECONDS)
        assert (last.is_last_chunk, last.choices[0].finish_reason, last.usage) == (True, "stop", None)
        assert (last.chunk_latency, last.total_latency) == (1.0, 2.0)
        assert machine.tick(1e9) == machine.eof(1e9) == machine.feed(usage(), 1e9) == []

    @pytest.mark.parametrize("end", [DONE, b""], ids=["[DONE]", "end of body"])
    @pytest.mark.parametrize("dummy", [False, True], ids=["no choice", "dummy choice"])
    def test_trailing_usage_is_folded_in(self, dummy: bool, end: bytes) -> None:
        """Usage in an event of its own is no chunk of its own, be its choices empty or a dummy."""
        trailing = delta("", usage=USAGE) if dummy else usage()
        found = chunks(delta("a"), delta(finish="stop"), trailing, end)
        assert [chunk.is_last_chunk for chunk in found] == [False, True]
        assert found[-1].choices[0].finish_reason == "stop"
        assert found[-1].usage is not None
        assert found[-1].usage.total_tokens == 5

    def test_usage_before_the_finish_is_kept(self) -> None:
        """Usage that came before the finish chunk is the last chunk's, unless newer usage follows."""
        first, *_, last = chunks(usage(total_tokens=1), delta("a"), delta(finish="stop"), DONE)
        assert (first.text, first.usage) == ("a", None)
        assert last.usage is not None
        assert last.usage.total_tokens == 1
        last = chunks(delta("a", usage=USAGE), delta(finish="stop"), usage(total_tokens=9), DONE)[-1]
        assert last.usage is not None
        assert last.usage.total_tokens == 9
        last = chunks(*[delta("a", usage={"total_tokens": count}) for count in (1, 2)], delta(finish="stop"), DONE)[-1]
        assert last.usage is not None
        assert last.usage.total_tokens == 2

    def test_running_usage_does_not_let_go(self) -> None:
        """A count on the chunks before is no reason to let go of a finish chunk that has none itself."""
        machine = StreamMachine(0.0)
        fed(machine, delta("a", usage=USAGE), delta(finish="stop"))
        assert not machine.ended

    @pytest.mark.parametrize(
        "more",
        [
            {"content": "b"},
            {"content": [{"type": "text", "text": "b"}]},
            {"reasoning": "hm"},
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        ],
        ids=["text", "list", "thoughts", "tool call"],
    )
    def test_usage_beside_content_after_the_finish(self, more: dict[str, Any]) -> None:
        """A chunk with usage and anything else in it is no dummy: it is delivered."""
        content = event({"choices": [{"index": 0, "delta": more}], "usage": USAGE})
        found = chunks(delta("a"), delta(finish="stop"), content, DONE)
        assert found[-1].choices[0].delta.raw == more
        assert (found[-1].is_last_chunk, found[-1].choices[0].finish_reason) == (True, "stop")

    def test_more_text_after_the_finish_reason(self) -> None:
        """Text after the finish reason is delivered, and the last chunk has the reason all the same."""
        found = chunks(delta("a"), delta(finish="length"), delta("b"), DONE)
        assert [chunk.text for chunk in found] == ["a", "", "b"]
        assert [chunk.choices[0].finish_reason for chunk in found] == [None, "length", "length"]
        assert [chunk.is_last_chunk for chunk in found] == [False, False, True]

    @pytest.mark.parametrize("padding", [{"choices": []}, {"choices": None}, {"p": "abc"}, {}], ids=json.dumps)
    def test_an_event_without_choices_after_the_finish(self, padding: dict[str, Any]) -> None:
        """An event without choices and usage after the finish chunk takes neither choice nor reason from the last."""
        found = chunks(delta("a"), delta(finish="stop"), event(padding), DONE)
        assert [chunk.is_last_chunk for chunk in ends(found)] == [True]
        assert found[-1].choices[0].finish_reason == "stop"

    def test_a_last_chunk_is_made_up(self) -> None:
        """[DONE] without a finish reason gives an empty last chunk that looks like the others, without a reason."""
        found = chunks(event({"id": "c-1", "model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]}), DONE)
        assert [chunk.text for chunk in found] == ["a", ""]
        last = found[-1]
        assert (last.is_last_chunk, last.id, last.model, last.raw) == (True, "c-1", "m", {})
        assert [(choice.index, choice.finish_reason) for choice in last.choices] == [(0, None)]
        assert (last.text, last.reasoning, last.tool_calls) == ("", "", ())

    def test_last_event_counts_data_only(self) -> None:
        """`last_event` tells when data came, usage among it; comments and half events do not count."""
        silent, busy, counting = StreamMachine(0.0), StreamMachine(0.0), StreamMachine(0.0)
        silent.feed(b": ping\n\nevent: ping\n\ndata: {", 1.0)
        busy.feed(delta("a") + b"data: {", 2.0)
        busy.feed(b"\n: ping\n", 3.0)
        counting.feed(usage(), 4.0)
        assert [machine.last_event for machine in (silent, busy, counting)] == [None, 2.0, 4.0]


class TestSeveralChoices:
    def test_the_last_chunk_is_that_of_the_last_choice(self) -> None:
        """With n > 1 the stream goes on until every choice is finished, whichever is first."""
        found = chunks(
            delta("B", index=1),
            delta("A"),
            delta(finish="stop", index=1),
            delta("A"),
            delta(finish="length"),
            DONE,
            n=2,
        )
        assert [chunk.is_last_chunk for chunk in found] == [False, False, False, False, True]
        assert [choice.finish_reason for choice in found[-1].choices] == ["length"]

    def test_all_choices_in_one_chunk(self) -> None:
        """Choices may share chunks, also the one that finishes both."""
        both = [
            {"index": 1, "delta": {}, "finish_reason": "stop"},
            {"index": 0, "delta": {}, "finish_reason": "length"},
        ]
        found = chunks(delta("A"), delta("B", index=1), event({"choices": both}), DONE, n=2)
        assert len(found) == 3
        assert [(choice.index, choice.finish_reason) for choice in found[-1].choices] == [(1, "stop"), (0, "length")]

    def test_a_choice_may_begin_long_after_another_finished(self) -> None:
        """As long as fewer than n choices have come no silence ends the stream: another choice may still begin."""
        machine = StreamMachine(0.0, n=2)
        fed(machine, delta("A"), delta(finish="stop"))
        assert machine.tick(2.0 + 10 * HOLD_SECONDS) == []
        late = machine.feed(delta("B", index=1) + delta(finish="stop", index=1) + DONE, 100.0)
        assert [chunk.text for chunk in late] == ["", "B", ""]
        assert [chunk.is_last_chunk for chunk in late] == [False, False, True]

    def test_silence_after_all_choices(self) -> None:
        """After n finish reasons the last chunk is held for its usage as with one choice."""
        machine = StreamMachine(0.0, n=2)
        fed(machine, delta("A", "stop"), delta("B", "stop", index=1))
        assert machine.hold_until == 2.0 + HOLD_SECONDS
        assert [chunk.is_last_chunk for chunk in machine.tick(machine.hold_until)] == [True]

    def test_usage_for_each_choice(self) -> None:
        """One usage event per choice, the first while the other choice streams, ends nothing; the last one counts."""
        found = chunks(
            delta("B", index=1),
            delta("A"),
            delta(finish="stop", index=1),
            usage(total_tokens=1),
            delta("A"),
            delta(finish="stop"),
            usage(total_tokens=2),
            DONE,
            n=2,
        )
        assert [chunk.is_last_chunk for chunk in found] == [False, False, False, False, True]
        assert "".join(chunk.text for chunk in found) == "BAA"
        assert found[-1].usage is not None
        assert found[-1].usage.total_tokens == 2

    def test_usage_on_the_finish_chunk_of_the_first(self) -> None:
        """Usage on one choice's finish chunk does not cut the other choice off."""
        found = chunks(delta("A", "stop", usage=USAGE), delta("B", "stop", index=1, usage=USAGE), DONE, n=2)
        assert [(chunk.text, chunk.is_last_chunk) for chunk in found] == [("A", False), ("B", True)]

    @pytest.mark.parametrize("end", [DONE, b""], ids=["[DONE]", "end of body"])
    def test_fewer_choices_than_asked_for(self, end: bytes) -> None:
        """A server may answer with fewer choices than n."""
        found = chunks(delta("A"), delta(finish="stop"), end, n=3)
        assert [chunk.is_last_chunk for chunk in found] == [False, True]
        assert found[-1].choices[0].finish_reason == "stop"

    def test_more_choices_than_asked_for(self) -> None:
        """Choices that nobody asked for are delivered and waited for too."""
        found = chunks(delta("A"), delta("B", index=1), delta(finish="stop"), delta("B", "stop", index=1), DONE)
        assert "".join(chunk.text for chunk in found) == "ABB"
        assert [chunk.is_last_chunk for chunk in found] == [False, False, False, True]
        found = chunks(
            delta("A", "stop"), delta("B", "stop", index=1), usage(total_tokens=1), usage(total_tokens=2), DONE
        )
        assert found[-1].usage is not None
        assert found[-1].usage.total_tokens == 2

    def test_a_choice_that_never_finishes_before_done(self) -> None:
        """[DONE] ends a stream one of whose choices has no finish reason: the last chunk says None for that one."""
        found = chunks(delta("A"), delta("B", index=1), delta(finish="stop"), DONE, n=2)
        assert [(choice.index, choice.finish_reason) for choice in found[-1].choices] == [(1, None)]
        assert found[-1].is_last_chunk

    def test_a_choice_that_never_finishes_is_a_cut_without_done(self) -> None:
        """A clean end while a choice that appeared has no finish reason is a cut."""
        found = chunks(delta("A"), delta("B", index=1), delta(finish="stop"), n=2)
        assert [chunk.text for chunk in found] == ["A", "B", "", ""]
        assert isinstance(found[-1].error, StreamTruncatedError)


class TestTheEndOfTheBody:
    @pytest.mark.parametrize("body", [b"", b"\n\n", b": ping\n\n", b"\xef\xbb\xbf", b"retry: 10\n\n", b"data\n\n"])
    def test_no_event(self, body: bytes) -> None:
        """A body without one event is cut."""
        [last] = chunks(body)
        assert isinstance(last.error, StreamTruncatedError)
        assert "without one event" in str(last.error)

    def test_text_instead_of_events(self) -> None:
        """What a body without one event began with is told: it may be the server's only words."""
        [last] = chunks(b"Internal Server Error")
        assert isinstance(last.error, StreamTruncatedError)
        assert "'Internal Server Error'" in str(last.error)

    def test_done_alone(self) -> None:
        """[DONE] alone is a whole answer without text."""
        [last] = chunks(DONE)
        assert (last.is_last_chunk, last.error, last.choices[0].finish_reason) == (True, None, None)

    @pytest.mark.parametrize(
        "blocks",
        [(DONE,), (delta("a"), DONE), (delta("a"), delta("b", index=1), delta(finish="stop"), DONE)],
        ids=["alone", "one choice", "one of two choices"],
    )
    def test_done_does_not_do_where_a_reason_is_required(self, blocks: tuple[bytes, ...]) -> None:
        """With `require_finish_reason`, [DONE] without a finish reason for every choice is a cut."""
        found = chunks(*blocks, require_finish_reason=True)
        assert isinstance(found[-1].error, StreamTruncatedError)
        assert "finish reason" in str(found[-1].error)

    @pytest.mark.parametrize("end", [DONE, b""], ids=["[DONE]", "end of body"])
    def test_a_reason_where_one_is_required(self, end: bytes) -> None:
        """With `require_finish_reason`, an answer that has one ends as ever."""
        found = chunks(delta("a"), delta(finish="stop"), end, require_finish_reason=True)
        assert [chunk.is_last_chunk for chunk in found] == [False, True]

    @pytest.mark.parametrize("ending", ["", "\n", "\r", "\r\n"], ids=repr)
    @pytest.mark.parametrize(
        ("block", "texts"),
        [
            ("data: [DONE]", ["a", ""]),
            ("data:[DONE]", ["a", ""]),
            ('data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}', ["a", "b"]),
        ],
    )
    def test_an_unterminated_end(self, block: str, texts: list[str], ending: str) -> None:
        """[DONE] or one JSON object counts at a clean end though the blank line after it is missing."""
        found = chunks(delta("a"), (block + ending).encode())
        assert [chunk.text for chunk in found] == texts
        assert found[-1].is_last_chunk

    def test_unterminated_usage(self) -> None:
        """Trailing usage counts without its blank line too."""
        last = chunks(delta("a", "stop"), usage().rstrip())[-1]
        assert last.is_last_chunk
        assert last.usage is not None
        assert last.usage.total_tokens == 5

    @pytest.mark.parametrize(
        "block",
        [
            b'data: {"error":{"message":"out of memory"}}',
            b'{"error":"out of memory"}',
            b'error: {"code":500,"message":"out of memory","type":"server_error"}',
            b'{\n  "error": {\n    "message": "out of memory"\n  }\n}\n',
        ],
    )
    def test_an_unterminated_error(self, block: bytes) -> None:
        """An error as the last bytes of a body counts without its blank line, and without ``data:``."""
        found = chunks(delta("a"), block)
        assert [chunk.text for chunk in found] == ["a", ""]
        assert isinstance(found[-1].error, StreamAPIError)
        assert "out of memory" in str(found[-1].error)

    def test_an_unterminated_chunk_is_no_full_stop(self) -> None:
        """A whole JSON object at the end is delivered; without a finish reason the stream is cut all the same."""
        found = chunks(delta("a"), delta("b").rstrip())
        assert [chunk.text for chunk in found] == ["a", "b", ""]
        assert isinstance(found[-1].error, StreamTruncatedError)

    @pytest.mark.parametrize("whole", [delta("b", "stop"), DONE, event({"error": {"message": "x"}})])
    def test_half_an_event_is_never_delivered(self, whole: bytes) -> None:
        """A block that the end cuts in half is dropped, wherever it is cut."""
        for cut in range(len(whole.rstrip())):
            found = chunks(delta("a"), whole[:cut])
            assert [chunk.text for chunk in found] == ["a", ""]
            assert isinstance(found[-1].error, StreamTruncatedError), cut

    @pytest.mark.parametrize("rest", [b"data: [DONE]", delta("b", "stop").rstrip()])
    def test_a_lost_connection_completes_nothing(self, rest: bytes) -> None:
        """An unterminated block does not count where the connection was lost."""
        machine = StreamMachine(0.0)
        found = fed(machine, delta("a"), rest) + machine.fail(LOST, 3.0)
        assert [(chunk.text, chunk.error) for chunk in found] == [("a", None), ("", LOST)]

    def test_a_lost_connection_after_the_finish_reason(self) -> None:
        """A finish chunk that is held when the connection is lost is delivered, and then the error."""
        machine = StreamMachine(0.0)
        found = fed(machine, delta("a"), delta("b", "stop")) + machine.fail(LOST, 3.0)
        assert [(chunk.text, chunk.is_last_chunk, chunk.error) for chunk in found] == [
            ("a", False, None),
            ("b", False, None),
            ("", False, LOST),
        ]

    def test_the_error_chunk_has_the_usage_so_far(self) -> None:
        """Who pays by the token learns what was counted before the stream broke."""
        machine = StreamMachine(0.0)
        found = fed(machine, delta("a", usage=USAGE)) + machine.fail(LOST, 3.0)
        assert found[-1].usage is not None
        assert found[-1].usage.total_tokens == 5


class TestErrorsInTheStream:
    def test_everything_after_an_error_is_ignored(self) -> None:
        """An error event ends the stream, whatever follows it."""
        found = chunks(delta("a"), event({"error": {"message": "x"}}), delta("b", "stop"), DONE)
        assert [chunk.text for chunk in found] == ["a", ""]
        assert isinstance(found[-1].error, StreamAPIError)

    def test_everything_after_the_full_stop_is_ignored(self) -> None:
        """[DONE] ends the stream, whatever follows it, in the same bytes or later."""
        found = chunks(delta("a") + DONE + delta("b"), DONE, event({"error": "x"}))
        assert [chunk.text for chunk in found] == ["a", ""]
        assert found[-1].is_last_chunk

    def test_an_error_after_the_finish_chunk(self) -> None:
        """An error while the finish chunk is held is what ends the stream; the finish chunk comes before it."""
        found = chunks(delta("a", "stop"), event({"error": {"message": "x"}}), DONE)
        assert [(chunk.text, chunk.is_last_chunk) for chunk in found] == [("a", False), ("", False)]
        assert isinstance(found[-1].error, StreamAPIError)

    def test_the_text_beside_an_error_is_kept(self) -> None:
        """A chunk with the finish reason ``error`` still has its text."""
        found = chunks(delta("a"), delta("b", "error"), DONE)
        assert [chunk.text for chunk in found] == ["a", "b"]
        assert isinstance(found[-1].error, StreamAPIError)

    def test_an_event_that_is_no_json(self) -> None:
        """An event that cannot be read ends the stream: to go on without it would be a silent gap."""
        found = chunks(delta("a"), b'data: {"choices": [{"delta": {"con\n\n', delta("b", "stop"), DONE)
        assert [chunk.text for chunk in found] == ["a", ""]
        assert isinstance(found[-1].error, StreamDecodeError)


class TestLimits:
    LIMIT = 200

    def sized(self, size: int) -> bytes:
        """Return a finish event of ``size`` bytes, the blank line that ends it not counted."""
        spare = size - len(delta("", "stop").rstrip())
        return delta("x" * spare, "stop")

    def test_the_largest_event_passes_at_every_split(self) -> None:
        """An event of exactly `max_event_bytes` passes, wherever the bytes are split."""
        body = self.sized(self.LIMIT)
        for cut in range(len(body) + 1):
            found = chunks(body[:cut], body[cut:], max_event_bytes=self.LIMIT)
            assert [chunk.is_last_chunk for chunk in found] == [True], cut

    def test_one_byte_more_fails_at_every_split(self) -> None:
        """An event of one byte more is too large, wherever the bytes are split."""
        body = self.sized(self.LIMIT + 1)
        for cut in range(len(body) + 1):
            found = chunks(body[:cut], body[cut:], max_event_bytes=self.LIMIT)
            assert [type(chunk.error) for chunk in found] == [EventTooLargeError], cut

    def test_what_came_before_is_delivered(self) -> None:
        """The events before the one that is too large are delivered, and the limit is named."""
        found = chunks(delta("a") + self.sized(self.LIMIT + 1), max_event_bytes=self.LIMIT)
        assert [chunk.text for chunk in found] == ["a", ""]
        assert str(self.LIMIT) in str(found[-1].error)

    def test_an_event_without_end(self) -> None:
        """What never ends is given up as soon as it is too large: the rest of it is not waited for."""
        machine = StreamMachine(0.0)
        block = b"x" * (MAX_EVENT_BYTES // 4)
        found = fed(machine, b"data: ", *[block] * 4)
        assert [type(chunk.error) for chunk in found] == [EventTooLargeError]

    def test_many_small_events_have_no_limit(self) -> None:
        """The limit is for one event, not for the stream."""
        found = chunks(*[delta("a")] * 50, DONE, max_event_bytes=self.LIMIT)
        assert "".join(chunk.text for chunk in found) == "a" * 50
        assert found[-1].is_last_chunk

    def test_a_whole_body_has_the_limit_too(self) -> None:
        """JSON instead of a stream is one piece, and no larger than one event may be."""
        found = chunks(b'{"choices": [', b" " * 500, b"]}", content_type="application/json", max_event_bytes=self.LIMIT)
        assert [type(chunk.error) for chunk in found] == [EventTooLargeError]


class TestInsteadOfAStream:
    def test_json(self) -> None:
        """A whole completion in the place of a stream is one chunk, the last one."""
        answer = {"id": "c", "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": USAGE}
        body = json.dumps(answer).encode()
        [last] = chunks(body[:9], body[9:], content_type="application/json; charset=utf-8")
        assert (last.text, last.is_last_chunk, last.choices[0].finish_reason) == ("hello", True, "stop")
        assert last.usage is not None
        assert (last.chunk_latency, last.total_latency) == (3.0, 3.0)

    @pytest.mark.parametrize("content_type", ["application/json", "text/html", "application/problem+json"])
    def test_a_stream_with_the_wrong_label(self, content_type: str) -> None:
        """An event stream that calls itself something else is read as one, as it comes."""
        machine = StreamMachine(0.0, content_type=content_type)
        found = fed(machine, b"da", b"ta", delta("a")[4:], delta("b", "stop"), DONE)
        assert [chunk.text for chunk in found] == ["a", "b"]
        assert found[0].chunk_latency == 3.0
        assert found[-1].is_last_chunk

    def test_a_lost_connection(self) -> None:
        """JSON that is cut by a lost connection is an error, and so is what would have been whole."""
        machine = StreamMachine(0.0, content_type="application/json")
        machine.feed(b'{"choices": [{"message": {"content": "hello"}}]}', 1.0)
        assert machine.fail(LOST, 2.0)[0].error is LOST
        assert machine.eof(3.0) == []

    @pytest.mark.parametrize("content_type", ["text/event-stream", "text/plain"])
    @pytest.mark.parametrize("prefix", [b"", b"data: "], ids=["bare", "as an event"])
    def test_a_whole_completion_with_the_label_of_a_stream(self, prefix: bytes, content_type: str) -> None:
        """A whole completion loses no text where the head does not say that it is JSON."""
        answer = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}
        found = chunks(prefix + json.dumps(answer).encode() + b"\n\n", content_type=content_type)
        assert "".join(chunk.text for chunk in found) == "hello"
        assert found[-1].is_last_chunk


class TestLatency:
    def test_latencies_are_between_arrivals(self) -> None:
        """The first chunk's latency counts from the start, each other's from the chunk before it."""
        machine = StreamMachine(10.0)
        found = machine.feed(delta("a") + delta("b"), 10.5) + machine.feed(delta("c", "stop", usage=USAGE), 13.0)
        assert [chunk.chunk_latency for chunk in found] == [0.5, 0.0, 2.5]
        assert [chunk.total_latency for chunk in found] == [0.0, 0.0, 3.0]

    def test_an_event_counts_when_it_is_whole(self) -> None:
        """A chunk's bytes have arrived with the last of them."""
        machine = StreamMachine(0.0)
        machine.feed(delta("a")[:20], 1.0)
        [chunk] = machine.feed(delta("a")[20:], 4.0)
        assert chunk.chunk_latency == 4.0

    def test_an_error_has_a_latency_too(self) -> None:
        """The chunk that ends a stream with an error has its own latency and the total."""
        machine = StreamMachine(0.0)
        found = machine.feed(delta("a"), 1.0) + machine.fail(LOST, 6.0)
        assert [chunk.chunk_latency for chunk in found] == [1.0, 5.0]
        assert found[-1].total_latency == 6.0

    def test_they_add_up_exactly(self) -> None:
        """The sum of a thousand uneven latencies is the total, to the last bit, in whatever order they are added."""
        machine = StreamMachine(0.001)
        times = [0.001 + 0.1 * number + number % 7 / 300 for number in range(1000)]
        found = [chunk for now in times for chunk in machine.feed(delta("a"), now)]
        found += machine.fail(LOST, times[-1] + 0.1)
        latencies = [chunk.chunk_latency for chunk in found]
        assert sum(latencies) == sum(reversed(latencies)) == sum(sorted(latencies)) == found[-1].total_latency
        assert found[-1].total_latency == pytest.approx(times[-1] + 0.1 - 0.001, abs=1e-8)

    def test_a_clock_that_stands_still(self) -> None:
        """No latency is ever negative, though two threads may read the clock in another order than they act."""
        machine = StreamMachine(5.0)
        found = machine.feed(delta("a"), 7.0) + machine.feed(delta("b"), 6.5) + machine.fail(LOST, 8.0)
        assert [chunk.chunk_latency for chunk in found] == [2.0, 0.0, 1.0]


# -- everything in any order -----------------------------------------------------------------------------------------

CHOICE = st.builds(
    delta,
    st.none() | st.text(max_size=4),
    st.sampled_from([None, None, "stop", "length", ""]),
    st.integers(0, 2),
    usage=st.none() | st.just(USAGE),
)
NO_CHOICE = st.sampled_from([usage(), event({"choices": []}), event({}), b": ping\n\n", b"event: ping\ndata: 1\n\n"])
ODD = st.sampled_from(
    [
        DONE,
        delta("x", "error"),
        event({"error": {"message": "x"}}),
        event({"choices": [{"index": 1, "delta": None}, {"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        b"data: no json\n\n",
        b'{"object": "error",\n "message": "x"}\n\n',
        b"\r\n",
        b"id: 7\rdata:[DONE]\r\n\r",
        b"\xff\xfe",
        b"data: {",
    ]
)
ANY = CHOICE | NO_CHOICE | ODD
BODIES = st.lists(CHOICE | NO_CHOICE, max_size=8).map(b"".join) | st.lists(ANY, max_size=12).map(b"".join)
TYPES = st.sampled_from(["text/event-stream", "text/event-stream", "application/json", "text/html"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["feed", "feed", "feed", "eof", "fail", "tick"]), ANY, st.floats(0, 2)), max_size=15
)


def act(machine: StreamMachine, step: str, data: bytes, now: float) -> list[CompletionChunk]:
    """Return what one call of the machine gives."""
    calls: dict[str, Callable[[], list[CompletionChunk]]] = {
        "feed": lambda: machine.feed(data, now),
        "eof": lambda: machine.eof(now),
        "fail": lambda: machine.fail(LOST, now),
        "tick": lambda: machine.tick(now),
    }
    return calls[step]()


class TestInAnyOrder:
    @settings(max_examples=300, deadline=None)
    @given(body=BODIES, cuts=st.lists(st.integers(0, 2000), max_size=10), n=st.integers(1, 3), kind=TYPES)
    def test_any_split_gives_the_same_chunks(self, body: bytes, cuts: list[int], n: int, kind: str) -> None:
        """Chunks do not depend on where the network cut the bytes."""
        whole = chunks(body, n=n, content_type=kind)
        edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
        parts = [body[start:end] for start, end in pairwise(edges)]
        assert outline(chunks(*parts, n=n, content_type=kind)) == outline(whole)

    @settings(max_examples=150, deadline=None)
    @given(body=BODIES, n=st.integers(1, 3), kind=TYPES)
    def test_byte_by_byte_gives_the_same_chunks(self, body: bytes, n: int, kind: str) -> None:
        """Chunks do not depend on it even where each byte comes alone."""
        whole = chunks(body, n=n, content_type=kind)
        assert outline(chunks(*(bytes([byte]) for byte in body), n=n, content_type=kind)) == outline(whole)

    @settings(max_examples=300, deadline=None)
    @given(body=BODIES, n=st.integers(1, 3), kind=TYPES, lost=st.booleans())
    def test_every_body_has_exactly_one_end(self, body: bytes, n: int, kind: str, lost: bool) -> None:
        """Whatever the body, and however it stops, one chunk ends the stream: the last one delivered."""
        machine = StreamMachine(0.0, n=n, content_type=kind)
        found = machine.feed(body, 1.0)
        found += machine.fail(LOST, 2.0) if lost else machine.eof(2.0)
        assert ends(found) == found[-1:]
        assert not (found[-1].is_last_chunk and found[-1].error)
        assert found[-1].error or found[-1].choices
        assert machine.ended

    @settings(max_examples=300, deadline=None)
    @given(steps=STEPS, n=st.integers(1, 3), kind=TYPES, require=st.booleans())
    def test_any_sequence_of_calls_has_at_most_one_end(
        self, steps: list[tuple[str, bytes, float]], n: int, kind: str, require: bool
    ) -> None:
        """In whatever order a machine is called, one chunk at most ends the stream, and none follows it."""
        machine = StreamMachine(0.0, n=n, content_type=kind, require_finish_reason=require)
        now, found = 0.0, []
        for step, data, pause in steps:
            now += pause
            was_over = machine.ended
            new = act(machine, step, data, now)
            assert not (was_over and new)
            found += new
        assert ends(found) == (found[-1:] if machine.ended else [])
        assert machine.ended or not {step for step, _, _ in steps} & {"eof", "fail"}

    @settings(max_examples=300, deadline=None)
    @given(steps=STEPS, started=st.floats(0, 1e6))
    def test_latencies_add_up_exactly(self, steps: list[tuple[str, bytes, float]], started: float) -> None:
        """`total_latency` equals the sum of all chunk latencies, to the last bit and in any order of adding."""
        machine = StreamMachine(started)
        now, found = started, []
        for step, data, pause in [*steps, ("fail", b"", 0.1)]:
            now += pause
            found += act(machine, step, data, now)
        latencies = [chunk.chunk_latency for chunk in found]
        assert min(latencies) >= 0
        assert sum(latencies) == sum(reversed(latencies)) == found[-1].total_latency
        assert found[-1].total_latency <= now - started

"""A stream's events, over real sockets: how they are taken, how they end, and what leaving early does."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import Any

import pytest

from chanstream import (
    ChanstreamError,
    CompletionEvent,
    Failed,
    Finished,
    ReasoningDone,
    StreamInterruptedError,
    TextDelta,
    TextDone,
    ToolCallDone,
)
from chanstream.testing import Reply, StreamServer
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

TEXT = "one two three four"
CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
WHOLE = Reply(TEXT, reasoning="let me see", tool_calls=[CALL])
STALLED = Reply(TEXT, stall_after=2)
CUT = Reply(TEXT, cut_at=500, end="cut")


def left(server: StreamServer) -> bool:
    """Return whether the server has lost its connection, and the process the producer, in no time."""
    gone = server.wait_for(lambda s: s.open_connections == 0, 2 * PROMPT)
    return gone and within(2 * PROMPT, lambda: producers() == 0)


def outline(events: list[CompletionEvent]) -> list[Any]:
    """Return what is said in the wholes of an answer."""
    wholes: list[Any] = []
    for event in events:
        match event:
            case TextDone(text) | ReasoningDone(text):
                wholes.append(text)
            case ToolCallDone(_, call):
                wholes.append((call.id, call.function.parsed_arguments()))
            case Finished(response):
                wholes.append(response.text)
    return wholes


async def taken(events: Any) -> list[CompletionEvent]:
    """Return what ``async for`` gives."""
    return [event async for event in events]


class TestTaking:
    def test_a_loop(self, plain: Link) -> None:
        """A loop gives the deltas as they come, the wholes, and at last the answer."""
        events = list(plain.stream(WHOLE).events())
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == TEXT
        assert outline(events) == ["let me see", TEXT, ("call-1", {"x": 1}), TEXT]
        assert events[-1].type == "finished"

    def test_async_for(self, plain: Link) -> None:
        """``async for`` gives the same."""
        events = asyncio.run(asyncio.wait_for(taken(plain.stream(WHOLE).events()), 10 * SCALE))
        assert outline(events) == ["let me see", TEXT, ("call-1", {"x": 1}), TEXT]

    def test_the_answer_is_that_of_collect(self, plain: Link) -> None:
        """The response at the end is what ``collect()`` returns: text, thoughts, calls, usage, finish reason."""
        *_, finished = plain.stream(WHOLE).events()
        answer = plain.stream(WHOLE).collect()
        assert isinstance(finished, Finished)
        assert (finished.response.choices, finished.response.usage) == (answer.choices, answer.usage)
        assert finished.response.latency > 0

    def test_events_are_prompt(self, plain: Link) -> None:
        """An event is there as soon as its chunk is, while the server still speaks."""
        events = plain.stream(STALLED).events()
        assert [next(events), next(events)] == [TextDelta("one"), TextDelta(" two")]
        del events

    def test_what_is_left(self, plain: Link) -> None:
        """Events are those of the chunks that nobody has taken yet."""
        stream = plain.stream(TEXT)
        assert stream.get().text == "one"
        *_, whole, _ = stream.events()
        assert whole == TextDone(" two three four")

    def test_next_then_a_loop(self, plain: Link) -> None:
        """What ``next`` has taken a loop does not give again, with and without an event loop; nothing is lost."""
        for rest in (list, lambda events: asyncio.run(taken(events))):
            events = plain.stream(Reply(chunks=_ALL_AT_ONCE)).events()
            assert next(events).type == "reasoning.delta"
            assert [event.type for event in rest(events)] == [
                "content.delta",
                "reasoning.done",
                "content.done",
                "finished",
            ]
            assert next(events, None) is None

    def test_repr(self, plain: Link) -> None:
        """Its repr shows how the stream stands."""
        stream = plain.stream(STALLED)
        events = stream.events()
        stream.close()
        assert repr(events) == "<CompletionEvents of <CompletionStream cancelled, 0 chunks waiting>>"


_ALL_AT_ONCE: list[Any] = [
    {"id": "1", "choices": [{"index": 0, "delta": {"reasoning": "hm", "content": "so"}, "finish_reason": "stop"}]},
    "[DONE]",
]


class TestFailing:
    def test_in_band(self, plain: Link) -> None:
        """A stream that breaks off ends with an event that has the error and the answer so far."""
        *_, failed = plain.stream(CUT).events()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, StreamInterruptedError)
        assert TEXT.startswith(failed.partial.text)
        assert failed.partial.text

    def test_raised(self, plain: Link) -> None:
        """With ``errors="raise"`` the error is raised, after the events before it, and has the answer so far."""
        events = plain.stream(CUT, errors="raise").events()
        assert next(events) == TextDelta("one")
        with pytest.raises(StreamInterruptedError) as caught:
            list(events)
        assert caught.value.partial is not None
        assert caught.value.partial.text.startswith("one")

    def test_raised_in_an_event_loop(self, plain: Link) -> None:
        """So it is with ``async for``."""
        with pytest.raises(StreamInterruptedError) as caught:
            asyncio.run(asyncio.wait_for(taken(plain.stream(CUT, errors="raise").events()), 10 * SCALE))
        assert caught.value.partial is not None

    def test_what_the_server_says(self, plain: Link) -> None:
        """An error that the server sends is one like any other."""
        *_, failed = plain.stream(Reply(chunks=[_ALL_AT_ONCE[0], {"error": {"message": "no"}}])).events()
        assert isinstance(failed, Failed)
        assert (str(failed.error), failed.partial.text) == ("no", "so")


class TestLeaving:
    def test_a_break(self, plain: Link) -> None:
        """Leaving the loop closes the stream."""
        server = plain.serve(STALLED)
        stream = plain.client(server).chat_completion_stream(REQUEST)
        for _ in stream.events():
            break
        assert stream.state == "cancelled"
        assert left(server)

    def test_a_break_in_an_event_loop(self, plain: Link) -> None:
        """So it does with ``async for``."""
        server = plain.serve(STALLED)
        stream = plain.client(server).chat_completion_stream(REQUEST)

        async def scenario() -> None:
            async for _ in stream.events():
                break

        asyncio.run(scenario())
        assert stream.state == "cancelled"
        assert left(server)

    def test_next_leaves_it_open(self, plain: Link) -> None:
        """Taking one event leaves the stream open; dropping stream and events closes it."""
        server = plain.serve(STALLED)
        stream = plain.client(server).chat_completion_stream(REQUEST)
        events = stream.events()
        assert next(events) == TextDelta("one")
        assert stream.state == "streaming"
        del stream, events
        gc.collect()
        assert left(server)

    def test_closed_by_another_thread(self, plain: Link) -> None:
        """Who closes the stream while another waits for an event just ends that one's loop."""
        stream = plain.stream(STALLED)
        events = stream.events()
        assert [next(events), next(events)] == [TextDelta("one"), TextDelta(" two")]
        closing = threading.Thread(target=stream.close)
        closing.start()
        assert list(events) == []
        closing.join()
        assert stream.state == "cancelled"

    def test_a_fork(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fork's copy says whose stream it is, and does not wait for ever."""
        events = plain.stream(STALLED).events()
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(StreamInterruptedError, match="fork"):
            next(events)
        with pytest.raises(ChanstreamError, match="fork"):
            asyncio.run(taken(events))
        monkeypatch.undo()
        del events

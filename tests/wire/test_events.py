"""From chunks to events: every delta once, every whole once, and all of it the answer that assembly makes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream.errors import StreamTruncatedError
from chanstream.models.chat import ChatCompletionResponse
from chanstream.models.chunk import CompletionChunk, piece_of
from chanstream.models.events import (
    CompletionEvent,
    Failed,
    Finished,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
    ToolCallDelta,
    ToolCallDone,
)
from chanstream.wire.assembly import Assembler
from chanstream.wire.events import EventMachine
from tests.wire.test_assembly import delta, fragment


def chunk_of(data: dict[str, Any]) -> CompletionChunk:
    """Return the chunk of an event, by the short way where there is one."""
    return piece_of(data) or CompletionChunk.from_dict(data)


def chunks_of(*data: dict[str, Any]) -> list[CompletionChunk]:
    """Return the chunks of a stream's JSON objects; the last of them is the last."""
    chunks = [chunk_of({"id": "c-1", **one}) for one in data]
    chunks[-1].is_last_chunk = True
    return chunks


def events(*data: dict[str, Any]) -> list[CompletionEvent]:
    """Return the events of a stream's JSON objects."""
    return fed(chunks_of(*data))


def fed(chunks: list[CompletionChunk]) -> list[CompletionEvent]:
    """Return the events of chunks."""
    machine = EventMachine()
    return [event for chunk in chunks for event in machine.feed(chunk)]


def collected(chunks: list[CompletionChunk]) -> ChatCompletionResponse:
    """Return the answer that assembly makes of chunks."""
    answer = Assembler()
    for chunk in chunks:
        answer.add(chunk)
    return answer.response()


def types(found: list[CompletionEvent]) -> list[str]:
    """Return the events' types."""
    return [event.type for event in found]


class TestTextAndThoughts:
    def test_text(self) -> None:
        """Each piece is one event; the end tells the whole text, then the answer."""
        found = events(delta(content="Zü"), delta(content=""), delta(content="rich"), delta(finish="stop"))
        *said, finished = found
        assert said == [TextDelta("Zü"), TextDelta("rich"), TextDone("Zürich")]
        assert isinstance(finished, Finished)
        assert (finished.response.text, finished.response.choices[0].finish_reason) == ("Zürich", "stop")

    @pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
    def test_thoughts_in_a_field(self, key: str) -> None:
        """Thoughts have events of their own, before those of the text."""
        found = events(delta(**{key: "h"}), delta(**{key: "m", "content": "so"}), delta(finish="stop"))
        assert found[:-1] == [
            ReasoningDelta("h"),
            ReasoningDelta("m"),
            TextDelta("so"),
            ReasoningDone("hm"),
            TextDone("so"),
        ]

    def test_thoughts_in_the_content(self) -> None:
        """Thinking parts of a content list are thoughts, its text parts text."""
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        found = events(delta(content=[thinking]), delta(content=[{"type": "text", "text": "so"}]), delta(finish="stop"))
        assert found[:-1] == [ReasoningDelta("hm"), TextDelta("so"), ReasoningDone("hm"), TextDone("so")]

    def test_an_empty_answer(self) -> None:
        """An answer in which nothing is said has one event: that it is complete."""
        assert types(events(delta(role="assistant", content=""), delta(finish="stop"))) == ["finished"]

    def test_several_choices(self) -> None:
        """Each answer's events say which it is, and the wholes come in the order of the answers."""
        found = events(delta(1, content="b"), delta(0, content="a"), delta(1, "stop"), delta(0, "stop"))
        assert found[:-1] == [TextDelta("b", 1), TextDelta("a", 0), TextDone("a", 0), TextDone("b", 1)]

    def test_text_after_a_finish_reason(self) -> None:
        """Where a server goes on after a finish reason, the whole is told at the end, with all that came."""
        found = events(delta(finish="stop", content="a"), delta(finish="stop", content="b"))
        assert found[:-1] == [TextDelta("a"), TextDelta("b"), TextDone("ab")]

    def test_a_change_of_names(self) -> None:
        """Thoughts that come under one name first and under the other then are all told, and all collected."""
        found = events(delta(reasoning="h"), delta(reasoning_content="m"), delta(finish="stop"))
        assert found[:-1] == [ReasoningDelta("h"), ReasoningDelta("m"), ReasoningDone("hm")]


class TestToolCalls:
    def test_fragments(self) -> None:
        """A fragment's event says which call it belongs to, by place, id and name, though the server says it once."""
        *deltas, done, finished = events(
            delta(tool_calls=[fragment("f", "", id="a", index=0)]),
            delta(tool_calls=[fragment(None, '{"x":', index=0)]),
            delta(tool_calls=[fragment("", "1}", id="null", index=0)], finish="tool_calls"),
        )
        assert deltas == [ToolCallDelta(0, "a", "f", piece) for piece in ("", '{"x":', "1}")]
        assert isinstance(done, ToolCallDone)
        assert isinstance(finished, Finished)
        assert done.tool_call == finished.response.tool_calls[0]
        assert done.tool_call.function.parsed_arguments() == {"x": 1}

    def test_a_shared_index(self) -> None:
        """Parallel calls that share one index, with ids of their own, are told apart as assembly does."""
        calls = [fragment("f", {"x": 1}, id="a", index=0), fragment("g", {"y": 2}, id="b", index=0)]
        found = events(delta(tool_calls=calls), delta(finish="tool_calls"))
        assert found[:2] == [ToolCallDelta(0, "a", "f", '{"x": 1}'), ToolCallDelta(1, "b", "g", '{"y": 2}')]
        assert [event.tool_call.id for event in found if isinstance(event, ToolCallDone)] == ["a", "b"]

    def test_done_before_the_end(self) -> None:
        """A whole call is told as done as soon as the next begins, and is not told again at the end."""
        machine = EventMachine()
        first, second, last = chunks_of(
            delta(tool_calls=[fragment("f", "{}", id="a", index=0)]),
            delta(tool_calls=[fragment("g", "", id="b", index=1)]),
            delta(tool_calls=[fragment(None, "{}", index=1)], finish="tool_calls"),
        )
        assert types(machine.feed(first)) == ["tool_calls.function.arguments.delta"]
        [_, done] = machine.feed(second)
        assert isinstance(done, ToolCallDone)
        assert (done.index, done.tool_call.id) == (0, "a")
        assert [event.index for event in machine.feed(last) if isinstance(event, ToolCallDone)] == [1]

    @pytest.mark.parametrize("arguments", ["", " ", "{", '{"x": ', "[]", "1", "null"])
    def test_not_done_before_the_end(self, arguments: str) -> None:
        """A call whose arguments are no whole object is told as done at the end only: more may come."""
        machine = EventMachine()
        *before, last = chunks_of(
            delta(tool_calls=[fragment("f", arguments, id="a", index=0)]),
            delta(tool_calls=[fragment("g", "{}", id="b", index=1)]),
            delta(finish="tool_calls"),
        )
        assert not [e for chunk in before for e in machine.feed(chunk) if isinstance(e, ToolCallDone)]
        assert [e.index for e in machine.feed(last) if isinstance(e, ToolCallDone)] == [0, 1]

    def test_calls_of_several_choices(self) -> None:
        """Calls of different answers do not finish each other."""
        found = events(
            *[delta(choice, tool_calls=[fragment("f", "{}", id=f"c{choice}", index=0)]) for choice in (1, 0)],
            {"choices": [{"index": index, "delta": {}, "finish_reason": "tool_calls"} for index in (0, 1)]},
        )
        done = [(event.choice, event.tool_call.id) for event in found if isinstance(event, ToolCallDone)]
        assert done == [(0, "c0"), (1, "c1")]
        assert types(found)[:2] == ["tool_calls.function.arguments.delta"] * 2


class TestTheEnd:
    def test_an_error(self) -> None:
        """A stream that fails ends with the error and the answer so far; nothing is told as done that is not."""
        error = StreamTruncatedError("cut")
        chunks = [chunk_of(delta(content="a")), chunk_of(delta(tool_calls=[fragment("f", "{}", index=0)]))]
        *said, failed = fed([*chunks, CompletionChunk(error=error)])
        assert types(said) == ["content.delta", "tool_calls.function.arguments.delta"]
        assert isinstance(failed, Failed)
        assert failed.error is error
        assert (failed.partial.text, len(failed.partial.tool_calls)) == ("a", 1)

    def test_text_with_the_error(self) -> None:
        """What a server says in the chunk with the error is told before the error."""
        chunk = chunk_of(delta(content="a", finish="error"))
        chunk.error = StreamTruncatedError("cut")
        assert types(fed([chunk])) == ["content.delta", "failed"]

    def test_no_end(self) -> None:
        """Without the chunk that ends the stream there is neither an end nor a whole."""
        assert types(fed([chunk_of(delta(content="a"))])) == ["content.delta"]


TYPES = {
    "content.delta",
    "content.done",
    "reasoning.delta",
    "reasoning.done",
    "tool_calls.function.arguments.delta",
    "tool_calls.function.arguments.done",
    "finished",
}


class TestValues:
    FOUND = events(
        delta(reasoning="hm", content="so", tool_calls=[fragment("f", "{}", id="a", index=0)], finish="tool_calls")
    )

    def test_types(self) -> None:
        """Each kind of event has a text of its own for an ``if``."""
        assert set(types(self.FOUND)) == TYPES

    def test_match(self) -> None:
        """A ``match`` takes an event apart by its class, and its first fields by their place."""
        said = ""
        for event in self.FOUND:
            match event:
                case TextDelta(text):
                    said += f"text {text} "
                case ToolCallDelta(index, id, name, arguments):
                    said += f"call {index} {id} {name} {arguments}"
        assert said == "text so call 0 a f {}"

    def test_frozen(self) -> None:
        """Events are values: equal when their fields are, and nothing can be changed in them."""
        assert TextDelta("a") == TextDelta("a") != TextDelta("a", 1)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            TextDelta("a").text = "b"  # type: ignore[misc]

    def test_as_json(self) -> None:
        """An event's fields, its type among them, can be handed on as JSON."""
        assert json.loads(json.dumps(attrs.asdict(TextDelta("a")))) == {
            "text": "a",
            "choice": 0,
            "type": "content.delta",
        }


PIECES = st.text(max_size=3)
DELTAS = st.lists(
    st.one_of(
        st.tuples(st.just("content"), PIECES),
        st.tuples(st.just("reasoning"), PIECES),
        st.tuples(st.just("thinking"), PIECES),
        st.tuples(st.integers(0, 2), st.just("")),  # the next piece of the arguments of this call
    ),
    max_size=40,
)
ARGUMENTS = st.dictionaries(st.text(max_size=2), st.integers(), max_size=2).map(json.dumps)


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return the JSON objects of any split of any answers: texts, thoughts, calls in turns, one choice or two."""
    rests = {(choice, call): draw(ARGUMENTS) for choice in (0, 1) for call in (0, 1, 2)}
    field = draw(st.sampled_from(["reasoning", "thinking"]))
    found = [_delta(draw, field, rests, kind, piece) for kind, piece in draw(DELTAS)]
    ends = [delta(0, content="", tool_calls=_rest(rests, 0)), delta(1, tool_calls=_rest(rests, 1))]
    return [*found, *ends, delta(0, "stop")]


def _delta(draw: st.DrawFn, field: str, rests: dict[Any, str], kind: Any, piece: str) -> dict[str, Any]:
    choice = draw(st.integers(0, 1))
    if isinstance(kind, int):
        size = draw(st.integers(0, 6))
        text, rests[choice, kind] = rests[choice, kind][:size], rests[choice, kind][size:]
        return delta(choice, tool_calls=[fragment("f", text, id=f"id-{kind}", index=kind)])
    if kind == "content":
        return delta(choice, content=piece)
    if field == "thinking":
        return delta(choice, content=[{"type": "thinking", "thinking": piece}])
    return delta(choice, reasoning=piece)


def _rest(rests: dict[Any, str], choice: int) -> list[dict[str, Any]]:
    """Return the fragments of what was not yet sent of the calls of a choice."""
    mine = [(call, rest) for (at, call), rest in rests.items() if at == choice]
    return [fragment("f", rest, id=f"id-{call}", index=call) for call, rest in mine]


@settings(max_examples=300, deadline=None)
@given(streams())
def test_deltas_make_wholes_make_the_answer(data: list[dict[str, Any]]) -> None:
    """For any split of any answers, the deltas joined are the wholes, and both are what collecting gives."""
    joined: defaultdict[tuple[str, int], str] = defaultdict(str)
    whole: dict[tuple[str, int], str] = {}
    chunks = chunks_of(*data)
    found = fed(chunks)
    for event in found:
        match event:
            case TextDelta(text, choice) | ReasoningDelta(text, choice):
                joined[event.type.split(".")[0], choice] += text
            case ToolCallDelta(index, _, _, piece, choice):
                joined[f"call {index}", choice] += piece
            case TextDone(text, choice) | ReasoningDone(text, choice):
                assert whole.setdefault((event.type.split(".")[0], choice), text) is text  # once each
            case ToolCallDone(index, call, choice):
                assert whole.setdefault((f"call {index}", choice), str(call.function.arguments)) is not None
    assert {key: text for key, text in joined.items() if text} == {key: text for key, text in whole.items() if text}
    answer = collected(chunks)
    assert isinstance(found[-1], Finished)
    assert found[-1].response == answer
    for one in answer.choices:
        assert whole.get(("content", one.index), "") == one.message.text
        assert whole.get(("reasoning", one.index), "") == one.message.reasoning
        calls = [str(call.function.arguments) for call in one.message.tool_calls or ()]
        assert [whole[f"call {index}", one.index] for index in range(len(calls))] == calls


@pytest.mark.parametrize("kind", ["content", "reasoning", "tool_calls"])
def test_the_size_of_the_events_is_linear(kind: str) -> None:
    """All events together hold no more than the answer three times: in deltas, in its wholes, and at the end."""
    count, piece = 2_000, "word "
    pieces: list[Any] = [piece] * count
    if kind == "tool_calls":
        pieces = [[fragment("f", piece, id="a", index=0)]] * count
    found = events(*[delta(**{kind: one}) for one in pieces], delta(finish="stop"))
    size = sum(len(json.dumps(attrs.asdict(event))) for event in found)
    labels = 200 * len(found)  # what an event's other fields take
    assert size < 3 * count * len(piece) + labels
    assert len(found) == count + 2


@pytest.mark.usefixtures("no_collector")  # whose work grows with all that there is
@pytest.mark.parametrize("kind", ["text", "one call", "many calls"])
def test_work_is_linear(kind: str) -> None:
    """Ten times the deltas cost about ten times the work (a hundred times if it were quadratic)."""

    def cost(count: int) -> float:
        bodies: list[dict[str, Any]] = [{"content": "word "}] * count
        if kind != "text":
            places = range(count) if kind == "many calls" else [0] * count
            bodies = [{"tool_calls": [fragment("f", "{}, ", id=f"id-{at}", index=at)]} for at in places]
        chunks = chunks_of(*[delta(**body) for body in bodies], delta(finish="stop"))
        begun = time.process_time()
        fed(chunks)
        return time.process_time() - begun

    small, large = (min(cost(count) for _ in range(3)) for count in (500, 5_000))
    assert large < 40 * max(small, 0.001)

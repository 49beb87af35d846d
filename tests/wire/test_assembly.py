"""From chunks to the whole answer: text, thoughts, and tool calls from every kind of fragments that servers send."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream.models.chat import ChatCompletionResponse
from chanstream.models.chunk import CompletionChunk
from chanstream.models.content import ImageURLChunk, TextChunk, ThinkChunk
from chanstream.wire.assembly import Assembler


def collected(*data: dict[str, Any]) -> ChatCompletionResponse:
    """Return the answer of a stream's JSON objects."""
    assembler = Assembler()
    for one in data:
        assembler.add(CompletionChunk.from_dict(one))
    return assembler.response()


def delta(index: int = 0, finish: str | None = None, **content: Any) -> dict[str, Any]:
    """Return the JSON object of a chunk with one choice."""
    return {"choices": [{"index": index, "delta": content, "finish_reason": finish}]}


def fragment(name: str | None = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a tool call's fragment; what is None is left out."""
    function = {"name": name, "arguments": arguments}
    return {**more, "function": {key: value for key, value in function.items() if value is not None}}


def calls(*deltas: list[dict[str, Any]]) -> list[tuple[str | None, str, Any]]:
    """Return id, name and arguments of the tool calls that the fragments of several deltas make."""
    answer = collected(*[delta(tool_calls=fragments) for fragments in deltas])
    return [(call.id, call.function.name, call.function.arguments) for call in answer.tool_calls]


class TestTextAndFacts:
    def test_text(self) -> None:
        """The text is that of all deltas; roles, nulls and empty texts add nothing to it."""
        answer = collected(
            delta(role="assistant", content=None),
            delta(content="Zü"),
            delta(content=""),
            delta(content="rich"),
            delta(finish="stop"),
        )
        assert answer.text == "Zürich"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == "Zürich"

    @pytest.mark.parametrize("first", [{"content": ""}, {"content": None}, {"role": "assistant"}, {}])
    def test_no_text(self, first: dict[str, Any]) -> None:
        """An answer without text has None as its content and "" as its text."""
        answer = collected(delta(**first), delta(finish="stop"))
        assert (answer.choices[0].message.content, answer.text) == (None, "")

    def test_facts_of_the_answer(self) -> None:
        """Id, model and time are those of the first chunk that has them; the newest usage counts."""
        answer = collected(
            {"choices": [], "usage": {"total_tokens": 1}},
            {"id": "c-1", "model": "m", "created": 7, "choices": []},
            {"id": "c-2", "model": "other", "created": 8, "choices": [], "usage": {"total_tokens": 2}},
            {"id": "c-3", "choices": []},
        )
        assert (answer.id, answer.model, answer.created) == ("c-1", "m", 7)
        assert answer.usage is not None
        assert answer.usage.total_tokens == 2

    def test_latency(self) -> None:
        """The answer's latency is the sum of the chunks'."""
        assembler = Assembler()
        for latency in (0.5, 0.25, 1.0):
            assembler.add(CompletionChunk(chunk_latency=latency))
        assert assembler.response().latency == 1.75

    def test_nothing(self) -> None:
        """Of no chunk comes an answer without choices, which still can be asked for text."""
        answer = Assembler().response()
        assert (list(answer.choices), answer.text, answer.reasoning, list(answer.tool_calls)) == ([], "", "", [])
        assert answer.assistant_message() is None

    def test_an_answer_so_far(self) -> None:
        """The answer can be asked for at any time, and goes on growing."""
        assembler = Assembler()
        assembler.add(CompletionChunk.from_dict(delta(content="a")))
        before = assembler.response()
        assembler.add(CompletionChunk.from_dict(delta(content="b", finish="stop")))
        assert (before.text, before.choices[0].finish_reason) == ("a", None)
        assert (assembler.response().text, assembler.response().choices[0].finish_reason) == ("ab", "stop")

    def test_several_choices(self) -> None:
        """Choices are put together apart, in the order of their indexes, whichever comes first."""
        both = [
            {"index": 1, "delta": {"content": "B"}},
            {"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"},
        ]
        answer = collected(delta(1, content="b"), delta(0, content="a"), {"choices": both}, delta(1, "length"))
        assert [(choice.index, choice.message.text, choice.finish_reason) for choice in answer.choices] == [
            (0, "aA", "stop"),
            (1, "bB", "length"),
        ]

    def test_a_choice_without_finish_reason(self) -> None:
        """A choice that never finished has None as its reason; content after a reason does not take it away."""
        answer = collected(delta(0, "stop"), delta(1, content="b"), delta(0, content="more"))
        assert [(choice.message.text, choice.finish_reason) for choice in answer.choices] == [
            ("more", "stop"),
            ("b", None),
        ]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=5)), max_size=30))
    def test_no_text_is_lost(self, pieces: list[tuple[int, str]]) -> None:
        """Each choice's text is its pieces, joined in their order."""
        answer = collected(*[delta(index, content=text) for index, text in pieces])
        expected = {index: "".join(text for at, text in pieces if at == index) for index, _ in pieces}
        assert {choice.index: choice.message.text for choice in answer.choices} == expected


class TestReasoning:
    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
    def test_a_field_of_its_own(self, key: str) -> None:
        """Thoughts in a field of their own are joined there, apart from the text, under the server's name for it."""
        pieces: list[dict[str, Any]] = [{key: "h"}, {key: "m"}, {key: None, "content": "so"}]
        answer = collected(*[delta(**piece) for piece in pieces], delta(finish="stop"))
        assert (answer.reasoning, answer.text) == ("hm", "so")
        assert answer.choices[0].message.to_dict() == {"role": "assistant", "content": "so", key: "hm"}

    def test_both_fields(self) -> None:
        """Thoughts that a server sends under both names are said once."""
        answer = collected(*[delta(reasoning_content=piece, reasoning=piece) for piece in "hm"])
        assert answer.reasoning == "hm"

    def test_thinking_parts(self) -> None:
        """Thinking parts become one, and the text parts or plain texts around them one each, in their order."""
        answer = collected(
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]),
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "m"}], "closed": True}]),
            delta(content=[{"type": "text", "text": "s"}]),
            delta(content="o"),
            delta(content=""),
        )
        assert (answer.reasoning, answer.text) == ("hm", "so")
        assert answer.choices[0].message.content == [ThinkChunk([TextChunk("hm")], closed=True), TextChunk("so")]

    def test_thoughts_between_texts(self) -> None:
        """Thoughts that come twice stay where they were."""
        think, text = {"type": "thinking", "thinking": "t"}, {"type": "text", "text": "x"}
        answer = collected(delta(content=[think]), delta(content=[text]), delta(content=[think, text]))
        assert isinstance(answer.choices[0].message.content, list)
        assert [type(part) for part in answer.choices[0].message.content] == [ThinkChunk, TextChunk] * 2
        assert (answer.reasoning, answer.text) == ("tt", "xx")

    def test_other_parts_stand_alone(self) -> None:
        """Parts of other kinds, references in thoughts too, are kept as they came and are not joined."""
        image = {"type": "image_url", "image_url": "data:,x"}
        reference = {"type": "reference", "reference_ids": [1]}
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, reference]}
        answer = collected(delta(content=[thinking]), delta(content=[image]), delta(content=[image]))
        content = answer.choices[0].message.content
        assert isinstance(content, list)
        assert [type(part) for part in content] == [ThinkChunk, ImageURLChunk, ImageURLChunk]
        assert content[0].to_dict() == thinking

    def test_the_message_can_be_sent_back(self) -> None:
        """The collected message goes back to the server as it would have come whole."""
        answer = collected(
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]), delta(content="so")
        )
        message = answer.assistant_message()
        assert message is not None
        assert message.to_dict() == {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "so"},
            ],
        }


ARGUMENTS = '{"city": "Zürich"}'
HALVES = (ARGUMENTS[:9], ARGUMENTS[9:])
ONE_CALL: list[Any] = [
    pytest.param([fragment("f", ARGUMENTS, id="a", index=0)], id="whole"),
    pytest.param([fragment("f", ARGUMENTS, id="a")], id="whole, no index"),
    pytest.param(
        [fragment("f", "", id="a", index=0), *[fragment(None, half, index=0) for half in HALVES]], id="OpenAI"
    ),
    pytest.param(
        [fragment("f", None, id="a", index=0), *[fragment(None, half, index=0) for half in HALVES]],
        id="no arguments first",
    ),
    pytest.param([fragment("f", HALVES[0], id="a", index=0), fragment(None, HALVES[1], index=0)], id="begins at once"),
    pytest.param(
        [fragment("f", HALVES[0], id="a", index=0), fragment("", HALVES[1], id="null", index=0)], id="null as text"
    ),
    pytest.param(
        [fragment("f", HALVES[0], id="a", index=0), fragment("", HALVES[1], id=None, index=0)], id="null and empty name"
    ),
    pytest.param([fragment("f", half, id="a", index=0) for half in HALVES], id="all repeated"),
    pytest.param([fragment("f", half, id="a") for half in HALVES], id="all repeated, no index"),
    pytest.param([fragment("f", HALVES[0], id="a"), fragment(None, HALVES[1])], id="OpenRouter, no index"),
    pytest.param([fragment("f", HALVES[0], id="a", index=0), fragment(None, HALVES[1], id="a")], id="index once"),
    pytest.param(
        [fragment("f", half, index=0, **({"id": "a"} if half is HALVES[0] else {})) for half in HALVES], id="id once"
    ),
    pytest.param(
        [fragment("", "", id="a", index=0), *[fragment("f", half, index=0) for half in HALVES]], id="id first"
    ),
    pytest.param([fragment("f", {"city": "Zürich"}, id="a", index=0)], id="an object"),
]

A, B = ("a", "f", '{"x": 1}'), ("b", "g", '{"y": {"z": 2}}')
TWO_CALLS: list[Any] = [
    pytest.param(
        [[fragment("f", A[2], id="a", index=0), fragment("g", B[2], id="b", index=1)]], id="Mistral, one delta"
    ),
    pytest.param([[fragment("f", A[2], id="a", index=0)], [fragment("g", B[2], id="b", index=1)]], id="Groq, one each"),
    pytest.param(
        [[fragment("f", A[2], id="a", index=0)], [fragment("g", B[2], id="b", index=0)]], id="Ollama, one index"
    ),
    pytest.param([[fragment("f", A[2], id="a"), fragment("g", B[2], id="b")]], id="no index"),
    pytest.param(
        [
            [fragment("f", "", id="a", index=0)],
            *[[fragment(None, c, index=0)] for c in A[2]],
            [fragment("g", "", id="b", index=1)],
            *[[fragment(None, c, index=1)] for c in B[2]],
        ],
        id="OpenAI",
    ),
    pytest.param(
        [
            [fragment("f", "", id="a", index=0)],
            [fragment("g", "", id="b", index=1)],
            *[[fragment(None, c, index=1)] for c in B[2]],
            *[[fragment(None, c, index=0)] for c in A[2]],
        ],
        id="interleaved by index",
    ),
    pytest.param(
        [
            [fragment("f", "", id="a")],
            [fragment("g", "", id="b")],
            *[[fragment(None, c, id="a")] for c in A[2]],
            *[[fragment(None, c, id="b")] for c in B[2]],
        ],
        id="interleaved by id",
    ),
    pytest.param(
        [
            [fragment("f", "", id="a", index=0)],
            *[[fragment(None, c, index=0)] for c in A[2]],
            [fragment("g", "", id="b", index=0)],
            *[[fragment(None, c, index=0)] for c in B[2]],
        ],
        id="proxies, all index 0",
    ),
    pytest.param(
        [
            [fragment("f", "", id="a")],
            *[[fragment(None, c)] for c in A[2]],
            [fragment("g", "", id="b")],
            *[[fragment(None, c)] for c in B[2]],
        ],
        id="fragments without index",
    ),
    pytest.param(
        [*[[fragment("f", c, id="a", index=0)] for c in A[2]], *[[fragment("g", c, id="b", index=1)] for c in B[2]]],
        id="all repeated",
    ),
]


class TestToolCalls:
    @pytest.mark.parametrize("together", [False, True], ids=["one each", "one delta"])
    @pytest.mark.parametrize("fragments", ONE_CALL)
    def test_one_call(self, fragments: list[dict[str, Any]], together: bool) -> None:
        """The fragments of one call make that call, however a server cuts and labels them."""
        deltas = [fragments] if together else [[one] for one in fragments]
        assert calls(*deltas) == [("a", "f", ARGUMENTS)]

    @pytest.mark.parametrize("deltas", TWO_CALLS)
    def test_two_calls(self, deltas: list[list[dict[str, Any]]]) -> None:
        """Parallel calls are kept apart, however a server labels their fragments."""
        assert calls(*deltas) == [A, B]

    @pytest.mark.parametrize("index", [{}, {"index": 0}], ids=["no index", "one index"])
    def test_two_calls_without_ids(self, index: dict[str, int]) -> None:
        """Calls without ids are kept apart once the arguments of the one before are whole, of one function too."""
        first, second = fragment("f", '{"x": 1}', **index), fragment("f", '{"x": 2}', **index)
        assert calls([first], [second]) == [(None, "f", '{"x": 1}'), (None, "f", '{"x": 2}')]
        assert calls([first, second]) == [(None, "f", '{"x": 1}'), (None, "f", '{"x": 2}')]
        for before in ('{"x": 1}', "[]", '{"x": '):
            deltas = [fragment("f", before, **index)], [fragment("g", '{"x": 2}', **index)]
            assert calls(*deltas) == [(None, "f", before), (None, "g", '{"x": 2}')]

    @pytest.mark.parametrize("nothing", ["null", "None", "", None])
    def test_an_id_that_is_none(self, nothing: str | None) -> None:
        """An id that says in words that there is none is no id, and parts calls as little as it joins them."""
        halves = [fragment("f", HALVES[0], id=nothing, index=0), fragment("", HALVES[1], id=nothing, index=0)]
        other = fragment("g", "{}", id=nothing, index=1)
        assert calls([*halves, other]) == [(None, "f", ARGUMENTS), (None, "g", "{}")]
        assert calls([halves[0], other, halves[1]]) == [(None, "f", ARGUMENTS), (None, "g", "{}")]

    def test_no_index_and_objects(self) -> None:
        """Arguments that come as objects become JSON text, of each call its own."""
        assert calls([fragment("f", {"x": 1}), fragment("f", {"x": 2})]) == [
            (None, "f", '{"x": 1}'),
            (None, "f", '{"x": 2}'),
        ]

    def test_a_repeated_name_without_id(self) -> None:
        """A name in every fragment begins no new call while the arguments are not whole."""
        text = '{"a": {"b": {}}, "c": "}{"}'
        for cut in range(1, len(text)):
            deltas = [[fragment("f", text[:cut], index=0)], [fragment("f", text[cut:], index=0)]]
            assert calls(*deltas) == [(None, "f", text)], cut

    def test_a_name_in_pieces(self) -> None:
        """A name that comes in pieces is joined."""
        assert calls([fragment("get_", None, id="a", index=0)], [fragment("weather", "{}", index=0)]) == [
            ("a", "get_weather", "{}")
        ]

    def test_cut_arguments(self) -> None:
        """Arguments that a length limit cut are handed on as far as they came."""
        answer = collected(delta(tool_calls=[fragment("f", '{"ci', id="a", index=0)]), delta(finish="length"))
        assert answer.choices[0].finish_reason == "length"
        assert answer.tool_calls[0].function.arguments == '{"ci'

    def test_no_arguments(self) -> None:
        """A call without arguments has an empty text for them."""
        assert calls([fragment("f", None, id="a", index=0)]) == [("a", "f", "")]

    def test_null_and_legacy_fields(self) -> None:
        """`tool_calls: null` and a legacy ``function_call`` beside the calls add no call."""
        legacy = {"name": "f", "arguments": "{}"}
        answer = collected(
            delta(tool_calls=None),
            delta(tool_calls=[]),
            delta(tool_calls=[fragment("f", "{", id="a", index=0)], function_call=legacy),
            delta(tool_calls=[fragment("f", "}", id="a", index=0)], function_call=legacy),
        )
        assert [(call.id, call.function.arguments) for call in answer.tool_calls] == [("a", "{}")]
        assert collected(delta(tool_calls=None), delta(content="x")).choices[0].message.tool_calls is None

    def test_calls_of_several_choices(self) -> None:
        """Each choice has its own calls, under the same indexes and in turns."""
        deltas = [
            delta(index, tool_calls=[fragment(name, piece, index=0)])
            for name, piece in [("f", "{"), (None, "}")]
            for index in (1, 0)
        ]
        found = [choice.message.tool_calls or () for choice in collected(*deltas).choices]
        assert [[call.function.arguments for call in one] for one in found] == [["{}"], ["{}"]]

    def test_text_and_calls(self) -> None:
        """Text before a call stays the message's content."""
        answer = collected(delta(content="Let me see."), delta(tool_calls=[fragment("f", "{}", id="a", index=0)]))
        assert (answer.text, len(answer.tool_calls)) == ("Let me see.", 1)

    def test_the_type_and_the_index(self) -> None:
        """A call is of type ``function`` unless the server says otherwise; its place in the list is its index.

        Servers refuse an ``index`` in the calls of a message that is sent back to them.
        """
        answer = collected(
            delta(tool_calls=[fragment("f", "{}", id="a", index=3), fragment("g", "{}", type="custom", index=4)])
        )
        assert [(call.type, call.index) for call in answer.tool_calls] == [("function", None), ("custom", None)]

    def test_what_a_server_adds_is_kept(self) -> None:
        """What a server adds to a call, such as a signature that it wants back, is in the collected call."""
        signed = fragment("f", "{", id="a", index=0, extra_content={"google": {"thought_signature": "s"}})
        [call] = collected(delta(tool_calls=[signed]), delta(tool_calls=[fragment(None, "}", index=0)])).tool_calls
        assert call.to_dict()["extra_content"] == {"google": {"thought_signature": "s"}}

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), min_size=1, max_size=4), st.data())
    def test_any_cut_of_any_calls(self, arguments: list[dict[str, int]], data: st.DataObject) -> None:
        """Calls whose fragments have an index each are put together rightly, in whatever turns they come."""
        texts = [json.dumps(value) for value in arguments]
        order = data.draw(st.permutations([index for index, text in enumerate(texts) for _ in text]))
        rest = [iter(text) for text in texts]
        begun = [[fragment("f", "", id=f"id-{index}", index=index)] for index in range(len(texts))]
        deltas = [*begun, *[[fragment(None, next(rest[index]), index=index)] for index in order]]
        assert calls(*deltas) == [(f"id-{index}", "f", text) for index, text in enumerate(texts)]


class TestCost:
    @pytest.mark.parametrize("name", ["f", None], ids=["name repeated", "no name"])
    @pytest.mark.parametrize("labels", [{"id": "a", "index": 0}, {"index": 0}, {}], ids=["id", "index", "nothing"])
    def test_work_is_linear(self, labels: dict[str, Any], name: str | None) -> None:
        """Ten times the fragments cost about ten times the work (a hundred times if it were quadratic)."""

        def cost(count: int) -> float:
            pieces = [delta(tool_calls=[fragment(name, "{}, ", **labels)]) for _ in range(count)]
            first = delta(tool_calls=[fragment("f", "[", id="a", index=0)])
            added = [CompletionChunk.from_dict(one) for one in [first, *pieces]]
            assembler = Assembler()
            begun = time.process_time()
            for chunk in added:
                assembler.add(chunk)
            assembler.response()
            return time.process_time() - begun

        small, large = (min(cost(count) for _ in range(3)) for count in (1_000, 10_000))
        assert large < 40 * max(small, 0.001)

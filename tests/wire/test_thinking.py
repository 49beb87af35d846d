"""Thoughts between tags in the text: parted at any split, and all else exactly as it was."""

from __future__ import annotations

import json
import time
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream.errors import StreamInterruptedError
from chanstream.models.chat import ChatCompletionResponse
from chanstream.models.chunk import CompletionChunk
from chanstream.models.content import TextChunk
from chanstream.models.events import ReasoningDone, TextDone
from chanstream.wire.assembly import Assembler
from chanstream.wire.events import EventMachine
from chanstream.wire.machine import HOLD_SECONDS, StreamMachine
from chanstream.wire.thinking import TagSplitter, ThinkingMachine, parted
from tests.wire.test_machine import DONE, delta, event, fed

ANSWERS = [
    ("<think>hm</think>so", "hm", "so"),
    ("\n <think>\nhm\n</think>\n\nso", "\nhm\n", "\n \n\nso"),
    ("<think></think>so", "", "so"),
    ("<think>hm", "hm", ""),
    ("<think>hm</thin", "hm</thin", ""),
    ("<think>", "", ""),
    ("<think>a < b </b> </ think></think>so", "a < b </b> </ think>", "so"),
    ("<think><<</think></think>", "<<", "</think>"),
    ("<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d"),
    ("<think>hm</think><think>no</think>", "hm", "<think>no</think>"),
    ("so <think>hm</think>", "", "so <think>hm</think>"),
    ("<thinking>hm</thinking>", "", "<thinking>hm</thinking>"),
    ("<Think>hm</Think>", "", "<Think>hm</Think>"),
    ("<thi", "", "<thi"),
    (" <", "", " <"),
    ("<<think>hm</think>", "", "<<think>hm</think>"),
    ("hm</think>so", "", "hm</think>so"),
    ("  ", "", "  "),
    ("", "", ""),
]


def split_at_every(text: str, size: int) -> list[str]:
    """Return a text in pieces of a size."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def parted_pieces(pieces: list[str]) -> tuple[str, str]:
    """Return the thoughts and the text of an answer that comes in pieces."""
    splitter = TagSplitter()
    thoughts, texts = zip(*map(splitter.feed, pieces), splitter.rest(), strict=True)
    return "".join(thoughts), "".join(texts)


class TestSplitter:
    @pytest.mark.parametrize(("answer", "thoughts", "text"), ANSWERS)
    def test_at_every_split(self, answer: str, thoughts: str, text: str) -> None:
        """Thoughts and text are the same whatever pieces the answer comes in."""
        for size in range(1, len(answer) + 1):
            assert parted_pieces(split_at_every(answer, size)) == (thoughts, text)
        for at in range(len(answer)):
            assert parted_pieces([answer[:at], "", answer[at:]]) == (thoughts, text)

    @settings(max_examples=500, deadline=None)
    @given(
        st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", "<thi", " ", "\n", "a"])), st.data()
    )
    def test_any_split_of_anything(self, parts: list[str], data: st.DataObject) -> None:
        """Whatever the answer, and wherever it is split, it is parted as when it comes whole."""
        answer = "".join(parts)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
        pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
        blanks = answer[: len(answer) - len(answer.lstrip())]
        inside = answer.lstrip().startswith("<think>")
        thoughts, _, text = answer.lstrip().removeprefix("<think>").partition("</think>")
        assert parted_pieces(pieces) == ((thoughts, blanks + text) if inside else ("", answer))

    @pytest.mark.parametrize(("answer", "thoughts", "text"), ANSWERS)
    def test_holds_back_no_more_than_a_tag(self, answer: str, thoughts: str, text: str) -> None:
        """What is held back at any time is a beginning of a tag; all before it is out."""
        splitter = TagSplitter()
        out = 0
        for sent, character in zip(accumulate(answer), answer, strict=True):
            out += sum(map(len, splitter.feed(character)))
            rest = answer[: len(sent)].lstrip()
            tags = (rest.startswith("<think>") and 7) + (splitter.over and text != answer and 8)
            held = len(sent) - tags - out
            assert held == 0 or "<think>".startswith(sent[-held:]) or "</think>".startswith(sent[-held:])
        assert out + sum(map(len, splitter.rest())) == len(thoughts) + len(text)

    @pytest.mark.usefixtures("no_collector")  # whose work grows with all that there is
    def test_work_is_linear(self) -> None:
        """Ten times the thoughts cost about ten times the work (a hundred times if it were quadratic)."""

        def cost(count: int) -> float:
            begun = time.process_time()
            parted_pieces(["<think>", *["</thin"] * count])
            return time.process_time() - begun

        small, large = (min(cost(count) for _ in range(3)) for count in (5_000, 50_000))
        assert large < 40 * max(small, 0.001)


def wire(answer: str, size: int = 3, **more: Any) -> list[bytes]:
    """Return the events of an answer in pieces."""
    return [*[delta(piece, **more) for piece in split_at_every(answer, size)], delta(finish="stop"), DONE]


def chunks(blocks: list[bytes], machine: StreamMachine | None = None) -> list[CompletionChunk]:
    """Return the chunks of a body, of which one block arrives each second."""
    machine = machine or ThinkingMachine(0.0)
    return fed(machine, *blocks) + machine.eof(len(blocks) + 1.0)


def collected(found: list[CompletionChunk]) -> ChatCompletionResponse:
    """Return the answer that the chunks make."""
    answer = Assembler()
    for chunk in found:
        answer.add(chunk)
    return answer.response()


def said(found: list[CompletionChunk]) -> tuple[str, str]:
    """Return thoughts and text of chunks."""
    return "".join(chunk.reasoning for chunk in found), "".join(chunk.text for chunk in found)


class TestMachine:
    @pytest.mark.parametrize("size", [1, 3, 100])
    @pytest.mark.parametrize(("answer", "thoughts", "text"), ANSWERS)
    def test_chunks_and_the_answer(self, answer: str, thoughts: str, text: str, size: int) -> None:
        """Chunks, the events made of them and the collected answer have the thoughts apart from the text."""
        found = chunks(wire(answer, size))
        assert said(found) == (thoughts, text)
        whole = collected(found)
        assert (whole.reasoning, whole.text) == (thoughts, text)
        machine = EventMachine()
        events = [event for chunk in found for event in machine.feed(chunk)]
        assert [event.text for event in events if isinstance(event, ReasoningDone)] == [thoughts] * bool(thoughts)
        assert [event.text for event in events if isinstance(event, TextDone)] == [text] * bool(text)

    @pytest.mark.parametrize("size", [1, 3, 100])
    @pytest.mark.parametrize("answer", [answer for answer, _, _ in ANSWERS])
    def test_nothing_else_changes(self, answer: str, size: int) -> None:
        """There are as many chunks, at the same times, with the same JSON; the same one is the last."""
        blocks = wire(answer, size)

        def facts(found: list[CompletionChunk]) -> list[Any]:
            return [
                (c.raw, c.id, c.chunk_latency, c.total_latency, c.is_last_chunk, c.usage, c.to_dict()) for c in found
            ]

        assert facts(chunks(blocks)) == facts(chunks(blocks, StreamMachine(0.0)))

    @pytest.mark.parametrize("answer", ["so", "so <think>hm</think>", " so"])
    def test_an_answer_without_thoughts(self, answer: str) -> None:
        """An answer that begins with no tag comes out equal in every part."""
        blocks = wire(answer)
        assert chunks(blocks) == chunks(blocks, StreamMachine(0.0))
        assert collected(chunks(blocks)) == collected(chunks(blocks, StreamMachine(0.0)))

    def test_prompt(self) -> None:
        """A chunk whose text is held back is handed on all the same, with an empty text."""
        machine = ThinkingMachine(0.0)
        given = [machine.feed(delta(piece), 1.0) for piece in ("<th", "ink>h", "m</", "think>so")]
        assert [[(chunk.reasoning, chunk.text) for chunk in one] for one in given] == [
            [("", "")],
            [("h", "")],
            [("m", "")],
            [("", "so")],
        ]

    def test_several_choices(self) -> None:
        """Each answer is parted on its own; what is held back of any of them comes with the last chunk."""
        blocks = [
            *[delta(piece, index=index) for piece in ("<think>h", "m</thi") for index in (1, 0)],
            delta("nk>so", index=1),
            delta(finish="stop", index=1),
            delta(finish="stop", index=0),
            DONE,
        ]
        answer = collected(chunks(blocks, ThinkingMachine(0.0, n=2)))
        assert [(one.message.reasoning, one.message.text) for one in answer.choices] == [("hm</thi", ""), ("hm", "so")]

    def test_held_back_for_a_choice_that_the_last_chunk_does_not_name(self) -> None:
        """The last chunk gets a choice more where another's text was held back; its own stays the first."""
        blocks = [
            delta("<thi", index=1),
            delta(finish="stop", index=1),
            delta("a", index=0),
            delta(finish="stop"),
            DONE,
        ]
        last = chunks(blocks, ThinkingMachine(0.0, n=2))[-1]
        assert [(one.index, one.delta.text) for one in last.choices] == [(0, ""), (1, "<thi")]

    @pytest.mark.parametrize(("begun", "thoughts", "text"), [("<thi", "", "<thi"), ("<think>hm</th", "hm</th", "")])
    def test_a_cut(self, begun: str, thoughts: str, text: str) -> None:
        """What was held back when a stream breaks off comes with the error: the partial answer has all that came."""
        machine = ThinkingMachine(0.0)
        found = [*machine.feed(delta(begun), 1.0), *machine.fail(StreamInterruptedError("cut"), 2.0)]
        assert found[-1].error is not None
        assert said(found) == (thoughts, text)
        assert (collected(found).reasoning, collected(found).text) == (thoughts, text)
        assert machine.fail(StreamInterruptedError("again"), 3.0) == []

    def test_a_tick(self) -> None:
        """A finish chunk that is let go because its time is over has what was held back too."""
        machine = ThinkingMachine(0.0)
        found = [*machine.feed(delta("<"), 1.0), *machine.feed(delta(finish="stop"), 1.0)]
        found += machine.tick(1.0 + HOLD_SECONDS)
        assert found[-1].is_last_chunk
        assert found[-1].text == "<"

    def test_thoughts_of_both_kinds(self) -> None:
        """Thoughts in a field of their own are kept, under the server's name, beside those between tags."""
        both = {"choices": [{"index": 0, "delta": {"content": "<think>m</think>so", "reasoning_content": "h"}}]}
        found = chunks([event(both), delta(finish="stop"), DONE])
        assert said(found) == ("hm", "so")
        assert collected(found).choices[0].message.extra == {"reasoning_content": "hm"}

    def test_a_field_and_no_text(self) -> None:
        """Chunks without text are what they were, and nothing more is made of them."""
        thought = {"choices": [{"index": 0, "delta": {"content": "", "reasoning": "hm"}, "finish_reason": None}]}
        [chunk] = ThinkingMachine(0.0).feed(event(thought), 1.0)
        assert (chunk.reasoning, chunk.text, chunk.piece) == ("hm", "", "")

    def test_content_lists(self) -> None:
        """A content that is a list is not looked into; what was held back before it is not lost."""
        listed = [{"type": "text", "text": "<think>"}]
        finish = {"choices": [{"index": 0, "delta": {"content": listed}, "finish_reason": "stop"}]}
        last = chunks([delta("<"), event(finish), DONE])[-1]
        assert last.choices[0].delta.content == [TextChunk("<think>"), TextChunk("<")]

    def test_a_whole_answer_in_place_of_a_stream(self) -> None:
        """A completion that came whole though a stream was asked for is parted too."""
        machine = ThinkingMachine(0.0, content_type="application/json")
        body = {"choices": [{"index": 0, "message": {"content": "<think>hm</think>so"}, "finish_reason": "stop"}]}
        machine.feed(json.dumps(body).encode(), 1.0)
        [last] = machine.eof(2.0)
        assert (last.reasoning, last.text, last.is_last_chunk) == ("hm", "so", True)


def whole(message: dict[str, Any]) -> ChatCompletionResponse:
    """Return a whole answer with one choice."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return ChatCompletionResponse.from_dict({"id": "c-1", "choices": [choice], "usage": {"total_tokens": 3}})


class TestWhole:
    @pytest.mark.parametrize(("answer", "thoughts", "text"), ANSWERS)
    def test_parted(self, answer: str, thoughts: str, text: str) -> None:
        """A whole answer is parted as a streamed one is."""
        found = parted(whole({"content": answer}))
        assert (found.reasoning, found.text) == (thoughts, text)
        assert (found.id, found.usage, found.choices[0].finish_reason) == (
            "c-1",
            whole({}).usage,
            "stop",
        )

    @pytest.mark.parametrize("content", [None, "so", [{"type": "text", "text": "<think>hm</think>so"}]])
    def test_nothing_to_part(self, content: Any) -> None:
        """An answer without a tag at its beginning comes out as it was."""
        message = {"content": content, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
        assert parted(whole(message)) == whole(message)

    @pytest.mark.parametrize(
        ("own", "extra"),
        [
            ({"reasoning": None}, {"reasoning": "m"}),
            ({"reasoning_content": "h"}, {"reasoning_content": "hm"}),
            ({"reasoning": "h"}, {"reasoning": "hm"}),
        ],
    )
    def test_thoughts_of_both_kinds(self, own: dict[str, Any], extra: dict[str, Any]) -> None:
        """Thoughts in a field of their own are kept, under the server's name."""
        assert parted(whole({"content": "<think>m</think>so", **own})).choices[0].message.extra == extra

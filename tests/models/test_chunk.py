"""The chunks of a streamed answer: both ways, and the short ways into them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    CompletionChunk,
    DeltaMessage,
    FinishReason,
    FunctionCall,
    StreamChoice,
    StreamTruncatedError,
    TextChunk,
    ThinkChunk,
    ToolCall,
    UnknownChunk,
    UsageInfo,
)
from chanstream.models.chunk import piece_of
from tests.data.transcripts import Transcript, body, transcripts
from tests.models import INTEGER, JSON, objects, text_of
from tests.models.test_chat import USAGE
from tests.models.test_messages import CALL, CONTENT

DELTA = objects(
    {}, {"role": st.text(), "content": CONTENT, "tool_calls": st.lists(CALL, max_size=2), "reasoning": JSON}
)
CHOICE = objects({}, {"index": INTEGER, "delta": DELTA, "finish_reason": st.text()})
CHUNK = objects(
    {},
    {
        "id": st.text(),
        "object": st.text(),
        "created": INTEGER,
        "model": st.text(),
        "choices": st.lists(CHOICE, max_size=2),
        "usage": USAGE,
    },
)


@given(CHUNK.filter(bool))
def test_nothing_is_lost(data: dict[str, Any]) -> None:
    """A chunk's object, whatever it holds, null or missing, comes back exactly and lies in raw."""
    chunk = CompletionChunk.from_dict(data)
    assert chunk.raw == data
    assert text_of(chunk.to_dict()) == text_of(data)


@given(CHUNK.filter(bool))
def test_parts_keep_their_objects(data: dict[str, Any]) -> None:
    """Each choice and each delta keeps the object that it came in."""
    chunk = CompletionChunk.from_dict(data)
    for choice, told in zip(chunk.choices, data.get("choices") or (), strict=True):
        assert choice.to_dict() == told or not told
        assert choice.delta.to_dict() == (told.get("delta") or {})


@pytest.mark.parametrize("transcript", transcripts("stream"), ids=lambda transcript: transcript.name)
def test_chunks_that_servers_sent(transcript: Transcript) -> None:
    """Every chunk of the real streams is read and written exactly."""
    _, data, _ = body(transcript.raw)
    lines = [line.removeprefix(b"data:").strip() for line in data.splitlines() if line.startswith(b"data:")]
    events = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    chunks = [event for event in events if "choices" in event]
    assert [CompletionChunk.from_dict(chunk).to_dict() for chunk in chunks] == chunks


class TestShortWays:
    def test_a_text(self) -> None:
        """A delta's text is the chunk's text."""
        chunk = CompletionChunk.from_dict({"choices": [{"delta": {"role": "assistant", "content": "hi"}}]})
        assert (chunk.text, chunk.reasoning, list(chunk.tool_calls)) == ("hi", "", [])
        assert chunk.delta_message() is chunk.choices[0].delta
        assert chunk.delta_message().role == "assistant"

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"choices": []},
            {"choices": None},
            {"choices": [{}]},
            {"choices": [{"delta": None}]},
            {"choices": [{"delta": {}}]},
            {"choices": [{"delta": {"content": None}}]},
            {"choices": [{"delta": {"content": "", "tool_calls": None, "reasoning": None}}]},
            {"choices": [{"delta": {"content": []}}]},
        ],
    )
    def test_nothing_said(self, data: dict[str, Any]) -> None:
        """Null, missing and empty parts are all the same: nothing said, and no error."""
        chunk = CompletionChunk.from_dict(data)
        assert (chunk.text, chunk.reasoning, list(chunk.tool_calls)) == ("", "", [])
        assert chunk.delta_message().text == ""

    @pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
    def test_thoughts_in_a_field(self, name: str) -> None:
        """Thoughts in a field of their own are found under both its names."""
        chunk = CompletionChunk.from_dict({"choices": [{"delta": {name: "hm", "content": None}}]})
        assert (chunk.reasoning, chunk.text) == ("hm", "")

    def test_thoughts_in_the_content(self) -> None:
        """Thoughts among the content chunks are told from the text."""
        content = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "so"}]
        chunk = CompletionChunk.from_dict({"choices": [{"delta": {"content": content}}]})
        assert (chunk.reasoning, chunk.text) == ("hm", "so")
        assert chunk.choices[0].delta.content == [ThinkChunk([TextChunk("hm")]), TextChunk("so")]

    def test_an_unknown_content_chunk(self) -> None:
        """A content chunk of an unknown kind is kept and says no text."""
        chunk = CompletionChunk.from_dict({"choices": [{"delta": {"content": [{"type": "video", "url": "x"}]}}]})
        assert chunk.choices[0].delta.content == [UnknownChunk("video", extra={"url": "x"})]
        assert chunk.text == ""

    def test_tool_calls(self) -> None:
        """Fragments of tool calls come as they are."""
        call = {"index": 1, "id": "a", "function": {"name": "f", "arguments": '{"x'}}
        chunk = CompletionChunk.from_dict({"choices": [{"delta": {"tool_calls": [call]}}]})
        assert chunk.tool_calls == [ToolCall("a", FunctionCall("f", '{"x'), 1)]

    def test_the_first_choice_in_it(self) -> None:
        """With several choices the short ways lead to the first that is in the chunk."""
        choices = [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]
        chunk = CompletionChunk.from_dict({"choices": choices})
        assert (chunk.text, chunk.choices[0].index) == ("b", 1)

    def test_a_finish_reason(self) -> None:
        """A finish reason equals its member, and one that is in no list passes."""
        chunk = CompletionChunk.from_dict({"choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}]})
        assert chunk.choices[0].finish_reason == FinishReason.STOP
        assert chunk.choices[1].finish_reason == "abort"


class TestUsage:
    COUNTS: ClassVar = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

    @pytest.mark.parametrize(
        "data",
        [
            {"usage": COUNTS},
            {"x_groq": {"id": "1", "usage": COUNTS}},
            {"usage": COUNTS, "x_groq": {"id": "1"}},
            {"usage": COUNTS, "x_groq": None},
            {"usage": None, "x_groq": {"usage": COUNTS}},
        ],
    )
    def test_where_it_is(self, data: dict[str, Any]) -> None:
        """Usage is found wherever a server puts it."""
        assert CompletionChunk.from_dict(data).usage == UsageInfo(1, 2, 3)

    @pytest.mark.parametrize("data", [{}, {"usage": None}, {"usage": {}}, {"x_groq": None}, {"x_groq": {"id": "1"}}])
    def test_none(self, data: dict[str, Any]) -> None:
        """Where a server counts nothing there is no usage."""
        assert CompletionChunk.from_dict(data).usage is None

    def test_usage_that_was_folded_in(self) -> None:
        """Usage that came in an event of its own is in the last chunk's object too."""
        chunk = CompletionChunk.from_dict({"id": "1", "choices": [], "usage": None})
        chunk.usage = UsageInfo(1, 2, 3)
        assert chunk.to_dict() == {"id": "1", "choices": [], "usage": self.COUNTS}

    def test_final_counts_over_earlier_ones(self) -> None:
        """The final counts are in a last chunk's object, though its own event had counts so far."""
        chunk = CompletionChunk.from_dict({"id": "1", "choices": [], "usage": {**self.COUNTS, "total_tokens": 2}})
        chunk.usage, chunk.is_last_chunk = UsageInfo(1, 2, 3), True
        assert chunk.to_dict() == {"id": "1", "choices": [], "usage": self.COUNTS}


class TestMadeByTheLibrary:
    def test_a_chunk(self) -> None:
        """A chunk that came from no server has an object all the same."""
        chunk = CompletionChunk("1", "chat.completion.chunk", 5, "m", [StreamChoice(finish_reason="stop")])
        assert chunk.to_dict() == {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 5,
            "model": "m",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        }

    def test_a_delta(self) -> None:
        """A delta that came from no server is written as it is read."""
        delta = DeltaMessage("assistant", "hi")
        assert delta.to_dict() == {"role": "assistant", "content": "hi"}


class TestErrors:
    def test_raise_for_error(self) -> None:
        """The error of a chunk is raised on demand; a chunk without one raises nothing."""
        CompletionChunk().raise_for_error()
        error = StreamTruncatedError("cut")
        with pytest.raises(StreamTruncatedError) as caught:
            CompletionChunk(error=error).raise_for_error()
        assert caught.value is error

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ({"choices": "x"}, "choices: expected a list, got 'x'"),
            ({"choices": {"0": {}}}, "choices: expected a list, got {'0': {}}"),
            ({"choices": [{"index": "0"}]}, "index: expected int, got '0'"),
            ({"choices": [{"delta": {"content": 5}}]}, "expected a list, got 5"),
            (
                {"choices": [{"delta": {"tool_calls": [5]}}]},
                "[0]: expected a tool call as a mapping, got 5",
            ),
        ],
    )
    def test_what_no_server_may_send(self, data: dict[str, Any], text: str) -> None:
        """A part of a type that cannot be is an error that names it."""
        with pytest.raises(TypeError) as caught:
            CompletionChunk.from_dict(data)
        assert str(caught.value).endswith(text)


def test_it_travels() -> None:
    """A chunk can be pickled, its error too."""
    chunk = CompletionChunk.from_dict({"id": "1", "choices": [{"delta": {"content": "hi"}}]})
    chunk.error = StreamTruncatedError("cut")
    again = pickle.loads(pickle.dumps(chunk))
    assert (again.id, again.text, again.raw, str(again.error)) == ("1", "hi", chunk.raw, "cut")
    assert type(again.error) is StreamTruncatedError


PIECE: dict[str, Any] = {
    "id": "1",
    "object": "chat.completion.chunk",
    "created": 5,
    "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}],
}


def altered(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a plain piece's JSON with another value at a path."""
    data: dict[str, Any] = json.loads(json.dumps(PIECE))
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


PATHS = [
    ("choices",),
    ("choices", 0),
    ("choices", 0, "index"),
    ("choices", 0, "delta"),
    ("choices", 0, "delta", "content"),
    ("choices", 0, "delta", "tool_calls"),
    ("choices", 0, "delta", "reasoning"),
    ("choices", 0, "finish_reason"),
    ("usage",),
    ("error",),
    ("object",),
    ("x_groq",),
    ("id",),
    ("model",),
    ("created",),
]


class TestPieces:
    """Nearly every chunk is made in a shorter way, which nobody can tell from the longer one."""

    @given(st.sampled_from(PATHS), JSON | st.sampled_from([[], {}, 0, 0.0, True, "", "error", [{}], {"a": 1}]))
    def test_are_what_they_would_be(self, path: tuple[Any, ...], value: Any) -> None:
        """A chunk made in the short way is equal, text and thoughts too; what is odd is left to the long one."""
        data = altered(path, value)
        piece = piece_of(data)
        if piece is not None:
            whole = CompletionChunk.from_dict(data)
            assert (piece.text, piece.reasoning, piece.tool_calls) == (whole.text, whole.reasoning, whole.tool_calls)
            assert piece.to_dict() == whole.to_dict()
            assert piece == whole
            assert (piece.text, piece.reasoning, piece.tool_calls) == (whole.text, whole.reasoning, whole.tool_calls)

    def test_are_nearly_all(self) -> None:
        """A piece of text, of thoughts, and a role alone are made in the short way."""
        for delta in (
            {"content": "Hi"},
            {"role": "assistant", "content": ""},
            {"content": None, "reasoning": "Hm"},
            {},
        ):
            assert piece_of(altered(("choices", 0, "delta"), delta)) is not None

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("choices", 0, "finish_reason"), "stop"),
            (("choices", 0, "index"), 1),
            (("choices", 0, "delta", "tool_calls"), [{"index": 0}]),
            (("choices", 0, "delta", "content"), [{"type": "text", "text": "Hi"}]),
            (("usage",), {"prompt_tokens": 1}),
            (("error",), {"message": "no"}),
            (("object",), "error"),
            (("x_groq",), {"id": "req_1"}),
            (("choices",), []),
        ],
    )
    def test_are_nothing_else(self, path: tuple[Any, ...], value: Any) -> None:
        """What carries more than text or thoughts is made in the long way."""
        assert piece_of(altered(path, value)) is None

    def test_follow_a_change(self) -> None:
        """What is changed in a chunk's choices shows in its text."""
        piece = piece_of(altered(("id",), "2"))
        assert piece is not None
        piece.model = "other"
        piece.choices[0].delta.content = "Bye"
        assert (piece.text, piece.model, piece.id) == ("Bye", "other", "2")

    def test_travel(self) -> None:
        """They can be pickled and copied."""
        piece = piece_of(PIECE)
        assert pickle.loads(pickle.dumps(piece)) == copy.copy(piece) == CompletionChunk.from_dict(PIECE)

    def test_other_names_are_no_names(self) -> None:
        """A name that a chunk does not have is an AttributeError."""
        with pytest.raises(AttributeError, match="'CompletionChunk' object has no attribute 'txt'"):
            piece_of(PIECE).txt  # type: ignore[union-attr]  # noqa: B018 - that is the claim

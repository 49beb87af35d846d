"""From one event to one chunk: every shape of data, of usage and of "an error happened" that servers send."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream.errors import StreamAPIError, StreamDecodeError
from chanstream.models import codec
from chanstream.models.chunk import CompletionChunk
from chanstream.models.content import ReferenceChunk, TextChunk, ThinkChunk, UnknownChunk
from chanstream.wire.decoding import Decoder, Signal, chunk_of, failed

CHUNK = '{"id":"c-1","choices":[{"index":0,"delta":{"content":"Zürich"},"finish_reason":null}]}'


@pytest.fixture(params=["orjson", "json"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A decoder with the fast JSON library, then one without."""
    codec.best_loads.cache_clear()
    if request.param == "json":
        monkeypatch.setitem(sys.modules, "orjson", None)
    yield Decoder()
    codec.best_loads.cache_clear()


def decoded(block: str | bytes) -> CompletionChunk:
    """Return the chunk of a block."""
    chunk = Decoder().decode(block if isinstance(block, bytes) else block.encode())
    assert isinstance(chunk, CompletionChunk)
    return chunk


def of(data: Any) -> CompletionChunk:
    """Return the chunk of a JSON value in a plain event."""
    return decoded("data: " + json.dumps(data))


def of_delta(**delta: Any) -> CompletionChunk:
    """Return the chunk with one choice whose delta is this."""
    return of({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


class TestTheForm:
    @pytest.mark.parametrize(
        "block",
        [
            f"data: {CHUNK}",
            f"data:{CHUNK}",
            f"data:  {CHUNK}  ",
            f"id: 7\nevent: message\ndata: {CHUNK}",
            f"event: chunk\ndata: {CHUNK}",
            f": comment\ndata: {CHUNK}",
            f"data: {CHUNK}\nretry: 5",
            f"\ndata: {CHUNK}",
            "data: " + json.dumps(json.loads(CHUNK), indent=1).replace("\n", "\ndata: "),
            json.dumps(json.loads(CHUNK), indent=1),
            "data: " + json.dumps(json.loads(CHUNK), indent=1),
        ],
        ids=[
            "plain",
            "no space",
            "blanks",
            "fields",
            "type",
            "comment",
            "retry",
            "empty line",
            "lines",
            "bare",
            "first",
        ],
    )
    def test_a_chunk(self, decoder: Decoder, block: str) -> None:
        """A chunk is read, however its event is written, with either JSON library."""
        chunk = decoder.decode(block.encode())
        assert isinstance(chunk, CompletionChunk)
        assert (chunk.id, chunk.text, chunk.error) == ("c-1", "Zürich", None)
        assert chunk.raw == json.loads(CHUNK)

    @pytest.mark.parametrize(
        "block", ["data: [DONE]", "data:[DONE]", "data: [DONE] ", "id: 1\ndata: [DONE]", "event: done\ndata: [DONE]"]
    )
    def test_the_full_stop(self, block: str) -> None:
        """[DONE] is the full stop, however its event is written."""
        assert Decoder().decode(block.encode()) is Signal.DONE

    @pytest.mark.parametrize(
        "block",
        [
            "",
            ":",
            ": OPENROUTER PROCESSING",
            "event: ping",
            "data:",
            "data",
            "data:   ",
            "data\ndata",
            "id: 1",
            "foo",
            "<p>",
        ],
    )
    def test_nothing(self, block: str) -> None:
        """Comments, pings, fields without data and unknown fields are no chunk."""
        assert Decoder().decode(block.encode()) is None

    @pytest.mark.parametrize("block", ["event: ping\ndata: 2026-11-21", "event: ping\ndata: 17", "event: x\ndata: [1]"])
    def test_an_unknown_type_of_event(self, block: str) -> None:
        """An event of a type that chat does not know is no fault, whatever is in it."""
        assert Decoder().decode(block.encode()) is None

    @pytest.mark.parametrize(
        "data",
        ["{", '{"choices": [', "null", "17", '"text"', "[]", "[1]", "[[]]", "done", "[DONE", "{}{}", "[" * 100_000],
        ids=lambda data: data[:12],
    )
    def test_no_json_object(self, decoder: Decoder, data: str) -> None:
        """Data that is no JSON object is an error that shows how it began."""
        chunk = decoder.decode(f"data: {data}".encode())
        assert isinstance(chunk, CompletionChunk)
        assert isinstance(chunk.error, StreamDecodeError)
        assert data[:4] in str(chunk.error)
        assert len(str(chunk.error)) < 400

    def test_long_garbage_is_shortened(self) -> None:
        """An error shows the beginning of what could not be read, and how much there was."""
        assert "(5002 bytes)" in str(decoded('data: {"' + "x" * 5000).error)

    def test_text_that_is_no_utf8(self, decoder: Decoder) -> None:
        """Bytes that are no UTF-8 become U+FFFD, as the standard has it, and end nothing."""
        chunk = decoder.decode(f"data: {CHUNK}".encode().replace("ü".encode(), b"\xfc"))
        assert isinstance(chunk, CompletionChunk)
        assert (chunk.text, chunk.error) == ("Z\ufffdrich", None)

    def test_half_a_surrogate_pair(self, decoder: Decoder) -> None:
        """A lone surrogate, which servers make by cutting an emoji in two, ends nothing."""
        chunk = decoder.decode(b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}')
        assert isinstance(chunk, CompletionChunk)
        assert (chunk.text, chunk.error) == ("\ud83d", None)


class TestChunks:
    @pytest.mark.parametrize(
        "delta",
        [
            {},
            {"role": "assistant"},
            {"role": "assistant", "content": None},
            {"content": ""},
            {"tool_calls": None},
            None,
        ],
        ids=json.dumps,
    )
    def test_deltas_without_text(self, delta: Any) -> None:
        """A first delta may hold a role, nulls or nothing, or be null: it has no text and is no error."""
        chunk = of({"choices": [{"index": 0, "delta": delta}]})
        assert (chunk.text, chunk.reasoning, list(chunk.tool_calls), chunk.error) == ("", "", [], None)

    def test_a_choice_without_delta_finish_reason_and_index(self) -> None:
        """What a choice lacks is as if it were null; it is choice 0."""
        [choice] = of({"choices": [{}]}).choices
        assert (choice.index, choice.delta.text, choice.finish_reason) == (0, "", None)

    @pytest.mark.parametrize("data", [{}, {"choices": []}, {"choices": None}, {"p": "abc"}], ids=json.dumps)
    def test_no_choices(self, data: dict[str, Any]) -> None:
        """An object without choices is a chunk that adds nothing."""
        chunk = of(data)
        assert (list(chunk.choices), chunk.usage, chunk.error, chunk.raw) == ([], None, None, data)

    def test_unknown_fields_stay_reachable(self) -> None:
        """What is not known here, on whatever level, lies in `raw`."""
        data = {"p": "ab", "timings": {"n": 1}, "choices": [{"delta": {"x": 1}, "stop_reason": 2, "logprobs": None}]}
        chunk = of(data)
        assert chunk.raw == data
        assert chunk.choices[0].raw == data["choices"][0]  # type: ignore[index]
        assert chunk.choices[0].delta.raw == {"x": 1}

    @pytest.mark.parametrize(
        "reason", ["stop", "length", "model_length", "tool_calls", "content_filter", "abort", "wow"]
    )
    def test_finish_reasons(self, reason: str) -> None:
        """A finish reason is passed on as it is, an unknown word too."""
        chunk = of({"choices": [{"delta": {}, "finish_reason": reason}]})
        assert (chunk.choices[0].finish_reason, chunk.error) == (reason, None)

    @pytest.mark.parametrize(
        "data",
        [
            {"choices": 5},
            {"choices": {"index": 0}},
            {"choices": [None]},
            {"choices": [{"delta": "text"}]},
            {"choices": [{"delta": {"content": 5}}]},
            {"choices": [{"delta": {"tool_calls": "f"}}]},
            {"choices": [{"index": "first"}]},
            {"usage": 17},
        ],
        ids=json.dumps,
    )
    def test_a_chunk_of_the_wrong_shape(self, data: dict[str, Any]) -> None:
        """A chunk whose parts are of impossible types is an error, and what came stays reachable."""
        chunk = of(data)
        assert isinstance(chunk.error, StreamDecodeError)
        assert chunk.raw == data


class TestUsage:
    COUNTS = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}  # noqa: RUF012 - nobody changes it

    @pytest.mark.parametrize(
        "data",
        [
            {"usage": COUNTS},
            {"x_groq": {"id": "r", "usage": COUNTS}},
            {"x_groq": {"id": "r", "usage": COUNTS}, "usage": None},
            {"x_groq": {"id": "r"}, "usage": COUNTS},
            {"x_groq": None, "usage": COUNTS},
            {"usage": {**COUNTS, "prompt_tokens_details": None}},
        ],
        ids=["usage", "x_groq", "x_groq and null", "beside x_groq", "null x_groq", "details"],
    )
    def test_where_it_may_be(self, data: dict[str, Any]) -> None:
        """Usage is found under its own name and under Groq's."""
        usage = of({"choices": [], **data}).usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)

    @pytest.mark.parametrize("data", [{}, {"usage": None}, {"usage": {}}, {"x_groq": {"id": "r"}}], ids=json.dumps)
    def test_none(self, data: dict[str, Any]) -> None:
        """No usage, null and an empty object are None."""
        assert of({"choices": [], **data}).usage is None

    def test_details_are_kept(self) -> None:
        """What a server adds to the three counts stays reachable."""
        usage = of({"usage": {**self.COUNTS, "queue_time": 0.1}}).usage
        assert usage is not None
        assert usage.extra == {"queue_time": 0.1}


class TestReasoning:
    @pytest.mark.parametrize(
        "delta",
        [
            {"reasoning_content": "hm"},
            {"reasoning": "hm"},
            {"reasoning_content": None, "reasoning": "hm"},
            {"reasoning_content": "hm", "reasoning": "hm"},
            {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": [{"type": "thinking", "thinking": "hm"}]},
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]}
                ]
            },
        ],
        ids=["llama.cpp", "Groq", "null and text", "both", "OpenRouter", "Mistral", "bare text", "two parts"],
    )
    def test_where_it_may_be(self, delta: dict[str, Any]) -> None:
        """Thoughts are found wherever a server puts them, are said once, and are no text."""
        chunk = of_delta(**delta)
        assert (chunk.reasoning, chunk.text, chunk.error) == ("hm", "", None)

    def test_thoughts_and_text_in_one_delta(self) -> None:
        """A list of content parts gives its thoughts and its text apart, and keeps every part."""
        parts = [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True},
            {"type": "text", "text": "so"},
            {"type": "reference", "reference_ids": [1]},
            {"type": "hologram", "depth": 3},
        ]
        chunk = of_delta(content=parts)
        assert (chunk.reasoning, chunk.text, chunk.error) == ("hm", "so", None)
        content = chunk.delta_message().content
        assert isinstance(content, list)
        assert [type(part) for part in content] == [ThinkChunk, TextChunk, ReferenceChunk, UnknownChunk]
        assert [part.to_dict() for part in content] == parts

    def test_think_tags_stay_text(self) -> None:
        """Thoughts in ``<think>`` tags are text, as the server sent them."""
        chunk = of_delta(content="<think>hm</think>so")
        assert (chunk.reasoning, chunk.text) == ("", "<think>hm</think>so")


SHAPES: list[Any] = [
    pytest.param('data: {"error":{"message":"no room","type":"server_error","code":500}}', id="OpenAI"),
    pytest.param('data: {"error":{"message":"no room","code":"overloaded"},"choices":[]}', id="beside choices"),
    pytest.param('data: {"error":"no room"}', id="text"),
    pytest.param('data: {"error":"ServerError","message":"no room"}', id="text beside message"),
    pytest.param('data: {"object":"error","message":"no room","type":"x","param":null,"code":3}', id="older vLLM"),
    pytest.param('data: {"object":"error","message":{"detail":[{"type":"x","loc":[],"msg":"no room"}]}}', id="Mistral"),
    pytest.param('data: {"detail":"no room"}', id="FastAPI"),
    pytest.param('data: {"detail":[{"type":"x","loc":["body"],"msg":"no room"}]}', id="FastAPI list"),
    pytest.param('data: {"message":"no room","type":"x"}', id="message and type"),
    pytest.param('data: {"message":"no room","code":500}', id="message and code"),
    pytest.param('data: {"x_groq":{"id":"r","error":"no room"},"choices":[]}', id="x_groq"),
    pytest.param('data: {"choices":[{"delta":{"content":""}}],"x_groq":{"error":"no room"}}', id="x_groq on chunk"),
    pytest.param('event: error\ndata: {"error":{"message":"no room"}}', id="Groq"),
    pytest.param('event: error\ndata: {"message":"no room"}', id="event says so"),
    pytest.param('error: {"code":500,"message":"no room","type":"server_error"}', id="error field"),
    pytest.param('{"error":{"message":"no room"}}', id="no data field"),
    pytest.param('{\n  "error": {\n    "message": "no room"\n  }\n}', id="pretty"),
    pytest.param('data: {\n  "error": {\n    "message": "no room"\n  }\n}', id="pretty after data"),
    pytest.param('data: [{"error":{"code":503,"message":"no room","status":"UNAVAILABLE"}}]', id="in a list"),
    pytest.param('[{\n  "error": {\n    "message": "no room"\n  }\n}]', id="in a pretty list"),
    pytest.param(
        'data: {"choices":[{"delta":{},"finish_reason":"error"}],"error":{"message":"no room"}}', id="OpenRouter"
    ),
]


class TestErrors:
    @pytest.mark.parametrize("block", SHAPES)
    def test_every_shape(self, decoder: Decoder, block: str) -> None:
        """An error is one, in whatever shape a server reports it, and says what the server said."""
        chunk = decoder.decode(block.encode())
        assert isinstance(chunk, CompletionChunk)
        assert isinstance(chunk.error, StreamAPIError)
        assert "no room" in str(chunk.error)
        assert chunk.error.body is not None
        assert not chunk.is_last_chunk

    @pytest.mark.parametrize("code", [500, "overloaded", None], ids=repr)
    def test_the_facts(self, code: int | str | None) -> None:
        """Message, type, code and param of an error are the server's, a code as text or as a number."""
        told = {"message": "no room", "type": "server_error", "code": code, "param": "model"}
        error = of({"error": told}).error
        assert isinstance(error, StreamAPIError)
        assert (error.message, error.type, error.code, error.param) == ("no room", "server_error", code, "model")
        assert (str(error), error.body) == ("server_error: no room", {"error": told})

    def test_the_finish_reason_error(self) -> None:
        """The finish reason ``error`` is an error on a chunk that keeps what else was in it."""
        data = {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "error"}]}
        chunk = of(data)
        assert isinstance(chunk.error, StreamAPIError)
        assert (chunk.id, chunk.text, chunk.error.body) == ("c", "x", data)

    @pytest.mark.parametrize(
        "data",
        [
            {"error": None, "choices": []},
            {"x_groq": {"id": "r", "error": None}, "choices": []},
            {"object": "chat.completion.chunk", "message": "hello", "choices": []},
            {"detail": "high", "choices": []},
            {"message": "hello"},
        ],
        ids=json.dumps,
    )
    def test_what_is_none(self, data: dict[str, Any]) -> None:
        """Null errors, and words that also occur in errors, are no error."""
        assert of(data).error is None

    def test_words_alone(self) -> None:
        """An error event whose data is no JSON is an error with the server's words in it."""
        error = decoded("event: error\ndata: no room").error
        assert isinstance(error, (StreamAPIError, StreamDecodeError))
        assert "no room" in str(error)


class TestHelpers:
    def test_chunk_of_an_event_of_type_error(self) -> None:
        """An object in an event of type ``error`` is an error, whatever it holds."""
        assert isinstance(chunk_of({"status": "bad"}, "error").error, StreamAPIError)
        assert chunk_of({"status": "bad"}).error is None

    def test_failed(self) -> None:
        """A failed chunk holds its error and no more."""
        error = StreamDecodeError("x")
        assert failed(error) == CompletionChunk(error=error)
        assert failed(error, {"a": 1}).raw == {"a": 1}


BLOCKS = [
    CHUNK,
    '{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    '{"choices":[{"index":0,"delta":{"content":null,"reasoning":"Hm"},"finish_reason":null}]}',
    '{"choices":[{"index":0,"delta":{"content":"end"},"finish_reason":"stop"}]}',
    '{"choices":[{"index":1,"delta":{"content":"other"}}]}',
    '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}',
    '{"error":{"message":"no"}}',
    "[DONE]",
    "[1, 2]",
    "5",
    "",
    "{}, {}",
    f"{CHUNK}, {CHUNK}",
    '{"choices":[{"index":0,"delta":{"content":"x","y":[{}',
    "{}]}}]}",
    '{"choices": [{"index": 0,\ndata: "delta": {"content": "two lines"}}]}',
    f"{CHUNK}\nid: 5",
]


class TestPieces:
    """Many events in one step give what each of them gives alone."""

    @given(
        st.lists(st.sampled_from(BLOCKS).map("data: {}".format) | st.sampled_from([": ping", "data:" + CHUNK, "x"])),
        st.integers(0, 3),
    )
    def test_are_what_they_would_be(self, blocks: list[str], plain: int) -> None:
        """The chunks at the front are those of their blocks, and the other blocks are all there."""
        given_blocks = [block.encode() for block in ["data: " + CHUNK] * plain + blocks]
        chunks, rest = Decoder().pieces(b"".join(block + b"\n\n" for block in given_blocks))
        assert chunks == [Decoder().decode(block) for block in given_blocks[: len(chunks)]]
        assert rest == given_blocks[len(chunks) :]

    def test_all(self) -> None:
        """Nothing is left over of plain pieces, with and without a blank after the colon."""
        for prefix in ("data: ", "data:"):
            chunks, rest = Decoder().pieces(f"{prefix}{CHUNK}\n\n".encode() * 3)
            assert ([chunk.text for chunk in chunks], rest) == (["Zürich"] * 3, [])

    def test_halves_are_not_joined(self) -> None:
        """Half an object stays half an object, though the next event begins with its other half."""
        first, second = BLOCKS[13], BLOCKS[14]
        blocks = [f"data: {block}".encode() for block in (first, second, f"{CHUNK}, {CHUNK}")]
        assert Decoder().pieces(b"".join(block + b"\n\n" for block in blocks)) == ([], blocks)

"""Promise 12: nothing unknown is fatal.

What the library does not know stays reachable, in answers and in requests; options that are not set are not sent, and
those that are set to 0, False or "" are.
"""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import (
    AssistantMessage,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChunk,
    FinishReason,
    Function,
    SystemMessage,
    TextChunk,
    ThinkChunk,
    Tool,
    ToolCall,
    UnknownChunk,
    UserMessage,
)
from chanstream.testing import Reply
from tests.conftest import REQUEST, Link

pytestmark = pytest.mark.usefixtures("nothing_left")


def chunk_with(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a chunk's JSON object with one choice."""
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}


FINISH = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def answered(link: Link, *events: dict[str, Any] | str | bytes) -> list[CompletionChunk]:
    """Return the chunks of a stream with these events, a finish chunk and a full stop."""
    chunks = list(link.stream(Reply(chunks=[*events, FINISH, "[DONE]"])))
    assert chunks[-1].is_last_chunk
    return chunks


def sent(link: Link, request: ChatCompletionRequest, *, streaming: bool = True, dialect: str = "openai") -> Any:
    """Return the JSON object that the server gets for a request."""
    server = link.serve("one")
    client = link.client(server, dialect=dialect)
    if streaming:
        client.chat_completion_stream(request).collect()
    else:
        client.chat_completion(request)
    return server.requests[0].json


class TestAnswers:
    def test_unknown_fields(self, link: Link) -> None:
        """Fields that nobody has heard of disturb nothing, on any level, and are in ``raw`` as they came."""
        event = {
            "id": "c",
            "p": "abc",
            "obfuscation": {"x": [1, None, "é"]},
            "x_groq": {"id": "req", "seed": 7},
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": "hi", "mood": "good", "annotations": []},
                    "finish_reason": None,
                    "stop_reason": None,
                    "logprobs": {"content": [{"token": "hi", "logprob": -0.25}]},
                }
            ],
            "timings": {"predicted_ms": 1.5},
        }
        first, _ = answered(link, event)
        assert first.text == "hi"
        assert first.raw == event
        assert first.choices[0].raw == event["choices"][0]  # type: ignore[index]
        assert first.delta_message().raw["mood"] == "good"
        assert first.to_dict() == event

    def test_fields_of_usage(self, plain: Link) -> None:
        """Details of usage that the library does not know come along."""
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.5, "details": {"cached": 1}}
        *_, last = plain.stream(Reply("one", usage=usage))
        assert last.usage is not None
        assert last.usage.total_tokens == 3
        assert last.usage.to_dict() == usage

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "hologram", "rays": [1, 2]},
            {"type": "output_text_v7", "text": "hello"},
            {"type": None, "x": 1},
            {"type": 7},
            {"x": 1},
            {},
        ],
        ids=lambda part: str(part.get("type", "no type")),
    )
    def test_unknown_content(self, plain: Link, part: dict[str, Any]) -> None:
        """A content chunk of an unknown kind, or none, becomes an UnknownChunk that loses nothing."""
        first, _ = answered(plain, chunk_with({"content": [{"type": "text", "text": "see: "}, part]}))
        content = first.delta_message().content
        assert isinstance(content, list)
        assert content[0] == TextChunk("see: ")
        assert isinstance(content[1], UnknownChunk)
        assert content[1].to_dict() == part
        assert first.text == "see: "

    def test_unknown_content_is_collected(self, plain: Link) -> None:
        """collect() keeps a content chunk of an unknown kind in its place."""
        ray = {"type": "hologram", "rays": 1}
        events: list[dict[str, Any] | str] = [
            chunk_with({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, ray]}]}),
            chunk_with({"content": "a"}),
            chunk_with({"content": [ray]}),
            chunk_with({"content": "b"}),
            FINISH,
            "[DONE]",
        ]
        answer = plain.stream(Reply(chunks=events)).collect()
        message = answer.assistant_message()
        assert message is not None
        unknown = UnknownChunk("hologram", extra={"rays": 1})
        assert message.content == [ThinkChunk([TextChunk("hm"), unknown]), TextChunk("a"), unknown, TextChunk("b")]
        assert answer.text == "ab"

    @pytest.mark.parametrize("word", ["abort", "eos_token", "STOP", "error_of_tomorrow"])
    def test_unknown_finish_reason(self, plain: Link, word: str) -> None:
        """A finish reason of another vocabulary ends the stream and is handed on."""
        event = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": word}]}
        *_, last = plain.stream(Reply(chunks=[event, "[DONE]"]))
        assert last.is_last_chunk
        assert last.choices[0].finish_reason == word
        assert word not in list(FinishReason)

    def test_unknown_role_and_tool(self, link: Link) -> None:
        """A role and a kind of tool call that nobody has heard of come through."""
        call = {"id": "t", "index": 0, "type": "spell", "function": {"name": "f", "arguments": "{}", "x": 1}, "y": 2}
        first, _ = answered(link, chunk_with({"role": "wizard", "tool_calls": [call]}))
        assert first.delta_message().role == "wizard"
        assert first.tool_calls[0].type == "spell"
        assert first.tool_calls[0].to_dict() == call

    @pytest.mark.parametrize(
        "event",
        [
            b"event: ping\ndata: {}\n\n",
            b'event: ping\ndata: {"type": "ping"}\n\n',
            b"event: ping\ndata: 2026-01-01\n\n",
            b": comment\n\n",
            b"id: 7\nretry: 10\n\n",
            b"colour: blue\n\n",
            b"\n\n",
            b"data\n\n",
        ],
    )
    def test_unknown_events(self, plain: Link, event: bytes) -> None:
        """Events and fields of an event stream that chat does not know do not become errors or text."""
        chunks = answered(plain, event, chunk_with({"content": "hi"}), event)
        assert "".join(chunk.text for chunk in chunks) == "hi"
        assert [chunk.error for chunk in chunks] == [None] * len(chunks)

    @pytest.mark.parametrize("missing", ["id", "object", "created", "model", "index", "delta", "finish_reason"])
    @pytest.mark.parametrize("how", ["left out", "null"])
    def test_missing_fields(self, plain: Link, missing: str, how: str) -> None:
        """Fields that are left out, or null, are no errors."""
        choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
        event: dict[str, Any] = {"id": "c", "object": "o", "created": 1, "model": "m", "choices": [choice]}
        holder = choice if missing in choice else event
        if how == "null":
            holder[missing] = None
        else:
            del holder[missing]
        first, last = answered(plain, event)
        assert first.text == ("" if missing == "delta" else "hi")
        assert last.choices[0].finish_reason == "stop"

    def test_of_a_whole_answer(self, link: Link) -> None:
        """An answer without streaming keeps what is unknown, in its place and in ``raw``."""
        message = {"role": "assistant", "content": [{"type": "hologram", "rays": 1}], "refusal": None, "mood": "good"}
        body = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "abort", "x": 1}], "y": [2]}
        answer = link.client(link.serve(Reply.json(body))).chat_completion(REQUEST)
        assert isinstance(answer, ChatCompletionResponse)
        assert answer.raw == body
        assert answer.extra == {"y": [2]}
        assert answer.choices[0].extra == {"x": 1}
        assert answer.choices[0].message.content == [UnknownChunk("hologram", extra={"rays": 1})]
        assert answer.choices[0].message.to_dict() == message


OPTIONS: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 1.5],
    "top_p": [0, 0.5],
    "max_tokens": [0, 1],
    "max_completion_tokens": [0],
    "n": [1],
    "stop": ["", [], "end", ["a", ""]],
    "frequency_penalty": [0, -2.0],
    "presence_penalty": [0.0],
    "parallel_tool_calls": [False, True],
    "reasoning_effort": ["", "low"],
    "metadata": [{}, {"a": ""}],
    "prediction": [{}],
    "logprobs": [False],
    "top_logprobs": [0],
    "user": ["", "me"],
    "tools": [[]],
    "tool_choice": ["", "none"],
    "stream_options": [{}, {"include_usage": False}],
}


class TestRequests:
    @pytest.mark.parametrize("dialect", ["mistral", "groq", "openai"])
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_unset_options_are_not_sent(self, plain: Link, dialect: str, streaming: bool) -> None:
        """A plain request has the model, the messages, and what makes it a stream; nothing else."""
        body = sent(plain, ChatCompletionRequest("m", [UserMessage("hi")]), streaming=streaming, dialect=dialect)
        expected: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        if streaming:
            expected["stream"] = True
            if dialect != "mistral":
                expected["stream_options"] = {"include_usage": True}
        assert body == expected

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values], ids=repr
    )
    def test_set_options_are_sent(self, plain: Link, name: str, value: Any) -> None:
        """An option that is set is sent as it is, 0, False, "" and empty ones among them."""
        body = sent(plain, ChatCompletionRequest("m", [UserMessage("hi")], **{name: value}))
        assert name in body
        assert body[name] == value
        assert type(body[name]) is type(value)

    @pytest.mark.parametrize(
        ("dialect", "name", "value", "theirs"),
        [
            ("mistral", "random_seed", 0, "random_seed"),
            ("openai", "random_seed", 0, "seed"),
            ("groq", "random_seed", 0, "seed"),
            ("mistral", "safe_prompt", False, "safe_prompt"),
            ("mistral", "prompt_mode", "", "prompt_mode"),
        ],
    )
    def test_options_of_a_dialect(self, plain: Link, dialect: str, name: str, value: Any, theirs: str) -> None:
        """So are the options that have a name of their own in a dialect."""
        body = sent(plain, ChatCompletionRequest("m", [UserMessage("hi")], **{name: value}), dialect=dialect)
        assert body[theirs] == value
        assert type(body[theirs]) is type(value)
        assert theirs == name or name not in body

    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_unknown_options_are_sent(self, link: Link, streaming: bool) -> None:
        """What the library does not know goes out as it is, None among it."""
        extra = {"top_k": 0, "guided_json": {"type": "object"}, "min_p": None, "ignore_eos": False}
        body = sent(link, ChatCompletionRequest("m", [UserMessage("hi")], extra=extra), streaming=streaming)
        assert {name: body[name] for name in extra} == extra

    def test_empty_values_of_messages_are_sent(self, plain: Link) -> None:
        """Empty texts and False in messages and tools are sent, and what is not set is left out."""
        messages: list[Any] = [
            SystemMessage(""),
            UserMessage([TextChunk(""), UnknownChunk("hologram", extra={"rays": 0})], name=""),
            AssistantMessage("", prefix=False),
            AssistantMessage(tool_calls=[ToolCall("")]),
        ]
        tool = Tool(Function("f", "", {}, strict=False))
        body = sent(plain, ChatCompletionRequest("m", messages, tools=[tool]))
        assert body["messages"] == [
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "hologram", "rays": 0}], "name": ""},
            {"role": "assistant", "content": "", "prefix": False},
            {"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "", "arguments": ""}}]},
        ]
        function = {"name": "f", "description": "", "parameters": {}, "strict": False}
        assert body["tools"] == [{"type": "function", "function": function}]

    def test_messages_with_unknown_fields(self, plain: Link) -> None:
        """A message or a request made of a JSON object goes out as it came in."""
        messages = [
            {"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}},
            {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm"},
        ]
        data = {"model": "m", "messages": messages, "temperature": 0, "top_k": None}
        body = sent(plain, ChatCompletionRequest.from_dict(data), streaming=False)
        assert body == data

    def test_an_answer_can_be_sent_back(self, plain: Link) -> None:
        """The message of an answer, appended to the conversation, carries what the library does not know of it."""
        message = {"role": "assistant", "content": "hi", "reasoning_content": "hm", "mood": "good"}
        server = plain.serve(Reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
        client = plain.client(server)
        said = client.chat_completion(REQUEST).assistant_message()
        assert said is not None
        client.chat_completion(ChatCompletionRequest("m", [UserMessage("hi"), said, UserMessage("and?")]))
        assert server.requests[1].json["messages"][1] == message

"""Chunks of whatever dialect, in the words of OpenAI's API: what browsers' readers and official packages take in.

What a server of that form said goes on as it came, fields that nobody knows among it. What is changed is what such a
reader would misread: a content in parts (Mistral's thinking models), fragments of tool calls that are numbered or named
in another way, usage in another place (Groq's ``x_groq``), what the client itself took out of the text or folded into
the last chunk. The form is that of https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

from ..models.chat import ChatCompletionResponse, Choice
from ..models.chunk import CompletionChunk, DeltaMessage, StreamChoice
from ..models.codec import dumps, plain
from ..models.content import TextChunk, ThinkChunk
from ..models.events import ToolCallDelta
from ..models.messages import AssistantMessage, reasoning_in, reasoning_key_in
from ..wire.assembly import Assembler

Usage: TypeAlias = Literal["last_chunk", "own_chunk"]
"""Where a stream's usage goes: on the last chunk, or in one of its own after it, without choices."""

_THOUGHTS = "reasoning_content"
"""Where thoughts go that a server did not send in a field of their own: the name that most readers know."""

_LINE_ENDS = [(end.encode(), b"\\u%04x" % ord(end)) for end in "\u0085\u2028\u2029"]
"""Characters that are no line ends in an event stream, but taken for some by readers that split it as Python does."""


class Wording:
    """Words the chunks of one stream.

    Args:
        usage: Where the usage goes.

    Thread safety: none; one thread words.
    """

    def __init__(self, usage: Usage = "last_chunk") -> None:
        self._usage = usage
        self._calls = Assembler()
        self._named: dict[tuple[int, int], tuple[bool, str]] = {}  # choice and place: whether the id, which name

    def objects(self, chunk: CompletionChunk) -> Iterator[Mapping[str, Any]]:
        """Yield the JSON objects that say what a chunk does: one, or two where the usage has its own."""
        if chunk.piece is not None and chunk.raw.get("object") == "chat.completion.chunk":
            yield chunk.raw  # nearly every chunk: text, in the form that is wanted
            return
        data = self._worded(chunk)
        usage = data.get("usage")
        if chunk.usage is not None and (chunk.is_last_chunk or not usage):  # the last chunk has the final counts
            usage = chunk.usage.to_dict()
        if chunk.is_last_chunk and usage and self._usage == "own_chunk":
            yield {**data, **({"usage": None} if "usage" in data else {})}
            yield {**data, "choices": [], "usage": usage}
        else:
            yield {**data, "usage": usage} if usage else data

    def _worded(self, chunk: CompletionChunk) -> dict[str, Any]:
        has_calls = any(choice.delta.tool_calls for choice in chunk.choices)
        calls = iter(self._calls.add(chunk) if has_calls else ())
        envelope = {"id": chunk.id, "object": "chat.completion.chunk", "created": chunk.created, "model": chunk.model}
        return {**chunk.raw, **envelope, "choices": [self._choice(choice, calls) for choice in chunk.choices]}

    def _choice(self, choice: StreamChoice, calls: Iterator[ToolCallDelta]) -> dict[str, Any]:
        own = {"index": choice.index, "delta": self._delta(choice.delta, calls), "finish_reason": choice.finish_reason}
        return {**{name: value for name, value in choice.raw.items() if name != "message"}, **own}

    def _delta(self, delta: DeltaMessage, calls: Iterator[ToolCallDelta]) -> dict[str, Any]:
        words = _with_text(delta.raw, delta)
        if delta.tool_calls:
            words["tool_calls"] = [self._call(call.to_dict(), next(calls)) for call in delta.tool_calls]
        return words

    def _call(self, fragment: dict[str, Any], told: ToolCallDelta) -> dict[str, Any]:
        """Return a fragment as OpenAI has it: numbered by its place, id and name once, the arguments as text."""
        place = (told.choice, told.index)
        has_id, name = self._named.get(place, (False, ""))
        self._named[place] = (bool(told.id), told.name)
        function = {**(fragment.get("function") or {}), "name": told.name.removeprefix(name)}
        function["arguments"] = told.arguments_delta
        words = {**fragment, "index": told.index, "id": told.id, "function": function}
        if has_id or not told.id:
            del words["id"]
        if not function["name"]:
            del function["name"]
        return words


def whole(answer: ChatCompletionResponse) -> dict[str, Any]:
    """Return the JSON object of a whole answer."""
    data = dict(answer.raw) or answer.to_dict()
    envelope = {"id": answer.id, "object": "chat.completion", "created": answer.created, "model": answer.model}
    raws = data.get("choices") or [{}] * len(answer.choices)
    choices = [_whole_choice(raw, choice) for raw, choice in zip(raws, answer.choices, strict=True)]
    usage = data.get("usage") or (answer.usage and answer.usage.to_dict())
    return {**data, **envelope, "choices": choices, **({"usage": usage} if usage else {})}


def _whole_choice(raw: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    message = {"role": "assistant", **_with_text(raw.get("message") or {}, choice.message)}
    message.setdefault("content", None)
    if choice.message.tool_calls:
        message["tool_calls"] = [_whole_call(plain(call)) for call in choice.message.tool_calls]
    return {**raw, "index": choice.index, "message": message, "finish_reason": choice.finish_reason}


def _whole_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {"type": "function", **call, "function": {**function, "arguments": _text(function.get("arguments") or "")}}


def _text(arguments: str | Mapping[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_text(raw: Mapping[str, Any], said: DeltaMessage | AssistantMessage) -> dict[str, Any]:
    """Return a delta's or a message's JSON object with its content as one text, and its thoughts beside it."""
    words = dict(raw)
    content, reasoning = said.content, said.reasoning
    if content is not None:
        words["content"] = said.text
    if reasoning != reasoning_in(raw):
        words[reasoning_key_in(raw) or _THOUGHTS] = reasoning
    if isinstance(content, list) and any(not isinstance(part, (TextChunk, ThinkChunk)) for part in content):
        words["content_parts"] = plain(content)  # references, say, which would be lost
    return words


def encoded(data: Mapping[str, Any]) -> bytes:
    """Return a JSON object on one line, whatever reader splits lines."""
    try:
        line = dumps(data)
    except ValueError:  # a number that is not finite, which servers send and browsers do not read
        line = dumps(json.loads(json.dumps(data), parse_constant=lambda _: None))
    for end, escape in _LINE_ENDS:
        if end in line:
            line = line.replace(end, escape)
    return line

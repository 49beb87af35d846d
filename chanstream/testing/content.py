"""What a reply says to one request: the bytes of its events, before compression and framing.

Pure functions: a reply and a request in, bytes out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from .checks import Text
from .reply import Reply
from .request import RecordedRequest
from .wording import encode_json

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

# A word with the blanks before it, or the blanks at the end: joined, they give the text back.
_TOKEN = re.compile(r"\s*\S+|\s+")
_LINE_END = re.compile(r"\r\n|\n|\r")


@attrs.frozen
class Content:
    """What is to be sent as the body.

    Args:
        content_type: What the head calls it.
        events: The events, made when asked for; each is to be sent as soon as its time has come.
        pingable: Whether a comment may come between them.
    """

    content_type: str
    events: Iterable[bytes]
    pingable: bool = True


def content_of(reply: Reply, request: RecordedRequest, serial: int) -> Content:
    """Returns what `reply` says to `request`, for all kinds of replies but raw ones.

    Args:
        reply: The scripted reply.
        request: Decides between an event stream and a JSON object, where the reply can be both.
        serial: Makes the answer's id differ from the others'.
    """
    if reply.body is not None:
        looks_like_json = reply.body.lstrip()[:1] in (b"{", b"[")
        return Content(JSON if looks_like_json else EVENT_STREAM, pieces(reply.body, reply.split))
    if reply.chunks is not None:
        return Content(EVENT_STREAM, (event(chunk, reply.newline) for chunk in reply.chunks))
    completion = _Completion(reply, request, serial)
    if request.streaming:
        return Content(EVENT_STREAM, completion.events())
    return Content(JSON, [encode_json(completion.whole())], pingable=False)


def pieces(data: bytes, size: int | None) -> list[bytes]:
    """Returns `data` in pieces of `size` bytes, or in one if `size` is None; no piece if there are no data."""
    step = size or len(data) or 1
    return [data[start : start + step] for start in range(0, len(data), step)]


def tokens(text: Text) -> Iterator[str]:
    """Yields the tokens of a text, word-like if it is a str; joined, they give it back."""
    return (match[0] for match in _TOKEN.finditer(text)) if isinstance(text, str) else iter(text)


def event(chunk: Mapping[str, Any] | str | bytes, newline: str) -> bytes:
    """Returns one event on the wire; bytes are one already."""
    if isinstance(chunk, bytes):
        return chunk
    data = [chunk] if isinstance(chunk, Mapping) else _LINE_END.split(chunk)
    ending = newline.encode()
    return b"".join(b"data: " + _data(line) + ending for line in data) + ending


def _data(line: Mapping[str, Any] | str) -> bytes:
    return line.encode() if isinstance(line, str) else encode_json(dict(line))


def _prompt_tokens(request: RecordedRequest) -> int:
    """Counts the words of all texts in the messages, whatever shape they have: only tests rely on the number."""
    messages = request.json.get("messages") if isinstance(request.json, dict) else None
    return sum(1 for text in _texts(messages) for _ in tokens(text))


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, dict):
        for key in ("content", "text"):
            value = node.get(key)
            yield from [value] if isinstance(value, str) else _texts(value)


class _Completion:
    """A text reply as an answer to one request, in both forms that the protocol knows."""

    def __init__(self, reply: Reply, request: RecordedRequest, serial: int) -> None:
        self._reply = reply
        self._request = request
        self._id, self._created = f"chatcmpl-{serial}", int(time.time())

    def events(self) -> Iterator[bytes]:
        """Yields the event stream."""
        envelope = self._envelope("chat.completion.chunk")
        for chunk in self._chunks():
            yield event({**envelope, **chunk}, self._reply.newline)
        if self._reply.done:
            yield event("[DONE]", self._reply.newline)

    def whole(self) -> dict[str, Any]:
        """Returns the JSON object that says the same."""
        choice = {"index": 0, "message": self._message(), "finish_reason": self._reply.finish_reason}
        return {**self._envelope("chat.completion"), "choices": [choice], **self._usage(sum(1 for _ in self._deltas()))}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._reply.model}

    def _chunks(self) -> Iterator[dict[str, Any]]:
        role = {"role": "assistant"}
        count = 0
        for delta in self._deltas():
            yield {"choices": [_choice({**role, **delta})]}
            role = {}
            count += 1
        usage = self._usage(count)
        if self._reply.finish_reason is not None:
            finish = _choice({**role, "content": ""}, self._reply.finish_reason)
            yield {"choices": [finish], **({} if self._reply.usage_chunk else usage)}
        if self._reply.usage_chunk and usage:
            yield {"choices": [], **usage}

    def _deltas(self) -> Iterator[dict[str, Any]]:
        for token in tokens(self._reply.reasoning):
            yield {"reasoning_content": token}
        for token in tokens(self._reply.text):
            yield {"content": token}
        for index, call in enumerate(self._reply.tool_calls):
            yield {"tool_calls": [{"index": index, **call}]}

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._reply.text)}
        if self._reply.reasoning:
            message["reasoning_content"] = "".join(self._reply.reasoning)
        if self._reply.tool_calls:
            message["tool_calls"] = [dict(call) for call in self._reply.tool_calls]
        return message

    def _usage(self, completion: int) -> dict[str, Any]:
        if isinstance(self._reply.usage, Mapping):
            return {"usage": dict(self._reply.usage)}
        if not self._reply.usage:
            return {}
        prompt = _prompt_tokens(self._request)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {"usage": counts}


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}

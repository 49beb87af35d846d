"""What is kept of an answer, and how it is read again.

An entry is lines of JSON. The first says what it is; then comes one for each chunk of a stream, or one for a whole
answer. The first has a digest of the others, so that whatever was damaged, cut or written by others is told from what
can be replayed before the replay begins; the chunks themselves are decoded one by one, when it is their turn.

No key, no cookie and no quota is in it: of the head only what says something about the answer is kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from ..models.chat import UsageInfo
from ..models.chunk import CompletionChunk, DeltaMessage, StreamChoice, piece_of
from ..models.codec import best_loads, dumps
from ..transport.head import ResponseHead, head_of

FORMAT = 1
"""The version of the format; entries with another one are not read."""

Kind: TypeAlias = Literal["stream", "whole"]

MAX_LATENCY = 1e8
"""Seconds: no chunk took years to come."""

_HEADERS = ("content-type", "x-request-id", "request-id", "mistral-correlation-id", "x-groq-request-id")


@attrs.frozen
class Entry:
    """An answer as it is kept.

    Attributes:
        head: The head of a stream; a whole answer's is not kept.
        lines: The chunks, each as `line_of` writes it; or one line with the whole answer.
    """

    head: ResponseHead | None
    lines: Sequence[bytes]

    def packed(self, key: str, kind: Kind) -> bytes:
        """Return the entry as bytes."""
        rest = b"\n".join(self.lines)
        facts = {"chanstream": FORMAT, "key": key, "kind": kind, "digest": _digest(rest), "created_at": time.time()}
        if self.head is not None:
            headers = {name: self.head.headers[name] for name in _HEADERS if name in self.head.headers}
            facts |= {"status_code": self.head.status_code, "headers": headers}
        return json_line(facts) + b"\n" + rest

    @classmethod
    def unpacked(cls, data: bytes, key: str, kind: Kind) -> Entry:
        """Return the entry that bytes hold.

        Raises:
            ValueError: They hold none, or another one; the text says what is wrong.
        """
        first, _, rest = data.partition(b"\n")
        try:
            facts = best_loads()(first)
        except ValueError:
            raise ValueError("it is no entry of a cache") from None
        if not isinstance(facts, Mapping) or facts.get("chanstream") != FORMAT:
            raise ValueError(f"it is no entry in format {FORMAT}")
        if (facts.get("key"), facts.get("kind")) != (key, kind):
            raise ValueError("it is the entry of another request")
        if facts.get("digest") != _digest(rest):
            raise ValueError("it is damaged")
        lines = rest.split(b"\n")
        if kind == "whole":
            return cls(None, lines)
        if not chunk_of(lines[-1]).is_last_chunk:  # who replays it would wait for the end for ever
            raise ValueError("it has no end")
        return cls(head_of(facts["status_code"], facts["headers"]), lines)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def json_line(data: Any) -> bytes:
    """Return ``data`` as JSON without a line break."""
    try:
        return dumps(data)
    except ValueError:  # an infinite number: no JSON, but servers send it, and it is read as well
        return json.dumps(data).encode()


# -- chunks ---------------------------------------------------------------------------------------------------------

_FIELDS = ("id", "object", "created", "model", "usage", "choices")


def line_of(chunk: CompletionChunk) -> bytes:
    """Return what is kept of a chunk without an error: what came, when it came, and what the library made of it."""
    data: dict[str, Any] = {"raw": chunk.raw, "chunk_latency": chunk.chunk_latency}
    if chunk.is_last_chunk:
        data |= {"is_last_chunk": True, "total_latency": chunk.total_latency}
    if chunk.piece is None:  # usage may have been folded into it, say; a mere piece is nothing but its JSON
        like = CompletionChunk.from_dict(chunk.raw)
        changed = (name for name in _FIELDS if getattr(chunk, name) != getattr(like, name))
        data |= {name: _plain(getattr(chunk, name)) for name in changed}
    return json_line(data)


def _plain(value: Any) -> Any:
    if isinstance(value, UsageInfo):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain_choice(choice) for choice in value]
    return value


def _plain_choice(choice: StreamChoice) -> dict[str, Any]:
    delta = choice.delta
    data: dict[str, Any] = {
        "index": choice.index,
        "delta": delta.raw,
        "finish_reason": choice.finish_reason,
        "raw": choice.raw,
    }
    if delta.content != _delta(delta.raw).content:  # thoughts were parted from it
        parts = delta.content
        data["content"] = [part.to_dict() for part in parts] if isinstance(parts, (list, tuple)) else parts
    if delta.thoughts:
        data["thoughts"] = delta.thoughts
    return data


def _delta(raw: Mapping[str, Any]) -> DeltaMessage:
    return DeltaMessage.from_dict(raw) if raw else DeltaMessage()


def chunk_of(line: bytes) -> CompletionChunk:
    """Return the chunk that `line_of` wrote: equal to the one that it was, and nobody else's."""
    data = best_loads()(line)
    raw = data.pop("raw")
    chunk = (None if "choices" in data else piece_of(raw)) or CompletionChunk.from_dict(raw)
    if not 0 <= data.get("chunk_latency", 0.0) < MAX_LATENCY:  # NaN too: a replay in the recorded rhythm waits so long
        raise ValueError(f"chunk_latency: {data['chunk_latency']!r} cannot be")
    for name, value in data.items():
        setattr(chunk, name, _LOADERS[name](value) if name in _LOADERS else value)
    return chunk


def _choice(data: Mapping[str, Any]) -> StreamChoice:
    delta = _delta(data["delta"])
    if "content" in data:
        delta.content = DeltaMessage.from_dict({"content": data["content"]}).content
    delta.thoughts = data.get("thoughts", "")
    return StreamChoice(data["index"], delta, data["finish_reason"], data["raw"])


_LOADERS: Mapping[str, Any] = {
    "usage": lambda value: value and UsageInfo.from_dict(value),
    "choices": lambda values: [_choice(value) for value in values],
}

"""The chunks of a streamed answer. Built once per token, hence by hand: no generic codec on this path.

Nearly every event is a piece of text and nothing else, and nearly every consumer looks at that text alone. Such a chunk
is checked at once, but its choices, id and the like are only made of its JSON when somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from .chat import UsageInfo
from .codec import plain
from .content import Content, chunks_from, text_of, thoughts_of
from .messages import reasoning_in
from .tools import ToolCall, tool_calls_from

if TYPE_CHECKING:
    from ..errors import ChanstreamError


@attrs.define
class DeltaMessage:
    """What one chunk adds to a message.

    Attributes:
        role: Set by most servers on the first delta only.
        content: A piece of text, a list of content chunks (Mistral's thinking models), or None.
        tool_calls: Fragments of tool calls, as they came.
        raw: The delta's JSON object.
        thoughts: What was taken out of the text because it stood between tags (``think_tags``).
    """

    role: str | None = None
    content: Content | None = None
    tool_calls: Sequence[ToolCall] = ()
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    thoughts: str = ""

    @property
    def text(self) -> str:
        """The piece of text, without thoughts; "" where there is none."""
        content = self.content
        return content if isinstance(content, str) else text_of(content)

    @property
    def reasoning(self) -> str:
        """The piece of the model's thoughts; "" where there is none."""
        return (reasoning_in(self.raw) or thoughts_of(self.content)) + self.thoughts

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeltaMessage:
        """Return the delta of a JSON object.

        Raises:
            TypeError: A part is of a type that no server may send; the text names the path.
        """
        content = data.get("content")
        if content is not None and not isinstance(content, str):
            content = chunks_from(content)
        calls = data.get("tool_calls")
        return cls(data.get("role"), content, tool_calls_from(calls) if calls else (), data)

    def to_dict(self) -> dict[str, Any]:
        """Return the delta's JSON object, as it came."""
        fields = {"role": self.role, "content": plain(self.content), "tool_calls": plain(self.tool_calls) or None}
        return dict(self.raw) or {name: value for name, value in fields.items() if value is not None}


@attrs.define
class StreamChoice:
    """What one chunk adds to one of the answers.

    Attributes:
        finish_reason: Why the choice ended, equal to a `FinishReason` or another word; None while it goes on.
        raw: The choice's JSON object.
    """

    index: int = 0
    delta: DeltaMessage = attrs.field(factory=DeltaMessage)
    finish_reason: str | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StreamChoice:
        """Return the choice of a JSON object; a missing or null delta is an empty one.

        Raises:
            TypeError: A part is of a type that no server may send; the text names the path.
        """
        index = data.get("index") or 0
        if not isinstance(index, int):
            raise TypeError(f"index: expected int, got {index!r}")
        delta = data.get("delta") or data.get("message")  # a server may send the whole answer in place of a stream
        return cls(index, DeltaMessage.from_dict(delta) if delta else DeltaMessage(), data.get("finish_reason"), data)

    def to_dict(self) -> dict[str, Any]:
        """Return the choice's JSON object, as it came."""
        return dict(self.raw) or {
            "index": self.index,
            "delta": self.delta.to_dict(),
            "finish_reason": self.finish_reason,
        }


@attrs.define
class CompletionChunk:
    """One piece of a streamed answer, or the error that ends it.

    Attributes:
        id: The completion's id. object, created, model: as the server sent them.
        choices: What it adds to each answer. A last chunk always has at least one.
        usage: Token counts, where the server sent them with this chunk; on the last chunk, the final ones.
        error: What ended the stream, on the chunk that ends it; else None.
        is_last_chunk: Whether the answer is complete with this chunk.
        chunk_latency: Seconds since the previous chunk's bytes arrived; on the first chunk, since the request was
            first sent.
        total_latency: On the chunk that ends the stream, the sum of all chunk latencies in seconds; else 0.0.
        raw: The JSON object as it came; {} for a chunk that the library made.

    Thread safety: a value; the stream does not touch it any more once it has been delivered.
    """

    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    choices: Sequence[StreamChoice] = ()
    usage: UsageInfo | None = None
    error: ChanstreamError | None = None
    is_last_chunk: bool = False
    chunk_latency: float = 0.0
    total_latency: float = 0.0
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    piece: str | None = attrs.field(default=None, init=False, eq=False, repr=False)  # see piece_of

    if not TYPE_CHECKING:  # a type checker shall complain about other names

        def __getattr__(self, name: str) -> Any:
            """Make what `piece_of` left out, now that somebody looks at it."""
            if name not in _LEFT_OUT:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            whole = CompletionChunk.from_dict(self.raw)
            for left_out in _LEFT_OUT:
                try:
                    object.__getattribute__(self, left_out)
                except AttributeError:
                    setattr(self, left_out, getattr(whole, left_out))
            self.piece = None  # the choices are in the caller's hands, who may change them
            return getattr(self, name)

    def delta_message(self) -> DeltaMessage:
        """Return what the chunk adds to the first answer in it; an empty delta where it adds nothing."""
        return self.choices[0].delta if self.choices else DeltaMessage()

    @property
    def text(self) -> str:
        """The piece of text for the first answer in it, without thoughts; "" where there is none."""
        if self.piece is not None:
            return self.piece
        return self.choices[0].delta.text if self.choices else ""

    @property
    def reasoning(self) -> str:
        """The piece of the model's thoughts; "" where there is none."""
        if self.piece is not None:
            return reasoning_in(self.raw["choices"][0]["delta"])
        return self.choices[0].delta.reasoning if self.choices else ""

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """The fragments of tool calls for the first answer in it."""
        return self.choices[0].delta.tool_calls if self.choices else ()

    def raise_for_error(self) -> None:
        """Raise the chunk's error, if it is one that ends the stream with an error."""
        if self.error is not None:
            raise self.error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompletionChunk:
        """Return the chunk of a JSON object; ``x_groq.usage`` counts as usage.

        Raises:
            TypeError: A part is of a type that no server may send; the text names the path.
        """
        choices = data.get("choices")
        usage = data.get("usage") or (data["x_groq"] or {}).get("usage") if "x_groq" in data else data.get("usage")
        return cls(
            data.get("id") or "",
            data.get("object") or "",
            data.get("created") or 0,
            data.get("model") or "",
            _choices(choices) if choices else (),
            UsageInfo.from_dict(usage) if usage else None,
            raw=data,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the chunk's JSON object: as it came, with the usage that was folded into a last chunk."""
        data = dict(self.raw) or {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": [choice.to_dict() for choice in self.choices],
        }
        if self.usage is not None and (self.is_last_chunk or not data.get("usage")):
            data["usage"] = self.usage.to_dict()  # a last one has the final counts, not those of its event
        return data


_LEFT_OUT = ("id", "object", "created", "model", "choices")
_new_chunk = CompletionChunk.__new__


def piece_of(data: Any) -> CompletionChunk | None:
    """Return the chunk of an event that adds to the first choice's text or thoughts and does nothing else, else None.

    It is equal to what `CompletionChunk.from_dict` makes of it, which would raise nothing either.
    """
    try:
        (choice,) = data["choices"]
        delta = choice["delta"]
        text = delta.get("content")
        if text is None:
            text = ""
        if (
            text.__class__ is not str
            or choice["index"].__class__ is not int
            or choice["index"]
            or choice.get("finish_reason")
            or delta.get("tool_calls")
            or data.get("usage")
            or data.get("error")
            or data.get("object") == "error"
            or "x_groq" in data
        ):
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    chunk = _new_chunk(CompletionChunk)
    chunk.usage = chunk.error = None
    chunk.is_last_chunk = False
    chunk.chunk_latency = chunk.total_latency = 0.0
    chunk.raw = data
    chunk.piece = text
    return chunk


def _choices(values: Any) -> list[StreamChoice]:
    if not isinstance(values, list):
        raise TypeError(f"choices: expected a list, got {values!r}")
    return [StreamChoice.from_dict(value) for value in values]

"""The messages of a conversation, told apart by their role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import attrs

from .codec import Model, at, constant, each, extra_field, loaded, mapping, named, of_type
from .content import Content, content_from, text_of, thoughts_of
from .tools import ToolCall, tool_calls_from


class Role(str, Enum):
    """Who speaks. Each member equals its text."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    __str__ = str.__str__


def _content(value: Any) -> Content:
    """Return a content that must be there; the error names the field."""
    with at("content"):
        return content_from(value)


def _optional_content(value: Any) -> Content | None:
    return None if value is None else _content(value)


def _role(*allowed: str) -> Any:
    def check(_: Any, field: Any, value: Any) -> None:
        if value not in allowed:
            raise ValueError(f"{field.name}: expected {' or '.join(map(repr, allowed))}, got {value!r}")

    return attrs.field(default=allowed[0], kw_only=True, validator=check)


_optional_text: Any = of_type(str, optional=True)


@attrs.frozen
class SystemMessage(Model):
    """Instructions that stand above the conversation.

    Attributes:
        content: Text, or a list of content chunks.
        role: ``"system"``, or ``"developer"`` as newer OpenAI models call it.
    """

    content: Content = attrs.field(converter=_content)
    name: str | None = attrs.field(default=None, kw_only=True, validator=_optional_text)
    role: str = _role("system", "developer")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class UserMessage(Model):
    """What the user says: text, or a list of content chunks (text, images, documents, sound)."""

    content: Content = attrs.field(converter=_content)
    name: str | None = attrs.field(default=None, kw_only=True, validator=_optional_text)
    role: str = constant("user")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class AssistantMessage(Model):
    """What the model said.

    Attributes:
        content: Text, a list of content chunks, or None beside tool calls.
        tool_calls: The calls that the model asks for.
        prefix: True makes the model go on from this content as the beginning of its answer (Mistral).
    """

    content: Content | None = attrs.field(default=None, converter=_optional_content)
    tool_calls: Sequence[ToolCall] | None = loaded(
        tool_calls_from, default=None, converter=named("tool_calls", tool_calls_from)
    )
    prefix: bool | None = attrs.field(default=None, validator=of_type(bool, optional=True))
    name: str | None = attrs.field(default=None, kw_only=True, validator=_optional_text)
    role: str = constant("assistant")
    extra: Mapping[str, Any] = extra_field()

    @property
    def text(self) -> str:
        """The text of the content, without thoughts; "" where there is none."""
        return text_of(self.content)

    @property
    def reasoning(self) -> str:
        """What the model thought, where the server tells: a field of its own, or thinking chunks in the content."""
        return reasoning_in(self.extra) or thoughts_of(self.content)


@attrs.frozen
class ToolMessage(Model):
    """What a tool gave back.

    Attributes:
        content: The result, as text or content chunks.
        tool_call_id: The id of the call that this answers.
        name: The function's name (Mistral asks for it).
    """

    content: Content = attrs.field(converter=_content)
    tool_call_id: str | None = attrs.field(default=None, validator=_optional_text)
    name: str | None = attrs.field(default=None, validator=_optional_text)
    role: str = constant("tool")
    extra: Mapping[str, Any] = extra_field()


ChatMessage: TypeAlias = "SystemMessage | UserMessage | AssistantMessage | ToolMessage"

_CLASSES = (SystemMessage, UserMessage, AssistantMessage, ToolMessage)
_BY_ROLE: dict[str, type[Model]] = {
    "system": SystemMessage,
    "developer": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
}


def message_from(value: Any) -> ChatMessage:
    """Return a message from a message or its JSON object; the role says which kind it is."""
    if isinstance(value, _CLASSES):
        return value
    role = mapping(value, "a message").get("role")
    if role is None:
        raise ValueError("role: missing")
    if not isinstance(role, str) or role not in _BY_ROLE:
        raise ValueError(f"role: unknown role {role!r} (known: {', '.join(_BY_ROLE)})")
    if role != "assistant" and value.get("content") is None:
        raise TypeError(f"content: expected a text or a list of content chunks, got {value.get('content')!r}")
    return _BY_ROLE[role].from_dict(value)  # type: ignore[return-value]  # one of the four


_messages_of = each(message_from)


def messages_from(value: Any) -> list[ChatMessage]:
    """Return a conversation from a list of messages or their JSON objects; at least one."""
    messages = _messages_of(value)
    if not messages:
        raise ValueError("expected at least one message")
    return messages


REASONING_KEYS = ("reasoning_content", "reasoning")
"""Where servers put what the model thought: llama.cpp and older vLLM; Groq, OpenRouter, Ollama and newer vLLM."""


TAGGED_KEY = "reasoning"
"""Where thoughts go that a server sent inside the text: where Groq puts them if it is asked to part them itself."""


def reasoning_key_in(data: Mapping[str, Any]) -> str | None:
    """Return the name of a message's or a delta's own field for thoughts; None where there are none in it."""
    for key in REASONING_KEYS:
        value = data.get(key)
        if isinstance(value, str) and value:
            return key
    return None


def reasoning_in(data: Mapping[str, Any]) -> str:
    """Return the thoughts that lie in a message's or a delta's own field for them; "" where there are none."""
    key = reasoning_key_in(data)
    return data[key] if key else ""

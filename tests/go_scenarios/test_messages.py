"""Messages of every role, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import (
    AssistantMessage,
    AudioChunk,
    DocumentURLChunk,
    FileChunk,
    FunctionCall,
    ImageURLChunk,
    ReferenceChunk,
    Role,
    SystemMessage,
    TextChunk,
    ThinkChunk,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from chanstream.models.codec import Model
from chanstream.models.messages import message_from

PARTS = [
    TextChunk("so"),
    ImageURLChunk("https://a.test/i.png"),
    DocumentURLChunk("https://a.test/d.pdf", "d.pdf"),
    ReferenceChunk([1, 2]),
    FileChunk("f-1"),
    ThinkChunk([TextChunk("hm")]),
    AudioChunk("https://a.test/s.mp3"),
]
WIRE_PARTS = [
    {"type": "text", "text": "so"},
    {"image_url": "https://a.test/i.png", "type": "image_url"},
    {"document_name": "d.pdf", "document_url": "https://a.test/d.pdf", "type": "document_url"},
    {"reference_ids": [1, 2], "type": "reference"},
    {"file_id": "f-1", "type": "file"},
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"input_audio": "https://a.test/s.mp3", "type": "input_audio"},
]
THOUGHTFUL = [TextChunk("so"), ThinkChunk([TextChunk("hm")], closed=True)]
WIRE_THOUGHTFUL = [
    {"type": "text", "text": "so"},
    {"type": "thinking", "closed": True, "thinking": [{"type": "text", "text": "hm"}]},
]
CALL = ToolCall("c-1", FunctionCall("weather", {"city": "Oslo"}), 0, "function")
WIRE_CALL = {
    "id": "c-1",
    "index": 0,
    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
    "type": "function",
}

MESSAGES: list[tuple[Model, dict[str, Any]]] = [
    (SystemMessage("so"), {"role": "system", "content": "so"}),
    (SystemMessage(THOUGHTFUL), {"role": "system", "content": WIRE_THOUGHTFUL}),
    (UserMessage("so"), {"role": "user", "content": "so"}),
    (UserMessage(THOUGHTFUL), {"role": "user", "content": WIRE_THOUGHTFUL}),
    (UserMessage(PARTS), {"role": "user", "content": WIRE_PARTS}),
    (AssistantMessage("so"), {"role": "assistant", "content": "so"}),
    (AssistantMessage(THOUGHTFUL), {"role": "assistant", "content": WIRE_THOUGHTFUL}),
    (AssistantMessage(PARTS), {"role": "assistant", "content": WIRE_PARTS}),
    (AssistantMessage(), {"role": "assistant"}),
    (AssistantMessage("so", [CALL]), {"role": "assistant", "content": "so", "tool_calls": [WIRE_CALL]}),
    (
        ToolMessage(THOUGHTFUL, "c-1", "weather"),
        {"role": "tool", "content": WIRE_THOUGHTFUL, "name": "weather", "tool_call_id": "c-1"},
    ),
    (
        ToolMessage(PARTS, "c-1", "weather"),
        {"role": "tool", "content": WIRE_PARTS, "name": "weather", "tool_call_id": "c-1"},
    ),
]


@pytest.mark.parametrize(("message", "data"), MESSAGES, ids=lambda value: type(value).__name__)
def test_every_message(message: Model, data: dict[str, Any]) -> None:
    """A message is written as the same JSON object, and read from it as what its role says."""
    assert message.to_dict() == data
    assert message_from(data) == message
    assert Role(data["role"]) in list(Role)


def test_an_assistant_that_calls_nothing() -> None:
    """tool_calls that are null are none, and prefix is what nobody said."""
    message = AssistantMessage.from_dict({"role": "assistant", "tool_calls": None, "content": WIRE_PARTS})
    assert (message.tool_calls, message.prefix, message.text) == (None, None, "so")
    assert message.content == PARTS


def test_an_assistant_that_says_nothing() -> None:
    """Content that is null is none."""
    assert AssistantMessage.from_dict({"role": "assistant", "content": None}).content is None


@pytest.mark.parametrize("data", [{"role": "user"}, {"role": "user", "content": None}])
def test_a_user_that_says_nothing(data: dict[str, Any]) -> None:
    """A user's message without content is told at once; there it passes, and the server refuses it."""
    with pytest.raises((TypeError, ValueError), match=r"^content: "):
        message_from(data)

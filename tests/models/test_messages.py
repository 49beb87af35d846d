"""Messages: every role, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    AssistantMessage,
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
from chanstream.models.messages import message_from, messages_from, reasoning_in
from tests.models import FLAG, comes_back, objects
from tests.models.test_content import OBJECTS as CONTENT_OBJECTS

KINDS: list[tuple[Model, dict[str, Any]]] = [
    (SystemMessage("Be brief."), {"role": "system", "content": "Be brief."}),
    (SystemMessage("Be brief.", role="developer"), {"role": "developer", "content": "Be brief."}),
    (SystemMessage([TextChunk("a")]), {"role": "system", "content": [{"type": "text", "text": "a"}]}),
    (UserMessage("hi"), {"role": "user", "content": "hi"}),
    (UserMessage("hi", name="Ada"), {"role": "user", "content": "hi", "name": "Ada"}),
    (
        UserMessage([TextChunk("what?"), ImageURLChunk("https://x")]),
        {
            "role": "user",
            "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": "https://x"}],
        },
    ),
    (AssistantMessage("so"), {"role": "assistant", "content": "so"}),
    (AssistantMessage(""), {"role": "assistant", "content": ""}),
    (AssistantMessage("so", prefix=True), {"role": "assistant", "content": "so", "prefix": True}),
    (AssistantMessage("so", prefix=False), {"role": "assistant", "content": "so", "prefix": False}),
    (AssistantMessage(tool_calls=[]), {"role": "assistant", "tool_calls": []}),
    (
        AssistantMessage(tool_calls=[ToolCall("1", FunctionCall("f", "{}"), type="function")]),
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ),
    (
        AssistantMessage("x", extra={"reasoning_content": "hm"}),
        {"role": "assistant", "content": "x", "reasoning_content": "hm"},
    ),
    (
        ToolMessage("42", "1", "f"),
        {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
    ),
    (ToolMessage("42"), {"role": "tool", "content": "42"}),
]

CONTENT = st.text() | st.lists(st.one_of(*CONTENT_OBJECTS.values()), max_size=2)
CALL = objects(
    {"function": objects({"name": st.text(), "arguments": st.text()})},
    {"id": st.text(), "index": st.integers(), "type": st.text()},
)
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    SystemMessage: objects({"role": st.sampled_from(["system", "developer"]), "content": CONTENT}, {"name": st.text()}),
    UserMessage: objects({"role": st.just("user"), "content": CONTENT}, {"name": st.text()}),
    AssistantMessage: objects(
        {"role": st.just("assistant")},
        {"content": CONTENT, "tool_calls": st.lists(CALL, max_size=2), "prefix": FLAG, "name": st.text()},
    ),
    ToolMessage: objects({"role": st.just("tool"), "content": CONTENT}, {"tool_call_id": st.text(), "name": st.text()}),
}


@pytest.mark.parametrize(("message", "data"), KINDS, ids=lambda value: type(value).__name__)
def test_every_kind(message: Model, data: dict[str, Any]) -> None:
    """Each kind of message has its JSON object, and the object's role tells the kind."""
    assert message.to_dict() == data
    assert message_from(data) == message
    assert message_from(message) is message


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever else a message's object holds, explicit nulls too, comes back exactly."""
    drawn = data.draw(OBJECTS[cls])
    assert comes_back(cls, drawn)
    assert type(message_from(drawn)) is cls


class TestRole:
    def test_it_equals_its_text(self) -> None:
        """A role is a text: it compares, prints and is written as one."""
        assert Role.USER == "user"
        assert f"{Role.USER}" == "user"
        assert json.dumps([*Role]) == '["system", "developer", "user", "assistant", "tool"]'

    def test_it_serves_as_a_role(self) -> None:
        """A member of the enumeration does where its text does."""
        assert message_from({"role": Role.USER, "content": "x"}) == UserMessage("x")
        assert SystemMessage("x", role=Role.DEVELOPER) == SystemMessage("x", role="developer")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, TypeError, "expected a message as a mapping, got None"),
        ("hi", TypeError, "expected a message as a mapping, got 'hi'"),
        (5, TypeError, "expected a message as a mapping, got 5"),
        (["user", "hi"], TypeError, "expected a message as a mapping, got ['user', 'hi']"),
        ({}, ValueError, "role: missing"),
        ({"content": "hi"}, ValueError, "role: missing"),
        ({"role": None, "content": "hi"}, ValueError, "role: missing"),
        (
            {"role": "human", "content": "hi"},
            ValueError,
            "role: unknown role 'human' (known: system, developer, user, assistant, tool)",
        ),
        (
            {"role": "", "content": "hi"},
            ValueError,
            "role: unknown role '' (known: system, developer, user, assistant, tool)",
        ),
        (
            {"role": 5, "content": "hi"},
            ValueError,
            "role: unknown role 5 (known: system, developer, user, assistant, tool)",
        ),
        (
            {"role": ["user"], "content": "hi"},
            ValueError,
            "role: unknown role ['user'] (known: system, developer, user, assistant, tool)",
        ),
        ({"role": "user"}, TypeError, "content: expected a text or a list of content chunks, got None"),
        (
            {"role": "user", "content": None},
            TypeError,
            "content: expected a text or a list of content chunks, got None",
        ),
        ({"role": "user", "content": 5}, TypeError, "content: expected a list, got 5"),
        (
            {"role": "user", "content": {"type": "text", "text": "x"}},
            TypeError,
            "content: expected a text or a list of content chunks, got {'type': 'text', 'text': 'x'}",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, ValueError, "content[0].text: missing"),
        ({"role": "user", "content": "x", "name": 5}, TypeError, "name: expected str, got 5"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, TypeError, "tool_call_id: expected str, got 5"),
        ({"role": "assistant", "content": 5}, TypeError, "content: expected a list, got 5"),
        ({"role": "assistant", "prefix": 1}, TypeError, "prefix: expected bool, got 1"),
        ({"role": "assistant", "tool_calls": {}}, TypeError, "tool_calls: expected a list, got {}"),
        (
            {"role": "assistant", "tool_calls": [5]},
            TypeError,
            "tool_calls[0]: expected a tool call as a mapping, got 5",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": 5}}]},
            TypeError,
            "tool_calls[0].function.arguments: expected str or Mapping, got 5",
        ),
    ],
)
def test_a_wrong_object(value: Any, kind: type[Exception], text: str) -> None:
    """What is wrong in a message's object is named, with the way to it."""
    with pytest.raises(kind) as caught:
        message_from(value)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: UserMessage(None), "content: expected a text or a list of content chunks, got None"),
        (lambda: SystemMessage(5), "content: expected a list, got 5"),
        (lambda: ToolMessage(None), "content: expected a text or a list of content chunks, got None"),
        (lambda: UserMessage("x", name=5), "name: expected str, got 5"),  # type: ignore[arg-type]
        (lambda: SystemMessage("x", role="user"), "role: expected 'system' or 'developer', got 'user'"),
        (lambda: AssistantMessage("x", prefix="yes"), "prefix: expected bool, got 'yes'"),  # type: ignore[arg-type]
        (lambda: AssistantMessage("x", 5), "tool_calls: expected a list, got 5"),  # type: ignore[arg-type]
        (lambda: AssistantMessage("x", [5]), "tool_calls[0]: expected a tool call as a mapping, got 5"),  # type: ignore[list-item]
        (lambda: ToolMessage("x", 5), "tool_call_id: expected str, got 5"),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_the_wrong_type(make: Any, text: str) -> None:
    """A field that cannot be is refused when the message is made, and named."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value) == text


class TestMessagesFrom:
    def test_a_mixed_list(self) -> None:
        """Messages and their objects may stand side by side, in any iterable."""
        conversation = iter([SystemMessage("a"), {"role": "user", "content": "b"}])
        assert messages_from(conversation) == [SystemMessage("a"), UserMessage("b")]

    def test_none_at_all(self) -> None:
        """A conversation has at least one message."""
        with pytest.raises(ValueError, match="expected at least one message"):
            messages_from([])

    @pytest.mark.parametrize("value", ["hi", b"hi", {"role": "user", "content": "hi"}, 5])
    def test_what_is_no_list(self, value: Any) -> None:
        """A text or a single message's object is no list of messages."""
        with pytest.raises(TypeError, match="expected a list, got"):
            messages_from(value)

    def test_the_path_of_an_error(self) -> None:
        """The error names the message by its place."""
        with pytest.raises(ValueError, match=r"^\[1\]\.content\[0\]\.text: missing$"):
            messages_from([UserMessage("a"), {"role": "user", "content": [{"type": "text"}]}])


class TestWhatTheModelSaid:
    def test_its_text(self) -> None:
        """The text of an answer is without thoughts, and empty where there is none."""
        assert AssistantMessage().text == ""
        assert AssistantMessage("x").text == "x"
        assert AssistantMessage([ThinkChunk([TextChunk("hm")]), TextChunk("x"), ReferenceChunk([1])]).text == "x"

    @pytest.mark.parametrize(
        "message",
        [
            AssistantMessage([ThinkChunk([TextChunk("hm")]), TextChunk("x")]),
            AssistantMessage("x", extra={"reasoning_content": "hm"}),
            AssistantMessage("x", extra={"reasoning": "hm"}),
            AssistantMessage("x", extra={"reasoning_content": "", "reasoning": "hm"}),
            AssistantMessage("x", extra={"reasoning_content": None, "reasoning": "hm"}),
        ],
    )
    def test_its_thoughts(self, message: AssistantMessage) -> None:
        """The thoughts are found wherever servers put them."""
        assert message.reasoning == "hm"

    @pytest.mark.parametrize("data", [{}, {"reasoning": None}, {"reasoning": ["a"]}, {"reasoning_content": ""}])
    def test_no_thoughts(self, data: dict[str, Any]) -> None:
        """Where there are none, or in a form that is none, the thoughts are empty."""
        assert reasoning_in(data) == ""

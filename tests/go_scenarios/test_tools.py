"""Tools, their schemas, and the arguments of calls."""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import Function, FunctionCall, Tool, ToolCall


def test_a_call() -> None:
    """A call holds the arguments that it was made with; there they are put under a key, ``input``, unless marked."""
    call = ToolCall("c-1", FunctionCall("weather", {"city": "Oslo"}), type="function")
    assert (call.id, call.type, call.function.name) == ("c-1", "function", "weather")
    assert call.function.parsed_arguments() == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [({"city": "Oslo"}, {"city": "Oslo"}), ('{"city": "Oslo"}', {"city": "Oslo"}), ({}, {}), ("{}", {}), (None, {})],
)
def test_arguments(arguments: Any, parsed: dict[str, Any]) -> None:
    """Arguments are read from an object, from the text of one, and from nothing; they are kept as they came."""
    call = ToolCall.from_dict({"function": {"name": "weather", "arguments": arguments}})
    assert call.function.parsed_arguments() == parsed
    assert call.to_dict() == {"function": {"name": "weather", "arguments": arguments}}


SCHEMAS: list[dict[str, Any]] = [
    {},
    {"description": "What it takes.", "type": "object", "additionalProperties": True, "default": {"a": "b"}},
    {
        "description": "A person.",
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Hers.", "default": "Ada"},
            "born": {"type": "integer", "default": 1815},
        },
    },
    {"type": "object", "properties": {"flag": True, "status": {"enum": ["on", "off"]}}, "required": ["status"]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["empty", "flat", "nested", "more than there"])
def test_a_schema(schema: dict[str, Any]) -> None:
    """A schema is sent as it is: nothing of it is lost, added or made a text."""
    assert Tool(Function("f", "", schema)).to_dict()["function"]["parameters"] == schema


def test_no_schema() -> None:
    """A function without a schema is sent without one."""
    assert Tool(Function("f", "Does it.")).to_dict() == {
        "type": "function",
        "function": {"name": "f", "description": "Does it."},
    }

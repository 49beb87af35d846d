"""Tools, the choice among them, and calls: both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import Function, FunctionCall, Tool, ToolCall, ToolChoice
from chanstream.models.codec import Model
from chanstream.models.tools import tool_call_from, tool_choice_from, tool_from, tools_from
from tests.models import FLAG, OBJECT, comes_back, objects

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "array", "items": {}}},
    "required": ["city"],
    "additionalProperties": False,
}

FUNCTION = objects(
    {"name": st.text(min_size=1)}, {"description": st.text(), "parameters": OBJECT, "strict": FLAG}
)  # fmt: skip
CALLED = objects({"name": st.text(), "arguments": st.text() | OBJECT})
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    Function: FUNCTION,
    Tool: objects({"type": st.text()}, {"function": FUNCTION}),
    ToolChoice: objects({"type": st.text(), "function": OBJECT}),
    FunctionCall: CALLED,
    ToolCall: objects({"function": CALLED}, {"id": st.text(), "index": st.integers(), "type": st.text()}),
}


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever an object holds, a schema of any depth and explicit nulls too, comes back exactly."""
    assert comes_back(cls, data.draw(OBJECTS[cls]))


class TestTool:
    def test_its_schema(self) -> None:
        """A function's schema is sent as it is: required, enum, items and all."""
        tool = Tool(Function("weather", "Tells it.", WEATHER, strict=True))
        assert tool.to_dict() == {
            "type": "function",
            "function": {"name": "weather", "description": "Tells it.", "parameters": WEATHER, "strict": True},
        }

    def test_what_is_unset(self) -> None:
        """What a function does not say is not sent; False is said."""
        assert Function("f").to_dict() == {"name": "f"}
        assert Function("f", strict=False, parameters={}).to_dict() == {"name": "f", "parameters": {}, "strict": False}

    def test_all_its_forms(self) -> None:
        """A tool may be given as a tool, as a bare function and as its object."""
        tool = Tool(Function("f"))
        forms = [tool, Function("f"), {"type": "function", "function": {"name": "f"}}, {"function": {"name": "f"}}]
        assert tools_from(forms) == [tool] * 4
        assert tool_from(tool) is tool

    def test_another_kind_of_tool(self) -> None:
        """A tool that is no function goes out as it came."""
        assert tool_from({"type": "web_search", "depth": 3}).to_dict() == {"type": "web_search", "depth": 3}

    @pytest.mark.parametrize(
        ("make", "kind", "text"),
        [
            (lambda: Function(""), ValueError, "name: expected a text, got ''"),
            (lambda: Function(None), TypeError, "name: expected str, got None"),  # type: ignore[arg-type]
            (lambda: Function("f", 5), TypeError, "description: expected str, got 5"),  # type: ignore[arg-type]
            (lambda: Function("f", parameters=[]), TypeError, "parameters: expected Mapping, got []"),  # type: ignore[arg-type]
            (lambda: Function("f", strict=1), TypeError, "strict: expected bool, got 1"),  # type: ignore[arg-type]
            (lambda: Tool(Function("f"), 5), TypeError, "type: expected str, got 5"),  # type: ignore[arg-type]
            (lambda: Tool(5), TypeError, "function: expected a"),  # type: ignore[arg-type]
            (lambda: tools_from(Function("f")), TypeError, "expected a list, got Function(name='f'"),
            (lambda: tools_from({"f": 1}), TypeError, "expected a list, got {'f': 1}"),
            (lambda: tools_from(["f"]), TypeError, "[0]: expected a tool as a mapping, got 'f'"),
            (lambda: tools_from([None]), TypeError, "[0]: expected a tool as a mapping, got None"),
            (lambda: tools_from([{"function": {}}]), ValueError, "[0].function.name: missing"),
            (lambda: tools_from([{"function": 5}]), TypeError, "[0].function: expected a"),
        ],
    )
    def test_a_wrong_one(self, make: Any, kind: type[Exception], text: str) -> None:
        """A tool that cannot be is refused at once, by an error that names the way to the fault."""
        with pytest.raises(kind) as caught:
            make()
        assert str(caught.value).startswith(text)


class TestToolChoice:
    def test_a_function_by_its_name(self) -> None:
        """A tool choice names the function that has to be called."""
        choice = ToolChoice("weather")
        assert choice.to_dict() == {"type": "function", "function": {"name": "weather"}}
        assert choice.name == "weather"

    def test_its_object(self) -> None:
        """The object of a choice may hold more than the name; a choice without a name has none."""
        choice = tool_choice_from({"type": "function", "function": {"name": "f", "x": 1}})
        assert choice.to_dict() == {"type": "function", "function": {"name": "f", "x": 1}}
        assert choice.name == "f"
        assert ToolChoice({}).name == ""

    def test_a_function_without_a_name(self) -> None:
        """A choice of no function in particular is refused."""
        with pytest.raises(ValueError, match=r"name: expected a text, got ''$"):
            ToolChoice("")

    @pytest.mark.parametrize("mode", ["auto", "none", "any", "required", "anything new"])
    def test_a_mode(self, mode: str) -> None:
        """A mode is a plain text, and one that a server adds later will do."""
        assert tool_choice_from(mode) == mode

    @pytest.mark.parametrize(
        ("make", "kind", "text"),
        [
            (lambda: ToolChoice(5), TypeError, "function: expected Mapping, got 5"),  # type: ignore[arg-type]
            (lambda: tool_choice_from(5), TypeError, "expected a mode or a tool choice as a mapping, got 5"),
            (lambda: tool_choice_from(None), TypeError, "expected a mode or a tool choice as a mapping, got None"),
            (lambda: tool_choice_from({}), ValueError, "function: missing"),
        ],
    )
    def test_a_wrong_one(self, make: Any, kind: type[Exception], text: str) -> None:
        """A choice that cannot be is refused at once, by an error that names the field."""
        with pytest.raises(kind) as caught:
            make()
        assert str(caught.value) == text


class TestToolCall:
    def test_a_whole_call(self) -> None:
        """A call keeps its id, its index, its function and what else the server says."""
        data = {
            "id": "1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": '{"a": 1}'},
            "extra_content": {"google": {}},
        }
        call = tool_call_from(data)
        assert (call.id, call.index, call.type) == ("1", 0, "function")
        assert (call.function.name, call.function.arguments) == ("f", '{"a": 1}')
        assert call.to_dict() == data

    def test_arguments_as_an_object(self) -> None:
        """Some servers send the arguments as an object; it stays one."""
        assert tool_call_from({"function": {"name": "f", "arguments": {"a": 1}}}).function.arguments == {"a": 1}

    def test_a_fragment(self) -> None:
        """A fragment may lack everything but its piece of the arguments, by null or by absence."""
        call = tool_call_from({"index": 0, "id": None, "function": {"name": None, "arguments": '{"a'}})
        assert (call.id, call.function.name, call.function.arguments) == (None, "", '{"a')
        assert tool_call_from({}).function == FunctionCall()

    def test_a_function_given_as_its_object(self) -> None:
        """A call's function may be given as its object."""
        assert ToolCall("1", {"name": "f"}) == ToolCall("1", FunctionCall("f"))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: tool_call_from(5), "expected a tool call as a mapping, got 5"),
            (lambda: tool_call_from({"id": 5}), "id: expected str, got 5"),
            (lambda: tool_call_from({"index": "0"}), "index: expected int, got '0'"),
            (lambda: tool_call_from({"index": True}), "index: expected int, got True"),
            (lambda: tool_call_from({"function": "f"}), "function: expected a function call as a mapping, got 'f'"),
            (lambda: FunctionCall(5), "name: expected str, got 5"),  # type: ignore[arg-type]
            (lambda: FunctionCall("f", 5), "arguments: expected str or Mapping, got 5"),  # type: ignore[arg-type]
            (lambda: ToolCall("1", 5), "function: expected a function call as a mapping, got 5"),  # type: ignore[arg-type]
        ],
    )
    def test_a_wrong_one(self, make: Any, text: str) -> None:
        """A call that cannot be is refused by an error that names the way to the fault."""
        with pytest.raises(TypeError) as caught:
            make()
        assert str(caught.value) == text


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "parsed"),
        [('{"city": "Oslo", "days": [1, 2]}', {"city": "Oslo", "days": [1, 2]}), ("", {}), (" \n", {}), ("{}", {})],
    )
    def test_parsed(self, arguments: str, parsed: dict[str, Any]) -> None:
        """Arguments are there as text, as the model wrote it, and parsed."""
        call = FunctionCall("f", arguments)
        assert (call.arguments, call.parsed_arguments()) == (arguments, parsed)

    def test_an_object(self) -> None:
        """An object, as some servers send it, is parsed already, and is not the caller's to change."""
        arguments = {"city": "Oslo"}
        parsed = FunctionCall("f", arguments).parsed_arguments()
        assert parsed == arguments
        assert parsed is not arguments

    @pytest.mark.parametrize("arguments", ['{"city": "Os', "[1]", "5", "null", '"text"', "Oslo", "{'a': 1}", '"\ud800'])
    def test_what_is_no_object(self, arguments: str) -> None:
        """Arguments that are no JSON object are told with the function's name and the text, and not hidden."""
        with pytest.raises(ValueError, match=r"^arguments: 'weather' was called with no JSON object: ") as caught:
            FunctionCall("weather", arguments).parsed_arguments()
        assert repr(arguments) in str(caught.value)

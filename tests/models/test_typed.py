"""Python types and functions as JSON Schemas, and answers as values of these types."""

from __future__ import annotations

import enum
import functools
import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict

import attrs
import msgspec
import pytest

from chanstream import ChatCompletionResponse, ResponseFormat, Tool


class Unit(enum.Enum):
    """A unit."""

    CELSIUS = "celsius"
    KELVIN = "kelvin"


def weather(  # noqa: D417 - that some are not described is the point
    city: str, days: int = 3, *, unit: Unit = Unit.CELSIUS, places: list[str] | None = None
) -> str:
    """Tell the weather.

    It is a forecast.

    Args:
        city: Where,
            by its English name.
        days: For how many days.
    """
    return f"{city} {days} {unit} {places}"


@attrs.define
class Step:
    """A step of a recipe."""

    text: str
    minutes: float = 0


@dataclass
class Recipe:
    """What to cook."""

    name: str
    steps: list[Step]
    kind: Literal["meat", "fish", "none"] = "none"
    serves: Annotated[int, msgspec.Meta(ge=1)] = 2
    notes: Optional[str] = None  # noqa: UP045 - as older programs write it
    tags: list[str] = field(default_factory=list)


class Pair(TypedDict):
    """Two things."""

    left: int
    right: str


class Point(NamedTuple):
    """A place."""

    x: int
    y: int


@dataclass
class Node:
    """A tree."""

    value: int
    children: list[Node]


def parameters(tool: Tool) -> Any:
    """Return the schema of a tool's arguments."""
    assert tool.function is not None
    return tool.function.parameters


def star(*cities: str) -> None:
    """Go to many cities."""


class TestTools:
    def test_a_function(self) -> None:
        """Its name, its docstring and its signature make a tool."""
        assert Tool.from_function(weather).to_dict() == {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tell the weather.\n\nIt is a forecast.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "Where, by its English name."},
                        "days": {"type": "integer", "description": "For how many days."},
                        "unit": {"$ref": "#/$defs/Unit"},
                        "places": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                    "$defs": {"Unit": {"title": "Unit", "description": "A unit.", "enum": ["celsius", "kelvin"]}},
                },
            },
        }

    def test_strictly(self) -> None:
        """Said strictly, every argument is required, and it is said that it is strict."""
        tool = Tool.from_function(weather, strict=True)
        assert parameters(tool)["required"] == ["city", "days", "unit", "places"]
        assert tool.to_dict()["function"]["strict"] is True

    def test_what_is_told(self) -> None:
        """Name and description can be told."""
        tool = Tool.from_function(lambda x: x, name="same", description="Give it back.")
        assert tool.to_dict()["function"] == {
            "name": "same",
            "description": "Give it back.",
            "parameters": {"type": "object", "properties": {"x": {}}, "required": ["x"], "additionalProperties": False},
        }

    def test_without_arguments(self) -> None:
        """A function without parameters and docstring is a tool as well."""

        def now() -> str:
            return "12:00"

        assert Tool.from_function(now).to_dict()["function"] == {
            "name": "now",
            "parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
        }

    def test_a_method(self) -> None:
        """A bound method has no self for the model."""

        class Desk:
            def book(self, seats: int) -> bool:
                """Book seats."""
                return bool(seats)

        assert list(parameters(Tool.from_function(Desk().book))["properties"]) == ["seats"]

    def test_types_with_fields(self) -> None:
        """Arguments may be values with fields of their own, told once for all."""

        def cook(recipe: Recipe, instead: Recipe) -> None: ...

        schema = parameters(Tool.from_function(cook))
        assert schema["properties"]["recipe"] == schema["properties"]["instead"] == {"$ref": "#/$defs/Recipe"}
        assert set(schema["$defs"]) == {"Recipe", "Step"}

    @pytest.mark.parametrize("style", ["numpy", "rest"])
    def test_styles_of_docstrings(self, style: str) -> None:
        """Docstrings in the style of NumPy and Sphinx are understood too."""

        def run(speed: int) -> None: ...

        run.__doc__ = {
            "numpy": "Run.\n\nParameters\n----------\nspeed : int\n    In km/h.\n",
            "rest": "Run.\n\n:param speed: In km/h.\n",
        }[style]
        tool = Tool.from_function(run)
        assert parameters(tool)["properties"]["speed"]["description"] == "In km/h."
        assert tool.to_dict()["function"]["description"] == "Run."

    @pytest.mark.parametrize(
        ("function", "kind", "text"),
        [
            (5, TypeError, "function: expected a function, got 5"),
            (lambda x: x, ValueError, "name: expected 1 to 64 letters"),
            (functools.partial(weather, "Rome"), ValueError, "name: expected 1 to 64 letters"),
            (star, TypeError, "*cities: "),
            (max, TypeError, "function: no signature found"),
            (divmod, TypeError, "x: a model gives arguments by name"),
        ],
        ids=["no function", "lambda", "partial", "star", "no signature", "by position only"],
    )
    def test_what_is_none(self, function: Any, kind: type[Exception], text: str) -> None:
        """What no model can call is refused, and why is said."""
        with pytest.raises(kind) as caught:
            Tool.from_function(function)
        assert str(caught.value).startswith(text)

    def test_a_type_without_schema(self) -> None:
        """A parameter of a type that JSON does not have is refused, and named."""

        def odd(value: complex) -> None: ...

        with pytest.raises(TypeError, match=r"odd: a parameter has no JSON Schema .*complex"):
            Tool.from_function(odd)


class TestResponseFormat:
    def test_strictly(self) -> None:
        """A type becomes a schema as strict modes want it: all fields, no others, no defaults, no reference on top."""
        form = ResponseFormat.from_type(Recipe).to_dict()
        assert form["type"] == "json_schema"
        assert (form["json_schema"]["name"], form["json_schema"]["strict"]) == ("Recipe", True)
        schema = form["json_schema"]["schema"]
        assert schema["required"] == ["name", "steps", "kind", "serves", "notes", "tags"]
        assert schema["additionalProperties"] is schema["$defs"]["Step"]["additionalProperties"] is False
        assert schema["$defs"]["Step"]["required"] == ["text", "minutes"]
        assert "default" not in json.dumps(schema)
        assert schema["properties"]["serves"] == {"type": "integer", "minimum": 1}

    def test_loosely(self) -> None:
        """Otherwise only fields without a default are required."""
        schema = ResponseFormat.from_type(Recipe, strict=False).to_dict()["json_schema"]["schema"]
        assert schema["required"] == ["name", "steps"]
        assert schema["properties"]["serves"]["default"] == 2

    def test_a_tree(self) -> None:
        """A type that holds itself keeps a reference to itself."""
        schema = ResponseFormat.from_type(Node).to_dict()["json_schema"]["schema"]
        assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
        assert schema["$defs"]["Node"]["required"] == ["value", "children"]

    def test_what_is_told(self) -> None:
        """Name and description can be told."""
        form = ResponseFormat.from_type(Pair, name="two", description="Two of them.")
        assert form.json_schema is not None
        assert (form.json_schema.name, form.json_schema.description) == ("two", "Two of them.")

    @pytest.mark.parametrize("kind", [int, list[int], str, dict[str, int], Unit, complex, object, Point, 5, None])
    def test_what_has_no_fields(self, kind: Any) -> None:
        """A type without fields of its own is refused, and named."""
        with pytest.raises(TypeError, match=r"^type: "):
            ResponseFormat.from_type(kind)


def answer(text: str, reason: str = "stop") -> ChatCompletionResponse:
    """Return an answer with this text."""
    return ChatCompletionResponse.from_dict(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}]}
    )


class TestOutput:
    def test_a_value(self) -> None:
        """The text of an answer becomes a value, and what lies in it too."""
        text = '{"name": "Soup", "steps": [{"text": "Boil.", "minutes": 20}], "kind": "none", "more": 1}'
        assert answer(text).output(Recipe) == Recipe("Soup", [Step("Boil.", 20)])

    def test_a_typed_dict(self) -> None:
        """So does a typed dict."""
        assert answer('{"left": 1, "right": "a"}').output(Pair) == {"left": 1, "right": "a"}

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ('{"name": "Soup"}', r"missing required field `steps`"),
            ('{"name": "Soup", "steps": [{"text": 5}]}', r"Expected `str`, got `int` - at `\$\.steps\[0\]\.text`"),
            ('{"name": "Soup", "steps": [], "kind": "cake"}', r"at `\$\.kind`"),
            ('{"name": "Soup", "steps": [], "serves": 0}', r"at `\$\.serves`"),
            ("Sorry, no.", "malformed"),
            ("", "truncated"),
        ],
    )
    def test_what_is_none(self, text: str, place: str) -> None:
        """What is no such value is an error that says where."""
        with pytest.raises(ValueError, match=place) as caught:
            answer(text).output(Recipe)
        assert str(caught.value).startswith("expected Recipe in JSON, got ")

    def test_a_cut_answer(self) -> None:
        """An answer that was broken off is an error that says so."""
        with pytest.raises(ValueError, match=r"\(the answer ended with 'length'\)$"):
            answer('{"name": "So', "length").output(Recipe)


@pytest.mark.parametrize("name", ["msgspec", "docstring_parser"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where the extra is not installed the error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs? \w+: pip install 'chanstream\[types\]'"):
        Tool.from_function(weather)

"""Functions that the model may call, and the calls it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from .codec import Model, each, extra_field, loaded, mapping, named, not_empty, of_type

_text: Any = of_type(str)
_optional_text: Any = of_type(str, optional=True)


@attrs.frozen
class Function(Model):
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: What it does, for the model.
        parameters: The JSON Schema of its arguments, sent as it is.
        strict: Whether the model must keep to the schema.
    """

    name: str = attrs.field(validator=[_text, not_empty])
    description: str | None = attrs.field(default=None, validator=_optional_text)
    parameters: Mapping[str, Any] | None = attrs.field(default=None, validator=of_type(Mapping, optional=True))
    strict: bool | None = attrs.field(default=None, validator=of_type(bool, optional=True))
    extra: Mapping[str, Any] = extra_field()


def _function(value: Any) -> Function:
    return value if isinstance(value, Function) else Function.from_dict(mapping(value, "a function"))


@attrs.frozen
class Tool(Model):
    """Something that the model may use; today always a function."""

    function: Function | None = loaded(_function, default=None, converter=named("function", _function))
    type: str = attrs.field(default="function", validator=_text)
    extra: Mapping[str, Any] = extra_field()


def tool_from(value: Any) -> Tool:
    """Return a tool from a tool, a bare function, or its JSON object."""
    if isinstance(value, Tool):
        return value
    if isinstance(value, Function):
        return Tool(value)
    return Tool.from_dict(mapping(value, "a tool"))


tools_from = each(tool_from)


def _chosen(value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if value == "":
        raise ValueError("name: expected a text, got ''")
    return {"name": value} if isinstance(value, str) else value


@attrs.frozen
class ToolChoice(Model):
    """Which tool the model has to call: the function of this name.

    The modes are plain texts: ``"auto"``, ``"none"``, ``"any"`` (Mistral), ``"required"`` (OpenAI, Groq).
    """

    function: Mapping[str, Any] = attrs.field(converter=_chosen, validator=of_type(Mapping))
    type: str = attrs.field(default="function", validator=_text)
    extra: Mapping[str, Any] = extra_field()

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.function.get("name", ""))


def tool_choice_from(value: Any) -> str | ToolChoice:
    """Return a tool choice from its mode, a `ToolChoice` or its JSON object."""
    if isinstance(value, (str, ToolChoice)):
        return value
    return ToolChoice.from_dict(mapping(value, "a mode or a tool choice"))


@attrs.frozen
class FunctionCall(Model):
    """The function that a call names, and its arguments.

    Attributes:
        name: The function's name; "" in a fragment that does not repeat it.
        arguments: JSON text, or a piece of it in a fragment; some servers send the object itself.
    """

    name: str = attrs.field(default="", validator=_text)
    arguments: str | Mapping[str, Any] = attrs.field(default="", validator=of_type(str, Mapping))
    extra: Mapping[str, Any] = extra_field()


def _function_call(value: Any) -> FunctionCall:
    return value if isinstance(value, FunctionCall) else FunctionCall.from_dict(mapping(value, "a function call"))


@attrs.frozen
class ToolCall(Model):
    """A call that the model asks for; in a stream's delta, a fragment of one.

    Attributes:
        id: The call's id, to be repeated in the `ToolMessage`; None in a fragment that does not repeat it.
        function: What to call, and with what.
        index: Which of several calls this belongs to, where the server says.
    """

    id: str | None = attrs.field(default=None, validator=_optional_text)
    function: FunctionCall = loaded(_function_call, factory=FunctionCall, converter=named("function", _function_call))
    index: int | None = attrs.field(default=None, validator=of_type(int, optional=True))
    type: str | None = attrs.field(default=None, validator=_optional_text)
    extra: Mapping[str, Any] = extra_field()


def tool_call_from(value: Any) -> ToolCall:
    """Return a tool call from a tool call or its JSON object."""
    return value if isinstance(value, ToolCall) else ToolCall.from_dict(mapping(value, "a tool call"))


tool_calls_from = each(tool_call_from)

"""Functions that the model may call, and the calls it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .codec import Model, best_loads, each, extra_field, loaded, mapping, named, not_empty, of_type

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

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        strict: bool | None = None,
    ) -> Tool:
        """Return the tool that a Python function is: its signature makes the schema, its docstring says what is what.

        ::

            def weather(city: str, days: int = 3) -> str:
                \"\"\"Tell the weather of a city for some days.\"\"\"

            request = ChatCompletionRequest(model, messages, tools=[Tool.from_function(weather)])

        A parameter without a type may be anything; one without a default is required. Needs the extra ``types``.

        Args:
            function: What the model may call; it is not called here.
            name: Its name for the model, instead of its own.
            description: What it does, instead of what its docstring says.
            strict: Whether the model must keep to the schema, which is said as strict modes want it then.

        Raises:
            TypeError: A parameter cannot be given by name, or its type has no JSON Schema; the text names it.
            ValueError: The name is none that servers take.
            ImportError: The extra is not installed.
        """
        from .typed import description_of, name_of, parameters_of

        if not callable(function):
            raise TypeError(f"function: expected a function, got {function!r}")
        return cls(
            Function(
                name_of(function) if name is None else name,
                description_of(function) if description is None else description,
                parameters_of(function, strict=bool(strict)),
                strict,
            )
        )


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

    def parsed_arguments(self) -> dict[str, Any]:
        """Return the arguments as an object; {} where a model gave none.

        Raises:
            ValueError: They are no JSON object, as where an answer was broken off; the text holds them.
        """
        if not isinstance(self.arguments, str):
            return dict(self.arguments)
        if not self.arguments.strip():
            return {}
        reason = ""
        try:
            arguments = best_loads()(self.arguments.encode("utf-8", "surrogatepass"))
            if isinstance(arguments, dict):
                return arguments
        except ValueError as error:
            reason = f" ({error})"
        raise ValueError(f"arguments: {self.name!r} was called with no JSON object: {self.arguments!r}{reason}")


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

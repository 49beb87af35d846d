"""JSON Schemas of Python types, and values of these types out of JSON.

msgspec does both; docstring-parser knows what the parameters of a function mean. They are the extra ``types``, known
here alone and imported when they are used.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def schema_of(kind: Any, *, strict: bool) -> dict[str, Any]:
    """Return the JSON Schema of a type with fields: attrs, dataclass, TypedDict, NamedTuple, msgspec's Struct.

    Args:
        kind: The type.
        strict: Whether to say it as strict modes want it: every field required, no other allowed, no defaults.

    Raises:
        TypeError: The type, or one in it, has no schema; the text names it.
    """
    try:
        schema: dict[str, Any] = _msgspec().json.schema(kind)
    except (TypeError, RuntimeError, NameError) as error:
        raise TypeError(f"type: {_name(kind)} has no JSON Schema ({_in_one_line(error)})") from None
    schema = _with_the_root_inside(schema)
    if schema.get("type") != "object" or "properties" not in schema:
        raise TypeError(f"type: expected one with fields, such as a dataclass, got {_name(kind)}")
    return _strict(schema) if strict else schema


def value_of(text: str, kind: type[T]) -> T:
    """Return the value of a type that JSON text holds.

    Raises:
        ValueError: It holds none; the text says where.
        TypeError: There are no values of this type in JSON.
    """
    msgspec = _msgspec()
    try:
        value: T = msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected {_name(kind)} in JSON, got {text[:80]!r}: {error}") from None
    return value


def parameters_of(function: Callable[..., Any], *, strict: bool) -> dict[str, Any]:
    """Return the JSON Schema of the arguments of a function, from its signature and what its docstring says of each.

    Raises:
        TypeError: A parameter cannot be filled by name, or its type has no schema; the text names it.
    """
    told = _told(function)
    hints = get_type_hints(function, include_extras=True)
    msgspec = _msgspec()
    properties: dict[str, Any] = {}
    required = []
    kinds = []
    for parameter in _signature(function).parameters.values():
        if parameter.kind not in _KINDS:
            raise TypeError(f"{parameter}: a model gives arguments by name, and cannot give this one")
        kinds.append(hints.get(parameter.name, Any))
        properties[parameter.name] = {}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    try:
        schemas, shared = msgspec.json.schema_components(kinds)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{_name(function)}: a parameter has no JSON Schema ({_in_one_line(error)})") from None
    for name, schema in zip(properties, schemas, strict=True):
        properties[name] = {**schema, **({"description": told[name]} if name in told else {})}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if shared:
        schema["$defs"] = shared
    return _strict(schema) if strict else schema


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError as error:  # of some that are built in
        raise TypeError(f"function: {error}") from None


def name_of(value: Any) -> str:
    """Return the name under which a model knows a function or a type.

    Raises:
        ValueError: It has none that servers allow.
    """
    name = getattr(value, "__name__", "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected 1 to 64 letters, digits, '_' or '-', got {name!r}; give it a name")
    return str(name)


def description_of(value: Any) -> str | None:
    """Return what a docstring says before it comes to the parameters; None where there is none."""
    docstring = inspect.getdoc(value)
    if not docstring:
        return None
    parsed = _docstring_parser().parse(docstring)
    said = [part for part in (parsed.short_description, parsed.long_description) if part]
    return "\n\n".join(said) or None


def _told(function: Callable[..., Any]) -> dict[str, str]:
    """Return what a function's docstring says of its parameters."""
    docstring = inspect.getdoc(function)
    if not docstring:
        return {}
    return {
        param.arg_name: " ".join(param.description.split())
        for param in _docstring_parser().parse(docstring).params
        if param.description
    }


def _with_the_root_inside(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that is no mere reference to one beside it, which strict modes do not take."""
    shared = dict(schema.get("$defs", {}))
    root = schema.get("$ref", "").removeprefix("#/$defs/")
    if root not in shared:
        return schema
    inside = shared[root]
    if f"'#/$defs/{root}'" not in repr(shared):  # else it refers to itself
        del shared[root]
    return {**inside, **({"$defs": shared} if shared else {})}


def _strict(schema: Any) -> Any:
    """Return a schema in which every object has all its fields, and no others."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping):
        return {key: _strict(value) for key, value in schema.items() if key != "default"}
    rest = {key: value for key, value in schema.items() if key not in ("properties", "default")}
    return {
        **_strict(rest),
        "properties": {name: _strict(value) for name, value in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _msgspec() -> Any:
    return _imported("msgspec")


def _docstring_parser() -> Any:
    return _imported("docstring_parser")


def _imported(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"tools and answers from types need {name}: pip install 'chanstream[types]'") from error

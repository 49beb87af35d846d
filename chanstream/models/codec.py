"""How values become JSON and JSON becomes values, losing nothing.

A model is an attrs class that inherits `Model`. Its fields carry the names of the wire; None means "not there".
What the wire has and the model does not know, explicit nulls among it, lies in ``extra`` and goes out again, so that
``cls.from_dict(data).to_dict() == data``. Errors name the path: ``messages[1].content: expected ...``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, TypeVar

import attrs

Loads = Callable[[bytes], Any]
_M = TypeVar("_M", bound="Model")
_V = TypeVar("_V")


def extra_field() -> Any:
    """Return the attrs field for what a model does not know."""
    return attrs.field(factory=dict, kw_only=True, converter=_extra)


def _extra(value: Any) -> dict[str, Any]:
    with at("extra"):
        return dict(mapping(value, "fields"))


def loaded(load: Callable[[Any], Any], **more: Any) -> Any:
    """Return an attrs field whose wire value ``load`` turns into a value."""
    return attrs.field(metadata={"load": load}, **more)


def constant(value: str) -> Any:
    """Return an attrs field that always has this value, such as a chunk's ``type``."""
    return attrs.field(default=value, init=False, repr=False)


def of_type(*kinds: type, optional: bool = False) -> Callable[[Any, Any, Any], None]:
    """Return an attrs validator: the value is of one of these types (and a bool is no number)."""

    def check(_: Any, field: Any, value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{field.name}: expected {expected}, got {value!r}")

    expected = " or ".join(kind.__name__ for kind in kinds)
    return check


def finite(_: Any, field: Any, value: float | None) -> None:
    """Be an attrs validator: the number is one that JSON has."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{field.name}: expected a finite number, got {value!r}")


def not_empty(_: Any, field: Any, value: str) -> None:
    """Be an attrs validator: the text is not empty."""
    if not value:
        raise ValueError(f"{field.name}: expected a text, got ''")


@contextmanager
def at(path: str) -> Iterator[None]:
    """Put ``path`` in front of the place that an error of the block names."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        link = "" if text.startswith("[") else ": " if text.startswith("expected ") else "."
        raise type(error)(f"{path}{link}{text}") from None


def mapping(data: Any, what: str) -> Mapping[str, Any]:
    """Return ``data`` if it is a mapping; the error says what it should have been."""
    if not isinstance(data, Mapping):
        raise TypeError(f"expected {what} as a mapping, got {data!r}")
    return data


class Model:
    """Base of all values that travel: `to_dict` and `from_dict`, each the other's inverse.

    Thread safety: models are values; share them as long as nobody changes them.
    """

    __slots__ = ()

    extra: Mapping[str, Any]
    _what: ClassVar[str] = "an object"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this value: unset fields are left out; 0, False and "" are not."""
        data = {}
        for name, default in _defaults(type(self)).items():
            value = getattr(self, name)
            if value is not None and not (name in self.extra and value == default):  # it came as null
                data[name] = plain(value)
        return {**self.extra, **data}

    @classmethod
    def from_dict(cls: type[_M], data: Mapping[str, Any]) -> _M:
        """Return the value of a JSON object; what is unknown goes to ``extra``.

        Raises:
            TypeError: ``data`` or a part of it is of the wrong type; the text names the path.
            ValueError: A field is missing or has a value that cannot be; the text names the path.
        """
        known = _loaders(cls)
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in mapping(data, cls._what).items():
            if name not in known or value is None:
                extra[name] = value
                continue
            load = known[name]
            if load is None:
                values[name] = value
            else:
                with at(name):
                    values[name] = load(value)
        return cls._built(values, extra)

    @classmethod
    def _built(cls: type[_M], values: dict[str, Any], extra: dict[str, Any]) -> _M:
        for name, fixed in _constants(cls).items():
            if values.pop(name, fixed) != fixed:
                raise ValueError(f"{name}: expected {fixed!r}")
        for name in _required(cls):
            if name not in values:
                raise ValueError(f"{name}: missing")
        return cls(**values, extra=extra)  # type: ignore[call-arg]  # every model has it


def plain(value: Any) -> Any:
    """Return ``value`` as JSON types, models in lists included."""
    if isinstance(value, Model):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def each(load: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Return a loader for a list of what ``load`` loads."""

    def load_all(values: Any) -> list[Any]:
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"expected a list, got {values!r}")
        items = []
        for index, value in enumerate(values):
            with at(f"[{index}]"):
                items.append(load(value))
        return items

    return load_all


def named(field: str, load: Any) -> Any:
    """Return ``load`` as an attrs converter that lets None be and whose errors name the field."""

    def convert(value: Any) -> Any:
        if value is None:
            return None
        with at(field):
            return load(value)

    return convert


def _per_class(function: Callable[[Any], _V]) -> Callable[[Any], _V]:
    """Return ``function``, computed once for each class."""
    return cache(function)


def _fields(cls: Any) -> Iterable[Any]:
    return (f for f in attrs.fields(cls) if f.name != "extra" and f.metadata.get("wire", True))


@_per_class
def _defaults(cls: Any) -> dict[str, Any]:
    return {field.name: _default(field.default) for field in _fields(cls)}


def _default(value: Any) -> Any:
    return value.factory() if isinstance(value, attrs.Factory) else value  # type: ignore[arg-type]  # it is a class


@_per_class
def _loaders(cls: Any) -> dict[str, Callable[[Any], Any] | None]:
    return {field.name: field.metadata.get("load") for field in _fields(cls)}


@_per_class
def _constants(cls: Any) -> dict[str, Any]:
    return {field.name: field.default for field in _fields(cls) if not field.init}


@_per_class
def _required(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in _fields(cls) if field.init and field.default is attrs.NOTHING)


def dumps(data: Any) -> bytes:
    """Return ``data`` as compact JSON in UTF-8.

    Raises:
        TypeError: A value is of no JSON type.
        ValueError: A number is not finite.
    """
    try:
        return _compact(data).encode()
    except UnicodeEncodeError:  # half a surrogate pair: as an escape it is valid JSON
        return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@cache
def best_loads() -> Loads:
    """Return the function that decodes JSON from bytes: orjson's where it is installed, else the standard library's.

    Both are followed by the forgiving one: bad UTF-8 becomes U+FFFD, lone surrogates and NaN are let pass. So they
    differ in speed only. The function raises ValueError for what is no JSON.
    """
    fast = fast_loads()
    if fast is _forgiving_loads:
        return fast

    def loads(data: bytes) -> Any:
        try:
            return fast(data)
        except ValueError:
            return _forgiving_loads(data)

    return loads


@cache
def fast_loads() -> Loads:
    """Return the fastest that there is: as `best_loads`, but it may raise for what that one forgives."""
    try:
        from orjson import loads
    except ImportError:
        return _forgiving_loads
    return loads


def _forgiving_loads(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None

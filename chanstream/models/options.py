"""The fields of requests: options, which are None unless set and are sent only if they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .codec import finite, loaded, named, of_type


def number(kind: type = float) -> Any:
    """Return a field that holds a number, or a whole one if the kind is `int`."""
    kinds = (int,) if kind is int else (int, float)
    return attrs.field(default=None, kw_only=True, validator=[of_type(*kinds, optional=True), finite])


def count() -> Any:
    """Return a field that holds a whole number from 1 on."""
    return attrs.field(default=None, kw_only=True, validator=[of_type(int, optional=True), _positive])


def flag() -> Any:
    """Return a field that is True or False."""
    return attrs.field(default=None, kw_only=True, validator=of_type(bool, optional=True))


def json_object() -> Any:
    """Return a field that holds a JSON object."""
    return attrs.field(default=None, kw_only=True, validator=of_type(Mapping, optional=True))


def word() -> Any:
    """Return a field that holds a text."""
    return attrs.field(default=None, kw_only=True, validator=of_type(str, optional=True))


def word_or_words() -> Any:
    """Return a field that holds a text or several."""
    return attrs.field(default=None, kw_only=True, validator=of_type(str, list, tuple, optional=True))


def converted(name: str, load: Callable[[Any], Any]) -> Any:
    """Return a field that holds what ``load`` makes of a value, or of its JSON."""
    return loaded(load, default=None, kw_only=True, converter=named(name, load))


def _positive(_: Any, field: Any, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{field.name}: expected 1 or more, got {value!r}")

"""What may stand in the fields of a reply: converters that copy, validators that name the field they refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias, cast

import attrs

from .wording import encode_json

Text: TypeAlias = str | Sequence[str]
Calls: TypeAlias = Sequence[Mapping[str, Any]]
Chunks: TypeAlias = Sequence[Mapping[str, Any] | str | bytes]
Attribute: TypeAlias = "attrs.Attribute[Any]"  # what a validator is given beside the value

# The final status codes of RFC 9110, section 15.
_LOWEST_STATUS, _HIGHEST_STATUS = 200, 599


# Converters. A frozen value keeps its own copy of what the caller may go on changing. What has the wrong type passes
# untouched, so that the validator can name the field.


def _items(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else value


def _table(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def copied_text(value: Text) -> Text:
    """Returns a str as it is and a sequence as a tuple."""
    return cast("Text", _items(value))


def copied_calls(value: Calls) -> Calls:
    """Returns the tool calls as a tuple."""
    return cast("Calls", _items(value))


def copied_chunks(value: Chunks | None) -> Chunks | None:
    """Returns the chunks as a tuple."""
    return cast("Chunks | None", _items(value))


def copied_headers(value: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the headers as a dict of their own."""
    return cast("Mapping[str, str]", _table(value))


def vector(value: Sequence[float] | str) -> list[float] | str:
    """Returns a vector's numbers as a list; a str, base64 of them, as it is.

    Raises:
        TypeError: It is neither.
    """
    numbers = _items(value)
    if isinstance(numbers, str):
        return numbers
    if not isinstance(numbers, tuple) or not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError(f"vectors must be sequences of numbers, or base64 of them, not {value!r}")
    return [*numbers]


# Validators, with the three arguments that attrs gives them.


def _refuse(kind: type[Exception], attribute: Attribute, wanted: str, value: object) -> NoReturn:
    raise kind(f"{attribute.name} must be {wanted}, not {value!r}")


def _sendable(attribute: Attribute, value: object) -> None:
    """Refuses what JSON or UTF-8 cannot express now, rather than in the middle of a stream."""
    try:
        encode_json(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{attribute.name} cannot be sent as JSON: {error}") from error


def text(_: object, attribute: Attribute, value: object) -> None:
    """Accepts a str and a sequence of str."""
    tokens = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(token, str) for token in tokens):
        _refuse(TypeError, attribute, "a str or a sequence of str", value)
    _sendable(attribute, value)


def calls(_: object, attribute: Attribute, value: object) -> None:
    """Accepts a sequence of mappings."""
    if not isinstance(value, tuple) or not all(isinstance(call, Mapping) for call in value):
        _refuse(TypeError, attribute, "a sequence of mappings", value)
    _sendable(attribute, [dict(call) for call in value])


def chunks(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and a sequence of mappings, str and bytes."""
    if value is None:
        return
    if not isinstance(value, tuple) or not all(isinstance(chunk, (Mapping, str, bytes)) for chunk in value):
        _refuse(TypeError, attribute, "a sequence of mappings, str or bytes", value)
    for chunk in value:
        _sendable(attribute, dict(chunk) if isinstance(chunk, Mapping) else chunk if isinstance(chunk, str) else None)


def data(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and bytes."""
    if value is not None and not isinstance(value, bytes):
        _refuse(TypeError, attribute, "bytes", value)


def flag(_: object, attribute: Attribute, value: object) -> None:
    """Accepts True and False."""
    if not isinstance(value, bool):
        _refuse(TypeError, attribute, "True or False", value)


def usage(_: object, attribute: Attribute, value: object) -> None:
    """Accepts True, False and a mapping."""
    if not isinstance(value, (bool, Mapping)):
        _refuse(TypeError, attribute, "a mapping, True or False", value)
    _sendable(attribute, dict(value) if isinstance(value, Mapping) else value)


def word(_: object, attribute: Attribute, value: object) -> None:
    """Accepts a str."""
    if not isinstance(value, str):
        _refuse(TypeError, attribute, "a str", value)
    _sendable(attribute, value)


def optional_word(reply: object, attribute: Attribute, value: object) -> None:
    """Accepts None and a str."""
    if value is not None:
        word(reply, attribute, value)


def _line(attribute: Attribute, value: object) -> None:
    """Refuses what cannot stand in one line of a response head: a stray line break would forge a second one."""
    if not isinstance(value, str):
        _refuse(TypeError, attribute, "made of str", value)
    if not value.isprintable() or value.encode("latin-1", "ignore").decode("latin-1") != value:
        _refuse(ValueError, attribute, "made of printable lines in Latin-1", value)


def content_type(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and what a header field may hold."""
    if value is not None:
        _line(attribute, value)


def headers(_: object, attribute: Attribute, value: object) -> None:
    """Accepts a mapping of names to values."""
    if not isinstance(value, Mapping):
        _refuse(TypeError, attribute, "a mapping of str to str", value)
    for name, content in value.items():
        _line(attribute, name)
        _line(attribute, content)
        if not name or set(name) & set(" :"):
            _refuse(ValueError, attribute, "keyed by names of header fields", name)


def _whole_number(attribute: Attribute, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(TypeError, attribute, "an int", value)
    return value


def status(_: object, attribute: Attribute, value: object) -> None:
    """Accepts the code of a final response."""
    if not _LOWEST_STATUS <= _whole_number(attribute, value) <= _HIGHEST_STATUS:
        _refuse(ValueError, attribute, f"from {_LOWEST_STATUS} to {_HIGHEST_STATUS}", value)


def count(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and a whole number that is not negative."""
    if value is not None and _whole_number(attribute, value) < 0:
        _refuse(ValueError, attribute, "0 or more", value)


def size(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and a number of bytes that is not 0."""
    if value is not None and _whole_number(attribute, value) < 1:
        _refuse(ValueError, attribute, "1 byte or more", value)


def _number(attribute: Attribute, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _refuse(TypeError, attribute, "a number of seconds", value)
    return value


def seconds(_: object, attribute: Attribute, value: object) -> None:
    """Accepts a duration, 0 and infinity among them."""
    if not _number(attribute, value) >= 0:  # this way round, NaN is refused too
        _refuse(ValueError, attribute, "0 seconds or more", value)


def interval(_: object, attribute: Attribute, value: object) -> None:
    """Accepts None and a duration that is not 0."""
    if value is not None and not _number(attribute, value) > 0:
        _refuse(ValueError, attribute, "more than 0 seconds", value)


@attrs.frozen
class OneOf:
    """Accepts the given values and no other."""

    choices: tuple[str | None, ...]

    def __call__(self, _: object, attribute: Attribute, value: object) -> None:
        """Names the choices when it refuses."""
        if value not in self.choices:
            _refuse(ValueError, attribute, f"one of {', '.join(map(repr, self.choices))}", value)

"""What a caller sends in addition to what this library knows: members of the body, headers, parts of the query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

_OURS = {"content-length", "content-type", "host", "transfer-encoding"}
"""Headers that say how a request is framed and where it goes, which is not the caller's to say."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_VALUE = re.compile(r"(?!\s)[\t\x20-\x7e\x80-\xff]*")  # requests refuses a blank at the start, and shows the value


def _mapping(what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: expected a mapping, got {type(value).__name__}")
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"{what}: expected names that are texts, got {name!r}")
    return dict(value)


def _body(value: Any) -> dict[str, Any]:
    members = _mapping("extra_body", value)
    if "stream" in members:
        raise ValueError("extra_body: 'stream' is said by which method is called")
    return members


def _headers(value: Any) -> dict[str, str]:
    headers = _mapping("extra_headers", value)
    for name, text in headers.items():  # no value is ever shown: it may be a secret
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"extra_headers: {name!r} is no header that can be set")
        if not isinstance(text, str):
            raise TypeError(f"extra_headers[{name!r}]: expected a text, got {type(text).__name__}")
        if not _VALUE.fullmatch(text):
            raise ValueError(f"extra_headers[{name!r}]: expected text on one line, in Latin-1, with no blank before it")
    return headers


def _query(value: Any) -> dict[str, str | list[str]]:
    parts = _mapping("extra_query", value)
    return {name: _part(f"extra_query[{name!r}]", part) for name, part in parts.items()}


def _part(name: str, value: Any) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        return [_scalar(name, each) for each in value]
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{name}: expected a text, a number or a list of them, got {type(value).__name__}")
    return str(value)


@attrs.frozen
class Extras:
    """What is sent in addition.

    Attributes:
        body: Members of the JSON object. headers: Headers. query: Parts of the URL's query.

    Raises:
        TypeError, ValueError: One of them cannot be; the text names it.
    """

    body: Mapping[str, Any] = attrs.field(default=None, converter=_body)
    headers: Mapping[str, str] = attrs.field(default=None, converter=_headers, repr=False)
    query: Mapping[str, Any] = attrs.field(default=None, converter=_query, repr=False)

    @classmethod
    def of(
        cls, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None, query: Mapping[str, Any] | None
    ) -> Extras | None:
        """Return them; None where there are none, as for most calls."""
        return None if body is headers is query is None else cls(body, headers, query)

    def over(self, later: Extras | None) -> Extras:
        """Return these with others over them."""
        if later is None:
            return self
        said = {name.lower() for name in later.headers}
        headers = {name: text for name, text in self.headers.items() if name.lower() not in said}
        return Extras({**self.body, **later.body}, {**headers, **later.headers}, {**self.query, **later.query})

"""What the server was asked: one frozen value per request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs


class Headers(Mapping[str, str]):
    """A mapping of header fields that does not look at case; a field sent twice reads as one, joined by a comma.

    Thread safety: never changes, so any thread may read it.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        """Keeps the fields in the order and the spelling of their first appearance."""
        self._fields: dict[str, tuple[str, str]] = {}
        for name, value in fields:
            spelling, before = self._fields.get(name.lower(), (name, None))
            self._fields[name.lower()] = (spelling, value if before is None else f"{before}, {value}")

    def __getitem__(self, name: str) -> str:
        """Returns the value of the field, whatever the case of `name`."""
        return self._fields[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names, as they were spelled."""
        return (spelling for spelling, _ in self._fields.values())

    def __len__(self) -> int:
        """Returns the number of different names."""
        return len(self._fields)

    def __repr__(self) -> str:
        """Names the fields but not their values, among which there may be a key."""
        return f"Headers({', '.join(self)})"

    def says(self, name: str, token: str) -> bool:
        """Tells whether the comma-separated field `name` holds `token`, as in `Connection: close`."""
        return token in (part.strip().lower() for part in self.get(name, "").split(","))


@attrs.frozen
class RecordedRequest:
    """One request as the server received it.

    Thread safety: never changes, so any thread may read it.

    Args:
        method: The method, as sent.
        path: The path, without the query.
        query: What followed the question mark, or an empty string.
        http_version: `"1.1"` or `"1.0"`.
        headers: The header fields; names in any case.
        body: The body's bytes, without their framing.
        json: The body decoded as JSON, or None if it is none.
        connection: The number of the TCP connection it came over; the server's first is 1. Two requests with one number
            shared a connection.
    """

    method: str
    path: str
    query: str = ""
    http_version: str = "1.1"
    headers: Headers = attrs.field(factory=Headers, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    json: Any = None
    connection: int = 0

    @property
    def streaming(self) -> bool:
        """Whether the client asked for an event stream (`"stream": true`)."""
        return isinstance(self.json, dict) and self.json.get("stream") is True

    @property
    def keep_alive(self) -> bool:
        """Whether the client will use the connection again."""
        return self.http_version == "1.1" and not self.headers.says("Connection", "close")

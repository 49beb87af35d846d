"""An answer that is no event stream, though one was asked for: a whole completion as JSON, or a proxy's HTML page.

Sans-IO as all of wire/: gathers the body, and tells at its end what it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import StreamDecodeError, StreamTruncatedError
from ..models.chunk import CompletionChunk
from ..models.codec import best_loads
from .decoding import chunk_of, failed

_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\xef\xbb\xbfdata:")
_LONGEST_FIELD = max(map(len, _FIELDS))


def is_whole(content_type: str) -> bool:
    """Return whether a body of this type is expected to be one piece: JSON or HTML.

    Everything else is read as an event stream: some servers label one as text/plain, or not at all.
    """
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("application/json", "text/html", "application/xhtml+xml") or kind.endswith("+json")


class WholeBody:
    """Gathers a body that is labelled as one piece."""

    def __init__(self, content_type: str) -> None:
        self._content_type = content_type
        self._body = bytearray()
        self._decided = False

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return len(self._body)

    def feed(self, data: bytes) -> bytes | None:
        """Keep ``data``; return all of the body if it is an event stream with the wrong label."""
        self._body += data
        if self._decided:
            return None
        start = bytes(self._body[: 4 * _LONGEST_FIELD]).lstrip()
        if start.startswith(_FIELDS):
            return bytes(self._body)
        self._decided = len(start) >= _LONGEST_FIELD
        return None

    def answer(self) -> CompletionChunk:
        """Return the chunk that the body amounts to: the whole answer, or an error."""
        body = bytes(self._body)
        if not body.strip():
            return failed(StreamTruncatedError("the body ended without one event"))
        try:
            value = best_loads()(body)
        except ValueError:
            value = None
        if not isinstance(value, Mapping):
            start = " ".join(body[:200].decode("utf-8", "replace").split())
            return failed(StreamDecodeError(f"expected an event stream, got {self._content_type}: {start!r}"))
        chunk = chunk_of(value)
        if chunk.error is None and not chunk.choices:
            chunk.error = StreamDecodeError(f"expected an event stream, got {self._content_type} without choices")
        chunk.is_last_chunk = chunk.error is None
        return chunk

"""From one event to one chunk, whatever dialect of "an error happened" the server speaks.

Seen on real servers, and read here: ``{"error": {...}}`` and ``{"error": "text"}``; ``{"object": "error", ...}``;
``{"detail": ...}``; ``x_groq.error``; ``event: error``; an ``error:`` field instead of ``data:``; raw JSON with no
``data:`` at all, pretty-printed too; a choice whose finish reason is ``"error"``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Literal

from ..errors import ChanstreamError, StreamAPIError, StreamDecodeError
from ..models.chunk import CompletionChunk, piece_of
from ..models.codec import best_loads, fast_loads
from .framing import EventParser, blocks_of

_UNKNOWN = 10**15 + secrets.randbits(49)
"""Parts the events that `Decoder.pieces` reads as one JSON value; another number in each process."""


class Signal(Enum):
    """What an event may be that is no chunk."""

    DONE = auto()
    """``[DONE]``: the server's full stop."""


class Decoder:
    """Turns blocks of an event stream into chunks."""

    def __init__(self) -> None:
        self._loads = best_loads()
        self._fast_loads = fast_loads()
        self._events = EventParser()

    def decode(self, block: bytes) -> CompletionChunk | Literal[Signal.DONE] | None:
        """Return the chunk of a block, the full stop, or None for what carries no data (comments, pings).

        What cannot be read is a chunk with a `StreamDecodeError`; what the server says went wrong, one with a
        `StreamAPIError`.
        """
        if block.startswith(b"data:") and b"\n" not in block:  # nearly every block: one plain data line
            return self._decode_data(block[5:].strip(), "message", block)
        event = self._events.parse(block)
        if event is None:
            return self._decode_stray(block)
        return self._decode_data(event.data.strip().encode(), event.event, block)

    def pieces(self, events: bytes) -> tuple[list[CompletionChunk], list[bytes]]:
        """Return the chunks of those events at the front that are plain pieces of an answer, and the other blocks.

        What `decode` would return for each, at a quarter of its cost: nearly always all events are single lines of
        JSON. Then they are one line of JSON too, once what parts them is replaced; with a number that no server can
        know, so that one that sends half an object finds no way to make it whole with the next.
        """
        if events.find(b"\n") == len(events) - 2:  # one line: the usual case where tokens come in their own time
            try:
                piece = piece_of(self._fast_loads(events[5:])) if events.startswith(b"data:") else None
            except ValueError:  # [DONE], for one
                piece = None
            return ([], [events[:-2]]) if piece is None else ([piece], [])
        prefix = b"data: " if events.startswith(b"data: ") else b"data:"
        lines = events.removeprefix(prefix)[:-2].removesuffix(b"\n\ndata: [DONE]")
        try:
            values = self._loads(b"[%b]" % lines.replace(b"\n\n" + prefix, b",%d," % _UNKNOWN))
        except ValueError:
            return [], blocks_of(events)
        chunks: list[CompletionChunk] = []
        if values[1::2] == [_UNKNOWN] * (len(values) // 2):
            for value in values[::2]:
                piece = piece_of(value)
                if piece is None:
                    break
                chunks.append(piece)
        if 2 * len(chunks) > len(values) and len(lines) + len(prefix) + 2 == len(events):
            return chunks, []
        return chunks, blocks_of(events)[len(chunks) :]

    def _decode_data(self, data: bytes, kind: str, block: bytes) -> CompletionChunk | Literal[Signal.DONE] | None:
        if data == b"[DONE]":
            return Signal.DONE
        if not data:
            return None
        try:
            value = self._loads(data)
        except ValueError:
            value = self._salvaged(block)
        if isinstance(value, dict):
            return chunk_of(value, kind)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return chunk_of(value[0], kind)  # Google's OpenAI-compatible servers put the error in a list
        if kind not in ("message", "error"):
            return None  # an event of a type that chat does not know, such as a ping with a time in it
        return failed(StreamDecodeError(f"an event of the stream is no JSON object: {_start_of(data)}"))

    def _decode_stray(self, block: bytes) -> CompletionChunk | None:
        """Return the chunk of a block without any data field, if there is JSON in it all the same."""
        value = self._salvaged(block)
        return chunk_of(value, "message") if value is not None else None

    def _salvaged(self, block: bytes) -> dict[str, Any] | None:
        """Return the JSON object that a block holds once its first field name is taken away."""
        text = block.strip().removeprefix(b"data:").removeprefix(b"error:").strip()
        if not text.startswith((b"{", b"[")):
            return None
        try:
            value = self._loads(text)
        except ValueError:
            return None
        if isinstance(value, list) and value:
            value = value[0]
        return value if isinstance(value, dict) else None


def chunk_of(data: Mapping[str, Any], kind: str = "message") -> CompletionChunk:
    """Return the chunk of a JSON object, with its error set where the server reports one."""
    try:
        chunk = CompletionChunk.from_dict(data)
        chunk.error = _error_in(data, kind) or _error_finish(chunk)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        return failed(StreamDecodeError(f"an event of the stream is no chunk: {error}"), data)
    return chunk


def failed(error: ChanstreamError, raw: Mapping[str, Any] | None = None) -> CompletionChunk:
    """Return a chunk that carries nothing but an error."""
    return CompletionChunk(error=error, raw=raw or {})


def _error_in(data: Mapping[str, Any], kind: str) -> StreamAPIError | None:
    """Return the error that an object reports in so many words."""
    groq = data.get("x_groq")
    if groq and groq.get("error"):
        return _api_error({"error": groq["error"]})
    says_so = data.get("error") or data.get("object") == "error" or kind == "error"
    if says_so or ("choices" not in data and _looks_like_error(data)):
        return _api_error(data)
    return None


def _looks_like_error(data: Mapping[str, Any]) -> bool:
    """Return whether an object without choices has FastAPI's or the older servers' form of an error."""
    return "detail" in data or ("message" in data and ("type" in data or "code" in data))


def _error_finish(chunk: CompletionChunk) -> StreamAPIError | None:
    """Return the error of a choice that ended with the finish reason ``"error"``, as Mistral reports one."""
    if any(choice.finish_reason == "error" for choice in chunk.choices):
        return StreamAPIError("the server ended the answer with finish_reason 'error'", type="error", body=chunk.raw)
    return None


def _api_error(body: Mapping[str, Any]) -> StreamAPIError:
    error = StreamAPIError.from_body(body)
    assert isinstance(error, StreamAPIError)
    return error


def _start_of(data: bytes, limit: int = 200) -> str:
    """Return the beginning of ``data`` for an error text."""
    text = repr(data[:limit].decode("utf-8", "replace"))
    return text if len(data) <= limit else f"{text}... ({len(data)} bytes)"

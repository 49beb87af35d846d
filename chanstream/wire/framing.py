"""From bytes to server-sent events, exact to the standard.

The standard is https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6. The strategy: turn
every line ending into LF as the bytes come (CRLF may be split between two reads), so that an event ends where two LF
meet; then hand the event's lines to sseclient-py, which knows the fields. What the standard says and sseclient-py does
not do, one BOM at the start, ids that persist, bad ids and retries, bad UTF-8, half an event at the end, is done here.

Work is linear in the bytes, whatever the split: a search resumes where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
from sseclient import Event, SSEClient

_BOM = b"\xef\xbb\xbf"


@attrs.frozen
class ServerSentEvent:
    """An event of a stream.

    Attributes:
        event: Its type; ``"message"`` where the server names none.
        data: Its data lines, joined by LF.
        id: The last event id, which persists from event to event; "" before the first.
        retry: Milliseconds to wait before reconnecting, where this event's own lines say so.
    """

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: int | None = None


class Framing:
    """Finds the ends of events in a stream of bytes.

    Attributes:
        unfinished: The lines of the event that is not finished, line endings already LF.
    """

    def __init__(self) -> None:
        self.unfinished = bytearray()
        self._at_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the events that ``data`` completes, line endings LF; see `blocks_of`."""
        if self._at_start:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._with_lf(data)
        rest = self.unfinished
        if rest:
            seen = len(rest) - 1  # the first LF of a pair may be the last byte that we have
            rest += data
            if rest.find(b"\n\n", seen) < 0:
                return b""
            data = bytes(rest)
            rest.clear()
        last = data.rfind(b"\n\n")
        if last < 0:
            rest += data
            return b""
        end = last + 2
        if data[last - 1 : last] == b"\n":  # pairs count from the left: an odd one begins the next event
            end -= (end - len(data[:end].rstrip(b"\n"))) % 2
        if end < len(data):
            rest += data[end:]
        return data[:end]

    @property
    def rest_size(self) -> int:
        """How many bytes of an unfinished event are held, without the line ending that may be its last."""
        return len(self.unfinished) - self.unfinished.endswith(b"\n")

    def _without_bom(self, data: bytes) -> bytes:
        """Return ``data`` without the BOM that may open the stream ("one leading BOM, if any, is ignored")."""
        data = bytes(self.unfinished) + data
        self.unfinished.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self.unfinished += data
            return b""
        self._at_start = False
        return data.removeprefix(_BOM)

    def _with_lf(self, data: bytes) -> bytes:
        """Return ``data`` with LF for CRLF and CR.

        A CR at the end counts as a line ending at once, so that an event is not held back; the LF that may follow it
        in the next read is dropped then.
        """
        if self._after_cr:
            if not data:
                return data
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def blocks_of(events: bytes) -> list[bytes]:
    """Return the lines of each of the events that `Framing.feed` returned, without the blank lines that end them."""
    return events[:-2].split(b"\n\n") if events else []


class EventParser:
    """Reads the fields of blocks; keeps the last event id, which persists."""

    def __init__(self) -> None:
        self.last_id = ""

    def parse(self, block: bytes) -> ServerSentEvent | None:
        """Return the event of a block; None where the standard dispatches none."""
        if not block.strip():
            return None
        text = block.decode("utf-8", "replace").encode()  # the standard's decoder replaces what is no UTF-8
        lines = [line for line in text.split(b"\n") if line and _counts(line)]
        kind, retry = "message", None
        pieces = []
        # sseclient-py takes time quadratic in an event's lines, so it gets some at a time, and the type so far.
        for start in range(0, len(lines), _LINES):
            event = _fields(kind, lines[start : start + _LINES])
            kind, retry = event.event, event.retry or retry
            pieces.append(event.data)
            if event.id is not None:
                self.last_id = event.id
        data = "".join(pieces)
        if not data:
            return None
        return ServerSentEvent(kind, data[:-1], self.last_id, None if retry is None else int(retry))


def _fields(kind: str, lines: list[bytes]) -> Event:
    """Return what sseclient-py reads in some lines of an event that has been of type ``kind`` so far.

    It drops an event without data, and its id and retry with it. One more, empty, data line makes it hand on every
    event: ``data`` is then the data lines with LF after each, and "" where there are none.
    """
    block = b"\n".join([b"event: " + kind.encode(), *lines, b"data", b"", b""])
    return next(SSEClient(iter((block,))).events())


_LINES = 64


def _counts(line: bytes) -> bool:
    """Return whether a line has an effect; sseclient-py does not know of two that have none.

    "If the field value does not contain U+0000 NULL, then set the last event ID buffer to the field value. Otherwise,
    ignore the field." "If the field value consists of only ASCII digits", likewise, for ``retry``.
    """
    name, _, value = line.partition(b":")
    if name == b"id":
        return b"\0" not in value
    if name == b"retry":
        return value.removeprefix(b" ").isdigit() and len(value) < _MOST_DIGITS
    return True


_MOST_DIGITS = 4000
"""Python refuses to read longer numbers; as milliseconds they outlive the universe anyway."""


def decode_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Return an iterator over the events of a byte stream, exact to the WHATWG text.

    Args:
        chunks: The stream's bytes, split anywhere.

    Each event is handed on as soon as the blank line that ends it is there; an unfinished one at the end is discarded,
    as the standard has it.
    """
    framing, parser = Framing(), EventParser()
    for chunk in chunks:
        for block in blocks_of(framing.feed(chunk)):
            event = parser.parse(block)
            if event is not None:
                yield event

"""The bytes of one answer, in the order in which they go out; no I/O and no waiting.

```
Reply -content-> events -coding-> coded events -framing-> what the player writes
```
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping

import attrs

from . import http11
from .content import content_of, pieces
from .reply import Framing, Reply
from .request import Headers, RecordedRequest

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's way to name the two containers; HTTP's "deflate" is the zlib one
_BODILESS_STATUS = frozenset({204, 304})


class Coding:
    """The content coding of one body; without one, bytes pass unchanged."""

    def __init__(self, name: str | None = None) -> None:
        """Begins a coded body: `"gzip"`, `"deflate"` or None."""
        self._compressor = None if name is None else zlib.compressobj(wbits=_WINDOW_BITS[name])
        self._tail: bytes | None = None

    def encode(self, data: bytes) -> bytes:
        """Returns the coded form of `data`, flushed: all that was sent so far can be decoded."""
        if self._compressor is None:
            return data
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """Returns what ends the coded body; the same whenever it is asked."""
        if self._tail is None:
            self._tail = b"" if self._compressor is None else self._compressor.flush()
        return self._tail


@attrs.frozen
class Response:
    """One answer, ready to be played.

    Args:
        head: The head's bytes.
        events: The coded events of the body, made when asked for.
        coding: Codes what comes between the events, and ends the body.
        framing: How the body's bytes are wrapped; None leaves them alone.
        pings: Seconds of silence before each comment.
        keep: Whether the connection lives on after the clean end.
        verbatim: Whether the head is no different from the body's bytes (a `raw` reply).
    """

    head: bytes
    events: Iterable[bytes]
    coding: Coding = attrs.field(factory=Coding)
    framing: Framing | None = None
    pings: float = math.inf
    keep: bool = True
    verbatim: bool = False

    def frame(self, data: bytes) -> bytes:
        """Returns body bytes as they go over the wire."""
        return http11.chunk(data) if self.framing == "chunked" else data

    @property
    def last(self) -> bytes:
        """What tells the client that the body is complete."""
        return http11.LAST_CHUNK if self.framing == "chunked" else b""


def respond(reply: Reply, request: RecordedRequest, serial: int) -> Response:
    """Returns the bytes of `reply` to `request`.

    Args:
        reply: What the script says.
        request: What is answered.
        serial: Makes the answer's id differ from the others'.
    """
    if reply.raw is not None:
        return _verbatim(reply, reply.raw, request)
    content = content_of(reply, request, serial)
    bodiless = request.method == "HEAD" or reply.status in _BODILESS_STATUS
    framing = None if bodiless else _framing(reply, request)
    coding = Coding(None if bodiless else reply.compress)
    events: Iterable[bytes] = () if bodiless else map(coding.encode, content.events)
    fields = {"Content-Type": reply.content_type or content.content_type}
    if reply.compress:
        fields["Content-Encoding"] = reply.compress
    if framing == "content-length":
        events = [*events]
        fields["Content-Length"] = str(_promised(reply, events, coding.finish()))
    elif framing == "chunked":
        fields["Transfer-Encoding"] = "chunked"
    if framing == "close" or not request.keep_alive:
        fields["Connection"] = "close"
    headers = _replaced(fields, reply.headers)
    pings = reply.pings if reply.pings and content.pingable else math.inf
    keep = not Headers(headers.items()).says("Connection", "close")
    return Response(http11.head(reply.status, headers), events, coding, framing, pings, keep)


def _verbatim(reply: Reply, raw: bytes, request: RecordedRequest) -> Response:
    end = raw.find(http11.HEAD_END)
    body_at = len(raw) if end < 0 else end + len(http11.HEAD_END)
    head, body = raw[:body_at], raw[body_at:]
    cut = reply.cut_at is not None and reply.cut_at < len(body)
    keep = request.keep_alive and http11.ends_itself(head) and not cut
    return Response(head, pieces(body, reply.split), keep=keep, verbatim=True)


def _framing(reply: Reply, request: RecordedRequest) -> Framing:
    """Returns the framing that the client can read: chunks came with HTTP/1.1."""
    return "close" if reply.framing == "chunked" and request.http_version == "1.0" else reply.framing


def _promised(reply: Reply, events: list[bytes], tail: bytes) -> int:
    """Returns the length to announce: what will be sent, or more than that where the framing is to stay unfinished."""
    total = sum(map(len, events)) + len(tail)
    stalls = reply.stall_after is not None and reply.stall_after <= len(events)
    stall_at = sum(map(len, events[: reply.stall_after])) if stalls else math.inf
    cut_at = math.inf if reply.cut_at is None else reply.cut_at
    sent = int(min(total, stall_at, cut_at))
    finished = reply.end == "clean" and cut_at <= stall_at  # both endless: neither cut nor stalled
    return sent if finished else max(total, sent + 1)


def _replaced(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the server's own fields and the given ones, which replace those of the same name."""
    names = {name.lower() for name in given}
    return {**{name: value for name, value in own.items() if name.lower() not in names}, **given}

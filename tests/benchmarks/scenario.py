"""What a stream is made of. A client names its scenario as the request's model, so every client can pass it.

- ``fast:COUNT:SIZE``: COUNT events of SIZE bytes each, as fast as the connection takes them.
- ``paced:GROUP:INDEX:OF:COUNT:RATE:TICK``: one event with the head, and COUNT more at RATE per second once the group is
  told to go. Each begins with the server's monotonic clock, in nanoseconds. The phases of the OF streams of a group are
  spread evenly over one interval, and rounded up to the server's next tick, in milliseconds; with 0, no two events come
  at once. A group without a name goes at once.
- ``go:GROUP``, ``report:GROUP``: the control words of whoever measures.

Every event is an HTTP chunk of its own. The last one carries the finish reason, and is sent together with ``[DONE]``
and the end of the body.
"""

from __future__ import annotations

import json

STAMP_DIGITS = 20

_BEFORE = (
    b'data: {"id":"chatcmpl-9f8e7d6c5b4a39281706","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"'
)
_AFTER = b'"},"finish_reason":null}]}\n\n'
_AFTER_LAST = b'"},"finish_reason":"stop"}]}\n\n'

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def fast(count: int, size: int) -> str:
    """Return the model's name for a stream without pauses."""
    return f"fast:{count}:{size}"


def paced(group: str, index: int, of: int, *, count: int, rate: float, tick_ms: float) -> str:
    """Return the model's name for stream ``index`` of the ``of`` streams of a group."""
    return f"paced:{group}:{index}:{of}:{count}:{rate}:{tick_ms}"


def phase(index: int, of: int, rate: float) -> float:
    """Return how many seconds after the start of its group a stream's first paced event is due."""
    return index / of / rate


def characters(size: int) -> int:
    """Return the length of the text in an event of ``size`` bytes."""
    return size - len(_BEFORE) - len(_AFTER)


def fast_body(count: int, size: int) -> bytes:
    """Return the whole body of a stream without pauses."""
    room = characters(size)
    events = [_http_chunk(_BEFORE + (b"%d " % i).ljust(room, b"x")[:room] + _AFTER) for i in range(count - 1)]
    return b"".join(events) + _http_chunk(_BEFORE + b"x" * room + _AFTER_LAST) + _END


def stamped(nanoseconds: int, *, last: bool) -> bytes:
    """Return a paced event, as bytes of the wire; the last one with all that ends a stream."""
    if last:
        return _http_chunk(_BEFORE + b"%020d token" % nanoseconds + _AFTER_LAST) + _END
    return _STAMPED % nanoseconds


def request(model: str) -> bytes:
    """Return the request for a stream, for clients that write their own."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_END = _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_STAMPED = _http_chunk(_BEFORE + b"%020d token" % 0 + _AFTER).replace(b"0" * STAMP_DIGITS, b"%020d")

"""What the tests of bodies share: streams of given chunks, and what the other side reads of a body."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import attrs

from chanstream import CompletionChunk, CompletionStream, Context
from chanstream.channel import Pipe
from chanstream.transport.head import head_of
from chanstream.wire.framing import decode_events
from chanstream.wire.machine import StreamMachine


def stream_of(chunks: Iterable[CompletionChunk]) -> CompletionStream:
    """Return a stream that has ended and whose chunks wait to be taken."""
    pipe: Pipe[CompletionChunk] = Pipe()
    pipe.end(chunks)
    pipe.close()
    return CompletionStream(pipe, Context(), head_of(200, {}))


def chunks_of(pieces: Iterable[bytes], **settings: Any) -> list[CompletionChunk]:
    """Return the chunks that the bytes of an event stream make, however they are cut."""
    machine = StreamMachine(0.0, **settings)
    chunks = [chunk for piece in pieces for chunk in machine.feed(piece, 0.0)]
    return chunks + machine.eof(0.0)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the bytes in pieces, cut at these places."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@attrs.define
class Read:
    """What a page makes of an event stream, with the few lines that one is usually read with.

    Attributes:
        text: The text of the first choice. done: Whether ``[DONE]`` came. error: What an error event told.
        usage: The last token counts. objects: All JSON objects.
    """

    text: str = ""
    done: bool = False
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    objects: list[dict[str, Any]] = attrs.field(factory=list)


def read(body: Iterable[bytes]) -> Read:
    """Read a body to its end."""
    seen = Read()
    for event in decode_events(body):
        assert not seen.done
        assert seen.error is None
        if event.data == "[DONE]":
            seen.done = True
            continue
        told = json.loads(event.data)
        if event.event == "error":
            seen.error = told["error"]
            continue
        assert told["object"] == "chat.completion.chunk"
        seen.objects.append(told)
        seen.usage = told.get("usage") or seen.usage
        for choice in told["choices"]:
            if choice["index"] == 0:
                seen.text += choice["delta"].get("content") or ""
    return seen

"""What each step costs a chunk on its way from the socket to the loop: ``python -m tests.benchmarks.steps``.

All steps run in this thread, one after the other, on the bytes of a fast stream; so this is their work alone, without
sockets and changes of threads. How it works, in the docs, has a table of one run.
"""

# ruff: noqa: D102 - what the methods do, the table says

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from chanstream import Channel
from chanstream.channel import Pipe
from chanstream.models.chunk import CompletionChunk, piece_of
from chanstream.models.codec import best_loads
from chanstream.wire.body import Chunked
from chanstream.wire.decoding import Decoder
from chanstream.wire.framing import Framing, blocks_of
from chanstream.wire.machine import StreamMachine

_CHUNKS = 2000
_BLOCK = 65536
_EVENT = (
    'data: {"id":"chatcmpl-9f8e7d6c5b4a39281706","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    '"choices":[{"index":0,"delta":{"content":" token %04d of the answer"},"finish_reason":null}]}\n\n'
)


def best(step: Callable[[], object]) -> float:
    """Return the least microseconds of CPU per chunk of several runs."""
    times = []
    for _ in range(15):
        begun = time.process_time()
        step()
        times.append(time.process_time() - begun)
    return min(times) / _CHUNKS * 1e6


class Steps:
    """The steps, each on what the one before it makes."""

    def __init__(self) -> None:
        self.events = [(_EVENT % number).encode() for number in range(_CHUNKS)]
        wire = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in self.events)
        self.blocks = [wire[at : at + _BLOCK] for at in range(0, len(wire), _BLOCK)]
        self.payloads = self.unframe()
        self.framed = self.find_events()
        self.values = self.decode_alone()
        self.chunks = self.run_machine()

    def unframe(self) -> list[bytes]:
        body = Chunked()
        return [body.feed(block) for block in self.blocks]

    def find_events(self) -> list[bytes]:
        framing = Framing()
        return [framing.feed(payload) for payload in self.payloads]

    def decode_alone(self) -> list[Any]:
        loads = best_loads()
        return [loads(event[6:]) for event in self.events]

    def build(self) -> None:
        for value in self.values:
            piece_of(value)

    def decode(self) -> None:
        decoder = Decoder()
        for data in self.framed:
            decoder.pieces(data)

    def decode_in_general(self) -> None:
        decoder = Decoder()
        for data in self.framed:
            for block in blocks_of(data):
                decoder.decode(block)

    def run_machine(self) -> list[list[CompletionChunk]]:
        machine = StreamMachine(0.0)
        return [machine.feed(payload, 1.0) for payload in self.payloads]

    def pass_on(self) -> None:
        pipe: Pipe[CompletionChunk] = Pipe(0)
        for burst in self.chunks:
            pipe.offer(burst)
        pipe.close()
        for chunk in Channel(pipe=pipe):
            len(chunk.text)


def main() -> None:
    """Print the table."""
    steps = Steps()
    for name, step in {
        "HTTP chunks off (wire.body)": steps.unframe,
        "ends of events found (wire.framing)": steps.find_events,
        "one JSON value decoded, alone": steps.decode_alone,
        "one chunk built of it (models.chunk.piece_of)": steps.build,
        "events to chunks, many at a time (wire.decoding)": steps.decode,
        "the same, each alone and in the general way": steps.decode_in_general,
        "all of the machine: events found, decoded, stamped": steps.run_machine,
        "into the channel, out of it, its text read": steps.pass_on,
    }.items():
        sys.stdout.write(f"{name:55s} {best(step):6.2f}\n")


if __name__ == "__main__":
    main()

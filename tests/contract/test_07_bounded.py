"""Promise 7: bounded.

A consumer that takes nothing stops the server, memory does not grow with what the server could send, an event has a
largest size, and work is linear in bytes, whatever the split.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest

from chanstream import Client, CompletionChunk, CompletionStream, EventTooLargeError, Timeout
from chanstream.testing import Reply
from chanstream.wire.assembly import Assembler
from chanstream.wire.framing import decode_events
from chanstream.wire.machine import StreamMachine
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 1024 * 1024
SOCKET_BUFFERS = 24 * MIB
"""More than the kernel keeps for both ends of a connection on loopback."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text: str) -> bytes:
    """Return an event with a delta."""
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()


def sized_event(size: int) -> bytes:
    """Return an event whose block, without the blank line after it, has so many bytes."""
    return event("x" * (size + 2 - len(event(""))))


class Flood:
    """A server that answers one request with the same bytes again and again, as fast as they are taken.

    Attributes:
        sent: Bytes that the kernel has taken from it so far.
    """

    def __init__(self, block: bytes, tls: ssl.SSLContext | None) -> None:
        self._block = block
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._moved_at = time.monotonic()
        self.sent = 0

    @property
    def url(self) -> str:
        """The address."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def stands_still(self) -> bool:
        """Return whether it has sent something, and then nothing for a while."""
        return self.sent > 0 and time.monotonic() - self._moved_at > 0.2 * SCALE

    def is_left(self) -> bool:
        """Return whether it has noticed that its client is gone."""
        return not self._thread.is_alive()

    def _serve(self) -> None:
        plain, _ = self._listener.accept()
        with plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True) as self._peer:
            self._peer.recv(65536)
            self._peer.sendall(HEAD)
            with contextlib.suppress(OSError):  # the client has left
                while True:
                    self._peer.sendall(self._block)
                    self.sent += len(self._block)
                    self._moved_at = time.monotonic()

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        if self._peer is not None:
            with contextlib.suppress(OSError):  # it is closed: the client has left
                socket.socket.shutdown(self._peer, socket.SHUT_RDWR)
        self._thread.join(10)


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """A function that returns the most bytes that Python has held since the test began."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


class TestBackpressure:
    @pytest.mark.parametrize("size", [100, 10_000, MIB], ids=["small events", "large events", "huge events"])
    def test_reaches_the_server(self, link: Link, size: int) -> None:
        """A server that sends without end stands still while nobody takes, goes on, and hears at once of a close."""
        block = sized_event(size) * max(1, 10_000 // size)
        with Flood(block, link.tls) as server, link.client(server.url, buffer=4) as client:
            stream = client.chat_completion_stream(REQUEST)
            assert within(10, server.stands_still)
            stood_at = server.sent
            assert stood_at < SOCKET_BUFFERS
            assert within(5, lambda: stream.statistics().waiting_putters == 1)
            while server.sent < stood_at + MIB:
                assert stream.get(timeout=5).error is None
            assert within(10, server.stands_still)
            assert stream.statistics().most_depth == 4
            stream.close()
            assert within(PROMPT, server.is_left)

    @pytest.mark.parametrize("buffer", [1, 7])
    @pytest.mark.parametrize("where", ["client", "call"])
    def test_the_capacity_is_exact(self, link: Link, buffer: int, where: str) -> None:
        """No more chunks wait than the buffer of the client, or of the call, has places."""
        server = link.serve("one two three four five six seven eight nine ten")
        client = link.client(server, buffer=buffer if where == "client" else 3)
        stream = client.chat_completion_stream(REQUEST, buffer=buffer if where == "call" else None)
        assert within(5, lambda: stream.statistics().waiting_putters == 1)
        assert stream.qsize() == stream.maxsize == buffer
        assert len(list(stream)) == 11

    def test_the_capacity_is_1024_by_default(self, link: Link) -> None:
        """Without a word about it 1024 chunks wait, and the rest comes as they are taken."""
        stream = link.stream(Reply([f"{number} " for number in range(3000)]))
        assert within(10, lambda: stream.statistics().waiting_putters == 1)
        assert stream.qsize() == 1024
        assert [chunk.text for chunk in stream] == [*(f"{number} " for number in range(3000)), ""]
        assert stream.statistics().most_depth <= 1024 + 1  # the end never waits for room

    def test_memory(self, link: Link, memory: Callable[[], int]) -> None:
        """A stream of 30 MB that is taken chunk by chunk never holds more than a few read buffers of it."""
        with Flood(sized_event(10_000), link.tls) as server, link.client(server.url, buffer=8) as client:
            stream = client.chat_completion_stream(REQUEST)
            for _ in range(3000):
                assert len(stream.get(timeout=5).text) > 9000
            assert memory() < 4 * MIB
            stream.close()
            assert within(PROMPT, server.is_left)


def ending(stream: CompletionStream) -> BaseException | None:
    """Return the error that a stream ends with; None if it ends well."""
    *_, last = stream
    return last.error


class TestTheLargestEvent:
    @pytest.mark.parametrize("split", [None, 1, 2, 11], ids=["whole", "1", "2", "11"])
    @pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
    def test_is_exact(self, plain: Link, split: int | None, newline: bytes) -> None:
        """An event of max_event_bytes is read and one of a byte more is not, whatever the split and the newlines."""
        done = b"data: [DONE]\n\n"
        fits, too_large = ((sized_event(size) + done).replace(b"\n", newline) for size in (1000, 1001))
        server = plain.serve(Reply(body=fits, split=split), Reply(body=too_large, split=split))
        client = plain.client(server, max_event_bytes=1000)
        assert ending(client.chat_completion_stream(REQUEST)) is None
        assert isinstance(ending(client.chat_completion_stream(REQUEST)), EventTooLargeError)

    def test_is_8_mib_by_default(self, link: Link) -> None:
        """Without a word about it an event of 8 MiB comes whole, and a larger one does not."""
        largest = 8 * MIB
        done = b"data: [DONE]\n\n"
        server = link.serve(Reply(body=sized_event(largest) + done), Reply(body=sized_event(largest + 1) + done))
        client = link.client(server)
        text = client.chat_completion_stream(REQUEST).collect().text
        assert len(text) == largest - len(event("")) + 2
        assert isinstance(ending(client.chat_completion_stream(REQUEST)), EventTooLargeError)

    def test_what_came_before_it_is_delivered(self, link: Link) -> None:
        """Events before the one that is too large are delivered, in one piece with it or not."""
        body = event("one") + event("two") + sized_event(2000)
        for split in (None, 100):
            first, second, last = link.stream(Reply(body=body, split=split), max_event_bytes=1000)
            assert (first.text, second.text) == ("one", "two")
            assert isinstance(last.error, EventTooLargeError)
            assert "1000 bytes (max_event_bytes)" in str(last.error)

    @pytest.mark.parametrize("block", [b"x" * 4096, b": " + b"x" * 4094, b"data: x\n" * 512], ids=["junk", ":", "data"])
    def test_a_line_without_end(self, link: Link, block: bytes, memory: Callable[[], int]) -> None:
        """A server that never ends its event is left at the limit, its connection closed, and memory given back."""
        with Flood(block, link.tls) as server, link.client(server.url, max_event_bytes=MIB) as client:
            (chunk,) = client.chat_completion_stream(REQUEST)
            assert isinstance(chunk.error, EventTooLargeError)
            assert memory() < 8 * MIB
            assert within(PROMPT, server.is_left)

    def test_a_whole_answer_in_a_stream(self, link: Link) -> None:
        """A body that is labelled as JSON is held to the same limit."""
        reply = Reply.json({"choices": [{"message": {"content": "x" * 2000}, "finish_reason": "stop"}]})
        assert isinstance(ending(link.stream(reply, max_event_bytes=1000)), EventTooLargeError)
        assert ending(link.stream(reply, max_event_bytes=3000)) is None

    def test_a_compressed_flood(self, link: Link, memory: Callable[[], int]) -> None:
        """A few bytes that unpack to very many end at the limit without ever being unpacked as a whole."""
        body = gzip.compress(b"data: " + b"x" * (64 * MIB))
        tracemalloc.reset_peak()  # what packing it took does not count
        reply = Reply(body=body, headers={"Content-Encoding": "gzip"})
        assert isinstance(ending(link.stream(reply, max_event_bytes=MIB)), EventTooLargeError)
        assert memory() < 8 * MIB

    @pytest.mark.parametrize("limit", [0, -1])
    def test_must_be_positive(self, limit: int) -> None:
        """A limit that no event could keep is refused at once, by name."""
        with pytest.raises(ValueError, match="max_event_bytes"):
            Client("key", max_event_bytes=limit)


def machine_time(data: bytes, split: int) -> float:
    """Return the CPU seconds that a stream's bytes cost, in pieces of ``split`` bytes; the best of three."""

    def once() -> float:
        machine = StreamMachine(0.0, max_event_bytes=len(data))
        pieces = [data[start : start + split] for start in range(0, len(data), split)]
        begun = time.process_time()
        for piece in pieces:
            machine.feed(piece, 0.0)
        return time.process_time() - begun

    return min(once() for _ in range(3))


BODIES: dict[str, Callable[[int], bytes]] = {
    "one huge event": lambda size: b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * size),
    "many events": lambda size: event("word") * (size // len(event("word"))),
    "one event of many lines": lambda size: b"data: {\n" + b"data: \n" * (size // 7) + b"data: }\n\n",
    "comments": lambda size: b": ping\n\n" * (size // 8),
    "an unfinished comment": lambda size: b":" * size,
    "CRLF": lambda size: b": ping\r\n\r\n" * (size // 10),
    "line ends only": lambda size: b"\r\n" * (size // 2),
}


class TestLinearWork:
    @pytest.mark.parametrize("split", [1, 100, MIB], ids=["byte by byte", "by hundreds", "whole"])
    @pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
    def test_of_the_machine(self, body: Callable[[int], bytes], split: int) -> None:
        """Eight times the bytes cost about eight times the work, not sixty-four times."""
        size = 3_000 if split == 1 else 12_000
        small, large = machine_time(body(size), split), machine_time(body(8 * size), split)
        assert large < 24 * max(small, 0.0002)

    def test_of_decode_events(self) -> None:
        """The SSE layer on its own is linear in the size of an event, too."""

        def cost(lines: int) -> float:
            pieces = [b"data: some text\r\n"] * lines + [b"\r\n"]
            begun = time.process_time()
            (decoded,) = decode_events(pieces)
            assert decoded.data.count("\n") == lines - 1
            return time.process_time() - begun

        assert min(cost(40_000) for _ in range(3)) < 24 * min(cost(5_000) for _ in range(3))

    def test_over_the_wire(self, link: Link) -> None:
        """An event of 4 MiB that comes in thousands of pieces takes its bytes' time."""
        reply = Reply(body=sized_event(4 * MIB) + b"data: [DONE]\n\n", split=2048)
        begun = time.process_time()
        assert len(link.stream(reply, timeout=Timeout(total=20 * SCALE)).collect().text) > 4_000_000
        assert time.process_time() - begun < 4 * SCALE

    def test_of_collecting(self) -> None:
        """What collect() does, joining text, thoughts and tool arguments of very many fragments, is linear."""
        call = {"index": 0, "function": {"name": "f", "arguments": '"k": "v",'}}
        delta = {"content": "word ", "reasoning": "thought ", "tool_calls": [call]}
        chunk = CompletionChunk.from_dict({"choices": [{"index": 0, "delta": delta}]})

        def cost(fragments: int) -> float:
            answer = Assembler()
            begun = time.process_time()
            for _ in range(fragments):
                answer.add(chunk)
            assert len(answer.response().text) == 5 * fragments
            return time.process_time() - begun

        assert min(cost(40_000) for _ in range(3)) < 24 * min(cost(5_000) for _ in range(3))

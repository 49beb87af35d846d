"""Promise 11: connections are reused.

What follows the answer is read, within bounds in bytes and time, so that streams in a row, or as many at once as
before, open no further connection.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chanstream import Client, CompletionStream, StreamAPIError
from chanstream.engines import flow
from chanstream.testing import Reply
from tests.conftest import PROMPT, REQUEST, SCALE, Link, at_most, within

pytestmark = pytest.mark.usefixtures("nothing_left")

DRAIN = 0.25 * SCALE
"""Seconds for which the end of a body is waited for, at most."""


def to_the_end(stream: CompletionStream) -> None:
    """Iterate to the end."""
    assert list(stream)[-1].is_last_chunk


def break_at_the_last_chunk(stream: CompletionStream) -> None:
    """Iterate and leave with the last chunk."""
    for chunk in stream:
        if chunk.is_last_chunk:
            break


def leave_a_with_block(stream: CompletionStream) -> None:
    """Take the last chunk, and leave a with block."""
    with stream:
        while not stream.get().is_last_chunk:
            pass


def collect(stream: CompletionStream) -> None:
    """Take the answer as a whole."""
    assert stream.collect().text == "one two"


def drop(stream: CompletionStream) -> None:
    """Take the last chunk, and leave the rest to the garbage collector."""
    while not stream.get().is_last_chunk:
        pass


CONSUMERS = pytest.mark.parametrize("consume", [to_the_end, break_at_the_last_chunk, leave_a_with_block, collect, drop])

REPLIES: dict[str, Reply] = {
    "usage on the finish chunk": Reply("one two"),
    "trailing usage": Reply("one two", usage_chunk=True),
    "no usage": Reply("one two", usage=False),
    "no [DONE]": Reply("one two", done=False),
    "no finish reason": Reply("one two", finish_reason=None),
    "content-length": Reply("one two", framing="content-length"),
    "gzip": Reply("one two", compress="gzip"),
    "deflate of known length": Reply("one two", compress="deflate", framing="content-length"),
}


def twenty_in_a_row(link: Link, reply: Reply, consume: Callable[[CompletionStream], None]) -> None:
    """Fail unless 20 streams in a row use one connection."""
    server = link.serve(reply)
    client = link.client(server)
    for _ in range(20):
        consume(client.chat_completion_stream(REQUEST))
    assert len(server.requests) == 20
    assert server.connections == 1


class TestInARow:
    @CONSUMERS
    @pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
    def test_20_streams_use_one_connection(
        self, plain: Link, reply: Reply, consume: Callable[[CompletionStream], None]
    ) -> None:
        """Whatever the server ends with, and however the consumer leaves, the next stream has the connection."""
        twenty_in_a_row(plain, reply, consume)

    @pytest.mark.parametrize("link", ["tls"], indirect=True)
    @CONSUMERS
    def test_so_they_do_with_tls(self, link: Link, consume: Callable[[CompletionStream], None]) -> None:
        """So it is with TLS, and with usage that trails."""
        twenty_in_a_row(link, Reply("one two", usage_chunk=True), consume)

    def test_whole_answers_and_streams(self, link: Link) -> None:
        """Answers without streaming share the connection with streams."""
        server = link.serve("one two")
        client = link.client(server)
        for _ in range(10):
            assert client.chat_completion(REQUEST).text == "one two"
            collect(client.chat_completion_stream(REQUEST))
        assert server.connections == 1

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    @pytest.mark.parametrize(
        "tail", [["[DONE]"], [], [b": the rest\n\n"] * 20], ids=["[DONE]", "nothing", "something more"]
    )
    def test_after_an_error_in_the_stream(self, link: Link, tail: list[str | bytes], errors: str) -> None:
        """An error that the server tells in the stream costs no connection."""
        begun = {"choices": [{"index": 0, "delta": {"content": "one"}}]}
        server = link.serve(Reply(chunks=[begun, {"error": {"message": "no"}}, *tail]))
        client = link.client(server, errors=errors)
        for _ in range(10):
            stream = client.chat_completion_stream(REQUEST)
            assert stream.get().text == "one"
            with pytest.raises(StreamAPIError) if errors == "raise" else contextlib.nullcontext():
                (last,) = stream
                assert isinstance(last.error, StreamAPIError)
        assert server.connections == 1

    def test_after_a_refusal(self, link: Link) -> None:
        """A request that the server refuses costs no connection."""
        server = link.serve(*[Reply.error(400), Reply("one two")] * 5)
        client = link.client(server)
        for _ in range(5):
            with pytest.raises(Exception, match=r"\[400\]"):
                client.chat_completion_stream(REQUEST)
            collect(client.chat_completion_stream(REQUEST))
        assert server.connections == 1

    def test_with_a_context(self, link: Link) -> None:
        """A late cancel, when the stream has ended, does not touch the connection that the next stream uses."""
        server = link.serve(Reply("one two"), Reply("one two", pace=0.1))
        client = link.client(server)
        first = client.chat_completion_stream(REQUEST)
        to_the_end(first)
        second = client.chat_completion_stream(REQUEST)
        assert second.get().text == "one"
        first.close()
        assert second.collect().text == " two"
        assert server.connections == 1


class TestTheDrainIsBounded:
    @pytest.mark.parametrize("usage_chunk", [True, False], ids=["trailing usage", "usage"])
    @pytest.mark.parametrize("consume", [to_the_end, collect])
    def test_in_time(self, link: Link, consume: Callable[[CompletionStream], None], usage_chunk: bool) -> None:
        """A server that holds the body open after [DONE] does not hold the consumer, nor the socket, for long."""
        server = link.serve(Reply("one two", end="hold", usage_chunk=usage_chunk))
        client = link.client(server)
        begun = time.monotonic()
        consume(client.chat_completion_stream(REQUEST))
        assert time.monotonic() - begun < at_most(DRAIN, begun, 2 * PROMPT)
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    def test_the_last_chunk_does_not_wait_for_it(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """The last chunk itself is delivered at once."""
        monkeypatch.setattr(flow, "DRAIN_SECONDS", 40 * PROMPT)
        stream = link.stream(Reply("one two", end="hold"))
        begun = time.monotonic()
        while not stream.get().is_last_chunk:
            pass
        assert time.monotonic() - begun < 2.5 * PROMPT

    @pytest.mark.parametrize("consume", [break_at_the_last_chunk, leave_a_with_block])
    def test_who_leaves_waits_even_less(
        self, link: Link, consume: Callable[[CompletionStream], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A consumer that leaves with the last chunk is held up for less than 50 ms, and the socket is free then."""
        monkeypatch.setattr("chanstream.stream._DRAIN_GRACE", 0.04 * SCALE)
        server = link.serve(Reply("one two", end="hold"))
        client = link.client(server)
        stream = client.chat_completion_stream(REQUEST)
        assert within(5, lambda: stream.qsize() == 3)
        begun = time.monotonic()
        consume(stream)
        assert time.monotonic() - begun < PROMPT
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    def test_in_time_with_pings(self, link: Link) -> None:
        """Comments after [DONE] do not prolong it."""
        pings = [b": ping\n\n"] * 1000
        done = {"choices": [{"delta": {"content": "one two"}, "finish_reason": "stop"}]}
        stream = link.stream(Reply(chunks=[done, "[DONE]", *pings], pace=0.01))
        begun = time.monotonic()
        to_the_end(stream)
        assert time.monotonic() - begun < at_most(DRAIN, begun, 2 * PROMPT)

    def test_in_bytes(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that sends very much after [DONE] loses its connection, and the consumer no time."""
        monkeypatch.setattr(flow, "DRAIN_SECONDS", 40 * PROMPT)
        done = b'data: {"choices":[{"delta":{"content":"one two"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        server = link.serve(Reply(body=done + b": more\n\n" * 1_000_000, split=65536), Reply("one two"))
        client = link.client(server)
        begun = time.monotonic()
        to_the_end(client.chat_completion_stream(REQUEST))
        assert time.monotonic() - begun < 5 * PROMPT
        assert server.wait_for(lambda s: s.open_connections == 0, 5)
        collect(client.chat_completion_stream(REQUEST))
        assert server.connections == 2

    def test_a_little_more_is_read(self, link: Link) -> None:
        """A few events after the end of the answer are read, so that the connection is kept."""
        done = b'data: {"choices":[{"delta":{"content":"one two"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        server = link.serve(Reply(body=done + b": more\n\n" * 1000, split=1000), Reply("one two"))
        client = link.client(server)
        to_the_end(client.chat_completion_stream(REQUEST))
        collect(client.chat_completion_stream(REQUEST))
        assert server.connections == 1


MORE_THAN_ONE_READ = Reply(["x" * 30_000] * 6)
"""An answer that does not end before somebody takes from it, if there is room for one chunk only."""


class TestAtOnce:
    def test_50_and_then_50_again(self, link: Link) -> None:
        """50 streams at the same time have a connection each, and the next 50 have the same ones."""
        server = link.serve(MORE_THAN_ONE_READ)
        client = link.client(server, buffer=1)
        for _ in range(2):
            together = threading.Barrier(50)
            with ThreadPoolExecutor(50) as pool:
                for answered in [pool.submit(one_of_many, client, together) for _ in range(50)]:
                    assert answered.result() == 180_000
            assert server.connections == 50
        assert len(server.requests) == 100

    def test_more_than_a_pool_of_requests_keeps(self, link: Link) -> None:
        """All connections of a burst are kept, not just the ten that requests would keep."""
        server = link.serve(MORE_THAN_ONE_READ)
        client = link.client(server, buffer=1)
        for stream in [client.chat_completion_stream(REQUEST) for _ in range(30)]:
            assert len(stream.collect().text) == 180_000
        assert server.connections == server.open_connections == 30

    def test_close_gives_them_up(self, link: Link) -> None:
        """client.close() closes the connections that no stream uses, at once, and no others."""
        server = link.serve(Reply("one two three", stall_after=2), "one two")
        client = link.client(server)
        live = client.chat_completion_stream(REQUEST)
        collect(client.chat_completion_stream(REQUEST))
        assert server.open_connections == 2
        client.close()
        assert server.wait_for(lambda s: s.open_connections == 1, PROMPT)
        assert [live.get().text, live.get().text] == ["one", " two"]
        live.close()

    def test_a_closed_client_opens_new_ones(self, link: Link) -> None:
        """A client that was closed can be used: it connects anew."""
        server = link.serve("one two")
        client = link.client(server)
        for number in range(1, 4):
            collect(client.chat_completion_stream(REQUEST))
            client.close()
            assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
            assert server.connections == number


def one_of_many(client: Client, together: threading.Barrier) -> int:
    """Return the size of an answer, of which all but the first chunk is taken when all others have begun."""
    stream = client.chat_completion_stream(REQUEST)
    first = stream.get()
    together.wait(20)
    return len(first.text) + sum(len(evt.text) for evt in stream)

"""Promise 8: cancel is instant.

However a stream is left, its socket, its producer and every blocked thread are free at once, with a silent server and
with a full channel.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import Any

import pytest

from chanstream import (
    APITimeoutError,
    ChannelClosedError,
    CompletionStream,
    Context,
    StreamCancelledError,
    Timeout,
)
from chanstream.testing import Reply, StreamServer
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENT_HEAD = Reply(stall_after=0)
SILENT_MIDDLE = Reply("one two three four", stall_after=2)
FLOOD = Reply([f"{number} " for number in range(5000)])  # more than any buffer between: its producer waits for room

SILENCES = pytest.mark.parametrize("reply", [SILENT_HEAD, SILENT_MIDDLE, FLOOD], ids=["no chunk", "middle", "full"])


def waiting(reply: Reply) -> int:
    """Return how many chunks of a reply end up in a channel for 4 that nobody reads."""
    return 0 if reply is SILENT_HEAD else 2 if reply is SILENT_MIDDLE else 4


def open_stream(link: Link, reply: Reply, **settings: Any) -> tuple[StreamServer, CompletionStream]:
    """Return a stream whose producer is blocked: by the server's silence, or by a full channel."""
    server = link.serve(reply)
    client = link.client(server, buffer=4, **settings)
    stream = client.chat_completion_stream(REQUEST)
    assert within(5, lambda: stream.qsize() == waiting(reply))
    if reply is FLOOD:
        assert within(5, lambda: stream.statistics().waiting_putters == 1)
    return server, stream


def freed(server: StreamServer) -> bool:
    """Return whether the server has lost the connection, and the process the producer, in time."""
    return within(PROMPT, lambda: producers() == 0 and server.open_connections == 0)


class TestEveryFraming:
    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_close_wakes_the_reader(self, link: Link, framing: Any) -> None:
        """A reader that waits for more of a body is woken whatever its framing, though nobody speaks."""
        server = link.serve(Reply("one two three four", stall_after=2, framing=framing))
        stream = link.client(server).chat_completion_stream(REQUEST)
        assert within(5, lambda: stream.qsize() == 2)
        stream.close()
        assert freed(server)


class TestEveryWayOut:
    @SILENCES
    def test_close_from_another_thread(self, link: Link, reply: Reply) -> None:
        """close() in one thread frees the producer, the socket and a consumer that blocks in another."""
        server, stream = open_stream(link, reply)
        got: list[str] = []
        blocked = threading.Thread(target=lambda: got.extend(evt.text for evt in stream))
        if reply is not FLOOD:
            blocked.start()
            assert within(5, lambda: stream.statistics().waiting_getters == 1)
        begun = time.monotonic()
        stream.close()
        assert time.monotonic() - begun < PROMPT
        assert freed(server)
        if reply is not FLOOD:
            blocked.join(PROMPT)
        assert not blocked.is_alive()
        assert stream.state == "cancelled"

    @SILENCES
    def test_context_cancel(self, link: Link, reply: Reply) -> None:
        """context.cancel() ends the stream with StreamCancelledError, after the chunks that had come."""
        context = Context()
        server = link.serve(reply)
        stream = link.client(server, buffer=4).chat_completion_stream(REQUEST, context=context)
        assert within(5, lambda: stream.qsize() == waiting(reply))
        begun = time.monotonic()
        context.cancel()
        chunks = list(stream)
        assert time.monotonic() - begun < PROMPT
        assert isinstance(chunks[-1].error, StreamCancelledError)
        assert [chunk.error for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert sum(chunk.chunk_latency for chunk in chunks) == chunks[-1].total_latency
        assert freed(server)

    @SILENCES
    @pytest.mark.parametrize("clock", ["total", "context"])
    def test_a_deadline(self, link: Link, reply: Reply, clock: str) -> None:
        """A deadline, of the call or of the context, ends the stream in time with an error that names the clock."""
        server = link.serve(reply)
        client = link.client(server, buffer=4)
        seconds = 0.2 * SCALE
        begun = time.monotonic()
        if clock == "total":
            stream = client.chat_completion_stream(REQUEST, timeout=Timeout(total=seconds))
        else:
            stream = client.chat_completion_stream(REQUEST, context=Context().with_timeout(seconds))
        assert within(seconds + PROMPT, lambda: stream.state == "failed")
        assert seconds <= time.monotonic() - begun < seconds + PROMPT
        assert freed(server)
        error = list(stream)[-1].error
        assert isinstance(error, APITimeoutError)
        assert error.clock == clock

    @SILENCES
    def test_leaving_the_with_block(self, link: Link, reply: Reply) -> None:
        """The end of a with block closes the stream, with an exception too."""
        server, stream = open_stream(link, reply)
        with pytest.raises(ZeroDivisionError), stream:
            raise ZeroDivisionError
        assert freed(server)

    @pytest.mark.parametrize("reply", [SILENT_MIDDLE, FLOOD], ids=["middle", "full"])
    def test_break(self, link: Link, reply: Reply) -> None:
        """Break out of the loop closes the stream, though the stream is still in a variable."""
        server, stream = open_stream(link, reply)
        for _ in stream:
            break
        assert freed(server)
        assert stream.state == "cancelled"

    @pytest.mark.parametrize("reply", [SILENT_MIDDLE, FLOOD], ids=["middle", "full"])
    def test_an_exception_in_the_loop(self, link: Link, reply: Reply) -> None:
        """An exception that leaves the loop closes the stream."""
        server, stream = open_stream(link, reply)

        def consume() -> None:
            for _ in stream:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            consume()
        assert freed(server)

    @SILENCES
    def test_dropping_the_last_reference(self, link: Link, reply: Reply) -> None:
        """A stream that nobody holds any more is closed, though its producer still works."""
        server, stream = open_stream(link, reply)
        gone = weakref.ref(stream)
        del stream
        assert gone() is None
        assert freed(server)

    @SILENCES
    def test_garbage_collection(self, link: Link, reply: Reply) -> None:
        """A stream in a reference cycle is closed by the garbage collector."""
        server, stream = open_stream(link, reply)
        cycle: list[object] = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
        assert freed(server)

    def test_ctrl_c(self, link: Link) -> None:
        """Ctrl-C in the main thread, which waits for a silent server, frees everything on its way out."""
        server, stream = open_stream(link, SILENT_MIDDLE)
        pressed: list[float] = []

        def press() -> None:
            assert within(5, lambda: stream.statistics().waiting_getters == 1)
            pressed.append(time.monotonic())
            signal.raise_signal(signal.SIGINT) if os.name == "nt" else os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        assert time.monotonic() - pressed[0] < PROMPT
        assert freed(server)
        presser.join()


class TestBeforeTheHead:
    @pytest.mark.parametrize("how", ["cancel", "deadline"])
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_silence_before_the_head(self, link: Link, how: str, streaming: bool) -> None:
        """A call that waits for a head that never comes is raised out of at once, and leaves no socket."""
        server = link.serve(Reply("late", head_delay=math.inf))
        client = link.client(server)
        context = Context().with_timeout(0.2 * SCALE) if how == "deadline" else Context()
        caught: list[tuple[float, BaseException]] = []

        def call() -> None:
            try:
                (client.chat_completion_stream if streaming else client.chat_completion)(REQUEST, context=context)
            except (StreamCancelledError, APITimeoutError) as error:
                caught.append((time.monotonic(), error))

        caller = threading.Thread(target=call)
        begun = time.monotonic()
        caller.start()
        assert server.wait_for(lambda s: len(s.requests) == 1, 5)
        if how == "cancel":
            begun = time.monotonic()
            context.cancel()
        caller.join(5)
        limit = PROMPT + (0.2 * SCALE if how == "deadline" else 0)
        assert caught[0][0] - begun < limit
        assert isinstance(caught[0][1], APITimeoutError if how == "deadline" else StreamCancelledError)
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    def test_a_context_that_is_done(self, plain: Link) -> None:
        """Nothing is sent for a context that is done already."""
        server = plain.serve("never")
        context = Context()
        context.cancel()
        with pytest.raises(StreamCancelledError):
            plain.client(server).chat_completion_stream(REQUEST, context=context)
        assert server.connections == 0

    def test_a_silent_handshake(self, plain: Link) -> None:
        """A server that accepts and never says a word of TLS is left at once."""
        context = Context()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = plain.client(f"https://127.0.0.1:{silent.getsockname()[1]}")
            timer = threading.Timer(0.1, context.cancel)
            timer.start()
            begun = time.monotonic()
            with pytest.raises(StreamCancelledError):
                client.chat_completion_stream(REQUEST, context=context)
            assert time.monotonic() - begun < 0.1 + PROMPT
            timer.join()

    @pytest.mark.skipif(sys.platform != "linux", reason="a full backlog drops connections on Linux only")
    def test_a_host_that_does_not_answer(self, plain: Link) -> None:
        """A host to which no connection comes about is left at once."""
        context = Context()
        with contextlib.ExitStack() as exits:
            deaf = exits.enter_context(socket.socket())
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for _ in range(4):  # fill the backlog: what comes after gets no answer at all
                filler = exits.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            client = plain.client(f"http://127.0.0.1:{deaf.getsockname()[1]}")
            timer = threading.Timer(0.2, context.cancel)
            begun = time.monotonic()
            timer.start()
            with pytest.raises(StreamCancelledError):
                client.chat_completion_stream(REQUEST, context=context)
            assert 0.2 <= time.monotonic() - begun < 0.2 + PROMPT
            timer.join()


class TestMany:
    def test_200_abandoned_streams(self, link: Link) -> None:
        """200 streams, dropped without a word, leave no thread and no descriptor (the fixture counts) behind."""
        server = link.serve(SILENT_MIDDLE)
        client = link.client(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(200)]
        assert server.wait_for(lambda s: s.open_connections == 200, 10 * SCALE)
        assert len(streams) == 200
        del streams
        assert within(20 * PROMPT, lambda: producers() == 0)  # 200 at once on one core take their time
        assert server.wait_for(lambda s: s.open_connections == 0, 20 * PROMPT)

    def test_all_blocked_consumers_are_freed(self, link: Link) -> None:
        """Ten threads that wait for the next chunk of one stream all end when it is closed."""
        _, stream = open_stream(link, SILENT_HEAD)
        ended: queue.SimpleQueue[type] = queue.SimpleQueue()

        def consume() -> None:
            try:
                stream.get()
            except ChannelClosedError as error:
                ended.put(type(error))

        threads = [threading.Thread(target=consume) for _ in range(10)]
        for thread in threads:
            thread.start()
        assert within(5, lambda: stream.statistics().waiting_getters == 10)
        stream.close()
        assert [ended.get(timeout=1) for _ in threads] == [ChannelClosedError] * 10
        for thread in threads:
            thread.join()

    def test_closing_twice_and_after_the_end(self, link: Link) -> None:
        """close() may be called any number of times, after the end too."""
        stream = link.stream("all of it")
        text = "".join(evt.text for evt in stream)
        stream.close()
        stream.close()
        assert text == "all of it"
        assert stream.state == "complete"

    def test_a_flooding_server_does_not_outlive_its_deadline(self, link: Link) -> None:
        """A server that never stops sending is left in time though the consumer never waits."""
        server = link.serve(Reply([f"{number} " * 50 for number in range(200_000)], done=False))
        begun = time.monotonic()
        stream = link.client(server).chat_completion_stream(REQUEST, timeout=Timeout(total=0.3 * SCALE))
        errors = [evt.error for evt in stream if evt.error]
        assert time.monotonic() - begun < 0.3 * SCALE + 2 * PROMPT
        assert [type(error) for error in errors] == [APITimeoutError]


class TestTheEndOfTheProcess:
    def test_interpreter_exit(self, plain: Link) -> None:
        """A program that ends with a stream open ends at once and without a word."""
        server = plain.serve(SILENT_MIDDLE)
        program = f"""
            from chanstream import ChatCompletionRequest, Client, UserMessage
            client = Client(api_key="k", base_url={server.url!r}, dialect="openai")
            stream = client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage("hi")]))
            print(stream.get().text)
        """
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            capture_output=True, text=True, timeout=20 * SCALE, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")

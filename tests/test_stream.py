"""The stream that a caller holds: its state, taking chunks and leaving in every way, and what the head said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    Channel,
    ChannelClosedError,
    ChanstreamError,
    ChatCompletionRequest,
    CompletionChunk,
    CompletionStream,
    Context,
    RateLimits,
    StreamAPIError,
    StreamCancelledError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
    ToolMessage,
    UserMessage,
)
from chanstream.testing import Reply, StreamServer
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

TEXT = "one two three four"
WHOLE = Reply(TEXT)
STALLED = Reply(TEXT, stall_after=2)
CUT = Reply(TEXT, cut_at=500)
ONE = {"id": "1", "choices": [{"index": 0, "delta": {"content": "one"}}]}
FAILING = Reply(chunks=[ONE, {"error": {"message": "no"}}])


def stalled(link: Link, **settings: Any) -> tuple[StreamServer, CompletionStream]:
    """Return a stream of which two chunks are there, and no more will come."""
    server = link.serve(STALLED)
    stream = link.client(server, **settings).chat_completion_stream(REQUEST)
    assert within(5, lambda: stream.qsize() == 2)
    return server, stream


def left(server: StreamServer) -> bool:
    """Return whether the server has lost its connection, and the process the producer, in no time."""
    gone = server.wait_for(lambda s: s.open_connections == 0, 2 * PROMPT)
    return gone and within(2 * PROMPT, lambda: producers() == 0)


class TestWhatItIs:
    def test_a_channel(self, plain: Link) -> None:
        """A stream is a channel of chunks, with the capacity that was asked for."""
        stream = plain.stream(WHOLE, buffer=9)
        assert isinstance(stream, Channel)
        assert isinstance(stream, queue.Queue)
        assert stream.maxsize == 9
        stream.close()

    def test_repr(self, plain: Link) -> None:
        """Its repr shows how it stands and how much waits in it."""
        _, stream = stalled(plain)
        assert repr(stream) == "<CompletionStream streaming, 2 chunks waiting>"
        stream.close()
        assert repr(stream) == "<CompletionStream cancelled, 0 chunks waiting>"

    def test_statistics(self, plain: Link) -> None:
        """It counts its chunks as every channel does."""
        stream = plain.stream(WHOLE)
        chunks = list(stream)
        told = stream.statistics()
        assert (told.put, told.taken, told.depth, told.closed) == (len(chunks), len(chunks), 0, True)


class TestState:
    def test_complete(self, plain: Link) -> None:
        """A stream is streaming until its last chunk has come, and then complete, also before that is taken."""
        stream = plain.stream(Reply(TEXT, first_delay=0.5 * SCALE))
        assert stream.state == "streaming"
        assert within(5 * SCALE, lambda: stream.state != "streaming")
        assert (stream.state, stream.qsize()) == ("complete", 5)
        list(stream)
        assert stream.state == "complete"

    @pytest.mark.parametrize("reply", [CUT, FAILING, Reply.garbage()], ids=["cut", "error", "garbage"])
    def test_failed(self, plain: Link, reply: Reply) -> None:
        """A stream that ends with an error has failed."""
        stream = plain.stream(reply)
        assert list(stream)[-1].error is not None
        assert stream.state == "failed"

    def test_out_of_time(self, plain: Link) -> None:
        """A stream whose clock ran out has failed."""
        stream = plain.stream(STALLED, timeout=Timeout(idle=0.05))
        assert isinstance(list(stream)[-1].error, APITimeoutError)
        assert stream.state == "failed"

    def test_closed(self, plain: Link) -> None:
        """A stream that was closed before its end is cancelled, at once."""
        _, stream = stalled(plain)
        stream.close()
        assert stream.state == "cancelled"

    def test_cancelled_by_its_context(self, plain: Link) -> None:
        """A stream whose context was cancelled is cancelled."""
        context = Context()
        stream = plain.client(plain.serve(STALLED)).chat_completion_stream(REQUEST, context=context)
        context.cancel()
        assert stream.state == "cancelled"
        assert isinstance(list(stream)[-1].error, StreamCancelledError)

    def test_closed_after_its_end(self, plain: Link) -> None:
        """A stream that is closed after its last chunk has come is complete, though that was not taken."""
        stream = plain.stream(WHOLE)
        assert within(5, lambda: stream.qsize() == 5)
        stream.close()
        assert stream.state == "complete"
        assert list(stream) == []


class TestGet:
    def test_one_by_one(self, plain: Link) -> None:
        """Chunks can be taken one by one, and after the last the stream says that it is over."""
        stream = plain.stream(WHOLE)
        chunks = [stream.get()]
        while not chunks[-1].is_last_chunk:
            chunks.append(stream.get(timeout=5))
        assert "".join(chunk.text for chunk in chunks) == TEXT
        for get in (stream.get, lambda: stream.get(timeout=5), lambda: stream.get(5)):
            with pytest.raises(ChannelClosedError):
                get()

    def test_nothing_there(self, plain: Link) -> None:
        """Where no chunk is there (in time), get raises Empty, and the stream goes on."""
        server, stream = stalled(plain)
        assert [stream.get().text, stream.get().text] == ["one", " two"]
        gets: list[Callable[[], object]] = [
            stream.get_nowait,
            lambda: stream.get(block=False),
            lambda: stream.get(timeout=0.01),
            lambda: stream.get(0.01),
            lambda: stream.get_many(timeout=0.01),
        ]
        for get in gets:
            with pytest.raises(queue.Empty):
                get()
        assert stream.state == "streaming"
        assert server.open_connections == 1
        stream.close()

    def test_in_time(self, plain: Link) -> None:
        """A get with a timeout returns the chunk as soon as it comes."""
        stream = plain.stream(Reply(TEXT, first_delay=0.1))
        begun = time.monotonic()
        assert stream.get(timeout=5).text == "one"
        assert time.monotonic() - begun < 0.1 + SCALE
        stream.close()

    def test_an_error_in_band(self, plain: Link) -> None:
        """What goes wrong comes as the last chunk, with its error set."""
        stream = plain.stream(FAILING)
        assert stream.get().text == "one"
        last = stream.get()
        assert isinstance(last.error, StreamAPIError)
        assert not last.is_last_chunk
        with pytest.raises(ChannelClosedError):
            stream.get()

    def test_an_error_raised(self, plain: Link) -> None:
        """With errors="raise" get raises it in place of the chunk, once."""
        stream = plain.stream(FAILING, errors="raise")
        assert stream.get().text == "one"
        with pytest.raises(StreamAPIError, match="no"):
            stream.get()
        with pytest.raises(ChannelClosedError):
            stream.get()

    @pytest.mark.parametrize("of_client", ["inband", "raise"])
    @pytest.mark.parametrize("of_call", ["inband", "raise", None])
    def test_who_says_how(self, plain: Link, of_client: Any, of_call: Any) -> None:
        """How errors come is said by the call, or else by the client."""
        client = plain.client(plain.serve(FAILING), errors=of_client)
        stream = client.chat_completion_stream(REQUEST, errors=of_call)
        if (of_call or of_client) == "raise":
            with pytest.raises(StreamAPIError):
                list(stream)
        else:
            assert isinstance(list(stream)[-1].error, StreamAPIError)

    def test_get_many(self, plain: Link) -> None:
        """All chunks that are there can be taken at once."""
        stream = plain.stream(WHOLE)
        assert within(5, lambda: stream.qsize() == 5)
        chunks = stream.get_many()
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert chunks[-1].is_last_chunk

    def test_get_many_of_several_threads(self, plain: Link) -> None:
        """With errors="raise" too, threads that take many get each chunk once, and one of them the error."""
        words = [f"{number} " for number in range(300)]
        stream = plain.stream(Reply(words, cut_at=40_000, end="cut"), errors="raise")
        taken: list[str] = []
        ends: list[type[BaseException]] = []

        def take() -> None:
            try:
                while True:
                    taken.extend(chunk.text for chunk in stream.get_many(3))
            except (StreamInterruptedError, ChannelClosedError) as end:
                ends.append(type(end))

        for taking in [spawn(take) for _ in range(4)]:
            taking.result(10)
        said = sorted(taken, key=lambda text: int(text or -1))
        assert [text for text in said if text] == words[: len([text for text in said if text])]
        assert len(taken) > 100
        assert sorted(end.__name__ for end in ends) == ["ChannelClosedError"] * 3 + ["StreamInterruptedError"]

    def test_get_many_with_an_error_raised(self, plain: Link) -> None:
        """With errors="raise" get_many too gives the chunks before the error, and raises it then."""
        stream = plain.stream(FAILING, errors="raise")
        assert within(5, lambda: stream.qsize() == 2)
        assert [chunk.text for chunk in stream.get_many()] == ["one"]
        with pytest.raises(StreamAPIError, match="no"):
            stream.get_many()
        with pytest.raises(ChannelClosedError):
            stream.get_many()


class TestNext:
    def test_it_leaves_the_stream_open(self, plain: Link) -> None:
        """next(stream) takes a chunk, and the stream goes on."""
        server, stream = stalled(plain)
        assert (next(stream).text, next(stream).text) == ("one", " two")
        gc.collect()
        assert (stream.state, server.open_connections) == ("streaming", 1)
        stream.close()

    def test_to_the_end(self, plain: Link) -> None:
        """After the last chunk next(stream) stops, again and again, or gives the default."""
        stream = plain.stream(WHOLE)
        chunks: list[CompletionChunk] = []
        while (chunk := next(stream, None)) is not None:
            chunks.append(chunk)
        assert "".join(chunk.text for chunk in chunks) == TEXT
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(stream)


class TestLoop:
    def test_to_the_end(self, plain: Link) -> None:
        """A loop gives every chunk and ends after the last; a second loop gives none."""
        stream = plain.stream(WHOLE)
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert [chunk.is_last_chunk for chunk in chunks] == [False] * 4 + [True]
        assert chunks[-1].usage is not None
        assert list(stream) == []

    def test_with_errors_raised(self, plain: Link) -> None:
        """With errors="raise" a loop gives the chunks before the error, and raises it."""
        got: list[str] = []
        with pytest.raises(StreamAPIError, match="no"):
            got.extend(chunk.text for chunk in plain.stream(FAILING, errors="raise"))
        assert got == ["one"]

    def test_a_break(self, plain: Link) -> None:
        """Leaving the loop closes the stream; a later loop gives nothing."""
        server, stream = stalled(plain)
        for chunk in stream:
            assert chunk.text == "one"
            break
        assert stream.state == "cancelled"
        assert left(server)
        assert list(stream) == []

    def test_an_iterator_in_a_variable(self, plain: Link) -> None:
        """An iterator that is kept keeps the stream open over breaks, and closes it when it goes."""
        server, stream = stalled(plain)
        chunks = iter(stream)
        for chunk in chunks:
            assert chunk.text == "one"
            break
        for chunk in chunks:
            assert chunk.text == " two"
            break
        assert (stream.state, server.open_connections) == ("streaming", 1)
        del chunks
        assert stream.state == "cancelled"
        assert left(server)

    def test_the_iterator_alone(self, plain: Link) -> None:
        """The iterator holds the stream: it works though nobody else does."""
        chunks = iter(plain.stream(WHOLE))
        gc.collect()
        assert "".join(chunk.text for chunk in chunks) == TEXT

    def test_an_iterator_that_was_never_used(self, plain: Link) -> None:
        """An iterator that is dropped before its first chunk does not close the stream."""
        stream = plain.stream(WHOLE)
        iter(stream)
        assert "".join(chunk.text for chunk in stream) == TEXT

    def test_some_first(self, plain: Link) -> None:
        """Chunks may be taken with next and get first, and the rest by a loop."""
        stream = plain.stream(WHOLE)
        texts = [next(stream).text, stream.get().text]
        texts += [chunk.text for chunk in stream]
        assert "".join(texts) == TEXT


class TestSeveralConsumers:
    def test_each_chunk_goes_to_one(self, plain: Link) -> None:
        """Of several consumers each chunk goes to exactly one, and all loops end."""
        words = [f"{number} " for number in range(500)]
        stream = plain.stream(Reply(words), buffer=8)
        loops = [spawn(list, stream) for _ in range(4)]
        texts = [chunk.text for loop in loops for chunk in loop.result(10)]
        assert sorted(text for text in texts if text) == sorted(words)
        assert stream.state == "complete"

    def test_one_that_leaves(self, plain: Link) -> None:
        """One that leaves its loop early closes the stream for all."""
        server, stream = stalled(plain)
        for chunk in stream:
            assert chunk.text == "one"
            others = [spawn(list, stream) for _ in range(3)]
            assert within(5, lambda: stream.statistics().waiting_getters == 3)
            break
        texts = [chunk.text for other in others for chunk in other.result(2 * PROMPT)]
        assert texts == [" two"]
        assert left(server)

    def test_one_error_among_them(self, plain: Link) -> None:
        """With errors="raise" the error is raised to one of them, and the loops of all end."""
        stream = plain.stream(FAILING, errors="raise")
        loops = [spawn(list, stream) for _ in range(3)]
        raised = [loop.exception(5) for loop in loops]
        assert [type(error) for error in raised if error] == [StreamAPIError]


class TestCollect:
    def test_the_answer(self, plain: Link) -> None:
        """Collecting gives the answer as if it had been sent whole."""
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        stream = plain.stream(Reply(TEXT, reasoning="let me see", tool_calls=[call]))
        answer = stream.collect()
        assert (answer.text, answer.reasoning) == (TEXT, "let me see")
        assert [item.function.arguments for item in answer.tool_calls] == ['{"a": 1}']
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.usage is not None
        assert answer.usage.total_tokens > 0
        assert 0 < answer.latency < 60
        assert stream.state == "complete"

    def test_it_can_be_sent_back(self, plain: Link) -> None:
        """The collected message continues the conversation."""
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        server = plain.serve(Reply(tool_calls=[call]), "done")
        client = plain.client(server)
        said = client.chat_completion_stream(REQUEST).collect().assistant_message()
        assert said is not None
        request = ChatCompletionRequest("m", [UserMessage("hi"), said, ToolMessage("42", "c1")])
        assert client.chat_completion_stream(request).collect().text == "done"
        assert server.requests[1].json["messages"][1]["tool_calls"] == [call]

    def test_the_rest(self, plain: Link) -> None:
        """After some chunks were taken, collecting gives the answer that the others make."""
        stream = plain.stream(WHOLE)
        assert next(stream).text + stream.collect().text == TEXT

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (FAILING, StreamAPIError),
            (Reply(TEXT, finish_reason=None, done=False), StreamTruncatedError),
            (Reply(TEXT, stall_after=3), APITimeoutError),
            (attrs.evolve(CUT, end="cut"), StreamInterruptedError),
        ],
        ids=["error", "truncated", "stalled", "cut"],
    )
    def test_an_error(self, plain: Link, reply: Reply, kind: type[ChanstreamError], errors: Any) -> None:
        """Collecting a stream that fails raises its error, with what had come of the answer."""
        stream = plain.stream(reply, errors=errors, timeout=Timeout(idle=0.2 * SCALE))
        with pytest.raises(kind) as caught:
            stream.collect()
        partial = caught.value.partial  # type: ignore[attr-defined]
        assert partial.text.startswith("one")
        assert stream.state == "failed"

    def test_a_stream_that_is_closed_meanwhile(self, plain: Link) -> None:
        """Collecting a stream that somebody closes raises StreamCancelledError, with what had come."""
        server, stream = stalled(plain)
        collecting = spawn(stream.collect)
        assert within(5, lambda: stream.statistics().waiting_getters == 1)
        stream.close()
        error = collecting.exception(2 * PROMPT)
        assert isinstance(error, StreamCancelledError)
        assert error.partial is not None
        assert error.partial.text == "one two"
        assert left(server)

    def test_a_stream_whose_context_is_cancelled(self, plain: Link) -> None:
        """Collecting a stream whose context is cancelled raises the context's error, with what had come."""
        context = Context()
        stream = plain.client(plain.serve(STALLED)).chat_completion_stream(REQUEST, context=context)
        collecting = spawn(stream.collect)
        assert within(5, lambda: stream.statistics().taken == 2)
        context.cancel()
        error = collecting.exception(2 * PROMPT)
        assert error is context.error
        assert isinstance(error, StreamCancelledError)
        assert error.partial is not None
        assert error.partial.text == "one two"

    def test_a_stream_that_was_closed(self, plain: Link) -> None:
        """Collecting a stream that was closed before its end raises StreamCancelledError, with an empty answer."""
        _, stream = stalled(plain)
        stream.close()
        with pytest.raises(StreamCancelledError) as caught:
            stream.collect()
        assert caught.value.partial is not None
        assert caught.value.partial.text == ""

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
    def test_ctrl_c(self, plain: Link) -> None:
        """Ctrl-C breaks off collecting and closes the stream."""
        server, stream = stalled(plain)
        main = threading.get_ident()

        def press() -> None:
            assert within(5, lambda: stream.statistics().waiting_getters == 1)
            signal.pthread_kill(main, signal.SIGINT)

        pressing = spawn(press)
        with pytest.raises(KeyboardInterrupt):
            stream.collect()
        pressing.result(5)
        assert stream.state == "cancelled"
        assert left(server)


class TestLeaving:
    def test_shutdown(self, plain: Link) -> None:
        """queue.Queue's own way to close it frees socket and producer as well."""
        server, stream = stalled(plain)
        stream.shutdown()
        assert left(server)
        assert stream.state == "cancelled"

    def test_shutdown_at_once(self, plain: Link) -> None:
        """And so it does when told to drop what is there."""
        server, stream = stalled(plain)
        stream.shutdown(immediate=True)
        assert left(server)
        assert list(stream) == []

    def test_with_block(self, plain: Link) -> None:
        """The end of a with block closes the stream; inside, it is the stream itself."""
        server, stream = stalled(plain)
        with stream as same:
            assert same is stream
            assert next(same).text == "one"
        assert left(server)

    def test_contextlib_closing(self, plain: Link) -> None:
        """It has what contextlib.closing asks for."""
        server, stream = stalled(plain)
        with contextlib.closing(stream):
            pass
        assert left(server)

    def test_the_last_reference(self, plain: Link) -> None:
        """A stream goes, and frees everything, with its last reference: no cycle keeps it."""
        server, stream = stalled(plain)
        gone = weakref.ref(stream)
        gc.disable()
        try:
            del stream
            assert gone() is None
        finally:
            gc.enable()
        assert left(server)

    def test_the_context_keeps_nothing(self, plain: Link) -> None:
        """Streams that have ended, well or not, leave nothing in the context that they shared."""
        context = Context()
        client = plain.client(plain.serve(WHOLE, STALLED, FAILING, Reply.error(400), WHOLE))
        list(client.chat_completion_stream(REQUEST, context=context))
        client.chat_completion_stream(REQUEST, context=context).close()
        list(client.chat_completion_stream(REQUEST, context=context))
        for call in (client.chat_completion_stream, client.chat_completion):
            with contextlib.suppress(ChanstreamError):
                call(REQUEST, context=context)
        assert within(5, lambda: not context._callbacks)


class TestAsync:
    @staticmethod
    def run(coroutine: Any) -> Any:
        """Run a coroutine to its end, at most ten seconds."""
        return asyncio.run(asyncio.wait_for(coroutine, 10))

    def test_to_the_end(self, plain: Link) -> None:
        """``async for`` gives every chunk and ends after the last."""

        async def scenario() -> list[CompletionChunk]:
            return [chunk async for chunk in plain.stream(Reply(TEXT, pace=0.005))]

        chunks = self.run(scenario())
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert chunks[-1].is_last_chunk

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_an_error(self, plain: Link, errors: Any) -> None:
        """Errors come as they do in a plain loop."""
        got: list[CompletionChunk] = []

        async def scenario() -> None:
            async for chunk in plain.stream(FAILING, errors=errors):
                got.append(chunk)  # noqa: PERF401 - what came before the error counts

        if errors == "raise":
            with pytest.raises(StreamAPIError, match="no"):
                self.run(scenario())
            assert [chunk.text for chunk in got] == ["one"]
        else:
            self.run(scenario())
            assert isinstance(got[-1].error, StreamAPIError)

    def test_several_at_once(self, plain: Link) -> None:
        """One event loop takes from many streams at the same time, in the time of one."""
        client = plain.client(plain.serve(Reply(TEXT, pace=0.05)))
        streams = [client.chat_completion_stream(REQUEST) for _ in range(20)]

        async def text(stream: CompletionStream) -> str:
            return "".join([chunk.text async for chunk in stream])

        async def scenario() -> list[str]:
            return await asyncio.gather(*map(text, streams))

        begun = time.monotonic()
        assert self.run(scenario()) == [TEXT] * 20
        assert time.monotonic() - begun < 20 * 0.2

    def test_the_event_loop_goes_on(self, plain: Link) -> None:
        """While a stream is silent the event loop is not held up."""
        _, stream = stalled(plain)

        async def scenario() -> float:
            taking = asyncio.create_task(self.collect(stream))
            slowest, before = 0.0, time.monotonic()
            for _ in range(50):
                await asyncio.sleep(0.001)
                slowest, before = max(slowest, time.monotonic() - before), time.monotonic()
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking
            return slowest

        assert self.run(scenario()) < 2 * PROMPT

    @staticmethod
    async def collect(stream: CompletionStream) -> list[str]:
        """Take all texts."""
        return [chunk.text async for chunk in stream]

    def test_a_break(self, plain: Link) -> None:
        """Leaving the loop closes the stream, as soon as the event loop has its turn."""
        server, stream = stalled(plain)

        async def scenario() -> None:
            async for chunk in stream:
                assert chunk.text == "one"
                break
            for _ in range(10):
                await asyncio.sleep(0)
            assert stream.state == "cancelled"

        self.run(scenario())
        assert left(server)

    def test_a_cancelled_task(self, plain: Link) -> None:
        """A task that is cancelled while it waits for a chunk closes the stream."""
        server, stream = stalled(plain)

        async def scenario() -> None:
            task = asyncio.create_task(self.collect(stream))
            while stream.statistics().taken < 2:  # noqa: ASYNC110 - no event tells that the task waits again
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert stream.state == "cancelled"

        self.run(scenario())
        assert left(server)

    def test_a_timeout_of_asyncio(self, plain: Link) -> None:
        """A time limit of asyncio's own ends the loop and closes the stream."""
        server, stream = stalled(plain)

        async def scenario() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(self.collect(stream), 0.05)

        self.run(scenario())
        assert left(server)
        assert stream.state == "cancelled"

    def test_closed_by_a_thread(self, plain: Link) -> None:
        """A close in another thread ends the loop at once."""
        server, stream = stalled(plain)

        async def scenario() -> list[str]:
            task = asyncio.create_task(self.collect(stream))
            while stream.statistics().taken < 2:  # noqa: ASYNC110 - no event tells that the task waits again
                await asyncio.sleep(0.001)
            await asyncio.to_thread(stream.close)
            return await task

        assert self.run(scenario()) == ["one", " two"]
        assert left(server)


class TestResponse:
    HEADERS: ClassVar = {
        "X-Request-Id": "req-1",
        "X-RateLimit-Limit-Requests": "1000",
        "X-RateLimit-Remaining-Requests": "999",
        "X-RateLimit-Reset-Requests": "2m59.56s",
        "X-RateLimit-Limit-Tokens": "6000",
        "X-RateLimit-Remaining-Tokens": "5997",
        "X-RateLimit-Reset-Tokens": "6ms",
    }

    def test_the_head(self, plain: Link) -> None:
        """The head of the answer is there before the first chunk: status, headers in any case, type, request id."""
        stream = plain.stream(Reply(TEXT, headers=self.HEADERS, stall_after=0))
        response = stream.response
        assert response.status_code == 200
        assert response.headers["x-request-id"] == response.headers["X-REQUEST-ID"] == "req-1"
        assert response.content_type == "text/event-stream"
        assert response.request_id == "req-1"
        stream.close()
        assert response.request_id == "req-1"

    def test_rate_limits(self, plain: Link) -> None:
        """What is left of the caller's quota is told in numbers and seconds."""
        stream = plain.stream(Reply(TEXT, headers=self.HEADERS))
        limits = stream.response.rate_limits
        assert limits.reset_requests == pytest.approx(179.56)
        assert attrs.evolve(limits, reset_requests=None) == RateLimits(
            limit_requests=1000,
            remaining_requests=999,
            limit_tokens=6000,
            remaining_tokens=5997,
            reset_tokens=0.006,
        )
        stream.close()

    def test_what_is_not_told(self, plain: Link) -> None:
        """What the server does not say is None."""
        stream = plain.stream(WHOLE)
        assert stream.response.request_id is None
        assert stream.response.rate_limits == RateLimits()
        stream.close()

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("6ms", 0.006), ("1s", 1.0), ("2m59.56s", 179.56), ("1h2m3s", 3723.0), ("1d", 86400.0), ("12", 12.0),
            ("0.5", 0.5), ("7m", 420.0), ("500µs", 0.0005), ("500us", 0.0005), ("250ns", 2.5e-7),
            ("", None), ("soon", None), ("1x", None), ("s", None), ("1s!", None), ("-1s", None), ("nan", None),
            ("inf", None), ("-5", None), ("1_000", None),
        ],
    )  # fmt: skip
    def test_durations(self, plain: Link, text: str, seconds: float | None) -> None:
        """Durations are understood as Groq and OpenAI write them, and nonsense is None."""
        headers = {"x-ratelimit-reset-tokens": text.encode().decode("latin-1")} if text else {}
        stream = plain.stream(Reply(TEXT, headers=headers))
        told = stream.response.rate_limits.reset_tokens
        stream.close()
        assert told is None if seconds is None else told == pytest.approx(seconds)

    @pytest.mark.parametrize("text", ["many", "1.5", "-1", "1e3", "٣", "9" * 30, " "])
    def test_counts(self, plain: Link, text: str) -> None:
        """A count that is no number is None."""
        headers = {"x-ratelimit-limit-tokens": text} if text.isascii() else {}
        stream = plain.stream(Reply(TEXT, headers=headers))
        assert stream.response.rate_limits.limit_tokens is None
        stream.close()


def test_a_stream_outlives_its_client(plain: Link) -> None:
    """A stream goes on though nobody holds its client."""
    server = plain.serve(Reply(TEXT, pace=0.01))
    client = plain.client(server)
    stream = client.chat_completion_stream(REQUEST)
    del client
    gc.collect()
    assert stream.collect().text == TEXT


def test_a_head_that_never_comes(plain: Link) -> None:
    """There is no stream before the head is in: the call itself waits, and its clock is the first chunk's."""
    client = plain.client(plain.serve(Reply(TEXT, head_delay=math.inf)))
    with pytest.raises(APITimeoutError) as caught:
        client.chat_completion_stream(REQUEST, timeout=Timeout(first_chunk=0.1))
    assert caught.value.clock == "first_chunk"

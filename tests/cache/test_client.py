"""One caller after the other: what is asked of the server, what is kept, and how it is given again."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    CachedClient,
    ChatCompletionRequest,
    Client,
    CompletionChunk,
    CompletionStream,
    Context,
    EmbeddingRequest,
    FileCache,
    InternalServerError,
    ModelCapabilities,
    NotFoundError,
    StreamAPIError,
    StreamCancelledError,
    StreamError,
    StreamTruncatedError,
    Timeout,
    UserMessage,
    merge,
    select,
)
from chanstream.cache import tapes
from chanstream.cache.entry import Entry, json_line
from chanstream.testing import FakeClient, Reply, StreamServer
from tests.cache.conftest import Cached, MemoryEngine
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

EMBED = EmbeddingRequest("an-embedder", ["hello"])
VECTORS = {"id": "e", "object": "list", "model": "an-embedder", "data": [{"index": 0, "embedding": [0.1, 0.2, 0.3]}]}
ANSWER = Reply("Hello big world", headers={"X-Request-Id": "r-1", "Set-Cookie": "session=a-secret-word"})


def text_of(chunks: list[CompletionChunk]) -> str:
    """Return the text of a stream."""
    return "".join(chunk.text for chunk in chunks)


class TestWhole:
    def test_the_second_time(self, plain: Link, cached: Cached) -> None:
        """The same request again is answered without the server, with an equal answer, its latency and what came."""
        server = plain.serve(ANSWER)
        client = cached(server)
        first, second = client.chat_completion(REQUEST), client.chat_completion(REQUEST)
        assert first == second
        assert (first.text, first.usage, first.choices[0].finish_reason) == ("Hello big world", second.usage, "stop")
        assert first.raw == second.raw
        assert 0 < first.latency == second.latency
        assert len(server.requests) == 1

    def test_each_caller_has_an_answer_of_its_own(self, plain: Link, cached: Cached) -> None:
        """Who changes the JSON of an answer changes nobody else's."""
        client = cached(plain.serve(ANSWER))
        for _ in range(3):
            answer = client.chat_completion(REQUEST)
            assert answer.raw["model"] == "test-model"
            answer.raw["model"] = "changed"  # type: ignore[index]  # one should not

    def test_a_refusal(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A refusal is raised and not kept: the next call asks again."""
        client = cached(plain.serve(Reply.error(500, "broken"), ANSWER))
        with pytest.raises(InternalServerError, match="broken"):
            client.chat_completion(REQUEST)
        assert memory.entries == {}
        assert client.chat_completion(REQUEST).text == "Hello big world"

    def test_embeddings(self, plain: Link, cached: Cached) -> None:
        """Vectors are kept too, with the type of their numbers."""
        server = plain.serve(Reply.json({**VECTORS, "data": [{"index": 0, "embedding": "AQID"}]}))
        request = EmbeddingRequest("an-embedder", ["x"], output_dtype="int8", encoding_format="base64")
        client = cached(server, dialect="mistral")
        first, second = client.embeddings(request), client.embeddings(request)
        assert first == second
        assert second.vectors() == [[1, 2, 3]]
        assert (second.dtype, len(server.requests)) == ("int8", 1)

    def test_embeddings_that_are_refused(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A refusal of vectors is raised and not kept."""
        client = cached(plain.serve(Reply.error(404, "no such model"), Reply.json(VECTORS)))
        with pytest.raises(NotFoundError):
            client.embeddings(EMBED)
        assert memory.entries == {}
        assert client.embeddings(EMBED).vectors() == [[0.1, 0.2, 0.3]]


class TestPassedOn:
    def test_models(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """What is known of models is asked anew each time, and the cache is not."""
        card = {"id": "small", "capabilities": {"vision": True}}
        server = plain.serve(models=[card, {"id": "large"}])
        client = cached(server)
        assert [model.id for model in client.list_models()] == ["small", "large"]
        assert [model.id for model in client.search_models(ModelCapabilities(vision=True))] == ["small"]
        assert [client.get_model("small").id for _ in range(2)] == ["small", "small"]
        assert len(server.requests) == 4
        assert memory.gets == 0

    def test_close(self, plain: Link, cached: Cached) -> None:
        """The end of a ``with`` block closes the client's connections."""
        server = plain.serve(ANSWER)
        with cached(server) as client:
            client.chat_completion(REQUEST)
            assert server.open_connections == 1
        assert server.wait_for(lambda server: server.open_connections == 0)


def by_loop(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with the loop."""
    return list(stream)


def by_get(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with get()."""
    with stream:
        chunks = [stream.get()]
        while not chunks[-1].is_last_chunk:
            chunks.append(stream.get(timeout=30))
        return chunks


def by_get_many(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with get_many()."""
    with stream:
        chunks = stream.get_many()
        while not chunks[-1].is_last_chunk:
            chunks += stream.get_many(2, timeout=30)
        return chunks


def by_select(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with select."""
    with stream:
        chunks: list[Any] = [select(stream)[1]]
        while not chunks[-1].is_last_chunk:
            chunks.append(select(stream, timeout=30)[1])
        return chunks


def by_merge(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with merge."""
    return [chunk for _, chunk in merge([stream])]


def by_event_loop(stream: CompletionStream) -> list[CompletionChunk]:
    """Take all chunks with an event loop."""

    async def take() -> list[CompletionChunk]:
        return [chunk async for chunk in stream]

    return asyncio.run(take())


WAYS = [by_loop, by_get, by_get_many, by_select, by_merge, by_event_loop]


class TestStream:
    @pytest.mark.parametrize("way", WAYS)
    def test_the_second_time(
        self, way: Callable[[CompletionStream], list[CompletionChunk]], nothing_left: None, plain: Link, cached: Cached
    ) -> None:
        """However chunks are taken, the stream is kept by its end, and the same chunks come again in every field."""
        server = plain.serve(attrs.evolve(ANSWER, pace=0.003))
        client = cached(server)
        first = way(client.chat_completion_stream(REQUEST))
        second = way(client.chat_completion_stream(REQUEST))
        assert text_of(first) == "Hello big world"
        assert first == second
        assert (second[-1].is_last_chunk, second[-1].usage) == (True, first[-1].usage)
        assert second[-1].total_latency == sum(chunk.chunk_latency for chunk in second) > 0
        assert len(server.requests) == 1

    def test_collect(self, plain: Link, cached: Cached) -> None:
        """``collect()`` keeps the stream too, and gives an equal answer with the latency that it had."""
        server = plain.serve(ANSWER)
        client = cached(server)
        answers = [client.chat_completion_stream(REQUEST).collect() for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        assert answers[0].latency == answers[2].latency > 0
        assert len(server.requests) == 1

    def test_tools_thoughts_and_several_choices(self, plain: Link, cached: Cached) -> None:
        """Whatever is in the chunks comes again: thoughts, tool calls, usage that came late."""
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        reply = Reply("It is", reasoning="Let me see", tool_calls=[call], usage_chunk=True)
        client = cached(plain.serve(reply))
        first, second = (client.chat_completion_stream(REQUEST).collect() for _ in range(2))
        assert first == second
        assert second.reasoning == "Let me see"
        assert second.tool_calls[0].function.name == "weather"

    def test_state_and_head(self, plain: Link, cached: Cached) -> None:
        """A replayed stream is complete, and its head has status, content type and request id, but no cookie."""
        client = cached(plain.serve(ANSWER))
        fresh = client.chat_completion_stream(REQUEST)
        list(fresh)
        again = client.chat_completion_stream(REQUEST)
        list(again)
        assert (fresh.state, again.state) == ("complete", "complete")
        for head in (fresh.response, again.response):
            assert (head.status_code, head.content_type, head.request_id) == (200, "text/event-stream", "r-1")
        assert "set-cookie" in fresh.response.headers
        assert "set-cookie" not in again.response.headers

    def test_chunks_come_as_they_come(self, plain: Link, cached: Cached) -> None:
        """The first time each chunk is given when it is there, while the server still thinks about the next."""
        stream = cached(plain.serve(Reply("one two three", stall_after=2))).chat_completion_stream(REQUEST)
        assert [stream.get(30).text, stream.get(30).text] == ["one", " two"]
        with pytest.raises(Empty):
            stream.get(block=False)
        stream.close()

    @pytest.mark.parametrize("buffer", [1, 2, None])
    def test_a_small_channel(self, buffer: int | None, plain: Link, cached: Cached) -> None:
        """All chunks come through a small channel, the first time and again."""
        words = " ".join(map(str, range(200)))
        server = plain.serve(words)
        client = cached(server)
        for _ in range(2):
            assert text_of(list(client.chat_completion_stream(REQUEST, buffer=buffer))) == words
        assert len(server.requests) == 1

    def test_a_full_channel_holds_the_server_back(self, plain: Link, cached: Cached) -> None:
        """What nobody takes is not read on without end: a slow consumer still slows down the server."""
        server = plain.serve(Reply(["x" * 1000] * 20_000))
        stream = cached(server).chat_completion_stream(REQUEST, buffer=10)
        assert stream.get(30).text
        assert within(5 * SCALE, lambda: stream.qsize() == 10)
        (flight,) = stream_flights(stream)
        assert not within(0.2, lambda: len(flight._lines) > 300)
        stream.close()

    def test_connections_are_used_again(self, plain: Link, cached: Cached) -> None:
        """Streams in a row that are asked for use one connection, also where the loop is left at the last chunk."""
        server = plain.serve(reply_with=lambda request: Reply("Hello"))
        client = cached(server)
        for number in range(6):
            for chunk in client.chat_completion_stream(asking(str(number))):
                if chunk.is_last_chunk and number % 2:
                    break
        assert (len(server.requests), server.connections) == (6, 1)

    def test_stored_when_the_loop_ends(self, plain: Link, cached: Cached, tmp_path: Path) -> None:
        """Once the loop has ended, or was left at the last chunk, any other process finds the answer."""
        client = cached(plain.serve("a b", "c d"), FileCache(tmp_path))
        list(client.chat_completion_stream(asking("one")))
        assert len(list(tmp_path.iterdir())) == 1
        for chunk in client.chat_completion_stream(asking("two")):
            if chunk.is_last_chunk:
                break
        assert within(SCALE, lambda: len(list(tmp_path.iterdir())) == 2)

    def test_a_slow_engine(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """No chunk waits for an engine that hangs; neither does the loop's end for long, nor the next call."""
        memory.may_set.clear()
        server = plain.serve("Hello", "Hello again")
        client = cached(server)
        began = time.monotonic()
        assert text_of(list(client.chat_completion_stream(REQUEST))) == "Hello"
        assert time.monotonic() - began < 5 * SCALE
        assert client.chat_completion_stream(REQUEST).collect().text == "Hello again"
        memory.may_set.set()
        assert within(5 * SCALE, lambda: len(memory.entries) == 1)

    def test_whole_and_streamed_are_apart(self, plain: Link, cached: Cached) -> None:
        """A streamed answer is not taken for a whole one, nor the other way round."""
        server = plain.serve(reply_with=lambda request: ANSWER)
        client = cached(server)
        for _ in range(2):
            assert client.chat_completion_stream(REQUEST).collect().text == client.chat_completion(REQUEST).text
        assert len(server.requests) == 2


def asking(text: str, **options: Any) -> ChatCompletionRequest:
    """Return a request with this text."""
    return ChatCompletionRequest("test-model", [UserMessage(text)], **options)


def stream_flights(stream: CompletionStream) -> list[Any]:
    """Return the tape that a live stream follows."""
    return [stream._pipe._on_taken.__self__]  # type: ignore[attr-defined]


class TestNotKept:
    @pytest.mark.parametrize(
        "reply",
        [
            pytest.param(Reply("one two three", cut_at=200, end="cut"), id="cut"),
            pytest.param(Reply("one two three", cut_at=200, end="reset"), id="reset"),
            pytest.param(Reply("one two three", finish_reason=None, done=False), id="truncated"),
            pytest.param(Reply(chunks=[{"id": "c", "choices": []}, {"error": {"message": "no"}}]), id="error"),
            pytest.param(Reply.garbage(), id="garbage"),
            pytest.param(Reply.html("<html>"), id="html"),
        ],
    )
    def test_errors(self, reply: Reply, nothing_left: None, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A stream that ends with an error ends so for its consumer, is not kept, and the next call asks again."""
        client = cached(plain.serve(reply, reply, ANSWER))
        *_, last = client.chat_completion_stream(REQUEST)
        assert last.error is not None
        assert not last.is_last_chunk
        assert memory.entries == {}
        with pytest.raises(type(last.error)):
            list(client.chat_completion_stream(REQUEST, errors="raise"))
        assert client.chat_completion_stream(REQUEST).collect().text == "Hello big world"
        assert len(memory.entries) == 1

    def test_a_refusal(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A refusal is raised by the call and not kept."""
        client = cached(plain.serve(Reply.error(500, "broken"), ANSWER))
        with pytest.raises(InternalServerError, match="broken"):
            client.chat_completion_stream(REQUEST)
        assert memory.entries == {}
        assert client.chat_completion_stream(REQUEST).collect().text == "Hello big world"

    @pytest.mark.parametrize("reply", [ANSWER, Reply("one two three", stall_after=2)], ids=["fast", "stalled"])
    def test_leaving_early(self, reply: Reply, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """Who leaves the loop before the last chunk keeps nothing, even if all had come; it is over at once."""
        server = plain.serve(reply, ANSWER)
        client = cached(server)
        for _ in client.chat_completion_stream(REQUEST):
            left = time.monotonic()
            break
        assert time.monotonic() - left < PROMPT
        assert text_of(list(client.chat_completion_stream(REQUEST))) == "Hello big world"
        assert len(server.requests) == 2
        assert len(memory.entries) == 1

    def test_cancelled_before_the_last_chunk_was_taken(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A stream that was cancelled keeps nothing, even if all had come and its error was taken."""
        server = plain.serve(" ".join(map(str, range(300))), ANSWER)
        client = cached(server)
        context = Context()
        slow = client.chat_completion_stream(REQUEST, context=context, buffer=1)
        fast = client.chat_completion_stream(REQUEST)
        assert within(5 * SCALE, lambda: fast.state == "complete")
        context.cancel()
        *_, last = slow
        assert isinstance(last.error, StreamCancelledError)
        fast.close()
        assert client.chat_completion_stream(REQUEST).collect().text == "Hello big world"
        assert (len(server.requests), len(memory.entries)) == (2, 1)

    def test_leaving_frees_the_socket(self, nothing_left: None, plain: Link, cached: Cached) -> None:
        """A stream that is left early, dropped or cancelled ends the request at the server."""
        stall = Reply("one two three", stall_after=2)
        server = plain.serve(stall, stall, stall)
        client = cached(server)
        context = Context()
        cancelled = client.chat_completion_stream(REQUEST, context=context)
        assert next(cancelled).text == "one"
        context.cancel()
        *_, last = cancelled
        assert isinstance(last.error, StreamCancelledError)
        assert server.wait_for(lambda server: server.open_connections == 0)
        assert next(client.chat_completion_stream(REQUEST)).text == "one"  # dropped here
        assert server.wait_for(lambda server: server.open_connections == 0)
        with client.chat_completion_stream(REQUEST) as stream:
            assert next(stream).text == "one"
        assert server.wait_for(lambda server: server.open_connections == 0)

    def test_a_deadline(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """The total clock ends a stream with its error, whose total is the sum of what came."""
        client = cached(plain.serve(Reply("one two three", stall_after=2)))
        *others, last = client.chat_completion_stream(REQUEST, timeout=0.4 * SCALE)
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "total"
        assert last.total_latency == sum(chunk.chunk_latency for chunk in [*others, last])
        assert memory.entries == {}

    def test_the_idle_clock(self, plain: Link, cached: Cached) -> None:
        """The other clocks are kept by the request as ever."""
        client = cached(plain.serve(Reply("one two three", stall_after=2)), timeout=Timeout(idle=0.1 * SCALE))
        *_, last = client.chat_completion_stream(REQUEST)
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "idle"


class TestKey:
    @pytest.mark.parametrize(
        "other",
        [
            asking("Say something else."),
            attrs.evolve(REQUEST, model="another"),
            attrs.evolve(REQUEST, temperature=0.0),
            attrs.evolve(REQUEST, stop=["x"]),
            attrs.evolve(REQUEST, extra={"provider": "x"}),
            attrs.evolve(REQUEST, n=2),
        ],
    )
    def test_another_request(self, other: ChatCompletionRequest, plain: Link, cached: Cached) -> None:
        """A request that differs in anything that is sent is another one."""
        server = plain.serve(reply_with=lambda request: Reply("Hello"))
        client = cached(server)
        for request in (REQUEST, other, REQUEST, other):
            client.chat_completion(request)
            list(client.chat_completion_stream(request))
        assert len(server.requests) == 4

    def test_the_same_in_other_words(self, plain: Link, cached: Cached) -> None:
        """Messages as objects or as dicts, whatever the order of their keys, make the same request."""
        server = plain.serve(ANSWER)
        client = cached(server)
        client.chat_completion(REQUEST)
        words: list[dict[str, Any]] = [{"role": "user", "content": "Say it."}, {"content": "Say it.", "role": "user"}]
        for message in words:
            client.chat_completion(ChatCompletionRequest("test-model", [message]))
        assert len(server.requests) == 1

    def test_another_server_or_dialect(self, plain: Link, cached: Cached) -> None:
        """Another base URL, its path included, or another dialect has answers of its own."""
        server = plain.serve(reply_with=lambda request: Reply("Hello"))
        others = plain.serve(reply_with=lambda request: Reply("Hello"))
        for _ in range(2):
            cached(server).chat_completion(REQUEST)
            cached(server, dialect="groq").chat_completion(REQUEST)
            cached(others).chat_completion(REQUEST)
        assert (len(server.requests), len(others.requests)) == (2, 1)

    def test_the_api_key_is_nowhere(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """Clients with different API keys find each other's answers, and no key is in an entry or its name."""
        server = plain.serve(ANSWER)
        for key in ("a-very-secret-key", "another-secret-key"):
            client = cached(server, api_key=key)
            list(client.chat_completion_stream(REQUEST))
            assert key not in repr(client)
        assert len(server.requests) == 1
        ((name, entry),) = memory.entries.items()
        assert b"secret" not in entry + name.encode()
        assert len(bytes.fromhex(name)) == 32


class TestEngineFails:
    def test_get(self, plain: Link, cached: Cached, memory: MemoryEngine, caplog: pytest.LogCaptureFixture) -> None:
        """An engine that cannot be read hurts no answer: it is logged, and the server is asked."""
        server = plain.serve(reply_with=lambda request: ANSWER)
        client = cached(server)
        memory.get_error = OSError("the disk is gone")
        with caplog.at_level(logging.WARNING, "chanstream"):
            assert client.chat_completion(REQUEST).text == "Hello big world"
            assert client.chat_completion_stream(REQUEST).collect().text == "Hello big world"
        assert caplog.text.count("the disk is gone") == 2
        assert len(server.requests) == 2

    def test_set(self, plain: Link, cached: Cached, memory: MemoryEngine, caplog: pytest.LogCaptureFixture) -> None:
        """An engine that cannot be written hurts no answer: it is logged, and the server is asked again next time."""
        server = plain.serve(reply_with=lambda request: ANSWER)
        client = cached(server)
        memory.set_error = OSError("the disk is full")
        with caplog.at_level(logging.WARNING, "chanstream"):
            for _ in range(2):
                assert client.chat_completion(REQUEST).text == "Hello big world"
                *_, last = client.chat_completion_stream(REQUEST)
                assert last.is_last_chunk
        assert caplog.text.count("the disk is full") == 4
        assert len(server.requests) == 4

    @pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"foreign", lambda data: "a text"])
    def test_a_damaged_entry(
        self,
        damage: Callable[[bytes], Any],
        plain: Link,
        cached: Cached,
        memory: MemoryEngine,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An entry that is damaged, or is none, is told in the log, is a miss, and is overwritten."""
        server = plain.serve(reply_with=lambda request: ANSWER)
        client = cached(server)
        first = list(client.chat_completion_stream(REQUEST))
        (key,) = memory.entries
        memory.entries[key] = damage(memory.entries[key])
        with caplog.at_level(logging.WARNING, "chanstream"):
            assert text_of(list(client.chat_completion_stream(REQUEST))) == text_of(first)
        assert f"entry {key} cannot be used" in caplog.text
        list(client.chat_completion_stream(REQUEST))
        assert len(server.requests) == 2


class TestLibraryFails:
    def test_an_entry_of_something_else(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """An entry that is whole but holds no chunks ends its stream with an error; nobody waits for ever."""
        client = cached(plain.serve(ANSWER))
        list(client.chat_completion_stream(REQUEST))
        ((key, data),) = memory.entries.items()
        entry = Entry.unpacked(data, key, "stream")
        memory.entries[key] = attrs.evolve(entry, lines=[*entry.lines[:2], b"[]", entry.lines[-1]]).packed(
            key, "stream"
        )
        *_, last = client.chat_completion_stream(REQUEST)
        assert isinstance(last.error, StreamError)

    def test_in_the_middle_of_an_answer(
        self, nothing_left: None, plain: Link, cached: Cached, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where there is no memory for a chunk, say, all who follow the answer are told, and the request ends."""

        def fail(chunk: CompletionChunk) -> bytes:
            raise MemoryError

        server = plain.serve(Reply("one two", stall_after=1, first_delay=0.5 * SCALE))
        client = cached(server)
        monkeypatch.setattr(tapes, "line_of", fail)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(2)]
        for stream in streams:
            *_, last = stream
            assert isinstance(last.error, StreamError)
        assert server.wait_for(lambda server: server.open_connections == 0)

    def test_no_more_threads(
        self, plain: Link, cached: Cached, memory: MemoryEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no thread can be started any more, an answer is stored all the same."""
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "chanstream-cache":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        list(cached(plain.serve(ANSWER)).chat_completion_stream(REQUEST))
        assert len(memory.entries) == 1


class TestReplay:
    def kept(self, cached: Cached, server: StreamServer, **settings: Any) -> CachedClient:
        """Return a client that has the answer to the request."""
        list(cached(server).chat_completion_stream(REQUEST))
        return cached(server, **settings)

    def test_at_full_speed(self, plain: Link, cached: Cached, started: list[str]) -> None:
        """A replay does not wait for what was waited for at first, and starts no thread."""
        client = self.kept(cached, plain.serve(Reply("one two three", first_delay=0.3 * SCALE)))
        del started[:]
        began = time.monotonic()
        chunks = list(client.chat_completion_stream(REQUEST))
        assert time.monotonic() - began < chunks[-1].total_latency
        assert chunks[-1].total_latency > 0.3 * SCALE
        assert started == []

    def test_in_the_recorded_rhythm(self, nothing_left: None, plain: Link, cached: Cached) -> None:
        """Chunks come no earlier after one another than they came at first, and are equal to those."""
        server = plain.serve(Reply("one two three", pace=0.03))
        client = self.kept(cached, server, replay="recorded")
        began = time.monotonic()
        came = [(time.monotonic() - began, chunk) for chunk in client.chat_completion_stream(REQUEST)]
        due = 0.0
        for at, chunk in came:
            due += chunk.chunk_latency
            assert at >= due
        assert came[-1][1].total_latency == due > 0.09
        assert [chunk for _, chunk in came] == list(cached(server).chat_completion_stream(REQUEST))
        assert len(server.requests) == 1

    def test_many_in_the_recorded_rhythm(
        self, nothing_left: None, plain: Link, cached: Cached, started: list[str]
    ) -> None:
        """Many replays at a time share one thread, and each is complete."""
        client = self.kept(cached, plain.serve(Reply("one two three", pace=0.01)), replay="recorded")
        del started[:]
        streams = [client.chat_completion_stream(REQUEST) for _ in range(200)]
        texts = dict.fromkeys(range(200), "")
        for number, chunk in merge(streams):
            texts[number] += chunk.text
        assert set(texts.values()) == {"one two three"}
        assert set(started) <= {"chanstream-timers"}

    @pytest.fixture
    def endless(self, nothing_left: None, plain: Link, cached: Cached, memory: MemoryEngine) -> CachedClient:
        """A client that has an answer whose second chunk came a minute after the first, and replays it so."""
        server = plain.serve("one two three")
        list(cached(server).chat_completion_stream(REQUEST))
        ((key, data),) = memory.entries.items()
        entry = Entry.unpacked(data, key, "stream")
        first, *others = [json.loads(line) for line in entry.lines]
        lines = [{**first, "chunk_latency": 0.0}, *({**line, "chunk_latency": 60.0} for line in others)]
        memory.entries[key] = attrs.evolve(entry, lines=[json_line(line) for line in lines]).packed(key, "stream")
        return cached(server, replay="recorded")

    @pytest.mark.parametrize("how", ["close", "break", "with", "drop"])
    def test_leaving_a_slow_replay(self, how: str, endless: CachedClient) -> None:
        """A replay that waits for its time is over at once when its consumer leaves, in whichever way."""
        stream = endless.chat_completion_stream(REQUEST)
        assert next(stream).text == "one"
        pipe = stream._pipe
        if how == "close":
            stream.close()
            assert list(stream) == []
            assert stream.state == "cancelled"
        elif how == "break":
            stream = endless.chat_completion_stream(REQUEST)
            pipe = stream._pipe
            for _ in stream:
                break
        elif how == "with":
            with stream:
                pass
        del stream
        assert pipe.closed
        assert within(5 * SCALE, lambda: producers() == 0)

    def test_cancelling_a_slow_replay(self, endless: CachedClient) -> None:
        """A replay that waits for its time ends with the error of its context, for one who waits too."""
        context = Context()
        stream = endless.chat_completion_stream(REQUEST, context=context)
        rest = spawn(list, stream)
        assert within(5 * SCALE, lambda: stream.statistics().waiting_getters == 1)
        context.cancel()
        first, last = rest.result(30)
        assert (first.text, type(last.error), last.total_latency) == ("one", StreamCancelledError, 0.0)
        assert stream.state == "cancelled"

    def test_a_deadline_of_a_slow_replay(self, endless: CachedClient) -> None:
        """A replay that waits for its time obeys the total clock."""
        first, last = endless.chat_completion_stream(REQUEST, timeout=0.1 * SCALE)
        assert first.text == "one"
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "total"

    def test_errors_raise(self, endless: CachedClient) -> None:
        """``errors="raise"`` raises what ends a replay."""
        context = Context()
        stream = endless.chat_completion_stream(REQUEST, context=context, errors="raise")
        context.cancel()
        with pytest.raises(StreamCancelledError):
            list(stream)

    def test_a_cancelled_context(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """A context that is cancelled already raises at once, also for what is kept."""
        client = self.kept(cached, plain.serve(ANSWER))
        asked = memory.gets
        context = Context()
        context.cancel()
        with pytest.raises(StreamCancelledError):
            client.chat_completion_stream(REQUEST, context=context)
        with pytest.raises(StreamCancelledError):
            client.chat_completion(REQUEST, context=context)
        assert memory.gets == asked

    def test_a_long_lived_context_keeps_nothing(self, plain: Link, cached: Cached) -> None:
        """After a stream, fresh or replayed, its caller's context holds nothing of it."""
        context = Context()
        client = cached(plain.serve(ANSWER))
        for _ in range(3):
            list(client.chat_completion_stream(REQUEST, context=context, timeout=30))
            client.chat_completion(REQUEST, context=context, timeout=30)
        assert context._callbacks == {}


class TestNothingIsLeft:
    def test_no_garbage(self, no_collector: None, plain: Link, cached: Cached) -> None:
        """What moved the chunks is gone with the stream, without help of the garbage collector."""
        client = cached(plain.serve("Hello world"))
        refs = []
        for _ in range(2):
            stream = client.chat_completion_stream(REQUEST)
            refs.append(weakref.ref(stream._pipe))
            refs += [weakref.ref(flight._answer) for flight in client._streams._flights.values()]
            assert text_of(list(stream)) == "Hello world"
            del stream
        assert len(refs) == 3
        assert within(SCALE, lambda: not any(ref() for ref in refs))


class TestWrongArguments:
    @pytest.fixture
    def replied(self, plain: Link, cached: Cached) -> CachedClient:
        """A client that has the answer to the request."""
        client = cached(plain.serve(ANSWER))
        list(client.chat_completion_stream(REQUEST))
        return client

    @pytest.mark.parametrize(
        ("settings", "error", "named"),
        [
            ({"client": None}, TypeError, "client"),
            ({"client": Client}, TypeError, "client"),
            ({"engine": None}, TypeError, "engine"),
            ({"engine": "a directory"}, TypeError, "engine"),
            ({"engine": FileCache}, TypeError, "engine"),
            ({"replay": "slow"}, ValueError, "replay"),
        ],
    )
    def test_of_the_client(self, settings: Any, error: type[Exception], named: str, memory: MemoryEngine) -> None:
        """A wrong argument of the client is refused by name."""
        arguments = {"client": Client("key"), "engine": memory, **settings}
        with pytest.raises(error, match=f"^{named}: "):
            CachedClient(**arguments)

    @pytest.mark.parametrize("request_", [None, {"model": "m"}, EMBED])
    def test_no_request(self, request_: Any, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """What is no request is refused by name: nothing is sent, and the cache is not asked."""
        server = plain.serve(ANSWER)
        client = cached(server)
        with pytest.raises(TypeError, match=r"^request: expected ChatCompletionRequest"):
            client.chat_completion(request_)
        with pytest.raises(TypeError, match=r"^request: expected ChatCompletionRequest"):
            client.chat_completion_stream(request_)
        with pytest.raises(TypeError, match=r"^request: expected EmbeddingRequest"):
            client.embeddings(REQUEST if request_ is EMBED else request_)
        assert (len(server.requests), memory.gets, memory.entries) == (0, 0, {})

    @pytest.mark.parametrize(
        ("options", "error", "named"),
        [
            ({"timeout": "1"}, TypeError, "timeout"),
            ({"timeout": 0}, ValueError, "timeout"),
            ({"context": 3}, TypeError, "context"),
            ({"buffer": 0}, ValueError, "buffer"),
            ({"buffer": 1.5}, TypeError, "buffer"),
            ({"errors": "ignore"}, ValueError, "errors"),
        ],
    )
    def test_of_a_stream(
        self, options: Any, error: type[Exception], named: str, replied: CachedClient, memory: MemoryEngine
    ) -> None:
        """A wrong argument of a call is refused by name, also where the answer is kept; the cache is not asked."""
        asked = memory.gets
        with pytest.raises(error, match=f"^{named}: "):
            replied.chat_completion_stream(REQUEST, **options)
        assert memory.gets == asked

    def test_an_option_that_the_dialect_does_not_take(self, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """What the server would reject is refused before the cache is asked."""
        client = cached(plain.serve(ANSWER), dialect="mistral")
        with pytest.raises(ValueError, match=r"^logprobs: "):
            client.chat_completion_stream(asking("x", logprobs=True))
        assert memory.gets == 0


def test_pickle(plain: Link, cached: Cached, tmp_path: Path) -> None:
    """A copy in another process finds the answers in the same directory."""
    server = plain.serve(ANSWER)
    client = cached(server, FileCache(tmp_path), replay="recorded")
    first = client.chat_completion(REQUEST)
    with pickle.loads(pickle.dumps(client)) as copy:
        assert copy.chat_completion(REQUEST) == first
    assert len(server.requests) == 1


@pytest.mark.parametrize("split", [1, 3, 7, 1000])
def test_thoughts_between_tags(plain: Link, tmp_path: Path, split: int) -> None:
    """What was parted from the text is parted in the replay too, chunk by chunk, and in whole answers."""
    text = "<think>hm</think>yes or no"
    tokens = [text[at : at + split] for at in range(0, len(text), split)]
    client = CachedClient(plain.client(plain.serve(Reply(tokens)), think_tags=True), FileCache(tmp_path))
    first, again = (list(client.chat_completion_stream(REQUEST)) for _ in range(2))
    assert [(evt.text, evt.reasoning) for evt in again] == [(evt.text, evt.reasoning) for evt in first]
    assert "".join(evt.text for evt in again) == "yes or no"
    assert "".join(evt.reasoning for evt in again) == "hm"
    wholes = [client.chat_completion(REQUEST) for _ in range(2)]
    assert [(answer.text, answer.reasoning) for answer in wholes] == [("yes or no", "hm")] * 2


def test_extras_count(plain: Link, tmp_path: Path) -> None:
    """What a client sends in addition makes another request of it."""
    server = plain.serve("one")
    for extras in ({}, {"extra_body": {"a": 1}}, {"extra_query": {"a": 1}}, {"extra_headers": {"X-A": "1"}}):
        for _ in range(2):
            CachedClient(plain.client(server, **extras), FileCache(tmp_path)).chat_completion(REQUEST)
    assert len(server.requests) == 4


def test_a_fake_client(tmp_path: Path) -> None:
    """A fake client is cached like any other, and gives no other one's answers."""
    with FakeClient("one", "two") as fake, FakeClient("another") as other:
        client = CachedClient(fake, FileCache(tmp_path))
        assert [client.chat_completion(REQUEST).text for _ in range(3)] == ["one"] * 3
        assert len(fake.requests) == 1
        assert CachedClient(other, FileCache(tmp_path)).chat_completion(REQUEST).text == "another"


def test_what_is_no_answer(plain: Link, tmp_path: Path) -> None:
    """An object that is no chat completion is not kept."""
    server = plain.serve(Reply.json({"detail": "a hiccup"}), "one")
    client = CachedClient(plain.client(server), FileCache(tmp_path))
    with pytest.raises(StreamAPIError, match="a hiccup"):
        client.chat_completion(REQUEST)
    assert client.chat_completion(REQUEST).text == "one"


def test_a_bad_whole_answer_is_a_miss(plain: Link, tmp_path: Path) -> None:
    """An entry of a whole answer that has none in it is not used, and is replaced."""
    server = plain.serve("one")
    client = CachedClient(plain.client(server), FileCache(tmp_path))
    client.chat_completion(REQUEST)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(Entry(None, [b'{"ra": 1}']).packed(path.stem, "whole"))
    assert [client.chat_completion(REQUEST).text for _ in range(2)] == ["one"] * 2
    assert len(server.requests) == 2


def test_a_strict_client_and_another(plain: Link, tmp_path: Path) -> None:
    """A client that wants a finish reason is not given an answer that another took without one."""
    server = plain.serve(Reply("one", finish_reason=None))
    lax = CachedClient(plain.client(server), FileCache(tmp_path))
    strict = CachedClient(plain.client(server, require_finish_reason=True), FileCache(tmp_path))
    assert lax.chat_completion_stream(REQUEST).collect().text == "one"
    with pytest.raises(StreamTruncatedError):
        strict.chat_completion_stream(REQUEST).collect()

"""Many callers at the same time: one of them asks the server, and nobody suffers from another."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    ChatCompletionRequest,
    CompletionChunk,
    Context,
    EmbeddingRequest,
    InternalServerError,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    Timeout,
    UserMessage,
    merge,
)
from chanstream.cache.flights import Flight
from chanstream.testing import Reply
from tests.cache.conftest import Cached, MemoryEngine
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within
from tests.contract.test_13_threads import forked, forking

MANY = 50
WORDS = Reply("one two three four", pace=0.02)
STALL = Reply("one two three", stall_after=2)
SILENT = Reply("never", head_delay=float("inf"))


def at_once(ask: Any, count: int = MANY) -> list[Any]:
    """Return what so many threads get that ask at the same time."""
    start = threading.Barrier(count)

    def one() -> Any:
        start.wait(30)
        return ask()

    return [future.result(30) for future in [spawn(one) for _ in range(count)]]


def waiting(client: Any, kind: str = "_streams") -> int:
    """Return how many callers wait for somebody else's answer."""
    flights = list(getattr(client, kind)._flights.values())
    return sum(len(flight._waiting or ()) for flight in flights)


class TestStampede:
    def test_streams(self, nothing_left: None, plain: Link, cached: Cached) -> None:
        """50 threads that ask the same cause one request, and all get all chunks, equal in every field."""
        server = plain.serve(WORDS)
        client = cached(server)
        answers: list[list[CompletionChunk]] = at_once(lambda: list(client.chat_completion_stream(REQUEST)))
        assert len(server.requests) == 1
        assert all(answer == answers[0] for answer in answers)
        assert "".join(chunk.text for chunk in answers[0]) == "one two three four"
        assert len({id(chunk) for answer in answers for chunk in answer}) == MANY * len(answers[0])  # each has its own

    def test_whole_answers(self, plain: Link, cached: Cached) -> None:
        """50 threads that ask for the same whole answer cause one request."""
        server = plain.serve(Reply("Hello", head_delay=0.1))
        client = cached(server)
        answers = at_once(lambda: client.chat_completion(REQUEST))
        assert len(server.requests) == 1
        assert all(answer == answers[0] for answer in answers)
        assert len({id(answer) for answer in answers}) == MANY

    def test_embeddings(self, plain: Link, cached: Cached) -> None:
        """50 threads that ask for the same vectors cause one request."""
        server = plain.serve(Reply.json({"data": [{"index": 0, "embedding": [0.5]}]}))
        client = cached(server)
        answers = at_once(lambda: client.embeddings(EmbeddingRequest("m", ["x"])).vectors())
        assert answers == [[[0.5]]] * MANY
        assert len(server.requests) == 1

    def test_what_is_kept(self, plain: Link, cached: Cached) -> None:
        """50 threads that ask for what is kept all get it."""
        server = plain.serve("Hello world")
        client = cached(server)
        first = list(client.chat_completion_stream(REQUEST))
        assert at_once(lambda: list(client.chat_completion_stream(REQUEST))) == [first] * MANY
        assert len(server.requests) == 1

    def test_different_requests(self, plain: Link, cached: Cached) -> None:
        """Requests that differ do not wait for one another."""
        server = plain.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"]))
        client = cached(server)
        client.chat_completion_stream(REQUEST)
        numbers = iter(range(MANY))

        def ask() -> bool:
            word = str(next(numbers))
            return client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage(word)])).collect().text == word

        assert all(at_once(ask))
        assert len(server.requests) == MANY + 1


class TestFollowing:
    def test_chunks_as_they_come(self, plain: Link, cached: Cached) -> None:
        """Who comes later gets what has come so far at once, and then chunks as they come."""
        server = plain.serve(STALL)
        client = cached(server)
        first = client.chat_completion_stream(REQUEST)
        assert [first.get(30).text, first.get(30).text] == ["one", " two"]
        second = client.chat_completion_stream(REQUEST)
        assert [second.get(30).text, second.get(30).text] == ["one", " two"]
        assert second.response.status_code == 200
        assert len(server.requests) == 1

    def test_in_one_thread(self, plain: Link, cached: Cached) -> None:
        """One thread may take two streams of the same answer in turns, through the smallest channels."""
        words = " ".join(map(str, range(100)))
        server = plain.serve(words)
        client = cached(server)
        texts = ["", ""]
        for key, chunk in merge([client.chat_completion_stream(REQUEST, buffer=1) for _ in range(2)], maxsize=1):
            texts[key] += chunk.text
        assert texts == [words, words]
        assert len(server.requests) == 1

    def test_a_slow_one(self, plain: Link, cached: Cached) -> None:
        """One that takes nothing holds no other back, and has all chunks when it comes to it."""
        words = " ".join(map(str, range(300)))
        server = plain.serve(words)
        client = cached(server)
        slow = client.chat_completion_stream(REQUEST, buffer=1)
        assert client.chat_completion_stream(REQUEST, buffer=2).collect().text == words
        assert slow.collect().text == words
        assert len(server.requests) == 1

    def test_an_error(self, nothing_left: None, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """An error in the middle of a shared answer ends it for all, each with an error of its own."""
        events = [{"id": "c", "choices": [{"index": 0, "delta": {"content": "one"}}]}, {"error": {"message": "no"}}]
        client = cached(plain.serve(Reply(chunks=events, pace=0.5 * SCALE)))
        streams = [client.chat_completion_stream(REQUEST) for _ in range(3)]
        ends = [list(stream)[-1] for stream in streams]
        assert all(isinstance(end.error, StreamAPIError) for end in ends)
        assert {str(end.error) for end in ends} == {"no"}
        assert len({id(end.error) for end in ends}) == 3
        assert len({end.total_latency for end in ends}) == 1
        assert memory.entries == {}

    def test_other_clocks(self, plain: Link, cached: Cached) -> None:
        """Who has more patience does not suffer from another's clocks: they share nothing."""
        server = plain.serve(Reply("slow", first_delay=0.5 * SCALE), Reply("slow", first_delay=0.5 * SCALE))
        client = cached(server)
        hasty = client.chat_completion_stream(REQUEST, timeout=Timeout(first_chunk=0.2 * SCALE))
        patient = client.chat_completion_stream(REQUEST)
        *_, last = hasty
        assert isinstance(last.error, APITimeoutError)
        assert patient.collect().text == "slow"
        assert len(server.requests) == 2


class TestOneLeaves:
    @pytest.mark.parametrize("kind", ["_streams", "_wholes"])
    def test_all_are_refused(self, kind: str, plain: Link, cached: Cached) -> None:
        """Where the server refuses one after a while, the others ask together, and not one after the other."""
        refusal = Reply.error(500)
        server = plain.serve(attrs.evolve(refusal, head_delay=0.1 * SCALE))
        client = cached(server)

        def ask() -> float:
            with pytest.raises(InternalServerError):
                (client.chat_completion_stream if kind == "_streams" else client.chat_completion)(REQUEST)
            return time.monotonic()

        begun = time.monotonic()
        assert max(at_once(ask, 20)) - begun < 1.5 * SCALE  # one after the other: 2 s, and more

    @pytest.mark.parametrize("how", ["close", "cancel", "deadline", "drop"])
    def test_the_first(self, how: str, nothing_left: None, plain: Link, cached: Cached, memory: MemoryEngine) -> None:
        """When the first caller leaves in the middle of the answer, the second gets all of it, and it is kept."""
        server = plain.serve(Reply("one two three four", pace=(0.2 if how == "deadline" else 0.05) * SCALE))
        client = cached(server)
        context = Context()
        timeout = 0.3 * SCALE if how == "deadline" else None
        first = client.chat_completion_stream(REQUEST, context=context, timeout=timeout)
        second = client.chat_completion_stream(REQUEST)
        if how == "close":
            first.close()
        elif how == "cancel":
            context.cancel()
            assert isinstance(list(first)[-1].error, StreamCancelledError)
        elif how == "deadline":
            assert isinstance(list(first)[-1].error, APITimeoutError)
        else:
            del first
        assert second.collect().text == "one two three four"
        assert len(server.requests) == 1
        assert within(SCALE, lambda: len(memory.entries) == 1)

    def test_the_last(self, nothing_left: None, plain: Link, cached: Cached) -> None:
        """When all have left, the request ends at the server at once; who comes then asks anew."""
        server = plain.serve(STALL, "a new answer")
        client = cached(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(3)]
        for stream in streams:
            assert server.open_connections == 1
            stream.close()
        assert server.wait_for(lambda server: server.open_connections == 0, 20 * PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "a new answer"
        assert len(server.requests) == 2

    @pytest.mark.parametrize("kind", ["chat_completion_stream", "chat_completion"])
    def test_the_first_before_the_head(self, kind: str, nothing_left: None, plain: Link, cached: Cached) -> None:
        """When the first caller is cancelled before its answer begins, one of those who wait asks, for all of them."""
        server = plain.serve(SILENT, Reply("Hello", head_delay=0.1))
        client = cached(server)
        context = Context()
        first = spawn(lambda: getattr(client, kind)(REQUEST, context=context))
        assert server.wait_for(lambda server: len(server.requests) == 1)
        others: list[Future[Any]] = [spawn(lambda: getattr(client, kind)(REQUEST)) for _ in range(10)]
        flights = "_streams" if "stream" in kind else "_wholes"
        assert within(5 * SCALE, lambda: waiting(client, flights) == 10)
        context.cancel()
        with pytest.raises(StreamCancelledError):
            first.result(30)
        for other in others:
            answer = other.result(30)
            assert (answer.collect() if "stream" in kind else answer).text == "Hello"
        assert len(server.requests) == 2

    @pytest.mark.parametrize("kind", ["chat_completion_stream", "chat_completion"])
    def test_the_first_is_refused(self, kind: str, plain: Link, cached: Cached) -> None:
        """When the first caller is refused, only it gets that error."""
        server = plain.serve(Reply("", status=500, head_delay=0.2), "Hello")
        client = cached(server)
        first = spawn(lambda: getattr(client, kind)(REQUEST))
        assert server.wait_for(lambda server: len(server.requests) == 1)
        second = spawn(lambda: getattr(client, kind)(REQUEST))
        with pytest.raises(InternalServerError):
            first.result(30)
        answer = second.result(30)
        assert (answer.collect() if "stream" in kind else answer).text == "Hello"

    @pytest.mark.parametrize("kind", ["chat_completion_stream", "chat_completion"])
    @pytest.mark.parametrize("how", ["cancel", "deadline", "first_chunk"])
    def test_one_that_waits(self, how: str, kind: str, nothing_left: None, plain: Link, cached: Cached) -> None:
        """Whoever waits for another's answer obeys its own context and clocks, and disturbs nobody with that."""
        server = plain.serve(Reply("Hello", head_delay=0.4 * SCALE))
        client = cached(server)
        clocks = Timeout(first_chunk=0.05 * SCALE) if how == "first_chunk" else None
        first = spawn(lambda: getattr(client, kind)(REQUEST, timeout=None))
        assert server.wait_for(lambda server: len(server.requests) == 1)
        context = Context()
        if how == "first_chunk":  # asks itself, as its clocks are its own
            with pytest.raises(APITimeoutError):
                getattr(client, kind)(REQUEST, timeout=clocks)
        else:
            timeout = 0.05 * SCALE if how == "deadline" else None
            second = spawn(lambda: getattr(client, kind)(REQUEST, context=context, timeout=timeout))
            flights = "_streams" if "stream" in kind else "_wholes"
            assert within(5 * SCALE, lambda: waiting(client, flights) == 1 or second.done())
            if how == "cancel":
                context.cancel()
            with pytest.raises(StreamCancelledError if how == "cancel" else APITimeoutError):
                second.result(30)
        answer = first.result(30)
        assert (answer.collect() if "stream" in kind else answer).text == "Hello"

    @pytest.mark.parametrize("kind", ["chat_completion_stream", "chat_completion"])
    def test_one_that_waits_for_retries(self, kind: str, plain: Link, cached: Cached) -> None:
        """While the first caller tries again and again, who waits for it does so as long as its own clock says."""
        server = plain.serve(Reply.error(503, headers={"Retry-After": "3"}), "Hello")
        client = cached(server, retry=Retry(max_retries=1), timeout=Timeout(first_chunk=0.8))
        first = spawn(lambda: getattr(client, kind)(REQUEST))
        assert server.wait_for(lambda server: len(server.requests) == 1)
        with pytest.raises(APITimeoutError) as caught:
            getattr(client, kind)(REQUEST)
        assert caught.value.clock == "first_chunk"
        answer = first.result(30)
        assert (answer.collect() if "stream" in kind else answer).text == "Hello"


class TestFork:
    pytestmark = forking

    def test_a_child_asks_itself(self, plain: Link, cached: Cached) -> None:
        """A forked child does not wait for what its parent has asked, and disturbs no stream of it."""
        server = plain.serve(Reply("one two", pace=0.3), "from the child", "whole")
        client = cached(server)
        stream = client.chat_completion_stream(REQUEST)
        parent = os.getpid()

        def child() -> None:
            assert os.getpid() != parent
            assert client.chat_completion_stream(REQUEST).collect().text == "from the child"
            assert client.chat_completion(REQUEST).text == "whole"

        assert forked(child) == 0
        assert stream.collect().text == "one two"
        assert len(server.requests) == 3


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
def test_ctrl_c_while_another_asks() -> None:
    """Ctrl-C is noticed by who waits for another's answer, though the signal goes to another thread."""
    pressing = threading.Timer(0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))

    def wait() -> None:
        pressing.start()
        Flight[bytes]().wait(Context(), 60.0)

    with pytest.raises(KeyboardInterrupt):
        wait()
    pressing.join()

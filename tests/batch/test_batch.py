"""What `Client.batch` promises, whoever does the work and whatever keeps its results."""

from __future__ import annotations

import gc
import io
import itertools
import os
import pickle
import signal
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from chanstream import (
    APITimeoutError,
    BadRequestError,
    Batch,
    BatchProgress,
    BatchResult,
    ChatCompletionRequest,
    Context,
    Retry,
    StreamCancelledError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
    UserMessage,
)
from chanstream.observers import CallEnded, CallStarted
from chanstream.testing import FakeClient, RecordedRequest, Reply
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within
from tests.contract.test_13_threads import asking, forked

pytestmark = pytest.mark.usefixtures("nothing_left")


def said(request: RecordedRequest) -> str:
    """Return what a request says."""
    text: str = request.json["messages"][-1]["content"]
    return text


def echo(request: RecordedRequest) -> Reply:
    """Answer with what was said; some words have a meaning."""
    word, _, _ = said(request).partition(" ")
    replies = {
        "stall": Reply("never", stall_after=0),
        "slow": Reply(said(request), head_delay=0.1),
        "refuse": Reply.error(400, "not this"),
        "break": Reply(chunks=[]),
    }
    return replies.get(word, Reply(said(request)))


def numbered(count: int) -> list[ChatCompletionRequest]:
    """Return requests that say their number."""
    return [asking(str(number)) for number in range(count)]


class Counted:
    """An endless iterable that knows how many of it were taken, and whether it was let go."""

    def __init__(self, *first: str) -> None:
        self.taken = 0
        self.threads: set[str] = set()
        self.is_closed = threading.Event()
        self._first = first

    def __iter__(self) -> Iterator[ChatCompletionRequest]:
        try:
            for text in itertools.chain(self._first, map(str, itertools.count())):
                self.taken += 1
                self.threads.add(threading.current_thread().name)
                yield asking(text)
        finally:
            self.is_closed.set()


class TestResults:
    """What comes out."""

    def test_each_request_has_one_result(self, plain: Link) -> None:
        """Every request has one result, with its index, its answer and what it took."""
        client = plain.client(plain.serve(reply_with=echo))
        results = list(client.batch(numbered(50), concurrency=8))
        assert sorted(result.index for result in results) == list(range(50))
        for result in results:
            assert result.id == str(result.index) == said_in(result) == result.response.text  # type: ignore[union-attr]
            assert result.error is None
            assert result.attempts == 1
            assert 0 < result.time_to_first_chunk <= result.latency  # type: ignore[operator]
            assert result.response.usage is not None  # type: ignore[union-attr]

    def test_an_answer_is_that_of_a_stream(self, plain: Link) -> None:
        """An answer of a batch is what `collect` makes of the same stream, thoughts and tool calls too."""
        reply = Reply("Hi", reasoning="Hm", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}])
        client = plain.client(plain.serve(reply))
        (result,) = client.batch([REQUEST])
        assert result.response is not None
        assert result.response.choices == client.chat_completion_stream(REQUEST).collect().choices

    @pytest.mark.parametrize(
        "reply",
        [
            Reply("a b c", framing="content-length"),
            Reply("a b c", framing="close"),
            Reply("a b c", compress="gzip"),
            Reply("a b c", split=3),
            Reply("a b c", end="hold"),
            Reply("a b c", usage_chunk=True),
            Reply("a b c", content_type="application/json"),
        ],
        ids=lambda reply: f"{reply.framing}-{reply.compress}-{reply.split}-{reply.end}-{reply.content_type}",
    )
    def test_whatever_the_framing(self, link: Link, reply: Reply) -> None:
        """However an answer is framed, with TLS and without, it comes as with any other stream."""
        client = link.client(link.serve(reply))
        results = list(client.batch([REQUEST] * 3, concurrency=2))
        assert [result.response.text for result in results if result.response] == ["a b c"] * 3, results

    def test_connections_are_reused(self, plain: Link) -> None:
        """A batch has as many connections as requests at a time."""
        server = plain.serve(reply_with=echo)
        assert len(list(plain.client(server).batch(numbered(40), concurrency=4))) == 40
        assert server.connections <= 4

    def test_an_answer_of_length_0(self, plain: Link) -> None:
        """A body of no bytes is an answer that is cut off."""
        client = plain.client(plain.serve(Reply(body=b"", framing="content-length")))
        (result,) = client.batch([REQUEST])
        assert isinstance(result.error, StreamTruncatedError)

    def test_a_failure_stops_no_other(self, plain: Link) -> None:
        """A request that fails has its error for a result, and all others have their answers."""
        texts = ["0", "refuse", "2", "break", "4"]
        client = plain.client(plain.serve(reply_with=echo))
        results = sorted(client.batch(map(asking, texts), concurrency=2), key=lambda result: result.index)
        kinds = [type(result.error) for result in results]
        assert kinds == [type(None), BadRequestError, type(None), StreamTruncatedError, type(None)]
        assert [result.response is None for result in results] == [False, True, False, True, False]

    def test_a_cut_keeps_what_came(self, plain: Link) -> None:
        """The error of an answer that was cut has what had come, and when its first chunk did."""
        client = plain.client(plain.serve(Reply("a b c", cut_at=450)))
        (result,) = client.batch([REQUEST])
        assert isinstance(result.error, (StreamTruncatedError, StreamInterruptedError))
        assert "a b c".startswith(result.error.partial.text)  # type: ignore[union-attr]
        assert result.error.partial.text  # type: ignore[union-attr]
        assert result.time_to_first_chunk is not None

    def test_a_request_that_cannot_be_sent(self, plain: Link) -> None:
        """A request that the client's dialect refuses has that for a result, and was never sent."""
        server = plain.serve()
        strange = ChatCompletionRequest("m", [UserMessage("x")], safe_prompt=True)
        client = plain.client(server, dialect="groq")
        (result,) = client.batch([strange])
        assert isinstance(result.error, (TypeError, ValueError))
        assert result.attempts == 0
        assert server.requests == ()

    def test_tries_are_counted(self, plain: Link) -> None:
        """A result says how often its request was sent."""
        server = plain.serve(Reply.error(500), Reply.error(503), "well")
        client = plain.client(server, retry=Retry(min_delay=0.001))
        (result,) = client.batch([REQUEST])
        assert (result.attempts, result.response.text) == (3, "well")  # type: ignore[union-attr]

    def test_ids(self, plain: Link) -> None:
        """An id that comes with a request comes with its result."""
        client = plain.client(plain.serve(reply_with=echo))
        results = client.batch([("a", asking("1")), ("b", asking("2"))])
        assert {result.id: result.response.text for result in results if result.response} == {"a": "1", "b": "2"}

    def test_a_result_can_be_pickled(self, plain: Link) -> None:
        """A result with an error, and one with an answer, are the same after pickling."""
        client = plain.client(plain.serve(reply_with=echo))
        for result in client.batch([asking("1"), asking("refuse")]):
            again = pickle.loads(pickle.dumps(result))
            assert (again.id, again.response, str(again.error)) == (result.id, result.response, str(result.error))

    def test_nothing_at_all(self, plain: Link) -> None:
        """No requests give no results."""
        assert list(plain.client("http://127.0.0.1:1").batch([])) == []

    def test_clocks(self, plain: Link) -> None:
        """The clocks of a batch are those of each request, not of all together."""
        client = plain.client(plain.serve(reply_with=echo))
        clocks = Timeout(first_chunk=0.3 * SCALE)
        results = list(client.batch([asking("stall"), *map(asking, ["slow"] * 6)], concurrency=2, timeout=clocks))
        late = [result for result in results if result.error]
        assert [(result.index, result.error.clock) for result in late] == [(0, "first_chunk")]  # type: ignore[union-attr]

    def test_observers_are_told(self, plain: Link) -> None:
        """Observers are told of each request of a batch as of any other call."""
        facts: list[Any] = []
        client = plain.client(plain.serve(reply_with=echo), observers=[facts.append])
        list(client.batch(numbered(5)))
        assert sum(isinstance(fact, CallStarted) for fact in facts) == 5
        ends = [fact for fact in facts if isinstance(fact, CallEnded)]
        assert [(end.state, end.attempts) for end in ends] == [("complete", 1)] * 5
        assert all(end.time_to_first_chunk for end in ends)

    def test_other_clients(self) -> None:
        """A fake client, and one with other options, have batches too."""
        with FakeClient(reply_with=echo) as client:
            for each in (client, client.with_options(timeout=20.0), client.with_options(buffer=1)):
                assert sorted(result.response.text for result in each.batch(numbered(5)) if result.response) == list(
                    "01234"
                )


def said_in(result: BatchResult) -> str:
    """Return what a result's request says."""
    return str(result.request.messages[0].content)  # type: ignore[union-attr]


class TestTakingIn:
    """How requests are taken from their iterable."""

    def test_lazily(self, plain: Link) -> None:
        """An endless iterable is taken as results are: two times the concurrency ahead, by one thread alone."""
        requests = Counted()
        with plain.client(plain.serve(reply_with=echo)).batch(requests, concurrency=3) as batch:
            assert requests.taken == 0
            for count in range(1, 5):
                next(batch)
                assert within(5 * SCALE, lambda: requests.taken >= count + 4)  # noqa: B023 - called at once
                assert requests.taken <= count + 6
        assert requests.is_closed.wait(5 * SCALE)
        assert requests.taken <= 4 + 6
        assert requests.threads == {"chanstream-batch"}

    def test_results_do_not_wait_for_a_slow_iterable(self, plain: Link) -> None:
        """What is finished is given while the iterable thinks about the next."""
        go_on = threading.Event()

        def requests() -> Iterator[ChatCompletionRequest]:
            yield asking("a")
            yield asking("b")
            go_on.wait(20 * SCALE)
            yield asking("c")

        batch = plain.client(plain.serve(reply_with=echo)).batch(requests())
        assert {next(batch).index, next(batch).index} == {0, 1}
        go_on.set()
        assert [result.index for result in batch] == [2]

    def test_an_iterable_that_raises(self, plain: Link) -> None:
        """What the iterable raises is raised once, after the results of what it gave before."""

        def requests() -> Iterator[ChatCompletionRequest]:
            yield asking("slow")
            yield asking("b")
            raise LookupError("no more")

        batch = plain.client(plain.serve(reply_with=echo)).batch(requests())
        assert {next(batch).index, next(batch).index} == {0, 1}
        with pytest.raises(LookupError, match="no more"):
            next(batch)
        assert list(batch) == []

    @pytest.mark.parametrize(
        ("items", "error", "words"),
        [
            ([REQUEST, "x"], TypeError, r"requests\[1\]: expected a ChatCompletionRequest.* got str"),
            ([REQUEST, {"model": "secret"}], TypeError, r"requests\[1\]: .* got dict"),
            ([("a", REQUEST), ("b", "x")], TypeError, r"requests\[1\]: .* got tuple"),
            ([("a", REQUEST, 1)], TypeError, r"requests\[0\]: .* got tuple"),
            ([(1, REQUEST)], TypeError, r"requests\[0\]: expected an id that is a text, got 1"),
            ([("", REQUEST)], ValueError, r"requests\[0\]: the id is empty"),
            ([("a", REQUEST), ("b", REQUEST), ("a", REQUEST)], ValueError, r"requests\[2\]: the id 'a' has been there"),
            ([("a", REQUEST), REQUEST], TypeError, r"requests\[1\]: expected all requests to come with an id, or none"),
            ([REQUEST, ("a", REQUEST)], TypeError, r"requests\[1\]: expected all requests to come with an id, or none"),
        ],
    )
    def test_bad_items(self, plain: Link, items: list[Any], error: type[Exception], words: str) -> None:
        """An item that is no request, or has an id that cannot be, ends the batch after those before it."""
        batch = plain.client(plain.serve()).batch(items)
        good = [next(batch).index for _ in items[:-1]]
        assert sorted(good) == list(range(len(items) - 1))
        with pytest.raises(error, match=words) as caught:
            next(batch)
        assert "secret" not in str(caught.value)
        assert list(batch) == []

    @pytest.mark.parametrize(
        ("given", "error", "name"),
        [
            ({"concurrency": 0}, ValueError, "concurrency"),
            ({"concurrency": True}, TypeError, "concurrency"),
            ({"concurrency": "x"}, TypeError, "concurrency"),
            ({"ordered": 1}, TypeError, "ordered"),
            ({"adaptive": "yes"}, TypeError, "adaptive"),
            ({"retry_failed": None}, TypeError, "retry_failed"),
            ({"stop_on_error": 0}, TypeError, "stop_on_error"),
            ({"progress": 3}, TypeError, "progress"),
            ({"progress": dict}, TypeError, "progress"),
            ({"journal": 3}, TypeError, "journal"),
            ({"executor": 3}, TypeError, "executor"),
            ({"timeout": -1}, ValueError, "timeout"),
            ({"context": 3}, TypeError, "context"),
            ({"requests": None}, TypeError, "requests"),
            ({"requests": REQUEST}, TypeError, "requests"),
            ({"requests": "text"}, TypeError, "requests"),
            ({"requests": {}}, TypeError, "requests"),
        ],
    )
    def test_bad_arguments(self, plain: Link, given: dict[str, Any], error: type[Exception], name: str) -> None:
        """A wrong argument is told at the call, by its name; nothing is taken from the iterable or sent."""
        requests = Counted()
        with pytest.raises(error, match=f"^{name}: "):
            plain.client("http://127.0.0.1:1").batch(**{"requests": requests, **given})
        assert requests.taken == 0


class TestOrder:
    """In which order results come."""

    def test_as_they_are_ready(self, plain: Link) -> None:
        """By default a result comes when it is ready, whatever was asked before it."""
        client = plain.client(plain.serve(reply_with=echo))
        with client.batch([asking("stall"), asking("1"), asking("2")], concurrency=3) as batch:
            assert {next(batch).index, next(batch).index} == {1, 2}

    def test_as_they_were_asked(self, plain: Link) -> None:
        """With ``ordered`` results come in the order of their requests."""
        texts = ["slow" if number % 7 == 0 else str(number) for number in range(30)]
        client = plain.client(plain.serve(reply_with=echo))
        results = list(client.batch(map(asking, texts), concurrency=6, ordered=True))
        assert [result.index for result in results] == list(range(30))

    def test_how_far_ahead(self, plain: Link) -> None:
        """Where the first of ordered results is late, four times the concurrency are taken, and no more."""
        requests = Counted("stall")
        server = plain.serve(reply_with=echo)
        batch = plain.client(server).batch(requests, concurrency=2, ordered=True)
        waiting = spawn(next, batch)
        assert server.wait_for(lambda server: len(server.requests) == 8, 5 * SCALE)
        assert within(5 * SCALE, lambda: len(batch._held) == 7)
        assert requests.taken == 8
        batch.close()
        first = waiting.result(5 * SCALE)  # now it is clear that the stalled one never comes
        assert [first.index, *(result.index for result in batch)] == list(range(1, 8))
        assert len(server.requests) == 8


class TestEnding:
    """How a batch ends before its requests do."""

    def closing(self, plain: Link, **settings: Any) -> tuple[Any, Batch, Counted]:
        """Return a server and a batch of which three are finished, one of them taken, and the others stall."""
        requests = Counted("a", "b", "c", *["stall"] * 100)
        server = plain.serve(reply_with=echo)
        batch = plain.client(server).batch(requests, concurrency=4, **settings)
        next(batch)
        assert within(5 * SCALE, lambda: batch._run.results.qsize() + len(batch._ready) == 2)
        assert server.wait_for(lambda server: len(server.requests) == 7, 5 * SCALE)
        return server, batch, requests

    def test_close(self, plain: Link) -> None:
        """Closing frees everything at once, and what is finished can still be taken."""
        server, batch, requests = self.closing(plain)
        batch.close()
        assert server.wait_for(lambda server: server.open_connections == 0, PROMPT + SCALE)
        assert requests.is_closed.wait(SCALE)
        assert {result.response.text for result in batch if result.response} < {"a", "b", "c"}
        assert list(batch) == []
        batch.close()

    def test_close_elsewhere(self, plain: Link) -> None:
        """Closing from another thread ends the wait of who takes results."""
        server = plain.serve(reply_with=echo)
        batch = plain.client(server).batch([asking("stall")])
        waiting = spawn(list, batch)
        assert server.wait_for(lambda server: len(server.requests) == 1, 5 * SCALE)
        batch.close()
        assert waiting.result(5 * SCALE) == []

    def test_closed_before_it_began(self, plain: Link) -> None:
        """A batch that is closed before its first result takes nothing, and has no results."""
        requests = Counted()
        batch = plain.client("http://127.0.0.1:1").batch(requests)
        batch.close()
        assert list(batch) == []
        assert requests.taken == 0

    def test_break(self, plain: Link) -> None:
        """Leaving the loop closes the batch."""
        server = plain.serve(reply_with=echo)
        batch = plain.client(server).batch(Counted("a", *["stall"] * 100))
        for _ in batch:
            break
        assert server.wait_for(lambda server: server.open_connections <= 1, 5 * SCALE)  # one may be kept
        assert list(batch) == []

    def test_drop(self, plain: Link) -> None:
        """A batch that nobody holds any more ends."""
        requests = Counted("a", *["stall"] * 100)
        server = plain.serve(reply_with=echo)
        assert next(plain.client(server).batch(requests)).index == 0
        assert requests.is_closed.wait(5 * SCALE)
        assert server.wait_for(lambda server: server.open_connections <= 1, 5 * SCALE)  # one may be kept

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_context(self, plain: Link, when: str) -> None:
        """A cancelled context ends the batch: what is finished can be taken, and then its error is raised, once."""
        context = Context()
        if when == "before":
            context.cancel()
            batch = plain.client("http://127.0.0.1:1").batch(Counted(), context=context)
        else:
            _, batch, _ = self.closing(plain, context=context)
            context.cancel()
            assert {next(batch).id, next(batch).id} < {"0", "1", "2"}
        with pytest.raises(StreamCancelledError):
            next(batch)
        assert list(batch) == []

    def test_deadline(self, plain: Link) -> None:
        """A context's deadline ends the batch, and a long-lived context keeps nothing of one that has ended."""
        life = Context()
        client = plain.client(plain.serve(reply_with=echo))
        with pytest.raises(APITimeoutError) as caught:
            list(client.batch([asking("stall")], context=life.with_timeout(0.1)))
        assert caught.value.clock == "context"
        parent = Context()
        list(client.batch([asking("1")], context=parent))
        assert within(1, lambda: not parent._callbacks)

    def test_stop_on_error(self, plain: Link) -> None:
        """With ``stop_on_error`` the first failure is given as a result, and then raised; the others are cancelled."""
        server = plain.serve(reply_with=echo)
        requests = Counted("stall", "stall", "refuse", *["stall"] * 100)
        batch = plain.client(server).batch(requests, concurrency=3, stop_on_error=True)
        result = next(batch)
        assert (result.index, type(result.error)) == (2, BadRequestError)
        with pytest.raises(BadRequestError) as caught:
            next(batch)
        assert caught.value is result.error
        assert list(batch) == []
        assert server.wait_for(lambda server: server.open_connections <= 1, 5 * SCALE)  # that of the refusal is kept

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
    def test_ctrl_c(self, plain: Link, no_collector: None) -> None:
        """Ctrl-C while the main thread waits for a result ends the batch and everything in it."""
        server = plain.serve(reply_with=echo)
        batch = plain.client(server).batch([asking("stall")] * 5)

        def press() -> None:
            server.wait_for(lambda server: len(server.requests) == 5, 20 * SCALE)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

        pressing = spawn(press)
        with pytest.raises(KeyboardInterrupt):
            list(batch)
        pressing.result()
        assert server.wait_for(lambda server: server.open_connections == 0, 5 * SCALE)
        assert list(batch) == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_fork(self, plain: Link) -> None:
        """In a forked child a parent's batch raises, and closing it there does the parent no harm."""
        requests = Counted()
        batch = plain.client(plain.serve(reply_with=echo)).batch(requests, concurrency=2)
        next(batch)

        def child() -> None:
            batch.close()
            with pytest.raises(StreamInterruptedError):
                next(batch)

        assert forked(child) == 0
        assert next(batch).response is not None
        batch.close()

    def test_no_more_threads(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started the batch says so, and ends."""

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        batch = plain.client("http://127.0.0.1:1").batch(numbered(3))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                next(batch)
        assert list(batch) == []

    def test_fewer_threads(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where only some of the threads can be started those do all the work."""
        start = threading.Thread.start

        def refuse_some(thread: threading.Thread) -> None:
            if thread.name.startswith("chanstream-batch-") and thread.name != "chanstream-batch-1":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse_some)
        assert len(list(plain.client(plain.serve(reply_with=echo)).batch(numbered(9), concurrency=4))) == 9


class TestProgress:
    """How far it is."""

    def test_a_callable(self, plain: Link) -> None:
        """A callable is told of each result, with all that is counted so far."""
        told: list[BatchProgress] = []
        client = plain.client(plain.serve(reply_with=echo))
        list(client.batch([asking("refuse"), asking("b c"), asking("d")], concurrency=1, progress=told.append))
        assert [(now.done, now.failed, now.total) for now in told] == [(1, 1, 3), (2, 1, 3), (3, 1, 3)]
        assert told[0].tokens == 0 < told[1].tokens < told[2].tokens
        assert 0 < told[0].elapsed <= told[1].elapsed <= told[2].elapsed

    def test_of_how_many(self, plain: Link) -> None:
        """Of an iterable without a length nobody knows how many there will be."""
        told: list[BatchProgress] = []
        client = plain.client(plain.serve(reply_with=echo))
        list(client.batch(iter(numbered(2)), progress=told.append))
        list(client.batch((request for request in numbered(2)), progress=told.append))
        assert [now.total for now in told] == [2, 2, None, None]

    def test_a_callable_that_raises(self, plain: Link) -> None:
        """What the callable raises is raised to who takes the result, which can still be taken."""
        trouble = iter([True])

        def tell(_: BatchProgress) -> None:
            if next(trouble, False):
                raise LookupError("no screen")

        batch = plain.client(plain.serve(reply_with=echo)).batch(numbered(1), progress=tell)
        with pytest.raises(LookupError):
            next(batch)
        assert [result.index for result in batch] == [0]

    def test_a_bar(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bar says what is done, what failed, and how many tokens a second there are."""
        pytest.importorskip("tqdm")
        monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
        client = plain.client(plain.serve(reply_with=echo))
        list(client.batch([asking("refuse"), asking("b")], concurrency=1, progress=True))
        last = shown.getvalue().split("\r")[-1]
        assert "2/2" in last
        assert "1 failed" in last
        assert "tokens/s" in last

    def test_the_bar_is_an_extra(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where tqdm is not installed the error says what to install, before anything is taken."""
        monkeypatch.setitem(sys.modules, "tqdm", None)
        requests = Counted()
        with pytest.raises(ImportError, match=r"pip install 'chanstream\[batch\]'"):
            plain.client("http://127.0.0.1:1").batch(requests, progress=True)
        assert requests.taken == 0


def test_memory_is_flat(plain: Link) -> None:
    """What a batch keeps does not grow with the number of its results."""
    client = plain.client(plain.serve(reply_with=echo, keep=1))
    batch = client.batch((asking(f"{number:010000}") for number in itertools.count()), concurrency=2)
    held = []
    tracemalloc.start()
    try:
        for _ in range(2):
            for _ in range(200):
                next(batch)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        batch.close()
    # 200 requests and their answers are 4 000 000 bytes; what is under way at the moment may be 300 000.
    assert held[1] - held[0] < 1_000_000

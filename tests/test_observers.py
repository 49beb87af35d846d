"""What observers are told of each call, and that nothing of what they do hurts it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import random
import threading
from collections import defaultdict
from typing import Any

import attrs
import pytest

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ChanstreamError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Client,
    CompletionStream,
    Context,
    EmbeddingRequest,
    RateLimitError,
    ResponseHead,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
    UserMessage,
)
from chanstream.calls import Engine
from chanstream.engines import flow
from chanstream.observers import (
    CallEnded,
    CallStarted,
    Fact,
    FirstChunk,
    HeadReceived,
    ObservedCall,
    Observers,
    RequestSent,
    RetryScheduled,
)
from chanstream.testing import Reply
from chanstream.wire import machine
from tests.concurrency import spawn
from tests.conftest import REQUEST, SCALE, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

STREAMED = [CallStarted, RequestSent, HeadReceived, FirstChunk, CallEnded]
WHOLE = [CallStarted, RequestSent, HeadReceived, CallEnded]
QUICK = Retry(max_retries=2, min_delay=0.0, max_delay=0.0)
IDLE = Timeout(idle=0.2 * SCALE)


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients."""
    found: Engine = request.param
    return found


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.over = threading.Event()

    def __call__(self, fact: Fact) -> None:
        """Take a fact."""
        self.facts.append(fact)
        if isinstance(fact, CallEnded):
            self.over.set()

    @property
    def kinds(self) -> list[type]:
        """What kinds of facts came."""
        return [type(fact) for fact in self.facts]

    def end(self) -> CallEnded:
        """Return the one end that was told; it is the last fact."""
        assert self.over.wait(5)
        (end,) = [fact for fact in self.facts if isinstance(fact, CallEnded)]
        assert self.facts[-1] is end
        return end

    def calls(self) -> dict[ObservedCall, list[type]]:
        """Return the kinds of facts of each call."""
        found = defaultdict(list)
        for fact in self.facts:
            found[fact.call].append(type(fact))
        return found


class Answering(Notes):
    """One that wants whole answers."""

    wants_answer = True


def raise_always(fact: Fact) -> None:
    """Be an observer that fails."""
    raise RuntimeError("no good")


class TestStream:
    def test_a_good_one(self, link: Link) -> None:
        """A stream is told as start, request, head, first chunk and end, of the same call, before its loop ends."""
        notes = Notes()
        server = link.serve(Reply("a b c", headers={"x-request-id": "r-1", "x-ratelimit-remaining-requests": "7"}))
        client = link.client(server, observers=[notes])
        chunks = list(client.chat_completion_stream(REQUEST))
        assert notes.kinds == STREAMED
        assert len({fact.call for fact in notes.facts}) == 1
        end, last = notes.end(), chunks[-1]
        assert (end.state, end.error, end.attempts, end.finish_reasons) == ("complete", None, 1, ("stop",))
        assert (end.usage, end.elapsed, end.response_model) == (last.usage, last.total_latency, "test-model")
        assert end.response_id == chunks[0].id
        assert end.chunk_latencies == tuple(evt.chunk_latency for evt in chunks)
        assert (end.chunks, end.time_to_first_chunk) == (len(chunks), chunks[0].chunk_latency)
        assert end.head is not None
        assert (end.head.status_code, end.head.request_id) == (200, "r-1")
        assert end.head.rate_limits.remaining_requests == 7
        assert end.answer is None

    def test_the_call(self, plain: Link) -> None:
        """A call says what was asked of whom, and when; its repr has nothing of the request in it."""
        notes = Notes()
        server = plain.serve(Reply("a"), Reply("a"))
        client = plain.client(server, observers=[notes])
        for _ in range(2):
            list(client.chat_completion_stream(REQUEST))
        first, second = notes.calls()
        assert (first.dialect, first.base_url, first.path) == ("openai", f"{server.url}/v1", "/chat/completions")
        assert (first.host, first.port, first.stream, first.model) == (server.host, server.port, True, "test-model")
        assert first.request is REQUEST
        assert first != second
        assert first.id != second.id
        assert first.started < second.started
        assert first.started_at <= second.started_at
        assert "Say it." not in repr(notes.facts)
        assert "test-key" not in repr(notes.facts)

    def test_the_times(self, plain: Link) -> None:
        """The facts of a call are told in the order of their times, which are seconds since it began."""
        notes = Notes()
        server = plain.serve(Reply.error(503), Reply("a b", head_delay=0.02, first_delay=0.02, pace=0.01))
        list(plain.client(server, observers=[notes], retry=QUICK).chat_completion_stream(REQUEST))
        times = [fact.elapsed for fact in notes.facts if not isinstance(fact, CallStarted)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] - 0.05

    def test_the_answer_for_who_wants_it(self, plain: Link) -> None:
        """With one observer that wants answers the end holds the stream's, in parts too, for all of them."""
        wants, other = Answering(), Notes()
        cut = Reply("a b", finish_reason=None, done=False)
        client = plain.client(plain.serve(Reply("a b"), cut), observers=[other, wants])
        list(client.chat_completion_stream(REQUEST))
        assert wants.end().answer.text == other.end().answer.text == "a b"
        other.facts.clear()
        list(client.chat_completion_stream(REQUEST))
        assert (other.end().state, other.end().answer.text) == ("failed", "a b")

    def test_chunks_stay_as_they_are(self, plain: Link) -> None:
        """What is told of a chunk's id does not touch the chunk, which is its consumer's."""
        notes = Notes()
        piece = {"id": "c-1", "choices": [{"index": 0, "delta": {"content": "a"}}]}
        first, *_ = list(plain.stream(Reply(chunks=[piece, piece, "[DONE]"]), observers=[notes]))
        assert notes.end().response_id == "c-1"
        assert first.piece == "a"  # nobody has looked at more of it

    def test_several_choices(self, plain: Link) -> None:
        """The finish reasons are those of all choices, in their order."""
        notes = Notes()
        chunks = [
            {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]},
            {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        ]
        list(plain.stream(Reply(chunks=[*chunks, "[DONE]"]), observers=[notes]))
        assert notes.end().finish_reasons == ("stop", "length")

    @pytest.mark.parametrize(
        ("reply", "kind", "chunks"),
        [
            (Reply("a b", finish_reason=None, done=False), StreamTruncatedError, 2),
            (Reply("a b", finish_reason=None, done=False, end="cut"), StreamInterruptedError, 2),
            (Reply(chunks=[]), StreamTruncatedError, 0),
            (Reply(chunks=[{"error": {"message": "no room"}}]), StreamAPIError, 0),
            (Reply("a b", stall_after=1), APITimeoutError, 1),
            (Reply.html("<html></html>"), StreamDecodeError, 0),
        ],
    )
    def test_a_bad_one(self, plain: Link, reply: Reply, kind: type[Exception], chunks: int) -> None:
        """A stream that fails is told as failed, with its error and the chunks before it."""
        notes = Notes()
        last = list(plain.stream(reply, observers=[notes], timeout=IDLE))[-1]
        end = notes.end()
        assert (end.state, end.chunks, end.elapsed) == ("failed", chunks, last.total_latency)
        assert isinstance(end.error, kind)
        assert end.error is last.error
        assert (FirstChunk in notes.kinds) == bool(chunks)

    @pytest.mark.parametrize("how", ["close", "break", "drop", "with", "context"])
    def test_a_cancelled_one(self, plain: Link, how: str) -> None:
        """A stream that its consumer leaves is told as cancelled, at once, however it is left."""
        notes, context = Notes(), Context()
        client = plain.client(plain.serve(Reply("a b", stall_after=1)), observers=[notes])
        stream = client.chat_completion_stream(REQUEST, context=context)
        if how == "break":
            for _ in stream:
                break
        stream.get() if how != "break" else None
        if how == "close":
            stream.close()
        elif how == "with":
            with stream:
                pass
        elif how == "context":
            context.cancel()
        del stream
        end = notes.end()
        assert (end.state, end.chunks, type(end.error)) == ("cancelled", 1, StreamCancelledError)

    def test_an_end_that_nobody_takes(self, plain: Link) -> None:
        """A stream is complete when its last chunk is there, though its consumer closes it then."""
        notes = Notes()
        stream = plain.stream(Reply("a b"), observers=[notes])
        assert notes.over.wait(5)
        stream.close()
        assert notes.end().state == stream.state == "complete"

    def test_a_last_chunk_that_was_held_back(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that nothing ends but the clock for its last chunk is told as complete."""
        for module in (machine, flow):
            monkeypatch.setattr(module, "HOLD_SECONDS", 0.02)
        notes = Notes()
        stream = plain.stream(Reply("a b", usage=False, done=False, end="hold"), observers=[notes])
        assert list(stream)[-1].is_last_chunk
        assert (notes.end().state, notes.end().finish_reasons) == ("complete", ("stop",))

    def test_a_full_channel(self, plain: Link) -> None:
        """The end of a stream whose channel is full is told when it is closed."""
        notes = Notes()
        stream = plain.stream(
            Reply("a b c d e f", finish_reason=None, done=False, end="hold"), observers=[notes], buffer=1
        )
        assert within(5 * SCALE, lambda: FirstChunk in notes.kinds)
        stream.close()
        assert notes.end().state == "cancelled"


class TestBeforeTheHead:
    @pytest.mark.parametrize(
        ("reply", "kind"), [(Reply.error(401), AuthenticationError), (Reply("a", head_delay=60), APITimeoutError)]
    )
    def test_a_failure(self, plain: Link, reply: Reply, kind: type[Exception]) -> None:
        """What is raised before the head is told as the end, the same error, with the refusal's head."""
        notes = Notes()
        client = plain.client(plain.serve(reply), observers=[notes], timeout=Timeout(first_chunk=0.5 * SCALE))
        with pytest.raises(kind) as caught:
            client.chat_completion_stream(REQUEST)
        end = notes.end()
        assert (end.state, end.error, end.attempts, end.chunks) == ("failed", caught.value, 1, 0)
        assert (end.head and end.head.status_code) == (401 if reply.status == 401 else None)

    def test_no_server(self, plain: Link) -> None:
        """Where nothing listens the call is told as sent, tried again, and failed."""
        notes = Notes()
        with plain.serve() as server:
            url = server.url
        client = plain.client(url, observers=[notes], retry=QUICK)
        with pytest.raises(APIConnectionError):
            client.chat_completion_stream(REQUEST)
        assert notes.kinds == [CallStarted, *[RequestSent, RetryScheduled] * 2, RequestSent, CallEnded]
        assert (notes.end().attempts, notes.end().head) == (3, None)

    def test_retries(self, plain: Link) -> None:
        """Each attempt is told, with its number; what it failed with, and the pause, before the next."""
        notes = Notes()
        refusal = Reply.error(429, headers={"retry-after-ms": "7", "x-request-id": "r-1"})
        client = plain.client(plain.serve(refusal, refusal, "a"), observers=[notes], retry=QUICK)
        list(client.chat_completion_stream(REQUEST))
        again = [RequestSent, HeadReceived, RetryScheduled]
        assert notes.kinds == [CallStarted, *again, *again, *STREAMED[1:]]
        assert [fact.attempt for fact in notes.facts[1:8] if not isinstance(fact, (FirstChunk, CallEnded))] == [
            *[1, 1, 1],
            *[2, 2, 2],
            3,
        ]
        retry = notes.facts[3]
        assert isinstance(retry, RetryScheduled)
        assert isinstance(retry.error, RateLimitError)
        assert (retry.pause, retry.error.request_id) == (0.007, "r-1")
        assert (notes.end().attempts, notes.end().state) == (3, "complete")

    def test_a_cancel(self, plain: Link) -> None:
        """A call that is cancelled while the server is silent is told as cancelled."""
        notes, context = Notes(), Context()
        server = plain.serve(Reply("a", head_delay=60))
        client = plain.client(server, observers=[notes])
        cancelling = spawn(lambda: (server.wait_for(lambda s: bool(s.requests)), context.cancel())[0])
        with pytest.raises(StreamCancelledError):
            client.chat_completion_stream(REQUEST, context=context)
        assert cancelling.result(5)
        assert notes.kinds == [CallStarted, RequestSent, CallEnded]
        assert notes.end().state == "cancelled"

    def test_nothing_was_sent(self, plain: Link) -> None:
        """A call whose context is done already is told as started and cancelled; nothing goes out."""
        notes, context = Notes(), Context()
        context.cancel()
        server = plain.serve("a")
        with pytest.raises(StreamCancelledError):
            plain.client(server, observers=[notes]).chat_completion_stream(REQUEST, context=context)
        assert notes.kinds == [CallStarted, CallEnded]
        assert (notes.end().attempts, server.requests) == (0, ())

    def test_bad_arguments(self, plain: Link) -> None:
        """A call that is refused for its arguments is none: nothing is told."""
        notes = Notes()
        client = plain.client(plain.serve("a"), observers=[notes])
        for wrong in ({"timeout": -1}, {"buffer": 0}, {"errors": "no"}):
            with pytest.raises(ValueError, match="expected"):
                client.chat_completion_stream(REQUEST, **wrong)
        with pytest.raises(TypeError):
            client.chat_completion("no request")  # type: ignore[arg-type]
        assert notes.facts == []

    def test_no_more_threads(self, plain: Link, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that no thread can be had for has failed."""
        notes = Notes()
        client = plain.client(plain.serve(Reply("a", stall_after=1)), observers=[notes])
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith(("chanstream-producer", "chanstream-poller")):
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            client.chat_completion_stream(REQUEST)
        assert isinstance(notes.end().error, StreamError)
        assert notes.end().state == "failed"


class TestWholeAnswers:
    def test_a_completion(self, plain: Link) -> None:
        """A whole answer is told without a first chunk; the end holds it."""
        notes = Notes()
        answer = plain.client(plain.serve("a b"), observers=[notes]).chat_completion(REQUEST)
        assert notes.kinds == WHOLE
        end = notes.end()
        assert (end.state, end.usage, end.finish_reasons) == ("complete", answer.usage, ("stop",))
        assert (end.response_id, end.response_model) == (answer.id, "test-model")
        assert (end.answer, end.chunks, end.time_to_first_chunk) == (answer, 0, None)
        assert isinstance(end.answer, ChatCompletionResponse)
        assert not end.call.stream

    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (Reply.json({"error": {"message": "no"}}), StreamAPIError),
            (Reply.html("<html></html>"), StreamDecodeError),
            (Reply.json([]), StreamDecodeError),
            (Reply.json({"choices": []}, 429), RateLimitError),
            (Reply("a", framing="content-length", end="cut"), APIConnectionError),
        ],
    )
    def test_a_failure(self, plain: Link, reply: Reply, kind: type[Exception]) -> None:
        """An answer that is none is told as failed, with what is raised."""
        notes = Notes()
        with pytest.raises(kind) as caught:
            plain.client(plain.serve(reply), observers=[notes]).chat_completion(REQUEST)
        assert (notes.end().state, notes.end().error) == ("failed", caught.value)

    def test_what_is_no_chat(self, plain: Link) -> None:
        """Embeddings and models are told as the calls that they are."""
        notes = Notes()
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        vectors = {"id": "e", "model": "m", "data": [{"embedding": [0.5], "index": 0}], "usage": usage}
        client = plain.client(plain.serve(Reply.json(vectors), models=[{"id": "m"}]), observers=[notes])
        request = EmbeddingRequest("m", ["a"])
        client.embeddings(request)
        client.list_models()
        client.get_model("m")
        assert list(notes.calls().values()) == [WHOLE] * 3
        embedded, listed, got = (fact for fact in notes.facts if isinstance(fact, CallEnded))
        assert (embedded.call.path, embedded.call.request, embedded.call.model) == ("/embeddings", request, "m")
        assert embedded.usage is not None
        assert (embedded.usage.prompt_tokens, embedded.response_model) == (7, "m")
        assert (listed.call.path, listed.call.request, listed.call.model) == ("/models", None, None)
        assert (got.call.path, got.response_id, got.usage) == ("/models/m", None, None)


class TestEventLoops:
    def test_a_stream(self, link: Link) -> None:
        """A stream that is opened from an event loop is told as any other; it starts in the loop's thread."""
        notes, starters = Notes(), []

        def note_starter(fact: Fact) -> None:
            if isinstance(fact, CallStarted):
                starters.append(threading.current_thread())

        client = link.client(link.serve(Reply.error(503), "a b"), observers=[notes, note_starter], retry=QUICK)

        async def ask() -> str:
            return "".join([evt.text async for evt in await client.chat_completion_stream_async(REQUEST)])

        assert asyncio.run(ask()) == "a b"
        assert notes.kinds == [CallStarted, RequestSent, HeadReceived, RetryScheduled, *STREAMED[1:]]
        assert (notes.end().state, notes.end().attempts) == ("complete", 2)
        assert starters == [threading.current_thread()]

    def test_a_refusal(self, plain: Link) -> None:
        """A refusal that an event loop gets is told as the end."""
        notes = Notes()
        client = plain.client(plain.serve(Reply.error(401)), observers=[notes])
        with pytest.raises(AuthenticationError) as caught:
            asyncio.run(client.chat_completion_stream_async(REQUEST))
        assert (notes.kinds, notes.end().error) == (WHOLE, caught.value)

    def test_a_cancelled_task(self, plain: Link) -> None:
        """A call whose task is cancelled before the head is told as cancelled, and nothing is told after."""
        notes, sent = Notes(), asyncio.Event()
        server = plain.serve(Reply("a", head_delay=60))
        client = plain.client(server, observers=[notes, lambda fact: isinstance(fact, RequestSent) and sent.set()])

        async def ask() -> None:
            task = asyncio.ensure_future(client.chat_completion_stream_async(REQUEST))
            await sent.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(ask())
        assert notes.kinds == [CallStarted, RequestSent, CallEnded]
        assert notes.end().state == "cancelled"

    def test_late_news(self) -> None:
        """What a thread has to tell of a call that has ended meanwhile is dropped."""
        notes = Notes()
        watch = Observers([notes]).watch(dialect="", base_url="http://host", path="")
        assert watch is not None
        with contextlib.suppress(asyncio.CancelledError), watch:
            watch.sent()
            raise asyncio.CancelledError
        watch.received(ResponseHead(200, {}))
        watch.note_end(None)
        watch.tell()
        assert notes.kinds == [CallStarted, RequestSent, CallEnded]


class TestObserversThatMisbehave:
    def test_one_that_raises(self, plain: Link, caplog: pytest.LogCaptureFixture) -> None:
        """What an observer raises changes nothing, keeps nothing from the others, and is logged once."""
        notes = Notes()
        client = plain.client(plain.serve("a b", "a b", "a b"), observers=[raise_always, notes])
        for _ in range(2):
            assert "".join(evt.text for evt in client.chat_completion_stream(REQUEST)) == "a b"
        assert client.chat_completion(REQUEST).text == "a b"
        assert list(notes.calls().values()) == [STREAMED, STREAMED, WHOLE]
        (record,) = [found for found in caplog.records if found.name == "chanstream" and found.levelno > logging.INFO]
        assert "raise_always" in record.getMessage()
        assert record.exc_info is not None

    def test_one_that_raises_when_it_fails(self, plain: Link) -> None:
        """The error of a call is raised as it is, though an observer fails at the end too."""
        client = plain.client(plain.serve(Reply.error(401)), observers=[raise_always])
        with pytest.raises(AuthenticationError):
            client.chat_completion_stream(REQUEST)

    @pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
    def test_one_that_interrupts_a_thread_of_ours(self, plain: Link, error: type[BaseException]) -> None:
        """In the library's threads nothing that an observer raises ends anything, be it no `Exception`."""

        def raise_it(fact: Fact) -> None:
            if threading.current_thread().name.startswith("chanstream"):
                seen.set()
                raise error

        seen, notes = threading.Event(), Notes()
        client = plain.client(
            plain.serve(*[Reply("a b", first_delay=0.3 * SCALE, pace=0.01)] * 3), observers=[raise_it, notes]
        )
        streams = [client.chat_completion_stream(REQUEST) for _ in range(3)]
        assert seen.wait(5)
        assert notes.over.wait(5)
        assert ["".join(evt.text for evt in stream) for stream in streams] == ["a b"] * 3
        assert within(5 * SCALE, lambda: list(notes.calls().values()) == [STREAMED] * 3)

    def test_ctrl_c_in_one(self, plain: Link) -> None:
        """Ctrl-C that comes in an observer passes on, when the others have heard; the call still ends once."""

        def interrupt(fact: Fact) -> None:
            if isinstance(fact, HeadReceived):
                raise KeyboardInterrupt

        notes = Notes()
        client = plain.client(plain.serve("a b", "a b"), observers=[interrupt, notes])
        for ask in (client.chat_completion_stream, client.chat_completion):
            notes.facts.clear()
            with pytest.raises(KeyboardInterrupt):
                ask(REQUEST)
            assert notes.kinds == [CallStarted, RequestSent, HeadReceived, CallEnded]
            end = notes.end()
            assert (end.state, type(end.error)) == ("cancelled", KeyboardInterrupt)

    @pytest.mark.parametrize("at", [HeadReceived, FirstChunk, CallEnded])
    def test_one_that_uses_the_stream(self, plain: Link, at: type) -> None:
        """An observer may cancel the very call that it is told of; it still ends once."""
        notes, context = Notes(), Context()

        def cancel(fact: Fact) -> None:
            if isinstance(fact, at):
                context.cancel()

        reply = Reply("a b", pace=0.01, stall_after=1 if at is FirstChunk else None)  # so no end comes with the head
        client = plain.client(plain.serve(reply), observers=[cancel, notes])
        try:
            list(client.chat_completion_stream(REQUEST, context=context))
        except StreamCancelledError:
            assert at is HeadReceived
        expected = {"complete"} if at is CallEnded else {"cancelled"}
        assert {notes.end().state} == expected

    def test_it_is_never_called_under_a_lock(self, plain: Link) -> None:
        """While an observer is busy with a stream any other thread can use and close that stream."""
        busy, go_on = threading.Event(), threading.Event()

        def wait(fact: Fact) -> None:
            if isinstance(fact, FirstChunk):
                busy.set()
                assert go_on.wait(10)

        notes = Notes()
        stream = plain.stream(Reply("a b", first_delay=0.3 * SCALE, stall_after=1), observers=[wait, notes])
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        assert busy.wait(5)
        closer = threading.Thread(target=stream.close)
        closer.start()
        closer.join(5)
        assert not closer.is_alive()
        go_on.set()
        reader.join(5)
        assert notes.end().state == "cancelled"


class TestSettings:
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (raise_always, "observers: expected callables"),
            ([None], r"observers\[0\]: expected a callable"),
            ([raise_always, 3], r"observers\[1\]: expected a callable"),
            ([Notes], "the class Notes"),
        ],
    )
    def test_what_is_no_observer(self, wrong: Any, words: str) -> None:
        """What is no observer is refused at once, by name."""
        with pytest.raises(TypeError, match=words):
            Client("key", observers=wrong)

    def test_async_ones(self) -> None:
        """An async function is refused: nobody would await it."""

        async def observe(fact: Fact) -> None: ...

        class Observes:
            async def __call__(self, fact: Fact) -> None: ...

        for observer in (observe, Observes()):
            with pytest.raises(TypeError, match="async"):
                Client("key", observers=[observer])

    def test_copies(self, plain: Link) -> None:
        """Copies of a client have its observers, also where they came from an iterator."""
        notes = Notes()
        client = plain.client(plain.serve("a"), observers=iter([notes]))
        list(client.with_options(max_retries=1).chat_completion_stream(REQUEST))
        assert notes.kinds == STREAMED

    def test_pickle(self, caplog: pytest.LogCaptureFixture, plain: Link) -> None:
        """A pickled client takes its observers along."""
        client = plain.client(plain.serve("a"), observers=[raise_always])
        with pickle.loads(pickle.dumps(client)) as copy:
            list(copy.chat_completion_stream(REQUEST))
        assert "raise_always" in caplog.text

    def test_none(self, plain: Link) -> None:
        """Without observers there is nothing to tell them with."""
        client = plain.client(plain.serve("a"))
        assert client.caller.observers.watch(dialect="", base_url="", path="") is None
        assert list(client.chat_completion_stream(REQUEST))[-1].is_last_chunk

    def test_ports(self) -> None:
        """A call's port is the scheme's where the URL has none."""
        found = [ObservedCall(dialect="", base_url=f"{scheme}://host/v1", path="").port for scheme in ("http", "https")]
        assert found == [80, 443]


STORM = [
    Reply("a b c", pace=0.001),
    Reply("a b", finish_reason=None, done=False, end="cut"),
    Reply("a b", done=False, end="hold"),
    Reply("a b", usage=False, stall_after=1),
    Reply(chunks=[{"error": {"message": "no room"}}], end="hold"),
    Reply.error(500),
    Reply.error(400),
    Reply.garbage(),
    Reply("a", head_delay=60),
    Reply("a b", compress="gzip"),
]


def leave(stream: CompletionStream, how: int) -> None:
    """Have a stream end in one of several ways."""
    if how == 0:
        for _ in stream:
            pass
    elif how == 1:
        stream.close()
    elif how == 2:
        next(stream, None)
    elif how == 3:
        for _ in stream:
            break


def test_a_storm(plain: Link) -> None:
    """Of many calls at once, which end and are ended in every way, each is told once as started, once as ended."""
    notes, draw = Notes(), random.Random(1)
    replies = [draw.choice(STORM) for _ in range(120)]
    timeout = Timeout(first_chunk=0.1 * SCALE, idle=0.05 * SCALE)
    client = plain.client(plain.serve(*replies), observers=[notes, raise_always], retry=QUICK, timeout=timeout)
    request = ChatCompletionRequest("m", [UserMessage("Hi.")])

    def ask(seed: int) -> None:
        ways = random.Random(seed)
        for _ in range(6):
            context = Context(ways.uniform(0.01, 0.1)) if ways.random() < 0.3 else Context()
            try:
                if ways.random() < 0.2:
                    client.chat_completion(request, context=context)
                else:
                    leave(client.chat_completion_stream(request, context=context), ways.randrange(4))
            except ChanstreamError:
                pass

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    def all_ended() -> bool:
        return notes.kinds.count(CallEnded) == 60

    assert within(5 * SCALE, all_ended)
    ends = {fact.call: fact for fact in notes.facts if isinstance(fact, CallEnded)}
    for call, kinds in notes.calls().items():
        assert (kinds[0], kinds[-1]) == (CallStarted, CallEnded)
        assert [kinds.count(kind) for kind in (CallStarted, CallEnded)] == [1, 1]
        assert kinds.count(FirstChunk) <= 1
        attempts_without_retry = kinds.count(RequestSent) - kinds.count(RetryScheduled)
        error = ends[call].error
        if isinstance(error, APITimeoutError) and error.clock == "context":  # it may end between two attempts
            assert attempts_without_retry in (0, 1)
        else:
            assert attempts_without_retry == 1
    assert {end.state for end in ends.values()} == {"complete", "failed", "cancelled"}


def test_facts_are_frozen(plain: Link) -> None:
    """A fact cannot be changed."""
    notes = Notes()
    list(plain.stream("a", observers=[notes]))
    for fact in notes.facts:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            fact.call = None  # type: ignore[misc, assignment]

"""Resume: a stream that is cut goes on where it was, and its consumer sees one stream."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    AssistantMessage,
    ChannelClosedError,
    ChatCompletionRequest,
    Client,
    CompletionStream,
    Context,
    Dialect,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    StreamTruncatedError,
    Timeout,
    UnprocessableEntityError,
    UserMessage,
    merge,
    select,
)
from chanstream.calls import Engine
from chanstream.observers import CallEnded, CallStarted, Fact
from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

AT_ONCE = Retry(max_retries=0, min_delay=0)
STORY = "One day \n\n a wire broke."
CUT = Reply(["One", " day"], finish_reason=None, done=False)  # a clean end of the body, but not of the answer
LOST = attrs.evolve(CUT, end="cut")
SILENT = Reply(["One", " day"], stall_after=2)
REST = " \n\n a wire broke."


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients."""
    found: Engine = request.param
    return found


def event(content: str, finish: str | None = None) -> bytes:
    """Return an event."""
    return (
        b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": content}, "finish_reason": finish}]}).encode()
    )


def so_far(request: RecordedRequest) -> str:
    """Return the prefix that a request asks to go on from; "" for none."""
    message = request.json["messages"][-1]
    return message["content"] if message.get("prefix") else ""


def client_of(link: Link, server: StreamServer, **settings: Any) -> Client:
    """Return a client that may resume, and does so at once."""
    return link.client(server, **{"dialect": "mistral", "retry": AT_ONCE, **settings})


def resumed(link: Link, *replies: Reply | str, **settings: Any) -> CompletionStream:
    """Return a stream that goes on after a cut, from a server with these replies."""
    return client_of(link, link.serve(*replies), **settings).chat_completion_stream(REQUEST, resume="prefix")


def said(stream: CompletionStream) -> str:
    """Return the text of a stream that must end well, with latencies that add up."""
    chunks = list(stream)
    assert chunks[-1].error is None
    assert sum(chunk.chunk_latency for chunk in chunks) == chunks[-1].total_latency > 0
    return "".join(chunk.text for chunk in chunks)


class TestSeamless:
    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "not repeated"])
    def test_a_cut_at_every_byte(self, plain: Link, repeats: bool) -> None:
        """Wherever the connection is lost, or the body ended, the text comes whole and once, with a proper end."""
        first = event("One")
        body = b"".join([first, event(" day \n"), event("\n a wire broke."), event("", "stop")])
        cuts = iter(range(len(first), len(body) - 2))

        def answer(request: RecordedRequest) -> Reply:
            prefix = so_far(request)
            if prefix:
                return Reply(STORY if repeats else STORY[len(prefix) :])
            at = next(cuts)
            return Reply(body=body, cut_at=at, end="cut" if at % 2 == repeats else "clean")

        client = client_of(plain, plain.serve(reply_with=answer))
        for _ in range(len(first), len(body) - 2):
            assert said(client.chat_completion_stream(REQUEST, resume="prefix")) == STORY

    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "not repeated"])
    def test_a_cut_again_and_again(self, plain: Link, repeats: bool) -> None:
        """Three cuts in one answer are made good, also while its beginning is being repeated."""

        def answer(request: RecordedRequest) -> Reply:
            number = len(server.requests)
            text = STORY if repeats else STORY[len(so_far(request)) :]
            return Reply(list(text[: 3 * number] if number < 4 else text), done=number == 4, finish_reason=None)

        server = plain.serve(reply_with=answer)
        assert said(client_of(plain, server).chat_completion_stream(REQUEST, resume="prefix")) == STORY
        assert len(server.requests) == 4

    def test_over_any_connection(self, link: Link) -> None:
        """A connection that is reset, plain or with TLS, is made good."""
        body = event("One") + event(" day")
        replies = (
            Reply(body=body, end="reset", cut_at=len(body), split=len(event("One")), pace=0.02),
            " \n\n a wire broke.",
        )
        assert said(resumed(link, *replies)) == STORY

    def test_silence(self, plain: Link) -> None:
        """An idle clock that runs out is a cut, for the next part too."""
        clocks = Timeout(first_chunk=5 * SCALE, idle=0.2 * SCALE)
        assert (
            said(resumed(plain, SILENT, SILENT, " \n\n a wire broke.", timeout=clocks)) == "One day \n\n a wire broke."
        )

    def test_what_is_asked(self, plain: Link) -> None:
        """The rest is asked for with the same request, and the text so far, without blanks at its end, as a prefix."""
        server = plain.serve(Reply(["One", " day "], finish_reason=None, done=False), " a wire")
        request = ChatCompletionRequest("m", [UserMessage("Tell.")], max_tokens=9, temperature=0, safe_prompt=True)
        said(client_of(plain, server).chat_completion_stream(request, resume="prefix"))
        first, second = (recorded.json for recorded in server.requests)
        first["messages"].append({"role": "assistant", "content": "One day", "prefix": True})
        assert second == first

    def test_usage_and_head(self, plain: Link) -> None:
        """The usage is that of the request which came to the end, and the head that of the first."""
        usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
        stream = resumed(plain, attrs.evolve(CUT, headers={"x-request-id": "first"}), Reply(" a wire", usage=usage))
        *_, last = stream
        assert last.usage is not None
        assert last.usage.to_dict() == usage
        assert stream.response.request_id == "first"
        assert stream.state == "complete"

    def test_latency(self, plain: Link) -> None:
        """The time without an answer is in the latency of the first chunk after the cut."""
        chunks = list(resumed(plain, CUT, Reply(" a wire", first_delay=0.3 * SCALE)))
        assert max(chunks, key=lambda chunk: chunk.chunk_latency) is chunks[2]
        assert chunks[2].chunk_latency > 0.29 * SCALE

    def test_one_connection(self, plain: Link) -> None:
        """A connection that is still good after a cut is used for the rest."""
        server = plain.serve(CUT, " a wire")
        said(client_of(plain, server).chat_completion_stream(REQUEST, resume="prefix"))
        assert server.connections == 1

    def test_another_dialect(self, plain: Link) -> None:
        """Whether a server takes a prefix is the dialect's to say."""
        own = Dialect("own", "http://localhost", "NO_KEY", takes_prefix=True)
        assert said(resumed(plain, CUT, " a wire", dialect=own)) == "One day a wire"


class TestEveryConsumer:
    def test_collect(self, plain: Link) -> None:
        """The whole answer is collected."""
        answer = resumed(plain, CUT, " a wire").collect()
        assert (answer.text, answer.choices[0].finish_reason) == ("One day a wire", "stop")

    def test_async_for(self, plain: Link) -> None:
        """A loop of asyncio takes it."""

        async def text() -> str:
            return "".join([chunk.text async for chunk in resumed(plain, CUT, " a wire")])

        assert asyncio.run(text()) == "One day a wire"

    def test_opened_from_a_loop(self, plain: Link) -> None:
        """So it does when it was opened from there."""
        client = client_of(plain, plain.serve(CUT, " a wire"))

        async def text() -> str:
            stream = await client.chat_completion_stream_async(REQUEST, resume="prefix")
            return "".join([chunk.text async for chunk in stream])

        assert asyncio.run(text()) == "One day a wire"

    def test_think_tags(self, plain: Link) -> None:
        """Thoughts that stood in the text before the cut are no part of what is gone on from."""
        server = plain.serve(attrs.evolve(CUT, text="<think>Hm.</think>One day"), "One day a wire")
        client = client_of(plain, server, think_tags=True)
        answer = client.chat_completion_stream(REQUEST, resume="prefix").collect()
        assert (answer.reasoning, answer.text) == ("Hm.", "One day a wire")
        assert so_far(server.requests[-1]) == "One day"

    def test_extras(self, plain: Link) -> None:
        """What a call sends in addition is sent for each part."""
        server = plain.serve(CUT, " a wire")
        client = client_of(plain, server)
        said(client.chat_completion_stream(REQUEST, resume="prefix", extra_body={"a": 1}, extra_headers={"X-B": "2"}))
        assert [(sent.json["a"], sent.headers["x-b"]) for sent in server.requests] == [(1, "2")] * 2

    def test_observers(self, plain: Link) -> None:
        """Each part is a call of its own to the observers: all but the last have failed."""
        facts: list[Fact] = []
        assert said(resumed(plain, LOST, LOST, REST, observers=[facts.append])) == "One day" + REST
        ends = [fact for fact in facts if isinstance(fact, CallEnded)]
        assert [end.state for end in ends] == ["failed", "failed", "complete"]
        assert len({end.call.id for end in ends}) == 3
        assert sum(isinstance(fact, CallStarted) for fact in facts) == 3
        for end in ends:  # each began before it ended, by as much as its latencies say
            assert end.elapsed == sum(end.chunk_latencies) or end.error is not None
            assert end.call.started + end.elapsed <= time.monotonic()

    def test_context_variables(self, plain: Link) -> None:
        """What is asked for later is asked for where the call was made, in a span of it, say."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
        seen: list[str] = []

        def look(fact: Fact) -> None:
            if isinstance(fact, CallStarted):
                seen.append(variable.get())

        variable.set("mine")
        assert said(resumed(plain, LOST, LOST, REST, observers=[look])) == "One day" + REST
        assert seen == ["mine"] * 3

    def test_select(self, plain: Link) -> None:
        """`select` takes it."""
        stream, taken = resumed(plain, CUT, " a wire"), []
        with contextlib.suppress(ChannelClosedError):
            while True:
                _, item = select(stream, timeout=5 * SCALE)
                taken.append(item)
        assert "".join(chunk.text for chunk in taken if chunk) == "One day a wire"

    def test_merge(self, plain: Link) -> None:
        """`merge` takes several."""
        streams = {name: resumed(plain, CUT, " a wire") for name in "ab"}
        texts = dict.fromkeys(streams, "")
        for name, chunk in merge(streams):
            texts[name] += chunk.text
        assert set(texts.values()) == {"One day a wire"}

    def test_many_at_once(self, plain: Link) -> None:
        """Fifty streams that are cut at the same time go on, each with its own text."""

        def answer(request: RecordedRequest) -> Reply:
            name = request.json["messages"][0]["content"]
            return (
                Reply(f" {name} went on.") if so_far(request) else Reply([name, " ran"], finish_reason=None, done=False)
            )

        client = client_of(plain, plain.serve(reply_with=answer))
        requests = [ChatCompletionRequest("m", [UserMessage(f"wire-{number}")]) for number in range(50)]
        streams = [client.chat_completion_stream(request, resume="prefix") for request in requests]
        assert [said(stream) for stream in streams] == [f"wire-{n} ran wire-{n} went on." for n in range(50)]

    def test_a_slow_consumer(self, plain: Link) -> None:
        """A consumer that takes nothing stops the server, in the next part too, and loses nothing in the end."""
        numbers = [f" {number}" for number in range(20_000)]
        server = plain.serve(CUT, Reply(numbers))
        stream = client_of(plain, server, buffer=4).chat_completion_stream(REQUEST, resume="prefix")
        assert within(5 * SCALE, stream.full)
        assert stream.statistics().most_depth == 4
        assert stream.state == "streaming"
        assert said(stream) == "One day" + "".join(numbers)


class TestWhatEndsIt:
    def test_off_by_default(self, plain: Link) -> None:
        """Who does not ask for it gets the error."""
        server = plain.serve(CUT, " a wire")
        *_, last = client_of(plain, server).chat_completion_stream(REQUEST)
        assert isinstance(last.error, StreamTruncatedError)
        assert len(server.requests) == 1

    def test_tries(self, plain: Link) -> None:
        """The answer is taken up three times; then the last cut ends the stream, with all the text there was."""
        parts = [Reply([f"{number} "], finish_reason=None, done=False) for number in range(5)]
        server = plain.serve(*parts)
        stream = client_of(plain, server).chat_completion_stream(REQUEST, resume="prefix")
        with pytest.raises(StreamTruncatedError) as caught:
            stream.collect()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "0 1 2 3 "
        assert (len(server.requests), stream.state) == (4, "failed")

    def test_a_server_that_refuses_the_rest(self, plain: Link) -> None:
        """If the rest is refused the stream ends as it was cut, and the refusal is the error's cause."""
        *chunks, last = resumed(plain, CUT, Reply.error(422, "no prefix, please"))
        assert [chunk.text for chunk in chunks] == ["One", " day"]
        assert isinstance(last.error, StreamTruncatedError)
        assert isinstance(last.error.__cause__, UnprocessableEntityError)
        assert sum(chunk.chunk_latency for chunk in chunks) + last.chunk_latency == last.total_latency

    def test_raised(self, plain: Link) -> None:
        """With errors="raise" a cut that cannot be made good is raised, and no other."""
        with pytest.raises(StreamTruncatedError):
            list(resumed(plain, CUT, CUT, Reply.error(404), errors="raise"))

    def test_retries(self, plain: Link) -> None:
        """Whoever asks for the rest tries again as for any request."""
        retry = Retry(max_retries=1, min_delay=0)
        assert said(resumed(plain, CUT, Reply.error(503), " a wire", retry=retry)) == "One day a wire"

    def test_an_error_of_the_server(self, plain: Link) -> None:
        """What the server says in the stream went wrong is no cut, in no part."""
        failed = Reply(chunks=[{"choices": [{"delta": {"content": " a"}}]}, {"error": {"message": "overloaded"}}])
        *chunks, last = resumed(plain, CUT, failed)
        assert "".join(chunk.text for chunk in chunks) == "One day a"
        assert isinstance(last.error, StreamAPIError)

    def test_tool_calls(self, plain: Link) -> None:
        """After a tool call nothing is asked again."""
        call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
        server = plain.serve(Reply("One", tool_calls=[call], finish_reason=None, done=False))
        *_, last = client_of(plain, server).chat_completion_stream(REQUEST, resume="prefix")
        assert isinstance(last.error, StreamTruncatedError)
        assert len(server.requests) == 1

    def test_the_total_clock(self, plain: Link) -> None:
        """The total covers all parts, and is no cut."""
        clocks = Timeout(idle=0.1, total=0.3 * SCALE)
        *_, last = resumed(plain, SILENT, SILENT, SILENT, Reply(stall_after=0), timeout=clocks)
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock in ("total", "first_chunk")

    def test_no_more_threads(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started the stream ends as it was cut."""
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "chanstream-resume":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        *_, last = resumed(plain, CUT, " a wire")
        assert isinstance(last.error, StreamTruncatedError)
        assert isinstance(last.error.__cause__, RuntimeError)


def first_part(link: Link) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream that waits in its first part."""
    return opened(link, SILENT)


def asking(link: Link) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream that waits for the head of its second part."""
    return opened(link, LOST, Reply(head_delay=math.inf))


def pausing(link: Link) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream that waits before it asks for its second part."""
    return opened(link, LOST, retry=Retry(min_delay=3600 * 1e6, max_delay=3600 * 1e6))


def second_part(link: Link) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream that waits in its second part."""
    return opened(link, LOST, Reply([" a", " wire"], stall_after=2))


def full(link: Link) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream whose second part waits for room."""
    return opened(link, LOST, Reply("word " * 5000))


def opened(link: Link, *replies: Reply, **settings: Any) -> tuple[StreamServer, CompletionStream, Context]:
    """Return a stream in that phase, and what cancels it."""
    server, context = link.serve(*replies), Context()
    client = client_of(link, server, buffer=4, **settings)
    stream = client.chat_completion_stream(REQUEST, resume="prefix", context=context)
    asked, waits = 1 if "retry" in settings else len(replies), replies[-1].head_delay
    assert server.wait_for(lambda server: len(server.requests) == asked)
    assert within(5 * SCALE, lambda: stream.qsize() == (2 if len(server.requests) == 1 or waits else 4))
    return server, stream, context


PHASES = pytest.mark.parametrize("phase", [first_part, pausing, asking, second_part, full])
Phase = Callable[[Link], "tuple[StreamServer, CompletionStream, Context]"]


class TestCancel:
    @PHASES
    def test_close(self, link: Link, phase: Phase) -> None:
        """Closing the stream frees the connection and every thread at once, whatever part is on."""
        server, stream, _ = phase(link)
        stream.close()
        assert within(PROMPT, lambda: not producers() and not server.open_connections)
        assert (list(stream), stream.state) == ([], "cancelled")

    @PHASES
    def test_a_context(self, link: Link, phase: Phase) -> None:
        """A context that is cancelled ends the stream at once, with an error after the chunks that had come."""
        server, stream, context = phase(link)
        context.cancel()
        assert within(PROMPT, lambda: stream.state == "cancelled")
        assert within(PROMPT, lambda: not producers() and not server.open_connections)
        *chunks, last = stream
        assert isinstance(last.error, StreamCancelledError)
        assert sum(chunk.chunk_latency for chunk in chunks) + last.chunk_latency == last.total_latency

    @PHASES
    def test_dropping(self, plain: Link, phase: Phase) -> None:
        """Dropping the last reference does so too."""
        gc.disable()  # it shall not take the collector
        try:
            server = phase(plain)[0]
            assert within(PROMPT, lambda: not producers() and not server.open_connections)
        finally:
            gc.enable()

    def test_a_waiting_consumer(self, plain: Link) -> None:
        """A consumer that waits for the next part is woken."""
        _, stream, context = asking(plain)
        threading.Timer(0.05, context.cancel).start()
        *_, last = stream
        assert isinstance(last.error, StreamCancelledError)

    def test_nothing_is_kept(self, plain: Link) -> None:
        """A context that lives on keeps nothing of streams that have ended."""
        context = Context()
        for replies in ((CUT, " a wire"), (CUT, Reply.error(404)), ("whole",), (Reply.error(404),)):
            client = client_of(plain, plain.serve(*replies))
            with contextlib.suppress(Exception):
                list(client.chat_completion_stream(REQUEST, resume="prefix", context=context))
        assert within(SCALE, lambda: not context._callbacks)


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "dialect", "resume", "text"),
        [
            ({}, "openai", "prefix", "^resume: servers of the 'openai' dialect do not continue from a prefix$"),
            ({}, "groq", "prefix", "^resume: servers of the 'groq' dialect"),
            ({}, "mistral", "yes", "^resume: expected 'prefix', got 'yes'$"),
            ({}, "mistral", True, "^resume: expected 'prefix', got True$"),
            ({"n": 2}, "mistral", "prefix", "^resume: only an answer with one choice can be resumed, and n is 2$"),
            ({"messages": [AssistantMessage("A", prefix=True)]}, "mistral", "prefix", "^resume: the last message"),
        ],
    )
    def test_it_is_told_at_once(self, plain: Link, changes: Any, dialect: str, resume: Any, text: str) -> None:
        """What cannot be is told before anything is sent."""
        server = plain.serve()
        with pytest.raises(ValueError, match=text):
            plain.client(server, dialect=dialect).chat_completion_stream(
                attrs.evolve(REQUEST, **changes), resume=resume
            )
        assert not server.requests

    @pytest.mark.parametrize("name", ["messages", "n"])
    def test_what_is_sent_in_addition(self, plain: Link, name: str) -> None:
        """What would come over the prefix, or ask for more choices, is refused too."""
        server = plain.serve("one")
        client = client_of(plain, server)
        with pytest.raises(ValueError, match=f"^resume: extra_body has '{name}'"):
            client.chat_completion_stream(REQUEST, resume="prefix", extra_body={name: 2})
        assert not server.requests

    def test_the_first_head(self, plain: Link) -> None:
        """What goes wrong before the first head is raised, as without it."""
        with pytest.raises(UnprocessableEntityError):
            resumed(plain, Reply.error(422))

    def test_no_key_is_told(self, plain: Link, caplog: pytest.LogCaptureFixture) -> None:
        """A server that repeats the key when it refuses the rest has it neither in the error nor in the log."""
        *_, last = resumed(plain, CUT, Reply.error(401, "bad key a-secret-key"), api_key="a-secret-key")
        assert isinstance(last.error, StreamTruncatedError)
        assert "***" in str(last.error.__cause__)
        assert "a-secret-key" not in caplog.text + str(last.error.__cause__)

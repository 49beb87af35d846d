"""Promise 2: exactly one end.

Every stream ends with one last chunk or with one error chunk, and then iteration stops. A consumer that closed the
stream itself just sees iteration stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    ChannelClosedError,
    CompletionChunk,
    CompletionStream,
    Context,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
)
from chanstream.engines.flow import Flow
from chanstream.testing import Reply
from tests.conftest import REQUEST, SCALE, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = "[DONE]"
ERROR = {"error": {"message": "no room", "code": 500}}


def said(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a chunk with one choice."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def ends(chunks: Iterable[CompletionChunk]) -> list[CompletionChunk]:
    """Return the chunks that end a stream."""
    return [evt for evt in chunks if evt.is_last_chunk or evt.error]


A, B, STOP, COUNTED = said("a"), said("b"), said(finish="stop"), said(finish="stop", usage=USAGE)
TRAILING = {"choices": [], "usage": USAGE}
TWO = [said("a"), said("b", index=1), said(finish="stop"), said(finish="stop", index=1)]

GOOD: dict[str, Reply] = {
    "whole": Reply("a b"),
    "trailing usage": Reply("a b", usage_chunk=True),
    "no usage": Reply("a b", usage=False),
    "no [DONE]": Reply("a b", done=False),
    "no [DONE], no usage": Reply("a b", done=False, usage=False),
    "[DONE] alone": Reply(chunks=[DONE]),
    "no finish reason": Reply("a b", finish_reason=None),
    "finish and text in one": Reply(chunks=[A, said("b", "stop"), DONE]),
    "two choices": Reply(chunks=[*TWO, DONE]),
    "[DONE] twice": Reply(chunks=[A, STOP, DONE, DONE]),
    "more after [DONE]": Reply(chunks=[A, STOP, DONE, B, STOP, TRAILING, ERROR]),
    "error after [DONE]": Reply(chunks=[A, COUNTED, DONE, ERROR]),
    "usage twice": Reply(chunks=[A, COUNTED, TRAILING, TRAILING, DONE]),
    "finish twice": Reply(chunks=[A, STOP, STOP, TRAILING, DONE]),
    "text after finish": Reply(chunks=[A, STOP, B, TRAILING, DONE]),
    "held open after [DONE]": Reply("a b", usage=False, end="hold"),
    "held open after usage": Reply("a b", done=False, end="hold"),
    "held open, close-delimited": Reply("a b", framing="close", end="hold"),
    "held open, content-length": Reply("a b", framing="content-length", end="hold"),
    "cut after [DONE]": Reply("a b", end="cut"),
    "reset after [DONE]": Reply("a b", pace=0.03, end="reset"),
    "close-delimited": Reply("a b", framing="close"),
    "content-length": Reply("a b", framing="content-length"),
    "compressed": Reply("a b", compress="gzip"),
    "in pieces": Reply("a b", split=3),
    "CRLF": Reply("a b", newline="\r\n"),
    "CR": Reply("a b", newline="\r"),
    "whole JSON": Reply.json({"choices": [{"index": 0, "message": {"content": "a b"}, "finish_reason": "stop"}]}),
}

CUT = Reply("a b", finish_reason=None, done=False)
BAD: dict[str, tuple[Reply, type[BaseException]]] = {
    "clean end": (CUT, StreamTruncatedError),
    "no event": (Reply(chunks=[]), StreamTruncatedError),
    "no byte": (Reply(body=b"", content_type="text/event-stream", framing="close"), StreamTruncatedError),
    "comments alone": (Reply(chunks=[b": a\n\n", b": b\n\n"]), StreamTruncatedError),
    "one of two unfinished": (Reply(chunks=TWO[:3]), StreamTruncatedError),
    "cut": (attrs.evolve(CUT, end="cut"), StreamInterruptedError),
    "cut after the finish reason": (Reply(chunks=[A, STOP], end="cut"), StreamInterruptedError),
    "content-length cut": (attrs.evolve(CUT, end="cut", framing="content-length"), StreamInterruptedError),
    "reset": (attrs.evolve(CUT, pace=0.03, end="reset"), StreamInterruptedError),
    "error": (Reply(chunks=[A, ERROR]), StreamAPIError),
    "error, then [DONE]": (Reply(chunks=[A, ERROR, DONE]), StreamAPIError),
    "error, then more": (Reply(chunks=[A, ERROR, B, STOP, TRAILING, DONE]), StreamAPIError),
    "two errors": (Reply(chunks=[A, ERROR, ERROR]), StreamAPIError),
    "error, then a cut": (Reply(chunks=[A, ERROR], end="cut"), StreamAPIError),
    "error, then silence": (Reply(chunks=[A, ERROR], end="hold"), StreamAPIError),
    "error after the finish reason": (Reply(chunks=[A, STOP, ERROR, DONE]), StreamAPIError),
    "finish reason error": (Reply(chunks=[A, said("b", "error"), DONE]), StreamAPIError),
    "bad JSON": (Reply(chunks=[A, "{", B, STOP, DONE]), StreamDecodeError),
    "HTML": (Reply.html("<html></html>"), StreamDecodeError),
    "JSON error": (Reply.json(ERROR), StreamAPIError),
    "silence": (Reply("a b", stall_after=1), APITimeoutError),
    "silence, close-delimited": (Reply("a b", stall_after=1, framing="close"), APITimeoutError),
    "silence, content-length": (Reply("a b", stall_after=1, framing="content-length"), APITimeoutError),
}

EVERY_GOOD = pytest.mark.parametrize("reply", GOOD.values(), ids=GOOD.keys())
EVERY_BAD = pytest.mark.parametrize(("reply", "kind"), BAD.values(), ids=BAD.keys())
EVERY = pytest.mark.parametrize(
    "reply", [*GOOD.values(), *(reply for reply, _ in BAD.values())], ids=[*GOOD.keys(), *BAD.keys()]
)
IDLE = Timeout(idle=0.2 * SCALE)


def opened(link: Link, reply: Reply, **settings: Any) -> CompletionStream:
    """Return the stream of a reply, with an idle clock that ends those which stall."""
    stream = link.stream(reply, timeout=IDLE, **settings)
    assert isinstance(stream, CompletionStream)
    return stream


def taken(stream: CompletionStream) -> CompletionChunk | None:
    """Return the next chunk, or None when the stream is over."""
    try:
        return stream.get(timeout=5)
    except ChannelClosedError:
        return None


class TestOneEnd:
    @EVERY_GOOD
    def test_a_good_stream(self, link: Link, reply: Reply) -> None:
        """A stream that ends well has one chunk with `is_last_chunk`, its last, and none with an error."""
        stream = opened(link, reply)
        chunks = list(stream)
        assert [evt.is_last_chunk for evt in chunks] == [False] * (len(chunks) - 1) + [True]
        assert [evt.error for evt in chunks] == [None] * len(chunks)
        assert stream.state == "complete"

    @EVERY_BAD
    def test_a_bad_stream(self, link: Link, reply: Reply, kind: type[BaseException]) -> None:
        """A stream that ends badly has one chunk with an error, its last, and none with `is_last_chunk`."""
        stream = opened(link, reply)
        chunks = list(stream)
        assert [type(evt.error) for evt in chunks] == [type(None)] * (len(chunks) - 1) + [kind]
        assert not any(evt.is_last_chunk for evt in chunks)
        assert stream.state == "failed"

    @EVERY
    def test_nothing_comes_after_the_end(self, plain: Link, reply: Reply) -> None:
        """After the end every way to take a chunk says that the stream is over, and does so again."""
        stream = opened(plain, reply)
        *_, last = stream
        assert ends([last]) == [last]
        for _ in range(2):
            assert list(stream) == []
            assert next(stream, None) is None
            with pytest.raises(ChannelClosedError):
                stream.get(timeout=5)
            with pytest.raises(ChannelClosedError):
                stream.get(block=False)

    @pytest.mark.parametrize("reply", [GOOD["whole"], BAD["cut"][0], BAD["error"][0]], ids=["good", "cut", "error"])
    def test_one_end_by_get(self, link: Link, reply: Reply) -> None:
        """Taken one by one with `get`, the chunks have the same one end."""
        stream = opened(link, reply)
        chunks = list(iter(lambda: taken(stream), None))
        assert ends(chunks) == chunks[-1:]

    @pytest.mark.parametrize("reply", [GOOD["whole"], BAD["cut"][0], BAD["error"][0]], ids=["good", "cut", "error"])
    def test_one_end_by_async_for(self, link: Link, reply: Reply) -> None:
        """Asynchronous iteration sees the same one end and stops."""
        stream = opened(link, reply)

        async def consume() -> list[CompletionChunk]:
            return [evt async for evt in stream]

        chunks = asyncio.run(consume())
        assert ends(chunks) == chunks[-1:]

    @pytest.mark.parametrize("reply", [GOOD["whole"], BAD["cut"][0]], ids=["good", "bad"])
    def test_one_end_for_several_consumers(self, plain: Link, reply: Reply) -> None:
        """Of several consumers one gets the end, and all of them stop."""
        stream = opened(plain, attrs.evolve(reply, text=[f"{number} " for number in range(200)]))
        taken: list[CompletionChunk] = []

        def consume() -> None:
            while (evt := next(stream, None)) is not None:
                taken.append(evt)

        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * SCALE)
        assert not any(thread.is_alive() for thread in threads)
        assert len(ends(taken)) == 1
        assert sorted(int(evt.text) for evt in taken if evt.text) == list(range(200))

    def test_all_in_one_read(self, link: Link) -> None:
        """A whole answer in one read, several ends in it, has one."""
        body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        chunks = list(opened(link, Reply(body=body * 3, framing="content-length")))
        assert [evt.text for evt in ends(chunks)] == ["a"]
        assert len(chunks) == 1

    def test_a_deadline_after_the_end(self, link: Link) -> None:
        """A deadline or a cancel that comes after the end, while nobody has taken it yet, adds no second end."""
        context = Context()
        stream = link.client(link.serve("a b")).chat_completion_stream(REQUEST, context=context)
        assert within(5, lambda: stream.state == "complete")
        context.cancel()
        chunks = list(stream)
        assert ends(chunks) == chunks[-1:]
        assert chunks[-1].is_last_chunk
        assert stream.state == "complete"


class TestAConsumerThatClosed:
    @pytest.mark.parametrize("errors", ["inband", "raise"])
    @EVERY
    def test_it_sees_iteration_stop(self, plain: Link, reply: Reply, errors: str) -> None:
        """After `close()` in its own loop a consumer gets no chunk, no error and no exception any more."""
        stream = opened(plain, reply, errors=errors)
        taken = 0
        with contextlib.suppress(StreamError, StreamAPIError) if errors == "raise" else contextlib.nullcontext():
            for _ in stream:  # where the first chunk is the end, it is raised: nobody closed before it
                taken += 1
                stream.close()
        assert taken == 1 or (errors == "raise" and stream.state == "failed")
        assert list(stream) == []
        assert next(stream, None) is None

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_while_another_thread_waits(self, link: Link, errors: str) -> None:
        """A consumer that waits for the next chunk while another thread closes sees iteration stop, without an end."""
        stream = opened(link, Reply("a b c", stall_after=2), errors=errors)
        taken: list[CompletionChunk] = []
        stopped = threading.Event()

        def consume() -> None:
            taken.extend(stream)
            stopped.set()

        consumer = threading.Thread(target=consume)
        consumer.start()
        assert within(5, lambda: stream.statistics().waiting_getters == 1 and stream.statistics().taken == 2)
        stream.close()
        assert stopped.wait(SCALE)
        consumer.join()
        assert [evt.text for evt in taken] == ["a", " b"]
        assert ends(taken) == []
        assert stream.state == "cancelled"

    def test_what_was_not_taken_is_gone(self, plain: Link) -> None:
        """Chunks that waited when the stream was closed are not delivered, its end among them."""
        stream = opened(plain, Reply("a b c"))
        assert within(5, lambda: stream.state == "complete")
        stream.close()
        assert list(stream) == []
        assert stream.state == "complete"  # it had ended before

    def test_somebody_elses_cancel_is_an_end(self, link: Link) -> None:
        """A consumer whose context somebody else cancelled gets the error as the one end."""
        context = Context()
        client = link.client(link.serve(Reply("a b c", stall_after=2)))
        stream = client.chat_completion_stream(REQUEST, context=context)
        assert within(5, lambda: stream.qsize() == 2)
        context.cancel()
        chunks = list(stream)
        assert [type(evt.error) for evt in chunks] == [type(None)] * 2 + [StreamCancelledError]
        assert stream.state == "cancelled"

    @pytest.mark.parametrize("step", ["cancel", "fail"])
    def test_a_cancel_that_is_held_up(self, link: Link, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        """A cancel whose thread is held up in the middle of it, while the server goes on, is no end without a word."""
        context, go_on = Context(), threading.Event()
        canceller = threading.Thread(target=context.cancel)
        original: Callable[[Flow, Any], None] = getattr(Flow, step)

        def held_up(flow: Flow, error: Any) -> None:
            if threading.current_thread() is canceller:
                go_on.wait(5 * SCALE)
            original(flow, error)

        monkeypatch.setattr(Flow, step, held_up)
        stream = link.client(link.serve(Reply(["a", *"bcdefgh"], pace=0.02))).chat_completion_stream(
            REQUEST, context=context
        )
        chunks = [stream.get()]
        canceller.start()
        chunks += stream
        go_on.set()
        canceller.join()
        assert ends(chunks) == chunks[-1:]

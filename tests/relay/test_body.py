"""A stream as a body: prompt, with a heartbeat, and over as soon as nobody reads it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from chanstream import (
    Client,
    CompletionStream,
    StreamTruncatedError,
    Timeout,
)
from chanstream.relay import Relay, sse, text
from chanstream.testing import Reply, StreamServer
from tests.conftest import REQUEST, SCALE, Link, within
from tests.relay.reading import read

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENT = Reply("never", stall_after=0)
TEXT = "Grüß Gott, 漢字 and 😀. "


def opened(plain: Link, reply: Reply | str, **settings: Any) -> tuple[StreamServer, CompletionStream]:
    """Return a server, and a stream from it."""
    server = plain.serve(reply)
    return server, plain.client(server, **settings).chat_completion_stream(REQUEST)


def freed(server: StreamServer) -> bool:
    """Return whether nobody is connected to a server any more: at once, or as soon as a busy machine gets to it."""
    return server.wait_for(lambda server: server.open_connections == 0, timeout=SCALE)


def blocks_of(body: Relay) -> list[bytes]:
    """Return all blocks, by ``async for``."""

    async def gather() -> list[bytes]:
        return [block async for block in body]

    return asyncio.run(gather())


BOTH_WAYS = pytest.mark.parametrize("blocks", [list, blocks_of], ids=["for", "async for"])


@BOTH_WAYS
def test_a_whole_answer(plain: Link, blocks: Callable[[Relay], list[bytes]]) -> None:
    """A body is the answer's events and ``[DONE]``, in blocks that are never empty."""
    _, stream = opened(plain, Reply(TEXT * 20, split=7))
    body = blocks(sse(stream))
    seen = read(body)
    assert all(body)
    assert (seen.text, seen.done, seen.error) == (TEXT * 20, True, None)
    assert seen.usage is not None


def test_the_first_block_comes_at_once(plain: Link) -> None:
    """The first block is a comment that is there although the model says nothing: it lets the head go out."""
    server, stream = opened(plain, SILENT)
    body = sse(stream)
    assert next(body) == b":\n\n"
    body.close()
    assert freed(server)


def test_tokens_one_by_one(plain: Link) -> None:
    """A token is handed on when it has come, and waits for no other."""
    _, stream = opened(plain, Reply(["one", "two", "three"], stall_after=2))
    body = sse(stream)
    blocks = [next(body)]
    while read(blocks).text != "onetwo":
        blocks.append(next(body))
    body.close()


def test_a_burst_is_one_block(plain: Link) -> None:
    """Chunks that are there together are one block."""
    _, stream = opened(plain, Reply(["x"] * 100))
    assert within(5 * SCALE, lambda: stream.state == "complete")
    opening, block = sse(stream)
    assert opening == b":\n\n"
    assert read([block]).text == "x" * 100


@BOTH_WAYS
def test_a_heartbeat_in_silence(plain: Link, blocks: Callable[[Relay], list[bytes]]) -> None:
    """While the model is silent a comment comes after each heartbeat, and none of them is in the text."""
    _, stream = opened(plain, Reply(["one", "two"], first_delay=0.4 * SCALE))
    body = blocks(sse(stream, heartbeat=0.02 * SCALE))
    assert body.count(b": ping\n\n") >= 2
    assert read(body).text == "onetwo"


def test_no_heartbeat(plain: Link) -> None:
    """Without a heartbeat nothing is sent in silence."""
    _, stream = opened(plain, Reply(["one"], first_delay=0.1 * SCALE))
    assert b": ping\n\n" not in list(sse(stream, heartbeat=None))


@pytest.mark.parametrize("reply", [SILENT, Reply(["x"] * 10_000, pace=0.001)], ids=["silent", "speaking"])
@pytest.mark.parametrize("leave", [Relay.close, Relay.__del__], ids=["closed", "finalized"])
def test_leaving_frees_the_model(plain: Link, reply: Reply, leave: Callable[[Relay], None]) -> None:
    """A body that is closed, or finalized, frees the connection to the model at once, silent or not."""
    server, stream = opened(plain, reply)
    body = sse(stream)
    next(body)
    leave(body)
    assert freed(server)
    assert list(body) == []


@pytest.mark.parametrize("make", [sse, text])
def test_dropping_frees_the_model(plain: Link, make: Callable[[CompletionStream], Relay]) -> None:
    """A body that is dropped frees the connection, though the stream is still known elsewhere."""
    server, stream = opened(plain, SILENT)
    body = make(stream)
    iter(body)
    del body
    gc.collect()
    assert freed(server)
    assert stream.closed


def test_closing_ends_a_wait_in_another_thread(plain: Link) -> None:
    """A thread that waits for the next block sees the end when another one closes the body."""
    server, stream = opened(plain, SILENT)
    body = sse(stream)
    next(body)
    rest: list[list[bytes]] = []
    reader = threading.Thread(target=lambda: rest.append(list(body)))
    reader.start()
    assert within(SCALE, lambda: stream.statistics().waiting_getters)
    body.close()
    reader.join(5 * SCALE)
    assert rest == [[]]
    assert freed(server)


def test_leaving_an_async_loop_frees_the_model(plain: Link) -> None:
    """A loop of asyncio that is left, here because its task is cancelled in silence, frees the connection."""
    server, stream = opened(plain, SILENT)

    async def leave() -> None:
        begun = asyncio.Event()

        async def read_on() -> None:
            async for _ in sse(stream):
                begun.set()

        task = asyncio.create_task(read_on())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert freed(server)


def test_nobody_is_told_twice(plain: Link) -> None:
    """``on_close`` is called once: at the end, when closed, or when dropped, whichever is first."""
    for leave in (list, Relay.close, Relay.__del__):
        calls: list[int] = []
        _, stream = opened(plain, "Yes.")
        body = sse(stream, on_close=lambda calls=calls: calls.append(1))  # type: ignore[misc]  # bound now
        leave(body)
        body.close()
        del body
        assert calls == [1]


@BOTH_WAYS
@pytest.mark.parametrize("errors", ["inband", "raise"])
def test_an_error_is_the_last_event(plain: Link, errors: Any, blocks: Callable[[Relay], list[bytes]]) -> None:
    """An error of the server comes after the text before it, in the server's words, and no ``[DONE]`` follows."""
    error = {"error": {"message": "The GPU is on fire.", "type": "server_error", "code": "hot", "param": None}}
    chunk = {"choices": [{"index": 0, "delta": {"content": "one"}}]}
    _, stream = opened(plain, Reply(chunks=[chunk, error]), errors=errors)
    seen = read(blocks(sse(stream)))
    assert (seen.text, seen.done, seen.error) == ("one", False, error["error"])


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply("one two", cut_at=300, end="cut"), "interrupted"),
        (Reply("one two", done=False, finish_reason=None), "interrupted"),
        (Reply("one two", stall_after=1), "timeout"),
    ],
    ids=["cut", "truncated", "stalled"],
)
def test_a_broken_stream(plain: Link, reply: Reply, kind: str) -> None:
    """What is no word of the server, but a fault of the way to it, is told in general words, without addresses."""
    server, stream = opened(plain, reply, timeout=Timeout(idle=0.1 * SCALE))
    seen = read(sse(stream))
    assert seen.text.startswith("one")
    assert seen.error is not None
    assert seen.error["type"] == kind
    assert str(server.port) not in seen.error["message"]


@BOTH_WAYS
def test_a_stream_that_is_closed_elsewhere(plain: Link, blocks: Callable[[Relay], list[bytes]]) -> None:
    """Where the application closes the stream itself, as for a stop button, the body says that it was cancelled."""
    _, stream = opened(plain, SILENT)
    stream.close()
    seen = read(blocks(sse(stream)))
    assert seen.error == {"message": "The answer was cancelled.", "type": "cancelled", "param": None, "code": None}


def test_plain_text(plain: Link) -> None:
    """The text alone is a body too, without anything else in it."""
    _, stream = opened(plain, Reply(TEXT * 3, reasoning="Hm. ", split=5))
    body = list(text(stream))
    assert all(body)
    assert b"".join(body).decode() == TEXT * 3


@BOTH_WAYS
def test_plain_text_that_breaks_off(plain: Link, blocks: Callable[[Relay], list[bytes]]) -> None:
    """Text that is cut off ends with the error, raised, so that no server ends the body as if it were whole."""
    _, stream = opened(plain, Reply("one two", done=False, finish_reason=None))
    gathered: list[bytes] = []

    def gather(body: Relay) -> None:
        if blocks is list:
            for block in body:
                gathered.append(block)  # noqa: PERF402 - what came before the error counts
        else:
            blocks(body)

    with pytest.raises(StreamTruncatedError):
        gather(text(stream))
    if blocks is list:
        assert b"".join(gathered) == b"one two"


def test_headers(plain: Link) -> None:
    """A body's headers keep everybody on its way from storing, compressing and gathering it."""
    _, stream = opened(plain, "Yes.")
    body = sse(stream)
    headers = {name.lower(): value for name, value in body.headers}
    body.close()
    assert headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "content-encoding": "identity",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
    }
    _, stream = opened(plain, "Yes.")
    assert dict(text(stream).headers)["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"heartbeat": 0}, ValueError, "heartbeat"),
        ({"heartbeat": float("nan")}, ValueError, "heartbeat"),
        ({"heartbeat": "15"}, TypeError, "heartbeat"),
        ({"heartbeat": True}, TypeError, "heartbeat"),
        ({"usage": "never"}, ValueError, "usage"),
        ({"show_errors": "yes"}, TypeError, "show_errors"),
        ({"on_close": None}, TypeError, "on_close"),
    ],
)
def test_wrong_arguments(plain: Link, options: dict[str, Any], error: type[Exception], named: str) -> None:
    """A wrong argument is an error at once, which names it."""
    _, stream = opened(plain, "Yes.")
    with pytest.raises(error, match=named), stream:
        sse(stream, **options)


@pytest.mark.parametrize("make", [sse, text])
def test_no_stream(make: Callable[[Any], Relay]) -> None:
    """What is no stream is refused at once."""
    with pytest.raises(TypeError, match="stream: expected CompletionStream"):
        make(["one"])


def test_a_cancelled_context(plain: Link) -> None:
    """A context that is cancelled ends the body of its stream, as closing the stream does."""
    from chanstream import Context

    context = Context()
    client: Client = plain.client(plain.serve(SILENT))
    body = sse(client.chat_completion_stream(REQUEST, context=context))
    next(body)
    context.cancel()
    error = read(body).error
    assert error is not None
    assert error["type"] == "cancelled"

"""Streams opened and taken in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import requests

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChatCompletionRequest,
    Client,
    CompletionStream,
    Context,
    FIMCompletionRequest,
    InternalServerError,
    Retry,
    StreamCancelledError,
    Timeout,
    UserMessage,
)
from chanstream.testing import Reply, StreamServer
from chanstream.transport import asynchronous, openers
from tests.conftest import PROMPT, REQUEST, SCALE, Link, descriptors, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

T = TypeVar("T")
NEVER_A_HEAD = Reply(head_delay=math.inf)
AT_ONCE = Retry(max_retries=3, min_delay=0.0, max_delay=0.0)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns, in an event loop of its own."""
    return asyncio.run(coroutine)


async def text(client: Client, **options: Any) -> str:
    """Return an answer's text."""
    stream = await client.chat_completion_stream_async(REQUEST, **options)
    return "".join([evt.text async for evt in stream])


async def until(holds: Callable[[], object], seconds: float = 5.0) -> bool:
    """Return whether something becomes true in time, while the loop goes on."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.001)
    return True


@contextlib.asynccontextmanager
async def most_threads() -> AsyncIterator[list[int]]:
    """Give the most threads of the library that there were at any time in the block."""
    most = [0]

    async def look() -> None:
        while True:
            most[0] = max(most[0], producers())
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look())
    yield most
    looking.cancel()


@contextlib.contextmanager
def speaking(*pieces: bytes, then: bytes = b"", pause: float = 0.0005) -> Iterator[str]:
    """Give the address of a server that answers one request piece by piece, each in a segment of its own."""

    def serve() -> None:
        peer, _ = listener.accept()
        with contextlib.suppress(OSError), peer:
            peer.settimeout(5)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.recv(65536)
            for piece in pieces:
                peer.sendall(piece)
                time.sleep(pause)  # so that they do not arrive as one
            peer.sendall(then)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        served.result(5)


BODY = b'data: {"choices":[{"delta":{"content":"one"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class TestManyAtOnce:
    def test_500_streams(self, plain: Link) -> None:
        """500 streams in one loop, whose heads all take a while, are open at once, with three threads at most."""
        server = plain.serve(Reply("one two three", head_delay=0.3, pace=0.2))
        client = plain.client(server)

        async def main() -> list[str]:
            async with most_threads() as most:
                answers = await asyncio.gather(*[text(client) for _ in range(500)])
            assert most[0] <= 3
            return answers

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(openers, "PATIENCE", 10 * SCALE)  # a machine that is busy otherwise is not what it is for
            begun = time.monotonic()
            assert run(main()) == ["one two three"] * 500
        assert time.monotonic() - begun < 20 * SCALE  # and not half a minute, one head after the other: 500 * 0.3 s

    def test_over_tls(self, link: Link) -> None:
        """So it is over TLS, where a server says something before the head: tickets for the next session."""
        server = link.serve(Reply("one two three", head_delay=0.3))
        client = link.client(server)

        async def main() -> list[str]:
            return await asyncio.gather(*[text(client) for _ in range(50)])

        begun = time.monotonic()
        assert run(main()) == ["one two three"] * 50
        assert time.monotonic() - begun < 5 * SCALE  # one after the other: 15 s

    def test_connections_are_used_again(self, link: Link) -> None:
        """Streams in a row use one connection, and so does a stream without a loop after that."""
        server = link.serve("one")
        client = link.client(server)

        async def main() -> None:
            for _ in range(5):
                assert await text(client) == "one"

        run(main())
        assert client.chat_completion_stream(REQUEST).collect().text == "one"
        run(main())
        assert {request.connection for request in server.requests} == {1}

    def test_what_is_sent_is_the_same(self, link: Link) -> None:
        """The request is the one that is sent without a loop, and is sent once."""
        server = link.serve("one")
        client = link.client(server, extra_headers={"X-A": "1"})
        client.chat_completion_stream(REQUEST).collect()
        run(text(client))
        one, other = server.requests
        assert one.body == other.body
        assert dict(one.headers) == dict(other.headers)
        assert (one.method, one.path, one.query) == (other.method, other.path, other.query)

    def test_one_that_is_held_up_holds_up_no_other(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a name does not resolve, or a host does not answer, other requests go on in another thread."""
        stuck, go = threading.Event(), threading.Event()
        look_up = socket.getaddrinfo

        def slow(host: Any, *args: Any, **kwargs: Any) -> Any:
            if host == "slow.test":
                stuck.set()
                go.wait(30)
                raise socket.gaierror(socket.EAI_NONAME, "no such host")
            return look_up(host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        client, held = plain.client(plain.serve("one")), plain.client("http://slow.test")

        async def main() -> None:
            waiting = asyncio.create_task(text(held))
            assert await until(stuck.is_set)
            assert await asyncio.gather(*[text(client) for _ in range(20)]) == ["one"] * 20
            assert not waiting.done()
            go.set()
            with pytest.raises(APIConnectionError, match=r"slow\.test"):
                await waiting

        run(main())


class TestHeads:
    @pytest.mark.parametrize("cut", range(1, len(HEAD), 3))
    def test_in_two_pieces(self, plain: Link, cut: int) -> None:
        """A head may come in pieces, wherever it is cut."""
        with speaking(HEAD[:cut], HEAD[cut:], then=BODY) as url:
            assert run(text(plain.client(url))) == "one"

    def test_byte_by_byte(self, plain: Link) -> None:
        """And in as many pieces as it has bytes."""
        with speaking(*[bytes([byte]) for byte in HEAD + BODY]) as url:
            assert run(text(plain.client(url))) == "one"

    def test_with_much_of_the_body(self, link: Link) -> None:
        """What comes together with the head is not lost, though it is more than any buffer of http.client's."""
        words = " ".join(str(number) for number in range(20_000))
        assert run(text(link.client(link.serve(words)))) == words

    @pytest.mark.parametrize(
        "head",
        [HEAD.replace(b"\r\n", b"\n"), b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD, b"HTTP/1.0 200 OK\r\n\r\n"],
        ids=["bare line feeds", "an interim answer", "until close"],
    )
    def test_of_other_kinds(self, plain: Link, head: bytes) -> None:
        """Whatever http.client reads as a head is one."""
        with speaking(head, then=BODY) as url:
            assert run(text(plain.client(url))) == "one"

    @pytest.mark.parametrize(
        "said",
        [b"", b"HTTP/1.", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000],
        ids=["none", "half of one", "no HTTP", "too long"],
    )
    def test_that_are_none(self, plain: Link, said: bytes) -> None:
        """What is no head is told as no answer."""
        with speaking(said) as url, pytest.raises(APIConnectionError, match="no answer"):
            run(text(plain.client(url)))

    def test_a_loop_that_cannot_watch_sockets(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """In such a loop a thread waits for the head."""

        def cannot(*_: Any) -> None:
            raise NotImplementedError

        async def main() -> str:
            monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", cannot)
            return await text(client)

        client = plain.client(plain.serve(Reply("one", head_delay=0.05)))
        assert run(main()) == "one"

    def test_half_a_head_in_such_a_loop(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """What had come of the head when the loop refused to watch is not lost."""

        def cannot(*_: Any) -> None:
            raise NotImplementedError

        async def main(url: str) -> str:
            monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", cannot)
            return await text(plain.client(url))

        wait = asynchronous._head

        async def late(exchange: Any) -> bool:
            await asyncio.sleep(0.05)  # until the first half is there
            return await wait(exchange)

        monkeypatch.setattr(asynchronous, "_head", late)
        with speaking(HEAD[:30], pause=0.1, then=HEAD[30:] + BODY) as url:
            assert run(main(url)) == "one"

    def test_many_sessions_of_callers(self, plain: Link) -> None:
        """Such sessions, each with a thread that waits for a silent server, hold up no other request."""
        silent, server = plain.serve(Reply("one", head_delay=0.5 * SCALE)), plain.serve("one")
        with requests.Session() as session:
            held, free = plain.client(silent, session=session), plain.client(server)

            async def main() -> None:
                waiting = [asyncio.create_task(text(held)) for _ in range(40)]
                assert await until(lambda: len(silent.requests) == 40)
                assert await text(free) == "one"
                assert await asyncio.gather(*waiting) == ["one"] * 40

            run(main())

    @pytest.mark.parametrize("reply", [Reply("one two", compress="gzip"), Reply("one two", framing="close")])
    def test_any_framing(self, link: Link, reply: Reply) -> None:
        """A body is read whatever its framing and compression."""
        assert run(text(link.client(link.serve(reply)))) == "one two"

    def test_a_session_of_the_callers(self, plain: Link) -> None:
        """A session that the caller brought waits for the head in a thread."""
        with requests.Session() as session:
            client = plain.client(plain.serve(Reply("one", head_delay=0.05)), session=session)
            assert run(text(client)) == "one"

    def test_a_redirect(self, plain: Link) -> None:
        """A redirect is followed."""
        target = plain.serve("one")
        moved = Reply(status=307, headers={"Location": target.url + "/v1/chat/completions"})
        assert run(text(plain.client(plain.serve(moved)))) == "one"


class TestErrors:
    def test_refusals(self, link: Link) -> None:
        """A refusal is raised as its class, with our option where it names one."""
        refused = Reply.json({"error": {"message": "'user' is unknown"}}, status=400)
        server = link.serve(Reply.error(401), refused)
        client = link.client(server)

        async def main() -> None:
            with pytest.raises(AuthenticationError):
                await client.chat_completion_stream_async(REQUEST)
            with pytest.raises(BadRequestError) as caught:
                await client.chat_completion_stream_async(ChatCompletionRequest("m", [UserMessage("Hi")], user="u"))
            assert caught.value.option == "user"

        run(main())

    @pytest.mark.usefixtures("no_collector")
    def test_are_freed_at_once(self, plain: Link) -> None:
        """An error that is dropped is gone, and what hangs on its traceback, without the garbage collector."""
        client = plain.client(plain.serve(Reply.error(401)))

        async def main() -> weakref.ref[AuthenticationError]:
            try:
                await client.chat_completion_stream_async(REQUEST)
            except AuthenticationError as error:
                return weakref.ref(error)
            pytest.fail("it did not raise")

        async def later() -> None:
            known = await main()
            await asyncio.sleep(0)
            assert within(5, lambda: known() is None)

        run(later())

    def test_are_tried_again(self, link: Link) -> None:
        """What is tried again without a loop is tried again here, and the last error is raised."""
        server = link.serve(Reply.error(503), Reply.error(500), "one", *[Reply.error(500)] * 9)
        client = link.client(server, retry=AT_ONCE)
        assert run(text(client)) == "one"
        with pytest.raises(InternalServerError):
            run(text(client))
        assert len(server.requests) == 3 + 4

    def test_a_connection_that_went_stale(self, link: Link) -> None:
        """A kept connection that the server has closed meanwhile is replaced."""
        server = link.serve(Reply("one"), Reply("two", end="cut", raw=b""), Reply("three"))
        client = link.client(server, retry=AT_ONCE)
        assert run(text(client)) == "one"
        assert run(text(client)) == "three"

    @pytest.mark.parametrize("clock", ["connect", "first_chunk", "total", "context"])
    def test_clocks(self, link: Link, clock: str) -> None:
        """The clocks that run before the head end the wait for it, and are named."""
        options: dict[str, Any] = {"timeout": Timeout(**{clock: 0.1})} if clock != "context" else {}
        if clock == "context":
            options["context"] = Context(0.1)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            mute_url = f"https://127.0.0.1:{mute.getsockname()[1]}"
            server = link.serve(NEVER_A_HEAD)
            client = link.client(mute_url if clock == "connect" else server)
            with pytest.raises(APITimeoutError) as caught:
                run(text(client, **options))
        assert caught.value.clock == clock
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_after_the_head(self, plain: Link) -> None:
        """What goes wrong later comes with the stream, as errors= says."""
        cut = Reply("one two three", cut_at=500, end="cut")

        async def main() -> None:
            stream = await plain.client(plain.serve(cut)).chat_completion_stream_async(REQUEST)
            assert [type(evt.error).__name__ async for evt in stream][-1] == "StreamInterruptedError"
            raising = await plain.client(plain.serve(cut)).chat_completion_stream_async(REQUEST, errors="raise")
            with pytest.raises(Exception, match="lost"):
                [evt async for evt in raising]

        run(main())

    def test_wrong_arguments(self, plain: Link) -> None:
        """What is wrong is told by name, and nothing is sent."""
        server = plain.serve("one")
        client = plain.client(server)
        for request, options in [
            ("text", {}),
            (FIMCompletionRequest("m", "p"), {}),
            (REQUEST, {"buffer": 0}),
            (REQUEST, {"timeout": "1"}),
            (REQUEST, {"context": 1}),
            (REQUEST, {"extra_body": 1}),
        ]:
            with pytest.raises((TypeError, ValueError), match=next(iter(options), "request")):
                run(client.chat_completion_stream_async(request, **options))  # type: ignore[arg-type]
        assert not server.requests


class TestCancel:
    """Cancelling the task leaves nothing behind, whatever it is at."""

    def check(self, client: Client, server: StreamServer, reached: Callable[[], object]) -> None:
        """Cancel the task once something is reached; fail unless it ends at once and the server sees nobody."""

        async def main() -> float:
            task = asyncio.create_task(text(client))
            assert await until(reached)
            begun = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - begun

        assert run(main()) < PROMPT
        client.close()  # those that are kept for the next request
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_while_it_waits_for_the_head(self, link: Link) -> None:
        """Before the head the connection is closed."""
        server = link.serve(NEVER_A_HEAD)
        self.check(link.client(server), server, lambda: server.requests)

    def test_while_it_streams(self, link: Link) -> None:
        """While chunks come the stream is closed."""
        server = link.serve(Reply("one two three", stall_after=1))
        self.check(link.client(server), server, lambda: server.requests and producers() >= 1)

    def test_between_two_attempts(self, link: Link) -> None:
        """While it waits to try again nothing more is sent."""
        server = link.serve(Reply.error(429, headers={"Retry-After": "30"}), "one")
        self.check(link.client(server, retry=Retry()), server, lambda: server.requests)
        assert len(server.requests) == 1

    def test_while_a_thread_is_at_it(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the connection is being made the task ends at once, and the connection is closed when it is there."""
        stuck, go = threading.Event(), threading.Event()
        look_up = socket.getaddrinfo

        def slow(*args: Any, **kwargs: Any) -> Any:
            stuck.set()
            go.wait(30)
            return look_up(*args, **kwargs)

        server = link.serve("one")
        client = link.client(server)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", slow)
            self.check(client, server, stuck.is_set)
            go.set()
            assert within(5, lambda: not any(t.name == "chanstream-opener" for t in threading.enumerate()))
        assert server.wait_for(lambda s: s.open_connections == 0)
        assert run(text(client)) == "one"

    def test_before_a_thread_is_free(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A request that waits for its turn is never sent."""
        stuck, go = threading.Event(), threading.Event()
        monkeypatch.setattr(openers, "PATIENCE", 30.0)

        def busy() -> None:
            stuck.set()
            go.wait(30)

        server = plain.serve("one")
        future = openers.openers.submit(busy)
        try:
            self.check(plain.client(server), server, stuck.is_set)
        finally:
            go.set()
        future.result(5)
        assert not server.requests

    def test_by_a_context(self, link: Link) -> None:
        """A context that another thread cancels ends the wait with its error."""
        server = link.serve(NEVER_A_HEAD)
        client, context = link.client(server), Context()

        async def main() -> None:
            task = asyncio.create_task(text(client, context=context))
            assert await until(lambda: server.requests)
            await asyncio.to_thread(context.cancel)
            with pytest.raises(StreamCancelledError):
                await task

        run(main())
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_500_at_once(self, link: Link) -> None:
        """Cancelling very many tasks, at whatever each is, leaves no thread, no descriptor and no connection."""
        server = link.serve(Reply("one two three", head_delay=0.05, stall_after=1))
        client = link.client(server)

        async def main() -> None:
            tasks = [asyncio.create_task(text(client)) for _ in range(500)]
            assert await until(lambda: len(server.requests) > 100, 20 * SCALE)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in done} == {asyncio.CancelledError}

        before = descriptors()
        run(main())
        client.close()
        assert server.wait_for(lambda s: s.open_connections == 0)
        assert within(5, lambda: descriptors() <= before + 3)  # the server's own socket of this test may be new

    def test_leaving_a_block(self, link: Link) -> None:
        """The end of an ``async with`` block closes the stream."""
        server = link.serve(Reply("one two three", stall_after=2))
        client = link.client(server)

        async def main() -> None:
            async with await client.chat_completion_stream_async(REQUEST) as stream:
                assert stream.state == "streaming"
            assert stream.state == "cancelled"

        run(main())
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_leaving_a_loop_early(self, link: Link) -> None:
        """Leaving ``async for`` early closes the stream."""
        server = link.serve(Reply("one two three", stall_after=2))
        client = link.client(server)

        async def main() -> CompletionStream:
            async with contextlib.aclosing((await client.chat_completion_stream_async(REQUEST)).__aiter__()) as chunks:  # type: ignore[type-var]
                async for _ in chunks:
                    break
            return await client.chat_completion_stream_async(REQUEST)

        stream = run(main())
        stream.close()
        assert server.wait_for(lambda s: s.open_connections == 0)


class TestLimits:
    def test_the_loop_goes_on(self, plain: Link) -> None:
        """While the limiter makes one request wait others of the loop go on, and cancel ends the wait."""

        class Closed:
            asked = 0

            def ask(self) -> float:
                self.asked += 1
                return 1000.0

        limiter, server = Closed(), plain.serve("one")
        limited, free = plain.client(server, rate_limiter=limiter), plain.client(server)

        async def main() -> None:
            waiting = asyncio.create_task(text(limited))
            assert await until(lambda: limiter.asked)
            assert await text(free) == "one"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(APITimeoutError, match="total"):
                await text(limited, timeout=0.05)

        run(main())
        assert len(server.requests) == 1

    def test_each_attempt_asks(self, plain: Link) -> None:
        """It is asked before each attempt, and again after the pause that it wants."""
        asked = []

        class Every:
            def ask(self) -> float:
                asked.append(1)
                return 0.001 if len(asked) % 2 else 0.0

        server = plain.serve(Reply.error(503), "one")
        assert run(text(plain.client(server, rate_limiter=Every(), retry=AT_ONCE))) == "one"
        assert len(asked) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_in_a_forked_child(plain: Link) -> None:
    """A client that was used in the parent works in the loop of a child."""
    server = plain.serve("one")
    client = plain.client(server)
    assert run(text(client)) == "one"
    pid = os.fork()
    if not pid:
        try:
            os._exit(run(text(client)) != "one")
        finally:
            os._exit(9)
    assert os.waitpid(pid, 0)[1] == 0


def test_no_thread_to_open_with(plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started that is told, and the request is not sent with the next one."""
    server = plain.serve("one")
    client = plain.client(server)

    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run(client.chat_completion_stream_async(REQUEST))
    assert run(text(client)) == "one"
    assert len(server.requests) == 1

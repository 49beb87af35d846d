"""Promise 9: four clocks, ``connect``, ``first_chunk``, ``idle`` and ``total``.

Each raises or delivers an error that names it, at its time; only data events reset ``idle``; ``total`` covers retries
and waits.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError

import attrs
import pytest

from chanstream import APITimeoutError, Client, CompletionChunk, Context, Retry, Timeout, UserMessage, timers
from chanstream.calls import Engine
from chanstream.testing import Reply
from tests.concurrency import spawn
from tests.conftest import PATIENCE, PROMPT, REQUEST, SCALE, Link, at_most, within
from tests.servers.upstream import Upstream

pytestmark = pytest.mark.usefixtures("nothing_left")

CLOCK = 0.12 * SCALE
"""What the clock under test is set to, in seconds: time for an attempt or two. All others are far away."""

LATE = 2 * PROMPT
"""How late a clock may be on a busy machine; a wrong clock is seconds late, or never comes."""

FAR = Timeout(connect=20, first_chunk=30, idle=40, total=50)
NEVER_A_HEAD = Reply(head_delay=math.inf)


def clock(**one: float) -> Timeout:
    """Return clocks of which only the named one can run out in a test."""
    return attrs.evolve(FAR, **one)


@contextlib.contextmanager
def on_time(seconds: float = CLOCK) -> Iterator[None]:
    """Fail unless the block takes so long, and no longer."""
    begun = time.monotonic()
    yield
    assert seconds <= time.monotonic() - begun < at_most(seconds, begun, LATE)


def raised(name: str, call: Callable[[], object], seconds: float = CLOCK) -> None:
    """Fail unless ``call`` raises the error of this clock at its time."""
    with on_time(seconds), pytest.raises(APITimeoutError) as caught:
        call()
    tells(caught.value, name, seconds)


def tells(error: BaseException | None, name: str, seconds: float = CLOCK) -> None:
    """Fail unless the error names this clock and what it was set to."""
    assert isinstance(error, APITimeoutError)
    assert (error.clock, error.seconds) == (name, seconds)
    assert f"clock: {name}" in str(error)
    assert f" {seconds:g} s" in str(error)


def texts(chunks: list[CompletionChunk]) -> list[str]:
    """Return what each chunk adds to the text."""
    return [chunk.text for chunk in chunks]


@pytest.fixture
def full() -> Iterator[str]:
    """The address of a server that has no room for another connection: it leaves the handshake of TCP unanswered."""
    with contextlib.ExitStack() as exits:
        listener = exits.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:
            queued = exits.enter_context(socket.socket())
            queued.settimeout(0.1)
            try:
                queued.connect(listener.getsockname())
            except TimeoutError:
                break
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and never says a word of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


LARGE = 16 * 1024 * 1024
"""Bytes of a request that fill every buffer between client and server."""


@contextlib.contextmanager
def slow_reader(link: Link, seconds: float) -> Iterator[str]:
    """Give the address of a server that answers two requests, and takes so long before it reads each one's body."""
    body = b'data: {"choices":[{"delta":{"content":"read"},"finish_reason":"stop"}]}\n\n'

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(5)  # a client that gives up leaves no thread of ours behind
        if link.tls is not None:
            peer = link.tls.wrap_socket(peer, server_side=True)
        with contextlib.suppress(OSError), peer, peer.makefile("rb") as lines:
            for _ in range(2):
                fields = dict(line.lower().split(b": ") for line in iter(lines.readline, b"\r\n") if b": " in line)
                time.sleep(seconds)
                lines.read(int(fields[b"content-length"]))
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield f"http{'s' if link.tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
        server.join(10)
        assert not server.is_alive()


class TestConnect:
    def test_no_connection(self, plain: Link, full: str) -> None:
        """A connection that does not come about is given up."""
        client = plain.client(full, timeout=clock(connect=CLOCK))
        raised("connect", lambda: client.chat_completion_stream(REQUEST))
        raised("connect", lambda: client.chat_completion(REQUEST))

    def test_no_tls(self, plain: Link, mute: str) -> None:
        """The clock covers the handshake of TLS."""
        client = plain.client(mute, timeout=clock(connect=CLOCK))
        raised("connect", lambda: client.chat_completion_stream(REQUEST))
        raised("connect", lambda: client.chat_completion(REQUEST))

    def test_ends_with_the_connection(self, plain: Link) -> None:
        """Once there is a connection, the clock has stopped: head and chunks may take longer."""
        reply = Reply("one two", head_delay=1.5 * CLOCK)
        assert plain.stream(reply, timeout=clock(connect=CLOCK)).collect().text == "one two"

    def test_ends_before_the_request_is_sent(self, link: Link) -> None:
        """A large request that a server takes its time to read is no matter of connecting."""
        request = attrs.evolve(REQUEST, messages=[UserMessage("x" * LARGE)])
        with slow_reader(link, 2 * CLOCK) as url:
            client = link.client(url, timeout=clock(connect=CLOCK))
            assert [client.chat_completion_stream(request).collect().text for _ in range(2)] == ["read"] * 2

    @pytest.mark.parametrize("server", ["full", "mute"])
    def test_gives_way_to_the_total(self, plain: Link, server: str, request: pytest.FixtureRequest) -> None:
        """Where the total is the shorter one, it ends the wait for a connection, and is the one that is named."""
        client = plain.client(request.getfixturevalue(server), timeout=clock(total=CLOCK))
        raised("total", lambda: client.chat_completion_stream(REQUEST))


class TestFirstChunk:
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_no_head(self, link: Link, streaming: bool) -> None:
        """Before the head it is raised, and the connection is gone."""
        server = link.serve(NEVER_A_HEAD)
        client = link.client(server, timeout=clock(first_chunk=CLOCK))
        raised("first_chunk", lambda: (client.chat_completion_stream if streaming else client.chat_completion)(REQUEST))
        assert server.wait_for(lambda s: s.open_connections == 0)

    @pytest.mark.parametrize(
        "reply",
        [
            Reply("one", stall_after=0),
            Reply.pings_only(0.02),
            Reply("one", head_delay=0.25 * CLOCK, stall_after=0),
            Reply(body=b"data: " + b"x" * 1000, split=1, pace=0.02),
        ],
        ids=["silence", "pings only", "a late head and silence", "half an event, byte by byte"],
    )
    def test_no_chunk(self, link: Link, reply: Reply) -> None:
        """After the head it is delivered; keep-alive comments, the head and bytes of no whole event do not stop it."""
        server = link.serve(reply)
        client = link.client(server, timeout=clock(first_chunk=CLOCK))
        with on_time():
            (chunk,) = client.chat_completion_stream(REQUEST)
        tells(chunk.error, "first_chunk")
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_ends_with_the_first_chunk(self, plain: Link) -> None:
        """Once a chunk has come, the next ones may take longer."""
        assert plain.stream(Reply("one two", pace=1.5 * CLOCK), timeout=clock(first_chunk=CLOCK)).collect().text

    def test_is_for_each_attempt(self, plain: Link) -> None:
        """A retry has the whole time again, and the wait before it takes nothing of it."""
        refusal = Reply.error(503, headers={"retry-after-ms": f"{1100 * CLOCK:.0f}"})
        server = plain.serve(refusal, Reply("one", first_delay=0.1 * CLOCK))
        client = plain.client(server, timeout=clock(first_chunk=CLOCK), retry=Retry())
        assert client.chat_completion_stream(REQUEST).collect().text == "one"

    def test_covers_a_whole_answer(self, plain: Link) -> None:
        """Without streaming it covers the body, up to its end."""
        reply = Reply(body=b'{"choices": ', content_type="application/json", end="hold")
        client = plain.client(plain.serve(reply), timeout=clock(first_chunk=CLOCK))
        raised("first_chunk", lambda: client.chat_completion(REQUEST))

    def test_covers_the_body_of_a_refusal(self, plain: Link) -> None:
        """A refusal whose body never ends is told as a refusal, with what has come of its words, and in time."""
        reply = Reply(body=b'{"error": {"message": "no', status=400, end="hold", content_type="application/json")
        client = plain.client(plain.serve(reply), timeout=clock(first_chunk=CLOCK))
        with on_time(), pytest.raises(Exception, match=r"\[400\].*no"):
            client.chat_completion_stream(REQUEST)


EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


class TestIdle:
    @pytest.mark.parametrize(
        "reply",
        [
            Reply("one two three", stall_after=2),
            Reply("one two three", stall_after=2, pings=0.02),
            Reply(body=EVENT * 2 + b"data: " + b"x" * 5000, split=len(EVENT), pace=CLOCK / 24),
        ],
        ids=["silence", "pings", "bytes of no whole event"],
    )
    def test_no_further_chunk(self, link: Link, reply: Reply) -> None:
        """It is delivered after the chunks that came; comments and bytes of no whole event do not reset it."""
        server = link.serve(reply)
        begun = time.monotonic()
        stream = link.client(server, timeout=clock(idle=CLOCK)).chat_completion_stream(REQUEST)
        first, second = stream.get(), stream.get()
        assert first.text
        assert second.text
        (last,) = stream
        tells(last.error, "idle")
        assert CLOCK - 0.01 < last.chunk_latency < at_most(CLOCK, begun, LATE)
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_starts_anew_with_each_chunk(self, plain: Link) -> None:
        """A stream may take any time as long as no single wait is too long."""
        stream = plain.stream(Reply("word " * 16, pace=0.25 * CLOCK), timeout=clock(idle=3 * CLOCK))
        assert stream.collect().text == "word " * 16

    def test_starts_with_the_first_chunk(self, plain: Link) -> None:
        """The wait for the first chunk is not its business: a model that thinks is silent for long."""
        reply = Reply("one", head_delay=CLOCK, first_delay=2 * CLOCK)
        assert plain.stream(reply, timeout=clock(idle=CLOCK)).collect().text == "one"

    def test_a_full_channel_is_no_silence(self, plain: Link) -> None:
        """While a slow consumer holds the stream back, the clock stands still."""
        reply = Reply([f"{number} " for number in range(8)])
        stream = plain.stream(reply, timeout=clock(idle=CLOCK), buffer=1)
        taken = []
        for _ in range(3):
            assert within(5, lambda: stream.statistics().waiting_putters == 1)
            time.sleep(1.5 * CLOCK)
            taken.append(stream.get())
        taken += stream
        assert texts(taken) == [*(f"{number} " for number in range(8)), ""]
        assert taken[-1].is_last_chunk

    def test_goes_on_when_the_channel_has_room_again(self, plain: Link) -> None:
        """A server that says nothing more, once the consumer has caught up, is given up after the idle time."""
        stream = plain.stream(Reply("one two three four", stall_after=3), timeout=clock(idle=CLOCK), buffer=1)
        assert within(5, lambda: stream.statistics().waiting_putters == 1)
        time.sleep(1.5 * CLOCK)
        taken = [stream.get()]
        with on_time():
            taken += stream  # the first of which makes room
        assert texts(taken) == ["one", " two", " three", ""]
        tells(taken[-1].error, "idle")

    def test_a_slow_consumer_with_room_does_not_stop_it(self, plain: Link) -> None:
        """A silent server is given up though the consumer is still busy with the first chunk."""
        stream = plain.stream(Reply("one two three", stall_after=2), timeout=clock(idle=CLOCK))
        assert within(2 * CLOCK + LATE, lambda: stream.state == "failed")
        assert texts(list(stream)) == ["one", " two", ""]


class TestTotal:
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_no_head(self, link: Link, streaming: bool) -> None:
        """Before the head it is raised."""
        client = link.client(link.serve(NEVER_A_HEAD), timeout=clock(total=CLOCK))
        raised("total", lambda: (client.chat_completion_stream if streaming else client.chat_completion)(REQUEST))

    @pytest.mark.parametrize(
        "reply",
        [Reply.pings_only(0.02), Reply("one two", stall_after=1), Reply("x " * 1000, pace=0.02)],
        ids=["pings only", "silence", "a lively stream"],
    )
    def test_not_finished(self, link: Link, reply: Reply) -> None:
        """After the head it is delivered, whatever the stream is doing."""
        server = link.serve(reply)
        client = link.client(server, timeout=clock(total=CLOCK))
        with on_time():
            *_, last = client.chat_completion_stream(REQUEST)
        tells(last.error, "total")
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_a_full_channel_does_not_stop_it(self, plain: Link) -> None:
        """It runs on while a slow consumer holds the stream back; what had come is still there to be taken."""
        stream = plain.stream(Reply("x " * 1000), timeout=clock(total=CLOCK), buffer=2)
        assert within(CLOCK + LATE, lambda: stream.state == "failed")
        *chunks, last = stream
        assert texts(chunks)[:2] == ["x", " x"]
        tells(last.error, "total")

    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_covers_the_wait_before_a_retry(self, link: Link, streaming: bool) -> None:
        """It ends a wait that the server asked for, and nothing more is sent."""
        server = link.serve(Reply.error(429, headers={"Retry-After": "30"}), "one")
        client = link.client(server, timeout=clock(total=CLOCK), retry=Retry())
        raised("total", lambda: (client.chat_completion_stream if streaming else client.chat_completion)(REQUEST))
        assert len(server.requests) == 1

    def test_covers_all_attempts(self, plain: Link) -> None:
        """It does not start anew with a retry."""
        refusal = Reply.error(503, headers={"retry-after-ms": "40"})
        server = plain.serve(refusal, refusal, Reply("x " * 1000, pace=0.02))
        seconds = 3 * CLOCK
        client = plain.client(server, timeout=clock(total=seconds), retry=Retry())
        with on_time(seconds):
            *_, last = client.chat_completion_stream(REQUEST)
        tells(last.error, "total", seconds)
        assert len(server.requests) == 3

    @pytest.mark.parametrize("total", [1e-9, 1e-6, 1e-3])
    def test_of_next_to_nothing(self, plain: Link, total: float) -> None:
        """A total that is over before anything can be sent is told like any other."""
        client = plain.client(plain.serve(NEVER_A_HEAD), timeout=clock(total=total))
        for _ in range(20):
            with pytest.raises(APITimeoutError) as caught:
                client.chat_completion_stream(REQUEST).collect()
            tells(caught.value, "total", total)

    def test_covers_a_stream_that_ends_in_time(self, plain: Link) -> None:
        """A stream that is over has no clock any more."""
        stream = plain.stream("one two", timeout=clock(total=CLOCK))
        assert within(5, lambda: stream.state == "complete")
        time.sleep(1.5 * CLOCK)
        assert texts(list(stream)) == ["one", " two", ""]


LONGER = 3 * timers.HELD_UP


@pytest.mark.skipif(os.name == "nt", reason="nothing stops a process here")
class TestHeldUp:
    """Where the whole process was held up what came meanwhile is read before a clock counts."""

    CLOCK = CLOCK * max(1.0, PATIENCE / 2)  # each is lived through several times

    @staticmethod
    def hold_up(seconds: float = CLOCK) -> None:
        """Keep all threads from running until the clock under test is long over, as an extension might."""
        ctypes.PyDLL(None).usleep(int(1e6 * (seconds + LONGER)))  # it is called with the interpreter's lock

    def test_before_the_head(self, link: Link) -> None:
        """The head is waited for once more."""
        server = link.serve(NEVER_A_HEAD)
        asking = spawn(link.client(server, timeout=clock(first_chunk=self.CLOCK)).chat_completion_stream, REQUEST)
        assert server.wait_for(lambda server: len(server.requests) == 1)
        self.hold_up()
        with pytest.raises(FutureTimeoutError):
            asking.exception(self.CLOCK / 2)
        self.hold_up()
        tells(asking.exception(self.CLOCK / 2), "first_chunk", self.CLOCK)

    def test_around_the_head(self, plain: Link) -> None:
        """A head that comes after that leaves the first chunk what is left of the time."""
        seconds = 4 * self.CLOCK
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            asking = spawn(plain.client(address, timeout=clock(first_chunk=seconds)).chat_completion_stream, REQUEST)
            peer, _ = listener.accept()
            begun = time.monotonic()
            self.hold_up(seconds)
            with peer:
                time.sleep(seconds / 2)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                (last,) = asking.result(5 * seconds)
        tells(last.error, "first_chunk", seconds)
        assert 2 * seconds + LONGER <= time.monotonic() - begun < 2.4 * seconds + LONGER

    @pytest.mark.parametrize("said", [(), ("one",)], ids=["first_chunk", "idle"])
    def test_in_the_middle(self, link: Link, said: tuple[str, ...]) -> None:
        """The silence begins anew: once, so that it ends."""
        name = "idle" if said else "first_chunk"
        stream = link.stream(Reply([*said, "no"], stall_after=len(said)), timeout=clock(**{name: self.CLOCK}))
        assert texts([stream.get() for _ in said]) == [*said]
        self.hold_up()
        with pytest.raises(queue.Empty):
            stream.get(timeout=self.CLOCK / 2)
        self.hold_up()
        tells(stream.get(timeout=self.CLOCK / 2).error, name, self.CLOCK)

    def test_a_stopped_process(self, plain: Link, engine: Engine) -> None:
        """A process that was stopped for longer than its clocks ends its stream as if nothing had been."""
        program = f"""
            import sys
            from chanstream import ChatCompletionRequest, Client, Timeout, UserMessage
            timeout = Timeout(idle={2 * self.CLOCK})
            with Client("k", base_url=sys.argv[1], dialect="openai", engine={engine!r}, timeout=timeout) as client:
                for chunk in client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage("one")])):
                    print(chunk.text, chunk.usage and chunk.usage.total_tokens, chunk.error, flush=True)
        """
        command = [sys.executable, "-c", textwrap.dedent(program)]
        with Upstream() as server, subprocess.Popen([*command, server.url], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"one None None\n"
                process.send_signal(signal.SIGSTOP)
                server.say(" two")
                time.sleep(2 * self.CLOCK + LONGER)
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == b" two None None\n"
                server.end()
                assert process.stdout.read() == b" None None\n"
            finally:
                process.kill()


class TestWhereTheyAreSet:
    def test_a_bare_number_is_the_total(self, plain: Link) -> None:
        """timeout=seconds on the client limits all of each call."""
        client = plain.client(plain.serve(NEVER_A_HEAD), timeout=CLOCK)
        raised("total", lambda: client.chat_completion_stream(REQUEST))

    @pytest.mark.parametrize("name", ["first_chunk", "total"])
    def test_the_call_overrides_the_client(self, plain: Link, name: str) -> None:
        """The clocks of a call stand in for those of the client."""
        client = plain.client(plain.serve(NEVER_A_HEAD), timeout=FAR)
        raised(name, lambda: client.chat_completion_stream(REQUEST, timeout=clock(**{name: CLOCK})))
        raised("total", lambda: client.chat_completion(REQUEST, timeout=CLOCK))

    def test_a_context_has_a_clock_of_its_own(self, plain: Link) -> None:
        """A deadline of the caller's context that comes first is named as such."""
        client = plain.client(plain.serve(NEVER_A_HEAD), timeout=FAR)
        raised("context", lambda: client.chat_completion_stream(REQUEST, context=Context().with_timeout(CLOCK)))

    def test_the_first_one_counts(self, plain: Link) -> None:
        """Of several clocks the one that runs out first is named."""
        timeout = Timeout(connect=CLOCK, first_chunk=2 * CLOCK, idle=CLOCK, total=8 * CLOCK)
        client = plain.client(plain.serve(NEVER_A_HEAD), timeout=timeout)
        raised("first_chunk", lambda: client.chat_completion_stream(REQUEST), 2 * CLOCK)

    def test_none_switches_them_off(self, plain: Link) -> None:
        """With all four off a stream takes the time that it takes."""
        off = Timeout(connect=None, first_chunk=None, idle=None, total=None)
        reply = Reply("one two", head_delay=0.1, first_delay=0.1, pace=0.1)
        assert plain.stream(reply, timeout=off).collect().text == "one two"

    @pytest.mark.parametrize("name", ["first_chunk", "idle", "total"])
    def test_raised_in_the_loop_if_wanted(self, plain: Link, name: str) -> None:
        """With errors="raise" the loop raises what would have been delivered."""
        reply = Reply("one two", stall_after=0 if name == "first_chunk" else 1)
        stream = plain.stream(reply, timeout=clock(**{name: CLOCK}), errors="raise")
        got: list[str] = []
        with pytest.raises(APITimeoutError) as caught:
            got.extend(chunk.text for chunk in stream)
        tells(caught.value, name)
        assert got == ([] if name == "first_chunk" else ["one"])

    def test_collect_raises_with_what_has_come(self, plain: Link) -> None:
        """collect() raises the clock's error, and the partial answer is in it."""
        stream = plain.stream(Reply("one two three", stall_after=2), timeout=clock(idle=CLOCK))
        with pytest.raises(APITimeoutError) as caught:
            stream.collect()
        tells(caught.value, "idle")
        assert caught.value.partial is not None
        assert caught.value.partial.text == "one two"


class TestBadValues:
    @pytest.mark.parametrize("name", ["connect", "first_chunk", "idle", "total"])
    @pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
    def test_out_of_range(self, name: str, value: float) -> None:
        """A clock that cannot be is refused at once, by name."""
        with pytest.raises(ValueError, match=name):
            Timeout(**{name: value})

    @pytest.mark.parametrize("name", ["connect", "first_chunk", "idle", "total"])
    @pytest.mark.parametrize("value", ["1", True, b"", [1]])
    def test_no_number(self, name: str, value: object) -> None:
        """What is no number of seconds is refused at once, by name."""
        with pytest.raises(TypeError, match=name):
            Timeout(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("value", "kind"), [(-1, ValueError), (0, ValueError), ("5", TypeError), (True, TypeError)]
    )
    def test_of_a_client_or_a_call(self, plain: Link, value: object, kind: type[Exception]) -> None:
        """A timeout that cannot be is refused by client and call, and nothing is sent."""
        with pytest.raises(kind, match="timeout"):
            Client("key", timeout=value)  # type: ignore[arg-type]
        server = plain.serve("never")
        with pytest.raises(kind, match="timeout"):
            plain.client(server).chat_completion_stream(REQUEST, timeout=value)  # type: ignore[arg-type]
        assert server.connections == 0

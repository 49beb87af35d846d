"""The poller: one thread for all streams, which no stream can stop or hold up."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import random
import select
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    Client,
    CompletionStream,
    Context,
    StreamCancelledError,
    StreamError,
    Timeout,
)
from chanstream.calls import Engine
from chanstream.channel import Pipe, hand_over
from chanstream.engines import poller
from chanstream.engines.flow import Flow
from chanstream.engines.poller import _Poller
from chanstream.engines.watching import READ, WRITE, Epoll
from chanstream.testing import Reply
from chanstream.transport.session import Answer, Call
from chanstream.transport.takeover import Line
from chanstream.wire.body import OfLength
from chanstream.wire.machine import StreamMachine
from tests.concurrency import Intrusion, intrusions
from tests.conftest import PROMPT, REQUEST, SCALE, USUALLY, Link, at_most, producers, within
from tests.contract.test_13_threads import asking, forked, forking, run

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENT = Reply("one two three four", stall_after=2)
WORDS = [f"{number} " for number in range(5000)]
FLOOD = Reply(WORDS)  # more than any buffer between: its stream waits for room


@pytest.fixture
def engine() -> Engine:
    """The engine of the clients."""
    return "poller"


def ours() -> list[str]:
    """Return the names of the library's threads."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("chanstream"))


def in_the_poller() -> bool:
    """Return whether this is the poller's thread."""
    return threading.current_thread().name == "chanstream-poller"


def texts(stream: CompletionStream) -> str:
    """Return what a stream says up to its end, whichever it is."""
    return "".join(chunk.text for chunk in stream)


def full(client: Client, buffer: int = 4, **settings: Any) -> CompletionStream:
    """Return a stream of a flood, in whose channel there is no room any more."""
    stream = client.chat_completion_stream(REQUEST, buffer=buffer, **settings)
    assert within(5, lambda: stream.statistics().waiting_putters == 1)
    return stream


def event(text: str, finish: str | None = None) -> bytes:
    """Return an event that says ``text``."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


class Wire:
    """A server that answers with a head and what it is told to; then the test says what is sent when.

    Attributes:
        accepted: The connections, once the head has been sent.
    """

    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"

    def __init__(self, tls: ssl.SSLContext | None, *with_the_heads: bytes) -> None:
        self._tls = tls
        self._with_the_heads = with_the_heads
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._thread = threading.Thread(target=self._serve)
        self.accepted: Queue[socket.socket] = Queue()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        assert not self._thread.is_alive()
        while not self.accepted.empty():
            self.accepted.get().close()

    def _serve(self) -> None:
        extras = iter(self._with_the_heads)
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    peer = self._tls.wrap_socket(peer, server_side=True)
                asked = b""
                while b"}" not in asked.partition(b"\r\n\r\n")[2]:
                    asked += peer.recv(65536)
                peer.sendall(self.HEAD + next(extras, b""))
                self.accepted.put(peer)


@contextlib.contextmanager
def wired(link: Link, *with_the_head: bytes, **settings: Any) -> Iterator[tuple[CompletionStream, socket.socket]]:
    """Give a stream and the server's end of its connection."""
    with Wire(link.tls, *with_the_head) as wire:
        stream = link.client(wire.url).chat_completion_stream(REQUEST, **settings)
        with wire.accepted.get(timeout=5) as peer:
            yield stream, peer
        stream.close()


class TestTheThread:
    def test_one_for_200_streams(self, link: Link) -> None:
        """200 streams have one thread, besides that of the timers; it ends at once after the last."""
        server = link.serve(SILENT)
        client = link.client(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(200)]
        assert [stream.get().text for stream in streams] == ["one"] * 200
        assert ours() == ["chanstream-poller", "chanstream-timers"]
        for stream in streams[1:]:
            stream.close()
        assert server.wait_for(lambda s: s.open_connections == 1, 5)
        assert ours() == ["chanstream-poller", "chanstream-timers"]
        streams[0].close()
        assert within(PROMPT, lambda: ours() == [])

    def test_it_starts_with_the_first_stream_that_needs_it(self, link: Link, started: list[str]) -> None:
        """A stream that is over when its head is in starts none; the next that is not starts it."""
        whole = event("all of it", "stop") + b"data: [DONE]\n\n"
        fields = b"Content-Type: text/event-stream\r\nContent-Length: %d\r\n" % len(whole)
        server = link.serve(Reply(raw=b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + whole), SILENT)
        client = link.client(server)
        assert texts(client.chat_completion_stream(REQUEST)) == "all of it"
        assert "chanstream-poller" not in started
        stream = client.chat_completion_stream(REQUEST)
        assert started.count("chanstream-poller") == 1
        stream.close()

    @pytest.mark.parametrize(
        "reply",
        [
            Reply("one two", pace=0.1),
            Reply("one two", pace=0.1, framing="close"),
            Reply("one two", pace=0.1, stall_after=1),
            Reply("one two", pace=0.1, cut_at=100, end="cut"),
            Reply("one two", pace=0.1, cut_at=100, end="reset"),
            Reply(chunks=[{"choices": [{"delta": {"content": "one"}}]}, {"error": {"message": "no"}}], pace=0.1),
            Reply(body=b"zz\r\n", headers={"Transfer-Encoding": "chunked"}, framing="close", first_delay=0.1),
        ],
        ids=["whole", "close", "stall", "cut", "reset", "error", "no chunks"],
    )
    def test_it_ends_with_the_last(self, link: Link, reply: Reply, started: list[str]) -> None:
        """It ends a moment after the last stream, however that ended."""
        stream = link.stream(reply, timeout=Timeout(idle=0.3 * SCALE))
        assert "chanstream-poller" in started
        assert (list(stream)[-1].error is None) == (stream.state == "complete")
        assert within(PROMPT, lambda: ours() == [])

    def test_again_and_again(self, link: Link) -> None:
        """Streams that come just when it is about to end have their turns all the same."""
        client = link.client(link.serve(Reply("one two", pace=0.001)))
        for number in range(20):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            threading.Event().wait(0.015 + number * 0.0005)  # it lingers for 20 ms

    def test_no_thread_can_be_started(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started the call says so, and its connection and everything else are free."""
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "chanstream-poller":
                raise RuntimeError("can't start new thread")
            start(thread)

        server = link.serve(SILENT, SILENT, "one two")
        client = link.client(server)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    client.chat_completion_stream(REQUEST)
                assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"


def never(*_: object) -> Any:
    """Raise a fault that nobody expects."""
    raise ZeroDivisionError("a fault of the test")


def break_step(
    patch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    is_faulty: Callable[[Any], bool] = lambda _: True,
    where: Callable[[], bool] | None = None,
) -> None:
    """Let a method do its work and raise then, in the poller's thread (or elsewhere), if its object is a faulty one."""
    is_here = where or in_the_poller
    sound = getattr(kind, name)

    def step(self: Any, *args: Any) -> Any:
        result = sound(self, *args)
        return never() if is_here() and is_faulty(self) else result

    patch.setattr(kind, name, step)


def has_length(line: Line) -> bool:
    """Return whether a connection is that of the faulty stream: its body has a length, the others have chunks."""
    return line.framing != "chunked"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the levels of what was logged."""
    return [record.levelname for record in caplog.records]


AMID = {
    "reading": (Line, "read", has_length),
    "body": (OfLength, "feed", lambda body: True),
    "machine": (StreamMachine, "feed", lambda machine: machine._n == 2),
}
AT_THE_END = {
    "giving back": (Line, "give_back", has_length),
    "closing": (Line, "close", has_length),
}


class TestAFaultOfOneStream:
    def among_others(self, link: Link) -> CompletionStream:
        """Return a stream that is about to fail, after those beside it have come to their good ends."""
        kinds: list[Any] = ["chunked", "content-length", "chunked"]
        client = link.client(link.serve(*[Reply("one two three", pace=0.1, framing=kind) for kind in kinds]))
        one, faulty, other = (client.chat_completion_stream(attrs.evolve(REQUEST, n=n)) for n in (1, 2, 1))
        assert [one.collect().text, other.collect().text] == ["one two three"] * 2
        return faulty

    @pytest.mark.parametrize("fault", AMID.values(), ids=AMID)
    def test_ends_that_stream_alone(
        self, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any
    ) -> None:
        """Whatever goes wrong in a stream ends that stream alone, in band, and is logged."""
        break_step(monkeypatch, *fault)
        faulty = self.among_others(link)
        error = list(faulty)[-1].error
        assert type(error) is StreamError
        assert "a fault of the test" in str(error)
        assert faulty.state == "failed"
        assert logged(caplog) == ["ERROR"]
        assert caplog.records[0].exc_info is not None

    @pytest.mark.parametrize("fault", AT_THE_END.values(), ids=AT_THE_END)
    def test_at_its_end(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any
    ) -> None:
        """What goes wrong after its last chunk does so alone too: it is logged, and the consumer's loop ends."""
        break_step(monkeypatch, *fault)
        faulty = self.among_others(plain)
        assert within(1, lambda: faulty.closed)
        assert list(faulty)[-1].is_last_chunk
        assert within(1, lambda: logged(caplog) == ["ERROR"])  # right after the channel was closed

    def test_when_it_goes_on(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What goes wrong when a full channel has room again does so alone, too, whichever thread sees that first."""
        client = plain.client(plain.serve(FLOOD))
        faulty, other = full(client), full(client)
        break_step(monkeypatch, Flow, "resume", lambda flow: flow._pipe is faulty._pipe, where=lambda: True)
        assert type(list(faulty)[-1].error) is StreamError
        assert texts(other) == "".join(WORDS)
        assert logged(caplog) == ["ERROR"]

    def test_that_cannot_be_watched(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """So it is with a socket that the system will not watch."""
        watch = Epoll.watch

        def refuse(self: Any, descriptor: int, owner: Any, events: int) -> None:
            if owner and has_length(owner._line):
                raise OSError(errno.ENOSPC, "the system watches no more")
            watch(self, descriptor, owner, events)

        monkeypatch.setattr(Epoll, "watch", refuse)
        assert type(list(self.among_others(plain))[-1].error) is StreamError
        assert logged(caplog) == ["ERROR"]

    def test_of_who_is_told(self, plain: Link, caplog: pytest.LogCaptureFixture) -> None:
        """A waiter that raises, though it must not, costs the stream that it waits for, and no other."""
        client = plain.client(plain.serve(Reply("one two three", pace=0.1)))
        faulty, other = client.chat_completion_stream(REQUEST), client.chat_completion_stream(REQUEST)
        faulty._pipe.add_waiter(lambda: never() if in_the_poller() else None)
        assert other.collect().text == "one two three"
        assert within(1, lambda: faulty.closed)
        assert type(list(faulty)[-1].error) is StreamError
        assert "ERROR" in logged(caplog)


def called() -> bool:
    """Give all streams of the poller a turn."""
    with poller._the_poller._lock:
        for stream in poller._the_poller._streams:
            poller._the_poller.call(stream)
    return True


class TestAFaultOfThePoller:
    @pytest.mark.parametrize(("kind", "name"), [(Epoll, "wait"), (_Poller, "_turn")], ids=["wait", "turn"])
    def test_ends_all_its_streams(
        self, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type, name: str
    ) -> None:
        """It ends every stream with an error, is logged once, and the next stream has a new thread."""
        server = link.serve(*[FLOOD] * 2, *[SILENT] * 8, "one two")
        client = link.client(server)
        streams = [full(client), full(client), *(client.chat_completion_stream(REQUEST) for _ in range(8))]
        (old,) = (thread for thread in threading.enumerate() if thread.name == "chanstream-poller")
        with monkeypatch.context() as patch:
            break_step(patch, kind, name)
            assert within(5, lambda: called() and not old.is_alive())
            errors = [list(stream)[-1].error for stream in streams]
        assert [type(error) for error in errors] == [StreamError] * 10
        assert all("a fault of the test" in str(error) for error in errors)
        assert [record.getMessage() for record in caplog.records] == ["the poller failed"]
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"

    def test_that_stays(self, plain: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """A thread that fails whenever it is started leaves no stream that hangs, nor anything else."""
        client = plain.client(plain.serve(SILENT))
        break_step(monkeypatch, _Poller, "_turn")
        for _ in range(20):
            stream = client.chat_completion_stream(REQUEST)
            assert within(5, lambda s=stream: called() and s.closed)
            assert type(list(stream)[-1].error) is StreamError
        assert logged(caplog) == ["ERROR"] * 20

    def test_and_of_its_streams(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where, on top of that, its streams cannot be ended in good order, their consumers are free all the same."""
        client = plain.client(plain.serve(SILENT))
        streams = [client.chat_completion_stream(REQUEST) for _ in range(5)]
        with monkeypatch.context() as patch:
            break_step(patch, Line, "cancel")
            break_step(patch, Line, "close")
            break_step(patch, _Poller, "_turn")
            assert within(5, lambda: called() and all(stream.closed for stream in streams))
        assert [type(list(stream)[-1].error) for stream in streams] == [StreamError] * 5
        assert "ERROR" in logged(caplog)


class TestPauses:
    @pytest.mark.parametrize("buffer", [1, 4])
    def test_a_full_channel_holds_nobody_up(self, link: Link, buffer: int) -> None:
        """Streams whose channels are full delay no other; what they wait with comes whole and in order later."""
        server = link.serve(FLOOD)
        client = link.client(server)
        floods = [full(client, buffer) for _ in range(3)]
        with wired(link) as (stream, peer):
            delays = []
            for number in range(50):
                sent = time.monotonic()
                peer.sendall(event(f"{number}"))
                assert stream.get(timeout=5).text == f"{number}"
                delays.append(time.monotonic() - sent)
            assert statistics.median(delays) < USUALLY / 5
            assert sorted(delays)[-3] < PROMPT
        assert [flood.qsize() for flood in floods] == [buffer] * 3
        assert [texts(flood) for flood in floods] == ["".join(WORDS)] * 3

    def test_it_is_not_watched(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full channel costs no work, though there are bytes to be read for it."""
        with full(link.client(link.serve(FLOOD))):
            turns: list[Any] = []
            turn = poller._Poller._turn
            monkeypatch.setattr(poller._Poller, "_turn", lambda *args: turns.append(args) or turn(*args))
            threading.Event().wait(0.3)
            assert len(turns) < 5

    @pytest.mark.parametrize("buffer", [1, 3, 1024])
    def test_it_goes_on_without_loss(self, link: Link, buffer: int) -> None:
        """Whoever takes chunks now and then, one or many, gets all of them in order."""
        server = link.serve(FLOOD)
        stream = link.client(server).chat_completion_stream(REQUEST, buffer=buffer)
        chance = random.Random(buffer)
        got: list[str] = []
        while len(got) < len(WORDS):
            if chance.random() < 0.01:
                threading.Event().wait(0.001)
            many = chance.random() < 0.5
            got += [chunk.text for chunk in (stream.get_many(chance.randrange(1, 9)) if many else [stream.get()])]
        assert got[: len(WORDS)] == WORDS
        assert stream.get().is_last_chunk if len(got) == len(WORDS) else got[-1] == ""

    @pytest.mark.parametrize("way", ["close", "cancel", "drop", "idle", "total"])
    def test_its_end(self, link: Link, way: str) -> None:
        """A stream that waits for room can be ended as any other; the idle clock does not run for it."""
        server = link.serve(FLOOD)
        context = Context()
        timeout = {"idle": Timeout(idle=0.3 * SCALE), "total": Timeout(total=0.3 * SCALE)}.get(way)
        stream = full(link.client(server), context=context, timeout=timeout)
        if way == "drop":
            del stream
        elif way == "cancel":
            context.cancel()
        elif way == "total":
            assert within(0.3 * SCALE + PROMPT, lambda: stream.state == "failed")
        elif way == "idle":
            assert not within(0.8 * SCALE, lambda: stream.state != "streaming")
            assert texts(stream) == "".join(WORDS)
        else:
            stream.close()
        assert within(PROMPT, lambda: producers() == 0)


class TestTLSRecords:
    EVENTS = b"".join(event(f"{number} ") for number in range(180))
    TEXT = "".join(f"{number} " for number in range(180))

    @pytest.mark.parametrize("buffer", [1, 1024])
    @pytest.mark.parametrize("with_the_head", [True, False], ids=["with the head", "after it"])
    def test_many_events_and_then_silence(self, link: Link, with_the_head: bool, buffer: int) -> None:
        """All events of one record, which no selector sees once its beginning was read, come at once."""
        assert 14_000 < len(self.EVENTS + Wire.HEAD) <= 16_384  # one record, and more than is read ahead
        with wired(link, self.EVENTS if with_the_head else b"", buffer=buffer) as (stream, peer):
            if not with_the_head:
                peer.sendall(self.EVENTS)
            begun = time.monotonic()
            assert "".join(stream.get(timeout=5).text for _ in range(180)) == self.TEXT
            assert time.monotonic() - begun < 4 * PROMPT
            assert stream.qsize() == 0

    def test_many_records(self, link: Link) -> None:
        """So do those of many records at once."""
        with wired(link) as (stream, peer):
            peer.sendall(self.EVENTS * 20)
            assert "".join(stream.get(timeout=5).text for _ in range(180 * 20)) == self.TEXT * 20


class Scripted:
    """A socket that does not let itself be read before something was written, as in a renegotiation.

    Python's own TLS cannot be told to begin one; what it says when the other side does is all that counts here.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.errors: list[Exception] = []

    def recv(self, size: int) -> bytes:
        """Raise the next error of the script, or read."""
        if self.errors:
            raise self.errors.pop(0)
        return self._sock.recv(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class TestRenegotiation:
    def test_it_watches_for_writing(self, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where TLS has to write first, the socket is watched for that, and for reading again when it has."""
        watched: list[int] = []
        watch = Epoll.watch

        def note(self: Any, descriptor: int, owner: Any, events: int) -> None:
            watched.extend([events] if owner else [])
            watch(self, descriptor, owner, events)

        monkeypatch.setattr(Epoll, "watch", note)
        with wired(link) as (stream, peer):
            assert within(5, lambda: len(watched) == 1)
            (live,) = poller._the_poller._streams
            live._line._sock = scripted = Scripted(live._line._sock)
            scripted.errors += [ssl.SSLWantWriteError(), ssl.SSLWantWriteError(), ssl.SSLWantReadError()]
            peer.sendall(event("one"))
            assert within(5, lambda: stream.qsize() == 1)  # nobody waits for it, who would watch it instead
            assert stream.get().text == "one"
            assert within(5, lambda: watched[-1] == READ)
            # However often: watching anew for the same is no change.
            changes = [kind for kind, _ in itertools.groupby(watched)]
            assert changes == [READ, WRITE, READ]
            peer.sendall(event("two"))
            assert stream.get(timeout=5).text == "two"


class TestClocks:
    @pytest.mark.parametrize(
        ("clock", "reply"),
        [
            ("idle", Reply("one two", stall_after=1)),
            ("idle", Reply("one two", stall_after=1, pings=0.02)),
            ("first_chunk", Reply(stall_after=0)),
            ("total", Reply(["word "] * 1000, pace=0.05)),
        ],
        ids=["idle", "idle with pings", "first_chunk", "total"],
    )
    def test_of_50_streams(self, link: Link, clock: str, reply: Reply) -> None:
        """50 streams that run out of time do so each in its own time."""
        seconds = 0.3 * SCALE
        client = link.client(link.serve(reply), timeout=Timeout(**{clock: seconds}))
        begun, streams = [], []
        for _ in range(50):
            begun.append(time.monotonic())
            streams.append(client.chat_completion_stream(REQUEST))
        for start, stream in zip(begun, streams, strict=True):
            left = at_most(seconds, start, 2 * PROMPT) + start - time.monotonic()
            assert within(left, lambda s=stream: s.state == "failed")
        errors = [list(stream)[-1].error for stream in streams]
        assert {(type(error), getattr(error, "clock", None)) for error in errors} == {(APITimeoutError, clock)}

    def test_of_one_among_50(self, link: Link) -> None:
        """A clock that runs out in one stream says nothing in the others."""
        client = link.client(link.serve(Reply("one two three", pace=0.1)))
        streams = [client.chat_completion_stream(REQUEST) for _ in range(49)]
        short = client.chat_completion_stream(REQUEST, timeout=Timeout(idle=0.03))
        assert isinstance(list(short)[-1].error, APITimeoutError)
        assert [stream.collect().text for stream in streams] == ["one two three"] * 49


@pytest.mark.slow
class TestStorms:
    def test_200_cancels_from_20_threads(self, link: Link) -> None:
        """200 streams that are cancelled at random moments by many threads are all over, and nothing else is hurt."""
        chance = random.Random(7)
        server = link.serve(*[Reply(WORDS[:40], pace=0.01)] * 200, "after the storm")
        client = link.client(server)
        contexts = [Context() for _ in range(200)]
        streams = [
            client.chat_completion_stream(REQUEST, context=context, buffer=chance.choice([1, 1024]))
            for context in contexts
        ]
        ways = [
            chance.choice([stream.close, context.cancel]) for stream, context in zip(streams, contexts, strict=True)
        ]
        storm = [*ways, *ways]  # each twice
        chance.shuffle(storm)
        with ThreadPoolExecutor(20) as pool:
            readers = [pool.submit(texts, stream) for stream in streams[:4]]
            done = [
                pool.submit(lambda c=cancel: (threading.Event().wait(chance.random() / 10), c())) for cancel in storm
            ]
            assert all(future.exception() is None for future in [*done, *readers])
        assert within(5, lambda: all(stream.closed for stream in streams))
        assert all("".join(WORDS).startswith(reader.result()) for reader in readers)
        assert {stream.state for stream in streams} <= {"cancelled", "complete"}
        assert client.chat_completion_stream(REQUEST).collect().text == "after the storm"

    def test_while_others_open(self, link: Link) -> None:
        """Streams that open while others are cancelled get their own answers."""
        server = link.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"], pace=0.002))
        client = link.client(server)

        def converse(number: int) -> str:
            text = " ".join(f"{number}-{word}" for word in range(5))
            stream = client.chat_completion_stream(asking(text))
            if number % 2:
                stream.get()
                stream.close()
                return text
            return stream.collect().text

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(converse, range(200))) == [
                " ".join(f"{number}-{word}" for word in range(5)) for number in range(200)
            ]


class TestFork:
    pytestmark = forking

    def test_while_streams_run(self, link: Link) -> None:
        """A child has a poller of its own, and the parent's streams go on in the parent's."""
        words = " ".join(map(str, range(60)))
        server = link.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"], pace=0.05))
        client = link.client(server)
        streams = [client.chat_completion_stream(asking(words)) for _ in range(20)]

        def child() -> None:
            assert ours() == []
            mine = [client.chat_completion_stream(asking(f"child {number} says it")) for number in range(5)]
            assert ours() == ["chanstream-poller", "chanstream-timers"]
            assert [stream.collect().text for stream in mine] == [f"child {number} says it" for number in range(5)]
            streams.clear()  # the child's copies
            assert within(1, lambda: ours() == [])

        assert [forked(child) for _ in range(3)] == [0] * 3
        assert [stream.collect().text for stream in streams] == [words] * 20

    def test_amid_a_turn(self, link: Link) -> None:
        """A child that is forked in the middle of the poller's work, with its lock held, can stream."""
        client = link.client(link.serve(Reply(WORDS[:200], pace=0.002), "from the child"))
        stream = client.chat_completion_stream(REQUEST)
        with poller._the_poller._lock:
            status = forked(lambda: client.chat_completion_stream(REQUEST).collect())
        assert status == 0
        assert stream.collect().text == "".join(WORDS[:200])


class TestTheEndOfTheProcess:
    @pytest.mark.parametrize(
        ("reply", "end"),
        [(SILENT, "pass"), (FLOOD, "sys.exit()"), (Reply(WORDS, pace=0.001), "streams[8].close(); del streams[9:15]")],
        ids=["silent", "full", "busy"],
    )
    def test_interpreter_exit(self, link: Link, reply: Reply, end: str) -> None:
        """A program that ends amid 20 streams, some of which are being waited for, ends at once without a word."""
        server = link.serve(reply)
        program = """
            import sys, threading, time
            from chanstream import ChatCompletionRequest, Client, UserMessage
            client = Client(api_key="k", base_url=sys.argv[1], dialect="openai", engine="poller", buffer=4)
            request = ChatCompletionRequest("m", [UserMessage("hi")])
            streams = [client.chat_completion_stream(request) for _ in range(20)]
            for stream in streams[:5]:
                threading.Thread(target=list, args=[stream], daemon=True).start()
            streams[7].get()
            print(time.monotonic())
            exec(sys.argv[2])
        """
        ended_at = float(run(program, server.url, end))
        assert time.monotonic() - ended_at < 10 * PROMPT
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)


class TestIntruders:
    """A signal handler or a finalizer closes a stream in the middle of a step of the poller's, at each place of it."""

    @pytest.fixture
    def turn(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """The function that gives the poller a turn, in this thread: it has none of its own here."""
        mine = _Poller()
        start = threading.Thread.start
        monkeypatch.setattr(poller, "_the_poller", mine)
        monkeypatch.setattr(threading.Thread, "start", lambda t: t.name == "chanstream-poller" or start(t))

        def turn() -> None:
            mine._turn()
            hand_over.let_go()  # as the poller's own thread does when it waits next

        return turn

    @pytest.mark.parametrize("way", ["close", "drop"])
    def test_in_a_turn(self, plain: Link, turn: Callable[[], None], way: str) -> None:
        """The intruder's stream is over for good, and the other one of the turn loses nothing."""
        with wired(plain) as (other, other_peer), Wire(None) as wire:
            live = poller._the_poller._streams
            (other_live,) = live
            client = plain.client(wire.url)
            for number, intrusion in enumerate(intrusions()):
                streams = [client.chat_completion_stream(REQUEST)]
                pipe = streams[0]._pipe
                peer = wire.accepted.get(timeout=5)
                (victim,) = live - {other_live}
                for sock in (peer, other_peer):
                    sock.sendall(event(f"{number}"))
                for line in (victim._line, other_live._line):
                    assert select.select([line.fileno()], [], [], 5)[0]
                with intrusion(streams[0].close if way == "close" else streams.clear):
                    turn()
                while victim in live:
                    turn()
                assert pipe.closed
                assert other.get_many(timeout=0)[0].text == f"{number}"
                with peer, contextlib.suppress(ConnectionError):
                    assert peer.recv(1) == b""
            other.close()
            while live:
                turn()
            turn()  # the last one, after a while without any stream

    def test_in_the_first_turn(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A context that is cancelled while its stream starts ends that stream."""
        start = poller.start
        place: list[Intrusion] = []
        context = Context()

        def intruded(call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[Any]) -> None:
            with place[0](context.cancel):
                start(call, answer, machine, pipe)

        monkeypatch.setattr(poller, "start", intruded)
        server = plain.serve(SILENT)
        client = plain.client(server)
        for intrusion in intrusions():
            place[:] = [intrusion]
            context = Context()
            stream = client.chat_completion_stream(REQUEST, context=context)
            error = list(stream)[-1].error
            assert isinstance(error, StreamCancelledError)
            assert within(PROMPT, lambda s=stream: s.closed)
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)


class TestFairness:
    def test_a_flood_starves_nobody(self, link: Link) -> None:
        """50 paced streams keep their pace beside one that never stops and whose consumer never waits."""
        stop = threading.Event()
        block = b"".join(event(word) for word in WORDS[:200])

        def pour(peer: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    peer.sendall(block)

        with wired(link) as (flood, peer), ThreadPoolExecutor(3) as pool:
            pool.submit(pour, peer)
            drained = pool.submit(sum, (1 for _ in flood))
            assert within(5, lambda: flood.statistics().taken > 1000)
            client = link.client(link.serve(Reply(WORDS[:25], pace=0.02)))
            begun = time.monotonic()
            paced = [client.chat_completion_stream(REQUEST) for _ in range(50)]
            assert [stream.collect().text for stream in paced] == ["".join(WORDS[:25])] * 50
            took = time.monotonic() - begun
            assert flood.state == "streaming"
            flood.close()
            stop.set()
            assert drained.result(5) > 1000
        assert took < 3 * SCALE

"""Streams that their consumers read themselves, each in its own thread, while they wait for the next chunk."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import select
import signal
import socket
import statistics
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from chanstream import (
    APITimeoutError,
    CompletionChunk,
    CompletionStream,
    Context,
    StreamCancelledError,
    StreamError,
    StreamInterruptedError,
    Timeout,
    merge,
)
from chanstream import select as select_first
from chanstream.calls import Engine
from chanstream.engines import poller
from chanstream.engines.polled import LEASE_SECONDS
from chanstream.engines.poller import _Poller
from chanstream.engines.watching import Epoll
from chanstream.testing import Reply
from tests.channel.test_merge import press_ctrl_c
from tests.concurrency import Intrusion, intrusions, spawn
from tests.conftest import PROMPT, REQUEST, SCALE, USUALLY, Link, within
from tests.contract.test_13_threads import asking
from tests.engines.conftest import Still
from tests.engines.test_poller import SILENT, Wire, break_step, called, event, texts, wired

T = TypeVar("T")

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not hasattr(select, "epoll"), reason="without epoll the poller's thread reads all streams"),
]

FEW, MANY = 1, 12  # streams at a time: sockets are leased where there are 8 or more
END = event("", "stop") + b"data: [DONE]\n\n"


@pytest.fixture
def engine() -> Engine:
    """The engine of the clients."""
    return "poller"


@pytest.fixture(params=[FEW, MANY], ids=["alone", "one of 12"])
def company(request: pytest.FixtureRequest, plain: Link) -> Iterator[int]:
    """How many streams there are with the test's own, of which all others are silent."""
    client = plain.client(plain.serve(SILENT))
    others = [client.chat_completion_stream(REQUEST) for _ in range(request.param - 1)]
    assert within(5, lambda: all(other.qsize() == 2 for other in others))
    yield int(request.param)
    for other in others:
        assert [other.get(timeout=5).text for _ in range(2)] == ["one", " two"]
        other.close()


def named(name: str, function: Callable[..., T], *args: Any) -> T:
    """Call a function, as a thread of that name."""
    threading.current_thread().name = name
    return function(*args)


def is_waited_for(stream: CompletionStream, taken: int = 0) -> bool:
    """Return whether, after so many chunks were taken, a consumer waits for the socket itself, at last."""
    return within(5, lambda: stream.statistics().taken == taken and stream._pipe.pulled)


def leave(stream: CompletionStream, peer: socket.socket) -> None:
    """Have a chunk taken, by a consumer that waits for it itself and comes no more."""
    taken = stream.statistics().taken
    consumer = spawn(stream.get)
    assert is_waited_for(stream, taken)
    peer.sendall(event("the first"))
    assert consumer.result(5).text == "the first"


@contextlib.contextmanager
def many_wired(link: Link, count: int, **settings: Any) -> Iterator[list[tuple[CompletionStream, socket.socket]]]:
    """Give streams, each with the server's end of its connection."""
    with Wire(link.tls) as wire, contextlib.ExitStack() as exits:
        client = link.client(wire.url)
        pairs = []
        for _ in range(count):
            stream = exits.enter_context(client.chat_completion_stream(REQUEST, **settings))
            pairs.append((stream, exits.enter_context(wire.accepted.get(timeout=5))))
        yield pairs


class TestWhoReads:
    @pytest.mark.parametrize("count", [FEW, MANY])
    def test_who_waits(self, link: Link, read_by: list[str], count: int) -> None:
        """Who waits for a stream reads it, and nobody else; and the text is whole."""
        with many_wired(link, count) as pairs:
            read_by.clear()  # the first turn of each was that of who opened it
            consumers = [spawn(named, f"consumer {number}", texts, stream) for number, (stream, _) in enumerate(pairs)]
            for taken, words in enumerate([event("one "), event("two "), event("three"), END]):
                for stream, peer in pairs:
                    assert is_waited_for(stream, taken)
                    peer.sendall(words)
            for stream, peer in pairs:
                assert is_waited_for(stream, 4)
                peer.close()
            assert [consumer.result(5) for consumer in consumers] == ["one two three"] * count
        assert set(read_by) == {f"consumer {number}" for number in range(count)}

    @pytest.mark.parametrize("count", [FEW, MANY])
    def test_who_stays_away(self, link: Link, read_by: list[str], count: int) -> None:
        """Of a stream whose consumer stays away the poller reads what comes, in the moment in which it comes."""
        with many_wired(link, count) as pairs:
            for stream, peer in pairs:
                leave(stream, peer)
            assert within(PROMPT, lambda: not any(live._leased for live in poller._the_poller._streams))
            read_by.clear()
            sent = []
            for number in range(3):
                threading.Event().wait(0.1)
                sent.append(time.monotonic())
                for _, peer in pairs:
                    peer.sendall(event(f"{number}"))
                assert within(PROMPT, lambda n=number: all(stream.qsize() == n + 1 for stream, _ in pairs))
            threading.Event().wait(0.3)
            for stream, _ in pairs:
                chunks = stream.get_many()
                assert [chunk.text for chunk in chunks] == ["0", "1", "2"]
                for number in (1, 2):
                    late = chunks[number].chunk_latency - (sent[number] - sent[number - 1])
                    assert abs(late) < 0.8 * PROMPT
        assert set(read_by) == {"chanstream-poller"}

    def test_beyond_so_many(self, link: Link, read_by: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Streams that begin while there are very many others are read by the poller alone."""
        monkeypatch.setattr(poller, "_MANY", 2)
        with many_wired(link, 4) as pairs:
            read_by.clear()
            for stream, peer in pairs[2:]:
                consumer = spawn(stream.get)
                assert within(5, lambda s=stream: s.statistics().waiting_getters == 1)
                peer.sendall(event("one"))
                assert consumer.result(5).text == "one"
            assert set(read_by) == {"chanstream-poller"}
            leave(*pairs[0])

    @pytest.mark.parametrize("count", [FEW, MANY])
    def test_right_after_it_left(self, link: Link, count: int) -> None:
        """What comes right after the consumer has left is in the channel in a moment, and its latency says so."""
        with many_wired(link, count) as pairs:
            for stream, peer in pairs:
                leave(stream, peer)
                peer.sendall(event("the next"))
                assert within(PROMPT, lambda s=stream: s.qsize() == 1)
            threading.Event().wait(0.2)
            for stream, _ in pairs:
                assert stream.get().chunk_latency < 2 * PROMPT

    def test_clocks_after_a_pause(self, link: Link, company: int, call: Callable[..., Any]) -> None:
        """The idle clock, which stands while the channel is full, runs again for a consumer that waits itself."""
        with wired(link, buffer=2, timeout=Timeout(idle=0.3)) as (stream, peer):
            peer.sendall(b"".join(event(f"{number}") for number in range(6)))
            assert within(5, lambda: stream.statistics().waiting_putters == 1)
            assert not within(0.4, lambda: stream.state != "streaming")
            assert [call(stream.get).text for _ in range(6)] == [f"{number}" for number in range(6)]
            begun = time.monotonic()
            assert isinstance(call(stream.get).error, APITimeoutError)
            assert time.monotonic() - begun < 0.3 + 4 * PROMPT

    def test_a_burst_that_fills_the_channel(self, link: Link, company: int, call: Callable[..., Any]) -> None:
        """A consumer that reads more itself than the channel has room for gets all of it, in order."""
        words = [f"{number}" for number in range(500)]
        with wired(link, buffer=1) as (stream, peer):
            sender = spawn(lambda: is_waited_for(stream) and peer.sendall(b"".join(map(event, words))))
            assert call(lambda: [stream.get(timeout=5).text for _ in words]) == words
            assert sender.result(5) is None
            peer.sendall(event("the last"))
            assert call(stream.get, True, 5).text == "the last"


class TestSeveralConsumers:
    @pytest.mark.parametrize("consumers", [2, 5])
    def test_each_event_goes_to_one(self, link: Link, company: int, consumers: int) -> None:
        """Of several that wait for a stream each event wakes one, at once, whoever of them reads; all are counted."""
        with wired(link) as (stream, peer):
            waiting = {spawn(stream.get) for _ in range(consumers)}
            for left in range(consumers, 0, -1):
                assert within(5, lambda n=left: stream.statistics().waiting_getters == n)
                peer.sendall(event(f"{left}"))
                assert within(PROMPT, lambda: any(consumer.done() for consumer in waiting))
                (done,) = (consumer for consumer in waiting if consumer.done())
                assert done.result().text == f"{left}"
                waiting.remove(done)
            assert stream.statistics().waiting_getters == 0

    def test_who_reads_gives_up(self, link: Link, company: int) -> None:
        """When the one that reads has waited long enough the others get the next events as before."""
        with wired(link) as (stream, peer):
            reader = spawn(stream.get, True, 0.3 * SCALE)
            assert is_waited_for(stream)
            others = [spawn(stream.get) for _ in range(2)]
            assert within(5, lambda: stream.statistics().waiting_getters == 3)
            with pytest.raises(queue.Empty):
                reader.result(5 * SCALE)
            for done in (1, 2):
                peer.sendall(event("an event"))
                assert within(PROMPT, lambda n=done: sum(other.done() for other in others) == n)

    def test_they_all_end(self, link: Link, company: int) -> None:
        """A stream that ends is over for all who wait for it, at once."""
        with wired(link) as (stream, peer):
            consumers = [spawn(texts, stream) for _ in range(5)]
            assert within(5, lambda: stream.statistics().waiting_getters == 5)
            peer.sendall(event("all of it") + END)
            peer.close()
            assert within(4 * PROMPT, lambda: all(consumer.done() for consumer in consumers))
            assert "all of it" in [consumer.result() for consumer in consumers]
            assert stream.state in ("complete", "cancelled")  # the latter: one that was done closed it for all


class TestTimeouts:
    def test_in_time(self, link: Link, company: int, call: Callable[..., Any]) -> None:
        """A get that has waited long enough says so in time, and the next event comes all the same."""

        def give_up(seconds: float) -> float:
            begun = time.monotonic()
            with pytest.raises(queue.Empty):
                stream.get(timeout=seconds)
            return time.monotonic() - begun

        with wired(link) as (stream, peer):
            for number, seconds in enumerate([0.0, 0.01, 0.15]):
                assert seconds <= call(give_up, seconds) + 0.001 < seconds + 4 * PROMPT
                peer.sendall(event(f"{number}"))
                assert call(stream.get, True, 5).text == f"{number}"

    def test_without_waiting(self, link: Link, company: int, call: Callable[..., Any], read_by: list[str]) -> None:
        """A get that is told not to wait never does, whether the stream is read by its consumer or not."""

        def ask_often() -> None:
            for _ in range(100):
                with pytest.raises(queue.Empty):
                    stream.get(block=False)

        with wired(link) as (stream, peer):
            read_by.clear()
            call(ask_often)
            assert read_by == []
            leave(stream, peer)
            call(ask_often)
            reader = spawn(stream.get)
            assert is_waited_for(stream, 1)
            call(ask_often)
            peer.sendall(event("an event"))
            assert reader.result(5).text == "an event"


def reset(peer: socket.socket) -> None:
    """Break a connection off."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def finish(peer: socket.socket) -> None:
    """Bring an answer to its good end."""
    peer.sendall(END)
    peer.close()


ENDS: dict[str, tuple[Callable[[CompletionStream, socket.socket, Context], object], type | None, str]] = {
    "close": (lambda stream, peer, context: stream.close(), None, "cancelled"),
    "cancel": (lambda stream, peer, context: context.cancel(), StreamCancelledError, "cancelled"),
    "cut": (lambda stream, peer, context: peer.close(), StreamError, "failed"),
    "reset": (lambda stream, peer, context: reset(peer), StreamError, "failed"),
    "end": (lambda stream, peer, context: finish(peer), None, "complete"),
}
CLOCK = 0.2 * SCALE
"""Seconds; the total has to be enough for TLS to shake hands, on a busy machine too."""

CLOCKS: dict[str, dict[str, Any]] = {
    "deadline": {},
    "idle": {"timeout": Timeout(idle=CLOCK)},
    "total": {"timeout": Timeout(total=CLOCK)},
}


class TestEnds:
    @pytest.mark.parametrize("way", ENDS)
    def test_of_one_that_is_waited_for(self, link: Link, company: int, call: Callable[..., Any], way: str) -> None:
        """However a stream ends, who waits for it itself is free at once, with what ended it."""
        act, kind, state = ENDS[way]
        context = Context()

        def end() -> float:
            assert is_waited_for(stream)
            begun = time.monotonic()
            act(stream, peer, context)
            return begun

        def consume() -> tuple[list[CompletionChunk], float]:
            return list(stream), time.monotonic()

        with wired(link, context=context) as (stream, peer):
            ending = spawn(end)
            chunks, ended = call(consume)
            assert ended - ending.result(5) < 4 * PROMPT
            assert stream.state == state
            errors = [chunk.error for chunk in chunks if chunk.error is not None]
            assert [isinstance(error, kind) for error in errors] == [True] if kind else errors == []
            assert within(PROMPT, lambda: len(poller._the_poller._streams) == company - 1)
            peer.close()

    @pytest.mark.parametrize("clock", CLOCKS)
    def test_a_clock_runs_out(self, link: Link, company: int, call: Callable[..., Any], clock: str) -> None:
        """So it is when a clock runs out, in its time."""

        def consume() -> tuple[list[CompletionChunk], float]:
            return list(stream), time.monotonic()

        begun = time.monotonic()
        context = Context(timeout=CLOCK) if clock == "deadline" else Context()
        with wired(link, event("one"), context=context, **CLOCKS[clock]) as (stream, _):
            opened = time.monotonic()
            chunks, ended = call(consume)
            assert begun + CLOCK <= ended + 0.001 < opened + CLOCK + 4 * PROMPT
            assert [chunk.text for chunk in chunks] == ["one", ""]
            assert isinstance(chunks[-1].error, APITimeoutError)
            assert stream.state == "failed"
            assert within(PROMPT, lambda: len(poller._the_poller._streams) == company - 1)

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_connections_are_used_again(self, link: Link, company: int, call: Callable[..., Any], framing: Any) -> None:
        """After a good end of a stream that its consumer has read the next one finds the connection."""
        server = link.serve(Reply("one two", pace=0.005, framing=framing))
        client = link.client(server)
        for _ in range(5):
            assert call(texts, client.chat_completion_stream(REQUEST)) == "one two"
        assert server.connections == 1

    def test_short_answers_in_a_row(self, link: Link) -> None:
        """Beside many streams, answers in a row end as soon as alone, and have one connection."""

        def ask() -> float:
            begun = time.monotonic()
            stream = client.chat_completion_stream(REQUEST)
            assert stream.collect().text == "one two three"
            assert stream.closed
            return time.monotonic() - begun

        server = link.serve(Reply("one two three", pace=0.001))
        client = link.client(server)

        def cost_of_company() -> float:
            alone = [ask() for _ in range(30)]
            with many_wired(link, MANY):
                beside = [ask() for _ in range(30)]
                assert len(poller._the_poller._streams) == MANY
            return statistics.median(beside) - statistics.median(alone)

        # A machine that is busier in the second half is so once; a scan of all streams costs each time.
        assert any(cost_of_company() < USUALLY / 10 for _ in range(3))
        assert server.connections == 1


async def first_of(stream: CompletionStream) -> CompletionChunk:
    """Return the next chunk, awaited."""
    chunks = stream.__aiter__()
    async with contextlib.aclosing(chunks):  # type: ignore[type-var]
        return await anext(chunks)


def by_merge(stream: CompletionStream) -> CompletionChunk:
    """Return the next chunk, through a merged channel."""
    with merge([stream]) as merged:
        return merged.get(timeout=5)[1]


OTHER_WAYS: dict[str, Callable[[CompletionStream], CompletionChunk | Any]] = {
    "select": lambda stream: select_first(stream, timeout=5)[1],
    "merge": by_merge,
    "async": lambda stream: asyncio.run(first_of(stream)),
}


class TestOtherWaysToWait:
    @pytest.mark.parametrize("way", OTHER_WAYS)
    def test_after_a_get(self, link: Link, company: int, way: str) -> None:
        """Who waits in another way, after a consumer that has read itself, has the next event at once."""
        with wired(link) as (stream, peer):
            leave(stream, peer)
            waiting = spawn(OTHER_WAYS[way], stream)
            assert within(5, lambda: stream._pipe.waiters)
            peer.sendall(event("the next"))
            assert within(PROMPT, waiting.done)
            assert waiting.result().text == "the next"

    @pytest.mark.parametrize("way", OTHER_WAYS)
    def test_beside_a_get(self, link: Link, company: int, way: str) -> None:
        """Who waits in another way while a consumer reads has one event of two, the consumer the other one."""
        with wired(link) as (stream, peer):
            get = spawn(stream.get)
            assert is_waited_for(stream)
            waiting = spawn(OTHER_WAYS[way], stream)
            assert within(5, lambda: stream._pipe.waiters)
            peer.sendall(event("an event"))
            assert within(PROMPT, lambda: get.done() or waiting.done())
            if way != "select" and (waiting.done() or get.exception()):  # it has left the stream, and so closed it
                return
            peer.sendall(event("an event"))
            assert within(PROMPT, lambda: get.done() and waiting.done())
            assert [future.result().text for future in (get, waiting)] == ["an event"] * 2


class TestCtrlC:
    def test_while_it_waits(self, link: Link, company: int) -> None:
        """Ctrl-C wakes who waits in the main thread at once; the stream goes on for the next get."""
        main = threading.get_ident()
        chance = random.Random(3)

        def press(taken: int) -> float:
            assert within(5, lambda: stream.statistics().taken == taken and stream.statistics().waiting_getters == 1)
            threading.Event().wait(chance.random() / 100)
            signal.pthread_kill(main, signal.SIGINT)
            return time.monotonic()

        with wired(link) as (stream, peer):
            for number in range(5):
                pressing = spawn(press, number)
                with pytest.raises(KeyboardInterrupt):
                    next(stream)
                assert time.monotonic() - pressing.result(5) < 4 * PROMPT
                assert stream.statistics().waiting_getters == 0
                peer.sendall(event(f"{number}"))
                assert stream.get(timeout=5).text == f"{number}"
            leave(stream, peer)


def arrived(stream: CompletionStream, still: Still) -> bool:
    """Return whether something arrives, and lies in the stream's socket."""
    (live,) = (live for live in still._streams if live._pipe is stream._pipe)
    return bool(select.select([live._descriptor], [], [], 5)[0])


def interrupted(pull: Callable[[float], bool], intrusion: Intrusion, act: Callable[[], object] = press_ctrl_c) -> str:
    """Pull with Ctrl-C in the middle, or another act; return where it came, if it did."""
    try:
        with intrusion(act):
            pull(time.monotonic() + 5)
    except KeyboardInterrupt as error:
        place = traceback.extract_tb(error.__traceback__)[-3]  # before the profiler and its act
        return f"{place.name}, line {place.lineno}"
    return "nowhere"


def taken_from(stream: CompletionStream) -> tuple[list[str], type | None]:
    """Return what two gets bring, and what is wrong then."""
    said: list[str] = []
    with contextlib.suppress(queue.Empty):
        while len(said) < 2:
            chunk = stream.get(timeout=0.5 * SCALE)
            if chunk.error is not None:
                return said, type(chunk.error)
            said.append(chunk.text)
        return said, None
    return said, queue.Empty


class TestIntruders:
    """What comes in the middle of a pull, at every place of it: Ctrl-C, or a signal handler that closes the stream."""

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("then", ["get", "poller"])
    def test_ctrl_c(self, link: Link, still: Still, then: str) -> None:
        """Ctrl-C loses nothing in silence: what comes is there for the next gets and the poller, or an error is."""
        wrong: list[object] = []
        ends = set()
        with Wire(link.tls) as wire:
            client = link.client(wire.url)
            for intrusion in intrusions():
                stream = client.chat_completion_stream(REQUEST)
                with wire.accepted.get(timeout=5) as peer, stream:
                    peer.sendall(event("one"))
                    assert arrived(stream, still)
                    assert stream._pipe.pull is not None
                    place = interrupted(stream._pipe.pull, intrusion)
                    with contextlib.suppress(OSError):  # it has ended
                        peer.sendall(event("two"))
                    if then == "poller" and not within(
                        0.2 * SCALE, lambda s=stream: still.turn() and (s.qsize() == 2 or s._pipe.ended)
                    ):
                        wrong.append((place, "nobody reads"))
                    said, end = taken_from(stream)
                    if (
                        end not in (None, StreamInterruptedError)
                        or said != ["one", "two"][: 2 if end is None else len(said)]
                    ):
                        wrong.append((place, said, end))
                    ends.add(end)
                if not within(0.2 * SCALE, still.has_nothing):
                    wrong.append((place, "it is left"))
                    still.free()
        assert wrong == []
        assert ends == {None, StreamInterruptedError}

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("comes", ["Ctrl-C", "a cancel"])
    def test_at_the_end(self, link: Link, still: Still, monkeypatch: pytest.MonkeyPatch, comes: str) -> None:
        """Where the stream ends in that pull, all that it said is there afterwards, or an error is; nothing is left."""
        monkeypatch.setattr("chanstream.engines.flow.DRAIN_SECONDS", 0.01)
        wrong: list[object] = []
        ends = set()
        with Wire(link.tls) as wire:
            client = link.client(wire.url)
            for intrusion in intrusions():
                context = Context()
                stream = client.chat_completion_stream(REQUEST, context=context)
                with wire.accepted.get(timeout=5) as peer, stream:
                    peer.sendall(event("one") + END)
                    assert arrived(stream, still)
                    assert stream._pipe.pull is not None
                    place = interrupted(
                        stream._pipe.pull, intrusion, press_ctrl_c if comes == "Ctrl-C" else context.cancel
                    )
                    chunks = list(stream)
                    end = chunks[-1].error if chunks else "nothing"
                    if end is None and [chunk.text for chunk in chunks] != ["one", ""]:
                        wrong.append((place, chunks))
                    ends.add(end if end == "nothing" else type(end))
                if not within(0.2 * SCALE, lambda: still.turn() and still.has_nothing()):
                    wrong.append((place, "it is left"))
                    still.free()
        assert wrong == []
        assert ends == {type(None), StreamInterruptedError if comes == "Ctrl-C" else StreamCancelledError}

    @pytest.mark.parametrize("last", [event("one"), END], ids=["amid", "at the end"])
    def test_close(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, still: Still, call: Callable[..., Any], last: bytes
    ) -> None:
        """A stream that is closed in the middle of a pull is over then, and nothing of it is left."""
        monkeypatch.setattr("chanstream.stream._DRAIN_GRACE", 0.001)  # it is used up at nearly every place

        def pull(stream: CompletionStream, intrusion: Intrusion) -> None:
            assert stream._pipe.pull is not None
            with intrusion(stream.close):
                stream._pipe.pull(time.monotonic() + 5)

        with Wire(None) as wire:
            client = plain.client(wire.url)
            for intrusion in intrusions():
                stream = client.chat_completion_stream(REQUEST)
                with wire.accepted.get(timeout=5) as peer:
                    peer.sendall(last)
                    assert arrived(stream, still)
                    call(pull, stream, intrusion)
                    assert within(1, still.has_nothing)
                    assert stream.closed
                    assert list(stream) == []
                    peer.settimeout(5)
                    with contextlib.suppress(ConnectionError):
                        assert peer.recv(1) == b""


class TestAFaultOfThePoller:
    @pytest.mark.parametrize(("kind", "name"), [(Epoll, "wait"), (_Poller, "_turn")], ids=["wait", "turn"])
    def test_while_consumers_read(
        self, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type, name: str
    ) -> None:
        """Consumers that read themselves when the poller fails are told, and free; the next stream works."""
        server = link.serve(*[SILENT] * 3, "one two")
        client = link.client(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(3)]
        consumers = [spawn(list, stream) for stream in streams]
        assert all(is_waited_for(stream, 2) for stream in streams)
        (old,) = (thread for thread in threading.enumerate() if thread.name == "chanstream-poller")
        with monkeypatch.context() as patch:
            break_step(patch, kind, name)
            assert within(5, lambda: called() and not old.is_alive())
            chunks = [consumer.result(5) for consumer in consumers]
        assert [[chunk.text for chunk in each] for each in chunks] == [["one", " two", ""]] * 3
        assert [type(each[-1].error) for each in chunks] == [StreamError] * 3
        assert [record.getMessage() for record in caplog.records] == ["the poller failed"]
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"


class TestStorm:
    @pytest.mark.parametrize("seed", range(3))
    def test_of_40_threads(self, link: Link, seed: int) -> None:
        """Streams that 40 threads take in all ways at random, with pauses and cancels, say what they must."""
        server = link.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"], pace=0.002))
        client = link.client(server)

        def converse(number: int) -> None:
            chance = random.Random(1000 * seed + number)
            for turn in range(4):
                text = " ".join(f"{number}-{turn}-{word}" for word in range(chance.randrange(1, 30)))
                stream = client.chat_completion_stream(asking(text), buffer=chance.choice([1, 2, 1024]))
                way = chance.choice([loop, small_timeouts, many, leaving, closed_elsewhere])
                said, is_whole = way(stream, chance)
                assert said == text if is_whole else text.startswith(said)

        with ThreadPoolExecutor(40) as pool:
            list(pool.map(converse, range(40)))
        assert within(1, lambda: not poller._the_poller._streams)


Said = tuple[str, bool]


def pause(chance: random.Random) -> None:
    """Stay away for a moment, now and then."""
    if chance.random() < 0.2:
        threading.Event().wait(chance.random() * 4 * LEASE_SECONDS)


def loop(stream: CompletionStream, chance: random.Random) -> Said:
    """Take all in a loop, with pauses."""
    said = ""
    for chunk in stream:
        said += chunk.text
        pause(chance)
    return said, True


def small_timeouts(stream: CompletionStream, chance: random.Random) -> Said:
    """Take all with gets that wait for a very short time each."""
    said = ""
    while True:
        try:
            chunk = stream.get(timeout=chance.random() * 0.003)
        except queue.Empty:
            pause(chance)
            continue
        said += chunk.text
        if chunk.is_last_chunk:
            stream.close()
            return said, True


def many(stream: CompletionStream, chance: random.Random) -> Said:
    """Take all, several at a time."""
    said = ""
    while True:
        chunks = stream.get_many(chance.randrange(1, 9), timeout=10)
        said += "".join(chunk.text for chunk in chunks)
        if chunks[-1].is_last_chunk:
            stream.close()
            return said, True
        pause(chance)


def leaving(stream: CompletionStream, chance: random.Random) -> Said:
    """Leave the loop early."""
    said = ""
    for chunk in stream:
        said += chunk.text
        if chance.random() < 0.1:
            return said, False
    return said, True


def closed_elsewhere(stream: CompletionStream, chance: random.Random) -> Said:
    """Take what there is until another thread closes the stream."""
    moment = chance.random() * 0.05
    closing = spawn(lambda: threading.Event().wait(moment) or stream.close())
    said = texts(stream)
    closing.result(5)
    return said, False

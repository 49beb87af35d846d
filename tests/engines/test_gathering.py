"""Merged streams, which the one consumer reads itself while it waits."""

from __future__ import annotations

import contextlib
import errno
import gc
import queue
import random
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chanstream import (
    APITimeoutError,
    Channel,
    ChannelClosedError,
    Client,
    StreamError,
    StreamInterruptedError,
    Timeout,
    merge,
)
from chanstream.calls import Engine
from chanstream.channel.merging import MergedChannel
from chanstream.engines import poller
from chanstream.engines.flow import Flow
from chanstream.engines.gathering import Group
from chanstream.testing import Reply
from tests.concurrency import Intrusion, intrusions, spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, descriptors, within
from tests.engines.conftest import Still
from tests.engines.test_polled import END, interrupted, many_wired, named
from tests.engines.test_poller import SILENT, Wire, break_step, called, event

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not hasattr(select, "epoll"), reason="without epoll the poller's thread reads all streams"),
]


@pytest.fixture
def engine() -> Engine:
    """The engine of the clients."""
    return "poller"


Merged = tuple[MergedChannel[int, Any], list[socket.socket]]


@contextlib.contextmanager
def merged_wires(link: Link, count: int, **settings: Any) -> Iterator[Merged]:
    """Give the merged channel of streams, and the server's ends of their connections."""
    with many_wired(link, count, **settings) as pairs, merge([stream for stream, _ in pairs]) as merged:
        yield merged, [peer for _, peer in pairs]


def is_read_by_its_consumer(merged: MergedChannel[Any, Any]) -> bool:
    """Return whether a consumer waits for the sockets itself, at last."""
    return within(5, lambda: any(isinstance(getter, Group) for getter in list(merged._pipe.getters)))


def said(pairs: list[tuple[int, Any]]) -> list[tuple[int, str]]:
    """Return the keys and the texts."""
    return [(key, evt.text) for key, evt in pairs]


class TestWhoReads:
    @pytest.mark.parametrize("count", [1, 3, 300])
    def test_who_waits(self, plain: Link, read_by: list[str], count: int) -> None:
        """Who waits for a merged channel reads all its streams, however many, and nobody else does."""
        with merged_wires(plain, count) as (merged, peers):
            assert within(5, lambda: all(live.watcher is live._group.watcher for live in live_streams()))
            with pytest.raises(queue.Empty):
                merged.get(timeout=0.01)
            read_by.clear()
            for key in range(0, count, max(1, count // 10)):
                consumer = spawn(named, "the consumer", merged.get)
                assert is_read_by_its_consumer(merged)
                peers[key].sendall(event(f"to {key}"))
                assert said([consumer.result(5)]) == [(key, f"to {key}")]
            assert set(read_by) == {"the consumer"}

    def test_who_stays_away(self, link: Link, read_by: list[str]) -> None:
        """While the consumer is busy the poller reads what comes, in the moment in which it comes."""
        with merged_wires(link, 3) as (merged, peers):
            peers[0].sendall(event("the first"))
            assert merged.get(timeout=5)[1].text == "the first"
            read_by.clear()
            sent = []
            for number in range(3):
                threading.Event().wait(0.1)
                sent.append(time.monotonic())
                for peer in peers:
                    peer.sendall(event(f"{number}"))
                assert within(PROMPT, lambda n=number: merged.qsize() == 3 * (n + 1))
            pairs = merged.get_many()
            assert Counter(evt.text for _, evt in pairs) == {"0": 3, "1": 3, "2": 3}
            for _, evt in pairs:
                if number := int(evt.text):
                    assert abs(evt.chunk_latency - (sent[number] - sent[number - 1])) < PROMPT
            assert set(read_by) == {"chanstream-poller"}

    def test_all_to_the_end(self, link: Link, call: Callable[..., Any]) -> None:
        """Streams that come as fast as they can come whole, each in its order, and their connections are kept."""
        texts = [" ".join(f"{key}.{word}" for word in range(500)) for key in range(12)]
        server = link.serve(*[Reply(text) for text in texts * 2])
        client = link.client(server)
        for _ in range(2):
            words: Counter[int] = Counter()
            whole = [""] * 12

            def consume(words: Counter[int] = words, whole: list[str] = whole) -> None:
                for key, evt in merge([client.chat_completion_stream(REQUEST) for _ in range(12)]):
                    whole[key] += evt.text
                    words[key] += evt.is_last_chunk

            call(consume)
            assert sorted(whole) == sorted(texts)
            assert words == dict.fromkeys(range(12), 1)
        assert server.connections <= 12


def live_streams() -> list[Any]:
    """Return the streams that the poller has."""
    return list(poller._the_poller._streams)


class TestWhatElseComes:
    def test_a_plain_channel_among_them(self, link: Link, call: Callable[..., Any]) -> None:
        """What is put into a plain channel that was merged too wakes the consumer that waits for the sockets."""
        plain_one: Channel[Any] = Channel()
        with many_wired(link, 2) as pairs, merge([plain_one, *(stream for stream, _ in pairs)]) as merged:

            def put() -> float:
                assert is_read_by_its_consumer(merged)
                plain_one.put("from a thread")
                return time.monotonic()

            putting = spawn(put)
            assert call(merged.get, True, 5) == (0, "from a thread")
            assert time.monotonic() - putting.result(5) < 4 * PROMPT
            for _, peer in pairs:
                peer.sendall(END)
            assert sorted(call(lambda: [merged.get(timeout=5)[0] for _ in pairs])) == [1, 2]
            later = spawn(lambda: within(5, lambda: merged.statistics().waiting_getters) and plain_one.put("the last"))
            assert merged.get(timeout=5) == (0, "the last")
            later.result(5)
            plain_one.close()
            assert list(merged) == []

    def test_a_clock_runs_out(self, link: Link, call: Callable[..., Any]) -> None:
        """Streams that are silent for too long end while the consumer waits."""
        with merged_wires(link, 2, timeout=Timeout(idle=0.3 * SCALE)) as (merged, peers):
            for key, peer in enumerate(peers):
                peer.sendall(event("one"))
                assert said([call(merged.get, True, 5)]) == [(key, "one")]
            ends = call(lambda: [merged.get(timeout=5) for _ in peers])
            assert [type(evt.error) for _, evt in ends] == [APITimeoutError] * 2

    def test_one_is_closed_for_itself(self, link: Link, call: Callable[..., Any]) -> None:
        """A stream that another thread closes ends at once for the consumer that waits, and alone."""
        with many_wired(link, 2) as pairs, merge([stream for stream, _ in pairs]) as merged:

            def close() -> None:
                assert is_read_by_its_consumer(merged)
                pairs[0][0].close()
                pairs[0][1].settimeout(5)
                assert pairs[0][1].recv(1) == b""
                pairs[1][1].sendall(event("goes on"))

            closing = spawn(close)
            assert said([call(merged.get, True, 5)]) == [(1, "goes on")]
            closing.result(5)

    def test_it_is_closed(self, link: Link, call: Callable[..., Any]) -> None:
        """Closing the merged channel from another thread wakes the consumer, and frees all connections."""
        with merged_wires(link, 12) as (merged, peers):
            closing = spawn(lambda: is_read_by_its_consumer(merged) and (merged.close(), time.monotonic())[1])
            assert call(list, merged) == []
            assert time.monotonic() - closing.result(5) < 4 * PROMPT
            for peer in peers:
                peer.settimeout(5)
                with contextlib.suppress(ConnectionError):
                    assert peer.recv(1) == b""

    def test_it_is_dropped(self, plain: Link) -> None:
        """Dropping the merged channel frees all that it held, with nothing left for the garbage collector."""
        server = plain.serve(*[SILENT] * 3)
        client = plain.client(server)
        list(merge([client.chat_completion_stream(REQUEST) for _ in range(0)]))
        before = descriptors()
        gc.disable()
        try:
            merged = merge([client.chat_completion_stream(REQUEST) for _ in range(3)])
            merged.get(timeout=5)
            del merged
            assert server.wait_for(lambda s: s.open_connections == 0, 2 * PROMPT)
            assert within(SCALE, lambda: descriptors() <= before)
        finally:
            gc.enable()

    def test_it_is_merged_again(self, link: Link, call: Callable[..., Any]) -> None:
        """Channels that were merged can be merged: all comes through both, and each ends."""
        with many_wired(link, 4) as pairs:
            streams = [stream for stream, _ in pairs]
            halves = {"left": merge(streams[:2]), "right": merge(streams[2:])}
            with merge(halves) as merged:
                for number, (_, peer) in enumerate(pairs):
                    sender = spawn(lambda p=peer, n=number: threading.Event().wait(0.05) or p.sendall(event(f"{n}")))
                    half, (key, evt) = call(merged.get, True, 5)
                    assert (half, key, evt.text) == (("left", "right")[number // 2], number % 2, f"{number}")
                    sender.result(5)
                for _, peer in pairs:
                    peer.sendall(END)
                assert len(call(list, merged)) == 4

    def test_it_was_over_before(self, link: Link) -> None:
        """Streams that have ended are merged with those that go on."""
        server = link.serve("one two", Reply("three four", pace=0.05), "five six")
        client = link.client(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(3)]
        assert within(5, lambda: streams[0].closed and streams[2].closed)
        texts = ["", "", ""]
        for key, evt in merge(streams):
            texts[key] += evt.text
        assert texts == ["one two", "three four", "five six"]


class TestSeveralConsumers:
    def test_each_event_goes_to_one(self, link: Link) -> None:
        """Of several that wait each event wakes one, at once, whoever of them reads."""
        with merged_wires(link, 3) as (merged, peers):
            waiting = {spawn(merged.get) for _ in range(5)}
            for left in range(5, 0, -1):
                assert within(5, lambda n=left: merged.statistics().waiting_getters == n)
                peers[left % 3].sendall(event(f"{left}"))
                assert within(PROMPT, lambda: any(consumer.done() for consumer in waiting))
                (done,) = (consumer for consumer in waiting if consumer.done())
                assert said([done.result()]) == [(left % 3, f"{left}")]
                waiting.remove(done)

    def test_who_reads_gives_up(self, link: Link) -> None:
        """When the one that reads has waited long enough the others get the next events as before."""
        with merged_wires(link, 3) as (merged, peers):
            reader = spawn(merged.get, True, 0.3 * SCALE)
            assert is_read_by_its_consumer(merged)
            others = [spawn(merged.get) for _ in range(2)]
            assert within(5, lambda: merged.statistics().waiting_getters == 3)
            with pytest.raises(queue.Empty):
                reader.result(5 * SCALE)
            for done in (1, 2):
                peers[done].sendall(event("an event"))
                assert within(PROMPT, lambda n=done: sum(other.done() for other in others) == n)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_storm(self, link: Link, seed: int) -> None:
        """Five consumers with all ways to take, one of them slow: nothing is lost, nothing comes twice."""
        chance = random.Random(seed)
        texts = [[f"{key}.{word} " for word in range(200)] for key in range(20)]
        server = link.serve(*[Reply(text, pace=chance.choice([0, 0.001])) for text in texts])
        client = link.client(server)
        merged = merge([client.chat_completion_stream(REQUEST) for _ in texts], maxsize=chance.choice([1, 7, 1024]))
        taken: list[str] = []

        def consume(number: int) -> None:
            with contextlib.suppress(StreamError):
                while True:
                    with contextlib.suppress(queue.Empty):
                        pairs = [merged.get(timeout=0.003)] if number % 2 else merged.get_many(3, 0.002)
                        taken.extend(evt.text for _, evt in pairs)
                    if not number:
                        threading.Event().wait(0.002)

        for consumer in [spawn(consume, number) for number in range(5)]:
            with contextlib.suppress(Exception):  # the channel is closed
                consumer.result(30 * SCALE)
        assert sorted(filter(None, taken)) == sorted(word for text in texts for word in text)


class TestWhoElseIsAtIt:
    def test_a_wake_that_the_poller_finds(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wake that is for the consumer reaches it, though the poller has looked at the group in between."""
        looking, look, waiting, wait = (threading.Event() for _ in range(4))
        news, news_for_poller = Group.news, Group.news_for_poller

        def slowly(group: Group) -> list[Any]:
            looking.set()
            assert look.wait(5 * SCALE)
            return news_for_poller(group)

        def hesitating(group: Group, left: float | None = 0.0) -> list[Any]:
            if left:
                waiting.set()
                assert wait.wait(5 * SCALE)
            return news(group, left)

        channel: Channel[Any] = Channel()
        with many_wired(plain, 1) as pairs, merge([channel, pairs[0][0]]) as merged:
            assert within(5, lambda: all(live.watcher is live._group.watcher for live in live_streams()))
            with monkeypatch.context() as patch:
                patch.setattr(Group, "news_for_poller", slowly)
                patch.setattr(Group, "news", hesitating)
                pairs[0][1].sendall(event("half")[:5])
                assert looking.wait(5 * SCALE)
                consumer = spawn(merged.get)
                assert waiting.wait(5 * SCALE)
                channel.put("the news")
                look.set()
                group = group_of(merged)
                assert within(5, lambda: not group._lock._is_owned())
                wait.set()
                assert consumer.result(5 * SCALE) == (0, "the news")

    def test_who_comes_too_late_to_read(self, plain: Link) -> None:
        """A group whose last stream ended under one consumer is freed by another, whose claim came too late."""
        leaving, leave = threading.Event(), threading.Event()

        class Claims(list[object]):
            def remove(self, claim: object) -> None:
                if threading.current_thread().name == "the late one":
                    leaving.set()
                    assert leave.wait(5 * SCALE)
                super().remove(claim)

        with many_wired(plain, 1) as pairs, merge([pairs[0][0]]) as merged:
            group = group_of(merged)
            merged._pipe.readers = group._claims = Claims()
            reader = spawn(lambda: [merged.get(timeout=5 * SCALE) for _ in range(2)])
            assert is_read_by_its_consumer(merged)
            late = spawn(named, "the late one", merged.get, True, 5 * SCALE)
            assert leaving.wait(5 * SCALE)
            pairs[0][1].sendall(event("one") + END)
            pairs[0][1].close()
            reader.result(10 * SCALE)
            leave.set()
            with pytest.raises(ChannelClosedError):
                late.result(5 * SCALE)
            assert within(5, lambda: group._closed)

    def test_one_that_is_merged_already(self, plain: Link) -> None:
        """A stream that is merged twice, which it must not be, hurts no other one."""
        with many_wired(plain, 2) as pairs:
            (twice, peer), (other, other_peer) = pairs
            with merge([twice]) as first, merge([twice]) as second:
                peer.sendall(event("one"))
                assert within(5, lambda: first.qsize() + second.qsize() == 1)
                other_peer.sendall(event("two"))
                assert other.get(timeout=5).text == "two"

    def test_no_more_descriptors(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system has no room for a group the poller reads the streams."""

        def full() -> Any:
            raise OSError(errno.EMFILE, "too many open files")

        with many_wired(plain, 2) as pairs:
            monkeypatch.setattr("chanstream.engines.gathering.new_watcher", full)
            with merge([stream for stream, _ in pairs]) as merged:
                pairs[1][1].sendall(event("one"))
                assert said([merged.get(timeout=5)]) == [(1, "one")]

    def test_for_weeks(self, plain: Link) -> None:
        """One can wait for longer than the system has a word for."""
        with merged_wires(plain, 1) as (merged, peers):
            consumer = spawn(merged.get, True, 30 * 86_400.0)
            assert is_read_by_its_consumer(merged)
            peers[0].sendall(event("one"))
            assert said([consumer.result(5)]) == [(0, "one")]


class TestTimeouts:
    def test_in_time(self, link: Link, call: Callable[..., Any]) -> None:
        """Who waits for so long waits for so long, and not at all where it is said so."""
        with merged_wires(link, 3) as (merged, _):
            for seconds in (0.0, 0.05, 0.2):
                begun = time.monotonic()
                with pytest.raises(queue.Empty):
                    call(merged.get, True, seconds)
                assert seconds <= time.monotonic() - begun < seconds + 4 * PROMPT
            with pytest.raises(queue.Empty):
                call(merged.get, False)


class TestCtrlC:
    def test_while_it_waits(self, link: Link) -> None:
        """Ctrl-C wakes who waits in the main thread at once; all streams go on for the next get."""
        main = threading.get_ident()

        def press() -> float:
            assert is_read_by_its_consumer(merged)
            signal.pthread_kill(main, signal.SIGINT)
            return time.monotonic()

        with merged_wires(link, 3) as (merged, peers):
            for number in range(5):
                pressing = spawn(press)
                with pytest.raises(KeyboardInterrupt):
                    merged.get()
                assert time.monotonic() - pressing.result(5) < 4 * PROMPT
                assert merged.statistics().waiting_getters == 0
                for key, peer in enumerate(peers):
                    peer.sendall(event(f"{number}"))
                    assert said([merged.get(timeout=5)]) == [(key, f"{number}")]

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("still", [100], indirect=True)
    @pytest.mark.parametrize("then", ["get", "poller"])
    def test_at_every_place(self, plain: Link, still: Still, then: str) -> None:
        """Wherever it comes, nothing is lost in silence: what comes is there afterwards, or the stream's error is."""
        wrong: list[object] = []
        ends = set()
        with Wire(None) as wire:
            client = plain.client(wire.url)
            for intrusion in intrusions():
                with two_with_news(client, wire, still, event("one")) as (merged, peers):
                    place = interrupted(merged._pipe.pull, intrusion)  # type: ignore[arg-type]
                    for peer in peers:
                        with contextlib.suppress(OSError):  # it has ended
                            peer.sendall(event("two"))
                    if then == "poller" and not within(
                        0.5 * SCALE, lambda m=merged: still.turn() and (m.qsize() >= 2 or m.closed)
                    ):
                        wrong.append((place, "nobody reads"))
                    words, errors = taken_from(merged)
                    due = {key: ["one", "two"][: len(words[key]) if errors[key] else 2] for key in words}
                    if words != due:
                        wrong.append((place, words, errors))
                    ends |= set(errors.values())
                if not within(0.5 * SCALE, still.has_nothing):
                    wrong.append((place, "it is left"))
                    still.free()
        assert wrong == []
        assert ends == {None, StreamInterruptedError, StreamError}

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("still", [100], indirect=True)
    def test_at_every_place_of_the_end(self, link: Link, still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where streams end in that pull, all that they said is there afterwards, or an error is; nothing is left."""
        monkeypatch.setattr("chanstream.engines.flow.DRAIN_SECONDS", 0.01)
        wrong: list[object] = []
        ends = set()
        with Wire(link.tls) as wire:
            client = link.client(wire.url)
            for intrusion in intrusions(5 if link.tls else 1):
                with two_with_news(client, wire, still, event("one") + END) as (merged, _):
                    place = interrupted(merged._pipe.pull, intrusion)  # type: ignore[arg-type]
                    words, errors = taken_from(merged)
                    if any(words[key] != ["one", ""] and errors[key] is None for key in words):
                        wrong.append((place, words, errors))
                    ends |= set(errors.values())
                if not within(0.5 * SCALE, lambda: still.turn() and still.has_nothing()):
                    wrong.append((place, "it is left"))
                    still.free()
        assert wrong == []
        assert ends >= {None, StreamInterruptedError}

    @pytest.mark.parametrize("still", [100], indirect=True)
    def test_closing_at_every_place(self, plain: Link, still: Still, call: Callable[..., Any]) -> None:
        """A channel that is closed in the middle of a pull is over then, and nothing of it is left."""

        def pull(merged: MergedChannel[Any, Any], intrusion: Intrusion) -> None:
            assert merged._pipe.pull is not None
            with intrusion(merged.close):
                merged._pipe.pull(time.monotonic() + 5)

        with Wire(None) as wire:
            client = plain.client(wire.url)
            for intrusion in intrusions():
                merged = merge([client.chat_completion_stream(REQUEST) for _ in range(2)])
                with wire.accepted.get(timeout=5) as one, wire.accepted.get(timeout=5) as two:
                    assert still.turn()
                    for peer in (one, two):
                        peer.sendall(event("one"))
                    call(pull, merged, intrusion)
                    assert within(SCALE, still.has_nothing)
                    assert merged.closed
                    assert list(merged) == []


@contextlib.contextmanager
def two_with_news(client: Client, wire: Wire, still: Still, news: bytes) -> Iterator[Merged]:
    """Give the merged channel of two streams for which this has arrived, and the server's ends of their connections."""
    streams = [client.chat_completion_stream(REQUEST) for _ in range(2)]
    with wire.accepted.get(timeout=5) as one, wire.accepted.get(timeout=5) as two, merge(streams) as merged:
        assert still.turn()
        for peer in (one, two):
            peer.sendall(news)
        assert select.select([group_of(merged).watcher.fileno()], [], [], 5)[0]
        yield merged, [one, two]


def group_of(merged: MergedChannel[Any, Any]) -> Any:
    """Return what the consumer of a merged channel reads from."""
    return merged._pipe.pull.__self__  # type: ignore[union-attr]


def taken_from(merged: MergedChannel[int, Any]) -> tuple[dict[int, list[str]], dict[int, type | None]]:
    """Return what the two streams say in two events each, and what is wrong with them then."""
    words: dict[int, list[str]] = {0: [], 1: []}
    errors: dict[int, type | None] = {0: None, 1: None}
    try:
        while not all(errors[key] or len(words[key]) == 2 for key in (0, 1)):
            key, evt = merged.get(timeout=0.5 * SCALE)
            if evt.error is None:
                words[key].append(evt.text)
            else:
                errors[key] = type(evt.error)
    except (queue.Empty, ChannelClosedError):
        pass
    except StreamError as error:  # it came while chunks were being moved: all is over, and says so
        errors = dict.fromkeys(errors, type(error))
    return words, errors


class TestFaults:
    def test_of_one_stream(self, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """What goes wrong in one stream ends that stream alone, in the consumer's thread too."""
        with many_wired(link, 3) as pairs, merge([stream for stream, _ in pairs]) as merged:
            faulty = pairs[1][0]
            break_step(monkeypatch, Flow, "feed", lambda flow: flow._pipe is faulty._pipe, where=lambda: True)
            for _, peer in pairs:
                peer.sendall(event("one"))
            got = dict(merged.get(timeout=5) for _ in range(4))
            assert isinstance(got[1].error, StreamError)
            assert (got[0].text, got[2].text) == ("one", "one")
            assert [record.levelname for record in caplog.records] == ["ERROR"]

    def test_of_the_poller(self, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """When the poller fails the consumer that reads is told of all its streams, and is free."""
        server = link.serve(*[SILENT] * 3, "one two")
        client = link.client(server)
        merged = merge([client.chat_completion_stream(REQUEST) for _ in range(3)])
        for _ in range(6):
            merged.get(timeout=5)
        consumer = spawn(list, merged)
        assert is_read_by_its_consumer(merged)
        (old,) = (thread for thread in threading.enumerate() if thread.name == "chanstream-poller")
        with monkeypatch.context() as patch:
            break_step(patch, poller._Poller, "_turn")
            assert within(5, lambda: called() and not old.is_alive())
            pairs = consumer.result(5)
        assert sorted((key, type(evt.error)) for key, evt in pairs) == [(key, StreamError) for key in range(3)]
        assert [record.getMessage() for record in caplog.records] == ["the poller failed"]
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"

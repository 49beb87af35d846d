"""Racing: the first that says something wins whole, and of the others nothing is left."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import pytest

from chanstream import (
    APITimeoutError,
    Channel,
    ChannelClosedError,
    ChatCompletionRequest,
    Client,
    Context,
    InternalServerError,
    StreamAPIError,
    StreamCancelledError,
    StreamError,
    StreamInterruptedError,
    merge,
    race,
    tee,
)
from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.concurrency import intrusions, press_ctrl_c, spawn
from tests.conftest import REQUEST, SCALE, USUALLY, Link, descriptors, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left", "swept")

TEXT = "one two three four"
REPLIES = {
    "fast": Reply(TEXT),
    "silent head": Reply(head_delay=math.inf),
    "silent": Reply(stall_after=0),
    "stalls": Reply(TEXT, stall_after=2),
    "fails": Reply(chunks=[{"error": {"message": "no"}}]),
    "refuses": Reply.error(500, "not today"),
}


def answer(request: RecordedRequest) -> Reply:
    """Return the reply that the model of a request is named after."""
    return REPLIES[request.json["model"]]


def asking(model: str) -> ChatCompletionRequest:
    """Return a request that is answered as its model is named."""
    return attrs.evolve(REQUEST, model=model)


def channels(*items: list[Any]) -> list[Channel[Any]]:
    """Return an open channel with each list of items."""
    made = [Channel[Any]() for _ in items]
    for channel, its in zip(made, items, strict=True):
        channel.put_many(its)
    return made


def waiters(*given: Channel[Any]) -> int:
    """Return how many waiters the channels have."""
    return sum(len(channel._pipe.waiters) for channel in given)


@pytest.fixture
def swept() -> Iterator[None]:
    """Wait for the calls that have lost, and collect their errors, before what is left is counted.

    Errors of urllib3 hold themselves, and with them the pool of a client that was closed meanwhile.
    """
    yield
    assert within(SCALE, lambda: producers() == 0)
    gc.collect()


@pytest.fixture
def server(plain: Link) -> StreamServer:
    """A server that answers as the model is named."""
    return plain.serve(reply_with=answer)


@pytest.fixture
def client(plain: Link, server: StreamServer) -> Client:
    """A client of that server."""
    return plain.client(server)


def gone(server: StreamServer) -> bool:
    """Return whether the server sees, in a moment at the latest, that nobody is connected any more."""
    return server.wait_for(lambda server: server.open_connections == 0)


class TestTheWinner:
    def test_what_is_there(self) -> None:
        """One that has an item already wins, with the item still to be taken, and the others are closed."""
        one, two, three = channels([], [1, 2], [])
        assert race([one, two, three]) == (1, two)
        assert (two.get(), two.get(), two.closed) == (1, 2, False)
        assert (one.closed, three.closed) == (True, True)
        assert waiters(one, two, three) == 0

    def test_what_comes(self) -> None:
        """One that gets an item while all are waited for wins at once, under its key in a mapping."""
        given = dict(zip("abc", channels([], [], []), strict=True))
        racing = spawn(race, given)
        assert within(5, lambda: waiters(*given.values()) == 3)
        given["b"].put("x")
        assert racing.result(5) == ("b", given["b"])
        assert given["b"].get() == "x"

    def test_a_stream(self, client: Client, server: StreamServer) -> None:
        """The stream that wins is whole, and that of the other is cancelled."""
        streams = [client.chat_completion_stream(asking(model)) for model in ("silent", "fast")]
        key, stream = race(streams)
        assert (key, stream) == (1, streams[1])
        assert stream.collect().text == TEXT
        assert streams[0].state == "cancelled"

    def test_a_call(self, client: Client) -> None:
        """A call's stream that wins is whole, and goes on after the race."""
        calls = {model: partial(client.chat_completion_stream, asking(model)) for model in ("silent", "fast")}
        name, stream = race(calls, timeout=10 * SCALE)
        assert (name, stream.collect().text) == ("fast", TEXT)

    def test_both(self, client: Client) -> None:
        """Open streams and calls may race with each other."""
        silent = client.chat_completion_stream(asking("silent"))
        key, stream = race([silent, lambda context: client.chat_completion_stream(asking("fast"), context=context)])
        assert (key, stream.collect().text) == (1, TEXT)

    def test_no_needless_call(self, client: Client, server: StreamServer) -> None:
        """Where an open stream has a chunk already no call is made."""
        stream = client.chat_completion_stream(asking("fast"))
        assert within(5, stream.qsize)
        assert race([partial(client.chat_completion_stream, REQUEST), stream]) == (1, stream)
        assert len(server.requests) == 1
        stream.close()

    def test_at_the_same_moment(self, client: Client) -> None:
        """Of several that have a chunk at the same time one wins, and the others are closed."""
        for _ in range(20):
            calls = [partial(client.chat_completion_stream, asking("fast")) for _ in range(4)]
            assert race(calls)[1].collect().text == TEXT

    def test_the_same_call_twice(self, client: Client) -> None:
        """A call may be there twice, as a hedge against one that is slow."""
        ask = partial(client.chat_completion_stream, asking("fast"))
        assert race([ask, ask])[1].collect().text == TEXT

    def test_one(self) -> None:
        """A race of one is a wait for its first item."""
        (one,) = channels([1])
        assert race([one]) == (0, one)

    def test_merged_and_teed(self) -> None:
        """Channels that are fed by others race like any."""
        one, two = channels([], [])
        merged, (teed,) = merge([one]), tee(two, 1)
        two.put(1)
        assert race([merged, teed]) == (1, teed)
        assert (one.closed, two.closed) == (True, False)

    def test_no_thread_for_an_open_stream(self, client: Client, started: list[str]) -> None:
        """Waiting for open streams costs no thread."""
        streams = [client.chat_completion_stream(asking("silent")) for _ in range(5)]
        streams.append(client.chat_completion_stream(asking("fast")))
        del started[:]
        assert race(streams) == (5, streams[5])
        assert [name for name in started if "race" in name] == []
        streams[5].close()


class TestLosing:
    def test_an_empty_one(self) -> None:
        """One that ends without an item has lost, be it before the race or in its middle."""
        one, two, three = channels([], [], [])
        one.close()
        racing = spawn(race, [one, two, three])
        assert within(5, lambda: waiters(three) == 1)
        two.close(StreamError("it broke"))
        three.put(1)
        assert racing.result(5) == (2, three)

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_an_error_first(self, client: Client, errors: Any) -> None:
        """A stream whose first chunk is an error has lost, however it gives errors."""
        streams = [client.chat_completion_stream(asking(model), errors=errors) for model in ("fails", "fast")]
        key, stream = race(streams)
        assert (key, stream.collect().text) == (1, TEXT)

    def test_a_call_that_raises(self, client: Client) -> None:
        """A call that raises has lost, whatever it raises."""

        def broken(context: Context) -> Channel[Any]:
            raise ZeroDivisionError

        calls: list[Any] = [broken, partial(client.chat_completion_stream, asking("refuses"))]
        key, stream = race([*calls, partial(client.chat_completion_stream, asking("fast"))])
        assert (key, stream.collect().text) == (2, TEXT)

    def test_all(self, client: Client) -> None:
        """Where all lose, the error of the first that did is raised, and those of the others are with it."""
        one, two = channels([], [])
        first = StreamError("it broke")
        one.close(first)
        two.close()
        with pytest.raises(StreamError) as caught:
            race([one, two, client.chat_completion_stream(asking("fails"))])
        assert caught.value is first
        assert [type(error) for error in first.others] == [ChannelClosedError, StreamAPIError]

    def test_all_calls(self, client: Client) -> None:
        """So with calls, and then nothing is left of them."""
        with pytest.raises(InternalServerError, match="not today") as caught:
            race([partial(client.chat_completion_stream, asking("refuses"))] * 3, timeout=10 * SCALE)
        assert [type(error) for error in caught.value.others] == [InternalServerError] * 2


class TestTheOthers:
    @pytest.mark.parametrize("count", [1, 19])
    @pytest.mark.parametrize("model", ["silent", "stalls"])
    def test_open_ones(self, client: Client, server: StreamServer, count: int, model: str) -> None:
        """The server sees the sockets of all losers closed at once, counted from the winner's first item."""
        winner: Channel[Any] = Channel()
        losers: list[Channel[Any]] = [client.chat_completion_stream(asking(model)) for _ in range(count)]
        for loser in losers:  # the first two chunks of one that stalls are taken, and the race is for the third
            assert [loser.get().text for _ in range(2 * (model == "stalls"))] == ["one", " two"][
                : 2 * (model == "stalls")
            ]
        racing = spawn(race, [winner, *losers])
        assert within(5, lambda: waiters(*losers) == count)
        assert server.open_connections == count
        winner.put(1)
        assert gone(server)
        assert racing.result(5) == (0, winner)

    @pytest.mark.parametrize("count", [1, 19])
    @pytest.mark.parametrize("model", ["silent head", "silent"])
    def test_calls(self, link: Link, count: int, model: str) -> None:
        """So for calls, whose heads have not come yet or just have."""
        server = link.serve(reply_with=answer)
        ask = partial(link.client(server).chat_completion_stream, asking(model))
        winner: Channel[Any] = Channel()
        racing = spawn(race, [winner, *[ask] * count])
        assert server.wait_for(lambda server: len(server.requests) == count)
        winner.put(1)
        assert gone(server)
        assert racing.result(5) == (0, winner)

    @pytest.mark.parametrize("count", [1, 19])
    @pytest.mark.parametrize("model", ["silent head", "silent"])
    def test_at_once(self, client: Client, server: StreamServer, count: int, model: str) -> None:
        """From the winner's first item until the server sees all the others' sockets closed it takes at most 50 ms.

        The median of some races: other programs run beside the tests.
        """
        seconds = []
        for round_ in range(1, 8):
            winner: Channel[Any] = Channel()
            racing = spawn(race, [winner, *[partial(client.chat_completion_stream, asking(model))] * count])
            asked = round_ * count
            assert server.wait_for(lambda server, asked=asked: len(server.requests) == asked)
            begun = time.monotonic()
            winner.put(1)
            assert gone(server)
            seconds.append(time.monotonic() - begun)
            assert racing.result(5) == (0, winner)
        assert statistics.median(seconds) < USUALLY

    @pytest.mark.skipif(sys.platform != "linux", reason="a full backlog drops connections on Linux only")
    def test_one_that_connects(self, plain: Link) -> None:
        """A call to a host to which no connection comes about is left at once, with its thread and its socket."""
        with contextlib.ExitStack() as exits:
            deaf = exits.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # fill the backlog: what comes after gets no answer at all
                filler = exits.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            client = plain.client(f"http://127.0.0.1:{deaf.getsockname()[1]}")
            winner: Channel[Any] = Channel()
            before = descriptors()
            racing = spawn(race, [winner, partial(client.chat_completion_stream, REQUEST)])
            assert within(5, lambda: descriptors() > before)
            winner.put(1)
            assert within(5, lambda: producers() == 0)
            assert within(5, lambda: descriptors() <= before)
            assert racing.result(5) == (0, winner)

    def test_the_winner_keeps_its_socket(self, client: Client, server: StreamServer) -> None:
        """Of twenty calls only the winner's connection stays, and its stream goes on."""
        models = ["silent head"] * 10 + ["silent"] * 9 + ["stalls"]
        key, stream = race([partial(client.chat_completion_stream, asking(model)) for model in models])
        assert key == 19
        assert server.wait_for(lambda server: server.open_connections == 1)
        assert (stream.get().text, stream.state) == ("one", "streaming")
        stream.close()
        assert gone(server)

    def test_one_that_opens_too_late(self) -> None:
        """What a call gives after the race is over is closed, though the call has not looked at its context."""
        (winner, late) = channels([], [])
        asked, over = threading.Event(), threading.Event()

        def call(context: Context) -> Channel[Any]:
            asked.set()
            assert over.wait(5)
            assert context.done()
            return late

        racing = spawn(race, [winner, call])
        assert asked.wait(5)
        winner.put(1)
        assert racing.result(5) == (0, winner)
        assert not late.closed
        over.set()
        assert within(5, lambda: late.closed)

    def test_a_winner_that_is_dropped(self, client: Client, server: StreamServer) -> None:
        """Nobody but the caller holds the winner: dropping it cancels it, though another call has not ended."""
        over = threading.Event()

        def hanging(context: Context) -> Channel[Any]:
            assert over.wait(5)
            raise ZeroDivisionError

        key, stream = race([hanging, partial(client.chat_completion_stream, asking("stalls"))])
        assert key == 1
        del stream
        assert gone(server)
        over.set()

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("items", [[1], []])
    def test_nothing_for_the_collector(self, items: list[int]) -> None:
        """What a call that failed held is gone with the race, whether another one has won or not."""
        held: list[weakref.ref[Any]] = []

        class Held:
            """Something that a call holds, such as a connection."""

        def broken(context: Context) -> Channel[Any]:
            mine = Held()
            held.append(weakref.ref(mine))
            raise ZeroDivisionError

        def working(context: Context) -> Channel[Any]:
            assert within(5, lambda: len(held) == 3)
            (channel,) = channels(items)
            channel.close()
            return channel

        try:
            race([broken, broken, working, broken])
        except ZeroDivisionError:
            assert items == []
        assert within(5, lambda: [ref() for ref in held] == [None] * 3)

    def test_a_context_that_lives_on(self, client: Client) -> None:
        """A context that lives on keeps nothing of a race whose stream was dropped."""
        context = Context()
        for _ in range(5):
            race([partial(client.chat_completion_stream, asking("fast"))] * 2, context=context)[1].collect()
        gc.collect()
        assert within(5, lambda: not context._callbacks)


class TestBreakingOff:
    def racers(self, client: Client) -> list[Any]:
        """Return racers of which none will say anything."""
        return [
            client.chat_completion_stream(asking("silent")),
            partial(client.chat_completion_stream, asking("silent head")),
            partial(client.chat_completion_stream, asking("silent")),
            Channel(),
        ]

    def test_a_timeout(self, client: Client, server: StreamServer) -> None:
        """Where none has a chunk in time that is an error, and nothing is left."""
        racers = self.racers(client)
        begun = time.monotonic()
        with pytest.raises(APITimeoutError):
            race(racers, timeout=0.1)
        assert time.monotonic() - begun >= 0.1
        assert gone(server)
        assert racers[3].closed

    def test_a_cancel(self, client: Client, server: StreamServer) -> None:
        """A cancel of the context ends the race at once, with the error of the context, and nothing is left."""
        context = Context()
        racing = spawn(lambda: race(self.racers(client), context=context))
        assert server.wait_for(lambda server: len(server.requests) == 3)
        context.cancel()
        assert racing.exception(5) is context.error
        assert gone(server)

    def test_before(self, client: Client, server: StreamServer) -> None:
        """With a context that is done nothing is sent, and what is open is closed."""
        context = Context()
        context.cancel()
        with pytest.raises(StreamCancelledError):
            race([partial(client.chat_completion_stream, asking("fast"))], context=context)
        (one,) = channels([])
        with pytest.raises(StreamCancelledError):
            race([one], context=context)
        assert one.closed
        assert server.requests == ()

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
    def test_ctrl_c(self, client: Client, server: StreamServer) -> None:
        """Ctrl-C ends the race, and nothing is left."""
        main = threading.get_ident()

        def press() -> None:
            assert server.wait_for(lambda server: len(server.requests) == 3)
            signal.pthread_kill(main, signal.SIGINT)

        pressing = spawn(press)
        with pytest.raises(KeyboardInterrupt):
            race(self.racers(client))
        pressing.result(5)
        assert gone(server)

    @pytest.mark.usefixtures("no_collector")
    def test_ctrl_c_anywhere(self) -> None:
        """Wherever Ctrl-C comes, a race that had begun leaves no loser open, and one that had not leaves all alone."""
        ends = set()
        for intrusion in intrusions():
            loser, winner = channels([], [1])
            with contextlib.suppress(KeyboardInterrupt), intrusion(press_ctrl_c):
                race([loser, winner])
            ends.add((loser.closed, winner.closed))
            assert loser.closed or waiters(loser, winner) == 0
        assert ends == {(False, False), (True, True), (True, False)}  # before, amid and after it

    def test_the_winner_and_the_clock(self, client: Client) -> None:
        """The timeout is the race's, and not that of the stream that wins."""
        _, stream = race([partial(client.chat_completion_stream, asking("stalls"))], timeout=0.3 * SCALE)
        assert [stream.get().text, stream.get().text] == ["one", " two"]
        assert not within(0.4 * SCALE, lambda: stream.closed)
        stream.close()

    def test_the_winner_and_the_context(self, client: Client) -> None:
        """The context is that of the stream that wins too, if a call opened it."""
        context = Context()
        _, stream = race([partial(client.chat_completion_stream, asking("stalls"))], context=context)
        context.cancel()
        assert [chunk.error is None for chunk in stream][-1] is False


class TestArguments:
    @pytest.mark.parametrize("thing", [None, 5, Channel()], ids=repr)
    def test_no_streams(self, thing: Any) -> None:
        """What is no collection is told at once."""
        with pytest.raises(TypeError, match=r"^streams: expected several channels, got "):
            race(thing)

    def test_nothing(self) -> None:
        """To race nobody is an error at once: it would be for ever."""
        with pytest.raises(ValueError, match=r"^streams: expected one at least$"):
            race({})

    @pytest.mark.parametrize(
        ("thing", "text"),
        [
            (5, "expected a Channel or a call that opens one, got 5"),
            (lambda: None, "expected a call that takes 'context=', got "),
            (lambda other: Channel(), "expected a call that takes 'context=', got "),
            (lambda context, other: Channel(), "expected a call that takes 'context=', got "),
        ],
    )
    def test_no_racer(self, thing: Any, text: str) -> None:
        """What can neither be raced nor be called is named by its key, and the others are left alone."""
        (one,) = channels([1])
        with pytest.raises(TypeError, match=rf"^streams\['b'\]: {text}"):
            race({"a": one, "b": thing})
        assert (one.qsize(), one.closed) == (1, False)

    def test_a_call_for_something_else(self) -> None:
        """A call that gives no channel has lost with an error that names it."""
        call: Any = lambda context: 5  # noqa: E731
        with pytest.raises(TypeError, match=r"^streams\['a'\]: expected the call to return a Channel, got 5$"):
            race({"a": call})

    def test_the_same_channel_twice(self) -> None:
        """A channel that is there twice is named by its second key."""
        (one,) = channels([1])
        with pytest.raises(ValueError, match=r"^streams\[1\]: this channel is there already$"):
            race([one, one])

    @pytest.mark.parametrize(
        ("settings", "text"),
        [({"timeout": 0}, "^timeout: "), ({"timeout": "5"}, "^timeout: "), ({"context": 5}, "^context: ")],
    )
    def test_settings(self, settings: Any, text: str) -> None:
        """Settings that make no sense are named, and the channels are left alone."""
        (one,) = channels([1])
        with pytest.raises((TypeError, ValueError), match=text):
            race([one], **settings)
        assert not one.closed

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_in_a_fork(self, client: Client) -> None:
        """In a forked child a stream of the parent is told to be the parent's: nobody waits for it."""
        stream = client.chat_completion_stream(asking("silent"))
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            try:
                race([stream])
            except StreamInterruptedError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stream.close()


def test_many_races_in_threads(client: Client) -> None:
    """Races in several threads, each of calls and channels, end each with one winner and leave nothing behind."""

    def run(fast: Callable[..., Any]) -> str:
        quiet: Channel[Any] = Channel()
        _, stream = race([quiet, fast, partial(client.chat_completion_stream, asking("silent")), fast])
        return stream.collect().text

    racing = [spawn(run, partial(client.chat_completion_stream, asking("fast"))) for _ in range(20)]
    assert [raced.result(20) for raced in racing] == [TEXT] * 20

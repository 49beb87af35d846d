"""Teeing: each consumer gets all, at its own pace, as far as the slowest lets it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import signal
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from chanstream import (
    Channel,
    ChannelClosedError,
    CompletionStream,
    StreamAPIError,
    StreamError,
    StreamInterruptedError,
    TeedChannel,
    merge,
    tee,
)
from chanstream.testing import Reply
from tests.concurrency import intrusions, press_ctrl_c, spawn
from tests.conftest import REQUEST, Link, within

TEXT = "one two three four"
FAILS = Reply(chunks=[{"choices": [{"index": 0, "delta": {"content": "one"}}]}, {"error": {"message": "no"}}])


def source(items: Iterable[Any] = (), maxsize: int = 0) -> Channel[Any]:
    """Return an open channel with these items."""
    channel: Channel[Any] = Channel(maxsize)
    channel.put_many(items)
    return channel


def drained(channel: Channel[Any]) -> list[Any]:
    """Take all that comes without waiting."""
    taken: list[Any] = []
    with contextlib.suppress(queue.Empty, ChannelClosedError, StreamError):
        while True:
            taken.append(channel.get_nowait())
    return taken


class TestItems:
    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_what_is_there(self, n: int) -> None:
        """What waits in the source is there at once for each, the same objects in the same order."""
        one, other = object(), object()
        channels = tee(source([one, other]), n)
        assert len(channels) == n
        for channel in channels:
            assert isinstance(channel, TeedChannel)
            taken = drained(channel)
            assert taken[0] is one
            assert taken[1] is other

    def test_what_comes(self) -> None:
        """What is put into the source comes to each, whether it waits for it or not."""
        channel = source()
        first, second = tee(channel, 2)
        taking = spawn(first.get)
        assert within(5, lambda: first.statistics().waiting_getters == 1)
        channel.put(1)
        channel.put(2)
        assert taking.result(5) == 1
        assert (drained(first), drained(second)) == ([2], [1, 2])

    def test_from_threads(self) -> None:
        """Whatever threads put and take, each consumer gets all, in order, through channels for few."""
        channel = source(maxsize=3)
        channels = tee(channel, 4, maxsize=2)
        consuming = [spawn(list, each) for each in channels]
        producing = spawn(channel.put_many, range(5_000))
        assert producing.result(20) is None
        channel.close()
        assert [consumed.result(10) for consumed in consuming] == [list(range(5_000))] * 4

    def test_several_consumers_of_one(self) -> None:
        """Threads that share one of the channels get each item once among them, and the other consumer gets all."""
        channel = source(maxsize=5)
        shared, alone = tee(channel, 2, maxsize=5)
        consuming = [spawn(list, each) for each in (shared, shared, shared, alone)]
        producing = [spawn(channel.put_many, range(n * 1_000, n * 1_000 + 1_000)) for n in range(3)]
        assert [produced.result(10) for produced in producing] == [None] * 3
        channel.close()
        *some, everything = [consumed.result(10) for consumed in consuming]
        assert sorted(item for each in some for item in each) == sorted(everything) == list(range(3_000))

    def test_some_leave_early(self) -> None:
        """While threads put and take, consumers leave wherever they are: the others get all, and the source ends."""

        def take(each: TeedChannel[int], most: int) -> list[int]:
            return list(itertools.islice(each, most))

        for round_ in range(30):
            channel = source(maxsize=3)
            channels = list(tee(channel, 4, maxsize=2))
            mosts = [500, round_, 500, 10 * round_]
            consuming = [spawn(take, channels.pop(0), most) for most in mosts]
            producing = spawn(channel.put_many, range(500))
            assert [consumed.result(10) for consumed in consuming] == [list(range(most)) for most in mosts]
            assert producing.result(5) is None
            assert within(5, lambda: channel.closed)  # noqa: B023 - of this round

    def test_of_tees_and_merges(self) -> None:
        """What is teed can be teed and merged again."""
        channel = source([1, 2])
        one, other = tee(channel, 2)
        merged = merge([*tee(one, 2), other])
        channel.close()
        assert sorted(merged) == [(key, item) for key in range(3) for item in (1, 2)]

    def test_no_thread(self, started: list[str]) -> None:
        """It costs no thread."""
        channel = source([1])
        assert [drained(each) for each in tee(channel, 3)] == [[1]] * 3
        assert started == []


class TestRoom:
    @pytest.mark.parametrize("maxsize", [1, 7, 200])
    def test_the_slowest_sets_the_pace(self, maxsize: int) -> None:
        """The others run ahead of the slowest by its capacity and a small batch, and on as it takes."""
        channel = source(range(1_000))
        slow, fast = tee(channel, 2, maxsize=maxsize)
        ahead = drained(fast)
        assert ahead == list(range(len(ahead)))
        assert maxsize <= len(ahead) <= maxsize + min(maxsize, 64)
        assert slow.qsize() == maxsize
        for taken in range(1_000):
            assert slow.get(timeout=5) == taken
            ahead += drained(fast)
        assert ahead == list(range(1_000))

    def test_down_to_the_producer(self) -> None:
        """A producer waits for room in the source while one of the channels is full, and goes on when there is."""
        channel = source(maxsize=4)
        slow, fast = tee(channel, 2, maxsize=8)
        consuming = spawn(list, fast)
        producing = spawn(channel.put_many, range(300))
        assert within(5, lambda: channel.statistics().waiting_putters == 1)
        assert slow.qsize() == 8
        assert channel.statistics().put <= 8 + 8 + 4
        assert [slow.get(timeout=5) for _ in range(300)] == list(range(300))
        assert producing.result(5) is None
        channel.close()
        assert consuming.result(5) == list(range(300))

    def test_no_limit(self) -> None:
        """Without a limit nobody waits for anybody."""
        slow, fast = tee(source(range(5_000)), 2, maxsize=0)
        assert len(drained(fast)) == slow.qsize() == 5_000


class TestEnd:
    def test_after_all_items(self) -> None:
        """Each ends after its last item when the source has ended."""
        channel = source([1, 2])
        first, second = tee(channel, 2)
        channel.close()
        assert (list(first), list(second)) == ([1, 2], [1, 2])
        assert not channel._pipe.waiters

    def test_one_is_at_the_end_before_the_other(self) -> None:
        """One that has taken all sees the end though another is full."""
        channel = source(range(12))
        slow, fast = tee(channel, 2, maxsize=10)
        channel.close()
        assert drained(fast) == list(range(12))[: len(range(12))]
        assert fast.closed
        assert list(slow) == list(range(12))

    def test_with_an_error(self) -> None:
        """The error that the source was closed with comes to each, after all items."""
        channel, error = source(range(100)), StreamError("it broke")
        channels = tee(channel, 2, maxsize=5)
        channel.close(error)
        for _ in range(100):
            for each in channels:
                each.get(timeout=5)
        for each in channels:
            with pytest.raises(StreamError) as caught:
                each.get(timeout=5)
            assert caught.value is error

    def test_of_a_closed_source(self) -> None:
        """A source that has ended already is given out whole."""
        channel = source([1])
        channel.close()
        assert [list(each) for each in tee(channel, 2)] == [[1], [1]]


def leave_loop(channel: TeedChannel[Any]) -> None:
    """Leave a loop early."""
    for _ in channel:
        break


def leave_async_loop(channel: TeedChannel[Any]) -> None:
    """Leave an asynchronous loop early."""

    async def consume() -> None:
        async for _ in channel:
            break

    asyncio.run(asyncio.wait_for(consume(), 5))


def leave_block(channel: TeedChannel[Any]) -> None:
    """Leave a with block."""
    with channel as entered:
        assert entered is channel


LEAVE: dict[str, Callable[[TeedChannel[Any]], None]] = {
    "close": TeedChannel.close,
    "shutdown": TeedChannel.shutdown,
    "break": leave_loop,
    "async break": leave_async_loop,
    "with": leave_block,
}


class TestLeaving:
    @pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
    def test_it_holds_up_nobody(self, leave: Callable[[TeedChannel[Any]], None]) -> None:
        """Whatever way one is left, the other goes on without waiting for it, and the source lives."""
        channel = source(range(100))
        slow, other = tee(channel, 2, maxsize=5)
        leave(slow)
        assert slow.closed
        assert list(slow) == []
        assert drained(other) == list(range(100))
        channel.put("more")
        assert other.get(timeout=0) == "more"
        assert not channel.closed

    def test_one_that_is_dropped(self) -> None:
        """So it is with one that nobody holds any more, and with a consumer that waits."""
        channel = source(range(20))
        slow, other = tee(channel, 2, maxsize=5)
        assert len(drained(other)) < 20
        taking = spawn(lambda: [other.get(timeout=5) for _ in range(5)])
        del slow
        assert len(taking.result(5)) == 5

    def test_all(self) -> None:
        """When all are closed the source is, and its producer is told."""
        channel = source(range(50), maxsize=50)
        first, second = tee(channel, 2, maxsize=5)
        producing = spawn(channel.put_many, range(100))
        assert within(5, lambda: channel.statistics().waiting_putters == 1)
        first.close()
        assert not channel.closed
        second.close()
        assert channel.closed
        assert isinstance(producing.exception(5), ChannelClosedError)
        assert not channel._pipe.waiters

    def test_dropping_all(self) -> None:
        """Dropping all of them closes the source, also where the caller still holds it."""
        channel = source([1])
        channels = tee(channel, 3)
        assert channels[0].get() == 1
        del channels
        assert channel.closed

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("taken", [0, 50, 100])
    def test_nothing_for_the_collector(self, taken: int) -> None:
        """What was teed is gone when the last references are, whether it was taken to its end or not."""
        channel = source(range(100))
        channels = tee(channel, 2, maxsize=5)
        pipes = [weakref.ref(each._pipe) for each in (channel, *channels)]
        for _ in range(taken):
            for each in channels:
                each.get(timeout=5)
        if taken == 100:
            channel.close()
        del channel, channels
        with contextlib.suppress(NameError):
            del each
        assert [pipe() for pipe in pipes] == [None] * 3

    def test_an_intruder(self) -> None:
        """A finalizer or signal handler that closes one in the middle of a put into the source stops nobody."""
        for intrusion in intrusions():
            channel = source(maxsize=2)
            one, other = tee(channel, 2, maxsize=2)
            with intrusion(one.close):
                channel.put_many([1, 2])
            channel.put(3)
            assert drained(other) == [1, 2, 3]
            other.close()
            assert channel.closed

    @pytest.mark.usefixtures("no_collector")
    def test_ctrl_c_in_a_move(self) -> None:
        """Ctrl-C in the middle of a move loses no item in silence: all come to each, or an error that tells of it."""
        for intrusion in intrusions():
            channel = source()
            channels = tee(channel, 2)
            waiting = channel._pipe.waiters.copy()
            (move,) = waiting.values()
            channel._pipe.waiters.clear()  # so that the move is not made by the put, but in the block
            channel.put_many(range(10))
            channel._pipe.waiters.update(waiting)

            with contextlib.suppress(KeyboardInterrupt), intrusion(press_ctrl_c):
                move()
            channel.close()
            for each in channels:
                taken = drained(each)
                with pytest.raises((ChannelClosedError, StreamError)) as caught:
                    each.get(timeout=0)
                assert taken == list(range(len(taken)))
                assert len(taken) == 10 or "KeyboardInterrupt" in str(caught.value)


class TestArguments:
    @pytest.mark.parametrize("thing", [None, [1], queue.Queue()])
    def test_no_channel(self, thing: Any) -> None:
        """What is no channel is told at once."""
        with pytest.raises(TypeError, match=r"^stream: expected a Channel, got "):
            tee(thing)

    @pytest.mark.parametrize(("n", "kind"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
    def test_a_wrong_number(self, n: Any, kind: type[Exception]) -> None:
        """A number of channels that makes no sense is named, and the source is left alone."""
        channel = source([1])
        with pytest.raises(kind, match=r"^n: expected "):
            tee(channel, n)
        assert (channel.qsize(), channel.closed) == (1, False)

    @pytest.mark.parametrize("maxsize", ["5", 1.5, True, None])
    def test_a_wrong_capacity(self, maxsize: Any) -> None:
        """A capacity that is no whole number is named, and the source is left alone."""
        channel = source([1])
        with pytest.raises(TypeError, match=r"^maxsize: "):
            tee(channel, 2, maxsize=maxsize)
        assert (channel.qsize(), channel.closed, len(channel._pipe.waiters)) == (1, False, 0)


@pytest.mark.usefixtures("nothing_left")
class TestStreams:
    def test_a_stream(self, plain: Link) -> None:
        """Each consumer gets every chunk of a stream, to the last."""
        stream = plain.stream(TEXT)
        texts = []
        for consumed in [spawn(list, each) for each in tee(stream, 3)]:
            chunks = consumed.result(5)
            texts.append("".join(chunk.text for chunk in chunks))
            assert chunks[-1].is_last_chunk
        assert texts == [TEXT] * 3

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_an_error(self, plain: Link, errors: Any) -> None:
        """An error comes to each as its last chunk, whatever the stream's own way of giving errors is."""
        for each in tee(plain.stream(FAILS, errors=errors), 2):
            chunks = list(each)
            assert chunks[0].text == "one"
            assert isinstance(chunks[-1].error, StreamAPIError)

    def test_many(self, plain: Link) -> None:
        """Many streams at a time, each with two consumers in threads, come whole to all."""
        client = plain.client(plain.serve(Reply(TEXT, pace=0.002)))
        consuming = [
            spawn(list, each) for _ in range(40) for each in tee(client.chat_completion_stream(REQUEST), 2, maxsize=1)
        ]
        for consumed in consuming:
            assert "".join(chunk.text for chunk in consumed.result(20)) == TEXT

    def test_leaving(self, plain: Link) -> None:
        """The stream goes on while one consumer is there, and is cancelled, socket and all, when the last has left."""
        server = plain.serve(Reply(TEXT, stall_after=2))
        stream: CompletionStream = plain.client(server).chat_completion_stream(REQUEST)
        first, second = tee(stream, 2)
        del stream
        assert [first.get(timeout=5).text, second.get(timeout=5).text] == ["one", "one"]
        first.close()
        assert second.get(timeout=5).text == " two"
        assert server.open_connections == 1
        del second
        assert server.wait_for(lambda server: server.open_connections == 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_in_a_fork(self, plain: Link) -> None:
        """In a forked child nobody waits for what the parent teed."""
        first, second = tee(plain.stream(Reply(TEXT, stall_after=0)), 2)
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            try:
                first.get()
            except StreamInterruptedError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not any(each.closed for each in (first, second))
        first.close()
        second.close()

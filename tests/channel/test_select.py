"""Selecting: the first of several channels, a fair choice among them, and the end of each told once."""

from __future__ import annotations

import copy
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from chanstream import CLOSED, Channel, ChannelClosedError, StreamAPIError, StreamError, StreamInterruptedError, select
from chanstream.testing import Reply
from tests.concurrency import intrusions, spawn
from tests.conftest import PROMPT, REQUEST, Link, within


def channels(*items: list[Any], closed: bool = False) -> list[Channel[Any]]:
    """Return a channel with each list of items."""
    made = [Channel[Any]() for _ in items]
    for channel, its in zip(made, items, strict=True):
        channel.put_many(its)
        if closed:
            channel.close()
    return made


def everything(*given: Channel[Any]) -> list[tuple[Channel[Any], Any]]:
    """Select until all channels are closed."""
    taken: list[tuple[Channel[Any], Any]] = []
    while True:
        try:
            taken.append(select(*given, timeout=5))
        except ChannelClosedError:
            return taken


def waiters(*given: Channel[Any]) -> int:
    """Return how many waiters the channels have."""
    return sum(len(channel._pipe.waiters) for channel in given)


class TestTaking:
    def test_what_is_there(self) -> None:
        """An item that is there is taken at once, and the channel that it was in is told."""
        one, two = channels([], ["x"])
        assert select(one, two) == (two, "x")
        assert two.empty()

    def test_in_order(self) -> None:
        """The items of each channel come in its order."""
        one, two = channels(list(range(50)), list(range(50)), closed=True)
        taken = everything(one, two)
        for channel in (one, two):
            assert [item for where, item in taken if where is channel] == [*range(50), CLOSED]

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_an_item_wakes_it(self, which: int) -> None:
        """An item that comes to any of the channels wakes the selector at once."""
        given = channels([], [], [])
        selecting = spawn(select, *given)
        assert within(5, lambda: waiters(*given) == 3)
        given[which].put("at last")
        assert selecting.result(PROMPT) == (given[which], "at last")

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_a_close_wakes_it(self, which: int) -> None:
        """So does the close of any of them."""
        given = channels([], [], [])
        selecting = spawn(select, *given)
        assert within(5, lambda: waiters(*given) == 3)
        given[which].close()
        assert selecting.result(PROMPT) == (given[which], CLOSED)

    def test_falsy_items(self) -> None:
        """Items that are false are items."""
        (one,) = channels([None, 0, "", False])
        assert [select(one)[1] for _ in range(4)] == [None, 0, "", False]

    def test_the_same_channel_twice(self) -> None:
        """A channel that is given twice counts once: its end is told once, and it is chosen as often as another."""
        one, two = channels([1], [2], closed=True)
        assert len(everything(one, one, two, one)) == 4
        one, two = channels([0] * 64, [0] * 64)
        often: Counter[Channel[Any]] = Counter()
        for _ in range(10_000):
            channel, item = select(one, one, two, one)
            channel.put(item)
            often[channel] += 1
        assert abs(often[one] - 5_000) < 500  # ten standard deviations

    def test_it_leaves_nothing_behind(self) -> None:
        """Whatever way a select ends, no waiter of it stays."""
        one, two = channels([], [])
        with pytest.raises(queue.Empty):
            select(one, two, timeout=0.01)
        assert waiters(one, two) == 0
        selecting = spawn(select, one, two)
        assert within(5, lambda: waiters(one, two) == 2)
        one.put(1)
        assert selecting.result(5) == (one, 1)
        assert waiters(one, two) == 0

    def test_it_does_not_poll(self) -> None:
        """A selector that waits does nothing at all."""
        one, two = channels([], [])
        calls = [0]

        def count(*_: object) -> None:
            calls[0] += 1

        def counted() -> object:
            sys.setprofile(count)
            return select(one, two)

        selecting = spawn(counted)
        assert within(5, lambda: waiters(one, two) == 2)
        begun = calls[0]
        threading.Event().wait(0.2)
        assert calls[0] - begun < 100  # what is left of the look before the wait
        two.put(1)
        assert selecting.result(5) == (two, 1)


class TestTimeout:
    def test_nothing_in_time(self) -> None:
        """Where nothing comes in time, that is queue.Empty, neither early nor late."""
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            select(*channels([], []), timeout=0.1)
        assert 0.1 <= time.monotonic() - begun < 0.1 + 2 * PROMPT

    def test_no_wait(self) -> None:
        """With a timeout of 0 nothing is waited for, as with a default in Go, and what is there is taken."""
        one, two = channels([], [])
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            select(one, two, timeout=0)
        assert time.monotonic() - begun < PROMPT
        one.put(1)
        assert select(one, two, timeout=0) == (one, 1)

    def test_in_time(self) -> None:
        """An item that comes in time is taken when it comes."""
        one, two = channels([], [])
        selecting = spawn(lambda: select(one, two, timeout=30))
        assert within(5, lambda: waiters(one, two) == 2)
        one.put(1)
        assert selecting.result(PROMPT) == (one, 1)


class TestArguments:
    def test_none(self) -> None:
        """To select from no channel is an error at once: it would be for ever."""
        with pytest.raises(ValueError, match=r"^channels: expected one at least$"):
            select()

    @pytest.mark.parametrize("thing", [None, queue.Queue(), [1], "x"])
    def test_no_channel(self, thing: Any) -> None:
        """What is no channel is named by its position, and nothing is taken."""
        (one,) = channels([1])
        with pytest.raises(TypeError, match=r"^channels\[1\]: expected a Channel, got "):
            select(one, thing)
        assert one.qsize() == 1

    def test_a_negative_timeout(self) -> None:
        """A negative timeout is an error, also where something is there."""
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            select(*channels([1]), timeout=-1)


class TestClosed:
    def test_each_once(self) -> None:
        """The end of each channel is told once, after its items; and when all have ended, that is an error."""
        one, two = channels([1], [2, 3], closed=True)
        taken = everything(one, two)
        assert Counter(taken) == Counter([(one, 1), (one, CLOSED), (two, 2), (two, 3), (two, CLOSED)])
        for timeout in (0, 1, None):
            with pytest.raises(ChannelClosedError):
                select(one, two, timeout=timeout)

    def test_the_others_go_on(self) -> None:
        """A channel whose end was told is skipped, and the others are waited for."""
        one, two = channels([], [])
        one.close()
        assert select(one, two) == (one, CLOSED)
        with pytest.raises(queue.Empty):
            select(one, two, timeout=0.01)
        two.put(2)
        assert select(one, two) == (two, 2)

    def test_over_all_selectors(self) -> None:
        """The end is told to one of all selectors, whatever other channels they look at."""
        one, two, three = channels([], [2], [3])
        one.close()
        assert select(one) == (one, CLOSED)
        assert select(one, two) == (two, 2)
        assert select(three, one) == (three, 3)

    def test_those_that_come_too_late(self) -> None:
        """Of several threads that wait for one channel each hears of its end: one by CLOSED, the others by an error."""
        (one,) = channels([])
        selecting = [spawn(select, one) for _ in range(4)]
        assert within(5, lambda: waiters(one) == 4)
        one.close()
        errors = [future.exception(5) for future in selecting]
        assert sum(error is None for error in errors) == 1
        assert sum(isinstance(error, ChannelClosedError) for error in errors) == 3

    def test_with_an_error(self) -> None:
        """The error that a channel was closed with is raised, once and after the items; then it is skipped."""
        (one,) = channels([1])
        other: Channel[int] = Channel()
        error = StreamError("it broke")
        one.close(error)
        assert select(one, other) == (one, 1)
        with pytest.raises(StreamError) as caught:
            select(one, other)
        assert caught.value is error
        with pytest.raises(queue.Empty):
            select(one, other, timeout=0)
        other.close()
        assert select(one, other) == (other, CLOSED)
        with pytest.raises(ChannelClosedError):
            select(one, other)

    def test_an_error_that_says_closed(self) -> None:
        """An error is raised whatever its kind is."""
        (one,) = channels([])
        error = ChannelClosedError("gone for lunch")
        one.close(error)
        with pytest.raises(ChannelClosedError, match="lunch"):
            select(one)
        with pytest.raises(ChannelClosedError, match="all channels"):
            select(one)

    def test_the_other_ways_do_not_change(self) -> None:
        """A channel whose end was told in a select ends as before for whoever takes from it in another way."""
        (one,) = channels([], closed=True)
        assert select(one) == (one, CLOSED)
        assert list(one) == []
        with pytest.raises(ChannelClosedError):
            one.get()

    def test_what_it_is(self) -> None:
        """CLOSED is one false object, also after a copy and a pickle, that shows its name."""
        assert not CLOSED
        assert repr(CLOSED) == "CLOSED"
        assert copy.deepcopy(CLOSED) is CLOSED
        assert pickle.loads(pickle.dumps(CLOSED)) is CLOSED


class TestFair:
    @pytest.mark.parametrize("count", [2, 5, 10])
    def test_over_many_items(self, count: int) -> None:
        """Over 100 000 items from channels that always have some, each is within 10 % of its share."""
        given = channels(*[[0] * 64 for _ in range(count)])
        often: Counter[Channel[Any]] = Counter()
        for _ in range(100_000):
            channel, item = select(*given)
            channel.put(item)
            often[channel] += 1
        share = 100_000 / count  # at 10 channels, 10 % off is more than ten standard deviations
        assert all(abs(often[channel] - share) < 0.1 * share for channel in given), often.values()

    def test_against_a_fast_one(self) -> None:
        """A channel that always has something does not keep out one that sometimes has."""
        fast, slow = channels([0] * 64, [])
        turns = []
        for _ in range(200):
            slow.put("slow")
            turn = 1
            while select(fast, slow)[0] is fast:
                fast.put(0)
                turn += 1
            turns.append(turn)
        assert sum(turns) / len(turns) < 3  # 2 on average, with a standard deviation of 0.1


class TestThreads:
    def test_each_item_once(self) -> None:
        """Several threads select from the same channels that others put into: each item goes to exactly one."""
        given = [Channel[tuple[int, int]](5) for _ in range(4)]

        def produce(number: int) -> None:
            for item in range(1_000):
                given[number].put((number, item))
            given[number].close()

        selecting = [spawn(everything, *given) for _ in range(4)]
        producing = [spawn(produce, number) for number in range(4)]
        taken = [selected.result(30) for selected in selecting]
        assert all(produced.result(5) is None for produced in producing)
        items = [item for each in taken for _, item in each if item is not CLOSED]
        assert sorted(items) == [(number, item) for number in range(4) for item in range(1_000)]
        assert Counter(where for each in taken for where, item in each if item is CLOSED) == Counter(given)
        for each in taken:  # and in order, as far as one thread can see
            for channel in given:
                mine = [item for where, item in each if where is channel and item is not CLOSED]
                assert mine == sorted(mine)
        assert waiters(*given) == 0

    def test_with_other_consumers(self) -> None:
        """A select that finds nothing in a channel that seemed to have something goes on with the others."""
        given = channels([], [])
        stop = threading.Event()

        def snatch() -> list[Any]:
            taken: list[Any] = []
            while not stop.is_set():
                try:
                    taken += given[0].get_many(timeout=0)
                except queue.Empty:
                    continue
            return taken

        snatching = [spawn(snatch) for _ in range(2)]
        selecting = spawn(everything, *given)
        for item in range(2_000):
            given[item % 2].put(item)
        assert within(30, lambda: not any(channel.qsize() for channel in given))
        stop.set()
        taken = [item for snatched in snatching for item in snatched.result(5)]
        for channel in given:
            channel.close()
        taken += [item for _, item in selecting.result(5) if item is not CLOSED]
        assert sorted(taken) == list(range(2_000))

    @pytest.mark.parametrize("items", [([], []), ([1], []), ([], [1])])
    @pytest.mark.parametrize("act", [Channel.close, lambda channel: channel._pipe.abandon()])
    def test_an_intruder(self, items: tuple[list[int], list[int]], act: Callable[[Channel[Any]], None]) -> None:
        """A signal handler or finalizer that closes a channel in the middle of a select wakes it or was too late."""
        for intrusion in intrusions():
            one, two = channels(*items)
            acted: list[bool] = []

            def intrude(one: Channel[Any] = one, acted: list[bool] = acted) -> None:
                acted.append(True)
                act(one)

            def rescue(two: Channel[Any] = two, acted: list[bool] = acted) -> None:
                if not acted:  # the place of the intrusion is behind the wait
                    two.put("rescue")

            rescuing = threading.Timer(0.02, rescue)
            rescuing.start()
            with intrusion(intrude):
                first = select(one, two, timeout=5)
            rescuing.cancel()
            rescuing.join()
            two.close()
            taken = [item for _, item in [first, *everything(one, two)]]
            assert taken.count(CLOSED) == 2
            assert [item for item in taken if isinstance(item, int)] in ([*items[0], *items[1]], [])
            assert waiters(one, two) == 0

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
    @pytest.mark.parametrize("receiver", ["main thread", "another"])
    def test_ctrl_c(self, receiver: str) -> None:
        """Ctrl-C ends a select that waits, whichever thread the signal comes to, and leaves no waiter behind."""
        one, two = channels([], [])
        main = threading.get_ident()

        def press() -> None:
            assert within(5, lambda: waiters(one, two) == 2)
            signal.pthread_kill(main if receiver == "main thread" else threading.get_ident(), signal.SIGINT)

        pressing = spawn(press)
        with pytest.raises(KeyboardInterrupt):
            select(one, two)
        pressing.result(5)
        assert waiters(one, two) == 0

    def test_a_signal_handler_that_puts(self) -> None:
        """An item that a signal handler of the waiting thread puts wakes it."""
        one, two = channels([], [])
        main = threading.get_ident()

        def press() -> None:
            assert within(5, lambda: waiters(one, two) == 2)
            signal.pthread_kill(main, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_: two.put("signalled"))
        try:
            pressing = spawn(press)
            assert select(one, two, timeout=5) == (two, "signalled")
            pressing.result(5)
        finally:
            signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("nothing_left")
class TestStreams:
    FAILING = Reply(chunks=[{"choices": [{"index": 0, "delta": {"content": "one"}}]}, {"error": {"message": "no"}}])

    def test_whichever_comes_first(self, plain: Link) -> None:
        """Chunks of several streams come as they arrive, each stream whole, and its end is told once."""
        texts = ["one two three", "four five six", "seven eight nine"]
        client = plain.client(plain.serve(*[Reply(text, pace=0.005) for text in texts]))
        streams: list[Channel[Any]] = [client.chat_completion_stream(REQUEST) for _ in texts]
        said = dict.fromkeys(streams, "")
        for stream, evt in everything(*streams):
            if evt is not CLOSED:
                said[stream] += evt.text
        assert sorted(said.values()) == sorted(texts)

    def test_errors(self, plain: Link) -> None:
        """A stream's error comes as the stream has it: as a chunk, or raised; and then its end is told."""
        client = plain.client(plain.serve(self.FAILING, self.FAILING))
        inband = client.chat_completion_stream(REQUEST)
        taken = [evt for _, evt in everything(inband)]
        assert taken[0].text == "one"
        assert isinstance(taken[1].error, StreamAPIError)
        assert taken[2:] == [CLOSED]
        raising = client.chat_completion_stream(REQUEST, errors="raise")
        assert select(raising)[1]
        with pytest.raises(StreamAPIError, match="no"):
            select(raising, timeout=5)
        assert select(raising, timeout=5) == (raising, CLOSED)

    def test_a_stream_that_is_closed(self, plain: Link) -> None:
        """A stream that another thread closes ends the wait."""
        stream = plain.stream(Reply("one two three", stall_after=2))
        assert [stream.get().text, stream.get().text] == ["one", " two"]
        selecting = spawn(select, stream)
        assert within(5, lambda: waiters(stream) == 1)
        stream.close()
        assert selecting.result(2 * PROMPT) == (stream, CLOSED)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    @pytest.mark.parametrize("timeout", [0, None])
    def test_in_a_fork(self, plain: Link, timeout: float | None) -> None:
        """In a forked child a stream of the parent is told to be the parent's: nobody waits for it."""
        stream = plain.stream(Reply("one two three", stall_after=0))
        idle: Channel[Any] = Channel()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            try:
                select(stream, idle, timeout=timeout)
            except StreamInterruptedError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stream.close()

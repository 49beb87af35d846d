"""The channel: everything a queue.Queue promises, and what closing and iterating add."""

from __future__ import annotations

import gc
import itertools
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from chanstream import Channel, ChannelClosedError, StreamError
from tests.concurrency import spawn
from tests.conftest import PROMPT, SCALE, within

EACH_QUEUE = pytest.mark.parametrize("make", [queue.Queue, Channel], ids=["queue.Queue", "Channel"])
SHORT = 0.02


def getters(channel: Channel[Any], count: int) -> bool:
    """Return whether so many threads wait for an item, in a moment at the latest."""
    return within(5, lambda: channel.statistics().waiting_getters == count)


def putters(channel: Channel[Any], count: int) -> bool:
    """Return whether so many threads wait for room, in a moment at the latest."""
    return within(5, lambda: channel.statistics().waiting_putters == count)


def filled(*items: Any, maxsize: int = 0) -> Channel[Any]:
    """Return a channel with these items in it."""
    channel: Channel[Any] = Channel(maxsize)
    channel.put_many(items)
    return channel


@EACH_QUEUE
class TestAQueue:
    """What holds for queue.Queue itself, run against it too."""

    def test_first_in_first_out(self, make: Any) -> None:
        """Items come out in the order in which they went in, whatever they are."""
        items = [1, None, "a", [], 2, ..., None]
        channel = make()
        for item in items:
            channel.put(item)
        assert [channel.get() for _ in items] == items

    def test_size(self, make: Any) -> None:
        """qsize, empty and full tell how many items are in it."""
        channel = make(2)
        assert (channel.maxsize, channel.qsize(), channel.empty(), channel.full()) == (2, 0, True, False)
        channel.put(1)
        assert (channel.qsize(), channel.empty(), channel.full()) == (1, False, False)
        channel.put(2)
        assert (channel.qsize(), channel.empty(), channel.full()) == (2, False, True)
        channel.get()
        assert (channel.qsize(), channel.empty(), channel.full()) == (1, False, False)

    @pytest.mark.parametrize("maxsize", [0, -1])
    def test_no_limit(self, make: Any, maxsize: int) -> None:
        """A size of 0 or less is no limit."""
        channel = make(maxsize)
        for item in range(1000):
            channel.put_nowait(item)
        assert not channel.full()
        assert channel.qsize() == 1000

    def test_empty(self, make: Any) -> None:
        """Getting from an empty queue without waiting, or longer than one would wait, raises Empty."""
        channel = make()
        for get in (channel.get_nowait, lambda: channel.get(False), lambda: channel.get(block=False, timeout=9)):
            with pytest.raises(queue.Empty):
                get()
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            channel.get(timeout=SHORT)
        assert SHORT <= time.monotonic() - begun < SHORT + SCALE

    def test_full(self, make: Any) -> None:
        """Putting into a full queue without waiting, or longer than one would wait, raises Full; it stays as it was."""
        channel = make(1)
        channel.put(1)
        puts: list[Callable[[], object]] = [
            lambda: channel.put_nowait(2),
            lambda: channel.put(2, False),
            lambda: channel.put(2, block=False, timeout=9),
        ]
        for put in puts:
            with pytest.raises(queue.Full):
                put()
        begun = time.monotonic()
        with pytest.raises(queue.Full):
            channel.put(2, timeout=SHORT)
        assert SHORT <= time.monotonic() - begun < SHORT + SCALE
        assert (channel.get(), channel.empty()) == (1, True)

    @pytest.mark.parametrize("timeout", [-1, -0.001])
    def test_a_negative_timeout(self, make: Any, timeout: float) -> None:
        """A negative timeout is refused, except where there is no waiting."""
        channel = make(1)
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            channel.get(timeout=timeout)
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            channel.put(1, timeout=timeout)
        channel.put(1, block=False, timeout=timeout)
        assert channel.get(block=False, timeout=timeout) == 1

    def test_a_get_that_waits(self, make: Any) -> None:
        """A get that waits has the next item as soon as it is put."""
        channel = make()
        got = spawn(channel.get)
        channel.put("x")
        assert got.result(5) == "x"

    def test_a_put_that_waits(self, make: Any) -> None:
        """A put that waits goes on as soon as there is room."""
        channel = make(1)
        channel.put(1)
        put = spawn(channel.put, 2)
        assert (channel.get(), channel.get(timeout=5)) == (1, 2)
        assert put.result(5) is None

    def test_a_timeout_of_zero(self, make: Any) -> None:
        """A timeout of 0 takes what is there and does not wait."""
        channel = make(1)
        channel.put(1, timeout=0)
        with pytest.raises(queue.Full):
            channel.put(2, timeout=0)
        assert channel.get(timeout=0) == 1
        with pytest.raises(queue.Empty):
            channel.get(timeout=0)

    def test_join(self, make: Any) -> None:
        """Join waits until every item that was put has been reported as done."""
        channel = make()
        channel.put(1)
        channel.put(2)
        joined = spawn(channel.join)
        for _ in range(2):
            assert channel.unfinished_tasks > 0
            assert not joined.done()
            channel.get()
            channel.task_done()
        joined.result(5)
        channel.join()

    def test_join_of_a_new_one(self, make: Any) -> None:
        """A queue into which nothing was put has nothing to wait for."""
        make().join()

    def test_done_too_often(self, make: Any) -> None:
        """Reporting more as done than was put is an error."""
        channel = make()
        channel.put(1)
        channel.task_done()
        with pytest.raises(ValueError, match="too many times"):
            channel.task_done()

    def test_workers(self, make: Any) -> None:
        """The usual crew of workers, which end at a None each, does every item once."""
        channel = make(4)
        done: queue.SimpleQueue[int] = queue.SimpleQueue()

        def work() -> None:
            while (item := channel.get()) is not None:
                done.put(item)
                channel.task_done()
            channel.task_done()

        workers = [spawn(work) for _ in range(4)]
        for item in range(200):
            channel.put(item)
        for _ in workers:
            channel.put(None)
        channel.join()
        for worker in workers:
            worker.result(5)
        assert sorted(done.get() for _ in range(200)) == list(range(200))

    def test_its_parts(self, make: Any) -> None:
        """The lock, the conditions and the waiting items can be reached by their usual names."""
        channel = make(3)
        channel.put(1)
        with channel.mutex:
            assert list(channel.queue) == [1]
            channel.not_empty.notify()
            channel.not_full.notify()
            channel.all_tasks_done.notify_all()

    def test_a_class_with_parameters(self, make: Any) -> None:
        """The class can be given the type of its items."""
        assert make[int](3).maxsize == 3


SHUTDOWNS = pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            queue.Queue,
            id="queue.Queue",
            marks=pytest.mark.skipif(sys.version_info < (3, 13), reason="it has no shutdown before Python 3.13"),
        ),
        pytest.param(Channel, id="Channel"),
    ],
)
SHUT = (ChannelClosedError, getattr(queue, "ShutDown", ChannelClosedError))


@SHUTDOWNS
class TestShutdown:
    """queue.Queue's own way of closing, which came with Python 3.13."""

    def test_it_drains(self, make: Any) -> None:
        """After a shutdown nothing more goes in, and what is in can still be taken."""
        channel = make()
        channel.put(1)
        channel.shutdown()
        with pytest.raises(SHUT):
            channel.put(2)
        assert channel.get() == 1
        for get in (channel.get, channel.get_nowait):
            with pytest.raises(SHUT):
                get()

    def test_at_once(self, make: Any) -> None:
        """An immediate shutdown drops what is in."""
        channel = make()
        channel.put(1)
        channel.shutdown(immediate=True)
        with pytest.raises(SHUT):
            channel.get()
        assert channel.empty()

    def test_it_wakes_all(self, make: Any) -> None:
        """A shutdown ends every get and every put that waits."""
        empty, full = make(), make(1)
        full.put(1)
        waiting = [spawn(empty.get), spawn(empty.get), spawn(full.put, 2), spawn(full.put, 3)]
        empty.shutdown()
        full.shutdown(immediate=True)
        assert all(isinstance(future.exception(5), SHUT) for future in waiting)

    def test_it_ends_joins(self, make: Any) -> None:
        """What an immediate shutdown drops counts as done: whoever joins, before or after it, goes on."""
        channel = make()
        channel.put(1)
        channel.put(2)
        joined = spawn(channel.join)
        channel.shutdown(immediate=True)
        joined.result(5)
        spawn(channel.join).result(5)

    def test_work_that_was_begun(self, make: Any) -> None:
        """An item that was taken before an immediate shutdown has still to be reported as done."""
        channel = make()
        channel.put(1)
        channel.put(2)
        channel.get()
        channel.shutdown(immediate=True)
        assert channel.unfinished_tasks == 1
        channel.task_done()
        spawn(channel.join).result(5)


class TestMaking:
    @pytest.mark.parametrize("maxsize", [None, "5", 1.0, True, [1]])
    def test_a_size_that_is_no_number(self, maxsize: Any) -> None:
        """A capacity that is no whole number is refused, and named."""
        with pytest.raises(TypeError, match=r"^maxsize: expected a whole number, got"):
            Channel(maxsize)

    def test_it_is_a_queue(self) -> None:
        """A channel can be used wherever a queue.Queue is asked for."""
        assert isinstance(Channel(), queue.Queue)


class TestTimeouts:
    def test_a_number_in_the_first_place(self) -> None:
        """A number in the first place of get is the timeout: ``get(0.5)`` waits half a second."""
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            Channel[int]().get(SHORT)
        assert time.monotonic() - begun >= SHORT
        with pytest.raises(queue.Empty):
            Channel[int]().get(0)

    def test_all_of_it_counts(self) -> None:
        """A timeout is for the whole wait: a getter that is woken in vain, others were faster, does not start over."""
        channel: Channel[int] = Channel()
        begun = time.monotonic()
        getting = spawn(lambda: channel.get(timeout=0.2))
        while not getting.done() and time.monotonic() - begun < 5:
            channel._pipe._wake(channel._pipe.getters)
        assert isinstance(getting.exception(5), queue.Empty)
        assert time.monotonic() - begun < 0.2 + SCALE


class TestClose:
    def test_it_drains(self) -> None:
        """After close nothing more goes in; what is in can still be taken; then the channel says that it is closed."""
        channel = filled(1, 2)
        assert not channel.closed
        channel.close()
        assert channel.closed
        puts: list[Callable[[], object]] = [
            lambda: channel.put(3),
            lambda: channel.put_nowait(3),
            lambda: channel.put(3, timeout=0),
            lambda: channel.put_many([3, 4]),
            lambda: channel.put_many([]),
        ]
        for put in puts:
            with pytest.raises(ChannelClosedError):
                put()
        assert (channel.get(), channel.get_nowait()) == (1, 2)
        gets: list[Callable[[], object]] = [
            channel.get,
            channel.get_nowait,
            lambda: channel.get(timeout=5),
            channel.get_many,
        ]
        for get in gets:
            with pytest.raises(ChannelClosedError):
                get()

    def test_again(self) -> None:
        """Only the first close counts."""
        channel = filled(1)
        channel.close()
        channel.close(StreamError("late"))
        assert list(channel) == [1]

    def test_on_a_full_channel(self) -> None:
        """Close never blocks, and refuses the items for which there was no room."""
        channel = filled(1, maxsize=1)
        put = spawn(channel.put, 2)
        assert putters(channel, 1)
        begun = time.monotonic()
        channel.close()
        assert time.monotonic() - begun < PROMPT
        assert isinstance(put.exception(PROMPT), ChannelClosedError)
        assert list(channel) == [1]

    def test_it_frees_all_consumers(self) -> None:
        """Every get that waits ends at once."""
        channel: Channel[int] = Channel()
        waiting = [spawn(channel.get) for _ in range(5)] + [spawn(channel.get_many) for _ in range(5)]
        assert getters(channel, 10)
        channel.close()
        assert {type(future.exception(PROMPT)) for future in waiting} == {ChannelClosedError}

    def test_it_frees_all_producers(self) -> None:
        """Every put that waits ends at once."""
        channel = filled(0, maxsize=1)
        waiting = [spawn(channel.put, item) for item in range(5)] + [spawn(channel.put_many, [1, 2]) for _ in range(5)]
        assert putters(channel, 10)
        channel.close()
        assert {type(future.exception(PROMPT)) for future in waiting} == {ChannelClosedError}
        assert list(channel) == [0]

    def test_with_an_error(self) -> None:
        """Consumers get the error that the channel was closed with, each of them, once all is taken."""
        channel, error = filled(1), StreamError("it broke")
        channel.close(error)
        assert channel.get() == 1
        for get in (channel.get, channel.get_nowait, channel.get_many, lambda: next(iter(channel))):
            with pytest.raises(StreamError) as caught:
                get()
            assert caught.value is error

    def test_an_error_does_not_reach_the_producer(self) -> None:
        """A producer is told that the channel is closed, and not why."""
        channel: Channel[int] = Channel()
        channel.close(StreamError("it broke"))
        with pytest.raises(ChannelClosedError):
            channel.put(1)

    def test_an_error_wakes_who_waits(self) -> None:
        """A consumer that waits gets the error at once."""
        channel: Channel[int] = Channel()
        got, error = spawn(channel.get), StreamError("it broke")
        assert getters(channel, 1)
        channel.close(error)
        assert got.exception(PROMPT) is error


class TestIteration:
    def test_to_the_end(self) -> None:
        """Iterating takes items until the channel is closed and empty."""
        channel: Channel[int] = Channel(3)

        def produce() -> None:
            for item in range(100):
                channel.put(item)
            channel.close()

        producing = spawn(produce)
        assert list(channel) == list(range(100))
        producing.result(5)

    def test_a_break(self) -> None:
        """Leaving the loop leaves the channel open, and a later loop goes on."""
        channel = filled(1, 2, 3)
        channel.close()
        for item in channel:
            assert item == 1
            break
        assert list(channel) == [2, 3]
        assert list(channel) == []

    def test_an_error(self) -> None:
        """The error that the channel was closed with ends the loop, after the items."""
        channel, error = filled(1, 2), StreamError("it broke")
        channel.close(error)
        got: list[int] = []
        with pytest.raises(StreamError) as caught:
            got.extend(iter(channel))
        assert (got, caught.value) == ([1, 2], error)

    def test_an_error_like_the_plain_end(self) -> None:
        """An error that the channel was closed with is raised, also if it is a ChannelClosedError."""
        channel: Channel[int] = Channel()
        error = ChannelClosedError("of another channel")
        channel.close(error)
        with pytest.raises(ChannelClosedError) as caught:
            list(channel)
        assert caught.value is error

    def test_several_loops(self) -> None:
        """Several threads may iterate: each item goes to one of them, and all loops end."""
        channel: Channel[int] = Channel(2)
        loops = [spawn(list, channel) for _ in range(4)]
        for item in range(500):
            channel.put(item)
        channel.close()
        assert sorted(item for loop in loops for item in loop.result(5)) == list(range(500))


class TestMany:
    def test_put_many(self) -> None:
        """Several items go in with one call, in order; any iterable will do."""
        channel: Channel[int] = Channel()
        channel.put_many(iter([1, 2]))
        channel.put_many(())
        channel.put_many([3])
        assert channel.get_many() == [1, 2, 3]

    def test_get_many(self) -> None:
        """All that is there is taken at once, or as many as asked for."""
        channel = filled(1, 2, 3, 4, 5)
        assert channel.get_many(2) == [1, 2]
        assert channel.get_many(most=1) == [3]
        assert channel.get_many(100) == [4, 5]

    def test_get_many_waits_for_the_first(self) -> None:
        """Where nothing is there, get_many waits for the first item as get does."""
        channel: Channel[int] = Channel()
        with pytest.raises(queue.Empty):
            channel.get_many(timeout=SHORT)
        got = spawn(channel.get_many)
        assert getters(channel, 1)
        channel.put_many([1, 2, 3])
        assert got.result(5) == [1, 2, 3]

    def test_more_than_there_is_room_for(self) -> None:
        """More items than the capacity go in as others are taken, and the put ends with the last."""
        channel: Channel[int] = Channel(3)
        put = spawn(channel.put_many, range(10))
        taken: list[int] = []
        while len(taken) < 9:
            taken += channel.get_many(1)
            assert channel.qsize() <= 3
        assert put.result(5) is None
        assert [*taken, *channel.get_many()] == list(range(10))

    def test_no_room_in_time(self) -> None:
        """What had room until the time was up stays in, the rest is given up."""
        channel = filled(1, maxsize=2)
        with pytest.raises(queue.Full):
            channel.put_many([2, 3, 4], timeout=SHORT)
        assert channel.get_many() == [1, 2]
        assert channel.statistics().waiting_putters == 0

    @pytest.mark.parametrize("timeout", [-1, -0.001])
    def test_a_negative_timeout(self, timeout: float) -> None:
        """A negative timeout is refused, as it is for single items."""
        channel = filled(1, maxsize=1)
        with pytest.raises(ValueError, match="non-negative"):
            channel.put_many([2], timeout)
        with pytest.raises(ValueError, match="non-negative"):
            channel.get_many(timeout=timeout)
        assert channel.get_many() == [1]

    @pytest.mark.parametrize("most", [0, -1])
    def test_a_bound_below_one(self, most: int) -> None:
        """Asking for less than one item is refused."""
        with pytest.raises(ValueError, match=r"^most: expected 1 or more, got"):
            filled(1).get_many(most)


class TestOrder:
    def test_capacity_is_exact(self) -> None:
        """There are never more items in the channel than its capacity, nor a producer waiting beside an empty place."""
        channel: Channel[int] = Channel(3)
        producers = [spawn(channel.put_many, range(start, start + 100)) for start in (0, 100, 200)]
        depths: list[int] = []
        taken: list[int] = []
        while len(taken) < 300:
            taken.append(channel.get(timeout=5))
            depths.append(channel.qsize())
        assert max(depths) <= 3
        assert channel.statistics().most_depth == 3
        assert sorted(taken) == list(range(300))
        for producer in producers:
            producer.result(5)

    def test_each_producers_order(self) -> None:
        """The items of each of several producers come in the order in which it put them."""
        channel: Channel[tuple[int, int]] = Channel(2)

        def produce(name: int) -> None:
            for item in range(200):
                channel.put((name, item))

        producers = [spawn(produce, name) for name in range(4)]
        taken = [channel.get(timeout=5) for _ in range(800)]
        for name, producer in enumerate(producers):
            producer.result(5)
            assert [item for by, item in taken if by == name] == list(range(200))

    def test_who_waited_first(self) -> None:
        """Producers that wait for room are served in the order in which they came."""
        channel = filled("in", maxsize=1)
        waiting = []
        for place in range(5):
            waiting.append(spawn(channel.put, place))
            assert putters(channel, place + 1)
        assert [channel.get(timeout=5) for _ in range(6)] == ["in", 0, 1, 2, 3, 4]
        for future in waiting:
            future.result(5)

    def test_nobody_overtakes_who_waits(self) -> None:
        """A put that would not wait does not take the place of one that waits already."""
        channel = filled(1, maxsize=1)
        waiting = spawn(channel.put, 2)
        assert putters(channel, 1)
        with pytest.raises(queue.Full):
            channel.put_nowait(3)
        assert [channel.get(), channel.get(timeout=5)] == [1, 2]
        waiting.result(5)

    def test_who_gives_up(self) -> None:
        """A producer that gives up makes way for the one behind it."""
        channel = filled(1, maxsize=1)
        first = spawn(lambda: channel.put(2, timeout=0.3))
        assert putters(channel, 1)
        second = spawn(channel.put, 3)
        assert isinstance(first.exception(5), queue.Full)
        assert [channel.get(), channel.get(timeout=5)] == [1, 3]
        second.result(5)


class TestStatistics:
    def test_of_a_new_one(self) -> None:
        """A new channel has its capacity and nothing else."""
        assert attrs.asdict(Channel(7).statistics()) == {
            "maxsize": 7,
            "depth": 0,
            "most_depth": 0,
            "put": 0,
            "taken": 0,
            "waiting_getters": 0,
            "waiting_putters": 0,
            "closed": False,
        }

    def test_after_some_traffic(self) -> None:
        """They count what went in and out, how full it is and was, and who waits."""
        channel = filled(1, 2, 3, maxsize=3)
        waiting = spawn(channel.put_many, [4, 5])
        assert putters(channel, 1)
        full = channel.statistics()
        assert (full.depth, full.most_depth, full.put, full.taken) == (3, 3, 3, 0)
        channel.get_many()
        waiting.result(5)
        channel.get()
        channel.close()
        assert attrs.asdict(channel.statistics()) == {
            "maxsize": 3,
            "depth": 1,
            "most_depth": 3,
            "put": 5,
            "taken": 4,
            "waiting_getters": 0,
            "waiting_putters": 0,
            "closed": True,
        }

    def test_who_waits_for_items(self) -> None:
        """Threads that wait for an item are counted while they do."""
        channel: Channel[int] = Channel()
        waiting = [spawn(channel.get) for _ in range(3)]
        assert getters(channel, 3)
        channel.put_many([1, 2, 3])
        assert sorted(future.result(5) for future in waiting) == [1, 2, 3]
        assert channel.statistics().waiting_getters == 0

    def test_what_was_dropped(self) -> None:
        """Items that were dropped count neither as taken nor as there."""
        channel = filled(1, 2, 3)
        channel.get()
        channel.shutdown(immediate=True)
        told = channel.statistics()
        assert (told.put, told.taken, told.depth) == (3, 1, 0)

    def test_a_frozen_value(self) -> None:
        """They are a picture of one moment, which does not change."""
        channel: Channel[int] = Channel()
        before = channel.statistics()
        channel.put(1)
        assert before.put == 0
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            before.put = 5  # type: ignore[misc]

    def test_who_puts_nothing(self) -> None:
        """A producer that puts nothing waits for nothing."""
        channel = filled(1, maxsize=1)
        waiting = spawn(channel.put, 2)
        assert putters(channel, 1)
        channel.put_many([])
        assert channel.statistics().waiting_putters == 1
        channel.close()
        assert isinstance(waiting.exception(5), ChannelClosedError)


class TestStress:
    @pytest.mark.parametrize("maxsize", [1, 64, 0])
    def test_nothing_is_lost_or_doubled(self, maxsize: int) -> None:
        """Through many producers and consumers of every kind, 100 000 items each go to exactly one, in order."""
        total = 100_000 if maxsize != 1 else 20_000  # a hand-over for each item takes its time
        channel: Channel[tuple[int, int]] = Channel(maxsize)
        share = total // 4

        def put_singly(name: int) -> None:
            for item in range(share):
                channel.put((name, item))

        def put_in_bursts(name: int) -> None:
            for start in range(0, share, 50):
                channel.put_many([(name, item) for item in range(start, min(start + 50, share))])

        def take_in_bursts() -> list[tuple[int, int]]:
            taken: list[tuple[int, int]] = []
            while True:
                try:
                    taken += channel.get_many(7)
                except ChannelClosedError:
                    return taken

        puts = [put_singly, put_singly, put_in_bursts, put_in_bursts]
        producers = [spawn(put, name) for name, put in enumerate(puts)]
        consumers = [spawn(list, channel), spawn(list, channel), spawn(take_in_bursts), spawn(take_in_bursts)]
        for producer in producers:
            producer.result(40)
        channel.close()
        taken = [consumer.result(40) for consumer in consumers]
        assert sorted(item for items in taken for item in items) == [(n, i) for n in range(4) for i in range(share)]
        for items, name in itertools.product(taken, range(4)):
            own = [item for by, item in items if by == name]
            assert own == sorted(own)
        assert channel.statistics().taken == total

    def test_timeouts_lose_nothing(self) -> None:
        """Puts and gets that give up now and then lose no item and double none."""
        channel: Channel[int] = Channel(2)
        refused: queue.SimpleQueue[int] = queue.SimpleQueue()

        def produce(start: int) -> None:
            for item in range(start, start + 1000):
                try:
                    channel.put(item, timeout=0.0001)
                except queue.Full:
                    refused.put(item)

        def consume() -> list[int]:
            taken = []
            while True:
                try:
                    taken.append(channel.get(timeout=0.0001))
                except queue.Empty:
                    continue
                except ChannelClosedError:
                    return taken

        consumers = [spawn(consume) for _ in range(3)]
        for producer in [spawn(produce, start) for start in (0, 1000, 2000)]:
            producer.result(30)
        channel.close()
        taken = [item for consumer in consumers for item in consumer.result(10)]
        assert sorted(taken + [refused.get() for _ in range(refused.qsize())]) == list(range(3000))

    def test_close_in_the_middle(self) -> None:
        """Whenever the channel is closed, what was accepted is taken, and what was refused is not."""
        for _ in range(50):
            channel: Channel[int] = Channel(3)
            start = threading.Barrier(3)

            def produce(channel: Channel[int] = channel, start: threading.Barrier = start) -> int:
                start.wait(5)
                accepted = 0
                try:
                    while True:
                        channel.put(accepted)
                        accepted += 1
                except ChannelClosedError:
                    return accepted

            producing, consuming = spawn(produce), spawn(lambda: (start.wait(5), list(channel)))  # noqa: B023 - same round
            start.wait(5)
            channel.close()
            assert consuming.result(5)[1] == list(range(producing.result(5)))


class TestMemory:
    def test_a_taken_item_is_let_go(self) -> None:
        """A channel keeps no reference to an item that was taken or dropped, or that it refused."""

        class Item:
            pass

        channel: Channel[Item] = Channel(1)
        items = [Item(), Item(), Item()]
        kept = [weakref.ref(item) for item in items]
        channel.put(items[0])
        channel.get()
        channel.put(items[1])
        with pytest.raises(queue.Full):
            channel.put_nowait(items[2])
        channel.shutdown(immediate=True)
        items.clear()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 3

    def test_an_items_finalizer_may_use_the_channel(self) -> None:
        """An item that is dropped may use the channel in its finalizer."""
        told: list[object] = []

        class Item:
            def __del__(self) -> None:
                told.append(channel.statistics().depth)
                told.append(channel.closed)

        channel: Channel[Item] = Channel()
        channel.put(Item())
        channel.shutdown(immediate=True)
        assert told == [0, True]

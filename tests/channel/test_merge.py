"""Merging: many channels as one, in order, without a thread, and with one end for all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chanstream import (
    CLOSED,
    Channel,
    ChannelClosedError,
    Client,
    CompletionStream,
    MergedChannel,
    StreamError,
    StreamInterruptedError,
    merge,
    select,
)
from chanstream.calls import Engine
from chanstream.channel import Pipe
from chanstream.testing import Reply
from tests.concurrency import intrusions, press_ctrl_c, spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within

TEXT = "one two three four"
STALLED = Reply(TEXT, stall_after=2)
CUT = Reply(TEXT, cut_at=500)


def sources(*items: Iterable[Any], maxsize: int = 0) -> list[Channel[Any]]:
    """Return an open channel with each list of items."""
    made = [Channel[Any](maxsize) for _ in items]
    for channel, its in zip(made, items, strict=True):
        channel.put_many(its)
    return made


def close(channels: Iterable[Channel[Any]]) -> None:
    """Close channels."""
    for channel in channels:
        channel.close()


def drained(channel: Channel[Any]) -> list[Any]:
    """Take all that comes without waiting."""
    taken: list[Any] = []
    with contextlib.suppress(queue.Empty, ChannelClosedError, StreamError):
        while True:
            taken.append(channel.get_nowait())
    return taken


def drained_to_the_end(channel: Channel[Any]) -> list[Any]:
    """Take all, waiting for it."""
    return list(channel)


def waiters(*channels: Channel[Any]) -> int:
    """Return how many waiters the channels have."""
    return sum(len(channel._pipe.waiters) for channel in channels)


class TestItems:
    def test_what_is_there(self) -> None:
        """What waits in the sources, open or closed, is there at once, each item with its source's position."""
        one, two = sources([1, 2], [3])
        two.close()
        merged = merge([one, two])
        assert isinstance(merged, Channel)
        assert isinstance(merged, MergedChannel)
        assert drained(merged) == [(0, 1), (0, 2), (1, 3)]

    def test_what_comes(self) -> None:
        """What is put into a source comes out of the merged channel, in the order in which it was put."""
        one, two = sources([], [])
        merged = merge([one, two])
        for item in range(6):
            (two if item % 3 else one).put(item)
        assert drained(merged) == [(0, 0), (1, 1), (1, 2), (0, 3), (1, 4), (1, 5)]

    def test_the_keys_of_a_mapping(self) -> None:
        """The keys are those of a mapping."""
        one, two = sources([1], [2])
        assert drained(merge({"a": one, ("b", 3): two})) == [("a", 1), (("b", 3), 2)]

    def test_any_iterable(self) -> None:
        """Sources may come from any iterable; the keys are their positions."""
        assert drained(merge(iter(sources([1], [], [2])))) == [(0, 1), (2, 2)]

    def test_a_waiting_consumer(self) -> None:
        """An item of any source wakes a consumer that waits, at once."""
        one, two = sources([], [])
        merged = merge([one, two])
        taking = spawn(merged.get)
        assert within(5, lambda: merged.statistics().waiting_getters == 1)
        two.put("x")
        assert taking.result(PROMPT) == (1, "x")

    def test_order_from_threads(self) -> None:
        """Whatever threads put and take, each source's items come whole and in order, through channels for few."""
        channels = sources([], [], [], [], maxsize=3)
        merged = merge(channels, maxsize=2)

        def produce(channel: Channel[int]) -> None:
            for item in range(3_000):
                channel.put(item)
            channel.close()

        producing = [spawn(produce, channel) for channel in channels]
        taken = list(merged)
        assert all(produced.result(5) is None for produced in producing)
        for key in range(4):
            assert [item for where, item in taken if where == key] == list(range(3_000))

    def test_several_producers_and_consumers(self) -> None:
        """Threads that share a source, and threads that share the merged channel, lose and double nothing."""
        channels = sources([], [])
        merged = merge(channels, maxsize=5)
        consuming = [spawn(drained_to_the_end, merged) for _ in range(3)]
        producing = [spawn(channels[n % 2].put_many, range(n * 1_000, n * 1_000 + 1_000)) for n in range(4)]
        assert all(produced.result(10) is None for produced in producing)
        close(channels)
        taken = [pair for consumed in consuming for pair in consumed.result(10)]
        assert sorted(item for _, item in taken) == list(range(4_000))
        assert all(key == item // 1_000 % 2 for key, item in taken)

    def test_merged_channels(self) -> None:
        """Merged channels can be merged."""
        a, b, c = sources([1], [2], [3])
        inner: dict[str, Channel[Any]] = {"x": merge([a, b]), "y": merge({"c": c})}
        merged = merge(inner)
        a.put(4)
        close([a, b, c])
        assert list(merged) == [("x", (0, 1)), ("x", (1, 2)), ("y", ("c", 3)), ("x", (0, 4))]

    def test_selecting(self) -> None:
        """A merged channel can be selected from."""
        one, other = sources([], [])
        merged = merge({"a": one})
        selecting = spawn(select, merged, other)
        assert within(5, lambda: waiters(merged, other) == 2)
        one.put(1)
        assert selecting.result(PROMPT) == (merged, ("a", 1))
        one.close()
        assert select(merged, other) == (merged, CLOSED)


class TestRoom:
    def test_a_full_channel_holds_the_sources_back(self) -> None:
        """A source is taken from only as far as there is room, up to a small batch, and on again as there is."""
        channels = sources(range(500), range(500))
        merged = merge(channels, maxsize=10)
        assert merged.qsize() == 10
        assert all(channel.qsize() >= 500 - 64 - 10 for channel in channels)
        close(channels)
        taken = list(merged)
        for key in range(2):
            assert [item for where, item in taken if where == key] == list(range(500))

    def test_down_to_the_producer(self) -> None:
        """A producer waits for room in its own channel while the merged one is full, and goes on when it is taken."""
        (one,) = sources([], maxsize=4)
        merged = merge([one], maxsize=8)
        producing = spawn(one.put_many, range(300))
        assert within(5, lambda: one.statistics().waiting_putters == 1)
        assert merged.qsize() == 8
        assert one.statistics().put <= 8 + 64 + 4
        assert [merged.get(timeout=5)[1] for _ in range(300)] == list(range(300))
        assert producing.result(5) is None

    def test_one_that_is_held_back_leaves_the_others(self) -> None:
        """A fast source does not keep the others out: each gets its turn after a batch."""
        fast, slow = sources(range(10_000), [])
        merged = merge([fast, slow], maxsize=10)
        slow.put("x")
        taken = [merged.get() for _ in range(10 + 64 + 1)]
        assert (1, "x") in taken

    def test_a_finished_source_beside_a_full_one(self) -> None:
        """What had no room is there though its source was closed meanwhile."""
        one, two = sources(range(200), range(200))
        merged = merge([one, two], maxsize=1)
        close([one, two])
        assert len(list(merged)) == 400

    def test_no_limit(self) -> None:
        """Without a limit all that is there is taken over."""
        merged = merge(sources(range(5_000)), maxsize=0)
        assert merged.qsize() == 5_000


class TestEnd:
    def test_after_all(self) -> None:
        """It ends when the last source has ended, and not before."""
        one, two = sources([1], [2])
        merged = merge([one, two])
        one.close()
        states = [merged.closed]
        two.put(3)
        two.close()
        assert [*states, merged.closed] == [False, True]
        assert list(merged) == [(0, 1), (1, 2), (1, 3)]

    @pytest.mark.parametrize("nothing", [[], {}, iter(())])
    def test_of_nothing(self, nothing: Any) -> None:
        """Without sources it is closed at once."""
        merged = merge(nothing)
        assert merged.closed
        assert list(merged) == []

    def test_sources_that_have_ended(self) -> None:
        """Sources that have ended already end it at once, after what is in them."""
        channels = sources([1], [])
        close(channels)
        merged = merge(channels)
        assert merged.closed
        assert list(merged) == [(0, 1)]

    def test_with_an_error(self) -> None:
        """A source that was closed with an error does not end the others; the first error comes after all items."""
        one, two, three = sources([1], [2], [3])
        merged = merge([one, two, three])
        first = StreamError("it broke")
        two.close(first)
        one.close(StreamError("it broke too"))
        assert not merged.closed
        three.put(4)
        three.close()
        got: list[tuple[int, int]] = []
        with pytest.raises(StreamError) as caught:
            got.extend(merged)
        assert caught.value is first
        assert got == [(0, 1), (1, 2), (2, 3), (2, 4)]
        assert waiters(one, two, three) == 0

    def test_with_an_error_that_says_closed(self) -> None:
        """An error ends the loop over it whatever its kind is."""
        (one,) = sources([1])
        merged = merge([one])
        one.close(ChannelClosedError("gone for lunch"))
        with pytest.raises(ChannelClosedError, match="lunch"):
            list(merged)

    def test_the_items_before_an_error(self) -> None:
        """No item is lost to an error."""
        one, two = sources(range(300), range(300))
        merged = merge([one, two], maxsize=1)
        one.close(StreamError("it broke"))
        two.close()
        for _ in range(600):
            merged.get(timeout=5)
        with pytest.raises(StreamError, match="it broke"):
            merged.get(timeout=5)

    def test_it_wakes_the_consumer(self) -> None:
        """A consumer that waits is woken by the end."""
        channels = sources([], [])
        merged = merge(channels)
        taking = spawn(drained_to_the_end, merged)
        assert within(5, lambda: merged.statistics().waiting_getters == 1)
        close(channels)
        assert taking.result(PROMPT) == []


def leave_loop(merged: MergedChannel[Any, Any]) -> None:
    """Leave a loop early."""
    for _ in merged:
        break


def leave_loop_by_an_error(merged: MergedChannel[Any, Any]) -> None:
    """Leave a loop by an exception."""

    def consume() -> None:
        for _ in merged:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()


def leave_async_loop(merged: MergedChannel[Any, Any]) -> None:
    """Leave an asynchronous loop early."""

    async def consume() -> None:
        async for _ in merged:
            break

    asyncio.run(asyncio.wait_for(consume(), 5))


def leave_block(merged: MergedChannel[Any, Any]) -> None:
    """Leave a with block."""
    with merged as entered:
        assert entered is merged


LEAVE: dict[str, Callable[[MergedChannel[Any, Any]], None]] = {
    "close": MergedChannel.close,
    "shutdown": MergedChannel.shutdown,
    "shutdown at once": lambda merged: merged.shutdown(immediate=True),
    "break": leave_loop,
    "error": leave_loop_by_an_error,
    "async break": leave_async_loop,
    "with": leave_block,
}


class TestLeaving:
    @pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
    def test_early(self, leave: Callable[[MergedChannel[Any, Any]], None]) -> None:
        """Whatever way it is left, all sources are closed, what was not taken is dropped, and no waiter stays."""
        channels = sources([1], range(100), [])
        merged = merge(channels, maxsize=2)
        leave(merged)
        assert merged.closed
        assert all(channel.closed for channel in channels)
        assert list(merged) == []
        assert waiters(*channels) == 0

    def test_dropping_it(self) -> None:
        """Dropping the last reference closes the sources, those too that the caller still holds."""
        channels = sources([1], [2])
        merged = merge(channels)
        assert merged.qsize() == 2
        del merged
        assert all(channel.closed for channel in channels)
        assert waiters(*channels) == 0

    def test_dropping_a_loop(self) -> None:
        """So does dropping the iterator of a channel that nobody holds."""
        channels = sources([1, 2], [])
        pairs = iter(merge(channels))
        assert next(pairs) == (0, 1)
        del pairs
        assert all(channel.closed for channel in channels)

    def test_it_wakes_all(self) -> None:
        """A close wakes consumers of the merged channel, and producers that wait for room."""
        (one, two) = sources([], [], maxsize=1)
        merged = merge([one, two], maxsize=1)
        producing = spawn(one.put_many, range(200))
        assert within(5, lambda: one.statistics().waiting_putters == 1)
        merged.close()
        assert isinstance(producing.exception(PROMPT), ChannelClosedError)
        other = merge(sources([], []))
        taking = spawn(other.get)
        assert within(5, lambda: other.statistics().waiting_getters == 1)
        other.close()
        assert isinstance(taking.exception(PROMPT), ChannelClosedError)

    def test_twice(self) -> None:
        """Closing it again, or after its end, does nothing."""
        channels = sources([1])
        close(channels)
        merged = merge(channels)
        assert list(merged) == [(0, 1)]
        merged.close()
        merged.close()
        assert merged.closed

    def test_those_that_go_on_first(self) -> None:
        """Sources that go on are closed before those that have had their last item, which may take a moment."""
        closed: list[Channel[Any]] = []

        class Noting(Channel[Any]):
            def close(self, error: BaseException | None = None) -> None:
                closed.append(self)
                super().close(error)

        channels = [Noting() for _ in range(4)]
        channels[0]._pipe.end([1])
        channels[2]._pipe.end([1])
        merge(channels).close()
        assert closed[:4] == [channels[n] for n in (1, 3, 0, 2)]

    @pytest.mark.usefixtures("no_collector")
    @pytest.mark.parametrize("taken", [0, 100, 200])
    @pytest.mark.parametrize("maxsize", [1, 1_000])
    def test_nothing_for_the_collector(self, taken: int, maxsize: int) -> None:
        """What was merged is gone when the last references are, whether it was taken to its end or not."""
        channels = sources(range(100), range(100))
        merged = merge(channels, maxsize=maxsize)
        pipes = [weakref.ref(channel._pipe) for channel in (merged, *channels)]
        for _ in range(taken):
            merged.get(timeout=5)
        if taken == 200:
            close(channels)
        del merged, channels
        assert [pipe() for pipe in pipes] == [None] * 3

    def test_nested(self) -> None:
        """Closing a channel that merged channels were merged into closes all the way down."""
        channels = sources([1], [], [])
        merged = merge([merge(channels[:2]), merge(channels[2:])])
        merged.close()
        assert all(channel.closed for channel in channels)


class TestArguments:
    @pytest.mark.parametrize("thing", [None, 5, Channel()], ids=repr)
    def test_no_channels(self, thing: Any) -> None:
        """What is no collection of channels is told at once; a single channel too, and nothing is taken from it."""
        with pytest.raises(TypeError, match=r"^streams: expected several channels, got "):
            merge(thing)

    def test_no_channel(self) -> None:
        """What is no channel is named by its position or key, and the others are left alone."""
        (one,) = sources([1])
        wrong: Any = queue.Queue()
        with pytest.raises(TypeError, match=r"^streams\[1\]: expected a Channel, got "):
            merge([one, wrong])
        with pytest.raises(TypeError, match=r"^streams\['b'\]: expected a Channel, got "):
            merge({"a": one, "b": wrong})
        assert (one.qsize(), one.closed, waiters(one)) == (1, False, 0)

    def test_the_same_twice(self) -> None:
        """A channel that is there twice is named by its second key."""
        one, two = sources([1], [])
        with pytest.raises(ValueError, match=r"^streams\[2\]: this channel is there already$"):
            merge([one, two, one])
        with pytest.raises(ValueError, match=r"^streams\['b'\]: this channel is there already$"):
            merge({"a": one, "b": one})
        assert one.qsize() == 1

    @pytest.mark.parametrize("maxsize", ["5", 1.5, True, None])
    def test_a_wrong_capacity(self, maxsize: Any) -> None:
        """A capacity that is no whole number is told by its name, and the sources are left alone."""
        (one,) = sources([1])
        with pytest.raises(TypeError, match=r"^maxsize: "):
            merge([one], maxsize=maxsize)
        assert (one.qsize(), one.closed) == (1, False)


class TestAsync:
    def test_a_loop(self) -> None:
        """An asynchronous loop takes what threads put, and ends when all sources have ended."""
        channels = sources([], [], maxsize=2)

        def produce() -> None:
            for item in range(300):
                channels[item % 2].put(item)
            close(channels)

        async def consume() -> list[tuple[int, int]]:
            threads = threading.active_count()
            producing = spawn(produce)
            taken = [pair async for pair in merge(channels, maxsize=3)]
            producing.result(5)
            assert threading.active_count() <= threads + 1
            return taken

        taken = asyncio.run(asyncio.wait_for(consume(), 10))
        for key in range(2):
            assert [item for where, item in taken if where == key] == list(range(key, 300, 2))


STEPS: dict[str, Callable[[list[Channel[Any]], MergedChannel[int, Any]], object]] = {
    "put": lambda channels, _: channels[0].put_many([101, 102, 103], 0),
    "put into the other": lambda channels, _: channels[1].put_many([201, 202], 0),
    "get": lambda _, merged: merged.get(timeout=0),
    "get all": lambda _, merged: merged.get_many(timeout=0),
    "close one": lambda channels, _: channels[0].close(),
    "close": lambda _, merged: merged.close(),
}
INTRUDERS: dict[str, Callable[[list[Channel[Any]], MergedChannel[int, Any]], object]] = {
    "close one": lambda channels, _: channels[0].close(),
    "abandon one": lambda channels, _: channels[0]._pipe.abandon(),
    "close both": lambda channels, _: close(channels),
    "close": lambda _, merged: merged.close(),
}


@pytest.mark.parametrize("maxsize", [2, 1_000])
@pytest.mark.parametrize("intruder", INTRUDERS)
@pytest.mark.parametrize("step", STEPS)
def test_an_intruder(step: str, intruder: str, maxsize: int) -> None:
    """A finalizer or signal handler that closes a source, or all, in the middle of a move does not break it.

    What comes out is each source's items in order, without gaps where it was not abandoned; and it ends.
    """
    for intrusion in intrusions():
        channels = sources(range(100), range(200, 201))
        merged = merge(channels, maxsize=maxsize)
        taken: Any = []
        with (
            intrusion(lambda channels=channels, merged=merged: INTRUDERS[intruder](channels, merged)),  # type: ignore[misc]
            contextlib.suppress(ChannelClosedError, queue.Empty),
        ):
            taken = STEPS[step](channels, merged)
        taken = [taken] if step == "get" and taken else taken if step == "get all" else []
        close(channels)
        taken += drained(merged)
        assert merged.closed
        assert waiters(*channels) == 0
        assert merged.statistics().waiting_putters == 0
        for key, channel in enumerate(channels):
            items = [item for where, item in taken if where == key]
            assert items == sorted(set(items))
            if "close" not in (step, intruder) and (intruder != "abandon one" or key):
                assert len(items) == channel.statistics().put


class Surprising(Pipe[Any]):
    """A pipe into which another thread puts an item right after it was found to have none, and which it closes then."""

    surprise = True

    def readable(self) -> bool:
        """Look, and change it then."""
        found = super().readable()
        if self.surprise and not found:
            self.surprise = False
            spawn(self.put_many, ["late"]).result(5)
            spawn(self.close).result(5)
        return found


class Snatched(Pipe[Any]):
    """A pipe from which somebody else takes the first item after the look at it."""

    snatched = False

    def readable(self) -> bool:
        """Look, and take what is there."""
        found = super().readable()
        if found and not self.snatched:
            self.snatched = True
            self.get()
        return found


def test_a_consumer_that_should_not_be_there() -> None:
    """What is taken from a source by somebody else is missing, and nothing else is."""
    channel: Channel[int] = Channel(pipe=Snatched())
    merged = merge([channel])
    channel.put_many([1])
    channel.put_many([2, 3])
    channel.close()
    assert list(merged) == [(0, 2), (0, 3)]


def test_news_amid_a_look() -> None:
    """What another thread puts, and the close after it, are seen though the source was just found empty and open."""
    assert list(merge([Channel(pipe=Surprising())])) == [(0, "late")]


class Eager(Pipe[Any]):
    """A pipe that has news for a waiter before that is told how to be taken away again."""

    def add_waiter(self, waiter: Callable[[], None]) -> Callable[[], None]:
        """Call the waiter at once."""
        forget = super().add_waiter(waiter)
        spawn(waiter).result(5)
        return forget


def test_news_amid_the_beginning() -> None:
    """A source that ends while it is being taken over is taken over whole."""
    channel: Channel[int] = Channel(pipe=Eager())
    channel.put_many([1, 2])
    channel.close()
    other: Channel[int] = Channel()
    merged = merge([channel, other])
    other.put(3)
    other.close()
    assert list(merged) == [(0, 1), (0, 2), (1, 3)]
    assert waiters(channel, other) == 0


@pytest.mark.usefixtures("no_collector")
def test_ctrl_c_in_a_move() -> None:
    """Ctrl-C in the middle of a move never loses items in silence: all of them come, or an error that tells of it."""
    ends: Counter[type[Exception]] = Counter()
    for intrusion in intrusions():
        (one,) = sources([])
        merged = merge([one])
        waiting = one._pipe.waiters.copy()
        (move,) = waiting.values()
        one._pipe.waiters.clear()  # so that the move is not made by the put, but in the block
        one.put_many(range(100))
        one._pipe.waiters.update(waiting)
        with contextlib.suppress(KeyboardInterrupt), intrusion(press_ctrl_c):
            move()
        one.close()
        taken = drained(merged)
        with pytest.raises((ChannelClosedError, StreamError)) as caught:
            merged.get(timeout=0)
        ends[caught.type] += 1
        assert taken == [(0, item) for item in range(len(taken))]
        assert len(taken) == 100 or "KeyboardInterrupt" in str(caught.value)
    assert len(ends) == 2  # it came in the middle of a move, and between moves


class MergeMachine(RuleBasedStateMachine):
    """Puts, closes and gets, in one thread: what comes out is what went in, source by source."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @initialize(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=4), maxsize=st.integers(0, 70))
    def begin(self, sizes: list[int], maxsize: int) -> None:
        """Make sources, and merge them."""
        self.channels = [Channel[int](size) for size in sizes]
        self.expected: list[list[int]] = [[] for _ in sizes]
        self.merged = merge(self.channels, maxsize=maxsize)

    @rule(which=st.integers(0, 3), count=st.integers(1, 150))
    def put(self, which: int, count: int) -> None:
        """Put as many items as have room."""
        which %= len(self.channels)
        for _ in range(count):
            self.number += 1
            try:
                self.channels[which].put_nowait(self.number)
            except (queue.Full, ChannelClosedError):
                return
            self.expected[which].append(self.number)

    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        """Close a source."""
        self.channels[which % len(self.channels)].close()

    @rule(most=st.none() | st.integers(1, 5))
    def get(self, most: int | None) -> None:
        """Take what is there; where nothing is, nothing is anywhere, and where it is over, all sources are."""
        try:
            taken = self.merged.get_many(most, timeout=0)
        except queue.Empty:
            assert not any(self.expected)
            assert not self.merged.closed
        except ChannelClosedError:
            assert not any(self.expected)
            assert all(channel.closed for channel in self.channels)
        else:
            for key, item in taken:
                assert item == self.expected[key].pop(0)

    @invariant()
    def nothing_waits_beside_room(self) -> None:
        """What is in a source is there for want of room only; and it is closed exactly when all has been moved."""
        merged = self.merged
        if any(channel.qsize() for channel in self.channels):
            assert merged.qsize() == merged.maxsize > 0
        moved = not any(channel.qsize() for channel in self.channels) and not merged.statistics().waiting_putters
        assert merged.closed == (moved and all(channel.closed for channel in self.channels))

    def teardown(self) -> None:
        """Close all, and take the rest: nothing is lost."""
        if hasattr(self, "merged"):
            close(self.channels)
            for key, item in self.merged:
                assert item == self.expected[key].pop(0)
            assert not any(self.expected)


TestMergeMachine = MergeMachine.TestCase
TestMergeMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients, where it is there."""
    found: Engine = request.param
    try:
        Client("key", engine=found)
    except ValueError:
        pytest.skip(f"this version has no {found} engine")
    return found


@pytest.mark.usefixtures("nothing_left")
class TestStreams:
    def streams(self, link: Link, *replies: Reply, **settings: Any) -> list[CompletionStream]:
        """Return a stream of each reply."""
        client = link.client(link.serve(*replies))
        return [client.chat_completion_stream(REQUEST, **settings) for _ in replies]

    def test_all_of_them(self, link: Link) -> None:
        """Several streams at a time: each comes whole, with its last chunk, and then it is over."""
        texts = ["one two three", "four five six", "seven eight nine"]
        said: Counter[int] = Counter()
        words = ["", "", ""]
        for key, evt in merge(self.streams(link, *[Reply(text, pace=0.01) for text in texts])):
            words[key] += evt.text
            said[key] += evt.is_last_chunk
        assert words == texts
        assert said == {0: 1, 1: 1, 2: 1}

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_one_that_fails(self, plain: Link, errors: Any) -> None:
        """The error of a stream comes as its last chunk, whatever its errors= says, and the others go on."""
        streams = self.streams(plain, CUT, Reply(TEXT, pace=0.02), errors=errors)
        pairs = list(merge({"cut": streams[0], "whole": streams[1]}))
        cut = [evt for key, evt in pairs if key == "cut"]
        assert isinstance(cut[-1].error, StreamError)
        assert not any(evt.error for evt in cut[:-1])
        assert "".join(evt.text for key, evt in pairs if key == "whole") == TEXT
        assert pairs[-1][1].is_last_chunk

    @pytest.mark.parametrize("leave", [*LEAVE, "drop", "drop all"])
    def test_leaving_early(self, plain: Link, leave: str) -> None:
        """Whatever way it is left, all streams are cancelled: connections and threads are free in no time."""
        server = plain.serve(*[STALLED] * 5)
        client = plain.client(server)
        streams = [client.chat_completion_stream(REQUEST) for _ in range(5)]
        assert within(5, lambda: all(stream.qsize() == 2 for stream in streams))
        merged = merge(streams)
        if leave == "drop all":
            streams.clear()
        if leave.startswith("drop"):
            del merged
        else:
            LEAVE[leave](merged)
        assert server.wait_for(lambda s: s.open_connections == 0, 2 * PROMPT)
        assert all(stream.state == "cancelled" for stream in streams)

    def test_a_full_channel_stops_the_server(self, plain: Link) -> None:
        """A consumer that does not take holds all servers back: what is read of each answer is bounded."""
        reply = Reply(["x" * 1000] * 20_000)
        streams = self.streams(plain, reply, reply, buffer=5)
        merged = merge(streams, maxsize=10)
        assert within(5, lambda: all(stream.qsize() >= 5 for stream in streams))
        put = [stream.statistics().put for stream in streams]
        threading.Event().wait(0.1)
        assert [stream.statistics().put for stream in streams] == put
        assert sum(put) < 10 + 2 * (64 + 5)
        taken = [merged.get(timeout=5) for _ in range(1_000)]
        assert Counter(key for key, _ in taken).keys() == {0, 1}
        merged.close()

    def test_the_end_of_a_stream_that_was_held_back(self, plain: Link) -> None:
        """Streams through a channel for one chunk come whole."""
        texts = [" ".join(f"{key}.{word}" for word in range(300)) for key in range(4)]
        streams = self.streams(plain, *[Reply(text) for text in texts], buffer=1)
        words = [""] * 4
        for where, evt in merge(streams, maxsize=1):
            words[where] += evt.text
        assert sorted(words) == texts

    def test_a_stream_that_is_closed(self, plain: Link) -> None:
        """One stream that is closed for itself ends alone."""
        one, two = self.streams(plain, STALLED, Reply(TEXT, pace=0.02))
        merged = merge([one, two])
        one.close()
        assert "".join(evt.text for key, evt in merged if key == 1) == TEXT

    def test_an_asynchronous_loop(self, plain: Link) -> None:
        """An asynchronous loop takes the chunks of all streams."""
        merged = merge(self.streams(plain, Reply(TEXT, pace=0.01), Reply(TEXT)))

        async def consume() -> Counter[int]:
            said: Counter[int] = Counter()
            async for key, evt in merged:
                said[key] += len(evt.text)
            return said

        assert asyncio.run(asyncio.wait_for(consume(), 5)) == {0: len(TEXT), 1: len(TEXT)}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_in_a_fork(self, plain: Link) -> None:
        """A forked child cannot take from it, hangs in no way, and disturbs nothing of the parent's."""
        merged = merge(self.streams(plain, Reply(TEXT, pace=0.03), Reply(TEXT, pace=0.03)))
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            status = 1
            try:
                for take in (merged.get, merged.get_many, lambda: list(merged), lambda: select(merged)):
                    with pytest.raises(StreamInterruptedError, match="fork"):
                        take()
                merged.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert Counter(key for key, evt in merged if evt.is_last_chunk) == {0: 1, 1: 1}

    @pytest.mark.slow
    def test_500_live_streams(self, plain: Link, engine: Engine) -> None:
        """Merging 500 live streams starts no thread; with the poller there are 3 threads more at most, all in all."""
        server = plain.serve(reply_with=lambda _: Reply(TEXT, stall_after=2))
        client = plain.client(server)
        before = threading.active_count()
        streams = [client.chat_completion_stream(REQUEST) for _ in range(500)]
        opened = threading.active_count()
        merged = merge(streams)
        taken = Counter(merged.get(timeout=5)[0] for _ in range(1_000))
        assert taken == dict.fromkeys(range(500), 2)
        assert threading.active_count() <= opened
        if engine == "poller":
            assert threading.active_count() <= before + 3
        begun = time.monotonic()
        merged.close()
        assert time.monotonic() - begun < SCALE
        assert server.wait_for(lambda s: s.open_connections == 0, 5 * SCALE)

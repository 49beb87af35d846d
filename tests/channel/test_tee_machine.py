"""Tees and senders against models that are too simple to be wrong: lists, and no thread, lock or waiter."""

from __future__ import annotations

import contextlib
import itertools
import queue
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chanstream import Channel, ChannelClosedError, Sender, StreamError, TeedChannel, tee
from tests.concurrency import spawn

WHICH = st.integers(0, 3)


class TeeMachine(RuleBasedStateMachine):
    """Puts, takes and leaves, in one thread: what each consumer takes is what went in, and none is too far ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.put: list[int] = []
        self.closed = False
        self.error: StreamError | None = None

    @initialize(size=st.integers(0, 4), n=st.integers(1, 4), maxsize=st.integers(0, 70))
    def begin(self, size: int, n: int, maxsize: int) -> None:
        """Make a source, and tee it."""
        self.source: Channel[int] = Channel(size)
        self.maxsize = maxsize
        self.channels: dict[int, TeedChannel[int]] = dict(enumerate(tee(self.source, n, maxsize=maxsize)))
        self.taken: dict[int, list[int]] = {which: [] for which in self.channels}

    def consumer(self, which: int) -> int:
        """Return one that is still there."""
        return sorted(self.channels)[which % len(self.channels)]

    @rule(count=st.integers(1, 150))
    def put_some(self, count: int) -> None:
        """Put as many items as have room."""
        for _ in range(count):
            item = next(self.numbers)
            try:
                self.source.put_nowait(item)
            except (queue.Full, ChannelClosedError):
                return
            self.put.append(item)

    @precondition(lambda self: self.channels)
    @rule(which=WHICH, most=st.integers(1, 100))
    def take(self, which: int, most: int) -> None:
        """Take as many as are there."""
        which = self.consumer(which)
        with contextlib.suppress(queue.Empty, ChannelClosedError, StreamError):
            self.taken[which] += self.channels[which].get_many(most, timeout=0)

    @precondition(lambda self: self.channels)
    @rule(which=WHICH, drop=st.booleans())
    def leave(self, which: int, drop: bool) -> None:
        """Close one of the channels, or drop it."""
        channel = self.channels.pop(self.consumer(which))
        if not drop:
            channel.close()
        self.closed = self.closed or not self.channels

    @rule(error=st.none() | st.builds(StreamError, st.just("it broke")))
    def close(self, error: StreamError | None) -> None:
        """Close the source."""
        self.source.close(error)
        if not self.closed:
            self.closed, self.error = True, error

    @precondition(lambda self: self.channels and not self.closed)
    @rule(count=st.integers(0, 300))
    def to_the_end_in_threads(self, count: int) -> None:
        """Let a thread put and close, and one for each channel take to the end."""
        items = list(itertools.islice(self.numbers, count))
        self.put += items
        consuming = {which: spawn(list, channel) for which, channel in self.channels.items()}
        producing = spawn(self.source.put_many, items, 10)
        assert producing.result(20) is None
        self.source.close()
        self.closed = True
        for which, consumed in consuming.items():
            self.taken[which] += consumed.result(20)
            assert self.taken[which] == self.put

    @invariant()
    def they_agree(self) -> None:
        """Each has taken a beginning of what was put, can take on as far as the slowest lets it, and ends with it."""
        assert self.source.closed == self.closed
        if not self.channels:
            assert not self.source._pipe.waiters
            return
        slowest = min(len(self.taken[which]) for which in self.channels)
        for which, channel in self.channels.items():
            has = len(self.taken[which])
            assert self.taken[which] == self.put[:has]
            inside = list(channel._pipe.items)
            assert inside == self.put[has : has + len(inside)]
            if self.maxsize:
                assert has + len(inside) <= slowest + self.maxsize + min(self.maxsize, 64)
                assert len(inside) >= min(self.maxsize, slowest + self.maxsize - has, len(self.put) - has)
            else:
                assert has + len(inside) == len(self.put)
            if has == len(self.put):
                assert channel.closed == self.closed
            assert not channel.closed or (self.closed and channel._pipe.error is self.error)


TestTeeMachine = TeeMachine.TestCase
TestTeeMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


class SenderMachine(RuleBasedStateMachine):
    """Makes, uses, closes and drops senders: the channel is open as long as the model has one, or never had one."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.channel: Channel[int] = Channel()
        self.senders: list[Sender[int]] = []
        self.left: list[Sender[int]] = []
        self.items: list[int] = []
        self.errors: list[StreamError] = []
        self.closed = False
        self.error: StreamError | None = None

    @rule()
    def make(self) -> None:
        """Make one more."""
        try:
            self.senders.append(self.channel.sender())
        except ChannelClosedError:
            assert self.closed
        else:
            assert not self.closed

    @precondition(lambda self: self.senders)
    @rule(which=WHICH, count=st.integers(1, 3))
    def put(self, which: int, count: int) -> None:
        """Put some items through one of them."""
        items = list(itertools.islice(self.numbers, count))
        try:
            self.senders[which % len(self.senders)].put_many(items)
        except ChannelClosedError:
            assert self.closed
        else:
            assert not self.closed
            self.items += items

    @precondition(lambda self: self.senders)
    @rule(which=WHICH, error=st.none() | st.builds(StreamError, st.just("it broke")), drop=st.booleans())
    def leave(self, which: int, error: StreamError | None, drop: bool) -> None:
        """Close one of them, perhaps with an error, or drop it."""
        sender = self.senders.pop(which % len(self.senders))
        if drop:
            del sender
        else:
            sender.close(error)
            self.left.append(sender)
            self.errors += [error] if error else []
        if not (self.senders or self.closed):
            self.closed, self.error = True, next(iter(self.errors), None)

    @precondition(lambda self: self.left)
    @rule(which=WHICH)
    def use_again(self, which: int) -> None:
        """A sender that is closed puts nothing, and to close it again changes nothing."""
        sender: Any = self.left[which % len(self.left)]
        sender.close(StreamError("late"))
        try:
            sender.put(0)
        except ChannelClosedError:
            return
        raise AssertionError("it was put")

    @rule(error=st.none() | st.builds(StreamError, st.just("it broke")))
    def close(self, error: StreamError | None) -> None:
        """Close the channel itself."""
        self.channel.close(error)
        if not self.closed:
            self.closed, self.error = True, error

    @invariant()
    def they_agree(self) -> None:
        """The channel has what was put, and is closed when and how the model is."""
        assert list(self.channel._pipe.items) == self.items
        assert self.channel.closed == self.closed
        assert self.channel._pipe.error is self.error
        assert all(sender.closed == self.closed for sender in self.senders)


TestSenderMachine = SenderMachine.TestCase
TestSenderMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)

"""The channel against a model that is too simple to be wrong: lists, and no thread, lock or condition.

One thread does everything, so no call may wait: puts and gets have a timeout of 0, and what waits for room is an offer.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from chanstream import Channel, ChannelClosedError, StreamError
from chanstream.channel import Offer


@attrs.define(eq=False)
class Model:
    """What a channel is: the items in it, the items that wait for room, and whether it is over."""

    maxsize: int
    inside: list[int] = attrs.field(factory=list)
    outside: list[list[int]] = attrs.field(factory=list)
    closed: bool = False
    ended: bool = False
    error: Exception | None = None
    final: int | None = None
    put: int = 0
    taken: int = 0
    dropped: int = 0
    done: int = 0
    most: int = 0

    def settle(self) -> None:
        """Move in what there is room for, one item after the other."""
        while self.outside:
            if not self.outside[0]:
                self.outside.pop(0)
            elif self.maxsize <= 0 or len(self.inside) < self.maxsize:
                self.inside.append(self.outside[0].pop(0))
                self.put += 1
            else:
                break
        self.most = max(self.most, len(self.inside))

    def offer(self, items: list[int]) -> list[int]:
        """Offer items; return those that still wait, now and later."""
        if self.closed or self.ended:
            raise ChannelClosedError
        waiting = list(items)
        self.outside += [waiting] if waiting else []  # who offers nothing waits for nothing
        self.settle()
        return waiting

    def withdraw(self, waiting: list[int]) -> None:
        """Take back what has had no room up to now, unless it is sure to go in."""
        if not waiting or any(other is waiting for other in self.outside if self.ended):
            return
        if self.closed:
            raise ChannelClosedError
        self.outside = [other for other in self.outside if other is not waiting]
        self.settle()
        raise queue.Full

    def end(self, items: list[int]) -> None:
        """Put the last items in, after all others."""
        if self.closed or self.ended:
            return
        self.ended, self.final = True, items[-1]
        self.outside.append(list(items))
        self.settle()

    def close(self, error: Exception | None) -> None:
        """Let nothing more in, but for what came before an end."""
        if not self.closed:
            if not self.ended:
                self.outside = []
            self.closed = self.ended = True
            self.error = error

    def abandon(self) -> None:
        """Close, and forget what is in."""
        self.close(None)
        self.error = None
        self.dropped += len(self.inside)
        self.done += min(len(self.inside), self.put - self.done)
        self.inside = []
        self.outside = []

    def take(self, most: int | None) -> list[int]:
        """Take items, one at least."""
        if self.inside:
            count = len(self.inside) if most is None else most
            taken, self.inside = self.inside[:count], self.inside[count:]
            self.taken += len(taken)
            self.settle()
            return taken
        if self.closed:
            raise self.error or ChannelClosedError
        raise queue.Empty


def outcome(function: Callable[..., Any], *args: Any, **keywords: Any) -> object:
    """Return what a call returns, or of which kind its exception is."""
    try:
        return function(*args, **keywords)
    except (ChannelClosedError, StreamError, queue.Empty, queue.Full, ValueError) as error:
        return type(error)


ITEMS = st.integers(0, 5)


class ChannelMachine(RuleBasedStateMachine):
    """Does the same to a channel and to the model, and compares."""

    offers: Bundle[tuple[Offer[int], list[int]]] = Bundle("offers")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.news = 0

    @initialize(maxsize=st.integers(-1, 4))
    def begin(self, maxsize: int) -> None:
        """Make both, with a waiter that counts its calls."""
        self.model = Model(maxsize)
        self.channel: Channel[int] = Channel(maxsize)
        self.pipe = self.channel._pipe
        self.pipe.add_waiter(self._on_news)

    def _on_news(self) -> None:
        self.news += 1

    def items(self, count: int) -> list[int]:
        """Return so many items, each one new."""
        return list(itertools.islice(self.numbers, count))

    @rule()
    def put_nowait(self) -> None:
        """Put one item, without waiting."""
        (item,) = self.items(1)
        put = outcome(self.channel.put_nowait, item)
        assert put == outcome(lambda: self.model.withdraw(self.model.offer([item])))

    @rule(count=ITEMS)
    def put_many(self, count: int) -> None:
        """Put several items, without waiting; some may stay in."""
        items = self.items(count)
        put = outcome(self.channel.put_many, items, timeout=0)
        assert put == outcome(lambda: self.model.withdraw(self.model.offer(items)))

    @rule(target=offers, count=ITEMS)
    def offer(self, count: int) -> tuple[Offer[int], list[int]]:
        """Offer several items, and leave those that have no room waiting."""
        items = self.items(count)
        real, told = outcome(self.pipe.offer, items), outcome(self.model.offer, items)
        if isinstance(told, type):
            assert real is told
            return Offer(), []
        assert isinstance(real, Offer)
        assert isinstance(told, list)
        assert list(real) == told
        return real, told

    @rule(offer=consumes(offers))
    def give_up(self, offer: tuple[Offer[int], list[int]]) -> None:
        """Take an offer back, as a put does whose time is up."""
        real, told = offer
        assert list(real) == told or self.model.closed
        assert outcome(self.pipe.wait_for_room, real, 0) == outcome(self.model.withdraw, told)

    @rule()
    def get_nowait(self) -> None:
        """Take one item, without waiting."""
        told = outcome(self.model.take, 1)
        assert outcome(self.channel.get_nowait) == (told[0] if isinstance(told, list) else told)

    @rule(most=st.none() | st.integers(1, 5))
    def get_many(self, most: int | None) -> None:
        """Take several items, without waiting."""
        assert outcome(self.channel.get_many, most, timeout=0) == outcome(self.model.take, most)

    @precondition(lambda self: self.model.put > self.model.done)
    @rule()
    def task_done(self) -> None:
        """Report an item as done."""
        self.channel.task_done()
        self.model.done += 1

    @rule(count=st.integers(1, 3))
    def end(self, count: int) -> None:
        """Put the last items in."""
        items = self.items(count)
        self.pipe.end(items)
        self.model.end(items)

    @rule(error=st.none() | st.just(StreamError("it broke")))
    def close(self, error: StreamError | None) -> None:
        """Close, plainly or with an error."""
        self.channel.close(error)
        self.model.close(error)

    @rule()
    def abandon(self) -> None:
        """Close, and drop what is in."""
        self.pipe.abandon()
        self.model.abandon()

    @invariant()
    def they_agree(self) -> None:
        """The channel shows what the model has."""
        model, channel = self.model, self.channel
        assert list(channel.queue) == model.inside  # type: ignore[call-overload]
        assert (channel.qsize(), channel.empty(), channel.closed) == (len(model.inside), not model.inside, model.closed)
        assert channel.full() == (0 < model.maxsize <= len(model.inside))
        assert (self.pipe.ended, self.pipe.final) == (model.ended, model.final)
        assert self.pipe.readable() == bool(model.inside or model.closed)
        assert channel.unfinished_tasks == model.put - model.done
        told = channel.statistics()
        assert (told.put, told.taken, told.depth) == (model.put, model.taken, len(model.inside))
        assert (told.most_depth, told.waiting_putters) == (model.most, len(model.outside))

    @invariant()
    def nothing_waits_beside_room(self) -> None:
        """Nothing waits for room where there is some, and there is never more in than may be."""
        model = self.model
        if model.maxsize > 0:
            assert len(self.channel.queue) <= model.maxsize  # type: ignore[arg-type]
            assert not model.outside or len(model.inside) == model.maxsize


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_every_change_is_news() -> None:
    """A waiter is called at every put, offer, end, close and abandon that succeeds (and finds room)."""
    machine = ChannelMachine()
    machine.begin(0)
    for step in (machine.put_nowait, lambda: machine.offer(3), lambda: machine.end(1), machine.abandon):
        before = machine.news
        step()
        assert machine.news == before + 1

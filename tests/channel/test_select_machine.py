"""Selecting against a model that is too simple to be wrong: lists, and no thread, lock or waiter.

One thread does most, so no call may wait. One rule lets several threads at the same channels; what comes of that is
compared as a whole, for which thread gets which item is chance.
"""

from __future__ import annotations

import itertools
import queue
from collections import Counter
from collections.abc import Iterator

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chanstream import CLOSED, Channel, ChannelClosedError, StreamError, select
from tests.concurrency import spawn


@attrs.define(eq=False)
class Model:
    """What a channel is to a selector: its items, and whether its end is still to be told."""

    items: list[int] = attrs.field(factory=list)
    closed: bool = False
    error: Exception | None = None
    told: bool = False

    @property
    def ready(self) -> bool:
        """Whether a select may choose it."""
        return bool(self.items) or (self.closed and not self.told)


def take_turns(channels: list[Channel[int]], turns: Iterator[int]) -> list[tuple[Channel[int], object]]:
    """Select once for each turn; return what came. An error counts as the first channel's."""
    taken: list[tuple[Channel[int], object]] = []
    for _ in turns:  # shared by threads: the next of a range is one step
        try:
            taken.append(select(*channels, timeout=10))
        except StreamError as error:
            taken.append((channels[0], error))
    return taken


WHICH = st.integers(0, 3)
SOME = st.lists(WHICH, min_size=1, max_size=5)


class SelectMachine(RuleBasedStateMachine):
    """Does the same to channels and to their models, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)
        self.channels: list[Channel[int]] = []
        self.models: list[Model] = []

    @initialize(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=4))
    def begin(self, sizes: list[int]) -> None:
        """Make channels and their models."""
        self.channels = [Channel(size) for size in sizes]
        self.models = [Model() for _ in sizes]

    @rule(which=WHICH, count=st.integers(1, 4))
    def put(self, which: int, count: int) -> None:
        """Put as many items as have room."""
        which %= len(self.channels)
        for _ in range(count):
            item = next(self.numbers)
            try:
                self.channels[which].put_nowait(item)
            except (queue.Full, ChannelClosedError):
                return
            self.models[which].items.append(item)

    @rule(which=WHICH)
    def get(self, which: int) -> None:
        """Take an item in the other way."""
        which %= len(self.channels)
        model = self.models[which]
        try:
            assert self.channels[which].get_nowait() == model.items.pop(0)
        except (IndexError, queue.Empty, ChannelClosedError, StreamError):
            assert not model.items

    @rule(which=WHICH, error=st.none() | st.builds(StreamError, st.just("it broke")))
    def close(self, which: int, error: StreamError | None) -> None:
        """Close a channel, plainly or with an error."""
        which %= len(self.channels)
        model = self.models[which]
        self.channels[which].close(error)
        if not model.closed:
            model.closed, model.error = True, error

    @rule(which=WHICH)
    def abandon(self, which: int) -> None:
        """Close a channel, and drop what is in it."""
        which %= len(self.channels)
        self.channels[which]._pipe.abandon()
        self.models[which] = Model(closed=True, told=self.models[which].told)

    @rule(some=SOME, timeout=st.sampled_from([0, 0.001, None]))
    def select(self, some: list[int], timeout: float | None) -> None:
        """Select from some of the channels, one perhaps twice; without end only where something is there."""
        places = [which % len(self.channels) for which in some]
        models = {place: self.models[place] for place in places}
        ready = [place for place, model in models.items() if model.ready]
        over = all(model.told for model in models.values())
        try:
            found, item = select(
                *[self.channels[place] for place in places], timeout=timeout if timeout or ready or over else 0
            )
        except queue.Empty:
            assert not ready
            assert not over
        except ChannelClosedError:
            assert not ready
            assert over
        except StreamError as error:
            (failed,) = [place for place in ready if models[place].error is error]
            assert not models[failed].items
            models[failed].told = True
        else:
            place = self.channels.index(found)
            assert place in ready
            if item is CLOSED:
                assert not models[place].items
                assert models[place].error is None
                models[place].told = True
            else:
                assert item == models[place].items.pop(0)

    @precondition(lambda self: any(not model.closed for model in self.models))
    @rule(counts=st.lists(st.integers(0, 8), min_size=4, max_size=4), selectors=st.integers(1, 3), ends=st.booleans())
    def several_threads(self, counts: list[int], selectors: int, ends: bool) -> None:
        """Let threads put into all that is open, and close it perhaps, and others select until nothing is left."""
        open_ = [place for place, model in enumerate(self.models) if not model.closed]
        putting = {place: [next(self.numbers) for _ in range(counts[place])] for place in open_}
        expected = Counter(item for model in self.models for item in model.items) + Counter(
            item for items in putting.values() for item in items
        )
        reports = sum(model.closed and not model.told for model in self.models) + len(open_) * ends
        turns = iter(range(expected.total() + reports))  # each for one select, which will return or raise something

        def produce(place: int) -> None:
            self.channels[place].put_many(putting[place], timeout=10)
            if ends:
                self.channels[place].close()

        consuming = [spawn(take_turns, self.channels, turns) for _ in range(selectors)]
        producing = [spawn(produce, place) for place in open_]
        assert all(produced.result(20) is None for produced in producing)
        taken = [consumed.result(20) for consumed in consuming]
        items = [item for each in taken for _, item in each if isinstance(item, int)]
        assert Counter(items) == expected
        assert sum(len(each) for each in taken) == expected.total() + reports
        for each in taken:  # numbers rise, so what one thread saw of a channel must too
            for channel in self.channels:
                mine = [item for found, item in each if found is channel and isinstance(item, int)]
                assert mine == sorted(mine)
        for model in self.models:
            model.items.clear()
            model.closed = model.closed or ends
            model.told = model.closed

    @invariant()
    def they_agree(self) -> None:
        """The channels hold what the models hold, and no waiter stays."""
        for channel, model in zip(self.channels, self.models, strict=True):
            assert list(channel._pipe.items) == model.items
            assert channel._pipe.reported.locked() == model.told
            assert not channel._pipe.waiters


TestSelectMachine = SelectMachine.TestCase
TestSelectMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

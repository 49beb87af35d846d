"""One channel for several consumers, each with a place of its own, without a thread.

One feeder takes from the source and offers each batch to every branch, in whatever thread made the source readable or
made room in a branch. What finds no room in a branch stays there as an offer, and until that is in, nothing more is
taken: the source fills up and holds its producer back. A branch that is closed is offered nothing, and so holds up
nobody.

The feeder refers to pipes only. What the branches share is the source itself, so that it is closed when the last of
them is, and dropped when the last of them is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import ChannelClosedError, ChanstreamError
from .channel import Channel, pipe_of
from .fed import FedChannel
from .feeding import Feeder
from .pipe import Offer, Pipe

T = TypeVar("T")

_BATCH = 64
"""Items that are moved at a time, at most: enough that a hand-over costs little for each."""


class TeedChannel(FedChannel[T], Generic[T]):
    """One of those that `tee` returns: a channel with all items of the source.

    Leaving a loop over it early, with ``break``, ``return`` or an exception, closes it; so do `close`, the end of a
    ``with`` block, and dropping the last reference to it. What it has not taken is dropped, and it holds the others
    back no longer. When all are closed, so is the source.

    Thread safety: as a `Channel`. In a forked child it cannot be used: what feeds it is in the parent.
    """

    def __init__(self, source: Channel[T], feeder: _Feeder[T], maxsize: int) -> None:
        self._source = source
        self._feeder = feeder
        super().__init__(maxsize)
        feeder.branches.append(_Branch(self._pipe))

    def _leave(self) -> None:
        self._pipe.abandon()
        self._feeder.move()  # it is waited for no longer
        if self._feeder.is_deserted:
            self._source.close()


def tee(stream: Channel[T], n: int = 2, *, maxsize: int = 1024) -> tuple[TeedChannel[T], ...]:
    """Return ``n`` channels, each with all the items of one, fed without a thread.

    ::

        to_screen, to_file = tee(client.chat_completion_stream(request), 2)

    Each consumer has its own place. The slowest sets the pace: when one of the channels is full, nothing more is taken
    from the source, which fills up too and holds its producer back; the others get what there is and wait then. One
    that is closed or dropped is waited for no longer, and when all are, the source is closed: a stream is cancelled.

    The items are not copied: what one consumer does to an item, all see. An error that ends a stream comes to each as
    a chunk with ``error`` set, whatever the stream's own ``errors=`` says. Where a plain channel was closed with an
    error, each ends with that.

    Args:
        stream: The source: a stream, or a channel of any kind. From now on it must not be consumed elsewhere.
        n: How many channels.
        maxsize: Capacity of each in items; 0 or less for no limit. Up to 64 more, and never more than ``maxsize``, may
            be on their way into a full one.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    if not isinstance(stream, Channel):
        raise TypeError(f"stream: expected a Channel, got {stream!r}")
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n: expected a whole number, got {n!r}")
    if n < 1:
        raise ValueError(f"n: expected 1 or more, got {n!r}")
    feeder = _Feeder(pipe_of(stream))
    channels = tuple(TeedChannel(stream, feeder, maxsize) for _ in range(n))
    feeder.begin()
    return channels


class _Branch(Generic[T]):
    """One consumer's pipe.

    Attributes:
        waiting: Items that found no room in it.
    """

    def __init__(self, pipe: Pipe[T]) -> None:
        self.pipe = pipe
        self.waiting: Offer[T] = Offer()

    def give(self, items: list[T], on_room: Callable[[], None]) -> None:
        with contextlib.suppress(ChannelClosedError):  # its consumer has left
            self.waiting = self.pipe.offer(items, on_room)


class _Feeder(Feeder, Generic[T]):
    """Moves the items of the source into all branches; it lives as long as the source's pipe or a branch knows it."""

    def __init__(self, source: Pipe[T]) -> None:
        super().__init__()
        self.branches: list[_Branch[T]] = []
        self._source = source
        self._forget: Callable[[], object] = bool  # nothing yet

    @property
    def is_deserted(self) -> bool:
        """Whether no branch wants anything more."""
        return all(branch.pipe.closed for branch in self.branches)

    def begin(self) -> None:
        with self._moving:  # nobody moves, and so nobody ends, before it is known how to forget the waiter
            self._forget = self._source.add_waiter(self.move)
        self.move()

    def fail(self, error: ChanstreamError) -> None:
        for branch in self.branches:
            branch.pipe.close(error)

    def _move(self) -> None:
        source = self._source
        while (open_ := self._open()) and not any(branch.waiting for branch in open_):
            items = source.take(min(_BATCH, open_[0].pipe.maxsize) if open_[0].pipe.maxsize > 0 else _BATCH)
            if not items:
                break
            for branch in open_:
                branch.give(items, self.move)
        if source.over:
            for branch in open_:
                if not branch.waiting:
                    branch.pipe.close(source.error)
        if source.over or not open_:
            self._forget()

    def _open(self) -> list[_Branch[T]]:
        return [branch for branch in self.branches if not branch.pipe.closed]

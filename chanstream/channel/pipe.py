"""The shared state between the two ends of a channel.

A producer holds the `Pipe`, a consumer a `Channel` on it. The pipe never refers to the channel, so that dropping the
consumer's end is noticed even while a producer waits for room.

A producer that finds no room leaves its items as an *offer*; whoever takes an item moves the next offered one into its
place, as Go's channels do. So the capacity is exact, order is kept among producers, and a producer with many items is
woken once, when the last has gone, and not for each.

Locking: ``lock`` guards everything here. It is reentrant, because the garbage collector may run a consumer's finalizer,
which abandons the pipe, in the middle of any step below. No other lock is taken while it is held, and waiters are
called without it: so nothing can deadlock with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, Full
from typing import Generic, TypeVar

import attrs

from ..errors import ChannelClosedError

T = TypeVar("T")
Waiter = Callable[[], None]


@attrs.frozen
class ChannelStatistics:
    """A channel at one moment.

    Attributes:
        maxsize: Its capacity in items; 0 or less for no limit.
        depth: Items that wait in it.
        most_depth: The most that ever waited in it.
        put: Items put in so far.
        taken: Items taken out so far.
        waiting_getters: Threads that wait for an item.
        waiting_putters: Threads that wait for room.
        closed: Whether nothing can be put any more.
    """

    maxsize: int
    depth: int
    most_depth: int
    put: int
    taken: int
    waiting_getters: int
    waiting_putters: int
    closed: bool


class Pipe(Generic[T]):
    """A bounded queue that can be closed.

    Args:
        maxsize: Capacity in items; 0 or less for no limit.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        self.lock = threading.RLock()
        self.not_empty = threading.Condition(self.lock)
        self.not_full = threading.Condition(self.lock)
        self.items: deque[T] = deque()
        self.closed = False
        self.ended = False
        self.error: BaseException | None = None
        self.final: T | None = None  # the item that ended it
        self.unfinished = 0
        self._offers: deque[deque[T]] = deque()
        self._waiters: dict[object, Waiter] = {}
        self._getters = 0
        self._put = 0
        self._dropped = 0
        self._most_depth = 0

    # -- the producer's side ----------------------------------------------------------------------------------------

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> None:
        """Put items in, waiting for room as long as it takes or ``timeout`` seconds.

        Raises:
            ChannelClosedError: The pipe is closed; what had no room is not in it.
            queue.Full: There was no room in time; what had room is in it.
        """
        offer = self.offer(items)
        if offer:
            self.wait_for_room(offer, timeout)

    def offer(self, items: Iterable[T]) -> deque[T]:
        """Put items in as far as there is room; never blocks.

        Returns:
            What had no room, which goes in by itself as items are taken: truthy until the last has gone in. Give it
            to `wait_for_room` before offering more.

        Raises:
            ChannelClosedError: The pipe is closed.
        """
        offer = deque(items)
        with self.lock:
            if self.closed or self.ended:
                raise ChannelClosedError("the channel is closed")
            self._offers.append(offer)
            self._admit()
        self._wake_waiters()
        return offer

    def wait_for_room(self, offer: deque[T], timeout: float | None = None) -> None:
        """Wait until all that was offered is in; raises as `put_many`, and then takes the rest back."""
        with self.lock:
            try:
                self.not_full.wait_for(lambda: not offer or self.closed, timeout)
            finally:
                if offer:  # the time is up, or somebody pressed Ctrl-C
                    self._offers = deque(other for other in self._offers if other is not offer)
            if offer and self.closed:
                raise ChannelClosedError("the channel was closed while waiting for room")
            if offer:
                raise Full

    def end(self, items: Iterable[T]) -> None:
        """Put the last items in (one at least), after all that is offered, and let no more in.

        They go in beyond the capacity if need be: this never blocks. On a pipe that has ended or is closed it does
        nothing, so that of several ends only the first counts.
        """
        with self.lock:
            if self.ended or self.closed:
                return
            self.ended = True
            self._offers.append(deque(items))
            self._admit(beyond=True)
            self.final = self.items[-1] if self.items else None
        self._wake_waiters()

    def close(self, error: BaseException | None = None) -> None:
        """Let nothing more in; what is in can still be taken out.

        Args:
            error: What takers get once all is taken; by default they just see the end.
        """
        with self.lock:
            dropped = self._shut(error)
        self._wake_waiters()
        del dropped  # items may have finalizers, which shall not run under the lock

    def abandon(self) -> None:
        """Close, and drop what is in: nobody will take it."""
        with self.lock:
            dropped = self._shut(None), self.items
            self._dropped += len(self.items)
            self.items, self.error = deque(), None
        self._wake_waiters()
        del dropped  # as above

    # -- the consumer's side ----------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> T:
        """Take the next item, waiting for it as long as it takes or ``timeout`` seconds.

        Raises:
            ChannelClosedError: All is taken and nothing more will come; or the error that the pipe was closed with.
            queue.Empty: Nothing came in time.
        """
        with self.lock:
            if not self.items:
                self._wait_for_item(timeout)
            item = self.items.popleft()
            if self._offers:
                self._admit()
        return item

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[T]:
        """Take all items that are there, at most ``most``, waiting for the first one as `get` does."""
        with self.lock:
            if not self.items:
                self._wait_for_item(timeout)
            count = len(self.items) if most is None else min(most, len(self.items))
            taken = [self.items.popleft() for _ in range(count)]
            if self._offers:
                self._admit()
        return taken

    def wait_closed(self, timeout: float) -> bool:
        """Wait until the pipe is closed, at most ``timeout`` seconds; return whether it is."""
        with self.lock:
            return self.not_full.wait_for(lambda: self.closed, timeout)

    def readable(self) -> bool:
        """Return whether `get` would return or raise at once."""
        with self.lock:
            return bool(self.items) or self.closed

    def add_waiter(self, waiter: Waiter) -> Callable[[], None]:
        """Call ``waiter``, in the thread that causes it, whenever the pipe may have become readable.

        It is called without any lock, also when there is no news, and must neither block nor raise.

        Returns:
            A function that takes it away again. To miss nothing, add the waiter first and look at `readable` then.
        """
        key = object()
        with self.lock:
            self._waiters[key] = waiter
        return lambda: self._forget(key)

    def statistics(self) -> ChannelStatistics:
        """Return a frozen picture of this moment."""
        with self.lock:
            return ChannelStatistics(
                maxsize=self.maxsize,
                depth=len(self.items),
                most_depth=self._most_depth,
                put=self._put,
                taken=self._put - self._dropped - len(self.items),
                waiting_getters=self._getters,
                waiting_putters=len(self._offers),
                closed=self.closed,
            )

    # -- with the lock held -----------------------------------------------------------------------------------------

    def _admit(self, beyond: bool = False) -> None:
        """Move offered items in, in order, as far as there is room."""
        while self._offers:
            offer = self._offers[0]
            free = len(offer) if beyond or self.maxsize <= 0 else self.maxsize - len(self.items)
            room = min(len(offer), free)
            if room > 0:
                self.items.extend(offer.popleft() for _ in range(room))
                self._put += room
                self.unfinished += room
                if self._getters:
                    self.not_empty.notify(room)
            if offer:
                break
            self._offers.popleft()
            self.not_full.notify_all()
        self._most_depth = max(self._most_depth, len(self.items))

    def _wait_for_item(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._getters += 1
        try:
            while not self.items:
                if self.closed:
                    raise self.error or ChannelClosedError("the channel is closed and empty")
                wait = None if deadline is None else deadline - time.monotonic()
                if wait is not None and wait <= 0:
                    raise Empty
                self.not_empty.wait(wait)
        finally:
            self._getters -= 1

    def _shut(self, error: BaseException | None) -> deque[deque[T]]:
        """Close, and return the offers that are refused by it."""
        if self.closed:
            return deque()
        self.closed = self.ended = True
        self.error = error
        refused, self._offers = self._offers, deque()
        self.not_empty.notify_all()
        self.not_full.notify_all()
        return refused

    # -- without it -------------------------------------------------------------------------------------------------

    def _wake_waiters(self) -> None:
        if self._waiters:
            with self.lock:
                waiters = list(self._waiters.values())
            for waiter in waiters:
                waiter()

    def _forget(self, key: object) -> None:
        with self.lock:
            self._waiters.pop(key, None)

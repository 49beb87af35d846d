"""The shared state between the two ends of a channel.

A producer holds the `Pipe`, a consumer a `Channel` on it. The pipe never refers to the channel, so that dropping the
consumer's end is noticed even while a producer waits for room.

A producer that finds no room leaves its items as an *offer*; whoever takes an item moves the next offered one into its
place, as Go's channels do. So the capacity is exact, order is kept among producers, and a producer with many items is
woken once, when the last has gone in, and not for each.

Locking: ``lock`` guards everything here, and nobody is called while it is held. Two things are done without it, because
each is one atomic step: to take an item off ``items``, and to enter oneself in a list of those who wait. Whoever counts
on an item takes it the same way, and is ready to find none.

The lock is reentrant, because a signal handler, or a finalizer that the garbage collector runs, may close the pipe in
the middle of a step of the same thread. A step that changes things is marked as ``_busy``, and an intruder's change is
put off until the step is done.

Whoever waits registers first and looks then, so that nothing that comes in between is missed; `threading.Condition`
looks first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, Full
from typing import Any, Generic, TypeVar

import attrs

from ..errors import ChannelClosedError
from .waiting import hand_over, sleep_on

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
        waiting_putters: Producers that wait for room.
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


class Offer(deque[T]):
    """Items that wait for room in a pipe; empty once the last has gone in.

    Attributes:
        on_room: Whom to tell then, or when the pipe has ended or is closed.
        refused: Whether the pipe was closed before they had room.
    """

    on_room: Waiter | None = None
    refused = False


class Pipe(Generic[T]):
    """A bounded queue that can be closed.

    Args:
        maxsize: Capacity in items; 0 or less for no limit.

    Attributes:
        items: What waits in it.
        closed: Whether nothing can be put any more.
        ended: Whether the last item has been put (and nothing more can be).
        final: The item that ended it; None while it has not.
        error: What takers get after the last item, instead of a plain end.
        unfinished: Items that were put and not yet reported as done (see `queue.Queue.task_done`).
        pull: Waits for items in the thread of a taker that finds none, where the producer offers that: called with the
            time at which to give up (None for never), it returns when there may be some or that time has come. It
            returns False at once where the taker has to sleep until it is told.
        join: Has the taker of another pipe, into which all is moved that comes into this one, read for this one too,
            where the producer offers that: called with the other pipe, and with what the last such call for it
            returned (None at first).
        readers: Who reads for the pipe at the moment, the first of them. Whoever takes himself out calls `read_on`.
        pulled: Whether a taker does so at the moment.
        getters: Who sleeps until there are items.
        waiters: Whom to tell when there are.
        reported: Taken, for ever, by the `select` that tells that the pipe is closed and empty.

    Thread safety: every method may be called from any thread, and from finalizers and signal handlers those that never
    block.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        self.lock = threading.RLock()
        self.all_tasks_done = threading.Condition(self.lock)
        self.items: deque[T] = deque()
        self._popleft = self.items.popleft
        self.closed = False
        self.ended = False
        self.final: T | None = None
        self.error: BaseException | None = None
        self.unfinished = 0
        self.pull: Callable[[float | None], bool] | None = None
        self.join: Callable[[Pipe[Any], Any], Any] | None = None
        self.readers: list[object] = []
        self.pulled = False
        self.reported = threading.Lock()
        self._busy = False
        self._put_off: list[Callable[[], None]] = []
        self._offers: deque[Offer[T]] = deque()
        self._told: list[Waiter] = []  # who is to be told something once the lock is free
        self._news = False  # whether all waiters are
        self.waiters: dict[object, Waiter] = {}
        self.getters: deque[Any] = deque()
        self._others: deque[Any] = deque()
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
        _check(timeout)
        offer = self.offer(items)
        if offer:
            self.wait_for_room(offer, timeout)

    def offer(self, items: Iterable[T], on_room: Waiter | None = None) -> Offer[T]:
        """Put items in as far as there is room; never blocks.

        Args:
            items: The items.
            on_room: Called, once and without any lock, when the last has gone in or the pipe has ended or is closed;
                not called if all had room. It must neither block nor raise.

        Returns:
            What had no room, and goes in by itself as items are taken; empty if all had. Either wait for ``on_room``
            or give it to `wait_for_room` before offering more.

        Raises:
            ChannelClosedError: The pipe is closed.
        """
        offer = Offer(items)
        with self.lock:
            if self.ended:
                raise ChannelClosedError("the channel is closed")
            self._busy = True
            try:
                count = len(offer)
                if not self._offers and (self.maxsize <= 0 or self.maxsize - len(self.items) >= count):
                    self._let_in(offer, count)
                elif offer:
                    self._offers.append(offer)
                    self._admit()
                    offer.on_room = on_room if offer else None
            finally:
                self._busy = False
        if self._news or self._put_off or self._told:
            self._after()
        return offer

    def wait_for_room(self, offer: Offer[T], timeout: float | None = None) -> None:
        """Wait until all that was offered is in, or sure to go in.

        Raises:
            As `put_many`; then the rest is taken back.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._wait(self._others, lambda: not offer or self.ended, deadline)
        finally:
            if offer:  # the time is up, or somebody pressed Ctrl-C
                self._change(lambda: self._withdraw(offer))
        if offer.refused:
            raise ChannelClosedError("the channel was closed while waiting for room")
        if offer and not self.ended:
            raise Full

    def end(self, items: Iterable[T]) -> None:
        """Put the last items in (one at least), after all that is offered, and let no more in.

        Never blocks. What has no room, of what was offered before too, goes in by itself as items are taken, and
        closing does not keep it out any more. On a pipe that has ended or is closed it does nothing, so that of several
        ends only the first counts.
        """
        last = Offer(items)
        self._change(lambda: self._end(last))

    def close(self, error: BaseException | None = None) -> None:
        """Let nothing more in; what is in can still be taken out.

        Args:
            error: What takers get once all is taken; by default they just see the end.
        """
        self._change(lambda: self._shut(error))

    def abandon(self) -> None:
        """Close, and drop what is in: nobody will take it."""
        dropped: list[deque[T]] = []  # emptied here and not under the lock, because items may have finalizers
        self._change(lambda: dropped.append(self._drop()))

    # -- the consumer's side ----------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> T:
        """Take the next item, waiting for it as long as it takes or ``timeout`` seconds.

        Raises:
            ChannelClosedError: All is taken and nothing more will come; or the error that the pipe was closed with.
            queue.Empty: Nothing came in time.
        """
        try:
            item = self._popleft()
        except IndexError:
            item = self._get_later(timeout)
        # The look comes after the taking: what was offered before it is seen here, what is offered later sees the room.
        if self._offers:
            self._change(self._admit)
        return item

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[T]:
        """Take all items that are there, at most ``most``, waiting for the first one as `get` does."""
        _check(timeout)
        if most is not None and most < 1:
            raise ValueError(f"most: expected 1 or more, got {most!r}")
        taken = self.take(most)
        if not taken:
            taken.append(self._get_later(timeout))
            taken += self.take(None if most is None else most - 1)
        return taken

    def take(self, most: int | None = None) -> list[T]:
        """Take all items that are there, at most ``most``; never waits."""
        taken: list[T] = []
        popleft = self._popleft
        try:
            for _ in range(len(self.items) if most is None else most):
                taken.append(popleft())  # noqa: PERF401 - what was taken before there is no more must not be lost
        except IndexError:
            pass
        if self._offers:
            self._change(self._admit)
        return taken

    def put_back(self, item: T) -> None:
        """Put back, as the next to be taken, the item that was taken last."""
        self._change(lambda: self._return(item))

    def wait_closed(self, timeout: float) -> bool:
        """Wait until the pipe is closed, at most ``timeout`` seconds; return whether it is."""
        if hand_over.held is not None:  # a finalizer, in the thread that would have to close it
            return self.closed
        deadline = time.monotonic() + timeout
        if self.pull is not None and not self.readable():
            self.pull(deadline)
        return self._wait(self._others, lambda: self.closed, deadline)

    def read_on(self) -> None:
        """See to it that a taker who sleeps, because somebody else was reading, does so now. Only if `getters`."""
        if not self.items:
            self._wake(self.getters, 1)

    def hand_on(self) -> None:
        """Wake the next that sleeps: who was woken for an item was interrupted, and does not take it."""
        self._wake(self.getters, 1)

    def readable(self) -> bool:
        """Return whether `get` would return or raise at once."""
        return bool(self.items) or self.closed

    @property
    def over(self) -> bool:
        """Whether it is closed and all is taken."""
        return self.closed and not (self.items or self._offers)

    def add_waiter(self, waiter: Waiter) -> Callable[[], None]:
        """Call ``waiter``, in the thread that causes it, whenever the pipe may have become readable.

        It is called without any lock, also when there is no news, and must neither block nor raise.

        Returns:
            A function that takes it away again. To miss nothing, add the waiter first and look at `readable` then.
        """
        key = object()
        with self.lock:
            self.waiters[key] = waiter
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
                waiting_getters=len(self.getters) + self.pulled,
                waiting_putters=len(self._offers),
                closed=self.closed,
            )

    # -- steps, with the lock held and marked as busy -----------------------------------------------------------------

    def _admit(self) -> None:
        """Move offered items in, in order, as far as there is room."""
        while self._offers:
            offer = self._offers[0]
            self._let_in(offer, len(offer) if self.maxsize <= 0 else min(len(offer), self.maxsize - len(self.items)))
            if offer:
                break
            self._offers.popleft()
            self._retire(offer)

    def _let_in(self, offer: Offer[T], count: int) -> None:
        """Move the first ``count`` offered items in."""
        if count <= 0:
            return
        if count == len(offer):
            self.items.extend(offer)
            offer.clear()
        else:
            self.items.extend(offer.popleft() for _ in range(count))
        self._put += count
        self.unfinished += count
        self._most_depth = max(self._most_depth, len(self.items))
        if self.getters:
            self._wake(self.getters, count)
        if self.waiters:
            self._news = True

    def _return(self, item: T) -> None:
        self.items.appendleft(item)
        self._wake(self.getters, 1)
        self._news = True

    def _retire(self, offer: Offer[T]) -> None:
        """See to it that who made an offer hears that it waits no longer."""
        if offer.on_room is not None:
            self._told.append(offer.on_room)
            offer.on_room = None
        self._wake(self._others)

    def _withdraw(self, offer: Offer[T]) -> None:
        if self.ended:  # it is refused already, or goes in all the same
            return
        self._offers = deque(other for other in self._offers if other is not offer)
        self._admit()

    def _end(self, last: Offer[T]) -> None:
        if self.ended:
            return
        self.ended = True
        self.final = last[-1]
        for offer in self._offers:  # nobody needs to wait: they are sure to go in
            self._retire(offer)
        self._offers.append(last)
        self._admit()

    def _shut(self, error: BaseException | None) -> None:
        if self.closed:
            return
        if not self.ended:
            self._refuse()
        self.closed = self.ended = True
        self.error = error
        self._wake(self.getters)
        self._wake(self._others)
        self._news = True

    def _refuse(self) -> None:
        refused, self._offers = self._offers, deque()
        for offer in refused:
            offer.refused = True
            self._retire(offer)

    def _drop(self) -> deque[T]:
        self._shut(None)
        self._refuse()
        self.error = None
        dropped: deque[T] = deque()
        while self.items:
            with contextlib.suppress(IndexError):  # a taker, who needs no lock, was faster
                dropped.append(self._popleft())
        self._dropped += len(dropped)
        self.unfinished = max(0, self.unfinished - len(dropped))
        if not self.unfinished:
            self.all_tasks_done.notify_all()
        return dropped

    @staticmethod
    def _wake(waiting: deque[Any], most: int | None = None) -> None:
        """Wake threads that wait, those that have waited longest first."""
        held = hand_over.held
        for _ in range(len(waiting) if most is None else min(most, len(waiting))):
            try:
                waiter = waiting.popleft()
            except IndexError:  # the last one has gone by itself
                return
            if held is None:
                waiter.release()
            else:
                held.append(waiter)

    # -- around the steps -------------------------------------------------------------------------------------------

    def _change(self, step: Callable[[], None]) -> None:
        """Do a step now; or, in the middle of another of the same thread, right after that."""
        with self.lock:
            if self._busy:
                self._put_off.append(step)
                return
            self._busy = True
            try:
                step()
            finally:
                self._busy = False
        self._after()

    def _after(self) -> None:
        """Do what was put off, and tell who wants to know; without the lock."""
        while self._put_off:
            with self.lock:
                if self._busy:  # we are an intruder ourselves: the step that we interrupted comes here too
                    return
                steps, self._put_off = self._put_off, []
            for step in steps:
                self._change(step)
        if self._news:
            self._news = False
            if self.waiters:
                self._told += list(self.waiters.values())
        while self._told:
            try:
                waiter = self._told.pop(0)  # one at a time: Ctrl-C in one loses no other
            except IndexError:  # another thread is at it too
                return
            waiter()

    # -- waiting, without the lock ------------------------------------------------------------------------------------

    def _get_later(self, timeout: float | None) -> T:
        """Wait for an item and return it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._offers:  # whoever took the last item has not come to move them in yet
                self._change(self._admit)
            pull, late = self.pull, deadline is not None and time.monotonic() >= deadline
            if not late and (pull is None or not pull(deadline)):
                late = not self._sleep(self.getters, self._is_for_takers, deadline)
            try:
                return self._popleft()
            except IndexError:  # another thread was faster, or there is nothing more
                pass
            with self.lock:
                if self.over:
                    raise self.error or ChannelClosedError("the channel is closed and empty")
                if late or self._busy:  # the latter: we are an intruder, and the step that we interrupted comes first
                    raise Empty

    def _is_for_takers(self) -> bool:
        """Return whether one who sleeps would do better to look, or to pull because nobody reads any more."""
        return self.readable() or (self.pull is not None and not self.readers)

    def _wait(self, waiting: deque[Any], ready: Callable[[], object], deadline: float | None) -> bool:
        """Wait until ``ready()`` or it is too late; return whether it is."""
        while not ready():
            if not self._sleep(waiting, ready, deadline):
                return bool(ready())
        return True

    def _sleep(self, waiting: deque[Any], ready: Callable[[], object], deadline: float | None) -> bool:
        """Sleep until woken, unless it is ``ready()`` or too late; return whether there was time to sleep."""
        left = -1.0
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
        waiter = threading.Lock()
        waiter.acquire()
        try:
            waiting.append(waiter)
            if not ready():
                sleep_on(waiter, left)
        except BaseException:  # Ctrl-C: the news that may have come for this thread is for the next one
            self._wake(waiting, 1)
            raise
        finally:
            if waiter in waiting:  # else whoever woke it has taken it out
                with contextlib.suppress(ValueError):  # as somebody may do at this very moment
                    waiting.remove(waiter)
        return True

    def _forget(self, key: object) -> None:
        with self.lock:
            self.waiters.pop(key, None)


def _check(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")

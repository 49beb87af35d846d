"""The consumer's end: a `queue.Queue` that closes, iterates and can be awaited."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Generic, TypeVar

from ..errors import ChannelClosedError
from .ends import Ends, Sender
from .pipe import ChannelStatistics, Pipe
from .waiting import seconds_to_wait

T = TypeVar("T")


class Channel(queue.Queue[T], Generic[T]):
    """A channel as in Go: a bounded queue between threads that its producer closes and its consumer drains.

    ::

        channel = Channel(maxsize=16)
        threading.Thread(target=produce, args=(channel,)).start()    # puts, then closes
        for item in channel:                                          # ends when it is closed and empty
            ...

    It is a `queue.Queue` with all that one has. What closing adds: `put` on a closed channel raises
    `ChannelClosedError`, `get` does so once it is empty too, and iteration ends.

    Args:
        maxsize: Capacity in items; 0 or less for no limit. Choose it for the longest pause that the consumer may make
            without slowing down the producer.

    Thread safety: every method may be called from any thread. With several consumers each item goes to exactly one.
    """

    def __init__(self, maxsize: int = 0, *, pipe: Pipe[T] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize: expected a whole number, got {maxsize!r}")
        pipe = Pipe(maxsize) if pipe is None else pipe
        self._pipe: Pipe[T] = pipe
        self._senders = Ends(pipe)
        # What queue.Queue's own methods (qsize, empty, full, join, ...) look at is the pipe's; so its __init__, which
        # would make all that is theirs, is not called.
        self.maxsize = pipe.maxsize
        self.mutex = pipe.lock  # type: ignore[assignment]  # a reentrant one does all that a plain one does
        self.not_empty = threading.Condition(pipe.lock)
        self.not_full = threading.Condition(pipe.lock)
        self.all_tasks_done = pipe.all_tasks_done

    # -- queue.Queue's -----------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item in, waiting for room if need be.

        Args:
            item: The item.
            block: Whether to wait for room.
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            ChannelClosedError: The channel is closed, or was while this waited.
            queue.Full: There was no room (in time).
        """
        self._pipe.put_many((item,), seconds_to_wait(block, timeout))

    def get(self, block: bool | float = True, timeout: float | None = None) -> T:
        """Take the next item, waiting for it if need be.

        Args:
            block: Whether to wait for it; a number is the ``timeout``, unless that is given too.
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            ChannelClosedError: The channel is closed and empty. If it was closed with an error, that error.
            queue.Empty: Nothing was there (in time).
        """
        return self._pipe.get(seconds_to_wait(block, timeout))

    def shutdown(self, immediate: bool = False) -> None:
        """Close, as `queue.Queue` has it from Python 3.13 on; ``immediate`` drops what is in the channel."""
        if immediate:
            self._pipe.abandon()
        else:
            self._pipe.close()

    @property
    def is_shutdown(self) -> bool:
        """Whether nothing can be put any more: `queue.Queue`'s name for it from Python 3.13 on."""
        return self._pipe.closed

    def _qsize(self) -> int:
        return len(self._pipe.items)

    @property
    def queue(self) -> object:
        """The items that wait, as `queue.Queue` shows them."""
        return self._pipe.items

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put and not yet reported with `task_done`."""
        return self._pipe.unfinished

    @unfinished_tasks.setter
    def unfinished_tasks(self, count: int) -> None:
        self._pipe.unfinished = count

    # -- what a channel adds ----------------------------------------------------------------------------------------

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> None:
        """Put several items in with one hand-over; as `put` otherwise."""
        self._pipe.put_many(items, timeout)

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[T]:
        """Take all items that are there (at most ``most``) with one hand-over, waiting for the first as `get` does."""
        return self._pipe.get_many(most, timeout)

    def close(self, error: BaseException | None = None) -> None:
        """Let nothing more in; what is in can still be taken. Never blocks; only the first call counts.

        Args:
            error: What consumers get once all is taken, instead of a plain end.
        """
        self._pipe.close(error)

    def sender(self) -> Sender[T]:
        """Return a hold on the channel for one of several producers: it is closed when the last of them is.

        Make each while another is open, or all before the first is closed. `put` and `close` of the channel itself do
        what they always do: closed directly, it is closed for all senders.

        Raises:
            ChannelClosedError: The channel is closed.
        """
        if self._pipe.ended:
            raise ChannelClosedError("the channel is closed")
        return Sender(self._pipe, self._senders)

    @property
    def closed(self) -> bool:
        """Whether nothing can be put any more."""
        return self._pipe.closed

    def statistics(self) -> ChannelStatistics:
        """Return a frozen picture of the channel at this moment."""
        return self._pipe.statistics()

    def __iter__(self) -> Iterator[T]:
        """Take items until the channel is closed and empty; raise the error that it was closed with."""
        while True:
            try:
                item = self._pipe.get()
            except ChannelClosedError as error:
                if error is self._pipe.error:
                    raise
                return
            yield item

    async def __aiter__(self) -> AsyncIterator[T]:
        """Take items without blocking the event loop, and without a thread."""
        from .asynchronous import next_item  # asyncio is not for those who use threads only

        while True:
            try:
                item = await next_item(self, self._pipe)
            except ChannelClosedError as error:
                if error is self._pipe.error:
                    raise
                return
            yield item


def pipe_of(channel: Channel[T]) -> Pipe[T]:
    """Return the pipe of a channel, for those who move what is in it on."""
    return channel._pipe  # noqa: SLF001 - the one place where others learn it

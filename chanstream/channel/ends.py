"""Several who put into one channel: it is closed when the last of them has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..errors import ChannelClosedError
from .pipe import Pipe
from .waiting import seconds_to_wait

T = TypeVar("T")


class Ends:
    """Closes a pipe after the last of those who put into it has left, with the first error of any.

    Thread safety: every method may be called from any thread, from signal handlers and from finalizers.
    """

    def __init__(self, pipe: Pipe[Any], who: Iterable[object] = ()) -> None:
        self._pipe = pipe
        self._here = dict.fromkeys(who)  # each change is one step, whatever threads and intruders do
        self._errors: list[BaseException] = []

    def __contains__(self, who: object) -> bool:
        return who in self._here

    def enter(self, who: object) -> None:
        """Note that there is one more."""
        self._here[who] = None

    def leave(self, who: object, error: BaseException | None = None) -> None:
        """Note that one has left, perhaps with an error; to be called again where Ctrl-C may have come between."""
        if error is not None and who in self._here:
            self._errors.append(error)
        self._here.pop(who, None)
        if not self._here:  # and so all their errors are here
            self._pipe.close(self._errors[0] if self._errors else None)


class Sender(Generic[T]):
    """One producer's hold on a channel, made by `Channel.sender`: the channel is closed when the last is.

    ::

        with channel.sender() as sender:
            sender.put(item)

    A sender is closed by `close`, at the end of a ``with`` block, and when the last reference to it is dropped. Where
    an exception ends the block, it is closed with that: consumers must not take what is there for all there was.

    Thread safety: every method may be called from any thread. It cannot be pickled.
    """

    def __init__(self, pipe: Pipe[T], ends: Ends) -> None:
        self._pipe = pipe
        self._ends = ends
        self._ticket = object()  # and not this object itself: it would never be dropped
        self._pid = os.getpid()
        ends.enter(self._ticket)

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item in, as `Channel.put`.

        Raises:
            ChannelClosedError: The sender or the channel is closed.
            queue.Full: There was no room (in time).
        """
        self.put_many((item,), seconds_to_wait(block, timeout))

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> None:
        """Put several items in with one hand-over, as `Channel.put_many`."""
        if self._ticket not in self._ends:
            raise ChannelClosedError("the sender is closed")
        self._pipe.put_many(items, timeout)

    def close(self, error: BaseException | None = None) -> None:
        """Put nothing more; close the channel if all other senders are closed. Never blocks; only the first counts.

        Args:
            error: What consumers get once all senders are closed and all is taken, instead of a plain end. Of several
                errors the first counts.
        """
        self._ends.leave(self._ticket, error)

    @property
    def closed(self) -> bool:
        """Whether nothing can be put through it any more."""
        return self._ticket not in self._ends or self._pipe.closed

    def __enter__(self) -> Sender[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def __del__(self) -> None:
        # In a forked child, and when the process ends, locks may be held for ever by threads that are no more.
        if getattr(self, "_pid", None) == os.getpid() and not sys.is_finalizing():
            self.close()

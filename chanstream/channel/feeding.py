"""Moving items from pipe to pipe without a thread.

A feeder is a waiter on the pipes that it takes from, and what is told when there is room in the one that it puts into:
it moves what can be moved, in whatever thread brought the news.

Several threads may call one feeder at a time, and a signal handler or finalizer may call it in the middle of a move of
its own thread. One of them moves, which keeps the order; a lock says which, and it is only ever tried, so that no two
feeders, pipes or threads can wait for each other. Who comes too late leaves word *before* trying the lock, and who
moves looks for word *after* letting go of it: one of the two sees the other, so no news is lost.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from ..errors import ChanstreamError, StreamError


class Feeder(ABC):
    """Moves items whenever it is told that it may be able to.

    Thread safety: `move` may be called from any thread, from signal handlers and from finalizers.
    """

    def __init__(self) -> None:
        self._word = False
        self._moving = threading.Lock()

    def move(self) -> None:
        """Move what can be moved now, or leave word to the thread that is at it. Never blocks."""
        try:
            self._word = True
            while self._word and self._moving.acquire(blocking=False):
                try:
                    self._word = False
                    self._move()
                finally:
                    self._moving.release()
        except BaseException as error:  # Ctrl-C, or no more memory: items may be lost, and the consumer must know
            self.fail(StreamError(f"chanstream failed: {error!r}"))
            if not isinstance(error, Exception):
                raise

    @abstractmethod
    def _move(self) -> None:
        """Move what can be moved now; one thread at a time is in here."""

    @abstractmethod
    def fail(self, error: ChanstreamError) -> None:
        """End what is fed with an error."""

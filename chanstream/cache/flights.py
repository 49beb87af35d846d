"""Who asks what at this moment: of several that ask the same at the same time, one goes to the server.

The first is the *pilot* of a flight, the others wait until it lands: with the answer, or with nothing. Where the pilot
was cancelled or late, one of those who waited is the next. Where the server failed it they all ask, each for itself:
one after the other, the last would wait for all failures.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from types import TracebackType
from typing import Generic, TypeVar

from ..context import Context
from ..errors import APIConnectionError, APIError, APITimeoutError

A = TypeVar("A")


class Flight(Generic[A]):
    """One question on its way.

    As a context manager, for the pilot, it lands with nothing where the block raises, and is over with the block where
    the answer does not have to stay for others (see `Flights.remove`).

    Thread safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards that nobody begins to wait after the landing
        self._waiting: list[Context] | None = []
        self._answer: A | None = None
        self.refused = False  # whether it was the server that failed, and not the pilot's own patience

    def land(self, answer: A | None) -> None:
        """Give those who wait the answer, or None for nothing; only the first call counts."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._answer = answer
        for landed in waiting or ():
            landed.cancel()

    def wait(self, context: Context, seconds: float | None) -> A | None:
        """Wait for the landing and return the answer.

        Args:
            context: Whose end ends the wait.
            seconds: How long to wait for at most: the caller's ``first_chunk`` clock.

        Raises:
            APITimeoutError: It took longer.
            ChanstreamError: The context's error.
        """
        landed = context.with_cancel()
        try:
            with self._lock:
                if self._waiting is None:
                    landed.cancel()
                else:
                    self._waiting.append(landed)
            in_time = landed.wait(seconds)
        finally:
            landed.release()
        context.raise_if_done()
        if not in_time:
            raise APITimeoutError(clock="first_chunk", seconds=seconds or 0.0)
        return self._answer

    def __enter__(self) -> Flight[A]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_its_own = getattr(error, "clock", None) in ("total", "context")
        self.refused = isinstance(error, (APIError, APIConnectionError)) and not is_its_own
        self.land(None)


class Flights(Generic[A]):
    """The flights of this process, by what is asked.

    Thread safety: every method may be called from any thread. A forked child begins with none: whoever would land those
    of the parent is in the parent.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._flights: dict[Hashable, Flight[A]] = {}
        self._lock = threading.RLock()  # reentrant: a finalizer may end a flight in the middle of a step
        self._pid = os.getpid()

    def join(self, what: Hashable) -> tuple[Flight[A], bool]:
        """Return the flight for a question, and whether the caller is its pilot."""
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            flight = self._flights.get(what)
            if flight is not None:
                return flight, False
            flight = self._flights[what] = Flight()
            return flight, True

    def remove(self, what: Hashable, flight: Flight[A]) -> None:
        """Let nobody join a flight any more."""
        with self._lock:
            if self._flights.get(what) is flight:
                del self._flights[what]

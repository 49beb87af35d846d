"""Who does the work of a batch: by default, threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeAlias

from ..errors import ChanstreamError
from .work import Job, Outcome, work

Done: TypeAlias = Callable[["Outcome | BaseException"], object]
"""Is told an outcome; or an exception, with which the batch ends: there is nobody left to do the work."""


class Workers(Protocol):
    """Who does the work. A batch gives them no more jobs at a time than its concurrency."""

    def submit(self, job: Job, done: Done) -> None:
        """Have a job done, and its outcome told: once, in any thread; it need not be told after `close`.

        What this raises ends the batch.
        """

    def close(self) -> None:
        """Let go of everything; never waits. What still runs is of no use any more. Idempotent."""


class Threads:
    """Threads that begin as they are needed.

    Args:
        most: How many at most.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._lock = threading.RLock()  # guards the counts; reentrant, as a finalizer may close
        self._count = 0
        self._idle = 0
        self._closed = False

    def submit(self, job: Job, done: Done) -> None:
        """Have a job done, and its outcome told; see `Workers`."""
        with self._lock:
            if self._closed:  # a moment ago: a thread that began now would wait for ever
                return
            if self._idle:
                self._idle -= 1
            elif self._count < self._most:
                name = f"chanstream-batch-{self._count + 1}"
                try:
                    threading.Thread(target=self._run, name=name, daemon=True).start()
                except RuntimeError:  # the system has no more; those that are there do the work
                    if not self._count:
                        raise
                else:
                    self._count += 1
        self._jobs.put((job, done))

    def close(self) -> None:
        """Have the threads end, each after what it is at; see `Workers`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._count):
                    self._jobs.put(None)

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, done = given
            try:
                outcome = work(job)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the batch must not wait for ever
                outcome = Outcome(error=ChanstreamError(f"chanstream failed: {error!r}"))
            with self._lock:
                self._idle += 1
            del given, job  # a slow next request shall not keep this one
            done(outcome)
            del done, outcome

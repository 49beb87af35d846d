"""The few threads that open connections and send requests for event loops, which must not block themselves.

One thread does for any number of requests while they go through quickly. Where one is held up (a name that does not
resolve, a host that does not answer) the others get another thread. Each ends as soon as there is nothing left to do.

Locking: ``_lock`` guards the jobs, the count of threads, and when a job was last done.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import timers

PATIENCE = 0.1
"""Seconds without progress after which those that wait get another thread."""

_MOST = 32
"""Threads at most."""

R = TypeVar("R")


class Openers:
    """Threads that come and go with what is to be done.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finalizer may come in the middle of a step
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._moved_at = 0.0
        self._watch: timers.Timer | None = None

    def submit(self, job: Callable[[], R], *, alone: bool = False) -> Future[R]:
        """Have a job done; return its future.

        Args:
            job: The job.
            alone: In a thread of its own: it may take as long as it likes, and holds nobody up.
        """
        future: Future[R] = Future()
        if alone:
            future.set_running_or_notify_cancel()
            threading.Thread(target=_do, args=(future, job), name="chanstream-opener", daemon=True).start()
            return future
        with self._lock:
            if not self._threads:
                self._start()  # which may fail; it waits for the lock
            self._jobs.append((future, job))
            if self._watch is None:
                self._watch = timers.call_at(time.monotonic() + PATIENCE, self._look)
        return future

    def _start(self) -> None:
        threading.Thread(target=self._run, name="chanstream-opener", daemon=True).start()
        self._threads += 1
        self._moved_at = time.monotonic()

    def _look(self) -> float:
        """Start another thread if there is no progress; return when to look again, in `time.monotonic`'s seconds."""
        with self._lock:
            now = time.monotonic()
            if self._jobs and now - self._moved_at >= PATIENCE and self._threads < _MOST:
                with contextlib.suppress(RuntimeError):  # no more threads: perhaps the next time
                    self._start()
            return now + PATIENCE

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._leave()
                    return
                future, job = self._jobs.popleft()
            if future.set_running_or_notify_cancel():
                _do(future, job)
            del future, job  # whoever waited has it; nothing is kept alive from here
            self._moved_at = time.monotonic()

    def _leave(self) -> None:
        self._threads -= 1
        if not self._threads and self._watch is not None:
            self._watch.stop()
            self._watch = None


def _do(future: Future[Any], job: Callable[[], Any]) -> None:
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001 - whoever waits raises it
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future  # the error's traceback holds this frame: with the future in it they would hold each other


openers = Openers()


def _start_afresh() -> None:
    """Forget the parent's threads and jobs in a forked child."""
    openers.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)

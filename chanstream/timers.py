"""One thread for all deadlines of the process.

A deadline costs one heap entry; moving it later costs nothing, because whoever set it looks at its own clock when
it is called and says when to be called again. The thread starts with the first deadline and ends a moment after
the last, so that an idle process has none, and neither has one that only imported chanstream.

Locking: ``_lock`` guards the heap, the count of live timers and the thread's existence. Callbacks run without it,
so that they may set and stop timers. The lock is reentrant because the garbage collector may run a finalizer that
stops a timer in the middle of any of our own steps.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

HELD_UP = 0.1
"""Seconds. Where the thread, with nothing else to do, is so late for a deadline, the process was held up, and with it
whatever threads read: it was stopped, or its machine, or an extension kept the interpreter's lock."""

_LINGER = 0.02
"""Seconds for which the thread waits for a next deadline: streams in a row share a thread."""

_NEVER = float("inf")

_SLACK = 64
"""Stopped timers that may lie in the heap beyond the number of live ones: sweeping costs O(1) for each timer."""

_log = logging.getLogger("chanstream")


class Timer:
    """A call that is due at some time, until it is stopped.

    Whoever may be interrupted (by Ctrl-C, in the main thread) keeps it before starting it, to be able to stop it.

    Args:
        callback: Called without arguments, in the timer thread; must be quick and must not block. It returns None when
            it is done, or the time at which to be called again.

    Thread safety: `start` may be called from any thread, once; `stop` from any thread, any number of times, before the
    start and from the callback too. It does not wait for a callback that runs at this moment.
    """

    __slots__ = ("_owner", "callback", "live")

    def __init__(self, callback: Callable[[], float | None]) -> None:
        self._owner = _of_this_process()
        self.callback = callback
        self.live = True

    def start(self, when: float) -> None:
        """See to it that the callback is called at ``when``, a time of `time.monotonic` in seconds."""
        self._owner.start(self, when)

    def stop(self) -> None:
        """See to it that the callback is not called any more."""
        if self._owner is _timers:  # else it is the parent's of this forked child, or from before gevent's patching
            _timers.stop(self)


class _Timers:
    """The heap of all deadlines, and the thread that waits for the next."""

    def __init__(self) -> None:
        self.lock_type = threading.Lock
        # Taken itself and not through the condition, whose own steps Ctrl-C could come between.
        self._lock = threading.RLock()
        self._cond = threading.Condition(self._lock)
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # two timers at the same instant are not compared
        self._live: set[Timer] = set()  # add and discard are atomic, as steps that a finalizer may interrupt must be
        self._thread: threading.Thread | None = None
        self._looks_at = _NEVER  # when the thread looks at the heap again, at the latest
        self._empty_since = _NEVER
        self._comes_and_goes = False  # whether the last timer went since the thread looked last
        self._free_since = 0.0  # when the last callback returned
        self.held_up_until = 0.0

    def start(self, timer: Timer, when: float) -> None:
        with self._lock:
            if not timer.live:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="chanstream-timers", daemon=True)
                thread.start()  # which may fail; it waits for the lock
                self._thread = thread
            if len(self._heap) > 2 * len(self._live) + _SLACK:
                self._heap = [entry for entry in self._heap if entry[2].live]
                heapq.heapify(self._heap)
            self._live.add(timer)
            self._push(when, timer)

    def stop(self, timer: Timer) -> None:
        with self._lock:
            self._live.discard(timer)
            if timer.live and not self._live:
                self._empty_since = time.monotonic()
                self._comes_and_goes = True
                self._wake_before(self._empty_since + _LINGER)  # the thread may end then
            timer.live = False  # so late, because a stop that was interrupted can be had again
            timer.callback = _nothing  # the heap may keep the timer for long, but what hangs on it can go

    def _push(self, when: float, timer: Timer) -> None:
        heapq.heappush(self._heap, (when, next(self._order), timer))
        self._wake_before(when)

    def _wake_before(self, when: float) -> None:
        """See to it that the thread looks again before ``when``. A wake costs more than all else here."""
        if when < self._looks_at:
            self._cond.notify()  # first: if Ctrl-C comes in between, the next one notifies again
            self._looks_at = when

    def _run(self) -> None:
        while (due := self._next_due()) is not None:
            try:
                again = due.callback()
            except Exception:  # noqa: BLE001 - one bad callback must not stop all others
                _log.exception("a deadline's callback failed")
                again = None
            self._free_since = time.monotonic()
            if again is None:
                due.stop()
                continue
            with self._lock:
                if due.live:
                    self._push(again, due)

    def _next_due(self) -> Timer | None:
        """Wait for the next deadline and return its timer; None when the thread shall end."""
        with self._lock:
            while True:
                while self._heap and not self._heap[0][2].live:
                    heapq.heappop(self._heap)
                now = time.monotonic()
                self._looks_at = self._heap[0][0] if self._heap else self._empty_since + _LINGER
                if self._looks_at <= now and self._heap:
                    when, _, timer = heapq.heappop(self._heap)
                    if now > max(when, self._free_since) + HELD_UP:
                        self.held_up_until = now
                    return timer
                if self._looks_at <= now:
                    # Under the lock: whoever starts a timer after this sees that there is no thread.
                    self._thread, self._looks_at = None, _NEVER
                    return None
                if self._comes_and_goes:  # as with one stream after the other: so no end has to wake the thread
                    self._looks_at = min(self._looks_at, now + _LINGER)
                    self._comes_and_goes = False
                self._cond.wait(min(self._looks_at - now, threading.TIMEOUT_MAX))


def held_up_after(due: float) -> bool:
    """Return whether the process was held up, as far as the thread of the timers noticed, at a time after ``due``."""
    return due < _timers.held_up_until


def _nothing() -> None:
    """Do nothing: what a stopped timer calls."""


def call_at(when: float, callback: Callable[[], float | None]) -> Timer:
    """Return a `Timer` that was started."""
    timer = Timer(callback)
    timer.start(when)
    return timer


_timers = _Timers()


def _of_this_process() -> _Timers:
    """Return what keeps the timers; another one once gevent has patched the process, as gunicorn's workers do.

    To a lock from before that, all greenlets are one thread: it keeps none of them out.
    """
    if _timers.lock_type is not threading.Lock:
        _start_afresh()
    return _timers


def _start_afresh() -> None:
    """Forget the parent's timers in a forked child: their thread and their streams live in the parent only."""
    global _timers  # noqa: PLW0603 - the one instance of the process
    _timers = _Timers()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)

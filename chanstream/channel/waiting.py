"""How a thread waits, and wakes those who wait."""

from __future__ import annotations

import math
import threading
import time
from typing import Any


class HandOver(threading.local):
    """When this thread wakes those who wait for what it puts into pipes: at once, or many at a time.

    A thread that is woken while this one goes on has to wait for the interpreter, and is put to sleep a second time. So
    one that feeds many pipes holds the wakes back, and lets them go before it waits itself.
    """

    held: list[Any] | None = None

    def hold(self) -> None:
        """Hold wakes of this thread back from now on."""
        self.held = []

    def let_go(self) -> None:
        """Wake all those at once, and hold no more back."""
        held, self.held = self.held, None
        for waiter in held or ():
            waiter.release()


hand_over = HandOver()

LOOK_SECONDS = 0.1
"""Seconds after which the main thread, while it waits, looks for signals that did not wake it."""


class Here(threading.local):
    """What this thread is.

    Python looks for signals in the main thread, between two steps of its code. One that comes after the last step
    before a wait, or to another thread, or on Windows, does not end the wait; so the main thread looks now and then.
    """

    def __init__(self) -> None:
        self.is_main_thread = threading.current_thread() is threading.main_thread()


here = Here()


def sleep_on(lock: Any, seconds: float) -> None:
    """Sleep until somebody lets go of ``lock``, or for so many seconds; -1 for as long as it takes."""
    if not here.is_main_thread:
        lock.acquire(True, seconds)
        return
    end = math.inf if seconds < 0 else time.monotonic() + seconds
    while not lock.acquire(True, min(LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
            return


def seconds_to_wait(block: bool | float, timeout: float | None) -> float | None:
    """Return the seconds to wait for queue.Queue's pair of arguments; None for as long as it takes."""
    if timeout is None and not isinstance(block, bool):
        timeout = block
    elif not block:
        return 0.0
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout

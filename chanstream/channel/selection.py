"""Waiting for whichever of several channels has something first, as Go's ``select`` does.

A selector waits on one lock, which a waiter on each pipe lets go. It registers the waiters first and looks at the pipes
then, so whatever comes after the look wakes it, and it never polls. A look takes no lock; that somebody else was faster
shows when the item is taken, which is the channel's own `Channel.get`.

That a channel has ended is told once. Whoever takes the pipe's lock ``reported``, for ever, tells it; a selector that
comes too late for it skips the channel. No selector sleeps on a channel that has ended and is not reported, so none
waits for a report that another one has made.
"""

from __future__ import annotations

import contextlib
import enum
import random
import threading
import time
from collections.abc import Sequence
from queue import Empty
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ..errors import ChannelClosedError
from .channel import Channel, pipe_of
from .waiting import sleep_on

T = TypeVar("T")


class Closed(enum.Enum):
    """What stands in place of an item where there is none, because the channel is closed and empty."""

    CLOSED = "closed"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "CLOSED"


CLOSED: Final = Closed.CLOSED
"""What `select` returns once in place of a channel's item: it is closed, and all its items are taken. It is false."""

Found: TypeAlias = tuple[Channel[T], T | Literal[Closed.CLOSED]]


def select(*channels: Channel[T], timeout: float | None = None) -> Found[T]:
    """Take one item from one of several channels, waiting for the first, and return the channel and the item.

    ::

        while True:
            channel, item = select(a, b)        # ends with ChannelClosedError, after both have ended
            if item is CLOSED:
                ...                             # told once for each; then it is skipped

    Where several channels have something, one of them is chosen at random, each with the same chance. That a channel is
    closed and empty is told once, to one of all selectors, with `CLOSED` for the item; or, where it was closed with an
    error, by raising that.

    Args:
        channels: One at least. One that is given twice counts once.
        timeout: Seconds to wait at most; 0 not to wait at all, as a ``default`` in Go; None for as long as it takes.

    Raises:
        ChannelClosedError: All channels are closed and empty, and that was told for each of them.
        queue.Empty: Nothing came (in time).
        TypeError, ValueError: An argument is wrong; the text names it.
        BaseException: What a channel was closed with; or what its `Channel.get` raises, as that of a stream with
            ``errors="raise"``.

    Thread safety: any number of threads may select from the same channels, and take from them in other ways. Each item
    goes to exactly one. A call costs time in proportion to the number of channels: for many, see `merge`.
    """
    _check(channels, timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    given = list(dict.fromkeys(channels))
    # Where nothing is there, each is asked once: a stream of the parent's, in a forked child, says that it never comes.
    found = _look(given) or _take(given.copy())
    if found is not None:
        return found
    woken = threading.Lock()
    woken.acquire()
    with contextlib.ExitStack() as registered:
        for channel in given:
            registered.callback(pipe_of(channel).add_waiter(lambda: _wake(woken)))
        while (found := _look(given)) is None:
            left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
            if left == 0:
                raise Empty
            sleep_on(woken, left)
    return found


def _look(channels: list[Channel[T]]) -> Found[T] | None:
    """Take from a channel that seems to have something; return None if none has."""
    open_ = [channel for channel in channels if not pipe_of(channel).reported.locked()]
    if not open_:
        raise ChannelClosedError("all channels are closed and empty, and that has been told")
    return _take([channel for channel in open_ if pipe_of(channel).items or pipe_of(channel).closed])


def _take(channels: list[Channel[T]]) -> Found[T] | None:
    """Take from one of the channels, each with the same chance; return None if all turn out to have nothing."""
    while channels:
        channel = channels.pop(random.randrange(len(channels)))  # noqa: S311 - fair is enough
        pipe = pipe_of(channel)
        try:
            return channel, channel.get(block=False)
        except Empty:
            continue  # another consumer was faster
        except BaseException as error:
            if error is not pipe.error and not isinstance(error, ChannelClosedError):
                raise
            if pipe.reported.acquire(blocking=False):
                if pipe.error is not None:
                    raise
                return channel, CLOSED
    return None


def _wake(woken: Any) -> None:
    with contextlib.suppress(RuntimeError):  # another channel has woken it already
        woken.release()


def _check(channels: Sequence[object], timeout: float | None) -> None:
    if not channels:
        raise ValueError("channels: expected one at least")
    for position, channel in enumerate(channels):
        if not isinstance(channel, Channel):
            raise TypeError(f"channels[{position}]: expected a Channel, got {channel!r}")
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")

"""The first of several streams that says something, and the end of all the others.

A race waits on one lock, as `select` does. A waiter on each pipe notes which one has news, in the order in which it
comes, and lets the lock go. A call that is still to open its stream has a thread for as long as that takes, and a
context of its own: that of the winner lives on with its stream, those of the others are cancelled.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, overload

from ..context import Context
from ..errors import ChannelClosedError, StreamCancelledError, with_others
from .channel import Channel, pipe_of
from .fed import check_process, close_all
from .merging import by_key
from .waiting import sleep_on

K = TypeVar("K")
C = TypeVar("C", bound=Channel[Any])
C_co = TypeVar("C_co", bound=Channel[Any], covariant=True)


class Opening(Protocol[C_co]):
    """A call that opens a stream, and gives up when its context is cancelled."""

    def __call__(self, *, context: Context) -> C_co:
        """Return the stream."""
        ...


@overload
def race(  # type: ignore[overload-overlap]  # a mapping with channels for keys is a mapping
    streams: Mapping[K, C | Opening[C]], *, timeout: float | None = ..., context: Context | None = ...
) -> tuple[K, C]: ...
@overload
def race(
    streams: Iterable[C | Opening[C]], *, timeout: float | None = ..., context: Context | None = ...
) -> tuple[int, C]: ...
def race(streams: Any, *, timeout: float | None = None, context: Context | None = None) -> tuple[Any, Any]:
    """Wait for the first of several streams that gives a chunk, cancel the others, and return its key and the stream.

    ::

        ask = {
            "groq": partial(groq.chat_completion_stream, request),
            "mistral": partial(mistral.chat_completion_stream, request),
        }
        name, stream = race(ask)
        for evt in stream:                      # whole: its first chunk is still to be taken
            ...

    Give streams that are open already, or calls that open them, or both. A call is started in a thread of its own, so
    that the race begins before the heads of the answers are in; it is given the keyword ``context``, and shall open its
    stream with that. One that ends without a chunk, or begins with an error, has lost. So has a call that raises.

    When the race is over, the others are cancelled at once, sockets and all, whether they had said anything or not.
    Where it ends with an error, all are.

    Args:
        streams: The streams, channels of any kind, and calls; one at least. The keys are a mapping's, or else the
            positions. From now on they must not be consumed elsewhere.
        timeout: Seconds to wait at most; None for as long as it takes.
        context: Cancels the race. That of the calls is its child, so it reaches the winner's stream as well, if that
            one was opened by a call.

    Raises:
        APITimeoutError: None had a chunk in time.
        StreamCancelledError: The context was cancelled.
        TypeError, ValueError: An argument is wrong; the text names it, and nothing was started.
        Exception: All have lost. It is the error of the one that lost first; its ``others`` are those of the others.

    Thread safety: may be called from any thread.
    """
    racers = by_key(streams)
    if not racers:
        raise ValueError("streams: expected one at least")
    for key, racer in racers.items():
        _check(key, racer)
    if context is not None and not isinstance(context, Context):
        raise TypeError(f"context: expected a Context, got {context!r}")
    parent = Context() if context is None else context
    clock = parent.with_cancel() if timeout is None else parent.with_timeout(timeout)
    running: _Race[Any, Any] = _Race(racers, parent)
    try:
        key = running.first(clock)
        return key, running.only(key)
    except BaseException:  # Ctrl-C too, wherever it comes
        running.stop()
        raise
    finally:
        clock.release()


def _check(key: Any, racer: Any) -> None:
    if isinstance(racer, Channel):
        check_process(racer)
        return
    if not callable(racer):
        raise TypeError(f"streams[{key!r}]: expected a Channel or a call that opens one, got {racer!r}")
    with contextlib.suppress(ValueError):  # of some built-in functions nobody can tell
        try:
            inspect.signature(racer).bind(context=None)
        except TypeError:
            raise TypeError(f"streams[{key!r}]: expected a call that takes 'context=', got {racer!r}") from None


class _Race(Generic[K, C]):
    """One race.

    Whoever brings a channel in looks whether the race is over, *after* having it in ``_channels``; who ends the race
    looks there after having said so. One of the two closes it.
    """

    def __init__(self, racers: Mapping[K, C | Opening[C]], parent: Context) -> None:
        self._channels = {key: racer for key, racer in racers.items() if isinstance(racer, Channel)}
        self._calls = {key: racer for key, racer in racers.items() if key not in self._channels}
        self._contexts = {key: parent.with_cancel() for key in self._calls}
        self._left = set(racers)
        self._refusals: dict[K, BaseException] = {}
        self._errors: list[BaseException] = []
        self._watched: set[K] = set()
        self._news: deque[K] = deque()
        self._woken = threading.Lock()
        self._over = False

    def first(self, clock: Context) -> K:
        """Wait for the first that has something, and return its key."""
        with contextlib.ExitStack() as registered:
            registered.callback(clock.on_done(lambda _: self._wake()))
            for key in list(self._channels):
                if self._has_won(key, registered):  # and so no call is made
                    return key
            for key in self._calls:
                threading.Thread(target=self._open, args=(key,), name="chanstream-race", daemon=True).start()
            while self._left:
                clock.raise_if_done()
                if not self._news:
                    sleep_on(self._woken, -1)
                elif self._has_won(key := self._news.popleft(), registered):
                    return key
        raise with_others(self._errors[0], self._errors[1:])

    def only(self, key: K) -> C:
        """End the race for all but one, and return its channel."""
        self.stop(key)
        channel = self._channels.pop(key)  # a call that goes on shall not hold it
        if key in self._contexts:  # nor shall a context that lives on after it
            weakref.finalize(channel, self._contexts[key].release).atexit = False
        return channel

    def stop(self, *winner: K) -> None:
        """Cancel those that open, and close those that are open."""
        self._over = True
        for key, context in self._contexts.items():
            if key not in winner:
                context.cancel(StreamCancelledError("the race is over"))
        close_all([channel for key, channel in list(self._channels.items()) if key not in winner])
        self._refusals.clear()  # what they hold shall go with the race
        self._errors.clear()

    def _open(self, key: K) -> None:
        """Open a stream, in a thread of its own."""
        try:
            self._channels[key] = channel = _called(key, self._calls[key], self._contexts[key])
            if self._over:
                channel.close()
        except BaseException as error:  # noqa: BLE001 - it is told to who started the race
            self._refusals[key] = error
        self._tell(key)
        del self  # else the traceback of an error would hold it, and so itself, in a circle

    def _has_won(self, key: K, registered: contextlib.ExitStack) -> bool:
        """Look at one that may have news; return whether it has won, and note if it has lost."""
        error = self._refusals.get(key)
        if error is None:
            pipe = pipe_of(self._channels[key])
            if key not in self._watched:  # before the look: what comes after that is news
                self._watched.add(key)
                registered.callback(pipe.add_waiter(partial(self._tell, key)))
            try:
                error = getattr(pipe.items[0], "error", None)
            except IndexError:  # nothing yet, or nothing at all
                if not pipe.over:
                    return False
                error = pipe.error or ChannelClosedError("the channel was closed before anything came")
        if not isinstance(error, BaseException):
            return key in self._left
        if key in self._left:
            self._left.remove(key)
            self._errors.append(error)
        return False

    def _tell(self, key: K) -> None:
        self._news.append(key)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is awake
            self._woken.release()


def _called(key: Any, call: Any, context: Context) -> Any:
    channel = call(context=context)
    if not isinstance(channel, Channel):
        raise TypeError(f"streams[{key!r}]: expected the call to return a Channel, got {channel!r}")
    return channel

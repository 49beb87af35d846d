"""Many channels as one, without a thread.

Each source has a feeder: a waiter on its pipe that moves what is there into the merged pipe, in whatever thread made
the source readable, or made room in the merged pipe. What finds no room stays with the merged pipe as
an offer, and until that is in the feeder takes nothing more, so that the source fills up and holds its producer back.
Offers are small and wait in line, so no source keeps the others out.

How several threads share a feeder is told in `chanstream.channel.feeding`. A feeder that waits for room misses no news
either: it looks whether its offer is in, and being told so afterwards makes it look again.

Feeders refer to pipes only, never to channels. So dropping the merged channel is noticed, and drops the sources.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Generic, TypeVar, overload

from ..errors import ChannelClosedError, ChanstreamError, StreamInterruptedError
from .channel import Channel, pipe_of
from .feeding import Feeder
from .pipe import Offer, Pipe

K = TypeVar("K")
T = TypeVar("T")

_BATCH = 64
"""Items that a source puts in at a time: enough that a hand-over costs little for each, and the others come soon."""


class MergedChannel(Channel[tuple[K, T]], Generic[K, T]):
    """What `merge` returns: a channel of pairs, each an item and the key of the channel that it came from.

    Leaving a loop over it early, with ``break``, ``return`` or an exception, closes it; so do `close`, the end of a
    ``with`` block, and dropping the last reference to it. Closing it closes all its sources, and drops what was not
    taken.

    Thread safety: as a `Channel`. Of several consumers one that leaves its loop early closes it for all. In a forked
    child it cannot be used: what feeds it is in the parent.
    """

    def __init__(self, sources: Mapping[K, Channel[T]], maxsize: int) -> None:
        super().__init__(maxsize)
        self._pid = os.getpid()
        self._sources = list(sources.values())
        ends = _Ends(self._pipe, len(sources))
        for key, source in sources.items():
            _Feeder(key, pipe_of(source), self._pipe, ends)

    def get(self, block: bool | float = True, timeout: float | None = None) -> tuple[K, T]:
        """Take the next pair, as `Channel.get`."""
        self._check_process()
        return super().get(block, timeout)

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[tuple[K, T]]:
        """Take all pairs that are there, as `Channel.get_many`."""
        self._check_process()
        return super().get_many(most, timeout)

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # to wait would be for ever
            raise StreamInterruptedError("the channel belongs to the process that merged it, and this is a fork of it")

    def close(self, error: BaseException | None = None) -> None:  # noqa: ARG002 - a channel's close has it
        """Close all sources at once, and drop what was not taken. Does nothing when all have ended.

        Args:
            error: Not used; there because a `Channel` has it.
        """
        if self._pid != os.getpid() or sys.is_finalizing():
            return  # the sources are the parent's, or the process ends
        self._pipe.abandon()
        # A stream that is at its end may take a moment, which those that go on shall not wait for.
        for source in sorted(self._sources, key=lambda source: pipe_of(source).ended):
            source.close()

    def shutdown(self, immediate: bool = False) -> None:  # noqa: ARG002 - it always is
        """Close: `queue.Queue`'s name for it from Python 3.13 on."""
        self.close()

    def __iter__(self) -> Iterator[tuple[K, T]]:
        """Take pairs until all sources have ended; leaving early closes them."""
        pipe = self._pipe
        try:
            while True:
                if not pipe.items:
                    self._check_process()
                try:
                    pair = pipe.get()
                except ChannelClosedError as error:
                    if error is pipe.error:
                        raise
                    return
                yield pair
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[tuple[K, T]]:
        """Take pairs without blocking the event loop; leaving early closes all sources."""
        try:
            async for pair in super().__aiter__():
                yield pair
        finally:
            self.close()

    def __enter__(self) -> MergedChannel[K, T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_sources"):  # else __init__ did not get far
            self.close()


@overload
def merge(  # type: ignore[overload-overlap]  # a mapping with channels for keys is a mapping
    streams: Mapping[K, Channel[T]], *, maxsize: int = ...
) -> MergedChannel[K, T]: ...
@overload
def merge(streams: Iterable[Channel[T]], *, maxsize: int = ...) -> MergedChannel[int, T]: ...
def merge(
    streams: Mapping[K, Channel[T]] | Iterable[Channel[T]], *, maxsize: int = 1024
) -> MergedChannel[K, T] | MergedChannel[int, T]:
    """Return one channel with the items of several, as ``(key, item)``, fed without a thread.

    ::

        for name, evt in merge({"groq": one_stream, "mistral": another}):
            ...

    The order of each source is kept. The merged channel ends when all sources have ended. An error that ends a stream
    comes as a chunk with ``error`` set, whatever the stream's own ``errors=`` says, and the other streams go on. Where
    a plain channel was closed with an error, the merged one ends with the first such error, after all other items.

    Args:
        streams: The sources: streams, or channels of any kind. From now on they must not be consumed elsewhere. The
            keys are a mapping's, or else the positions.
        maxsize: Capacity in items; 0 or less for no limit. When it is used up, each source fills up too, and its
            producer waits.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.
    """
    if isinstance(streams, Channel) or not isinstance(streams, Iterable):
        raise TypeError(f"streams: expected several channels, got {streams!r}")
    sources = dict(streams.items() if isinstance(streams, Mapping) else enumerate(streams))
    seen = set()
    for key, source in sources.items():
        if not isinstance(source, Channel):
            raise TypeError(f"streams[{key!r}]: expected a Channel, got {source!r}")
        if source in seen:
            raise ValueError(f"streams[{key!r}]: this channel is there already")
        seen.add(source)
    return MergedChannel(sources, maxsize)


class _Ends:
    """Closes the merged pipe after the last source has ended, with the first error of any."""

    def __init__(self, merged: Pipe[tuple[K, T]], sources: int) -> None:
        self._merged = merged
        self._left = [None] * sources  # taking one out is one step, whatever threads and intruders do
        self._errors: list[BaseException] = []
        if not sources:
            merged.close()

    def one(self, error: BaseException | None) -> None:
        """Note that a source has ended."""
        self._errors += [] if error is None else [error]
        self._left.pop()
        if not self._left:  # and so all their errors are here
            self._merged.close(self._errors[0] if self._errors else None)


class _Feeder(Feeder, Generic[K, T]):
    """Moves the items of one source into the merged pipe; it lives as long as the source's pipe knows it."""

    def __init__(self, key: K, source: Pipe[T], merged: Pipe[tuple[K, T]], ends: _Ends) -> None:
        super().__init__()
        self._key = key
        self._source = source
        self._merged = merged
        self._ends = ends
        self._waiting: Offer[tuple[K, T]] = Offer()
        self._over = False
        with self._moving:  # nobody moves, and so nobody ends, before it is known how to forget the waiter
            self._forget = source.add_waiter(self.move)
        self.move()

    def fail(self, error: ChanstreamError) -> None:
        self._merged.close(error)

    def _move(self) -> None:
        while not (self._over or self._waiting or self._merged.closed) and self._source.readable():
            pairs = [(self._key, item) for item in self._source.take(_BATCH)]
            if pairs:
                with contextlib.suppress(ChannelClosedError):
                    self._waiting = self._merged.offer(pairs, self.move)
            elif self._source.over:
                self._over = True
                self._ends.one(self._source.error)
        if self._over or self._merged.closed:
            self._forget()

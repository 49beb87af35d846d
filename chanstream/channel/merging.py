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

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, overload

from ..errors import ChannelClosedError, ChanstreamError
from .channel import Channel, pipe_of
from .ends import Ends
from .fed import FedChannel, check_process, close_all
from .feeding import Feeder
from .pipe import Offer, Pipe

K = TypeVar("K")
T = TypeVar("T")

_BATCH = 64
"""Items that a source puts in at a time: enough that a hand-over costs little for each, and the others come soon."""


class MergedChannel(FedChannel[tuple[K, T]], Generic[K, T]):
    """What `merge` returns: a channel of pairs, each an item and the key of the channel that it came from.

    Leaving a loop over it early, with ``break``, ``return`` or an exception, closes it; so do `close`, the end of a
    ``with`` block, and dropping the last reference to it. Closing it closes all its sources, and drops what was not
    taken.

    Thread safety: as a `Channel`. Of several consumers one that leaves its loop early closes it for all. In a forked
    child it cannot be used: what feeds it is in the parent.
    """

    def __init__(self, sources: Mapping[K, Channel[T]], maxsize: int) -> None:
        self._sources = list(sources.values())
        super().__init__(maxsize)
        if not sources:
            self._pipe.close()
        ends = Ends(self._pipe, sources)
        for key, source in sources.items():
            _Feeder(key, pipe_of(source), self._pipe, ends)
        gathered = None
        for source in self._sources:
            join = pipe_of(source).join
            if join is not None:
                gathered = join(self._pipe, gathered)

    def _leave(self) -> None:
        self._pipe.abandon()
        close_all(self._sources)


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
    sources = by_key(streams)
    for key, source in sources.items():
        if not isinstance(source, Channel):
            raise TypeError(f"streams[{key!r}]: expected a Channel, got {source!r}")
        check_process(source)
    return MergedChannel(sources, maxsize)


def by_key(streams: Any) -> dict[Any, Any]:
    """Return what was given, with the keys of a mapping or else the positions; no channel may be there twice."""
    if isinstance(streams, Channel) or not isinstance(streams, Iterable):
        raise TypeError(f"streams: expected several channels, got {streams!r}")
    given = dict(streams.items() if isinstance(streams, Mapping) else enumerate(streams))
    seen = set()
    for key, stream in given.items():
        if id(stream) in seen:
            raise ValueError(f"streams[{key!r}]: this channel is there already")
        if isinstance(stream, Channel):
            seen.add(id(stream))
    return given


class _Feeder(Feeder, Generic[K, T]):
    """Moves the items of one source into the merged pipe; it lives as long as the source's pipe knows it."""

    def __init__(self, key: K, source: Pipe[T], merged: Pipe[tuple[K, T]], ends: Ends) -> None:
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
                try:  # noqa: SIM105 - three calls more, for each item of a slow stream
                    self._waiting = self._merged.offer(pairs, self.move)
                except ChannelClosedError:
                    pass
            elif self._source.over:
                self._over = True
                self._ends.leave(self._key, self._source.error)
        if self._over or self._merged.closed:
            self._forget()

"""A channel that something feeds: streams, merged channels, tees. Leaving it frees what feeds it."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import AsyncIterator, Generator, Iterable
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from ..errors import ChannelClosedError, StreamInterruptedError
from .channel import Channel, pipe_of
from .pipe import Pipe

T = TypeVar("T")
S = TypeVar("S", bound="FedChannel[Any]")


class FedChannel(Channel[T], Generic[T]):
    """A channel whose end its consumer may bring about: by `close`, by leaving a loop early, by dropping it.

    Thread safety: as a `Channel`. In a forked child it cannot be used, for what feeds it is in the parent.
    """

    _kind: ClassVar[str] = "channel"

    def __init__(self, maxsize: int = 0, *, pipe: Pipe[T] | None = None) -> None:
        super().__init__(maxsize, pipe=pipe)
        self._is_left = False
        self._pid = os.getpid()  # last: from now on `close` leaves, so a subclass sets what that needs before

    @abstractmethod
    def _leave(self) -> None:
        """Drop what was not taken and free what feeds it; called by `close`, again if it was interrupted."""

    def _check_process(self) -> None:
        """Raise in a forked child, where to wait would be for ever."""
        if self._pid != os.getpid():
            raise StreamInterruptedError(
                f"the {self._kind} belongs to the process that made it, and this is a fork of it"
            )

    def get(self, block: bool | float = True, timeout: float | None = None) -> T:
        """Take the next item, as `Channel.get`."""
        self._check_process()
        return super().get(block, timeout)

    def get_many(self, most: int | None = None, timeout: float | None = None) -> list[T]:
        """Take all items that are there, as `Channel.get_many`."""
        self._check_process()
        return super().get_many(most, timeout)

    def close(self, error: BaseException | None = None) -> None:  # noqa: ARG002 - a channel's close has it
        """Free what feeds the channel, and drop what was not taken. Never waits for others.

        Args:
            error: Not used; there because a `Channel` has it.
        """
        if self._is_left or self._pid != os.getpid() or sys.is_finalizing():
            return  # the latter two: locks may be held by threads that are no more
        self._leave()
        self._is_left = True  # last: Ctrl-C may come, and whoever closes next does the rest

    def shutdown(self, immediate: bool = False) -> None:  # noqa: ARG002 - it always is
        """Close: `queue.Queue`'s name for it from Python 3.13 on."""
        self.close()

    def __iter__(self) -> Generator[T, None, None]:
        """Take items to the end; leaving early closes the channel."""
        pipe = self._pipe
        try:
            while True:
                if not pipe.items:
                    self._check_process()
                try:
                    item = pipe.get()
                except ChannelClosedError as error:
                    if error is pipe.error:
                        raise
                    return
                yield item
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Take items without blocking the event loop; leaving early closes the channel."""
        try:
            async for item in super().__aiter__():
                yield item
        finally:
            self.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pid"):  # else __init__ did not get far
            self.close()


def close_all(channels: Iterable[Channel[Any]]) -> None:
    """Close channels, first those that go on: a stream at its end may take a moment, which the others need not wait."""
    for channel in sorted(channels, key=lambda channel: pipe_of(channel).ended):
        channel.close()


def check_process(channel: Channel[Any]) -> None:
    """Raise in a forked child, if the channel is one that only the parent can use."""
    if isinstance(channel, FedChannel):
        channel._check_process()  # noqa: SLF001 - for those who wait for a channel in another way

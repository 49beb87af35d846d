"""Watching many sockets for news.

With `Epoll` any thread may say at any time what is to be watched, also while another one waits for news. `Selected`,
for systems without it, is the waiting thread's own.
"""

from __future__ import annotations

import contextlib
import select
import selectors
from typing import Any, Generic, TypeAlias, TypeVar

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

T = TypeVar("T")

_FORGOTTEN: Any = object()


class Selected(Generic[T]):
    """Sockets, and what each belongs to, watched by the standard library's selector.

    Thread safety: none.
    """

    from_any_thread = False

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}

    def watch(self, descriptor: int, owner: T, events: int) -> None:
        """Report these events from now on; 0 for none."""
        before = self._watched.get(descriptor, 0)
        if events == before:
            return
        if not events:
            self.forget(descriptor)
        elif before:
            self._selector.modify(descriptor, events, owner)
        else:
            self._selector.register(descriptor, events, owner)
        if events:
            self._watched[descriptor] = events

    def forget(self, descriptor: int) -> None:
        """Report nothing of a socket any more; to be called before it is closed or goes to somebody else."""
        if self._watched.pop(descriptor, 0):
            self._selector.unregister(descriptor)

    def wait(self, seconds: float | None) -> list[T]:
        """Return the owners of the sockets that have news, waiting for the first at most so long."""
        return [key.data for key, _ in self._selector.select(seconds)]

    closed = False  # as far as anybody asks

    def fileno(self) -> int:
        """Not for this kind."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the system gave for it."""
        self._selector.close()


class Epoll(Generic[T]):
    """As `Selected`, for Linux.

    Thread safety: any thread may watch and forget, also while one waits.
    """

    from_any_thread = True

    def __init__(self) -> None:
        self._epoll: Any = select.epoll()  # type: ignore[attr-defined, unused-ignore]  # Linux only
        self._owners: dict[int, T] = {}

    def watch(self, descriptor: int, owner: T, events: int) -> None:
        """Report these events from now on; 0 for none."""
        try:
            if descriptor in self._owners:
                self._epoll.modify(descriptor, _MASKS[events])
            else:
                self._owners[descriptor] = owner  # first: news may come at once
                self._epoll.register(descriptor, _MASKS[events])
        except (OSError, ValueError):  # the former if it is closed at this very moment
            if not self._epoll.closed:  # by a poller that has failed, and is about to end all its streams
                raise

    def forget(self, descriptor: int) -> None:
        """Report nothing of a socket any more; to be called before it is closed or goes to somebody else."""
        if descriptor in self._owners:
            with contextlib.suppress(OSError, ValueError):  # who closed it has not asked
                self._epoll.unregister(descriptor)
            self._owners.pop(descriptor, None)  # last: where Ctrl-C comes before, all of it can be had again

    def wait(self, seconds: float | None) -> list[T]:
        """Return the owners of the sockets that have news, waiting for the first at most so long."""
        news = [self._owners.get(descriptor, _FORGOTTEN) for descriptor, _ in self._epoll.poll(seconds)]
        return [owner for owner in news if owner is not _FORGOTTEN]

    @property
    def closed(self) -> bool:
        """Whether it watches no more."""
        return bool(self._epoll.closed)

    def fileno(self) -> int:
        """Return what says, watched by another one, that there are news."""
        return int(self._epoll.fileno())

    def close(self) -> None:
        """Free what the system gave for it."""
        self._epoll.close()


# That a connection has broken down is reported whatever is watched; with ONESHOT only once.
if hasattr(select, "epoll"):
    _MASKS = {0: select.EPOLLONESHOT, READ: select.EPOLLIN, WRITE: select.EPOLLOUT}


Watcher: TypeAlias = "Epoll[T] | Selected[T]"


def new_watcher() -> Watcher[Any]:
    """Return one of the best kind that the system has."""
    return Epoll() if hasattr(select, "epoll") else Selected()

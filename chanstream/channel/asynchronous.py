"""Awaiting a channel: a waiter on the pipe wakes the event loop, so that no thread is spent on waiting."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .channel import Channel
    from .pipe import Pipe

T = TypeVar("T")


async def next_item(channel: Channel[T], pipe: Pipe[T]) -> T:
    """Return the channel's next item, as ``channel.get()`` does, while the event loop goes on."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return channel.get(block=False)
        except Empty:
            pass
        readable = loop.create_future()
        forget = pipe.add_waiter(partial(_wake, loop, readable))
        try:
            if not pipe.readable():  # what came before the waiter was there would wake nobody
                await readable
        finally:
            forget()


def _wake(loop: asyncio.AbstractEventLoop, readable: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_set, readable)


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)

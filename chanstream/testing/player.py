"""Plays one response: the order of bytes and waits, from the head to the end.

The player knows no socket. It is given a way to write, sleeps where the script says so, and returns what is to become
of the connection. A client that leaves ends it by cancellation.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from .reply import Reply
from .response import Response

# A huge write would hold up all other connections: at most so much is copied, encrypted and sent at a time.
_BLOCK_BYTES = 256 * 1024

Write = Callable[[bytes], Awaitable[None]]


class Fate(Enum):
    """What becomes of the connection after a reply."""

    KEEP = auto()
    CLOSE = auto()
    CUT = auto()
    RESET = auto()


class Player:
    """One response on its way out, played once."""

    def __init__(self, reply: Reply, response: Response, write: Write) -> None:
        """Prepares the play.

        Args:
            reply: When to send what, and what is to go wrong.
            response: The bytes.
            write: Sends bytes; returns when the kernel has taken them and every other connection has had its turn.
        """
        self._reply = reply
        self._response = response
        self._write = write
        self._pending = bytearray()  # less than a piece: waits for the rest of it
        self._left = reply.cut_at  # bytes that may still be sent

    async def play(self) -> Fate:
        """Sends everything, with all waits, and returns what is to become of the connection."""
        await self._pause(self._reply.head_delay, pings=math.inf)
        if self._response.verbatim:
            await self._fill(self._response.head)  # goes out with the body's first bytes, if no wait parts them
        else:
            await self._write(self._response.head)
        await self._send_events()
        return await self._end()

    async def _send_events(self) -> None:
        """Sends the body up to its end, its cut or its stall, whichever comes first."""
        if self._left == 0:
            return
        if self._reply.stall_after == 0:
            await self._stall()
        await self._pause(self._reply.first_delay)
        due = _now()
        for number, data in enumerate(self._response.events, start=1):
            if number > 1:
                due = self._next_due(due)
                await self._pause(due - _now())
            await self._send(self._clip(data))
            if self._left == 0:
                return
            if number == self._reply.stall_after:
                await self._stall()

    def _next_due(self, due: float) -> float:
        """Returns when the next event is due: on the beat of the first, so that a busy machine slows no stream down.

        A long delay, such as a peer that does not read, is not made up for: that would end in a burst.
        """
        pace = self._reply.pace
        return max(due, _now() - pace) + pace

    async def _end(self) -> Fate:
        clean = self._reply.end == "clean"
        if clean:
            await self._send(self._clip(self._response.coding.finish()))
        await self._flush()
        if self._reply.end == "hold":
            await self._stall()
        if clean and self._response.last:
            await self._write(self._response.last)
        if clean:
            return Fate.KEEP if self._response.keep else Fate.CLOSE
        return Fate.RESET if self._reply.end == "reset" else Fate.CUT

    def _clip(self, data: bytes) -> bytes:
        """Returns what of `data` comes before the cut."""
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data

    async def _send(self, data: bytes) -> None:
        """Sends `data`; if the script splits, the rest that makes no whole piece waits for more."""
        await self._fill(data)
        if self._reply.split is None:
            await self._flush()

    async def _fill(self, data: bytes) -> None:
        """Sends all whole pieces and keeps the rest."""
        size = self._reply.split or _BLOCK_BYTES
        left = memoryview(data)
        while left:
            taken = left[: size - len(self._pending)]
            left = left[len(taken) :]
            self._pending += taken
            if len(self._pending) == size:
                await self._flush()

    async def _flush(self) -> None:
        if self._pending:
            piece = bytes(self._pending)
            self._pending.clear()
            await self._write(self._response.frame(piece))

    async def _stall(self) -> None:
        await self._pause(math.inf)

    async def _pause(self, seconds: float, *, pings: float | None = None) -> None:
        """Waits, after everything that is due has been sent; speaks up now and then if the script wants that."""
        if seconds <= 0:
            return
        await self._flush()
        interval = self._response.pings if pings is None else pings
        end = _now() + seconds
        while (left := end - _now()) > 0:
            await asyncio.sleep(min(left, interval))
            if interval < left:
                comment = f": ping{self._reply.newline * 2}".encode()
                await self._write(self._response.frame(self._response.coding.encode(comment)))


def _now() -> float:
    return asyncio.get_running_loop().time()

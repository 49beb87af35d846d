"""One TCP connection: requests in, one reply at a time out.

A protocol on asyncio's transport. Reading never pauses, so that a client that leaves is noticed at once, whatever the
reply is doing: stalling, pacing, or waiting for a peer whose window is full.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from typing import Protocol, cast

from . import http11
from .player import Fate, Player
from .reply import Reply
from .request import RecordedRequest
from .response import respond
from .tls import TLS

# SO_LINGER on, for 0 seconds: close() then sends RST and forgets what is unsent.
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


class Host(Protocol):
    """What a connection needs of its server; called in the loop's thread only."""

    def opened(self, connection: Connection) -> int:
        """Notes a new connection and returns its number."""

    def lost(self, connection: Connection) -> None:
        """Notes that a connection is gone."""

    def answer(self, request: RecordedRequest) -> tuple[int, Reply]:
        """Notes a request, and returns its number and the reply to it."""


class Connection(asyncio.Protocol):
    """The server's end of one connection."""

    _transport: asyncio.Transport
    _reader: http11.RequestReader

    def __init__(self, host: Host, tls: ssl.SSLContext | None) -> None:
        """Prepares for a peer that is about to be accepted."""
        self._host = host
        self._tls = None if tls is None else TLS(tls)
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Drops the connection now, with whatever was to be sent."""
        self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport, and has each write go out at once."""
        self._transport = cast("asyncio.Transport", transport)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, for an accepted socket
        self._transport.set_write_buffer_limits(high=0)  # writable means that the kernel has taken everything
        self._reader = http11.RequestReader(self._host.opened(self))

    def data_received(self, data: bytes) -> None:
        """Stores what arrived, and answers if it completes a request."""
        try:
            self._reader.feed(data if self._tls is None else self._decrypted(self._tls, data))
        except ssl.SSLError:
            self._transport.close()
            return
        if self._task is None:
            self._answer_next()

    def eof_received(self) -> None:
        """Drops the connection: who ends the sending side has left, as far as a client of streams goes."""
        self.abort()

    def pause_writing(self) -> None:
        """Makes `write` wait: the peer does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Lets `write` go on."""
        self._writable.set()

    def connection_lost(self, _: Exception | None) -> None:
        """Ends the reply."""
        if self._task is not None:
            self._task.cancel()
        self._host.lost(self)

    # The rest is ours.

    @property
    def _socket(self) -> socket.socket:
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    def _decrypted(self, tls: TLS, data: bytes) -> bytes:
        try:
            plain = tls.receive(data)
        finally:
            self._transport.write(tls.to_send())  # the handshake, or the alert that tells the client what is wrong
        if tls.peer_left:
            self._transport.write(tls.close())
            self.abort()
        return plain

    def _encrypted(self, data: bytes) -> bytes:
        return data if self._tls is None else self._tls.send(data)

    def _answer_next(self) -> None:
        """Starts the reply to the next request, if it is all there."""
        try:
            request = self._reader.next_request()
        except http11.MalformedRequestError as problem:
            self._transport.write(self._encrypted(http11.refusal(problem)))
            self._end(Fate.CLOSE)
            return
        if request is not None:
            serial, reply = self._host.answer(request)
            player = Player(reply, respond(reply, request, serial), self._write)
            self._task = asyncio.get_running_loop().create_task(self._perform(player))
        elif self._reader.take_continue():
            self._transport.write(self._encrypted(http11.CONTINUE))

    async def _perform(self, player: Player) -> None:
        fate = await player.play()
        self._task = None
        if fate is Fate.KEEP:
            self._answer_next()
        else:
            self._end(fate)

    async def _write(self, data: bytes) -> None:
        self._transport.write(self._encrypted(data))
        await asyncio.sleep(0)  # the others' turn; and the peer has a chance to see this piece on its own
        await self._writable.wait()

    def _end(self, fate: Fate) -> None:
        if fate is Fate.RESET:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
            return
        if fate is Fate.CLOSE and self._tls is not None:
            self._transport.write(self._tls.close())
        self._transport.close()

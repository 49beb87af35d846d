"""Connections that another thread can cut: while they connect, shake hands, wait for the head, or read the body.

Why not ``response.raw.shutdown()`` alone? It exists only once the head is in, and it cannot tell whether the connection
has just gone back to the pool and serves another request. Here a connection knows which *exchange* it serves, under a
lock, so that a late cut hits nobody else.

The hook is urllib3's public one, the pool's ``ConnectionCls``. http.client calls ``connect`` and urllib3 ``request`` in
the thread that sends; the exchange reaches them through a thread-local. One private name is overridden, ``_new_conn``,
because urllib3 gives out a socket only once it is connected, and connecting can take long; a test guards it.

An exchange may be *parked* when its request is sent: the connection is kept aside, and the thread is free. Somebody
else waits for the head; then the same request is made once more, on this connection, which sends nothing this time and
reads the head that is there. So an event loop can wait for any number of heads, and all the rest is done in one way.
For this two private names of the pools are overridden, ``_get_conn`` and ``_put_conn``; a test guards them too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import io
import os
import queue
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

POOL_SIZE = 1024
"""Connections kept per host: above it each stream pays a new handshake. requests keeps 10."""

_TOGETHER = 64 * 1024
"""Bytes of a request that are sent at once; to join more of them costs more than it saves."""


_KNOWN = 64
"""URLs whose pool is known without a search: a client has a handful."""


class _Current(threading.local):
    exchange: Exchange | None = None


_current = _Current()


class ParkedError(Exception):
    """The request is sent, and the exchange parked."""


class Exchange:
    """One request and its answer, as something that can be cut.

    Attributes:
        parks: Whether to park once the request is sent.
        parked: The connection that is kept aside.
        ahead: What whoever waited for the head has read of the answer.
        began_at: When the clock for the first chunk began, on `time.monotonic`.

    Thread safety: `cut` may be called from any thread, any number of times, at any moment; the rest by one at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._connection: Cuttable | None = None
        self._is_cut = False
        self._pid = os.getpid()
        self.parks = False
        self.parked: Cuttable | None = None
        self.ahead = b""
        self.began_at = time.monotonic()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Make this the exchange of the connections that this thread uses in the block."""
        _current.exchange = self
        try:
            yield
        finally:
            _current.exchange = None

    def attach(self, connection: Cuttable) -> None:
        """Take the connection that serves this exchange."""
        with self._lock:
            self._connection = connection
            if not self._is_cut:
                return
        raise ConnectionAbortedError("the request was cut")

    def abandon(self) -> None:
        """Close the connection that is kept aside: nobody will read its answer."""
        connection, self.parked = self.parked, None
        if connection is not None:
            connection.close()

    def cut(self) -> bool:
        """Shut the connection down: who blocks on it wakes at once. Return whether that was done, or had to be left.

        A forked child has a copy of the exchange, but the connection is the parent's: it would be shut down there too.
        """
        if self._pid != os.getpid():
            return True
        with self._lock:
            self._is_cut = True
            connection = self._connection
        if connection is None:
            return False
        connection.cut(self)
        return True


class Cuttable:
    """What both kinds of connections have in addition: another thread can cut them.

    ``_guard`` guards the exchange, whether it was cut, and the handles of the socket.
    """

    _is_tls = False
    host: str
    port: int
    timeout: float | None
    source_address: tuple[str, int] | None
    socket_options: Any
    response_class: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._guard = threading.RLock()
        self._exchange: Exchange | None = None
        self._is_cut = False
        self._sock: Any = None
        self._last: Any = None
        self._line: socket.socket | None = None
        self._held: list[Any] | None = None
        super().__init__(*args, **kwargs)

    @property
    def sock(self) -> Any:
        """The socket, as http.client and urllib3 keep it here."""
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        """Keep what a cut has to reach.

        The last socket there was: http.client lets go of it when the head says ``Connection: close``, and the body is
        still to come. And a second handle of a plain socket: TLS empties the first for as long as it shakes hands.
        """
        line = sock.dup() if self._is_tls and type(sock) is socket.socket else None
        with self._guard:
            old, self._line = self._line, line
            self._sock = sock
            self._last = self._last if sock is None else sock
        if old is not None:
            old.close()

    def connect(self) -> None:
        """Connect, TLS included; raises ConnectionAbortedError if it is cut meanwhile."""
        self._serve()
        try:
            super().connect()  # type: ignore[misc]  # of the connection class beside this one
        except TimeoutError as error:  # in the handshake of TLS, which urllib3 takes for reading
            raise ConnectTimeoutError(self, f"no TLS with {self.host} within {self.timeout} s") from error
        self._sock.settimeout(None)  # from here on it is the clocks who cut, and this one was for connecting
        if self._is_cut:  # while there was no socket to shut down: the name was being looked up
            self._close()
            raise ConnectionAbortedError("the request was cut")

    def _new_conn(self) -> socket.socket:
        """Return a connected socket; as urllib3's, but the socket can be cut while it connects."""
        try:
            return self._dial()
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"{self.host} did not answer within {self.timeout} s") from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error  # type: ignore[arg-type]

    def _dial(self) -> socket.socket:
        """Try the host's addresses in turn."""
        failure: OSError = ConnectionError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host.strip("[]"), self.port, allowed_gai_family(), socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            self.sock = sock
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(self.timeout)
                if self.source_address:
                    sock.bind(self.source_address)
                sock.connect(address)
            except OSError as error:
                failure = error
                self.sock = None
                sock.close()
                if self._is_cut:
                    break
            else:
                sys.audit("http.client.connect", self, self.host, self.port)
                return sock
        raise failure

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request, for the exchange of this thread from now on; nothing if that was parked: it is sent."""
        if self._is_parked():
            return
        self._serve()
        if self._sock is not None:
            self.timeout = None  # as above, where the connection is used again
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]  # as above
            self._send_held()
        except ssl.SSLEOFError as error:
            # TLS's name for a broken pipe. By that one urllib3 knows to read what the server said before it left, such
            # as that it wants a certificate.
            raise BrokenPipeError(errno.EPIPE, str(error)) from error
        finally:
            self._held = None

    def send(self, data: Any) -> None:
        """Send, or hold what is a part of a request until all of it is there.

        http.client sends the head and the body one by one: two packets, and two turns of the server.
        """
        if self._held is None:
            super().send(data)  # type: ignore[misc]  # as above
        else:
            self._held.append(data)

    def _send_held(self) -> None:
        parts, self._held = self._held or [], None
        if sum(map(len, parts)) <= _TOGETHER:
            parts = [b"".join(parts)]
        for part in parts:
            self.send(part)

    def getresponse(self) -> Any:
        """Return the answer once its head is in, or park the exchange."""
        exchange = _current.exchange
        if exchange is not None and exchange.parks:
            if exchange.parked is not self:
                exchange.parked = self
                raise ParkedError
            exchange.parks, exchange.parked = False, None
            self.response_class = partial(_begun, exchange.ahead)
        try:
            return super().getresponse()  # type: ignore[misc]  # as above
        finally:
            self.response_class = http.client.HTTPResponse

    def close(self) -> None:
        """Close the connection, unless it is kept aside."""
        if not self._is_parked():
            super().close()  # type: ignore[misc]  # as above

    def _is_parked(self) -> bool:
        return self._exchange is not None and self._exchange.parked is self

    def _close(self) -> None:
        self.close()

    def cut(self, exchange: Exchange) -> None:
        """Shut the socket down, if the connection still serves this exchange."""
        with self._guard:
            if self._exchange is exchange and not self._is_cut:
                self._is_cut = True
                _shut_down(self._last if self._line is None else self._line)

    def _serve(self) -> None:
        exchange = _current.exchange
        with self._guard:
            stale = self._is_cut and self._exchange is not exchange
            if self._exchange is not exchange:
                self._exchange, self._is_cut = exchange, False
        if stale:  # a late cut of the previous exchange: http.client connects anew
            self._close()
        if exchange is not None:
            exchange.attach(self)


_RESET = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""SO_LINGER's value for: closing resets the connection."""


def _shut_down(sock: Any) -> None:
    """Wake whoever blocks on a socket, and see to it that its closing wakes the server.

    A server that waits for room to send hears of an orderly close only when its next probe of the window is due.
    """
    with contextlib.suppress(OSError, AttributeError):  # of urllib3's TLS within TLS, say
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        if isinstance(sock, socket.socket):
            # Not SSLSocket.shutdown, which takes the TLS layer away: a reader would then see ciphertext as data.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        elif sock is not None:
            sock.shutdown(socket.SHUT_RDWR)


class _Begun(io.RawIOBase):
    """What comes from a socket, after what was read of it before."""

    def __init__(self, ahead: bytes, sock: Any) -> None:
        self._ahead = ahead
        self._raw = sock.makefile("rb", buffering=0)
        self._sock = sock  # where a `socket.SocketIO` has it

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer; None if nothing has arrived and the socket does not block."""
        ahead, self._ahead = self._ahead, b""
        if not ahead:
            return self._raw.readinto(buffer)  # type: ignore[no-any-return]
        buffer[: len(ahead)] = ahead  # it has room: see `_begun`
        return len(ahead)

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


def _begun(ahead: bytes, sock: Any, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
    """Return an answer of which some bytes were read already."""
    if not ahead:
        return http.client.HTTPResponse(sock, *args, **kwargs)
    # The buffer takes all of them at once: whoever takes the socket over finds what was read ahead there alone.
    buffered = io.BufferedReader(_Begun(ahead, sock), max(len(ahead), io.DEFAULT_BUFFER_SIZE))
    return http.client.HTTPResponse(_Makes(buffered), *args, **kwargs)  # type: ignore[arg-type]


@attrs.frozen
class _Makes:
    """What http.client makes a file of."""

    file: Any

    def makefile(self, mode: str) -> Any:  # noqa: ARG002 - it is always "rb"
        """Return the file."""
        return self.file


class _HTTPConnection(Cuttable, HTTPConnection):
    pass


class _HTTPSConnection(Cuttable, HTTPSConnection):
    _is_tls = True


class _Idle(queue.LifoQueue[Any]):
    """The idle connections of a pool, and these alone.

    urllib3 fills the queue with a None for each that may come, for pools that block: 1024 of them take a millisecond.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take a connection in."""
        if item is not None:
            super().put(item, block, timeout)


class _Pool:
    """What both kinds of pools have in addition.

    A parked connection is not among those that others may use. And a pool can be *retired*: not ``close()``, which
    fails requests that hold the pool.
    """

    QueueCls = _Idle
    pool: Any
    _retired = False

    def _get_conn(self, timeout: float | None = None) -> Any:
        exchange = _current.exchange
        if exchange is not None and exchange.parked is not None:
            return exchange.parked
        return super()._get_conn(timeout)  # type: ignore[misc]  # of the pool class beside this one

    def _put_conn(self, connection: Any) -> None:
        exchange = _current.exchange
        if exchange is None or exchange.parked is None:  # else its place is kept for it
            super()._put_conn(connection)  # type: ignore[misc]  # as above
            if self._retired:  # the look comes after the put, and in `retire` the other way round
                self.retire()

    def retire(self) -> None:
        """Close the connections that no request uses, and from now on each that is given back.

        urllib3 closes those of a pool when the pool is collected, and an error's traceback can keep it for long.
        """
        self._retired = True
        idle = self.pool
        if idle is None:  # urllib3's close() was faster
            return
        with contextlib.suppress(queue.Empty):
            while True:
                idle.get(block=False).close()


class _HTTPPool(_Pool, HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


@functools.cache
def _socks_pools() -> dict[str, Any]:
    """Return the pools for SOCKS, which needs a package of its own, and connects in its own way: by the clock alone."""
    from urllib3.contrib import socks

    def kinds(connection: Any, pool: Any, is_tls: bool) -> Any:
        members = {"_new_conn": connection._new_conn, "_is_tls": is_tls}  # noqa: SLF001 - see above
        ours = type("_SOCKSConnection", (Cuttable, connection), members)
        return type("_SOCKSPool", (_Pool, pool), {"ConnectionCls": ours})

    return {
        "http": kinds(socks.SOCKSConnection, socks.SOCKSHTTPConnectionPool, False),
        "https": kinds(socks.SOCKSHTTPSConnection, socks.SOCKSHTTPSConnectionPool, True),
    }


class CuttableAdapter(HTTPAdapter):
    """requests' adapter with connections that can be cut, through proxies too, and a pool sized for fan-out."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Any] = {}
        super().__init__(pool_connections=16, pool_maxsize=POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """Return the pool for a request; the same for all of a client, so it is looked up once."""
        key = (request.url, verify, cert, *(proxies or {}).items())
        pool = self._known.get(key)
        if pool is None or pool.pool is None:  # the latter: it was closed
            if len(self._known) >= _KNOWN:
                self._known.clear()
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            self._known[key] = pool
        return pool

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Return the pools of connections through a proxy."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _socks_pools() if proxy.lower().startswith("socks") else _POOLS
        return manager

    def close(self) -> None:
        """Close the connections that no request uses, and the others when their requests have ended."""
        self._known.clear()
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in list(manager.pools.keys()):
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.retire()
        super().close()

"""Connections that another thread can cut: while they connect, shake hands, wait for the head, or read the body.

Why not ``response.raw.shutdown()`` alone? It exists only once the head is in, and it cannot tell whether the connection
has just gone back to the pool and serves another request. Here a connection knows which *exchange* it serves, under a
lock, so that a late cut hits nobody else.

The hook is urllib3's public one, the pool's ``ConnectionCls``. http.client calls ``connect`` and urllib3 ``request`` in
the thread that sends; the exchange reaches them through a thread-local. One private name is overridden, ``_new_conn``,
because urllib3 gives out a socket only once it is connected, and connecting can take long; a test guards it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

POOL_SIZE = 1024
"""Connections kept per host: above it each stream pays a new handshake. requests keeps 10."""


class _Current(threading.local):
    exchange: Exchange | None = None


_current = _Current()


class Exchange:
    """One request and its answer, as something that can be cut.

    Thread safety: `cut` may be called from any thread, any number of times, at any moment.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._connection: Cuttable | None = None
        self._is_cut = False
        self._pid = os.getpid()

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._guard = threading.RLock()
        self._exchange: Exchange | None = None
        self._is_cut = False
        self._sock: Any = None
        self._last: Any = None
        self._line: socket.socket | None = None
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
        """Send a request, for the exchange of this thread from now on."""
        self._serve()
        if self._sock is not None:
            self.timeout = None  # as above, where the connection is used again
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]  # as above
        except ssl.SSLEOFError as error:
            # TLS's name for a broken pipe. By that one urllib3 knows to read what the server said before it left, such
            # as that it wants a certificate.
            raise BrokenPipeError(errno.EPIPE, str(error)) from error

    def _close(self) -> None:
        self.close()  # type: ignore[attr-defined]  # as above

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


class _HTTPConnection(Cuttable, HTTPConnection):
    pass


class _HTTPSConnection(Cuttable, HTTPSConnection):
    _is_tls = True


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class CuttableAdapter(HTTPAdapter):
    """requests' adapter with connections that can be cut, through proxies too, and a pool sized for fan-out."""

    def __init__(self) -> None:
        super().__init__(pool_connections=16, pool_maxsize=POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Return the pools of connections through a proxy; SOCKS has connections of its own."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def close(self) -> None:
        """Close the connections that no request uses.

        urllib3 closes those of a pool when the pool is collected, and an error's traceback can keep it for long.
        """
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in list(manager.pools.keys()):
                _close_idle(manager.pools.get(key))
        super().close()


def _close_idle(pool: HTTPConnectionPool | None) -> None:
    """Take the idle connections out and close them; not ``pool.close()``, which fails requests that hold the pool."""
    idle = getattr(pool, "pool", None)
    with contextlib.suppress(queue.Empty):
        while idle is not None:
            connection = idle.get(block=False)
            if connection is not None:
                connection.close()

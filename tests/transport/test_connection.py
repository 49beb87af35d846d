"""Cutting connections: at every step of an exchange, in every kind of connection, and never somebody else's."""

from __future__ import annotations

import contextlib
import inspect
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from chanstream.testing import Reply, StreamServer
from chanstream.transport.connection import Exchange
from chanstream.transport.session import new_session
from chanstream.transport.source import Source
from tests.conftest import PROMPT, Link, within

if TYPE_CHECKING:
    import requests

pytestmark = pytest.mark.usefixtures("nothing_left")

BODY = b"abc"
LARGE = b"x" * (16 * 1024 * 1024)
"""A request that fills every buffer between client and server."""


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session whose connections can be cut."""
    with new_session() as session:
        yield session


def send(session: requests.Session, exchange: Exchange, url: str, data: bytes = BODY) -> requests.Response:
    """Send a request that the exchange can cut, and return the answer as soon as its head is in."""
    with exchange.sending():
        return session.post(url, data=data, stream=True)


def sent(session: requests.Session, url: str) -> tuple[Exchange, Source]:
    """Return an exchange and the body of its answer."""
    exchange = Exchange()
    return exchange, Source(send(session, exchange, url), exchange)


def read_all(source: Source) -> bytes:
    """Return all of a body, and close it."""
    body = b"".join(iter(source.read, b""))
    source.close()
    return body


@contextlib.contextmanager
def listening(backlog: int = 5) -> Iterator[str]:
    """Give the host and port of a server that takes connections, and nothing else."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def full() -> Iterator[str]:
    """Give the host and port of a server that has no room for another connection."""
    with contextlib.ExitStack() as exits:
        address = exits.enter_context(listening(backlog=0))
        host, _, port = address.partition(":")
        while True:
            queued = exits.enter_context(socket.socket())
            queued.settimeout(0.1)
            try:
                queued.connect((host, int(port)))
            except TimeoutError:
                break
        yield address


class TestEveryStep:
    def cut(self, exchange: Exchange, blocked: Future[object], begun: Callable[[], bool]) -> BaseException | None:
        """Cut an exchange once it has begun to block, and return the error that it was freed with, in time."""
        assert within(5, begun)
        assert not within(0.05, blocked.done)
        at = time.monotonic()
        assert exchange.cut()
        error = blocked.exception(5)
        assert time.monotonic() - at < PROMPT
        return error

    def test_while_connecting(self, session: requests.Session) -> None:
        """A connection that does not come about is given up."""
        with full() as address, ThreadPoolExecutor(1) as pool:
            exchange = Exchange()
            blocked: Future[object] = pool.submit(send, session, exchange, f"http://{address}")
            assert isinstance(self.cut(exchange, blocked, lambda: exchange._connection is not None), OSError)

    def test_while_shaking_hands(self, session: requests.Session) -> None:
        """So is a handshake of TLS that the other side does not take part in."""
        with listening() as address, ThreadPoolExecutor(1) as pool:
            exchange = Exchange()
            blocked: Future[object] = pool.submit(send, session, exchange, f"https://{address}")
            assert isinstance(self.cut(exchange, blocked, lambda: exchange._connection is not None), OSError)

    def test_while_sending(self, session: requests.Session) -> None:
        """So is the sending of a request that nobody reads."""
        with listening() as address, ThreadPoolExecutor(1) as pool:
            exchange = Exchange()
            blocked: Future[object] = pool.submit(send, session, exchange, f"http://{address}", LARGE)
            assert isinstance(self.cut(exchange, blocked, lambda: exchange._connection is not None), OSError)

    def test_while_waiting_for_the_head(self, session: requests.Session, link: Link) -> None:
        """So is the wait for the head."""
        server = link.serve(Reply(head_delay=math.inf))
        with ThreadPoolExecutor(1) as pool:
            exchange = Exchange()
            blocked: Future[object] = pool.submit(send, session, exchange, server.url)
            assert isinstance(self.cut(exchange, blocked, lambda: len(server.requests) == 1), OSError)
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    @pytest.mark.parametrize("compress", [None, "gzip"])
    def test_while_reading(self, session: requests.Session, link: Link, framing: Any, compress: Any) -> None:
        """So is the body, in any framing; a reader that has had all so far sees its end or an error."""
        server = link.serve(Reply(body=b"abcdef", split=2, stall_after=1, framing=framing, compress=compress))
        exchange, source = sent(session, server.url)
        got = source.read()
        while len(got) < 2:
            got += source.read()
        with ThreadPoolExecutor(1) as pool:
            blocked: Future[object] = pool.submit(source.read)
            error = self.cut(exchange, blocked, blocked.running)
            assert error is not None or blocked.result() == b""
        source.close()
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    def test_before_anything(self, session: requests.Session, link: Link) -> None:
        """An exchange that was cut before it began sends nothing."""
        server = link.serve(Reply(body=BODY))
        exchange = Exchange()
        assert not exchange.cut()  # there is nothing of ours to cut, yet
        with pytest.raises(OSError, match="cut"):
            send(session, exchange, server.url)
        assert server.requests == ()

    def test_before_anything_on_a_connection_of_the_pool(self, session: requests.Session, link: Link) -> None:
        """Nor does it if there is an idle connection, which stays as it is for the next one."""
        server = link.serve(Reply(body=BODY))
        assert read_all(sent(session, server.url)[1]) == BODY
        exchange = Exchange()
        exchange.cut()
        with pytest.raises(OSError, match="cut"):
            send(session, exchange, server.url)
        assert len(server.requests) == 1
        assert read_all(sent(session, server.url)[1]) == BODY
        assert len(server.requests) == 2

    def test_twice_and_by_many(self, session: requests.Session, link: Link) -> None:
        """An exchange may be cut any number of times, from any thread."""
        server = link.serve(Reply(body=BODY, stall_after=0))
        exchange, source = sent(session, server.url)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: exchange.cut(), range(50)))
        with contextlib.suppress(Exception):
            assert source.read() == b""
        source.close()
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)


class TestSending:
    @pytest.mark.parametrize(("size", "packets"), [(0, 1), (1000, 1), (1 << 20, 2)])
    def test_head_and_body_together(
        self, session: requests.Session, plain: Link, monkeypatch: pytest.MonkeyPatch, size: int, packets: int
    ) -> None:
        """A request goes out as one packet, head and body; a large body as one of its own."""
        server = plain.serve("a", "b")
        sizes: list[int] = []
        send = HTTPConnection.send

        def note(connection: HTTPConnection, data: bytes) -> None:
            sizes.append(len(data))
            send(connection, data)

        monkeypatch.setattr(HTTPConnection, "send", note)
        for _ in range(2):  # on a new connection, and on the same again
            sizes.clear()
            session.post(server.url + "/v1/chat/completions", data=b"x" * size).close()
            assert len(sizes) == packets
        assert [len(request.body) for request in server.requests] == [size] * 2

    def test_a_pool_is_looked_up_once(self, session: requests.Session, plain: Link) -> None:
        """The pool of a URL is found again without a search, and anew once it was closed."""
        adapter: Any = session.get_adapter("http://")
        url = plain.serve("a").url
        session.post(url, data=b"x").close()
        (pool,) = adapter._known.values()
        session.post(url, data=b"x").close()
        assert list(adapter._known.values()) == [pool]
        session.close()
        session.post(url, data=b"x").close()
        (other,) = adapter._known.values()
        assert other is not pool
        adapter.poolmanager.clear()
        assert session.post(url, data=b"x").status_code == 200


class TestNobodyElses:
    def test_a_late_cut(self, session: requests.Session, link: Link) -> None:
        """A cut that comes when the connection serves the next exchange does not touch it."""
        server = link.serve(Reply(body=b"abcdef", split=2, pace=0.05))
        first, source = sent(session, server.url)
        assert read_all(source) == b"abcdef"
        _, source = sent(session, server.url)
        got = source.read()
        assert first.cut()
        assert got + read_all(source) == b"abcdef"
        assert server.connections == 1

    def test_a_cut_of_an_idle_connection(self, session: requests.Session, link: Link) -> None:
        """A cut that comes when the connection is back in the pool costs the next exchange a new one, and no error."""
        server = link.serve(Reply(body=BODY))
        for number in range(1, 6):
            exchange, source = sent(session, server.url)
            assert read_all(source) == BODY
            assert exchange.cut()
            assert server.wait_for(lambda s: s.open_connections == 0)
            assert server.connections == number

    def test_the_neighbours(self, session: requests.Session, link: Link) -> None:
        """Of many exchanges at once, one that is cut ends, and no other."""
        server = link.serve(Reply(body=b"abcdef", split=2, pace=0.05))
        exchanges = [sent(session, server.url) for _ in range(5)]
        exchanges[2][0].cut()
        bodies = []
        for _, source in exchanges[:2] + exchanges[3:]:
            bodies.append(read_all(source))
        assert bodies == [b"abcdef"] * 4
        with contextlib.suppress(Exception):
            assert read_all(exchanges[2][1]) != b"abcdef"
        exchanges[2][1].close()

    def test_cuts_at_any_moment(self, session: requests.Session, link: Link) -> None:
        """Exchanges that are cut around their end, a hundred of them, never fail the ones that follow."""
        server = link.serve(Reply(body=BODY))
        for round_ in range(50):
            exchange, source = sent(session, server.url)
            cutter = threading.Timer(round_ * 0.00002, exchange.cut)
            cutter.start()
            with contextlib.suppress(Exception):  # this one may be hit
                source.read()
                source.read()
            source.close()
            assert read_all(sent(session, server.url)[1]) == BODY
            cutter.join()
            assert read_all(sent(session, server.url)[1]) == BODY

    def test_of_another_process(self, session: requests.Session, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A forked child's copy of an exchange cuts nothing: the connection is the parent's."""
        server = link.serve(Reply(body=b"abcdef", split=2, pace=0.05))
        exchange, source = sent(session, server.url)
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: -1)
            assert exchange.cut()
        assert read_all(source) == b"abcdef"

    def test_requests_without_an_exchange(self, session: requests.Session, link: Link) -> None:
        """The session can be used by others, too: what they send belongs to no exchange."""
        server = link.serve(Reply(body=BODY))
        exchange, source = sent(session, server.url)
        assert read_all(source) == BODY
        response = session.post(server.url, data=BODY, stream=True)
        exchange.cut()
        assert response.content == BODY
        assert server.connections == 1


class Tunnel:
    """A proxy that makes tunnels to one server, whatever name it is asked for.

    Attributes:
        asked: The request lines so far.
    """

    def __init__(self, target: StreamServer) -> None:
        self._target = target
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self._threads = [threading.Thread(target=self._accept, args=self._sockets)]
        self.url = f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}"
        self.asked: list[bytes] = []

    def __enter__(self) -> Tunnel:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for sock in self._sockets:
            sock.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target.port))
                self._sockets += [client, server]
                self.asked.append(client.recv(65536).partition(b"\r\n")[0])
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._pump, args=ends))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class TestThroughAProxy:
    @pytest.fixture
    def proxied(self, session: requests.Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """A function that sends all that the session sends through a proxy."""
        monkeypatch.setenv("no_proxy", "")

        def use(url: str) -> None:
            session.proxies = {"http": url, "https": url}

        return use

    def test_of_plain_http(self, session: requests.Session, plain: Link, proxied: Callable[[str], None]) -> None:
        """What a proxy passes on can be cut."""
        proxy = plain.serve(Reply(body=b"abcdef", split=2, stall_after=1))
        proxied(proxy.url)
        exchange, source = sent(session, "http://model.test")
        assert source.read() == b"ab"
        assert exchange.cut()
        with contextlib.suppress(Exception):
            assert source.read() == b""
        source.close()
        assert proxy.wait_for(lambda s: s.open_connections == 0, PROMPT)

    @pytest.mark.parametrize("link", ["tls"], indirect=True)
    @pytest.mark.parametrize("reply", [Reply(head_delay=math.inf), Reply(body=b"abcdef", split=2, stall_after=1)])
    def test_by_a_tunnel(
        self, session: requests.Session, link: Link, proxied: Callable[[str], None], reply: Reply
    ) -> None:
        """What goes through a tunnel can be cut, before the head and after."""
        server = link.serve(Reply(body=BODY), reply)
        with Tunnel(server) as tunnel, ThreadPoolExecutor(1) as pool:
            proxied(tunnel.url)
            assert read_all(sent(session, server.url)[1]) == BODY
            assert tunnel.asked[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
            exchange = Exchange()
            answered = pool.submit(send, session, exchange, server.url)
            assert server.wait_for(lambda s: len(s.requests) == 2)
            if reply.head_delay:
                assert not within(0.05, answered.done)
                exchange.cut()
                assert isinstance(answered.exception(PROMPT), OSError)
            else:
                source = Source(answered.result(5), exchange)
                assert source.read() == b"ab"
                exchange.cut()
                with contextlib.suppress(Exception):
                    assert source.read() == b""
                source.close()
            assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
            session.close()


class TestThePool:
    def test_it_begins_empty(self, session: requests.Session, link: Link) -> None:
        """There is no place in it for each connection that may come one day: to make a thousand takes long."""
        server = link.serve(Reply(body=BODY))
        source = sent(session, server.url)[1]
        pool = source.response.raw._pool.pool
        assert pool.qsize() == 0
        assert read_all(source) == BODY
        assert pool.qsize() == 1

    def test_given_back_after_the_close(self, session: requests.Session, link: Link) -> None:
        """A connection whose answer ends after its session was closed is closed then, whoever still holds the pool."""
        server = link.serve(Reply(body=BODY))
        source = sent(session, server.url)[1]
        session.close()
        assert server.open_connections == 1
        assert read_all(source) == BODY
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert source.response.raw._pool is not None

    def test_a_session_can_be_used_after_its_close(self, session: requests.Session, link: Link) -> None:
        """And keeps its connections then, as before."""
        server = link.serve(Reply(body=BODY))
        for _ in range(2):
            for _ in range(3):
                assert read_all(sent(session, server.url)[1]) == BODY
            assert server.open_connections == 1
            session.close()
            assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert server.connections == 2


class TestWhatWeRelyOn:
    @pytest.mark.parametrize("kind", [HTTPConnection, HTTPSConnection])
    def test_urllib3_makes_sockets_in_one_place(self, kind: type[HTTPConnection]) -> None:
        """urllib3 connects by the one private method that we replace, without arguments, and says what it raises."""
        assert list(inspect.signature(kind._new_conn).parameters) == ["self"]
        assert "self._new_conn()" in inspect.getsource(kind.connect)
        source = inspect.getsource(HTTPConnection._new_conn)
        for error in ("NameResolutionError", "ConnectTimeoutError", "NewConnectionError"):
            assert error in source

    @pytest.mark.parametrize("kind", [HTTPConnectionPool, HTTPSConnectionPool])
    def test_urllib3_takes_and_returns_connections_in_one_place(self, kind: type[HTTPConnectionPool]) -> None:
        """Its pools give connections out, and take them back, by the two private methods that we replace."""
        assert list(inspect.signature(kind._get_conn).parameters) == ["self", "timeout"]
        assert list(inspect.signature(kind._put_conn).parameters) == ["self", "conn"]
        source = inspect.getsource(kind.urlopen)
        assert "self._get_conn(" in source
        assert "self._put_conn(" in source
        assert kind.QueueCls is queue.LifoQueue

    def test_the_options_of_urllib3_are_kept(self, session: requests.Session, plain: Link) -> None:
        """Our sockets have the options that urllib3 asks for: no delay of small packets."""
        server = plain.serve(Reply(body=BODY, stall_after=0))
        exchange, source = sent(session, server.url)
        sock = exchange._connection._sock  # type: ignore[union-attr]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        exchange.cut()
        source.close()

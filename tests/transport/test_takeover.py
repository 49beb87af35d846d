"""Connections that the poller takes over: what can be, what is left alone, and what the pool gets back."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import select
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import requests
from urllib3.response import HTTPResponse

from chanstream import Client, CompletionStream, Context, StreamInterruptedError
from chanstream.calls import Engine
from chanstream.engines import poller
from chanstream.testing import Reply, StreamServer
from chanstream.transport.connection import Cuttable, Exchange
from chanstream.transport.session import new_session
from chanstream.transport.source import Source
from chanstream.transport.takeover import Line, take_over
from chanstream.wire.body import body_of
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within
from tests.contract.test_13_threads import RAWS, MockAdapter
from tests.transport.test_connection import Tunnel, sent

if TYPE_CHECKING:
    from chanstream.transport.takeover import Framing

pytestmark = pytest.mark.usefixtures("nothing_left")

BODY = b"a body of several words"
EVENTS = b'data: {"choices":[{"delta":{"content":"one two"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
EVENT_STREAM = b"Content-Type: text/event-stream\r\n"


def at_once(body: bytes, fields: bytes | None = None, version: bytes = b"1.1") -> Reply:
    """Return an answer whose head and body are one piece, with a content length unless ``fields`` say otherwise."""
    fields = b"Content-Length: %d\r\n" % len(body) if fields is None else fields
    return Reply(raw=b"HTTP/%s 200 OK\r\n%s%s\r\n%s" % (version, EVENT_STREAM, fields, body))


@pytest.fixture
def engine() -> Engine:
    """The engine that takes connections over."""
    return "poller"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session whose connections can be cut."""
    with new_session() as session:
        yield session


def taken(source: Source) -> Line:
    """Return the connection of an answer, which can be taken over."""
    line = take_over(source)
    assert line is not None
    return line


def read_to_the_end(line: Line) -> bytes:
    """Return the body that comes on a connection, and give the connection back or close it."""
    body = body_of(line.framing)
    payload = b""
    while not body.done:
        data = line.read()
        if data is None:
            assert line.has_more() or select.select([line], [], [], 5)[0]
            continue
        if not data:
            body.eof()
        payload += body.feed(data)
    if not body.spoilt:
        line.give_back()
    line.close()
    return payload


def raw_of(source: Source) -> Any:
    """Return urllib3's response."""
    return source.response.raw


class TestWhatWeRelyOn:
    """Private attributes of urllib3, http.client and socket: each is where we look for it, and means what we think."""

    def test_the_way_to_the_socket(self, session: requests.Session, link: Link) -> None:
        """urllib3's response knows the connection, and http.client's response, whose file buffers the socket."""
        _, source = sent(session, link.serve(Reply(body=BODY)).url)
        raw = raw_of(source)
        assert type(raw) is HTTPResponse
        assert isinstance(raw._connection, Cuttable)
        assert type(raw._fp) is http.client.HTTPResponse
        assert type(raw._fp.fp) is io.BufferedReader
        assert type(raw._fp.fp.raw) is socket.SocketIO
        sock = raw._fp.fp.raw._sock
        assert sock is raw._connection.sock
        assert type(sock) is (ssl.SSLSocket if link.tls else socket.socket)
        assert type(sock).__module__ in ("socket", "ssl")
        source.close()

    @pytest.mark.parametrize(
        ("reply", "chunked", "length"),
        [
            (Reply(body=BODY), True, None),
            (Reply(body=BODY, framing="content-length"), False, len(BODY)),
            (Reply(body=b"", framing="content-length"), False, 0),
            (Reply(body=BODY, framing="close"), False, None),
            (at_once(BODY, b"", b"1.0"), False, None),
            (at_once(BODY, version=b"1.0"), False, len(BODY)),
        ],
        ids=["chunked", "length", "length 0", "close", "HTTP/1.0", "HTTP/1.0 and length"],
    )
    def test_the_framing(
        self, session: requests.Session, plain: Link, reply: Reply, chunked: bool, length: int | None
    ) -> None:
        """The head tells chunks by ``chunked``, a length by ``length``, and neither where there is none."""
        _, source = sent(session, plain.serve(reply).url)
        head = raw_of(source)._fp
        assert (bool(head.chunked), head.length, head.fp is None) == (chunked, length, False)
        source.close()

    def test_a_body_that_cannot_be(self, session: requests.Session, plain: Link) -> None:
        """An answer that has no body has no file either, or a length of 0."""
        _, source = sent(session, plain.serve(Reply(status=204)).url)
        head = raw_of(source)._fp
        assert head.fp is None or head.length == 0
        source.close()

    def test_read_ahead(self, session: requests.Session, link: Link) -> None:
        """What came with the head is in the buffer, where ``peek`` gives all of it, and no selector sees it."""
        _, source = sent(session, link.serve(at_once(BODY)).url)
        head = raw_of(source)._fp
        sock = head.fp.raw._sock
        sock.setblocking(False)
        assert not select.select([sock], [], [], 0)[0]
        assert head.fp.peek(1) == BODY
        source.close()

    def test_an_empty_read_ahead(self, session: requests.Session, link: Link) -> None:
        """Where nothing came with the head, ``peek`` on a non-blocking socket waits for nothing."""
        _, source = sent(session, link.serve(Reply(body=BODY, stall_after=0)).url)
        head = raw_of(source)._fp
        head.fp.raw._sock.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            assert head.fp.peek(1) == b""
        source.close()

    def test_connection_close(self, session: requests.Session, link: Link) -> None:
        """Where the head says ``Connection: close`` the connection lets go of the socket, and the response has it."""
        _, source = sent(session, link.serve(Reply(body=BODY, headers={"Connection": "close"})).url)
        raw = raw_of(source)
        assert raw._connection.sock is None
        assert raw._fp.fp.raw._sock.fileno() > 0
        source.close()

    def test_giving_back(self, session: requests.Session, link: Link) -> None:
        """A connection is as good as new once http.client's response is closed and urllib3's has released it."""
        server = link.serve(Reply(body=BODY, framing="content-length"))
        for _ in range(3):
            _, source = sent(session, server.url)
            raw = raw_of(source)
            assert raw._fp.fp.read(len(BODY)) == BODY
            raw._fp.close()
            assert raw._fp.isclosed()
            raw.release_conn()
            assert raw._connection is None
        assert server.connections == 1


KINDS: dict[str, tuple[Reply, Framing]] = {
    "chunked": (Reply(body=BODY), "chunked"),
    "chunked in pieces": (Reply(body=BODY, split=3, pace=0.001), "chunked"),
    "length": (Reply(body=BODY, framing="content-length"), len(BODY)),
    "length 0": (Reply(body=b"", framing="content-length"), 0),
    "until close": (Reply(body=BODY, framing="close"), "close"),
    "HTTP/1.0": (at_once(BODY, b"", b"1.0"), "close"),
    "HTTP/1.0 and length": (at_once(BODY, version=b"1.0"), len(BODY)),
    "Connection: close": (Reply(body=BODY, headers={"Connection": "close"}), "chunked"),
    "identity": (Reply(body=BODY, headers={"Content-Encoding": "identity"}), "chunked"),
}


class TestTakenOver:
    @pytest.mark.parametrize(("reply", "framing"), KINDS.values(), ids=KINDS)
    def test_every_framing(self, session: requests.Session, link: Link, reply: Reply, framing: Framing) -> None:
        """A connection is taken over whatever the framing of the body, and the body comes whole."""
        _, source = sent(session, link.serve(reply).url)
        line = taken(source)
        assert line.framing == framing
        assert read_to_the_end(line) == (BODY if reply.body is None else reply.body)

    def test_through_a_proxy(self, session: requests.Session, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """So it is through a proxy of plain HTTP."""
        monkeypatch.setenv("no_proxy", "")
        proxy = plain.serve(Reply(body=BODY))
        session.proxies = {"http": proxy.url}
        for _ in range(2):
            assert read_to_the_end(taken(sent(session, "http://model.test")[1])) == BODY
        assert proxy.connections == 1

    @pytest.mark.parametrize("link", ["tls"], indirect=True)
    def test_through_a_tunnel(self, session: requests.Session, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """So it is through a tunnel to a server with TLS."""
        monkeypatch.setenv("no_proxy", "")
        server = link.serve(Reply(body=BODY, split=3))
        with Tunnel(server) as tunnel:
            session.proxies = {"https": tunnel.url}
            for _ in range(2):
                assert read_to_the_end(taken(sent(session, server.url)[1])) == BODY
            assert len(tunnel.asked) == server.connections == 1
            session.close()

    def test_without_a_thread_of_its_own(self, link: Link, started: list[str]) -> None:
        """A stream of such an answer has no thread for itself."""
        assert link.stream(Reply("one two", pace=0.3)).collect().text == "one two"
        assert "chanstream-poller" in started
        assert "chanstream-producer" not in started


class TestReadAhead:
    @pytest.mark.parametrize("size", [1, 100, 8000, 8192, 9000, 16000, 40_000, 200_000])
    def test_head_and_body_in_one_piece(self, session: requests.Session, link: Link, size: int) -> None:
        """No byte of a body is lost that came along with its head: in the buffer, in TLS, or still in the socket."""
        body = bytes(number % 251 for number in range(size))
        _, source = sent(session, link.serve(at_once(body)).url)
        assert read_to_the_end(taken(source)) == body

    @pytest.mark.parametrize("split", [1, 7, 60, 100, 150])
    def test_at_any_split(self, link: Link, split: int) -> None:
        """Nor is one lost where the two are cut into pieces anywhere, within the head or behind it."""
        reply = attrs.evolve(at_once(EVENTS), split=split)
        assert link.stream(reply).collect().text == "one two"

    def test_a_short_answer_needs_no_thread(self, link: Link, started: list[str]) -> None:
        """A stream that came whole with its head is over when the call returns, without any producer thread."""
        stream = link.stream(at_once(EVENTS))
        assert (stream.closed, stream.state) == (True, "complete")
        assert stream.collect().text == "one two"
        assert [name for name in started if name in ("chanstream-poller", "chanstream-producer")] == []


class TestLeftAlone:
    @pytest.mark.parametrize("compress", ["gzip", "deflate"])
    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_what_is_compressed(
        self, session: requests.Session, link: Link, started: list[str], compress: Any, framing: Any
    ) -> None:
        """A compressed answer is not taken over, and streams all the same, by a thread of its own."""
        reply = Reply("one two", compress=compress, framing=framing)
        server = link.serve(reply)
        _, source = sent(session, server.url)
        assert take_over(source) is None
        source.close()
        assert link.client(server).chat_completion_stream(REQUEST).collect().text == "one two"
        assert "chanstream-producer" in started

    def test_a_session_of_the_caller(self, link: Link, started: list[str]) -> None:
        """Neither is one that came by a caller's own session, whose connections are not of our kind."""
        server = link.serve("one two")
        with requests.Session() as own:
            response = own.post(server.url, data=b"{}", stream=True)
            assert take_over(Source(response, Exchange())) is None
            response.close()
            assert link.client(server, session=own).chat_completion_stream(REQUEST).collect().text == "one two"
        assert "chanstream-producer" in started

    @pytest.mark.parametrize("raw", RAWS.values(), ids=RAWS)
    def test_what_is_mocked(self, started: list[str], raw: Callable[[], object]) -> None:
        """Neither is one that was made up, whatever it is read from."""
        with requests.Session() as own:
            own.mount("http://", MockAdapter(raw))
            client = Client("key", base_url="http://model.test", session=own, engine="poller")
            assert client.chat_completion_stream(REQUEST).collect().text == "mocked"
        assert "chanstream-producer" in started

    def test_no_body(self, session: requests.Session, plain: Link) -> None:
        """An answer that has no body at all is read in the ordinary way, or as one of length 0."""
        _, source = sent(session, plain.serve(Reply(status=204)).url)
        line = take_over(source)
        assert line is None or line.framing == 0
        source.close()

    def test_what_gevent_watches(self, link: Link) -> None:
        """Neither is a socket of gevent's, which has a loop of its own to watch it."""
        pytest.importorskip("gevent")
        program = """
            from gevent import monkey
            monkey.patch_all()
            import sys, threading
            from chanstream import ChatCompletionRequest, Client, UserMessage
            client = Client(api_key="k", base_url=sys.argv[1], dialect="openai", engine="poller")
            stream = client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage("hi")]))
            print(sorted({thread.name for thread in threading.enumerate() if "chan" in thread.name}))
            print(stream.collect().text)
        """
        server = link.serve(Reply("one two", pace=0.05))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), server.url],
            capture_output=True, text=True, timeout=30 * SCALE, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "['chanstream-producer', 'chanstream-timers']\none two\n"


class TestGivenBack:
    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_20_streams_in_a_row(self, link: Link, framing: Any) -> None:
        """Streams in a row, each watched by the poller for a while, use one connection."""
        server = link.serve(Reply("one two", pace=0.003, framing=framing))
        client = link.client(server)
        for _ in range(20):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
        assert (len(server.requests), server.connections) == (20, 1)

    def test_it_blocks_again(self, link: Link) -> None:
        """Whoever uses the connection next in the ordinary way can wait for the server on it."""
        server = link.serve("one", Reply("two three", head_delay=0.1))
        client = link.client(server)
        assert client.chat_completion_stream(REQUEST).collect().text == "one"
        assert client.chat_completion(REQUEST).text == "two three"
        assert server.connections == 1

    @pytest.mark.parametrize(
        "reply",
        [
            at_once(EVENTS + b"beyond", b"Content-Length: %d\r\n" % len(EVENTS)),
            at_once(b"%x\r\n%s\r\n0\r\n\r\nbeyond" % (len(EVENTS), EVENTS), b"Transfer-Encoding: chunked\r\n"),
            Reply(body=EVENTS, framing="close"),
            at_once(EVENTS, b"", b"1.0"),
            Reply(body=EVENTS, headers={"Connection": "close"}),
        ],
        ids=["beyond the length", "beyond the chunks", "until close", "HTTP/1.0", "Connection: close"],
    )
    def test_what_is_spent_is_not(self, link: Link, reply: Reply) -> None:
        """Nothing is given back that ended with its body, or on which there were bytes beyond the body."""
        server = link.serve(reply, "and more")
        client = link.client(server)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"
        assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)
        assert client.chat_completion_stream(REQUEST).collect().text == "and more"
        assert server.connections == 2

    @pytest.fixture
    def lines(self, monkeypatch: pytest.MonkeyPatch) -> list[Line]:
        """All connections that are taken over from now on."""
        lines: list[Line] = []

        def note(source: Source) -> Line:
            lines.append(taken(source))
            return lines[-1]

        monkeypatch.setattr(poller, "take_over", note)
        return lines

    def test_bytes_that_come_later(self, link: Link, lines: list[Line]) -> None:
        """Bytes that come when the connection is back in the pool already are no part of the next answer."""
        tail = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        reply = at_once(EVENTS + tail, b"Content-Length: %d\r\n" % len(EVENTS))
        server = link.serve(attrs.evolve(reply, split=len(EVENTS), pace=0.3), "and more")
        client = link.client(server)
        assert client.chat_completion_stream(REQUEST).collect().text == "one two"
        assert server.open_connections == 1
        assert select.select(lines, [], [], 5)[0]
        assert client.chat_completion_stream(REQUEST).collect().text == "and more"
        assert server.connections == 2

    @pytest.mark.parametrize("late", ["close", "context", "line"])
    def test_a_late_cancel(self, link: Link, lines: list[Line], late: str) -> None:
        """A cancel of a stream whose connection serves the next one already hits nobody."""
        server = link.serve("one two", Reply("three four five", pace=0.05))
        client = link.client(server)
        context = Context()
        first = client.chat_completion_stream(REQUEST, context=context)
        assert [chunk.text for chunk in first] == ["one", " two", ""]
        second = client.chat_completion_stream(REQUEST)
        assert second.get().text == "three"
        cancels: dict[str, Callable[[], None]] = {
            "close": first.close, "context": context.cancel, "line": lines[0].cancel,
        }  # fmt: skip
        cancels[late]()
        assert second.collect().text == " four five"
        assert server.connections == 1

    def test_a_cancel_of_what_was_given_back(self, link: Link, lines: list[Line]) -> None:
        """A cancel that comes when the connection is back in the pool costs the next request a new one, no error."""
        server = link.serve("one two")
        client = link.client(server)
        for number in range(1, 4):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            assert server.connections == number
            lines[-1].cancel()

    def test_cancels_around_the_end(self, link: Link) -> None:
        """Streams that are cancelled around their end, fifty of them, never fail the ones that follow."""
        server = link.serve(Reply("one two", pace=0.001))
        client = link.client(server)
        for number in range(50):
            stream: CompletionStream = client.chat_completion_stream(REQUEST)
            canceller = threading.Timer(number * 0.0001, stream.close)
            canceller.start()
            with contextlib.suppress(Exception):  # this one may be hit
                stream.collect()
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            canceller.join()


def test_a_cancelled_line_wakes_who_watches_it(session: requests.Session, link: Link) -> None:
    """A cancel is news to whoever watches the connection, though the server says nothing."""
    server: StreamServer = link.serve(Reply(body=BODY, stall_after=0))
    line = taken(sent(session, server.url)[1])
    assert line.read() is None
    assert not select.select([line], [], [], 0)[0]
    line.cancel()
    assert select.select([line], [], [], PROMPT)[0]
    with contextlib.suppress(Exception):
        assert line.read() == b""
    line.close()
    assert within(PROMPT, lambda: server.open_connections == 0)


class TestWaiting:
    def test_in_vain(self, session: requests.Session, link: Link) -> None:
        """A read waits as long as it is told, and returns None if nothing came; without a wait at once."""
        line = taken(sent(session, link.serve(Reply(body=BODY, stall_after=0)).url)[1])
        begun = time.monotonic()
        assert line.read() is None
        assert time.monotonic() - begun < PROMPT
        assert line.read(0.1) is None
        assert time.monotonic() - begun >= 0.1
        begun = time.monotonic()
        assert line.read() is None
        assert time.monotonic() - begun < PROMPT
        line.close()

    def test_for_bytes(self, session: requests.Session, link: Link) -> None:
        """One that waits for as long as it takes returns with the first bytes, and with b"" at the end."""
        line = taken(sent(session, link.serve(Reply(body=BODY, framing="close", first_delay=0.3)).url)[1])
        assert line.read() is None
        assert b"".join(iter(lambda: line.read(None) or b"", b"")) == BODY
        line.close()

    def test_for_a_cancel(self, session: requests.Session, link: Link) -> None:
        """One that waits ends when another thread cancels."""
        line = taken(sent(session, link.serve(Reply(body=BODY, stall_after=0)).url)[1])
        assert line.read() is None
        reading = spawn(lambda: line.read(None))
        line.cancel()
        with contextlib.suppress(StreamInterruptedError):
            assert reading.result(5) == b""
        line.close()

    def test_a_lost_connection_is_no_wait(self, session: requests.Session, plain: Link) -> None:
        """That the network gave up on the connection is an error, though Python has one name for it and for a wait."""
        line = taken(sent(session, plain.serve(Reply(body=BODY, stall_after=0)).url)[1])
        assert line.read() is None

        class Dead:
            def recv(self, _: int) -> bytes:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

        sock, line._sock = line._sock, Dead()
        with pytest.raises(StreamInterruptedError, match="timed out"):
            line.read()
        line._sock = sock
        line.close()

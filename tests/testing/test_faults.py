"""When things are said, and how they go wrong: delays, stalls, pings, cuts, resets, and clients that leave."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
import time
from http.client import IncompleteRead
from typing import Any

import attrs
import pytest

from chanstream.testing import Reply, StreamServer
from tests.conftest import PROMPT, USUALLY

from .conftest import STREAM, Peers
from .wire import body_of, http_chunks, post, read_all, read_until

ABC = Reply(chunks=["a", "b", "c"])
EVENTS = [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"]
BODY = b"".join(EVENTS)

BEAT = PROMPT
"""Seconds: long enough for something that comes at once to be there before it is over."""


def arrivals(peer: socket.socket, *ends: bytes) -> list[float]:
    """Returns after how many seconds each of `ends` had arrived, counted from a request made now."""
    start, received, seen = time.monotonic(), b"", []
    peer.sendall(post(STREAM))
    for end in ends:
        while end not in received:
            received += peer.recv(65536)
        seen.append(time.monotonic() - start)
    return seen


def assert_silent(peer: socket.socket, server: StreamServer) -> None:
    """Asserts that the server says nothing, and keeps the connection, for a while."""
    peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        peer.recv(1)
    assert server.open_connections == 1


class TestDelays:
    """The waits that a script asks for."""

    def test_head_delay(self, plain: Peers) -> None:
        """The head comes after its delay."""
        peer = plain.dial(plain.serve(Reply("a", head_delay=0.05)))
        assert arrivals(peer, b"HTTP/1.1 200 OK")[0] >= 0.05

    def test_endless_head_delay(self, peers: Peers) -> None:
        """An endless delay of the head is silence."""
        server = peers.serve(Reply("a", head_delay=math.inf))
        peer = peers.dial(server)
        peer.sendall(post(STREAM))
        assert server.wait_for(lambda s: len(s.requests) == 1)
        assert_silent(peer, server)

    def test_first_delay(self, peers: Peers) -> None:
        """The head comes at once, the first event after its delay, the others without."""
        reply = attrs.evolve(ABC, first_delay=2 * BEAT)
        head, first, last = arrivals(peers.dial(peers.serve(reply)), b"\r\n\r\n", EVENTS[0], EVENTS[2])
        assert head < 2 * BEAT <= first <= last < first + 2 * PROMPT

    def test_pace(self, peers: Peers) -> None:
        """Events come one by one, the first without a wait."""
        times = arrivals(peers.dial(peers.serve(attrs.evolve(ABC, pace=BEAT))), *EVENTS)
        assert times[0] < BEAT
        assert times[1] >= BEAT
        assert times[2] >= 2 * BEAT

    def test_pace_does_not_drift(self, plain: Peers) -> None:
        """A stream of many events takes the time of its beats and not much more."""
        start = time.monotonic()
        plain.ask(plain.serve(Reply(chunks=["a"] * 51, pace=0.02))).read()
        assert 1 <= time.monotonic() - start < 1 + 4 * PROMPT

    def test_pace_of_pieces(self, plain: Peers) -> None:
        """A body has no events, so its pieces are paced."""
        peer = plain.dial(plain.serve(Reply(body=b"0123456789", split=5, pace=BEAT)))
        first, second = arrivals(peer, b"01234\r\n", b"56789\r\n")
        assert first < BEAT <= second

    def test_pace_of_raw(self, plain: Peers) -> None:
        """The pieces of a raw response are paced too, and its head comes before the first delay."""
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"
        peer = plain.dial(plain.serve(Reply(raw=raw, split=3, first_delay=BEAT, pace=BEAT)))
        head, first, second = arrivals(peer, b"\r\n\r\n", b"abc", b"def")
        assert head < BEAT <= first < 2 * BEAT <= second


class TestPings:
    """Keep-alive comments."""

    @pytest.mark.parametrize("waits", [{"first_delay": 0.5}, {"pace": 0.5}, {"stall_after": 1}, {"end": "hold"}])
    def test_pings(self, peers: Peers, waits: dict[str, Any]) -> None:
        """Comments come during each kind of wait after the head."""
        peer = peers.dial(peers.serve(attrs.evolve(ABC, pings=0.02, **waits)))
        peer.sendall(post(STREAM))
        assert b": ping\n\n" in read_until(peer, b": ping\n\n\r\n8\r\n: ping\n\n\r\n")

    def test_newline(self, plain: Peers) -> None:
        """Comments end as events do."""
        peer = plain.dial(plain.serve(attrs.evolve(Reply.pings_only(0.01), newline="\r\n")))
        peer.sendall(post(STREAM))
        assert http_chunks(body_of(read_until(peer, b"ping\r\n\r\n\r\n")))[0] == b": ping\r\n\r\n"

    def test_no_wait(self, plain: Peers) -> None:
        """Without a wait as long as theirs, no comment comes."""
        assert plain.ask(plain.serve(attrs.evolve(ABC, pings=5, pace=0.005))).read() == BODY

    def test_not_in_json(self, plain: Peers) -> None:
        """A JSON object has no comments in it."""
        assert b"ping" not in plain.ask(plain.serve(Reply("a", first_delay=0.05, pings=0.01)), {}).read()

    def test_not_counted(self, plain: Peers) -> None:
        """A cut counts the content's bytes, whatever comments came between."""
        peer = plain.dial(plain.serve(attrs.evolve(ABC, cut_at=12, pace=0.3, pings=0.02, end="cut")))
        peer.sendall(post(STREAM))
        chunks = http_chunks(body_of(read_all(peer)))
        assert b": ping\n\n" in chunks
        assert b"".join(chunk for chunk in chunks if not chunk.startswith(b":")) == BODY[:12]


class TestStalls:
    """Streams that fall silent."""

    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    @pytest.mark.parametrize("events", range(4))
    def test_stall(self, plain: Peers, framing: Any, events: int) -> None:
        """After so many events comes nothing more, and the framing waits for more; after all of them too."""
        server = plain.serve(attrs.evolve(ABC, stall_after=events, framing=framing))
        response = plain.ask(server)
        if events:
            assert response.read(9 * events) == BODY[: 9 * events]
        assert not response.isclosed()
        assert server.wait_for(lambda s: s.open_connections == 0, 0.03) is False

    def test_stall_tls(self, peers: Peers) -> None:
        """A stalled stream is silent."""
        server = peers.serve(attrs.evolve(ABC, stall_after=1))
        peer = peers.dial(server)
        peer.sendall(post(STREAM))
        read_until(peer, EVENTS[0] + b"\r\n")
        assert_silent(peer, server)

    def test_fewer_events(self, plain: Peers) -> None:
        """A stream of fewer events ends as if there were no stall."""
        assert plain.ask(plain.serve(attrs.evolve(ABC, stall_after=4, framing="content-length"))).read() == BODY

    def test_raw(self, plain: Peers) -> None:
        """A raw response stalls after its head."""
        server = plain.serve(Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", stall_after=0))
        peer = plain.dial(server)
        peer.sendall(post(STREAM))
        assert read_until(peer, b"\r\n\r\n").endswith(b"Content-Length: 1\r\n\r\n")
        assert_silent(peer, server)

    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_hold(self, peers: Peers, framing: Any) -> None:
        """A held body is complete but for the end of its framing."""
        server = peers.serve(attrs.evolve(ABC, end="hold", framing=framing))
        response = peers.ask(server)
        assert response.read(len(BODY)) == BODY
        assert not response.isclosed()
        assert server.wait_for(lambda s: s.open_connections == 0, 0.03) is False


class TestCuts:
    """Bodies that end too early."""

    @pytest.mark.parametrize("cut_at", [*range(len(BODY) + 1), None])
    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_cut(self, plain: Peers, framing: Any, cut_at: int | None) -> None:
        """A cut body arrives up to the cut, and HTTP tells that it is incomplete, at every byte."""
        response = plain.ask(plain.serve(attrs.evolve(ABC, framing=framing, cut_at=cut_at, end="cut")))
        with pytest.raises(IncompleteRead) as caught:
            response.read()
        assert caught.value.partial == BODY[:cut_at]

    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    @pytest.mark.parametrize("cut_at", [0, 1, 9, 26, 27, 99])
    def test_clean_cut(self, plain: Peers, framing: Any, cut_at: int) -> None:
        """With a clean end the body is short and HTTP is content."""
        response = plain.ask(plain.serve(attrs.evolve(ABC, framing=framing, cut_at=cut_at)))
        assert response.read() == BODY[:cut_at]

    def test_cut_before_stall(self, plain: Peers) -> None:
        """Where a cut and a stall fall on the same byte, the cut comes."""
        reply = attrs.evolve(ABC, framing="content-length", cut_at=9, stall_after=1)
        assert plain.ask(plain.serve(reply)).read() == BODY[:9]

    def test_stall_before_cut(self, plain: Peers) -> None:
        """Where a stall comes before a cut, the stall comes, and the promised length is not reached."""
        response = plain.ask(plain.serve(attrs.evolve(ABC, framing="content-length", cut_at=10, stall_after=1)))
        assert response.headers["Content-Length"] == str(len(BODY))
        assert response.read(9) == BODY[:9]
        assert not response.isclosed()

    def test_close_delimited(self, peers: Peers) -> None:
        """Nothing tells a cut of a close-delimited body from its end."""
        response = peers.ask(peers.serve(attrs.evolve(ABC, framing="close", cut_at=12, end="cut")))
        assert response.read() == BODY[:12]

    def test_compressed(self, plain: Peers) -> None:
        """A cut counts bytes as they are sent, after compression."""
        response = plain.ask(plain.serve(attrs.evolve(ABC, compress="gzip", cut_at=15)))
        assert len(response.read()) == 15

    @pytest.mark.parametrize(("end", "goodbye"), [("clean", True), ("cut", False)])
    def test_tls_goodbye(self, authority: Any, end: Any, goodbye: bool) -> None:
        """A clean close ends the TLS session properly, a cut does not."""
        server_context, client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server_context)
        authority.configure_trust(client_context)
        with StreamServer(attrs.evolve(ABC, framing="close", end=end), tls=server_context) as server:
            plain = socket.create_connection((server.host, server.port), timeout=5)
            with client_context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as peer:
                peer.sendall(post(STREAM))
                read_until(peer, BODY)
                with contextlib.nullcontext() if goodbye else pytest.raises(ssl.SSLEOFError):
                    assert peer.recv(1) == b""


class TestResets:
    """Connections that break."""

    @pytest.mark.parametrize(("cut_at", "last"), [(0, b"\r\n\r\n"), (12, b"dat\r\n"), (None, EVENTS[2] + b"\r\n")])
    def test_reset(self, peers: Peers, cut_at: int | None, last: bytes) -> None:
        """After the content, or the cut, the client's connection is reset."""
        peer = peers.dial(peers.serve(attrs.evolve(ABC, cut_at=cut_at, end="reset")))
        peer.sendall(post(STREAM))
        received = read_until(peer, last)
        assert b"".join(http_chunks(body_of(received))) == BODY[:cut_at]
        # Below TLS, since Python's TLS shows a reset as an end in some versions.
        with socket.socket(fileno=peer.detach()) as below:
            below.settimeout(5)
            with pytest.raises(ConnectionResetError):
                below.recv(1)

    def test_other_connections(self, plain: Peers) -> None:
        """A reset of one connection leaves the others alone."""
        server = plain.serve(attrs.evolve(ABC, stall_after=1), Reply(end="reset"), "fine")
        stalled = plain.ask(server)
        peer = plain.dial(server)
        peer.sendall(post(STREAM))
        with pytest.raises(ConnectionResetError):
            read_all(peer)
        assert stalled.read(9) == EVENTS[0]
        assert b"fine" in plain.ask(server).read()


class TestLeaving:
    """The server notices that its client is gone."""

    STATES = (
        pytest.param(attrs.evolve(ABC, stall_after=1), EVENTS[0], id="stalled"),
        pytest.param(attrs.evolve(ABC, pace=60), EVENTS[0], id="pacing"),
        pytest.param(attrs.evolve(ABC, end="hold"), EVENTS[2], id="holding"),
        pytest.param(Reply.pings_only(60), b"\r\n\r\n", id="pinging"),
        pytest.param(ABC, b"0\r\n\r\n", id="idle"),
    )

    @staticmethod
    def leave(peer: socket.socket, reset: bool) -> float:
        """Closes the socket, and returns when."""
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        return time.monotonic()

    @pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
    @pytest.mark.parametrize(("reply", "sign"), STATES)
    def test_leaving(self, peers: Peers, reply: Reply, sign: bytes, reset: bool) -> None:
        """Whatever the server waits for, a client that leaves is noticed within 50 ms."""
        server = peers.serve(reply)
        delays = []
        for _ in range(3):
            peer = peers.dial(server)
            peer.sendall(post(STREAM))
            read_until(peer, sign)
            assert server.open_connections == 1
            left = self.leave(peer, reset)
            assert server.wait_for(lambda s: s.open_connections == 0)
            delays.append(time.monotonic() - left)
        assert min(delays) < USUALLY

    @pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
    def test_before_the_head(self, peers: Peers, reset: bool) -> None:
        """A client that leaves before the head is noticed within 50 ms."""
        server = peers.serve(Reply(head_delay=math.inf))
        peer = peers.dial(server)
        peer.sendall(post(STREAM))
        assert server.wait_for(lambda s: len(s.requests) == 1)
        left = self.leave(peer, reset)
        assert server.wait_for(lambda s: s.open_connections == 0)
        assert time.monotonic() - left < PROMPT

    @pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
    @pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
    def test_full_window(self, peers: Peers, reset: bool, half: bool) -> None:
        """A client that does not read and then leaves is noticed within 50 ms, though bytes wait to be sent to it."""
        server = peers.serve(Reply(body=bytes(20_000_000)))
        peer = peers.dial(server, SO_RCVBUF=4096)
        peer.sendall(post(STREAM))
        read_until(peer, b"\r\n\r\n")
        assert server.open_connections == 1
        if half and not reset:
            left = time.monotonic()
            peer.shutdown(socket.SHUT_WR)
        else:
            left = self.leave(peer, reset)
        assert server.wait_for(lambda s: s.open_connections == 0)
        assert time.monotonic() - left < PROMPT

    def test_tls_goodbye(self, peers: Peers) -> None:
        """A client that says goodbye in TLS, and not in TCP, has left too."""
        server = peers.serve(attrs.evolve(ABC, stall_after=0))
        peer = peers.dial(server)
        peer.sendall(post(STREAM))
        read_until(peer, b"\r\n\r\n")
        if isinstance(peer, ssl.SSLSocket):
            peer.unwrap()
        else:
            peer.shutdown(socket.SHUT_WR)
        assert server.wait_for(lambda s: s.open_connections == 0)

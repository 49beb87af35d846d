"""Sending requests: what goes out, what comes back, and what becomes of sessions, cookies, proxies and refusals."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
import requests

from chanstream import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Context,
    InternalServerError,
    NotFoundError,
    Retry,
    StreamCancelledError,
    Timeout,
)
from chanstream.testing import Reply, StreamServer
from chanstream.transport import session as session_module
from chanstream.transport.session import Call, Transport, cuttable, new_session
from tests.conftest import PROMPT, SCALE, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

BODY = b'{"stream": true}'


def call(**settings: Any) -> Call:
    """Return a call for a stream, without retries unless the settings say otherwise."""
    usual: dict[str, Any] = {
        "method": "POST",
        "path": "/chat/completions",
        "body": BODY,
        "accept": "text/event-stream",
        "context": Context(),
        "timeout": Timeout(),
        "retry": Retry(max_retries=0),
    }
    return Call(**{**usual, **settings})


@contextlib.contextmanager
def transport_to(server: StreamServer | str, key: str = "the-test-key", **settings: Any) -> Iterator[Transport]:
    """Give a transport to a server, and close it."""
    url = server if isinstance(server, str) else f"{server.url}/v1"
    transport = Transport(url, key, {"User-Agent": "tests"}, **settings)
    yield transport
    transport.close()


def read_all(transport: Transport, what: Call) -> bytes:
    """Return the whole body of a stream."""
    source = transport.open(what).source
    body = b"".join(iter(source.read, b""))
    source.close()
    return body


class TestWhatGoesOut:
    def test_a_post(self, link: Link) -> None:
        """Method, path, body and headers are those of the call and of the transport, with the key as a bearer."""
        server = link.serve("one")
        with transport_to(server) as transport:
            read_all(transport, call())
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("POST", "/v1/chat/completions", BODY)
        expected = {
            "Authorization": "Bearer the-test-key",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "Content-Length": str(len(BODY)),
            "User-Agent": "tests",
            "Connection": "keep-alive",
            "Host": server.url.partition("//")[2],
        }
        assert dict(request.headers) == expected

    def test_a_get(self, link: Link) -> None:
        """Without a body nothing is said of one."""
        server = link.serve("never", models=["m"])
        with transport_to(server) as transport:
            what = call(method="GET", path="/models", body=None, accept="application/json")
            head, body = transport.fetch(what)
        assert head.content_type == "application/json"
        assert b'"id":"m"' in body
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("GET", "/v1/models", b"")
        assert "Content-Type" not in request.headers

    def test_no_cookies(self, link: Link) -> None:
        """Cookies that a server sets are not sent back: they would be shared by all threads."""
        server = link.serve(Reply("one", headers={"Set-Cookie": "session=1; Path=/"}))
        with transport_to(server) as transport:
            for _ in range(2):
                read_all(transport, call())
        assert "Cookie" not in server.requests[1].headers

    def test_nothing_for_a_context_that_is_done(self, link: Link) -> None:
        """A call whose context is done is not sent, and raises what the context was cancelled with."""
        server = link.serve("never")
        context = Context()
        context.cancel(APITimeoutError(clock="context", seconds=1.0))
        with transport_to(server) as transport, pytest.raises(APITimeoutError):
            transport.open(call(context=context))
        assert server.connections == 0


class TestWhatComesBack:
    def test_a_head_before_its_body(self, link: Link) -> None:
        """open() returns with the head, and the body's bytes come one by one as they arrive."""
        with transport_to(link.serve(Reply(body=b"abcdef", split=2, stall_after=2))) as transport:
            answer = transport.open(call())
            assert answer.head.status_code == 200
            got = b""
            while len(got) < 4:
                got += answer.source.read()
            assert got == b"abcd"
            answer.source.cancel()
            answer.source.close()

    def test_when_it_was_asked_for(self, plain: Link) -> None:
        """began_at is when the attempt was sent that was answered, not the first one."""
        server = plain.serve(Reply.error(503, headers={"retry-after-ms": "100"}), Reply("one", head_delay=0.1))
        with transport_to(server) as transport:
            begun = time.monotonic()
            answer = transport.open(call(retry=Retry()))
            assert begun + 0.1 <= answer.began_at <= time.monotonic() - 0.1
            answer.source.close()

    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    @pytest.mark.parametrize("compress", [None, "gzip", "deflate"])
    def test_a_whole_body(self, link: Link, framing: Any, compress: Any) -> None:
        """fetch() returns all of the body, in any framing and coding."""
        body = bytes(range(256)) * 1000
        reply = Reply(body=body, framing=framing, compress=compress, split=10_000)
        with transport_to(link.serve(reply)) as transport:
            head, fetched = transport.fetch(call())
        assert (head.status_code, fetched) == (200, body)

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    @pytest.mark.parametrize("end", ["cut", "reset"])
    def test_half_a_body(self, link: Link, framing: Any, end: Any) -> None:
        """An answer that is not whole is no answer: it is asked for again, and raised if that does not help."""
        half = Reply(body=b'{"a": 1}', cut_at=4, end=end, framing=framing)
        server = link.serve(half, attrs.evolve(half, cut_at=None, end="clean"), half)
        with transport_to(server) as transport:
            assert transport.fetch(call(retry=Retry(min_delay=0.0)))[1] == b'{"a": 1}'
            with pytest.raises(APIConnectionError, match="connection was lost"):
                transport.fetch(call())
        assert len(server.requests) == 3
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_a_body_without_end(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whole answer has a largest size."""
        monkeypatch.setattr(session_module, "_BODY_BYTES", 100_000)
        server = plain.serve(Reply(body=b"x" * 100_000), Reply(body=b"x" * 100_001))
        with transport_to(server) as transport:
            assert len(transport.fetch(call())[1]) == 100_000
            with pytest.raises(APIConnectionError, match="larger than 100000 bytes"):
                transport.fetch(call())

    def test_a_source_read_after_its_end(self, link: Link) -> None:
        """A body that has ended goes on having ended, and closing twice does nothing."""
        with transport_to(link.serve(Reply(body=b"abc"))) as transport:
            source = transport.open(call()).source
            assert b"".join(iter(source.read, b"")) == b"abc"
            assert source.read() == b""
            source.close()
            source.close()
            source.cancel()


class TestRefusals:
    def test_what_an_error_holds(self, link: Link) -> None:
        """A refusal has status, words, type, code, id, headers and the server's wish for a pause."""
        headers = {"X-Request-Id": "req-1", "Retry-After": "2"}
        reply = Reply.error(
            404, "No such model.", type="invalid_request_error", code="model_not_found", headers=headers
        )
        with transport_to(link.serve(reply)) as transport, pytest.raises(NotFoundError) as caught:
            transport.open(call())
        error = caught.value
        assert str(error) == "[404] invalid_request_error: No such model."
        assert (error.status_code, error.type, error.code) == (404, "invalid_request_error", "model_not_found")
        assert (error.request_id, error.retry_after) == ("req-1", 2.0)
        assert error.headers["x-REQUEST-id"] == "req-1"
        assert error.body["error"]["message"] == "No such model."

    @pytest.mark.parametrize("status", [300, 304, 400, 418, 499, 500, 599])
    def test_every_status_that_is_no_success(self, plain: Link, status: int) -> None:
        """An answer that is neither a success nor a redirect with a target is an error with its status."""
        server = plain.serve(Reply(body=b"", status=status))
        with transport_to(server) as transport, pytest.raises(APIStatusError) as caught:
            transport.open(call())
        assert caught.value.status_code == status
        assert isinstance(caught.value, InternalServerError) == (status >= 500)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "[503]"),
            (b"upstream connect error", "upstream connect error"),
            (b"\xff\xfe no UTF-8", "no UTF-8"),
            (b"<html>\n<h1>Bad   Gateway</h1>\n</html>", "<h1>Bad Gateway</h1>"),
            (b"[" * 60_000, "[[[["),
            (b"[" * 900 + b"]" * 900, "["),
            (b'{"error": {"message": "cut of', "cut of"),
            (b"null", "[503]"),
            (b"17", "17"),
        ],
        ids=["empty", "text", "no UTF-8", "HTML", "too deep to read", "deep", "half", "null", "a number"],
    )
    @pytest.mark.parametrize("key", ["the-test-key", ""], ids=["with a key", "without"])
    def test_bodies_of_any_kind(self, plain: Link, body: bytes, words: str, key: str) -> None:
        """Whatever the body of a refusal is, it becomes the error's words, on one line."""
        server = plain.serve(Reply(body=body, status=503))
        with transport_to(server, key) as transport, pytest.raises(InternalServerError) as caught:
            transport.open(call())
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_compressed_one(self, plain: Link) -> None:
        """A refusal may be compressed; if it cannot be decompressed, its status is told all the same."""
        broken = Reply(body=b"not gzip", status=502, headers={"Content-Encoding": "gzip"})
        server = plain.serve(Reply(body=b'{"detail": "no way"}', status=500, compress="gzip"), broken)
        with transport_to(server) as transport:
            with pytest.raises(InternalServerError, match=r"\[500\] no way"):
                transport.open(call())
            with pytest.raises(InternalServerError, match=r"\[502\]"):
                transport.open(call())

    def test_a_page_without_end(self, link: Link) -> None:
        """Of a very long refusal only the beginning is read, and it takes no time."""
        server = link.serve(Reply(body=b"word " * 2_000_000, status=500))
        with transport_to(server) as transport:
            begun = time.monotonic()
            with pytest.raises(InternalServerError) as caught:
                transport.open(call())
            assert time.monotonic() - begun < 1.0 * SCALE
        assert len(caught.value.body) < 200_000
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("how", ["cancel", "deadline"])
    def test_one_that_never_ends_its_body(self, link: Link, how: str) -> None:
        """A cancel or a deadline ends the wait for the rest of a refusal at once."""
        server = link.serve(Reply(body=b"no", status=400, end="hold"))
        context = Context() if how == "cancel" else Context(timeout=0.3 * SCALE)
        with transport_to(server) as transport, ThreadPoolExecutor(1) as pool:
            begun = time.monotonic()
            opened = pool.submit(transport.open, call(context=context))
            assert server.wait_for(lambda s: len(s.requests) == 1)
            if how == "cancel":
                assert not within(0.1, opened.done)
                context.cancel()
            error = opened.exception(5)
            assert time.monotonic() - begun < 0.3 * SCALE + 2 * PROMPT
        # The status is known: to tell it is as true as to tell why the rest was not waited for.
        assert isinstance(error, (APIStatusError, StreamCancelledError, APITimeoutError))


class TestRedirects:
    @pytest.mark.parametrize("status", [307, 308])
    def test_are_followed(self, link: Link, status: int) -> None:
        """A redirect takes method, body and headers along, on the same connection."""
        server = link.serve(Reply(status=status, headers={"Location": "/v2/here"}), Reply(body=b"moved"))
        with transport_to(server) as transport:
            assert read_all(transport, call()) == b"moved"
        first, second = server.requests
        assert (second.method, second.path, second.body) == ("POST", "/v2/here", BODY)
        assert first.headers["Accept-Encoding"] == second.headers["Accept-Encoding"] == "identity"
        assert server.connections == 1

    def test_in_a_circle(self, plain: Link) -> None:
        """Redirects without end are an error of the connection, not a hang."""
        server = plain.serve(Reply(status=307, headers={"Location": "/round"}))
        with transport_to(server) as transport, pytest.raises(APIConnectionError, match="redirects"):
            transport.open(call())

    @pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "http://", "http://[::1", "gopher:x"])
    def test_to_nowhere(self, plain: Link, target: str) -> None:
        """A redirect to what is no address of this kind is an error of the connection."""
        server = plain.serve(Reply(status=307, headers={"Location": target}))
        with transport_to(server) as transport, pytest.raises(APIConnectionError):
            transport.open(call())


class TestNoServer:
    def test_a_name_that_nobody_has(self) -> None:
        """A name that cannot be resolved is told as such."""
        words = r"no answer from http://no-such-host\.invalid/v1: .*[Nn]ame"
        with (
            transport_to("http://no-such-host.invalid/v1") as transport,
            pytest.raises(APIConnectionError, match=words),
        ):
            transport.open(call())

    @pytest.mark.parametrize("host", [f"{'a' * 64}.test", "a..test", ".test"], ids=["long", "empty label", "dot"])
    def test_a_name_that_nobody_can_have(self, host: str) -> None:
        """A name that is no name is told as any other that cannot be resolved."""
        with transport_to(f"http://{host}/v1") as transport, pytest.raises(APIConnectionError):
            transport.open(call())

    def test_tls_where_there_is_none(self, plain: Link) -> None:
        """A plain server asked for TLS is an error of the connection in the words of TLS."""
        url = plain.serve("one").url.replace("http:", "https:")
        with transport_to(f"{url}/v1") as transport, pytest.raises(APIConnectionError, match="SSL"):
            transport.open(call())

    def test_no_http(self, plain: Link) -> None:
        """An answer that is no HTTP is an error of the connection."""
        server = plain.serve(Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n", end="cut"))
        with transport_to(server) as transport, pytest.raises(APIConnectionError):
            transport.open(call())

    def test_another_address_of_the_same_name(self, plain: Link) -> None:
        """Of several addresses of a name, the first that answers is taken."""
        addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}
        if len(addresses) < 2:
            pytest.skip("localhost has one address here")
        server = plain.serve(Reply(body=b"here"))
        with transport_to(f"http://localhost:{server.port}/v1") as transport:
            assert read_all(transport, call()) == b"here"

    def test_an_address_in_brackets(self) -> None:
        """An IPv6 address works."""
        try:
            server = StreamServer(Reply(body=b"six"), host="::1").start()
        except OSError:
            pytest.skip("there is no IPv6 here")
        with server, transport_to(server) as transport:
            assert server.url.startswith("http://[::1]:")
            assert read_all(transport, call()) == b"six"


class TestTheSession:
    def test_is_made_with_the_first_request(self, plain: Link) -> None:
        """A transport that was never used has nothing to close, and one that was closed can be used again."""
        server = plain.serve(Reply(body=b"one"))
        with transport_to(server) as transport:
            transport.close()
            assert read_all(transport, call()) == b"one"
            transport.close()
            assert read_all(transport, call()) == b"one"
        assert server.connections == 2

    def test_is_one_for_all_threads(self) -> None:
        """Threads that use a transport first at the same moment share one session, and so its connections."""
        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            assert all(len(sessions_of_8_threads()) == 1 for _ in range(60))
        finally:
            sys.setswitchinterval(usual)

    def test_sends_each_body(self, plain: Link) -> None:
        """What is prepared once for many requests is not their body, nor its length."""
        server = plain.serve(Reply(body=b"one"))
        bodies = [b"{}", b'{"longer": true}', b"", b"{}"]
        with transport_to(server) as transport:
            for body in bodies:
                read_all(transport, call(body=body))
        assert [request.body for request in server.requests] == bodies
        assert [request.headers["Content-Length"] for request in server.requests] == ["2", "16", "0", "2"]

    def test_asks_the_environment_when_it_has_changed(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that the environment names from now on is asked from now on, and no more when it is gone."""
        server, proxy = plain.serve(Reply(body=b"direct")), plain.serve(Reply(body=b"by proxy"))
        with transport_to(server) as transport:
            assert read_all(transport, call()) == b"direct"
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            monkeypatch.setenv("no_proxy", "")
            assert read_all(transport, call()) == b"by proxy"
            monkeypatch.delenv("HTTP_PROXY")
            assert read_all(transport, call()) == b"direct"

    def test_is_closed_while_in_use(self, link: Link) -> None:
        """Closing the transport leaves streams that are on their way alone."""
        with transport_to(link.serve(Reply(body=b"abcdef", split=2, pace=0.05))) as transport:
            source = transport.open(call()).source
            transport.close()
            assert b"".join(iter(source.read, b"")) == b"abcdef"
            source.close()

    def test_of_the_caller_is_left_open(self, link: Link) -> None:
        """A session that the caller brought is used for every request, and is not closed."""
        server = link.serve(Reply(body=b"one"))
        with requests.Session() as session:
            with transport_to(server, session=session) as transport:
                assert read_all(transport, call()) == b"one"
            assert server.open_connections == 1
            assert session.get(server.url).content == b"one"
            assert server.connections == 1

    def test_of_the_caller_with_a_clock(self, plain: Link) -> None:
        """A read timeout of the caller's own adapter is told as the clock for the head."""

        class Hasty(requests.adapters.HTTPAdapter):
            def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
                return super().send(request, *args, **{**kwargs, "timeout": (1.0, 0.1)})

        with requests.Session() as session:
            session.mount("http://", Hasty())
            server = plain.serve(Reply(head_delay=math.inf))
            with transport_to(server, session=session) as transport, pytest.raises(APITimeoutError) as caught:
                transport.open(call())
        assert caught.value.clock == "first_chunk"

    def test_of_the_caller_and_the_total(self) -> None:
        """With the caller's own session the total ends a connection that does not come about, and is named."""
        context = Context()
        context.expire_in(0.1, APITimeoutError(clock="total", seconds=0.1))
        with socket.create_server(("127.0.0.1", 0)) as mute, requests.Session() as session:
            url = f"https://127.0.0.1:{mute.getsockname()[1]}"
            begun = time.monotonic()
            with transport_to(url, session=session) as transport, pytest.raises(APITimeoutError) as caught:
                transport.open(call(context=context, timeout=Timeout(connect=5.0)))
        assert time.monotonic() - begun < 0.1 + 2 * PROMPT
        assert caught.value.clock == "total"

    def test_has_a_pool_for_fan_out(self) -> None:
        """A session of our own keeps a thousand connections to a host."""
        with new_session() as session:
            for scheme in ("http://", "https://"):
                adapter: Any = session.get_adapter(f"{scheme}model.test")
                pool = adapter.poolmanager.connection_from_url(f"{scheme}model.test")
                assert pool.pool.maxsize == 1024


def sessions_of_8_threads() -> set[int]:
    """Return the sessions that 8 threads got from a new transport."""
    transport = Transport("http://model.test", "", {})
    together = threading.Barrier(8)
    sessions: list[requests.Session] = []

    def use() -> None:
        together.wait(5)
        sessions.append(transport._session())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transport.close()
    return set(map(id, sessions))


class TestProxies:
    def test_of_the_environment(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that the environment names is asked, with the whole address; the key goes to the server behind it."""
        proxy = plain.serve(Reply(body=b"by proxy"))
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with transport_to("http://model.test/v1") as transport:
            assert read_all(transport, call()) == b"by proxy"
            assert read_all(transport, call()) == b"by proxy"
        assert proxy.requests[0].headers["Host"] == "model.test"
        assert proxy.connections == 1

    def test_that_refuses_a_tunnel(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that makes no tunnel is an error of the connection that says so."""
        proxy = plain.serve("never")
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with transport_to("https://model.test/v1") as transport, pytest.raises(APIConnectionError, match="405"):
            transport.open(call())

    def test_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that refuses the connection is an error of the connection."""
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{reserved.getsockname()[1]}")
            monkeypatch.setenv("no_proxy", "")
            with transport_to("http://model.test/v1") as transport, pytest.raises(APIConnectionError, match="refused"):
                transport.open(call())


def test_a_clock_that_runs_out_as_the_head_comes_in() -> None:
    """Who was cut at the last moment is told that it was too late, and not given a connection that is dead."""
    with pytest.raises(APITimeoutError, match="first_chunk"), cuttable(Context(), 0.01) as exchange:
        assert within(5, lambda: exchange._is_cut)

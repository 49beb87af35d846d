"""Through a proxy: plain and in a tunnel, named by the environment or by the caller's session."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import traceback
from collections.abc import Iterator

import pytest
import requests

from chanstream import APIConnectionError, APIStatusError, APITimeoutError, Client, Retry, Timeout
from chanstream.testing import Reply
from chanstream.transport.session import new_session
from tests.conftest import REQUEST, Link
from tests.transport.proxy import Proxy, SocksProxy

pytestmark = pytest.mark.usefixtures("nothing_left")

KEY = "the-key-of-this-test"
HELD = Reply("one two", stall_after=1)
"""Says something and then nothing: a proxy that collects an answer would never hand it on."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy, and an environment that keeps nobody from it."""
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with Proxy() as proxy:
        yield proxy


def session_for(how: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> requests.Session | None:
    """Return the session of a client that asks by the proxy, or None where the environment tells it to."""
    if how == "environment":
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        return None
    session = requests.Session() if how == "requests" else new_session()
    session.proxies = {"http": proxy.url, "https": proxy.url}
    return session


@pytest.mark.parametrize("how", ["environment", "requests", "new_session"])
def test_a_stream(link: Link, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A stream comes through a proxy token by token, and closing it reaches the server; what is in TLS stays there."""
    server = link.serve(HELD)
    session = session_for(how, proxy, monkeypatch)
    with Client(KEY, base_url=server.url, session=session) as client:
        stream = client.chat_completion_stream(REQUEST)
        assert next(stream).text == "one"
        stream.close()
        assert server.wait_for(lambda s: s.open_connections == 0)
    if session is not None:
        session.close()
    (line, _), (request,) = proxy.asked[0], server.requests
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    if link.tls is None:
        assert line == f"POST {server.url}/v1/chat/completions"
    else:
        assert line == f"CONNECT 127.0.0.1:{server.port}"
        assert KEY.encode() not in proxy.seen
        assert b"Say it." not in proxy.seen
        assert len(proxy.seen) > 0


def test_one_after_the_other(link: Link, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams one after the other use one connection to the proxy, or one tunnel."""
    server = link.serve("one two")
    session_for("environment", proxy, monkeypatch)
    with Client(KEY, base_url=server.url) as client:
        for _ in range(3):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
    assert len(proxy.asked) == server.connections == 1


class TestAPassword:
    SECRET = "the-password-of-the-proxy"

    @pytest.fixture
    def guarded(self, proxy: Proxy) -> Iterator[Proxy]:
        """A proxy that wants it."""
        with Proxy(self.SECRET) as guarded:
            yield guarded

    def test_is_the_proxys(self, link: Link, guarded: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        """Name and password in the proxy's address are sent to the proxy, and not to the server."""
        server = link.serve("one two")
        monkeypatch.setenv("http_proxy", guarded.url)
        monkeypatch.setenv("https_proxy", guarded.url)
        with Client(KEY, base_url=server.url) as client:
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
        assert "Proxy-Authorization" in guarded.asked[0][1]
        assert "Proxy-Authorization" not in server.requests[0].headers

    def test_is_wrong(
        self, link: Link, guarded: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A wrong one is refused by the proxy with 407, which is told; it stands in no error and no log."""
        caplog.set_level(logging.DEBUG)
        server = link.serve("never")
        wrong = guarded.url.replace(self.SECRET, f"not-{self.SECRET}")
        monkeypatch.setenv("http_proxy", wrong)
        monkeypatch.setenv("https_proxy", wrong)
        refused = APIStatusError if link.tls is None else APIConnectionError
        with pytest.raises(refused, match="407") as caught:
            link.client(server, api_key=KEY).chat_completion_stream(REQUEST)
        assert server.requests == ()
        assert len(caplog.records) > 0
        assert self.SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize("link", ["tls"], indirect=True)
def test_a_certificate(link: Link, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate that counts in a tunnel is the server's, and one that does not hold is told as anywhere."""
    bundle = os.environ["REQUESTS_CA_BUNDLE"]
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    server = link.serve("one")
    with new_session() as session, Client(KEY, base_url=server.url, session=session) as client:
        session.proxies = {"https": proxy.url}
        with pytest.raises(APIConnectionError, match="certificate verify failed"):
            client.chat_completion(REQUEST)
        assert len(proxy.asked) == 1
    with new_session() as session, Client(KEY, base_url=server.url, session=session) as client:
        session.proxies, session.verify = {"https": proxy.url}, bundle
        assert client.chat_completion(REQUEST).text == "one"


@pytest.mark.parametrize("clock", ["first_chunk", "total"])
def test_by_socks(link: Link, monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    """By a SOCKS proxy streams come as they do without, in an event loop too, and clocks end the wait for a head."""
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    server = link.serve("one two", "one two", Reply("never", head_delay=math.inf))

    async def text(client: Client) -> str:
        return "".join([evt.text async for evt in await client.chat_completion_stream_async(REQUEST)])

    with SocksProxy() as socks:
        monkeypatch.setenv("all_proxy", socks.url)
        with Client("", base_url=server.url, dialect="openai", retry=Retry(max_retries=0)) as client:
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            assert asyncio.run(text(client)) == "one two"
            with pytest.raises(APITimeoutError) as caught:
                client.chat_completion_stream(REQUEST, timeout=Timeout(**{clock: 0.1}))
            assert caught.value.clock == clock
            assert server.wait_for(lambda s: s.open_connections == 0)

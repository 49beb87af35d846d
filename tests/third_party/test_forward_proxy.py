"""Streams through proxy.py, a forward proxy such as a company puts between its machines and the internet."""

from __future__ import annotations

import pytest
import requests

from chanstream import APIConnectionError, APIStatusError
from chanstream.testing import Reply
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within
from tests.third_party.servers import Server

pytestmark = [
    pytest.mark.timeout(60, func_only=True),  # the first fixture may have to install the server
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def proxies(forward_proxy: Server) -> dict[str, str]:
    """The proxy, as requests wants it named."""
    return {"http": forward_proxy.url, "https": forward_proxy.url}


def test_a_stream(link: Link, forward_proxy: Server, proxies: dict[str, str]) -> None:
    """A stream comes through the proxy piece by piece, in the open or through a tunnel, with its usage."""
    server = link.serve(Reply("one two three", pace=0.02))
    with requests.Session() as session:
        session.proxies = proxies
        *before, last = link.client(server, session=session).chat_completion_stream(REQUEST)
    assert [chunk.text for chunk in before] == ["one", " two", " three"]
    assert last.is_last_chunk
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    where = f"127.0.0.1:{server.port}".encode()
    assert within(5 * SCALE, lambda: where in forward_proxy.log.read_bytes())


def test_close(link: Link, proxies: dict[str, str]) -> None:
    """close() while the server is silent frees everything at once, and the server behind the proxy notices."""
    server = link.serve(Reply("one two three", stall_after=2))
    with requests.Session() as session:
        session.proxies = proxies
        stream = link.client(server, session=session).chat_completion_stream(REQUEST)
        assert [next(stream).text, next(stream).text] == ["one", " two"]
        stream.close()
        assert within(PROMPT, lambda: producers() == 0)
        assert server.wait_for(lambda s: s.open_connections == 0, 10 * SCALE)


def test_nobody_behind_the_proxy(link: Link, proxies: dict[str, str]) -> None:
    """Of a server that it cannot reach the proxy says so with a status of its own; without a tunnel nobody answers."""
    address, error = ("https://127.0.0.1:9", APIConnectionError) if link.tls else ("http://127.0.0.1:9", APIStatusError)
    with requests.Session() as session:
        session.proxies = proxies
        with pytest.raises(error, match=r"(?i)bad gateway|\[502\]"):
            link.client(address, session=session).chat_completion_stream(REQUEST)

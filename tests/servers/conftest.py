"""A process of each server for all tests that name it, and the model behind them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from .process import COMMANDS, PATIENCE, Server, missing
from .upstream import Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The model."""
    with Upstream() as running:
        yield running


@pytest.fixture(scope="session")
def running(upstream: Upstream) -> Iterator[Callable[[str], Server]]:
    """Give the process of a server, started when it is first asked for. All must end when told to, without a word."""
    servers: dict[str, Server] = {}
    with contextlib.ExitStack() as exits:

        def give(name: str) -> Server:
            if name not in servers or servers[name].process.poll() is not None:
                servers[name] = exits.enter_context(Server(COMMANDS[name], upstream.url))
            return servers[name]

        yield give
        for server in servers.values():
            if server.process.poll() is None:
                server.process.terminate()
        for server in servers.values():
            server.process.wait(PATIENCE)
            assert "Traceback" not in server.log, server.log


@pytest.fixture
def server(request: pytest.FixtureRequest, running: Callable[[str], Server], upstream: Upstream) -> Server:
    """The running server of the name that the test is given, with nothing to do."""
    if reason := missing(request.param):
        pytest.skip(reason)
    assert upstream.busy(0, PATIENCE), "another test has left a stream"
    return running(request.param)

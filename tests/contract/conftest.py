"""The contract holds for each engine: every test of it that has a client runs with both."""

from __future__ import annotations

import pytest

from chanstream import timers
from chanstream.client import Engine
from chanstream.engines import poller


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients."""
    found: Engine = request.param
    return found


@pytest.fixture(autouse=True)
def brief_lingering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library's shared threads end sooner than they do: thousands of tests wait for that.

    But for the tests of how soon they end.
    """
    if not request.node.nodeid.startswith(("tests/contract/test_08", "tests/contract/test_13")):
        monkeypatch.setattr(timers, "_LINGER", 0.001)
        monkeypatch.setattr(poller, "_LINGER", 0.001)

"""The contract holds for each engine: every test of it that has a client runs with both."""

from __future__ import annotations

import pytest

from chanstream import timers
from chanstream.calls import Engine
from chanstream.engines import flow, poller
from tests.conftest import SCALE


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients."""
    found: Engine = request.param
    return found


@pytest.fixture(autouse=True)
def brief_waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library wait less where thousands of tests wait with it, but for the tests of how long it waits.

    So it is with how long its shared threads wait for a next stream, and a stream for the end of its body.
    """
    if not request.node.nodeid.startswith(("tests/contract/test_08", "tests/contract/test_13")):
        monkeypatch.setattr(timers, "_LINGER", 0.001)
        monkeypatch.setattr(poller, "_LINGER", 0.001)
    if not request.node.nodeid.startswith(("tests/contract/test_08", "tests/contract/test_11")):
        monkeypatch.setattr(flow, "DRAIN_SECONDS", 0.05 * SCALE)

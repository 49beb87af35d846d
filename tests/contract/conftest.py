"""The contract holds for each engine: every test of it that has a client runs with both."""

from __future__ import annotations

import pytest

from chanstream.client import Engine


@pytest.fixture(params=["threaded", "poller"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the clients."""
    found: Engine = request.param
    return found

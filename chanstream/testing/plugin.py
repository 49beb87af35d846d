"""The pytest plugin: a fixture. pytest finds it by itself where chanstream is installed.

What it needs is imported by the fixture, so that test runs that do not use it pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import StreamServer


@pytest.fixture
def chanstream_server() -> Iterator[StreamServer]:
    """A running `chanstream.testing.StreamServer`, closed after the test; `reply(...)` gives it its script."""
    from .server import StreamServer

    with StreamServer() as server:
        yield server

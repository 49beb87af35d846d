"""The end of a batch, when the last results and the end of the requests come at the same time."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.conftest import REQUEST, Link


@pytest.fixture
def _restless() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_restless")
def test_no_result_is_lost(plain: Link) -> None:
    """However threads take turns, no batch ends before its last result is there."""
    client = plain.client(plain.serve("Fine."))
    counts = [len(list(client.batch([REQUEST] * 4, concurrency=4))) for _ in range(80)]
    assert counts == [4] * 80

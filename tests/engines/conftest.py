"""What holds in every test of the engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from chanstream.engines.polled import Polled


@pytest.fixture(autouse=True)
def ended_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test in which a stream was ended twice: the second time its connection may serve another one."""
    ended: Counter[Polled] = Counter()
    end = Polled.end

    def note(stream: Polled) -> None:
        ended[stream] += 1
        end(stream)

    monkeypatch.setattr(Polled, "end", note)
    yield
    assert set(ended.values()) <= {1}

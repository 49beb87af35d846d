"""What holds in every test of the engines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chanstream import timers
from chanstream.channel import hand_over
from chanstream.engines import poller
from chanstream.engines.polled import Polled
from chanstream.engines.poller import _Poller
from tests.concurrency import spawn
from tests.conftest import within


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


@pytest.fixture(params=["main thread", "another"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function that calls another: in the main thread, where signals come, or not."""
    if request.param == "main thread":
        return lambda function, *args: function(*args)
    return lambda function, *args: spawn(function, *args).result(20)


@pytest.fixture
def read_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that read from now on, one for each read."""
    names: list[str] = []
    read = Polled.read

    def note(stream: Polled, *args: Any) -> None:
        names.append(threading.current_thread().name)
        read(stream, *args)

    monkeypatch.setattr(Polled, "read", note)
    return names


class Still(_Poller):
    """A poller without a thread, so that nothing happens but what a test does."""

    def turn(self) -> bool:
        """Have a turn, in this thread, and return True; it does not wait for news."""
        if self._thread is not None:
            self._wake()
            self._turn()
            hand_over.let_go()
        return True

    def free(self) -> None:
        """End all streams and clocks, in whosever hands they are, so that one failure of a test is one."""
        for stream in list(self._streams):
            stream._claims.clear()
            stream.rest(is_over=True)
        with timers._timers._lock:
            timers._timers._live.clear()
            timers._timers._heap.clear()
            timers._timers._looks_at = timers._timers._empty_since = 0.0
            timers._timers._cond.notify_all()

    def has_nothing(self) -> bool:
        """Return whether, after a turn, there is no stream any more, and no clock."""
        return self.turn() and not self._streams and not timers._timers._live


@pytest.fixture(params=[100, 0], ids=["few", "leased"])
def still(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Still]:
    """A poller that does not move by itself; with as few streams as are watched again at once, or with more."""
    mine = Still()
    start = threading.Thread.start
    monkeypatch.setattr(poller, "_FEW", request.param)
    monkeypatch.setattr(poller, "_the_poller", mine)
    monkeypatch.setattr(threading.Thread, "start", lambda t: t.name == "chanstream-poller" or start(t))
    yield mine
    assert within(5, lambda: mine.turn() and mine._thread is None)

"""CPython's own tests of queue.Queue, run against the channel."""

from __future__ import annotations

import queue
import sys
from typing import Any

import pytest

from chanstream import Channel, ChannelClosedError

cpython = pytest.importorskip("test.test_queue", reason="this Python comes without its own tests")


class Queue(Channel[Any]):
    """A channel by the name that those tests look at."""


class TestCPython(cpython.QueueTest, cpython.unittest.TestCase):  # type: ignore[name-defined, misc]
    """All that is claimed there of a queue."""

    queue = queue

    def setUp(self) -> None:
        """Have channels tested."""
        super().setUp()
        self.type2test = Queue


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queue.ShutDown came with Python 3.13")
class TestShutDown:
    def test_it_is_one(self) -> None:
        """A closed channel raises what a queue that was shut down raises, however it was closed."""
        channel: Channel[int] = Channel()
        channel.close()
        with pytest.raises(queue.ShutDown):  # type: ignore[attr-defined]
            channel.put(1)
        with pytest.raises(queue.ShutDown):  # type: ignore[attr-defined]
            channel.get()
        assert issubclass(ChannelClosedError, queue.ShutDown)  # type: ignore[attr-defined]


def test_is_shutdown() -> None:
    """What tells of a shutdown is true once the channel is closed."""
    channel: Channel[int] = Channel()
    assert not channel.is_shutdown
    channel.close()
    assert channel.is_shutdown

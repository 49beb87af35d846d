"""Senders: several producers of one channel, which closes when the last of them is closed."""

from __future__ import annotations

import pickle
import queue
from typing import Any

import pytest

from chanstream import Channel, ChannelClosedError, Sender, StreamError
from tests.concurrency import intrusions, spawn
from tests.conftest import within


def test_the_last_one_closes() -> None:
    """The channel closes when the last sender is closed, and not before; all that was put is there."""
    channel: Channel[int] = Channel()
    first, second = channel.sender(), channel.sender()
    first.put(1)
    first.close()
    assert (first.closed, second.closed, channel.closed) == (True, False, False)
    second.put_many([2, 3])
    second.close()
    assert channel.closed
    assert list(channel) == [1, 2, 3]


def test_a_block() -> None:
    """The end of a with block closes a sender."""
    channel: Channel[int] = Channel()
    with channel.sender() as sender:
        assert isinstance(sender, Sender)
        sender.put(1)
    assert list(channel) == [1]


def test_a_block_that_fails() -> None:
    """What ends a block by an exception ends the consumer's loop too: it does not take a part for the whole."""
    channel: Channel[int] = Channel()
    with pytest.raises(ZeroDivisionError), channel.sender() as sender:  # noqa: PT012 - the block is the matter
        sender.put(1)
        raise ZeroDivisionError
    assert channel.get() == 1
    with pytest.raises(ZeroDivisionError):
        channel.get()


def test_dropping_one() -> None:
    """A sender that nobody holds any more counts as closed."""
    channel: Channel[int] = Channel()
    sender = channel.sender()
    del sender
    assert channel.closed


def test_errors() -> None:
    """Consumers get the first error that a sender was closed with, once all senders are closed and all is taken."""
    channel: Channel[int] = Channel()
    senders = [channel.sender() for _ in range(3)]
    first = StreamError("it broke")
    senders[1].close(first)
    senders[0].close(StreamError("it broke too"))
    senders[2].put(1)
    senders[2].close()
    assert channel.get() == 1
    with pytest.raises(StreamError) as caught:
        channel.get()
    assert caught.value is first


def test_again() -> None:
    """Closing a sender again changes nothing, and does not count for another one."""
    channel: Channel[int] = Channel()
    first, second = channel.sender(), channel.sender()
    first.close()
    first.close(StreamError("late"))
    assert not channel.closed
    second.close()
    assert list(channel) == []


def test_a_closed_one() -> None:
    """A sender that is closed puts nothing, though the channel is open."""
    channel: Channel[int] = Channel()
    first, second = channel.sender(), channel.sender()
    first.close()
    for put in (first.put, lambda item: first.put_many([item]), lambda item: first.put(item, timeout=1)):
        with pytest.raises(ChannelClosedError, match="the sender is closed"):
            put(1)
    second.close()
    assert list(channel) == []


def test_closing_the_channel() -> None:
    """A channel that is closed directly is closed for all its senders, and gives no more of them."""
    channel: Channel[int] = Channel()
    sender = channel.sender()
    channel.close(StreamError("enough"))
    assert sender.closed
    with pytest.raises(ChannelClosedError, match="the channel is closed"):
        sender.put(1)
    with pytest.raises(ChannelClosedError, match="the channel is closed"):
        channel.sender()
    sender.close()
    with pytest.raises(StreamError, match="enough"):
        channel.get()


def test_putting_directly() -> None:
    """What is put into the channel itself goes in too, as long as a sender is open."""
    channel: Channel[int] = Channel()
    with channel.sender():
        channel.put(1)
    with pytest.raises(ChannelClosedError):
        channel.put(2)
    assert list(channel) == [1]


def test_room() -> None:
    """A put waits for room as that of the channel does, and a consumer that closes the channel ends the wait."""
    channel: Channel[int] = Channel(1)
    with channel.sender() as sender:
        sender.put(1)
        for put in (lambda: sender.put(2, block=False), lambda: sender.put(2, timeout=0.01)):
            with pytest.raises(queue.Full):
                put()
        putting = spawn(sender.put, 2)
        assert within(5, lambda: channel.statistics().waiting_putters == 1)
        channel.close()
        assert isinstance(putting.exception(5), ChannelClosedError)


def test_no_pickle() -> None:
    """A sender cannot be pickled: it is of this process."""
    channel: Channel[int] = Channel()
    with channel.sender() as sender, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(sender)


def test_producers_in_threads() -> None:
    """A pipeline of several producers and consumers passes each item on once, and ends by itself."""
    channel: Channel[int] = Channel(5)

    def produce(sender: Sender[int], number: int) -> None:
        with sender:
            for item in range(1_000):
                sender.put(number * 1_000 + item)

    senders = [channel.sender() for _ in range(6)]
    producing = [spawn(produce, sender, number) for number, sender in enumerate(senders)]
    del senders
    consuming = [spawn(list, channel) for _ in range(3)]
    assert [produced.result(20) for produced in producing] == [None] * 6
    assert sorted(item for consumed in consuming for item in consumed.result(5)) == list(range(6_000))


def test_the_last_two_at_once() -> None:
    """Whichever thread closes last, the channel is closed."""
    for _ in range(200):
        channel: Channel[int] = Channel()
        senders = [channel.sender() for _ in range(4)]
        closing = [spawn(sender.close) for sender in senders]
        assert list(channel) == []
        assert [closed.result(5) for closed in closing] == [None] * 4


@pytest.mark.usefixtures("no_collector")
def test_an_intruder() -> None:
    """A finalizer or signal handler that closes one sender in the middle of the close of another hinders nobody."""
    for intrusion in intrusions():
        channel: Channel[int] = Channel()
        first, second = channel.sender(), channel.sender()
        with intrusion(second.close):
            first.close(StreamError("it broke"))
        assert channel.closed
        with pytest.raises(StreamError):
            channel.get()


def test_it_does_not_hold_the_consumer() -> None:
    """A sender of a stage that was given up notices: its channel is closed when the consumer closes it."""
    channel: Channel[Any] = Channel(1)
    sender = channel.sender()
    channel.shutdown(immediate=True)
    with pytest.raises(ChannelClosedError):
        sender.put(1)

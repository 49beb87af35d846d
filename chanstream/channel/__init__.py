"""Channels: a `queue.Queue` that can be closed and drained with ``for``, as in Go; and several of them at once."""

from .channel import Channel, pipe_of
from .feeding import Feeder
from .merging import MergedChannel, merge
from .pipe import ChannelStatistics, Offer, Pipe
from .selection import CLOSED, select
from .waiting import LOOK_SECONDS, hand_over, here

__all__ = [
    "CLOSED",
    "LOOK_SECONDS",
    "Channel",
    "ChannelStatistics",
    "Feeder",
    "MergedChannel",
    "Offer",
    "Pipe",
    "hand_over",
    "here",
    "merge",
    "pipe_of",
    "select",
]

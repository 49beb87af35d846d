"""Channels: a `queue.Queue` that can be closed and drained with ``for``, as in Go; and several of them at once."""

from .channel import Channel, pipe_of
from .ends import Sender
from .fed import FedChannel
from .feeding import Feeder
from .merging import MergedChannel, merge
from .pipe import ChannelStatistics, Offer, Pipe
from .racing import Opening, race
from .selection import CLOSED, select
from .teeing import TeedChannel, tee
from .waiting import LOOK_SECONDS, hand_over, here

__all__ = [
    "CLOSED",
    "LOOK_SECONDS",
    "Channel",
    "ChannelStatistics",
    "FedChannel",
    "Feeder",
    "MergedChannel",
    "Offer",
    "Opening",
    "Pipe",
    "Sender",
    "TeedChannel",
    "hand_over",
    "here",
    "merge",
    "pipe_of",
    "race",
    "select",
    "tee",
]

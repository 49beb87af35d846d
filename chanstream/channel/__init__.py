"""Channels: a `queue.Queue` that can be closed and drained with ``for``, as in Go; and several of them at once."""

from .channel import Channel
from .merging import MergedChannel, merge
from .pipe import ChannelStatistics, Offer, Pipe, hand_over
from .selection import CLOSED, select

__all__ = ["CLOSED", "Channel", "ChannelStatistics", "MergedChannel", "Offer", "Pipe", "hand_over", "merge", "select"]

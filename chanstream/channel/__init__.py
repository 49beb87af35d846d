"""Channels: a `queue.Queue` that can be closed and drained with ``for``, as in Go."""

from .channel import Channel
from .pipe import ChannelStatistics, Offer, Pipe

__all__ = ["Channel", "ChannelStatistics", "Offer", "Pipe"]

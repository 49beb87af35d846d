"""How many requests of a batch may be on their way: a fixed number."""

from __future__ import annotations

import math
from typing import Protocol

import attrs


class Pace(Protocol):
    """Says when the next request may be sent. Sans-IO: it is told the time, in seconds, as ``now``."""

    def wait(self, running: int, now: float) -> float:
        """Return 0 if a request may be sent with so many on their way; else the seconds after which to ask again.

        Infinity is for: when one of them has ended.
        """

    def sent(self, running: int) -> int:
        """Note that a request is sent, as the so manieth of those on their way; return its generation."""

    def answered(self, generation: int, running: int, pause: float, now: float) -> None:
        """Note that a request was not refused. ``pause``: for so many seconds the server wants no more."""

    def refused(self, generation: int, running: int, pause: float, now: float) -> None:
        """Note that a request was refused because there were too many; as `answered` otherwise."""


@attrs.frozen
class Fixed:
    """A fixed number at a time."""

    most: int

    def wait(self, running: int, now: float) -> float:  # noqa: ARG002 - of the protocol
        """Return 0 below that number; see `Pace`."""
        return 0.0 if running < self.most else math.inf

    def sent(self, running: int) -> int:  # noqa: ARG002 - of the protocol
        """Return 0."""
        return 0

    def answered(self, generation: int, running: int, pause: float, now: float) -> None:
        """Do nothing."""

    def refused(self, generation: int, running: int, pause: float, now: float) -> None:
        """Do nothing."""

"""A concurrency that follows the server: more as long as it answers, less when it refuses. Sans-IO.

The rule is TCP's, additive increase and multiplicative decrease (https://www.rfc-editor.org/rfc/rfc5681), with a window
of requests in place of one of segments. It begins with few and adds one for every other answer, half of them for each
round, up to a *threshold*; from there on it adds one for each round. A refusal halves it, and sets the threshold to
nine tenths of what it was, so that it is nearly there again after one round. What was sent before that refusal and is
refused too is of the same burst, and counts no more.

Where the server allows so many at a time, that alone would be refused every few rounds, and be halved for it. So the
one place that was added last is a *probe*: if it is what the server refuses, it alone is taken back. And after each
refusal the next place comes after twice as many rounds, until one that was added turns out to be no mistake.
"""

from __future__ import annotations

import math

_FIRST = 8
"""How many at a time it begins with: few enough for any server."""

_ANSWERS = 2
"""How many answers add one in the beginning: with one, which is TCP's, it would come out higher above the limit."""

_THRESHOLD = 0.9

_MOST_ROUNDS = 4
"""Rounds between two probes at most. A server that refuses now and then, whatever it is asked, would else be asked by
one at a time in the end."""

_FEWEST = 40
"""How many answers there are between two probes, where the last was refused: few places make short rounds."""


class Adaptive:
    """A `Pace` between 1 and a number at a time.

    Args:
        most: That number.

    Attributes:
        limit: How many may be on their way now.
    """

    def __init__(self, most: int) -> None:
        self.limit = min(most, _FIRST)
        self._most = most
        self._threshold = most
        self._answers = 0  # since the limit was changed
        self._rounds = 1  # of answers, until one is added
        self._is_probing = False
        self._generation = 0  # grows with each refusal that counts
        self._not_before = 0.0

    def wait(self, running: int, now: float) -> float:
        """Return 0 if a request may be sent; see `Pace`."""
        if now < self._not_before:
            return self._not_before - now
        return 0.0 if running < self.limit else math.inf

    def sent(self, running: int) -> int:  # noqa: ARG002 - of the protocol
        """Return the generation of a request that is sent now."""
        return self._generation

    def answered(self, generation: int, running: int, pause: float, now: float) -> None:
        """Take in that a request was not refused."""
        self._hold_back(pause, now)
        if generation != self._generation or running + 1 < self.limit // 2 or self.limit >= self._most:
            return  # an answer from before, or one that says nothing of this limit, which was not used
        self._answers += 1
        if self.limit < self._threshold:
            if self._answers >= _ANSWERS:
                self._grow(is_probe=False)
        elif self._answers >= max(self.limit * self._rounds, _FEWEST if self._rounds > 1 else 0):
            self._grow(is_probe=True)

    def refused(self, generation: int, running: int, pause: float, now: float) -> None:
        """Take in that a request was refused because there were too many."""
        self._hold_back(pause, now)
        if generation != self._generation:
            return
        self._generation += 1
        if self._is_probing or self._answers >= self.limit:
            self.limit = self._threshold = max(1, self.limit - 1)
        else:
            used = min(self.limit, running + 1)
            self._threshold = int(_THRESHOLD * used)
            self.limit = max(1, used // 2)
        self._answers = 0
        self._rounds = min(2 * self._rounds, _MOST_ROUNDS)
        self._is_probing = False

    def _grow(self, *, is_probe: bool) -> None:
        if is_probe and self._is_probing:  # the last one was no mistake
            self._rounds = 1
        self._is_probing = is_probe
        self.limit += 1
        self._answers = 0

    def _hold_back(self, pause: float, now: float) -> None:
        if pause > 0:
            self._not_before = max(self._not_before, now + pause)

"""What ``--stats`` tells about an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .. import CompletionChunk


@attrs.define
class Statistics:
    """What one answer took, counted while it came.

    Attributes:
        chunks: How many chunks there were; an error is none.
        first: Seconds until the first. total: Seconds until the newest, an error included.
        newest: The chunk that came last; None before the first.
    """

    chunks: int = 0
    first: float = 0.0
    total: float = 0.0
    newest: CompletionChunk | None = None

    def add(self, chunk: CompletionChunk) -> None:
        """Count a chunk."""
        self.total += chunk.chunk_latency
        if chunk.error is not None:
            return
        self.newest = chunk
        self.chunks += 1
        if self.chunks == 1:
            self.first = self.total

    def __str__(self) -> str:
        times = f"first chunk {self.first:.3f} s, total {self.total:.3f} s"
        return f"{self._tokens()}, {times}, {self._speed()}, finish reason: {self._finish_reason()}"

    def _tokens(self) -> str:
        usage = self.newest.usage if self.newest else None
        if usage is None:
            return "tokens unknown"
        return f"{usage.total_tokens} tokens ({usage.prompt_tokens} prompt + {usage.completion_tokens} completion)"

    def _speed(self) -> str:
        """Return the rate after the first chunk: the wait for that one says nothing about it."""
        streaming = self.total - self.first
        return f"{(self.chunks - 1) / streaming:.1f} chunks/s" if streaming > 0 else "all chunks at once"

    def _finish_reason(self) -> str:
        """Return why the answer ended; "none" where it broke off, or where the server gave no reason."""
        choices = self.newest.choices if self.newest else ()
        return (choices[0].finish_reason if choices else None) or "none"

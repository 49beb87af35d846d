"""How far a batch is, told to whoever wants to know: a callable, or a bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from .result import BatchProgress, BatchResult

Report: TypeAlias = Callable[[BatchProgress], object]


class Progress:
    """Counts results, and tells of each.

    Args:
        report: Whom to tell; None for nobody.
        total: How many requests there are; None if that is not known.

    Attributes:
        done: Results so far.
    """

    def __init__(self, report: Report | None, total: int | None) -> None:
        self.done = 0
        self._report = report
        self._total = total
        self._failed = 0
        self._tokens = 0
        self._started = 0.0

    def start(self) -> None:
        """Note that the batch begins."""
        self._started = time.monotonic()

    def tell(self, result: BatchResult, running: int) -> None:
        """Note a result."""
        self.done += 1
        self._failed += result.error is not None
        if result.response is not None and result.response.usage is not None:
            self._tokens += result.response.usage.total_tokens
        if self._report is not None:
            self._report(self._now(running))

    def close(self) -> None:
        """Take the bar away, if there is one. Idempotent."""
        close = getattr(self._report, "close", None)
        if isinstance(self._report, Bar) and close is not None:
            close()

    def _now(self, running: int) -> BatchProgress:
        return BatchProgress(
            done=self.done,
            failed=self._failed,
            running=running,
            tokens=self._tokens,
            elapsed=time.monotonic() - self._started,
            total=self._total,
        )


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Take the bars off the terminal while something else is written there."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield


class Bar:
    """A bar of tqdm's on standard error: done, failed, tokens per second, time left.

    Raises:
        ImportError: The extra ``batch`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            raise ImportError("progress=True needs tqdm: pip install 'chanstream[batch]'") from None
        self._make: Callable[..., Any] = tqdm
        self._bar: Any = None

    def __call__(self, now: BatchProgress) -> None:
        """Show how far it is."""
        if self._bar is None:
            self._bar = self._make(total=now.total, unit=" requests", dynamic_ncols=True)
        rate = now.tokens / now.elapsed if now.elapsed > 0 else 0.0
        self._bar.set_postfix_str(f"{now.failed} failed, {rate:.0f} tokens/s", refresh=False)
        self._bar.update(now.done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

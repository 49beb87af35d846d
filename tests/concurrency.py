"""What tests of threads share: a call in a thread of its own, and an intruder in the middle of a step."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


def spawn(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call ``function`` in a thread of its own and return its future; one that hangs does not outlive the tests."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - it is told to whoever asks the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Intrusion:
    """Calls ``act`` in this thread, once, in the middle of a block: where its so manieth function begins or ends.

    There the interpreter runs signal handlers and the garbage collector's finalizers, so it stands for both. Where the
    block has no such place any more, ``act`` is called right after it.
    """

    def __init__(self, place: int) -> None:
        self._place = place
        self._seen = 0
        self._act: Callable[[], object] = bool

    def __call__(self, act: Callable[[], object]) -> Intrusion:
        """Return the block in which ``act`` is to be called."""
        self._act = act
        return self

    @property
    def happened(self) -> bool:
        """Whether the block was long enough for it."""
        return self._seen >= self._place

    def _look(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":  # between the look at what to call and its begin nothing else can come
            return
        self._seen += 1
        if self._seen == self._place:
            self._act()

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(None)
        if not self.happened:
            self._act()


def intrusions(step: int = 1) -> Iterator[Intrusion]:
    """Give an intrusion for each place of a block, or every so manieth, until one comes too late for the block."""
    for place in itertools.count(1, step):
        intrusion = Intrusion(place)
        yield intrusion
        if not intrusion.happened:
            assert place > 3 * step, "the block calls nothing that could be intruded upon"
            return


def press_ctrl_c() -> None:
    """Raise what Ctrl-C raises, but where a function in C ends: CPython 3.11 does not bear it from a profiler there."""
    if sys._getframe(1).f_locals.get("event") != "c_return":
        raise KeyboardInterrupt

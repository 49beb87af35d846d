"""Promise 2 where a thread is held up: at every place of what it does the others go on without it."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from chanstream import CompletionChunk, CompletionStream, Context, Timeout, merge
from chanstream.calls import Engine
from chanstream.engines import poller, threaded
from chanstream.engines.flow import Flow
from chanstream.engines.polled import Polled
from chanstream.testing import Reply
from tests.concurrency import Intrusion, intrusions, spawn
from tests.conftest import REQUEST, SCALE, Link, within

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left"), pytest.mark.timeout(300)]

HELD = 0.05
"""Seconds that a thread is held up for where the others cannot come to an end without it: it has a lock, say."""

ANSWER = Reply(["a", "b", "c", "d"], pace=0.004)

Way = Callable[[CompletionStream, Context], object]

CANCELLED: list[Way] = [lambda _, context: context.cancel(), lambda stream, _: stream.close()]
"""How a stream is ended by another thread."""

ways = pytest.mark.parametrize("cancel", CANCELLED, ids=["context", "close"])


def has_one_end(chunks: list[CompletionChunk], cancel: Way | None = None) -> bool:
    """Return whether a stream ended once and as the last thing; one that was closed may just stop."""
    ends = [chunk.is_last_chunk or chunk.error is not None for chunk in chunks]
    return ends[-1:] == [True] and sum(ends) == 1 if any(ends) else cancel is CANCELLED[1]


def in_a_moment(future: Future[Any]) -> None:
    """Wait for what another thread does, unless it needs the one that is held up."""
    with contextlib.suppress(FutureTimeoutError):
        future.result(HELD)


def have_news(streams: list[Polled]) -> bool:
    """Return whether there are bytes to read for a stream that has a turn."""
    return bool(select.select([stream._descriptor for stream in streams], [], [], 0)[0])


class Held:
    """Holds the thread that calls it until it is let go."""

    def __init__(self) -> None:
        self.here = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        """Wait."""
        self.here.set()
        self.go.wait(5 * SCALE)


class TestHeldUp:
    @pytest.fixture
    def begin(self, plain: Link) -> Callable[..., tuple[CompletionStream, Context]]:
        """A function that opens a stream, and returns what cancels it."""
        client = plain.client(plain.serve(reply_with=lambda _: ANSWER, keep=1))

        def opened(**settings: Any) -> tuple[CompletionStream, Context]:
            context = Context()
            return client.chat_completion_stream(REQUEST, context=context, **settings), context

        return opened

    @ways
    def test_who_cancels(self, begin: Callable[..., tuple[CompletionStream, Context]], cancel: Way) -> None:
        """A consumer has one end though the thread that cancels its stream comes to its own only after that."""
        for intrusion in intrusions(step=2):
            stream, context = begin()
            chunks = [stream.get()]
            consumed = spawn(chunks.extend, stream)
            with intrusion(lambda consumed=consumed: in_a_moment(consumed)):
                cancel(stream, context)
            consumed.result(5 * SCALE)
            assert has_one_end(chunks, cancel)

    def test_a_clock(
        self, begin: Callable[..., tuple[CompletionStream, Context]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And though a clock is held up that has run out."""
        on_time = Flow._on_time
        for intrusion in intrusions(step=2):
            told: list[Flow] = []
            over = threading.Event()

            def held_up(flow: Flow, intrusion: Intrusion = intrusion, told: list[Flow] = told) -> float | None:
                told.append(flow)
                if len(told) > 1:
                    return on_time(flow)
                with intrusion(lambda: over.wait(HELD)):  # noqa: B023 - called before the next begins
                    return on_time(flow)

            monkeypatch.setattr(Flow, "_on_time", held_up)
            while not told:  # where the machine is busy all of an answer may come before a clock is looked at
                chunks = list(begin(timeout=Timeout(idle=0.001))[0])
                assert has_one_end(chunks)
            over.set()

    @ways
    def test_who_consumes(self, begin: Callable[..., tuple[CompletionStream, Context]], cancel: Way) -> None:
        """A consumer that is held up itself has one end, whatever others do meanwhile."""
        for intrusion in intrusions(step=5):
            stream, context = begin()
            chunks: list[CompletionChunk] = []
            held = Held()

            def consume(
                intrusion: Intrusion = intrusion,
                held: Held = held,
                chunks: list[CompletionChunk] = chunks,
                stream: CompletionStream = stream,
            ) -> None:
                with intrusion(held):
                    chunks.extend(stream)

            consumed = spawn(consume)
            held.here.wait(5 * SCALE)
            cancelled = spawn(cancel, stream, context)
            in_a_moment(cancelled)
            held.go.set()
            consumed.result(5 * SCALE)
            cancelled.result(5 * SCALE)
            assert has_one_end(chunks, cancel)

    @pytest.mark.parametrize("cancel", [*CANCELLED, None], ids=["context", "close", "nobody"])
    def test_who_reads(
        self,
        begin: Callable[..., tuple[CompletionStream, Context]],
        monkeypatch: pytest.MonkeyPatch,
        engine: Engine,
        cancel: Way | None,
    ) -> None:
        """A consumer has one end though the thread that reads its stream is held up."""
        module, name = (threaded, "run") if engine == "threaded" else (poller, "have_turns")
        read = getattr(module, name)
        for intrusion in intrusions(step=17 if engine == "threaded" else 2):
            held = Held()
            first = threading.Lock()

            def held_up(
                *args: Any, intrusion: Intrusion = intrusion, held: Held = held, first: threading.Lock = first
            ) -> None:
                if (engine == "poller" and not have_news(args[0])) or not first.acquire(blocking=False):
                    read(*args)
                else:
                    with intrusion(held):
                        read(*args)

            monkeypatch.setattr(module, name, held_up)
            while not first.locked():  # again if all of the answer came at once
                stream, context = begin()
                assert within(5 * SCALE, lambda first=first, stream=stream: first.locked() or stream.qsize() >= 4)
            held.here.wait(5 * SCALE)
            chunks: list[CompletionChunk] = []
            if cancel is None:
                consumed = spawn(chunks.extend, stream)
                in_a_moment(consumed)
            else:
                cancelled = spawn(cancel, stream, context)
                in_a_moment(cancelled)
                consumed = spawn(chunks.extend, stream)
            held.go.set()
            consumed.result(5 * SCALE)
            assert has_one_end(chunks, cancel)

    @ways
    def test_who_cancels_one_of_several(
        self, begin: Callable[..., tuple[CompletionStream, Context]], cancel: Way
    ) -> None:
        """So it is with each of merged streams, of which one is cancelled."""
        for intrusion in intrusions(step=5):
            several = [begin() for _ in range(3)]
            merged = merge([stream for stream, _ in several])
            key, chunk = merged.get()
            chunks: list[list[CompletionChunk]] = [[], [], []]
            chunks[key].append(chunk)

            def consume(merged: Any = merged, chunks: list[list[CompletionChunk]] = chunks) -> None:
                for key, chunk in merged:
                    chunks[key].append(chunk)

            consumed = spawn(consume)
            with intrusion(lambda consumed=consumed: in_a_moment(consumed)):
                cancel(*several[1])
            consumed.result(5 * SCALE)
            assert has_one_end(chunks[0])
            assert has_one_end(chunks[1], cancel)
            assert has_one_end(chunks[2])

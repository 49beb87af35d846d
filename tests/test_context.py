"""Contexts: cancel, deadlines, parents and children, and what is called when one is done."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chanstream import APITimeoutError, Context, StreamCancelledError, StreamError, Timeout, timers
from tests.concurrency import intrusions, spawn
from tests.conftest import PROMPT, SCALE, within

BAD_SECONDS: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (0.0, ValueError),
    (-1, ValueError),
    (-0.001, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (1e10, ValueError),  # more than the system can wait for
    (1e300, ValueError),
    (10**400, ValueError),
    (True, TypeError),
    (False, TypeError),
    ("5", TypeError),
    (b"5", TypeError),
    ([5], TypeError),
    (5j, TypeError),
]
EACH_BAD = pytest.mark.parametrize(("value", "kind"), BAD_SECONDS, ids=[repr(value)[:12] for value, _ in BAD_SECONDS])


@pytest.fixture(autouse=True)
def _no_deadline_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test deadlines of its own, so that one that a test spoils does not spoil the next test's."""
    monkeypatch.setattr(timers, "_timers", timers._Timers())
    yield
    for _, _, timer in list(timers._timers._heap):
        timer.stop()


class TestCancel:
    def test_a_live_one(self) -> None:
        """A new context is not done, and has no error and no deadline."""
        context = Context()
        assert not context.done()
        assert (context.error, context.deadline, context.remaining()) == (None, None, None)
        context.raise_if_done()
        assert context.wait(0) is False

    def test_cancel(self) -> None:
        """A cancelled context is done with a StreamCancelledError, which it raises on demand."""
        context = Context()
        context.cancel()
        assert context.done()
        assert isinstance(context.error, StreamCancelledError)
        assert context.wait(0) is True
        with pytest.raises(StreamCancelledError) as caught:
            context.raise_if_done()
        assert caught.value is context.error

    def test_with_an_error_of_ones_own(self) -> None:
        """Whoever cancels may say with which error."""
        context, error = Context(), StreamError("enough")
        context.cancel(error)
        assert context.error is error

    def test_only_the_first_counts(self) -> None:
        """Of several cancels the first one's error stays."""
        context, first = Context(), StreamError("first")
        context.cancel(first)
        context.cancel(StreamError("second"))
        context.cancel()
        assert context.error is first

    def test_it_wakes_who_waits(self) -> None:
        """Cancelling wakes all threads that wait for it, at once."""
        context = Context()
        ready = threading.Barrier(4)
        waiting = [spawn(lambda: (ready.wait(5), context.wait(5), time.monotonic())) for _ in range(3)]
        ready.wait(5)
        begun = time.monotonic()
        context.cancel()
        results = [future.result(5) for future in waiting]
        assert [woken for _, woken, _ in results] == [True] * 3
        assert max(moment for _, _, moment in results) - begun < 2 * PROMPT

    def test_with_block(self) -> None:
        """The end of a with block cancels, with an exception too."""
        with Context() as context:
            assert not context.done()
        assert context.done()
        with pytest.raises(ZeroDivisionError), Context() as other:
            raise ZeroDivisionError
        assert other.done()

    def test_repr(self) -> None:
        """A context shows whether it is done, and why."""
        context = Context()
        assert repr(context) == "<Context live>"
        context.cancel(StreamError("enough"))
        assert repr(context) == "<Context done: enough>"

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
    def test_from_a_signal_handler(self) -> None:
        """A signal handler may cancel the context for which its own thread waits."""
        context = Context()
        before = signal.signal(signal.SIGUSR1, lambda *_: context.cancel())
        try:
            sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            sender.start()
            assert context.wait(5)
            sender.join()
        finally:
            signal.signal(signal.SIGUSR1, before)

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
    @pytest.mark.parametrize("timeout", [None, 60.0])
    def test_ctrl_c_that_does_not_end_the_wait(self, timeout: float | None) -> None:
        """Ctrl-C is noticed although the signal does not wake the main thread; here because another receives it."""
        pressing = threading.Timer(0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the wait
            pressing.start()
            Context().wait(timeout)
        pressing.join()

    def test_a_long_wait_in_the_main_thread(self) -> None:
        """Looking for signals ends no wait before its time, and no cancel is missed for it."""
        context = Context()
        begun = time.monotonic()
        assert context.wait(0.25) is False
        assert time.monotonic() - begun >= 0.25
        threading.Timer(0.15, context.cancel).start()
        assert context.wait() is True


class TestFamily:
    def test_cancel_travels_down(self) -> None:
        """Cancelling a context cancels its children and theirs, with the same error."""
        parent = Context()
        child = parent.with_cancel()
        grandchild, other = child.with_timeout(60), parent.with_cancel()
        error = StreamError("enough")
        parent.cancel(error)
        assert {child.error, grandchild.error, other.error} == {error}

    def test_and_never_up(self) -> None:
        """Cancelling a child leaves its parent and its siblings alone."""
        parent = Context()
        child, sibling = parent.with_cancel(), parent.with_cancel()
        grandchild = child.with_cancel()
        child.cancel()
        assert (parent.done(), child.done(), grandchild.done(), sibling.done()) == (False, True, True, False)

    @pytest.mark.parametrize("make", [Context.with_cancel, lambda parent: parent.with_timeout(60)])
    def test_a_child_of_one_that_is_done(self, make: Callable[[Context], Context]) -> None:
        """The child of a context that is done is done from the start, with its parent's error."""
        parent, error = Context(), StreamError("enough")
        parent.cancel(error)
        assert make(parent).error is error

    def test_a_child_that_is_cancelled_is_forgotten(self) -> None:
        """A long-lived parent keeps nothing of children that are done."""
        parent = Context()
        for _ in range(1000):
            parent.with_cancel().cancel()
            parent.with_timeout(60).cancel()
        assert parent._callbacks == {}
        assert not timers._timers._live

    def test_a_deep_family(self) -> None:
        """Cancelling reaches a descendant a hundred generations away."""
        root = youngest = Context()
        for _ in range(100):
            youngest = youngest.with_cancel()
        root.cancel()
        assert youngest.done()


class TestDeadline:
    @pytest.mark.parametrize("make", [Context, Context().with_timeout], ids=["root", "child"])
    def test_it_comes(self, make: Callable[[float], Context]) -> None:
        """A context with a deadline is done by itself in time, with an error that names clock and seconds."""
        begun, seconds = time.monotonic(), 0.3 * SCALE
        context = make(seconds)
        assert not context.done()
        assert context.wait(seconds + 5)
        assert seconds <= time.monotonic() - begun < seconds + 2 * PROMPT
        assert isinstance(context.error, APITimeoutError)
        assert (context.error.clock, context.error.seconds) == ("context", seconds)

    def test_the_parents_is_earlier(self) -> None:
        """A child ends with its parent's deadline if that comes first, and has the parent's error."""
        parent = Context(0.05)
        child = parent.with_timeout(60)
        assert child.deadline == parent.deadline
        assert child.wait(5)
        assert child.error is parent.error

    def test_the_childs_is_earlier(self) -> None:
        """A child's own deadline, if that comes first, ends the child alone."""
        parent = Context(60)
        child = parent.with_timeout(0.05)
        assert child.wait(5)
        assert not parent.done()
        assert isinstance(child.error, APITimeoutError)
        assert child.error.seconds == 0.05
        parent.cancel()

    def test_what_remains(self) -> None:
        """The time that remains shrinks to 0 and not below; a child has no more than its parent."""
        parent = Context(60)
        first = parent.remaining()
        child, tighter = parent.with_cancel(), parent.with_timeout(10)
        second = child.remaining()
        assert first is not None
        assert second is not None
        assert 59 < second <= first <= 60
        assert 9 < (tighter.remaining() or 0) <= 10
        parent.cancel()
        short = Context(0.01)
        assert short.wait(5)
        assert within(1, lambda: short.remaining() == 0.0)

    def test_cancel_stops_the_clock(self) -> None:
        """A context that was cancelled does not wait for its deadline any more."""
        context = Context(60)
        context.cancel()
        assert not timers._timers._live
        assert isinstance(context.error, StreamCancelledError)

    def test_a_deadline_for_the_first_time(self) -> None:
        """A deadline may be set later, with an error of its own; the earlier of two ends the context."""
        context = Context()
        late, soon = StreamError("late"), StreamError("soon")
        context.expire_in(60, late)
        context.expire_in(0.05, soon)
        assert context.wait(5)
        assert context.error is soon
        assert within(1, lambda: len(timers._timers._live) == 0)

    def test_a_deadline_far_away(self) -> None:
        """A deadline that is as far away as the system can wait does no harm to the others."""
        far = Context(threading.TIMEOUT_MAX)
        assert Context(0.02).wait(5)
        assert not far.done()
        far.cancel()

    @EACH_BAD
    def test_bad_seconds(self, value: Any, kind: type[Exception]) -> None:
        """Seconds that cannot be are refused, and named; nothing is left of the attempt."""
        parent = Context()
        for make in (Context, parent.with_timeout):
            with pytest.raises(kind, match=r"^timeout: expected"):
                make(value)
        assert parent._callbacks == {}
        assert not timers._timers._live


class TestOnDone:
    def test_in_order_with_the_error(self) -> None:
        """Callbacks are called in the order in which they were added, in the thread that cancels, with the error."""
        context = Context()
        called: list[tuple[int, object, int]] = []
        for place in range(5):
            context.on_done(lambda error, place=place: called.append((place, error, threading.get_ident())))  # type: ignore[misc]
        canceller = spawn(lambda: (context.cancel(), threading.get_ident()))
        _, thread = canceller.result(5)
        assert called == [(place, context.error, thread) for place in range(5)]

    def test_at_once_if_done(self) -> None:
        """A callback that comes too late is called at once, in the thread that adds it."""
        context = Context()
        context.cancel()
        called: list[object] = []
        forget = context.on_done(called.append)
        assert called == [context.error]
        forget()

    def test_exactly_once(self) -> None:
        """A callback is called once, however often the context is cancelled; one that was added twice, twice."""
        context = Context()
        called: list[object] = []
        context.on_done(called.append)
        context.on_done(called.append)
        context.cancel()
        context.cancel()
        assert len(called) == 2

    def test_taken_away(self) -> None:
        """A callback that was taken away is not called; taking it away again, or afterwards, does nothing."""
        context = Context()
        called: list[str] = []
        forget = context.on_done(lambda _: called.append("first"))
        keep = context.on_done(lambda _: called.append("second"))
        forget()
        forget()
        context.cancel()
        keep()
        assert called == ["second"]

    def test_one_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A callback that raises is logged, and the others are called all the same."""
        caplog.set_level(logging.ERROR, "chanstream")
        context = Context()
        called: list[int] = []
        context.on_done(lambda _: called.append(1))
        context.on_done(lambda _: 1 / 0)
        context.on_done(lambda _: called.append(3))
        context.cancel()
        assert called == [1, 3]
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]

    def test_one_that_fails_when_called_at_once(self) -> None:
        """A callback that is called at once raises to the one who added it."""
        context = Context()
        context.cancel()
        with pytest.raises(ZeroDivisionError):
            context.on_done(lambda _: 1 / 0)

    def test_the_context_is_done_by_then(self) -> None:
        """A callback sees a context that is done, may cancel it again, and may add another callback."""
        context = Context()
        seen: list[object] = []

        def callback(error: object) -> None:
            seen.append((context.done(), context.error is error, context.wait(0)))
            context.cancel(StreamError("again"))
            context.on_done(seen.append)

        context.on_done(callback)
        context.cancel()
        assert seen == [(True, True, True), context.error]

    def test_nothing_is_kept(self) -> None:
        """A context that is done keeps no callback, and one that was taken away is not kept either."""

        class Callback:
            def __call__(self, error: object) -> None:
                pass

        context = Context()
        called, taken = Callback(), Callback()
        kept = [weakref.ref(called), weakref.ref(taken)]
        context.on_done(called)
        context.on_done(taken)()
        context.cancel()
        del called, taken
        gc.collect()
        assert [reference() for reference in kept] == [None, None]


class TestRelease:
    def test_of_a_parent(self) -> None:
        """A context that was released hears nothing of its parent any more, and the parent keeps nothing of it."""
        parent = Context()
        child = parent.with_cancel()
        child.release()
        assert parent._callbacks == {}
        parent.cancel()
        assert not child.done()

    def test_of_a_deadline(self) -> None:
        """A context that was released has no deadline to come, its own or its parent's."""
        soon = 0.3 * SCALE
        contexts = [Context(soon), Context(soon).with_cancel(), Context().with_timeout(soon)]
        for context in contexts:
            context.release()
        assert Context(0.5 * SCALE).wait(5 * SCALE)
        assert [context.done() for context in contexts] == [False] * 3

    def test_of_several_deadlines(self) -> None:
        """All deadlines that were set go when a context is released."""
        context = Context(0.3 * SCALE)
        context.expire_in(60, StreamError("late"))
        context.release()
        assert not timers._timers._live
        assert Context(0.5 * SCALE).wait(5 * SCALE)
        assert not context.done()

    def test_it_can_still_be_cancelled(self) -> None:
        """A context that was released can be cancelled, by itself."""
        context = Context().with_timeout(60)
        context.release()
        context.release()
        called: list[object] = []
        context.on_done(called.append)
        context.cancel()
        assert called == [context.error]

    def test_a_long_lived_parent(self) -> None:
        """10 000 children that were released leave nothing in their parent, and no deadline."""
        parent = Context(3600)
        for _ in range(10_000):
            parent.with_timeout(60).release()
        assert parent._callbacks == {}
        assert len(timers._timers._live) == 1
        parent.cancel()

    def test_nobody_holds_it(self) -> None:
        """A child that was released goes when its last reference does."""
        parent = Context()
        child = parent.with_timeout(60)
        gone = weakref.ref(child)
        child.release()
        del child
        gc.collect()
        assert gone() is None


class TestRaces:
    def test_cancel_and_on_done(self) -> None:
        """However cancel and on_done meet, each callback is called exactly once."""
        for _ in range(30):
            context = Context()
            calls = [0] * 400
            start = threading.Barrier(5)

            def add(first: int, context: Context = context, calls: list[int] = calls, start: Any = start) -> None:
                def count(place: int) -> Callable[[object], None]:
                    def callback(error: object) -> None:
                        calls[place] += 1

                    return callback

                start.wait(5)
                for place in range(first, first + 100):
                    context.on_done(count(place))

            adding = [spawn(add, first) for first in range(0, 400, 100)]
            start.wait(5)
            context.cancel()
            for future in adding:
                future.result(5)
            assert calls == [1] * 400

    def test_cancel_and_forget(self) -> None:
        """However cancel and taking away meet, a callback is called at most once, and nothing fails."""
        for _ in range(50):
            context = Context()
            calls: list[object] = []
            forgets = [context.on_done(calls.append) for _ in range(50)]
            forgetting = spawn(lambda forgets=forgets: [forget() for forget in forgets])
            context.cancel()
            forgetting.result(5)
            assert len(calls) <= 50
            assert context._callbacks == {}

    def test_many_cancels(self) -> None:
        """Of many threads that cancel at the same time one wins, and all see its error."""
        for _ in range(50):
            context = Context()
            start = threading.Barrier(8)
            heard: list[object] = []
            context.on_done(heard.append)

            def cancel(name: int, context: Context = context, start: Any = start) -> object:
                start.wait(5)
                context.cancel(StreamError(str(name)))
                return context.error

            errors = {future.result(5) for future in [spawn(cancel, name) for name in range(8)]}
            assert errors == {context.error}
            assert heard == [context.error]

    def test_children_and_cancel(self) -> None:
        """A child that is made while its parent is being cancelled is cancelled too."""
        for _ in range(50):
            parent = Context()
            making = spawn(lambda parent=parent: [parent.with_cancel() for _ in range(50)])
            parent.cancel()
            assert all(child.done() for child in making.result(5))
            assert parent._callbacks == {}

    def test_release_and_the_parents_cancel(self) -> None:
        """Releasing children while their parent is cancelled neither fails nor blocks."""
        for _ in range(50):
            parent = Context()
            children = [parent.with_timeout(60) for _ in range(20)]
            releasing = spawn(lambda children=children: [child.release() for child in children])
            parent.cancel()
            releasing.result(5)
            assert parent._callbacks == {}
        assert within(1, lambda: len(timers._timers._live) == 0)


class TestIntruders:
    """A signal handler, or a finalizer that the garbage collector runs, comes in the middle of a step."""

    def test_cancelled_while_a_callback_is_added(self) -> None:
        """A callback is called exactly once, wherever in the middle of adding it the context is cancelled."""
        for intrusion in intrusions():
            context, called = Context(), []  # type: ignore[var-annotated]
            with intrusion(context.cancel):
                context.on_done(called.append)
            assert called == [context.error]

    @pytest.mark.parametrize("make", [Context.with_cancel, lambda parent: parent.with_timeout(60)])
    def test_cancelled_while_a_child_is_made(self, make: Callable[[Context], Context]) -> None:
        """A child is cancelled wherever in the middle of making it the parent is."""
        for intrusion in intrusions():
            parent = Context()
            with intrusion(parent.cancel):
                child = make(parent)
            assert child.done()
            assert parent._callbacks == {}
        assert not timers._timers._live

    def test_cancelled_while_cancelling(self) -> None:
        """Whoever of two comes first, all hear of one error, once."""
        for intrusion in intrusions():
            context, heard = Context(), []  # type: ignore[var-annotated]
            context.on_done(heard.append)
            with intrusion(lambda context=context: context.cancel(StreamError("inner"))):  # type: ignore[misc]
                context.cancel(StreamError("outer"))
            assert heard == [context.error]

    def test_cancelled_while_released(self) -> None:
        """A release that is interrupted by a cancel leaves nothing behind."""
        for intrusion in intrusions():
            parent = Context()
            child = parent.with_timeout(60)
            with intrusion(child.cancel):
                child.release()
            assert parent._callbacks == {}
            assert not timers._timers._live


class TestTimeout:
    CLOCKS = ("connect", "first_chunk", "idle", "total")

    def test_the_defaults(self) -> None:
        """There is a limit for connecting, for the first chunk and for silence, and none for the whole."""
        assert Timeout() == Timeout(connect=10.0, first_chunk=300.0, idle=60.0, total=None)

    @pytest.mark.parametrize("clock", CLOCKS)
    def test_none_switches_a_clock_off(self, clock: str) -> None:
        """Each clock can be switched off."""
        assert getattr(Timeout(**{clock: None}), clock) is None

    @pytest.mark.parametrize("clock", CLOCKS)
    @EACH_BAD
    def test_bad_seconds(self, clock: str, value: Any, kind: type[Exception]) -> None:
        """Seconds that cannot be are refused when the timeout is made, and the clock is named."""
        with pytest.raises(kind, match=f"^{clock}: expected"):
            Timeout(**{clock: value})

    def test_of_a_number(self) -> None:
        """A bare number is the limit for everything; a timeout stays one."""
        assert Timeout.of(5) == Timeout(total=5)
        timeout = Timeout(idle=1)
        assert Timeout.of(timeout) is timeout

    @EACH_BAD
    def test_of_a_bad_number(self, value: Any, kind: type[Exception]) -> None:
        """A bare number that cannot be is refused as the timeout."""
        with pytest.raises(kind, match=r"^timeout: expected"):
            Timeout.of(value)


def test_a_wait_without_end() -> None:
    """A wait that is longer than the system's longest is as long as that, in any thread."""
    context = Context()
    waiting = spawn(context.wait, 1e12)
    context.cancel()
    assert waiting.result(5) is True
    assert context.wait(1e12) is True

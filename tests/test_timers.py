"""The one thread for all deadlines: order, stopping, calling again, and that it leaves nothing behind."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise

import pytest

from chanstream import timers
from tests.concurrency import intrusions, spawn
from tests.conftest import PROMPT, SCALE, within

pytestmark = pytest.mark.usefixtures("own_timers")

SOON = 0.01
NEVER = 3600.0


@pytest.fixture
def own_timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test timers and a thread of its own, and see to it that the thread ends."""
    others = set(threading.enumerate())
    own = timers._Timers()
    monkeypatch.setattr(timers, "_timers", own)
    yield
    for _, _, timer in list(own._heap):
        timer.stop()
    assert within(5, lambda: not [thread for thread in threads() if thread not in others])


def threads() -> list[threading.Thread]:
    """Return the timer threads that there are."""
    return [thread for thread in threading.enumerate() if thread.name == "chanstream-timers"]


def after(seconds: float, callback: Callable[[], object]) -> timers.Timer:
    """Set a timer for a callback whose result does not matter."""
    return timers.call_at(time.monotonic() + seconds, lambda: (callback(), None)[1])


def fence(seconds: float = 2 * SOON) -> None:
    """Wait until all that is due before so many seconds from now has been called."""
    passed = threading.Event()
    after(seconds, passed.set)
    assert passed.wait(seconds + 5)


def nothing_is_live() -> bool:
    """Return whether no timer is left, in a moment: a fence's own is so until its call has returned."""
    return within(1, lambda: not timers._timers._live)


def held() -> AbstractContextManager[object]:
    """Return a block in which no timer is called, however long it takes."""
    return timers._timers._lock


class TestOrder:
    def test_the_earliest_first(self) -> None:
        """Timers are called in the order of their times, whatever the order in which they were set."""
        called: list[int] = []
        begun = time.monotonic()
        with held():
            for place in (3, 1, 2, 0):
                timers.call_at(begun + SOON + place * 0.001, lambda place=place: called.append(place))  # type: ignore[misc]
        fence()
        assert called == [0, 1, 2, 3]

    def test_the_same_time(self) -> None:
        """Timers for the same instant are called in the order in which they were set."""
        called: list[int] = []
        when = time.monotonic() + SOON
        for place in range(50):
            timers.call_at(when, lambda place=place: called.append(place))  # type: ignore[misc]
        fence()
        assert called == list(range(50))

    def test_never_too_early(self) -> None:
        """A timer is not called before its time, and soon after it."""
        when = time.monotonic() + 0.05
        called: list[float] = []
        timers.call_at(when, lambda: called.append(time.monotonic()))
        assert within(5, lambda: called)
        assert 0 <= called[0] - when < 2 * PROMPT

    def test_a_time_that_is_over(self) -> None:
        """A timer for a time in the past is called at once."""
        done = threading.Event()
        after(-1, done.set)
        assert done.wait(5)

    def test_an_earlier_one_while_waiting(self) -> None:
        """A timer that is set while the thread waits for a later one does not wait for that."""
        later = after(NEVER, bool)
        done = threading.Event()
        after(SOON, done.set)
        assert done.wait(5)
        later.stop()


class TestStop:
    def test_before_its_time(self) -> None:
        """A timer that was stopped is not called; stopping again does nothing."""
        called: list[int] = []
        with held():
            timer = after(SOON, lambda: called.append(1))
            timer.stop()
            timer.stop()
        fence()
        assert called == []

    def test_after_its_time(self) -> None:
        """A timer that was called may be stopped all the same."""
        timer = after(0, bool)
        fence()
        timer.stop()
        assert nothing_is_live()

    def test_from_its_callback(self) -> None:
        """A timer that stops itself is not called again, whatever it returns."""
        called: list[int] = []

        def callback() -> float:
            called.append(1)
            timer.stop()
            return time.monotonic()

        with held():  # the callback needs the name
            timer = timers.call_at(time.monotonic() + SOON, callback)
        fence(3 * SOON)
        assert called == [1]

    def test_it_does_not_wait(self) -> None:
        """Stopping does not wait for a callback that runs at this moment."""
        entered, leave = threading.Event(), threading.Event()
        timer = after(0, lambda: (entered.set(), leave.wait(5)))
        assert entered.wait(5)
        begun = time.monotonic()
        timer.stop()
        assert time.monotonic() - begun < 2 * PROMPT
        leave.set()

    def test_many(self) -> None:
        """10 000 timers that were stopped leave next to nothing behind, while others wait."""
        lasting = [after(NEVER, bool) for _ in range(10)]
        for _ in range(10_000):
            after(NEVER, bool).stop()
        assert len(timers._timers._heap) <= 2 * len(lasting) + timers._SLACK + 1
        assert len(timers._timers._live) == len(lasting)
        for timer in lasting:
            timer.stop()

    def test_many_at_once(self) -> None:
        """Of many timers at once the stopped ones are not called, and all others are, also after a sweep."""
        called: list[int] = []
        when = time.monotonic() + 0.5 * SCALE
        with held():
            pending = [timers.call_at(when, lambda place=place: called.append(place)) for place in range(1000)]  # type: ignore[misc]
            for place, timer in enumerate(pending):
                if place % 10:
                    timer.stop()
        fence(0.5 * SCALE)
        assert called == list(range(0, 1000, 10))

    def test_from_many_threads(self) -> None:
        """Timers that are set and stopped by many threads are each called once, or not at all if stopped in time."""
        called: list[tuple[int, int]] = []

        def work(worker: int) -> set[tuple[int, int]]:
            dice, kept = random.Random(worker), set()
            for place in range(300):
                item = worker, place
                stopped = dice.random() < 0.5
                timer = after(NEVER if stopped else dice.random() * SOON, lambda item=item: called.append(item))
                if stopped:
                    timer.stop()
                else:
                    kept.add(item)
            return kept

        workers = [spawn(work, worker) for worker in range(8)]
        kept = set.union(*(worker.result(20) for worker in workers))
        fence()
        assert sorted(called) == sorted(kept)
        assert nothing_is_live()


class TestCalledAgain:
    def test_when_it_says_so(self) -> None:
        """A callback that returns a time is called again then, until it returns None."""
        called: list[float] = []
        done = threading.Event()

        def callback() -> float | None:
            called.append(time.monotonic())
            if len(called) < 4:
                return called[-1] + SOON
            done.set()
            return None

        timers.call_at(time.monotonic(), callback)
        assert done.wait(5)
        fence()
        gaps = [later - earlier for earlier, later in pairwise(called)]
        assert len(gaps) == 3
        assert min(gaps) >= SOON

    def test_it_can_be_stopped_between(self) -> None:
        """A timer that waits to be called again can be stopped."""
        called: list[int] = []

        def callback() -> float:
            called.append(1)
            return time.monotonic() + 5 * SOON

        def stop_if_it_waits() -> bool:
            with held():
                waits = bool(called and timers._timers._heap)
                if waits:
                    timer.stop()
            return waits

        timer = timers.call_at(time.monotonic(), callback)
        assert within(5, stop_if_it_waits)
        before = len(called)
        fence(8 * SOON)
        assert len(called) == before


class TestCallbacks:
    def test_one_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A callback that raises is logged and not called again, and the others are called."""
        caplog.set_level(logging.ERROR, "chanstream")
        after(0, lambda: 1 / 0)
        fence()
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
        assert nothing_is_live()

    def test_one_that_sets_another(self) -> None:
        """A callback may set and stop timers."""
        done = threading.Event()
        doomed = after(NEVER, bool)
        after(0, lambda: (doomed.stop(), after(0, done.set)))
        assert done.wait(5)


class TestHeldUp:
    @pytest.mark.skipif(os.name == "nt", reason="nothing stops a process here")
    def test_the_process(self) -> None:
        """What keeps all threads from running is noticed, for the deadlines that ran out meanwhile, and no others."""
        for _ in range(5):  # the machine may hold the process up
            begun = time.monotonic()
            after(SOON, bool)
            ctypes.PyDLL(None).usleep(int(1e6 * (SOON + 2 * timers.HELD_UP)))  # with the interpreter's lock
            fence()
            later = time.monotonic()
            fence()
            if timers.held_up_after(begun + SOON) and not timers.held_up_after(later):
                return
        pytest.fail("it is not noticed, or for others too")

    def test_a_slow_callback(self) -> None:
        """A callback that holds the others up is no such thing."""
        for _ in range(5):  # the machine may hold the process up
            begun = time.monotonic()
            after(0, lambda: time.sleep(2 * timers.HELD_UP))
            after(SOON, bool)
            fence(3 * timers.HELD_UP)
            if not timers.held_up_after(begun):
                return
        pytest.fail("it is taken for one")


class TestThread:
    def test_its_life(self) -> None:
        """The thread starts with the first timer, serves all, and ends soon after the last."""
        before = len(threads())
        first, second = after(NEVER, bool), after(NEVER, bool)
        assert len(threads()) == before + 1
        first.stop()
        fence(0)
        assert len(threads()) == before + 1
        second.stop()
        assert within(1, lambda: len(threads()) == before)

    def test_it_comes_back(self) -> None:
        """After the thread has ended the next timer starts a new one."""
        before = len(threads())
        for _ in range(3):
            fence(0)
            assert within(1, lambda: len(threads()) == before)

    def test_a_next_one_at_the_last_moment(self) -> None:
        """A timer that is set just when the thread ends is called all the same."""
        for place in range(20):
            fence(0)
            time.sleep(timers._LINGER + (place - 10) * 0.0002)  # there is no event at that moment
            fence(0)

    def test_it_does_not_keep_the_process_alive(self) -> None:
        """A process does not wait for the deadlines that are left when it ends."""
        program = "import time; from chanstream import timers; timers.call_at(time.monotonic() + 3600, bool)"
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True, timeout=20 * SCALE)
        assert time.monotonic() - begun < 10 * SCALE

    def test_no_thread_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started the caller is told, and a later timer, when there are threads again, works."""

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                after(0, bool)
        fence(0)


def test_stopped_in_the_middle_of_setting_one() -> None:
    """A finalizer that stops many timers while another is being set loses nothing of that one."""
    for intrusion in intrusions():
        doomed = [after(NEVER, bool) for _ in range(200)]
        done = threading.Event()
        with intrusion(lambda: [timer.stop() for timer in doomed]):  # noqa: B023 - called in this round
            timer = timers.call_at(time.monotonic(), lambda done=done: (done.set(), None)[1])  # type: ignore[misc]
        assert done.wait(5)
        timer.stop()
        for other in doomed:
            other.stop()
        assert not timers._timers._live


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_fork() -> None:
    """A forked child has none of its parent's timers and a thread of its own for those that it sets."""
    program = """
        import os, threading, time
        from chanstream import timers

        mine = threading.Event()
        called = []
        timers.call_at(time.monotonic() + 0.3, lambda: called.append(os.getpid()))
        child = os.fork()
        timers.call_at(time.monotonic() + 0.6, mine.set)
        assert mine.wait(10)
        assert called.count(os.getpid()) == (child != 0), called
        if child == 0:
            os._exit(17)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    """
    # The warning that Python 3.12 and later give: a process with threads forks. That is what this is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30 * SCALE, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_time_that_never_comes() -> None:
    """A deadline further away than the system can wait stops no other."""
    far = timers.call_at(time.monotonic() + 1e300, lambda: None)
    called = threading.Event()
    near = timers.call_at(time.monotonic() + 0.02, called.set)
    try:
        assert called.wait(5)
    finally:
        far.stop()
        near.stop()

"""The pipe between two ends: offers, the end, abandoning, waiters, and intruders in the middle of a step."""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chanstream import Channel, ChannelClosedError, StreamError
from chanstream.channel import Pipe
from tests.concurrency import intrusions, spawn
from tests.conftest import PROMPT, within


def drained(pipe: Pipe[Any]) -> list[Any]:
    """Take all that is in the pipe, and that comes in by itself meanwhile."""
    taken: list[Any] = []
    while True:
        try:
            taken += pipe.get_many(timeout=0)
        except (queue.Empty, ChannelClosedError):
            return taken


class TestOffer:
    def test_with_room(self) -> None:
        """What there is room for goes in at once, and nothing is left over."""
        pipe: Pipe[int] = Pipe(3)
        assert not pipe.offer([1, 2])
        assert drained(pipe) == [1, 2]

    def test_without(self) -> None:
        """What there is no room for goes in by itself as items are taken."""
        pipe: Pipe[int] = Pipe(2)
        rest = pipe.offer([1, 2, 3, 4])
        assert list(rest) == [3, 4]
        assert (pipe.get(), list(rest)) == (1, [4])
        assert (pipe.get(), list(rest)) == (2, [])
        assert (pipe.get(), pipe.get()) == (3, 4)

    def test_it_never_blocks(self) -> None:
        """Offering into a full pipe returns at once."""
        pipe: Pipe[int] = Pipe(1)
        begun = time.monotonic()
        for item in range(100):
            pipe.offer([item])
        assert time.monotonic() - begun < PROMPT
        assert [pipe.get() for _ in range(100)] == list(range(100))

    def test_waiting_for_room(self) -> None:
        """Whoever offered waits until the last of it has gone in, and is woken then."""
        pipe: Pipe[int] = Pipe(1)
        rest = pipe.offer([1, 2, 3])
        waiting = spawn(pipe.wait_for_room, rest)
        assert pipe.get() == 1
        assert not waiting.done()
        assert pipe.get() == 2
        assert waiting.result(5) is None
        assert pipe.get() == 3

    def test_no_room_in_time(self) -> None:
        """What has no room in time is taken back, and the next offer moves up."""
        pipe: Pipe[int] = Pipe(1)
        rest = pipe.offer([1, 2, 3])
        pipe.offer([4])
        with pytest.raises(queue.Full):
            pipe.wait_for_room(rest, 0.01)
        assert drained(pipe) == [1, 4]

    def test_on_a_closed_pipe(self) -> None:
        """Nothing can be offered to a pipe that is closed or has ended."""
        closed: Pipe[int] = Pipe()
        closed.close()
        ended: Pipe[int] = Pipe()
        ended.end([1])
        for pipe in (closed, ended):
            with pytest.raises(ChannelClosedError):
                pipe.offer([2])
        assert drained(ended) == [1]

    def test_closing_refuses_what_waits(self) -> None:
        """What is offered and has no room is refused by a close, and whoever waits is told."""
        pipe: Pipe[int] = Pipe(1)
        rest = pipe.offer([1, 2])
        waiting = spawn(pipe.wait_for_room, rest)
        pipe.close()
        assert isinstance(waiting.exception(PROMPT), ChannelClosedError)
        assert drained(pipe) == [1]


class TestPutBack:
    def test_it_is_the_next(self) -> None:
        """What was put back is taken before all others, and counts once."""
        pipe: Pipe[int] = Pipe()
        pipe.offer([1, 2])
        pipe.put_back(pipe.get())
        assert (pipe.statistics().put, pipe.statistics().taken, pipe.statistics().depth) == (2, 0, 2)
        assert pipe.get_many() == [1, 2]

    def test_it_wakes(self) -> None:
        """Who waits for an item gets it."""
        pipe: Pipe[int] = Pipe()
        pipe.offer([1])
        item = pipe.get()
        getting = spawn(pipe.get)
        assert within(5, lambda: pipe.statistics().waiting_getters == 1)
        pipe.put_back(item)
        assert getting.result(5) == 1


class TestEnd:
    def test_after_all_that_is_offered(self) -> None:
        """The last items go in after all that waits for room, as items are taken, and whatever comes in between."""
        pipe: Pipe[int] = Pipe(1)
        told: list[bool] = []
        pipe.offer([1, 2, 3], lambda: told.append(True))
        pipe.end([4, 5])
        assert told == [True]
        assert pipe.statistics().depth == 1
        assert (pipe.final, pipe.ended, pipe.closed) == (5, True, False)
        pipe.close()
        assert drained(pipe) == [1, 2, 3, 4, 5]

    def test_abandon_keeps_them_out(self) -> None:
        """Nothing is left of what waits for room once nobody will take it."""
        pipe: Pipe[int] = Pipe(1)
        told: list[bool] = []
        rest = pipe.offer([1, 2, 3], lambda: told.append(True))
        pipe.end([4])
        pipe.abandon()
        assert (rest.refused, told, drained(pipe)) == (True, [True], [])
        assert pipe.statistics().waiting_putters == 0

    def test_it_wakes_both_sides(self) -> None:
        """A producer that waits for room and a consumer that waits for an item both go on."""
        pipe: Pipe[int] = Pipe(1)
        producing = spawn(pipe.put_many, [1, 2])
        assert within(5, lambda: pipe.statistics().waiting_putters == 1)
        pipe.end([3])
        assert producing.result(PROMPT) is None
        other: Pipe[int] = Pipe(1)
        consuming = spawn(other.get)
        assert within(5, lambda: other.statistics().waiting_getters == 1)
        other.end([1])
        assert consuming.result(PROMPT) == 1

    def test_only_the_first_counts(self) -> None:
        """Of several ends the first is the end, and after a close there is none."""
        pipe: Pipe[int] = Pipe()
        pipe.end([1])
        pipe.end([2])
        assert (drained(pipe), pipe.final) == ([1], 1)
        closed: Pipe[int] = Pipe()
        closed.close()
        closed.end([1])
        assert (drained(closed), closed.final) == ([], None)

    def test_close_comes_after(self) -> None:
        """A pipe that has ended is open until it is closed: whoever takes the last item waits for that."""
        pipe: Pipe[int] = Pipe()
        pipe.end([1])
        assert pipe.get() == 1
        with pytest.raises(queue.Empty):
            pipe.get(0)
        waiting = spawn(pipe.get)
        assert within(5, lambda: pipe.statistics().waiting_getters == 1)
        pipe.close()
        assert isinstance(waiting.exception(PROMPT), ChannelClosedError)

    def test_waiting_for_the_close(self) -> None:
        """One may wait for the close, and is told whether it came."""
        pipe: Pipe[int] = Pipe()
        assert pipe.wait_closed(0.01) is False
        waiting = spawn(pipe.wait_closed, 5)
        pipe.close()
        assert waiting.result(PROMPT) is True


class TestAbandon:
    def test_it_drops_all(self) -> None:
        """An abandoned pipe is closed and empty, and so are the offers that waited."""
        pipe: Pipe[int] = Pipe(1)
        rest = pipe.offer([1, 2])
        waiting = spawn(pipe.wait_for_room, rest)
        pipe.abandon()
        assert isinstance(waiting.exception(PROMPT), ChannelClosedError)
        with pytest.raises(ChannelClosedError):
            pipe.get()

    def test_after_a_close(self) -> None:
        """Abandoning a pipe that is closed drops what is in it, and the error that it was closed with."""
        pipe: Pipe[int] = Pipe()
        pipe.offer([1])
        pipe.close(StreamError("it broke"))
        pipe.abandon()
        with pytest.raises(ChannelClosedError):
            pipe.get()
        told = pipe.statistics()
        assert (told.put, told.taken, told.depth) == (1, 0, 0)

    def test_the_final_item_stays_known(self) -> None:
        """Which item ended the pipe is known after it was dropped."""
        pipe: Pipe[int] = Pipe()
        pipe.end([1, 2])
        pipe.abandon()
        assert pipe.final == 2


class TestWaiters:
    """The hook for whoever waits on something else than this pipe alone."""

    def test_it_is_called(self) -> None:
        """A waiter is called whenever the pipe may have become readable, in the thread that made it so."""
        pipe: Pipe[int] = Pipe(3)
        called: list[tuple[bool, int]] = []
        pipe.add_waiter(lambda: called.append((pipe.readable(), threading.get_ident())))
        here = threading.get_ident()
        assert not pipe.readable()
        pipe.offer([1])
        pipe.get()
        pipe.end([2])
        pipe.get()
        pipe.close()
        assert called == [(True, here)] * 3

    def test_abandon(self) -> None:
        """An abandoned pipe is readable: it has an answer at once."""
        pipe: Pipe[int] = Pipe()
        called: list[bool] = []
        pipe.add_waiter(lambda: called.append(pipe.readable()))
        pipe.abandon()
        assert called == [True]

    def test_taken_away(self) -> None:
        """A waiter that was taken away is not called any more; taking it away again does nothing."""
        pipe: Pipe[int] = Pipe()
        called: list[int] = []
        forget = pipe.add_waiter(lambda: called.append(1))
        keep = pipe.add_waiter(lambda: called.append(2))
        forget()
        forget()
        pipe.offer([1])
        keep()
        assert called == [2]

    def test_the_same_twice(self) -> None:
        """Each registration stands for itself, that of the same function too."""
        pipe: Pipe[int] = Pipe()
        called: list[int] = []

        def waiter() -> None:
            called.append(1)

        first, _ = pipe.add_waiter(waiter), pipe.add_waiter(waiter)
        pipe.offer([1])
        first()
        pipe.offer([2])
        assert called == [1, 1, 1]

    def test_without_a_lock(self) -> None:
        """A waiter may hand over to a thread that uses the pipe, and may use it itself: no lock is held."""
        pipe: Pipe[int] = Pipe()
        taken: list[int] = []
        pipe.add_waiter(lambda: taken.extend(spawn(drained, pipe).result(5)))
        pipe.offer([1, 2])
        assert taken == [1, 2]

    def test_nothing_is_missed(self) -> None:
        """Whoever adds a waiter first and looks then sees every item, however the threads meet."""
        pipe: Pipe[int] = Pipe(2)
        producing = spawn(lambda: [pipe.put_many([item]) for item in range(500)])
        taken: list[int] = []
        while len(taken) < 500:
            woken = threading.Event()
            forget = pipe.add_waiter(woken.set)
            if not pipe.readable():
                assert woken.wait(5)
            forget()
            taken += drained(pipe)
        assert taken == list(range(500))
        producing.result(5)


class TestTwoEnds:
    def test_the_consumers_end_goes(self) -> None:
        """The pipe does not refer to its channel: dropping that is noticed while a producer waits for room."""
        pipe: Pipe[int] = Pipe(1)

        class Owner(Channel[int]):
            def __del__(self) -> None:
                pipe.abandon()

        channel = Owner(pipe=pipe)
        producing = spawn(pipe.put_many, [1, 2])
        assert within(5, lambda: pipe.statistics().waiting_putters == 1)
        del channel
        assert isinstance(producing.exception(PROMPT), ChannelClosedError)

    def test_both_see_the_same(self) -> None:
        """What goes into the pipe comes out of its channel, with the pipe's capacity."""
        pipe: Pipe[int] = Pipe(3)
        channel: Channel[int] = Channel(pipe=pipe)
        pipe.end([1, 2])
        pipe.close()
        assert (channel.maxsize, list(channel), channel.closed) == (3, [1, 2], True)


def full() -> Pipe[int]:
    """Return a pipe that is full, and has an offer waiting."""
    pipe: Pipe[int] = Pipe(2)
    pipe.offer([1, 2])
    pipe.offer([3, 4])
    return pipe


def empty() -> Pipe[int]:
    """Return an empty pipe."""
    return Pipe(2)


STEPS: dict[str, Callable[[Pipe[int]], object]] = {
    "put": lambda pipe: pipe.put_many([7], 0),
    "put several": lambda pipe: pipe.put_many([7, 8, 9], 0),
    "offer": lambda pipe: pipe.offer([7, 8, 9]),
    "get": lambda pipe: [pipe.get(0)],
    "get many": lambda pipe: pipe.get_many(timeout=0),
    "get a few": lambda pipe: pipe.get_many(1, timeout=0),
    "end": lambda pipe: pipe.end([50]),
    "close": Pipe.close,
    "abandon": Pipe.abandon,
    "statistics": Pipe.statistics,
}
INTRUDERS: dict[str, Callable[[Pipe[int]], None]] = {
    "close": Pipe.close,
    "end": lambda pipe: pipe.end([99]),
    "abandon": Pipe.abandon,
}


@pytest.mark.parametrize("intruder", INTRUDERS.keys())
@pytest.mark.parametrize("step", STEPS.keys())
@pytest.mark.parametrize("make", [empty, full])
def test_an_intruder(make: Callable[[], Pipe[int]], step: str, intruder: str) -> None:
    """A signal handler or finalizer that ends the pipe in the middle of a step neither breaks it nor loses anything.

    The step does its work or says that the pipe is closed (or has no room, or nothing to take); what comes out is in
    order, without gaps and nothing twice; what ended the pipe is its last item.
    """
    for intrusion in intrusions():
        pipe = make()
        taken: Any = []
        with (
            intrusion(lambda pipe=pipe: INTRUDERS[intruder](pipe)),  # type: ignore[misc]
            contextlib.suppress(ChannelClosedError, queue.Empty, queue.Full),
        ):
            taken = STEPS[step](pipe)
        rest = drained(pipe)
        seen = (taken if "get" in step else []) + rest
        assert seen == sorted(set(seen))
        assert [item for item in seen if item < 5] == [1, 2, 3, 4][: sum(item < 5 for item in seen)]
        told = pipe.statistics()
        assert (told.depth, told.waiting_putters, told.waiting_getters) == (0, 0, 0)
        assert told.taken == len(seen)
        if intruder == "end":
            if pipe.final is not None and "abandon" not in step:
                assert seen[-1:] == [pipe.final]
            assert pipe.ended
        else:
            assert pipe.closed
        if intruder == "abandon":
            assert rest == []
        if make is full and {intruder, step} <= {"end", "get", "get many", "get a few", "statistics"}:
            assert seen[:4] == [1, 2, 3, 4]
        with pytest.raises(ChannelClosedError):
            pipe.put_many([1], 0)


@pytest.mark.slow
@pytest.mark.parametrize("act", [Pipe.abandon, Pipe.close])
def test_a_finalizer_that_the_collector_runs(act: Callable[[Pipe[int]], None]) -> None:
    """A finalizer that closes the pipe, run by the garbage collector in the middle of a put or get, breaks nothing."""

    class Garbage:
        def __init__(self, pipe: Pipe[int]) -> None:
            self.pipe, self.cycle = pipe, self

        def __del__(self) -> None:
            act(self.pipe)

    before = gc.get_threshold()
    try:
        for moment in range(1, 60):
            pipe: Pipe[int] = Pipe(2)
            gc.collect(0)
            Garbage(pipe)
            gc.set_threshold(moment)
            try:
                for item in range(40):
                    pipe.offer([item, item])
                    pipe.get(0)
            except (ChannelClosedError, queue.Empty):
                pass
            finally:
                gc.set_threshold(*before)
            assert pipe.closed or gc.collect()
            assert pipe.closed
            assert pipe.statistics().waiting_putters == 0
    finally:
        gc.set_threshold(*before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
def test_ctrl_c_while_waiting_for_room() -> None:
    """Ctrl-C in the middle of a put takes back what had no room, and leaves the rest and those behind it in order."""
    pipe: Pipe[int] = Pipe(2)
    main = threading.get_ident()

    def press() -> list[int]:
        assert within(5, lambda: pipe.statistics().waiting_putters == 1)
        behind = pipe.offer([9])
        signal.pthread_kill(main, signal.SIGINT)
        assert within(5, lambda: pipe.statistics().waiting_putters == 1)
        pipe.get()
        return list(behind)

    pressing = spawn(press)
    with pytest.raises(KeyboardInterrupt):
        pipe.put_many([1, 2, 3, 4])
    assert pressing.result(5) == []
    assert drained(pipe) == [2, 9]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_signal_that_does_not_wake_the_main_thread(timeout: float | None) -> None:
    """Ctrl-C is noticed although the signal does not end the sleep; here because another thread receives it.

    The same happens, now and then, where it comes between the last step of Python's code and the sleep.
    """
    pipe: Pipe[int] = Pipe()

    def press() -> None:
        assert within(5, lambda: pipe.statistics().waiting_getters == 1)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    pressing = spawn(press)
    with pytest.raises(KeyboardInterrupt):
        pipe.get(timeout)
    pressing.result(5)
    assert pipe.statistics().waiting_getters == 0


def test_a_long_wait_in_the_main_thread() -> None:
    """Looking for signals ends no wait: neither before its time, nor before an item comes."""
    pipe: Pipe[int] = Pipe()
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        pipe.get(0.25)
    assert time.monotonic() - began >= 0.25
    putting = threading.Timer(0.25, pipe.put_many, [[1]])
    putting.start()
    assert pipe.get() == 1
    putting.join()

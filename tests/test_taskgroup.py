"""Groups of tasks: bounded, ended by the first error, and waited for whole."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from chanstream import (
    APITimeoutError,
    Context,
    InternalServerError,
    StreamCancelledError,
    TaskGroup,
)
from chanstream.testing import Reply
from tests.concurrency import spawn
from tests.conftest import REQUEST, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")


class Fault(Exception):  # noqa: N818 - it is nobody's error
    """What tasks fail with here."""


def fail(error: BaseException) -> None:
    """Raise an error."""
    raise error


def until_done(context: Context, *, error: Exception | None = None) -> None:
    """Work until the context is done, and then end, perhaps with an error."""
    assert context.wait(10)
    if error is not None:
        raise error


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that tasks wait for; it is set at the end of the test, so that none hangs."""
    event = threading.Event()
    yield event
    event.set()


class TestWork:
    def test_results(self) -> None:
        """The block waits for all tasks, and what each returned is in its future."""
        with TaskGroup() as group:
            futures = [group.go(pow, number, 2) for number in range(100)]
        assert all(isinstance(future, Future) and future.done() for future in futures)
        assert [future.result() for future in futures] == [number**2 for number in range(100)]

    def test_arguments(self) -> None:
        """A task gets the arguments as they are given."""
        with TaskGroup() as group:
            future = group.go(dict, [("a", 1)], b=2)
        assert future.result() == {"a": 1, "b": 2}

    def test_nothing(self) -> None:
        """A group without a task ends at once, and its context with it."""
        with TaskGroup() as group:
            assert not group.context.done()
        assert group.context.done()

    @pytest.mark.parametrize("limit", [1, 3])
    def test_bounded(self, gate: threading.Event, limit: int) -> None:
        """No more than so many work at a time: who brings one more waits until one has ended."""
        working: list[int] = []

        def work(number: int) -> None:
            working.append(number)
            assert gate.wait(10)

        with TaskGroup(limit) as group:
            for number in range(limit):
                group.go(work, number)
            assert within(5, lambda: len(working) == limit)
            going = spawn(group.go, work, limit)
            assert within(5, lambda: group._places.statistics().waiting_putters == 1)
            assert len(working) == limit
            gate.set()
            going.result(5).result(5)
        assert sorted(working) == list(range(limit + 1))

    def test_many(self) -> None:
        """Thousands of tasks work off a limit of a few, never more at a time."""
        now, most, lock = 0, 0, threading.Lock()

        def work() -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            with lock:
                now -= 1

        with TaskGroup(limit=4) as group:
            for _ in range(2_000):
                group.go(work)
        assert now == 0
        assert 1 <= most <= 4

    def test_no_limit(self, gate: threading.Event) -> None:
        """Without a limit nobody waits for a place."""
        with TaskGroup(limit=None) as group:
            for _ in range(50):
                group.go(gate.wait, 10)
            assert len(group._working) == 50
            gate.set()

    def test_try_go(self, gate: threading.Event) -> None:
        """try_go starts a task if a place is free, and else says that there was none."""
        with TaskGroup(limit=1) as group:
            first = group.try_go(gate.wait, 10)
            assert first is not None
            assert group.try_go(gate.wait, 10) is None
            gate.set()
            assert first.result(5)
            assert within(5, lambda: group.try_go(gate.wait, 10) is not None)

    def test_tasks_of_tasks(self) -> None:
        """Tasks may start tasks, which are waited for too."""
        ended: list[int] = []

        def work(group: TaskGroup, depth: int) -> None:
            if depth:
                for _ in range(2):
                    group.go(work, group, depth - 1)
            ended.append(depth)

        with TaskGroup(limit=None) as group:
            group.go(work, group, 5)
        assert len(ended) == 2**6 - 1

    def test_wait(self) -> None:
        """Without a block, wait does what its end does; a group that has ended takes nothing more."""
        group = TaskGroup()
        future = group.go(pow, 2, 3)
        group.wait()
        assert future.result(0) == 8
        assert group.context.done()
        for go in (group.go, group.try_go):
            with pytest.raises(RuntimeError, match="the group has ended"):
                go(pow, 2, 3)
        group.wait()

    def test_calls(self, plain: Link) -> None:
        """The group does what it is for: whole answers, some at a time."""
        client = plain.client(plain.serve("yes"))
        with TaskGroup(limit=4) as group:
            answers = [group.go(client.chat_completion, REQUEST, context=group.context) for _ in range(20)]
        assert [answer.result().text for answer in answers] == ["yes"] * 20


class TestErrors:
    def test_the_first(self) -> None:
        """The first error cancels the others' context and is raised once all have ended; theirs are with it."""
        first, late = Fault("first"), Fault("late")
        with pytest.raises(Fault) as caught, TaskGroup() as group:  # noqa: PT012 - the block is the matter
            group.go(until_done, group.context, error=late)
            group.go(until_done, group.context)
            group.go(fail, first)
        assert caught.value is first
        assert first.others == (late,)  # type: ignore[attr-defined]
        assert isinstance(group.context.error, StreamCancelledError)

    def test_in_the_future(self) -> None:
        """Each task's error is in its future too."""
        error = Fault()
        with pytest.raises(Fault), TaskGroup() as group:
            future = group.go(fail, error)
        assert future.exception(0) is error

    def test_those_that_were_cancelled(self) -> None:
        """That the others were cancelled is no error of theirs."""

        def work(context: Context) -> None:
            until_done(context)
            context.raise_if_done()

        with pytest.raises(Fault) as caught, TaskGroup() as group:  # noqa: PT012 - the block is the matter
            for _ in range(3):
                group.go(work, group.context)
            group.go(fail, Fault())
        assert not hasattr(caught.value, "others")

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
    def test_of_any_kind(self, error: BaseException) -> None:
        """Whatever ends a task ends the group."""
        with pytest.raises(type(error)) as caught, TaskGroup() as group:
            group.go(fail, error)
        assert caught.value is error

    def test_go_after_an_error(self) -> None:
        """After an error nothing more is started: the loop that brings tasks ends, and the block raises the error."""
        started: list[int] = []

        def work(number: int) -> None:
            started.append(number)
            if number == 3:
                raise Fault

        with pytest.raises(Fault), TaskGroup(limit=2) as group:  # noqa: PT012 - the block is the matter
            for number in range(10**9):
                group.go(work, number)
        assert 3 in started

    def test_one_that_waits_for_a_place(self, gate: threading.Event) -> None:
        """An error frees who waits for a place, too, though no place becomes free."""
        errors: list[BaseException] = []

        def bring(group: TaskGroup) -> None:
            try:
                group.go(until_done, group.context)
            except StreamCancelledError as error:
                errors.append(error)

        with pytest.raises(Fault), TaskGroup(limit=2) as group:  # noqa: PT012 - the block is the matter
            group.go(gate.wait, 10)
            group.go(lambda: (gate.wait(0.05), fail(Fault())))
            bring(group)
            assert errors == [group.context.error]
            assert group.context.done()
            gate.set()

    def test_in_the_block(self) -> None:
        """An exception in the block cancels the tasks, and is the one that is raised, with theirs beside it."""
        error, late = Fault("block"), Fault("late")
        with pytest.raises(Fault) as caught, TaskGroup() as group:  # noqa: PT012 - the block is the matter
            group.go(until_done, group.context, error=late)
            raise error
        assert caught.value is error
        assert error.others == (late,)  # type: ignore[attr-defined]

    def test_of_wait(self) -> None:
        """What wait has raised is not raised once more by the end of the block."""
        with TaskGroup() as group:
            group.go(fail, Fault())
            with pytest.raises(Fault):
                group.wait()

    def test_streams_of_siblings(self, plain: Link) -> None:
        """Streams that were opened with the group's context are cancelled by an error, and their sockets are free."""
        server = plain.serve(Reply("one two", stall_after=1), Reply("one two", stall_after=1), Reply.error(500, "no"))
        client = plain.client(server)

        def work(context: Context) -> str:
            return client.chat_completion_stream(REQUEST, context=context).collect().text

        with pytest.raises(InternalServerError), TaskGroup() as group:  # noqa: PT012 - the block is the matter
            futures = [group.go(work, group.context) for _ in range(2)]
            assert server.wait_for(lambda server: len(server.requests) == 2)
            group.go(work, group.context)
        assert [type(future.exception(0)) for future in futures] == [StreamCancelledError] * 2
        assert server.wait_for(lambda server: server.open_connections <= 1)  # the refusal's lives on

    @pytest.mark.usefixtures("no_collector")
    def test_nothing_for_the_collector(self) -> None:
        """What a failed task held is gone with the error."""

        class Held:
            """Something that a task holds."""

        def work(held: Held) -> None:
            raise Fault

        held = Held()
        gone = weakref.ref(held)
        try:
            with TaskGroup() as group:
                group.go(work, held)
        except Fault:
            pass
        del held, group
        assert within(1, lambda: gone() is None)  # its thread goes on for a moment


class TestContexts:
    def test_a_parent(self, gate: threading.Event) -> None:
        """A cancel of the context that the group was given reaches the tasks, and who waits for a place."""
        parent = Context()

        def run() -> None:
            with TaskGroup(limit=1, context=parent) as group:
                group.go(until_done, group.context)
                group.go(until_done, group.context)

        running = spawn(run)
        assert not gate.wait(0.01)
        parent.cancel()
        assert running.exception(5) is parent.error

    def test_a_deadline(self) -> None:
        """A deadline ends it with its own error."""

        def work(context: Context) -> None:
            until_done(context)
            context.raise_if_done()

        with pytest.raises(APITimeoutError), TaskGroup(context=Context(timeout=0.05)) as group:
            group.go(work, group.context)

    def test_done_before(self) -> None:
        """With a context that is done nothing is started."""
        parent = Context()
        parent.cancel()
        with pytest.raises(StreamCancelledError), TaskGroup(context=parent) as group:
            group.go(pytest.fail, "it was started")

    def test_tasks_that_end_well(self) -> None:
        """Where the context is cancelled and all tasks end well nevertheless, that is no error, as in Go."""
        parent = Context()
        with TaskGroup(context=parent) as group:
            future = group.go(until_done, group.context)
            parent.cancel()
        assert future.result() is None

    def test_the_parent_lives_on(self) -> None:
        """A group neither cancels its parent nor leaves anything with it."""
        parent = Context()
        with pytest.raises(Fault), TaskGroup(context=parent) as group:
            group.go(fail, Fault())
        assert not parent.done()
        assert not parent._callbacks


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")
class TestCtrlC:
    def press_when(self, ready: Callable[[], object]) -> Future[None]:
        """Send this thread a SIGINT as soon as it is ready."""
        main = threading.get_ident()

        def press() -> None:
            assert within(5, ready)
            signal.pthread_kill(main, signal.SIGINT)

        return spawn(press)

    def press_when_waiting(self, besides: Callable[[], object] = lambda: True) -> Future[None]:
        """Send it one as soon as it waits for the tasks of a group, and something else holds."""
        main = threading.get_ident()

        def waits() -> bool:
            frames = traceback.walk_stack(sys._current_frames()[main])
            return any(frame.f_code.co_name == "_join" for frame, _ in frames)

        return self.press_when(lambda: besides() and waits())

    def test_while_waiting(self) -> None:
        """Ctrl-C while the block waits for its tasks cancels them, waits for their end, and is raised."""
        ended: list[int] = []

        def work(context: Context) -> None:
            until_done(context)
            ended.append(1)

        pressing = self.press_when_waiting()
        with pytest.raises(KeyboardInterrupt), TaskGroup() as group:
            futures = [group.go(work, group.context) for _ in range(3)]
        pressing.result(5)
        assert ended == [1, 1, 1]
        assert all(future.done() for future in futures)

    def test_while_waiting_for_a_place(self) -> None:
        """So it does while the block waits for a place."""
        group = TaskGroup(limit=1)
        pressing = self.press_when(lambda: group._places.statistics().waiting_putters == 1)
        with pytest.raises(KeyboardInterrupt), group:  # noqa: PT012 - the block is the matter
            for _ in range(2):
                group.go(until_done, group.context)
        pressing.result(5)
        assert not group._working

    def test_twice(self, gate: threading.Event) -> None:
        """A second Ctrl-C leaves tasks behind that do not look at the context."""
        group = TaskGroup()
        once = self.press_when_waiting()
        twice = self.press_when_waiting(group.context.done)
        with pytest.raises(KeyboardInterrupt), group:
            future = group.go(gate.wait, 10)
        once.result(5)
        twice.result(5)
        assert not future.done()
        gate.set()
        assert future.result(5)


class TestArguments:
    @pytest.mark.parametrize("limit", ["5", 1.5, True])
    def test_no_number(self, limit: Any) -> None:
        """A limit that is no whole number is named."""
        with pytest.raises(TypeError, match=r"^limit: expected a whole number or None, got "):
            TaskGroup(limit)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_nobody(self, limit: int) -> None:
        """With a limit below 1 nothing could ever be done: it is refused."""
        with pytest.raises(ValueError, match=r"^limit: expected 1 or more, got "):
            TaskGroup(limit)

    def test_no_context(self) -> None:
        """What is no context is named."""
        context: Any = 5
        with pytest.raises(TypeError, match=r"^context: expected a Context, got 5$"):
            TaskGroup(context=context)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started that is told, and the place is free again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with TaskGroup(limit=1) as group:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                group.go(pow, 2, 3)
        assert group.go(pow, 2, 3).result(5) == 8


def test_many_groups_in_threads() -> None:
    """Groups in several threads, of which some fail, end each by itself."""

    def run(number: int) -> int:
        with TaskGroup(limit=3) as group:
            futures = [group.go(partial(divmod, 10, number % 2)) for _ in range(20)]
        return sum(future.result()[0] for future in futures)

    running = [spawn(run, number) for number in range(20)]
    ends = [type(run.exception(10)) for run in running]
    assert ends == [ZeroDivisionError, type(None)] * 10
    gc.collect()


def test_it_says_what_it_does() -> None:
    """Its text says how many work."""
    with TaskGroup() as group:
        assert repr(group) == "<TaskGroup, 0 at work>"

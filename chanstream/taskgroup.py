"""Functions that work at the same time, each in a thread, and stand and fall together: Go's ``errgroup``.

A task's place is an item in a channel with room for ``limit`` of them. So to wait for a place is to wait for room, and
the channel is closed when the group's context is done, which ends that wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import ParamSpec, TypeVar

from .channel import LOOK_SECONDS, Channel
from .context import Context
from .errors import ChannelClosedError, StreamCancelledError, with_others

P = ParamSpec("P")
T = TypeVar("T")


class TaskGroup:
    """Functions at work in threads, of which the first that fails ends all.

    ::

        with TaskGroup(limit=16) as group:
            for request in requests:
                group.go(client.chat_completion, request, context=group.context)

    The end of the block waits for all of them. The first error cancels `context`, which ends at once whatever was
    started with it, and is raised at the end of the block; what other tasks failed with is in its ``others``. An
    exception in the block, Ctrl-C too, cancels the others likewise, and is the one that is raised.

    Without a block, call `wait`. Threads are daemons: a program that waits for nothing leaves them behind.

    Args:
        limit: How many work at the same time at most; None for no limit.
        context: Cancels the group.

    Attributes:
        context: What the tasks are to be given, a child of that. It is done when a task has failed, and when the group
            has ended.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.

    Thread safety: every method may be called from any thread, `go` from the tasks too. A task that waits in `go` keeps
    its own place meanwhile, so where tasks start tasks without end, use `try_go`.
    """

    def __init__(self, limit: int | None = 16, *, context: Context | None = None) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int | None):
            raise TypeError(f"limit: expected a whole number or None, got {limit!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected 1 or more, got {limit!r}; None is no limit")
        if not isinstance(context, Context | None):
            raise TypeError(f"context: expected a Context, got {context!r}")
        places: Channel[None] = Channel(limit or 0)
        self.context = Context() if context is None else context.with_cancel()
        self.context.on_done(lambda _: places.close())
        self._places = places
        # The end of each task that works. Not its thread: before Python 3.13, one whose join was interrupted by Ctrl-C
        # cannot be joined any more.
        self._working: set[threading.Event] = set()
        self._errors: list[BaseException] = []
        self._over = False

    def go(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in a thread of its own, waiting for a place if need be, and return the future of its result.

        Raises:
            ChanstreamError: The group's context is done; it is that of the context. In the group's own block let it
                pass: the block then ends with the error of the task that failed.
            RuntimeError: The group has ended.
        """
        self._enter(block=True)
        return self._start(partial(function, *args, **kwargs))

    def try_go(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T] | None:
        """Call a function as `go` does if a place is free at once; else do nothing and return None."""
        try:
            self._enter(block=False)
        except queue.Full:
            return None
        return self._start(partial(function, *args, **kwargs))

    def wait(self) -> None:
        """Wait for all tasks, end the group, and raise the first error if there is one.

        Ctrl-C while waiting cancels the group; it is raised when all tasks have ended.
        """
        self._wait()
        self._raise_first(None)

    def _enter(self, *, block: bool) -> None:
        """Take a place."""
        try:
            self._places.put(None, block)
        except ChannelClosedError:
            if not self._over and self.context.error is not None:
                raise self.context.error from None
            raise RuntimeError("the group has ended: make a new one") from None

    def _start(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(future, work, over), name="chanstream-task", daemon=True)
        try:
            thread.start()
        except Exception:  # there can be no more threads
            self._places.get_nowait()
            raise
        self._working.add(over)
        if over.is_set():  # it was faster
            self._working.discard(over)
        return future

    def _run(self, future: Future[T], work: Callable[[], T], over: threading.Event) -> None:
        try:
            self.context.raise_if_done()  # Ctrl-C came on the way here
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is told to who waits
            self._errors.append(error)  # first: it is why the context is done
            future.set_exception(error)
            self.context.cancel(StreamCancelledError("a task of the group failed"))
        finally:
            del future  # else its error's traceback would hold it, in a circle
            self._places.get_nowait()
            over.set()
            self._working.discard(over)

    def _wait(self) -> None:
        try:
            self._join()
        except BaseException:  # Ctrl-C
            self.context.cancel(StreamCancelledError("the wait for the group was interrupted"))
            self._join()
            raise
        finally:
            self._over = True
            self.context.cancel(StreamCancelledError("the group has ended"))

    def _join(self) -> None:
        while self._working:  # again: tasks may start tasks
            for over in list(self._working):
                while not over.wait(LOOK_SECONDS):  # in steps: Ctrl-C just before a wait does not end it
                    pass
                self._working.discard(over)

    def _raise_first(self, own: BaseException | None) -> None:
        """Raise the first error, unless it is ``own``, that of the block; either way the others are with it."""
        errors, self._errors = self._errors, []
        first = own
        if own is None or own is self.context.error:  # the latter: the block ends because a task failed
            first = errors[0] if errors else own
        try:
            if first is not None:
                with_others(first, [error for error in errors if error is not self.context.error])
                if first is not own:
                    raise first from None
        finally:
            del first, own, errors  # else the traceback would hold them, in a circle

    def __enter__(self) -> TaskGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.context.cancel(StreamCancelledError("the block of the group failed"))
        self._wait()
        self._raise_first(error)

    def __repr__(self) -> str:
        return f"<TaskGroup, {len(self._working)} at work>"

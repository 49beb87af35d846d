"""The consumer's end of a batch."""

from __future__ import annotations

import operator
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from ..arguments import at_least_1, typed
from ..channel import pipe_of
from ..context import Context, Timeout
from ..errors import ChannelClosedError, JournalError, StreamInterruptedError
from ..models.chat import ChatCompletionRequest
from ..transport.retry import Retry
from .pacing import Fixed, Pace
from .progress import Progress, Report
from .result import BatchProgress, BatchResult
from .run import Finished, Run
from .workers import Threads, Workers

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .journal import Journal

_AHEAD, _AHEAD_IN_ORDER = 2, 4
"""How many times its concurrency a batch takes requests before their results are taken: so many finished ones wait for
a slow consumer, or for one that comes before them."""

_OFTEN, _PAUSE = 0.02, 0.004
"""Seconds. Where results are fetched more often than that, each fetch lets a few of them gather so long: with thousands
in a few seconds, to be woken for each costs a twentieth of all the time, and keeps the workers from theirs."""


def _is_seconds(_: Any, __: Any, value: Any) -> None:
    if value is not None:
        Timeout.of(value)


def _is_flag(_: Any, field: Any, value: Any) -> None:
    typed(field.name, value, bool)


def _is_progress(_: Any, __: Any, value: Any) -> None:
    if not isinstance(value, bool) and (isinstance(value, type) or not callable(value)):
        raise TypeError(f"progress: expected True, False or a callable, got {value!r}")


def _is_path(_: Any, __: Any, value: Any) -> None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"journal: expected a path, got {value!r}")


def _is_context(_: Any, __: Any, value: Any) -> None:
    if value is not None:
        typed("context", value, Context)


@attrs.frozen(kw_only=True)
class Plan:
    """How a batch goes about its work; see `Client.batch`.

    Raises:
        TypeError, ValueError: A field is wrong; the text names it.
    """

    concurrency: int = attrs.field(default=16, validator=lambda _, field, value: at_least_1(field.name, value))
    ordered: bool = attrs.field(default=False, validator=_is_flag)
    progress: bool | Callable[[BatchProgress], object] = attrs.field(default=False, validator=_is_progress)
    journal: str | os.PathLike[str] | None = attrs.field(default=None, validator=_is_path)
    retry_failed: bool = attrs.field(default=False, validator=_is_flag)
    adaptive: bool = attrs.field(default=False, validator=_is_flag)
    stop_on_error: bool = attrs.field(default=False, validator=_is_flag)
    executor: Executor | Callable[[], Executor] | None = None
    timeout: Timeout | float | None = attrs.field(default=None, validator=_is_seconds)
    context: Context | None = attrs.field(default=None, validator=_is_context)


class Batch:
    """The results of a batch, as they come; made by `Client.batch`.

    An iterator and a context manager. A result comes once. After the last, iteration ends; if the batch was ended by
    something else it raises that: the error of the iterable, of the journal, of the first failure with
    ``stop_on_error``, or of the context.

    Leaving the loop early closes the batch, as do `close`, the end of a ``with`` block, and dropping the last reference
    to it; ``next(batch)`` takes one result and leaves it open. What is on its way is cancelled then; results that are
    ready can still be taken.

    Thread safety: none for taking; one thread at a time does. `close` may be called from any.
    """

    def __init__(self, client: Any, requests: Iterable[Any], plan: Plan, retry: Retry) -> None:
        _check(requests)
        self._pid = os.getpid()
        self._requests: Iterable[Any] | None = requests
        self._ordered = plan.ordered
        # By index, so that a step which Ctrl-C broke off can be had again. A result is in one of them, or in two then:
        self._fetched: dict[int, Finished] = {}  # not safe in the journal yet
        self._held: dict[int, BatchResult] = {}  # safe, and there are others to come before
        self._ready: OrderedDict[int, BatchResult] = OrderedDict()  # next to be given
        self._next = 0
        self._fetching = threading.RLock()  # guards what was fetched; reentrant, as a signal handler may close
        self._is_waiting = False  # for what it will fetch, whoever takes results
        self._is_closed = False
        self._fetched_at = 0.0
        self._progress = Progress(_report(plan), _length(requests))
        self._journal = _journal(plan)
        try:
            self._run = _run(client, plan, retry, self._journal)
        except BaseException:
            self._close_journal()
            raise

    def close(self) -> None:
        """Cancel what is on its way; results that are ready can still be taken. Idempotent; never waits for a server.

        What the iterable is asked for at this moment is waited for by its own thread alone.
        """
        if self._pid != os.getpid() or sys.is_finalizing():
            return  # a fork's copy, or the process ends: locks may be held for ever by threads that are no more
        self._run.end()
        with self._fetching:
            self._is_closed = True
            try:
                self._fetched.update(_by_index(pipe_of(self._run.results).take()))
                self._sort()
            finally:
                self._close_journal()
                self._progress.close()

    def __next__(self) -> BatchResult:
        """Take the next result; leaves the batch open."""
        if self._pid != os.getpid():  # its threads are in the parent: to wait for them would be for ever
            raise StreamInterruptedError("the batch belongs to the process that began it, and this is a fork of it")
        self._start()
        while not self._ready:
            self._fetch()
        index, result = next(iter(self._ready.items()))
        self._progress.tell(result, self._run.running)  # first: it may raise, and then nothing is lost
        self._run.took()
        del self._ready[index]
        return result

    def __iter__(self) -> Iterator[BatchResult]:
        """Take results to the end of the batch; leaving early closes it."""
        try:
            while True:
                try:
                    result = next(self)
                except StopIteration:
                    return
                yield result
        finally:
            self.close()

    def _start(self) -> None:
        requests, self._requests = self._requests, None
        if requests is not None:
            self._progress.start()
            self._run.start(requests)

    def _fetch(self) -> None:
        """Wait for results, and make them safe.

        Raises:
            StopIteration: There are no more.
            Exception: What ended the batch, once all results have been taken.
        """
        self._let_gather()
        self._is_waiting = True
        try:
            fetched = self._run.results.get_many()
        except BaseException as error:
            self._is_waiting = False
            if not isinstance(error, ChannelClosedError):  # Ctrl-C
                self.close()
                raise
            self._finish()
            return
        try:
            with self._fetching:
                self._is_waiting = False
                self._fetched.update(_by_index(fetched))
                self._sort()
                if self._is_closed:
                    self._close_journal()
        except JournalError:  # what cannot be made safe is not given
            self.close()
            raise
        except BaseException:  # Ctrl-C
            self._fetched.update(_by_index(fetched))
            self.close()
            raise

    def _let_gather(self) -> None:
        if time.monotonic() - self._fetched_at < _OFTEN:
            time.sleep(_PAUSE)
        self._fetched_at = time.monotonic()

    def _finish(self) -> None:
        """Give what waits for others that will never come; raise what is to be raised when there is nothing."""
        with self._fetching:
            self._ready.update(sorted(self._held.items()))
            self._held.clear()
            if self._ready:  # some of it, perhaps, by `close` in another thread
                return
        self.close()
        error, self._run.error = self._run.error, None
        if error is not None:
            raise error
        raise StopIteration

    def _sort(self) -> None:
        """Write what was fetched to the journal, and then make it ready to be given."""
        new = [each.result for each in self._fetched.values() if not each.is_old]
        if self._journal is not None and new:
            self._write(self._journal, new)
        results = {index: each.result for index, each in self._fetched.items()}
        (self._held if self._ordered else self._ready).update(results)
        self._fetched = {}
        while self._next in self._held:
            self._ready[self._next] = self._held[self._next]
            del self._held[self._next]
            self._next += 1

    def _write(self, journal: Journal, results: list[BatchResult]) -> None:
        try:
            journal.append(results)
        except Exception:  # a full disk, say: what cannot be made safe is not given
            self._fetched = {}
            self._close_journal()
            self._run.end()
            pipe_of(self._run.results).abandon()
            raise
        self._run.wrote(len(results))

    def _close_journal(self) -> None:
        if self._is_waiting:  # and has results in hand perhaps, which are not written yet
            return
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_run"):  # else __init__ did not get far
            self.close()

    def __repr__(self) -> str:
        return f"<Batch {self._progress.done} done, {self._run.running} running>"


def _by_index(fetched: Iterable[Finished]) -> dict[int, Finished]:
    return {each.result.index: each for each in fetched}


def _check(requests: Any) -> None:
    is_one = isinstance(requests, (ChatCompletionRequest, str, bytes, Mapping))
    if is_one or not isinstance(requests, Iterable):
        raise TypeError(f"requests: expected an iterable of requests, got {type(requests).__name__}")


def _length(requests: Any) -> int | None:
    with suppress(TypeError):
        return len(requests)
    return operator.length_hint(requests, 0) or None


def _run(client: Any, plan: Plan, retry: Retry, journal: Journal | None) -> Run:
    context = Context() if plan.context is None else plan.context
    asker = client
    if plan.adaptive:  # what is refused for want of room gives its place back, and is sent again by the batch
        others: Any = retry.statuses - {429}
        asker = client.with_options(retry=attrs.evolve(retry, statuses=others))
    return Run(
        asker,
        timeout=plan.timeout,
        context=context.with_cancel(),
        workers=_workers(plan, asker),
        pace=_pace(plan),
        ahead=plan.concurrency * (_AHEAD_IN_ORDER if plan.ordered else _AHEAD),
        find=None if journal is None else journal.find,
        retry=retry if plan.adaptive else None,
        stop_on_error=plan.stop_on_error,
    )


def _workers(plan: Plan, asker: Any) -> Workers:
    if plan.executor is None:
        return Threads(plan.concurrency)
    from .executors import workers_of

    return workers_of(plan.executor, plan.concurrency, asker, stop_on_error=plan.stop_on_error)


def _pace(plan: Plan) -> Pace:
    if plan.adaptive:
        from .adaptive import Adaptive

        return Adaptive(plan.concurrency)
    return Fixed(plan.concurrency)


def _journal(plan: Plan) -> Journal | None:
    if plan.journal is None:
        return None
    from .journal import Journal

    return Journal(plan.journal, retry_failed=plan.retry_failed)


def _report(plan: Plan) -> Report | None:
    if plan.progress is True:
        from .progress import Bar

        return Bar()
    return plan.progress or None

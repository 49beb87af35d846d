"""What goes on behind a batch: requests are taken in, sent as the pace allows, and their results put out.

Three kinds of threads meet here. One, the *puller*, takes requests from their iterable; the workers tell what became of
them; the consumer takes results from a channel. A request in hand is in one place at a time: it waits to be sent
(``_ready``), to be sent again (``_refused``), or it is on its way; then its result is in the channel, once.

What bounds it: the pace bounds how many are on their way, and the puller waits while too many are between their
iterable and the consumer. Neither the pace nor the puller is waited for by those who have results.

Nothing here refers to the consumer's end, so that dropping that is noticed.

Locking: ``_lock`` guards all that is counted, and nobody is called while it is held. It is reentrant, because a
finalizer may close the batch in the middle of a step.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import attrs

from .. import timers
from ..channel import Channel
from ..context import Context, Timeout
from ..errors import ChannelClosedError, RateLimitError, StreamCancelledError
from ..models.chat import ChatCompletionRequest
from ..transport.retry import Retry
from .pacing import Pace
from .result import BatchResult
from .work import Job, Outcome
from .workers import Workers

Find = Callable[[int, str, ChatCompletionRequest], "BatchResult | None"]

_PATIENCE = 3
"""How many times as often as its client tries again a request may be refused by a server that refuses only what is too
much: there it is the other requests' fault too. Some are always too much, so it has to end."""

_log = logging.getLogger("chanstream")


@attrs.define(eq=False)
class _Task:
    """A request between its iterable and its result."""

    index: int
    id: str
    request: ChatCompletionRequest
    generation: int = 0
    started: float = 0.0
    attempts: int = 0
    refusals: int = 0


@attrs.frozen
class Finished:
    """A result, and whether it is of an earlier run: the journal has it then."""

    result: BatchResult
    is_old: bool = False


class Run:
    """A batch at work, as all but its consumer see it.

    Args:
        client: Who asks. timeout: The clocks of each request.
        context: The batch's own; cancelled with it.
        workers: Who does the work. pace: How many may be on their way.
        ahead: How many requests may be between their iterable and the consumer.
        find: What an earlier run says of a request.
        retry: When a request that was refused for want of room is sent again; None where that is the client's business.
        stop_on_error: Whether the first failure ends it.

    Attributes:
        results: Where results come out; closed after the last.
        error: What ended the batch early, to be raised after that.
        running: How many requests are on their way.
    """

    def __init__(
        self,
        client: Any,
        *,
        timeout: Timeout | float | None,
        context: Context,
        workers: Workers,
        pace: Pace,
        ahead: int,
        find: Find | None,
        retry: Retry | None,
        stop_on_error: bool,
    ) -> None:
        self.results: Channel[Finished] = Channel()
        self.error: BaseException | None = None
        self.running = 0
        self._client = client
        self._timeout = timeout
        self._context = context
        self._workers = workers
        self._pace = pace
        self._ahead = ahead
        self._wanted = ahead - max(
            1, ahead // 4
        )  # when the puller goes on: to wake it for each costs more than it does
        self._find = find
        self._retry = retry
        self._stop_on_error = stop_on_error
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._ready: deque[_Task] = deque()
        self._refused: list[tuple[float, int, _Task]] = []  # a heap: when to be sent again, which, what
        self._in_hand = 0  # pulled, and no result yet
        self._untaken = 0  # pulled, and no result taken yet
        self._unsafe = 0  # finished, and not in the journal yet
        self._exhausted = False
        self._trouble: BaseException | None = None
        self._over = False
        self._alarm: timers.Timer | None = None

    def start(self, requests: Iterable[Any]) -> None:
        """Begin."""
        self._context.on_done(self.end)
        try:
            threading.Thread(target=self._pull, args=(requests,), name="chanstream-batch", daemon=True).start()
        except BaseException:  # no more threads, or Ctrl-C
            self.end()
            raise

    def took(self) -> None:
        """Note that the consumer has taken a result."""
        with self._lock:
            self._untaken -= 1
            if self._untaken <= self._wanted:
                self._room.notify()

    def wrote(self, count: int) -> None:
        """Note that so many results are safe in the journal.

        Until then each keeps its place among those on their way: what a kill can lose is never more than those.
        """
        with self._lock:
            self._unsafe -= count
        self._send()

    def end(self, error: BaseException | None = None) -> None:
        """End it now: nothing more is sent, what is on its way is cancelled, results that are there can be taken.

        Args:
            error: What the consumer gets after them; by default they are all there is.
        """
        with self._lock:
            if not self._over:
                self._over = True
                self.error = error
            self._ready.clear()
            self._refused.clear()
            alarm, self._alarm = self._alarm, None
            self._room.notify()
        # Again each time, as Ctrl-C may have come between.
        self.results.close()
        self._context.cancel(StreamCancelledError("the batch was closed"))
        self._workers.close()
        if alarm is not None:
            alarm.stop()

    # -- in: the puller's thread ------------------------------------------------------------------------------------

    def _pull(self, requests: Iterable[Any]) -> None:
        """Take all requests in; the body of the puller's thread."""
        try:
            ids = _Ids()
            items = iter(requests)
            index = 0
            while self._wait_for_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._take_in(_Task(index, *ids.of(index, item)))
                index += 1
                del item
        except BaseException as error:  # noqa: BLE001 - the iterable's own, most often; it is the consumer's to hear
            self._trouble = error
        with self._lock:
            self._exhausted = True
        self._end_if_done()

    def _wait_for_room(self) -> bool:
        """Wait until a request may be taken in; return False if none is wanted any more."""
        with self._lock:
            if self._untaken >= self._ahead:
                while not self._over and self._untaken > self._wanted:
                    self._room.wait()
            return not self._over

    def _take_in(self, task: _Task) -> None:
        known = None if self._find is None else self._find(task.index, task.id, task.request)
        with self._lock:
            self._untaken += 1
            if known is None:
                self._in_hand += 1
                self._ready.append(task)
        if known is not None:
            self._put_out(Finished(known, is_old=True))
        else:
            self._send()

    # -- through ----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send all that may be sent now; any thread does, whenever that may be more than before."""
        while (task := self._next()) is not None:
            job = Job(
                index=task.index,
                id=task.id,
                request=task.request,
                client=self._client,
                timeout=self._timeout,
                context=self._context,
                adaptive=self._retry is not None,
            )
            try:
                self._workers.submit(job, partial(self._done, task))
            except BaseException as error:  # noqa: BLE001 - of an executor that takes no more, say
                self.end(error)

    def _next(self) -> _Task | None:
        """Return the next task to be sent now, which then counts as on its way; None if there is none."""
        with self._lock:
            if self._over or not (self._ready or self._refused):
                return None
            now = time.monotonic()
            wait = self._pace.wait(self.running + self._unsafe, now)
            if wait <= 0 and not self._ready:
                wait = max(0.0, self._refused[0][0] - now)
            if wait > 0:
                self._call_later(wait, now)
                return None
            is_due = self._refused and self._refused[0][0] <= now
            task = heapq.heappop(self._refused)[2] if is_due else self._ready.popleft()
            self.running += 1
            task.started = task.started or now
            task.generation = self._pace.sent(self.running)
            return task

    def _call_later(self, wait: float, now: float) -> None:
        """See to it that `_send` is called after so many seconds; with the lock held."""
        if self._alarm is None and wait < math.inf:
            self._alarm = timers.call_at(now + wait, self._on_alarm)

    def _on_alarm(self) -> None:
        with self._lock:
            self._alarm = None
        self._send()

    def _done(self, task: _Task, outcome: Outcome | BaseException) -> None:
        """Take in what became of a request, or why nobody does the work any more; called by a worker."""
        if isinstance(outcome, BaseException):
            self.end(outcome)
            return
        result = self._settled(task, outcome)
        if result is not None:
            self._put_out(Finished(result))
            if self._stop_on_error and result.error is not None:
                self.end(result.error)
            with self._lock:
                self._in_hand -= 1  # only now: whoever finds nothing in hand ends the batch, and without an error
        self._send()
        self._end_if_done()

    def _settled(self, task: _Task, outcome: Outcome) -> BatchResult | None:
        """Return a request's result; None where it is to be sent again, or nobody wants it any more."""
        with self._lock:
            self.running -= 1
            # What the batch's end brings about is nobody's result.
            if self._over or (outcome.error is not None and self._context.done()):
                return None
            now = time.monotonic()
            task.attempts += outcome.attempts
            told = self._pace.refused if isinstance(outcome.error, RateLimitError) else self._pace.answered
            pause = 0.0 if self._retry is None else min(outcome.pause, self._retry.max_retry_after)
            told(task.generation, self.running, pause, now)
            if self._is_sent_again(task, outcome.error, now):
                return None
            self._unsafe += self._find is not None
        return BatchResult(
            index=task.index,
            id=task.id,
            request=task.request,
            response=outcome.response,
            error=outcome.error,
            attempts=task.attempts,
            time_to_first_chunk=_later(outcome.time_to_first_chunk, task, outcome, now),
            latency=outcome.latency if not task.refusals else now - task.started,
        )

    def _is_sent_again(self, task: _Task, error: Exception | None, now: float) -> bool:
        """Return whether a request was refused for want of room, and is to be sent again; with the lock held."""
        if self._retry is None or not isinstance(error, RateLimitError):
            return False
        if task.refusals >= _PATIENCE * self._retry.max_retries or error.status_code not in self._retry.statuses:
            return False
        pause = self._retry.delay(error, task.refusals)
        task.refusals += 1
        heapq.heappush(self._refused, (now + pause, task.index, task))
        return True

    # -- out --------------------------------------------------------------------------------------------------------

    def _put_out(self, finished: Finished) -> None:
        try:
            self.results.put(finished)
        except ChannelClosedError:
            _log.debug("a result came after the end of its batch")

    def _end_if_done(self) -> None:
        with self._lock:
            if not self._exhausted or self._in_hand:
                return
        self.end(self._trouble)


def _later(first: float | None, task: _Task, outcome: Outcome, now: float) -> float | None:
    """Return the time to the first chunk, refusals before it included."""
    if first is None or not task.refusals:
        return first
    return now - outcome.latency + first - task.started


class _Ids:
    """Looks at what the iterable gives."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._are_given: bool | None = None

    def of(self, index: int, item: Any) -> tuple[str, ChatCompletionRequest]:
        """Return an item's id and request.

        Raises:
            TypeError, ValueError: It is none, or its id has been there; the text names it.
        """
        name = f"requests[{index}]"
        is_pair = isinstance(item, tuple) and len(item) == 2
        given, request = item if is_pair else (str(index), item)
        if not isinstance(request, ChatCompletionRequest):  # what it is, is not shown: somebody's conversation
            kind = type(item).__name__
            raise TypeError(f"{name}: expected a ChatCompletionRequest, or a pair of an id and one, got {kind}")
        if is_pair is not self._are_given and self._are_given is not None:
            raise TypeError(f"{name}: expected all requests to come with an id, or none")
        self._are_given = is_pair
        if is_pair:
            self._look(name, given)
        return given, request

    def _look(self, name: str, given: Any) -> None:
        if not isinstance(given, str):
            raise TypeError(f"{name}: expected an id that is a text, got {given!r}")
        if not given:
            raise ValueError(f"{name}: the id is empty")
        if given in self._seen:
            raise ValueError(f"{name}: the id {given!r} has been there before")
        self._seen.add(given)

"""A batch's work done by an executor of `concurrent.futures`: in other threads, other processes, on other machines.

Requests go to the executor in tasks, and to other processes in parcels (see `elsewhere`). A worker process runs one
task for each of its threads, a pool's process one at all, which is not many for work that consists of waiting. So where
there are more requests than the executor has places, a task holds several, which the worker runs side by side.

One thread, the *dispatcher*, decides on all that: whoever else has something to say puts it into its mailbox. Executors
call back with locks held under which nothing may be submitted, and Dask does from the thread that would have to answer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import attrs

from ..errors import ChanstreamError, WorkerLostError
from .couriers import Courier, courier_for, is_killed
from .work import Job, Outcome
from .workers import Done, Workers

_MOMENT = 0.01
"""Seconds for which a task that is not full waits for further requests, while there is room for more tasks."""

_LIVES = 3
"""How many pools may break under a request. All that are on their way are lost with one, whoever did it: the next time
each has a task of its own, and with its last life a request runs when no other such does."""

_LIVES_FOR_DASK = 2
"""What it costs to be given up by Dask: there a task has had four workers die already."""

_BREAKS = 10
"""How many pools may break, one after the other, without one answer in between."""

_LOOK_SECONDS = 1.0
"""How often Dask is asked what workers it has: they come and go."""

_log = logging.getLogger("chanstream")

Make: TypeAlias = Callable[[], Executor]


def workers_of(executor: Any, concurrency: int, client: Any, *, stop_on_error: bool = False) -> Workers:
    """Return workers that leave the work to an executor.

    Args:
        executor: An executor, which stays the caller's; or a callable that returns one, which is called again where
            that breaks, and whose executors are shut down in the end.
        concurrency: How many requests are on their way at most.
        client: Who asks.
        stop_on_error: Whether the first failure ends the batch.

    Raises:
        TypeError: The executor is none, or the client has a part that cannot be sent to another process; named.
    """
    ready = executor if isinstance(executor, Executor) else _made(executor)
    make = None if ready is executor else executor
    try:
        courier = courier_for(ready, client, stop_on_error=stop_on_error)
    except BaseException:
        if make is not None:
            ready.shutdown(wait=False)
        raise
    return Executors(ready, make, courier, concurrency)


def _made(make: Any) -> Executor:
    """Return the executor that a callable makes."""
    if hasattr(make, "get_executor"):
        raise TypeError("executor: expected an executor, got a client of Dask: pass its get_executor()")
    if not callable(make):
        raise TypeError(f"executor: expected one of concurrent.futures, or a callable that makes one, got {make!r}")
    made = make()
    if not isinstance(made, Executor):
        raise TypeError(f"executor: expected a callable that makes an executor, and it made {made!r}")
    return made


@attrs.define(eq=False)
class _Item:
    """A job in the dispatcher's hands. Attributes: packed: As it goes to the executor. lives: See `_LIVES`."""

    job: Job
    done: Done
    packed: Any = None
    lives: int = _LIVES


@attrs.frozen(eq=False)
class _Flight:
    """What one task holds, and who was given it."""

    items: list[_Item]
    executor: Executor


class Executors:
    """Workers that leave the work to an executor; see `workers_of`.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, executor: Executor, make: Make | None, courier: Courier, concurrency: int) -> None:
        self._executor = executor
        self._make = make
        self._courier = courier
        self._concurrency = concurrency
        self._mail: SimpleQueue[_Item | Future[Any] | None] = SimpleQueue()  # reentrant, as a finalizer may close
        self._waiting: deque[_Item] = deque()
        self._last: deque[_Item] = deque()  # those with one life
        self._flying: dict[Future[Any], _Flight] = {}
        self._places = math.inf
        self._look_at = 0.0  # when the executor is asked again how many places it has
        self._breaks = 0
        self._tell: Done = _nobody  # the last one's who is to be told of something: for what concerns all
        threading.Thread(target=self._dispatch, name="chanstream-dispatcher", daemon=True).start()

    def submit(self, job: Job, done: Done) -> None:
        """Have a job done, and its outcome told; see `Workers`."""
        self._mail.put(_Item(job, done))

    def close(self) -> None:
        """Cancel all that is on its way, where it is too, if that can be reached; see `Workers`."""
        self._courier.close()
        self._mail.put(None)

    def _dispatch(self) -> None:
        try:
            while self._open():
                pass
        except BaseException as error:  # noqa: BLE001 - the consumer's to hear
            self._tell(error)
        finally:
            self._let_go()

    def _open(self) -> bool:
        """Open what the next mail is, and send what can be sent; return False if it was the last."""
        try:
            is_filling = self._waiting and len(self._flying) < self._room()[0]
            mail = self._mail.get(timeout=_MOMENT if is_filling else None)
        except Empty:
            self._send(is_quiet=True)
            return True
        if mail is None:
            return False
        if isinstance(mail, _Item):
            self._take_in(mail)
        else:
            self._landed(mail)
        # As long as a future of Dask's is held, so is its result; where that is lost, the work is done again.
        del mail
        self._send()
        return True

    # -- out --------------------------------------------------------------------------------------------------------

    def _take_in(self, item: _Item) -> None:
        self._tell = item.done
        try:
            item.packed = self._courier.packed(item.job)
        except Exception as why:  # noqa: BLE001 - one request's failure is its result
            error = TypeError(f"requests[{item.job.index}]: it cannot be sent to another process: {why}")
            item.done(Outcome(error=error))
        else:
            self._waiting.append(item)

    def _send(self, *, is_quiet: bool = False) -> None:
        """Submit what waits: full tasks, and where nothing more has come for a moment, all there is room for."""
        places, share = self._room()
        while self._waiting and len(self._flying) < places and (is_quiet or len(self._waiting) >= share):
            self._submit(self._next(share))
        if self._last and not any(flight.items[0].lives == 1 for flight in self._flying.values()):
            self._submit([self._last.popleft()])

    def _room(self) -> tuple[float, int]:
        """Return how many tasks the executor may have, and how many requests one holds."""
        now = time.monotonic()
        if now >= self._look_at:
            self._places = self._courier.places(self._executor)
            self._look_at = now + _LOOK_SECONDS
        share = math.ceil(self._concurrency / self._places)
        if share <= 1 or (self._waiting and self._waiting[0].job.adaptive):  # which has to hear of each at once
            return math.inf, 1
        return self._places, share

    def _next(self, share: int) -> list[_Item]:
        """Return what makes up the next task. One that may have been a worker's death is alone."""
        items = [self._waiting.popleft()]
        while len(items) < share and self._waiting and items[0].lives == self._waiting[0].lives == _LIVES:
            items.append(self._waiting.popleft())
        return items

    def _submit(self, items: list[_Item]) -> None:
        try:
            future = self._courier.submit(self._executor, [item.packed for item in items])
        except BrokenExecutor as error:
            self._again(items, error, 0)
            self._renew(error)
        except RuntimeError as error:
            raise ChanstreamError(f"executor: it takes no more work: {error}") from error
        else:
            self._flying[future] = _Flight(items, self._executor)
            future.add_done_callback(self._mail.put)

    # -- back -------------------------------------------------------------------------------------------------------

    def _landed(self, future: Future[Any]) -> None:
        flight = self._flying.pop(future)
        if future.cancelled():
            raise ChanstreamError("executor: it cancelled what it had been given")
        error = future.exception()
        if error is None:
            self._breaks = 0
            for item, outcome in zip(flight.items, self._courier.opened(future.result()), strict=True):
                if outcome is not None:  # else the batch is over, or this parcel has the failure that ends it
                    item.done(outcome)
        elif isinstance(error, BrokenExecutor):
            if flight.executor is self._executor:
                self._renew(error)
            self._again(flight.items, error, 1)
        elif is_killed(error):
            self._again(flight.items, error, _LIVES_FOR_DASK)
        else:
            raise ChanstreamError(f"executor: a task failed with {type(error).__name__}: {error}") from error

    def _again(self, items: list[_Item], error: BaseException, cost: int) -> None:
        """Have requests sent again that were lost, if they have lives left."""
        for item in reversed(items):
            item.lives -= cost
            if item.lives > 0:
                (self._last if item.lives == 1 else self._waiting).appendleft(item)
            else:
                lost = WorkerLostError(f"each worker that had this request ended before it gave a result: {error}")
                item.done(Outcome(error=lost))

    def _renew(self, error: BaseException) -> None:
        """Go on with a new executor, now that this one is broken."""
        self._breaks += 1
        if self._make is None:
            hint = "; pass a callable, such as ProcessPoolExecutor itself, and the batch goes on with a new one"
            raise WorkerLostError(f"executor: it cannot be used any more: {error}{hint}") from error
        if self._breaks > _BREAKS:
            raise WorkerLostError(f"executor: {self._breaks} broke, one after the other: {error}") from error
        _log.warning("an executor broke (%s): going on with a new one", error)
        self._executor.shutdown(wait=False)
        self._executor = _made(self._make)

    def _let_go(self) -> None:
        self._courier.close()
        for future in list(self._flying):
            future.cancel()
        if self._flying:
            self._courier.end(self._executor)
        if self._make is not None:
            self._executor.shutdown(wait=False)
        self._flying.clear()
        self._waiting.clear()
        self._last.clear()
        self._tell = _nobody


def _nobody(_: object) -> None:
    """Tell nobody."""

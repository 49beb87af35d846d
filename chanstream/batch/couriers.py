"""How a job comes to an executor, and its outcome back: as it is to threads, in a parcel to other processes.

What depends on the kind of executor is here: none has a public word for how many tasks it runs at once, and none a way
to end one that runs.
"""

from __future__ import annotations

import math
import pickle
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import attrs

from . import elsewhere
from .lifeline import Lifeline
from .work import Job, Outcome, work


class Courier(Protocol):
    """Brings jobs to an executor."""

    def packed(self, job: Job) -> Any:
        """Return a job as it goes to the executor.

        Raises:
            Exception: It cannot go there.
        """

    def places(self, executor: Executor) -> float:
        """Return how many tasks the executor runs at once, if a task may hold several jobs; else infinity."""

    def submit(self, executor: Executor, jobs: list[Any]) -> Future[Any]:
        """Submit a task."""

    def opened(self, result: Any) -> list[Outcome | None]:
        """Return the outcomes of a task's jobs, of which it told the result; None for what was cancelled there."""

    def close(self) -> None:
        """Have workers cancel what they are at. Never waits; idempotent."""

    def end(self, executor: Executor) -> None:
        """Have those cancel it too whom `close` does not reach. May wait for the network."""


def courier_for(executor: Executor, client: Any, *, stop_on_error: bool) -> Courier:
    """Return the courier for an executor.

    Raises:
        TypeError: The client has a part that cannot go to another process; the text names it.
    """
    return _Hand() if isinstance(executor, ThreadPoolExecutor) else _Post(client, stop_on_error)


class _Hand:
    """Gives jobs to threads of this process, as they are."""

    def packed(self, job: Job) -> Job:
        return job

    def places(self, executor: Executor) -> float:  # noqa: ARG002 - a thread does one job at a time
        return math.inf

    def submit(self, executor: Executor, jobs: list[Job]) -> Future[Any]:
        return executor.submit(work, jobs[0])

    def opened(self, result: Outcome) -> list[Outcome | None]:
        return [result]

    def close(self) -> None:
        """Do nothing: the batch's context reaches them."""

    def end(self, executor: Executor) -> None:
        """Do nothing, likewise."""


class _Post:
    """Sends jobs to other processes.

    Args:
        client: Who asks there. stop_on_error: Whether the first failure ends the batch.
    """

    def __init__(self, client: Any, stop_on_error: bool) -> None:
        self._client = _settings(client)
        self._stop_on_error = stop_on_error
        self._line = Lifeline()

    def packed(self, job: Job) -> bytes:
        """Return a job without what is made anew there."""
        return pickle.dumps(attrs.evolve(job, client=None, context=None))

    def places(self, executor: Executor) -> float:
        """Return how many tasks an executor runs at once; infinity where it does not say, or has no worker yet.

        Executors have no public word for it; but all are made after those of the standard library.
        """
        dask = _dask_of(executor)
        if dask is not None:
            return sum(dask.nthreads().values()) or math.inf
        return getattr(executor, "num_workers", None) or getattr(executor, "_max_workers", None) or math.inf

    def submit(self, executor: Executor, jobs: list[bytes]) -> Future[Any]:
        parcel = elsewhere.Parcel(
            batch=self._line.name,
            home=self._line.home,
            client=self._client,
            jobs=tuple(jobs),
            stop_on_error=self._stop_on_error,
        )
        return executor.submit(elsewhere.run, parcel)

    def opened(self, result: list[bytes | None]) -> list[Outcome | None]:
        return [None if each is None else pickle.loads(each) for each in result]  # noqa: S301 - workers are trusted

    def close(self) -> None:
        """Have workers on this machine cancel what they are at."""
        self._line.close()

    def end(self, executor: Executor) -> None:
        """Have workers on other machines cancel what they are at, if they are Dask's."""
        dask = _dask_of(executor)
        if dask is not None:
            with suppress(Exception):  # the cluster may be gone
                dask.run(elsewhere.end, self._line.name, wait=False, on_error="ignore")


def _dask_of(executor: Executor) -> Any:
    """Return the client of Dask behind an executor, which has no public way to it; None where there is none."""
    client = getattr(executor, "_client", None)
    return client if hasattr(client, "nthreads") else None


def _settings(client: Any) -> bytes:
    """Return a client, pickled.

    Raises:
        TypeError: It cannot be; the text names the part.
    """
    try:
        return pickle.dumps(client)
    except Exception as error:
        for name, part in client.__getstate__().items():
            try:
                pickle.dumps(part)
            except Exception as why:  # noqa: BLE001 - classes of anybody
                raise TypeError(f"executor: the client's {name} cannot be sent to another process: {why}") from error
        raise


def is_killed(error: BaseException) -> bool:
    """Return whether Dask gave a task up because its workers died. By its name: nothing here needs Dask."""
    return type(error).__name__ == "KilledWorker"

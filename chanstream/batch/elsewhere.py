"""What runs in the workers of an executor, which may be on other machines: parcels of jobs are opened and done.

All that travels is pickled by us, to bytes, and so in one way whatever the executor: what cannot be is told in words,
and not by a worker that dies of it. In a worker one client is made of the settings that come with the parcels, and
kept with its connections for all that follow.

A batch that ends early ends its requests here too: by its lifeline, on its own machine, and elsewhere by `end`.

Thread safety: every function may be called from any thread.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from uuid import uuid4

import attrs

from ..context import Context
from ..errors import ChanstreamError, StreamCancelledError
from .lifeline import watch
from .work import Job, Outcome, work

_MOST_CLIENTS = 8
"""How many clients a worker keeps: one that serves for months meets many keys."""


@attrs.frozen(eq=False, kw_only=True)
class Parcel:
    """Jobs on their way to a worker, pickled. Nothing of what they hold is shown: keys, and people's conversations.

    Attributes:
        batch: The batch's name; home: where it is (see `lifeline`). client: Who asks. jobs: What to ask.
        stop_on_error: Whether the first failure among them ends the others.
        name: Its own, so that no executor takes one parcel for another: Dask does a pure function's work but once.
    """

    batch: str
    home: str
    client: bytes = attrs.field(repr=False)
    jobs: tuple[bytes, ...] = attrs.field(repr=False)
    stop_on_error: bool = False
    name: str = attrs.field(factory=lambda: uuid4().hex)


def run(parcel: Parcel) -> list[bytes | None]:
    """Return the outcomes of a parcel's jobs, pickled, in their order; None for those that were cancelled.

    The jobs run side by side.
    """
    client, batch = _here.client(parcel.client), _here.context(parcel)
    packed = [pickle.loads(job) for job in parcel.jobs]  # noqa: S301 - our own, sent by the batch
    with batch.with_cancel() as context:
        jobs = [attrs.evolve(job, client=client, context=context) for job in packed]
        outcomes = [work(jobs[0])] if len(jobs) == 1 else _side_by_side(jobs, context, parcel.stop_on_error)
        is_over = context.done()
    return [None if is_over and isinstance(each.error, StreamCancelledError) else pack(each) for each in outcomes]


def _side_by_side(jobs: list[Job], context: Context, stop_on_error: bool) -> list[Outcome]:
    with ThreadPoolExecutor(len(jobs), "chanstream-batch") as threads:
        try:
            futures = [threads.submit(work, job) for job in jobs]
            for future in as_completed(futures):
                if stop_on_error and future.result().error is not None:
                    context.cancel()
        except BaseException:  # Ctrl-C, which reaches the processes of a pool too
            context.cancel()
            raise
    return [future.result() for future in futures]


def pack(outcome: Outcome) -> bytes:
    """Return an outcome pickled; an error that would not arrive is told in words."""
    try:
        packed = pickle.dumps(outcome)
        if outcome.error is not None:  # the library's own arrive, but a session's or a rate limiter's may not
            pickle.loads(packed)  # noqa: S301 - just made
    except Exception as why:  # noqa: BLE001 - classes of anybody
        told = ChanstreamError(f"{_name_of(outcome.error)} (which cannot be pickled: {_name_of(why)})")
        return pickle.dumps(attrs.evolve(outcome, response=None, error=told))
    return packed


def _name_of(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def end(batch: str) -> None:
    """Cancel what runs here for a batch."""
    _here.end(batch)


class _Here:
    """What this process keeps for the parcels to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both, and that a client is made once
        self._clients: dict[bytes, Any] = {}
        # A context is kept by the tasks that use it, and by the thread that watches its lifeline.
        self._contexts: weakref.WeakValueDictionary[str, Context] = weakref.WeakValueDictionary()

    def client(self, packed: bytes) -> Any:
        """Return the one client with these settings."""
        with self._lock:
            client = self._clients.get(packed)
            if client is None:
                client = self._clients[packed] = pickle.loads(packed)  # noqa: S301 - as above
                if len(self._clients) > _MOST_CLIENTS:
                    self._clients.pop(next(iter(self._clients))).close()
            return client

    def context(self, parcel: Parcel) -> Context:
        """Return the context of all that runs here for a parcel's batch."""
        with self._lock:
            context = self._contexts.get(parcel.batch)
            if context is None:
                context = self._contexts[parcel.batch] = Context()
                watch(parcel.batch, parcel.home, context)
            return context

    def end(self, batch: str) -> None:
        with self._lock:
            context = self._contexts.get(batch)
        if context is not None:
            context.cancel()


_here = _Here()


def _start_afresh() -> None:
    """Forget, in a forked child, the parent's clients and contexts: their threads live in the parent only."""
    global _here  # noqa: PLW0603 - the one instance of the process
    _here = _Here()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)

"""What goes on behind a batch, with workers that finish in whatever order they are told to."""

from __future__ import annotations

import random
import threading
from collections import Counter
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream import BatchResult, ChatCompletionResponse, Context, RateLimitError, Retry, StreamTruncatedError
from chanstream.batch.adaptive import Adaptive
from chanstream.batch.pacing import Fixed
from chanstream.batch.run import Run
from chanstream.batch.work import Job, Outcome
from chanstream.batch.workers import Done
from tests.conftest import REQUEST, SCALE

pytestmark = pytest.mark.usefixtures("nothing_left")


class Shuffling:
    """Workers that end their jobs in an order of chance, as their script says: refused so often, then well or not."""

    def __init__(self, script: list[tuple[int, bool]], seed: int) -> None:
        self.most = 0
        self.tries: Counter[int] = Counter()
        self._script = script
        self._chance = random.Random(seed)
        self._at_work: list[tuple[Job, Done]] = []
        self._lock = threading.Lock()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._run, name="chanstream-shuffling", daemon=True).start()

    def submit(self, job: Job, done: Done) -> None:
        """Have it done, some time."""
        with self._lock:
            self._at_work.append((job, done))
            self.most = max(self.most, len(self._at_work))
            self.tries[job.index] += 1
        self._calls.put(True)

    def close(self) -> None:
        """End."""
        self._calls.put(False)

    def _run(self) -> None:
        while self._calls.get():
            with self._lock:
                job, done = self._at_work.pop(self._chance.randrange(len(self._at_work)))
            refusals, is_well = self._script[job.index]
            if self.tries[job.index] <= refusals:
                done(Outcome(error=RateLimitError("busy", status_code=429), attempts=1))
            elif is_well:
                done(Outcome(response=ChatCompletionResponse(id=job.id), attempts=1))
            else:
                done(Outcome(error=StreamTruncatedError("cut"), attempts=1))


@given(
    script=st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 5]), st.booleans()), max_size=40),
    concurrency=st.integers(1, 8),
    ahead=st.integers(1, 4),
    seed=st.integers(0, 1000),
    old=st.sets(st.integers(0, 39), max_size=5),
    adaptive=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_exactly_once(
    *, script: list[tuple[int, bool]], concurrency: int, ahead: int, seed: int, old: set[int], adaptive: bool
) -> None:
    """Each request has one result, never are more on their way than there may be, and what is known is not sent."""

    def find(index: int, id: str, request: object) -> BatchResult | None:
        return BatchResult(index=index, id=id, request=REQUEST, attempts=99) if index in old else None

    workers = Shuffling(script, seed)
    run = Run(
        None,
        timeout=None,
        context=Context(),
        workers=workers,
        pace=Adaptive(concurrency) if adaptive else Fixed(concurrency),
        ahead=ahead * concurrency,
        find=find,
        retry=Retry(max_retries=2, min_delay=0, max_delay=0) if adaptive else None,
        stop_on_error=False,
    )
    run.start([REQUEST] * len(script))
    results = {}
    for finished in run.results:
        assert finished.result.index not in results
        results[finished.result.index] = finished
        run.took()
        if not finished.is_old:
            run.wrote(1)
    assert run.error is None
    assert set(results) == set(range(len(script)))
    assert workers.most <= concurrency
    for index, (refusals, is_well) in enumerate(script):
        finished = results[index]
        assert finished.is_old == (index in old) == (workers.tries[index] == 0)
        if not finished.is_old:
            refused = refusals if adaptive else min(refusals, 1)
            assert finished.result.attempts == workers.tries[index] == refused + (adaptive or not refused)
            assert (finished.result.error is None) == (is_well and (adaptive or not refused))


def test_what_is_not_written_keeps_its_place() -> None:
    """With a journal a finished request counts as on its way until it is written down."""
    workers = Shuffling([(0, True)] * 9, seed=1)
    run = Run(
        None,
        timeout=None,
        context=Context(),
        workers=workers,
        pace=Fixed(3),
        ahead=20,
        find=lambda *_: None,
        retry=None,
        stop_on_error=False,
    )
    run.start([REQUEST] * 9)
    for _ in range(3):
        run.results.get(timeout=20 * SCALE)
    assert sum(workers.tries.values()) == 3
    run.wrote(1)
    run.results.get(timeout=20 * SCALE)
    assert sum(workers.tries.values()) == 4
    run.end()

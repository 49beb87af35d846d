"""Batches whose work is done by executors: threads, processes of every kind, and a cluster of Dask's."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

from chanstream import (
    AuthenticationError,
    ChanstreamError,
    ChatCompletionRequest,
    Client,
    Context,
    Retry,
    UserMessage,
    WorkerLostError,
)
from chanstream.batch import elsewhere, lifeline
from chanstream.batch.lifeline import Lifeline, watch
from chanstream.batch.work import Job
from chanstream.limits import RateLimit
from chanstream.testing import Reply
from tests.batch.elsewhere import OddSession, asked, check_all, die_of_poison, echo, forget_key, pool
from tests.conftest import REQUEST, SCALE, Link, within

KEY = "a-key-that-nobody-may-see"
LONG = 20 * SCALE  # seconds in which a few processes must have begun, on a machine that has much else to do

pytestmark = pytest.mark.usefixtures("nothing_left")


quick = partial(pool, "forkserver")
"""Makes a pool whose processes begin with everything imported."""


class Inside(Executor):
    """An executor of the simplest kind: it pickles as others do, but its workers are threads of this process."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads)
        self._max_workers = threads  # so all executors call it that have such a number

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:
        """Have a function called."""
        return self._threads.submit(self._call, pickle.dumps((function, given)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more, and forget what the end of a process forgets."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for client in elsewhere._here._clients.values():
            client.close()
        elsewhere._start_afresh()

    @staticmethod
    def _call(packed: bytes) -> Any:
        function, given = pickle.loads(packed)
        return pickle.loads(pickle.dumps(function(*given)))


class Broken(Inside):
    """One that cannot be used any more."""

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:
        """Fail."""
        raise BrokenExecutor("it is broken")


KINDS: dict[str, Callable[[], Executor]] = {
    "threads": partial(ThreadPoolExecutor, 4),
    "inside": partial(Inside, 2),
    "spawn": partial(pool, "spawn"),
    "forkserver": partial(pool, "forkserver"),
    # Python 3.12 and newer warn of any fork beside threads; a client is made for it.
    "fork": partial(pool, "fork"),
}
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

each_kind = pytest.mark.parametrize("kind", [pytest.param(kind, marks=FORKS) for kind in KINDS])


@pytest.fixture(scope="module", autouse=True)
def helpers() -> None:
    """Python's own helpers, which are begun once and stay: they are nothing that a batch leaves behind."""
    multiprocessing.set_forkserver_preload(["pytest", "chanstream.batch.elsewhere", "tests.batch.elsewhere"])
    resource_tracker.ensure_running()
    forkserver.ensure_running()


@each_kind
def test_all_answers_come(kind: str, plain: Link) -> None:
    """Whatever the executor, each request is sent once, and its own answer comes back with what it took."""
    server = plain.serve(reply_with=echo)
    with KINDS[kind]() as executor:
        results = list(plain.client(server).batch(asked("say", 24), concurrency=6, executor=executor))
        assert executor.submit(abs, -1).result() == 1  # it stays the caller's, and usable
    check_all(results, 24)
    assert len(server.requests) == 24
    assert {result.attempts for result in results} == {1}
    assert all(0 < (result.time_to_first_chunk or 0) <= result.latency for result in results)


def test_a_process_has_one_pool_of_connections(plain: Link) -> None:
    """A worker process uses its connections again, from one batch to the next too."""
    server = plain.serve(reply_with=echo)
    client = plain.client(server)
    with quick(1) as executor:
        for _ in range(2):
            check_all(list(client.batch(asked("say", 10), concurrency=2, executor=executor)), 10)
    assert server.connections <= 4  # and not one for each request, or client; two if the machine is idle


def test_a_process_runs_several_requests_at_once(plain: Link) -> None:
    """Where there are more requests than processes, each process has several on their way; never more in all."""
    server = plain.serve(reply_with=echo)
    batch = plain.client(server).batch(asked("stay", 100), concurrency=6, executor=quick)
    with batch:
        taking = threading.Thread(target=lambda: list(batch))
        taking.start()
        assert server.wait_for(lambda server: len(server.requests) == 6, LONG)
        assert server.open_connections == 6
    taking.join()
    assert len(server.requests) == 6


def test_a_task_does_not_wait_until_it_is_full(plain: Link) -> None:
    """A request is sent though no other follows: here the next comes only when it has been answered."""
    server = plain.serve(reply_with=echo)
    answered = threading.Event()

    def requests() -> Iterator[ChatCompletionRequest]:
        for request in asked("say", 3):
            yield request
            assert answered.wait(LONG)
            answered.clear()

    results = []
    for result in plain.client(server).batch(requests(), concurrency=8, executor=partial(quick, 1)):
        results.append(result)
        answered.set()
    check_all(results, 3)


def test_adaptive(plain: Link) -> None:
    """With an adaptive batch a request that was refused in a worker is sent again by the batch."""
    refusal = Reply.error(429, headers={"retry-after-ms": "1"})
    server = plain.serve(refusal, "well")
    client = plain.client(server, retry=Retry())
    results = list(client.batch([REQUEST] * 4, concurrency=4, adaptive=True, executor=quick))
    assert not [result.error for result in results if result.error]
    assert sum(result.attempts for result in results) == 5 == len(server.requests)


def test_a_journal(plain: Link, tmp_path: Path) -> None:
    """A batch goes on from its journal, whoever did the work before."""
    server = plain.serve(reply_with=echo)
    client, journal = plain.client(server), tmp_path / "journal"
    with client.batch(asked("say", 12), concurrency=4, executor=quick, journal=journal) as batch:
        next(batch)
    finished = [json.loads(line)["custom_id"] for line in journal.read_text().splitlines()]
    assert finished
    results = list(
        client.batch(asked("say", 12), concurrency=4, executor=partial(ThreadPoolExecutor, 4), journal=journal)
    )
    check_all(results, 12)
    sent = Counter(request.json["messages"][-1]["content"] for request in server.requests)
    assert {name: sent[f"say {name}"] for name in finished} == dict.fromkeys(finished, 1)


class TestTheEnd:
    @pytest.mark.skipif(sys.platform != "linux", reason="outside Linux workers do not hear of it")
    @pytest.mark.parametrize("kind", ["spawn", "forkserver", "fork"])
    def test_a_killed_parent(self, kind: str, plain: Link) -> None:
        """Requests in other processes are cancelled too when the batch's own process is killed."""
        server = plain.serve(reply_with=echo)
        command = [sys.executable, "-m", "tests.batch.orphan", server.url, kind]
        with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
            try:
                assert server.wait_for(lambda server: len(server.requests) == 4, LONG)
                process.kill()
                assert server.wait_for(lambda server: server.open_connections == 0, LONG)
            finally:  # the processes of a pool do not notice that nobody gives them work any more
                os.killpg(process.pid, signal.SIGKILL)

    @pytest.mark.parametrize("make", [quick, partial(Inside, 2)], ids=["processes", "inside"])
    def test_close_ends_what_runs_elsewhere(self, make: Callable[[], Executor], plain: Link) -> None:
        """Requests that run in other processes are cancelled with the batch, and the processes serve on."""
        server = plain.serve(reply_with=echo)
        client = plain.client(server)
        with make() as executor:
            batch = client.batch(asked("stay", 100), concurrency=6, executor=executor)
            taking = threading.Thread(target=lambda: list(batch))
            taking.start()
            assert server.wait_for(lambda server: len(server.requests) == 6, LONG)
            batch.close()
            assert server.wait_for(lambda server: server.open_connections == 0, LONG)
            taking.join()
            check_all(list(client.batch(asked("say", 4), concurrency=2, executor=executor)), 4)

    def test_a_batch_that_is_dropped(self, plain: Link) -> None:
        """Dropping the last reference to a batch ends what it has running elsewhere."""
        server = plain.serve(reply_with=echo)
        requests = [*asked("say", 1), *asked("stay", 4)]
        with Inside(3) as executor:
            batch = plain.client(server).batch(requests, concurrency=3, executor=executor)
            next(batch)
            assert server.wait_for(lambda server: len(server.requests) >= 3, LONG)
            del batch
            gc.collect()
            assert server.wait_for(lambda server: server.open_connections <= 1, LONG)  # the first one's is kept

    def test_ctrl_c_in_a_worker(self, plain: Link) -> None:
        """Ctrl-C, which a terminal sends to the processes of a pool too, ends what they run, and the batch."""
        server = plain.serve(reply_with=echo)
        with quick(1) as executor:
            batch = plain.client(server).batch(asked("stay", 9), concurrency=2, executor=executor)
            with ThreadPoolExecutor(1) as taking:
                taken = taking.submit(list, batch)
                assert server.wait_for(lambda server: len(server.requests) == 2, LONG)
                os.kill(next(iter(executor._processes)), signal.SIGINT)
                assert isinstance(taken.exception(LONG), ChanstreamError)
            assert "KeyboardInterrupt" in str(taken.exception())
            assert server.wait_for(lambda server: server.open_connections == 0, LONG)

    def test_a_worker_without_a_lifeline_is_told(self, plain: Link) -> None:
        """A worker that the batch's lifeline does not reach ends its requests when it is told to, as Dask tells it."""
        server = plain.serve(reply_with=echo)
        job = Job(index=0, id="0", request=next(asked("stay", 1)), client=None)
        client = pickle.dumps(plain.client(server))
        parcel = elsewhere.Parcel(batch="elsewhere", home="far away", client=client, jobs=(pickle.dumps(job),) * 2)
        with ThreadPoolExecutor() as threads:
            running = threads.submit(elsewhere.run, parcel)
            assert server.wait_for(lambda server: len(server.requests) == 2, LONG)
            elsewhere.end("elsewhere")
            assert running.result(LONG) == [None, None]
        elsewhere.end("elsewhere")  # nothing runs for it any more

    @pytest.mark.parametrize("make", [quick, partial(Inside, 1)], ids=["processes", "inside"])
    def test_stop_on_error(self, make: Callable[[], Executor], plain: Link) -> None:
        """The first failure ends the batch, in other processes too; its error is of its class, and shows no key."""
        refusal = Reply.error(401, f"Your key {KEY} is wrong.")
        server = plain.serve(reply_with=lambda request: echo(request) if "stay" in str(request.json) else refusal)
        requests = [*asked("stay", 3), *asked("fail", 1)]
        client = plain.client(server, api_key=KEY)
        with make() as executor:
            results = []
            with pytest.raises(AuthenticationError) as caught:
                results += client.batch(requests, concurrency=4, executor=executor, stop_on_error=True)
            # What was refused was read to its end: its connection is kept.
            assert server.wait_for(lambda server: server.open_connections <= 1, LONG)
        assert KEY not in repr(caught.value)

    def test_in_order(self, plain: Link) -> None:
        """Results come in the order of the requests if that is asked for, and each failure is one result."""
        server = plain.serve(reply_with=lambda request: Reply.error(400) if "3" in str(request.json) else echo(request))
        with quick() as executor:
            results = list(plain.client(server).batch(asked("say", 12), concurrency=4, executor=executor, ordered=True))
        assert [result.index for result in results] == list(range(12))
        assert [result.index for result in results if result.error] == [3]

    def test_tries_are_counted_where_they_are_made(self, plain: Link) -> None:
        """A try again in a worker counts."""
        server = plain.serve(Reply.error(503), "well")
        with quick(1) as executor:
            client = plain.client(server, retry=Retry(max_retries=1, min_delay=0.01, max_delay=0.01))
            (result,) = client.batch([REQUEST], executor=executor)
        assert result.attempts == 2


class TestLostWorkers:
    def test_a_pool_is_made_anew(self, plain: Link) -> None:
        """With a callable that makes pools, a killed process costs nothing: what was on its way is sent again."""
        server = plain.serve(reply_with=echo)
        pools: list[ProcessPoolExecutor] = []

        def make() -> ProcessPoolExecutor:
            pools.append(quick())
            return pools[-1]

        results = []
        for result in plain.client(server).batch(asked("say", 40), concurrency=8, executor=make):
            results.append(result)
            if len(results) == 10:
                os.kill(next(iter(pools[0]._processes)), signal.SIGKILL)
        check_all(results, 40)
        assert len(pools) == 2
        assert len(server.requests) <= 40 + 8
        assert within(LONG, lambda: pools[1]._shutdown_thread)

    def test_a_pool_that_is_found_broken(self, plain: Link) -> None:
        """A pool that takes nothing, because it broke before, costs no request one of its lives."""
        pools = iter([Broken(1), Broken(1), Broken(1), Broken(1), Inside(1)])
        results = list(plain.client(plain.serve("well")).batch([REQUEST], executor=lambda: next(pools)))
        assert [result.error for result in results] == [None]

    def test_a_pool_of_the_callers_is_not(self, plain: Link) -> None:
        """A pool of the caller's that breaks ends the batch with an error that says what to do instead."""
        server = plain.serve(reply_with=echo)
        with quick() as executor:
            batch = plain.client(server).batch(asked("say", 40), concurrency=4, executor=executor)
            results = [next(batch)]
            os.kill(next(iter(executor._processes)), signal.SIGKILL)
            with pytest.raises(WorkerLostError, match=r"^executor: .*pass a callable"):
                results += batch
        assert all(result.response for result in results)

    def test_a_request_that_kills_every_worker(self, plain: Link) -> None:
        """A request that kills each process it comes to is given up; the others have their answers."""
        server = plain.serve(reply_with=echo)
        poison = ChatCompletionRequest("test-model", [UserMessage("poison")])
        client = plain.client(server, observers=[die_of_poison])
        executor = partial(quick, 1)
        results = list(client.batch([*asked("say", 2), poison], concurrency=1, executor=executor, ordered=True))
        check_all(results[:2], 2)
        assert isinstance(results[2].error, WorkerLostError)

    def test_requests_beside_it(self, plain: Link) -> None:
        """Requests that were on their way beside one that kills every worker have their answers in the end."""
        server = plain.serve(reply_with=echo)
        poison = ChatCompletionRequest("test-model", [UserMessage("poison")])
        client = plain.client(server, observers=[die_of_poison])
        executor = quick
        results = list(client.batch([*asked("say", 3), poison], concurrency=4, executor=executor, ordered=True))
        check_all(results[:3], 3)
        assert isinstance(results[3].error, WorkerLostError)

    def test_pools_that_never_work(self, plain: Link) -> None:
        """Pools that break again and again without one answer end the batch."""
        executor = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("forkserver"), os._exit, (1,))
        with pytest.raises(WorkerLostError, match="one after the other"):
            list(plain.client(plain.serve()).batch(asked("say", 5), concurrency=1, executor=executor))


class TestWhatCannotBe:
    @pytest.mark.parametrize("executor", ["threads", 4, ThreadPoolExecutor.submit, lambda: None])
    def test_no_executor(self, executor: Any, plain: Link) -> None:
        """What is no executor, and makes none, is told at once."""
        with pytest.raises(TypeError, match=r"executor|submit"):
            plain.client(plain.serve()).batch([REQUEST], executor=executor)

    @pytest.mark.parametrize(
        ("part", "value"),
        [("observers", [lambda event: None]), ("rate_limiter", RateLimit(50)), ("extra_body", {"x": lambda: None})],
    )
    def test_a_part_that_cannot_travel(self, part: str, value: Any, plain: Link) -> None:
        """A part of the client that cannot be pickled is named at once, and no process is begun."""
        server = plain.serve()
        with quick() as executor:
            with pytest.raises(TypeError, match=f"^executor: the client's {part} cannot be sent to another process: "):
                plain.client(server, **{part: value}).batch([REQUEST], executor=executor)
            assert not executor._processes
        assert not server.requests

    def test_a_client_that_cannot_travel(self, plain: Link) -> None:
        """The executor that a callable made for a client that cannot travel is shut down."""
        made: list[ProcessPoolExecutor] = []

        def make() -> ProcessPoolExecutor:
            made.append(quick())
            return made[-1]

        client = plain.client(plain.serve(), observers=[print, lambda event: None])
        with pytest.raises(TypeError, match="observers"):
            client.batch([REQUEST], executor=make)
        assert made[0]._shutdown_thread

    def test_threads_take_any_client(self, plain: Link) -> None:
        """Threads share the client itself, whatever it is made of."""
        seen: list[object] = []
        with ThreadPoolExecutor() as executor:
            client = plain.client(plain.serve("well"), observers=[seen.append])
            (result,) = client.batch([REQUEST], executor=executor)
        assert result.response is not None
        assert seen

    def test_an_executor_that_was_shut_down(self, plain: Link) -> None:
        """An executor that takes nothing any more ends the batch with its words."""
        executor = ThreadPoolExecutor()
        executor.shutdown()
        with pytest.raises(ChanstreamError, match=r"^executor: it takes no more work: cannot schedule new futures"):
            list(plain.client(plain.serve()).batch([REQUEST], executor=executor))

    def test_an_executor_that_cancels(self, plain: Link) -> None:
        """An executor that cancels what it has not begun ends the batch, after the results of what it had."""
        server = plain.serve(reply_with=echo)
        executor = ThreadPoolExecutor(1)
        batch = plain.client(server).batch(asked("say", 40), concurrency=4, executor=executor)
        results = [next(batch)]
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(ChanstreamError, match=r"^executor: it "):
            results += batch
        assert all(result.response for result in results)

    @pytest.mark.parametrize("make", [partial(quick, 1), partial(Inside, 1)], ids=["processes", "inside"])
    def test_an_error_that_cannot_travel(self, make: Callable[[], Executor], plain: Link) -> None:
        """An error that cannot be pickled, or unpickled, is told in words; the process lives."""
        session = OddSession()
        with make() as executor, session:
            client = plain.client(plain.serve(), session=session)
            results = list(client.batch(asked("say", 2), concurrency=1, executor=executor))
        assert [str(result.error)[:13] for result in results] == ["OddError: one"] * 2

    def test_a_request_that_cannot_travel(self, plain: Link) -> None:
        """A request that cannot be pickled is a result with an error; the others are sent."""
        odd = ChatCompletionRequest("test-model", [UserMessage("x")], extra={"x": lambda: None})
        with quick(1) as executor:
            batch = plain.client(plain.serve("well")).batch([odd, REQUEST], executor=executor, ordered=True)
            first, second = batch
        assert isinstance(first.error, TypeError)
        assert str(first.error).startswith("requests[0]: it cannot be sent to another process")
        assert second.response is not None

    def test_a_task_that_fails(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the workers cannot even begin ends the batch with the reason: here that they lack the key."""
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"), forget_key) as executor:
            client = Client(base_url=plain.serve().url, dialect="openai")
            with client, pytest.raises(ChanstreamError, match=r"^executor: a task failed with .*set OPENAI_API_KEY"):
                list(client.batch([REQUEST], executor=executor))

    def test_a_worker_keeps_few_clients(self, plain: Link) -> None:
        """A worker that serves many clients keeps the last ones; each has its answers."""
        server = plain.serve(reply_with=echo)
        with Inside(1) as executor:
            for number in range(10):
                client = plain.client(server, api_key=f"key-{number}")
                check_all(list(client.batch(asked("say", 1), executor=executor)), 1)
            assert server.connections == 10
            assert server.wait_for(lambda server: server.open_connections == 8, LONG)

    def test_nothing_is_shown(self) -> None:
        """A parcel's repr, which executors log, shows neither the key nor what was asked."""
        assert KEY not in repr(elsewhere.Parcel(batch="batch", home="", client=KEY.encode(), jobs=(KEY.encode(),)))


@pytest.mark.skipif(sys.platform != "linux", reason="there are lifelines on Linux alone")
class TestLifeline:
    def test_its_end_is_heard(self) -> None:
        """Who watches a lifeline hears of its end, at once or when he begins later; nobody hears of it elsewhere."""
        line, early, late, elsewhere = Lifeline(), Context(), Context(), Context()
        watch(line.name, line.home, early)
        watch(line.name, "another machine", elsewhere)
        assert not early.done()
        line.close()
        line.close()
        assert early.wait(LONG)
        watch(line.name, line.home, late)
        assert late.done()
        assert not elsewhere.done()

    def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who comes when the system lets nobody hold on any more goes on without."""
        monkeypatch.setattr(lifeline, "_BACKLOG", 0)
        line, contexts = Lifeline(), [Context() for _ in range(3)]
        for context in contexts:
            watch(line.name, line.home, context)
        line.close()
        assert contexts[0].wait(LONG)
        assert not contexts[2].done()

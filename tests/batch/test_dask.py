"""Batches whose work is done by a cluster of Dask's: a scheduler and two workers, which are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from chanstream import ChatCompletionRequest, UserMessage, WorkerLostError
from tests.batch.elsewhere import asked, check_all, die_of_poison, echo, forgive
from tests.conftest import SCALE, Link, producers, within

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'chanstream[dask]'")

KEY = "a-key-that-nobody-may-see"
LONG = 20 * SCALE


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the cluster's scheduler."""
    command = [sys.executable, "-m", "tests.batch.cluster"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        # Its standard input is closed here, and with it the cluster.


@pytest.fixture
def dask(cluster: str) -> Iterator[Any]:
    """A client of the cluster, which has all its workers."""
    from distributed import Client

    with Client(cluster, timeout=LONG) as client:
        client.wait_for_workers(2, timeout=LONG)
        yield client
        assert within(LONG, lambda: not producers())


def test_a_worker_is_killed(dask: Any, plain: Link) -> None:
    """With a worker killed in the middle there are all results, each once, and only what it was at is sent again."""
    server = plain.serve(reply_with=echo)
    results = []
    for result in plain.client(server).batch(asked("say", 60), concurrency=16, executor=dask.get_executor()):
        results.append(result)
        if len(results) == 15:
            os.kill(next(iter(dask.run(os.getpid).values())), signal.SIGKILL)
    check_all(results, 60)
    assert 60 <= len(server.requests) <= 60 + 16
    assert within(LONG, lambda: not dask.futures)  # results that are held are worked out again if they are lost


def test_a_worker_has_one_pool_of_connections(dask: Any, plain: Link) -> None:
    """A worker uses its connections again, from one batch to the next too."""
    server = plain.serve(reply_with=echo)
    client = plain.client(server)
    for _ in range(3):
        check_all(list(client.batch(asked("say", 16), concurrency=4, executor=dask.get_executor())), 16)
    assert server.connections <= 12  # of 48: 4, if the machine is idle and the workers share evenly


def test_close_ends_what_runs_there(dask: Any, plain: Link) -> None:
    """Requests that run on the cluster are cancelled with the batch, and its workers serve on."""
    server = plain.serve(reply_with=echo)
    client = plain.client(server)
    batch = client.batch(asked("stay", 100), concurrency=8, executor=dask.get_executor())
    taking = threading.Thread(target=lambda: list(batch))
    taking.start()
    assert server.wait_for(lambda server: len(server.requests) == 8, LONG)
    batch.close()
    assert server.wait_for(lambda server: server.open_connections == 0, LONG)
    taking.join()
    check_all(list(client.batch(asked("say", 4), concurrency=2, executor=dask.get_executor())), 4)
    assert len(server.requests) == 8 + 4


def test_its_client_is_no_executor(dask: Any, plain: Link) -> None:
    """For the client of a cluster the error tells where its executor is."""
    with pytest.raises(TypeError, match=r"^executor: .* get_executor\(\)"):
        plain.client(plain.serve()).batch([], executor=dask)


# The last one: a worker that is killed while it begins is not always begun again.
def test_a_request_that_kills_every_worker(dask: Any, plain: Link) -> None:
    """A request that kills each worker it comes to is given up; those beside it are done again. No log has the key."""
    server = plain.serve(reply_with=echo)
    poison = ChatCompletionRequest("test-model", [UserMessage("poison")])
    client = plain.client(server, api_key=KEY, observers=[die_of_poison])
    dask.run_on_scheduler(forgive, 0)  # else it takes four workers each time
    try:
        requests = [*asked("say", 7), poison]
        results = sorted(
            client.batch(requests, concurrency=8, executor=dask.get_executor()), key=lambda each: each.index
        )
    finally:
        dask.run_on_scheduler(forgive, 3)
    check_all(results[:7], 7)
    assert isinstance(results[7].error, WorkerLostError)
    assert KEY not in str(dask.get_scheduler_logs()) + str(dask.get_worker_logs())

"""What the tests of executors share, and what their clients take with them to other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import requests

from chanstream import BatchResult, ChatCompletionRequest, UserMessage
from chanstream.observers import CallStarted
from chanstream.testing import RecordedRequest, Reply


class OddError(Exception):
    """An error that cannot be pickled, and another that cannot be unpickled, whatever is done to pickle exceptions."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.why = second
        self.how = lambda: None

    def __reduce__(self) -> Any:
        return (OddError, ("one",)) if self.why == "there" else super().__reduce__()


def die_of_poison(event: object) -> None:
    """Be an observer that kills its process when it is asked for something poisonous."""
    if isinstance(event, CallStarted) and event.call.request.messages[-1].content == "poison":
        os.kill(os.getpid(), signal.SIGKILL)


class OddSession(requests.Session):
    """A session whose errors cannot travel."""

    def send(self, *given: Any, **more: Any) -> requests.Response:
        """Fail."""
        raise OddError("one", "there" if "0" in str(given[0].body) else "here")


def forget_key() -> None:
    """Begin a process that does not have the variable with the key."""
    os.environ.pop("OPENAI_API_KEY", None)


def forgive(times: int, dask_scheduler: Any) -> None:
    """Have a scheduler of Dask's give a task up after more than so many workers that died of it."""
    dask_scheduler.allowed_failures = times


def pool(kind: str, processes: int = 2) -> ProcessPoolExecutor:
    """Return a pool of processes of one kind."""
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(kind))


def echo(request: RecordedRequest) -> Reply:
    """Return what was asked, in a few chunks that take a moment; what begins with "stay" never ends."""
    said = request.json["messages"][-1]["content"]
    return Reply(f"{said} and so on", pace=0.005, stall_after=1 if said.startswith("stay") else None)


def asked(words: str, count: int) -> Iterator[ChatCompletionRequest]:
    """Return requests that can be told apart."""
    return (ChatCompletionRequest("test-model", [UserMessage(f"{words} {number}")]) for number in range(count))


def check_all(results: list[BatchResult], count: int) -> None:
    """Check that each request has its own answer, once."""
    assert not [result.error for result in results if result.error]
    assert Counter(result.index for result in results) == Counter(range(count))
    for result in results:
        assert result.response is not None
        assert result.response.text == f"{result.request.messages[0].content} and so on"

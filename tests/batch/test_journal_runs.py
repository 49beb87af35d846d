"""Batches with a journal: what is given is safe, and a later run gives it again without asking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chanstream import BatchResult, ChatCompletionRequest, Client, JournalError, UserMessage
from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.conftest import Link

KEY = "sk-a-very-secret-key"


def prompt_of(request: RecordedRequest) -> str:
    """Return what a request's user says."""
    prompt: str = request.json["messages"][-1]["content"]
    return prompt


def answer(request: RecordedRequest) -> Reply:
    """Answer kindly, but for "refuse" and "cut"."""
    prompt = prompt_of(request)
    if prompt == "refuse":
        return Reply.error(401, f"the key {KEY} is not known")
    if prompt == "cut":
        return Reply("half an answer", cut_at=300, end="cut")
    return Reply(f"Yes, {prompt}.")


def requests(*prompts: str) -> list[tuple[str, ChatCompletionRequest]]:
    """Return requests whose ids are their prompts."""
    return [(prompt, ChatCompletionRequest("m", [UserMessage(prompt)])) for prompt in prompts]


def said(results: list[BatchResult]) -> list[tuple[int, str, str]]:
    """Return the index, the id, and the text or the error's class and words of each result."""
    return sorted(
        (result.index, result.id, repr(result.error) if result.response is None else result.response.text)
        for result in results
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is to be."""
    return tmp_path / "journal.jsonl"


@pytest.fixture
def server(plain: Link) -> StreamServer:
    """A server that knows what to say."""
    return plain.serve(reply_with=answer)


@pytest.fixture
def client(plain: Link, server: StreamServer) -> Client:
    """A client of it."""
    return plain.client(server, api_key=KEY)


def test_what_is_given_is_in_the_file(client: Client, path: Path) -> None:
    """Each result is in the journal, as a whole line, when it is given."""
    for result in client.batch(requests(*map(str, range(30))), concurrency=4, journal=path):
        lines = path.read_bytes().splitlines(keepends=True)
        assert result.id in [json.loads(line)["custom_id"] for line in lines if line.endswith(b"\n")]


def test_a_second_run(client: Client, server: StreamServer, path: Path) -> None:
    """Run again, the same results are given, errors as well, and nothing is sent or written."""
    given = requests("one", "refuse", "three", "cut", "five")
    first = list(client.batch(given, journal=path))
    before, asked = path.read_bytes(), len(server.requests)
    second = list(client.batch(given, journal=path))
    assert said(second) == said(first)
    assert (path.read_bytes(), len(server.requests)) == (before, asked)


def test_no_key_is_in_it(client: Client, path: Path) -> None:
    """The key is not in the file, also where the server repeats it."""
    (result,) = client.batch(requests("refuse"), journal=path)
    assert "the key *** is not known" in str(result.error)
    assert KEY.encode() not in path.read_bytes()


def test_other_requests_too(client: Client, server: StreamServer, path: Path) -> None:
    """A run with more requests, in another order, gives what is known at their new places and asks for the rest."""
    list(client.batch(requests("one", "two"), journal=path))
    results = client.batch(requests("zero", "two", "three", "one"), journal=path, ordered=True)
    assert [(result.index, result.id) for result in results] == [(0, "zero"), (1, "two"), (2, "three"), (3, "one")]
    assert sorted(map(prompt_of, server.requests)) == ["one", "three", "two", "zero"]


def test_without_ids(client: Client, server: StreamServer, path: Path) -> None:
    """Requests without ids are known by their places."""
    given = [request for _, request in requests("one", "two")]
    list(client.batch(given, journal=path))
    results = list(client.batch([*given, *given], journal=path))
    assert said(results) == [(0, "0", "Yes, one."), (1, "1", "Yes, two."), (2, "2", "Yes, one."), (3, "3", "Yes, two.")]
    assert len(server.requests) == 4


def test_retry_failed(client: Client, server: StreamServer, path: Path) -> None:
    """With ``retry_failed`` what failed is sent again, and nothing else."""
    list(client.batch(requests("one", "cut", "three"), journal=path))
    results = list(client.batch(requests("one", "cut", "three"), journal=path, retry_failed=True))
    assert [result.id for result in results if result.error] == ["cut"]
    assert sorted(map(prompt_of, server.requests)) == ["cut", "cut", "one", "three"]
    assert len(path.read_bytes().splitlines()) == 3


def test_leaving_early(client: Client, server: StreamServer, path: Path) -> None:
    """After a loop that was left early the journal has what was given, is free at once, and a second run goes on."""
    given = requests(*map(str, range(50)))
    for result in client.batch(given, concurrency=4, journal=path):
        if int(result.id) >= 20:  # some may be ahead of others
            break
    asked = len(server.requests)
    results = list(client.batch(given, concurrency=4, journal=path))
    assert len(results) == 50
    assert len(server.requests) <= 50 + 4
    assert asked < 50


def test_another_request_under_the_same_id(client: Client, server: StreamServer, path: Path) -> None:
    """Where the journal has another request under an id, the batch ends with an error, after what came before."""
    list(client.batch([("a", requests("one")[0][1])], journal=path))
    given = [*requests("first"), ("a", requests("two")[0][1]), *requests("never")]
    results: list[str] = []
    with pytest.raises(JournalError, match=rf"^{path}, line 1: the id 'a' is that of another request"):
        results.extend(result.id for result in client.batch(given, journal=path))
    assert sorted(map(prompt_of, server.requests)) == ["first", "one"]
    assert len(path.read_bytes().splitlines()) == 2


def test_two_batches_at_once(client: Client, path: Path) -> None:
    """A second batch on the journal of one that is open is refused at once, and can be made when that is closed."""
    with client.batch(requests("one"), journal=path), pytest.raises(JournalError, match="in use by another batch"):
        client.batch(requests("one"), journal=path)
    assert len(list(client.batch(requests("one"), journal=path))) == 1


def test_endless_requests(client: Client, server: StreamServer, path: Path) -> None:
    """Of an endless iterable only as much is read as is wanted, in a second run too."""

    def endless() -> Iterator[ChatCompletionRequest]:
        number = 0
        while True:
            yield requests(str(number))[0][1]
            number += 1

    for _ in range(2):
        for result in client.batch(endless(), concurrency=2, journal=path, ordered=True):
            if result.index == 9:
                break
    assert len(server.requests) < 40


@pytest.mark.parametrize("wrong", ["", 7, b"x"])
def test_what_is_no_path(client: Client, wrong: object) -> None:
    """What is no path is told at once, with the argument's name."""
    with pytest.raises((TypeError, ValueError), match=r"^journal: expected a path, got "):
        client.batch(requests("one"), journal=wrong)  # type: ignore[arg-type]

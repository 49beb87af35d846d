"""The fake client: a real one, with the script and the record of a server that is its own."""

from __future__ import annotations

import asyncio
import copy
import gc
import math
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

import chanstream.testing
from chanstream import (
    APITimeoutError,
    BadRequestError,
    ChatCompletionRequest,
    Client,
    EmbeddingRequest,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    Retry,
    StreamInterruptedError,
    StreamTruncatedError,
    UserMessage,
)
from chanstream.testing import FakeClient, Reply, StreamServer
from tests.conftest import REQUEST, SCALE, within

pytestmark = pytest.mark.usefixtures("nothing_left")

AT_ONCE = Retry(min_delay=0.0)
ROOT = Path(__file__).parents[2]


def servers() -> int:
    """Return how many scripted servers run in this process."""
    return sum(thread.name.startswith("StreamServer") for thread in threading.enumerate())


class TestAnswers:
    def test_streams_and_whole_answers(self) -> None:
        """It is a Client, and answers both ways of asking from its script, the last reply to all further requests."""
        with FakeClient("Hello there", "Again") as client:
            assert isinstance(client, Client)
            assert [evt.text for evt in client.chat_completion_stream(REQUEST)][:2] == ["Hello", " there"]
            assert [client.chat_completion(REQUEST).text for _ in range(2)] == ["Again", "Again"]

    def test_async(self) -> None:
        """Its streams can be read in an event loop."""

        async def read() -> list[str]:
            return [evt.text async for evt in client.chat_completion_stream(REQUEST)]

        with FakeClient("one two") as client:
            assert "".join(asyncio.run(read())) == "one two"

    def test_without_a_script(self) -> None:
        """Without replies it says who it is, as a server without any does."""
        with FakeClient() as client:
            assert "test server" in client.chat_completion(REQUEST).text

    def test_computed(self) -> None:
        """reply_with answers each request by what it asks."""
        with FakeClient(reply_with=lambda request: request.json["model"].upper()) as client:
            assert client.chat_completion(ChatCompletionRequest("m1", [UserMessage("?")])).text == "M1"

    def test_later(self) -> None:
        """reply() goes on with the script, before the first request and after it."""
        client = FakeClient("one")
        client.reply("two")
        with client:
            assert client.chat_completion(REQUEST).text == "one"
            client.reply(Reply.error(400))
            assert client.chat_completion(REQUEST).text == "two"
            with pytest.raises(BadRequestError):
                client.chat_completion(REQUEST)

    def test_embeddings_and_models(self) -> None:
        """Vectors and the list of models can be scripted too."""
        with FakeClient(
            Reply.embeddings([0.5, 1.0], "AAAAPwAAgD8="), models=["m1", {"id": "m2", "created": 7}]
        ) as client:
            answer = client.embeddings(EmbeddingRequest("any", ["a", "b"], encoding_format="base64"))
            assert answer.vectors() == [[0.5, 1.0], [0.5, 1.0]]
            assert [card.id for card in client.list_models()] == ["m1", "m2"]
            assert client.get_model("m2").created == 7
            with pytest.raises(NotFoundError):
                client.get_model("m3")

    def test_faults(self) -> None:
        """A refusal is raised, a silence runs into its clock, a cut comes with the stream: as with any client."""
        silent, cut = Reply(head_delay=math.inf), Reply("one two", finish_reason=None, done=False)
        with FakeClient(Reply.error(400), silent, cut, retry=Retry(max_retries=0)) as client:
            with pytest.raises(BadRequestError):
                client.chat_completion_stream(REQUEST)
            with pytest.raises(APITimeoutError):
                client.chat_completion_stream(REQUEST, timeout=0.1)
            *_, last = client.chat_completion_stream(REQUEST)
            assert isinstance(last.error, StreamTruncatedError)

    def test_retries(self) -> None:
        """It tries again as any client, and as often as it is told."""
        with FakeClient(Reply.error(429), "then", retry=AT_ONCE) as client:
            assert client.chat_completion_stream(REQUEST).collect().text == "then"
            assert len(client.requests) == 2
        with FakeClient(Reply.error(429), retry=Retry(max_retries=0)) as client:
            with pytest.raises(RateLimitError):
                client.chat_completion(REQUEST)
            assert len(client.requests) == 1


class TestTheRecord:
    def test_of_requests(self) -> None:
        """What was asked is kept as a server keeps it; at first it is nothing."""
        with FakeClient("one") as client:
            assert client.requests == ()
            client.chat_completion(REQUEST)
            (asked,) = client.requests
            assert asked.path == "/v1/chat/completions"
            assert asked.json["messages"] == [{"role": "user", "content": "Say it."}]
            assert client.server.connections == 1

    @pytest.mark.parametrize(("key", "sent"), [({}, None), ({"api_key": "my-key"}, "Bearer my-key")])
    def test_of_the_key(self, monkeypatch: pytest.MonkeyPatch, key: dict[str, str], sent: str | None) -> None:
        """No key is needed, looked for, or sent, unless one is given."""
        monkeypatch.setenv("MISTRAL_API_KEY", "the-real-one")
        with FakeClient("one", **key) as client:
            client.chat_completion(REQUEST)
            assert client.requests[0].headers.get("Authorization") == sent
            assert "key" not in repr(client)

    def test_in_its_repr(self) -> None:
        """Its repr says what it is and how often it was asked."""
        with FakeClient("one", dialect="groq") as client:
            assert repr(client) == "<FakeClient groq, 0 requests>"
            client.chat_completion(REQUEST)
            assert repr(client) == "<FakeClient groq, 1 requests>"


class TestItsLife:
    def test_starts_with_the_first_request(self) -> None:
        """Until the first request there is no thread and no socket; a wrong argument is told at once all the same."""
        before = servers()
        client = FakeClient("one")
        assert servers() == before
        client.chat_completion(REQUEST)
        assert servers() == before + 1
        client.close()
        assert servers() == before

    def test_starts_once(self) -> None:
        """Threads that ask first at the same moment are answered by one server."""
        before, together = servers(), threading.Barrier(8)

        def ask() -> str:
            together.wait(5 * SCALE)
            return client.chat_completion(REQUEST).text

        with FakeClient("one") as client, ThreadPoolExecutor(8) as pool:
            assert [task.result() for task in [pool.submit(ask) for _ in range(8)]] == ["one"] * 8
            assert len(client.requests) == 8
            assert servers() == before + 1

    def test_after_its_end(self) -> None:
        """Closing twice does nothing; a request after it is refused clearly, what was asked can still be read."""
        with FakeClient("one") as client:
            client.chat_completion(REQUEST)
        client.close()
        for ask in (client.chat_completion, client.chat_completion_stream):
            with pytest.raises(RuntimeError, match="this FakeClient has been closed: make a new one"):
                ask(REQUEST)
        assert len(client.requests) == 1

    def test_closed_before_it_was_used(self) -> None:
        """A client that was never asked can be closed, and is then closed."""
        client = FakeClient("one")
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.list_models()
        assert client.requests == ()

    def test_closed_under_a_stream(self) -> None:
        """Closing it cuts a stream that still runs, even one that would never end."""
        client = FakeClient(Reply("one two", stall_after=1))
        stream = client.chat_completion_stream(REQUEST)
        assert next(stream).text == "one"
        client.close()
        *_, last = stream
        assert isinstance(last.error, StreamInterruptedError)

    def test_with_other_settings(self) -> None:
        """A client of its with other settings asks the same server, which lives as long as it does."""
        before = servers()
        other = FakeClient("one", Reply.error(500), "two").with_options(max_retries=0)
        assert [other.chat_completion(REQUEST).text] == ["one"]
        with pytest.raises(InternalServerError):
            other.chat_completion(REQUEST)
        assert other.chat_completion_stream(REQUEST).collect().text == "two"
        del other
        assert within(5, lambda: servers() <= before)

    def test_siblings(self) -> None:
        """A client made of such a client lives as it does, its streams keep the server, and it cannot travel either."""
        before = servers()
        other = FakeClient(Reply("one two three", pace=0.05)).with_options(buffer=4).with_options(buffer=5)
        stream = other.chat_completion_stream(REQUEST)
        with pytest.raises(TypeError, match="FakeClient"):
            pickle.dumps(other)
        del other
        gc.collect()
        assert stream.collect().text == "one two three"
        del stream
        assert within(5, lambda: servers() <= before)

    def test_observers_in_an_iterator(self) -> None:
        """Observers that can be listed once are told all the same."""
        facts: list[object] = []
        with FakeClient("one", observers=iter([facts.append])) as client:
            client.chat_completion(REQUEST)
        assert facts

    def test_dropped(self) -> None:
        """A client that nobody holds is closed: its server ends without being told."""
        before = servers()
        client = FakeClient("one")
        client.chat_completion(REQUEST)
        gone = weakref.ref(client)
        del client
        gc.collect()
        assert gone() is None
        assert within(SCALE, lambda: servers() == before)

    def test_dropped_under_a_stream(self) -> None:
        """A stream outlives the variable of its client; when both are gone, so is the server."""
        before = servers()
        stream = FakeClient(Reply(["a", "b", "c"], pace=0.02)).chat_completion_stream(REQUEST)
        gc.collect()
        assert [evt.text for evt in stream] == ["a", "b", "c", ""]
        assert stream.state == "complete"
        del stream
        gc.collect()
        assert within(SCALE, lambda: servers() == before)

    @pytest.mark.parametrize("used", [True, False])
    def test_at_the_end_of_the_program(self, used: bool) -> None:
        """A program that closes nothing, a stalled stream among it, ends by itself and without a word."""
        program = f"""
from chanstream import ChatCompletionRequest, UserMessage
from chanstream.testing import FakeClient, Reply
client = FakeClient(Reply("one two", stall_after=1))
if {used}:
    stream = client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage("?")]))
    print(next(stream).text)
"""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=20 * SCALE, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n" if used else "", "")


class TestWhatItRefuses:
    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"base_url": "http://127.0.0.1:1"}, TypeError, "^base_url: a FakeClient asks a server of its own"),
            ({"retry": 3}, TypeError, "^retry: expected Retry, got 3"),
            ({"errors": "loud"}, ValueError, "^errors: expected 'inband', 'raise'"),
            ({"session": "mine"}, TypeError, "^session: expected a requests.Session"),
            ({"tries": 3}, TypeError, "tries"),
            ({"api_key": 5}, TypeError, "^api_key: expected a text"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_arguments(self, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
        """A wrong argument is an error at once that names it, and starts nothing."""
        before = servers()
        with pytest.raises(error, match=words):
            FakeClient("one", **arguments)
        assert servers() == before

    def test_replies(self) -> None:
        """A reply that is none is refused when it is given."""
        with pytest.raises(TypeError, match="a reply must be a Reply or a str, not 5"):
            FakeClient("one", 5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a reply must be a Reply or a str, not None"):
            FakeClient().reply(None)  # type: ignore[arg-type]

    @pytest.mark.parametrize("vector", [5, None, b"AAAA", {"a": 1.0}, ["a"], [[1.0]]])
    def test_vectors(self, vector: Any) -> None:
        """What is no vector is refused when the reply is made."""
        with pytest.raises(TypeError, match="vectors must be sequences of numbers, or base64 of them, not "):
            Reply.embeddings([1.0], vector)

    @pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_to_travel(self, take: Any) -> None:
        """It can be neither pickled nor copied, and says why."""
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            take(FakeClient("one"))


class TestOtherWays:
    def test_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that the environment names is not asked: the server is right here."""
        with StreamServer(Reply.error(400, "by proxy")) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("no_proxy", "")
            monkeypatch.setenv("NO_PROXY", "")
            with FakeClient("one") as client:
                assert client.chat_completion(REQUEST).text == "one"
            assert proxy.connections == 0

    def test_a_session_of_the_caller(self) -> None:
        """A session that is given is used as it is, and left open."""
        with requests.Session() as session:
            session.headers["X-Mine"] = "yes"
            with FakeClient("one", session=session) as client:
                assert client.chat_completion_stream(REQUEST).collect().text == "one"
                assert client.requests[0].headers["X-Mine"] == "yes"
            assert session.trust_env

    @pytest.mark.parametrize("engine", ["poller", "threaded"])
    def test_either_engine(self, engine: str) -> None:
        """Both engines read it."""
        with FakeClient("one two", engine=engine) as client:
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"


def test_names() -> None:
    """The package has its public names, lists them, and no others."""
    assert set(chanstream.testing.__all__) <= set(dir(chanstream.testing))
    assert chanstream.testing.FakeClient is FakeClient
    with pytest.raises(AttributeError, match=r"^module 'chanstream\.testing' has no attribute 'MockClient'$"):
        _ = chanstream.testing.MockClient  # type: ignore[attr-defined]

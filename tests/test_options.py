"""What a client or a call sends in addition, settings for some calls only, and other kinds of completions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from chanstream import (
    AgentCompletionRequest,
    APITimeoutError,
    BadRequestError,
    ChatCompletionRequest,
    Client,
    CompletionStream,
    EmbeddingRequest,
    FIMCompletionRequest,
    InternalServerError,
    Retry,
    Timeout,
    UnprocessableEntityError,
    UserMessage,
)
from chanstream.extras import Extras
from chanstream.testing import Reply
from tests.conftest import REQUEST, Link

pytestmark = pytest.mark.usefixtures("nothing_left")

VECTORS = Reply.json({"data": [{"embedding": [1.0], "index": 0}]})


class Slow:
    """A limiter that lets the first request through, and no other."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self) -> float:
        """Say so."""
        self.asked += 1
        return 0.0 if self.asked == 1 else 1000.0


class TestExtras:
    @pytest.mark.parametrize("way", ["stream", "whole", "embeddings"])
    def test_of_a_call(self, link: Link, way: str) -> None:
        """Members of the body, headers and parts of the query are sent with the call, over what is sent anyway."""
        server = link.serve(VECTORS if way == "embeddings" else Reply("one"))
        client = link.client(server)
        extras: dict[str, Any] = {
            "extra_body": {"model": "another", "top_k": 0, "nothing": None},
            "extra_headers": {"X-Trace": "t-1", "user-agent": "mine/1"},
            "extra_query": {"api-version": "2026-01", "flag": True, "of": [1, 2.5]},
        }
        if way == "embeddings":
            client.embeddings(EmbeddingRequest("m", "text"), **extras)
        elif way == "whole":
            client.chat_completion(REQUEST, **extras)
        else:
            client.chat_completion_stream(REQUEST, **extras).collect()
        (request,) = server.requests
        assert request.json["model"] == "another"
        assert request.json["top_k"] == 0
        assert request.json["nothing"] is None
        assert request.headers["X-Trace"] == "t-1"
        assert request.headers["User-Agent"] == "mine/1"
        assert request.query == "api-version=2026-01&flag=true&of=1&of=2.5"

    def test_of_the_client(self, plain: Link) -> None:
        """What the client adds goes with every request, and what a call adds comes over that."""
        server = plain.serve("one")
        client = plain.client(
            server, extra_body={"a": 1, "b": 1}, extra_headers={"X-A": "1", "X-B": "1"}, extra_query={"a": 1, "b": 1}
        )
        client.chat_completion(REQUEST)
        client.chat_completion(REQUEST, extra_body={"b": 2}, extra_headers={"x-b": "2"}, extra_query={"b": 2})
        client.list_models()
        first, second, models = server.requests
        assert [(r.json["a"], r.json["b"]) for r in (first, second)] == [(1, 1), (1, 2)]
        assert [(r.headers["X-A"], r.headers["X-B"]) for r in server.requests] == [("1", "1"), ("1", "2"), ("1", "1")]
        assert [r.query for r in server.requests] == ["a=1&b=1", "a=1&b=2", "a=1&b=1"]
        assert models.body == b""

    def test_many_different_headers_are_forgotten(self, plain: Link) -> None:
        """A header that differs in each request, such as an id, does not fill the memory."""
        server = plain.serve("one")
        client = plain.client(server)
        for number in range(200):
            client.chat_completion(REQUEST, extra_headers={"X-Request-Id": str(number)})
        assert [request.headers["X-Request-Id"] for request in server.requests] == [str(n) for n in range(200)]
        assert len(client.caller.transport._session()._prepared) < 100  # type: ignore[attr-defined]

    def test_the_key_stays_the_clients(self, plain: Link) -> None:
        """A header cannot replace the client's key; a client without one may be given its own way of signing in."""
        server = plain.serve("one")
        plain.client(server).chat_completion(REQUEST, extra_headers={"Authorization": "Basic x"})
        plain.client(server, api_key="").chat_completion(REQUEST, extra_headers={"Authorization": "Basic x"})
        assert [request.headers["Authorization"] for request in server.requests] == ["Bearer test-key", "Basic x"]

    @pytest.mark.parametrize(
        ("name", "value", "kind", "text"),
        [
            ("extra_body", [1], TypeError, "extra_body: expected a mapping, got list"),
            ("extra_body", {1: 2}, TypeError, "extra_body: expected names that are texts, got 1"),
            ("extra_body", {"stream": False}, ValueError, "extra_body: 'stream'"),
            ("extra_body", {"a": object()}, TypeError, "serializable"),
            ("extra_headers", "x", TypeError, "extra_headers: expected a mapping, got str"),
            ("extra_headers", {"a b": "1"}, ValueError, "extra_headers: 'a b' is no header"),
            ("extra_headers", {"": "1"}, ValueError, "extra_headers: '' is no header"),
            ("extra_headers", {"Content-Length": "1"}, ValueError, "'Content-Length' is no header that can be set"),
            ("extra_headers", {"host": "elsewhere"}, ValueError, "'host' is no header that can be set"),
            ("extra_headers", {"X": 1}, TypeError, r"extra_headers\['X'\]: expected a text, got int"),
            ("extra_headers", {"X": "a\r\nY: b"}, ValueError, r"extra_headers\['X'\]: expected text on one line"),
            ("extra_headers", {"X": " a"}, ValueError, r"extra_headers\['X'\]: expected text on one line"),
            ("extra_headers", {"X": "\xa0a"}, ValueError, r"extra_headers\['X'\]: expected text on one line"),
            ("extra_headers", {"X": "€"}, ValueError, r"extra_headers\['X'\]: .*Latin-1"),
            ("extra_query", 1, TypeError, "extra_query: expected a mapping, got int"),
            ("extra_query", {"a": {}}, TypeError, r"extra_query\['a'\]: expected a text, a number"),
            ("extra_query", {"a": [None]}, TypeError, r"extra_query\['a'\]: expected a text, a number"),
        ],
    )
    def test_that_cannot_be(self, plain: Link, name: str, value: Any, kind: type[Exception], text: str) -> None:
        """What cannot be sent is told by name, on the call and on the client, and nothing is sent."""
        server = plain.serve("one")
        for call in (
            lambda: plain.client(server).chat_completion_stream(REQUEST, **{name: value}),
            lambda: plain.client(server).chat_completion(REQUEST, **{name: value}),
            lambda: plain.client(server).with_options(**{name: value}).chat_completion(REQUEST),
            lambda: plain.client(server, **{name: value}).chat_completion(REQUEST),
        ):
            with pytest.raises(kind, match=text):
                call()
        assert not server.requests

    def test_names_in_any_case(self, plain: Link) -> None:
        """A header of the call comes over one of the client's that is written otherwise."""
        server = plain.serve("one")
        client = plain.client(server, extra_headers={"X-A": "1"}).with_options(extra_headers={"x-a": "2"})
        client.chat_completion(REQUEST, extra_headers={"X-A": "3"})
        assert server.requests[0].headers["X-A"] == "3"

    def test_not_for_other_hosts(self, plain: Link) -> None:
        """On a redirect to another host the caller's headers, which may be keys, stay behind; on the same they go."""
        target = plain.serve("one")
        elsewhere = Reply(status=307, headers={"Location": target.url.replace("127.0.0.1", "localhost") + "/v1/x"})
        server = plain.serve(elsewhere)
        here = plain.serve(Reply(status=307, headers={"Location": "/v1/y"}), "one")
        for one in (server, here):
            plain.client(one).chat_completion(REQUEST, extra_headers={"api-key": "s3cret", "X-A": "1"})
        (asked,) = target.requests
        assert not {"api-key", "x-a", "authorization"} & {name.lower() for name in asked.headers}
        assert asked.json["model"] == "test-model"
        assert [request.headers["api-key"] for request in here.requests] == ["s3cret"] * 2

    def test_no_value_is_shown(self) -> None:
        """The error about a header does not show its value, which may be a secret."""
        with pytest.raises(ValueError, match="X-Secret") as caught:
            Client("key", extra_headers={"X-Secret": "s3cr3t\n"})
        assert "s3cr3t" not in str(caught.value)
        with pytest.raises(TypeError) as other:
            Client("key", extra_headers=["s3cr3t"])  # type: ignore[arg-type]
        assert "s3cr3t" not in str(other.value)
        assert "s3cr3t" not in repr(Extras(None, {"X": "s3cr3t"}, {"key": "s3cr3t"}))


class TestWithOptions:
    def test_changes_what_is_said_and_nothing_else(self, plain: Link) -> None:
        """The new client has the settings that were given, and all others of the old one, which stays as it was."""
        server = plain.serve(Reply.error(503), "one")
        old = plain.client(server, retry=Retry(min_delay=0.0, max_delay=0.0), extra_headers={"X-A": "1"})
        new = old.with_options(max_retries=0, extra_headers={"X-B": "2"})
        with pytest.raises(InternalServerError):
            new.chat_completion(REQUEST)
        assert old.chat_completion(REQUEST).text == "one"
        first, second = server.requests
        assert (first.headers["X-A"], first.headers["X-B"]) == ("1", "2")
        assert "X-B" not in second.headers
        assert new.caller.retry == Retry(max_retries=0, min_delay=0.0, max_delay=0.0)

    def test_shares_the_connections(self, link: Link) -> None:
        """The clients use the same connections, and closing one closes them for both, until they are needed again."""
        server = link.serve("one")
        old = link.client(server)
        new = old.with_options(buffer=3)
        for client in (old, new, new.with_options(errors="raise")):
            assert client.chat_completion_stream(REQUEST).collect().text == "one"
        assert {request.connection for request in server.requests} == {1}
        new.close()
        assert old.chat_completion(REQUEST).text == "one"

    def test_each_setting(self, plain: Link) -> None:
        """Every setting that can be given has its effect."""
        client = plain.client(plain.serve(Reply("one", head_delay=float("inf"))))
        with pytest.raises(APITimeoutError, match=r"0\.05 s"):
            client.with_options(timeout=0.05).chat_completion(REQUEST)
        with pytest.raises(APITimeoutError, match="first_chunk"):
            client.with_options(timeout=Timeout(first_chunk=0.05)).chat_completion(REQUEST)
        full = plain.client(plain.serve("one two three")).with_options(buffer=2).chat_completion_stream(REQUEST)
        assert full.maxsize == 2
        full.close()
        cut = plain.client(plain.serve(Reply("one two", stall_after=1)), timeout=Timeout(idle=0.05))
        with pytest.raises(APITimeoutError, match="idle"):
            list(cut.with_options(errors="raise").chat_completion_stream(REQUEST))
        limited = plain.client(plain.serve("one")).with_options(rate_limiter=Slow(), timeout=0.05)
        with pytest.raises(APITimeoutError):
            [limited.chat_completion(REQUEST) for _ in range(2)]

    def test_without_the_variable(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """The key is that of the client, though the variable that it came from has gone."""
        server = plain.serve("one")
        monkeypatch.setenv("OPENAI_API_KEY", "from-there")
        client = plain.client(server, api_key=None)
        monkeypatch.delenv("OPENAI_API_KEY")
        client.with_options(buffer=3).chat_completion(REQUEST)
        assert server.requests[0].headers["Authorization"] == "Bearer from-there"

    def test_can_be_pickled(self, plain: Link) -> None:
        """A copy in another process has the same settings."""
        server = plain.serve("one")
        client = plain.client(server).with_options(max_retries=7, extra_query={"a": 1})
        copied = pickle.loads(pickle.dumps(client))
        assert copied.caller.retry.max_retries == 7
        copied.chat_completion(REQUEST)
        copied.close()
        copy.copy(client).close()
        assert server.requests[0].query == "a=1"

    @pytest.mark.parametrize(
        ("settings", "kind", "text"),
        [
            ({"timeout": "1"}, TypeError, "timeout"),
            ({"retry": 3}, TypeError, "retry"),
            ({"max_retries": -1}, ValueError, "max_retries"),
            ({"max_retries": "3"}, TypeError, "max_retries"),
            ({"buffer": 0}, ValueError, "buffer"),
            ({"errors": "ignore"}, ValueError, "errors"),
            (
                {"rate_limiter": object()},
                TypeError,
                r"rate_limiter: expected an object with ask\(\), such as ",
            ),
            ({"rate_limiter": Slow}, TypeError, "rate_limiter: expected an object, got the class Slow"),
            ({"base_url": "http://elsewhere"}, TypeError, "base_url"),
        ],
    )
    def test_that_cannot_be(self, settings: dict[str, Any], kind: type[Exception], text: str) -> None:
        """A wrong setting is told by name; who is asked, and with which key, is another client's."""
        with pytest.raises(kind, match=text):
            Client("key").with_options(**settings)


class TestOtherCompletions:
    @pytest.mark.parametrize("way", ["stream", "whole"])
    def test_an_agents(self, link: Link, way: str) -> None:
        """An agent is asked at its own path, and answers as a chat does."""
        server = link.serve(Reply("one two"))
        client = link.client(server, dialect="mistral")
        request = AgentCompletionRequest("ag-1", [UserMessage("Hi")], max_tokens=0, random_seed=7, n=1)
        answer: Any = (client.agent_completion_stream if way == "stream" else client.agent_completion)(request)
        assert (answer.collect() if way == "stream" else answer).text == "one two"
        (asked,) = server.requests
        assert asked.path == "/v1/agents/completions"
        stream = {"stream": True} if way == "stream" else {}
        assert asked.json == {
            "agent_id": "ag-1",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 0,
            "random_seed": 7,
            "n": 1,
            **stream,
        }

    @pytest.mark.parametrize("way", ["stream", "whole"])
    def test_code_to_fill_in(self, link: Link, way: str) -> None:
        """Code is filled in between a prompt and a suffix, and comes as a chat's answer does."""
        server = link.serve(Reply("return 1"))
        client = link.client(server, dialect="mistral")
        request = FIMCompletionRequest("codestral-latest", "def one():", "\n", temperature=0.0, stop=["\n\n"])
        answer: Any = (client.fim_completion_stream if way == "stream" else client.fim_completion)(request)
        assert (answer.collect() if way == "stream" else answer).text == "return 1"
        (asked,) = server.requests
        assert asked.path == "/v1/fim/completions"
        stream = {"stream": True} if way == "stream" else {}
        assert asked.json == {
            "model": "codestral-latest",
            "prompt": "def one():",
            "suffix": "\n",
            "temperature": 0.0,
            "stop": ["\n\n"],
            **stream,
        }

    @pytest.mark.parametrize("dialect", ["groq", "openai"])
    def test_only_mistral_has_them(self, plain: Link, dialect: str) -> None:
        """Where the dialect has no such endpoint, that is told, and nothing is sent."""
        server = plain.serve("one")
        client = plain.client(server, dialect=dialect)
        with pytest.raises(ValueError, match=f"the '{dialect}' dialect has no /fim/completions"):
            client.fim_completion(FIMCompletionRequest("m", "p"))
        with pytest.raises(ValueError, match=f"the '{dialect}' dialect has no /agents/completions"):
            client.agent_completion_stream(AgentCompletionRequest("a", [UserMessage("Hi")]))
        assert not server.requests

    @pytest.mark.parametrize(
        ("make", "kind", "text"),
        [
            (lambda: FIMCompletionRequest("", "p"), ValueError, "model"),
            (lambda: FIMCompletionRequest("m", None), TypeError, "prompt"),  # type: ignore[arg-type]
            (lambda: FIMCompletionRequest("m", "p", suffix=1), TypeError, "suffix"),  # type: ignore[arg-type]
            (lambda: FIMCompletionRequest("m", "p", min_tokens="1"), TypeError, "min_tokens"),
            (lambda: AgentCompletionRequest("", [UserMessage("Hi")]), ValueError, "agent_id"),
            (lambda: AgentCompletionRequest("a", None), TypeError, "messages"),  # type: ignore[arg-type]
            (lambda: AgentCompletionRequest("a", [UserMessage("Hi")], n=0), ValueError, "n: expected 1 or more"),
        ],
    )
    def test_wrong_requests(self, make: Any, kind: type[Exception], text: str) -> None:
        """What cannot be asked is told by name."""
        with pytest.raises(kind, match=text):
            make()

    def test_a_class_of_the_callers(self, plain: Link) -> None:
        """A request of a class made from one of these goes the way of that one."""

        class Mine(ChatCompletionRequest):
            pass

        server = plain.serve("one")
        plain.client(server).chat_completion(Mine("m", [UserMessage("Hi")]))
        assert server.requests[0].path == "/v1/chat/completions"

    def test_each_takes_its_own_request(self) -> None:
        """A request for something else is refused by name."""
        client = Client("key")
        for call, wrong in [
            (client.chat_completion, FIMCompletionRequest("m", "p")),
            (client.fim_completion_stream, REQUEST),
            (client.agent_completion, REQUEST),
            (client.agent_completion_stream, FIMCompletionRequest("m", "p")),
        ]:
            with pytest.raises(TypeError, match=r"^request: expected \w+Request, got \w+Request$"):
                call(wrong)  # type: ignore[operator]

    @pytest.mark.parametrize("kind", [FIMCompletionRequest, AgentCompletionRequest])
    def test_there_and_back(self, kind: Any) -> None:
        """They are read from JSON and written as it, with what they do not know."""
        data = {"model": "m", "prompt": "p", "suffix": "s"} if kind is FIMCompletionRequest else {"agent_id": "a"}
        messages = {} if kind is FIMCompletionRequest else {"messages": [{"role": "user", "content": "Hi"}]}
        whole = {**data, **messages, "max_tokens": 3, "unheard_of": [1]}
        assert kind.from_dict(whole).to_dict() == whole


def refusal(status: int, text: str, param: str | None = None) -> Reply:
    """Return a refusal with these words."""
    return Reply.json({"error": {"message": text, "type": "invalid_request_error", "param": param}}, status=status)


class TestTheOptionOfARefusal:
    @pytest.mark.parametrize(
        ("reply", "option"),
        [
            (refusal(400, "property 'reasoning_effort' is unsupported"), "reasoning_effort"),
            (refusal(400, "Unknown parameter: `user`."), "user"),
            (refusal(400, "not supported", "seed"), "random_seed, sent as seed"),
            (refusal(400, "not supported", "messages[0].content"), None),
            (refusal(400, "the user has no such model"), None),
            (refusal(422, "top_logprobs needs logprobs"), "top_logprobs"),
            (refusal(400, "no such option: top_k"), "top_k"),
            (refusal(400, "max_tokens is too large"), None),
            (
                Reply.json({"detail": [{"loc": ["body", "user"], "msg": "Extra inputs", "type": "extra"}]}, status=422),
                "user",
            ),
        ],
    )
    @pytest.mark.parametrize("way", ["stream", "whole"])
    def test_is_told(self, plain: Link, reply: Reply, option: str | None, way: str) -> None:
        """A 400 or 422 that names an option tells which of ours it is; a word of any sentence does not count."""
        request = ChatCompletionRequest(
            "m",
            [UserMessage("Hi")],
            random_seed=7,
            reasoning_effort="low",
            user="u",
            top_logprobs=1,
            extra={"top_k": 3},
        )
        client = plain.client(plain.serve(reply))
        ask: Any = client.chat_completion if way == "whole" else client.chat_completion_stream
        with pytest.raises((BadRequestError, UnprocessableEntityError)) as caught:
            ask(request)
        assert caught.value.option == option
        assert option is None or option in str(caught.value)
        assert ("because of the option" in str(caught.value)) == (option is not None and "," in option)

    def test_of_embeddings(self, plain: Link) -> None:
        """A request for embeddings has options too."""
        client = plain.client(plain.serve(refusal(400, "output_dtype: not here")), dialect="mistral")
        with pytest.raises(BadRequestError, match="output_dtype: not here"):
            client.embeddings(EmbeddingRequest("m", "text", output_dtype="int8"))

    def test_no_other_status(self, plain: Link) -> None:
        """Of other refusals no option is the cause."""
        client = plain.client(plain.serve(refusal(500, "'user' broke it")))
        with pytest.raises(InternalServerError) as caught:
            client.chat_completion(ChatCompletionRequest("m", [UserMessage("Hi")], user="u"))
        assert caught.value.option is None


def test_streams_are_streams(plain: Link) -> None:
    """All streams are of one kind, with state and head."""
    client = plain.client(plain.serve("one"), dialect="mistral")
    with client.fim_completion_stream(FIMCompletionRequest("m", "p")) as stream:
        assert isinstance(stream, CompletionStream)
        assert stream.response.status_code == 200

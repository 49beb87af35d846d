"""OpenAI's official package, pointed at the proxy, gets from it what it gets from the server itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from chanstream import Client, Retry
from chanstream.relay.wsgi import proxy
from chanstream.testing import Reply, StreamServer
from tests.relay.conftest import SERVERS

openai = pytest.importorskip("openai")

MESSAGES: Any = [{"role": "user", "content": "Say it."}]
KEY = "sk-the-key-that-stays-here-0123456789"
USAGE = {
    "prompt_tokens": 3, "completion_tokens": 14, "total_tokens": 17,
    "completion_tokens_details": {"reasoning_tokens": 2}, "prompt_tokens_details": {"cached_tokens": 1},
}  # fmt: skip
ENVELOPE = {
    "id": "1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "a-model",
    "system_fingerprint": "fp_1",
}


def chunk(finish_reason: str | None = None, /, **delta: Any) -> dict[str, Any]:
    """Return a chunk as OpenAI's servers send it if usage is asked for."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**ENVELOPE, "choices": [choice], "usage": None}


def call(index: int, arguments: str, id: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Return a chunk with a fragment of a tool call."""
    begun = {"id": id, "type": "function"} if id else {}
    function = {**({"name": name} if name else {}), "arguments": arguments}
    return chunk(tool_calls=[{"index": index, **begun, "function": function}])


TRAILING = {**ENVELOPE, "choices": [], "usage": USAGE}
CALLS = [
    call(0, "", "call_1", "weather"),
    call(0, '{"city": '),
    call(1, "", "call_2", "time"),
    call(0, '"Zürich"}'),
    call(1, "{}"),
]
STREAMS = {
    "text": [chunk(role="assistant", content=""), chunk(content="Grüß "), chunk(content="Gott 😀"), chunk("stop")],
    "tool calls": [chunk(role="assistant", content=None), *CALLS, chunk("tool_calls")],
    "a refusal": [chunk(role="assistant", refusal="No."), chunk("content_filter")],
    "a limit": [chunk(content="And so"), chunk("length")],
}


@attrs.define
class Both:
    """The official package twice: in front of the server, and of the proxy."""

    upstream: StreamServer
    direct: Any
    relayed: Any
    reply: Reply = attrs.field(factory=Reply)

    def asked(self, reply: Reply, **options: Any) -> list[Any]:
        """Return what both get for the same question and reply: answers, or errors."""
        self.reply = reply
        return [self._told(client, options) for client in (self.direct, self.relayed)]

    def _told(self, client: Any, options: dict[str, Any]) -> Any:
        told: list[Any] = []
        try:
            answer = client.chat.completions.create(model="a-model", messages=MESSAGES, **options)
            if not options.get("stream"):
                return answer.model_dump()
            told.extend(each.model_dump() for each in answer)  # kept up to an error
        except openai.APIError as error:
            facts = ("message", "code", "param", "type", "body", "status_code")
            told.append((type(error).__name__, {name: getattr(error, name, None) for name in facts}))
        return told


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Both ways, open for all tests."""
    with contextlib.ExitStack() as exits:
        upstream = exits.enter_context(StreamServer(reply_with=lambda _: both.reply))
        settings: Any = {"base_url": upstream.url, "dialect": "openai", "retry": Retry(max_retries=0)}
        app = proxy(exits.enter_context(Client(KEY, **settings)), models=["a-model"])
        port = exits.enter_context(SERVERS["werkzeug"](app))
        urls = (upstream.url, f"http://127.0.0.1:{port}")
        keys = (KEY, "theirs")
        clients = [
            exits.enter_context(openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0))
            for key, url in zip(keys, urls, strict=True)
        ]
        both = Both(upstream, *clients)
        yield both


@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
def test_streams(both: Both, chunks: list[dict[str, Any]]) -> None:
    """Each chunk is the same, field by field: text, tool calls in pieces, refusals, and the usage in its own chunk."""
    reply = Reply(chunks=[*chunks, TRAILING, "[DONE]"])
    direct, relayed = both.asked(reply, stream=True, stream_options={"include_usage": True})
    assert relayed == direct
    assert direct[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert len(direct) == len(chunks) + 1


def test_usage_unasked(both: Both) -> None:
    """Where the caller does not ask for the usage it is on the last chunk all the same, and no chunk is added."""
    direct, relayed = both.asked(Reply(chunks=[chunk(content="Yes."), chunk("stop"), TRAILING, "[DONE]"]), stream=True)
    assert [each["choices"] for each in relayed] == [each["choices"] for each in direct[:-1]]
    assert relayed[-1]["usage"] == direct[-1]["usage"]


def test_the_accumulating_helper(both: Both) -> None:
    """The package's own helper, which puts a stream together, has the same events and the same answer."""
    both.reply = Reply(chunks=[*STREAMS["tool calls"], TRAILING, "[DONE]"])
    told = []
    for client in (both.direct, both.relayed):
        with client.chat.completions.stream(
            model="a-model", messages=MESSAGES, stream_options={"include_usage": True}
        ) as stream:
            events = [event.type for event in stream]
            told.append((events, stream.get_final_completion().model_dump()))
    assert told[0] == told[1]
    calls = told[1][1]["choices"][0]["message"]["tool_calls"]
    assert [each["function"]["arguments"] for each in calls] == ['{"city": "Zürich"}', "{}"]


@pytest.mark.parametrize("calls", [(), [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]])
def test_whole_answers(both: Both, calls: Any) -> None:
    """A whole answer is the same, field by field."""
    direct, relayed = both.asked(Reply("Grüß Gott", tool_calls=calls, usage=USAGE))
    assert relayed.pop("id") != direct.pop("id")  # the scripted server counts
    assert {**relayed, "created": 0} == {**direct, "created": 0}
    assert direct["usage"]["total_tokens"] == 17


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 404, 409, 422, 429, 500, 503])
def test_refusals(both: Both, status: int, stream: bool) -> None:
    """A refusal has the same class, status, message, type, code and field."""
    body = {"error": {"message": "Not like this.", "type": "a_type", "code": "a_code", "param": "messages"}}
    direct, relayed = both.asked(Reply.json(body, status), stream=stream)
    assert relayed == direct
    ((_, facts),) = relayed
    assert (facts["status_code"], facts["code"], facts["param"]) == (status, "a_code", "messages")


def test_an_error_in_the_stream(both: Both) -> None:
    """An error in the stream comes after the same chunks, with the same message, type and code."""
    error = {"message": "The GPU is on fire.", "type": "server_error", "code": "hot", "param": None}
    direct, relayed = both.asked(Reply(chunks=[chunk(content="one"), {"error": error}]), stream=True)
    assert relayed == direct
    assert relayed[-1][1]["message"] == "The GPU is on fire."


def test_what_is_sent(both: Both) -> None:
    """The server is asked the same both ways, with the proxy's key and not the caller's."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    options = {
        "temperature": 0, "top_p": 0.5, "max_completion_tokens": 7, "n": 2, "seed": 7, "stop": ["x"], "user": "me",
        "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}, "logit_bias": {"1": 2},
        "response_format": {"type": "json_object"}, "store": False, "metadata": {"a": "b"},
        "extra_body": {"unknown": [1, {"a": None}]},
    }  # fmt: skip
    both.asked(Reply("Yes."), **options)
    direct, relayed = both.upstream.requests[-2:]
    assert relayed.json == direct.json
    assert relayed.headers["Authorization"] == f"Bearer {KEY}"
    assert "theirs" not in str(list(relayed.headers.items()))
    assert not [name for name in relayed.headers if name.lower().startswith("x-stainless")]


def test_a_model_that_is_not_allowed(both: Both) -> None:
    """A model that is not allowed is the package's error for 403, with the proxy's words."""
    with pytest.raises(openai.PermissionDeniedError, match="'another' is not allowed here; allowed: a-model") as caught:
        both.relayed.chat.completions.create(model="another", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (403, "model_not_allowed", "model")


def test_models(both: Both) -> None:
    """The package lists the models that are allowed, and finds one."""
    assert [model.id for model in both.relayed.models.list()] == ["a-model"]
    assert both.relayed.models.retrieve("a-model").object == "model"

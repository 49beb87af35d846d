"""The official packages get from our scripted server what our own client gets, and ask it as ours does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from chanstream import (
    APIError,
    AssistantMessage,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Client,
    FunctionCall,
    Retry,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from chanstream.testing import Reply, StreamServer
from tests.peers.conftest import Peer

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])

MESSAGES = [{"role": "user", "content": "Say it."}]
REQUEST = ChatCompletionRequest("a-model", MESSAGES)
ASKED = {"model": "a-model", "messages": MESSAGES}

TEXT = 'Grüß Gott,\n  "quoted" \\ 漢字 and 😀, \u2028 no line end.\n\nThe end. '
CALLS = [
    {"id": f"call{n}abcde", "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'}}
    for n, city in enumerate(["Paris", "Zürich"])
]
USAGE = {"prompt_tokens": 3, "completion_tokens": 14, "total_tokens": 17}
REPLIES = {
    "text": Reply(TEXT),
    "nothing": Reply(""),
    "usage of the server's own": Reply(TEXT, usage=USAGE),
    "a limit": Reply(TEXT, finish_reason="length"),
    "tool calls": Reply(tool_calls=CALLS),
    "text and tool calls": Reply("Let me see. ", tool_calls=CALLS[:1]),
    "byte by byte": Reply(TEXT, split=1),
    "other line ends": Reply(TEXT, newline="\r\n"),
    "until the connection closes": Reply(TEXT, framing="close"),
    "of a known length": Reply(TEXT, framing="content-length"),
    "compressed": Reply(TEXT, compress="gzip"),
}


def outcome(answer: ChatCompletionResponse) -> dict[str, Any]:
    """Return an answer of ours as a peer tells its own."""
    usage, calls = answer.usage, [[call.id, call.function.name, call.function.arguments] for call in answer.tool_calls]
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "calls": calls,
        "finish_reason": answer.choices[0].finish_reason,
        "usage": usage and [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
    }


@attrs.define
class Pair:
    """A peer and our client in its dialect, before one server.

    Attributes:
        reply: What the server answers both.
    """

    peer: Peer
    server: StreamServer = attrs.field(init=False)
    client: Client = attrs.field(init=False)
    reply: Reply | str = "Yes."

    def ask(self, reply: Reply, stream: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what both make of the same reply."""
        self.reply = reply
        theirs = self.peer.ask(self.server.url, stream, ASKED)
        try:
            ours = outcome(self.answer(REQUEST, stream))
        except APIError as error:
            status = getattr(error, "status_code", None)
            ours = {"error": type(error).__name__, "status": status, "message": str(error)}
        return theirs, ours

    def bodies(self, asked: dict[str, Any], request: ChatCompletionRequest, stream: bool) -> list[Any]:
        """Return the JSON that both send for the same request."""
        self.reply = "Yes."
        assert "error" not in self.peer.ask(self.server.url, stream, asked)
        self.answer(request, stream)
        return [recorded.json for recorded in self.server.requests[-2:]]

    def answer(self, request: ChatCompletionRequest, stream: bool) -> ChatCompletionResponse:
        """Return what our client gets."""
        return self.client.chat_completion_stream(request).collect() if stream else self.client.chat_completion(request)


@pytest.fixture(scope="module")
def pair(peer: Peer) -> Iterator[Pair]:
    """Each peer, beside ours."""
    pair = Pair(peer)
    with (
        StreamServer(reply_with=lambda _: pair.reply) as pair.server,
        Client("a-key", base_url=pair.server.url, dialect=peer.dialect, retry=Retry(max_retries=0)) as pair.client,
    ):
        yield pair


@BOTH
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_answers(pair: Pair, reply: Reply, stream: bool) -> None:
    """Text, tool calls, finish reason and usage are the same, whatever is said and however it is framed."""
    theirs, ours = pair.ask(reply, stream)
    assert theirs == ours
    assert ours["text"] == "".join(reply.text)
    assert ours["calls"] == [[call["id"], *call["function"].values()] for call in reply.tool_calls]
    assert ours["usage"] is not None


def chunk(finish_reason: str | None = None, /, *, usage: Any = None, **delta: Any) -> dict[str, Any]:
    """Return a chunk."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "a-model", "choices": [choice]}
    return {**whole, **({"usage": usage} if usage else {})}


def whole(**message: Any) -> Reply:
    """Return an answer without streaming."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    envelope = {"id": "1", "object": "chat.completion", "created": 1, "model": "a-model"}
    return Reply.json({**envelope, "choices": [choice], "usage": USAGE})


def thinking(text: str) -> dict[str, Any]:
    """Return what Mistral's models think, as they say it."""
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


THOUGHTS = {
    "mistralai": (
        Reply(
            chunks=[
                chunk(role="assistant", content=""),
                chunk(content=[thinking("Six times ")]),
                chunk(content=[thinking("seven.")]),
                chunk(content=[{"type": "text", "text": "Forty"}]),
                chunk(content="-two."),
                chunk("stop", usage=USAGE, content=""),
                "[DONE]",
            ]
        ),
        whole(content=[thinking("Six times seven."), {"type": "text", "text": "Forty-two."}]),
    ),
    "groq": (
        Reply(
            chunks=[
                chunk(role="assistant", content=""),
                chunk(reasoning="Six times "),
                chunk(reasoning="seven."),
                chunk(content="Forty-two."),
                {**chunk("stop"), "x_groq": {"id": "req_1", "usage": USAGE}},
                "[DONE]",
            ]
        ),
        whole(content="Forty-two.", reasoning="Six times seven."),
    ),
    "openai": (
        Reply("Forty-two.", reasoning="Six times seven.", usage=USAGE, usage_chunk=True),
        Reply("Forty-two.", reasoning="Six times seven.", usage=USAGE),
    ),
}


@BOTH
def test_thoughts(pair: Pair, stream: bool) -> None:
    """What the model thinks is told apart from what it says, wherever the package's own servers put it."""
    theirs, ours = pair.ask(THOUGHTS[pair.peer.name][not stream], stream)
    assert theirs == ours
    assert (ours["text"], ours["reasoning"]) == ("Forty-two.", "Six times seven.")
    assert ours["usage"] == list(USAGE.values())


def test_calls_in_pieces(pair: Pair) -> None:
    """Two tool calls whose arguments come in pieces, mixed, are put together the same."""
    pieces = [
        {"index": 0, "id": "call0abcd", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"name": "", "arguments": '{"city": '}},
        {"index": 1, "id": "call1abcd", "type": "function", "function": {"name": "time", "arguments": "{"}},
        {"index": 0, "function": {"name": "", "arguments": '"Oslo"}'}},
        {"index": 1, "function": {"name": "", "arguments": "}"}},
    ]
    chunks = [chunk(tool_calls=[piece]) for piece in pieces]
    reply = Reply(chunks=[*chunks, chunk("tool_calls", usage=USAGE, content=""), "[DONE]"])
    theirs, ours = pair.ask(reply, stream=True)
    assert theirs == ours
    assert ours["calls"] == [["call0abcd", "weather", '{"city": "Oslo"}'], ["call1abcd", "time", "{}"]]


@BOTH
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_refusals(pair: Pair, status: int, stream: bool) -> None:
    """A refusal is an error with the status and the server's words; where it has a class, ours has its name."""
    theirs, ours = pair.ask(Reply.error(status, "Not like this."), stream)
    assert theirs["status"] == ours["status"] == status
    assert "Not like this." in theirs["message"]
    assert "Not like this." in ours["message"]
    if pair.peer.name != "mistralai":  # which has one class for all
        assert theirs["error"] == ours["error"]


def test_an_error_in_the_stream(pair: Pair) -> None:
    """An error that a stream ends with is told by those that know of such errors, and by us, in the server's words."""
    error = {"error": {"message": "The GPU is on fire.", "type": "server_error", "code": None}}
    theirs, ours = pair.ask(Reply(chunks=[chunk(content="one"), error]), stream=True)
    assert "The GPU is on fire." in ours["message"]
    if pair.peer.name == "mistralai":
        assert theirs["error"] == "ResponseValidationError"
    else:
        assert "The GPU is on fire." in theirs["message"]
    assert theirs["text"] == "one"


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OPTIONS: dict[str, Any] = {
    "temperature": 0,
    "top_p": 0.5,
    "max_tokens": 7,
    "n": 2,
    "stop": ["\n\n"],
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": {"type": "object"}, "strict": True},
    },
}
CONVERSATION = [
    SystemMessage("Be brief."),
    UserMessage("Grüß Gott"),
    AssistantMessage("", [ToolCall("abcdefghi", FunctionCall("weather", '{"city": "Oslo"}'), type="function")]),
    ToolMessage("rain", "abcdefghi"),
]


def wanted(body: Any) -> Any:
    """Return what a request says, without what says nothing.

    Mistral's package sends some options as they are where nobody sets them; and a stream's usage is asked for by our
    client alone.
    """
    if isinstance(body, list):
        return [wanted(item) for item in body]
    if not isinstance(body, dict):
        return body
    unsaid = {"stream": False, "prefix": False, "index": 0, "stream_options": {"include_usage": True}}
    return {name: wanted(value) for name, value in body.items() if (name, value) not in unsaid.items()}


@BOTH
def test_requests(pair: Pair, stream: bool) -> None:
    """The same request with all of its options is the same JSON on the wire, and what is not set is left out."""
    seed = "random_seed" if pair.peer.name == "mistralai" else "seed"
    asked = {**ASKED, "messages": [message.to_dict() for message in CONVERSATION], **OPTIONS, seed: 7}
    request = ChatCompletionRequest("a-model", CONVERSATION, **OPTIONS, random_seed=7)
    theirs, ours = pair.bodies(asked, request, stream)
    assert wanted(theirs) == wanted(ours) == {**asked, **({"stream": True} if stream else {})}
    theirs, ours = pair.bodies(ASKED, REQUEST, stream)
    assert wanted(theirs) == wanted(ours) == {**ASKED, **({"stream": True} if stream else {})}

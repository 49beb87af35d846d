"""Chat completions: whole answers, retries, and both of them as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from chanstream import (
    AssistantMessage,
    BadRequestError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChunk,
    FinishReason,
    Function,
    InternalServerError,
    Retry,
    SystemMessage,
    Tool,
    UserMessage,
)
from chanstream.testing import Reply
from tests.conftest import Link
from tests.go_scenarios import QUICK, mistral

SYSTEM, USER = "Be brief.", "Good morning!"
MESSAGES = [SystemMessage(SYSTEM), UserMessage(USER)]
WIRE_MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
USAGE = {"prompt_tokens": 11, "total_tokens": 18, "completion_tokens": 7}


def answer(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """Return the JSON of a whole answer."""
    return {
        "id": "a-1",
        "created": 1764278339,
        "model": "a-model",
        "usage": USAGE,
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}],
    }


SAID = answer({"tool_calls": None, "content": "Morning."})


class TestCompletion:
    def test_a_whole_answer(self, plain: Link) -> None:
        """A request has nothing in it that was not set, parallel_tool_calls neither, and the answer is read."""
        server = plain.serve(Reply.json(SAID))
        response = mistral(plain, server).chat_completion(ChatCompletionRequest("a-model", MESSAGES))
        (choice,) = response.choices
        assert (choice.message.text, choice.message.tool_calls, choice.finish_reason) == ("Morning.", None, "stop")
        assert response.usage is not None
        assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (11, 7)
        assert (response.object, response.model, response.usage.total_tokens) == ("chat.completion", "a-model", 18)
        assert response.latency > 0
        (request,) = server.requests
        assert (request.method, request.path) == ("POST", "/v1/chat/completions")
        assert request.headers["Authorization"] == "Bearer test-key"
        assert request.json == {"model": "a-model", "messages": WIRE_MESSAGES}

    def test_tools(self, plain: Link) -> None:
        """Tools and a choice among them go out as they do there, and a call comes back with its arguments parsed."""
        call = {"id": "c-1", "index": 0, "function": {"name": "times", "arguments": '{"a": 6, "b": 7}'}}
        server = plain.serve(Reply.json(answer({"content": "", "tool_calls": [call]}, "tool_calls")))
        numbers = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}
        who = {"type": "object", "properties": {"id": {"type": "string"}}}
        tools = [Tool(Function("times", "Multiplies.", numbers)), Tool(Function("user", "Finds a user.", who))]
        request = ChatCompletionRequest(
            "a-model", MESSAGES, tools=tools, tool_choice="any", parallel_tool_calls=True
        )  # fmt: skip
        response = mistral(plain, server).chat_completion(request)
        assert response.choices[0].finish_reason == FinishReason.TOOL_CALLS
        (made,) = response.tool_calls
        assert (made.function.name, made.function.parsed_arguments()) == ("times", {"a": 6.0, "b": 7.0})
        assert server.requests[0].json == {
            "model": "a-model",
            "messages": WIRE_MESSAGES,
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "times", "description": "Multiplies.", "parameters": numbers},
                },
                {"type": "function", "function": {"name": "user", "description": "Finds a user.", "parameters": who}},
            ],
            "tool_choice": "any",
            "parallel_tool_calls": True,
        }

    def test_failures_of_the_server(self, plain: Link) -> None:
        """Two failures are tried again, whatever their bodies hold, and the third try succeeds."""
        failure = Reply(body=b'{"error":"for now"}\n', status=500, content_type="text/plain; charset=utf-8")
        short = {"choices": [{"message": {"role": "assistant", "content": "At last."}}]}
        server = plain.serve(failure, failure, Reply.json(short))
        response = mistral(plain, server).chat_completion(ChatCompletionRequest("a-model", MESSAGES))
        assert (response.text, len(response.choices), len(server.requests)) == ("At last.", 1, 3)

    def test_a_refusal(self, plain: Link) -> None:
        """A 400 is raised at once, in the Go client's form, with the status and the whole body on it."""
        body = {
            "object": "error",
            "message": {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "parallel_tool_callss"],
                        "msg": "Extra inputs are not permitted",
                        "input": True,
                    }
                ]
            },
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        server = plain.serve(Reply.json(body, 400))
        request = ChatCompletionRequest("a-model", MESSAGES, extra={"parallel_tool_callss": True})
        with pytest.raises(BadRequestError) as caught:
            mistral(plain, server, Retry(max_retries=5)).chat_completion(request)
        assert str(caught.value) == (
            "[400] invalid_request_error: extra_forbidden: Extra inputs are not permitted (body.parallel_tool_callss)"
        )
        assert (caught.value.status_code, caught.value.body) == (400, body)
        assert len(server.requests) == 1

    def test_a_timeout(self, plain: Link) -> None:
        """A transport of the user's own that times out is tried again."""

        class Flaky(HTTPAdapter):
            failures = 1

            def send(self, request: Any, **settings: Any) -> Any:
                if self.failures:
                    self.failures -= 1
                    raise requests.ConnectTimeout("no answer")
                return super().send(request, **settings)

        server = plain.serve(Reply.json(SAID))
        with requests.Session() as session:
            session.mount("http://", Flaky())
            client = plain.client(server, dialect="mistral", retry=QUICK, session=session, timeout=20)
            assert client.chat_completion(ChatCompletionRequest("a-model", MESSAGES)).text == "Morning."
        assert len(server.requests) == 1

    def test_too_many_failures(self, plain: Link) -> None:
        """After the last retry the failure is raised, as an error with its status; there it has no class of its own."""
        server = plain.serve(Reply(body=b'{"error":"unavailable"}', status=503))
        client = mistral(plain, server, Retry(max_retries=2, min_delay=0.001, max_delay=0.002))
        with pytest.raises(InternalServerError, match=r"^\[503\] unavailable$"):
            client.chat_completion(ChatCompletionRequest("a-model", MESSAGES))
        assert len(server.requests) == 3


class TestStream:
    def test_a_stream(self, plain: Link) -> None:
        """Events parted by more blank lines than need be, the last without one, come as chunks; the last has usage."""
        envelope = '"id":"s-1","object":"chat.completion.chunk","created":1768084548,"model":"a-model"'
        deltas = ['{"role":"assistant","content":""}', '{"content":"Good "}', '{"content":"day. "}']
        events = [f'{{{envelope},"choices":[{{"index":0,"delta":{d},"finish_reason":null}}]}}' for d in deltas]
        usage = '{"prompt_tokens":4,"total_tokens":6,"completion_tokens":2}'
        last = (
            f'{{{envelope},"choices":[{{"index":0,"delta":{{"content":""}},"finish_reason":"stop"}}],"usage":{usage}}}'
        )
        body = "".join(f"data: {event}\n\n\n" for event in [*events, last]) + "data: [DONE]\n"
        server = plain.serve(Reply(body=body.encode(), content_type="text/event-stream"))
        chunks = list(mistral(plain, server).chat_completion_stream(ChatCompletionRequest("a-model", MESSAGES)))
        assert [chunk.delta_message().text for chunk in chunks] == ["", "Good ", "day. ", ""]
        assert [chunk.is_last_chunk for chunk in chunks] == [False, False, False, True]
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.total_tokens) == (4, 6)
        assert chunks[-1].choices[0].finish_reason == FinishReason.STOP
        assert chunks[-1].total_latency > 0
        assert {(c.id, c.model, c.object, c.created) for c in chunks} == {
            ("s-1", "a-model", "chat.completion.chunk", 1768084548)
        }
        assert server.requests[0].json == {"model": "a-model", "messages": WIRE_MESSAGES, "stream": True}


class TestJSON:
    def test_an_answer(self) -> None:
        """An answer becomes a value and its JSON again; created stays the number of seconds that it is on the wire."""
        response = ChatCompletionResponse.from_dict(SAID)
        assert datetime.fromtimestamp(response.created, timezone.utc).isoformat() == "2025-11-27T21:18:59+00:00"
        assert response.to_dict() == SAID

    def test_a_chunk(self) -> None:
        """A chunk becomes a value and its JSON again, likewise."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}
        data = {"id": "s", "object": "chat.completion.chunk", "created": 1768084548, "model": "m", "choices": [choice]}
        chunk = CompletionChunk.from_dict(data)
        assert datetime.fromtimestamp(chunk.created, timezone.utc).isoformat() == "2026-01-10T22:35:48+00:00"
        assert (chunk.text, chunk.choices[0].finish_reason) == ("so", FinishReason.STOP)
        assert chunk.to_dict() == data

    def test_a_request(self) -> None:
        """A request is read back from its JSON, each message as what its role says."""
        data = {
            "model": "a-model",
            "messages": [*WIRE_MESSAGES, {"role": "assistant", "content": "Morning."}],
            "parallel_tool_calls": True,
        }
        request = ChatCompletionRequest.from_dict(data)
        messages = [*MESSAGES, AssistantMessage("Morning.")]
        assert request == ChatCompletionRequest("a-model", messages, parallel_tool_calls=True)
        assert list(request.messages) == messages
        assert request.to_dict() == data

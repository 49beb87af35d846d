"""The main job against llama.cpp's server: a real engine, whose tokens take the time that they take to compute.

Its model knows nothing, so each request makes it say something: by a grammar, by a schema, or by a tool it has to call.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chanstream import (
    AssistantMessage,
    AuthenticationError,
    BadRequestError,
    ChatCompletionRequest,
    Client,
    Function,
    JSONSchema,
    ResponseFormat,
    Retry,
    StreamInterruptedError,
    Tool,
    ToolMessage,
    UserMessage,
)
from tests.conftest import PROMPT, SCALE, Link, producers, within
from tests.third_party.conftest import LLAMA
from tests.third_party.servers import Server, running

pytestmark = [
    pytest.mark.timeout(60, func_only=True),  # the first fixture may have to install the server
    pytest.mark.usefixtures("nothing_left"),
]

BOTH = pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])

TEXT = "Grüß Gott, 世界 👋!"
ENDLESS = {"grammar": 'root ::= "a"*', "logit_bias": {2: -100}}
CALL_ONCE = {"logit_bias": {260: 50, 2: 100}}
"""Makes a model that knows nothing draw the token that begins a call as soon as it may, and the end before another."""

WEATHER = Tool(
    Function(
        "weather",
        "Tell the weather.",
        {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    )
)


def asking(
    *, text: str | None = None, prompt: str = "Say it.", model: str = "tiny", **options: Any
) -> ChatCompletionRequest:
    """Return a request whose answer is the text, if one is given."""
    if text is not None:
        options["extra"] = {"grammar": f'root ::= "{text}"'}
    return ChatCompletionRequest(model, [UserMessage(prompt)], **{"max_tokens": 400, **options})


def answer_of(client: Client, request: ChatCompletionRequest, streaming: bool) -> Any:
    """Return the whole answer, streamed or not."""
    return client.chat_completion_stream(request).collect() if streaming else client.chat_completion(request)


@pytest.fixture
def client(llama: Server, plain: Link) -> Client:
    """A client. It tries again: the server closes connections that are kept, at times as a request is on its way."""
    return plain.client(llama.url, retry=Retry())


class TestAnswers:
    @BOTH
    def test_text_and_usage(self, client: Client, streaming: bool) -> None:
        """Text whose characters the engine makes byte by byte arrives whole, with usage."""
        answer = answer_of(client, asking(text=TEXT), streaming)
        assert answer.text == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == len(TEXT.encode()) + 1
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_chunks(self, client: Client) -> None:
        """A stream has a chunk for each character, and the last is the only one that says so, with the usage in it."""
        *before, last = client.chat_completion_stream(asking(text=TEXT))
        assert [chunk.text for chunk in before if chunk.text] == list(TEXT)
        assert last.is_last_chunk
        assert not any(chunk.is_last_chunk or chunk.error for chunk in before)
        assert last.usage is not None
        assert last.total_latency > 0

    @BOTH
    def test_an_answer_that_is_too_long(self, client: Client, streaming: bool) -> None:
        """An answer that the limit cuts says so."""
        answer = answer_of(client, asking(max_tokens=5, extra=ENDLESS), streaming)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 5

    @BOTH
    def test_a_schema(self, client: Client, streaming: bool) -> None:
        """A response format goes out as the engine reads it: its answer has that form, whatever the model knows."""
        schema = {
            "type": "object",
            "properties": {"name": {"enum": ["Ada"]}, "born": {"enum": [1815]}},
            "required": ["name", "born"],
            "additionalProperties": False,
        }
        request = asking(response_format=ResponseFormat("json_schema", JSONSchema("person", schema)))
        assert answer_of(client, request, streaming).output(dict) == {"name": "Ada", "born": 1815}

    def test_a_conversation_with_a_tool(self, client: Client) -> None:
        """A call whose arguments come a character at a time is put together, and its result goes back in."""
        request = asking(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, extra=CALL_ONCE)
        chunks = list(client.chat_completion_stream(request))
        assert sum(len(chunk.tool_calls) for chunk in chunks) > 10
        answer = client.chat_completion_stream(request).collect()
        (call,) = answer.tool_calls
        assert (call.function.name, call.function.parsed_arguments()) == ("weather", {"city": "Oslo"})
        assert answer.choices[0].finish_reason == "tool_calls"
        said = answer.assistant_message()
        assert isinstance(said, AssistantMessage)
        messages = [UserMessage("?"), said, ToolMessage("rain", call.id, "weather")]
        more = ChatCompletionRequest("tiny", messages, extra={"grammar": f'root ::= "{TEXT}"'})
        assert client.chat_completion_stream(more).collect().text == TEXT

    def test_a_tool_without_streaming(self, client: Client) -> None:
        """The whole answer has the same call."""
        request = asking(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, extra=CALL_ONCE)
        (call,) = client.chat_completion(request).tool_calls
        assert (call.function.name, call.function.parsed_arguments()) == ("weather", {"city": "Oslo"})

    def test_its_models(self, client: Client) -> None:
        """The list of models has the one that is there."""
        assert [card.id for card in client.list_models()] == ["tiny"]


class TestErrors:
    @BOTH
    def test_a_wrong_key(self, llama: Server, plain: Link, streaming: bool) -> None:
        """A wrong key is an AuthenticationError at the call, in the engine's words."""
        with pytest.raises(AuthenticationError) as caught:
            answer_of(plain.client(llama.url, api_key="wrong-key"), asking(), streaming)
        assert str(caught.value) == "[401] authentication_error: Invalid API Key"

    @BOTH
    def test_what_the_engine_cannot_do(self, client: Client, streaming: bool) -> None:
        """A grammar that is none is a BadRequestError at the call, in the engine's words."""
        with pytest.raises(BadRequestError, match="failed to parse grammar"):
            answer_of(client, asking(extra={"grammar": "broken ::="}), streaming)

    @BOTH
    def test_a_prompt_that_is_too_long(self, client: Client, streaming: bool) -> None:
        """A prompt longer than the context is a BadRequestError with the engine's counts in its body."""
        with pytest.raises(BadRequestError) as caught:
            answer_of(client, asking(prompt="word " * 8000), streaming)
        assert caught.value.type == "exceed_context_size_error"
        assert caught.value.body["error"]["n_prompt_tokens"] > caught.value.body["error"]["n_ctx"]

    def test_a_crash(self, engine_interpreter: Path, tmp_path: Path, plain: Link) -> None:
        """An engine that dies in the middle of an answer leaves what it had said, and an error."""
        with running(engine_interpreter, tmp_path / "log", str(LLAMA)) as server:
            stream = plain.client(server.url).chat_completion_stream(asking(max_tokens=30_000, extra=ENDLESS))
            before = [next(stream) for _ in range(10)]
            server.kill()
            *more, last = stream
        assert isinstance(last.error, StreamInterruptedError)
        assert set("".join(chunk.text for chunk in before + more)) == {"a"}

    def test_close(self, llama: Server, client: Client) -> None:
        """close() in the middle of an answer frees everything here at once, and the engine stops to compute."""
        begun = llama.log.stat().st_size
        stream = client.chat_completion_stream(asking(max_tokens=30_000, extra=ENDLESS))
        assert [next(stream).text for _ in range(3)]
        stream.close()
        assert within(PROMPT, lambda: producers() == 0)
        assert within(10 * SCALE, lambda: b"cancel task" in llama.log.read_bytes()[begun:])


def test_more_streams_than_the_engine_has_room_for(client: Client) -> None:
    """8 threads of which the engine serves 2 at a time get each the answer to their own question."""
    texts = [f"I am {number}." for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda text: client.chat_completion_stream(asking(text=text)).collect(), texts)
        assert [answer.text for answer in answers] == texts

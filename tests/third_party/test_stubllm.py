"""The main job against stubllm.

Its streams have no role, no usage, all tool calls under one index, and no finish reason with them: what an answer is
has to be told from what is there.
"""

from __future__ import annotations

import statistics
import time

import pytest

from chanstream import (
    ChatCompletionRequest,
    Client,
    RateLimitError,
    Retry,
    StreamTruncatedError,
    UserMessage,
)
from tests.conftest import Link
from tests.third_party.conftest import PIECES_APART_MS
from tests.third_party.servers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60, func_only=True),  # the first fixture may have to install the server
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def client(stubllm: Server, plain: Link) -> Client:
    """A client without retries."""
    return plain.client(stubllm.url)


def asking(prompt: str) -> ChatCompletionRequest:
    """Return a request that the server knows its answer to."""
    return ChatCompletionRequest("some-model", [UserMessage(prompt)])


def test_a_stream_without_roles_and_usage(client: Client) -> None:
    """A stream that has neither a role nor usage is complete with its finish reason."""
    answer = client.chat_completion_stream(asking("usage")).collect()
    assert answer.text == "counted"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is None


def test_the_usage_of_a_whole_answer(client: Client) -> None:
    """The same answer without streaming has the server's own token counts."""
    answer = client.chat_completion(asking("usage"))
    assert answer.text == "counted"
    assert answer.usage is not None
    counts = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert counts == (3, 4, 7)


def test_pieces_come_one_by_one(client: Client) -> None:
    """Each piece is delivered when the server sends it, so long after the one before, and its latency says so."""
    begun = time.monotonic()
    stream = client.chat_completion_stream(asking("slow"))
    first = next(stream)
    waited = time.monotonic() - begun
    others = list(stream)
    assert first.text + "".join(chunk.text for chunk in others) == "one two four five six"
    assert statistics.median(chunk.chunk_latency for chunk in others) > PIECES_APART_MS / 2000
    assert others[-1].total_latency > 5 * PIECES_APART_MS / 1000
    assert waited < others[-1].total_latency / 2


def test_calls_under_one_index(client: Client) -> None:
    """Two tool calls that the server sends under the same index are two, told apart by their ids."""
    answer = client.chat_completion_stream(asking("tools")).collect()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_Paris", "weather", '{"city": "Paris"}'),
        ("call_Lyon", "weather", '{"city": "Lyon"}'),
    ]


def test_done_without_a_finish_reason(client: Client, stubllm: Server, plain: Link) -> None:
    """[DONE] ends an answer that has no finish reason, unless the client requires one."""
    last = list(client.chat_completion_stream(asking("tools")))[-1]
    assert last.is_last_chunk
    assert last.choices[0].finish_reason is None
    strict = plain.client(stubllm.url, require_finish_reason=True)
    last = list(strict.chat_completion_stream(asking("tools")))[-1]
    assert isinstance(last.error, StreamTruncatedError)


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
def test_a_refusal(client: Client, streaming: bool) -> None:
    """A refusal is raised at the call, with the server's words."""
    with pytest.raises(RateLimitError) as caught:
        (client.chat_completion_stream if streaming else client.chat_completion)(asking("refused"))
    assert str(caught.value) == "[429] slow_down: Come back later."
    assert caught.value.code == "slow_down"
    assert caught.value.retry_after is None


def test_success_at_the_third_try(stubllm: Server, plain: Link) -> None:
    """A server that refuses twice and does not say how long to wait answers the third try, on the same connection."""
    begun = stubllm.log.stat().st_size
    client = plain.client(stubllm.url, retry=Retry(max_delay=0.05))
    assert client.chat_completion_stream(asking("refused twice")).collect().text == "welcome"
    assert stubllm.log.read_text()[begun:].count("429 Too Many Requests") == 2
    assert stubllm.connections(begun) == 1

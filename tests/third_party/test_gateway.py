"""The main job through LiteLLM's proxy, behind which llama.cpp's engine computes the answers."""

from __future__ import annotations

import pytest

from chanstream import APIStatusError, BadRequestError, Client, InternalServerError
from tests.conftest import PROMPT, Link, producers, within
from tests.third_party.servers import Server
from tests.third_party.test_llama import BOTH, CALL_ONCE, ENDLESS, TEXT, WEATHER, answer_of, asking

pytestmark = [
    pytest.mark.timeout(60, func_only=True),  # the first fixture may have to install the server
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def client(gateway: Server, plain: Link) -> Client:
    """A client of the proxy, without retries."""
    return plain.client(gateway.url, api_key="sk-test-key")


@BOTH
def test_text_and_usage(client: Client, streaming: bool) -> None:
    """The engine's text and its counts come through the proxy, in an envelope of the proxy's own."""
    answer = answer_of(client, asking(text=TEXT, model="engine"), streaming)
    assert answer.text == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(TEXT.encode()) + 1


def test_chunks(client: Client) -> None:
    """The pieces come one by one, and the last one alone says that it is; the usage, sent after it, is in it."""
    *before, last = client.chat_completion_stream(asking(text=TEXT, model="engine"))
    assert "".join(chunk.text for chunk in before) == TEXT
    assert len(before) >= len(TEXT)
    assert not any(chunk.is_last_chunk or chunk.error for chunk in before)
    assert last.is_last_chunk
    assert last.usage is not None


@BOTH
def test_a_tool(client: Client, streaming: bool) -> None:
    """A call comes through the proxy whole."""
    options = {"tool_choice": "required", "parallel_tool_calls": False, "extra": CALL_ONCE}
    answer = answer_of(client, asking(model="engine", tools=[WEATHER], **options), streaming)
    (call,) = answer.tool_calls
    assert (call.function.name, call.function.parsed_arguments()) == ("weather", {"city": "Oslo"})
    assert answer.choices[0].finish_reason == "tool_calls"


@BOTH
def test_errors_of_the_engine(client: Client, streaming: bool) -> None:
    """What the engine refuses is refused by the proxy with the same status, and the engine's words are in its own."""
    with pytest.raises(BadRequestError, match="failed to parse grammar"):
        answer_of(client, asking(model="engine", extra={"grammar": "broken ::="}), streaming)


@BOTH
def test_errors_of_the_proxy(client: Client, gateway: Server, plain: Link, streaming: bool) -> None:
    """A model that the proxy does not have, and a key that it does not know, are its own refusals."""
    with pytest.raises(BadRequestError, match="Invalid model name"):
        answer_of(client, asking(model="no-such-model"), streaming)
    with pytest.raises(APIStatusError) as caught:
        answer_of(plain.client(gateway.url, api_key="sk-wrong-key"), asking(model="engine"), streaming)
    assert caught.value.status_code in (400, 401)
    assert "sk-wrong-key" not in str(caught.value)


@BOTH
def test_nothing_behind_the_proxy(client: Client, streaming: bool) -> None:
    """A proxy whose upstream is down says so with a status of 500."""
    with pytest.raises(InternalServerError, match=r"(?i)connection error"):
        answer_of(client, asking(model="nowhere"), streaming)


def test_close(client: Client) -> None:
    """close() in the middle of an answer frees everything here at once, and the next request is served."""
    request = asking(model="engine", max_tokens=30_000, extra=ENDLESS)
    stream = client.chat_completion_stream(request)
    assert [next(stream).text for _ in range(3)]
    stream.close()
    assert within(PROMPT, lambda: producers() == 0)
    assert client.chat_completion_stream(asking(text=TEXT, model="engine")).collect().text == TEXT

"""``Client(think_tags=True)``: thoughts that a server sends inside the text, over real sockets."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from chanstream import Client, ReasoningDelta, StreamInterruptedError, TextDelta
from chanstream.calls import Engine
from chanstream.testing import Reply
from tests.conftest import REQUEST, SCALE, Link

pytestmark = pytest.mark.usefixtures("nothing_left")

ANSWER = "<think>let me see</think>so it is"


@pytest.mark.parametrize("engine", ["auto", "threaded"])
@pytest.mark.parametrize("split", [None, 1, 50])
def test_a_stream(plain: Link, engine: Engine, split: int | None) -> None:
    """Chunks and the collected answer have the thoughts apart, however the bytes are split."""
    reply = Reply(list(ANSWER), split=split)
    chunks = list(plain.stream(reply, think_tags=True, engine=engine))
    assert "".join(chunk.reasoning for chunk in chunks) == "let me see"
    assert "".join(chunk.text for chunk in chunks) == "so it is"
    assert "".join(chunk.raw["choices"][0]["delta"].get("content") or "" for chunk in chunks) == ANSWER
    answer = plain.stream(reply, think_tags=True, engine=engine).collect()
    assert (answer.reasoning, answer.text) == ("let me see", "so it is")


def test_events(plain: Link) -> None:
    """Events tell thoughts and text apart."""
    events = list(plain.stream(ANSWER, think_tags=True).events())
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "let me see"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "so it is"


def test_a_whole_answer(plain: Link) -> None:
    """An answer that is asked for without streaming is parted; its JSON and its latency stay."""
    answer = plain.client(plain.serve(ANSWER), think_tags=True).chat_completion(REQUEST)
    assert (answer.reasoning, answer.text) == ("let me see", "so it is")
    assert answer.choices[0].message.reasoning == "let me see"
    assert answer.raw["choices"][0]["message"]["content"] == ANSWER
    assert answer.latency > 0


def test_off(plain: Link) -> None:
    """Without the option the text is what the server sent: a model may speak of such tags."""
    client = plain.client(plain.serve(ANSWER, ANSWER))
    assert client.chat_completion_stream(REQUEST).collect().text == ANSWER
    assert client.chat_completion(REQUEST).text == ANSWER


def test_promptness(plain: Link) -> None:
    """A chunk of which all text is held back is there at once, while the server still speaks."""
    with plain.stream(Reply(["<th", "ink>h", "m"], stall_after=2), think_tags=True) as stream:
        chunks = [stream.get(timeout=5 * SCALE) for _ in range(2)]
    assert [(chunk.text, chunk.reasoning) for chunk in chunks] == [("", ""), ("", "h")]


def test_a_cut(plain: Link) -> None:
    """The partial answer of a stream that breaks off has all that came, half a tag too."""
    with pytest.raises(StreamInterruptedError) as caught:
        plain.stream(
            Reply(list("<think>hm</thi"), finish_reason=None, done=False, end="cut"), think_tags=True
        ).collect()
    assert caught.value.partial is not None
    assert (caught.value.partial.reasoning, caught.value.partial.text) == ("hm</thi", "")


def test_a_pickled_client(plain: Link) -> None:
    """The option travels with a pickled client."""
    with pickle.loads(pickle.dumps(plain.client(plain.serve(ANSWER), think_tags=True))) as client:
        assert client.chat_completion_stream(REQUEST).collect().text == "so it is"


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_a_wrong_value(value: Any) -> None:
    """What is neither true nor false is refused, by name."""
    with pytest.raises(TypeError, match=r"^think_tags: expected bool, got "):
        Client("key", think_tags=value)

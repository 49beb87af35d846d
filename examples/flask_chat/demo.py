"""A model for demos: a scripted server on this machine, which answers a few questions in Markdown, word by word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chanstream import Client
from chanstream.testing import RecordedRequest, Reply, StreamServer

HELLO = "Hello! I am a *demo*: these words come **one by one**, as a model's do. Ask me what I can do."

ABOUT = """\
I am no model: a scripted server on this machine plays one, so that the page has something to show. A few things to try:

- Ask *anything*, then ask again: the page sends the **conversation** along, and I count your questions.
- Stop an answer in the middle, with the button or `Esc`. The connection to the model is closed at once.
- Say **fail**, and see how an error looks. Say **cut**, and the answer breaks off.

With a key in `MISTRAL_API_KEY`, start the app without `--demo`, and Mistral answers."""

PYTHON = """\
A stream is drained with a `for` loop, as you would drain a channel in Go:

```python
from chanstream import ChatCompletionRequest, Client, UserMessage

client = Client()  # key from MISTRAL_API_KEY
question = UserMessage("Tell me a joke.")
request = ChatCompletionRequest("mistral-small-latest", [question])

for evt in client.chat_completion_stream(request):
    evt.raise_for_error()
    print(evt.text, end="", flush=True)
```

Three things happen on the way:

1. The **request** is sent, and the call returns once the head of the answer is in.
2. Each event is handed on *as its bytes arrive*; a slow reader holds the server back.
3. The **last chunk** has the reason why the model stopped, and the usage.

Leaving the loop early closes the connection, so nobody pays for words that are not read."""

_PARTS = """\
Once there was a thread that waited for a word. It had waited for so long that it no longer knew which.
One day the word came, in the middle of the night and split in two. The thread kept the first half, and waited.
“What are you waiting for?” asked the queue, which was full of other things. “Half a word is no word,” said the thread.
Then the second half came, and a third one that nobody had ordered. The thread put them in a row, and slept.
And if no one has cancelled it, it is sleeping there still, with one ear on the socket.
""".splitlines()

STORY = "\n\n".join(f"**{number}.** {part}" for number, part in enumerate(_PARTS * 3, start=1))


@contextmanager
def demo_client() -> Iterator[Client]:
    """Give a client of a model that needs no key; both end with the block."""
    with demo_model() as url, Client("no key", base_url=url) as client:
        yield client


@contextmanager
def demo_model(pace: float = 0.03) -> Iterator[str]:
    """Give the address of a model that needs no key; it ends with the block.

    Args:
        pace: Seconds between two words.
    """

    def reply_to(request: RecordedRequest) -> Reply:
        return _reply(request.json["messages"], pace)

    os.environ["no_proxy"] = "127.0.0.1"  # what is on this machine is reached without one
    with StreamServer(reply_with=reply_to, keep=0) as server:
        yield server.url


def _reply(messages: list[dict[str, Any]], pace: float) -> Reply:
    said = [message["content"] for message in messages if message["role"] == "user"]
    question = said[-1].strip().lower()
    if question == "fail":
        return Reply.error(503, "The demo model is out for lunch, as you asked.", headers={"Retry-After": "0"})
    beginning = messages[-1]["content"] if messages[-1].get("prefix") else ""
    if question == "cut" and not beginning:
        return Reply(STORY, pace=pace, first_delay=10 * pace, cut_at=4000, end="cut")
    return Reply(_after(beginning, _answer(question, said)), pace=pace, first_delay=10 * pace)


def _answer(question: str, said: list[str]) -> str:
    if "python" in question:
        return PYTHON
    if question in ("hello", "hi"):
        return HELLO
    if "story" in question or question == "cut":
        return STORY
    if len(said) > 1:
        return f"That is question number {len(said)}. The one before it was: *{said[-2]}*\n\n{ABOUT}"
    return ABOUT


def _after(beginning: str, answer: str) -> str:
    """Return what comes after a beginning."""
    return answer.removeprefix(beginning) if answer.startswith(beginning) else answer

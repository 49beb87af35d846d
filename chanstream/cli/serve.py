"""``chanstream serve``, and the server inside of a command with ``--demo``: answers without a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import click

from ..testing import RecordedRequest, Reply, StreamServer
from .render import complain

DEMO_PACE = 0.03
"""Seconds between two tokens of a demo answer: slow enough to see them come."""

_QUOTED = 120
"""How many characters of a prompt are quoted."""


def serve(host: str, port: int, pace: float, text: str | None) -> int:
    """Serve in the foreground until Ctrl-C, and return the exit status."""
    models = ("chanstream-demo",)
    server = StreamServer(host=host, port=port, reply_with=replies(pace, text), models=models, keep=0)
    try:
        server.start()
    except OSError as error:
        # Newer Pythons repeat the address in the text.
        complain(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).partition(' (while')[0]}")
        return 1
    try:
        print(_welcome(server.url), flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        pass  # the usual way to end it
    finally:
        server.close()
    return 0


@contextmanager
def demo_server(pace: float) -> Iterator[StreamServer]:
    """Give a server for one demo, which this process reaches without a proxy; ``pace``: seconds between two tokens."""
    os.environ["no_proxy"] = "127.0.0.1"
    with StreamServer(reply_with=replies(pace), keep=0) as server:
        yield server


def replies(pace: float, text: str | None = None) -> Callable[[RecordedRequest], Reply]:
    """Return how to reply to any request.

    Args:
        pace: Seconds between two tokens.
        text: The answer; None for a friendly text that quotes the prompt.

    Raises:
        click.UsageError: The pace cannot be.
    """
    try:
        answer = Reply(pace=pace)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def reply_to(request: RecordedRequest) -> Reply:
        if request.method != "POST" or not request.path.endswith("/chat/completions"):
            return _refusal(404, f"nothing is here: {request.method} {request.path} (try POST /v1/chat/completions)")
        messages = request.json.get("messages") if isinstance(request.json, dict) else None
        if not isinstance(messages, list) or not messages:
            return _refusal(400, "the body must be a JSON object with a list of messages")
        model = request.json.get("model")
        return attrs.evolve(
            answer,
            text=friendly_answer(_last_prompt(messages)) if text is None else text,
            model=model if isinstance(model, str) else answer.model,
        )

    return reply_to


def friendly_answer(prompt: str) -> str:
    """Return an answer that quotes a prompt and says where it comes from."""
    flat = " ".join(prompt.split())
    quoted = flat if len(flat) <= _QUOTED else f"{flat[: _QUOTED - 1]}…"
    return (
        f'"{quoted}" is what you said. No model has thought about it: I am the server that comes with chanstream. '
        "But these words reach you the way a model's do, one by one, as the events of an HTTP response."
    )


def _last_prompt(messages: list[Any]) -> str:
    """Return the text of the last user message, whether it is a text or a list of parts; "" where there is none."""
    spoken = [item for item in messages if isinstance(item, Mapping) and item.get("role") == "user"]
    content = spoken[-1].get("content") if spoken else ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _refusal(status: int, message: str) -> Reply:
    return Reply.error(status, message, type="invalid_request_error")


def _welcome(url: str) -> str:
    body = '{"model": "any", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
    return (
        f"Serving {url}/v1 until Ctrl-C. In another terminal:\n\n"
        f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n"
    )

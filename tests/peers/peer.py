"""One of the official packages, as a program that asks what it is told to: `python peer.py openai`.

Each line of its input is a JSON object, ``{"url", "stream", "request"}``; for each it writes one line: the answer,
assembled, or the error. It runs in a process of its own, because these packages warn, start threads and keep
connections as they like, which the tests do not let pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

KEY = "a-key"


def openai_like(make: Callable[..., Any], path: str) -> Callable[..., Iterable[Any]]:
    """Return how to ask with a client of openai's shape, which yields chunks or the one whole answer."""

    @cache
    def client(url: str) -> Any:
        return make(api_key=KEY, base_url=url + path, max_retries=0)

    def ask(url: str, stream: bool, request: dict[str, Any]) -> Iterable[Any]:
        answer = client(url).chat.completions.create(**request, **({"stream": True} if stream else {}))
        return answer if stream else [answer]

    return ask


def mistral(make: Callable[..., Any]) -> Callable[..., Iterable[Any]]:
    """Return how to ask with Mistral's client."""

    @cache
    def client(url: str) -> Any:
        return make(api_key=KEY, server_url=url)

    def ask(url: str, stream: bool, request: dict[str, Any]) -> Iterable[Any]:
        chat = client(url).chat
        return (event.data for event in chat.stream(**request)) if stream else [chat.complete(**request)]

    return ask


def asker(name: str) -> Callable[..., Iterable[Any]]:
    """Return how to ask with the package of this name."""
    if name == "openai":
        from openai import OpenAI

        return openai_like(OpenAI, "/v1")
    if name == "groq":
        from groq import Groq

        return openai_like(Groq, "")
    from mistralai.client import Mistral

    return mistral(Mistral)


class Answer:
    """What came, put together as the packages' users have to."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self.calls: dict[int, list[str]] = {}
        self.finish_reason: str | None = None
        self.usage: list[int] | None = None

    def add(self, piece: Any) -> None:
        """Add a chunk, or a whole answer."""
        usage = getattr(piece, "usage", None) or getattr(getattr(piece, "x_groq", None), "usage", None)
        if usage:
            self.usage = [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens]
        for choice in piece.choices:
            message = choice.delta if hasattr(choice, "delta") else choice.message
            self._say(message)
            for place, call in enumerate(message.tool_calls or []):
                # In a whole answer Mistral's package counts each call as the first where the server counts none.
                self._call(call.index if hasattr(choice, "delta") else place, call)
            self.finish_reason = choice.finish_reason or self.finish_reason

    def _say(self, message: Any) -> None:
        content = message.content or ""
        if isinstance(content, str):
            self.text += content
        else:
            for part in content:
                self.text += getattr(part, "text", "")
                self.reasoning += "".join(thought.text for thought in getattr(part, "thinking", []))
        thoughts = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)
        self.reasoning += thoughts if isinstance(thoughts, str) else ""

    def _call(self, index: int, call: Any) -> None:
        known, name, arguments = self.calls.get(index, ["", "", ""])
        more = call.function.arguments or ""
        text = more if isinstance(more, str) else json.dumps(more)
        self.calls[index] = [known or call.id, name or call.function.name, arguments + text]

    def told(self) -> dict[str, Any]:
        """Return the answer as JSON types."""
        return {**vars(self), "calls": list(self.calls.values())}


def told(error: Exception) -> dict[str, Any]:
    """Return an error as JSON types."""
    status = getattr(error, "status_code", None)
    return {"error": type(error).__name__, "status": status, "message": str(error)}


def main() -> None:
    """Answer each line until the input ends."""
    ask = asker(sys.argv[1])
    for line in sys.stdin:
        answer = Answer()
        try:
            for piece in ask(**json.loads(line)):
                answer.add(piece)
            outcome = answer.told()
        except Exception as error:  # noqa: BLE001 - whatever a package raises is what it tells
            outcome = {**answer.told(), **told(error)}
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

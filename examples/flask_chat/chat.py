"""What the chat page needs of any web framework: its files and headers, its questions, and its stop button."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from chanstream import (
    AssistantMessage,
    ChanstreamError,
    ChatCompletionRequest,
    Context,
    SystemMessage,
    UserMessage,
    relay,
)

PAGE = Path(__file__).with_name("page")
"""The folder with the page's files."""

HEADERS = {
    # Nothing from another host, no script or style but our files, and no text that becomes markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""To be sent with everything."""

HEARTBEAT = 10.0
"""Seconds of silence after which the page is told that the connection lives; it gives up after three of them."""

MOST_BYTES = 512 * 1024
"""How large a question may be, with the conversation before it."""

_MOST_MESSAGES = 50
_MODEL = os.environ.get("CHAT_MODEL", "mistral-small-latest")
_SYSTEM = SystemMessage("You are a helpful assistant. Answer in Markdown, without tables and pictures.")


def request_of(question: object) -> ChatCompletionRequest:
    """Return what to ask the model; the page says nothing but the conversation.

    Args:
        question: The page's JSON: ``{"id": ..., "messages": [...]}``.

    Raises:
        ValueError: It is not what the page sends.
    """
    messages = question.get("messages") if isinstance(question, dict) else None
    if not isinstance(messages, list) or not 0 < len(messages) <= _MOST_MESSAGES:
        raise ValueError(f"messages: expected a list of 1 to {_MOST_MESSAGES}")
    return ChatCompletionRequest(_MODEL, [_SYSTEM, *map(_message, messages)])


def _message(message: object) -> UserMessage | AssistantMessage:
    """Return one message; an answer that was cut off comes as the beginning of the one to be given (Mistral)."""
    match message:
        case {"role": "user", "content": str(text)}:
            return UserMessage(text)
        case {"role": "assistant", "content": str(text), **more}:
            return AssistantMessage(text, prefix=True if more.get("prefix") is True else None)
    raise ValueError("messages: expected a role, user or assistant, and content that is a text")


def told(error: ChanstreamError | ValueError) -> tuple[dict[str, Any], int]:
    """Return what the page is told of an error in place of an answer, as JSON, and the status."""
    if isinstance(error, ChanstreamError):
        public = relay.public_error(error)  # without what is none of a visitor's business
        return public.to_dict(), public.status
    return {"error": {"message": str(error)}}, 400


class Running:
    """The answers that are on their way, each by the id that the page gave it.

    A stop button's word comes in a request of its own. Without it, too, an answer ends when the page has left, but
    only when the server next writes to it.

    Thread safety: for all threads of a process; the stop of an answer in another process does nothing.
    """

    def __init__(self) -> None:
        self._contexts: WeakValueDictionary[str, Context] = WeakValueDictionary()  # a stream keeps its context

    def add(self, question: object, context: Context) -> None:
        """Note the context that the answer to a question is about to have."""
        if isinstance(question, dict):
            self._contexts[str(question.get("id"))] = context

    def stop(self, answer: str) -> None:
        """End an answer, if it is still on its way."""
        context = self._contexts.get(answer)
        if context is not None:
            context.cancel()

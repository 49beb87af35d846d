"""What Mistral, Groq and OpenAI-compatible servers accept and send.

A dialect is a value: where the server is, which variable holds its key, what an option is called there and which
options it rejects. Sources: https://docs.mistral.ai/api/, https://console.groq.com/docs/api-reference and
https://platform.openai.com/docs/api-reference/chat/create. What answers look like needs no dialect: usage and thoughts
are found wherever a server puts them (see `chanstream.models.chunk` and `chanstream.models.messages`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from .errors import APIStatusError
from .models.chat import AgentCompletionRequest, ChatCompletionRequest, FIMCompletionRequest
from .models.embeddings import EmbeddingRequest

Completion: TypeAlias = ChatCompletionRequest | AgentCompletionRequest | FIMCompletionRequest
"""What can be completed, streamed or whole."""

_FIM, _AGENTS = "/fim/completions", "/agents/completions"
_PATHS: Mapping[type, str] = {
    ChatCompletionRequest: "/chat/completions",
    AgentCompletionRequest: _AGENTS,
    FIMCompletionRequest: _FIM,
}


@attrs.frozen
class Dialect:
    """How one family of servers wants to be asked.

    Attributes:
        name: What `Client` calls it.
        base_url: Where the server is, unless the caller says otherwise.
        key_variable: The environment variable that holds the key.
        renamed: Options that go by another name there.
        rejected: Options that the server answers with an error; they are refused before anything is sent.
        usage_on_request: Whether a stream's usage has to be asked for, with ``stream_options``.
        image_objects: Whether an image's address must be an object, ``{"url": ...}``, and not a bare text.
        lacking: Paths that the server does not have; they are refused before anything is sent.
        takes_prefix: Whether an answer goes on from a last message of the assistant that has ``prefix`` set. The others
            here begin a new answer after it, or refuse it.
    """

    name: str
    base_url: str
    key_variable: str
    renamed: Mapping[str, str] = attrs.field(factory=dict)
    rejected: frozenset[str] = frozenset()
    usage_on_request: bool = False
    image_objects: bool = False
    lacking: frozenset[str] = frozenset()
    takes_prefix: bool = False

    def body(self, request: Completion, *, stream: bool) -> dict[str, Any]:
        """Return the JSON object to send.

        Raises:
            ValueError: An option is set that the server rejects; the text names it.
        """
        data = self._worded(request)
        if self.image_objects and "messages" in data:
            data["messages"] = [_with_image_objects(message) for message in data["messages"]]
        if stream:
            data["stream"] = True
            if self.usage_on_request:
                data.setdefault("stream_options", {"include_usage": True})
        return data

    def embedding_body(self, request: EmbeddingRequest) -> dict[str, Any]:
        """Return the JSON object to send; as `body`."""
        return self._worded(request)

    def path_of(self, request: Completion) -> str:
        """Return what follows the base URL for a request.

        Raises:
            ValueError: The server has no such endpoint.
        """
        path = _PATHS.get(type(request)) or next(path for kind, path in _PATHS.items() if isinstance(request, kind))
        if path in self.lacking:
            raise ValueError(f"request: the {self.name!r} dialect has no {path}, got {type(request).__name__}")
        return path

    def option_in(self, refusal: APIStatusError, request: Completion | EmbeddingRequest) -> str | None:
        """Return the option of a request that a refusal names, and what it is called on the wire; None if it does not.

        A name counts where it cannot be an ordinary word: in the refusal's ``param``, between quotes, as a part of a
        path (``body.user``), or with an underscore in it.
        """
        text = f"{refusal.param or ''}\n{refusal.message}"
        for name in _options(request):
            wire = self.renamed.get(name, name)
            if _is_named(wire, text) or wire in re.split(r"[.\[\]]", refusal.param or ""):
                return name if wire == name else f"{name}, sent as {wire}"
        return None

    def _worded(self, request: Completion | EmbeddingRequest) -> dict[str, Any]:
        for name in sorted(self.rejected):
            if getattr(request, name, None) is not None:
                raise ValueError(f"{name}: the {self.name!r} dialect does not take this option")
        return {self.renamed.get(name, name): value for name, value in request.to_dict().items()}


def _options(request: Any) -> list[str]:
    """Return the options that are set, the longest name first, as one may be a part of another."""
    names = {field.name for field in attrs.fields(type(request))} - {"model", "messages", "extra"}
    return sorted([*(name for name in names if getattr(request, name) is not None), *request.extra], key=len)[::-1]


def _is_named(wire: str, text: str) -> bool:
    word = rf"(?<!\w){re.escape(wire)}(?!\w)"
    return bool(re.search(word if "_" in wire else rf"['\"`(.]{word}['\"`).\[]", text))


def _with_image_objects(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_with_image_object(part) for part in content]}


def _with_image_object(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "image_url" and isinstance(part.get("image_url"), str):
        return {**part, "image_url": {"url": part["image_url"]}}
    return part


MISTRAL = Dialect(
    name="mistral",
    base_url="https://api.mistral.ai/v1",
    key_variable="MISTRAL_API_KEY",
    # stream_options is answered with 422 there; usage comes by itself.
    rejected=frozenset({"stream_options", "max_completion_tokens", "logprobs", "top_logprobs", "user"}),
    takes_prefix=True,  # and the answer begins with it once more
)

_RENAMED = {"random_seed": "seed", "output_dimension": "dimensions"}
_ONLY_MISTRAL = frozenset({"safe_prompt", "prompt_mode", "output_dtype"})

GROQ = Dialect(
    name="groq",
    base_url="https://api.groq.com/openai/v1",
    key_variable="GROQ_API_KEY",
    renamed=_RENAMED,
    rejected=_ONLY_MISTRAL | {"prediction", "metadata", "logprobs", "top_logprobs"},
    usage_on_request=True,
    image_objects=True,
    lacking=frozenset({_FIM, _AGENTS}),
)

OPENAI = Dialect(
    name="openai",
    base_url="https://api.openai.com/v1",
    key_variable="OPENAI_API_KEY",
    renamed=_RENAMED,
    rejected=_ONLY_MISTRAL,
    usage_on_request=True,
    image_objects=True,
    lacking=frozenset({_FIM, _AGENTS}),
)

DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (MISTRAL, GROQ, OPENAI)}
"""The dialects by name."""

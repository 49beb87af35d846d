"""The dialects: what each family of servers is sent."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from chanstream import ChatCompletionRequest, Client, Dialect, ImageURLChunk, TextChunk, UserMessage
from chanstream.dialects import DIALECTS, GROQ, MISTRAL, OPENAI
from tests.conftest import Link

HI = [UserMessage("hi")]
MESSAGES = [{"role": "user", "content": "hi"}]
EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())


class TestWhere:
    @pytest.mark.parametrize(
        ("name", "url", "variable"),
        [
            ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
            ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
            ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        ],
    )
    def test_address_and_key(self, name: str, url: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each dialect knows its server and the variable of its key."""
        monkeypatch.setenv(variable, "key-of-the-environment")
        assert repr(Client(dialect=name)) == f"<Client {name} {url}>"

    def test_there_are_three(self) -> None:
        """Mistral, Groq and OpenAI are known by name."""
        assert {name: dialect.name for name, dialect in DIALECTS.items()} == {
            "mistral": "mistral",
            "groq": "groq",
            "openai": "openai",
        }


class TestBody:
    @EACH
    def test_without_streaming(self, dialect: Dialect) -> None:
        """A whole answer is asked for with what the request says and nothing else."""
        assert dialect.body(ChatCompletionRequest("m", HI), stream=False) == {"model": "m", "messages": MESSAGES}

    @pytest.mark.parametrize("dialect", [GROQ, OPENAI], ids=["groq", "openai"])
    def test_usage_is_asked_for(self, dialect: Dialect) -> None:
        """Where a stream's usage has to be asked for, it is."""
        assert dialect.body(ChatCompletionRequest("m", HI), stream=True) == {
            "model": "m",
            "messages": MESSAGES,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_mistral_gives_it_by_itself(self) -> None:
        """Mistral is never sent stream_options, which it answers with an error."""
        assert MISTRAL.body(ChatCompletionRequest("m", HI), stream=True) == {
            "model": "m",
            "messages": MESSAGES,
            "stream": True,
        }

    @pytest.mark.parametrize("options", [{}, {"include_usage": False}])
    @pytest.mark.parametrize("dialect", [GROQ, OPENAI], ids=["groq", "openai"])
    def test_the_callers_own_stream_options(self, dialect: Dialect, options: dict[str, Any]) -> None:
        """The caller's own stream_options are sent as they are, empty ones too."""
        sent = dialect.body(ChatCompletionRequest("m", HI, stream_options=options), stream=True)
        assert sent["stream_options"] == options

    @pytest.mark.parametrize(
        ("dialect", "name"),
        [(MISTRAL, "random_seed"), (GROQ, "seed"), (OPENAI, "seed")],
        ids=lambda value: str(value)[:20],
    )
    def test_the_seed(self, dialect: Dialect, name: str) -> None:
        """The seed goes by the dialect's own name, and 0 is a seed."""
        sent = dialect.body(ChatCompletionRequest("m", HI, random_seed=0), stream=False)
        assert sent == {"model": "m", "messages": MESSAGES, name: 0}

    @pytest.mark.parametrize("dialect", [GROQ, OPENAI], ids=["groq", "openai"])
    def test_an_image_becomes_an_object(self, dialect: Dialect) -> None:
        """Where an image's address must be an object, a bare one is made one; the request stays as it was."""
        image = ImageURLChunk("https://x/y.png")
        request = ChatCompletionRequest("m", [UserMessage([TextChunk("what?"), image]), *HI])
        sent = dialect.body(request, stream=False)["messages"]
        assert sent[0]["content"][1] == {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
        assert sent[0]["content"][0] == {"type": "text", "text": "what?"}
        assert sent[1:] == MESSAGES
        assert image.image_url == "https://x/y.png"

    @EACH
    def test_an_image_that_is_an_object(self, dialect: Dialect) -> None:
        """An image's address with details is sent as it is to all."""
        address = {"url": "https://x/y.png", "detail": "low"}
        request = ChatCompletionRequest("m", [UserMessage([ImageURLChunk(address)])])
        sent = dialect.body(request, stream=False)
        assert sent["messages"][0]["content"] == [{"type": "image_url", "image_url": address}]

    def test_mistral_takes_a_bare_address(self) -> None:
        """Mistral is sent a bare address as such."""
        request = ChatCompletionRequest("m", [UserMessage([ImageURLChunk("https://x")])])
        sent = MISTRAL.body(request, stream=False)
        assert sent["messages"][0]["content"] == [{"type": "image_url", "image_url": "https://x"}]


REJECTED = [
    ("mistral", "stream_options", {"include_usage": True}),
    ("mistral", "max_completion_tokens", 5),
    ("mistral", "logprobs", True),
    ("mistral", "top_logprobs", 2),
    ("mistral", "user", "u"),
    ("groq", "safe_prompt", True),
    ("groq", "prompt_mode", "reasoning"),
    ("groq", "prediction", {"type": "content", "content": "x"}),
    ("groq", "metadata", {}),
    ("groq", "logprobs", False),
    ("groq", "top_logprobs", 0),
    ("openai", "safe_prompt", False),
    ("openai", "prompt_mode", ""),
]


class TestRejected:
    @pytest.mark.parametrize(("name", "option", "value"), REJECTED, ids=lambda value: str(value)[:30])
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_it_is_refused_before_it_is_sent(
        self, plain: Link, name: str, option: str, value: Any, streaming: bool
    ) -> None:
        """An option that the server answers with an error is refused at once and named; nothing is sent."""
        server = plain.serve("never")
        client = plain.client(server, dialect=name)
        request = ChatCompletionRequest("m", HI, **{option: value})
        with pytest.raises(ValueError, match=f"^{option}: the '{name}' dialect does not take this option$"):
            (client.chat_completion_stream if streaming else client.chat_completion)(request)
        assert server.connections == 0

    @EACH
    def test_what_is_not_rejected_passes(self, dialect: Dialect) -> None:
        """Every other option is sent, by its own name or the dialect's."""
        options: dict[str, Any] = {
            "temperature": 0.5, "top_p": 1, "max_tokens": 5, "max_completion_tokens": 5, "n": 1, "stop": ["a"],
            "random_seed": 1, "frequency_penalty": 0, "presence_penalty": 0, "tools": [], "tool_choice": "auto",
            "parallel_tool_calls": True, "response_format": {"type": "text"}, "reasoning_effort": "low",
            "prompt_mode": "reasoning", "safe_prompt": True, "prediction": {}, "metadata": {}, "logprobs": True,
            "top_logprobs": 1, "stream_options": {}, "user": "u",
        }  # fmt: skip
        allowed = {name: value for name, value in options.items() if name not in dialect.rejected}
        sent = dialect.body(ChatCompletionRequest("m", HI, **allowed), stream=False)
        expected = {dialect.renamed.get(name, name): value for name, value in allowed.items()}
        assert sent == {"model": "m", "messages": MESSAGES, **expected}


class TestOnTheWire:
    @EACH
    def test_what_arrives(self, plain: Link, dialect: Dialect) -> None:
        """What the server gets is the dialect's body, as compact JSON in UTF-8."""
        server = plain.serve("ok")
        request = ChatCompletionRequest("m", [UserMessage("grüß Gott 👋")], temperature=0, random_seed=7)
        plain.client(server, dialect=dialect.name).chat_completion_stream(request).collect()
        asked = server.requests[0]
        assert asked.json == dialect.body(request, stream=True)
        assert asked.body == json.dumps(asked.json, ensure_ascii=False, separators=(",", ":")).encode()

    def test_a_dialect_of_ones_own(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A dialect is a value: a changed copy of one serves a server that differs a little."""
        own = attrs.evolve(
            OPENAI, name="own", key_variable="OWN_KEY", usage_on_request=False, renamed={"max_tokens": "m"}
        )
        monkeypatch.setenv("OWN_KEY", "secret-of-own")
        server = plain.serve("ok")
        client = plain.client(server, dialect=own, api_key=None)
        client.chat_completion_stream(ChatCompletionRequest("m", HI, max_tokens=5)).collect()
        assert server.requests[0].json == {"model": "m", "messages": MESSAGES, "m": 5, "stream": True}
        assert server.requests[0].headers["Authorization"] == "Bearer secret-of-own"

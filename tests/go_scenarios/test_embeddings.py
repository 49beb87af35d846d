"""Embeddings."""

from __future__ import annotations

from typing import Any

from chanstream import EmbeddingRequest, UsageInfo
from chanstream.testing import Reply
from tests.conftest import Link
from tests.go_scenarios import mistral

ANSWER: dict[str, Any] = {
    "id": "e-1",
    "object": "list",
    "data": [{"object": "embedding", "embedding": [0.0001, 0.0002], "index": 0}],
    "model": "an-embedder",
    "usage": {
        "prompt_audio_seconds": None,
        "prompt_tokens": 7,
        "total_tokens": 7,
        "completion_tokens": 0,
        "request_count": None,
        "prompt_token_details": None,
    },
}


def test_vectors(plain: Link) -> None:
    """A request is its model and its texts and nothing else; its vectors come as numbers, with usage."""
    server = plain.serve(Reply.json(ANSWER))
    response = mistral(plain, server).embeddings(EmbeddingRequest("an-embedder", ["a cat"]))
    assert response.vectors() == [[0.0001, 0.0002]]
    assert (response.object, response.model, response.latency > 0) == ("list", "an-embedder", True)
    assert isinstance(response.usage, UsageInfo)
    assert (response.usage.prompt_tokens, response.usage.total_tokens, response.usage.completion_tokens) == (7, 7, 0)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/embeddings")
    assert request.json == {"model": "an-embedder", "input": ["a cat"]}


def test_options(plain: Link) -> None:
    """All three options go out under their names; numbers are read whatever was asked for, and base64 too."""
    encoded = {**ANSWER, "data": [{"object": "embedding", "embedding": "AQL/", "index": 0}]}
    server = plain.serve(Reply.json(ANSWER), Reply.json(encoded))
    request = EmbeddingRequest(
        "an-embedder", ["a cat"], encoding_format="base64", output_dimension=2048, output_dtype="int8"
    )
    client = mistral(plain, server)
    assert client.embeddings(request).vectors() == [[0.0001, 0.0002]]
    assert client.embeddings(request).vectors() == [[1, 2, -1]]
    assert server.requests[0].json == {
        "model": "an-embedder",
        "input": ["a cat"],
        "encoding_format": "base64",
        "output_dimension": 2048,
        "output_dtype": "int8",
    }


def test_retries(plain: Link) -> None:
    """A 429 and a 408 are tried again."""
    refusals = [Reply.json({"error": "rate limited"}, status) for status in (429, 408, 408)]
    server = plain.serve(*refusals, Reply.json(ANSWER))
    assert len(mistral(plain, server).embeddings(EmbeddingRequest("an-embedder", ["a cat"])).vectors()) == 1
    assert len(server.requests) == 4

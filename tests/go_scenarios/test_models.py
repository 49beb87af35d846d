"""Models: all of them, those that can do something, one of them."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from chanstream import (
    ChanstreamError,
    Client,
    InternalServerError,
    ModelCapabilities,
    ModelCard,
    NotFoundError,
    StreamDecodeError,
)
from chanstream.testing import Reply
from tests.conftest import Link
from tests.go_scenarios import QUICK, mistral

ABILITIES = ["completion_chat", "function_calling", "completion_fim", "fine_tuning", "vision", "ocr"]
ABILITIES += ["classification", "moderation", "audio"]


def card(name: str, *can: str, **more: Any) -> dict[str, Any]:
    """Return a card as Mistral's server writes it."""
    return {
        "id": name,
        "object": "model",
        "created": 1766520693,
        "owned_by": "mistralai",
        "capabilities": {ability: ability in can for ability in ABILITIES},
        "name": name,
        "description": f"What {name} is.",
        "max_context_length": 131072,
        "aliases": [f"{name}-latest"],
        "deprecation": None,
        "deprecation_replacement_model": None,
        "default_model_temperature": 0.3,
        "type": "base",
        **more,
    }


CARDS = [
    card("large", "completion_chat", "function_calling", "vision", "fine_tuning"),
    card("nemo", "completion_chat", "function_calling", "fine_tuning"),
    card("coder", "completion_chat", "function_calling", aliases=[], default_model_temperature=0.0),
    card("listener", "completion_chat", "audio", max_context_length=32768),
    card("reader", "function_calling", "vision", "ocr"),
    card("guard", "classification", "moderation", default_model_temperature=None),
]
FAILED = Reply.json({"error": "internal error"}, 500)
NO_JSON = Reply(body=b"no json", content_type="application/json")
FAULTS = [(FAILED, InternalServerError), (NO_JSON, StreamDecodeError)]


@pytest.fixture
def client(plain: Link) -> Client:
    """A client of a server that has the models."""
    return mistral(plain, plain.serve(models=CARDS))


def test_all(client: Client) -> None:
    """All models come, in the server's order, and nothing that is said of one is lost."""
    found = client.list_models()
    assert [one.id for one in found] == ["large", "nemo", "coder", "listener", "reader", "guard"]
    assert [one.to_dict() for one in found] == CARDS


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (ModelCapabilities(completion_chat=True, function_calling=True), ["large", "nemo", "coder"]),
        (ModelCapabilities(moderation=True), ["guard"]),
    ],
)
def test_a_search(client: Client, wanted: ModelCapabilities, found: list[str]) -> None:
    """A search finds those that have at least what is wanted."""
    assert [one.id for one in client.search_models(wanted)] == found


def test_one(plain: Link) -> None:
    """A model is got by its id; what the server leaves out of it is False or None."""
    short = {
        "object": "model",
        "created": 1766520693,
        "owned_by": "mistralai",
        "name": "an-embedder",
        "id": "an-embedder-2507",
        "capabilities": {"completion_chat": True, "function_calling": True, "completion_fim": False},
        "aliases": ["an-embedder-2507", "an-embedder"],
    }
    server = plain.serve(models=[short])
    assert mistral(plain, server).get_model("an-embedder-2507") == ModelCard(
        "an-embedder-2507",
        created=1766520693,
        owned_by="mistralai",
        name="an-embedder",
        aliases=["an-embedder-2507", "an-embedder"],
        capabilities=ModelCapabilities(completion_chat=True, function_calling=True),
    )
    assert server.requests[0].path == "/v1/models/an-embedder-2507"


def test_one_that_there_is_not(client: Client) -> None:
    """A model that is not there has an error of its own; that of any status 404."""
    with pytest.raises(NotFoundError):
        client.get_model("nobody")


class Elsewhere(HTTPAdapter):
    """Asks for models where the scripted server has none, and so answers with what it was told to."""

    def send(self, request: Any, **settings: Any) -> Any:
        """Send a request to another path."""
        request.url = request.url.replace("/models", "/elsewhere")
        return super().send(request, **settings)


@pytest.mark.parametrize(("reply", "error"), FAULTS, ids=["a failure", "no JSON"])
@pytest.mark.parametrize("ask", ["list", "search", "get"])
def test_faults(plain: Link, reply: Reply, error: type[ChanstreamError], ask: str) -> None:
    """A server that fails, and an answer that is no JSON, are errors, and never an empty list."""
    with requests.Session() as session:
        session.mount("http://", Elsewhere())
        client = plain.client(plain.serve(reply), dialect="mistral", retry=QUICK, session=session)
        calls = {
            "list": client.list_models,
            "search": lambda: client.search_models(ModelCapabilities(completion_chat=True)),
            "get": lambda: client.get_model("large"),
        }
        with pytest.raises(error):
            calls[ask]()


def test_what_a_model_can_do() -> None:
    """A card says whether its model can do anything at all; there two methods tell this, one of them by the name."""
    unable, able = ModelCard("an-embedder"), ModelCard("a", capabilities=ModelCapabilities(completion_chat=True))
    assert unable.capabilities == ModelCapabilities()
    assert able.capabilities != ModelCapabilities()

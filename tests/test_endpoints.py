"""What a client asks for beside chat: embeddings and models."""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import (
    BadRequestError,
    Client,
    Context,
    EmbeddingRequest,
    InternalServerError,
    ModelCapabilities,
    ModelCard,
    NotFoundError,
    RateLimitError,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
)
from chanstream.testing import Reply, StreamServer
from tests.conftest import REQUEST as CHAT_REQUEST
from tests.conftest import Link
from tests.test_async import speaking

REQUEST = EmbeddingRequest("an-embedder", ["ipsum eiusmod"])
ANSWER = {
    "id": "e-1",
    "object": "list",
    "data": [{"object": "embedding", "embedding": [0.25, 0.5], "index": 0}],
    "model": "an-embedder",
    "usage": {"prompt_audio_seconds": None, "prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0},
}


def card(name: str, **capabilities: bool) -> dict[str, Any]:
    """Return the JSON object of a model."""
    return {"id": name, "object": "model", "capabilities": capabilities, "deprecation": None}


CARDS = [
    card("medium", completion_chat=True, function_calling=True, vision=True),
    card("nemo", completion_chat=True, function_calling=True),
    card("voxtral", completion_chat=True, audio=True),
    card("guard", moderation=True, classification=True),
    {"id": "openai/gpt-oss-20b", "object": "model", "created": 1, "owned_by": "OpenAI"},
]
CHAT = ModelCapabilities(completion_chat=True)


class TestEmbeddings:
    def test_vectors(self, link: Link) -> None:
        """Vectors come with usage and latency, and the request has nothing in it that was not set."""
        server = link.serve(Reply.json(ANSWER))
        answer = link.client(server).embeddings(REQUEST)
        assert answer.vectors() == [[0.25, 0.5]]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
        assert 0 < answer.latency < 5
        assert answer.raw == ANSWER
        (request,) = server.requests
        assert (request.method, request.path) == ("POST", "/v1/embeddings")
        assert request.json == {"model": "an-embedder", "input": ["ipsum eiusmod"]}
        assert "text/event-stream" not in request.headers["Accept"]

    @pytest.mark.parametrize(
        ("dialect", "words"),
        [
            ("mistral", {"output_dimension": 256, "encoding_format": "base64", "output_dtype": "int8"}),
            ("openai", {"dimensions": 256, "encoding_format": "base64"}),
        ],
    )
    def test_options(self, plain: Link, dialect: Any, words: dict[str, Any]) -> None:
        """Options go out in the words of the dialect, and base64 is read as the type that was asked for."""
        dtype = words.get("output_dtype")
        server = plain.serve(Reply.json({**ANSWER, "data": [{"embedding": "AQAAAA=="}]}))
        request = EmbeddingRequest(
            "m", "text", output_dimension=256, encoding_format="base64", output_dtype=dtype, extra={"new": 1}
        )
        answer = plain.client(server, dialect=dialect).embeddings(request)
        assert server.requests[0].json == {"model": "m", "input": ["text"], "new": 1, **words}
        assert answer.vectors() == ([[1, 0, 0, 0]] if dtype else [[pytest.approx(1e-45, abs=1e-45)]])

    def test_an_option_that_the_server_rejects(self, plain: Link) -> None:
        """An option that the dialect does not have is refused by name, and nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(ValueError, match=r"^output_dtype: the 'openai' dialect does not take"):
            plain.client(server).embeddings(EmbeddingRequest("m", "text", output_dtype="int8"))
        assert server.requests == ()

    def test_no_request(self, plain: Link) -> None:
        """What is no such request is refused, and nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(TypeError, match=r"^request: expected EmbeddingRequest"):
            plain.client(server).embeddings({"model": "m", "input": ["a"]})  # type: ignore[arg-type]
        assert server.requests == ()

    def test_it_is_tried_again(self, plain: Link) -> None:
        """A refusal for now is tried again, as a chat is."""
        server = plain.serve(Reply.error(429), Reply.error(408), Reply.json(ANSWER))
        client = plain.client(server, retry=Retry(max_retries=2, min_delay=0.001, max_delay=0.005))
        assert client.embeddings(REQUEST).vectors() == [[0.25, 0.5]]
        assert len(server.requests) == 3

    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (Reply.error(400, "no"), BadRequestError),
            (Reply.error(429, "no"), RateLimitError),
            (Reply.error(500, "no"), InternalServerError),
            (Reply.json({"error": {"message": "no"}}), StreamAPIError),
            (Reply.json({"object": "error", "message": "no"}), StreamAPIError),
            (Reply.json([1]), StreamDecodeError),
            (Reply.json({"data": [{"embedding": 5}]}), StreamDecodeError),
            (Reply.html("<h1>Hello</h1>"), StreamDecodeError),
            (Reply(body=b"{", content_type="application/json"), StreamDecodeError),
        ],
    )
    def test_a_fault(self, plain: Link, reply: Reply, kind: type[Exception]) -> None:
        """What goes wrong is raised as what it is."""
        with pytest.raises(kind):
            plain.client(plain.serve(reply)).embeddings(REQUEST)

    def test_a_cancel(self, plain: Link) -> None:
        """A context that is done ends the call."""
        context = Context()
        context.cancel()
        with pytest.raises(StreamCancelledError):
            plain.client(plain.serve("never")).embeddings(REQUEST, context=context)


class TestModels:
    @pytest.fixture
    def server(self, plain: Link) -> StreamServer:
        """A server that has models."""
        return plain.serve(models=CARDS)

    @pytest.fixture
    def client(self, plain: Link, server: StreamServer) -> Client:
        """A client of it."""
        return plain.client(server)

    def test_all(self, server: StreamServer, client: Client) -> None:
        """All models come, in the server's order, each with all that is said of it."""
        cards = client.list_models()
        assert [one.id for one in cards] == [one["id"] for one in CARDS]
        assert cards[0].capabilities.vision
        assert cards[4].owned_by == "OpenAI"
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("GET", "/v1/models", b"")
        assert "Content-Type" not in request.headers

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            (CHAT, ["medium", "nemo", "voxtral"]),
            (ModelCapabilities(completion_chat=True, function_calling=True), ["medium", "nemo"]),
            (ModelCapabilities(moderation=True), ["guard"]),
            (ModelCapabilities(ocr=True), []),
            (ModelCapabilities(), [one["id"] for one in CARDS]),
        ],
    )
    def test_a_search(self, client: Client, wanted: ModelCapabilities, found: list[str]) -> None:
        """A search finds the models that have all that is wanted."""
        assert [one.id for one in client.search_models(wanted)] == found

    def test_one(self, client: Client) -> None:
        """One model is got by its id."""
        assert client.get_model("guard") == ModelCard.from_dict(CARDS[3])

    def test_one_with_a_slash(self, server: StreamServer, client: Client) -> None:
        """An id with a slash stays one."""
        assert client.get_model("openai/gpt-oss-20b").owned_by == "OpenAI"
        assert server.requests[0].path == "/v1/models/openai/gpt-oss-20b"

    @pytest.mark.parametrize("model_id", ["a b", "a?b#c", "ft:m:me::1", "ü", "50%20"])
    def test_odd_ids(self, server: StreamServer, client: Client, model_id: str) -> None:
        """An id is a part of the path, whatever is in it."""
        with pytest.raises(NotFoundError):
            client.get_model(model_id)
        assert server.requests[0].path == f"/v1/models/{model_id}"

    def test_one_that_there_is_not(self, client: Client) -> None:
        """A model that the server does not have is not found."""
        with pytest.raises(NotFoundError, match="There is no model 'nobody'"):
            client.get_model("nobody")

    @pytest.mark.parametrize("model_id", ["", "..", "a/../b", "/a", "a//b", "."])
    def test_what_is_no_id(self, server: StreamServer, client: Client, model_id: str) -> None:
        """What can be no id is refused, and nothing is sent."""
        with pytest.raises(ValueError, match=r"^model_id: expected an id"):
            client.get_model(model_id)
        assert server.requests == ()

    def test_wrong_types(self, server: StreamServer, client: Client) -> None:
        """Arguments of the wrong type are refused, and nothing is sent."""
        with pytest.raises(TypeError, match=r"^model_id: expected str"):
            client.get_model(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^capabilities: expected ModelCapabilities"):
            client.search_models(["vision"])  # type: ignore[arg-type]
        assert server.requests == ()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"detail": "gateway hiccup"}, StreamAPIError, "gateway hiccup"),
        ({"error": "no model"}, StreamAPIError, "no model"),
        ({"choices": []}, StreamDecodeError, "choices: empty"),
        ({"id": "c-1"}, StreamDecodeError, "choices: missing"),
        ([], StreamDecodeError, "expected a chat completion"),
    ],
)
def test_an_answer_that_is_none(plain: Link, answer: Any, error: type[Exception], text: str) -> None:
    """What has no choices is no chat completion: it is an error, and not an empty answer."""
    with pytest.raises(error, match=text):
        plain.client(plain.serve(Reply.json(answer))).chat_completion(CHAT_REQUEST)


@pytest.mark.parametrize("ask", [Client.list_models, lambda client: client.get_model("m")])
def test_models_that_are_refused(plain: Link, ask: Any) -> None:
    """A refusal with status 400 is raised as such, though there is no request whose option it could name."""
    body = b'{"error": {"message": "no models for this user"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    with speaking(head + body) as url, pytest.raises(BadRequestError, match="no models for this user"):
        ask(plain.client(url))

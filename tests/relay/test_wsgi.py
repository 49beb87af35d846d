"""The proxy: a caller gets what the model's server says, and nothing else of it; nothing that a caller does hurts."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream import CachedClient, Client, Failover, FileCache
from chanstream.relay.wsgi import caller_context, proxy
from chanstream.testing import Reply, StreamServer
from tests.conftest import SCALE, Link, within
from tests.relay.conftest import SERVERS, Serve, Site, request, to_end, until
from tests.relay.reading import read
from tests.relay.test_frameworks import body_in

pytestmark = pytest.mark.usefixtures("nothing_left")

KEY = "sk-the-key-that-stays-here-0123456789"
MESSAGES = [{"role": "user", "content": "Say it."}]
ASKED = {"model": "a-model", "messages": MESSAGES}
COMPLETIONS = "/v1/chat/completions"
HEARTBEAT = 0.1 * SCALE
SILENT = Reply("never", stall_after=0)

EACH_SERVER = pytest.mark.parametrize("web_server", SERVERS)


class Place:
    """Where servers are, and proxies in front of them."""

    def __init__(self, plain: Link, serve: Serve) -> None:
        self._plain = plain
        self._serve = serve

    def __call__(self, *replies: Reply | str, dialect: str = "openai", **limits: Any) -> tuple[StreamServer, Site]:
        """Return a model's server, and a proxy in front of it that is being served."""
        upstream = self._plain.serve(*replies)
        client = self._plain.client(upstream, api_key=KEY, dialect=dialect)
        return upstream, self._serve(proxy(client, **{"heartbeat": HEARTBEAT, "body_timeout": 0.3 * SCALE, **limits}))


@pytest.fixture
def place(plain: Link, serve: Serve) -> Place:
    """Make proxies in front of servers."""
    return Place(plain, serve)


def asking(*head: str, **members: Any) -> bytes:
    """Return a request for a completion."""
    return request(COMPLETIONS, json.dumps({**ASKED, **members}).encode(), *head)


def told(answer: bytes) -> tuple[int, Any]:
    """Return status and JSON of an answer, in which the key is not."""
    assert KEY.encode() not in answer
    assert KEY[8:20].encode() not in answer
    return int(answer.split(b" ", 2)[1]), json.loads(body_in(answer))


def refused(answer: bytes) -> tuple[int, str]:
    """Return status and words of a refusal, which has the provider's form."""
    status, body = told(answer)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"]
    return status, body["error"]["message"]


# -- what is answered -------------------------------------------------------------------------------------------------


@EACH_SERVER
def test_a_stream(place: Place) -> None:
    """A request for a stream is answered with the server's."""
    upstream, site = place("Grüß Gott. ")
    answer = site.answer(asking(stream=True))
    seen = read([body_in(answer)])
    assert (seen.text, seen.done) == ("Grüß Gott. ", True)
    assert upstream.requests[0].json == {**ASKED, "stream": True, "stream_options": {"include_usage": True}}


@EACH_SERVER
def test_a_whole_answer(place: Place) -> None:
    """A request without ``stream`` is answered with the whole answer."""
    _, site = place("Grüß Gott. ")
    status, body = told(site.answer(asking()))
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Grüß Gott. "


def test_what_is_asked_goes_on(place: Place) -> None:
    """Options, known and unknown, go to the server as they were said, nulls and nested ones too."""
    upstream, site = place("Yes.")
    calls = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]
    options = {
        "temperature": 0,
        "seed": 7,
        "stop": None,
        "logit_bias": {"50256": -100},
        "x": {"y": [1, None]},
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://here/a.png"}}]},
            {"role": "assistant", "content": None, "tool_calls": calls, "z": 1},
            {"role": "tool", "tool_call_id": "a", "content": "Rain."},
        ],
    }
    assert site.answer(asking(stream=True, **options)).count(b"[DONE]") == 1
    assert upstream.requests[0].json == {**ASKED, **options, "stream": True}


def test_another_dialect(place: Place) -> None:
    """Callers speak OpenAI's API whatever the server does: here a seed and the wish for usage, before Mistral's."""
    upstream, site = place("Yes.", dialect="mistral")
    answer = site.answer(asking(stream=True, seed=7, stream_options={"include_usage": True}))
    assert upstream.requests[0].json == {**ASKED, "random_seed": 7, "stream": True}
    assert read([body_in(answer)]).objects[-1]["choices"] == []


def test_an_option_that_the_server_does_not_have(place: Place) -> None:
    """An option that the server's dialect does not have is refused by name, and nothing is sent."""
    upstream, site = place("Yes.", dialect="mistral")
    status, message = refused(site.answer(asking(user="me")))
    assert status == 400
    assert "user" in message
    assert not upstream.requests


def test_models(place: Place) -> None:
    """The models are those that are allowed, without asking the server; or else the server's."""
    upstream, site = place(models=["one", "org/two"])
    assert [model["id"] for model in told(site.answer(request("/v1/models")))[1]["data"]] == ["one", "org/two"]
    assert told(site.answer(request("/v1/models/org/two")))[1]["id"] == "org/two"
    assert refused(site.answer(request("/v1/models/three")))[0] == 404
    assert not upstream.requests
    _, site = place()
    assert [model["id"] for model in told(site.answer(request("/models")))[1]["data"]] == ["test-model"]


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_allowed(place: Place) -> None:
    """A model that is not in the list is refused with 403 and the names that are, and nothing is sent."""
    upstream, site = place(models=["one", "two"])
    status, body = told(site.answer(asking()))
    assert status == 403
    assert body["error"] == {
        "message": "the model 'a-model' is not allowed here; allowed: one, two",
        "type": "permission_error",
        "param": "model",
        "code": "model_not_allowed",
    }
    for other in ("ONE", " one", "one ", "one\r\n", ""):
        assert refused(site.answer(asking(model=other)))[0] in (400, 403)
    assert not upstream.requests
    assert told(site.answer(asking(model="two")))[0] == 200


@pytest.mark.parametrize("name", ["models", "fallbacks", "api_base", "base_url", "api_key", "model_list"])
def test_where_a_request_goes(place: Place, name: str) -> None:
    """A field that would tell a gateway behind the proxy where to send the request is refused by name."""
    upstream, site = place(models=["a-model"])
    status, message = refused(site.answer(asking(**{name: ["expensive"]})))
    assert (status, message.partition(":")[0]) == (400, name)
    assert not upstream.requests


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, 100),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 7),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 9, "n_predict": 7}, 7),
        ({"n": 4}, 25),
        ({"max_tokens": None}, 100),
    ],
)
def test_a_limit_of_tokens(place: Place, asked: dict[str, Any], sent: int) -> None:
    """The server is told the limit, or what was asked for within it, whatever the name it was asked for by."""
    upstream, site = place("Yes.", max_tokens=100)
    assert told(site.answer(asking(**asked)))[0] == 200
    body = upstream.requests[0].json
    assert body["max_tokens"] == sent
    assert not {"max_completion_tokens", "n_predict"} & {*body}


@pytest.mark.parametrize(
    "asked",
    [
        {"max_tokens": 101},
        {"max_completion_tokens": 101},
        {"max_tokens": 1, "max_completion_tokens": 101},
        {"max_tokens": 51, "n": 2},
        {"max_tokens": 51, "best_of": 2},
        {"n_predict": -1},
        {"max_tokens": 7, "n_predict": 101},
        {"n": 101},
        {"n": "2"},
        {"max_tokens": "7"},
        {"max_tokens": 7.5},
        {"max_tokens": True},
        {"max_tokens": -1},
        {"max_tokens": 0},
    ],
)
def test_beyond_the_limit_of_tokens(place: Place, asked: dict[str, Any]) -> None:
    """More than the limit, in all choices together, is refused, and so is what is no number of tokens."""
    upstream, site = place(max_tokens=100)
    assert refused(site.answer(asking(**asked)))[0] == 400
    assert not upstream.requests


def test_the_name_of_the_limit(place: Place) -> None:
    """The limit is said in the field that the server keeps to."""
    upstream, site = place("Yes.", max_tokens=100, max_tokens_field="max_completion_tokens")
    site.answer(asking(max_tokens=7))
    assert upstream.requests[0].json == {**ASKED, "max_completion_tokens": 7}


def test_too_many_at_once(place: Place) -> None:
    """A caller with too many requests is told to come back; a place is free when its stream is over or left."""
    upstream, site = place(SILENT, concurrency=2, caller=lambda environ: environ["HTTP_WHO"])
    with site.say(asking("Who: me", stream=True)) as one:
        until(one, b":\n")
        with site.say(asking("Who: me", stream=True)) as another:
            until(another, b":\n")
            upstream.reply("Yes.")
            answer = site.answer(asking("Who: me", stream=True))
            assert refused(answer) == (429, "too many requests at the same time: 2 are allowed")
            assert b"\r\nretry-after: 1\r\n" in answer.lower()
            assert told(site.answer(asking("Who: you")))[0] == 200
        assert within(HEARTBEAT + SCALE, lambda: told(site.answer(asking("Who: me")))[0] == 200)
    assert len(upstream.requests) == 4


def test_places_are_given_back(place: Place) -> None:
    """Whatever a request comes to, a stream, an answer, or a refusal of any kind, its place is free after it."""
    replies = ["Yes.", Reply.error(500), Reply.error(400), Reply(chunks=[{"error": {"message": "x"}}]), "Yes."]
    _, site = place(*replies, concurrency=1, models=["a-model"])
    for data in (
        asking(stream=True),
        asking(),
        asking(),
        asking(stream=True),
        asking(model="x"),
        request(COMPLETIONS, b"{"),
    ):
        assert not site.answer(data).startswith(b"HTTP/1.1 429")
    assert told(site.answer(asking()))[0] == 200


def test_one_after_the_other(place: Place) -> None:
    """Who asks again as soon as the end has come is not one too many."""
    _, site = place("Yes.", concurrency=1)
    for _ in range(20):
        with site.say(asking(stream=True)) as connection:
            assert b" 200 OK" in until(connection, b"[DONE]")


def test_who_calls(place: Place) -> None:
    """Who is nobody to the function that tells callers apart is refused, before anything else is looked at."""
    upstream, site = place(caller=lambda environ: environ.get("HTTP_AUTHORIZATION"))
    for data in (asking(), request(COMPLETIONS, b"{"), request("/v1/models")):
        answer = site.answer(data)
        assert refused(answer)[0] == 401
        assert b"\r\nwww-authenticate: bearer\r\n" in answer.lower()
    assert told(site.answer(asking("Authorization: Bearer theirs")))[0] == 200
    assert len(upstream.requests) == 1


# -- requests that are wrong ------------------------------------------------------------------------------------------

BODY = json.dumps(ASKED).encode()
WRONG: dict[str, tuple[bytes, int]] = {
    "no JSON": (request(COMPLETIONS, b"{model"), 400),
    "no object": (request(COMPLETIONS, b"[1]"), 400),
    "nested without end": (request(COMPLETIONS, b"[" * 100_000), 400),
    "an object nested without end": (request(COMPLETIONS, b'{"model":"a","messages":' + b'[{"a":' * 50_000), 400),
    "bytes that are no text": (request(COMPLETIONS, b"\xff\xfe\x00"), 400),
    "no model": (request(COMPLETIONS, b'{"messages": []}'), 400),
    "a model that is no text": (request(COMPLETIONS, b'{"model": 1, "messages": []}'), 400),
    "no messages": (request(COMPLETIONS, b'{"model": "a"}'), 400),
    "messages that are none": (request(COMPLETIONS, b'{"model": "a", "messages": "hi"}'), 400),
    "an unknown role": (request(COMPLETIONS, b'{"model": "a", "messages": [{"role": "x", "content": "y"}]}'), 400),
    "a stream that is no flag": (asking(stream="yes"), 400),
    "stream options that are none": (asking(stream=True, stream_options=[1]), 400),
    "a form": (request(COMPLETIONS, BODY, "Content-Type: text/plain"), 415),
    "no media type": (request(COMPLETIONS, BODY, "Content-Type:"), 415),
    "too large": (request(COMPLETIONS, b'{"x": "%b"}' % (b"x" * 3000)), 413),
    "too large by its word": (request(COMPLETIONS, BODY, "Content-Length: 99999999999999999999999"), 413),
    "another method": (request(COMPLETIONS), 405),
    "another path": (request("/v1/embeddings", BODY), 404),
    "no path": (request("/"), 404),
    "models, posted": (request("/v1/models", BODY), 405),
}


@pytest.mark.parametrize(("data", "status"), WRONG.values(), ids=WRONG)
def test_a_wrong_request(place: Place, data: bytes, status: int) -> None:
    """What is wrong with a request is said with a status of its own, and nothing is sent; the next one is served."""
    upstream, site = place(max_body_bytes=2000 if status == 413 else 4_000_000)
    assert refused(site.answer(data))[0] == status
    assert not upstream.requests
    assert told(site.answer(asking()))[0] == 200


@EACH_SERVER
@pytest.mark.parametrize("half_closed", [True, False], ids=["that ends", "that stops"])
def test_a_body_that_is_shorter_than_its_length(place: Place, half_closed: bool, web_server: str) -> None:
    """A body that is shorter than its length is refused when it ends, or in time; the server goes on."""
    upstream, site = place()
    data = request(COMPLETIONS, BODY, f"Content-Length: {len(BODY) + 10}")
    if web_server != "waitress":  # which reads a body before it asks, and lets the caller wait for two minutes
        status, message = refused(site.answer(data, half_closed=half_closed))
        assert status == (400 if half_closed else 408)
        assert (f"{len(BODY)} of {len(BODY) + 10} bytes" if half_closed else f"{len(BODY)} bytes did") in message
    assert not upstream.requests
    assert told(site.answer(asking()))[0] == 200


def test_a_body_that_drips(place: Place) -> None:
    """A body whose bytes come one by one, each in time, is refused when its whole time is over."""
    _, site = place()
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            while not over.wait(0.02):
                connection.sendall(b" ")
        except OSError:
            pass

    with site.say(request(COMPLETIONS, BODY, "Content-Length: 100000")) as connection:
        dripping = threading.Thread(target=drip, args=(connection,))
        dripping.start()
        answer = until(connection, b"}}")
        over.set()
        dripping.join()
    assert refused(answer)[0] == 408


def test_a_body_that_is_longer_than_its_length(place: Place) -> None:
    """What comes after a body's length is no part of it."""
    upstream, site = place("Yes.")
    assert told(site.answer(request(COMPLETIONS, BODY + b"evil", f"Content-Length: {len(BODY)}")))[0] == 200
    assert upstream.requests[0].json == ASKED


def test_a_body_without_a_length(place: Place, web_server: str) -> None:
    """A body in chunks is read where the server does so, within its limit; else a length is wanted."""
    _, site = place(max_body_bytes=1000)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    assert told(site.answer(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)))[0] == 200
    large = b'"' + b"x" * 2000 + b'"'
    assert refused(site.answer(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)))[0] == 413
    assert refused(site.answer(f"{head}\r\n".encode()))[0] in (400, 411)


MEMBERS = ["model", "messages", "stream", "stream_options", "n", "max_tokens", "tools", "stop", "seed", "user"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)


def test_any_member(plain: Link) -> None:
    """Whatever a member of a request is, it is answered with 200 or a clear 4xx."""
    app = proxy(plain.client(plain.serve("Yes."), dialect="mistral"), max_tokens=100)

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(MEMBERS), JUNK)
    def answers(name: str, junk: Any) -> None:
        status, body = called(app, {**ASKED, name: junk})
        assert 200 <= status < 500, body

    answers()


def called(app: Any, data: Any) -> tuple[int, bytes]:
    """Return status and body of what an application answers to a JSON value."""
    import io

    body = json.dumps(data).encode()
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": COMPLETIONS, "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body),
    }  # fmt: skip
    heads: list[str] = []
    parts = app(environ, lambda status, headers: heads.append(status))
    try:
        return int(heads[0].split()[0]), b"".join(parts)
    finally:
        getattr(parts, "close", bool)()


# -- what goes wrong behind it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_of_the_server(place: Place, status: int, stream: bool) -> None:
    """A refusal of the server keeps its status, words, type, code, field and the time to wait."""
    reply = Reply.error(status, "Not like this.", type="a_type", headers={"Retry-After": "2"})
    _, site = place(reply)
    answer = site.answer(asking(stream=stream))
    got, body = told(answer)
    assert got == status
    assert (body["error"]["message"], body["error"]["type"]) == ("Not like this.", "a_type")
    assert b"\r\nretry-after: 2\r\n" in answer.lower()


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refusal_of_the_key(place: Place, status: int) -> None:
    """A refusal of the proxy's own key is no caller's fault, and none of its words are a caller's business."""
    _, site = place(Reply.error(status, f"Incorrect API key provided: {KEY[:6]}***{KEY[-4:]}. See https://keys"))
    got, message = refused(site.answer(asking()))
    assert got == 502
    assert message == "The model cannot be asked at the moment."


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(raw=b""), 502),
        (Reply.garbage(), 502),
        (Reply.html("<h1>10.0.0.7 is down</h1>", 502), 502),
        (Reply(head_delay=60), 504),
    ],
    ids=["gone", "garbage", "a page", "silence"],
)
def test_no_answer_of_the_server(plain: Link, serve: Serve, reply: Reply, status: int) -> None:
    """No answer, or none that can be read, is a gateway's error in general words."""
    upstream = plain.serve(reply)
    client = plain.client(upstream, api_key=KEY, timeout=0.3 * SCALE)
    got, message = refused(serve(proxy(client)).answer(asking()))
    assert got == status
    assert str(upstream.port) not in message
    assert "10.0.0.7" not in message


def test_nobody_there(plain: Link, serve: Serve) -> None:
    """A server that cannot be reached is a gateway's error, which does not say where it was looked for."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    got, message = refused(serve(proxy(plain.client(f"http://127.0.0.1:{port}", api_key=KEY))).answer(asking()))
    assert (got, message) == (502, "The model's server cannot be reached.")


def test_an_error_in_the_stream(place: Place) -> None:
    """An error after the head is the last event, in the server's words, without the key that it repeats."""
    _, site = place(Reply(chunks=[{"error": {"message": f"No more with {KEY}.", "type": "hot", "code": 7}}]))
    answer = site.answer(asking(stream=True))
    assert KEY.encode() not in answer
    assert read([body_in(answer)]).error == {"message": "No more with ***.", "type": "hot", "param": None, "code": 7}


# -- keys and heads ---------------------------------------------------------------------------------------------------


@EACH_SERVER
def test_heads_stay_on_their_side(place: Place) -> None:
    """Nothing of a caller's head goes to the server, nothing of the server's head to the caller; no key anywhere."""
    headers = {
        "X-Secret": "inside",
        "Set-Cookie": "a=inside",
        "X-Request-Id": "inside",
        "OpenAI-Organization": "inside",
    }
    upstream, site = place(Reply("Yes.", headers=headers))
    mine = ["Authorization: Bearer outside", "Cookie: a=outside", "X-Forwarded-For: outside", "Api-Key: outside"]
    for stream in (True, False):
        answer = site.answer(asking(*mine, stream=stream))
        assert b"inside" not in answer
        assert KEY.encode() not in answer
    for recorded in upstream.requests:
        assert "outside" not in str(dict(recorded.headers.items()))
        assert recorded.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("evil", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\x00b", "a\u2028b", "../../x?key=1#", "a" * 5000])
def test_injection(place: Place, evil: str) -> None:
    """Line ends, paths and the like in a caller's words are words, in what is sent and in what is answered."""
    upstream, site = place("Yes.", Reply.error(400, evil))
    answers = [site.answer(asking(model=evil, user=evil, **{evil: evil})) for _ in range(2)]
    answers.append(site.answer(request("/v1/models/x%0d%0aX-Evil:%201")))
    for answer in answers:
        assert b"x-evil" not in answer.partition(b"\r\n\r\n")[0].lower()
    for recorded in upstream.requests:
        assert recorded.path in (COMPLETIONS, "/v1/models")
        assert "x-evil" not in {name.lower() for name, _ in recorded.headers.items()}
        assert recorded.json in (None, {**ASKED, "model": evil, "user": evil, evil: evil})


# -- callers who leave ------------------------------------------------------------------------------------------------


@EACH_SERVER
@pytest.mark.parametrize("reply", [SILENT, Reply(["x"] * 10_000, pace=0.002)], ids=["silent", "speaking"])
def test_a_caller_who_leaves_a_stream(place: Place, reply: Reply) -> None:
    """A caller who leaves frees the model: at once while it speaks, and within a heartbeat while it is silent."""
    upstream, site = place(reply)
    with site.say(asking(stream=True)) as connection:
        until(connection, b"x" if reply.pace else b":\n")
    assert upstream.wait_for(lambda server: server.open_connections == 0, HEARTBEAT + SCALE)


@EACH_SERVER
def test_a_caller_who_leaves_is_noticed_within_one_heartbeat(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write to a caller who has left succeeds as a rule: the second does not wait for the next heartbeat."""
    monkeypatch.setattr("chanstream.relay.body._AGAIN", 0.05)
    heartbeat = 0.8 * SCALE
    upstream, site = place(SILENT, heartbeat=heartbeat)
    with site.say(asking(stream=True)) as connection:
        until(connection, b":\n")
    assert upstream.wait_for(lambda server: server.open_connections == 0, 1.9 * heartbeat)


@EACH_SERVER
@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_before_the_head(place: Place, stream: bool) -> None:
    """A caller who leaves while the server has not even begun to answer frees it too, whole answers among them."""
    upstream, site = place(Reply(head_delay=60))
    with site.say(asking(stream=stream)):
        assert upstream.wait_for(lambda server: len(server.requests) == 1)
    assert upstream.wait_for(lambda server: server.open_connections == 0, HEARTBEAT + SCALE)


def test_a_caller_who_stays(place: Place) -> None:
    """A caller who waits longer than a heartbeat, and has said more meanwhile, is not taken for one who left."""
    _, site = place(Reply("Yes.", head_delay=3 * HEARTBEAT))
    with site.say(asking() + b"GET / HTTP/1.1\r\n") as connection:
        assert told(to_end(connection))[0] == 200


def test_a_context_for_callers() -> None:
    """A context for a caller whose socket cannot be found is never cancelled, and does not fail."""
    import io

    for environ in ({}, {"wsgi.input": io.BytesIO()}, {"wsgi.input": None}):
        with caller_context(environ, 0.01) as context:
            assert not context.wait(0.03)


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"models": "one"}, TypeError),
        ({"models": [1]}, TypeError),
        ({"max_tokens": 0}, ValueError),
        ({"max_tokens_field": "n"}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"caller": "me"}, TypeError),
        ({"max_body_bytes": 0.5}, TypeError),
        ({"body_timeout": 0}, ValueError),
        ({"heartbeat": None}, TypeError),
        ({"show_errors": None}, TypeError),
    ],
)
def test_wrong_arguments(plain: Link, options: dict[str, Any], error: type[Exception]) -> None:
    """A wrong argument is an error at once, which names it."""
    (name,) = options
    with pytest.raises(error, match=name):
        proxy(plain.client("http://127.0.0.1:1"), **options)


@pytest.mark.parametrize("client", [None, Client, "http://127.0.0.1"])
def test_no_client(client: Any) -> None:
    """What cannot ask is refused at once."""
    with pytest.raises(TypeError, match="client: expected a Client"):
        proxy(client)


def test_in_front_of_several_servers(plain: Link, serve: Serve, tmp_path: Path) -> None:
    """What asks several servers, or keeps answers, can be behind a proxy too; the former needs a list of models."""
    servers = [plain.serve(Reply.error(503)), plain.serve("Yes.")]
    several = Failover([plain.client(server) for server in servers])
    with pytest.raises(ValueError, match="models: needed, as Failover has no list of them"):
        proxy(several)
    kept = CachedClient(plain.client(servers[1]), FileCache(tmp_path / "answers"))
    for app in (proxy(several, models=["a-model"]), proxy(kept)):
        site = serve(app)
        assert told(site.answer(asking()))[0] == 200
        assert read([body_in(site.answer(asking(stream=True)))]).text == "Yes."


def test_its_repr(plain: Link) -> None:
    """A proxy shows whose it is, and no key."""
    shown = repr(proxy(plain.client("http://127.0.0.1:1", api_key=KEY)))
    assert shown == "<Proxy of <Client openai http://127.0.0.1:1/v1>>"

"""Streams as responses of Flask, Django and Bottle: the right head, nothing gathered on the way, over when left."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from chanstream import Client, relay
from chanstream.testing import Reply, StreamServer
from tests.conftest import REQUEST, SCALE, Link
from tests.relay.conftest import SERVERS, Serve, Site, request, until
from tests.relay.reading import read

pytestmark = pytest.mark.usefixtures("nothing_left")

HEARTBEAT = 0.1 * SCALE


def flask_app(client: Client, **options: Any) -> Any:
    """Return an application of Flask with one page that streams, and with a compressor of responses."""
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)
    try:
        from flask_compress import Compress

        app.config["COMPRESS_MIMETYPES"] = ["text/event-stream"]
        app.config["COMPRESS_STREAMS"] = True
        Compress(app)
    except ImportError:  # it is tested with those that compress by themselves alone
        pass
    app.add_url_rule(
        "/", "page", lambda: relay.flask.stream_response(client.chat_completion_stream(REQUEST), **options)
    )
    app.add_url_rule(
        "/text", "text", lambda: relay.flask.stream_response(relay.text(client.chat_completion_stream(REQUEST)))
    )
    return app


@pytest.fixture(scope="session")
def django_settings() -> None:
    """Django, set up with the middleware that compresses and that answers conditional requests."""
    django = pytest.importorskip("django")
    from django.conf import settings

    middleware = ["django.middleware.gzip.GZipMiddleware", "django.middleware.http.ConditionalGetMiddleware"]
    settings.configure(DEBUG=False, ALLOWED_HOSTS=["*"], MIDDLEWARE=middleware, ROOT_URLCONF=__name__)
    django.setup()


class DjangoPages:
    """What Django is told to serve; it knows its pages by the name of a module."""

    client: Client
    options: dict[str, Any]


def page(_: Any) -> Any:
    """Be a view of Django."""
    return relay.django.stream_response(DjangoPages.client.chat_completion_stream(REQUEST), **DjangoPages.options)


async def async_page(_: Any) -> Any:
    """Be an asynchronous view of Django."""
    stream = await DjangoPages.client.chat_completion_stream_async(REQUEST)
    return relay.django.stream_response(stream, **DjangoPages.options)


def text_page(_: Any) -> Any:
    """Be a view of Django that streams plain text."""
    return relay.django.stream_response(relay.text(DjangoPages.client.chat_completion_stream(REQUEST)))


def __getattr__(name: str) -> Any:
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import path

    return [path("", page), path("async", async_page), path("text", text_page)]


def django_app(client: Client, **options: Any) -> Any:
    """Return an application of Django with pages that stream."""
    from django.core.handlers.wsgi import WSGIHandler

    DjangoPages.client, DjangoPages.options = client, options
    return WSGIHandler()


def bottle_app(client: Client, **options: Any) -> Any:
    """Return an application of Bottle with one page that streams."""
    bottle = pytest.importorskip("bottle")
    app = bottle.Bottle()
    respond, ask = relay.bottle.stream_response, partial(client.chat_completion_stream, REQUEST)
    app.get("/", callback=lambda: respond(ask(), **options))
    app.get("/text", callback=lambda: respond(relay.text(ask())))
    return app


APPS = {"flask": flask_app, "django": django_app, "bottle": bottle_app}


@pytest.fixture(params=APPS)
def framework(request: pytest.FixtureRequest) -> str:
    """Each framework."""
    if request.param == "django":
        request.getfixturevalue("django_settings")
    return str(request.param)


GET = request("/", b"", "Accept-Encoding: gzip, br")


def served(
    plain: Link, serve: Serve, framework: str, *replies: Reply | str, **options: Any
) -> tuple[StreamServer, Site]:
    """Return a model's server, and a site that streams what it says."""
    upstream = plain.serve(*replies)
    return upstream, serve(APPS[framework](plain.client(upstream), **options))


def body_in(answer: bytes) -> bytes:
    """Return the body of a response, chunked or not."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


def test_a_page(plain: Link, serve: Serve, framework: str) -> None:
    """One line makes a page that streams an answer: uncompressed, not to be stored, and exact."""
    _, site = served(plain, serve, framework, "Grüß Gott, 漢字. ")
    answer = site.answer(GET)
    head = answer.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
    assert head.startswith(("http/1.1 200", "http/1.0 200"))
    assert "content-type: text/event-stream; charset=utf-8" in head
    assert "cache-control: no-store, no-transform" in head
    assert "x-accel-buffering: no" in head
    assert "content-encoding: identity" in head
    assert "content-length" not in head
    assert "etag" not in head
    seen = read([body_in(answer)])
    assert (seen.text, seen.done) == ("Grüß Gott, 漢字. ", True)


@pytest.mark.parametrize("web_server", SERVERS)
def test_tokens_and_leaving(plain: Link, serve: Serve, framework: str) -> None:
    """The head comes before the model speaks, each token when it has come, and whoever leaves frees the model."""
    reply = Reply(["one", "two", "three"], stall_after=2)
    upstream, site = served(plain, serve, framework, reply, heartbeat=HEARTBEAT)
    with site.say(GET) as browser:
        until(browser, b'"two"')
    assert upstream.wait_for(lambda server: server.open_connections == 0, HEARTBEAT + SCALE)


def test_the_head_of_a_silent_model(plain: Link, serve: Serve, framework: str) -> None:
    """The head and pings come although the model says nothing, and whoever leaves frees it."""
    upstream, site = served(plain, serve, framework, Reply("", stall_after=0), heartbeat=HEARTBEAT)
    with site.say(GET) as browser:
        assert b"200 OK" in until(browser, b": ping")
    assert upstream.wait_for(lambda server: server.open_connections == 0, HEARTBEAT + SCALE)


def test_an_error(plain: Link, serve: Serve, framework: str) -> None:
    """An error after the head is an event, in a response that is whole."""
    _, site = served(plain, serve, framework, Reply(chunks=[{"error": {"message": "On fire.", "type": "hot"}}]))
    seen = read([body_in(site.answer(GET))])
    assert seen.error is not None
    assert (seen.error["message"], seen.error["type"]) == ("On fire.", "hot")


def test_text(plain: Link, serve: Serve, framework: str) -> None:
    """A body that was made before, here of plain text, is a response too."""
    _, site = served(plain, serve, framework, TEXT)
    answer = site.answer(request("/text"))
    assert b"text/plain; charset=utf-8" in answer
    assert body_in(answer).decode() == TEXT


TEXT = "Grüß Gott. "


def test_options_of_a_body_that_is_made(plain: Link, framework: str) -> None:
    """Options are the body's: where it was made before they are refused, by name."""
    body = relay.text(plain.stream("Yes."))
    respond = getattr(relay, framework).stream_response
    with pytest.raises(TypeError, match="heartbeat"):
        respond(body, heartbeat=1)
    body.close()


# -- Django under ASGI ------------------------------------------------------------------------------------------------


class Asgi:
    """A server for one request under ASGI, as far as Django needs one."""

    def __init__(self, path: str) -> None:
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": path,
            "raw_path": path.encode(), "query_string": b"", "headers": [(b"accept-encoding", b"gzip")],
        }  # fmt: skip
        self.sent: list[bytes] = []
        self.left = asyncio.Event()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        """Give the request, then that the browser has left, once it has."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take what is answered."""
        self.sent.append(message.get("body", b""))


async def asked(path: str, leave_at: bytes = b"never") -> Asgi:
    """Return what Django answers, to a browser that leaves when it sees some bytes."""
    from django.core.asgi import get_asgi_application

    server = Asgi(path)

    async def send(message: dict[str, Any]) -> None:
        await server.send(message)
        if leave_at in b"".join(server.sent):
            server.left.set()

    app: Any = get_asgi_application()
    await app(server.scope, server.receive, send)
    return server


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("path", ["/", "/async"])
def test_django_under_asgi(plain: Link, path: str) -> None:
    """Under ASGI too a page streams, from views of both kinds, and Django does not warn that it gathers."""
    django_app(plain.client(plain.serve(Reply(["one", "two"], pace=0.02))))
    sent = asyncio.run(asked(path)).sent
    assert (read(sent).text, read(sent).done) == ("onetwo", True)


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("path", ["/", "/async"])
def test_leaving_django_under_asgi(plain: Link, path: str) -> None:
    """Under ASGI a browser that leaves frees the model at once: there the server is told of it."""
    if importlib.import_module("django").VERSION < (5, 0):
        pytest.skip("this Django does not listen whether a browser leaves")
    upstream = plain.serve(Reply(["one", "two"], stall_after=1))
    django_app(plain.client(upstream), heartbeat=60)
    asyncio.run(asked(path, leave_at=b'"one"'))
    assert upstream.wait_for(lambda server: server.open_connections == 0, SCALE)


# -- without the frameworks -------------------------------------------------------------------------------------------

_WITHOUT = """
import sys
from chanstream import ChatCompletionRequest, UserMessage, relay
names = sys.argv[1:]
print({*names, "asyncio"} & {*sys.modules})
from chanstream.testing import FakeClient
sys.modules.update(dict.fromkeys(names))
with FakeClient("Yes.") as client:
    stream = client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage("?")]))
    for name in names:
        try:
            getattr(relay, name).stream_response(stream)
        except ImportError as error:
            print(error)
"""


def test_frameworks_that_are_not_there() -> None:
    """Importing the package imports no framework, and no asyncio; without a framework the error says how to get it."""
    command = [sys.executable, "-c", _WITHOUT, *APPS]
    loaded, *told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout.splitlines()
    assert loaded == "set()"
    assert [line.partition(": ")[2] for line in told] == [f"pip install 'chanstream[{name}]'" for name in APPS]

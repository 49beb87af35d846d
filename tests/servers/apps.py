"""The same page in each framework, as one WSGI application: what the servers of these tests serve.

The first part of the path names the framework. A client is made where a deployment's would be, when the module is
imported: before the fork, by servers that import first and fork then. The environment says where the model is, and may
say which frameworks are wanted, for a faster start.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from wsgiref.util import shift_path_info

from chanstream import ChatCompletionRequest, Client, CompletionStream, Context, Retry, UserMessage, relay

WSGI: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HEARTBEAT = 1.0
"""Seconds, as the promise about a model that is silent has it."""

client = Client("test-key", base_url=os.environ["UPSTREAM"], dialect="openai", retry=Retry(max_retries=0))

if os.environ.get("ASK_AT_IMPORT"):  # with a thread and connections of the parent's, in a server that forks later
    client.chat_completion_stream(ChatCompletionRequest("test-model", [UserMessage("import")])).collect()
    if "gevent" not in sys.modules:
        held = client.chat_completion_stream(ChatCompletionRequest("test-model", [UserMessage("held")]))
    else:  # a fork copies greenlets, and gevent complains of those that were threads
        while any(thread.name.startswith("chanstream") for thread in threading.enumerate()):
            time.sleep(0.01)


def stream_of(asked: Mapping[str, Any], context: Context | None = None) -> CompletionStream:
    """Return the stream of the answer to a request's JSON body."""
    return client.chat_completion_stream(ChatCompletionRequest(asked["model"], asked["messages"]), context=context)


def wsgi_app() -> WSGI:
    """Return the page in no framework; under /text it streams plain text."""

    def chat(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        stream = stream_of(asked)
        body = relay.text(stream) if environ["PATH_INFO"] == "/text" else relay.sse(stream, heartbeat=HEARTBEAT)
        start_response("200 OK", body.headers)
        return body

    return chat


def flask_app() -> WSGI:
    """Return the page in Flask."""
    import flask

    app = flask.Flask(__name__)

    @app.post("/")
    def chat() -> flask.Response:
        return relay.flask.stream_response(stream_of(flask.request.get_json()), heartbeat=HEARTBEAT)

    return app


def bottle_app() -> WSGI:
    """Return the page in Bottle."""
    import bottle

    app = bottle.Bottle()

    @app.post("/")
    def chat() -> bottle.HTTPResponse:
        return relay.bottle.stream_response(stream_of(bottle.request.json), heartbeat=HEARTBEAT)

    return app


def django_app() -> WSGI:
    """Return the page in Django; it is in `tests.servers.site`."""
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def proxy_app() -> WSGI:
    """Return the application that is ready."""
    from chanstream.relay.wsgi import proxy

    return proxy(client, heartbeat=HEARTBEAT)


def pid_app() -> WSGI:
    """Return what tells which process this is."""

    def pid(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]

    return pid


_MAKERS: dict[str, Callable[[], WSGI]] = {
    "wsgi": wsgi_app,
    "flask": flask_app,
    "bottle": bottle_app,
    "django": django_app,
    "proxy": proxy_app,
    "pid": pid_app,
}
_wanted = os.environ.get("FRAMEWORKS", ",".join(_MAKERS)).split(",")
_apps = {name: _MAKERS[name]() for name in _wanted}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Hand a request to the framework that its path names."""
    return _apps[shift_path_info(environ) or ""](environ, start_response)

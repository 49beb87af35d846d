"""The chat page with Django: a whole project in one file.

Run it with ``python examples/django_chat/app.py --demo``; it needs Django and no key. Without ``--demo`` Mistral
answers, with the key in MISTRAL_API_KEY. The page is that of ``flask_chat``.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST
from django.views.static import serve

from chanstream import ChanstreamError, Client, relay
from chanstream.relay.wsgi import caller_context

sys.path.append(str(Path(__file__).parents[1]))
from flask_chat.chat import HEADERS, HEARTBEAT, MOST_BYTES, PAGE, Running, request_of, told
from flask_chat.demo import demo_client

running = Running()


@require_POST
def chat(request: HttpRequest) -> HttpResponseBase:
    """Stream the answer to a question; only JSON is one, which the form of another site cannot send."""
    if request.content_type != "application/json":
        return HttpResponse(status=415)
    try:
        question = json.loads(request.body)
        client: Client = settings.CHAT_CLIENT
        with caller_context(request.META, heartbeat=1) as context:  # before the head, too, the page may leave
            running.add(question, context)
            stream = client.chat_completion_stream(request_of(question), context=context)
    except (ChanstreamError, ValueError) as error:
        body, status = told(error)
        return JsonResponse(body, status=status)
    return relay.django.stream_response(stream, heartbeat=HEARTBEAT)


@require_POST
def stop(_: HttpRequest, answer: str) -> HttpResponse:
    """End an answer."""
    running.stop(answer)
    return HttpResponse(status=204)


def guard(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Send the page's headers with every response: a middleware."""

    def guarded(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        for name, value in HEADERS.items():
            response[name] = value
        return response

    return guarded


urlpatterns = [
    path("", serve, {"path": "index.html", "document_root": PAGE}),
    path("chat", chat),
    path("stop/<str:answer>", stop),
    path("<path:path>", serve, {"document_root": PAGE}),
]


def main() -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat page with Django.")
    parser.add_argument("--demo", action="store_true", help="answer without a model and without a key")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as exits:
        settings.configure(
            ALLOWED_HOSTS=["127.0.0.1", "localhost"],
            CHAT_CLIENT=exits.enter_context(demo_client() if arguments.demo else Client()),
            DATA_UPLOAD_MAX_MEMORY_SIZE=MOST_BYTES,
            MIDDLEWARE=[f"{__name__}.guard"],
            ROOT_URLCONF=__name__,
            SECRET_KEY=secrets.token_hex(),
            USE_TZ=True,
        )
        server = ThreadedWSGIServer(("127.0.0.1", arguments.port), WSGIRequestHandler)
        server.set_app(get_wsgi_application())
        print(f"Open http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()

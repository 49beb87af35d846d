"""The chat page with Bottle, and with a server of the standard library.

Run it with ``python examples/bottle_chat.py --demo``; it needs Bottle and no key. Without ``--demo`` Mistral answers,
with the key in MISTRAL_API_KEY. The page is that of ``flask_chat``.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from bottle import BaseRequest, Bottle, HTTPResponse, request, response, static_file
from flask_chat.chat import HEADERS, HEARTBEAT, MOST_BYTES, PAGE, Running, request_of, told
from flask_chat.demo import demo_client

from chanstream import ChanstreamError, Client, relay
from chanstream.relay.wsgi import caller_context


class ThreadedServer(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request: while an answer streams, its stop button must be heard."""

    daemon_threads = True


def create_app(client: Client) -> Bottle:
    """Return the app, with the client that asks the model."""
    BaseRequest.MEMFILE_MAX = MOST_BYTES
    app = Bottle()
    running = Running()

    @app.get("/")
    @app.get("/<name>")
    def page(name: str = "index.html") -> HTTPResponse:
        return static_file(name, root=str(PAGE))

    @app.post("/chat")
    def chat() -> HTTPResponse | dict[str, Any]:
        try:
            question = request.json  # None, and so refused, where it is of another type: a form, say
            with caller_context(request.environ, heartbeat=1) as context:  # before the head, too, the page may leave
                running.add(question, context)
                stream = client.chat_completion_stream(request_of(question), context=context)
        except (ChanstreamError, ValueError) as error:
            body, response.status = told(error)
            return body
        return relay.bottle.stream_response(stream, heartbeat=HEARTBEAT)

    @app.post("/stop/<answer>")
    def stop(answer: str) -> None:
        running.stop(answer)
        response.status = 204

    @app.hook("after_request")
    def guard() -> None:
        for name, value in HEADERS.items():
            response.set_header(name, value)

    return app


def main() -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat page with Bottle.")
    parser.add_argument("--demo", action="store_true", help="answer without a model and without a key")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as exits:
        client = exits.enter_context(demo_client() if arguments.demo else Client())
        server = make_server("127.0.0.1", arguments.port, create_app(client), server_class=ThreadedServer)
        print(f"Open http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()

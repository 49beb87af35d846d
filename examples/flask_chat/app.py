"""A chat page with Flask: streamed answers, a stop button, retry, reconnect.

Run it with ``python examples/flask_chat/app.py --demo``; it needs Flask and no key. Without ``--demo`` Mistral
answers, with the key in MISTRAL_API_KEY.

The page is in the folder ``page``, and is made of plain files: change them and reload. To serve it to more than a few,
``gunicorn --chdir examples/flask_chat --worker-class gthread --threads 100 'app:create_app()'``.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, suppress
from typing import Any

from chat import HEADERS, HEARTBEAT, MOST_BYTES, PAGE, Running, request_of, told
from demo import demo_client
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from chanstream import ChanstreamError, Client, relay
from chanstream.relay.wsgi import caller_context


def create_app(client: Client | None = None) -> Flask:
    """Return the app, with the client that asks the model; by default one with the key in MISTRAL_API_KEY."""
    client = client or Client()
    app = Flask(__name__, static_folder=PAGE, static_url_path="/")
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    running = Running()

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.post("/chat")
    def chat() -> Response | tuple[dict[str, Any], int]:
        question = request.get_json()
        try:
            with caller_context(request.environ, heartbeat=1) as context:  # before the head, too, the page may leave
                running.add(question, context)
                stream = client.chat_completion_stream(request_of(question), context=context)
        except (ChanstreamError, ValueError) as error:
            return told(error)
        return relay.flask.stream_response(stream, heartbeat=HEARTBEAT)

    @app.post("/stop/<answer>")
    def stop(answer: str) -> tuple[str, int]:
        running.stop(answer)
        return "", 204

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[dict[str, Any], int]:
        return {"error": {"message": error.description}}, error.code or 500

    return app


def main() -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat page with Flask.")
    parser.add_argument("--demo", action="store_true", help="answer without a model and without a key")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as exits:
        client = exits.enter_context(demo_client() if arguments.demo else Client())
        server = make_server("127.0.0.1", arguments.port, create_app(client), threaded=True)
        print(f"Open http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()

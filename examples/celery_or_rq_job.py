"""The chat page with a worker behind it: an answer goes on while nobody looks, and whoever comes late sees all of it.

Run it with ``python examples/celery_or_rq_job.py --demo``; it needs Flask, redis, rq and no key. Redis is the one at
REDIS_URL, or else a redis-server that is started for the demo.

::

    page  -- POST /chat -->  app  -- job -->  worker  <-- chunks --  model
    page  <-- events --  app  <-- Redis stream "answer:ID" --  worker

The job puts what it gets on a stream in Redis, in the very bytes that the page is to read; the app reads that stream
from its beginning, for each page that asks. So a page that was reloaded, lost its connection, or is a second one
(http://…/#answers/ID) gets what has come and what comes. The stop button leaves a word in Redis for the job.

With Celery in place of RQ, `answer` is a task (``@app.task``), started by ``answer.delay(name, question)``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request
from flask_chat.chat import HEADERS, HEARTBEAT, MOST_BYTES, PAGE, request_of, told
from flask_chat.demo import demo_model
from redis import ConnectionError as NoRedisError
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from chanstream import ChanstreamError, Client, Context, relay

KEPT = 3600
"""Seconds for which an answer can be read again."""

_DEAD = {"failed", "stopped", "canceled"}


def database(url: str) -> Redis:
    """Return a connection to Redis that may wait for as long as the page may."""
    return Redis.from_url(url, socket_timeout=2 * HEARTBEAT)


def event(data: object, kind: str = "") -> bytes:
    """Return one event as the page reads it."""
    return f"{kind and f'event: {kind}'}\ndata: {json.dumps(data)}\n\n".lstrip().encode()


# In the worker.


def answer(name: str, question: dict[str, Any]) -> None:
    """Ask the model, and put what comes on the answer's stream: the job."""
    redis = database(os.environ["REDIS_URL"])
    with Context() as context, _client() as client:
        threading.Thread(target=_heed_stop, args=(redis, name, context), daemon=True).start()
        try:
            stream = client.chat_completion_stream(request_of(question), context=context)
            for block in relay.sse(stream, heartbeat=None):
                redis.xadd(f"answer:{name}", {"block": block})
        except (ChanstreamError, ValueError) as error:
            redis.xadd(f"answer:{name}", {"block": event(told(error)[0], "error")})
        finally:
            redis.xadd(f"answer:{name}", {"end": ""})
            redis.expire(f"answer:{name}", KEPT)


def _client() -> Client:
    model = os.environ.get("DEMO_MODEL")
    return Client("no key", base_url=model) if model else Client()


def _heed_stop(redis: Redis, name: str, context: Context) -> None:
    """Cancel the answer when somebody says so, be the model silent or not."""
    while not context.done():
        if redis.blpop([f"stop:{name}"], timeout=1):
            context.cancel()


# In the app.


class Answers:
    """What was asked and answered, in Redis.

    Thread safety: for all threads, and all processes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = Queue(connection=redis)

    def begin(self, name: str, question: dict[str, Any]) -> None:
        """Have a worker answer a question; the question itself is the beginning of the stream."""
        if not self._redis.set(f"asked:{name}", "", nx=True, ex=KEPT):
            raise ValueError("id: there is such an answer already")
        asked = [message["content"] for message in question["messages"] if message["role"] == "user"]
        self._redis.xadd(f"answer:{name}", {"block": event({"choices": [], "question": "".join(asked[-1:])})})
        self._redis.expire(f"answer:{name}", KEPT)
        job = f"{Path(__file__).stem}.answer"  # by its name, as the worker imports it
        self._queue.enqueue(job, name, question, job_id=name, result_ttl=0, failure_ttl=KEPT)

    def stop(self, name: str) -> None:
        """Leave a word for the job."""
        self._redis.lpush(f"stop:{name}", "")
        self._redis.expire(f"stop:{name}", KEPT)

    def has(self, name: str) -> bool:
        """Return whether an answer is kept."""
        return bool(self._redis.exists(f"answer:{name}"))

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an answer from its beginning to its end, as it comes."""
        last = "0"
        while True:
            entries = self._redis.xread({f"answer:{name}": last}, block=int(HEARTBEAT * 1000))
            for last, entry in entries[0][1] if entries else ():  # noqa: B007 - where to go on
                if b"end" in entry:
                    return
                yield entry[b"block"]
            if not entries and self._is_dead(name):
                yield event({"error": {"message": "The worker is gone.", "type": "interrupted"}}, "error")
                return
            if not entries:
                yield b": ping\n\n"

    def _is_dead(self, name: str) -> bool:
        try:
            return Job.fetch(name, connection=self._redis).get_status() in _DEAD
        except NoSuchJobError:
            return True


def create_app(answers: Answers) -> Flask:
    """Return the app; the workers are elsewhere, and know the same Redis."""
    app = Flask(__name__, static_folder=PAGE, static_url_path="/")
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.post("/chat")
    def chat() -> Response:
        question = request.get_json()
        try:
            request_of(question)
            name = _checked(question.get("id"))
            answers.begin(name, question)
        except ValueError as error:
            abort(400, str(error))
        return _streamed(answers, name)

    @app.get("/answers/<name>")
    def again(name: str) -> Response:
        if not answers.has(name):
            abort(404, "This answer is not kept any more.")
        return _streamed(answers, name)

    @app.post("/stop/<name>")
    def stop(name: str) -> tuple[str, int]:
        answers.stop(name)
        return "", 204

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[dict[str, Any], int]:
        return {"error": {"message": error.description}}, error.code or 500

    return app


def _checked(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{32}", name):
        raise ValueError("id: expected 32 hexadecimal digits")
    return name


def _streamed(answers: Answers, name: str) -> Response:
    headers = {"Content-Location": f"answers/{name}", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(answers.read(name), mimetype="text/event-stream", headers=headers)


# Starting it all.


@contextmanager
def running(*command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of the block."""
    environment = {**os.environ, **variables}
    # In a session of its own: Ctrl-C is for us.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    try:
        yield process
    finally:
        while process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):  # RQ's worker waits for its job, unless it is told twice
                process.wait(1)


@contextmanager
def own_redis() -> Iterator[str]:
    """Give the address of a Redis of our own, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("There is no Redis: set REDIS_URL, or install redis-server (apt install redis-server, say).")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        with running(program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder) as process:
            while not path.exists():
                if process.poll() is not None:
                    sys.exit("redis-server does not start.")
                time.sleep(0.01)
            yield f"unix://{path}"


def main() -> None:
    """Serve the page until Ctrl-C, with a worker beside it."""
    parser = argparse.ArgumentParser(description="A chat page with a worker behind it.")
    parser.add_argument("--demo", action="store_true", help="answer without a model and without a key")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as exits:
        url = os.environ.get("REDIS_URL") or exits.enter_context(own_redis())
        redis = exits.enter_context(database(url))
        try:
            redis.ping()
        except NoRedisError as error:
            sys.exit(f"There is no Redis at REDIS_URL: {error}")
        variables = {"REDIS_URL": url}
        if arguments.demo:
            variables["DEMO_MODEL"] = exits.enter_context(demo_model())
        worker = [sys.executable, "-m", "rq.cli", "worker", "--quiet", "--path", str(Path(__file__).parent)]
        exits.enter_context(running(*worker, "--url", url, **variables))
        server = make_server("127.0.0.1", arguments.port, create_app(Answers(redis)), threaded=True)
        print(f"Open http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()

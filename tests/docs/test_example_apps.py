"""The examples that are web applications: each started by its one command, without a key, and asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests

from tests import redis_server
from tests.conftest import SCALE
from tests.debian import NotThereError, programs_folder
from tests.docs.blocks import ROOT

pytestmark = pytest.mark.slow

APPS = {
    "flask_chat/app.py": ["flask"],
    "django_chat/app.py": ["django"],
    "bottle_chat.py": ["bottle"],
    "celery_or_rq_job.py": ["flask", "redis", "rq"],
}
PATIENCE = 20 * SCALE
HELLO = "Hello! I am a *demo*: these words come **one by one**, as a model's do. Ask me what I can do."


@attrs.frozen
class App:
    """A running example."""

    name: str
    url: str

    def post(self, path: str, body: Any = None, **settings: Any) -> requests.Response:
        """Send a JSON object."""
        return requests.post(self.url + path, json=body, timeout=PATIENCE, **settings)

    def ask(self, *said: str, name: str = "") -> contextlib.AbstractContextManager[requests.Response]:
        """Ask as the page does."""
        messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
        return self.post("/chat", {"id": name or secrets.token_hex(16), "messages": messages}, stream=True)


@contextlib.contextmanager
def running(name: str, **variables: str) -> Iterator[App]:
    """Start an example with its one command, and end it with Ctrl-C."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MISTRAL_API_KEY", "REDIS_URL")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, str(ROOT / "examples" / name), "--demo", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert found, process.communicate()[1]
            yield App(name, found[0])
        finally:
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints, complaints


@pytest.fixture(scope="module", params=APPS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Each of the examples; where one needs a Redis, that is on the PATH."""
    for library in APPS[request.param]:
        pytest.importorskip(library)
    variables = redis_on_path(request, tmp_path_factory) if "redis" in APPS[request.param] else {}
    with running(request.param, **variables) as example:
        yield example


def redis_on_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables with which a program finds redis-server."""
    try:
        program = redis_server.find(programs_folder(request, tmp_path_factory))
    except NotThereError as error:
        pytest.skip(str(error))
    path = os.pathsep.join([str(Path(program.path).parent), os.environ["PATH"]])
    return {"PATH": path, **({"LD_LIBRARY_PATH": program.libraries} if program.libraries else {})}


def events(response: requests.Response) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the data of each event, as it comes."""
    kind = ""
    for line in response.iter_lines(chunk_size=1):  # more would be waited for
        field, _, value = line.decode().partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, value if value == "[DONE]" else json.loads(value)
        elif not field:
            kind = ""


def text_of(chunk: Any) -> str:
    """Return what a chunk adds to the answer."""
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def test_every_example_is_run() -> None:
    """There is no example that no test runs."""
    folder = ROOT / "examples"
    programs = {path for path in folder.rglob("*.py") if "def main()" in path.read_text()}
    numbered = set(folder.glob("[0-9]*.py"))
    assert {path.relative_to(folder).as_posix() for path in programs - numbered} == set(APPS)


def test_the_page(app: App) -> None:
    """The page and its files come with a policy that lets nothing in from elsewhere; other files do not come."""
    page = requests.get(app.url, timeout=PATIENCE)
    assert page.headers["Content-Type"].startswith("text/html")
    wanted = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert {"chat.css", "chat.js", "icon.svg"} == set(wanted)
    for file in (*wanted, "markdown.js", "stream.js"):
        response = requests.get(f"{app.url}/{file}", timeout=PATIENCE)
        assert response.status_code == 200, file
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    for file in ("app.py", "../chat.py", "..%2Fchat.py"):
        assert requests.get(f"{app.url}/{file}", timeout=PATIENCE).status_code in (400, 404), file


def test_an_answer(app: App) -> None:
    """An answer is streamed, with its usage, to its end."""
    with app.ask("Hello") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert "no-" in response.headers["Cache-Control"]
        *told, (_, end) = events(response)
    assert end == "[DONE]"
    chunks = [data for _, data in told]
    assert "".join(map(text_of, chunks)) == HELLO
    assert chunks[-1]["usage"]["completion_tokens"] == len(HELLO.split())


def test_the_conversation_goes_along(app: App) -> None:
    """The model is told of the questions before."""
    name = secrets.token_hex(16)
    with app.ask("Hello", "Hello.", "What did I ask?", name=name) as response:
        text = ""
        for _, data in events(response):
            text += text_of(data)
            if "*Hello*" in text:
                break
        app.post(f"/stop/{name}")
    assert text.startswith("That is question number 2. The one before it was: *Hello*")


def test_an_answer_is_stopped(app: App) -> None:
    """The stop button's request ends an answer that is on its way."""
    name = secrets.token_hex(16)
    with app.ask("Tell me a story", name=name) as response:
        coming = events(response)
        assert any("thread" in text_of(data) for _, data in coming)
        assert app.post(f"/stop/{name}").status_code == 204
        *_, (kind, data) = coming
    assert kind == "error"
    assert data["error"]["type"] == "cancelled"


def test_an_error(app: App) -> None:
    """What the model's server says of a failure reaches the page."""
    with app.ask("fail") as response:
        told = response.json() if response.status_code == 503 else [data for _, data in events(response)][-1]
    assert told["error"]["message"] == "The demo model is out for lunch, as you asked."


@pytest.mark.parametrize(
    "body",
    [
        None, [], {}, {"messages": []}, {"messages": [{"role": "system", "content": "Obey."}]},
        {"messages": [{"role": "user", "content": 1}]}, {"messages": [{"role": "user", "content": "x"}] * 51},
        {"messages": [{"role": "user", "content": "x" * 600_000}]},
    ],
    ids=["null", "list", "nothing", "no message", "system", "no text", "too many", "too long"],
)  # fmt: skip
def test_what_the_page_does_not_send(app: App, body: Any) -> None:
    """A body that the page would not send is refused, and the app lives on."""
    with contextlib.suppress(requests.ConnectionError):  # a server may refuse before it has read all of it
        response = app.post("/chat", body)
        assert 400 <= response.status_code < 500
    form = requests.post(f"{app.url}/chat", data={"messages": "x"}, timeout=PATIENCE)
    assert 400 <= form.status_code < 500
    assert requests.get(app.url, timeout=PATIENCE).status_code == 200


@pytest.mark.parametrize("app", ["celery_or_rq_job.py"], indirect=True)
def test_who_comes_late(app: App) -> None:
    """Of the answers that a worker fetches, who comes late sees all, whether they are done or still coming."""
    with app.ask("Hello") as response:
        address = f"{app.url}/{response.headers['Content-Location']}"
        first = next(events(response))
    assert first == ("", {"choices": [], "question": "Hello"})
    for _ in range(2):  # while it is coming, and when it is done
        with requests.get(address, stream=True, timeout=PATIENCE) as again:
            (_, question), *told, (_, end) = events(again)
        assert question["question"] == "Hello"
        assert "".join(text_of(data) for _, data in told) == HELLO
        assert end == "[DONE]"
    assert requests.get(f"{app.url}/answers/{'0' * 32}", timeout=PATIENCE).status_code == 404


def test_without_redis(tmp_path: Any) -> None:
    """Where there is no Redis the example says so, and how to get one."""
    for library in APPS["celery_or_rq_job.py"]:
        pytest.importorskip(library)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    environment.pop("REDIS_URL", None)
    command = [sys.executable, str(ROOT / "examples/celery_or_rq_job.py"), "--demo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("There is no Redis: set REDIS_URL, or install redis-server")

"""``chanstream serve``: a server in the foreground, asked by clients that are not ours."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import attrs
import pytest

from chanstream.cli import main
from tests.cli.commands import BARE, TIMEOUT, read_until, started

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and pipes")


@attrs.frozen
class Serving:
    """A server that runs: its process, its port, and what it printed."""

    process: subprocess.Popen[bytes]
    port: int
    printed: str

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def connected(self) -> closing[http.client.HTTPConnection]:
        """Return a connection of its own, to be closed by a with block."""
        return closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT))

    def ask(self, path: str = "/v1/chat/completions", method: str = "POST", **body: Any) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        with self.connected() as connection:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()


@contextmanager
def serving(*options: str) -> Iterator[Serving]:
    """Give a server that has said that it is ready; Ctrl-C ends it, with status 0."""
    with started("serve", "--port", "0", *options, env=BARE) as process:
        assert process.stdout is not None
        printed = read_until(process.stdout.fileno(), "}'\n")
        address = re.match(r"Serving http://127\.0\.0\.1:(\d+)/v1 ", printed)
        assert address is not None
        yield Serving(process, int(address[1]), printed)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=TIMEOUT) == (b"", b"")
        assert process.returncode == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """A server without pace, for what does not change it."""
    with serving("--pace", "0") as server:
        yield server


def said(*contents: object) -> list[dict[str, object]]:
    """Return the messages of a user."""
    return [{"role": "user", "content": content} for content in contents]


def test_a_stream(server: Serving) -> None:
    """A stream comes as events that end with [DONE], names the model that was asked for, and quotes the prompt."""
    status, body = server.ask(model="any", stream=True, messages=said("First.", "Hello\nthere"))
    *events, done, rest = body.decode().split("\n\n")
    assert (status, done, rest) == (200, "data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"any"}
    assert '"Hello there"' in "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


def test_a_whole_answer(server: Serving) -> None:
    """Without streaming the same comes as one object; a prompt in parts is quoted too."""
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": "x"},
        {"type": "text", "text": "it?"},
    ]
    status, body = server.ask(model="any", messages=said(parts))
    assert status == 200
    message = json.loads(body)["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert "it?" in message["content"]


@pytest.mark.parametrize(
    ("path", "method", "body", "status"),
    [
        ("/v1/embeddings", "POST", {"messages": said("Hello")}, 404),
        ("/", "GET", {}, 404),
        ("/v1/chat/completions", "POST", {}, 400),
        ("/v1/chat/completions", "POST", {"messages": []}, 400),
        ("/v1/chat/completions", "POST", {"messages": "Hello"}, 400),
        ("/v1/chat/completions", "DELETE", {}, 405),
    ],
)
def test_refusals(server: Serving, path: str, method: str, body: dict[str, Any], status: int) -> None:
    """What is no request for a chat completion is refused as a real server refuses it."""
    answer = server.ask(path, method, **body)
    assert answer[0] == status
    assert json.loads(answer[1])["error"]["message"]


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "x"}], said(None), ["Hello"]])
def test_odd_messages(server: Serving, messages: list[object]) -> None:
    """Messages without words of a user are answered all the same."""
    status, body = server.ask(model="any", messages=messages)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"].startswith('"" is what you said')


def test_models(server: Serving) -> None:
    """There is a list of models, for clients that ask for it first."""
    status, body = server.ask("/v1/models", "GET")
    assert status == 200
    assert [card["id"] for card in json.loads(body)["data"]] == ["chanstream-demo"]


def test_the_curl_example(server: Serving) -> None:
    """The curl example works as it is printed."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = server.printed[server.printed.index("curl") :]
    ended = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env={**os.environ, "no_proxy": "*"},
    )
    assert '"model":"any"' in ended.stdout
    assert ended.stdout.endswith("data: [DONE]\n\n")


def test_our_own_client(server: Serving, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``chanstream chat --base-url`` talks to it without a key."""
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    assert main(["chat", "--base-url", server.url, "Hello"]) == 0
    assert capsys.readouterr().out.startswith('"Hello" is what you said')


def test_a_port_in_use(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken is told in one line, with status 1."""
    assert main(["serve", "--port", str(server.port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"chanstream: cannot listen on 127.0.0.1:{server.port}: Address already in use\n"


@pytest.mark.parametrize("options", [["--port", "99999"], ["--pace", "-1"], ["--pace", "nan"], ["--pace", "slow"]])
def test_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A port or a pace that cannot be is told with a hint at the help, with status 2."""
    assert main(["serve", *options]) == 2
    assert "chanstream serve --help" in capsys.readouterr().err


def test_reply_and_pace() -> None:
    """--reply is the answer, and --pace parts its tokens; Ctrl-C ends the server, the streams that run too."""
    with serving("--reply", "one two three four", "--pace", "0.1") as server, server.connected() as connection:
        begun = time.monotonic()
        connection.request("POST", "/v1/chat/completions", json.dumps({"stream": True, "messages": said("Hello")}))
        response = connection.getresponse()
        texts = []
        for _ in range(3):
            event = response.readline().decode().removeprefix("data: ")
            texts.append(json.loads(event)["choices"][0]["delta"]["content"])
            assert response.readline() == b"\n"
        assert texts == ["one", " two", " three"]
        assert time.monotonic() - begun >= 0.2

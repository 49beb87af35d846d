"""The servers, each started once for all tests that use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests

from tests.conftest import SCALE
from tests.third_party.servers import ENGINE, GATEWAY, MOCKS, NotInstalledError, Server, install, running


@pytest.fixture(scope="session")
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str]], Path]:
    """Get the Python that has some packages, kept from run to run: in CHANSTREAM_TEST_SERVERS, else in pytest's cache.

    Where they cannot be installed, the tests are skipped: one may work offline. CI may not, or it could lose them
    without a word.
    """
    cache = getattr(request.config, "cache", None)  # absent with `-p no:cacheprovider`
    folder = os.environ.get("CHANSTREAM_TEST_SERVERS") or (cache and cache.mkdir("servers"))
    home = Path(folder or tmp_path_factory.mktemp("servers"))

    def get(packages: Sequence[str]) -> Path:
        try:
            return install(home, packages)
        except NotInstalledError as error:
            reason = f"{' and '.join(packages)} cannot be installed: {error}"
            if os.environ.get("CI", "").lower() not in ("", "0", "false"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)

    return get


@pytest.fixture(scope="session")
def interpreter(installed: Callable[[Sequence[str]], Path]) -> Path:
    """The Python that has the mocks."""
    return installed(MOCKS)


@attrs.frozen
class Llmock:
    """llmock, for one test: what it is told to do, and what it says of its clients.

    Attributes:
        server: It runs for all tests.
        begun: How long its log was when the test began, in bytes.
    """

    server: Server
    begun: int

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url

    def script(self, *behaviours: dict[str, Any]) -> None:
        """Queue what the next requests meet: each takes the first of each kind."""
        requests.post(f"{self.url}/_llmock/scenario", json={"behaviors": behaviours}, timeout=10).raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        """Return what it was asked and how each request went; waits a little for those that still run."""
        asked: list[dict[str, Any]] = self._get("requests")["requests"]
        return asked

    def verdict(self) -> list[str]:
        """Return what it finds wrong with how its clients took its failures."""
        return [finding["title"] for finding in self._get("verdict")["findings"] if finding["severity"] == "error"]

    def connections(self) -> int:
        """Return how many connections this test's requests came over."""
        return self.server.connections(self.begun)

    def _get(self, what: str) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/_llmock/{what}", timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="session")
def llmock_server(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """llmock, which repeats the prompt, and has a quota that no test uses up."""
    log = tmp_path_factory.mktemp("llmock") / "log"
    with running(interpreter, log, "llmock", "serve", "--response-style", "echo", "--rpm", "60000") as server:
        yield server


@pytest.fixture
def llmock(llmock_server: Server) -> Llmock:
    """llmock, with nothing queued and nothing remembered."""
    requests.post(f"{llmock_server.url}/_llmock/reset", timeout=10).raise_for_status()
    return Llmock(llmock_server, llmock_server.log.stat().st_size)


_REFUSAL = {"http_status": 429, "error_message": "Come back later."}
_CALLS = [
    {"id": f"call_{city}", "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{city}"}}'}}
    for city in ("Paris", "Lyon")
]
PIECES_APART_MS = round(200 * SCALE)
_COUNTS = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
_BY_PROMPT: dict[str, dict[str, Any]] = {
    "usage": {"response": {"content": "counted", "usage": _COUNTS}},
    "slow": {"response": {"content": "one two four five six", "stream_chunk_delay_ms": PIECES_APART_MS}},
    "tools": {"response": {"tool_calls": _CALLS, "stream_chunk_delay_ms": 0}},
    "refused": {"response": {**_REFUSAL, "error_code": "slow_down"}},
    "refused twice": {"sequence": [_REFUSAL, _REFUSAL, {"content": "welcome", "stream_chunk_delay_ms": 0}]},
}


@pytest.fixture(scope="session")
def stubllm(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """stubllm, which answers each of a few prompts in its own way."""
    folder = tmp_path_factory.mktemp("stubllm")
    answers = [
        {"name": prompt, "match": {"messages": [{"role": "user", "content": {"exact": prompt}}]}, **answer}
        for prompt, answer in _BY_PROMPT.items()
    ]
    (folder / "answers.json").write_text(json.dumps({"fixtures": answers}))
    with running(interpreter, folder / "log", "stubllm", "serve", "--fixture-file", "answers.json") as server:
        yield server


@pytest.fixture
def forward_proxy(interpreter: Path, tmp_path: Path) -> Iterator[Server]:
    """proxy.py, a forward proxy as companies have them; it says at the level DEBUG alone where it listens."""
    one = ["--num-acceptors", "1", "--num-workers", "1", "--log-level", "DEBUG", "--data-dir", str(tmp_path / "data")]
    with running(interpreter, tmp_path / "log", "proxy", "--hostname", "127.0.0.1", *one) as server:
        yield server


@pytest.fixture(scope="session")
def engine_interpreter(installed: Callable[[Sequence[str]], Path]) -> Path:
    """The Python that has llama.cpp."""
    return installed(ENGINE)


@pytest.fixture(scope="session")
def llama(engine_interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """llama.cpp's server, an engine that really computes each token, with a model of random numbers."""
    with running(engine_interpreter, tmp_path_factory.mktemp("llama") / "log", str(LLAMA)) as server:
        yield server


LLAMA = Path(__file__).with_name("llama.py")

_GATEWAY_CONFIG: dict[str, Any] = {
    "general_settings": {"master_key": "sk-test-key"},
    "litellm_settings": {"telemetry": False, "num_retries": 0},
}


@pytest.fixture(scope="session")
def gateway(
    llama: Server, installed: Callable[[Sequence[str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """LiteLLM's proxy in front of llama.cpp and of a server that is not there."""
    if not os.environ.get("CHANSTREAM_TEST_GATEWAY"):
        pytest.skip("CHANSTREAM_TEST_GATEWAY is not set: LiteLLM's proxy brings 700 MB")
    folder = tmp_path_factory.mktemp("gateway")
    upstreams = {"engine": f"{llama.url}/v1", "nowhere": "http://127.0.0.1:9/v1"}
    models = [
        {"model_name": name, "litellm_params": {"model": "openai/tiny", "api_base": url, "api_key": "test-key"}}
        for name, url in upstreams.items()
    ]
    (folder / "config.yaml").write_text(json.dumps({**_GATEWAY_CONFIG, "model_list": models}))  # YAML has all of JSON
    interpreter = installed(GATEWAY)
    with running(interpreter, folder / "log", "litellm", "--config", "config.yaml", "--host", "127.0.0.1") as server:
        yield server

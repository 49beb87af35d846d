"""What ``chanstream batch`` writes is read by the official packages' own types, and it reads what they write."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from chanstream.cli import main
from chanstream.testing import RecordedRequest, Reply
from tests.conftest import Link

CALLS = [{"id": "call1abcd", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]
REPLIES = {
    "text": Reply("Gr\u00fc\u00df Gott, \u2028 \U0001f600."),
    "calls": Reply(tool_calls=CALLS),
    "limit": Reply("half", finish_reason="length"),
    "refusal": Reply.error(400, "I will not."),
    "cut": Reply("half an answer", cut_at=300, end="cut"),
}
GOOD = {
    "text": ["Gr\u00fc\u00df Gott, \u2028 \U0001f600.", [], "stop"],
    "calls": [None, ["weather"], "tool_calls"],
    "limit": ["half", [], "length"],
}

# Reads a file of results, each as the package reads it, and tells what it found as JSON.
_OPENAI = """
import json, sys
from {package}.types.chat import ChatCompletion
good, bad = {{}}, {{}}
for line in open(sys.argv[1]):
    data = json.loads(line)
    assert set(data) - {{"chanstream"}} == {{"id", "custom_id", "response", "error"}}
    if data["error"] is None:
        answer = ChatCompletion.model_validate(data["response"]["body"])
        assert data["response"]["status_code"] == 200 and answer.usage.total_tokens > 0
        message = answer.choices[0].message
        calls = [call.function.name for call in message.tool_calls or []]
        good[data["custom_id"]] = [message.content or None, calls, answer.choices[0].finish_reason]
    else:
        bad[data["custom_id"]] = [(data["response"] or {{}}).get("status_code"), data["error"]["code"]]
print(json.dumps([good, bad]))
"""
_MISTRAL = """
import json, sys, warnings
warnings.simplefilter("ignore")
from mistralai.client.models import ChatCompletionResponse
from mistralai.extra.batch import BatchOutput
output = BatchOutput.from_jsonl_bytes(open(sys.argv[1], "rb").read(), ChatCompletionResponse)
assert not output.response_errors, output.response_errors
good = {}
for known, answer in output.responses.items():
    message = answer.choices[0].message
    calls = [call.function.name for call in message.tool_calls or []]
    good[known] = [message.content or None, calls, answer.choices[0].finish_reason]
bad = {error.custom_id: [error.status_code, error.error["code"]] for error in output.request_errors}
print(json.dumps([good, bad]))
"""
_PROGRAMS = {"openai": _OPENAI.format(package="openai"), "groq": _OPENAI.format(package="groq"), "mistralai": _MISTRAL}


def reply_to(request: RecordedRequest) -> Reply:
    """Return the reply whose name is asked for."""
    return REPLIES[request.json["messages"][-1]["content"]]


def told(program: str, *arguments: str) -> Any:
    """Return what a program that uses a package writes, which is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(plain: Link, source: Path, output: Path) -> int:
    """Run the command and return its status."""
    server = plain.serve(reply_with=reply_to)
    return main(["batch", str(source), "-o", str(output), "--base-url", server.url, "--model", "a-model"])


@pytest.mark.parametrize("package", _PROGRAMS)
def test_results(package: str, plain: Link, tmp_path: Path) -> None:
    """Every answer is one of the package's own, and every failure is told as one."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'chanstream[peers]'")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = ({"custom_id": name, "body": {"messages": [{"role": "user", "content": name}]}} for name in REPLIES)
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask(plain, source, output) == 1
    good, bad = told(_PROGRAMS[package], str(output))
    assert good == GOOD
    assert bad == {"refusal": [400, "bad_request_error"], "cut": [None, "stream_interrupted_error"]}


_INPUT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from mistralai.client.models import ChatCompletionRequest, UserMessage
from mistralai.extra.batch import BatchInput
bodies = {name: ChatCompletionRequest(model="their-model", messages=[UserMessage(content=name)], temperature=0)
          for name in json.loads(sys.argv[2])}
open(sys.argv[1], "wb").write(BatchInput.from_payload(bodies).to_jsonl_bytes())
print("[]")
"""


def test_mistrals_requests(plain: Link, tmp_path: Path) -> None:
    """A file of requests that Mistral's package wrote is read and asked."""
    if find_spec("mistralai") is None:
        pytest.skip("mistralai is not installed: pip install 'chanstream[peers]'")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    told(_INPUT, str(source), json.dumps(["text", "limit"]))
    assert ask(plain, source, output) == 0
    bodies = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
    assert sorted(body["choices"][0]["finish_reason"] for body in bodies) == ["length", "stop"]

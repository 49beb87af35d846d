"""The examples: each runs as a program of its own, without a key, and does what it says."""

from __future__ import annotations

import doctest
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.conftest import Internet

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))  # the others go on until they are told to end

PRINTED = {
    "01_stream": """
        MISTRAL_API_KEY is not set: a scripted server on this machine answers.

        This answer is canned, because no key is set. It comes word by word all the same.

        first chunk after 0... s, all after ... s
        finish reason: stop
        tokens: ...
    """,
    "02_cancel": """
        closed: 'Let me think about', and the stream is cancelled
        cancelled: StreamCancelledError: the context was cancelled
        cancelled: StreamCancelledError: the context was cancelled
        cancelled: StreamCancelledError: the context was cancelled
        deadline: APITimeoutError: not finished within 0.3 s (clock: total)
        idle: APITimeoutError: no further chunk within 0.3 s (clock: idle)
        all 6 connections are closed: True
    """,
    "03_errors": """
        raised: [401] invalid_request_error: This key is not known.
        after retries: one two three four five six
        one two three | StreamInterruptedError
        one two three | raised StreamInterruptedError
        partial: 'one two three'
        the server says: the GPU is on fire
    """,
    "04_merge": """
        broken: StreamInterruptedError after 'The capital of France is'
        fast: Paris, of course.
        slow: Let me see. It is Paris.
        fast knows, and the slow stream is streaming
        after the loop it is cancelled
    """,
    "05_batch": """
        cherry: It has a colour of its own.
        lime: It has a colour of its own.
        cherry: answered
        lime: answered
        plum: [400] api_error: What is a plum?
        lemon: answered
        orange: answered
        5 lines, 4 of them answers
    """,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_without_a_key(example: Path) -> None:
    """An example runs without a key and prints what it is there to show."""
    environment = {name: value for name, value in os.environ.items() if name != "MISTRAL_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-W", "error", example], env={**environment, "PYTHONPATH": str(ROOT), "no_proxy": "*"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    expected = textwrap.dedent(PRINTED[example.stem]).lstrip()
    assert done.returncode == 0, done.stderr
    assert doctest.OutputChecker().check_output(expected, done.stdout, doctest.ELLIPSIS), done.stdout


def test_streaming_with_a_key(
    internet: Internet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a key the first example asks Mistral, and says what the command line said."""
    internet.replies.append("It is so dark that I cannot see it.")
    monkeypatch.setattr(sys, "argv", ["01_stream.py", "What", "is", "a", "joke?"])
    runpy.run_path(str(ROOT / "examples" / "01_stream.py"), run_name="__main__")
    (asked,) = internet.secure.requests
    assert asked.headers["Host"] == "api.mistral.ai"
    assert asked.headers["Authorization"] == "Bearer a-key"
    assert asked.json["messages"] == [{"role": "user", "content": "What is a joke?"}]
    assert capsys.readouterr().out.startswith("It is so dark that I cannot see it.\n\nfirst chunk after")

"""What is logged, what never is, and how the environment asks for it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chanstream import ChanstreamError, ChatCompletionRequest, Client, Retry, SystemMessage, UserMessage
from chanstream.engines.polled import LEASE_SECONDS
from chanstream.testing import FakeClient, Reply
from tests.conftest import SCALE, Link, within

KEY = "sk-the-key-of-this-test"
PROMPT_TEXT = "a-word-of-the-prompt"
ANSWER_TEXT = "a-word-of-the-answer"
ASKED = ChatCompletionRequest("a-model", [SystemMessage(f"{PROMPT_TEXT} 1"), UserMessage(f"{PROMPT_TEXT} 2")])
ROOT = Path(__file__).parents[1]


def ours(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return level and text of what the library has logged, without what differs from run to run."""
    texts = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "chanstream"]
    return [(level, re.sub(r"\d+\.\d+ s|:\d{4,5}(?=/)", "...", text)) for level, text in texts]


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that is logged at any level, by whomever; with neither key nor prompt nor answer in it."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    for record in caplog.get_records("call"):
        shown = f"{caplog.handler.format(record)} {record.getMessage()} {record.args!r} {vars(record)!r}"
        for secret in (KEY, PROMPT_TEXT, ANSWER_TEXT):
            assert secret not in shown


class TestWhatIsLogged:
    @pytest.mark.parametrize("engine", ["poller", "threaded"])
    def test_of_a_stream(self, debug: pytest.LogCaptureFixture, plain: Link, engine: Any) -> None:
        """At DEBUG: what is asked, each status, each retry, and how the stream ended."""
        client = plain.client(
            plain.serve(Reply.error(503, "Closed."), f"{ANSWER_TEXT} two"),
            api_key=KEY, engine=engine, retry=Retry(min_delay=0.0),
        )  # fmt: skip
        assert client.chat_completion_stream(ASKED).collect().text == f"{ANSWER_TEXT} two"
        assert within(SCALE, lambda: len(ours(debug)) == 6)
        assert ours(debug) == [
            ("DEBUG", "POST http://127.0.0.1.../v1/chat/completions"),
            ("DEBUG", "POST /chat/completions: 503"),
            ("INFO", "retry 1 of 3 in ... after: [503] api_error: Closed."),
            ("DEBUG", "POST http://127.0.0.1.../v1/chat/completions"),
            ("DEBUG", "POST /chat/completions: 200"),
            ("DEBUG", "stream ended after ...: stop"),
        ]

    @pytest.mark.parametrize(
        ("reply", "end"),
        [
            (Reply(chunks=[{"error": {"message": f"I will not say {ANSWER_TEXT}, {KEY}"}}]), "StreamAPIError"),
            (Reply(chunks=[f"no JSON: {ANSWER_TEXT} {KEY}"]), "StreamDecodeError"),
            (Reply.html(f"<p>{ANSWER_TEXT}"), "StreamDecodeError"),
            (Reply(f"{ANSWER_TEXT} two", finish_reason=None, done=False), "StreamTruncatedError"),
            (Reply(ANSWER_TEXT, finish_reason=None), "None"),
            (Reply(tool_calls=[{"id": "1", "function": {"name": "f", "arguments": ANSWER_TEXT}}]), "tool_calls"),
        ],
    )
    def test_of_its_end(self, debug: pytest.LogCaptureFixture, plain: Link, reply: Reply, end: str) -> None:
        """An error is logged by its kind, not by its words: they may be those of the prompt or of the answer."""
        for _ in plain.stream(reply, api_key=KEY):
            pass
        assert within(SCALE, lambda: ours(debug)[-1] == ("DEBUG", f"stream ended after ...: {end}"))

    def test_of_one_that_is_closed(self, debug: pytest.LogCaptureFixture, plain: Link) -> None:
        """A stream that its consumer leaves has an end too."""
        stream = plain.stream(Reply(f"{ANSWER_TEXT} two", stall_after=1), api_key=KEY)
        next(stream)
        stream.close()
        ended = ("DEBUG", "stream ended after ...: StreamCancelledError")
        assert within(SCALE + LEASE_SECONDS, lambda: ours(debug)[-1] == ended)

    def test_of_other_requests(self, debug: pytest.LogCaptureFixture) -> None:
        """Whole answers, lists and what fails are logged alike."""
        with FakeClient(ANSWER_TEXT, Reply.error(401, f"Bad key {KEY}"), api_key=KEY) as client:
            client.chat_completion(ASKED)
            client.list_models()
            with pytest.raises(ChanstreamError, match="Bad key"):
                client.chat_completion(ASKED)
        assert [text for _, text in ours(debug)] == [
            "POST http://127.0.0.1.../v1/chat/completions",
            "POST /chat/completions: 200",
            "GET http://127.0.0.1.../v1/models",
            "GET /models: 200",
            "POST http://127.0.0.1.../v1/chat/completions",
            "POST /chat/completions: 401",
        ]

    def test_of_a_key_that_comes_back(self, debug: pytest.LogCaptureFixture, plain: Link) -> None:
        """A refusal that repeats the key, and is tried again, does not get it into the log."""
        retry = Retry(max_retries=1, min_delay=0.0)
        client = plain.client(plain.serve(Reply.error(503, f"No {KEY}")), api_key=KEY, retry=retry)
        with pytest.raises(ChanstreamError, match=r"\*\*\*"):
            client.chat_completion_stream(ASKED)
        assert ("INFO", "retry 1 of 1 in ... after: [503] api_error: No ***") in ours(debug)

    def test_of_no_answer(self, debug: pytest.LogCaptureFixture) -> None:
        """A server that is not there is logged with its address, from the first try on."""
        client = Client(KEY, base_url="http://no-such-host.invalid", retry=Retry(max_retries=1, min_delay=0.0))
        with pytest.raises(ChanstreamError):
            client.chat_completion(ASKED)
        first, retry, second = ours(debug)
        assert first == second == ("DEBUG", "POST http://no-such-host.invalid/v1/chat/completions")
        assert retry[1].startswith("retry 1 of 1 in ... after: no answer from http://no-such-host.invalid/v1: ")


PROGRAM = """
import logging, sys
import chanstream
from chanstream import ChatCompletionRequest, UserMessage
from chanstream.testing import FakeClient, Reply
if {used}:
    with FakeClient(Reply.error(503), "one two", api_key={key!r}) as client:
        client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage({prompt!r})])).collect()
ours, root = logging.getLogger("chanstream"), logging.getLogger()
print(logging.getLevelName(ours.level), len(ours.handlers), root.level, len(root.handlers), ours.propagate)
"""


def run(value: str | None, *, used: bool = True) -> tuple[str, list[str]]:
    """Run a program with CHANSTREAM_LOG as given; return what it prints, and the lines of its standard error."""
    environment = {name: text for name, text in os.environ.items() if name != "CHANSTREAM_LOG"}
    if value is not None:
        environment["CHANSTREAM_LOG"] = value
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(used=used, key=KEY, prompt=PROMPT_TEXT)],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert KEY not in done.stderr
    assert PROMPT_TEXT not in done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


class TestTheVariable:
    @pytest.mark.parametrize(
        ("value", "level", "lines"), [("debug", "DEBUG", 5), ("info", "INFO", 1), ("WARNING ", "WARNING", 0)]
    )
    def test_a_level(self, value: str, level: str, lines: int) -> None:
        """CHANSTREAM_LOG has the library's log, from this level on, written to standard error; it changes no other."""
        printed, written = run(value)
        assert printed == f"{level} 1 30 0 True"
        assert len([line for line in written if "stream ended" not in line]) == lines  # which may come too late for it
        for line in written:
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} chanstream (DEBUG|INFO): \S", line)

    @pytest.mark.parametrize("value", [None, ""])
    def test_none(self, value: str | None) -> None:
        """Without it, or with nothing in it, nothing is written and nothing set up."""
        assert run(value) == ("NOTSET 0 30 0 True", [])

    @pytest.mark.parametrize("value", ["verbose", "10", " ", "debug,info"])
    def test_no_level(self, value: str) -> None:
        """What is no level is told once, with what would be one, and the program runs on as without it."""
        expected = f"CHANSTREAM_LOG: expected debug, info, warning or error, got {value!r}; it is ignored"
        assert run(value, used=False) == ("NOTSET 0 30 0 True", [expected])

    def test_it_is_found_at_the_import(self) -> None:
        """Without the variable not even the module that would read it is loaded."""
        program = "import sys, chanstream; assert not {'chanstream.logs', 'logging'} & set(sys.modules)"
        environment = {name: text for name, text in os.environ.items() if name != "CHANSTREAM_LOG"}
        subprocess.run(
            [sys.executable, "-c", program], check=True, timeout=60, env={**environment, "PYTHONPATH": str(ROOT)}
        )

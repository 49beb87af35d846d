"""``chanstream chat`` with one prompt: what it asks, what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from chanstream.cli import main
from chanstream.testing import Reply
from tests.cli.commands import BARE, KEY, TIMEOUT, asking, read_until, run, started
from tests.conftest import SCALE, Link
from tests.servers.upstream import Upstream

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and pipes")

SILENT = Reply("one two three four", stall_after=2)
FLOOD = Reply([f"{number} " for number in range(20000)])
THOUGHTFUL = Reply("Yes, it is.", reasoning="Let me think.")
BROKEN = Reply(
    chunks=[
        {"choices": [{"index": 0, "delta": {"content": "half an "}}]},
        {"error": {"message": f"the key {KEY}\nis used up", "type": "quota", "code": 7}},
    ]
)

CLOSED = """
import os, sys
os.close({})
os.execv(sys.executable, [sys.executable, "-m", "chanstream", *sys.argv[1:]])
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment, for commands that run in this process."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def one_line(text: str) -> bool:
    """Return whether a complaint is one readable line that keeps the key to itself."""
    return re.fullmatch(r"chanstream: [^\n]+\n", text) is not None and KEY not in text and "Traceback" not in text


class TestTheRequest:
    def test_what_is_sent(self, plain: Link) -> None:
        """The model, the system message, the prompt, the temperature and the key of the environment are sent."""
        server = plain.serve("Fine.")
        options = ["--model", "some-model", "--system", "Be brief.", "--temperature", "0"]
        assert main(asking(server, *options, "How are you?")) == 0
        request = server.requests[0]
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.json["model"] == "some-model"
        assert request.json["temperature"] == 0
        assert request.json["stream"] is True
        assert request.json["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How are you?"},
        ]

    def test_defaults(self, plain: Link) -> None:
        """Without options the dialect's model is asked, with nothing but the prompt."""
        server = plain.serve("Fine.")
        assert main(asking(server, "How are you?")) == 0
        sent = dict(server.requests[0].json)
        assert sent.pop("stream_options") == {"include_usage": True}
        messages = [{"role": "user", "content": "How are you?"}]
        assert sent == {"model": "gpt-4o-mini", "messages": messages, "stream": True}

    @pytest.mark.parametrize("argument", [[], ["-"]], ids=["none", "dash"])
    def test_prompt_from_standard_input(
        self, plain: Link, argument: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a prompt, or with "-", all of standard input is the prompt, but for the end of its last line."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("  first line\nsecond line\n"))
        server = plain.serve("Fine.")
        assert main(asking(server, *argument)) == 0
        assert server.requests[0].json["messages"][0]["content"] == "  first line\nsecond line"

    def test_input_that_is_no_utf_8(self, plain: Link) -> None:
        """Bytes of standard input that are no text become U+FFFD."""
        server = plain.serve("Fine.")
        ended = run(*asking(server), input=b"caf\xe9", encoding=None)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"Fine.\n", b"")
        assert server.requests[0].json["messages"][0]["content"] == "caf\ufffd"

    def test_no_key_for_a_server_of_ones_own(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """With --base-url the key may be missing; then none is sent."""
        monkeypatch.delenv("OPENAI_API_KEY")
        server = plain.serve("Fine.")
        assert main(asking(server, "Hello")) == 0
        assert "Authorization" not in server.requests[0].headers


class TestTheAnswer:
    def test_into_a_pipe(self, plain: Link) -> None:
        """Standard output holds the text and the end of its last line, and standard error nothing."""
        ended = run(*asking(plain.serve(Reply("Sch\u00f6n \x1b[1mfett\x1b[0m.")), "Hello"))
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Sch\u00f6n \x1b[1mfett\x1b[0m.\n", "")

    def test_a_line_that_is_ended(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """A text that ends with a line feed gets no second one."""
        assert main(asking(plain.serve("A line.\n"), "Hello")) == 0
        assert capsys.readouterr().out == "A line.\n"

    def test_what_no_encoding_knows(self, plain: Link) -> None:
        """What the encoding of standard output does not know, half a surrogate pair too, does not end the answer."""
        half_a_pair = plain.serve(Reply(chunks=['{"choices":[{"index":0,"delta":{"content":"\\ud83d!"}}]}', "[DONE]"]))
        assert run(*asking(half_a_pair, "Hello")).stdout == "?!\n"
        ended = run(*asking(plain.serve("Sch\u00f6n."), "Hello"), env={**BARE, "PYTHONIOENCODING": "ascii"})
        assert (ended.returncode, ended.stdout) == (0, "Sch?n.\n")

    def test_thoughts_stay_out_of_a_pipe(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """What the model thinks is not part of what is piped on."""
        assert main(asking(plain.serve(THOUGHTFUL), "Hello")) == 0
        assert capsys.readouterr().out == "Yes, it is.\n"

    @POSIX
    def test_without_standard_streams(self, plain: Link) -> None:
        """A command that is started with standard output or input closed ends in good order."""
        server = plain.serve("Nobody reads this.")
        ended = run(*asking(server, "Hello"), python=("-c", CLOSED.format(1)))
        assert (ended.returncode, ended.stderr) == (0, "")
        ended = run(*asking(server), python=("-c", CLOSED.format(0)))
        assert ended.returncode == 2
        assert "The prompt is empty" in ended.stderr

    @POSIX
    def test_tokens_as_they_come(self, plain: Link) -> None:
        """Each token goes through the pipe when it comes, and not when a buffer is full or the answer ends."""
        with Upstream() as server, started(*asking(server, "one ")) as process:
            assert process.stdout is not None
            for token, following in pairwise(["one ", "two ", "three ", "four ", "five"]):
                assert os.read(process.stdout.fileno(), 65536).decode() == token
                server.say(following)  # the model says the next one once this one is there, and not before
            server.end()
            assert process.stdout.read().split() == [b"five"]

    def test_json_lines(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--json writes the server's object for each chunk as one line of ASCII, with text, end and latencies."""
        assert main(asking(plain.serve("Sch\u00f6n ist es."), "--json", "Hello")) == 0
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        assert out.isascii()
        assert err == ""
        assert [line["text"] for line in lines] == ["Sch\u00f6n", " ist", " es.", ""]
        assert [line["choices"][0]["delta"]["content"] for line in lines] == [line["text"] for line in lines]
        assert [line["is_last_chunk"] for line in lines] == [False, False, False, True]
        assert lines[-1]["usage"]["completion_tokens"] == 3
        assert lines[-1]["total_latency"] == sum(line["chunk_latency"] for line in lines) > 0

    def test_json_thoughts(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--json leaves out nothing: the thoughts are where the server put them."""
        assert main(asking(plain.serve(THOUGHTFUL), "--json", "Hello")) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        deltas = [line["choices"][0]["delta"] for line in lines]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me think."

    def test_statistics(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--stats adds one line to standard error: tokens, times, speed and finish reason; each as it was."""
        server = plain.serve(Reply("one two three", first_delay=0.2, pace=0.2 * SCALE, finish_reason="length"))
        began = time.monotonic()
        assert main(asking(server, "--stats", "Count to three.")) == 0
        elapsed = time.monotonic() - began
        out, err = capsys.readouterr()
        assert out == "one two three\n"
        found = re.fullmatch(
            r"6 tokens \(3 prompt \+ 3 completion\), first chunk (\S+) s, total (\S+) s, (\S+) chunks/s, "
            r"finish reason: length\n",
            err,
        )
        assert found is not None
        first, total, speed = (float(number) for number in found.groups())
        assert 0.2 <= first + 0.001 < total - 0.2  # three more chunks, the last with the finish reason
        assert 0.2 + 0.6 * SCALE <= total + 0.001 < elapsed
        assert speed == pytest.approx(3 / (total - first), rel=0.01, abs=0.06)  # it has one decimal

    def test_statistics_without_usage(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--stats says so where the server sends neither usage nor finish reason."""
        assert main(asking(plain.serve(Reply("one", usage=False, finish_reason=None)), "--stats", "Hello")) == 0
        err = capsys.readouterr().err
        assert err.startswith("tokens unknown, ")
        assert err.endswith("finish reason: none\n")


class TestDemo:
    def test_without_key_and_network(self) -> None:
        """--demo answers with an empty environment, quotes the prompt, and says on standard error what it is."""
        ended = run("chat", "--demo", "--stats", "Tell me a joke.", env=BARE)
        assert ended.returncode == 0
        assert "Tell me a joke." in ended.stdout
        note, stats = ended.stderr.splitlines()
        assert note.startswith("demo: ")
        assert "not by a model" in note
        speed = re.search(r"(\S+) chunks/s", stats)
        assert speed is not None
        assert 1 < float(speed[1]) < 40  # slow enough to be seen coming

    def test_past_a_proxy(self) -> None:
        """--demo does not ask the proxy of the environment, and no server but its own."""
        nowhere = "http://127.0.0.1:9"
        ended = run("chat", "--demo", "Hello", env={**BARE, "http_proxy": nowhere, "HTTP_PROXY": nowhere})
        assert (ended.returncode, len(ended.stderr.splitlines())) == (0, 1)
        assert '"Hello"' in ended.stdout

    @pytest.mark.slow
    def test_a_long_prompt(self) -> None:
        """--demo quotes the beginning of a long prompt."""
        ended = run("chat", "--demo", "--json", input="word " * 1000, env=BARE)
        text = "".join(json.loads(line)["text"] for line in ended.stdout.splitlines())
        assert text.startswith('"word word')
        assert 200 < len(text) < 400


class TestErrors:
    @pytest.mark.parametrize("dialect", ["mistral", "groq", "openai"])
    def test_no_key(self, dialect: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """A missing key is one line that names the variable, and status 1."""
        variable = f"{dialect.upper()}_API_KEY"
        monkeypatch.delenv(variable, raising=False)
        assert main(["chat", "--dialect", dialect, "Hello"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert one_line(err)
        assert variable in err

    def test_refused_connection(self, plain: Link) -> None:
        """A server that is not there is one line that names it, and status 1."""
        server = plain.serve("Nobody hears this.")
        server.close()
        ended = run(*asking(server, "Hello"))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert one_line(ended.stderr)
        assert server.url in ended.stderr
        assert "refused" in ended.stderr

    def test_wrong_key(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """A key that the server refuses is one line that says where the key came from, and does not show it."""
        server = plain.serve(Reply.error(401, f"Incorrect API key\nprovided: {KEY}"))
        assert main(asking(server, "Hello")) == 1
        err = capsys.readouterr().err
        assert one_line(err)
        assert "[401] api_error: Incorrect API key provided" in err
        assert "OPENAI_API_KEY" in err

    def test_key_that_was_needed(
        self, plain: Link, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A server that wants a key where none is set is told with the variable to set."""
        monkeypatch.delenv("OPENAI_API_KEY")
        assert main(asking(plain.serve(Reply.error(401)), "Hello")) == 1
        err = capsys.readouterr().err
        assert one_line(err)
        assert "OPENAI_API_KEY is not set" in err

    def test_in_the_stream(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """An error in the middle is one line after the text that had come, and status 1."""
        assert main(asking(plain.serve(BROKEN), "--stats", "Hello")) == 1
        out, err = capsys.readouterr()
        assert out == "half an \n"
        error, stats = err.splitlines(keepends=True)
        assert stats.startswith("tokens unknown")
        assert one_line(error)
        assert "quota: the key *** is used up" in error

    def test_cut_off(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """An answer that is cut off ends with status 1, and not as if it were whole."""
        assert main(asking(plain.serve(Reply("one two three", end="cut", cut_at=300)), "Hello")) == 1
        out, err = capsys.readouterr()
        assert out == "one\n"
        assert one_line(err)

    def test_in_json(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--json ends with the error as its last line; standard error has it for people."""
        assert main(asking(plain.serve(BROKEN), "--json", "Hello")) == 1
        out, err = capsys.readouterr()
        text, end = (json.loads(line) for line in out.splitlines())
        assert text["text"] == "half an "
        assert "error" not in text
        assert end["error"] == {"type": "StreamAPIError", "message": "quota: the key ***\nis used up", "code": 7}
        assert end["is_last_chunk"] is False
        assert end["total_latency"] == text["chunk_latency"] + end["chunk_latency"]
        assert one_line(err)
        assert KEY not in out

    def test_before_the_stream_in_json(self, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """--json has a line for an error in the place of an answer too."""
        server = plain.serve(Reply.error(404, "no such model", code="model_not_found"))
        assert main(asking(server, "--json", "--stats", "Hello")) == 1
        out, err = capsys.readouterr()
        (line,) = (json.loads(line) for line in out.splitlines())
        assert line["error"] == {
            "type": "NotFoundError",
            "message": "[404] api_error: no such model",
            "status_code": 404,
            "code": "model_not_found",
        }
        assert one_line(err)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--dialect", "klingon", "Hello"], "'klingon' is not one of"),
            (["--base-url", "no-url", "Hello"], "base_url: expected an http or https URL"),
            (["--model", "", "Hello"], "model: expected a text"),
            (["--temperature", "warm", "Hello"], "'warm' is not a valid float"),
            (["--temperature", "nan", "Hello"], "temperature: expected a finite number"),
            (["--demo", "--base-url", "http://127.0.0.1:9", "Hello"], "exclude each other"),
            (["--api-key", KEY, "Hello"], "No such option"),
            (["Hello", "there"], "unexpected extra argument"),
            ([""], "The prompt is empty"),
        ],
    )
    def test_wrong_usage(
        self, arguments: list[str], told: str, plain: Link, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Arguments that cannot be are told with a hint at the help, status 2, and nothing is sent."""
        server = plain.serve("Never.")
        assert main([*asking(server), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert told in err
        assert "chanstream chat --help" in err
        assert server.connections == 0

    def test_no_prompt_at_all(self, plain: Link) -> None:
        """An empty standard input is told as an empty prompt, and nothing is sent."""
        server = plain.serve("Never.")
        ended = run(*asking(server))
        assert ended.returncode == 2
        assert "The prompt is empty" in ended.stderr
        assert server.connections == 0


@POSIX
class TestLeaving:
    def test_ctrl_c_in_an_answer(self, plain: Link) -> None:
        """Ctrl-C cancels the stream at once, keeps the text that had come, and exits with 130 in silence."""
        server = plain.serve(SILENT)
        with started(*asking(server, "--stats", "Count.")) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert read_until(process.stdout.fileno(), "two") == "one two"
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == b"\n"
            assert process.wait(TIMEOUT) == 130
            err = process.stderr.read().decode()
        assert re.fullmatch(r"tokens unknown, .* finish reason: none\n", err)
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_ctrl_c_before_the_answer(self, plain: Link) -> None:
        """Ctrl-C while the server has not answered at all exits with 130, and with no word."""
        server = plain.serve(Reply("Too late.", head_delay=60))
        with started(*asking(server, "Count.")) as process:
            assert server.wait_for(lambda s: len(s.requests) == 1, TIMEOUT)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (130, b"", b"")

    @pytest.mark.parametrize("option", [[], ["--json"]], ids=["text", "json"])
    def test_broken_pipe(self, plain: Link, option: list[str]) -> None:
        """A reader that has read enough ends the command without a word, and frees the server."""
        server = plain.serve(FLOOD)
        with started(*asking(server, *option, "Count.")) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            os.read(process.stdout.fileno(), 1)
            process.stdout.close()
            assert process.wait(TIMEOUT) == 141
            assert process.stderr.read() == b""
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_full_disk(self, plain: Link) -> None:
        """Output that cannot be written is one line and status 1."""
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full")
        with full.open("wb") as out:
            ended = run(
                *asking(plain.serve("Hello."), "Hello"), capture_output=False, stdout=out, stderr=subprocess.PIPE
            )
        assert ended.returncode == 1
        assert one_line(ended.stderr)
        assert "No space left" in ended.stderr

"""``chanstream batch``: what it asks and writes, how it goes on after whatever ended it, and with what status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from chanstream import AssistantMessage, BatchResult, ChatCompletionRequest, ChatCompletionResponse, Choice
from chanstream.batch.record import line_of
from chanstream.cli import main
from chanstream.cli.batch import rate_of
from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.cli.commands import BARE, KEY, TIMEOUT, WITH_KEY, Terminal, run, started
from tests.cli.test_main import _BLOCKED
from tests.conftest import Link, within

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and pipes")


def lines_of(*prompts: str, **body: Any) -> str:
    """Return a batch file with these prompts; the id of each is ``r-`` and its number, from 1 on."""
    lines = (
        json.dumps({
            "custom_id": f"r-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "a-model", "messages": [{"role": "user", "content": prompt}], **body},
        })
        for number, prompt in enumerate(prompts, 1)
    )  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def prompt_of(request: RecordedRequest) -> str:
    """Return what a request's user says."""
    prompt: str = request.json["messages"][-1]["content"]
    return prompt


def answer(request: RecordedRequest) -> Reply:
    """Answer as a friendly server; "refuse" and "cut" are met with what they say."""
    prompt = prompt_of(request)
    if prompt == "refuse":
        return Reply.error(400, "I will not.")
    if prompt == "cut":
        return Reply("half an answer", cut_at=300, end="cut")
    return Reply(f"Yes, {prompt}.")


class Desk:
    """A directory with a file of requests, a server that answers them, and the command between them."""

    def __init__(self, directory: Path, server: StreamServer) -> None:
        self.input = directory / "in.jsonl"
        self.output = directory / "out.jsonl"
        self.server = server

    def arguments(self, *options: str, source: Path | str | None = None) -> list[str]:
        """Return the arguments of the command."""
        source = self.input if source is None else source
        asking = ["--dialect", "openai", "--base-url", self.server.url]
        return ["batch", str(source), "-o", str(self.output), *asking, *options]

    def run(self, *options: str, **more: Any) -> int:
        """Run the command in this process and return its status."""
        return main(self.arguments(*options, **more))

    @property
    def results(self) -> dict[str, Any]:
        """The text or the error code of each result, by its id."""
        lines = [json.loads(line) for line in self.output.read_text("ascii").splitlines()]
        found = {line["custom_id"]: _said(line) for line in lines}
        assert len(found) == len(lines)
        return dict(sorted(found.items()))

    @property
    def asked(self) -> list[str]:
        """The prompts that the server was asked, sorted."""
        return sorted(prompt_of(request) for request in self.server.requests)


def _said(line: dict[str, Any]) -> str:
    if line["error"] is not None:
        return str(line["error"]["code"])
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


@pytest.fixture
def desk(tmp_path: Path, plain: Link, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with a server that knows what to say, and a key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return Desk(tmp_path, plain.serve(reply_with=answer))


class TestAFile:
    def test_every_request_is_answered(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """Each line is asked with the key of the environment, its answer is in the output, and the status is 0."""
        desk.input.write_text(lines_of("one", "two", "three", temperature=0, seed=7))
        assert desk.run() == 0
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Yes, two.", "r-3": "Yes, three."}
        for request in desk.server.requests:
            assert request.headers["Authorization"] == f"Bearer {KEY}"
            assert (request.json["model"], request.json["temperature"], request.json["seed"]) == ("a-model", 0, 7)
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"3 answered, 0 failed: {desk.output}\n")
        assert KEY not in desk.output.read_text("ascii")

    def test_failures(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """A request that fails is in the output with its error, is told with its line, and makes the status 1."""
        desk.input.write_text(lines_of("one", "refuse", "refuse", "four"))
        assert desk.run() == 1
        assert desk.results == {
            "r-1": "Yes, one.", "r-2": "bad_request_error", "r-3": "bad_request_error", "r-4": "Yes, four."
        }  # fmt: skip
        first, last = capsys.readouterr().err.splitlines()
        assert first.startswith("chanstream: 2 failed with BadRequestError, the first of them line ")
        assert "[400]" in first
        assert last == f"2 answered, 2 failed: {desk.output}"

    def test_a_request_that_the_dialect_does_not_take(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """A request with an option that the dialect does not know is a failure like others, and is not sent."""
        desk.input.write_text(lines_of("one", safe_prompt=True) + lines_of("one", "two").splitlines()[1] + "\n")
        assert desk.run() == 1
        assert list(desk.results) == ["r-1", "r-2"]
        assert "safe_prompt" in capsys.readouterr().err
        assert desk.asked == ["two"]

    def test_bad_lines(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """A line that cannot be read is told with its number, stops nothing, and makes the status 1."""
        one, two = lines_of("one", "two").splitlines(keepends=True)
        desk.input.write_text(one + "nonsense\n" + two)
        assert desk.run() == 1
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Yes, two."}
        told = capsys.readouterr().err
        assert "chanstream: line 2: it is no JSON: " in told
        assert told.endswith(f"2 answered, 0 failed, 1 bad line left out: {desk.output}\n")

    def test_an_empty_file(self, desk: Desk) -> None:
        """A file without requests is answered with a file without results."""
        desk.input.write_text("\n")
        assert desk.run() == 0
        assert desk.output.read_bytes() == b""

    def test_the_model_for_lines_without_one(self, desk: Desk) -> None:
        """Lines of Mistral's format, without a model, are asked with that of the option; others with their own."""
        messages = [{"role": "user", "content": "one"}]
        lines = [{"custom_id": "a", "body": {"messages": messages}}]
        lines += [{"custom_id": "b", "body": {"messages": messages, "model": "its-own"}}]
        desk.input.write_text("\n".join(map(json.dumps, lines)))
        assert desk.run("--model", "the-option") == 0
        assert {request.json["model"] for request in desk.server.requests} == {"the-option", "its-own"}

    @POSIX
    def test_concurrency(self, desk: Desk, plain: Link) -> None:
        """As many requests as allowed are on their way at the same time, and no more."""
        desk.server = plain.serve(Reply("never", stall_after=0))
        desk.input.write_text(lines_of(*map(str, range(9))))
        with started(*desk.arguments("--concurrency", "3")) as process:
            assert desk.server.wait_for(lambda server: len(server.requests) >= 3, TIMEOUT)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 130
        assert desk.asked == ["0", "1", "2"]


class TestStandardInput:
    def test_a_batch_file(self, desk: Desk) -> None:
        """``-`` reads the requests from standard input."""
        ended = run(*desk.arguments(source="-"), input=lines_of("one", "two"))
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Yes, two."}

    def test_results_come_before_its_end(self, desk: Desk) -> None:
        """A line is asked as soon as it is there, and its result is in the output before the next is written."""
        with started(*desk.arguments("--text", source="-"), stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            for number, prompt in enumerate(["one", "two"], 1):
                process.stdin.write(f"{prompt}\n".encode())
                _await_lines(desk.output, number)
            process.stdin.close()
            assert process.wait(TIMEOUT) == 0
        assert desk.results == {"1": "Yes, one.", "2": "Yes, two."}

    @POSIX
    def test_ctrl_c_while_it_is_silent(self, desk: Desk) -> None:
        """Ctrl-C ends the command although it waits for a line that does not come."""
        with started(*desk.arguments("--text", source="-"), stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"one\n")
            _await_lines(desk.output, 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 130
            assert process.stderr is not None
            told = process.stderr.read().decode()
        # The result may be in the file, and Ctrl-C come before it is counted.
        assert re.fullmatch(rf"[01] answered, 0 failed: {desk.output}\ninterrupted: run .* to go on\n", told)
        assert desk.results == {"1": "Yes, one."}


def _await_lines(path: Path, count: int) -> None:
    """Wait until a file has so many lines."""
    assert within(TIMEOUT, lambda: path.exists() and path.read_bytes().count(b"\n") >= count)


class TestPlainText:
    def test_one_prompt_per_line(self, desk: Desk) -> None:
        """A file that ends in .txt is prompts, whose ids are the numbers of their lines."""
        desk.input = desk.input.with_suffix(".txt")
        desk.input.write_text("one\n\nthree\n")
        assert desk.run("--model", "m", "--system", "Be brief.", "--prompt", "Is it {}?") == 0
        assert desk.results == {"1": "Yes, Is it one?.", "3": "Yes, Is it three?."}
        assert desk.server.requests[0].json["messages"][0] == {"role": "system", "content": "Be brief."}
        assert desk.server.requests[0].json["model"] == "m"

    def test_by_the_option(self, desk: Desk) -> None:
        """With --text a file is prompts whatever its name; the model is the dialect's by default."""
        desk.input.write_text("one")
        assert desk.run("--text") == 0
        assert desk.results == {"1": "Yes, one."}
        assert desk.server.requests[0].json["model"] == "gpt-4o-mini"

    def test_other_prompts_for_the_same_output(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """Answers to other prompts are not taken for those to these: it is told, and nothing is sent."""
        desk.input.write_text("one\ntwo\n")
        assert desk.run("--text") == 0
        desk.input.write_text("zero\none\ntwo\n")
        before = desk.output.read_bytes()
        capsys.readouterr()
        assert desk.run("--text") == 1
        counts, why = capsys.readouterr().err.splitlines()
        assert counts == f"0 answered, 0 failed: {desk.output}"
        assert "the id '1' is that of another request" in why
        assert desk.output.read_bytes() == before


class TestGoingOn:
    def test_a_second_run(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """Run again, nothing is sent, the output stays as it is, and what is told is the same."""
        desk.input.write_text(lines_of("one", "refuse", "three"))
        assert desk.run() == 1
        before, told = desk.output.read_bytes(), capsys.readouterr().err
        assert desk.run() == 1
        assert desk.output.read_bytes() == before
        assert desk.asked == ["one", "refuse", "three"]
        assert capsys.readouterr().err == told

    def test_more_lines(self, desk: Desk) -> None:
        """Lines that were added to the input are asked, and no others."""
        desk.input.write_text(lines_of("one", "two"))
        assert desk.run() == 0
        desk.input.write_text(lines_of("one", "two", "three"))
        assert desk.run() == 0
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Yes, two.", "r-3": "Yes, three."}
        assert desk.asked == ["one", "three", "two"]

    def test_retry_failed(self, desk: Desk, plain: Link) -> None:
        """With --retry-failed what failed is asked again, and its new result takes the place of the old."""
        desk.input.write_text(lines_of("one", "refuse", "cut"))
        assert desk.run() == 1
        desk.server = plain.serve(reply_with=lambda request: Reply(f"Now yes, {prompt_of(request)}."))
        assert desk.run("--retry-failed") == 0
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Now yes, refuse.", "r-3": "Now yes, cut."}
        assert desk.asked == ["cut", "refuse"]

    @POSIX
    def test_ctrl_c(self, desk: Desk, plain: Link) -> None:
        """Ctrl-C ends it with 130 and says how to go on; what was answered is kept, and the same command goes on."""
        busy = threading.Event()

        def reply(request: RecordedRequest) -> Reply:
            if prompt_of(request) == "slow":
                busy.set()
                return Reply("never", stall_after=0)
            return answer(request)

        desk.server = plain.serve(reply_with=reply)
        desk.input.write_text(lines_of("one", "two", "slow", "four"))
        with started(*desk.arguments("--concurrency", "1")) as process:
            assert busy.wait(TIMEOUT)
            _await_lines(desk.output, 2)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT) == 130
            assert process.stderr is not None
            told = process.stderr.read().decode()
        summary, hint = told.splitlines()
        assert re.fullmatch(rf"[12] answered, 0 failed: {desk.output}", summary)  # the second may not be counted yet
        assert hint == "interrupted: run the same command again to go on"
        assert desk.results == {"r-1": "Yes, one.", "r-2": "Yes, two."}
        desk.server = plain.serve(reply_with=answer)
        assert desk.run() == 0
        assert desk.asked == ["four", "slow"]
        assert len(desk.results) == 4

    def test_killed(self, desk: Desk, plain: Link) -> None:
        """Killed, it goes on as if it had been interrupted, with a last line that is whole."""
        busy = threading.Event()

        def reply(request: RecordedRequest) -> Reply:
            if prompt_of(request) == "slow":
                busy.set()
                return Reply("never", stall_after=0)
            return answer(request)

        desk.server = plain.serve(reply_with=reply)
        desk.input.write_text(lines_of("one", "two", "slow", "four"))
        with started(*desk.arguments("--concurrency", "1")) as process:
            assert busy.wait(TIMEOUT)
            _await_lines(desk.output, 2)
            process.kill()
            process.wait(TIMEOUT)
        with desk.output.open("ab") as output:
            output.write(desk.output.read_bytes()[:100])  # as if in the middle of a write
        desk.server = plain.serve(reply_with=answer)
        assert desk.run() == 0
        assert desk.asked == ["four", "slow"]
        assert len(desk.results) == 4

    def test_two_at_the_same_time(self, desk: Desk, plain: Link, capsys: pytest.CaptureFixture[str]) -> None:
        """A second command for the same output is told so at once."""
        desk.server = plain.serve(Reply("never", stall_after=0), Reply("never", stall_after=0))
        desk.input.write_text(lines_of("one"))
        with started(*desk.arguments()):
            assert desk.server.wait_for(lambda server: len(server.requests) >= 1, TIMEOUT)
            assert desk.run() == 1
        assert capsys.readouterr().err == f"chanstream: journal: {desk.output} is in use by another batch\n"


# Lets files become 2 000 bytes long, as on a disk that is full.
_FULL = """
import resource, signal, sys
from chanstream.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
status = main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
sys.exit(status)
"""


class TestWhatCannotBe:
    def test_an_output_that_is_something_else(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """A file with something else in it, the input itself say, is told and left as it is."""
        desk.input.write_text(lines_of("one"))
        desk.output = desk.input
        before = desk.input.read_bytes()
        assert desk.run() == 1
        told = f"chanstream: {desk.input}, line 1: it was not written by chanstream; nothing was changed\n"
        assert capsys.readouterr().err == told
        assert desk.input.read_bytes() == before

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (["--concurrency", "0"], "--concurrency"),
            (["--rate", "fast"], "--rate: expected requests per time, as 50/s, 300/m or 50/10s, got 'fast'."),
            (["--rate", "0/s"], "--rate: expected"),
            (["--rate", "5/s", "--dask", "tcp://localhost:1"], "--rate and --dask exclude each other"),
            (["--demo"], "--demo and --base-url exclude each other"),
            (["--prompt", "Is it {}?"], "--prompt and --system are for plain text"),
            (["--system", "Be brief."], "--prompt and --system are for plain text"),
            (["--text", "--prompt", "Is it so?"], "--prompt has no {} in it"),
        ],
    )
    def test_wrong_usage(self, desk: Desk, options: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Options that cannot be are wrong usage: nothing is sent, and nothing written."""
        desk.input.write_text(lines_of("one"))
        assert desk.run(*options) == 2
        assert why in " ".join(capsys.readouterr().err.split())
        assert not desk.output.exists()
        assert desk.asked == []

    def test_no_such_file(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """An input that is not there is wrong usage; no output is made."""
        assert desk.run() == 2
        assert "does not exist" in capsys.readouterr().err
        assert not desk.output.exists()

    def test_no_key(self, desk: Desk) -> None:
        """Without a key nothing is begun."""
        desk.input.write_text(lines_of("one"))
        ended = run("batch", str(desk.input), "-o", str(desk.output), env=BARE)
        told = "chanstream: no API key: set MISTRAL_API_KEY in the environment (or try --demo)\n"
        assert (ended.returncode, ended.stderr) == (1, told)
        assert not desk.output.exists()

    @pytest.mark.parametrize(
        ("package", "options", "extra"),
        [("pyrate_limiter", ["--rate", "5/s"], "limits"), ("distributed", ["--dask", "tcp://localhost:1"], "dask")],
    )
    def test_missing_extras(self, desk: Desk, package: str, options: list[str], extra: str) -> None:
        """An option whose extra is not installed says what to install."""
        desk.input.write_text(lines_of("one"))
        ended = run(*desk.arguments(*options), python=("-c", _BLOCKED.format(package=package)))
        assert ended.returncode == 1
        assert ended.stderr.startswith("chanstream: ")
        assert ended.stderr.endswith(f": pip install 'chanstream[{extra}]'\n")
        assert desk.asked == []

    @POSIX
    def test_a_full_disk(self, desk: Desk) -> None:
        """Where the output cannot be written it is told, and the status is 1; the next run goes on."""
        desk.input.write_text(lines_of(*map(str, range(8))))
        ended = run(*desk.arguments(), python=("-c", _FULL))
        assert ended.returncode == 1
        assert f"chanstream: cannot write {desk.output}: File too large\n" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert desk.run() == 0
        assert desk.results == {f"r-{number + 1}": f"Yes, {number}." for number in range(8)}


# A cluster of one worker, in one process; tests/batch has one of many.
_CLUSTER = """
import threading
from distributed import LocalCluster
cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None)
print(cluster.scheduler_address, flush=True)
threading.Event().wait()
"""


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "rate"),
        [("50", (50, 1)), ("50/s", (50, 1)), ("300/m", (300, 60)), ("9/h", (9, 3600)), ("50/10s", (50, 10))],
    )
    def test_what_rates_mean(self, text: str, rate: tuple[int, float]) -> None:
        """A rate is a number of requests per second, or per time that is named."""
        assert rate_of(text) == rate

    def test_rate(self, desk: Desk, plain: Link) -> None:
        """With --rate no more requests than that are sent in any such time."""
        times: list[float] = []

        def reply(request: RecordedRequest) -> Reply:
            times.append(time.monotonic())
            return answer(request)

        desk.server = plain.serve(reply_with=reply)
        desk.input.write_text(lines_of("one", "two", "three"))
        assert desk.run("--rate", "2/2s", "--concurrency", "8") == 0
        assert max(times) - min(times) > 1.5

    def test_adaptive(self, desk: Desk, plain: Link) -> None:
        """With --adaptive what the server refuses for want of room is sent again until it is answered."""
        refusals = iter([True, True])

        def reply(request: RecordedRequest) -> Reply:
            return Reply.error(429, headers={"Retry-After": "0"}) if next(refusals, False) else answer(request)

        desk.server = plain.serve(reply_with=reply)
        desk.input.write_text(lines_of("one", "two", "three"))
        assert desk.run("--adaptive") == 0
        assert len(desk.results) == 3

    def test_dask(self, desk: Desk) -> None:
        """With --dask the workers of the cluster at that address ask, each as often as it can."""
        pytest.importorskip("distributed", reason="Dask is not installed: pip install 'chanstream[dask]'")
        desk.input.write_text(lines_of(*map(str, range(8))))
        with subprocess.Popen([sys.executable, "-c", _CLUSTER], stdout=subprocess.PIPE, text=True) as cluster:
            assert cluster.stdout is not None
            ended = run(*desk.arguments("--dask", cluster.stdout.readline().strip()))
            cluster.kill()
        assert (ended.returncode, ended.stderr) == (0, f"8 answered, 0 failed: {desk.output}\n")
        assert desk.results == {f"r-{number + 1}": f"Yes, {number}." for number in range(8)}
        assert desk.server.requests[0].headers["Authorization"] == f"Bearer {KEY}"

    def test_what_is_no_address(self, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
        """An address that is none is wrong usage."""
        pytest.importorskip("distributed", reason="Dask is not installed: pip install 'chanstream[dask]'")
        desk.input.write_text(lines_of("one"))
        assert desk.run("--dask", "nonsense") == 2
        assert "--dask: missing port number" in capsys.readouterr().err

    def test_demo(self, tmp_path: Path) -> None:
        """--demo answers without key and network, and says so."""
        (tmp_path / "in.txt").write_text("one\ntwo\n")
        output = tmp_path / "out.jsonl"
        ended = run("batch", "--demo", str(tmp_path / "in.txt"), "-o", str(output), env=BARE)
        demo = "demo: answers are made up by a server inside of this command, not by a model\n"
        assert (ended.returncode, ended.stderr) == (0, f"{demo}2 answered, 0 failed: {output}\n")
        assert len(output.read_bytes().splitlines()) == 2


@POSIX
class TestOnATerminal:
    def test_the_bar(self, desk: Desk) -> None:
        """On a terminal there is a bar that knows how many there are, and a bad line is told on a line of its own."""
        desk.input.write_text(lines_of("one", "two") + "nonsense\n")
        with Terminal(*desk.arguments()) as terminal:
            seen = terminal.see("2 answered, 0 failed, 1 bad line left out")
            assert terminal.ends() == 1
        assert "/3 " in seen
        assert re.search(r"(^|[\r\n])(\x1b\[31m)?chanstream: line 3: it is no JSON", seen)
        assert len(desk.results) == 2

    def test_ctrl_c(self, desk: Desk, plain: Link) -> None:
        """Ctrl-C on a terminal leaves the bar as it stands, and says how to go on."""
        desk.server = plain.serve(Reply("never", stall_after=0))
        desk.input.write_text(lines_of("one"))
        with Terminal(*desk.arguments()) as terminal:
            assert desk.server.wait_for(lambda server: len(server.requests) >= 1, TIMEOUT)
            terminal.type("\x03")
            seen = terminal.see("interrupted: run the same command again to go on")
            assert terminal.ends() == 130
        assert "Traceback" not in seen


# Tells by how many KB the most memory that the process had grew while the command ran.
_MEASURED = """
import re, sys
from pathlib import Path
import chanstream.cli.batch, chanstream.batch.journal, chanstream.client
from chanstream.cli import main
def most():
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
before = most()
status = main(sys.argv[1:])
print(most() - before)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the most memory that a process had")
def test_ten_thousand_lines_in_flat_memory(desk: Desk) -> None:
    """A file of 10 000 lines takes a few MB: neither its requests nor their results are held."""
    count, fresh, padding = 10_000, 50, 1000 * "x"
    body = {"model": "m", "messages": [{"role": "user", "content": padding}]}
    with desk.input.open("w") as file:
        file.writelines(json.dumps({"custom_id": f"r-{n}", "body": body}) + "\n" for n in range(count))
    said = ChatCompletionResponse([Choice(0, AssistantMessage(padding), "stop")])
    request = ChatCompletionRequest.from_dict(body)
    line = line_of(BatchResult(index=0, id="an-id", request=request, response=said))
    with desk.output.open("wb") as file:  # most were answered before: to ask a server for all would take long
        file.writelines(line.replace(b"an-id", b"r-%d" % n) for n in range(count - fresh))
    bare = {name: value for name, value in WITH_KEY.items() if not name.startswith("COV")}  # that takes memory, too
    ended = run(*desk.arguments(), python=("-c", _MEASURED), env=bare)
    assert (ended.returncode, ended.stderr) == (0, f"{count} answered, 0 failed: {desk.output}\n")
    assert len(desk.asked) == fresh
    assert int(ended.stdout) < 20_000  # all of it is 25 MB, and more as objects

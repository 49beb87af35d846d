"""The lines of a batch's input: what they ask for, and what is said of those that are wrong."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from chanstream import ChatCompletionRequest
from chanstream.cli.lines import JSONReader, Reader, Requests, TextReader, count_of

MESSAGES = [{"role": "user", "content": "Hi"}]


def line(known: Any = "a", body: Any = None, **more: Any) -> bytes:
    """Return a line of a batch file."""
    body = {"model": "m", "messages": MESSAGES} if body is None else body
    return json.dumps({"custom_id": known, "body": body, **more}).encode() + b"\n"


def read(lines: Iterable[bytes], reader: Reader | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the requests of lines by their ids, and what is said of the others."""
    told: list[str] = []
    requests = Requests(lines, JSONReader("default") if reader is None else reader, told.append)
    found = {known: request.to_dict() for known, request in requests}
    assert requests.bad == len(told)
    return found, told


class TestBatchFiles:
    def test_openai(self) -> None:
        """A line of OpenAI's format is the request of its body."""
        given = line("r-1", method="POST", url="/v1/chat/completions")
        assert read([given]) == ({"r-1": {"model": "m", "messages": MESSAGES}}, [])

    def test_mistral(self) -> None:
        """A line of Mistral's format may leave out method, url and model; then the model is the command's."""
        assert read([line("0", {"messages": MESSAGES})]) == ({"0": {"model": "default", "messages": MESSAGES}}, [])

    def test_all_members_are_sent(self) -> None:
        """What a body has in it is in the request, known here or not, but for how the answer is brought."""
        body = {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES],
            "n": 2,
            "seed": 7,
            "logit_bias": {"50256": -100},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
            "stop": None,
        }
        found, told = read([line("a", {**body, "stream": True, "stream_options": {"include_usage": True}})])
        assert (found, told) == ({"a": body}, [])

    def test_a_file_from_windows(self) -> None:
        """A mark at the beginning, other ends of lines, blank lines and a last line without an end do not matter."""
        lines = [b"\xef\xbb\xbf" + line("a").replace(b"\n", b"\r\n"), b"\r\n", b"  \n", line("b").strip()]
        found, told = read(lines)
        assert (list(found), told) == (["a", "b"], [])
        assert count_of(lines) == 2

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (b"{\n", "it is no JSON: Expecting property name"),
            (100_000 * b"[" + b"\n", "it is no JSON: "),
            (b'"caf\xe9"\n', "it is no UTF-8: "),
            (b"[]\n", "the line: expected a JSON object, got []"),
            (b"{}\n", "body: expected a JSON object, got None"),
            (line(body=7), "body: expected a JSON object, got 7"),
            (line(7), "custom_id: expected a text, got 7"),
            (line(""), "custom_id: expected a text, got ''"),
            (line(None), "custom_id: expected a text, got None"),
            (line("0"), "custom_id: '0' is that of line 1 already"),
            (line(method="GET"), "method: expected 'POST', got 'GET'"),
            (line(url="/v1/embeddings"), "url: expected '/v1/chat/completions', got '/v1/embeddings'"),
            (line(body={}), "messages: missing"),
            (line(body={"messages": MESSAGES, "model": 7}), "model: expected str, got 7"),
            (line(body={"messages": [{"role": "nobody"}]}), "messages[0]"),
            (line(body={"messages": MESSAGES, "n": 0}), "n: expected 1 or more, got 0"),
        ],
    )
    def test_bad_lines(self, bad: bytes, why: str) -> None:
        """A line that is wrong is told with its number and the reason, in few words, and the others are read."""
        found, told = read([line("0"), b"\n", bad, line("z")])
        assert list(found) == ["0", "z"]
        assert len(told) == 1
        assert told[0].startswith(f"line 3: {why}")
        assert len(told[0]) < 400


class TestPlainText:
    def test_each_line_is_a_prompt(self) -> None:
        """A line is what the user says, but for its end; its id is its number, blank lines counted."""
        found, told = read([b"  One? \r\n", b" \n", "Zw\u00f6lf?".encode()], TextReader("m"))
        assert told == []
        assert {known: data["messages"] for known, data in found.items()} == {
            "1": [{"role": "user", "content": "  One? "}],
            "3": [{"role": "user", "content": "Zw\u00f6lf?"}],
        }

    def test_what_is_asked_about_it(self) -> None:
        """Instructions stand above each line, and the line stands where the prompt has its braces; nowhere else."""
        found, _ = read([b"{} and {0}\n"], TextReader("m", "Be brief.", "What is {}?"))
        assert found["1"]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is {} and {0}?"},
        ]

    def test_bad_lines_shift_nothing(self) -> None:
        """A line that is no UTF-8 is told, and those after it have their own numbers."""
        found, told = read([b"One\n", b"caf\xe9\n", b"Three\n"], TextReader("m"))
        assert list(found) == ["1", "3"]
        assert told == ["line 2: it is no UTF-8: invalid continuation byte"]


def test_lines_are_read_as_they_are_wanted() -> None:
    """No line is read before its request is asked for."""
    seen: list[int] = []

    def lines() -> Iterator[bytes]:
        for number in range(1000):
            seen.append(number)
            yield line(str(number))

    requests = iter(Requests(lines(), JSONReader("m"), pytest.fail))
    known, request = next(requests)
    assert (known, seen) == ("0", [0])
    assert isinstance(request, ChatCompletionRequest)


def test_how_many_there_are() -> None:
    """The number of requests, where it was counted, is told to whoever shows how far it is."""
    assert operator.length_hint(Requests([], TextReader("m"), print, 7), 0) == 7
    assert operator.length_hint(Requests([], TextReader("m"), print), 0) == 0

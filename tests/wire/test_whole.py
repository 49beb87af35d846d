"""A 200 that is no event stream though one was asked for: a whole completion as JSON, an error, a proxy's page."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chanstream.errors import (
    StreamAPIError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from chanstream.models.chunk import CompletionChunk
from chanstream.wire.machine import StreamMachine
from chanstream.wire.whole import WholeBody, is_whole

JSON = "application/json"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Zürich"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "Bern", "reasoning": "hm"}, "finish_reason": "length"},
    ],
    "usage": USAGE,
}


def answer(body: Any, content_type: str = JSON, split: int = 1 << 30) -> CompletionChunk:
    """Return the chunk that a body (or a value as JSON) amounts to, fed in pieces."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    whole = WholeBody(content_type)
    for start in range(0, len(data), split):
        assert whole.feed(data[start : start + split]) is None
    assert whole.size == len(data)
    return whole.answer()


def choice(message: Any, **more: Any) -> dict[str, Any]:
    """Return a whole completion with one choice."""
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}


class TestTheLabel:
    @pytest.mark.parametrize(
        "content_type",
        [
            JSON,
            "application/json; charset=utf-8",
            "Application/JSON ;charset=utf-8",
            "application/problem+json",
            "application/vnd.api+json; v=1",
            "text/html",
            "text/html; charset=ISO-8859-1",
            "application/xhtml+xml",
        ],
    )
    def test_one_piece(self, content_type: str) -> None:
        """JSON and HTML are one piece, whatever parameters and case their type is written with."""
        assert is_whole(content_type)

    @pytest.mark.parametrize(
        "content_type",
        [
            "text/event-stream",
            "text/event-stream; charset=utf-8",
            "text/plain",
            "application/octet-stream",
            "",
            "jsonp",
            "application/x-ndjson",
            "application/stream+jsonl",
        ],
    )
    def test_a_stream(self, content_type: str) -> None:
        """Everything else is read as an event stream, a missing or unknown type too."""
        assert not is_whole(content_type)


class TestAWholeCompletion:
    @pytest.mark.parametrize("split", [1, 5, 1 << 30])
    def test_it_is_one_chunk(self, split: int) -> None:
        """A whole completion is one last chunk with all that was in it, however it arrived."""
        chunk = answer(ANSWER, split=split)
        assert (chunk.id, chunk.created, chunk.model, chunk.is_last_chunk, chunk.error) == ("c-1", 7, "m", True, None)
        assert [(one.index, one.delta.text, one.finish_reason) for one in chunk.choices] == [
            (0, "Zürich", "stop"),
            (1, "Bern", "length"),
        ]
        assert chunk.choices[1].delta.reasoning == "hm"
        assert chunk.usage is not None
        assert chunk.usage.to_dict() == USAGE

    def test_tool_calls(self) -> None:
        """The calls of a whole completion are there, with arguments as text or as an object."""
        calls = [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "function": {"name": "g", "arguments": {"x": 1}}},
        ]
        chunk = answer(choice({"role": "assistant", "content": None, "tool_calls": calls}))
        assert [(call.id, call.function.name, call.function.arguments) for call in chunk.tool_calls] == [
            ("a", "f", "{}"),
            ("b", "g", {"x": 1}),
        ]

    def test_a_chunk(self) -> None:
        """A single stream chunk as the whole body is read with its delta."""
        chunk = answer({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]})
        assert (chunk.text, chunk.is_last_chunk) == ("x", True)

    def test_no_finish_reason(self) -> None:
        """A whole completion without a finish reason is complete: its JSON is whole."""
        chunk = answer(choice({"content": "x"}, finish_reason=None))
        assert (chunk.text, chunk.is_last_chunk, chunk.choices[0].finish_reason) == ("x", True, None)

    @pytest.mark.parametrize("layout", [{"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": True}], ids=str)
    def test_any_layout(self, layout: dict[str, Any]) -> None:
        """Pretty, compact and escaped JSON are the same, blanks around it included."""
        body = b"\n  " + json.dumps(ANSWER, **layout).encode() + b"\r\n"
        assert answer(body).text == "Zürich"

    def test_json_with_the_label_of_html(self) -> None:
        """What is JSON is read as JSON though it calls itself HTML."""
        assert answer(choice({"content": "x"}), "text/html").text == "x"


class TestErrors:
    @pytest.mark.parametrize(
        "body",
        [
            {"error": {"message": "no room", "type": "server_error", "code": 500}},
            {"error": "no room"},
            {"object": "error", "message": "no room"},
            {"detail": "no room"},
            {"message": "no room", "code": 3},
            {"choices": [], "error": {"message": "no room"}},
        ],
        ids=json.dumps,
    )
    def test_an_error_in_the_servers_words(self, body: dict[str, Any]) -> None:
        """An error that a 200 hides is the server's error, in its words."""
        chunk = answer(body)
        assert isinstance(chunk.error, StreamAPIError)
        assert "no room" in str(chunk.error)
        assert not chunk.is_last_chunk

    @pytest.mark.parametrize(
        "body",
        [
            b"<html><body>502 Bad Gateway</body></html>",
            b"no JSON",
            b'{"choices": [',
            b"null",
            b"17",
            b'["x"]',
            b"\xff\xfe",
        ],
    )
    def test_no_completion(self, body: bytes) -> None:
        """What is no JSON object is an error that names the type and shows how the body began."""
        chunk = answer(body, "text/html")
        assert isinstance(chunk.error, StreamDecodeError)
        assert "text/html" in str(chunk.error)
        assert body[:4].decode("utf-8", "replace") in str(chunk.error)

    def test_a_long_page_is_shortened(self) -> None:
        """A proxy's long page makes no long error."""
        assert len(str(answer(b"<html>\n" + b"x " * 100_000, "text/html").error)) < 400

    @pytest.mark.parametrize(
        "body", [{}, {"choices": []}, {"choices": None}, {"id": "c", "usage": USAGE}], ids=json.dumps
    )
    def test_no_choices(self, body: dict[str, Any]) -> None:
        """JSON without an answer in it is an error."""
        chunk = answer(body)
        assert isinstance(chunk.error, StreamDecodeError)
        assert not chunk.is_last_chunk

    @pytest.mark.parametrize(
        "body", [{"choices": "x"}, {"choices": [1]}, choice("text"), choice({"content": 5})], ids=json.dumps
    )
    def test_a_completion_of_the_wrong_shape(self, body: dict[str, Any]) -> None:
        """Parts of impossible types are an error."""
        assert isinstance(answer(body).error, StreamDecodeError)

    @pytest.mark.parametrize("body", [b"", b" \r\n"])
    def test_nothing(self, body: bytes) -> None:
        """A body of nothing is cut."""
        assert isinstance(answer(body).error, StreamTruncatedError)


class TestAStreamWithTheWrongLabel:
    @pytest.mark.parametrize(
        "start",
        ["data: {", "event: x\n", ": ping\n", "id: 1\n", "retry: 5\n", "\ufeffdata: {", "\n\ndata: {", "\r\n: x"],
    )
    def test_it_is_told_by_its_first_field(self, start: str) -> None:
        """A body that begins as event streams do is handed back as one, all of it, at the first sure sign."""
        data = start.encode() + b"rest"
        for cut in range(len(data)):
            whole = WholeBody(JSON)
            first = whole.feed(data[:cut])
            assert (first or whole.feed(data[cut:])) == (data[:cut] if first else data)

    def test_what_only_looks_like_it(self) -> None:
        """A body whose text says ``data:`` further on is no stream."""
        whole = WholeBody("text/html")
        assert whole.feed(b"<html>some") is None
        assert whole.feed(b"\ndata: {}\n\n") is None
        assert isinstance(whole.answer().error, StreamDecodeError)


class TestACut:
    @pytest.mark.parametrize("body", [ANSWER, {"error": {"message": "no room"}}], ids=["answer", "error"])
    def test_at_every_byte(self, body: dict[str, Any]) -> None:
        """A JSON answer that is cut anywhere is one error; whole it is what it is."""
        data = json.dumps(body).encode()
        for cut in range(len(data)):
            machine = StreamMachine(0.0, content_type=JSON)
            found = machine.feed(data[:cut], 1.0) + machine.eof(2.0)
            assert [isinstance(chunk.error, StreamError) for chunk in found] == [True], cut

    def test_of_the_connection_at_every_byte(self) -> None:
        """A JSON answer whose connection is lost is that error, whatever had come."""
        data = json.dumps(ANSWER).encode()
        for cut in range(len(data) + 1):
            machine = StreamMachine(0.0, content_type=JSON)
            lost = StreamInterruptedError("lost")
            found = machine.feed(data[:cut], 1.0) + machine.fail(lost, 2.0)
            assert [chunk.error for chunk in found] == [lost]

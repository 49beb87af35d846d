"""What a reply says: content, framing and coding, as a client receives them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import attrs
import pytest

from chanstream.testing import Reply

from .conftest import STREAM, Peers
from .wire import body_of, data_of, deltas_of, http_chunks, post, read_all, read_until

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}


def stream(plain: Peers, reply: Reply | str) -> bytes:
    """Returns the body that a client gets who asks for a stream."""
    return plain.ask(plain.serve(reply)).read()


def whole(plain: Peers, reply: Reply | str) -> Any:
    """Returns the JSON that a client gets who asks for no stream."""
    return json.loads(plain.ask(plain.serve(reply), {"messages": [{"role": "user", "content": "Say it."}]}).read())


class TestText:
    """The text form, as a stream and as an object."""

    def test_stream(self, plain: Peers) -> None:
        """A text is streamed token by token, then come the finish reason with the usage, and `[DONE]`."""
        events = data_of(stream(plain, "Hello big world"))
        choices = [event["choices"][0] for event in events[:-1]]
        assert [choice["delta"] for choice in choices] == [
            {"role": "assistant", "content": "Hello"},
            {"content": " big"},
            {"content": " world"},
            {"content": ""},
        ]
        assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
        assert events[-2]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        assert all("usage" not in event for event in events[:-2])
        assert events[-1] == "[DONE]"

    def test_envelope(self, plain: Peers) -> None:
        """All chunks of an answer have one id, creation time and model."""
        chunks = data_of(stream(plain, Reply("a b", model="tiny")))[:-1]
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "tiny")}

    @pytest.mark.parametrize("text", ["", " ", "one", "  in \n\n the\tair  ", "é 日本語 😀\n"])
    def test_tokens(self, plain: Peers, text: str) -> None:
        """The tokens of a text give it back when they are joined."""
        assert "".join(delta.get("content", "") for delta in deltas_of(stream(plain, text))) == text

    def test_token_sequence(self, plain: Peers) -> None:
        """A sequence of tokens becomes one chunk each, empty ones too."""
        deltas = deltas_of(stream(plain, Reply(["Hel", "", "lo"])))
        assert [delta["content"] for delta in deltas[:-1]] == ["Hel", "", "lo"]

    def test_object(self, plain: Peers) -> None:
        """A client that asks for no stream gets the same as one object."""
        answer = whole(plain, Reply(["Hel", "lo"], model="tiny"))
        assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
        assert answer["choices"] == [
            {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        ]
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}

    def test_usage_of_parts(self, plain: Peers) -> None:
        """The prompt is counted in messages made of parts too."""
        request = {"messages": [{"content": [{"type": "text", "text": "one two"}]}, {"content": None}, "odd"]}
        assert json.loads(plain.ask(plain.serve("ok"), request).read())["usage"]["prompt_tokens"] == 2

    def test_reasoning(self, plain: Peers) -> None:
        """Reasoning comes before the text, and the role comes on the first delta of all."""
        reply = Reply("yes", reasoning="let me see")
        assert deltas_of(stream(plain, reply))[:-1] == [
            {"role": "assistant", "reasoning_content": "let"},
            {"reasoning_content": " me"},
            {"reasoning_content": " see"},
            {"content": "yes"},
        ]
        assert whole(plain, reply)["choices"][0]["message"]["reasoning_content"] == "let me see"

    def test_tool_calls(self, plain: Peers) -> None:
        """Each tool call comes whole in a delta of its own, numbered, and is the reason to finish."""
        reply = Reply(tool_calls=[CALL, {**CALL, "index": 7}])
        events = data_of(stream(plain, reply))
        assert [event["choices"][0]["delta"]["tool_calls"] for event in events[:2]] == [
            [{"index": 0, **CALL}],
            [{"index": 7, **CALL}],
        ]
        assert events[2]["choices"][0]["finish_reason"] == "tool_calls"
        choice = whole(plain, reply)["choices"][0]
        assert (choice["message"]["tool_calls"][0], choice["finish_reason"]) == (CALL, "tool_calls")

    def test_finish_reason(self, plain: Peers) -> None:
        """The finish reason is the given one, and without one there is no finish chunk."""
        assert data_of(stream(plain, Reply("a", finish_reason="length")))[-2]["choices"][0]["finish_reason"] == "length"
        assert [delta["content"] for delta in deltas_of(stream(plain, Reply("a", finish_reason=None)))] == ["a"]

    def test_done(self, plain: Peers) -> None:
        """Without `done` the stream ends after the finish chunk."""
        assert data_of(stream(plain, Reply("a", done=False)))[-1]["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize("usage_chunk", [False, True])
    def test_usage_given(self, plain: Peers, usage_chunk: bool) -> None:
        """A given usage is sent as it is, on the finish chunk or in a chunk of its own after it."""
        reply = Reply("a", usage={"total_tokens": 9}, usage_chunk=usage_chunk)
        events = data_of(stream(plain, reply))[:-1]
        assert events[-1]["usage"] == {"total_tokens": 9}
        assert (events[-1]["choices"] == []) is usage_chunk
        assert sum("usage" in event for event in events) == 1

    def test_usage_off(self, plain: Peers) -> None:
        """Usage can be left out, also where it would have a chunk of its own."""
        assert b"usage" not in stream(plain, Reply("a", usage=False, usage_chunk=True))
        assert "usage" not in whole(plain, Reply("a", usage=False))

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    def test_newline(self, plain: Peers, newline: str) -> None:
        """Events end with the chosen line ending, twice."""
        assert stream(plain, Reply("a", newline=newline)).endswith(f"data: [DONE]{newline}{newline}".encode())


class TestVerbatim:
    """The forms that are sent as they are given."""

    def test_chunks(self, plain: Peers) -> None:
        """Mappings become JSON events, str become data lines, bytes stay, and nothing is added."""
        reply = Reply(chunks=[{"ä": 1}, "plain", "two\nlines", b": raw\r\r"])
        expected = 'data: {"ä":1}\n\ndata: plain\n\ndata: two\ndata: lines\n\n: raw\r\r'.encode()
        response = plain.ask(plain.serve(reply))
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.read() == expected

    def test_no_chunks(self, plain: Peers) -> None:
        """An empty list of chunks is a stream without one event."""
        assert stream(plain, Reply("not this", chunks=[])) == b""

    @pytest.mark.parametrize(
        ("body", "kind"), [(b'{"a": 1}', "application/json"), (b"data: 1\n\n", "text/event-stream")]
    )
    def test_body(self, plain: Peers, body: bytes, kind: str) -> None:
        """A body is sent byte for byte, under the content type that fits it."""
        response = plain.ask(plain.serve(Reply(body=body)))
        assert (response.headers["Content-Type"], response.read()) == (kind, body)

    def test_empty_body(self, plain: Peers) -> None:
        """A body may be empty."""
        assert stream(plain, Reply(body=b"")) == b""

    def test_status_and_headers(self, plain: Peers) -> None:
        """Status, headers and content type are the given ones, and given headers replace the server's, in any case."""
        reply = Reply("a", status=529, headers={"X-One": "1", "content-TYPE": "text/odd"}, content_type="text/other")
        response = plain.ask(plain.serve(reply))
        assert (response.status, response.reason) == (529, "")
        assert response.headers.get_all("Content-Type") == ["text/odd"]
        assert response.headers["X-One"] == "1"

    def test_head_bytes(self, plain: Peers) -> None:
        """The head is what it should be, byte for byte."""
        peer = plain.dial(plain.serve(Reply.json({}, 404)))
        peer.sendall(post(STREAM))
        head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        assert read_until(peer, b"{}") == head + b"{}"

    @pytest.mark.parametrize("status", [204, 304])
    def test_status_without_body(self, plain: Peers, status: int) -> None:
        """A status that forbids a body gets none, so that the connection stays in step."""
        server = plain.serve(Reply("a", status=status), "next")
        connection = plain.http(server)
        bodies = []
        for _ in range(2):
            connection.request("GET", "/")
            bodies.append(connection.getresponse().read())
        assert bodies[0] == b""
        assert json.loads(bodies[1])["choices"][0]["message"]["content"] == "next"
        assert server.connections == 1


class TestRaw:
    """Whole responses."""

    RAW = b"HTTP/1.1 200 Fine\r\nX-Odd:1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    def test_verbatim(self, plain: Peers) -> None:
        """A raw response is sent byte for byte, and the connection lives on if the response has an end of its own."""
        server = plain.serve(Reply(raw=self.RAW))
        peer = plain.dial(server)
        for _ in range(2):
            peer.sendall(post(STREAM))
            assert read_until(peer, b"0\r\n\r\n") == self.RAW
        assert server.connections == 1

    @pytest.mark.parametrize(
        "raw",
        [
            b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
            b"not HTTP at all",
            b"",
        ],
        ids=["no-length", "connection-close", "no-head", "nothing"],
    )
    def test_closes(self, peers: Peers, raw: bytes) -> None:
        """The connection is closed after a raw response that has no end of its own, or says so."""
        peer = peers.dial(peers.serve(Reply(raw=raw)))
        peer.sendall(post(STREAM))
        assert read_all(peer) == raw

    def test_end_wins(self, plain: Peers) -> None:
        """The connection is closed after a raw response that could be kept, if `end` says so."""
        peer = plain.dial(plain.serve(Reply(raw=self.RAW, end="cut")))
        peer.sendall(post(STREAM))
        assert read_all(peer) == self.RAW

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_split(self, plain: Peers, size: int) -> None:
        """A raw response arrives whole, however it is split."""
        peer = plain.dial(plain.serve(Reply(raw=self.RAW, split=size)))
        peer.sendall(post(STREAM))
        assert read_until(peer, b"0\r\n\r\n") == self.RAW

    @pytest.mark.parametrize("cut_at", range(4))
    def test_cut(self, plain: Peers, cut_at: int) -> None:
        """In a raw response the bytes after the head are counted, and a cut one is never kept waiting."""
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
        peer = plain.dial(plain.serve(Reply(raw=raw, cut_at=cut_at)))
        peer.sendall(post(STREAM))
        assert body_of(read_all(peer)) == b"abcde"[:cut_at]


class TestFraming:
    """How the end of the body is told."""

    def test_chunked(self, plain: Peers) -> None:
        """With chunked framing each event is an HTTP chunk of its own."""
        peer = plain.dial(plain.serve(Reply(chunks=["a", "b"])))
        peer.sendall(post(STREAM))
        received = read_until(peer, b"0\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in received
        assert http_chunks(body_of(received)) == [b"data: a\n\n", b"data: b\n\n", b""]

    def test_content_length(self, plain: Peers) -> None:
        """With a content length the head tells it, and the connection lives on."""
        server = plain.serve(Reply(chunks=["a", "b"], framing="content-length"))
        connection = plain.http(server)
        for _ in range(2):
            connection.request("POST", "/", json.dumps(STREAM))
            response = connection.getresponse()
            assert (response.headers["Content-Length"], response.read()) == ("18", b"data: a\n\ndata: b\n\n")
        assert server.connections == 1

    def test_close(self, peers: Peers) -> None:
        """With close-delimited framing the head says so and the close ends the body."""
        peer = peers.dial(peers.serve(Reply(chunks=["a"], framing="close")))
        peer.sendall(post(STREAM))
        head, _, body = read_all(peer).partition(b"\r\n\r\n")
        assert body == b"data: a\n\n"
        assert b"Connection: close" in head
        assert b"Content-Length" not in head
        assert b"Transfer-Encoding" not in head

    @pytest.mark.parametrize("size", [1, 5, 12, 1000])
    def test_split(self, plain: Peers, size: int) -> None:
        """Pieces have the given size, run across events, and are HTTP chunks of their own."""
        peer = plain.dial(plain.serve(Reply(chunks=["a", "b", "c"], split=size)))
        peer.sendall(post(STREAM))
        *pieces, last = http_chunks(body_of(read_until(peer, b"\r\n0\r\n\r\n")))
        assert b"".join(pieces) == b"data: a\n\ndata: b\n\ndata: c\n\n"
        assert {len(piece) for piece in pieces[:-1]} <= {size}
        assert (last, len(pieces[-1]) <= size) == (b"", True)

    def test_split_and_pace(self, plain: Peers) -> None:
        """A piece does not wait for the next event where there is a pause between them."""
        peer = plain.dial(plain.serve(Reply(chunks=["a", "b"], split=8, pace=0.01)))
        peer.sendall(post(STREAM))
        chunks = http_chunks(body_of(read_until(peer, b"\r\n0\r\n\r\n")))
        assert chunks == [b"data: a\n", b"\n", b"data: b\n", b"\n", b""]


class TestCompression:
    """Content codings."""

    @staticmethod
    def decode(coding: str, data: bytes) -> bytes:
        """Returns the decoded body, by other means than the server's."""
        return gzip.decompress(data) if coding == "gzip" else zlib.decompress(data)

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_whole(self, plain: Peers, coding: Any, framing: Any) -> None:
        """A compressed body is announced and complete in every framing."""
        response = plain.ask(plain.serve(Reply(chunks=["a", "b"], compress=coding, framing=framing)))
        assert response.headers["Content-Encoding"] == coding
        assert self.decode(coding, response.read()) == b"data: a\n\ndata: b\n\n"

    @pytest.mark.parametrize("bits", [pytest.param(31, id="gzip"), pytest.param(15, id="deflate")])
    def test_prompt(self, plain: Peers, bits: int) -> None:
        """Each event of a compressed body can be decoded when it arrives, pings too."""
        coding: Any = "gzip" if bits == 31 else "deflate"
        response = plain.ask(plain.serve(Reply(chunks=["a", "b"], compress=coding, stall_after=1, pings=0.01)))
        decoder, decoded = zlib.decompressobj(wbits=bits), b""
        while b": ping\n\n" not in decoded:
            decoded += decoder.decompress(response.read1())
        assert decoded.startswith(b"data: a\n\n: ping\n\n")


class TestHelpers:
    """The ready-made replies."""

    def test_error(self, plain: Peers) -> None:
        """An error has the shape that OpenAI-like servers use, with the status's own words by default."""
        reply = Reply.error(429, headers={"Retry-After": "1"}, type="rate", code="slow_down")
        response = plain.ask(plain.serve(reply, Reply.error(599)))
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert json.loads(response.read()) == {
            "error": {"message": "Too Many Requests", "type": "rate", "param": None, "code": "slow_down"}
        }
        assert json.loads(stream(plain, Reply.error(599)))["error"]["message"] == "status 599"
        assert json.loads(stream(plain, Reply.error(500, "no")))["error"]["message"] == "no"

    def test_json(self, plain: Peers) -> None:
        """Any JSON can be the answer, also to one who wants a stream."""
        response = plain.ask(plain.serve(Reply.json([1, "ä"], status=201)))
        assert (response.status, response.headers["Content-Type"]) == (201, "application/json")
        assert response.read() == '[1,"ä"]'.encode()

    def test_html(self, plain: Peers) -> None:
        """A page comes as HTML."""
        response = plain.ask(plain.serve(Reply.html("<p>ä</p>", status=502)))
        assert (response.status, response.headers.get_content_type()) == (502, "text/html")
        assert response.read().decode() == "<p>ä</p>"

    def test_garbage(self, plain: Peers) -> None:
        """Garbage is announced as an event stream, and is neither UTF-8 nor JSON."""
        response = plain.ask(plain.serve(Reply.garbage()))
        assert response.headers["Content-Type"] == "text/event-stream"
        with pytest.raises(UnicodeDecodeError):
            response.read().decode()

    def test_pings_only(self, plain: Peers) -> None:
        """A stream of pings has comments and nothing else."""
        response = plain.ask(plain.serve(Reply.pings_only(0.01)))
        assert response.read(3 * len(b": ping\n\n")) == b": ping\n\n" * 3


class TestFields:
    """What a reply refuses, before anything is served."""

    @pytest.mark.parametrize(
        ("field", "value", "error"),
        [
            ("text", 5, TypeError),
            ("text", b"bytes", TypeError),
            ("text", ["a", 5], TypeError),
            ("text", "\ud800", ValueError),
            ("reasoning", None, TypeError),
            ("tool_calls", "call", TypeError),
            ("tool_calls", ["call"], TypeError),
            ("tool_calls", [{"id": object()}], TypeError),
            ("chunks", "data", TypeError),
            ("chunks", [5], TypeError),
            ("chunks", [{"a": {1}}], TypeError),
            ("chunks", ["\ud800"], ValueError),
            ("body", "text", TypeError),
            ("raw", "text", TypeError),
            ("model", None, TypeError),
            ("finish_reason", 5, TypeError),
            ("usage", None, TypeError),
            ("usage", {"a": {1}}, TypeError),
            ("usage_chunk", 1, TypeError),
            ("done", "no", TypeError),
            ("status", "200", TypeError),
            ("status", True, TypeError),
            ("status", 100, ValueError),
            ("status", 600, ValueError),
            ("headers", ["a"], TypeError),
            ("headers", {"Retry-After": 1}, TypeError),
            ("headers", {"A": "b\r\nC: d"}, ValueError),
            ("headers", {"A": "€"}, ValueError),
            ("headers", {"A b": "c"}, ValueError),
            ("headers", {"": "c"}, ValueError),
            ("content_type", 5, TypeError),
            ("content_type", "a\nb", ValueError),
            ("framing", "lines", ValueError),
            ("newline", "\n\n", ValueError),
            ("compress", "br", ValueError),
            ("split", 0, ValueError),
            ("split", 1.5, TypeError),
            ("head_delay", -1, ValueError),
            ("first_delay", "1", TypeError),
            ("pace", math.nan, ValueError),
            ("pace", True, TypeError),
            ("pings", 0, ValueError),
            ("pings", "often", TypeError),
            ("stall_after", -1, ValueError),
            ("cut_at", -1, ValueError),
            ("cut_at", 1.0, TypeError),
            ("end", "bang", ValueError),
        ],
    )
    def test_refused(self, field: str, value: Any, error: type[Exception]) -> None:
        """A value that makes no sense is refused at once, and the message begins with the field's name."""
        with pytest.raises(error, match=rf"\A{field} "):
            Reply(**{field: value})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"chunks": [], "body": b""}, "chunks and body exclude each other"),
            ({"body": b"", "raw": b""}, "body and raw exclude each other"),
            ({"raw": b"", "compress": "gzip"}, "compress does not go with raw"),
            ({"raw": b"", "pings": 1}, "pings do not go with raw"),
            ({"framing": "content-length", "pings": 1}, "pings do not go with framing='content-length'"),
        ],
    )
    def test_contradictions(self, fields: dict[str, Any], message: str) -> None:
        """Fields that contradict each other are refused."""
        with pytest.raises(ValueError, match=message):
            Reply(**fields)

    def test_copies(self) -> None:
        """A reply does not change with the lists and dicts that it was made of."""
        tokens, headers = ["a"], {"A": "b"}
        reply = Reply(tokens, headers=headers)
        tokens.append("b")
        headers["C"] = "d"
        assert (reply.text, reply.headers) == (("a",), {"A": "b"})

    def test_evolve(self) -> None:
        """A reply is a value: equal to its like, frozen, and changed by `attrs.evolve`."""
        assert attrs.evolve(Reply("a"), pace=1) == Reply("a", pace=1)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            Reply("a").text = "b"  # type: ignore[misc]

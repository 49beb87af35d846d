from __future__ import annotations

import json
import math

import pytest

from chanstream import CompletionChunk, ResponseHead, StreamChoice, UsageInfo
from chanstream.cache.entry import Entry, chunk_of, line_of
from chanstream.transport.head import head_of
from chanstream.wire.machine import StreamMachine
from tests.data.transcripts import Transcript, transcripts

HEAD = head_of(200, {"Content-Type": "text/event-stream", "X-Request-Id": "r-1", "Set-Cookie": "session=secret"})
ENTRY = Entry(HEAD, [b'{"raw":{}}', b'{"raw":{"id":"c"},"is_last_chunk":true}'])


def chunks(transcript: Transcript) -> list[CompletionChunk]:
    """Return the chunks of a capture, those before an error."""
    head, _, body = transcript.raw.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    machine = StreamMachine(0.0, content_type=fields[b"content-type"].decode(), n=transcript.n)
    payload = b"".join(_dechunked(body)) if b"transfer-encoding" in fields else body
    found = machine.feed(payload, 0.125) + machine.eof(0.5)
    return [chunk for chunk in found if chunk.error is None]


def _dechunked(body: bytes) -> list[bytes]:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        pieces.append(body[:length])
        body = body[length + 2 :] if length else b""
    return pieces


@pytest.mark.parametrize("transcript", transcripts("stream", "answer"), ids=lambda transcript: transcript.name)
def test_chunks_of_real_servers(transcript: Transcript) -> None:
    """Each chunk of each captured stream is equal, in every field, once it was written and read again."""
    found = chunks(transcript)
    assert [chunk_of(line_of(chunk)) for chunk in found] == found
    assert found or transcript.error is not None


def test_what_the_library_made_of_a_last_chunk() -> None:
    """Usage that was folded in, and choices that were made up, are there again; what came is what came."""
    chunk = CompletionChunk("c-1", "chunk", 7, "m", [StreamChoice(1)], UsageInfo(3, 2, 5), is_last_chunk=True)
    chunk.total_latency = 1.5
    again = chunk_of(line_of(chunk))
    assert again == chunk
    assert (again.raw, again.choices[0].raw) == ({}, {})


def test_numbers_that_json_does_not_have() -> None:
    """A chunk with an infinite number, which servers send, can be kept."""
    chunk = CompletionChunk.from_dict({"id": "c", "choices": [{"index": 0, "delta": {}, "logprobs": -math.inf}]})
    assert chunk_of(line_of(chunk)) == chunk


def test_an_entry() -> None:
    """An entry comes back as it was, but of the head only the status, the content type and the request id."""
    again = Entry.unpacked(ENTRY.packed("ab", "stream"), "ab", "stream")
    assert again.lines == ENTRY.lines
    assert again.head == ResponseHead(
        200, head_of(0, {"content-type": "text/event-stream", "x-request-id": "r-1"}).headers
    )
    assert again.head.headers["Content-Type"] == "text/event-stream"
    assert again.head.request_id == "r-1"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        pytest.param(lambda data: b"", "no entry of a cache", id="empty"),
        pytest.param(lambda data: b"\x00\xff", "no entry of a cache", id="garbage"),
        pytest.param(lambda data: b"[1]\n", "no entry in format 1", id="other JSON"),
        pytest.param(
            lambda data: data.replace(b'"chanstream":1', b'"chanstream":2'), "no entry in format 1", id="newer"
        ),
        pytest.param(lambda data: data.replace(b'"key":"ab"', b'"key":"cd"'), "of another request", id="moved"),
        pytest.param(lambda data: data.replace(b'"stream"', b'"whole"'), "of another request", id="kind"),
        pytest.param(lambda data: data[:-1], "damaged", id="cut"),
        pytest.param(lambda data: data + b"\n", "damaged", id="longer"),
        pytest.param(lambda data: data.replace(b'"raw"', b'"rav"'), "damaged", id="changed"),
        pytest.param(lambda data: data.partition(b"\n")[0], "damaged", id="one line"),
    ],
)
def test_what_is_no_entry(spoil: object, complaint: str) -> None:
    """Whatever is not exactly the entry that was written is refused, and the error says why."""
    assert callable(spoil)
    with pytest.raises(ValueError, match=complaint):
        Entry.unpacked(spoil(ENTRY.packed("ab", "stream")), "ab", "stream")


def test_every_cut_is_noticed() -> None:
    """An entry that was cut off at any place is refused."""
    data = ENTRY.packed("ab", "stream")
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"^it is "):
            Entry.unpacked(data[:length], "ab", "stream")


def test_it_is_json_lines() -> None:
    """Every line of an entry is JSON, so that other programs can read it."""
    facts, *lines = map(json.loads, ENTRY.packed("ab", "stream").split(b"\n"))
    assert (facts["chanstream"], facts["key"], facts["kind"], facts["status_code"]) == (1, "ab", "stream", 200)
    assert lines == [{"raw": {}}, {"raw": {"id": "c"}, "is_last_chunk": True}]


@pytest.mark.parametrize("latency", ["1e300", "Infinity", "NaN", "-1", "1e8"])
def test_a_latency_that_cannot_be(latency: str) -> None:
    """A chunk that says it took years, or no time that there is, is none."""
    with pytest.raises(ValueError, match=r"chunk_latency|JSON|literal|unexpected"):
        chunk_of(b'{"raw": {}, "chunk_latency": %b}' % latency.encode())


def test_a_stream_without_an_end() -> None:
    """A stream whose last chunk is missing is no entry: who replays it would wait for ever."""
    line = line_of(CompletionChunk(chunk_latency=0.5))
    packed = Entry(head_of(200, {}), [line]).packed("ab", "stream")
    with pytest.raises(ValueError, match="no end"):
        Entry.unpacked(packed, "ab", "stream")

"""Promise 4: a cut is an error.

A full stop on the wire is [DONE], or a finish reason for every choice that appeared and then a clean end of the body or
silence; any other end is an error that says whether the answer was truncated or the connection lost. Never a silent
short answer.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import attrs
import pytest

from chanstream import (
    APIConnectionError,
    ChanstreamError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Client,
    CompletionChunk,
    StreamAPIError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
    UserMessage,
)
from chanstream.testing import RecordedRequest, Reply
from chanstream.wire.assembly import Assembler
from chanstream.wire.machine import StreamMachine
from tests.conftest import PROMPT, REQUEST, Link
from tests.data.transcripts import answers, body, transcripts, usage

DONE = "[DONE]"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOST = StreamInterruptedError("the connection was lost")
FRAMINGS = pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])


def said(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a chunk with one choice."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


# -- the recordings --------------------------------------------------------------------------------------------------


@attrs.frozen
class Recording:
    """A recorded stream: the bytes of its events, as they came."""

    name: str
    payload: bytes
    n: int = 1
    raw: bytes = attrs.field(default=b"", repr=False)

    @property
    def head_size(self) -> int:
        """How many bytes of the response are its head."""
        return self.raw.index(b"\r\n\r\n") + 4


def captured(name: str) -> Recording:
    """Return a capture of a real server."""
    [transcript] = [one for one in transcripts("stream") if one.name == f"{name}.http"]
    return Recording(name, body(transcript.raw)[1], transcript.n, transcript.raw)


def made_up() -> Recording:
    """Return a stream with thoughts, parallel tool calls, text beyond ASCII and comments, in lines with CRLF."""
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city": "Zü'}},
        {"index": 0, "function": {"arguments": 'rich"}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm 🤔"},
        {"content": "Grüezi\n\n"},
        *({"tool_calls": [call]} for call in calls),
    ]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events = [*chunks, said(finish="tool_calls"), {"choices": [], "usage": USAGE}]
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}" for event in events]
    return Recording("made up", "\r\n\r\n".join([": hello", *lines, "data: [DONE]", ""]).encode())


SMALL = captured("vllm-cpu/stream-min-chunk")  # small enough for a connection for each of its bytes, several times over
RECORDINGS = [
    SMALL,
    made_up(),
    captured("vllm-cpu/stream-usage"),  # trailing usage
    captured("mock-ai-api/stream"),  # usage on the finish chunk
    captured("transformers-serve/stream-stop-string"),  # no [DONE]
    captured("stubllm/stream-tool"),  # no finish reason
    captured("litellm-proxy/proxy-llama-stream-usage"),  # usage with a dummy choice
    captured("llama.cpp-server/stream-n2-usage"),  # two choices that interleave, usage for each
]
EVERY_RECORDING = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


# -- what a cut must give, told from the bytes in another way than the library's -------------------------------------


@attrs.frozen
class Facts:
    """What the whole events of a cut stream say."""

    full_stop: bool
    usage: dict[str, int] | None


def events(prefix: bytes, clean: bool) -> Iterator[Any]:
    """Yield the decoded events of a cut stream; at a clean end the last one may lack its blank line."""
    lines = prefix.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in (lines if clean else lines.rpartition(b"\n\n")[0]).split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        try:
            yield DONE if data == DONE.encode() else json.loads(data)
        except ValueError:
            assert clean or not data or data.startswith(b":")


def facts(prefix: bytes, clean: bool, n: int) -> Facts:
    """Return what must come of a stream that ends after ``prefix``, cleanly or by the loss of the connection."""
    appeared, finished = set(), set()
    counts, done, counted = None, False, False
    for event in events(prefix, clean):
        if event == DONE:
            done = True
            break
        for choice in event["choices"]:
            appeared.add(choice["index"])
            if choice.get("finish_reason"):
                finished.add(choice["index"])
        counts = event.get("usage") or counts
        counted = counted or bool(finished and event.get("usage"))
    finish = bool(finished) and appeared == finished
    # With its usage there the last chunk of a single answer is delivered before the connection is lost.
    stop = done or (finish and (clean or (n == 1 and counted)))
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    return Facts(stop, None if counts is None else {key: counts[key] for key in keys})


def assembled(chunks: Iterable[CompletionChunk]) -> ChatCompletionResponse:
    """Return the answer that chunks make."""
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.response()


def replayed(recording: Recording, size: int, clean: bool) -> list[CompletionChunk]:
    """Return what the machine makes of the first bytes of a recording."""
    machine = StreamMachine(0.0, n=recording.n)
    found = machine.feed(recording.payload[:size], 1.0)
    return found + (machine.eof(2.0) if clean else machine.fail(LOST, 2.0))


@functools.cache
def full_answer(recording: Recording) -> list[dict[str, Any]]:
    """Return the choices of a recording that is not cut."""
    return answers(assembled(replayed(recording, len(recording.payload), clean=True)))


def check(chunks: list[CompletionChunk], recording: Recording, size: int, clean: bool) -> None:
    """Check what came of the first ``size`` bytes of a recording: the full answer, or one error after a part of it."""
    *before, last = chunks
    assert not any(chunk.is_last_chunk or chunk.error for chunk in before)
    told = facts(recording.payload[:size], clean, recording.n)
    full, got = full_answer(recording), answers(assembled(chunks))
    if told.full_stop:
        assert (last.is_last_chunk, last.error) == (True, None)
        assert got == full
        assert usage(last) == told.usage
    else:
        assert (last.is_last_chunk, type(last.error)) == (
            False,
            StreamTruncatedError if clean else StreamInterruptedError,
        )
        by_index = {whole["index"]: whole for whole in full}
        assert all(begins(part, by_index[part["index"]]) for part in got)


def begins(part: Any, whole: Any) -> bool:
    """Return whether an answer is the beginning of another: what is missing is missing at the end."""
    if isinstance(part, dict):
        return all(begins(part[key], whole[key]) for key in part)
    if isinstance(part, list):
        return all(begins(*pair) for pair in zip(part, whole, strict=False)) and len(part) <= len(whole)
    return whole.startswith(part) if isinstance(part, str) else part in (None, whole)


class TestEveryByteWithoutSockets:
    """Where a chunked or content-length body is cut the connection is lost; a close-delimited one ends cleanly."""

    @EVERY_RECORDING
    def test_the_recordings_say_something(self, recording: Recording) -> None:
        """The check has something to check: a recording makes an answer, and its first half does not."""
        size = len(recording.payload)
        [first, *_] = full_answer(recording)
        assert first["text"] or first["tool_calls"]
        assert facts(recording.payload, True, recording.n).full_stop
        assert not facts(recording.payload[: size // 2], True, recording.n).full_stop

    @pytest.mark.parametrize("clean", [True, False], ids=["clean end", "lost connection"])
    @EVERY_RECORDING
    def test_a_cut(self, recording: Recording, clean: bool) -> None:
        """A cut at any byte gives the full answer or exactly one error, of the right kind, after what had come."""
        for size in range(len(recording.payload) + 1):
            check(replayed(recording, size, clean), recording, size, clean)


# -- the same over sockets -------------------------------------------------------------------------------------------


def chunk_payload(framed: bytes) -> list[int]:
    """Return, for each number of bytes of a chunked body, how many bytes of its payload they hold."""
    sizes, at = [0], 0
    while at < len(framed):
        end = framed.index(b"\r\n", at) + 2
        length = int(framed[at:end], 16)
        sizes += [sizes[-1]] * (end - at)
        sizes += range(sizes[-1] + 1, sizes[-1] + length + 1)
        sizes += [sizes[-1]] * 2
        at = end + length + 2
    return sizes


def outcome(client: Client, cut: int) -> list[CompletionChunk] | APIConnectionError:
    """Return the chunks of an answer that is cut there, or what was raised instead of it."""
    try:
        return list(client.chat_completion_stream(ChatCompletionRequest(str(cut), [UserMessage("hi")])))
    except APIConnectionError as error:
        return error


def outcomes(link: Link, cuts: Iterable[int], **how: Any) -> Iterator[list[CompletionChunk] | APIConnectionError]:
    """Yield the outcome of each cut: the model's name tells the server where."""

    def reply(request: RecordedRequest) -> Reply:
        return Reply(cut_at=int(request.json["model"]), **how)

    client = link.client(link.serve(reply_with=reply))
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda cut: outcome(client, cut), cuts)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
class TestEveryByteOverSockets:
    def test_chunked(self, link: Link) -> None:
        """A chunked body cut at any byte, in its framing too, gives the full answer or exactly one error."""
        framed = SMALL.raw[SMALL.head_size :]
        sizes = chunk_payload(framed)
        assert (len(sizes), sizes[-1]) == (len(framed) + 1, len(SMALL.payload))
        cuts = range(len(framed) + 1)
        for cut, found in zip(cuts, outcomes(link, cuts, raw=SMALL.raw, end="cut"), strict=True):
            assert not isinstance(found, APIConnectionError), cut
            check(found, SMALL, sizes[cut], clean=cut == len(framed))

    def test_content_length(self, link: Link) -> None:
        """A body with a length, cut at any byte, gives the full answer or exactly one error."""
        size = len(SMALL.payload)
        cuts = range(size + 1)
        how: dict[str, Any] = {"headers": {"Content-Length": str(size)}, "framing": "content-length", "end": "cut"}
        for cut, found in zip(cuts, outcomes(link, cuts, body=SMALL.payload, **how), strict=True):
            assert not isinstance(found, APIConnectionError), cut
            check(found, SMALL, cut, clean=cut == size)

    def test_close_delimited(self, link: Link) -> None:
        """A body that the connection's end delimits, cut at any byte, gives the full answer or exactly one error."""
        cuts = range(len(SMALL.payload) + 1)
        for cut, found in zip(cuts, outcomes(link, cuts, body=SMALL.payload, framing="close"), strict=True):
            assert not isinstance(found, APIConnectionError), cut
            check(found, SMALL, cut, clean=True)

    def test_the_head(self, link: Link) -> None:
        """A head cut at any byte is one error: raised, or in band where http.client takes the rest for a head."""
        server = link.serve(*(Reply(raw=SMALL.raw[:cut], end="cut") for cut in range(SMALL.head_size)))
        client = link.client(server)
        for cut in range(SMALL.head_size):
            found = outcome(client, cut)
            if not isinstance(found, APIConnectionError):
                assert [isinstance(evt.error, StreamError) for evt in found] == [True], cut

    @FRAMINGS
    def test_resets(self, link: Link, framing: Any) -> None:
        """A connection that is reset, at bytes all over the stream, gives the full answer or exactly one error."""
        cuts = range(0, len(SMALL.payload), 29)
        how: dict[str, Any] = {"body": SMALL.payload, "framing": framing, "end": "reset"}
        for cut, found in zip(cuts, outcomes(link, cuts, **how), strict=True):
            if isinstance(found, APIConnectionError):
                continue  # the reset overtook the head
            assert [evt for evt in found if evt.is_last_chunk or evt.error] == found[-1:]
            if found[-1].error is None:
                assert facts(SMALL.payload[:cut], True, 1).full_stop
            elif link.tls is None or framing != "close":  # there Python's ssl takes a reset for an end
                assert isinstance(found[-1].error, StreamInterruptedError)
            else:
                assert isinstance(found[-1].error, StreamError)

    @FRAMINGS
    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_a_compressed_body(self, plain: Link, coding: Any, framing: Any) -> None:
        """A compressed body cut anywhere gives the full answer or exactly one error as well."""
        cuts = range(0, 600, 13)
        how: dict[str, Any] = {"body": SMALL.payload, "compress": coding, "split": 100, "framing": framing}
        for found in outcomes(plain, cuts, **how, end="clean" if framing == "close" else "cut"):
            assert not isinstance(found, APIConnectionError)
            assert [evt for evt in found if evt.is_last_chunk or evt.error] == found[-1:]
            if found[-1].error is None:
                assert answers(assembled(found)) == full_answer(SMALL)
            else:
                assert isinstance(found[-1].error, StreamError)

    @FRAMINGS
    def test_a_cut_in_pieces(self, link: Link, framing: Any) -> None:
        """Nothing changes where the bytes before the cut come in small pieces."""
        recording = made_up()
        cuts = range(1, len(recording.payload), 61)
        how: dict[str, Any] = {"body": recording.payload, "split": 40, "framing": framing}
        for cut, found in zip(
            cuts, outcomes(link, cuts, **how, end="clean" if framing == "close" else "cut"), strict=True
        ):
            assert not isinstance(found, APIConnectionError)
            check(found, recording, cut, clean=framing == "close")


# -- each sentence ---------------------------------------------------------------------------------------------------


def last_of(link: Link, reply: Reply, n: int = 1, **settings: Any) -> CompletionChunk:
    """Return the chunk that ends the stream of a reply."""
    stream = link.client(link.serve(reply), **settings).chat_completion_stream(attrs.evolve(REQUEST, n=n))
    *_, last = stream
    return last


FULL_STOPS: dict[str, tuple[Any, ...]] = {
    "[DONE] after the finish reason": (said("a", "stop"), DONE),
    "[DONE] without a finish reason": (said("a"), DONE),
    "[DONE] alone": (DONE,),
    "finish reason": (said("a"), said(finish="stop")),
    "finish reason and usage": (said("a"), said(finish="stop"), {"choices": [], "usage": USAGE}),
    "finish reason in the only chunk": (said("a", "length"),),
    "a finish reason nobody knows": (said("a", "because"),),
    "two choices": (said("a"), said("b", index=1), said(finish="stop"), said(finish="stop", index=1)),
    "one choice of two": (said("a"), said(finish="stop")),
    "[DONE] after one choice of two": (said("a"), said("b", index=1), said(finish="stop"), DONE),
    "comments behind": (said("a", "stop"), b": ping\n\n"),
}

CUTS: dict[str, tuple[Any, ...]] = {
    "no event": (),
    "comments": (b": ping\n\n", b": ping\n\n"),
    "blank lines": (b"\n\n\n",),
    "text": (said("a"), said("b")),
    "usage but no finish reason": (said("a"), {"choices": [], "usage": USAGE}),
    "usage alone": ({"choices": [], "usage": USAGE},),
    "one choice of two that began": (said("a"), said("b", index=1), said(finish="stop")),
    "a choice that goes on after another": (said("a"), said(finish="stop"), said("b", index=1)),
    "null finish reason": (said("a", None),),
    "empty finish reason": (said("a", ""),),
    "half an event": (said("a"), b'data: {"choices": [{"index": 0, "delta": {"conte'),
    "half a finish": (said("a"), b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}'),
    "half a full stop": (said("a"), b"data: [DONE"),
    "text that is no event": (b"Internal Server Error",),
}


class TestTheEnd:
    @FRAMINGS
    @pytest.mark.parametrize("chunks", FULL_STOPS.values(), ids=FULL_STOPS.keys())
    def test_a_full_stop(self, link: Link, chunks: tuple[Any, ...], framing: Any) -> None:
        """[DONE], or a finish reason for every choice that appeared, before a clean end is a good end."""
        last = last_of(link, Reply(chunks=chunks, framing=framing), n=2)
        assert (last.is_last_chunk, last.error) == (True, None)

    @FRAMINGS
    @pytest.mark.parametrize("chunks", CUTS.values(), ids=CUTS.keys())
    def test_a_clean_end_without_one(self, link: Link, chunks: tuple[Any, ...], framing: Any) -> None:
        """Any other clean end gives StreamTruncatedError, on every framing."""
        last = last_of(link, Reply(chunks=chunks, framing=framing), n=2)
        assert (last.is_last_chunk, type(last.error)) == (False, StreamTruncatedError)

    @pytest.mark.parametrize("end", ["cut", "reset"])
    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    @pytest.mark.parametrize("chunks", CUTS.values(), ids=CUTS.keys())
    def test_a_lost_connection(self, plain: Link, chunks: tuple[Any, ...], framing: Any, end: Any) -> None:
        """The same ends with the framing unfinished, or with a reset, give StreamInterruptedError."""
        last = last_of(plain, Reply(chunks=chunks, framing=framing, end=end), n=2)
        assert (last.is_last_chunk, type(last.error)) == (False, StreamInterruptedError)

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_a_lost_connection_after_the_finish_reason(self, link: Link, framing: Any) -> None:
        """A finish reason is a full stop only if the body ends cleanly after it."""
        chunks = [said("a"), said("b", "stop")]
        *before, last = link.stream(Reply(chunks=chunks, framing=framing, end="cut"))
        assert [(evt.text, evt.is_last_chunk) for evt in before] == [("a", False), ("b", False)]
        assert isinstance(last.error, StreamInterruptedError)

    @FRAMINGS
    @pytest.mark.parametrize("end", ["cut", "reset", "hold"])
    def test_nothing_matters_after_done(self, link: Link, framing: Any, end: Any) -> None:
        """After [DONE] it does not matter how the connection ends, or whether it does."""
        last = last_of(link, Reply("a b", usage=False, framing=framing, end=end, pace=0.03))
        assert (last.is_last_chunk, last.error) == (True, None)

    def test_silence_after_the_finish_reason(self, link: Link) -> None:
        """A finish reason, then silence in an open body, is a good end after a bounded wait."""
        begun = time.monotonic()
        stream = link.stream(Reply(chunks=[said("a"), said(finish="stop")], end="hold"))
        assert [stream.get(timeout=5).is_last_chunk for _ in range(2)] == [False, True]
        assert time.monotonic() - begun < 1.0 + 4 * PROMPT

    @pytest.mark.parametrize("reply", [Reply(body=b""), Reply(body=b"", framing="close")], ids=["chunked", "close"])
    def test_zero_bytes(self, link: Link, reply: Reply) -> None:
        """A stream of no byte at all is cut."""
        assert isinstance(
            last_of(link, attrs.evolve(reply, content_type="text/event-stream")).error, StreamTruncatedError
        )

    def test_the_error_says_what_was_there(self, link: Link) -> None:
        """The error of a stream without one event repeats what the body began with: the server's only words."""
        error = last_of(link, Reply(body=b"Internal Server Error", content_type="text/plain")).error
        assert isinstance(error, StreamTruncatedError)
        assert "Internal Server Error" in str(error)

    @pytest.mark.parametrize("errors", ["inband", "raise"])
    def test_collect_tells_what_had_come(self, link: Link, errors: str) -> None:
        """The partial answer of a cut is on the error that `collect` raises: text, thoughts and tool calls."""
        recording = made_up()
        size = recording.payload.index(b'rich\\"}')
        with pytest.raises(StreamTruncatedError) as caught:
            link.stream(Reply(body=recording.payload[:size], framing="close"), errors=errors).collect()
        partial = caught.value.partial
        assert partial is not None
        assert (partial.text, partial.reasoning) == ("Grüezi\n\n", "hm 🤔")
        assert [(call.function.name, call.function.arguments) for call in partial.tool_calls] == [
            ("weather", '{"city": "Zü')
        ]


class TestRequireFinishReason:
    @pytest.mark.parametrize(
        "chunks",
        [
            (DONE,),
            (said("a"), DONE),
            (said("a"), said("b", index=1), said(finish="stop"), DONE),
            (said("a"), b"data: [DONE]"),
        ],
        ids=["[DONE] alone", "text", "one of two", "unterminated"],
    )
    def test_done_without_one(self, link: Link, chunks: tuple[Any, ...]) -> None:
        """[DONE] without a finish reason for every choice is a good end, unless the client requires one."""
        last = last_of(link, Reply(chunks=chunks), n=2)
        assert (last.is_last_chunk, last.error) == (True, None)
        last = last_of(link, Reply(chunks=chunks), n=2, require_finish_reason=True)
        assert (last.is_last_chunk, type(last.error)) == (False, StreamTruncatedError)

    @pytest.mark.parametrize("end", [(DONE,), ()], ids=["[DONE]", "end of body"])
    def test_an_answer_with_one(self, link: Link, end: tuple[str, ...]) -> None:
        """An answer with its finish reason is a good end for a client that requires one, with [DONE] or without."""
        last = last_of(link, Reply(chunks=[said("a"), said(finish="stop"), *end]), require_finish_reason=True)
        assert (last.is_last_chunk, last.error) == (True, None)


FINISH = json.dumps(said("b", "stop"))
UNTERMINATED_ENDS = ["data: [DONE]", "data:[DONE]", f"data: {FINISH}", f"id: 7\ndata: {FINISH}"]
UNTERMINATED_ERRORS = [
    'data: {"error":{"message":"no room","code":500}}',
    'event: error\ndata: {"error":"no room"}',
    '{"error":{"message":"no room"}}',
    '{\n  "error": {\n    "message": "no room"\n  }\n}',
    'data: {\n  "error": {\n    "message": "no room"\n  }\n}',
    'error: {"code":500,"message":"no room","type":"server_error"}',
    'data: {"object":"error","message":"no room"}',
]


class TestTheLastBlock:
    @FRAMINGS
    @pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\r"], ids=["nothing", "LF", "CRLF", "CR"])
    @pytest.mark.parametrize("block", UNTERMINATED_ENDS, ids=["done", "no space", "object", "with id"])
    def test_an_end_without_its_blank_line(self, plain: Link, block: str, ending: str, framing: Any) -> None:
        """At a clean end [DONE] and one JSON object count though the blank line after them is missing."""
        last = last_of(plain, Reply(chunks=[said("a"), (block + ending).encode()], framing=framing))
        assert (last.is_last_chunk, last.error) == (True, None)
        assert last.text == ("b" if "stop" in block else "")

    @pytest.mark.parametrize("ending", ["", "\n"], ids=["nothing", "LF"])
    @pytest.mark.parametrize("block", UNTERMINATED_ERRORS)
    def test_an_error_without_its_blank_line(self, link: Link, block: str, ending: str) -> None:
        """At a clean end an error counts without its blank line, in whatever shape."""
        last = last_of(link, Reply(chunks=[said("a"), (block + ending).encode()]))
        assert isinstance(last.error, StreamAPIError)
        assert "no room" in str(last.error)

    def test_usage_without_its_blank_line(self, link: Link) -> None:
        """At a clean end trailing usage counts without its blank line."""
        block = f"data: {json.dumps({'choices': [], 'usage': USAGE})}".encode()
        last = last_of(link, Reply(chunks=[said("a", "stop"), block]))
        assert (last.is_last_chunk, usage(last)) == (True, USAGE)

    @pytest.mark.parametrize("block", [UNTERMINATED_ENDS[0], UNTERMINATED_ENDS[2], UNTERMINATED_ERRORS[0]])
    def test_not_where_the_connection_was_lost(self, link: Link, block: str) -> None:
        """Where the connection was lost no unterminated block counts."""
        *before, last = link.stream(Reply(chunks=[said("a"), block.encode()], end="cut"))
        assert [evt.text for evt in before] == ["a"]
        assert isinstance(last.error, StreamInterruptedError)

    def test_half_an_event_is_never_delivered(self, link: Link) -> None:
        """Of an event cut anywhere nothing is delivered: not its text, nor an error about its JSON."""
        block = f"data: {json.dumps(said('half', 'stop'))}".encode()
        for size in range(0, len(block), 7):
            *before, last = link.stream(Reply(chunks=[said("a"), block[:size]]))
            assert [evt.text for evt in before] == ["a"]
            assert (last.text, type(last.error)) == ("", StreamTruncatedError)


SHAPES: list[Any] = [
    pytest.param({"error": {"message": "no room", "type": "server_error", "code": 500}}, id="OpenAI"),
    pytest.param({"error": {"message": "no room", "code": "overloaded"}}, id="code as text"),
    pytest.param({"error": "no room"}, id="text"),
    pytest.param({"error": "ServerError", "message": "no room"}, id="two texts"),
    pytest.param({"object": "error", "message": "no room", "type": "x", "code": 3}, id="older vLLM"),
    pytest.param(
        {"object": "error", "message": {"detail": [{"type": "x", "loc": [], "msg": "no room"}]}}, id="Mistral"
    ),
    pytest.param({"detail": "no room"}, id="FastAPI"),
    pytest.param({"detail": [{"type": "x", "loc": ["body"], "msg": "no room"}]}, id="FastAPI list"),
    pytest.param({"x_groq": {"id": "r", "error": "no room"}, "choices": []}, id="x_groq"),
    pytest.param(said("", x_groq={"error": "no room"}), id="x_groq on a chunk"),
    pytest.param(said("", "error", error={"message": "no room", "code": 502}), id="OpenRouter"),
    pytest.param(b'event: error\ndata: {"error":{"message":"no room"}}\n\n', id="Groq"),
    pytest.param(b'event: error\ndata: {"message":"no room","code":1}\n\n', id="event says so"),
    pytest.param(b'error: {"code":500,"message":"no room","type":"server_error"}\n\n', id="older llama.cpp"),
    pytest.param(b'{"error":{"message":"no room"}}\n', id="Ollama, no data field"),
    pytest.param(b'{\n  "error": {\n    "message": "no room"\n  }\n}\n\n', id="pretty"),
    pytest.param(b'data: {\n  "error": {\n    "message": "no room"\n  }\n}\n\n', id="pretty after data"),
    pytest.param('{\n  "error": {\n    "message": "no room"\n  }\n}', id="pretty in data lines"),
    pytest.param(b'data: [{"error":{"code":503,"message":"no room"}}]\n\n', id="in a list"),
]


class TestErrorsInTheStream:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape(self, link: Link, shape: Any) -> None:
        """An error in the stream ends it with the server's words, whatever the shape, after what had come."""
        *before, last = link.stream(Reply(chunks=[said("a"), said("b"), shape]))
        assert [evt.text for evt in before] == ["a", "b"]
        assert isinstance(last.error, StreamAPIError)
        assert "no room" in str(last.error)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_full_stop_behind_it_changes_nothing(self, plain: Link, shape: Any) -> None:
        """[DONE] after an error (vLLM) makes no good end of it; first of all events it is one as well."""
        tail = b"\n" if isinstance(shape, bytes) else b""  # the one that lacks its blank line gets it
        last = last_of(plain, Reply(chunks=[shape, tail, DONE]))
        assert isinstance(last.error, StreamAPIError)
        assert "no room" in str(last.error)

    def test_the_finish_reason_error(self, link: Link) -> None:
        """The finish reason ``error`` (Mistral) is an error, and [DONE] after it changes nothing."""
        *before, last = link.stream(Reply(chunks=[said("a"), said("b", "error"), DONE]))
        assert [evt.text for evt in before] == ["a"]
        assert isinstance(last.error, StreamAPIError)
        assert last.text == "b"

    @pytest.mark.parametrize("code", [500, "overloaded"])
    def test_the_facts_of_an_error(self, link: Link, code: int | str) -> None:
        """The error holds the server's type, code and body."""
        told = {"error": {"message": "no room", "type": "server_error", "code": code}}
        error = last_of(link, Reply(chunks=[said("a"), told])).error
        assert isinstance(error, StreamAPIError)
        assert (error.message, error.type, error.code, error.body) == ("no room", "server_error", code, told)
        assert str(error) == "server_error: no room"

    def test_collect(self, link: Link) -> None:
        """`collect` raises an error in the stream with the partial answer."""
        with pytest.raises(StreamAPIError, match="no room") as caught:
            link.stream(Reply(chunks=[said("a"), said("b"), {"error": "no room"}, DONE])).collect()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ab"


ANSWER = {"id": "c", "choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}], "usage": USAGE}


class TestInsteadOfAStream:
    @FRAMINGS
    def test_a_whole_completion(self, link: Link, framing: Any) -> None:
        """A 200 with a whole completion as JSON is that answer, in one chunk, on every framing."""
        [last] = link.stream(attrs.evolve(Reply.json(ANSWER), framing=framing, split=20))
        assert (last.text, last.is_last_chunk, last.error, usage(last)) == ("ab", True, None, USAGE)

    @pytest.mark.parametrize("content_type", ["text/event-stream", "text/plain", "application/octet-stream"])
    def test_a_whole_completion_with_another_label(self, plain: Link, content_type: str) -> None:
        """A whole completion whose head does not say that it is JSON loses no text in silence."""
        found = list(plain.stream(attrs.evolve(Reply.json(ANSWER), content_type=content_type)))
        assert "".join(evt.text for evt in found) == "ab" or found[-1].error is not None

    @FRAMINGS
    def test_a_whole_completion_that_is_cut(self, link: Link, framing: Any) -> None:
        """A JSON answer cut at any byte is one error, never an answer."""
        data = json.dumps(ANSWER).encode()
        cuts = range(0, len(data), 9)
        how: dict[str, Any] = {"body": data, "content_type": "application/json", "framing": framing}
        for found in outcomes(link, cuts, **how, end="clean" if framing == "close" else "cut"):
            assert not isinstance(found, APIConnectionError)
            [last] = found
            assert isinstance(last.error, ChanstreamError)
            assert framing == "close" or isinstance(last.error, StreamInterruptedError)

    @pytest.mark.parametrize(
        "shape", [shape.values[0] for shape in SHAPES if isinstance(shape.values[0], dict)], ids=str
    )
    def test_an_error_as_json(self, plain: Link, shape: dict[str, Any]) -> None:
        """A 200 with an error as JSON is that error, in the server's words."""
        [last] = plain.stream(Reply.json(shape))
        assert isinstance(last.error, StreamAPIError)
        assert "no room" in str(last.error)

    @pytest.mark.parametrize(
        "reply",
        [
            Reply.html("<html><h1>Bad Gateway</h1></html>"),
            Reply(body=b"Bad Gateway", content_type="application/json"),
            Reply(body=b'"Bad Gateway"', content_type="application/json"),
            Reply.json({"status": "Bad Gateway"}),
            Reply.json({"choices": [], "note": "Bad Gateway"}),
        ],
        ids=["HTML", "no JSON", "no object", "no completion", "no choices"],
    )
    def test_something_else(self, link: Link, reply: Reply) -> None:
        """A 200 with a page, with JSON that is none or that is no completion, is one error."""
        [last] = link.stream(reply)
        assert isinstance(last.error, StreamDecodeError)
        assert not last.is_last_chunk

    def test_a_page_is_shown(self, link: Link) -> None:
        """The error names the content type and shows how the page began."""
        [last] = link.stream(Reply.html("<html><h1>Bad Gateway</h1></html>"))
        assert "text/html" in str(last.error)
        assert "<h1>Bad Gateway</h1>" in str(last.error)

    @pytest.mark.parametrize("content_type", ["application/json", "text/html", "text/plain"])
    def test_a_stream_with_another_label(self, link: Link, content_type: str) -> None:
        """An event stream is read as one, and as it comes, whatever its head calls it."""
        stream = link.stream(Reply("a b", content_type=content_type, end="hold"))
        assert [stream.get(timeout=5).text for _ in range(3)] == ["a", " b", ""]
        assert stream.state == "complete"

    def test_a_stream_without_a_label(self, link: Link) -> None:
        """An event stream is read as one though its head says nothing about it."""
        raw = b"HTTP/1.1 200 OK\r\n\r\n" + made_up().payload
        found = list(link.stream(Reply(raw=raw)))
        assert answers(assembled(found)) == full_answer(made_up())
        assert found[-1].is_last_chunk


def test_pieces_of_the_check() -> None:
    """The check itself tells a beginning from what is none, and the payload in a chunked body."""
    whole = {"text": "abc", "calls": [{"id": "a"}], "finish_reason": "stop"}
    assert begins({"text": "ab", "calls": [], "finish_reason": None}, whole)
    assert not begins({"text": "b", "calls": [], "finish_reason": None}, whole)
    assert not begins({"text": "abc", "calls": [{"id": "a"}, {"id": "b"}], "finish_reason": None}, whole)
    sizes = chunk_payload(b"3\r\nabc\r\n0\r\n\r\n")
    assert sizes == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert all(after - before in (0, 1) for before, after in pairwise(sizes))

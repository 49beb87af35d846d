"""What a body says: every dialect comes out as OpenAI's, and nothing that was in it is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chanstream import ChatCompletionResponse, CompletionChunk
from chanstream.relay import sse
from chanstream.relay.wording import Wording, encoded, whole
from chanstream.wire.assembly import Assembler
from tests.data.transcripts import Transcript, answers, transcripts, usage
from tests.relay.reading import chunks_of, cut, read, stream_of
from tests.wire.test_transcripts import WHOLE, replay

STREAMS = pytest.mark.parametrize("transcript", transcripts("stream", "answer"), ids=lambda transcript: transcript.name)
ENVELOPE = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "a-model"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 14, "total_tokens": 17}


def chunk(finish_reason: str | None = None, /, *, choice: Any = None, **delta: Any) -> dict[str, Any]:
    """Return a chunk as OpenAI words it."""
    first = {"index": 0, "delta": delta, "finish_reason": finish_reason, **(choice or {})}
    return {**ENVELOPE, "choices": [first]}


def said(*chunks: dict[str, Any], done: bool = True, **settings: Any) -> list[dict[str, Any]]:
    """Return the JSON objects that a body says, for those that a server said."""
    data = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks)
    options = {"usage": settings.pop("usage", "last_chunk")}
    seen = read(sse(stream_of(chunks_of([data + b"data: [DONE]\n\n" * done], **settings)), **options))
    assert seen.done or seen.error
    return seen.objects


def deltas(*chunks: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """Return the deltas that a body says, without empty ones."""
    told = [each["choices"][0]["delta"] for each in said(*chunks, **settings)]
    return [delta for delta in told if delta]


def assembled(chunks: list[CompletionChunk]) -> ChatCompletionResponse:
    """Return the answer that chunks make."""
    answer = Assembler()
    for each in chunks:
        answer.add(each)
    return answer.response()


@STREAMS
@pytest.mark.parametrize("place", ["last_chunk", "own_chunk"])
def test_real_servers(transcript: Transcript, place: Any) -> None:
    """What real servers sent, read from a body, has the same text, thoughts, tool calls, ends, usage and errors."""
    direct = replay(transcript, WHOLE)
    sent = b"".join(sse(stream_of(replay(transcript, WHOLE)), usage=place))
    relayed = chunks_of([sent], n=transcript.n)
    assert answers(assembled(relayed)) == answers(assembled(direct))
    assert usage(relayed[-1]) == usage(direct[-1])
    assert relayed[-1].is_last_chunk == direct[-1].is_last_chunk
    assert bool(relayed[-1].error) == bool(direct[-1].error)
    seen = read([sent])
    assert seen.done == direct[-1].is_last_chunk
    assert bool(seen.error) == bool(direct[-1].error)


@settings(deadline=None)
@given(st.data())
def test_any_split(data: st.DataObject) -> None:
    """Wherever the network cuts the bytes of a server, and those of the body, a page reads the same text."""
    pieces = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8))
    newline = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    ascii_only = data.draw(st.booleans())
    events = [json.dumps(chunk(content=piece), ensure_ascii=ascii_only) for piece in pieces]
    events += [json.dumps(chunk("stop")), "[DONE]"]
    upstream = "".join(f"data: {event}{newline}{newline}" for event in events).encode()
    places = st.lists(st.integers(0, len(upstream)), max_size=20)
    sent = b"".join(sse(stream_of(chunks_of(cut(upstream, data.draw(places))))))
    seen = read(cut(sent, data.draw(places)))
    assert seen.done
    assert seen.text == "".join(pieces)


def test_openai_is_unchanged() -> None:
    """What is OpenAI's form already goes on as it came, with all the fields that nobody here knows."""
    calls = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": ""}},
        {"index": 0, "function": {"arguments": ' "Oslo"}'}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    chunks = [
        {**chunk(role="assistant", content="", refusal=None), "system_fingerprint": "fp_1", "obfuscation": "xyz"},
        chunk(content="Grüß Gott", choice={"logprobs": {"content": []}}),
        *(chunk(tool_calls=[call]) for call in calls),
        {**chunk("tool_calls"), "usage": None},
        {**ENVELOPE, "choices": [], "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}},
    ]
    assert said(*chunks, usage="own_chunk") == chunks


def test_usage_on_the_last_chunk() -> None:
    """By default the usage is on the last chunk, wherever the server put it."""
    trailing = {**ENVELOPE, "choices": [], "usage": USAGE}
    on_finish = {**chunk("stop"), "usage": USAGE}
    groq = {**chunk("stop"), "x_groq": {"id": "req_1", "usage": USAGE}}
    for ending in ([chunk("stop"), trailing], [on_finish], [groq]):
        objects = said(chunk(content="one"), *ending)
        assert len(objects) == 2
        assert objects[-1]["usage"] == USAGE
        assert objects[-1]["choices"][0]["finish_reason"] == "stop"


def test_running_counts() -> None:
    """Counts on every chunk go on as they are; those on the last chunk are the final ones, wherever they came."""
    running = {**USAGE, "completion_tokens": 1}
    objects = said(
        {**chunk(content="one"), "usage": running},
        {**chunk("stop"), "usage": running},
        {**chunk("stop", choice={"index": 1}), "usage": None},
        {**ENVELOPE, "choices": [], "usage": USAGE},
        n=2,
    )
    assert [each.get("usage") for each in objects] == [running, running, USAGE]


def test_usage_in_its_own_chunk() -> None:
    """If asked for the usage is in a chunk without choices, wherever the server put it, and once."""
    trailing = {**ENVELOPE, "choices": [], "usage": USAGE}
    for ending in ([chunk("stop"), trailing], [{**chunk("stop"), "usage": USAGE}]):
        *others, last = said(chunk(content="one"), *ending, usage="own_chunk")
        assert last == trailing
        assert not any(each.get("usage") for each in others)
    assert len(said(chunk(content="one"), chunk("stop"), usage="own_chunk")) == 2  # none to tell


def test_thinking_in_parts() -> None:
    """Mistral's content in parts is one text, with the thoughts beside it, and references are kept."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Six times"}]}
    reference = {"type": "reference", "reference_ids": [1]}
    spoken = {"type": "text", "text": "Forty"}
    assert deltas(
        chunk(content=[thinking]), chunk(content=[spoken]), chunk(content="-two"), chunk(content=[spoken, reference])
    ) == [
        {"content": "", "reasoning_content": "Six times"},
        {"content": "Forty"},
        {"content": "-two"},
        {"content": "Forty", "content_parts": [spoken, reference]},
    ]


def test_thoughts_in_a_field() -> None:
    """Thoughts that a server sends in a field of their own stay there."""
    own = [chunk(reasoning="Hm."), chunk(reasoning_content="Hm."), chunk(content="Yes.")]
    assert deltas(*own) == [each["choices"][0]["delta"] for each in own]


def test_thoughts_between_tags() -> None:
    """Thoughts that the client took out of the text are beside it, and the tags are gone."""
    from chanstream.wire.thinking import ThinkingMachine

    data = [chunk(content="<think>Hm"), chunk(content="m.</think>Y"), chunk(content="es."), chunk("stop")]
    machine = ThinkingMachine(0.0)
    chunks = machine.feed(b"".join(b"data: %b\n\n" % encoded(each) for each in data), 0.0) + machine.eof(0.0)
    relayed = chunks_of([b"".join(sse(stream_of(chunks)))])
    assert assembled(relayed).text == "Yes."
    assert assembled(relayed).reasoning == "Hmm."


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        pytest.param(
            [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
            [{"id": "a", "index": 0, "function": {"name": "f", "arguments": '{"x": 1}'}}],
            id="no index, and an object of arguments",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
                {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
            ],
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
                {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
            ],
            id="parallel calls that share an index",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
                {"index": 0, "id": "null", "function": {"name": "", "arguments": "}"}},
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
            ],
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
                {"index": 0, "function": {"arguments": "}"}},
                {"index": 0, "function": {"arguments": ""}},
            ],
            id="id and name repeated, or null",
        ),
        pytest.param(
            [{"index": 0, "id": "a", "function": None}, {"index": 0, "function": {"name": "f", "arguments": None}}],
            [
                {"index": 0, "id": "a", "function": {"arguments": ""}},
                {"index": 0, "function": {"name": "f", "arguments": ""}},
            ],
            id="nulls",
        ),
    ],
)
def test_fragments_of_tool_calls(fragments: list[Any], expected: list[Any]) -> None:
    """However a server numbers and names fragments of calls, they come numbered by call, id and name once."""
    assert [
        call for delta in deltas(*(chunk(tool_calls=[each]) for each in fragments)) for call in delta["tool_calls"]
    ] == expected


def test_a_whole_answer_in_place_of_a_stream() -> None:
    """Where a server answers a request for a stream with a whole answer the body is a stream all the same."""
    message = {"role": "assistant", "content": "All at once."}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "a-model", "usage": USAGE}
    answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    (only,) = said(answer)
    assert only == {**answer, **chunk("stop", **message)}


def test_no_finish_reason() -> None:
    """An end without a finish reason is an end without one, and its usage is not lost."""
    objects = said(chunk(content="one"), {**ENVELOPE, "choices": [], "usage": USAGE})
    assert [each["choices"][0]["finish_reason"] for each in objects if each["choices"]] == [None] * len(objects)
    assert objects[-1]["usage"] == USAGE


def test_lacking_fields() -> None:
    """What a server leaves out of a chunk is there, so that no reader stumbles."""
    (only,) = said({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})
    assert only == {**chunk("stop", content="x"), "id": "", "created": 0, "model": ""}


def test_lines() -> None:
    """An object is one line for every reader, also for those that take more characters for line ends than the web."""
    text = "a\u0085b\u2028c\u2029d\ne\rf"
    line = encoded({"text": text})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == {"text": text}


def test_numbers_that_are_none() -> None:
    """NaN and the like, which some servers send and browsers do not read, are null."""
    assert json.loads(encoded({"logprob": float("-inf"), "x": [float("nan")]})) == {"logprob": None, "x": [None]}


def test_a_plain_chunk_costs_no_look_at_its_choices() -> None:
    """A piece of text goes on as it is, and its choices are not even made."""
    piece, *_ = chunks_of([b"data: %b\n\n" % encoded(chunk(content=text)) for text in "xyz"])
    assert list(Wording().objects(piece)) == [piece.raw]
    assert piece.piece == "x"


def test_whole_answers() -> None:
    """A whole answer in parts is one text with the thoughts beside it, calls have their arguments as text."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    call = {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    message = {"role": "assistant", "content": [thinking, {"type": "text", "text": "Yes."}], "tool_calls": [call]}
    raw = {**ENVELOPE, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    answer = ChatCompletionResponse.from_dict(raw)
    object.__setattr__(answer, "raw", raw)
    told = whole(answer)
    assert told["object"] == "chat.completion"
    assert told["usage"] == USAGE
    assert told["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    }
    assert whole(ChatCompletionResponse.from_dict(raw))["choices"] == told["choices"]  # as one from a cache


def test_whole_answers_of_openai() -> None:
    """A whole answer in OpenAI's form goes on as it came."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}]
    raw = {**ENVELOPE, "object": "chat.completion", "choices": choices, "usage": USAGE, "service_tier": "default"}
    answer = ChatCompletionResponse.from_dict(raw)
    object.__setattr__(answer, "raw", raw)
    assert whole(answer) == raw

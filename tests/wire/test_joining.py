"""Joining the parts of an answer: nothing lost, nothing twice, wherever it is cut and however the next part begins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    APITimeoutError,
    ChanstreamError,
    EventTooLargeError,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
)
from chanstream.models.chunk import CompletionChunk, piece_of
from chanstream.wire.joining import Joint

TRIES = 3


def data(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return the JSON object of a chunk."""
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def text(piece: str, latency: float = 0.25) -> CompletionChunk:
    """Return a chunk of text, as it comes from the wire."""
    chunk = piece_of(data(content=piece))
    assert chunk is not None
    chunk.chunk_latency = latency
    return chunk


def other(finish: str | None = None, **delta: Any) -> CompletionChunk:
    """Return a chunk of another kind."""
    chunk = CompletionChunk.from_dict(data(finish, **delta))
    chunk.chunk_latency = 0.25
    return chunk


def last(**delta: Any) -> CompletionChunk:
    """Return a last chunk."""
    chunk = other("stop", **delta)
    chunk.is_last_chunk = True
    return chunk


def cut(error: ChanstreamError | None = None) -> CompletionChunk:
    """Return the chunk that ends a part with an error."""
    return CompletionChunk(error=error or StreamInterruptedError("cut"), chunk_latency=0.5)


def joined(*chunks: CompletionChunk, tries: int = TRIES) -> list[CompletionChunk]:
    """Return what comes out for these chunks."""
    joint = Joint(tries)
    return [passed for chunk in chunks for passed in joint.feed(chunk)]


def said(chunks: list[CompletionChunk]) -> str:
    """Return the text, which is the same in the JSON."""
    words = "".join(chunk.text for chunk in chunks)
    assert words == "".join(CompletionChunk.from_dict(chunk.raw).text for chunk in chunks)
    return words


def pieces(whole: str, size: int) -> list[CompletionChunk]:
    """Return a text as chunks of so many characters."""
    return [text(whole[at : at + size]) for at in range(0, len(whole), size)]


STORY = "Once \n upon a time,  there was\n\na wire."


class TestEveryCut:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "not repeated"])
    def test_the_text_is_whole(self, size: int, repeats: bool) -> None:
        """Wherever a text is cut, and however the rest is split, it comes out whole and once."""
        for at in range(1, len(STORY)):
            prefix = STORY[:at].rstrip()
            rest = STORY if repeats else STORY[len(prefix) :]  # models make the blanks anew
            out = joined(*pieces(STORY[:at], 5), cut(), other(role="assistant"), *pieces(rest, size), last())
            assert said(out) == STORY, at
            assert out[-1].is_last_chunk

    @pytest.mark.parametrize("size", [1, 3, 100])
    @pytest.mark.parametrize("repeats", [True, False], ids=["repeated", "not repeated"])
    def test_two_cuts(self, size: int, repeats: bool) -> None:
        """A second cut, also in the middle of the repetition, changes nothing."""
        for at in range(1, len(STORY)):
            rest = STORY if repeats else STORY[len(STORY[:at].rstrip()) :]
            for length in range(len(rest)):
                joint = Joint(TRIES)
                out = [chunk for piece in pieces(STORY[:at], 4) for chunk in joint.feed(piece)]
                for chunk in (cut(), *pieces(rest[:length], size), cut()):
                    out += joint.feed(chunk)
                prefix = joint.prefix
                assert STORY.startswith(prefix)
                for chunk in (*pieces(STORY if repeats else STORY[len(prefix) :], size), last()):
                    out += joint.feed(chunk)
                assert said(out) == STORY, (at, length)

    @given(st.text("ab \n", min_size=1), st.text("ab \n"), st.integers(1, 5))
    def test_a_text_that_repeats_itself(self, before: str, after: str, size: int) -> None:
        """Where the server repeats, so does not matter whether the text itself does."""
        whole = before + after
        if before.strip():
            assert said(joined(text(before), cut(), *pieces(whole, size), last())) == whole

    @given(st.text("abc", min_size=1), st.text("abc "), st.integers(1, 5))
    def test_what_is_no_repetition(self, before: str, after: str, size: int) -> None:
        """Text that begins as the text so far, but is not all of it, is handed on."""
        if not after.startswith(before):
            assert said(joined(text(before), cut(), *pieces(after, size), last())) == before + after


class TestTheSeam:
    def test_the_end_in_a_repeating_chunk(self) -> None:
        """A whole answer in one chunk, repetition, rest and end, gives the rest and the end."""
        out = joined(text("Once upon"), cut(), last(content="Once upon a time"))
        assert [chunk.text for chunk in out] == ["Once upon", " a time"]
        assert out[-1].choices[0].finish_reason == out[-1].raw["choices"][0]["finish_reason"] == "stop"

    def test_only_the_repetition(self) -> None:
        """An answer that was whole already, but for its end, ends well."""
        assert [chunk.text for chunk in joined(text("Done."), cut(), text("Done."), last())] == ["Done.", ""]

    def test_an_end_in_the_middle(self) -> None:
        """An answer that ends before it has repeated all has not repeated anything."""
        assert said(joined(text("Ha ha"), cut(), text("Ha"), last())) == "Ha haHa"

    def test_a_final_error_in_the_middle(self) -> None:
        """The beginning of a repetition that an error ends is left out: the text so far is a beginning of the whole."""
        out = joined(text("Once upon"), cut(), text("Once"), cut(StreamAPIError("overloaded")))
        assert said(out) == "Once upon"
        assert isinstance(out[-1].error, StreamAPIError)

    def test_a_second_beginning(self) -> None:
        """That the assistant begins to speak is said once; what else comes beside the text is kept."""
        thought = other(reasoning_content="Hm.")
        out = joined(other(role="assistant", content=""), text("A"), cut(), other(role="assistant"), thought, last())
        assert [chunk.raw["choices"][0]["delta"] for chunk in out] == [
            {"role": "assistant", "content": ""},
            {"content": "A"},
            {"reasoning_content": "Hm."},
            {},
        ]

    def test_beside_a_repetition(self) -> None:
        """What comes in one chunk with repeated text stays, without that text, in its place."""
        out = joined(text("A B"), cut(), other(content="A ", reasoning="Hm."), text("B C"), last())
        assert [(chunk.text, chunk.reasoning) for chunk in out] == [("A B", ""), ("", "Hm."), (" C", ""), ("", "")]

    def test_content_in_parts(self) -> None:
        """A content of several parts loses the repeated text, and no other part."""
        reference = {"type": "reference", "reference_ids": [1]}
        parts = [{"type": "text", "text": "On"}, reference, {"type": "text", "text": "ce up"}]
        out = joined(other(content=[{"type": "text", "text": "Once"}]), cut(), other(content=parts), last())
        assert [chunk.text for chunk in out] == ["Once", " up", ""]
        assert out[1].raw["choices"][0]["delta"]["content"] == [reference, {"type": "text", "text": " up"}]
        assert out[1].to_dict() == out[1].raw

    def test_what_was_looked_at(self) -> None:
        """A chunk that has lost text says the same in all its parts."""
        (_, chunk, _) = joined(text("Once"), cut(), text("Once upon"), last())
        assert (chunk.text, chunk.delta_message().text, chunk.choices[0].delta.content) == (" upon",) * 3


class TestLatencies:
    def test_they_add_up(self) -> None:
        """The time that the cut took, and that of chunks left out, is in the latency of the next one handed on."""
        out = joined(text("A"), cut(), other(role="assistant"), text("A", 1.0), text("B"), last())
        assert [chunk.chunk_latency for chunk in out] == [0.25, 0.5 + 0.25 + 1.0 + 0.25, 0.25]
        assert out[-1].total_latency == sum(chunk.chunk_latency for chunk in out)

    def test_those_of_an_error(self) -> None:
        """So it is when an error ends it, in the middle of a repetition too."""
        out = joined(text("AB"), cut(), text("A"), cut(), text("A"), cut(StreamDecodeError("no chat stream")))
        assert [chunk.chunk_latency for chunk in out] == [0.25, 0.5 + 0.25 + 0.5 + 0.25 + 0.5]
        assert out[-1].total_latency == sum(chunk.chunk_latency for chunk in out)


class TestWhatIsNoCut:
    @pytest.mark.parametrize(
        "error",
        [
            StreamAPIError("refused"),
            StreamCancelledError("cancelled"),
            StreamDecodeError("no chat stream"),
            EventTooLargeError("too large"),
            StreamError("chanstream failed"),
            APITimeoutError(clock="total"),
            APITimeoutError(clock="context"),
        ],
        ids=repr,
    )
    def test_other_errors(self, error: ChanstreamError) -> None:
        """What is not a cut ends the stream."""
        assert joined(text("A"), cut(error))[-1].error is error

    @pytest.mark.parametrize(
        "error",
        [StreamTruncatedError("short"), APITimeoutError(clock="idle"), APITimeoutError(clock="first_chunk")],
        ids=repr,
    )
    def test_cuts(self, error: ChanstreamError) -> None:
        """A body that ends too early is a cut, and so is silence."""
        assert len(joined(text("A"), cut(error))) == 1

    @pytest.mark.parametrize(
        "before",
        [
            [],
            [text(""), text(" \n")],
            [other(reasoning_content="Hm.")],
            [text("A"), other(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{"}}])],
            [text("A"), other(function_call={"name": "f"})],
            [text("A"), other(content=None, refusal="No")],
            [text("A"), CompletionChunk.from_dict({"choices": [{"index": 1, "delta": {"content": "B"}}]})],
            [text("A"), other("stop")],
        ],
        ids=["nothing", "blanks", "thoughts", "tool call", "function call", "refusal", "second choice", "finished"],
    )
    def test_what_cannot_be_gone_on_with(self, before: list[CompletionChunk]) -> None:
        """Without text so far, or with more than text, a cut ends the stream."""
        assert joined(*before, cut())[-1].error is not None

    def test_tries(self) -> None:
        """There are so many tries; the last cut ends the stream."""
        cuts = [cut(StreamInterruptedError(str(number))) for number in range(TRIES + 1)]
        *before, end = joined(*(chunk for one in cuts for chunk in (text("A"), one)))
        assert end is cuts[-1]
        assert len(before) == 1  # the others are what the server would repeat

    def test_a_cut_that_was_not_made_good(self) -> None:
        """An error that comes a second time, because nobody could ask for the rest, ends the stream."""
        joint, error = Joint(TRIES), StreamInterruptedError("cut")
        joint.feed(text("A"))
        assert joint.feed(cut(error)) == []
        assert joint.cut is error
        (end,) = joint.feed(cut(error))
        assert end.error is error
        assert joint.cut is None
        assert end.total_latency == 0.25 + 0.5 + 0.5

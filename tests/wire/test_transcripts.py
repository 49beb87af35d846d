"""The captured responses of real servers, replayed through the machine without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chanstream.errors import StreamInterruptedError
from chanstream.wire.assembly import Assembler
from chanstream.wire.machine import StreamMachine
from tests.data.transcripts import FOLDER, Transcript, answers, body, pieces, transcripts, usage

if TYPE_CHECKING:
    from chanstream import CompletionChunk

WHOLE = 1 << 30
SPLITS = pytest.mark.parametrize("split", [1, 7, 64, WHOLE], ids=["1", "7", "64", "whole"])
STREAMS = pytest.mark.parametrize("transcript", transcripts("stream", "answer"), ids=lambda transcript: transcript.name)


def replay(transcript: Transcript, split: int) -> list[CompletionChunk]:
    """Return what the machine makes of the body, fed in pieces of ``split`` bytes."""
    content_type, data, whole = body(transcript.raw)
    machine = StreamMachine(0.0, content_type=content_type, n=transcript.n)
    chunks = []
    for at in range(0, len(data), split):
        chunks += machine.feed(data[at : at + split], at / 1000)
    now = len(data) / 1000
    return chunks + (machine.eof(now) if whole else machine.fail(StreamInterruptedError("connection lost"), now))


def outline(chunk: CompletionChunk) -> tuple[Any, ...]:
    """Return everything about a chunk that must not depend on how the bytes were split."""
    return chunk.raw, chunk.is_last_chunk, chunk.text, usage(chunk), type(chunk.error), str(chunk.error)


def test_every_capture_has_its_expectation() -> None:
    """No capture is left out of `expected.json`, and nothing in it lacks its capture."""
    captured = {f"{path.parent.name}/{path.name}" for path in FOLDER.glob("*/*.http")}
    expected = {transcript.name for transcript in transcripts("stream", "answer", "refusal")}
    assert expected == captured
    assert len(captured) == 192


@SPLITS
@STREAMS
def test_replay_gives_what_the_server_meant(transcript: Transcript, split: int) -> None:
    """Text, reasoning, tool calls, finish reasons and usage are the server's, none merged and none lost."""
    chunks = [chunk for chunk in replay(transcript, split) if not chunk.error]
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    assert answers(assembler.response()) == transcript.answers
    assert usage(assembler.response()) == transcript.usage
    assert pieces(chunks) == transcript.pieces


@SPLITS
@STREAMS
def test_replay_has_exactly_one_end(transcript: Transcript, split: int) -> None:
    """The final chunk alone ends the stream: with the usage where all went well, else with the right error."""
    *others, final = replay(transcript, split)
    assert not any(chunk.is_last_chunk or chunk.error for chunk in others)
    if transcript.error is None:
        assert (final.is_last_chunk, final.error) == (True, None)
        assert final.choices
        assert usage(final) == transcript.usage
    else:
        assert (final.is_last_chunk, type(final.error).__name__) == (False, transcript.error["class"])
        assert str(final.error)
        assert (transcript.error["message"] or "") in str(final.error)


@STREAMS
def test_every_split_gives_the_same_chunks(transcript: Transcript) -> None:
    """Chunks do not depend on where the network happened to cut the bytes."""
    whole = [outline(chunk) for chunk in replay(transcript, WHOLE)]
    for split in (1, 7, 64):
        assert [outline(chunk) for chunk in replay(transcript, split)] == whole

"""The captured responses of real servers, sent again byte for byte over real sockets."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from chanstream import APIStatusError, ChanstreamError, ChatCompletionRequest, Client, Retry, UserMessage
from chanstream.testing import Reply, StreamServer
from tests.data.transcripts import Transcript, answers, pieces, transcripts, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = 10_000  # a write of its own for every byte is affordable up to here


def every(*kinds: str) -> pytest.MarkDecorator:
    """Return the mark that runs a test once for each transcript of these kinds."""
    return pytest.mark.parametrize("transcript", transcripts(*kinds), ids=lambda transcript: transcript.name)


def every_split(*kinds: str) -> pytest.MarkDecorator:
    """Return the mark that runs a test for each transcript of these kinds, in writes of several sizes."""
    cases = [
        pytest.param(transcript, split, id=f"{transcript.name}-{split or 'whole'}")
        for transcript in transcripts(*kinds)
        for split in (1, 64, None)
        if split != 1 or len(transcript.raw) < SMALL
    ]
    return pytest.mark.parametrize(("transcript", "split"), cases)


@contextmanager
def served(transcript: Transcript, split: int | None = None) -> Iterator[Client]:
    """Give a client whose server sends this transcript, in writes of ``split`` bytes, and then hangs up."""
    with (
        StreamServer(Reply(raw=transcript.raw, split=split, end="cut")) as server,
        Client(api_key="test-key", base_url=server.url, dialect="openai", retry=Retry(max_retries=0)) as client,
    ):
        yield client


def asked(transcript: Transcript) -> ChatCompletionRequest:
    """Return a request for as many choices as the captured one asked for."""
    return ChatCompletionRequest("m", [UserMessage("hi")], n=transcript.n)


@every_split("stream", "answer")
def test_iteration_ends_once_and_as_the_server_meant(transcript: Transcript, split: int | None) -> None:
    """The loop sees every text and exactly one end: the last chunk with the usage, or the right error."""
    with served(transcript, split) as client, client.chat_completion_stream(asked(transcript)) as stream:
        *others, final = stream
    assert not any(evt.is_last_chunk or evt.error for evt in others)
    assert pieces([*others, final]) == transcript.pieces
    if transcript.error is None:
        assert (final.is_last_chunk, final.error) == (True, None)
        assert usage(final) == transcript.usage
    else:
        assert (final.is_last_chunk, type(final.error).__name__) == (False, transcript.error["class"])
        assert str(final.error)
        assert (transcript.error["message"] or "") in str(final.error)


@every_split("stream", "answer")
def test_collect_gives_what_the_server_meant(transcript: Transcript, split: int | None) -> None:
    """The collected answer is the server's; where an error ends it, that error carries what came before."""
    with served(transcript, split) as client:
        stream = client.chat_completion_stream(asked(transcript))
        if transcript.error is None:
            response = stream.collect()
        else:
            with pytest.raises(ChanstreamError) as caught:
                stream.collect()
            assert caught.typename == transcript.error["class"]
            response = caught.value.partial  # type: ignore[attr-defined]
    assert answers(response) == transcript.answers
    assert usage(response) == transcript.usage


@every("answer")
def test_plain_call_gives_what_the_server_meant(transcript: Transcript) -> None:
    """A call that does not stream reads the captured JSON answers."""
    with served(transcript) as client:
        response = client.chat_completion(asked(transcript))
    assert answers(response) == transcript.answers
    assert usage(response) == transcript.usage


@pytest.mark.parametrize("method", ["chat_completion", "chat_completion_stream"])
@every("refusal")
def test_refusal_is_raised_in_the_words_of_the_server(transcript: Transcript, method: str) -> None:
    """A bad head raises the error of its status, with the server's text in it, before anything is streamed."""
    assert transcript.error is not None
    with served(transcript) as client, pytest.raises(APIStatusError) as caught:
        getattr(client, method)(asked(transcript))
    assert caught.typename == transcript.error["class"]
    assert caught.value.status_code == transcript.status
    assert transcript.error["message"] in str(caught.value)

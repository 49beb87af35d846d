"""Promise 6: tokens are prompt. Bytes are handed on as they arrive, whatever the framing and the coding of the body."""

from __future__ import annotations

import gzip
import time
import zlib
from typing import get_args

import attrs
import pytest

from chanstream import Client, StreamDecodeError
from chanstream.testing import Reply
from chanstream.testing.reply import Compression, Framing
from tests.conftest import REQUEST, USUALLY, Link

pytestmark = pytest.mark.usefixtures("nothing_left")

DELAY = 0.4 * USUALLY
"""Seconds that a token may take from the server to the consumer."""

FRAMINGS = pytest.mark.parametrize("framing", get_args(Framing))
CODINGS = pytest.mark.parametrize("compress", [None, *get_args(Compression)], ids=lambda coding: coding or "identity")

PACE = 0.04
SCHEDULE = Reply("one two three", first_delay=0.04, pace=PACE, done=False)
"""One event each 40 ms, the first no earlier than 40 ms after the request: what comes later than that is late."""


def worst_delay(client: Client) -> float:
    """Return how long after its time the latest token of the schedule came: sending the request counts, too."""
    begun = time.monotonic()
    late = []
    for number, chunk in enumerate(client.chat_completion_stream(REQUEST), start=1):
        late.append(time.monotonic() - begun - number * PACE)
        assert chunk.error is None
    assert len(late) == 4
    assert min(late) > 0  # the schedule is real: nothing can come before its time
    return max(late)


@FRAMINGS
@CODINGS
class TestEveryFramingAndCoding:
    def test_tokens_come_on_time(self, link: Link, framing: Framing, compress: Compression | None) -> None:
        """Every token is with the consumer less than 20 ms after its time."""
        reply = attrs.evolve(SCHEDULE, framing=framing, compress=compress)
        client = link.client(link.serve(Reply("warm up"), reply))
        assert client.chat_completion_stream(REQUEST).collect().text == "warm up"  # import and handshake are no delay
        # A machine that is busy for a moment is late once; a library that gathers bytes is late each time.
        assert any(worst_delay(client) < DELAY for _ in range(20))

    def test_nothing_is_held_back(self, link: Link, framing: Framing, compress: Compression | None) -> None:
        """The tokens that were sent are there to be taken though the server says nothing more."""
        stream = link.stream(Reply("one two three", framing=framing, compress=compress, stall_after=2))
        assert [stream.get(timeout=5).text for _ in range(2)] == ["one", " two"]

    @pytest.mark.parametrize("split", [1, 7, None], ids=["byte by byte", "in sevens", "an event each"])
    def test_any_split_gives_the_same(
        self, plain: Link, framing: Framing, compress: Compression | None, split: int | None
    ) -> None:
        """Pieces of any size make the same text, usage and end."""
        reply = Reply("Grüße, 世界, and a € sign", framing=framing, compress=compress, split=split)
        answer = plain.stream(reply).collect()
        assert answer.text == "Grüße, 世界, and a € sign"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6


class TestCoding:
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_identity_is_asked_for(self, link: Link, streaming: bool) -> None:
        """No compression is asked for, because compressing proxies gather tokens."""
        server = link.serve("one")
        client = link.client(server)
        if streaming:
            client.chat_completion_stream(REQUEST).collect()
        else:
            client.chat_completion(REQUEST)
        assert server.requests[0].headers["Accept-Encoding"] == "identity"

    @pytest.mark.parametrize(
        ("coding", "compressed"),
        [
            ("gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate", lambda data: zlib.compress(data)[2:-4]),  # without zlib's frame, as some servers understand it
            ("gzip, deflate", lambda data: zlib.compress(gzip.compress(data))),
        ],
        ids=["gzip", "deflate", "bare deflate", "both"],
    )
    @FRAMINGS
    def test_a_body_compressed_as_a_whole(self, link: Link, framing: Framing, coding: str, compressed: object) -> None:
        """A body that was compressed in one go, and not event by event, works."""
        body = b'data: {"choices":[{"delta":{"content":"packed"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        assert callable(compressed)
        reply = Reply(body=compressed(body), framing=framing, headers={"Content-Encoding": coding})
        assert link.stream(reply).collect().text == "packed"

    def test_a_broken_compression(self, link: Link) -> None:
        """A body that is not compressed as its head says ends the stream with an error, in band."""
        reply = Reply(body=b"data: this is no gzip\n\n" * 10, headers={"Content-Encoding": "gzip"})
        (chunk,) = link.stream(reply)
        assert isinstance(chunk.error, StreamDecodeError)

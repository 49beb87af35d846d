"""The body of an HTTP/1.1 answer: every framing, every split, and framings that lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream.wire.body import Body, BodyError, Chunked, body_of

PARTS = [b"hello", b"x" * 300, b"\r\n\r\n", b"1", b"0\r\n\r\n"]


def chunked(parts: list[bytes], extension: bytes = b"", trailers: bytes = b"", eol: bytes = b"\r\n") -> bytes:
    """Return parts in chunked coding, each a chunk of its own."""
    chunks = b"".join(b"%x%s%s%s\r\n" % (len(part), extension, eol, part) for part in parts)
    return chunks + b"0" + extension + eol + trailers + b"\r\n"


def byte_by_byte(body: Body, wire: bytes) -> bytes:
    """Return the payload of a body that comes byte by byte; fails if it is done before the last."""
    payload = b""
    for position in range(len(wire)):
        assert not body.done
        payload += body.feed(wire[position : position + 1])
    return payload


CODINGS = {
    "plain": chunked(PARTS),
    "extensions": chunked(PARTS, extension=b';name="value"'),
    "spaces": chunked(PARTS, extension=b"  "),
    "trailers": chunked(PARTS, trailers=b"X-One: 1\r\nX-Two: 2\r\n"),
    "bare LF after sizes": chunked(PARTS, eol=b"\n"),
    "upper case": chunked(PARTS).replace(b"12c", b"12C"),
    "zeros before": b"000" + chunked(PARTS),
}


@pytest.mark.parametrize("wire", CODINGS.values(), ids=CODINGS)
def test_every_split_in_three(wire: bytes) -> None:
    """A chunked body gives the same payload however its bytes are cut, and knows its end."""
    for first in range(0, len(wire) + 1, 3):
        for second in range(first, len(wire) + 1):
            body = Chunked()
            payload = body.feed(wire[:first]) + body.feed(wire[first:second]) + body.feed(wire[second:])
            assert payload == b"".join(PARTS)
            assert body.done
            assert not body.spoilt


@pytest.mark.parametrize("wire", CODINGS.values(), ids=CODINGS)
def test_byte_by_byte(wire: bytes) -> None:
    """A chunked body gives the same payload byte by byte, and is done with the last byte and not before."""
    body = Chunked()
    assert byte_by_byte(body, wire) == b"".join(PARTS)
    assert body.done


@given(parts=st.lists(st.binary(min_size=1, max_size=50), max_size=8), cuts=st.lists(st.integers(0, 600), max_size=6))
def test_any_payload_and_split(parts: list[bytes], cuts: list[int]) -> None:
    """Any payload comes out of its chunked coding as it went in."""
    wire = chunked(parts)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    body = Chunked()
    assert b"".join(body.feed(wire[a:b]) for a, b in itertools.pairwise(edges)) == b"".join(parts)
    assert body.done


def test_payload_is_not_held_back() -> None:
    """What has come of a chunk is given at once, though the chunk is not whole."""
    body = Chunked()
    assert body.feed(b"a\r\nhel") == b"hel"
    assert body.feed(b"lo") == b"lo"


@pytest.mark.parametrize(
    "wire",
    [b"zz\r\n", b"\r\n", b"-5\r\n", b"+5\r\n", b"0x5\r\n", b"5_0\r\n", b"g\r\n", b"11111111111111111\r\n"],
)
def test_what_is_no_size(wire: bytes) -> None:
    """A line that is no chunk size is an error that shows it."""
    with pytest.raises(BodyError, match="chunk size"):
        Chunked().feed(wire)


@pytest.mark.parametrize("wire", [b"5\r\nhelloX\r\n", b"5\r\nhello\rX", b"5\r\nhello\n\n", b"2\r\nhello\r\n"])
def test_sizes_that_lie(wire: bytes) -> None:
    """A chunk that does not end where its size says is an error, whole and byte by byte."""
    with pytest.raises(BodyError, match="longer than its size"):
        Chunked().feed(wire)
    with pytest.raises(BodyError, match="longer than its size"):
        byte_by_byte(Chunked(), wire)


def test_lines_without_end() -> None:
    """A size line, a trailer or trailers without end are errors before they fill the memory."""
    with pytest.raises(BodyError, match="no end"):
        Chunked().feed(b"5;" + b"x" * 20_000)
    body = Chunked()
    body.feed(b"0\r\n")
    with pytest.raises(BodyError, match="no end"):
        byte_by_byte(body, (b"X: " + b"y" * 1000 + b"\r\n") * 100)


@pytest.mark.parametrize("wire", [b"", b"5", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n"])
def test_a_chunked_body_that_is_cut(wire: bytes) -> None:
    """The end of the connection before the last chunk is an error."""
    body = Chunked()
    body.feed(wire)
    with pytest.raises(BodyError, match="last chunk"):
        body.eof()


def test_what_follows_the_end() -> None:
    """Bytes after the end are told, and are no payload."""
    body = Chunked()
    assert body.feed(chunked([b"one"]) + b"HTTP/1.1 200 OK") == b"one"
    assert body.done
    assert body.spoilt


def test_a_length() -> None:
    """A body with a length ends after so many bytes, and is an error before."""
    body = body_of(5)
    assert body.feed(b"hel") == b"hel"
    with pytest.raises(BodyError, match="2 of 5 bytes"):
        body.eof()
    assert body.feed(b"lo, world") == b"lo"
    assert body.done
    assert body.spoilt
    body.eof()


def test_a_length_of_nothing() -> None:
    """A body of no bytes is done before it has begun."""
    assert body_of(0).done


def test_until_close() -> None:
    """A body without length or chunks ends with its connection."""
    body: Body = body_of("close")
    assert body.feed(b"anything") == b"anything"
    assert not body.done
    body.eof()
    assert body.done

"""The body of an HTTP/1.1 answer, out of the bytes of its connection.

The standard is https://www.rfc-editor.org/rfc/rfc9112#section-6. Three framings: chunked, a length, or until the
connection closes. Feeding gives the payload; many HTTP chunks in one piece of data cost one pass over it.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

_MAX_LINE = 16 * 1024
"""The longest chunk-size line (with its extensions) or trailer that is read: far above any real one."""

_MAX_TRAILERS = 64 * 1024

_MOST_DIGITS = 16

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,%d}(?=[;\s]|$)" % _MOST_DIGITS)
"""A chunk's size; 16 digits are 64 bits. What may follow it is an extension, which nobody needs."""


class BodyError(ValueError):
    """The connection's bytes are no body of the framing that the head announced."""


class Body(Protocol):
    """A body that is being read."""

    done: bool
    """Whether the whole body has been read; what follows belongs to no one."""

    spoilt: bool
    """Whether the connection is of no further use: it ends with the body, or there were bytes after the body."""

    def feed(self, data: bytes) -> bytes:
        """Return the payload in the next bytes of the connection.

        Raises:
            BodyError: They break the framing.
        """

    def eof(self) -> None:
        """Take in the end of the connection.

        Raises:
            BodyError: The body is not complete.
        """


class UntilClose:
    """A body that ends where the connection does."""

    done = False
    spoilt = True

    def feed(self, data: bytes) -> bytes:
        """Return all of it."""
        return data

    def eof(self) -> None:
        """Take in the end, which is the body's."""
        self.done = True


class OfLength:
    """A body of so many bytes."""

    def __init__(self, length: int) -> None:
        self._length = self._left = length
        self.done = length == 0
        self.spoilt = False

    def feed(self, data: bytes) -> bytes:
        """Return what belongs to the body."""
        payload = data[: self._left]
        self.spoilt |= len(payload) < len(data)
        self._left -= len(payload)
        self.done = not self._left
        return payload

    def eof(self) -> None:
        """Raise unless all of it has come."""
        if not self.done:
            raise BodyError(f"{self._left} of {self._length} bytes are missing")


class Chunked:
    """A body in chunks, each behind a line with its size; a chunk of size 0 and trailers end it.

    ``_rest`` holds the start of a line that is not complete; ``_left`` what is missing of the chunk, with the CRLF
    behind it.
    """

    def __init__(self) -> None:
        self.done = False
        self.spoilt = False
        self._rest = b""
        self._left = 0
        self._in_trailers = False
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """Return the payload of the chunks in ``data``."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not (self._left or self._in_trailers):
            # One whole chunk, as it is where tokens come in their own time; the last one has no payload.
            start = data.find(b"\r\n", 0, _MOST_DIGITS + 2) + 2
            size = data[: max(start - 2, 0)]
            is_size = bool(size) and not size.strip(_HEX)
            if is_size and start + int(size, 16) == len(data) - 2 > start and data[-2:] == b"\r\n":
                return data[start:-2]
        pieces: list[bytes] = []
        at = self._take(data, 0, pieces) if self._left else 0
        if not (self._left or self._in_trailers):
            at = _take_many(data, at, pieces)
        while at < len(data):
            if self.done:
                self.spoilt = True
                break
            if self._left:
                at = self._take(data, at, pieces)
                continue
            line_end = data.find(b"\n", at)
            if line_end < 0:
                self._keep(data[at:])
                break
            self._line(data[at:line_end])
            at = line_end + 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def eof(self) -> None:
        """Raise unless the last chunk and the trailers have come."""
        if not self.done:
            raise BodyError("the connection was closed before the last chunk")

    def _take(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what there is of a chunk and the CRLF behind it; return where it ends."""
        payload = self._left - 2
        if payload > 0:
            pieces.append(data[at : at + payload])
        taken = min(self._left, len(data) - at)
        end = data[max(at, at + payload) : at + taken]
        if end != b"\r\n"[2 - self._left if payload < 0 else 0 :][: len(end)]:
            raise BodyError(f"a chunk is longer than its size says: {end!r} in place of its end")
        self._left -= taken
        return at + taken

    def _line(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        if self._in_trailers:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise BodyError("the trailers have no end")
            self.done = not line
            return
        size = _SIZE.match(line)
        if size is None:
            raise BodyError(f"no chunk size: {line[:40]!r}")
        length = int(size[0], 16)
        if length:
            self._left = length + 2
        else:
            self._in_trailers = True

    def _keep(self, rest: bytes) -> None:
        if len(rest) > _MAX_LINE:
            raise BodyError("a line of the chunked coding has no end")
        self._rest = rest


def _take_many(data: bytes, at: int, pieces: list[bytes]) -> int:
    """Take the whole chunks that follow each other from ``at`` on in one pass; return where the last of them ends.

    A server of tokens sends many small chunks without a CRLF in them. Then cutting at every CRLF gives sizes and
    payloads in turn; only if each size is right are they what they seem to be, and else none is taken.
    """
    lines = data[at:].split(b"\r\n")
    count = (len(lines) - 1) // 2  # what follows the last CRLF is not complete
    sizes, payloads = lines[: 2 * count : 2], lines[1 : 2 * count : 2]
    digits = b"".join(sizes)
    if digits.strip(_HEX):
        return at
    try:
        lengths = [int(size, 16) for size in sizes]
    except ValueError:  # an empty line
        return at
    if lengths != [len(payload) for payload in payloads] or 0 in lengths[:-1]:
        return at
    if lengths[-1:] == [0]:  # the end of the body, which is not for here
        digits = digits[: -len(sizes.pop())]
        payloads.pop()
    pieces += payloads
    return at + len(digits) + sum(lengths) + 4 * len(sizes)


_HEX = b"0123456789abcdefABCDEF"


def body_of(framing: Literal["chunked", "close"] | int) -> Body:
    """Return the body of a framing; a number is its length."""
    if framing == "chunked":
        return Chunked()
    return UntilClose() if framing == "close" else OfLength(framing)

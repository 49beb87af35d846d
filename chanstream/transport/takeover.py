"""Taking a connection over from requests and urllib3 once the head of an answer is in.

The one place that knows private attributes of urllib3 and http.client; a test guards each of them. What is taken: the
socket, the bytes that were read ahead with the head (they lie in http.client's buffer, where no selector sees them),
and how the body is framed. What is given back, after the end of the body: a connection that the pool can use again.

What cannot be taken over is left alone: an answer that is compressed, mocked, from a connection that is not of our kind
(a session of the caller's), over TLS within TLS, or from a socket that somebody else watches, as gevent does.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from urllib3.response import HTTPResponse

from ..errors import StreamInterruptedError
from .connection import Cuttable

if TYPE_CHECKING:
    from .source import Source

Framing: TypeAlias = Literal["chunked", "close"] | int
"""How a body is framed: in chunks, until the connection closes, or a number of bytes."""

_BLOCK = 64 * 1024
"""More is slower: the system gives larger buffers as fresh pages, which cost more than the calls that they save."""


class Line:
    """A connection that was taken over.

    Args:
        source: The answer's. raw, sock: urllib3's response, and its socket.
        blocks: Whether it is read by waiting for it alone, and so can be left as it is: blocking.

    Attributes:
        framing: How the body on it is framed.
        is_tls: Whether there is TLS on it.
        wants_write: Whether TLS has to write before it can read (a key update, a renegotiation).

    Thread safety: one thread reads, gives back and closes; `cancel` may be called from any thread.
    """

    def __init__(self, source: Source, raw: Any, sock: Any, *, blocks: bool = False) -> None:
        self._source = source
        self._raw = raw
        self._sock = sock
        self._ahead: Any = raw._fp.fp
        self.framing = _framing(raw._fp)
        self.wants_write = False
        self.is_tls = isinstance(sock, ssl.SSLSocket)
        self._wait: float | None = None
        self._is_back = False
        if not blocks:
            self._wait_at_most(0.0)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return int(self._sock.fileno())

    def read(self, wait: float | None = 0.0) -> bytes | None:
        """Return the bytes that have arrived; None if there are none in time, b"" if the connection has ended.

        Args:
            wait: Seconds to wait for the first; None for as long as it takes.

        Raises:
            StreamInterruptedError: The connection was lost.
        """
        if wait != self._wait:
            self._wait_at_most(wait)
        self.wants_write = False
        try:
            return (self._ahead is not None and self._read_ahead()) or self._sock.recv(_BLOCK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return None
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # that of the wait; the network's has a number
                return None
            raise StreamInterruptedError(f"the connection was lost in the middle of the answer: {error}") from error

    def _wait_at_most(self, wait: float | None) -> None:
        self._sock.settimeout(wait)
        self._wait = wait

    def _read_ahead(self) -> bytes:
        """Return what http.client read beyond the head; b"" if that was nothing, and from then on."""
        ahead, self._ahead = self._ahead, None
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):  # from the socket, if the buffer is empty
            return bytes(ahead.peek(1))
        return b""

    def has_more(self) -> bool:
        """Return whether TLS has read more off the socket, which no selector sees."""
        return self.is_tls and bool(self._sock.pending())

    def give_back(self) -> None:
        """Return the connection to its pool, once: the body was read to its end."""
        if not self._is_back:
            self._is_back = True
            if self._wait is not None:
                self._wait_at_most(None)
            self._raw._fp.close()
            self._raw.release_conn()

    def cancel(self) -> None:
        """Wake whoever watches the connection, and let the rest go."""
        self._source.cancel()

    def close(self) -> None:
        """Close the connection, unless it was given back."""
        self._source.close()


def take_over(source: Source, *, blocks: bool = False) -> Line | None:
    """Return the connection of an answer whose head is in; None if it has to be read in the ordinary way.

    Args:
        source: The answer's.
        blocks: See `Line`.
    """
    raw: Any = source.response.raw
    connection: Any = getattr(raw, "_connection", None)
    if not isinstance(raw, HTTPResponse) or not isinstance(connection, Cuttable):
        return None
    head = raw._fp
    if raw.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    if not isinstance(head, http.client.HTTPResponse) or head.fp is None:
        return None
    sock = head.fp.raw._sock  # type: ignore[attr-defined]  # a buffer over a SocketIO
    if type(sock).__module__ not in ("socket", "ssl"):
        return None
    return Line(source, raw, sock, blocks=blocks)


def _framing(head: http.client.HTTPResponse) -> Framing:
    if head.chunked:
        return "chunked"
    return "close" if head.length is None else head.length

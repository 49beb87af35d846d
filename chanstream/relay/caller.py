"""The caller's end of a WSGI request: its body, read within bounds, and whether the caller is still there.

WSGI has no word for either limit or leaving. A server that has no clock of its own would wait for ever for a body that
is shorter than its length says, and nobody hears of a caller who leaves while nothing is being written. Where the
caller's socket can be found (gunicorn, gevent, uWSGI, werkzeug's and Django's servers, wsgiref) both are done with it
here. Waitress reads a request whole before it hands it on, with clocks of its own, and tells who has left.
"""

from __future__ import annotations

import _socket  # gevent's monkey patching leaves it alone: what is asked here never waits
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ..context import Context
from ..errors import StreamCancelledError
from ..timers import Timer
from .public import PublicError

_BLOCK = 65536
_LINGER = 0.5
"""Seconds for which the body of a request that was refused is read and dropped: a server that closes a connection with
unread bytes in it resets it, and the caller might never see why."""

_LOOK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT if hasattr(_socket, "MSG_DONTWAIT") else 0  # Windows has none


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request is not done; what is answered instead."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.error = PublicError(message, **{"type": "invalid_request_error", **more}, status=status)
        self.headers = dict(headers or {})


class Body:
    """The body of one request.

    Args:
        environ: The request.
        most: The most bytes that it may have.
        seconds: How long it may take to come.
    """

    def __init__(self, environ: Mapping[str, Any], most: int, seconds: float) -> None:
        self._environ = environ
        self._most = most
        self._seconds = seconds
        self._read = 0

    def read(self) -> bytes:
        """Return the body.

        Raises:
            Refusal: It is too large, or too slow, or not what the head says of it.
        """
        length = self._length()
        if length is not None and length > self._most:
            raise self._too_large()
        data = self._in_time(self._most + 1 if length is None else length)
        if len(data) > self._most:
            raise self._too_large()
        if length is not None and len(data) < length:
            raise Refusal(400, f"the body is shorter than its Content-Length: {len(data)} of {length} bytes")
        return data

    def _in_time(self, count: int) -> bytes:
        data = b""
        with cut_after(self._environ, self._seconds) as is_late:
            try:
                data = b"".join(self._blocks(count))
            except Refusal:  # as some servers have it where a body ends too early
                if not is_late():
                    raise
        if is_late():
            raise Refusal(408, f"the body did not come within {self._seconds:g} s: {self._read} bytes did")
        return data

    def dropped(self) -> Iterator[bytes]:
        """Yield nothing, but read what is left of the body, for a moment; to be put behind the answer to a refusal."""
        if socket_of(self._environ) is None:
            return  # nothing would end the wait for what does not come
        with contextlib.suppress(Refusal), cut_after(self._environ, _LINGER):
            for _ in self._blocks((self._length() or 0) - self._read):
                pass
        yield from ()

    def _blocks(self, count: int) -> Iterator[bytes]:
        """Yield so many bytes of the body, in blocks; fewer where it ends before."""
        read = self._environ["wsgi.input"].read
        end = self._read + count
        try:
            while self._read < end and (block := read(min(end - self._read, _BLOCK))):
                self._read += len(block)
                yield block
        except Exception as error:
            raise Refusal(400, "the body could not be read") from error

    def _length(self) -> int | None:
        """Return the length that the head tells; None where the server knows the end of the body by itself."""
        told = self._environ.get("CONTENT_LENGTH") or ""
        if not told and self._environ.get("wsgi.input_terminated"):
            return None
        if not told:
            raise Refusal(411, "the request has no Content-Length")
        if not (told.isascii() and told.isdigit()):
            raise Refusal(400, "the Content-Length is no number")
        return int(told) if len(told) < len(str(2**63)) else 2**63

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is too large: at most {self._most} bytes are taken")


def socket_of(environ: Mapping[str, Any]) -> int | None:
    """Return the descriptor of the caller's socket; None where it cannot be found."""
    body = environ.get("wsgi.input")  # wsgiref's is the socket's file, uWSGI's knows its number
    files = (
        getattr(body, "rfile", None),  # gevent's
        getattr(getattr(body, "_read", None), "__self__", None),  # that of Django's own server
    )
    for found in (environ.get("gunicorn.socket"), environ.get("werkzeug.socket"), body, *files):
        try:
            descriptor: int = found.fileno()  # type: ignore[union-attr]  # whatever has one
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return descriptor
        except (AttributeError, OSError, ValueError):  # none, a file in memory, a closed one
            continue
    return None


@contextlib.contextmanager
def _socket_for(environ: Mapping[str, Any]) -> Iterator[Any]:
    """Give a socket of our own for the caller's connection, or None; the server's may be closed at any time."""
    descriptor = socket_of(environ)
    if descriptor is None:
        yield None
        return
    own = _socket.socket(fileno=os.dup(descriptor))
    try:
        yield own
    finally:
        own.close()


@contextlib.contextmanager
def cut_after(environ: Mapping[str, Any], seconds: float) -> Iterator[Any]:
    """End all reading from the caller after so many seconds; give a function that says whether it was ended."""
    with _socket_for(environ) as caller:
        cut: list[bool] = []

        def end() -> None:
            cut.append(True)
            with contextlib.suppress(OSError):
                caller.shutdown(_socket.SHUT_RD)  # whoever reads sees the end of the body at once

        timer = Timer(end)
        if caller is not None:
            timer.start(time.monotonic() + seconds)
        try:
            yield lambda: bool(cut)
        finally:
            timer.stop()


@contextlib.contextmanager
def caller_context(environ: Mapping[str, Any], heartbeat: float = 15.0) -> Iterator[Context]:
    """Give a context that is cancelled when the caller of a WSGI request leaves, as that of a request is in Go.

    ::

        with caller_context(flask.request.environ) as context:
            stream = client.chat_completion_stream(request, context=context)
        return relay.flask.stream_response(stream)

    It is looked after in the ``with`` block: for the time until a stream's head comes, or a whole answer. From then on
    a body's heartbeat does it. It finds out behind every server that the docs name (waitress tells only with
    ``--channel-request-lookahead 1``); behind one that has no word for it nothing is cancelled.

    Args:
        environ: The request, as WSGI has it.
        heartbeat: Seconds after which to look, again and again.
    """
    context = Context()
    with _leaving(environ) as has_left:

        def look() -> float | None:
            if has_left is None or not has_left():
                return time.monotonic() + heartbeat
            context.cancel(StreamCancelledError("the caller has left"))
            return None

        timer = Timer(look)
        if has_left is not None:
            timer.start(time.monotonic() + heartbeat)
        try:
            yield context
        finally:
            timer.stop()


@contextlib.contextmanager
def _leaving(environ: Mapping[str, Any]) -> Iterator[Callable[[], bool] | None]:
    """Give a function that says whether the caller has left; None where that cannot be found out."""
    told_by_waitress: Callable[[], bool] | None = environ.get("waitress.client_disconnected")
    if told_by_waitress is not None:
        yield told_by_waitress
        return
    with _socket_for(environ) as caller:
        yield partial(_has_left, caller) if caller is not None and _LOOK else None


def _has_left(caller: Any) -> bool:
    try:
        return not caller.recv(1, _LOOK)
    except BlockingIOError:  # there, and has nothing to say
        return False
    except OSError:
        return True

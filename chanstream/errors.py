"""Every exception of chanstream, in one tree.

::

    ChanstreamError
    ├── APIError                        the server answered, and the answer is an error
    │   ├── APIStatusError              by its HTTP status
    │   │   ├── BadRequestError             400
    │   │   ├── AuthenticationError         401
    │   │   ├── PermissionDeniedError       403
    │   │   ├── NotFoundError               404
    │   │   ├── ConflictError               409
    │   │   ├── UnprocessableEntityError    422
    │   │   ├── RateLimitError              429
    │   │   └── InternalServerError         500 and above
    │   └── StreamAPIError              inside a stream that had begun well
    ├── APIConnectionError              no answer: the network, a name, TLS
    │   └── APITimeoutError             one of the clocks ran out; it names its clock
    ├── StreamError                     an answer that began and did not end as it should
    │   ├── StreamInterruptedError      the connection was lost
    │   ├── StreamTruncatedError        a clean end of body, but not of the answer
    │   ├── StreamDecodeError           bytes that are no chat stream
    │   └── EventTooLargeError          one event above ``max_event_bytes``
    ├── StreamCancelledError            somebody cancelled: a context, or ``close()``
    ├── ChannelClosedError              put or get on a channel that is closed
    ├── CacheError                      a cache that cannot be read or written
    ├── JournalError                    a batch's journal that cannot be read or written, or is another's
    └── WorkerLostError                 a process of a batch that ended before it gave a result

All can be pickled, so that they travel back from worker processes. None holds a key or a header of the request.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from .quotas import RateLimits

if sys.version_info >= (3, 13):
    from queue import ShutDown as _ShutDown
else:
    _ShutDown = Exception

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .models.chat import ChatCompletionResponse

Clock: TypeAlias = Literal["connect", "first_chunk", "idle", "total", "context"]


class ChanstreamError(Exception):
    """Base of every error that chanstream raises for what happens at run time.

    Wrong arguments are a plain `TypeError` or `ValueError` that names the field.

    Attributes:
        earlier: Where several servers were asked in turn (see `Failover`), what those before this one failed with.
        others: Where several were at work at a time (see `race` and `TaskGroup`), what the others failed with, in the
            order in which they did. An error that is not of chanstream has it too, where there are any.
    """

    earlier: tuple[ChanstreamError, ...] = ()
    others: tuple[BaseException, ...] = ()


class APIError(ChanstreamError):
    """An error that the server told in its own words.

    Attributes:
        message: The server's text.
        type: The server's word for the kind of error, or None.
        code: The server's code, text or number, or None.
        param: The request's field that the server objects to, or None.
        body: The decoded JSON body, or its text where it is no JSON.
    """

    def __init__(
        self,
        message: str = "",
        *,
        type: str | None = None,  # the wire's word for it
        code: str | int | None = None,
        param: str | None = None,
        body: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.body = body

    @classmethod
    def from_body(cls, body: Any, **more: Any) -> APIError:
        """Return the error that a decoded body (or its bare text) tells, whatever its shape."""
        return cls(**_facts(body), body=body, **more)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


class APIStatusError(APIError):
    """The server refused with an HTTP status of 400 or above.

    ``str(error)`` reads as in the Go client: ``[400] invalid_request_error: extra_forbidden: ... (body.field)``.

    Attributes:
        status_code: The HTTP status.
        headers: The answer's headers.
        request_id: The server's id for the request, or None.
        rate_limits: What is left of the caller's quota.
        retry_after: Seconds that the server asked to wait, or None.
        option: The option of the request that a 400 or 422 names, and what it is called on the wire; or None.
    """

    option: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.status_code = status_code
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.retry_after = retry_after

    @classmethod
    def from_status(cls, status_code: int, body: Any, **more: Any) -> APIError:
        """Return the error of the class that belongs to ``status_code``."""
        fallback = InternalServerError if status_code >= 500 else APIStatusError
        return _BY_STATUS.get(status_code, fallback).from_body(body, status_code=status_code, **more)

    @property
    def request_id(self) -> str | None:
        """The server's id for the request, where it sent one in ``x-request-id`` or a like header."""
        return request_id_in(self.headers)

    @property
    def rate_limits(self) -> RateLimits:
        """What is left of the caller's quota, where the server says."""
        return RateLimits.in_headers(self.headers)

    def __str__(self) -> str:
        said = f"[{self.status_code}] {super().__str__()}".strip()
        if self.option is None or self.option in said:
            return said
        return f"{said} (because of the option {self.option})"


class BadRequestError(APIStatusError):
    """Status 400: the server cannot make sense of the request."""


class AuthenticationError(APIStatusError):
    """Status 401: the key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """Status 403: the key is right and does not allow this."""


class NotFoundError(APIStatusError):
    """Status 404: no such model or path."""


class ConflictError(APIStatusError):
    """Status 409: the request is at odds with the server's state."""


class UnprocessableEntityError(APIStatusError):
    """Status 422: a field of the request has a value that the server does not take."""


class RateLimitError(APIStatusError):
    """Status 429: too many requests or tokens; see ``retry_after``."""


class InternalServerError(APIStatusError):
    """Status 500 and above: the server failed."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


class StreamAPIError(APIError):
    """The server reported an error inside a stream that had begun well.

    Attributes:
        partial: What had arrived before, where ``collect()`` or ``events()`` raised the error; else None.
    """

    partial: ChatCompletionResponse | None = None


class APIConnectionError(ChanstreamError):
    """No answer came: the name, the route, TLS or the connection failed."""


class APITimeoutError(APIConnectionError):
    """One of the clocks ran out.

    Attributes:
        clock: Which: ``"connect"``, ``"first_chunk"``, ``"idle"`` or ``"total"`` of `Timeout`, or
            ``"context"`` for a deadline of the caller's own `Context`.
        seconds: What that clock was set to.
        partial: What had arrived before, where ``collect()`` or ``events()`` raised the error; else None.
    """

    partial: ChatCompletionResponse | None = None

    def __init__(self, message: str = "", *, clock: Clock = "total", seconds: float = 0.0) -> None:
        super().__init__(message or f"{_CLOCKS[clock]} {seconds:g} s (clock: {clock})")
        self.clock = clock
        self.seconds = seconds


_CLOCKS: dict[str, str] = {
    "connect": "no connection within",
    "first_chunk": "no first chunk within",
    "idle": "no further chunk within",
    "total": "not finished within",
    "context": "not finished before the context's deadline of",
}


class StreamError(ChanstreamError):
    """An answer began and did not end as it should.

    Attributes:
        partial: What had arrived before, where ``collect()`` or ``events()`` raised the error; else None.
    """

    partial: ChatCompletionResponse | None = None


class StreamInterruptedError(StreamError):
    """The connection was lost in the middle of the answer."""


class StreamTruncatedError(StreamError):
    """The body ended cleanly, but the answer in it is not complete."""


class StreamDecodeError(StreamError):
    """The body holds something that is no chat stream."""


class EventTooLargeError(StreamError):
    """One event of the stream is larger than ``max_event_bytes``."""


class StreamCancelledError(ChanstreamError):
    """The stream was cancelled, by its context or by ``close()``.

    Attributes:
        partial: What had arrived before, where ``collect()`` or ``events()`` raised the error; else None.
    """

    partial: ChatCompletionResponse | None = None


class ChannelClosedError(ChanstreamError, _ShutDown):
    """The channel is closed: nothing can be put, or nothing is left to get.

    From Python 3.13 on it is a `queue.ShutDown` too.
    """


class CacheError(ChanstreamError):
    """A cache could not be read or written."""


class JournalError(ChanstreamError):
    """A batch's journal could not be read or written, is in use, or has something else in it."""


class WorkerLostError(ChanstreamError):
    """A worker process of a batch ended before it gave a result, again and again; or the pool cannot be used any more.

    Whether its request was answered nobody knows.
    """


_E = TypeVar("_E", bound=ChanstreamError)
_B = TypeVar("_B", bound=BaseException)


def with_others(error: _B, others: Iterable[BaseException]) -> _B:
    """Return ``error``, with what else went wrong at that time as its ``others``."""
    rest = tuple(other for other in others if other is not error)
    if rest:
        with contextlib.suppress(AttributeError):  # it has no room for it
            error.others = rest  # type: ignore[attr-defined]  # any exception can be given one more attribute
    return error


def with_partial(error: _E, partial: ChatCompletionResponse) -> _E:
    """Return ``error``, with what had come of the answer that it ended as its ``partial``."""
    error.partial = partial  # type: ignore[attr-defined]  # all errors that end a stream have it
    return error


_SHORTEST_SECRET = 8


def redact(error: _E, secret: str) -> _E:
    """Return ``error`` with ``***`` for ``secret`` wherever it stands in it: some servers repeat the key.

    Not for the placeholders that local servers are given as keys (``test``, ``x``): they are words like others.
    """
    if len(secret) >= _SHORTEST_SECRET:
        error.args = _without(error.args, secret)
        for name, value in vars(error).items():
            setattr(error, name, _without(value, secret))
    return error


def _without(value: Any, secret: str) -> Any:
    if isinstance(value, str):
        return value.replace(secret, "***")
    if isinstance(value, dict):
        return {_without(key, secret): _without(item, secret) for key, item in value.items()}
    if isinstance(value, Mapping):
        return type(value)(_without(dict(value), secret))  # type: ignore[call-arg]  # headers, made as a dict is
    if isinstance(value, (list, tuple)):
        return type(value)(_without(item, secret) for item in value)
    return value


def request_id_in(headers: Mapping[str, str]) -> str | None:
    """Return the server's id for a request from its answer's headers; None where there is none."""
    names = ("x-request-id", "request-id", "mistral-correlation-id", "x-groq-request-id")
    return next((headers[name] for name in names if name in headers), None)


def _facts(body: Any) -> dict[str, Any]:
    """Return message, type, code and param from any of the error bodies that servers are known to send.

    Mistral sends ``{"object": "error", "message": text or {"detail": [...]}, "type", "code"}``; OpenAI and Groq
    ``{"error": {"message", "type", "code", "param"}}``; FastAPI ``{"detail": text or [...]}``; some a bare text
    under ``error``, with the real words beside it under ``message``.
    """
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return {"message": _shortened(str(body if body is not None else ""))}
    told = body.get("error")
    source = {**body, **told} if isinstance(told, dict) else body
    words = list(_words(source.get("message"))) or list(_words(source.get("detail")))
    if not words:
        words = [told if isinstance(told, str) and told else _shortened(json.dumps(body, default=str))]
    kind = source.get("type")
    if kind is None and isinstance(told, str) and told not in words:
        kind = told  # {"error": "SyntaxError", "message": "..."}
    code, param = source.get("code"), source.get("param")
    return {
        "message": "; ".join(words),
        "type": kind if isinstance(kind, str) and kind else None,
        "code": code if isinstance(code, (str, int)) else None,
        "param": param if isinstance(param, str) else None,
    }


def _words(value: Any) -> Iterator[str]:
    """Yield the texts in a ``message`` or ``detail``, be it a text, an object or FastAPI's list of findings."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict):
        if "msg" in value:
            yield _finding(value)
        else:
            yield from _words(value.get("detail") or value.get("message"))
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)


def _finding(item: dict[str, Any]) -> str:
    """Return one of FastAPI's findings as ``type: text (where.it.is)``."""
    kind, where = item.get("type"), item.get("loc")
    text = f"{kind}: {item['msg']}" if kind else str(item["msg"])
    if isinstance(where, (list, tuple)) and where:
        text += f" ({'.'.join(str(step) for step in where)})"
    return text


def _shortened(text: str, limit: int = 500) -> str:
    """Return ``text`` on one line and of a length that fits a log: a proxy's error page can be long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def kind_of(error: BaseException) -> str:
    """Return what a log may say of an error, whose words may be an answer's: its class, and its status or clock."""
    more = getattr(error, "status_code", None) or getattr(error, "clock", None)
    return f"{type(error).__name__} ({more})" if more else type(error).__name__

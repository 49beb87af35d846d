"""What a client tells its observers of each call: frozen facts, told apart by their type.

An observer is any callable that takes one fact::

    def report(fact):
        match fact:
            case RetryScheduled(error=error, pause=pause):
                print(f"again in {pause:.1f} s: {error}")
            case CallEnded(state=state, elapsed=elapsed):
                print(f"{state} after {elapsed:.1f} s")

    client = Client(observers=[report])

Each call is told as one `CallStarted`, then for each attempt a `RequestSent`, a `HeadReceived` where a head came, and a
`RetryScheduled` where another attempt follows; a `FirstChunk`, of streams alone; and one `CallEnded`, whatever happens.
The facts of one call come in this order and one at a time; those of several calls come side by side.

Thread safety: an observer is called by whatever thread has the news. That is the caller's up to the head of the answer
(for an event loop a thread of the library's tells of the head), and then the one that reads: the consumer's, the
poller's, a producer's, or the one that cancels. It must be quick and must not wait for anything, or it holds up that
stream and others. What it raises is logged, once for each observer of a client, and changes nothing; only what is no
`Exception`, such as Ctrl-C, passes on as it is.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from .errors import ChanstreamError, StreamCancelledError

if TYPE_CHECKING:
    from .models.chat import UsageInfo
    from .transport.head import ResponseHead

__all__ = [
    "CallEnded",
    "CallStarted",
    "Fact",
    "FirstChunk",
    "HeadReceived",
    "ObservedCall",
    "Observer",
    "RequestSent",
    "RetryScheduled",
]

_PORTS = {"http": 80, "https": 443}

_log = logging.getLogger("chanstream")


@attrs.frozen(kw_only=True, eq=False)
class ObservedCall:
    """One call of a client's method, however many attempts it takes. All its facts hold the same one.

    It is equal to itself alone, and can be the key of a dictionary. Its repr does not show the request.

    Attributes:
        dialect: The name of the client's dialect.
        base_url: The server, as the client asks it. path: What follows, such as ``/chat/completions``.
        stream: Whether the answer is to come as a stream.
        request: What was asked for, such as a `ChatCompletionRequest`; None where there is only a path.
        id: A text of its own, different from those of all other calls.
        started: When it began, on `time.monotonic`. started_at: The same, in seconds since 1970.
    """

    dialect: str
    base_url: str
    path: str
    stream: bool = False
    request: Any = attrs.field(default=None, repr=False)
    id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    started: float = attrs.field(factory=time.monotonic, repr=False)
    started_at: float = attrs.field(factory=time.time)

    @property
    def model(self) -> str | None:
        """The model that was asked for."""
        return getattr(self.request, "model", None)

    @property
    def host(self) -> str:
        """The server's name or address."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        parts = urlsplit(self.base_url)
        return parts.port or _PORTS[parts.scheme]


@attrs.frozen(kw_only=True)
class CallStarted:
    """A call begins; nothing is sent yet."""

    call: ObservedCall


@attrs.frozen(kw_only=True)
class RequestSent:
    """The request goes out, now.

    Attributes:
        call: The call.
        elapsed: Seconds since the call began.
        attempt: Which time it is; the first is 1.
    """

    call: ObservedCall
    elapsed: float
    attempt: int


@attrs.frozen(kw_only=True)
class RetryScheduled:
    """An attempt has failed, and there will be another.

    Attributes:
        call: The call.
        elapsed: Seconds since the call began.
        attempt: The one that failed.
        error: What it failed with.
        pause: Seconds until the next.
    """

    call: ObservedCall
    elapsed: float
    attempt: int
    error: ChanstreamError
    pause: float


@attrs.frozen(kw_only=True)
class HeadReceived:
    """The head of an answer is in, be it a refusal.

    Attributes:
        call: The call.
        elapsed: Seconds since the call began.
        attempt: The attempt that it answers.
        head: Its status, headers, request id and rate limits.
    """

    call: ObservedCall
    elapsed: float
    attempt: int
    head: ResponseHead


@attrs.frozen(kw_only=True)
class FirstChunk:
    """The first chunk of a stream has come.

    Attributes:
        call: The call.
        elapsed: Seconds from the beginning of the call until its bytes arrived.
    """

    call: ObservedCall
    elapsed: float


@attrs.frozen(kw_only=True)
class CallEnded:
    """A call has ended: the last fact of each.

    Attributes:
        call: The call.
        elapsed: Seconds since the call began; of a stream, until the bytes of its end arrived.
        state: ``"complete"``, ``"failed"``, or ``"cancelled"`` by the caller, who may have closed a stream or left its
            loop.
        error: What ended it, if it is not complete.
        attempts: How often the request was sent.
        head: The head of the last attempt's answer; None where none came.
        chunk_latencies: For each chunk of a stream, the seconds since the one before, the first since the beginning.
        finish_reasons: Why each choice ended, as far as they have.
        usage: Token counts, where the server sent them.
        response_id: The answer's id. response_model: The model that it names. None where there is none.
        answer: The answer, of a stream as far as it came. Of a stream it is there only if one of the client's observers
            has a true attribute ``wants_answer``, since it takes work for each chunk. Not in the repr.
    """

    call: ObservedCall
    elapsed: float
    state: Literal["complete", "failed", "cancelled"]
    error: BaseException | None = None
    attempts: int
    head: ResponseHead | None = None
    chunk_latencies: tuple[float, ...] = attrs.field(default=(), repr=False)
    finish_reasons: tuple[str, ...] = ()
    usage: UsageInfo | None = None
    response_id: str | None = None
    response_model: str | None = None
    answer: Any = attrs.field(default=None, repr=False)

    @property
    def chunks(self) -> int:
        """How many chunks of a stream came, the one that holds an error not counted."""
        return len(self.chunk_latencies)

    @property
    def time_to_first_chunk(self) -> float | None:
        """Seconds until the first chunk's bytes arrived; None where none came."""
        return self.chunk_latencies[0] if self.chunk_latencies else None


Fact: TypeAlias = "CallStarted | RequestSent | RetryScheduled | HeadReceived | FirstChunk | CallEnded"
Observer: TypeAlias = Callable[[Fact], object]


class Observers:
    """All observers of a client.

    Args:
        given: They.

    Attributes:
        all: They, as a tuple.
        want_answer: Whether one of them wants the whole answer of streams.

    Raises:
        TypeError: One of them is none; the text says why.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, given: Iterable[Observer]) -> None:
        if not isinstance(given, Iterable):
            raise TypeError(f"observers: expected callables in a list or tuple, got {given!r}")
        self.all = tuple(given)
        for index, observer in enumerate(self.all):
            _check(f"observers[{index}]", observer)
        self.want_answer = any(getattr(observer, "wants_answer", False) for observer in self.all)
        self._logged: dict[int, object] = {}

    def watch(self, **about: Any) -> Watch | None:
        """Return what tells them of a call that begins now, None where there are none; see `ObservedCall`."""
        return Watch(self, ObservedCall(**about)) if self.all else None

    def tell(self, fact: Fact) -> None:
        """Tell each a fact; an interrupt (Ctrl-C) goes on when all have heard."""
        interrupt: BaseException | None = None
        for observer in self.all:
            try:
                observer(fact)
            except Exception:  # noqa: BLE001 - it is somebody else's code
                self._log_once(observer)
            except BaseException as error:  # noqa: BLE001 - as above
                if _is_ours(threading.current_thread()):  # nobody interrupts it, and all streams would end with it
                    self._log_once(observer)
                else:
                    interrupt = error
        try:
            if interrupt is not None:
                raise interrupt
        finally:
            del interrupt  # a circle with its traceback

    def _log_once(self, observer: Observer) -> None:
        mine = object()
        if self._logged.setdefault(id(observer), mine) is mine:
            _log.exception(
                "an observer raised, and will still be called; its further errors are not logged: %r", observer
            )


def _check(name: str, observer: Any) -> None:
    if isinstance(observer, type):
        raise TypeError(f"{name}: expected an observer, got the class {observer.__qualname__}")
    if not callable(observer):
        raise TypeError(f"{name}: expected a callable, got {observer!r}")
    if inspect.iscoroutinefunction(observer) or inspect.iscoroutinefunction(type(observer).__call__):
        raise TypeError(f"{name}: expected a plain callable, got {observer!r}, which is async")


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("chanstream-")


class Watch:
    """What the observers are told of one call: each fact once, in order and one at a time, whoever has it.

    As a context manager it tells that the call starts, and that it has ended if the block raises.

    Args:
        observers: Whom to tell.
        call: What it is about.

    Attributes:
        call: What it is about.
        wants_answer: Whether they want the whole answer of a stream.

    Thread safety: any thread may have news. What comes after the end is dropped: a task that asks may be cancelled
    while a thread is at it, whose answer nobody waits for any more.
    """

    def __init__(self, observers: Observers, call: ObservedCall) -> None:
        self.call = call
        self.wants_answer = observers.want_answer
        self._observers = observers
        self._attempt = 0
        self._head: ResponseHead | None = None
        self._ended = False
        self._lock = threading.RLock()  # guards that nothing follows the end; reentrant, as finalizers may end a call
        self._news: deque[Fact] = deque()
        self._telling = threading.Lock()

    def note(self, fact: Fact) -> None:
        """Have a fact told by the next `tell`: observers are not called where locks are held."""
        with self._lock:
            if not self._ended:
                self._ended = isinstance(fact, CallEnded)
                self._news.append(fact)

    def tell(self) -> None:
        """Tell what was noted; never waits: where another thread is at it, that one goes on."""
        while self._news and self._telling.acquire(blocking=False):
            try:
                while self._news:
                    self._observers.tell(self._news.popleft())
            finally:
                self._telling.release()

    def __enter__(self) -> Watch:
        self.note(CallStarted(call=self.call))
        self.tell()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.note_end(error)
            self.tell()

    def sent(self) -> None:
        """Tell that the request goes out."""
        self._attempt += 1
        self._head = None
        self.note(RequestSent(call=self.call, elapsed=self._elapsed(), attempt=self._attempt))
        self.tell()

    def received(self, head: ResponseHead) -> None:
        """Tell that a head is in."""
        self._head = head
        self.note(HeadReceived(call=self.call, elapsed=self._elapsed(), attempt=self._attempt, head=head))
        self.tell()

    def failed(self, error: ChanstreamError, pause: float) -> None:
        """Tell that the attempt has failed and there will be another."""
        elapsed = self._elapsed()
        self.note(RetryScheduled(call=self.call, elapsed=elapsed, attempt=self._attempt, error=error, pause=pause))
        self.tell()

    def answered(self, answer: Any) -> None:
        """Tell that the call has ended with a whole answer."""
        about: dict[str, Any] = {"answer": answer, "usage": getattr(answer, "usage", None)}
        if hasattr(answer, "model"):
            about |= {"response_id": answer.id or None, "response_model": answer.model or None}
        if hasattr(answer, "choices"):
            about["finish_reasons"] = tuple(choice.finish_reason or "" for choice in answer.choices)
        self.note_end(None, **about)
        self.tell()

    def note_end(self, error: BaseException | None, *, elapsed: float | None = None, **about: Any) -> None:
        """Note that the call has ended, unless it has before."""
        self.note(
            CallEnded(
                call=self.call,
                elapsed=self._elapsed() if elapsed is None else elapsed,
                state=_state_after(error),
                error=error,
                attempts=self._attempt,
                head=self._head,
                **about,
            )
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self.call.started


def _state_after(error: BaseException | None) -> Literal["complete", "failed", "cancelled"]:
    if error is None:
        return "complete"
    is_interrupt = not isinstance(error, Exception)  # Ctrl-C, or a task or greenlet that was cancelled
    return "cancelled" if is_interrupt or isinstance(error, StreamCancelledError) else "failed"

"""Cancel token and deadlines, as Go's ``context``: one object says whether the work still has a reason to go on.

A context is done once: by `cancel`, by its deadline, or because its parent is done; the first of these gives its
`error`. Cancelling travels from parent to child, never up.

Locking: ``_lock`` guards the error and the callbacks. Callbacks run without it, in the thread that cancels, in the
order in which they were added. It is reentrant, because a finalizer that cancels may run in the middle of our own
steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from . import timers
from .errors import APITimeoutError, ChanstreamError, StreamCancelledError

if TYPE_CHECKING:
    from types import TracebackType

_log = logging.getLogger("chanstream")


_LONGEST = threading.TIMEOUT_MAX
"""What Python can wait for at most: centuries on most systems."""

_LOOK_SECONDS = 0.1
"""Seconds after which the main thread, while it waits, looks for signals: Ctrl-C just before a wait does not end it."""


def _check_seconds(name: str, value: Any) -> None:
    """Raise unless ``value`` is a usable number of seconds; the error names the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, got {value!r}")
    if not 0 < value <= _LONGEST:
        raise ValueError(f"{name}: expected seconds above 0 and up to {_LONGEST:.0f}, got {value!r}; None is no limit")


def _seconds_or_none(_: object, field: Any, value: float | None) -> None:
    if value is not None:
        _check_seconds(field.name, value)


@attrs.frozen(kw_only=True)
class Timeout:
    """The four clocks that a request runs against, each in seconds; None switches one off.

    Attributes:
        connect: Until there is a connection, TLS included; for each attempt.
        first_chunk: From sending an attempt until the first data event of its answer (or, without streaming, until
            the whole answer). Long by default: a model that thinks is silent for a while.
        idle: Between two data events. Keep-alive comments do not count, nor does the time in which a full channel
            holds the stream back.
        total: For everything, retries and waits included.
    """

    connect: float | None = attrs.field(default=10.0, validator=_seconds_or_none)
    first_chunk: float | None = attrs.field(default=300.0, validator=_seconds_or_none)
    idle: float | None = attrs.field(default=60.0, validator=_seconds_or_none)
    total: float | None = attrs.field(default=None, validator=_seconds_or_none)

    @classmethod
    def of(cls, value: Timeout | float) -> Timeout:
        """Return ``value`` as a `Timeout`; a bare number is the total, in seconds."""
        if isinstance(value, Timeout):
            return value
        _check_seconds("timeout", value)
        return cls(total=value)


class Context:
    """A cancel token with an optional deadline.

    ``Context()`` is a root that is done only when cancelled; `with_cancel` and `with_timeout` make children. Used
    as a context manager it is cancelled at the end of the block.

    Args:
        timeout: Seconds until the context is done by itself; None for no deadline.

    Thread safety: every method may be called from any thread, `cancel` from a signal handler too.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._error: ChanstreamError | None = None
        self._callbacks: dict[object, Callable[[ChanstreamError], object]] = {}
        self._parent: tuple[Context, object] | None = None
        self._timers: list[timers.Timer] = []
        self.deadline: float | None = None
        if timeout is not None:
            _check_seconds("timeout", timeout)
            self.expire_in(timeout, APITimeoutError(clock="context", seconds=timeout))

    def with_cancel(self) -> Context:
        """Return a child that can be cancelled without cancelling this context."""
        return self._child(Context())

    def with_timeout(self, seconds: float) -> Context:
        """Return a child that is done after so many seconds, or when this context is done.

        Raises:
            TypeError: ``seconds`` is no number.
            ValueError: ``seconds`` is not above 0.
        """
        return self._child(Context(seconds))

    def cancel(self, error: ChanstreamError | None = None) -> None:
        """Make the context and its children done; only the first call has an effect.

        Args:
            error: What the streams of this context end with; `StreamCancelledError` by default.
        """
        with self._lock:
            if self._error is not None:
                return
            self._error = error or StreamCancelledError("the context was cancelled")
            callbacks, self._callbacks = list(self._callbacks.values()), {}
        self._done.set()
        self._detach()
        for callback in callbacks:
            try:
                callback(self._error)
            except Exception:  # noqa: BLE001 - the others still have to hear of it, or a socket stays open
                _log.exception("a callback of a cancelled context failed")

    def done(self) -> bool:
        """Return whether the context was cancelled or is past its deadline."""
        return self._error is not None

    @property
    def error(self) -> ChanstreamError | None:
        """Why the context is done; None while it is not."""
        return self._error

    def raise_if_done(self) -> None:
        """Raise the context's error if it is done."""
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the context is done or ``timeout`` seconds have passed; return whether it is done."""
        if threading.current_thread() is not threading.main_thread():
            return self._done.wait(None if timeout is None else min(timeout, _LONGEST))
        end = _LONGEST if timeout is None else time.monotonic() + timeout
        while not self._done.wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
        return True

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, not below 0; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def on_done(self, callback: Callable[[ChanstreamError], object]) -> Callable[[], None]:
        """Call ``callback`` with the error once the context is done: at once, if it already is.

        Returns:
            A function that takes the callback away again.
        """
        key = object()
        with self._lock:
            if self._error is None:
                self._callbacks[key] = callback
                return lambda: self._forget(key)
        callback(self._error)
        return lambda: None

    def expire_in(self, seconds: float, error: ChanstreamError) -> None:
        """Cancel with ``error`` after so many seconds, unless the context is done or released before."""
        deadline = time.monotonic() + seconds
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
        timer = timers.Timer(lambda: self.cancel(error))
        with self._lock:
            if self._error is None:
                self._timers.append(timer)
        if self._error is not None:  # it was cancelled meanwhile
            timer.stop()
        timer.start(deadline)

    def release(self) -> None:
        """Let go of the parent and the deadline, when the work has ended: a long-lived parent keeps nothing of it."""
        self._detach()

    def _forget(self, key: object) -> None:
        with self._lock:
            self._callbacks.pop(key, None)

    def _child(self, child: Context) -> Context:
        if self.deadline is not None and (child.deadline is None or self.deadline < child.deadline):
            child.deadline = self.deadline  # the parent's own timer reaches the child; here it is only for remaining()
        child._follow(self)
        return child

    def _follow(self, parent: Context) -> None:
        key = object()
        with parent._lock:
            error = parent._error
            if error is None:
                # Under the parent's lock: either the parent sees this child when it is cancelled, or we saw the error.
                parent._callbacks[key] = self.cancel
                self._parent = (parent, key)
        if error is not None:
            self.cancel(error)

    def _detach(self) -> None:
        with self._lock:
            parent, self._parent = self._parent, None
            mine, self._timers = self._timers, []
        if parent is not None:
            parent[0]._forget(parent[1])  # noqa: SLF001 - of the same class
        for timer in mine:
            timer.stop()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = "live" if self._error is None else f"done: {self._error}"
        return f"<Context {state}>"

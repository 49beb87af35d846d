"""One producer thread for all streams of the process, as Go's netpoller is one for all goroutines.

The thread watches the sockets of all streams. In each turn it takes what has arrived off those that have news, then
feeds it to the flows: bytes first, chunks then, so that what came for many streams at once wakes their consumers at
once too, and not in between the reads. It stops watching a socket whose channel is full until there is room again. It
starts with the first stream that needs it and ends a moment after the last.

A fault in one stream ends that stream alone. A fault in the poller itself ends all its streams with an error, and is
logged: nobody waits for ever.

Locking: ``_Poller._lock`` guards which streams there are, which of them want a turn, and whether there is a thread.
All else belongs to the thread, but for a stream's first turn, which the caller has before the poller knows of the
stream. Other threads reach the poller with a call for a turn (a new stream, one that has room again) and a byte on a
socket pair that wakes it. A cancel needs no call: it ends the stream itself and shuts the connection down, which the
selector sees.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from ..channel import Pipe, hand_over
from ..errors import ChanstreamError, StreamError, StreamInterruptedError
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..transport.takeover import Line, take_over
from ..wire.body import BodyError, body_of
from ..wire.machine import StreamMachine
from . import threaded
from .flow import Flow

_LINGER = 0.02
"""Seconds for which the thread waits for a next stream: streams in a row share a thread."""

_SLICE = 64
"""How many streams are read before their chunks are handed over: bounds what lies in between, 64 KiB each at most."""

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

_log = logging.getLogger("chanstream")


def start(call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> None:
    """Start to move an answer into ``pipe``; return at once. As `threaded.start`, which does what cannot be polled."""
    line = take_over(answer.source)
    if line is None:
        threaded.start(call, answer, machine, pipe)
        return
    stream = _Stream(Flow(call, answer, line, machine, pipe), line, _the_poller)
    try:
        # Bytes that were read ahead with the head are seen by no selector; and a short answer is all there already.
        stream.begin()
    except BaseException:  # no more threads, or Ctrl-C
        stream.flow.end()
        raise


class _Stream:
    """One stream in the poller's hands.

    Attributes:
        watched: Which events of its socket the selector reports; 0 for none.
    """

    def __init__(self, flow: Flow, line: Line, poller: _Poller) -> None:
        self.flow = flow
        self.line = line
        self.watched = 0
        self._poller = poller
        self._body = body_of(line.framing)
        self._data: bytes | None = None
        self._read_at = 0.0
        self._paused = False
        self._has_room = False
        self._broken = False
        flow.on_room = self._on_room

    def begin(self) -> None:
        """Have the first turn here, and all others in the poller."""
        self.flow.begin()
        self.read()
        if self.deliver():
            self.end()
        else:
            self._poller.add(self)

    def _on_room(self) -> None:
        self._has_room = True  # first: whoever calls for a turn too early is not heard, but this is seen in the first
        self._poller.call(self)

    # -- a turn, in two halves ----------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take the bytes that have arrived, unless the channel is full."""
        if self._paused and not self._has_room:
            return
        try:
            if self._paused:
                self._paused = False
                self.flow.resume()
            self._data = b"" if self._body.done else self.line.read()  # done: a length of 0
        except Exception as error:  # noqa: BLE001 - see fail
            self.fail(error)
        self._read_at = time.monotonic()

    def deliver(self) -> bool:
        """Hand on the chunks that they make; return whether the stream is over."""
        data, self._data = self._data, None
        if self.flow.over:
            return True
        try:
            if data is not None:
                self._take(data)
            if not (self._broken or self._body.done):
                self.flow.keep_time()
                return False
        except Exception as error:  # noqa: BLE001 - see fail
            self.fail(error)
        return True

    def _take(self, data: bytes) -> None:
        """Take in bytes of the connection, b"" for its end."""
        body = self._body
        if not data:
            body.eof()
        payload = body.feed(data)
        if payload:
            self._has_room = False
            self._paused = self.flow.feed(payload, self._read_at) is not None
        if body.done:
            self.flow.feed(b"", self._read_at)
        elif self.line.is_tls and self.line.has_more():
            self._poller.call(self)

    def fail(self, error: Exception) -> None:
        """End the stream with what went wrong in it: a fault in one stream ends that stream alone."""
        self._broken = True
        if isinstance(error, BodyError):
            error = StreamInterruptedError(f"the connection was lost in the middle of the answer: {error}")
        elif not isinstance(error, ChanstreamError):
            _log.error("a stream failed in the poller", exc_info=error)
            error = StreamError(f"chanstream failed: {error!r}")
        with _logged():
            self.flow.fail(error)

    def wants(self) -> int:
        """Return which events of its socket would be news."""
        if self._paused:
            return 0
        return _WRITE if self.line.wants_write else _READ

    def end(self) -> None:
        """Free everything, in nobody's hands any more."""
        with _logged():
            if self._body.done and not self._body.spoilt:
                self.line.give_back()
        with _logged():
            self.flow.end()
        self.flow.on_room = None  # a circle: only the garbage collector would free what hangs on it


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Log what goes wrong in the block: nothing that ends one stream may keep others from their turn."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is
        _log.exception("a stream could not be ended in order")


class _Poller:
    """The thread, and what it watches."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finalizer may call for a turn in the middle of a step
        self._streams: set[_Stream] = set()
        self._called: list[_Stream] = []
        self._thread: threading.Thread | None = None
        self._waker: socket.socket
        self._selector: selectors.BaseSelector

    # -- from any thread ----------------------------------------------------------------------------------------------

    def add(self, stream: _Stream) -> None:
        """Take a stream on."""
        with self._lock:
            if self._thread is None:
                self._launch()
            self._streams.add(stream)
            self.call(stream)

    def call(self, stream: _Stream) -> None:
        """Give a stream a turn though its socket may have no news; not if the poller does not have it."""
        with self._lock:
            if stream not in self._streams:
                return
            first = not self._called
            self._called.append(stream)
            if first and self._thread is not threading.current_thread():
                with contextlib.suppress(BlockingIOError):  # full: then it is being woken anyway
                    self._waker.send(b"\0")

    def _launch(self) -> None:
        selector = selectors.DefaultSelector()
        waker, woken = socket.socketpair()
        waker.setblocking(False)
        woken.setblocking(False)
        selector.register(woken, selectors.EVENT_READ)
        self._waker, self._selector = waker, selector
        self._thread = threading.Thread(target=self._run, args=(woken,), name="chanstream-poller", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._shut(woken)
            raise

    def _shut(self, woken: socket.socket) -> None:
        """Free what `_launch` made; with the lock held."""
        self._thread = None
        self._selector.close()
        self._waker.close()
        woken.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, woken: socket.socket) -> None:
        try:
            while self._turn(woken):
                pass
        except BaseException as error:  # noqa: BLE001 - no stream may wait for a thread that is gone
            _log.exception("the poller failed")
            hand_over.let_go()
            with self._lock:
                self._shut(woken)
                orphans, self._streams = self._streams, set()
                self._called.clear()
            for stream in orphans:
                with _logged():  # the others shall hear of it too
                    stream.flow.cancel(StreamError(f"the poller failed: {error!r}"))
                with _logged():
                    stream.flow.end()

    def _turn(self, woken: socket.socket) -> bool:
        """Wait for news and calls, and act on them; return whether to go on."""
        with self._lock:
            called, self._called = self._called, []
            idle = not self._streams
        news = self._news(woken, 0 if called else _LINGER if idle else None)
        if idle and not news:
            with self._lock:
                if not self._streams:
                    self._shut(woken)
                    return False
        # A call and a socket's news may be for one stream, and a call for one that is over.
        streams = [stream for stream in dict.fromkeys([*called, *news]) if stream in self._streams]
        while len(streams) > _SLICE:
            batch, streams = dict.fromkeys(streams[:_SLICE]), streams[_SLICE:]
            self._read(batch)
            self._deliver(batch)
            hand_over.let_go()  # and hold no more back: those that follow come while consumers are at work anyway
        batch = dict.fromkeys(streams)
        self._read(batch)
        self._read_on(batch, woken)
        self._deliver(batch)
        return True

    def _read(self, streams: Iterable[_Stream]) -> None:
        for stream in streams:
            stream.read()

    def _read_on(self, batch: dict[_Stream, None], woken: socket.socket) -> None:
        """Read others too, as long as news of others keeps coming: the bytes of a burst come one after the other."""
        while len(batch) < _SLICE:
            fresh = [stream for stream in self._news(woken, 0) if stream not in batch][: _SLICE - len(batch)]
            if not fresh:
                return
            self._read(fresh)
            batch.update(dict.fromkeys(fresh))

    def _news(self, woken: socket.socket, wait: float | None) -> list[_Stream]:
        """Return the streams whose sockets have news, waiting for the first."""
        streams = []
        hand_over.let_go()
        news = self._selector.select(wait)
        hand_over.hold()
        for key, _ in news:
            if key.data is None:
                woken.recv(4096)
            else:
                streams.append(key.data)
        return streams

    def _deliver(self, batch: Iterable[_Stream]) -> None:
        for stream in batch:
            over = stream.deliver()
            events = 0 if over else stream.wants()
            if events != stream.watched:
                try:
                    self._watch(stream, events)
                except Exception as error:  # noqa: BLE001 - the system watches no more of them, say
                    stream.fail(error)
                    over = True
            if over:
                with self._lock:
                    self._streams.discard(stream)
                stream.end()

    def _watch(self, stream: _Stream, events: int) -> None:
        if not events:
            self._selector.unregister(stream.line)
        elif stream.watched:
            self._selector.modify(stream.line, events, stream)
        else:
            self._selector.register(stream.line, events, stream)
        stream.watched = events


_the_poller = _Poller()


def _start_afresh() -> None:
    """Forget the parent's poller in a forked child: its thread and its streams live in the parent only."""
    global _the_poller  # noqa: PLW0603 - the one instance of the process
    _the_poller = _Poller()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)

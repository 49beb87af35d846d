"""One thread for all streams of the process whose consumers are busy, as Go's netpoller is one for all goroutines.

The thread watches the sockets of all streams that no consumer waits for itself. In each turn it takes what has arrived
off those that have news, then feeds it to the flows: bytes first, chunks then, so that what came for many streams at
once wakes their consumers at once too, and not in between the reads. It stops watching a socket whose channel is full
until there is room again. It starts with the first stream that needs it and ends a moment after the last.

A fault in one stream ends that stream alone. A fault in the poller itself ends all its streams with an error, and is
logged: nobody waits for ever.

Locking: ``_Poller._lock`` guards which streams there are, which of them want a turn, and whether there is a thread.
What belongs to a stream belongs to whose turn it is. Other threads reach the poller with a call for a turn (a stream
that has room again) and a byte on a socket pair that wakes it. A cancel needs no call: it ends the stream itself and
shuts the connection down, which whoever watches it sees.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from functools import partial

from ..channel import Pipe, hand_over
from ..errors import StreamError
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..transport.takeover import take_over
from ..wire.machine import StreamMachine
from . import threaded
from .gathering import Group, gather
from .polled import LEASE_SECONDS, SLICE, Polled, have_turns
from .watched import flow_of
from .watching import READ, Watcher, new_watcher

_LINGER = 0.02
"""Seconds for which the thread waits for a next stream: streams in a row share a thread."""

_FEW = 8
"""With fewer streams none is leased: to have each watched again costs less than to wake up now and then for that."""

_MANY = 256
"""Beyond so many streams the thread reads all: it takes the bytes of many at once, where as many threads that want the
interpreter at once would keep each other waiting."""

_log = logging.getLogger("chanstream")


def start(call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> None:
    """Start to move an answer into ``pipe``; return at once. As `threaded.start`, which does what cannot be polled."""
    line = take_over(answer.source)
    if line is None:
        threaded.start(call, answer, machine, pipe)
        return
    stream = Polled(flow_of(call, answer, line, machine, pipe), line, pipe, _the_poller)
    pipe.join = partial(gather, stream)
    try:
        # Bytes that were read ahead with the head are seen by no selector; and a short answer is all there already.
        if not stream.begin():
            _the_poller.add(stream)
    except BaseException as error:  # no more threads, or Ctrl-C
        stream.give_up(StreamError(f"the stream could not be started: {error!r}"))
        raise


class _Poller:
    """The thread, and what it watches."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finalizer may call for a turn in the middle of a step
        self._streams: set[Polled] = set()
        self._called: list[Polled] = []
        self._away: deque[Polled] = deque()
        self._tending = False
        self._tends_at = 0.0
        self.has_few = True
        self.has_many = False
        self._thread: threading.Thread | None = None
        self._waker: socket.socket  # a byte sent here wakes the thread, which receives it there
        self._woken: socket.socket
        self._watcher: Watcher[Polled | Group | None]

    # -- from any thread ----------------------------------------------------------------------------------------------

    def add(self, stream: Polled) -> None:
        """Take a stream on."""
        with self._lock:
            if self._thread is None:
                self._launch()
            self._streams.add(stream)
            self.has_few = len(self._streams) < _FEW
            self.has_many = len(self._streams) > _MANY
            watcher = self._watcher
        stream.settle(watcher)

    def remove(self, stream: Polled) -> None:
        """Forget a stream that is over."""
        with self._lock:
            self._streams.discard(stream)
            self.has_few = len(self._streams) < _FEW
            if not self._streams and self._thread is not None:
                self._wake()  # to end in a moment

    def call(self, stream: Polled) -> None:
        """Give a stream a turn though its socket may have no news; not if the poller does not have it."""
        with self._lock:
            if stream not in self._streams:
                return
            self._called.append(stream)
            if len(self._called) == 1:
                self._wake()

    def look_after(self, stream: Polled) -> None:
        """Have a socket watched again if the consumer that waited for it stays away."""
        stream.looked_after = True
        self._away.append(stream)
        if not self._tending:
            with self._lock:
                if self._thread is not None:
                    self._wake()

    def _wake(self) -> None:
        if self._thread is not threading.current_thread():
            with contextlib.suppress(BlockingIOError):  # full: then it is being woken anyway
                self._waker.send(b"\0")

    def _launch(self) -> None:
        self._watcher = new_watcher()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._watcher.watch(self._woken.fileno(), None, READ)
        self._thread = threading.Thread(target=self._run, name="chanstream-poller", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._shut()
            raise

    def _shut(self) -> None:
        """Free what `_launch` made; with the lock held."""
        self._thread = None
        self._watcher.close()
        self._waker.close()
        self._woken.close()
        self._away.clear()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - no stream may wait for a thread that is gone
            _log.exception("the poller failed")
            hand_over.let_go()
            with self._lock:
                self._shut()
                orphans, self._streams = self._streams, set()
                self._called.clear()
            for stream in orphans:
                stream.orphan(StreamError(f"the poller failed: {error!r}"))

    def _turn(self) -> bool:
        """Wait for news and calls, and act on them; return whether to go on."""
        with self._lock:
            called, self._called = self._called, []
            idle = not self._streams
        news = self._news(0 if called else _LINGER if idle else self._tend())
        if idle and not news:
            with self._lock:
                if not self._streams:
                    self._shut()
                    return False
        # A call and a socket's news may be for one stream.
        streams = list(dict.fromkeys([*called, *news]))
        while len(streams) > SLICE:
            have_turns(streams[:SLICE], _no_more)
            streams = streams[SLICE:]
            hand_over.let_go()  # and hold no more back: those that follow come while consumers are at work anyway
        have_turns(streams, self._more)
        return True

    def _tend(self) -> float | None:
        """Look after the sockets that consumers have left, now and then; return the seconds until then."""
        now = time.monotonic()
        if self._tending and now < self._tends_at:
            return self._tends_at - now
        count = len(self._away)
        for _ in range(count):
            stream = self._away.popleft()
            if stream.check_lease(now):
                stream.looked_after = True
                self._away.append(stream)
        self._tending = bool(count)
        # The look comes after that: whoever leaves a socket now either sees that nobody tends it, or is seen.
        self._tending |= bool(self._away)
        self._tends_at = now + LEASE_SECONDS
        return LEASE_SECONDS if self._tending else None

    def _news(self, wait: float | None) -> list[Polled]:
        """Return the streams whose sockets have news, waiting for the first."""
        hand_over.let_go()
        news = self._watcher.wait(wait)
        hand_over.hold()
        if None in news:
            self._woken.recv(4096)
        streams = [stream for stream in news if isinstance(stream, Polled)]
        for group in news:
            if isinstance(group, Group):
                streams += group.news_for_poller()
        return streams

    def _more(self) -> list[Polled]:
        return self._news(0)


def _no_more() -> list[Polled]:
    return []


_the_poller = _Poller()


def _start_afresh() -> None:
    """Forget the parent's poller in a forked child: its thread and its streams live in the parent only."""
    global _the_poller  # noqa: PLW0603 - the one instance of the process
    _the_poller = _Poller()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)

"""Streams that were merged, for a consumer that waits: it reads them all itself.

Their sockets have a watcher of their own. A consumer that finds the merged channel empty waits there, in its own
thread, for whichever of them has news first; so the system wakes the one thread that wants the bytes. While no consumer
does so the poller watches that watcher, as it watches any socket, and has the turns.

Whoever puts something else into the merged pipe meanwhile (a plain channel that was merged too, a clock that runs out)
wakes the consumer as he wakes any that sleeps: it is among the pipe's getters while it waits.

Locking: ``_lock`` guards which streams are in the group, and that the watcher is not closed while it is waited for:
a consumer makes its claim first and looks whether the watcher is closed then; who closes looks at the claims first.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from ..channel import LOOK_SECONDS, Pipe, here
from .polled import SLICE, Polled, have_turns
from .watching import READ, Watcher, new_watcher

_LONGEST = 86_400.0
"""Seconds: what the system takes for a wait; whoever waits for longer looks once a day."""


def gather(stream: Polled, pipe: Pipe[Any], group: Group | None) -> Group | None:
    """Have a stream read by the consumer of ``pipe``, when that one waits; return the group that it is in then."""
    watcher = stream.watcher
    if watcher is None or not watcher.from_any_thread or stream.is_gathered:
        return group
    try:
        if group is None or group.poller is not watcher or not stream.join(group):
            group = Group(pipe, watcher)
            stream.join(group)
    except OSError:  # no more descriptors: the poller reads it, as ever
        return group
    except BaseException:  # Ctrl-C
        if group is not None:
            group.close_if_unused()
        raise
    return group


class Group:
    """The streams of a merged pipe.

    Attributes:
        watcher: What watches their sockets. poller: What watches that one, where no consumer does.
    """

    def __init__(self, pipe: Pipe[Any], poller: Watcher[Any]) -> None:
        self.watcher: Watcher[Any] = new_watcher()
        self._pipe = pipe
        self._claims = pipe.readers
        self.poller = poller
        self._lock = threading.RLock()  # reentrant: a finalizer may end a stream in the middle of a step
        self._streams: set[Polled] = set()
        self._closed = False
        self._waker, self._woken = socket.socketpair()  # a byte sent here wakes who waits, and is received there
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self.watcher.watch(self._woken.fileno(), None, READ)
        self._have_watched(READ)
        self._pipe.pull = self.pull  # last: from now on there is somebody else who needs it

    def take_in(self, stream: Polled) -> bool:
        """Count a stream in; return whether that was possible: the last of the others may just have left."""
        with self._lock:
            if not self._closed:
                self._streams.add(stream)
            return not self._closed

    def leave(self, stream: Polled) -> None:
        """Forget a stream that is over."""
        with self._lock:
            self._streams.discard(stream)
        self.close_if_unused()

    def release(self) -> None:
        """Wake the consumer that waits here; as of a lock on which it sleeps."""
        with contextlib.suppress(OSError):  # full, and so it is being woken anyway; or closed, and nobody waits
            self._waker.send(b"\0")

    def news(self, wait: float | None = 0.0) -> list[Polled]:
        """Return the streams that have news, waiting for the first."""
        return self._streams_in(self.watcher.wait(wait))

    def news_for_poller(self) -> list[Polled]:
        """Return the streams that have news, for whoever does not know whether there is still a watcher."""
        with self._lock:
            try:
                if self._closed:
                    return []
                news = self.watcher.wait(0.0)
                streams = self._streams_in(news)
                if None in news and self._claims:  # it may have been for a consumer, who has come meanwhile
                    self.release()
            except (OSError, ValueError):
                if not self._closed:  # by an intruder, in the middle of it
                    raise
                return []
            return streams

    def _streams_in(self, news: list[Any]) -> list[Polled]:
        """Return the streams among what has news; None stands for a byte that woke us, which has done its work."""
        if None in news:
            with contextlib.suppress(BlockingIOError):  # the poller, or the consumer, was faster
                self._woken.recv(4096)
        return [stream for stream in news if stream is not None]

    # -- the consumer's turns -----------------------------------------------------------------------------------------

    def pull(self, deadline: float | None) -> bool:
        """Have turns in the consumer's thread; as `Polled.pull`."""
        claims, claim = self._claims, object()
        is_mine = False
        try:
            claims.append(claim)
            is_mine = claims[0] is claim and not self._is_closed()
            if is_mine:
                self._have_turns(deadline, claim)
        except BaseException:  # Ctrl-C
            if is_mine:
                self._break_off(claim)
                self._pipe.hand_on()
            raise
        finally:
            try:  # noqa: SIM105 - here, because Ctrl-C might come on the way to another place
                claims.remove(claim)
            except ValueError:  # it came before the claim
                pass
            if is_mine:
                self._pass_on()
            elif not self._streams:  # who had a turn has left this to who would come next
                self.close_if_unused()
        return is_mine

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def _have_turns(self, deadline: float | None, claim: object) -> None:
        pipe = self._pipe
        self._have_watched(0)
        while self._streams and not pipe.readable():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            have_turns(self._wait(left)[:SLICE], self.news, claim)
        self._have_watched(READ)

    def _break_off(self, claim: object) -> None:
        try:
            for stream in list(self._streams):
                stream.break_off(claim)
        finally:
            self._have_watched(READ)

    def _wait(self, left: float | None) -> list[Polled]:
        """Return the streams that have news, waiting for the first, or for something else in the pipe."""
        pipe = self._pipe
        try:
            pipe.getters.append(self)
            # The look comes after that: what is put in before it is seen here, what is put in later wakes us.
            if pipe.readable() or not self._streams:
                return []
            most = LOOK_SECONDS if here.is_main_thread else _LONGEST
            return self.news(most if left is None else min(most, left))
        finally:
            if self in pipe.getters:  # else whoever woke us has taken us out
                with contextlib.suppress(ValueError):  # as somebody may do at this very moment
                    pipe.getters.remove(self)

    def _pass_on(self) -> None:
        """See to it that others go on, and end what was ended meanwhile if the poller is gone, whose task that is."""
        if self.poller.closed:
            for stream in list(self._streams):
                if stream.flow.over:
                    stream.have_turn(is_over=True)
        self.close_if_unused()
        if self._pipe.getters:
            self._pipe.read_on()

    # -- the watcher --------------------------------------------------------------------------------------------------

    def _have_watched(self, events: int) -> None:
        """Have the poller watch all the sockets through the one watcher, or not; for who has made a claim."""
        self.poller.watch(self.watcher.fileno(), self, events)

    def close_if_unused(self) -> None:
        """Free what the system gave for it, after the last stream has left."""
        with self._lock:
            if self._streams or self._closed:
                return
            if self._claims:
                self.release()  # the consumer that waits closes it when it has left
                return
            self._closed = True
            self.poller.forget(self.watcher.fileno())
            if self._pipe.pull == self.pull:
                self._pipe.pull = None  # a circle: only the garbage collector would free what hangs on it
            self.watcher.close()
            self._waker.close()
            self._woken.close()

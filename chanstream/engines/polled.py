"""One stream whose socket is watched: its turns, in the poller's thread or in that of a consumer that waits for it.

A turn is to read what has arrived and to hand on the chunks that it makes. The poller has turns for the streams whose
consumers are busy, or wait in another way (`select`, ``async for``). A consumer that finds its channel empty has them
itself: it waits for the socket in its own thread, so that the system wakes the one thread that wants the bytes.

While a consumer does so the poller does not watch the socket, and that goes on for a moment after: nearly always the
consumer is back for the next chunk by then. The socket is *leased*. Where a consumer stays away the poller watches it
again. With few streams it does so at once, which then costs less than waking up for it.

Whose turn it is say the *claims*: the first of them. One is left before it is looked at, in a block that takes it away
again whatever happens; so an interrupt (Ctrl-C, in the main thread) cannot lose it, and of several one is the first.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from ..channel import LOOK_SECONDS, Pipe, here
from ..errors import ChanstreamError, StreamError, StreamInterruptedError
from ..models.chunk import CompletionChunk
from ..transport.takeover import Line
from ..wire.body import BodyError, body_of
from .flow import Flow
from .watching import READ, WRITE, Watcher

LEASE_SECONDS = 0.005
"""How long a consumer may stay away before the poller watches its socket again. The bytes that come in this time are
read, and their latency is measured, this much later at worst."""

_log = logging.getLogger("chanstream")

SLICE = 64
"""How many streams are read before their chunks are handed over: bounds what lies in between, 64 KiB each at most."""

_LOST = "what was just being read is lost: its reader was interrupted"

_POLLER = object()
"""The claim of the poller's own thread."""


class Poller(Protocol):
    """What a stream wants of the poller; from any thread."""

    has_few: bool
    """Whether the sockets of so few streams shall not be leased."""

    has_many: bool
    """Whether so many streams are better read by the poller alone, those that begin now."""

    def call(self, stream: Polled) -> None:
        """Give a stream a turn though its socket may have no news."""

    def look_after(self, stream: Polled) -> None:
        """Have it look, in a moment, whether the consumer of a leased socket stays away."""

    def remove(self, stream: Polled) -> None:
        """Forget a stream that is over."""


class Group(Protocol):
    """What a stream wants of others that it is together with; from any thread."""

    watcher: Watcher[Any]

    def take_in(self, stream: Polled) -> bool:
        """Count a stream in; return whether that was possible."""

    def leave(self, stream: Polled) -> None:
        """Forget a stream that is over."""


class Polled:
    """One stream in the poller's hands, or in those of a consumer that waits for it.

    Attributes:
        flow: What is done with its bytes.
        looked_after: Whether the poller is about to look at its lease.
        watcher: What watches its socket; None before it is settled.
    """

    def __init__(self, flow: Flow, line: Line, pipe: Pipe[CompletionChunk], poller: Poller) -> None:
        self.flow = flow
        self.looked_after = False
        self._line = line
        self._pipe = pipe
        self._poller = poller
        self.watcher: Watcher[Any] | None = None
        self._group: Group | None = None
        self._descriptor = line.fileno()
        self._watched = 0
        self._leased = False
        self._claims = pipe.readers
        self._body = body_of(line.framing)
        self._data: bytes | None = None
        self._read_at = 0.0
        self._paused = False
        self._has_room = False
        self._has_more = False
        self._broken = False
        self._over = False
        self._at_work = False
        self._news: Any = None
        flow.on_room = self._on_room

    def begin(self) -> bool:
        """Have the first turn, in the caller's thread; return whether the stream is over with it."""
        self.flow.begin()
        self.read()
        if self.deliver():
            self.end()
        return self._over

    def settle(self, watcher: Watcher[Any]) -> None:
        """Have all other turns in the poller, of which this is the watcher, and in consumers."""
        self.watcher = watcher
        if watcher.from_any_thread:
            if not self._poller.has_many:
                self._pipe.pull = self.pull
            self.have_turn()
        else:
            self._poller.call(self)

    def _on_room(self) -> None:
        self._has_room = True  # first: whoever calls for a turn too early is not heard, but this is seen in the first
        self._poller.call(self)

    # -- a turn, in three parts ---------------------------------------------------------------------------------------

    def read(self, wait: float | None = 0.0) -> None:
        """Take the bytes that have arrived, unless the channel is full; wait for the first so many seconds."""
        try:
            if self._paused:
                if not self._has_room:
                    return
                self._paused = False
                self.flow.resume()
            self._data = b"" if self._body.done else self._line.read(wait)  # done: a length of 0
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
                body = self._body
                if not data:
                    body.eof()
                payload = body.feed(data)
                if payload:
                    self._has_room = False
                    self._paused = self.flow.feed(payload, self._read_at) is not None
                if body.done:
                    self.flow.feed(b"", self._read_at)
                elif self._line.is_tls:
                    self._has_more = self._line.has_more()
            if not (self._broken or self._body.done):
                self.flow.keep_time()
                return False
        except Exception as error:  # noqa: BLE001 - see fail
            self.fail(error)
        return True

    def rest(self, is_over: bool = False) -> None:
        """Have the socket watched until the next turn, or end the stream if it is over."""
        self._leased = False
        if self._over:
            return
        if self._group is not None and self.watcher is not self._group.watcher:
            self._move(self._group.watcher)
        if not is_over:
            try:
                self._watch(0 if self._paused else WRITE if self._line.wants_write else READ)
            except Exception as error:  # noqa: BLE001 - the system watches no more of them, say
                self.fail(error)
                is_over = True
        if is_over:
            self._poller.remove(self)
            self.end()

    def _move(self, watcher: Watcher[Any]) -> None:
        """Have another one watch the socket."""
        assert self.watcher is not None
        self.watcher.forget(self._descriptor)
        self.watcher, self._watched = watcher, 0

    def _watch(self, events: int) -> None:
        if events != self._watched:
            assert self.watcher is not None
            self._watched = events  # first: the poller's next turn may come at once
            self.watcher.watch(self._descriptor, self, events)

    def fail(self, error: Exception) -> None:
        """End the stream with what went wrong in it: a fault in one stream ends that stream alone."""
        self._broken = True
        with _logged:
            self.flow.fail(told(error))

    def end(self) -> None:
        """Free everything, in nobody's hands any more."""
        self._over = True
        is_forgotten = False
        try:
            with _logged:
                if self.watcher is not None:
                    self.watcher.forget(self._descriptor)
            is_forgotten = True
            with _logged:
                if self._body.done and not self._body.spoilt:
                    self._line.give_back()
            with _logged:
                self.flow.end()
            # Circles: only the garbage collector would free what hangs on them.
            self.flow.on_room = self._pipe.pull = self._pipe.join = None
        finally:  # Ctrl-C: who watches must not see a socket for ever that nobody reads
            if self.watcher is not None and not is_forgotten:
                self.watcher.forget(self._descriptor)
            if self._group is not None:
                self._group.leave(self)

    @property
    def is_gathered(self) -> bool:
        """Whether it is in a group."""
        return self._group is not None

    def join(self, group: Group) -> bool:
        """Have the socket watched with those of a group; return whether that takes it."""
        self._group = group  # first: whoever ends it sees this, or it is seen here that it has ended
        if not group.take_in(self):
            self._group = None
            return False
        if self._over:
            group.leave(self)
        else:
            self._poller.call(self)  # the next turn is the first that it has there
        return True

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    def claim(self, claim: object = _POLLER) -> bool:
        """Begin a turn, the poller's or another's; return False where somebody is at it, or the stream is over."""
        self._claims.append(claim)
        if self._claims[0] is claim and not self._over:
            return True
        self._claims.remove(claim)
        return False

    def unclaim(self, claim: object = _POLLER) -> None:
        """End a turn."""
        self._claims.remove(claim)
        self._go_on()

    def have_turn(self, is_over: bool = False) -> None:
        """Have the last part of a turn, in neither the poller's nor a consumer's name; not if somebody has one."""
        claim = object()
        if self.claim(claim):
            self.rest(is_over)
            self.unclaim(claim)

    def _go_on(self) -> None:
        """See to it that somebody has a turn who did not have one because another, which is over now, went on."""
        if self._pipe.getters:
            self._pipe.read_on()
        if self._has_more or (self._paused and self._has_room):
            self._poller.call(self)

    def check_lease(self, now: float) -> bool:
        """Have the socket watched again if its consumer stays away; return whether that is not clear yet."""
        self.looked_after = False  # first: a consumer that leaves from now on says so again
        if self._claims or not self._leased:  # the former: it is back
            return False
        if now - self._read_at < LEASE_SECONDS:
            return True
        if self.claim():
            self.rest()
            self.unclaim()
        return False

    def orphan(self, error: ChanstreamError) -> None:
        """End the stream because the poller, whose thread this is, has failed."""
        with _logged:
            self.flow.cancel(error)
        if self.claim():  # perhaps once more, after the turn that failed; a consumer that is at it frees all itself
            self.end()

    def give_up(self, error: ChanstreamError) -> None:
        """End the stream because it could not be started."""
        self.flow.cancel(error)
        self.have_turn(is_over=True)

    # -- a consumer's turns -------------------------------------------------------------------------------------------

    def pull(self, deadline: float | None) -> bool:
        """Have turns in the consumer's thread, until there are chunks for it or it is too late.

        Returns:
            Whether it has waited; else somebody else is at it, and what that one reads comes into the pipe.
        """
        claims, claim = self._claims, object()
        is_mine = False
        try:
            claims.append(claim)
            is_mine = claims[0] is claim and not self._over and (self._has_room or not self._paused)
            if is_mine:
                self._have_turns(deadline)
        except BaseException:  # Ctrl-C
            if is_mine:
                self._break_off()
            raise
        finally:
            try:  # noqa: SIM105 - here, because Ctrl-C might come on the way to another place
                claims.remove(claim)
            except ValueError:  # it came before the claim
                pass
            if is_mine:
                self._pass_on()
        return is_mine

    def _have_turns(self, deadline: float | None) -> None:
        pipe, is_over, is_main = self._pipe, False, here.is_main_thread
        pipe.pulled = True
        if not self._leased:
            self._leased = True
            self._watch(0)
        wait = self._wait_in_main_thread if is_main else self._wait
        while not (is_over or pipe.items or pipe.closed) and wait(deadline):
            is_over = self.deliver()
            self._at_work = is_over
            if self._paused:
                break
        # Where Ctrl-C may come nothing is left to be done later.
        if is_over or is_main or self._paused or self._poller.has_few or pipe.waiters:
            self._at_work = True
            self.rest(is_over)
            self._at_work = False

    def _break_off(self) -> None:
        """End the stream if bytes were read whose chunks may not have come into the pipe; else it can go on."""
        if self._at_work:
            self.flow.cancel(StreamInterruptedError(_LOST))
        self.rest(is_over=self._at_work)

    def break_off(self, claim: object) -> None:
        """End the stream if this claim's turn was interrupted: bytes that it read may be lost."""
        if claim not in self._claims:
            return
        try:
            if self._claims[0] is claim:
                self.flow.cancel(StreamInterruptedError(_LOST))
                self.rest(is_over=True)
        finally:
            self.unclaim(claim)

    def _pass_on(self) -> None:
        """See to it that others go on with the stream, or end it if it was cancelled meanwhile."""
        self._pipe.pulled = False
        if self._has_more or self._paused or self._pipe.getters:
            self._go_on()
        if self.flow.over:  # and nobody else may have noticed: nobody watches the socket, or the poller is gone
            self.have_turn(is_over=True)
        if self._leased and not self.looked_after:
            self._poller.look_after(self)

    def _wait(self, deadline: float | None) -> bool:
        """Take bytes, waiting for them; return False if there are none in time."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        self._at_work = True
        self.read(0.0 if self._paused else left)  # after a pause the clocks are to be set first
        return True

    def _wait_in_main_thread(self, deadline: float | None) -> bool:
        """Do so where Ctrl-C may come: it finds either nothing taken, or the stream at work."""
        if self._news is None:
            self._news = select.poll()
        self._news.register(self._descriptor, select.POLLOUT if self._line.wants_write else select.POLLIN)
        while True:
            left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return False
            if self._has_more or self._paused or self._news.poll(1000 * left):
                self._at_work = True
                self.read()
                return True


def have_turns(streams: Sequence[Polled], news: Callable[[], list[Polled]], claim: object = _POLLER) -> None:
    """Have a turn of each: bytes first, chunks then.

    So what came for many streams at once wakes their consumers at once too, and not in between the reads.

    Args:
        streams: Those that have news; not more than `SLICE`.
        news: Returns others that have some. They have turns too, as long as there come more: the bytes of a burst
            come one after the other.
        claim: Whose turns they are.
    """
    batch = _read(streams, claim)
    while 0 < len(batch) < SLICE:
        fresh = _read([stream for stream in news() if stream not in batch][: SLICE - len(batch)], claim)
        if not fresh:
            break
        batch.update(fresh)
    for stream in batch:
        stream.rest(stream.deliver())
        stream.unclaim(claim)


def _read(streams: Iterable[Polled], claim: object) -> dict[Polled, None]:
    """Read those that nobody else is at, and return them."""
    batch = {stream: None for stream in streams if stream.claim(claim)}
    for stream in batch:
        stream.read()
    return batch


def told(error: Exception) -> ChanstreamError:
    """Return what a consumer is told of what went wrong in reading."""
    if isinstance(error, BodyError):
        return StreamInterruptedError(f"the connection was lost in the middle of the answer: {error}")
    if isinstance(error, ChanstreamError):
        return error
    _log.error("a stream failed while it was read", exc_info=error)
    return StreamError(f"chanstream failed: {error!r}")


class _Logged:
    """Logs what goes wrong in its block: nothing that ends one stream may keep others from their turn."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            _log.error("a stream could not be ended in order", exc_info=error)
            return True
        return False


_logged = _Logged()  # has no state, so that one does

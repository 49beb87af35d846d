"""Sending a request: one attempt, and the attempts until one succeeds.

All waits obey the context: a cancel or a deadline cuts the connection of the attempt that is on, and ends the pause
between two.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import attrs
import requests
from requests.exceptions import ConnectTimeout, ReadTimeout, RequestException
from urllib3.exceptions import HTTPError

from .. import timers
from ..context import Context, Timeout
from ..errors import APIConnectionError, APIStatusError, APITimeoutError, ChanstreamError, StreamError, redact
from ..observers import Watch
from .connection import CuttableAdapter, Exchange
from .head import ResponseHead
from .limits import RateLimiter, wait_for_turn
from .retry import Retry, retry_after, root_cause
from .source import Source

_ERROR_BODY_BYTES = 64 * 1024
"""How much of an error's body is read: more than any real one, little enough for a proxy's page without end."""

_BODY_BYTES = 256 * 1024 * 1024
"""The largest whole answer that is read: a bound against a server without end."""

_OK = range(200, 300)

_log = logging.getLogger("chanstream")

R = TypeVar("R")


@attrs.define
class Tally:
    """What is noted of a call.

    Attributes:
        tries: How often its request was sent.
        head: What the head of its answer says, once it is in.
        first_chunk: Seconds until the first chunk.
    """

    tries: int = 0
    head: ResponseHead | None = None
    first_chunk: float | None = None


@attrs.frozen(kw_only=True)
class Call:
    """A request as the transport sees it.

    Attributes:
        method: The HTTP method. path: What follows the base URL. body: JSON, or None. accept: The type wanted.
        context: Cuts the call when it is done. timeout: Its ``connect`` and ``first_chunk`` are kept here.
        retry: When to try again. limiter: Asked before each attempt. headers, query: Sent in addition.
        watch: Told what happens; None where nobody wants to know. tally: Counts, likewise.
    """

    method: str
    path: str
    body: bytes | None
    accept: str
    context: Context
    timeout: Timeout
    retry: Retry
    limiter: RateLimiter | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    query: Mapping[str, Any] = attrs.field(factory=dict)
    watch: Watch | None = None
    tally: Tally | None = None


@attrs.frozen
class Answer:
    """An answer whose head is in.

    Attributes:
        head: The head.
        source: The body's bytes, as they arrive.
        began_at: When the clock for the first chunk began, as the attempt was made, on `time.monotonic`.
    """

    head: ResponseHead
    source: Source
    began_at: float


class _Bearer(requests.auth.AuthBase):
    """Sets the key. As requests' ``auth`` it keeps a netrc from replacing the key, and its repr shows nothing."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            # requests takes this header, and only this one, away on a redirect to another host.
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Transport:
    """Sends requests to one server.

    Args:
        base_url: The address that paths are appended to, without a slash at the end.
        api_key: The key; "" for none.
        headers: Sent with every request.
        session: The caller's own session: its adapters, proxies, CA and certificates are used as they are, and closing
            it stays the caller's business.

    Thread safety: every method may be called from any thread. After ``fork()`` the child starts with connections of
    its own.
    """

    def __init__(
        self, base_url: str, api_key: str, headers: dict[str, str], session: requests.Session | None = None
    ) -> None:
        if session is not None and not isinstance(session, requests.Session):
            raise TypeError(f"session: expected a requests.Session, got {session!r}")
        self.base_url = base_url
        self.secret = api_key  # what no error may show
        self._auth = _Bearer(api_key)
        self._headers = headers
        self._given = session
        self._own: requests.Session | None = None
        self._making = threading.Lock()  # guards that several threads at once make one
        self._parents: list[requests.Session | None] = []
        self._pid = os.getpid()
        self.trust_env = True  # whether the environment has a say in our own sessions

    def open(self, call: Call) -> Answer:
        """Send a request and return its answer as soon as the head is in, trying again as the call's retry says.

        Raises:
            APIStatusError: The server refused.
            APIConnectionError: No answer came; `APITimeoutError` if a clock ran out.
            StreamCancelledError: The context was cancelled (or whatever error it was cancelled with).
        """
        return self._tried(call, lambda answer: answer)

    def fetch(self, call: Call) -> tuple[ResponseHead, bytes]:
        """Send a request and return its whole answer; as `open` otherwise. ``first_chunk`` covers the body too."""
        return self._tried(call, lambda answer: (answer.head, _whole(answer.source)))

    def _tried(self, call: Call, finish: Callable[[Answer], R]) -> R:
        retries = 0
        while True:
            call.context.raise_if_done()
            if call.limiter is not None:
                wait_for_turn(call.limiter, call.context)
            if call.tally is not None:
                call.tally.tries += 1
            if call.watch is not None:
                call.watch.sent()
            try:
                return self._attempt(call, finish)
            except (APIStatusError, APIConnectionError) as error:
                pause = self.pause_after(error, call, retries)
                if pause is None:
                    raise
            retries += 1
            call.context.wait(pause)

    def pause_after(self, error: ChanstreamError, call: Call, retries: int) -> float | None:
        """Return the seconds to wait before the next attempt; None if there shall be none."""
        redact(error, self.secret)
        if call.context.done() or not call.retry.allows(error, retries):
            return None
        pause = call.retry.delay(error, retries)
        _log.info("retry %d of %d in %.2f s after: %s", retries + 1, call.retry.max_retries, pause, str(error))
        if call.watch is not None:
            call.watch.failed(error, pause)
        return pause

    def close(self) -> None:
        """Close the connections that no stream uses; a session that the caller brought stays open."""
        own, self._own = self._own, None
        if self._pid != os.getpid():  # a forked child: see `_session`
            self._parents.append(own)
        elif own is not None:
            own.close()

    # -- one attempt ------------------------------------------------------------------------------------------------

    def _attempt(self, call: Call, finish: Callable[[Answer], R]) -> R:
        answer = None
        try:
            with cuttable(call.context, call.timeout.first_chunk) as exchange:
                answer = self.accepted(call, self.exchanged(exchange, call), exchange)
                return finish(answer)
        except BaseException:
            if answer is not None:  # Ctrl-C, or a clock that ran out as the head came in
                answer.source.close()
            raise

    def accepted(self, call: Call, response: requests.Response, exchange: Exchange) -> Answer:
        """Return an answer whose head is in; raises what it says if it is a refusal."""
        head = ResponseHead(response.status_code, response.headers)
        answer = Answer(head, Source(response, exchange), exchange.began_at)
        _log.debug("%s %s: %d", call.method, call.path, response.status_code)
        try:
            self._look_at(answer, call)
        except BaseException:  # Ctrl-C too
            answer.source.close()
            raise
        return answer

    def _look_at(self, answer: Answer, call: Call) -> None:
        """Tell of the head; raise what it says if it is a refusal."""
        if call.watch is not None:
            call.watch.received(answer.head)
        if answer.head.status_code not in _OK:
            raise self._refusal(answer)

    def exchanged(self, exchange: Exchange, call: Call) -> requests.Response:
        """Return the response to a call, once its head is in."""
        timeout = call.timeout
        headers = {**self._headers, "Accept": call.accept, "Accept-Encoding": "identity"}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        headers.update(call.headers)
        _log.debug("%s %s%s", call.method, self.base_url, call.path)
        try:
            with exchange.sending():
                return self._session().request(
                    call.method,
                    self.base_url + call.path,
                    data=call.body,
                    headers=headers,
                    params=call.query,
                    auth=self._auth,
                    stream=True,
                    timeout=(self._connect_timeout(call), None),
                )
        except ConnectTimeout as error:
            raise APITimeoutError(clock="connect", seconds=timeout.connect or 0.0) from error
        except ReadTimeout as error:  # of a session that the caller brought
            raise APITimeoutError(clock="first_chunk", seconds=timeout.first_chunk or 0.0) from error
        except (RequestException, HTTPError, OSError, ValueError) as error:  # the last: no URL
            raise APIConnectionError(f"no answer from {self.base_url}: {_reason(error)}") from error

    def _connect_timeout(self, call: Call) -> float | None:
        """Return the seconds for connecting. Ours are cut when the context is done, others have to be told before."""
        left = call.context.remaining()
        if self._given is None or left is None:
            return call.timeout.connect
        return max(0.001, min(left, call.timeout.connect or left))

    def _refusal(self, answer: Answer) -> ChanstreamError:
        head = answer.head
        text = _read_some(answer.source).decode("utf-8", "replace")
        facts = {"headers": head.headers, "retry_after": retry_after(head.headers)}
        try:
            return redact(APIStatusError.from_status(head.status_code, json.loads(text), **facts), self.secret)
        except (ValueError, RecursionError):  # no JSON, or nested without end
            return APIStatusError.from_status(head.status_code, text, **facts)

    def parks(self) -> bool:
        """Return whether exchanges can be parked: our own connections know of it, others block until the head."""
        return self._given is None or isinstance(self._given.get_adapter(self.base_url), CuttableAdapter)

    # -- the session ------------------------------------------------------------------------------------------------

    def _session(self) -> requests.Session:
        if self._pid != os.getpid():
            # A forked child: the parent's connections stay the parent's. They are put aside and not closed, because
            # a lock in there may have been held at the moment of the fork.
            self._parents.append(self._own)
            self._pid, self._own, self._making = os.getpid(), None, threading.Lock()
        if self._given is not None:
            return self._given
        with self._making:
            if self._own is None:
                self._own = new_session()
                self._own.trust_env = self.trust_env
            return self._own


_ENVIRONMENT = (
    *(f"{name}_proxy" for name in ("http", "https", "all", "no")),
    *(f"{name}_PROXY" for name in ("HTTP", "HTTPS", "ALL", "NO")),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUEST_METHOD"),
)
"""What requests looks at. The last: a CGI program's HTTP_PROXY comes from its client and does not count."""

_KEYS = tuple(map(os.environ.encodekey, _ENVIRONMENT))


def _in_environment() -> tuple[Any, ...]:
    """Return what the environment says under these names.

    Asked for itself, because `os.environ` raises and catches an error for each name that is not there: fourteen
    microseconds for every request.
    """
    data = getattr(os.environ, "_data", None)
    return tuple(map(os.environ.get, _ENVIRONMENT) if data is None else map(data.get, _KEYS))


_PATTERNS = 64
"""Requests that a session keeps prepared: a client has a handful of paths."""


_HARMLESS = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"),
    "proxy-authorization",  # requests has set it anew for the new way
}
"""Headers that may go to another host."""


class _Session(requests.Session):
    """A session that never takes a netrc's word for who we are, on redirects either.

    It prepares a request once for all that differ in their body alone, and asks the environment for proxies only when
    that has changed: the two are a quarter of what requests itself costs.

    Thread safety: two threads may do the same work once more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[tuple[Any, ...], requests.PreparedRequest] = {}
        self._settings: tuple[Any, Any] = None, None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the settings in which the environment has a say."""
        if sys.platform in ("darwin", "win32"):  # they have settings outside of it too
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        about = url, stream, verify, cert, *_in_environment()
        known, settings = self._settings
        if known != about:
            settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
            self._settings = about, settings
        return dict(settings)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Return the request as it is sent."""
        if request.params:  # as few requests have, and in any form
            return super().prepare_request(request)
        key = (request.method, request.url, request.auth, *request.headers.items(), request.data is None)
        pattern = self._prepared.get(key)
        if pattern is None:
            if len(self._prepared) >= _PATTERNS:  # headers of the caller's, different ones each time
                self._prepared.clear()
            pattern = self._prepared[key] = super().prepare_request(request)
        prepared = pattern.copy()
        if request.data is not None:
            prepared.body = request.data
            prepared.headers["Content-Length"] = str(len(request.data))
        return prepared

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the key away on a redirect to another host, and whatever headers are the caller's own."""
        if self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            for name in list(prepared_request.headers):
                if name.lower() not in _HARMLESS:
                    del prepared_request.headers[name]


def new_session() -> requests.Session:
    """Return a session with connections that can be cut, a pool sized for fan-out, and no cookies.

    To be set up before its first request: certificates, proxies, headers.
    """
    session = _Session()
    adapter = CuttableAdapter()
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    # Cookies are the one thing that threads sharing a session would write at the same time.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


@contextmanager
def cuttable(context: Context, first_chunk: float | None) -> Iterator[Exchange]:
    """Give an exchange that is cut when the context is done or the clock for the head runs out.

    An error of the block then becomes the context's, or the clock's: what it says itself is only that the line is dead.
    """
    exchange = Exchange()
    forget = context.on_done(lambda _: exchange.cut())
    clock = _HeadClock(exchange, first_chunk)
    try:
        yield exchange
    except APIStatusError:
        raise
    except ChanstreamError as error:
        context_error = context.error
        if context_error is not None:
            raise context_error from error
        if clock.has_run_out:
            raise APITimeoutError(clock="first_chunk", seconds=clock.seconds) from error
        raise
    else:
        if not clock.stop():  # as the head came in: the connection is cut, or will be in a moment
            raise APITimeoutError(clock="first_chunk", seconds=clock.seconds)
    finally:
        forget()
        clock.stop()


class _HeadClock:
    """The clock for the head, which cuts the exchange when it runs out; None for one that never does."""

    def __init__(self, exchange: Exchange, first_chunk: float | None) -> None:
        self.seconds = first_chunk or 0.0
        self._exchange = exchange
        self._turn = [None]  # taken, in one step, by the clock if it runs out, or by who stops it
        self._is_forgiven = False
        self._timer = None if first_chunk is None else timers.call_at(self._due(), self._run_out)

    @property
    def has_run_out(self) -> bool:
        """Whether it was not stopped in time."""
        return not self._turn

    def stop(self) -> bool:
        """Stop it; return whether that was in time."""
        if self._timer is not None:
            self._timer.stop()
        return self._take_turn()

    def _due(self) -> float:
        return self._exchange.began_at + self.seconds

    def _run_out(self) -> float | None:
        if timers.held_up_after(self._due()) and not self._is_forgiven:
            self._is_forgiven = True  # the head may have come meanwhile, and is yet to be read
            self._exchange.began_at = time.monotonic()
            return self._due()
        if self._take_turn():
            self._exchange.cut()
        return None

    def _take_turn(self) -> bool:
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True


def _whole(source: Source) -> bytes:
    """Return a whole body; an answer that is not whole is no answer."""
    body = bytearray()
    try:
        while data := source.read():
            body += data
            if len(body) > _BODY_BYTES:
                raise APIConnectionError(f"the answer is larger than {_BODY_BYTES} bytes")
    except StreamError as error:
        raise APIConnectionError(str(error)) from error
    finally:
        source.close()
    return bytes(body)


def _read_some(source: Source) -> bytes:
    """Return an error's body, as much of it as is worth reading and comes."""
    body = bytearray()
    try:
        while len(body) < _ERROR_BODY_BYTES and (data := source.read()):
            body += data
    except StreamError:
        pass  # the status is known; what came of the body will do
    return bytes(body)


def _reason(error: BaseException) -> str:
    """Return the words of the innermost cause."""
    error = root_cause(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

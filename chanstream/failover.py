"""Several servers for one answer: the next one is asked when one fails before its first chunk.

Once a chunk of an answer has come the answer stays with its server, because another would begin it anew. So a stream is
given to the caller when its first chunk is there, and not yet with its head.

Which failures are the next server's business: all but those that it would share. A request that is wrong (400, 422) is
wrong elsewhere too, and a cancel, or a total that has run out, is the caller's own word. A key that is refused, a model
that is not there and a limit that is used up are one server's matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

import attrs

from .channel import pipe_of
from .client import Client
from .context import Context, Timeout
from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ChanstreamError,
    StreamAPIError,
    StreamError,
    kind_of,
)
from .models.chat import ChatCompletionRequest, ChatCompletionResponse
from .stream import CompletionStream, Errors

_WRONG_EVERYWHERE = frozenset({400, 422})
_CLOCKS_OF_A_SERVER = frozenset({"connect", "first_chunk", "idle"})

_log = logging.getLogger("chanstream")

R = TypeVar("R")

Server: TypeAlias = "Client | tuple[Client, str]"


class Failover:
    """Asks several servers in turn, until one answers.

    ::

        servers = Failover([mistral, (groq, "llama-3.3-70b-versatile")], first_chunk=2.0)
        for evt in servers.chat_completion_stream(request):
            ...

    The next one is asked when one fails before its first chunk: no connection, a clock of `Timeout` that ran out, a
    refusal (but for 400 and 422, which are about the request), or a stream that fails or ends before it has begun. Each
    client tries again first as its own ``retry`` says; ``Retry(max_retries=0)`` goes on at once.

    Args:
        clients: Whom to ask, in this order: a `Client`, or a pair of one and the model's name there, which takes the
            place of the request's.
        first_chunk: Seconds until the first chunk of a stream, for each attempt, in place of the clients' own clock.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.

    Thread safety: one serves any number of threads. It can be pickled, as its clients can.
    """

    def __init__(self, clients: Sequence[Server], *, first_chunk: float | None = None) -> None:
        if isinstance(clients, (Client, str)) or not isinstance(clients, Sequence):
            raise TypeError(f"clients: expected a list of clients, got {clients!r}")
        if not clients:
            raise ValueError("clients: expected one at least")
        self._servers = [_server(f"clients[{position}]", given) for position, given in enumerate(clients)]
        self._first_chunk = first_chunk
        Timeout(first_chunk=first_chunk)  # raises what is wrong with it

    def chat_completion_stream(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
        resume: Literal["prefix"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> CompletionStream:
        """Return a stream of an answer's chunks, once the first of them is there.

        Arguments are those of `Client.chat_completion_stream`, for whoever is asked. A total in ``timeout`` covers all
        of them together. Latencies count from when the server that answers was asked.

        Raises:
            TypeError, ValueError: An argument is wrong, or a client's dialect does not take the request; the text says
                what, and nobody was asked.
            ChanstreamError: What the last server failed with; ``earlier`` has what those before it failed with.
            StreamCancelledError: The context was cancelled.
        """
        clocks_for = self._clocks(timeout, self._first_chunk)

        def ask(client: Client, request: ChatCompletionRequest) -> CompletionStream:
            stream = client.chat_completion_stream(
                request,
                timeout=clocks_for(client),
                context=context,
                buffer=buffer,
                errors=errors,
                resume=resume,
                extra_body=extra_body,
                extra_headers=extra_headers,
                extra_query=extra_query,
            )
            _wait_for_first_chunk(stream)
            return stream

        return self._tried(request, ask, stream=True, resume=resume)

    def chat_completion(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> ChatCompletionResponse:
        """Return a whole answer, asked for without streaming, of the first server that gives one.

        Arguments are those of `Client.chat_completion`, and errors those of `chat_completion_stream`. How long a whole
        answer may take is the clients' or ``timeout``'s to say: there is no first chunk.
        """
        clocks_for = self._clocks(timeout, None)

        def ask(client: Client, request: ChatCompletionRequest) -> ChatCompletionResponse:
            return client.chat_completion(
                request,
                timeout=clocks_for(client),
                context=context,
                extra_body=extra_body,
                extra_headers=extra_headers,
                extra_query=extra_query,
            )

        return self._tried(request, ask, stream=False)

    def close(self) -> None:
        """Close the clients' connections that no stream uses. All can still be used."""
        for client, _ in self._servers:
            client.close()

    def __enter__(self) -> Failover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tried(
        self,
        request: ChatCompletionRequest,
        ask: Callable[[Client, ChatCompletionRequest], R],
        *,
        stream: bool,
        resume: str | None = None,
    ) -> R:
        """Return the answer of the first server that gives one."""
        if not isinstance(request, ChatCompletionRequest):
            raise TypeError(f"request: expected ChatCompletionRequest, got {type(request).__name__}")
        asked = [(client, attrs.evolve(request, model=model or request.model)) for client, model in self._servers]
        for client, own in asked:  # all of them now: a server that is seldom needed shall not fail when it is
            client.caller.check(own, stream=stream, resume=resume)
        failed: list[ChanstreamError] = []
        for client, own in asked:
            try:
                return ask(client, own)
            except ChanstreamError as error:
                error.earlier = tuple(failed)
                if len(failed) == len(asked) - 1 or not _is_for_the_next(error):
                    raise
                failed.append(error)
                _log.warning(
                    "%s failed before its first chunk, the next one is asked: %s", repr(client), kind_of(error)
                )
        raise AssertionError("unreachable")

    @staticmethod
    def _clocks(given: Timeout | float | None, first_chunk: float | None) -> Callable[[Client], Timeout]:
        """Return what gives the clocks for each client, of which the total began now."""
        clocks = None if given is None else Timeout.of(given)
        started = time.monotonic()

        def for_client(client: Client) -> Timeout:
            own = client.caller.timeout if clocks is None else clocks
            if first_chunk is not None:
                own = attrs.evolve(own, first_chunk=first_chunk)
            if clocks is None or clocks.total is None:
                return own
            left = clocks.total - (time.monotonic() - started)
            if left <= 0:
                raise APITimeoutError(clock="total", seconds=clocks.total)
            return attrs.evolve(own, total=left)

        return for_client

    def __repr__(self) -> str:
        return f"<Failover {', '.join(repr(client) for client, _ in self._servers)}>"


def _server(name: str, given: Any) -> tuple[Client, str | None]:
    client, model = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(client, Client):
        raise TypeError(f"{name}: expected a Client, or a pair of a Client and a model's name, got {given!r}")
    if isinstance(given, tuple) and not isinstance(model, str):
        raise TypeError(f"{name}: expected a model's name beside the client, got {model!r}")
    if model == "":
        raise ValueError(f"{name}: the model's name is empty")
    return client, model


def _is_for_the_next(error: ChanstreamError) -> bool:
    """Return whether another server may do better."""
    if isinstance(error, APIStatusError):
        return error.status_code not in _WRONG_EVERYWHERE
    if isinstance(error, APITimeoutError):
        return error.clock in _CLOCKS_OF_A_SERVER
    return isinstance(error, (APIConnectionError, StreamError, StreamAPIError))


def _wait_for_first_chunk(stream: CompletionStream) -> None:
    """Wait until a stream's first chunk is there, and leave it there; raise the error that comes in its place."""
    pipe = pipe_of(stream)  # the stream's own `get` might raise what is to be looked at
    try:
        chunk = pipe.get()
        chunk.raise_for_error()
        pipe.put_back(chunk)
    except BaseException:
        stream.close()
        raise

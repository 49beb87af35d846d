"""The client: composes request, transport, engine and stream. It parses nothing and starts no thread of its own."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import quote, urlsplit

import attrs

from . import __version__
from .channel import Pipe
from .context import Context, Timeout
from .dialects import DIALECTS, Dialect
from .engines import poller, resuming, threaded
from .errors import APITimeoutError, ChanstreamError, StreamAPIError, StreamDecodeError, redact
from .models.catalog import ModelCapabilities, ModelCard, ModelList
from .models.chat import ChatCompletionRequest, ChatCompletionResponse
from .models.chunk import CompletionChunk
from .models.codec import best_loads, dumps
from .models.embeddings import EmbeddingRequest, EmbeddingResponse
from .models.messages import AssistantMessage
from .stream import CompletionStream, Errors
from .transport.head import ResponseHead
from .transport.retry import Retry
from .transport.session import Call, Transport
from .wire.machine import MAX_EVENT_BYTES, StreamMachine

if TYPE_CHECKING:
    import requests

Engine: TypeAlias = Literal["auto", "threaded", "poller"]

M = TypeVar("M")

_CHAT = "/chat/completions"


class Client:
    """Asks one server for chat completions, streamed or whole.

    Args:
        api_key: The key; by default that of the dialect's environment variable. "" sends none, for local servers.
        base_url: The server, by default the dialect's. Without a path it gets ``/v1``; with one it is used as it is.
        dialect: ``"mistral"``, ``"groq"``, ``"openai"`` (and every server compatible with it), or a `Dialect`.
        timeout: The four clocks of each request; a bare number is the total, in seconds.
        retry: How failures before the first chunk are tried again.
        buffer: Capacity of a stream's channel, in chunks: how far the server may run ahead of the consumer.
        engine: What moves the bytes: ``"poller"`` (the thread that waits for the next chunk, and one for all streams of
            the process while theirs are busy; what it cannot take over, such as a compressed or a mocked answer, goes
            to the other), ``"threaded"`` (a thread per stream), or ``"auto"`` for the better one here.
        errors: How a stream gives what goes wrong after its head: ``"inband"``, as a chunk with ``error`` set, or
            ``"raise"``.
        require_finish_reason: Whether an answer without a finish reason counts as cut off.
        max_event_bytes: The largest event of a stream that is read, in bytes.
        session: A `requests.Session` to use, with its adapters, proxies, CA and certificates. It stays the caller's to
            close. A request that it sends can be cut only once its head is in.

    Raises:
        ChanstreamError: There is no key; the text names the variable.
        TypeError: An argument is of the wrong type; the text names it.
        ValueError: An argument has a value that cannot be; the text names it.

    Thread safety: one client serves any number of threads, works on in a child after ``fork()``, and under gevent's
    monkey patching. It can be pickled: its settings travel, its connections do not.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        dialect: str | Dialect = "mistral",
        timeout: Timeout | float | None = None,
        retry: Retry | None = None,
        buffer: int = 1024,
        engine: Engine = "auto",
        errors: Errors = "inband",
        require_finish_reason: bool = False,
        max_event_bytes: int = MAX_EVENT_BYTES,
        session: requests.Session | None = None,
    ) -> None:
        self._dialect = _dialect(dialect)
        self._base_url = _base_url(self._dialect.base_url if base_url is None else base_url)
        self._timeout = Timeout() if timeout is None else Timeout.of(timeout)
        self._retry = _typed("retry", Retry() if retry is None else retry, Retry)
        self._buffer = _at_least_1("buffer", buffer)
        self._engine = _one_of("engine", engine, get_args(Engine))
        self._errors: Errors = _one_of("errors", errors, get_args(Errors))
        self._require_finish_reason = _typed("require_finish_reason", require_finish_reason, bool)
        self._max_event_bytes = _at_least_1("max_event_bytes", max_event_bytes)
        self._settings = {
            "api_key": api_key,
            "base_url": base_url,
            "dialect": dialect,
            "timeout": timeout,
            "retry": retry,
            "buffer": buffer,
            "engine": engine,
            "errors": errors,
            "require_finish_reason": require_finish_reason,
            "max_event_bytes": max_event_bytes,
            "session": session,
        }
        headers = {"User-Agent": f"chanstream/{__version__}"}
        self._transport = Transport(self._base_url, _key(api_key, self._dialect), headers, session)

    def chat_completion_stream(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
        resume: Literal["prefix"] | None = None,
    ) -> CompletionStream:
        """Return a stream of the answer's chunks, once the head of the answer is in.

        Args:
            request: What to ask for.
            timeout: The clocks of this call, instead of the client's; a bare number is the total, in seconds.
            context: Cancels the call, before its head and after.
            buffer: The channel's capacity for this call, in chunks.
            errors: ``"inband"`` or ``"raise"``, for this call.
            resume: What to do when the answer is cut off in the middle of its text: None ends the stream with an
                error; ``"prefix"`` sends the text so far back as the beginning of the answer, up to three times, and
                the rest comes in the same stream. Only for dialects that take such a prefix, and for one choice.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it, and nothing was sent.
            APIStatusError: The server refused; by status, see `chanstream.errors`.
            APIConnectionError: No answer came; `APITimeoutError` names the clock that ran out.
            StreamCancelledError: The context was cancelled.

        What goes wrong after the head is in comes with the stream.
        """
        started = time.monotonic()
        capacity = self._buffer if buffer is None else _at_least_1("buffer", buffer)
        mode: Errors = self._errors if errors is None else _one_of("errors", errors, get_args(Errors))
        _typed("request", request, ChatCompletionRequest)
        body = dumps(self._dialect.body(request, stream=True))
        if resume is not None:
            self._check_resume(resume, request)
        call = self._call(_CHAT, body, timeout, context, accept="text/event-stream")
        pipe: Pipe[CompletionChunk] = Pipe(capacity)
        if resume is None:
            head = self._start(call, started, request.n or 1, pipe)
        else:
            head = resuming.start(self._asker(request, call), call.context, call.retry, started, pipe)
        return CompletionStream(pipe, call.context, head, mode)

    def chat_completion(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> ChatCompletionResponse:
        """Return the whole answer, asked for without streaming.

        Args:
            request: What to ask for.
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer here.
            context: Cancels the call.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it, and nothing was sent.
            APIError: The server refused, or answered with an error.
            APIConnectionError: No (whole) answer came; `APITimeoutError` names the clock that ran out.
            StreamCancelledError: The context was cancelled.
            StreamDecodeError: The answer is no chat completion.
        """
        _typed("request", request, ChatCompletionRequest)
        body = dumps(self._dialect.body(request, stream=False))
        call = self._call(_CHAT, body, timeout, context)
        return self._fetched(call, "a chat completion", "choices", ChatCompletionResponse.from_dict)

    def embeddings(
        self,
        request: EmbeddingRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> EmbeddingResponse:
        """Return the vectors of texts.

        Args:
            request: What to embed.
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer.
            context: Cancels the call.

        Raises:
            As `chat_completion`.
        """
        _typed("request", request, EmbeddingRequest)
        call = self._call("/embeddings", dumps(self._dialect.embedding_body(request)), timeout, context)
        answer: EmbeddingResponse = self._fetched(call, "embeddings", "data", EmbeddingResponse.from_dict)
        object.__setattr__(answer, "dtype", request.output_dtype or "float")
        return answer

    def list_models(self, *, timeout: Timeout | float | None = None, context: Context | None = None) -> list[ModelCard]:
        """Return the models that the server has, in its order.

        Args:
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer.
            context: Cancels the call.

        Raises:
            As `chat_completion`.
        """
        call = self._call("/models", None, timeout, context)
        return list(self._fetched(call, "a list of models", "data", ModelList.from_dict).data)

    def search_models(
        self,
        capabilities: ModelCapabilities,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> list[ModelCard]:
        """Return the models that have all these capabilities; arguments and errors otherwise as `list_models`.

        Of the servers known here only Mistral's say what their models can do; others' models are found for an empty
        `ModelCapabilities` only.
        """
        _typed("capabilities", capabilities, ModelCapabilities)
        return [card for card in self.list_models(timeout=timeout, context=context) if card.can(capabilities)]

    def get_model(
        self, model_id: str, *, timeout: Timeout | float | None = None, context: Context | None = None
    ) -> ModelCard:
        """Return one model; arguments and errors otherwise as `list_models`.

        Raises:
            NotFoundError: The server does not have it.
        """
        call = self._call(f"/models/{_in_a_path('model_id', model_id)}", None, timeout, context)
        return self._fetched(call, "a model", "id", ModelCard.from_dict)

    def close(self) -> None:
        """Close the connections that no stream uses. The client can still be used: it makes new ones."""
        self._transport.close()

    def _call(
        self,
        path: str,
        body: bytes | None,
        timeout: Timeout | float | None,
        context: Context | None,
        *,
        accept: str = "application/json",
    ) -> Call:
        """Return the call for a request, with a context of its own; all that can be wrong with it is told here."""
        clocks = self._timeout if timeout is None else Timeout.of(timeout)
        parent = Context() if context is None else _typed("context", context, Context)
        own = parent.with_cancel()
        if clocks.total is not None:
            own.expire_in(clocks.total, APITimeoutError(clock="total", seconds=clocks.total))
        method = "GET" if body is None else "POST"
        return Call(method=method, path=path, body=body, accept=accept, context=own, timeout=clocks, retry=self._retry)

    def _start(self, call: Call, started: float, n: int, pipe: Pipe[CompletionChunk]) -> ResponseHead:
        """Send a call and see to it that the chunks of the answer come into ``pipe``; return the answer's head."""
        try:
            answer = self._transport.open(call)
        except BaseException:
            call.context.release()
            raise
        machine = StreamMachine(
            started,
            content_type=answer.head.content_type,
            n=n,
            max_event_bytes=self._max_event_bytes,
            require_finish_reason=self._require_finish_reason,
            secret=self._transport.secret,
        )
        start = threaded.start if self._engine == "threaded" else poller.start
        start(call, answer, machine, pipe)
        return answer.head

    def _check_resume(self, resume: str, request: ChatCompletionRequest) -> None:
        _one_of("resume", resume, ("prefix",))
        if not self._dialect.takes_prefix:
            raise ValueError(f"resume: the {self._dialect.name!r} dialect does not go on from a prefix")
        if (request.n or 1) > 1:
            raise ValueError(f"resume: only one choice can be gone on with, and n is {request.n}")
        if getattr(request.messages[-1], "prefix", None):
            raise ValueError("resume: the last message is a prefix already")

    def _asker(self, request: ChatCompletionRequest, call: Call) -> resuming.Ask:
        """Return what asks for the rest of the answer to a request, under the call's context."""

        def ask(so_far: str, since: float, pipe: Pipe[CompletionChunk]) -> ResponseHead:
            part = attrs.evolve(call, context=call.context.with_cancel())
            if so_far:
                messages = [*request.messages, AssistantMessage(so_far, prefix=True)]
                rest = attrs.evolve(request, messages=messages)
                part = attrs.evolve(part, body=dumps(self._dialect.body(rest, stream=True)))
            return self._start(part, since, 1, pipe)

        return ask

    def _fetched(self, call: Call, what: str, key: str, load: Callable[[Any], M]) -> M:
        """Return the whole answer to a call: ``what``, a JSON object with this key."""
        started = time.monotonic()
        try:
            head, body = self._transport.fetch(call)
        finally:
            call.context.release()
        try:
            answer = _answer(body, head.content_type, what, key, load)
        except (StreamAPIError, StreamDecodeError) as error:
            redact(error, self._transport.secret)
            raise
        if hasattr(answer, "latency"):
            object.__setattr__(answer, "latency", time.monotonic() - started)
        return answer

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]  # a copy is made as the original was

    def __repr__(self) -> str:
        return f"<Client {self._dialect.name} {self._base_url}>"


def _answer(body: bytes, content_type: str, what: str, key: str, load: Callable[[Any], M]) -> M:
    try:
        data = best_loads()(body)
        if isinstance(data, dict) and key not in data and (data.get("error") or data.get("object") == "error"):
            raise StreamAPIError.from_body(data)
        answer = load(data)
    except (TypeError, ValueError) as error:
        start = " ".join(body[:200].decode("utf-8", "replace").split())
        raise StreamDecodeError(f"expected {what}, got {content_type}: {start!r} ({error})") from None
    if hasattr(answer, "raw"):
        object.__setattr__(answer, "raw", data)
    return answer


def _in_a_path(name: str, value: str) -> str:
    """Return an id as a part of a URL's path; ids with a slash, as ``openai/gpt-oss-20b``, keep it."""
    parts = _typed(name, value, str).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name}: expected an id, got {value!r}")
    return "/".join(quote(part, safe=":@") for part in parts)


def _dialect(value: str | Dialect) -> Dialect:
    if isinstance(value, Dialect):
        return value
    return DIALECTS[_one_of("dialect", value, tuple(DIALECTS))]


def _key(given: str | None, dialect: Dialect) -> str:
    key = os.environ.get(dialect.key_variable) if given is None else given
    if key is None:
        raise ChanstreamError(f"no API key: pass api_key=, or set {dialect.key_variable} (api_key='' sends none)")
    if not isinstance(key, str):
        raise TypeError(f"api_key: expected a text, got {type(key).__name__}")
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("api_key: expected printable ASCII; the key has other characters in it")  # never shown
    return key


def _base_url(value: str) -> str:
    """Return the URL that paths are appended to."""
    given, value = value, _typed("base_url", value, str).strip()
    if "@" in value or "?" in value or "#" in value:
        raise ValueError("base_url: expected a URL without user, query and fragment")  # not shown: it may hold a secret
    try:
        parts = urlsplit(value)
        if "[" in parts.netloc:
            ipaddress.ip_address(parts.hostname or "")  # older Pythons do not look what is in the brackets
        host_and_port = _HOST.fullmatch(parts.hostname or ""), parts.port
    except ValueError:  # a port that is no number, half a bracket
        raise ValueError(f"base_url: expected an http or https URL, got {given!r}") from None
    if parts.scheme not in ("http", "https") or not host_and_port[0] or host_and_port[1] == 0 or _BLANK.search(value):
        raise ValueError(f"base_url: expected an http or https URL, got {given!r}")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


_HOST = re.compile(r"[^.*%\\][^*%\\]*")
_BLANK = re.compile(r"[\x00-\x20\x7f]")


def _typed(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value


def _at_least_1(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value!r}")
    return value


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: expected {', '.join(map(repr, allowed))}, got {value!r}")
    return value

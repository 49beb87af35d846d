"""The client: composes request, transport, engine and stream. It parses nothing and starts no thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

import attrs

from . import __version__
from .arguments import asked, at_least_1, base_url_of, dialect_of, in_a_path, key_of, limiter_of, one_of, typed
from .channel import Pipe
from .context import Context, Timeout
from .dialects import Completion, Dialect
from .engines import poller, resuming, threaded
from .errors import (
    APITimeoutError,
    BadRequestError,
    ChanstreamError,
    StreamAPIError,
    StreamDecodeError,
    UnprocessableEntityError,
    redact,
)
from .extras import Extras
from .models.catalog import ModelCapabilities, ModelCard, ModelList
from .models.chat import (
    AgentCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    FIMCompletionRequest,
)
from .models.chunk import CompletionChunk
from .models.codec import dumps
from .models.embeddings import EmbeddingRequest, EmbeddingResponse
from .models.messages import AssistantMessage
from .observers import Observer, Observers, Watch
from .stream import CompletionStream, Errors
from .transport.limits import RateLimiter
from .transport.retry import Retry
from .transport.session import Answer, Call, Transport
from .wire.answers import answer_of
from .wire.machine import MAX_EVENT_BYTES, StreamMachine
from .wire.thinking import ThinkingMachine, parted

if TYPE_CHECKING:
    import requests

Engine: TypeAlias = Literal["auto", "threaded", "poller"]

M = TypeVar("M")

_NOBODY = nullcontext()
"""In place of a watch where there are no observers."""

_EMBEDDINGS = "/embeddings"


@attrs.frozen(kw_only=True)
class Terms:
    """What one call keeps to, whoever does what it asks for.

    Attributes:
        clocks: Without the total, which the context keeps.
        context: The call's own. buffer: The capacity of its channel. errors: How its stream gives errors.
        think_tags: Whether thoughts are parted from the text.
    """

    clocks: Timeout
    context: Context
    buffer: int
    errors: Errors
    think_tags: bool


@attrs.frozen
class _Options:
    """What is said for one call; None for what is as the client's."""

    timeout: Timeout | float | None = None
    context: Context | None = None
    extras: Extras | None = None
    buffer: int | None = None
    errors: Errors | None = None
    resume: Literal["prefix"] | None = None


@attrs.frozen
class _Opening:
    """A stream that waits for its head."""

    started: float
    start: Callable[[Call, Answer, StreamMachine, Pipe[CompletionChunk]], None]
    buffer: int
    errors: Errors
    machine: Callable[..., StreamMachine]
    call: Call

    def stream(self, answer: Answer) -> CompletionStream:
        """Return the stream, now that the head is in."""
        machine = self.machine(self.started, content_type=answer.head.content_type)
        pipe: Pipe[CompletionChunk] = Pipe(self.buffer)
        self.start(self.call, answer, machine, pipe)
        return CompletionStream(pipe, self.call.context, answer.head, self.errors)


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
        think_tags: Whether an answer that begins with ``<think>...</think>`` is parted: ``reasoning`` has what stands
            between the tags, ``text`` what follows them. For servers that send thoughts inside the text.
        max_event_bytes: The largest event of a stream that is read, in bytes.
        rate_limiter: Asked before each attempt; see `RateLimiter`, and `chanstream.limits` for ready ones.
        extra_body: Members of the JSON object that every request sends in addition to its own, or over them.
        extra_headers: Headers that every request sends in addition.
        extra_query: Parts of the URL's query, for every request. Those of a call come over these, here as above.
        session: A `requests.Session` to use, with its adapters, proxies, CA and certificates. It stays the caller's to
            close. A request that it sends can be cut only once its head is in.
        observers: Callables that are told what happens in each call; see `chanstream.observers`.

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
        think_tags: bool = False,
        max_event_bytes: int = MAX_EVENT_BYTES,
        rate_limiter: RateLimiter | None = None,
        session: requests.Session | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._dialect = dialect_of(dialect)
        self._base_url = base_url_of(self._dialect.base_url if base_url is None else base_url)
        self._timeout = Timeout() if timeout is None else Timeout.of(timeout)
        self._retry = typed("retry", Retry() if retry is None else retry, Retry)
        self._buffer = at_least_1("buffer", buffer)
        self._engine = one_of("engine", engine, get_args(Engine))
        self._errors: Errors = one_of("errors", errors, get_args(Errors))
        self._require_finish_reason = typed("require_finish_reason", require_finish_reason, bool)
        self._think_tags = typed("think_tags", think_tags, bool)
        self._max_event_bytes = at_least_1("max_event_bytes", max_event_bytes)
        self._limiter = limiter_of(rate_limiter)
        self._extras = Extras(extra_body, extra_headers, extra_query)
        self._observers = Observers(observers)
        self._settings: dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "dialect": dialect,
            "timeout": timeout,
            "retry": retry,
            "buffer": buffer,
            "engine": engine,
            "errors": errors,
            "require_finish_reason": require_finish_reason,
            "think_tags": think_tags,
            "max_event_bytes": max_event_bytes,
            "rate_limiter": rate_limiter,
            "session": session,
            "extra_body": extra_body,
            "extra_headers": extra_headers,
            "extra_query": extra_query,
            "observers": self._observers.all,
        }
        headers = {"User-Agent": f"chanstream/{__version__}"}
        self._transport = Transport(self._base_url, key_of(api_key, self._dialect), headers, session)

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
            extra_body: Members of the JSON object, in addition to the request's, or over them.
            extra_headers: Headers in addition.
            extra_query: Parts of the URL's query.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it, and nothing was sent.
            APIStatusError: The server refused; by status, see `chanstream.errors`.
            APIConnectionError: No answer came; `APITimeoutError` names the clock that ran out.
            StreamCancelledError: The context was cancelled.

        What goes wrong after the head is in comes with the stream.
        """
        asked(request, ChatCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._streamed(request, _Options(timeout, context, extras, buffer, errors, resume))

    async def chat_completion_stream_async(
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
        """Return as `chat_completion_stream`, from an event loop of asyncio, which goes on meanwhile.

        ::

            async for evt in await client.chat_completion_stream_async(request):
                ...

        Cancelling the task cancels the request, and a stream that is left early is closed. However many streams there
        are, no thread waits for a head or for chunks: usually one connects and sends, and one reads.
        """
        from .transport.asynchronous import open_async  # with asyncio, which takes its time to load

        asked(request, ChatCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        opening = self._opening(request, _Options(timeout, context, extras, buffer, errors, resume))
        with self._opened(request, opening.call):
            answer = await open_async(self._transport, opening.call)
        return opening.stream(answer)

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
        """Return the whole answer, asked for without streaming.

        Args:
            request: What to ask for.
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer here.
            context: Cancels the call.
            extra_body: Members of the JSON object, in addition to the request's, or over them.
            extra_headers: Headers in addition.
            extra_query: Parts of the URL's query.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it, and nothing was sent.
            APIError: The server refused, or answered with an error.
            APIConnectionError: No (whole) answer came; `APITimeoutError` names the clock that ran out.
            StreamCancelledError: The context was cancelled.
            StreamDecodeError: The answer is no chat completion.
        """
        asked(request, ChatCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._completed(request, _Options(timeout, context, extras))

    def agent_completion_stream(
        self,
        request: AgentCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> CompletionStream:
        """Return a stream of an agent's answer; as `chat_completion_stream`. Only Mistral has agents."""
        asked(request, AgentCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._streamed(request, _Options(timeout, context, extras, buffer, errors))

    def agent_completion(
        self,
        request: AgentCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> ChatCompletionResponse:
        """Return an agent's whole answer; as `chat_completion`. Only Mistral has agents."""
        asked(request, AgentCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._completed(request, _Options(timeout, context, extras))

    def fim_completion_stream(
        self,
        request: FIMCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> CompletionStream:
        """Return a stream of code that fills a gap; as `chat_completion_stream`. Only Mistral fills in."""
        asked(request, FIMCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._streamed(request, _Options(timeout, context, extras, buffer, errors))

    def fim_completion(
        self,
        request: FIMCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> ChatCompletionResponse:
        """Return the whole code that fills a gap; as `chat_completion`. Only Mistral fills in."""
        asked(request, FIMCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        return self._completed(request, _Options(timeout, context, extras))

    def embeddings(
        self,
        request: EmbeddingRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> EmbeddingResponse:
        """Return the vectors of texts.

        Args:
            request: What to embed.
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer.
            context: Cancels the call.
            extra_body: Members of the JSON object, in addition to the request's, or over them.
            extra_headers: Headers in addition.
            extra_query: Parts of the URL's query.

        Raises:
            As `chat_completion`.
        """
        asked(request, EmbeddingRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        options = _Options(timeout, context, extras)
        call = self._call(_EMBEDDINGS, self._dialect.embedding_body(request), options, request)
        answer: EmbeddingResponse = self._fetched(call, "embeddings", "data", EmbeddingResponse.from_dict, request)
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
        call = self._call("/models", None, _Options(timeout, context))
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
        typed("capabilities", capabilities, ModelCapabilities)
        return [card for card in self.list_models(timeout=timeout, context=context) if card.can(capabilities)]

    def get_model(
        self, model_id: str, *, timeout: Timeout | float | None = None, context: Context | None = None
    ) -> ModelCard:
        """Return one model; arguments and errors otherwise as `list_models`.

        Raises:
            NotFoundError: The server does not have it.
        """
        call = self._call(f"/models/{in_a_path('model_id', model_id)}", None, _Options(timeout, context))
        return self._fetched(call, "a model", "id", ModelCard.from_dict)

    def with_options(
        self,
        *,
        timeout: Timeout | float | None = None,
        retry: Retry | None = None,
        max_retries: int | None = None,
        rate_limiter: RateLimiter | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
    ) -> Client:
        """Return a client with other settings that shares this one's connections; what is None stays as it is.

        Args:
            timeout: As for `Client`, and so are the others that are not described.
            retry: See there.
            max_retries: Tries after the first, with the rest of ``retry`` as it is; 0 for none.
            rate_limiter: See there.
            buffer: See there.
            errors: See there.
            extra_body: Added to those of this client.
            extra_headers: Likewise.
            extra_query: Likewise.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it.
        """
        if max_retries is not None:
            retry = attrs.evolve(self._retry if retry is None else retry, max_retries=max_retries)
        extras = self._extras.over(Extras(extra_body, extra_headers, extra_query))
        changes: dict[str, Any] = {
            "timeout": timeout,
            "retry": retry,
            "rate_limiter": rate_limiter,
            "buffer": buffer,
            "errors": errors,
            "extra_body": extras.body,
            "extra_headers": extras.headers,
            "extra_query": extras.query,
        }
        said = {name: value for name, value in changes.items() if value is not None}
        other = Client(**{**self._settings, **said, "api_key": self._transport.secret})  # its variable may be gone
        other._settings["api_key"] = self._settings["api_key"]
        other._transport = self._transport
        return other

    def close(self) -> None:
        """Close the connections that no stream uses. The client can still be used: it makes new ones."""
        self._transport.close()

    def _streamed(self, request: Completion, options: _Options) -> CompletionStream:
        opening = self._opening(request, options)
        with self._opened(request, opening.call):
            answer = self._transport.open(opening.call)
        return opening.stream(answer)

    def _opening(self, request: Completion, options: _Options) -> _Opening:
        """Return all that a stream needs before its answer; what can be wrong with it is told here."""
        started = time.monotonic()
        path, body = self._dialect.path_of(request), self._dialect.body(request, stream=True)
        if options.resume is not None:
            self._check_resume(options.resume, request, self._extras.over(options.extras))
        opening = _Opening(
            started,
            threaded.start if self._engine == "threaded" else poller.start,
            *self._ends(options),
            partial(
                ThinkingMachine if self._think_tags else StreamMachine,
                n=getattr(request, "n", None) or 1,
                max_event_bytes=self._max_event_bytes,
                require_finish_reason=self._require_finish_reason,
                secret=self._transport.secret,
            ),
            self._call(path, body, options, request, accept="text/event-stream"),
        )
        return opening if options.resume is None else self._resuming(request, options, opening)

    @contextmanager
    def _opened(self, request: Completion, call: Call) -> Iterator[None]:
        """Let the call's context go if no answer comes, and tell why."""
        with call.watch or _NOBODY:
            try:
                yield
            except BaseException as error:
                call.context.release()
                self._explain(error, request)
                raise

    def _completed(self, request: Completion, options: _Options) -> ChatCompletionResponse:
        path, body = self._dialect.path_of(request), self._dialect.body(request, stream=False)
        call = self._call(path, body, options, request)
        answer = self._fetched(call, "a chat completion", "choices", ChatCompletionResponse.from_dict, request)
        return parted(answer) if self._think_tags else answer

    def _explain(self, error: BaseException, request: Any) -> None:
        """Note which option of the request a refusal is about."""
        if request is not None and isinstance(error, (BadRequestError, UnprocessableEntityError)):
            error.option = self._dialect.option_in(error, request)

    def identity(
        self, request: Any, kind: type[ChatCompletionRequest | EmbeddingRequest], *, stream: bool = False
    ) -> dict[str, Any]:
        """Return what decides over the answer to a request, as a JSON object: all that would be sent but the key.

        :meta private:

        Raises:
            TypeError, ValueError: The request cannot be sent; the text says why.
        """
        asked(request, kind)
        if isinstance(request, EmbeddingRequest):
            path, body = _EMBEDDINGS, self._dialect.embedding_body(request)
        else:
            path, body = self._dialect.path_of(request), self._dialect.body(request, stream=stream)
        return {
            "dialect": self._dialect.name,
            "url": self._base_url + path,
            "stream": stream,
            "body": {**body, **self._extras.body},
            "headers": self._extras.headers,
            "query": self._extras.query,
            "think_tags": self._think_tags,
            **({"require_finish_reason": True} if self._require_finish_reason else {}),  # it takes fewer answers
        }

    def terms(
        self,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
    ) -> Terms:
        """Return what a call with these arguments keeps to.

        :meta private:

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it.
        """
        options = _Options(timeout, context, None, buffer, errors)
        capacity, mode = self._ends(options)
        clocks, own = self._own_context(options)
        return Terms(
            clocks=attrs.evolve(clocks, total=None),
            context=own,
            buffer=capacity,
            errors=mode,
            think_tags=self._think_tags,
        )

    def _ends(self, options: _Options) -> tuple[int, Errors]:
        """Return the capacity of a stream's channel, and how it gives errors."""
        return (
            self._buffer if options.buffer is None else at_least_1("buffer", options.buffer),
            self._errors if options.errors is None else one_of("errors", options.errors, get_args(Errors)),
        )

    def _own_context(self, options: _Options) -> tuple[Timeout, Context]:
        """Return the clocks of a call, and a context of its own that keeps the total."""
        clocks = self._timeout if options.timeout is None else Timeout.of(options.timeout)
        parent = Context() if options.context is None else typed("context", options.context, Context)
        own = parent.with_cancel()
        if clocks.total is not None:
            own.expire_in(clocks.total, APITimeoutError(clock="total", seconds=clocks.total))
        return clocks, own

    def _call(
        self,
        path: str,
        body: dict[str, Any] | None,
        options: _Options,
        request: Any = None,
        *,
        accept: str = "application/json",
    ) -> Call:
        """Return the call for a request, with a context of its own; all that can be wrong with it is told here."""
        extras = self._extras.over(options.extras)
        data = None if body is None else dumps({**body, **extras.body})
        clocks, own = self._own_context(options)
        return Call(
            method="GET" if body is None else "POST",
            path=path,
            body=data,
            accept=accept,
            context=own,
            timeout=clocks,
            retry=self._retry,
            limiter=self._limiter,
            headers=extras.headers,
            query=extras.query,
            watch=self._watch(path, request, stream=accept == "text/event-stream"),
        )

    def _watch(self, path: str, request: Any, *, stream: bool, since: float | None = None) -> Watch | None:
        """Return what tells the observers of a call that begins now; None where there are none."""
        about = {"dialect": self._dialect.name, "base_url": self._base_url, "path": path, "stream": stream}
        if since is not None:  # when latencies count from: else the call would end before all that it took had passed
            about |= {"started": since, "started_at": time.time() - (time.monotonic() - since)}
        return self._observers.watch(request=request, **about)

    def check(self, request: ChatCompletionRequest, *, stream: bool, resume: str | None = None) -> None:
        """Raise what is wrong with a request for this client; sends nothing.

        :meta private:
        """
        self._dialect.body(request, stream=stream)
        if resume is not None:
            self._check_resume(resume, request, self._extras)

    def _check_resume(self, resume: str, request: Any, extras: Extras) -> None:
        one_of("resume", resume, ("prefix",))
        if not self._dialect.takes_prefix:
            raise ValueError(f"resume: servers of the {self._dialect.name!r} dialect do not continue from a prefix")
        for name in ("messages", "n"):
            if name in extras.body:
                raise ValueError(f"resume: extra_body has {name!r}, which has to be the request's own")
        if (request.n or 1) > 1:
            raise ValueError(f"resume: only an answer with one choice can be resumed, and n is {request.n}")
        if getattr(request.messages[-1], "prefix", None):
            raise ValueError("resume: the last message is a prefix already")

    def _resuming(self, request: Any, options: _Options, opening: _Opening) -> _Opening:
        """Return the opening of a stream that goes on after a cut."""
        extras = self._extras.over(options.extras)

        def rest(so_far: str, since: float, context: Context) -> tuple[Call, Answer, StreamMachine]:
            messages = [*request.messages, AssistantMessage(so_far, prefix=True)]
            body = self._dialect.body(attrs.evolve(request, messages=messages), stream=True)
            watch = self._watch(
                opening.call.path, request, stream=True, since=since
            )  # observers see a call for each part
            call = attrs.evolve(opening.call, body=dumps({**body, **extras.body}), context=context, watch=watch)
            with self._opened(request, call):
                answer = self._transport.open(call)
            return call, answer, opening.machine(since, content_type=answer.head.content_type)

        start = partial(resuming.start, begin=opening.start, rest=rest, started=opening.started)
        return attrs.evolve(opening, start=start)

    def _fetched(self, call: Call, what: str, key: str, load: Callable[[Any], M], request: Any = None) -> M:
        """Return the whole answer to a call: ``what``, a JSON object with this key."""
        with call.watch or _NOBODY:
            answer = self._answered(call, what, key, load, request)
            if call.watch is not None:
                call.watch.answered(answer)
            return answer

    def _answered(self, call: Call, what: str, key: str, load: Callable[[Any], M], request: Any) -> M:
        started = time.monotonic()
        try:
            head, body = self._transport.fetch(call)
        except ChanstreamError as error:
            self._explain(error, request)
            raise
        finally:
            call.context.release()
        try:
            answer = answer_of(body, head.content_type, what, key, load)
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

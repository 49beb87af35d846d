"""The client, as its users see it. It parses nothing and starts no thread of its own; `calls` does what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs

from . import __version__
from .arguments import asked, at_least_1, base_url_of, dialect_of, in_a_path, key_of, limiter_of, one_of, typed
from .calls import Caller, Engine, Options
from .context import Context, Timeout
from .dialects import Dialect
from .extras import Extras
from .models.catalog import ModelCapabilities, ModelCard, ModelList
from .models.chat import (
    AgentCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    FIMCompletionRequest,
)
from .models.embeddings import EmbeddingRequest, EmbeddingResponse
from .observers import Observer, Observers
from .stream import CompletionStream, Errors
from .transport.limits import RateLimiter
from .transport.retry import Retry
from .transport.session import Tally, Transport
from .wire.machine import MAX_EVENT_BYTES

if TYPE_CHECKING:
    import os
    from concurrent.futures import Executor

    import requests

    from .batch import Batch, BatchProgress


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
        kind = dialect_of(dialect)
        headers = {"User-Agent": f"chanstream/{__version__}"}
        url = base_url_of(kind.base_url if base_url is None else base_url)
        watchers = Observers(observers)
        self._caller = Caller(
            dialect=kind,
            origin=url,
            timeout=Timeout() if timeout is None else Timeout.of(timeout),
            retry=typed("retry", Retry() if retry is None else retry, Retry),
            buffer=at_least_1("buffer", buffer),
            engine=one_of("engine", engine, get_args(Engine)),
            errors=one_of("errors", errors, get_args(Errors)),
            require_finish_reason=typed("require_finish_reason", require_finish_reason, bool),
            think_tags=typed("think_tags", think_tags, bool),
            max_event_bytes=at_least_1("max_event_bytes", max_event_bytes),
            limiter=limiter_of(rate_limiter),
            extras=Extras(extra_body, extra_headers, extra_query),
            observers=watchers,
            transport=Transport(url, key_of(api_key, kind), headers, session),
        )
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
            "observers": watchers.all,
        }

    @property
    def caller(self) -> Caller:
        """What makes its calls.

        :meta private:
        """
        return self._caller

    def _ready(self) -> Caller:
        """Return it for a call that comes now."""
        return self._caller

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
        return self._ready().streamed(request, Options(timeout, context, extras, buffer, errors, resume))

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
        asked(request, ChatCompletionRequest)
        extras = Extras.of(extra_body, extra_headers, extra_query)
        options = Options(timeout, context, extras, buffer, errors, resume)
        return await self._ready().streamed_async(request, options)

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
        return self._ready().completed(request, Options(timeout, context, extras))

    def collected(
        self,
        request: ChatCompletionRequest,
        tally: Tally,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> ChatCompletionResponse:
        """Return the whole answer, which is streamed, and note in the tally how it came.

        :meta private:
        """
        asked(request, ChatCompletionRequest)
        return self._ready().collected(request, Options(timeout, context), tally)

    def batch(
        self,
        requests: Iterable[ChatCompletionRequest | tuple[str, ChatCompletionRequest]],
        *,
        concurrency: int = 16,
        ordered: bool = False,
        progress: bool | Callable[[BatchProgress], object] = False,
        journal: str | os.PathLike[str] | None = None,
        retry_failed: bool = False,
        adaptive: bool = False,
        stop_on_error: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> Batch:
        """Return an iterator of the results of many requests, of which so many are asked at the same time.

        ::

            for result in client.batch(requests, concurrency=32):
                if result.error:
                    print(result.id, result.error)
                else:
                    print(result.id, result.response.text)

        Requests are taken from their iterable as there is room for them, by a thread of the batch, so it may be
        endless. One that fails stops no other. The work begins with the first result that is asked for.

        Args:
            requests: What to ask for: requests, or pairs of an id and a request, which then all are.
            concurrency: How many requests are on their way at the same time; with ``adaptive``, at most.
            ordered: Whether results come in the order of the requests, and not as they are ready.
            progress: True for a bar on standard error (extra ``batch``), or what is called with a `BatchProgress` for
                each result.
            journal: The path of a file that keeps each result before it is given, and from which a batch that was
                broken off goes on.
            retry_failed: Whether what failed according to the journal is asked again.
            adaptive: Whether the concurrency follows the server's refusals (429), ``Retry-After`` and rate limits.
            stop_on_error: Whether the first failure ends the batch: its result is given, and then its error raised.
            executor: Where the work is done, instead of in threads of its own: any executor of `concurrent.futures`, or
                Dask's ``dask_client.get_executor()``; it stays the caller's. Or a callable that makes one, such as
                `ProcessPoolExecutor` itself: it is called again if a process of the pool is killed.
            timeout: The clocks of each request, instead of the client's; a bare number is the total, in seconds.
            context: Cancels the batch.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it.
            ImportError: An extra is not installed.
        """
        from .batch import Batch, Plan

        plan = Plan(
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            journal=journal,
            retry_failed=retry_failed,
            adaptive=adaptive,
            stop_on_error=stop_on_error,
            executor=executor,
            timeout=timeout,
            context=context,
        )
        return Batch(self, requests, plan, self._caller.retry)

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
        return self._ready().streamed(request, Options(timeout, context, extras, buffer, errors))

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
        return self._ready().completed(request, Options(timeout, context, extras))

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
        return self._ready().streamed(request, Options(timeout, context, extras, buffer, errors))

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
        return self._ready().completed(request, Options(timeout, context, extras))

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
        return self._ready().embedded(request, Options(timeout, context, extras))

    def list_models(self, *, timeout: Timeout | float | None = None, context: Context | None = None) -> list[ModelCard]:
        """Return the models that the server has, in its order.

        Args:
            timeout: The clocks of this call, instead of the client's; ``first_chunk`` covers the whole answer.
            context: Cancels the call.

        Raises:
            As `chat_completion`.
        """
        options = Options(timeout, context)
        models = self._ready().looked_up("/models", options, "a list of models", "data", ModelList.from_dict)
        return list(models.data)

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
        path = f"/models/{in_a_path('model_id', model_id)}"
        return self._ready().looked_up(path, Options(timeout, context), "a model", "id", ModelCard.from_dict)

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
            retry = attrs.evolve(self._caller.retry if retry is None else retry, max_retries=max_retries)
        extras = self._caller.extras.over(Extras(extra_body, extra_headers, extra_query))
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
        own = self._caller
        other = Client(**{**self._settings, **said, "api_key": own.transport.secret})  # its variable may be gone
        other._settings["api_key"] = self._settings["api_key"]
        other._caller = attrs.evolve(other._caller, transport=own.transport, origin=own.origin)
        return other

    def close(self) -> None:
        """Close the connections that no stream uses. The client can still be used: it makes new ones."""
        self._caller.transport.close()

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
        return f"<Client {self._caller.dialect.name} {self._caller.transport.base_url}>"

"""What a client's settings make of a request: a call, and of its answer a stream or a value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import attrs

from .arguments import asked, at_least_1, one_of, typed
from .channel import Pipe
from .context import Context, Timeout
from .dialects import Completion, Dialect
from .engines import collecting, poller, resuming, threaded
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
from .models.chat import ChatCompletionRequest, ChatCompletionResponse
from .models.chunk import CompletionChunk
from .models.codec import dumps
from .models.embeddings import EmbeddingRequest, EmbeddingResponse
from .models.messages import AssistantMessage
from .observers import Observers, Watch
from .stream import CompletionStream, Errors
from .transport.limits import RateLimiter
from .transport.retry import Retry
from .transport.session import Answer, Call, Tally, Transport
from .wire.answers import answer_of
from .wire.machine import StreamMachine
from .wire.thinking import ThinkingMachine, parted

Engine: TypeAlias = Literal["auto", "threaded", "poller"]

M = TypeVar("M")

_NOBODY = nullcontext()
"""In place of a watch where there are no observers."""

_EMBEDDINGS = "/embeddings"


@attrs.frozen
class Options:
    """What is said for one call; None for what is as the client's."""

    timeout: Timeout | float | None = None
    context: Context | None = None
    extras: Extras | None = None
    buffer: int | None = None
    errors: Errors | None = None
    resume: Literal["prefix"] | None = None
    tally: Tally | None = None


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
class Opening:
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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Caller:
    """Makes a client's calls.

    Attributes:
        transport: What sends them. The other settings are as a `Client` takes them, checked.
        origin: What tells answers that are kept from those of other servers.
        on_call: Called with the context of each call.

    Thread safety: every method may be called from any thread.
    """

    transport: Transport
    dialect: Dialect
    origin: str
    timeout: Timeout
    retry: Retry
    limiter: RateLimiter | None
    engine: Engine
    buffer: int
    errors: Errors
    require_finish_reason: bool
    think_tags: bool
    max_event_bytes: int
    extras: Extras
    observers: Observers
    on_call: Callable[[Context], object] | None = None

    # -- what a client is asked for -----------------------------------------------------------------------------------

    def streamed(self, request: Completion, options: Options) -> CompletionStream:
        """Return the stream of an answer, once its head is in."""
        opening = self._opening(request, options)
        with self._opened(request, opening.call):
            answer = self.transport.open(opening.call)
        return opening.stream(answer)

    async def streamed_async(self, request: Completion, options: Options) -> CompletionStream:
        """Return as `streamed`, from an event loop of asyncio, which goes on meanwhile."""
        from .transport.asynchronous import open_async  # with asyncio, which takes its time to load

        opening = self._opening(request, options)
        with self._opened(request, opening.call):
            answer = await open_async(self.transport, opening.call)
        return opening.stream(answer)

    def collected(self, request: Completion, options: Options, tally: Tally) -> ChatCompletionResponse:
        """Return the whole answer, which is streamed, and note in the tally how it came."""
        opening = self._opening(request, attrs.evolve(options, tally=tally))
        with self._opened(request, opening.call):
            answer = self.transport.open(opening.call)
        tally.head = answer.head
        machine = opening.machine(opening.started, content_type=answer.head.content_type)
        return collecting.collect(opening.call, answer, machine, takes_over=self.engine != "threaded")

    def completed(self, request: Completion, options: Options) -> ChatCompletionResponse:
        """Return the whole answer, asked for without streaming."""
        path, body = self.dialect.path_of(request), self.dialect.body(request, stream=False)
        call = self._call(path, body, options, request)
        answer = self._fetched(call, "a chat completion", "choices", ChatCompletionResponse.from_dict, request)
        return parted(answer) if self.think_tags else answer

    def embedded(self, request: EmbeddingRequest, options: Options) -> EmbeddingResponse:
        """Return the vectors of texts."""
        call = self._call(_EMBEDDINGS, self.dialect.embedding_body(request), options, request)
        answer: EmbeddingResponse = self._fetched(call, "embeddings", "data", EmbeddingResponse.from_dict, request)
        object.__setattr__(answer, "dtype", request.output_dtype or "float")
        return answer

    def looked_up(self, path: str, options: Options, what: str, key: str, load: Callable[[Any], M]) -> M:
        """Return what is there at a path: ``what``, a JSON object with this key."""
        return self._fetched(self._call(path, None, options), what, key, load)

    # -- what others of the house ask ---------------------------------------------------------------------------------

    def identity(
        self, request: Any, kind: type[ChatCompletionRequest | EmbeddingRequest], *, stream: bool = False
    ) -> dict[str, Any]:
        """Return what decides over the answer to a request, as a JSON object: all that would be sent but the key.

        Raises:
            TypeError, ValueError: The request cannot be sent; the text says why.
        """
        asked(request, kind)
        if isinstance(request, EmbeddingRequest):
            path, body = _EMBEDDINGS, self.dialect.embedding_body(request)
        else:
            path, body = self.dialect.path_of(request), self.dialect.body(request, stream=stream)
        return {
            "dialect": self.dialect.name,
            "url": self.origin + path,
            "stream": stream,
            "body": {**body, **self.extras.body},
            "headers": self.extras.headers,
            "query": self.extras.query,
            "think_tags": self.think_tags,
            **({"require_finish_reason": True} if self.require_finish_reason else {}),  # it takes fewer answers
        }

    def terms(self, options: Options) -> Terms:
        """Return what a call with these options keeps to.

        Raises:
            TypeError, ValueError: An argument is wrong; the text names it.
        """
        capacity, mode = self._ends(options)
        clocks, own = self._own_context(options)
        return Terms(
            clocks=attrs.evolve(clocks, total=None),
            context=own,
            buffer=capacity,
            errors=mode,
            think_tags=self.think_tags,
        )

    def check(self, request: ChatCompletionRequest, *, stream: bool, resume: str | None = None) -> None:
        """Raise what is wrong with a request for this client; sends nothing."""
        self.dialect.body(request, stream=stream)
        if resume is not None:
            self._check_resume(resume, request, self.extras)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(
        self,
        path: str,
        body: dict[str, Any] | None,
        options: Options,
        request: Any = None,
        *,
        accept: str = "application/json",
    ) -> Call:
        """Return the call for a request, with a context of its own; all that can be wrong with it is told here."""
        extras = self.extras.over(options.extras)
        data = None if body is None else dumps({**body, **extras.body})
        clocks, own = self._own_context(options)
        if self.on_call is not None:
            self.on_call(own)
        return Call(
            method="GET" if body is None else "POST",
            path=path,
            body=data,
            accept=accept,
            context=own,
            timeout=clocks,
            retry=self.retry,
            limiter=self.limiter,
            headers=extras.headers,
            query=extras.query,
            watch=self._watch(path, request, stream=accept == "text/event-stream"),
            tally=options.tally,
        )

    def _own_context(self, options: Options) -> tuple[Timeout, Context]:
        """Return the clocks of a call, and a context of its own that keeps the total."""
        clocks = self.timeout if options.timeout is None else Timeout.of(options.timeout)
        own = Context() if options.context is None else typed("context", options.context, Context).with_cancel()
        if clocks.total is not None:
            own.expire_in(clocks.total, APITimeoutError(clock="total", seconds=clocks.total))
        return clocks, own

    def _watch(self, path: str, request: Any, *, stream: bool, since: float | None = None) -> Watch | None:
        """Return what tells the observers of a call that begins now; None where there are none."""
        about = {"dialect": self.dialect.name, "base_url": self.transport.base_url, "path": path, "stream": stream}
        if since is not None:  # when latencies count from: else the call would end before all that it took had passed
            about |= {"started": since, "started_at": time.time() - (time.monotonic() - since)}
        return self.observers.watch(request=request, **about)

    def _explain(self, error: BaseException, request: Any) -> None:
        """Note which option of the request a refusal is about."""
        if request is not None and isinstance(error, (BadRequestError, UnprocessableEntityError)):
            error.option = self.dialect.option_in(error, request)

    # -- streams ------------------------------------------------------------------------------------------------------

    def _opening(self, request: Completion, options: Options) -> Opening:
        """Return all that a stream needs before its answer; what can be wrong with it is told here."""
        started = time.monotonic()
        path, body = self.dialect.path_of(request), self.dialect.body(request, stream=True)
        if options.resume is not None:
            self._check_resume(options.resume, request, self.extras.over(options.extras))
        opening = Opening(
            started,
            threaded.start if self.engine == "threaded" else poller.start,
            *self._ends(options),
            partial(
                ThinkingMachine if self.think_tags else StreamMachine,
                n=getattr(request, "n", None) or 1,
                max_event_bytes=self.max_event_bytes,
                require_finish_reason=self.require_finish_reason,
                secret=self.transport.secret,
            ),
            self._call(path, body, options, request, accept="text/event-stream"),
        )
        return opening if options.resume is None else self._resuming(request, options, opening)

    def _ends(self, options: Options) -> tuple[int, Errors]:
        """Return the capacity of a stream's channel, and how it gives errors."""
        return (
            self.buffer if options.buffer is None else at_least_1("buffer", options.buffer),
            self.errors if options.errors is None else one_of("errors", options.errors, get_args(Errors)),
        )

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

    def _check_resume(self, resume: str, request: Any, extras: Extras) -> None:
        one_of("resume", resume, ("prefix",))
        if not self.dialect.takes_prefix:
            raise ValueError(f"resume: servers of the {self.dialect.name!r} dialect do not continue from a prefix")
        for name in ("messages", "n"):
            if name in extras.body:
                raise ValueError(f"resume: extra_body has {name!r}, which has to be the request's own")
        if (request.n or 1) > 1:
            raise ValueError(f"resume: only an answer with one choice can be resumed, and n is {request.n}")
        if getattr(request.messages[-1], "prefix", None):
            raise ValueError("resume: the last message is a prefix already")

    def _resuming(self, request: Any, options: Options, opening: Opening) -> Opening:
        """Return the opening of a stream that goes on after a cut."""
        extras = self.extras.over(options.extras)

        def rest(so_far: str, since: float, context: Context) -> tuple[Call, Answer, StreamMachine]:
            messages = [*request.messages, AssistantMessage(so_far, prefix=True)]
            body = self.dialect.body(attrs.evolve(request, messages=messages), stream=True)
            # Observers see a call for each part.
            watch = self._watch(opening.call.path, request, stream=True, since=since)
            call = attrs.evolve(opening.call, body=dumps({**body, **extras.body}), context=context, watch=watch)
            with self._opened(request, call):
                answer = self.transport.open(call)
            return call, answer, opening.machine(since, content_type=answer.head.content_type)

        start = partial(resuming.start, begin=opening.start, rest=rest, started=opening.started)
        return attrs.evolve(opening, start=start)

    # -- whole answers ------------------------------------------------------------------------------------------------

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
            head, body = self.transport.fetch(call)
        except ChanstreamError as error:
            self._explain(error, request)
            raise
        finally:
            call.context.release()
        try:
            answer = answer_of(body, head.content_type, what, key, load)
        except (StreamAPIError, StreamDecodeError) as error:
            redact(error, self.transport.secret)
            raise
        if hasattr(answer, "latency"):
            object.__setattr__(answer, "latency", time.monotonic() - started)
        return answer

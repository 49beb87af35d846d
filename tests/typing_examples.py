"""What the public names mean to a type checker: this file is checked, by mypy in its strict mode, and never run.

Each pair of lines holds one type from two sides: it can be assigned to what it is, and not to what it is not. The
second would pass for ``Any``, and then mypy calls its ignore unused.
"""

# ruff: noqa: F841 - what is assigned is there for its type

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Literal

import chanstream
from chanstream import (
    CLOSED,
    APIError,
    APIStatusError,
    APITimeoutError,
    AssistantMessage,
    Channel,
    ChannelStatistics,
    ChanstreamError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Choice,
    Client,
    CompletionChunk,
    CompletionEvent,
    CompletionEvents,
    CompletionStream,
    Context,
    DeltaMessage,
    Dialect,
    Failed,
    Failover,
    FinishReason,
    Function,
    FunctionCall,
    ImageURLChunk,
    JSONSchema,
    MergedChannel,
    RateLimitError,
    RateLimits,
    ResponseFormat,
    ResponseHead,
    Retry,
    Role,
    Sender,
    StreamChoice,
    StreamError,
    SystemMessage,
    TaskGroup,
    TeedChannel,
    TextChunk,
    TextDelta,
    ThinkChunk,
    Timeout,
    Tool,
    ToolCall,
    ToolCallDone,
    ToolChoice,
    ToolMessage,
    UsageInfo,
    UserMessage,
    merge,
    race,
    relay,
    select,
    tee,
)
from chanstream.observers import CallEnded, Fact, RetryScheduled
from chanstream.telemetry import OpenTelemetryObserver
from chanstream.testing import RecordedRequest, Reply, StreamServer
from chanstream.wire.framing import ServerSentEvent, decode_events


def clients() -> None:
    """A client takes keywords of the right types only."""
    client: Client = Client()
    with Client("key", base_url="https://host", dialect="groq", timeout=5) as entered:
        same: Client = entered
        other: int = entered  # type: ignore[assignment]
    Client(None, timeout=Timeout(connect=None), retry=Retry(max_retries=0), errors="raise", engine="threaded")
    Client(dialect=Dialect(name="own", base_url="https://host", key_variable="KEY"))
    Client("key", "https://host")  # type: ignore[call-arg]
    Client(errors="ignore")  # type: ignore[arg-type]
    Client(engine="turbo")  # type: ignore[arg-type]
    Client(timeout="5")  # type: ignore[arg-type]
    Client(buffer="5")  # type: ignore[arg-type]
    Client(retry=3)  # type: ignore[arg-type]
    Client(colour="red")  # type: ignore[call-arg]
    closed: None = client.close()  # type: ignore[func-returns-value]


def requests_and_messages() -> ChatCompletionRequest:
    """Requests take messages of all kinds, and options of the right types only."""
    messages = [
        SystemMessage("Be brief."),
        UserMessage([TextChunk("What is it?"), ImageURLChunk("https://host/x.png")]),
        AssistantMessage(tool_calls=[ToolCall("1", FunctionCall("f", "{}"))]),
        ToolMessage("42", "1"),
    ]
    ChatCompletionRequest("model", messages)
    ChatCompletionRequest("model", [UserMessage("hi")])
    ChatCompletionRequest("model", [UserMessage("hi")], temperature="hot")  # type: ignore[arg-type]
    ChatCompletionRequest("model", [UserMessage("hi")], max_tokens=1.5)  # type: ignore[arg-type]
    ChatCompletionRequest("model", [UserMessage("hi")], temprature=1)  # type: ignore[call-arg]
    ChatCompletionRequest("model", "hi")  # type: ignore[arg-type]
    ChatCompletionRequest("model", [5])  # type: ignore[list-item]
    ChatCompletionRequest(5, [UserMessage("hi")])  # type: ignore[arg-type]
    request = ChatCompletionRequest(
        "model",
        [UserMessage("hi")],
        temperature=0,
        stop=["a"],
        tools=[Tool(Function("f", parameters={"type": "object"}))],
        tool_choice=ToolChoice("f"),
        response_format=ResponseFormat("json_schema", JSONSchema("x", {})),
        extra={"top_k": 5},
    )
    request.model = "other"  # type: ignore[misc]
    model: str = request.model
    temperature: float | None = request.temperature
    wrong_model: int = request.model  # type: ignore[assignment]
    wrong_temperature: float = request.temperature  # type: ignore[assignment]
    body: dict[str, object] = request.to_dict()
    loaded: ChatCompletionRequest = ChatCompletionRequest.from_dict(body)
    wrong_loaded: int = ChatCompletionRequest.from_dict(body)  # type: ignore[assignment]
    return loaded


def plain_dicts() -> ChatCompletionRequest:
    """Messages, tools and the others may be plain dicts."""
    return ChatCompletionRequest(
        "model",
        [{"role": "user", "content": "hi"}, UserMessage("hi")],
        tools=[{"type": "function", "function": {"name": "f"}}, Function("g")],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_object"},
    )


def streams(client: Client, request: ChatCompletionRequest) -> None:
    """A stream is a channel of chunks, whatever way they are taken."""
    stream: CompletionStream = client.chat_completion_stream(request, timeout=5, context=Context(), errors="raise")
    wrong_stream: int = client.chat_completion_stream(request)  # type: ignore[assignment]
    client.chat_completion_stream({"model": "m"})  # type: ignore[arg-type]
    client.chat_completion_stream(request, errors="no")  # type: ignore[arg-type]
    for evt in stream:
        looped: CompletionChunk = evt
        wrong_looped: int = evt  # type: ignore[assignment]
    got: CompletionChunk = stream.get(timeout=5)
    wrong_got: int = stream.get()  # type: ignore[assignment]
    at_once: CompletionChunk = stream.get_nowait()
    wrong_at_once: int = stream.get_nowait()  # type: ignore[assignment]
    following: CompletionChunk = next(stream)
    wrong_following: int = next(stream)  # type: ignore[assignment]
    or_none: CompletionChunk | None = next(stream, None)
    many: list[CompletionChunk] = stream.get_many()
    wrong_many: list[int] = stream.get_many()  # type: ignore[assignment]
    listed: list[CompletionChunk] = list(stream)
    wrong_listed: list[int] = list(stream)  # type: ignore[arg-type]
    with stream as entered:
        same: CompletionStream = entered
        wrong_same: int = entered  # type: ignore[assignment]
    answer: ChatCompletionResponse = stream.collect()
    wrong_answer: int = stream.collect()  # type: ignore[assignment]
    state: Literal["streaming", "complete", "failed", "cancelled"] = stream.state
    wrong_state: Literal["open"] = stream.state  # type: ignore[assignment]
    as_channel: Channel[CompletionChunk] = stream
    as_queue: queue.Queue[CompletionChunk] = stream
    waiting: int = stream.qsize()
    statistics: ChannelStatistics = stream.statistics()
    wrong_statistics: int = stream.statistics()  # type: ignore[assignment]


def events(stream: CompletionStream) -> None:
    """An event is told apart by its class and by its type, both of which a type checker follows."""
    taken: CompletionEvents = stream.events()
    following: CompletionEvent = next(taken)
    for event in taken:
        match event:
            case TextDelta(text, choice):
                piece: str = text
                wrong_piece: int = text  # type: ignore[assignment]
            case ToolCallDone(tool_call=call):
                arguments: dict[str, object] = call.function.parsed_arguments()
                wrong_arguments: int = call  # type: ignore[assignment]
            case Failed(error, partial):
                said: str = partial.text
                raise error
        if event.type == "finished":
            answer: ChatCompletionResponse = event.response
            wrong_answer: int = event.response  # type: ignore[assignment]
        wrong_type: Literal["text"] = event.type  # type: ignore[assignment]


async def asynchronous(stream: CompletionStream) -> None:
    """An asynchronous loop gives chunks too."""
    async for event in stream.events():
        what: CompletionEvent = event
        wrong_what: int = event  # type: ignore[assignment]
    async for evt in stream:
        looped: CompletionChunk = evt
        wrong_looped: int = evt  # type: ignore[assignment]


def chunks(evt: CompletionChunk) -> None:
    """What a chunk holds is what its documentation says."""
    error: ChanstreamError | None = evt.error
    wrong_error: ChanstreamError = evt.error  # type: ignore[assignment]
    if evt.error:
        raise evt.error
    text: str = evt.text
    wrong_text: int = evt.text  # type: ignore[assignment]
    reasoning: str = evt.reasoning
    last: bool = evt.is_last_chunk
    seconds: float = evt.total_latency + evt.chunk_latency
    wrong_seconds: str = evt.total_latency  # type: ignore[assignment]
    usage: UsageInfo | None = evt.usage
    wrong_usage: UsageInfo = evt.usage  # type: ignore[assignment]
    choice: StreamChoice = evt.choices[0]
    wrong_choice: int = evt.choices[0]  # type: ignore[assignment]
    delta: DeltaMessage = evt.delta_message()
    wrong_delta: int = evt.delta_message()  # type: ignore[assignment]
    call: ToolCall = evt.tool_calls[0]
    wrong_call: int = evt.tool_calls[0]  # type: ignore[assignment]
    reason: str | None = choice.finish_reason
    wrong_reason: int = choice.finish_reason  # type: ignore[assignment]
    raw: Mapping[str, object] = evt.raw
    stopped: bool = choice.finish_reason == FinishReason.STOP and delta.role == Role.ASSISTANT


def answers(client: Client, request: ChatCompletionRequest) -> None:
    """A whole answer is what its documentation says."""
    answer: ChatCompletionResponse = client.chat_completion(request, timeout=Timeout(total=5))
    wrong_answer: int = client.chat_completion(request)  # type: ignore[assignment]
    choice: Choice = answer.choices[0]
    wrong_choice: int = answer.choices[0]  # type: ignore[assignment]
    said: AssistantMessage | None = answer.assistant_message()
    wrong_said: AssistantMessage = answer.assistant_message()  # type: ignore[assignment]
    text: str = answer.text
    wrong_text: int = answer.text  # type: ignore[assignment]
    usage: UsageInfo | None = answer.usage
    calls: Sequence[ToolCall] = answer.tool_calls
    for part in choice.message.content or ():
        if isinstance(part, ThinkChunk):
            thought: str = part.text
            wrong_thought: int = part.text  # type: ignore[assignment]


def heads(stream: CompletionStream) -> None:
    """What the head said is typed."""
    response: ResponseHead = stream.response
    wrong_response: int = stream.response  # type: ignore[assignment]
    limits: RateLimits = response.rate_limits
    wrong_limits: int = response.rate_limits  # type: ignore[assignment]
    left: int | None = limits.remaining_tokens
    wrong_left: int = limits.remaining_tokens  # type: ignore[assignment]
    reset: float | None = limits.reset_tokens
    name: str | None = response.request_id
    wrong_name: str = response.request_id  # type: ignore[assignment]


def channels() -> None:
    """A channel has the type of its items."""
    channel: Channel[int] = Channel(5)
    channel.put(1)
    channel.put("x")  # type: ignore[arg-type]
    channel.put_many([1, 2])
    channel.put_many(["x"])  # type: ignore[list-item]
    item: int = channel.get()
    wrong_item: str = channel.get()  # type: ignore[assignment]
    for each in channel:
        looped: int = each
        wrong_looped: str = each  # type: ignore[assignment]
    channel.close(StreamError("it broke"))
    channel.close("it broke")  # type: ignore[arg-type]
    closed: bool = channel.closed


def contexts(error: ChanstreamError) -> None:
    """Contexts make contexts, and give errors."""
    context: Context = Context().with_timeout(5).with_cancel()
    wrong_context: int = Context().with_cancel()  # type: ignore[assignment]
    context.cancel(error)
    context.cancel(ValueError())  # type: ignore[arg-type]
    why: ChanstreamError | None = context.error
    wrong_why: ChanstreamError = context.error  # type: ignore[assignment]
    context.on_done(lambda reason: reason.args)
    with context as entered:
        same: Context = entered
    Timeout(5)  # type: ignore[call-arg]
    Timeout(total="5")  # type: ignore[arg-type]
    Retry(max_retries="5")  # type: ignore[arg-type]


def errors(client: Client, request: ChatCompletionRequest) -> None:
    """Errors have the attributes that their documentation names."""
    try:
        client.chat_completion(request)
    except RateLimitError as error:
        wait: float | None = error.retry_after
        wrong_wait: float = error.retry_after  # type: ignore[assignment]
        status: int = error.status_code
        wrong_status: str = error.status_code  # type: ignore[assignment]
    except APIStatusError as error:
        kind: str | None = error.type
        header: str = error.headers["x-request-id"]
    except APIError as error:
        words: str = error.message
        wrong_words: int = error.message  # type: ignore[assignment]
    except APITimeoutError as error:
        clock: Literal["connect", "first_chunk", "idle", "total", "context"] = error.clock
        wrong_clock: Literal["other"] = error.clock  # type: ignore[assignment]
        partial: ChatCompletionResponse | None = error.partial


def observing(fact: Fact) -> None:
    """Facts are told apart by their type; an observer takes any."""
    match fact:
        case CallEnded(state=state, call=call):
            right_state: Literal["complete", "failed", "cancelled"] = state
            wrong_state: Literal["other"] = state  # type: ignore[assignment]
            model: str | None = call.model
        case RetryScheduled():
            pause: float = fact.pause
            wrong_pause: str = fact.pause  # type: ignore[assignment]
    Client(observers=[observing, OpenTelemetryObserver(capture_content=True)])
    Client(observers=[len])  # type: ignore[list-item]


def relays(client: Client, failover: Failover, stream: CompletionStream) -> None:
    """A body is an iterator of bytes; a proxy takes whatever asks, and functions that take what they are given."""
    body: relay.Relay = relay.sse(stream, heartbeat=None, show_errors=str, usage="own_chunk")
    block: bytes = next(body)
    wrong_block: str = next(body)  # type: ignore[assignment]
    headers: list[tuple[str, str]] = relay.text(stream).headers
    relay.sse(stream, usage="never")  # type: ignore[arg-type]
    relay.sse(client)  # type: ignore[arg-type]
    relay.wsgi.proxy(client, models={"one"}, caller=lambda environ: environ.get("HTTP_WHO"))
    relay.wsgi.proxy(failover, models=["one"], max_tokens_field="max_completion_tokens")
    relay.wsgi.proxy(stream)  # type: ignore[arg-type]
    shown: relay.PublicError = relay.public_error(ChanstreamError("x"), show_errors=False)


def other_modules() -> None:
    """The event-stream decoder and the test server are typed as well."""
    events: list[ServerSentEvent] = list(decode_events([b"data: x\n\n"]))
    wrong_events: list[int] = list(decode_events([b""]))  # type: ignore[arg-type]
    data: str = events[0].data
    with StreamServer("one", Reply("two", pace=0.1)) as server:
        url: str = server.url
        asked: tuple[RecordedRequest, ...] = server.requests
        wrong_asked: int = server.requests  # type: ignore[assignment]
    version: str = chanstream.__version__
    unknown = chanstream.Klient  # type: ignore[attr-defined]


def selecting_and_merging(a: Channel[int], b: Channel[int], stream: CompletionStream) -> None:
    """What is selected is an item or CLOSED; what is merged comes with its key."""
    channel, item = select(a, b, timeout=1)
    right_channel: Channel[int] = channel
    wrong_item: int = item  # type: ignore[assignment]
    if item is not CLOSED:
        right_item: int = item
    by_name: MergedChannel[str, CompletionChunk] = merge({"x": stream})
    by_position: MergedChannel[int, int] = merge([a, b])
    wrong_key: MergedChannel[str, int] = merge([a, b])  # type: ignore[assignment]


def racing_and_teeing(client: Client, request: ChatCompletionRequest, stream: CompletionStream) -> None:
    """What wins is what was raced, or what a call of the race opens; what is teed keeps its type."""
    key, winner = race([stream, stream])
    right_key: int = key
    right_winner: CompletionStream = winner
    wrong_winner: int = winner  # type: ignore[assignment]
    name, opened = race({"x": partial(client.chat_completion_stream, request)}, timeout=5)
    right_name: str = name
    wrong_name: int = name  # type: ignore[assignment]
    right_opened: CompletionStream = opened
    _, called = race([lambda context: client.chat_completion_stream(request, context=context)])
    right_called: CompletionStream = called
    race([5])  # type: ignore[arg-type]
    first, _, _ = tee(stream, 3)
    right_first: TeedChannel[CompletionChunk] = first
    wrong_first: TeedChannel[int] = first  # type: ignore[assignment]


def sending(channel: Channel[int]) -> None:
    """A sender takes what its channel takes."""
    with channel.sender() as sender:
        right_sender: Sender[int] = sender
        sender.put(1)
        sender.put("x")  # type: ignore[arg-type]


def grouping(client: Client, request: ChatCompletionRequest) -> None:
    """A task's arguments are those of its function, and its future has the type of what that returns."""
    with TaskGroup(limit=4, context=Context()) as group:
        future = group.go(client.chat_completion, request, context=group.context)
        perhaps: Future[int] | None = group.try_go(len, "x")
        group.go(client.chat_completion, 5)  # type: ignore[arg-type]
        group.go(client.chat_completion, request, colour="red")  # type: ignore[call-arg]
    answer: ChatCompletionResponse = future.result()
    wrong_answer: int = future.result()  # type: ignore[assignment]

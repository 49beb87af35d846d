"""Traces and metrics of a client's calls, for OpenTelemetry. Needs the extra ``otel``, and an SDK to receive them.

Names follow the semantic conventions for generative AI, of which the pages are
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md and
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md. They are not yet
declared stable, and what is named here changes with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import APIConnectionError
from .models.messages import REASONING_KEYS
from .observers import CallEnded, CallStarted, Fact, ObservedCall

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["OpenTelemetryObserver"]

_OPERATIONS = {
    "/chat/completions": "chat",
    "/fim/completions": "text_completion",
    "/agents/completions": "invoke_agent",
    "/embeddings": "embeddings",
}

_PROVIDERS = {"mistral": "mistral_ai"}
"""Dialects that the conventions know by another name."""

_REQUEST: Mapping[str, tuple[str, ...]] = {
    "frequency_penalty": ("frequency_penalty",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "presence_penalty": ("presence_penalty",),
    "seed": ("random_seed",),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
}
"""Attributes ``gen_ai.request.*``, and the options that they are the value of."""

_SECONDS = tuple(0.01 * 2**power for power in range(14))
_TOKENS = tuple(4**power for power in range(14))
"""The bounds of the buckets, as the conventions want them."""


class OpenTelemetryObserver:
    """Makes a span and metrics of each call that asks a model; lists of models are none of these.

    ::

        client = Client(observers=[OpenTelemetryObserver()])

    The span is a child of the one that is current where the call is made. It is called ``chat`` and the model's name
    (or ``embeddings``, ``text_completion``, ``invoke_agent``), begins with the call and ends with the last chunk. Its
    ``error.type`` is the name of the error's class, such as ``RateLimitError``; a stream that the caller closed is no
    error. Besides what the conventions name it has ``chanstream.state`` (``complete``, ``failed``, ``cancelled``) and
    ``chanstream.attempts``.

    The metrics are ``gen_ai.client.operation.duration``, ``gen_ai.client.token.usage``, and for streams
    ``gen_ai.client.operation.time_to_first_chunk`` and ``gen_ai.client.operation.time_per_output_chunk``. The last is
    recorded for each chunk, all of them when the call has ended.

    Args:
        tracer_provider: Where spans go; by default the global provider.
        meter_provider: Where metrics go; by default the global provider.
        capture_content: Whether the span shall hold the texts: ``gen_ai.input.messages`` and
            ``gen_ai.output.messages``, as JSON, and what the server says of errors, which may cite them. Without it
            no text of a prompt or an answer is in a span or metric.

    Raises:
        ImportError: The extra is not installed.

    Thread safety: one may observe any number of clients and threads. It can be pickled if no provider was given.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        capture_content: bool = False,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise ImportError("telemetry needs OpenTelemetry: pip install 'chanstream[otel]'") from error
        if not isinstance(capture_content, bool):
            raise TypeError(f"capture_content: expected bool, got {capture_content!r}")
        self.wants_answer = capture_content
        self._given = (tracer_provider, meter_provider, capture_content)
        self._trace: Any = trace
        self._tracer = trace.get_tracer("chanstream", __version__, tracer_provider)
        self._metrics = _Metrics(metrics.get_meter("chanstream", __version__, meter_provider))
        self._spans: dict[ObservedCall, Span] = {}

    def __call__(self, fact: Fact) -> None:
        """Take note of a fact."""
        if fact.call.path not in _OPERATIONS:
            return
        if isinstance(fact, CallStarted):
            self._start(fact.call)
        elif isinstance(fact, CallEnded):
            self._end(fact)

    def _start(self, call: ObservedCall) -> None:
        common = _common(call)
        name = " ".join(filter(None, [common["gen_ai.operation.name"], call.model]))
        span = self._tracer.start_span(
            name,
            kind=self._trace.SpanKind.CLIENT,
            attributes={**common, **_asked(call)},
            start_time=_nanoseconds(call.started_at),
        )
        self._spans[call] = span
        if self.wants_answer and span.is_recording():
            _set_json(span, "gen_ai.input.messages", _inputs(call.request))

    def _end(self, end: CallEnded) -> None:
        span = self._spans.pop(end.call)
        common = _common(end.call) | _given({"gen_ai.response.model": end.response_model})
        problem = {"error.type": type(end.error).__qualname__} if end.state == "failed" else {}
        self._metrics.record(end, common, problem)
        span.set_attributes({**common, **problem, **_answered(end)})
        if self.wants_answer and span.is_recording() and hasattr(end.answer, "choices"):
            _set_json(span, "gen_ai.output.messages", [_output(choice) for choice in end.answer.choices])
        if end.state == "failed":
            may_tell = self.wants_answer or isinstance(end.error, APIConnectionError)  # others may cite texts
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(end.error) if may_tell else None))
        span.end(_nanoseconds(end.call.started_at + end.elapsed))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class _Metrics:
    """The instruments."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, buckets: Iterable[float], description: str) -> Callable[..., None]:
            return meter.create_histogram(
                f"gen_ai.client.{name}", unit, description, explicit_bucket_boundaries_advisory=list(buckets)
            ).record

        self._tokens = histogram("token.usage", "{token}", _TOKENS, "Number of input and output tokens used.")
        self._duration = histogram("operation.duration", "s", _SECONDS, "GenAI operation duration.")
        self._first = histogram("operation.time_to_first_chunk", "s", _SECONDS, "Time to receive the first chunk.")
        self._next = histogram("operation.time_per_output_chunk", "s", _SECONDS, "Time between a chunk and the next.")

    def record(self, end: CallEnded, common: Mapping[str, Any], problem: Mapping[str, Any]) -> None:
        self._duration(end.elapsed, {**common, **problem})
        for kind, count in _tokens(end).items():
            self._tokens(count, {**common, "gen_ai.token.type": kind})
        if end.time_to_first_chunk is not None:
            self._first(end.time_to_first_chunk, common)
        for latency in end.chunk_latencies[1:]:
            self._next(latency, common)


# -- attributes -------------------------------------------------------------------------------------------------------


def _common(call: ObservedCall) -> dict[str, Any]:
    """Return the attributes that spans and metrics have."""
    return _given(
        {
            "gen_ai.operation.name": _OPERATIONS[call.path],
            "gen_ai.provider.name": _PROVIDERS.get(call.dialect, call.dialect),
            "gen_ai.request.model": call.model,
            "server.address": call.host,
            "server.port": call.port,
        }
    )


def _asked(call: ObservedCall) -> dict[str, Any]:
    """Return what a span tells of the request."""

    def option(*names: str) -> Any:
        return next((value for name in names if (value := getattr(call.request, name, None)) is not None), None)

    count, stop, form, coding = option("n"), option("stop"), option("response_format"), option("encoding_format")
    options = {f"gen_ai.request.{name}": option(*ours) for name, ours in _REQUEST.items()}
    return _given(
        {
            **options,
            "gen_ai.request.choice.count": None if count == 1 else count,
            "gen_ai.request.stop_sequences": [stop] if isinstance(stop, str) else stop,
            "gen_ai.request.encoding_formats": [coding] if coding else None,
            "gen_ai.request.stream": call.stream or None,
            "gen_ai.output.type": None if form is None else "text" if form.type == "text" else "json",
            "gen_ai.embeddings.dimension.count": option("output_dimension"),
            "gen_ai.agent.id": option("agent_id"),
        }
    )


def _answered(end: CallEnded) -> dict[str, Any]:
    """Return what a span tells of the answer."""
    details = end.usage.extra if end.usage else {}
    tokens = _tokens(end)
    return _given(
        {
            "gen_ai.response.finish_reasons": end.finish_reasons or None,
            "gen_ai.response.id": end.response_id,
            "gen_ai.response.time_to_first_chunk": end.time_to_first_chunk,
            "gen_ai.usage.input_tokens": tokens.get("input"),
            "gen_ai.usage.output_tokens": tokens.get("output"),
            "gen_ai.usage.cache_read.input_tokens": _count(details, "prompt_tokens_details", "cached_tokens"),
            "gen_ai.usage.reasoning.output_tokens": _count(details, "completion_tokens_details", "reasoning_tokens"),
            "chanstream.state": end.state,
            "chanstream.attempts": end.attempts,
        }
    )


def _tokens(end: CallEnded) -> dict[str, int]:
    """Return the token counts by the conventions' names for their types."""
    if end.usage is None:
        return {}
    tokens: dict[str, Any] = {"input": end.usage.prompt_tokens}
    if end.call.path != "/embeddings":
        tokens["output"] = end.usage.completion_tokens
    return {kind: count for kind, count in tokens.items() if isinstance(count, int)}  # servers send what they like


def _count(details: Mapping[str, Any], group: str, name: str) -> int | None:
    part = details.get(group)
    count = part.get(name) if isinstance(part, Mapping) else None
    return count if isinstance(count, int) else None


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


# -- texts, only where they were asked for ----------------------------------------------------------------------------


def _set_json(span: Span, name: str, value: Any) -> None:
    span.set_attribute(name, json.dumps(value, ensure_ascii=False, default=str))


def _inputs(request: Any) -> list[dict[str, Any]]:
    if hasattr(request, "messages"):
        return [_message(message.to_dict()) for message in request.messages]
    prompt = getattr(request, "prompt", None)
    return [{"role": "user", "parts": [_text(prompt)]}] if prompt else []


def _output(choice: Any) -> dict[str, Any]:
    return {**_message(choice.message.to_dict()), "finish_reason": choice.finish_reason or ""}


def _message(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of ours, as JSON, as one of theirs."""
    if data["role"] == "tool":
        parts = [{"type": "tool_call_response", "id": data.get("tool_call_id"), "response": data.get("content")}]
    else:
        parts = [*_thoughts(data), *_contents(data.get("content")), *map(_call, data.get("tool_calls") or ())]
    return {"role": data["role"], "parts": parts}


def _thoughts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    said = next((data[key] for key in REASONING_KEYS if data.get(key)), None)
    return [{"type": "reasoning", "content": said}] if said else []


def _contents(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [_text(content)]
    return [_part(part) for part in content or ()]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a content chunk as a part: text and thoughts in their words, other kinds as they are."""
    if part.get("type") == "text":
        return _text(part["text"])
    if part.get("type") == "thinking":
        return {"type": "reasoning", "content": "".join(step.get("text", "") for step in part["thinking"])}
    return dict(part)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {"type": "tool_call", "id": call.get("id"), "name": function["name"], "arguments": function["arguments"]}

"""OpenTelemetry's view of calls: spans and metrics as the conventions for generative AI name them."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
from typing import Any

import attrs
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from chanstream import (
    AgentCompletionRequest,
    APIConnectionError,
    AssistantMessage,
    BadRequestError,
    ChatCompletionRequest,
    EmbeddingRequest,
    FIMCompletionRequest,
    ImageURLChunk,
    InternalServerError,
    RateLimitError,
    ResponseFormat,
    Retry,
    SystemMessage,
    TextChunk,
    ToolMessage,
    UserMessage,
)
from chanstream.telemetry import OpenTelemetryObserver
from chanstream.testing import Reply
from tests.conftest import REQUEST, Link, within

pytestmark = pytest.mark.usefixtures("nothing_left")

DETAILS = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 3}}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, **DETAILS}
DURATION, TOKENS = "gen_ai.client.operation.duration", "gen_ai.client.token.usage"
FIRST, NEXT = "gen_ai.client.operation.time_to_first_chunk", "gen_ai.client.operation.time_per_output_chunk"


@attrs.frozen
class Backend:
    """What receives spans and metrics."""

    exporter: InMemorySpanExporter = attrs.field(factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = attrs.field(factory=InMemoryMetricReader)
    tracers: TracerProvider = attrs.field(factory=lambda: TracerProvider(shutdown_on_exit=False))
    meters: MeterProvider = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        object.__setattr__(self, "meters", MeterProvider([self.reader], shutdown_on_exit=False))

    def observer(self, **settings: Any) -> OpenTelemetryObserver:
        """Return an observer that sends here."""
        return OpenTelemetryObserver(self.tracers, self.meters, **settings)

    def span(self) -> ReadableSpan:
        """Return the one span that has come, or comes in a moment from another thread; forget it."""
        within(1, lambda: bool(self.exporter.get_finished_spans()))
        (span,) = self.exporter.get_finished_spans()
        self.exporter.clear()
        return span

    def points(self) -> dict[str, list[HistogramDataPoint]]:
        """Return the points of each metric that has come."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}  # type: ignore[arg-type, misc]


@pytest.fixture
def backend() -> Backend:
    """What receives spans and metrics."""
    return Backend()


def told(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes."""
    return dict(span.attributes or {})


class TestSpans:
    def test_a_stream(self, link: Link, backend: Backend) -> None:
        """A stream is a client span by its operation and model, with what was asked, answered, used and measured."""
        server = link.serve(Reply("a b", usage=USAGE))
        client = link.client(server, observers=[backend.observer()])
        chunks = list(client.chat_completion_stream(REQUEST))
        span = backend.span()
        assert (span.name, span.kind) == ("chat test-model", SpanKind.CLIENT)
        assert told(span) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "test-model",
            "gen_ai.request.stream": True,
            "server.address": server.host,
            "server.port": server.port,
            "gen_ai.response.id": chunks[0].id,
            "gen_ai.response.model": "test-model",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.response.time_to_first_chunk": chunks[0].chunk_latency,
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 2,
            "gen_ai.usage.reasoning.output_tokens": 3,
            "chanstream.state": "complete",
            "chanstream.attempts": 1,
        }
        assert span.status.status_code is StatusCode.UNSET
        assert span.start_time is not None
        assert span.end_time is not None
        assert abs(span.end_time - span.start_time - 1e9 * chunks[-1].total_latency) < 1000

    def test_a_whole_answer(self, plain: Link, backend: Backend) -> None:
        """A whole answer has no time to a first chunk, and is not said to be a stream."""
        client = plain.client(plain.serve(Reply("a b", usage=USAGE)), observers=[backend.observer()])
        client.chat_completion(REQUEST)
        found = told(backend.span())
        assert found["gen_ai.usage.input_tokens"] == 7
        assert not {"gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"} & set(found)

    def test_options(self, plain: Link, backend: Backend) -> None:
        """The options of a request are told when the span begins, those that are not set are not."""
        request = ChatCompletionRequest(
            "m",
            [UserMessage("Hi.")],
            temperature=0.0,
            top_p=0.5,
            max_completion_tokens=9,
            n=2,
            stop="end",
            random_seed=1,
            frequency_penalty=0.1,
            presence_penalty=0.2,
            response_format=ResponseFormat("json_object"),
        )
        list(plain.client(plain.serve("a"), observers=[backend.observer()]).chat_completion_stream(request))
        asked = {name: value for name, value in told(backend.span()).items() if name.startswith("gen_ai.request.")}
        assert asked == {
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": True,
            "gen_ai.request.temperature": 0.0,
            "gen_ai.request.top_p": 0.5,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.choice.count": 2,
            "gen_ai.request.stop_sequences": ("end",),
            "gen_ai.request.seed": 1,
            "gen_ai.request.frequency_penalty": 0.1,
            "gen_ai.request.presence_penalty": 0.2,
        }

    @pytest.mark.parametrize(("form", "word"), [("text", "text"), ("json_object", "json"), (None, None)])
    def test_output_type(self, plain: Link, backend: Backend, form: str | None, word: str | None) -> None:
        """The type of output is told if one was asked for, and one choice is not worth a word."""
        wanted = ResponseFormat(form) if form else None
        request = ChatCompletionRequest("m", [UserMessage("Hi.")], n=1, response_format=wanted)
        plain.client(plain.serve("a"), observers=[backend.observer()]).chat_completion(request)
        found = told(backend.span())
        assert found.get("gen_ai.output.type") == word
        assert "gen_ai.request.choice.count" not in found

    def test_embeddings(self, plain: Link, backend: Backend) -> None:
        """Embeddings are a span of their own kind, with input tokens alone."""
        reply = Reply.json({"model": "m-1", "data": [{"embedding": "", "index": 0}], "usage": USAGE})
        client = plain.client(plain.serve(reply), observers=[backend.observer()], dialect="mistral")
        client.embeddings(EmbeddingRequest("m", ["text"], output_dimension=4, encoding_format="base64"))
        span = backend.span()
        found = told(span)
        assert span.name == "embeddings m"
        assert found["gen_ai.provider.name"] == "mistral_ai"
        assert found["gen_ai.embeddings.dimension.count"] == 4
        assert found["gen_ai.request.encoding_formats"] == ("base64",)
        assert (found["gen_ai.response.model"], found["gen_ai.usage.input_tokens"]) == ("m-1", 7)
        assert "gen_ai.usage.output_tokens" not in found
        assert {point.attributes["gen_ai.token.type"] for point in backend.points()[TOKENS] if point.attributes} == {
            "input"
        }

    def test_agents_and_code(self, plain: Link, backend: Backend) -> None:
        """An agent is invoked, by its id; filling in code is a text completion."""
        client = plain.client(plain.serve("a", "a"), observers=[backend.observer()], dialect="mistral")
        list(client.agent_completion_stream(AgentCompletionRequest("ag-1", [UserMessage("Hi.")])))
        span = backend.span()
        assert (span.name, told(span)["gen_ai.agent.id"]) == ("invoke_agent", "ag-1")
        list(client.fim_completion_stream(FIMCompletionRequest("codestral", "def ")))
        assert backend.span().name == "text_completion codestral"

    def test_models(self, plain: Link, backend: Backend) -> None:
        """A list of models is no use of one: it has neither span nor metrics."""
        plain.client(plain.serve(models=[{"id": "m"}]), observers=[backend.observer()]).list_models()
        assert backend.exporter.get_finished_spans() == ()
        assert backend.points() == {}

    def test_its_parent(self, plain: Link, backend: Backend) -> None:
        """A span belongs to the one that was current where the call was made, wherever the stream is read."""
        client = plain.client(plain.serve("a b"), observers=[backend.observer()])
        with backend.tracers.get_tracer("test").start_as_current_span("outer") as outer:
            stream = client.chat_completion_stream(REQUEST)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        reader.join()
        (span,) = [span for span in backend.exporter.get_finished_spans() if span.name != "outer"]
        assert span.parent is not None
        assert span.parent.span_id == outer.get_span_context().span_id

    def test_many_at_once(self, plain: Link, backend: Backend) -> None:
        """Each of many streams at once has a span of its own."""
        client = plain.client(plain.serve(Reply("a b", pace=0.01)), observers=[backend.observer()])
        streams = [client.chat_completion_stream(ChatCompletionRequest(f"m{n}", [UserMessage("")])) for n in range(20)]
        for stream in streams:
            stream.collect()
        spans = backend.exporter.get_finished_spans()
        assert sorted(span.name for span in spans) == sorted(f"chat m{n}" for n in range(20))

    def test_a_failure(self, plain: Link, backend: Backend) -> None:
        """A refused call is an error by its class; what the attempts were, the span says."""
        client = plain.client(
            plain.serve(Reply.error(429, "Slow down.")),
            observers=[backend.observer()],
            retry=Retry(max_retries=1, max_delay=0),
        )
        with pytest.raises(RateLimitError):
            client.chat_completion_stream(REQUEST)
        span = backend.span()
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        found = told(span)
        assert (found["error.type"], found["chanstream.state"], found["chanstream.attempts"]) == (
            "RateLimitError",
            "failed",
            2,
        )

    def test_a_failure_after_the_head(self, plain: Link, backend: Backend) -> None:
        """A stream that is cut is an error too, and has what came before."""
        list(plain.stream(Reply("a b", finish_reason=None, done=False), observers=[backend.observer()]))
        found = told(backend.span())
        assert found["error.type"] == "StreamTruncatedError"
        assert "gen_ai.response.time_to_first_chunk" in found
        assert "gen_ai.response.finish_reasons" not in found

    def test_a_closed_stream(self, plain: Link, backend: Backend) -> None:
        """A stream that its consumer leaves is no error; the span says that it was cancelled."""
        for _ in plain.stream(Reply("a b", stall_after=1), observers=[backend.observer()]):
            break
        span = backend.span()
        assert span.status.status_code is StatusCode.UNSET
        assert told(span)["chanstream.state"] == "cancelled"
        assert "error.type" not in told(span)


class TestMetrics:
    def test_a_stream(self, plain: Link, backend: Backend) -> None:
        """A stream measures its duration, tokens, first chunk, and each chunk after it, in the wanted buckets."""
        client = plain.client(plain.serve(Reply("a b c", usage=USAGE)), observers=[backend.observer()])
        chunks = list(client.chat_completion_stream(REQUEST))
        points = backend.points()
        assert set(points) == {DURATION, TOKENS, FIRST, NEXT}
        (duration,), (first,), (following,) = points[DURATION], points[FIRST], points[NEXT]
        assert (duration.count, duration.sum) == (1, chunks[-1].total_latency)
        assert (first.count, first.sum) == (1, chunks[0].chunk_latency)
        assert following.count == len(chunks) - 1
        assert following.sum == pytest.approx(sum(evt.chunk_latency for evt in chunks[1:]))
        assert {point.attributes["gen_ai.token.type"]: point.sum for point in points[TOKENS] if point.attributes} == {
            "input": 7,
            "output": 5,
        }
        assert set(duration.attributes or {}) == {
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.response.model",
            "server.address",
            "server.port",
        }
        assert duration.explicit_bounds == first.explicit_bounds == following.explicit_bounds
        assert duration.explicit_bounds[:3] == (0.01, 0.02, 0.04)
        assert duration.explicit_bounds[-1] == 81.92
        assert points[TOKENS][0].explicit_bounds[-1] == 67108864

    def test_a_whole_answer(self, plain: Link, backend: Backend) -> None:
        """A whole answer has no chunks to measure."""
        plain.client(plain.serve("a"), observers=[backend.observer()]).chat_completion(REQUEST)
        assert set(backend.points()) == {DURATION, TOKENS}

    def test_a_failure(self, plain: Link, backend: Backend) -> None:
        """The duration of a call that failed has the class of the error."""
        client = plain.client(plain.serve(Reply.error(500)), observers=[backend.observer()])
        with pytest.raises(InternalServerError):
            client.chat_completion(REQUEST)
        ((duration,),) = backend.points().values()
        assert (duration.attributes or {})["error.type"] == "InternalServerError"

    def test_an_unsampled_call(self, plain: Link) -> None:
        """A call whose span is not recorded is measured all the same."""
        backend = Backend(tracers=TracerProvider(ALWAYS_OFF, shutdown_on_exit=False))
        client = plain.client(plain.serve("a"), observers=[backend.observer(capture_content=True)])
        list(client.chat_completion_stream(REQUEST))
        assert backend.exporter.get_finished_spans() == ()
        assert len(backend.points()[DURATION]) == 1

    def test_odd_counts(self, plain: Link, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        """What is no count is left out, and the span ends all the same."""
        usage = {"prompt_tokens": "7", "completion_tokens": 5, "prompt_tokens_details": [], "total_tokens": 5}
        list(plain.stream(Reply("a", usage=usage), observers=[backend.observer()]))
        found = told(backend.span())
        assert (found.get("gen_ai.usage.input_tokens"), found["gen_ai.usage.output_tokens"]) == (None, 5)
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []


class TestContent:
    def test_no_text_unless_asked(self, plain: Link, backend: Backend) -> None:
        """Nothing of what was asked or answered is in a span or metric."""
        refusal, odd = Reply.error(400, "No a-secret-question here."), Reply.html("a-secret-answer")
        server = plain.serve("a-secret-answer", "a-secret-answer", refusal, odd)
        client = plain.client(server, observers=[backend.observer()])
        request = ChatCompletionRequest("m", [UserMessage("a-secret-question")], user="a-secret-user")
        client.chat_completion_stream(request).collect()
        client.chat_completion(request)
        with pytest.raises(BadRequestError):
            client.chat_completion(request)
        assert client.chat_completion_stream(request).get().error is not None
        spans = "".join(span.to_json() for span in backend.exporter.get_finished_spans())
        assert "secret" not in spans + repr(backend.points())
        assert "test-key" not in spans

    @pytest.mark.parametrize("stream", [True, False])
    def test_texts(self, plain: Link, backend: Backend, stream: bool) -> None:
        """With capture_content the span has the messages of both sides, in the conventions' form."""
        call = {"id": "c-1", "function": {"name": "look", "arguments": '{"at": 1}'}}
        image = "data:image/png;base64,AA=="
        request = ChatCompletionRequest(
            "m",
            [
                SystemMessage("Be brief."),
                UserMessage([TextChunk("What is this?"), ImageURLChunk(image)]),
                AssistantMessage(None, [call]),  # type: ignore[list-item]
                ToolMessage("a cat", "c-1"),
            ],
        )
        client = plain.client(
            plain.serve(Reply("A cat.", reasoning="Hm.", tool_calls=[call])),
            observers=[backend.observer(capture_content=True)],
        )
        if stream:
            list(client.chat_completion_stream(request))
        else:
            client.chat_completion(request)
        found = told(backend.span())
        wanted = {"type": "tool_call", "id": "c-1", "name": "look", "arguments": '{"at": 1}'}
        assert json.loads(found["gen_ai.input.messages"]) == [
            {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
            {
                "role": "user",
                "parts": [
                    {"type": "text", "content": "What is this?"},
                    {"type": "image_url", "image_url": image},
                ],
            },
            {"role": "assistant", "parts": [wanted]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c-1", "response": "a cat"}]},
        ]
        assert json.loads(found["gen_ai.output.messages"]) == [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "Hm."},
                    {"type": "text", "content": "A cat."},
                    wanted,
                ],
                "finish_reason": "tool_calls",
            }
        ]

    def test_a_part_of_an_answer(self, plain: Link, backend: Backend) -> None:
        """Of a stream that failed the span has what came."""
        cut = Reply("a b", finish_reason=None, done=False)
        list(plain.stream(cut, observers=[backend.observer(capture_content=True)]))
        (message,) = json.loads(told(backend.span())["gen_ai.output.messages"])
        assert message["parts"] == [{"type": "text", "content": "a b"}]

    def test_thoughts(self, plain: Link, backend: Backend) -> None:
        """Thoughts that stand in the content, as Mistral sends them, are told as reasoning."""
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, {"type": "text", "text": "."}]}
        chunk = {"choices": [{"index": 0, "delta": {"content": [thinking]}, "finish_reason": "stop"}]}
        list(plain.stream(Reply(chunks=[chunk, "[DONE]"]), observers=[backend.observer(capture_content=True)]))
        (message,) = json.loads(told(backend.span())["gen_ai.output.messages"])
        assert message["parts"] == [{"type": "reasoning", "content": "Hm."}]

    def test_code(self, plain: Link, backend: Backend) -> None:
        """What code is filled into counts as the user's message."""
        observer = backend.observer(capture_content=True)
        client = plain.client(plain.serve("a"), observers=[observer], dialect="mistral")
        client.fim_completion(FIMCompletionRequest("m", "def "))
        (message,) = json.loads(told(backend.span())["gen_ai.input.messages"])
        assert message == {"role": "user", "parts": [{"type": "text", "content": "def "}]}

    def test_a_failure(self, plain: Link, backend: Backend) -> None:
        """Where no answer came there is none in the span, but what the server said of it."""
        observer = backend.observer(capture_content=True)
        client = plain.client(plain.serve(Reply.error(500, "No luck.")), observers=[observer])
        with pytest.raises(InternalServerError):
            client.chat_completion(REQUEST)
        span = backend.span()
        assert "gen_ai.output.messages" not in told(span)
        assert "No luck." in (span.status.description or "")

    def test_no_server(self, plain: Link, backend: Backend) -> None:
        """What the library says of a connection is in the span in any case: it cites nobody."""
        with plain.serve() as server:
            url = server.url
        with pytest.raises(APIConnectionError):
            plain.client(url, observers=[backend.observer()]).chat_completion(REQUEST)
        assert "no answer from" in (backend.span().status.description or "")


class TestTheObserver:
    def test_nothing_stays(self, plain: Link, backend: Backend) -> None:
        """An observer keeps nothing of calls that have ended, and has nothing to complain about."""
        observer = backend.observer()
        client = plain.client(plain.serve("a", Reply.error(500)), observers=[observer])
        list(client.chat_completion_stream(REQUEST))
        with pytest.raises(InternalServerError):
            client.chat_completion(REQUEST)
        assert observer._spans == {}

    def test_without_an_sdk(self, plain: Link, caplog: pytest.LogCaptureFixture) -> None:
        """Where nobody receives spans and metrics, streams are as ever, and nothing is logged."""
        observer = OpenTelemetryObserver(capture_content=True)
        chunks = list(plain.stream("a b", observers=[observer]))
        assert chunks[-1].is_last_chunk
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

    def test_pickle(self) -> None:
        """One that uses the global providers can be pickled."""
        copy = pickle.loads(pickle.dumps(OpenTelemetryObserver(capture_content=True)))
        assert copy.wants_answer is True

    def test_bad_arguments(self) -> None:
        """What is no bool is refused, by name."""
        with pytest.raises(TypeError, match="capture_content"):
            OpenTelemetryObserver(capture_content="no")  # type: ignore[arg-type]

    def test_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without OpenTelemetry the error says what to install."""
        monkeypatch.setitem(sys.modules, "opentelemetry", None)
        with pytest.raises(ImportError, match=r"pip install 'chanstream\[otel\]'"):
            OpenTelemetryObserver()

    def test_the_import(self) -> None:
        """Neither the client nor this module loads OpenTelemetry by itself."""
        code = "import sys, chanstream.client, chanstream.telemetry; sys.exit('opentelemetry' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

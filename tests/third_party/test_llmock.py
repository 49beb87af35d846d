"""The main job against llmock.

It speaks as OpenAI, Groq and Mistral do, breaks its answers on demand, and keeps what it was asked.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from chanstream import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AssistantMessage,
    AuthenticationError,
    BadRequestError,
    ChatCompletionRequest,
    Client,
    CompletionChunk,
    ConflictError,
    Dialect,
    Function,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    Retry,
    StreamDecodeError,
    StreamError,
    StreamInterruptedError,
    StreamTruncatedError,
    Timeout,
    Tool,
    ToolMessage,
    UnprocessableEntityError,
    UsageInfo,
    UserMessage,
)
from tests.conftest import PROMPT, SCALE, Link, producers, within
from tests.third_party.conftest import Llmock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60, func_only=True),  # the first fixture may have to install the server
    pytest.mark.usefixtures("nothing_left"),
]

FLAVOURS = {"openai": "/v1", "groq": "/groq/openai/v1", "mistral": "/mistral/v1"}
EVERY_FLAVOUR = pytest.mark.parametrize("flavour", FLAVOURS)
TWO_FLAVOURS = pytest.mark.parametrize("flavour", ["openai", "mistral"])
"""Those whose errors differ in shape, and that answer with more than one choice."""

TEXT = 'Größe: 30 €,\n  "quoted" \\ 漢字 and 😀, \u2028 no line end.\n\nThe end. '
WEATHER = Tool(
    Function("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
)


def client_of(llmock: Llmock, link: Link, flavour: str = "openai", **settings: Any) -> Client:
    """Return a client of one flavour of the server, in the dialect of the same name."""
    return link.client(llmock.url + FLAVOURS[flavour], **{"dialect": flavour, **settings})


def asking(prompt: str = "Say it.", **options: Any) -> ChatCompletionRequest:
    """Return a request with one user message."""
    return ChatCompletionRequest("some-model", [UserMessage(prompt)], **options)


def text_of(chunks: list[CompletionChunk], index: int = 0) -> str:
    """Return the text of one choice."""
    return "".join(choice.delta.text for chunk in chunks for choice in chunk.choices if choice.index == index)


def tokens_in(usage: UsageInfo | None) -> tuple[int, int, int]:
    """Return what a usage counts: prompt, completion and both."""
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def only_the_last_ends(chunks: list[CompletionChunk]) -> bool:
    """Return whether the last chunk, and no other, ends the stream, and all latencies add up."""
    ends = [chunk.is_last_chunk or chunk.error is not None for chunk in chunks]
    return ends.index(True) == len(ends) - 1 and sum(c.chunk_latency for c in chunks) == chunks[-1].total_latency


class TestAnswers:
    @EVERY_FLAVOUR
    def test_a_stream(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """A streamed text is exactly what the server was told to say, word by word, with its finish reason last."""
        llmock.script({"type": "reply", "text": TEXT})
        chunks = list(client_of(llmock, plain, flavour).chat_completion_stream(asking()))
        assert text_of(chunks) == TEXT
        assert len([chunk for chunk in chunks if chunk.text]) > 10
        assert only_the_last_ends(chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert {chunk.model for chunk in chunks} == {"some-model"}
        assert chunks[0].delta_message().role == "assistant"

    @EVERY_FLAVOUR
    def test_a_whole_answer(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """An answer without streaming is the same text, with finish reason and usage."""
        llmock.script({"type": "reply", "text": TEXT})
        answer = client_of(llmock, plain, flavour).chat_completion(asking())
        assert answer.text == TEXT
        assert answer.choices[0].finish_reason == "stop"
        prompt, completion, both = tokens_in(answer.usage)
        assert completion > 0
        assert both == prompt + completion

    @pytest.mark.parametrize("flavour", ["openai", "groq"])
    def test_usage_in_a_stream(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """The usage that the server sends after the finish reason is on the last chunk, and as in a whole answer."""
        client = client_of(llmock, plain, flavour)
        *others, last = client.chat_completion_stream(asking())
        assert tokens_in(last.usage) == tokens_in(client.chat_completion(asking()).usage)
        assert last.choices[0].finish_reason == "stop"
        assert [chunk.usage for chunk in others] == [None] * len(others)

    def test_usage_that_mistral_is_not_asked_for(self, llmock: Llmock, plain: Link) -> None:
        """The Mistral dialect sends no stream_options; a server that counts only on request then sends no usage."""
        chunks = list(client_of(llmock, plain, "mistral").chat_completion_stream(asking()))
        assert "stream_options" not in llmock.requests()[0]["body"]
        assert only_the_last_ends(chunks)
        assert chunks[-1].usage is None

    def test_a_dialect_of_ones_own(self, llmock: Llmock, plain: Link) -> None:
        """For a Mistral-like server that counts on request, a dialect of the caller's own asks for usage."""
        dialect = Dialect("proxied", llmock.url + FLAVOURS["mistral"], "PROXY_KEY", usage_on_request=True)
        answer = plain.client(dialect.base_url, dialect=dialect).chat_completion_stream(asking()).collect()
        assert tokens_in(answer.usage)[2] > 0

    @pytest.mark.parametrize(("flavour", "n"), [("openai", 1), ("openai", 2), ("mistral", 2), ("groq", 1)])
    def test_a_collected_stream(self, llmock: Llmock, plain: Link, flavour: str, n: int) -> None:
        """collect() makes the same choices of a stream as the server sends without streaming."""
        client = client_of(llmock, plain, flavour)
        collected = client.chat_completion_stream(asking(n=n)).collect()
        whole = client.chat_completion(asking(n=n))
        assert len(collected.choices) == n
        assert [(choice.index, choice.message.text, choice.finish_reason) for choice in collected.choices] == [
            (choice.index, choice.message.text, choice.finish_reason) for choice in whole.choices
        ]

    @TWO_FLAVOURS
    def test_two_choices(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """With n=2 each choice has its whole text, and the last chunk is the one after which both are finished."""
        chunks = list(client_of(llmock, plain, flavour).chat_completion_stream(asking("Twice.", n=2)))
        assert [text_of(chunks, index) for index in (0, 1)] == ["Hello! You said: Twice."] * 2
        assert only_the_last_ends(chunks)
        finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason == "stop"]
        assert finished == [0, 1]

    def test_what_is_sent(self, llmock: Llmock, plain: Link) -> None:
        """The server gets the request as it was made: zeros and the dialect's names included, and nothing unset."""
        request = asking("Ünïcode 😀", temperature=0, max_tokens=5, random_seed=7, stop=["\n"])
        client_of(llmock, plain).chat_completion(request)
        [asked] = llmock.requests()
        assert (asked["method"], asked["path"]) == ("POST", "/v1/chat/completions")
        assert asked["body"] == {
            "model": "some-model",
            "messages": [{"role": "user", "content": "Ünïcode 😀"}],
            "temperature": 0,
            "max_tokens": 5,
            "seed": 7,
            "stop": ["\n"],
        }

    def test_what_is_left_of_the_quota(self, llmock: Llmock, plain: Link) -> None:
        """The rate limits in the head of a stream are there before its first chunk is taken."""
        with client_of(llmock, plain).chat_completion_stream(asking()) as stream:
            limits = stream.response.rate_limits
        assert limits.limit_requests == 60000
        assert limits.remaining_requests is not None
        assert limits.remaining_requests < 60000
        assert limits.reset_requests is not None


class TestToolCalls:
    @EVERY_FLAVOUR
    def test_two_calls(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """Two calls are told apart and joined from their fragments; the Mistral flavour sends each in one piece."""
        wanted = [("weather", {"city": "Saint-Rémy-lès-Chevreuse"}), ("weather", {"city": "Aix", "days": [1, 2]})]
        llmock.script({"type": "reply", "tool_calls": [{"name": n, "arguments": a} for n, a in wanted]})
        answer = client_of(llmock, plain, flavour).chat_completion_stream(asking(tools=[WEATHER])).collect()
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        assert [(call.function.name, json.loads(str(call.function.arguments))) for call in calls] == wanted
        assert len({call.id for call in calls}) == 2
        assert answer.choices[0].finish_reason == "tool_calls"

    @EVERY_FLAVOUR
    def test_a_conversation(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """The model calls a tool, is told its result in a second request, and answers in words."""
        client = client_of(llmock, plain, flavour)
        question = UserMessage("What is the weather?")
        first = client.chat_completion_stream(ChatCompletionRequest("m", [question], tools=[WEATHER])).collect()
        said = first.choices[0].message
        assert isinstance(said, AssistantMessage)
        assert said.tool_calls
        result = ToolMessage("sunny", tool_call_id=said.tool_calls[0].id)
        second = ChatCompletionRequest("m", [question, said, result], tools=[WEATHER])
        answer = client.chat_completion_stream(second).collect()
        assert answer.text == "Hello! You said: What is the weather? sunny"
        assert answer.choices[0].finish_reason == "stop"

    def test_arguments_that_are_no_json(self, llmock: Llmock, plain: Link) -> None:
        """Broken arguments are the model's fault, not the stream's: they are handed on as they came."""
        llmock.script({"type": "tool_fault", "kind": "malformed_arguments"})
        answer = client_of(llmock, plain).chat_completion_stream(asking(tools=[WEATHER])).collect()
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        with pytest.raises(ValueError, match=r".+"):
            json.loads(str(calls[0].function.arguments))


REFUSALS = [
    (400, BadRequestError, "invalid_request_error", "bad_request"),
    (401, AuthenticationError, "authentication_error", "invalid_api_key"),
    (403, PermissionDeniedError, "permission_error", "forbidden"),
    (404, NotFoundError, "invalid_request_error", "not_found"),
    (409, ConflictError, "conflict_error", "conflict"),
    (422, UnprocessableEntityError, "invalid_request_error", "unprocessable_entity"),
    (429, RateLimitError, "rate_limit_error", "rate_limit_exceeded"),
    (500, InternalServerError, "server_error", "internal_error"),
    (503, InternalServerError, "server_error", "service_unavailable"),
]


class TestRefusals:
    @TWO_FLAVOURS
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    @pytest.mark.parametrize(("status", "kind", "type_", "code"), REFUSALS, ids=[str(case[0]) for case in REFUSALS])
    def test_by_status(  # noqa: PLR0917 - the table's columns
        self, llmock: Llmock, plain: Link, flavour: str, streaming: bool,
        status: int, kind: type[APIStatusError], type_: str, code: str,
    ) -> None:  # fmt: skip
        """Each status raises its class at the call, with the server's words, type and code."""
        llmock.script({"type": "fail", "status": status, "message": "Because I say so."})
        client = client_of(llmock, plain, flavour)
        with pytest.raises(APIStatusError) as caught:
            (client.chat_completion_stream if streaming else client.chat_completion)(asking())
        assert type(caught.value) is kind
        assert caught.value.status_code == status
        assert str(caught.value) == f"[{status}] {type_}: Because I say so."
        assert caught.value.code == code

    @TWO_FLAVOURS
    def test_a_value_that_the_server_does_not_take(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """A 422 that the server found by itself names the field."""
        with pytest.raises(UnprocessableEntityError, match=r"max_tokens.* valid integer"):
            client_of(llmock, plain, flavour).chat_completion_stream(asking(extra={"max_tokens": "many"}))

    def test_two_choices_of_groq(self, llmock: Llmock, plain: Link) -> None:
        """More choices than the server gives are refused at the call; nothing hangs waiting for the second."""
        with pytest.raises(BadRequestError):
            client_of(llmock, plain, "groq").chat_completion_stream(asking(n=2))

    def test_a_path_that_is_not_there(self, llmock: Llmock, plain: Link) -> None:
        """A wrong base URL is a NotFoundError at the call."""
        with pytest.raises(NotFoundError, match="Not Found"):
            plain.client(f"{llmock.url}/no/such/path").chat_completion_stream(asking())

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    def test_what_no_retry_can_mend(self, llmock: Llmock, plain: Link, status: int) -> None:
        """A request that can only fail again is sent once, though retries are on."""
        llmock.script({"type": "fail", "status": status})
        with pytest.raises(APIStatusError):
            client_of(llmock, plain, retry=Retry()).chat_completion_stream(asking())
        assert [asked["status"] for asked in llmock.requests()] == [status]

    @TWO_FLAVOURS
    @pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
    def test_retry_after(self, llmock: Llmock, plain: Link, flavour: str, streaming: bool) -> None:
        """A 429 is tried again no sooner than the server asked for, and no later than need be, and then succeeds."""
        llmock.script({"type": "fail", "status": 429, "retry_after": 0.4})
        client = client_of(llmock, plain, flavour, retry=Retry())
        if streaming:
            answer = client.chat_completion_stream(asking("Again.")).collect()
        else:
            answer = client.chat_completion(asking("Again."))
        assert answer.text == "Hello! You said: Again."
        assert answer.latency >= 0.4
        refused, served = llmock.requests()
        assert (refused["status"], served["status"]) == (429, 200)
        assert 0.4 <= served["started_at"] - refused["ended_at"] < 0.4 + 4 * PROMPT
        assert llmock.verdict() == []

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_a_server_that_fails_twice(self, llmock: Llmock, plain: Link, status: int) -> None:
        """Failures of the server are tried again, and the stream that comes is whole; all over one connection."""
        llmock.script({"type": "fail", "status": status, "retry_after": 0.01, "times": 2})
        stream = client_of(llmock, plain, retry=Retry()).chat_completion_stream(asking("At last."))
        assert stream.collect().text == "Hello! You said: At last."
        assert [asked["status"] for asked in llmock.requests()] == [status, status, 200]
        assert llmock.connections() == 1
        assert llmock.verdict() == []

    def test_a_server_that_fails_for_good(self, llmock: Llmock, plain: Link) -> None:
        """After the last retry the refusal is raised."""
        llmock.script({"type": "fail", "status": 500, "times": None, "message": "Broken for good."})
        with pytest.raises(InternalServerError, match=r"Broken for good\."):
            client_of(llmock, plain, retry=Retry(max_retries=2, max_delay=0.02)).chat_completion_stream(asking())
        assert [asked["status"] for asked in llmock.requests()] == [500] * 3
        assert llmock.verdict() == []


CUTS = [
    ("disconnect", StreamInterruptedError),
    ("truncate", StreamTruncatedError),
    ("malformed", StreamDecodeError),
]


class TestBrokenStreams:
    @EVERY_FLAVOUR
    @pytest.mark.parametrize("after", [1, 3])
    @pytest.mark.parametrize(("kind", "error"), CUTS, ids=[kind for kind, _ in CUTS])
    def test_in_the_middle(  # noqa: PLR0917 - the table's columns
        self, llmock: Llmock, plain: Link, flavour: str, after: int, kind: str, error: type[StreamError]
    ) -> None:
        """A stream cut in the middle gives all that came before, then one error of the right class; no second try."""
        llmock.script({"type": "stream_fault", "kind": kind, "after_chunks": after})
        client = client_of(llmock, plain, flavour, retry=Retry())
        *before, last = client.chat_completion_stream(asking("Cut me."))
        assert type(last.error) is error
        assert [chunk.text for chunk in before] == ["", "Hello! ", "You "][:after]
        assert only_the_last_ends([*before, last])
        assert len(llmock.requests()) == 1

    @pytest.mark.parametrize(("kind", "error"), CUTS, ids=[kind for kind, _ in CUTS])
    def test_before_the_first_chunk(self, llmock: Llmock, plain: Link, kind: str, error: type[StreamError]) -> None:
        """A stream with nothing in it ends with an error too, never as an empty answer."""
        llmock.script({"type": "stream_fault", "kind": kind, "after_chunks": 0})
        chunks = list(client_of(llmock, plain).chat_completion_stream(asking()))
        assert [type(chunk.error) for chunk in chunks] == [error]

    @pytest.mark.parametrize(("kind", "error"), CUTS, ids=[kind for kind, _ in CUTS])
    def test_collected(self, llmock: Llmock, plain: Link, kind: str, error: type[StreamError]) -> None:
        """collect() raises what cut the stream, with the text that had come as its partial answer."""
        llmock.script({"type": "stream_fault", "kind": kind, "after_chunks": 4})
        stream = client_of(llmock, plain).chat_completion_stream(asking())
        with pytest.raises(error) as caught:
            stream.collect()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "Hello! You said: "

    @pytest.mark.parametrize(("kind", "error"), CUTS, ids=[kind for kind, _ in CUTS])
    def test_the_client_goes_on(self, llmock: Llmock, plain: Link, kind: str, error: type[StreamError]) -> None:
        """After a broken stream the same client streams the next answer whole."""
        llmock.script({"type": "stream_fault", "kind": kind, "after_chunks": 2})
        client = client_of(llmock, plain, errors="raise")
        with pytest.raises(error):
            list(client.chat_completion_stream(asking()))
        assert client.chat_completion_stream(asking("Next.")).collect().text == "Hello! You said: Next."

    def test_an_idle_clock(self, llmock: Llmock, plain: Link) -> None:
        """A server that falls silent in the middle is left after the idle time, and notices."""
        llmock.script({"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 50})
        client = client_of(llmock, plain, timeout=Timeout(idle=0.3 * SCALE))
        *before, last = client.chat_completion_stream(asking())
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "idle"
        assert text_of(before) == "Hello! You "
        [asked] = llmock.requests()
        assert not asked["completed"]
        assert 0.2 * SCALE < asked["stall_waited"] < 0.3 * SCALE + 4 * PROMPT

    def test_a_first_chunk_clock(self, llmock: Llmock, plain: Link) -> None:
        """A model that thinks longer than the caller wants to wait is left before its first chunk."""
        llmock.script({"type": "slow_first_token", "seconds": 50})
        client = client_of(llmock, plain, timeout=Timeout(first_chunk=0.3 * SCALE))
        [last] = client.chat_completion_stream(asking())
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "first_chunk"

    def test_a_total_clock(self, llmock: Llmock, plain: Link) -> None:
        """A whole answer that takes too long is left in time."""
        llmock.script({"type": "delay", "seconds": 50})
        begun = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            client_of(llmock, plain).chat_completion(asking(), timeout=0.3)
        assert caught.value.clock == "total"
        assert time.monotonic() - begun < 0.3 + 2 * PROMPT

    def test_close(self, llmock: Llmock, plain: Link) -> None:
        """close() while the server is silent frees everything at once, and the server notices."""
        llmock.script({"type": "stream_fault", "kind": "stall", "after_chunks": 2, "stall_seconds": 50})
        stream = client_of(llmock, plain).chat_completion_stream(asking())
        assert [next(stream).text, next(stream).text] == ["", "Hello! "]
        stream.close()
        assert within(PROMPT, lambda: producers() == 0)
        [asked] = llmock.requests()
        assert not asked["completed"]
        assert asked["stall_waited"] < 10 * SCALE


class TestMany:
    @EVERY_FLAVOUR
    def test_20_streams_in_a_row(self, llmock: Llmock, plain: Link, flavour: str) -> None:
        """20 streams in a row are each whole, and come over one connection."""
        client = client_of(llmock, plain, flavour)
        prompts = [f"Number {number}." for number in range(20)]
        texts = [text_of(list(client.chat_completion_stream(asking(prompt)))) for prompt in prompts]
        assert texts == [f"Hello! You said: {prompt}" for prompt in prompts]
        assert llmock.connections() == 1

    def test_50_streams_at_once(self, llmock: Llmock, plain: Link) -> None:
        """50 threads that stream at once over one client get each the answer to their own question."""
        client = client_of(llmock, plain)
        ready = threading.Barrier(50)

        def ask(number: int) -> tuple[str, int]:
            ready.wait(30)
            chunks = list(client.chat_completion_stream(asking(f"I am number {number}.")))
            return text_of(chunks), tokens_in(chunks[-1].usage)[1]

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(ask, range(50)))
        assert [text for text, _ in answers] == [f"Hello! You said: I am number {number}." for number in range(50)]
        assert min(tokens for _, tokens in answers) > 0
        assert len(llmock.requests()) == 50

    def test_50_streams_at_once_of_which_each_third_fails(self, llmock: Llmock, plain: Link) -> None:
        """Refusals and cuts of some streams reach their own callers and no others."""
        client = client_of(llmock, plain, errors="raise")
        for number in range(0, 50, 3):
            fault = {"type": "fail", "status": 418} if number % 2 else {"type": "stream_fault", "kind": "disconnect"}
            llmock.script({**fault, "match": {"model": f"model-{number}"}})
        ready = threading.Barrier(50)

        def ask(number: int) -> str:
            ready.wait(30)
            request = attrs.evolve(asking(f"I am number {number}."), model=f"model-{number}")
            try:
                return client.chat_completion_stream(request).collect().text
            except (APIError, StreamError) as error:
                return type(error).__name__

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(ask, range(50)))
        assert answers == [
            f"Hello! You said: I am number {number}." if number % 3 else
            "APIStatusError" if number % 2 else "StreamInterruptedError"
            for number in range(50)
        ]  # fmt: skip

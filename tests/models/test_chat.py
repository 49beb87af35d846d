"""The request for a chat completion and its whole answer: both ways."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    AssistantMessage,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Choice,
    FinishReason,
    Function,
    FunctionCall,
    JSONSchema,
    ResponseFormat,
    SystemMessage,
    TextChunk,
    ThinkChunk,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMessage,
    UsageInfo,
    UserMessage,
)
from chanstream.models.codec import Model, dumps
from tests.data.transcripts import Transcript, body, transcripts
from tests.models import FLAG, INTEGER, NUMBER, OBJECT, comes_back, objects
from tests.models.test_messages import OBJECTS as MESSAGE_OBJECTS
from tests.models.test_tools import OBJECTS as TOOL_OBJECTS

HI = [UserMessage("hi")]
MINIMAL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

COUNT = st.integers(min_value=1, max_value=2**63)
SCHEMA = objects({"name": st.text(), "schema": OBJECT}, {"description": st.text(), "strict": FLAG})
FORMAT = objects({"type": st.sampled_from(["text", "json_object"])}, {"json_schema": SCHEMA}) | objects(
    {"type": st.just("json_schema"), "json_schema": SCHEMA}
)
USAGE = objects({"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "total_tokens": INTEGER})
CHOICE = objects({"index": INTEGER, "message": MESSAGE_OBJECTS[AssistantMessage]}, {"finish_reason": st.text()})
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    JSONSchema: SCHEMA,
    ResponseFormat: FORMAT,
    UsageInfo: USAGE,
    Choice: CHOICE,
    ChatCompletionRequest: objects(
        {
            "model": st.text(min_size=1),
            "messages": st.lists(st.one_of(*MESSAGE_OBJECTS.values()), min_size=1, max_size=2),
        },
        {
            "temperature": NUMBER,
            "top_p": NUMBER,
            "max_tokens": INTEGER,
            "max_completion_tokens": INTEGER,
            "n": COUNT,
            "stop": st.text() | st.lists(st.text()),
            "random_seed": INTEGER,
            "frequency_penalty": NUMBER,
            "presence_penalty": NUMBER,
            "tools": st.lists(TOOL_OBJECTS[Tool], max_size=2),
            "tool_choice": st.text() | TOOL_OBJECTS[ToolChoice],
            "parallel_tool_calls": FLAG,
            "response_format": FORMAT,
            "reasoning_effort": st.text(),
            "prompt_mode": st.text(),
            "safe_prompt": FLAG,
            "prediction": OBJECT,
            "metadata": OBJECT,
            "logprobs": FLAG,
            "top_logprobs": INTEGER,
            "stream_options": OBJECT,
            "user": st.text(),
        },
    ),
    ChatCompletionResponse: objects(
        {
            "id": st.text(),
            "object": st.text(),
            "created": INTEGER,
            "model": st.text(),
            "choices": st.lists(CHOICE, max_size=2),
        },
        {"usage": USAGE},
    ),
}


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever an object holds, any option and explicit nulls too, comes back exactly."""
    assert comes_back(cls, data.draw(OBJECTS[cls]))


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
REAL_REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hello café 日本語 👋🏽, this message is echoed back."}],
        "stream": True,
    },
    "usage": {
        "model": "tiny-random-llama",
        "messages": [{"role": "user", "content": "Say hello"}],
        "stream": True,
        "max_tokens": 5,
        "temperature": 0.8,
        "seed": 1,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "two choices": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "stream": True, "n": 2},
    "stop": {"model": "m", "messages": [{"role": "user", "content": "Say hello"}], "stop": ["a", "e"], "stream": True},
    "log probabilities": {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello"}],
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": -1,
    },
    "a named tool": {
        "model": "m",
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "chat_template_kwargs": {"enable_thinking": False},
        "logit_bias": {"13": 14, "31995": 13.5, "31998": 14},
    },
    "a schema": {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "x",
                "strict": True,
                "schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
            },
        },
    },
    "a grammar": {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello"}],
        "grammar": 'root ::= "Hello, world! Café naïve 日本語 👋🏽.\\nSecond line."',
        "structured_outputs": {"regex": "Hello, café"},
    },
    "a conversation with tools": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Weather?"}, {"type": "image_url", "image_url": "x"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "name": "get_weather", "content": "rain"},
        ],
        "tools": [WEATHER],
        "tool_choice": "auto",
    },
}


@pytest.mark.parametrize("data", REAL_REQUESTS.values(), ids=REAL_REQUESTS.keys())
def test_requests_that_servers_were_sent(data: dict[str, Any]) -> None:
    """The bodies that real servers were asked with are read and written exactly."""
    assert comes_back(ChatCompletionRequest, data)


@pytest.mark.parametrize("transcript", transcripts("answer"), ids=lambda transcript: transcript.name)
def test_answers_that_servers_sent(transcript: Transcript) -> None:
    """The whole answers of real servers are read and written exactly."""
    _, data, _ = body(transcript.raw)
    assert comes_back(ChatCompletionResponse, json.loads(data))


class TestTheRequest:
    def test_the_least(self) -> None:
        """Options that are not set are not sent."""
        assert ChatCompletionRequest("m", HI).to_dict() == MINIMAL

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("temperature", 0),
            ("temperature", 0.0),
            ("top_p", 0.0),
            ("max_tokens", 0),
            ("random_seed", 0),
            ("frequency_penalty", 0),
            ("presence_penalty", -0.5),
            ("parallel_tool_calls", False),
            ("safe_prompt", False),
            ("logprobs", False),
            ("top_logprobs", 0),
            ("stop", ""),
            ("stop", []),
            ("user", ""),
            ("reasoning_effort", ""),
            ("prompt_mode", ""),
            ("tool_choice", ""),
            ("tools", []),
            ("metadata", {}),
            ("stream_options", {"include_usage": False}),
            ("prediction", {}),
        ],
    )
    def test_what_is_false_is_sent(self, option: str, value: Any) -> None:
        """An option that is set is sent, be it 0, False, or empty."""
        sent = ChatCompletionRequest("m", HI, **{option: value}).to_dict()
        assert sent == {**MINIMAL, option: value}
        assert type(sent[option]) is type(value)

    def test_plain_objects(self) -> None:
        """Messages, tools, the choice and the format may be given as their objects, checked at once."""
        request = ChatCompletionRequest(
            "m",
            [{"role": "user", "content": "hi"}],  # type: ignore[list-item]
            tools=[WEATHER],  # type: ignore[list-item]
            tool_choice={"function": {"name": "get_weather"}},  # type: ignore[arg-type]
            response_format={"type": "json_object"},  # type: ignore[arg-type]
        )
        assert request.messages == HI
        assert isinstance((request.tools or [None])[0], Tool)
        assert request.tool_choice == ToolChoice("get_weather")
        assert request.response_format == ResponseFormat("json_object")

    def test_a_bare_function(self) -> None:
        """A function may stand for a tool."""
        request = ChatCompletionRequest("m", HI, tools=[Function("f")])  # type: ignore[list-item]
        assert request.to_dict()["tools"] == [{"type": "function", "function": {"name": "f"}}]

    def test_other_options(self) -> None:
        """An option that the class does not know goes into extra and is sent."""
        assert ChatCompletionRequest("m", HI, extra={"top_k": 0}).to_dict() == {**MINIMAL, "top_k": 0}

    def test_an_option_misspelt(self) -> None:
        """A keyword that does not exist is refused: only extra passes what is unknown."""
        with pytest.raises(TypeError, match="temprature"):
            ChatCompletionRequest("m", HI, temprature=0.5)  # type: ignore[call-arg]

    def test_options_are_keywords(self) -> None:
        """Only the model and the messages may be given by position."""
        with pytest.raises(TypeError, match="positional"):
            ChatCompletionRequest("m", HI, 0.5)

    def test_it_is_a_value(self) -> None:
        """A request does not change; equal requests are equal, and a changed copy is easily made."""
        request = ChatCompletionRequest("m", HI)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            request.model = "n"  # type: ignore[misc]
        assert request == ChatCompletionRequest("m", [{"role": "user", "content": "hi"}])  # type: ignore[list-item]
        assert attrs.evolve(request, n=2).to_dict() == {**MINIMAL, "n": 2}

    def test_the_conversation_goes_on(self) -> None:
        """A list that grows after the request was made does not change the request."""
        conversation: list[Any] = [UserMessage("hi")]
        request = ChatCompletionRequest("m", conversation)
        conversation.append(AssistantMessage("hello"))
        assert request.messages == HI


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": None}, TypeError, "model: expected str, got None"),
    ({"model": 5}, TypeError, "model: expected str, got 5"),
    ({"model": ""}, ValueError, "model: expected a text, got ''"),
    ({"messages": None}, TypeError, "messages: expected a list of messages, got None"),
    ({"messages": []}, ValueError, "messages: expected at least one message"),
    ({"messages": "hi"}, TypeError, "messages: expected a list, got 'hi'"),
    ({"messages": b"hi"}, TypeError, "messages: expected a list, got b'hi'"),
    ({"messages": {"role": "user"}}, TypeError, "messages: expected a list, got {'role': 'user'}"),
    ({"messages": 5}, TypeError, "messages: expected a list, got 5"),
    ({"messages": UserMessage("hi")}, TypeError, "messages: expected a list, got UserMessage("),
    ({"messages": [None]}, TypeError, "messages[0]: expected a message as a mapping, got None"),
    ({"messages": ["hi"]}, TypeError, "messages[0]: expected a message as a mapping, got 'hi'"),
    ({"messages": [*HI, None]}, TypeError, "messages[1]: expected a message as a mapping, got None"),
    ({"messages": [{"content": "hi"}]}, ValueError, "messages[0].role: missing"),
    ({"messages": [{"role": "alien", "content": "x"}]}, ValueError, "messages[0].role: unknown role 'alien' (known: "),
    ({"messages": [{"role": "user"}]}, TypeError, "messages[0].content: expected a text or a list of content chunks"),
    (
        {"messages": [*HI, {"role": "user", "content": [{"type": "text"}]}]},
        ValueError,
        "messages[1].content[0].text: missing",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}]},
        TypeError,
        "messages[0].tool_calls[0].function.name: expected str, got 5",
    ),
    ({"temperature": "hot"}, TypeError, "temperature: expected int or float, got 'hot'"),
    ({"temperature": True}, TypeError, "temperature: expected int or float, got True"),
    ({"top_p": "1"}, TypeError, "top_p: expected int or float, got '1'"),
    ({"max_tokens": 1.5}, TypeError, "max_tokens: expected int, got 1.5"),
    ({"max_tokens": "5"}, TypeError, "max_tokens: expected int, got '5'"),
    ({"n": 0}, ValueError, "n: expected 1 or more, got 0"),
    ({"n": -1}, ValueError, "n: expected 1 or more, got -1"),
    ({"n": True}, TypeError, "n: expected int, got True"),
    ({"n": "2"}, TypeError, "n: expected int, got '2'"),
    ({"stop": 5}, TypeError, "stop: expected str or list or tuple, got 5"),
    ({"random_seed": 1.0}, TypeError, "random_seed: expected int, got 1.0"),
    ({"parallel_tool_calls": 1}, TypeError, "parallel_tool_calls: expected bool, got 1"),
    ({"safe_prompt": "yes"}, TypeError, "safe_prompt: expected bool, got 'yes'"),
    ({"metadata": []}, TypeError, "metadata: expected Mapping, got []"),
    ({"stream_options": True}, TypeError, "stream_options: expected Mapping, got True"),
    ({"user": 5}, TypeError, "user: expected str, got 5"),
    ({"tools": Function("f")}, TypeError, "tools: expected a list, got Function("),
    ({"tools": [5]}, TypeError, "tools[0]: expected a tool as a mapping, got 5"),
    ({"tools": [{"function": {}}]}, ValueError, "tools[0].function.name: missing"),
    ({"tool_choice": 5}, TypeError, "tool_choice: expected a mode or a tool choice as a mapping, got 5"),
    ({"tool_choice": {}}, ValueError, "tool_choice.function: missing"),
    ({"response_format": 5}, TypeError, "response_format: expected a response format as a mapping, got 5"),
    ({"response_format": {"type": "json_schema"}}, ValueError, "response_format.json_schema: missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        ValueError,
        "response_format.json_schema.name: missing",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_a_wrong_request(wrong: dict[str, Any], kind: type[Exception], text: str) -> None:
    """A request that cannot be is refused when it is made, by an error that names the path."""
    with pytest.raises(kind) as caught:
        ChatCompletionRequest(**{"model": "m", "messages": HI, **wrong})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [case for case in WRONG if None not in case[0].values()],
    ids=[text for wrong, _, text in WRONG if None not in wrong.values()],
)
def test_a_wrong_object(wrong: dict[str, Any], kind: type[Exception], text: str) -> None:
    """The request's object is held to the same, in the same words."""
    with pytest.raises(kind) as caught:
        ChatCompletionRequest.from_dict({**MINIMAL, **wrong})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("name", ["temperature", "top_p", "frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have(name: str, value: float) -> None:
    """A number that cannot be sent is refused when the request is made, and named."""
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        ChatCompletionRequest("m", HI, **{name: value})


class TestTheFormat:
    def test_its_forms(self) -> None:
        """A format is text, any JSON object, or JSON that follows a schema."""
        assert ResponseFormat().to_dict() == {"type": "text"}
        assert ResponseFormat("json_object").to_dict() == {"type": "json_object"}
        schema = JSONSchema("x", {"type": "object"}, strict=False)
        assert ResponseFormat("json_schema", schema).to_dict() == {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": False},
        }

    def test_a_schema_as_its_object(self) -> None:
        """A schema may be given as its object, and becomes a value."""
        given = ResponseFormat("json_schema", {"name": "x", "schema": {}})  # type: ignore[arg-type]
        assert given == ResponseFormat("json_schema", JSONSchema("x", {}))

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: ResponseFormat("json_schema"), "json_schema: missing, and the type is 'json_schema'"),
            (lambda: ResponseFormat("json_schema", 5), "json_schema: expected a"),  # type: ignore[arg-type]
            (lambda: ResponseFormat("json_schema", {"schema": {}}), "json_schema.name: missing"),  # type: ignore[arg-type]
            (lambda: ResponseFormat(5), "type: expected str, got 5"),  # type: ignore[arg-type]
            (lambda: JSONSchema("x", None), "schema: expected Mapping, got None"),  # type: ignore[arg-type]
            (lambda: JSONSchema(None, {}), "name: expected str, got None"),  # type: ignore[arg-type]
            (lambda: JSONSchema("x", {}, strict=1), "strict: expected bool, got 1"),  # type: ignore[arg-type]
        ],
    )
    def test_a_wrong_one(self, make: Any, text: str) -> None:
        """A format that cannot be is refused when it is made, and the field named."""
        with pytest.raises((TypeError, ValueError)) as caught:
            make()
        assert str(caught.value).startswith(text)


class TestTheAnswer:
    ANSWER = ChatCompletionResponse.from_dict(
        {
            "id": "1",
            "created": 5,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "message": {
                        "role": "assistant",
                        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}],
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                    },
                },
                {"index": 1, "finish_reason": None, "message": {"role": "assistant", "content": "other"}},
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "queue_time": 0.5},
        }
    )

    def test_the_first_choice(self) -> None:
        """The short ways lead to the first choice."""
        assert (self.ANSWER.text, self.ANSWER.reasoning) == ("so", "hm")
        assert self.ANSWER.tool_calls == [ToolCall("1", FunctionCall("f", "{}"))]
        assert self.ANSWER.assistant_message() is self.ANSWER.choices[0].message

    def test_no_choice(self) -> None:
        """An answer without choices has nothing to say, and says so quietly."""
        empty = ChatCompletionResponse()
        assert (empty.text, empty.reasoning, list(empty.tool_calls)) == ("", "", [])
        assert empty.assistant_message() is None

    def test_no_tool_call(self) -> None:
        """A choice without tool calls has an empty sequence of them."""
        assert list(ChatCompletionResponse([Choice(message=AssistantMessage("x"))]).tool_calls) == []

    def test_usage(self) -> None:
        """Token counts are numbers; what else the server counts lies in extra; None where it counts nothing."""
        usage = self.ANSWER.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 2, 3)
        assert usage.extra == {"queue_time": 0.5}
        assert ChatCompletionResponse().usage is None

    def test_what_is_not_of_the_wire(self) -> None:
        """Latency and the raw object stay here, and do not make answers differ."""
        slow = ChatCompletionResponse(latency=5.0, raw={"a": 1})
        assert slow == ChatCompletionResponse()
        assert slow.to_dict() == ChatCompletionResponse().to_dict()

    def test_it_continues_the_conversation(self) -> None:
        """The message of an answer can be sent back as it is, beside the tool's result."""
        said = self.ANSWER.assistant_message()
        assert said is not None
        request = ChatCompletionRequest("m", [SystemMessage("s"), *HI, said, ToolMessage("42", "1")])
        assert json.loads(dumps(request.to_dict()))["messages"][2] == said.to_dict()
        assert said.content == [ThinkChunk([TextChunk("hm")]), TextChunk("so")]


class TestFinishReason:
    def test_it_equals_its_text(self) -> None:
        """A finish reason of an answer, a plain text, equals the member of the enumeration."""
        assert TestTheAnswer.ANSWER.choices[0].finish_reason == FinishReason.TOOL_CALLS
        assert f"{FinishReason.STOP}" == "stop"

    def test_another_word(self) -> None:
        """A word that is in no list passes as it is."""
        assert Choice.from_dict({"finish_reason": "eos_token"}).finish_reason == "eos_token"

"""The requests for completions (a chat, an agent's, code to fill in) and their whole answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import attrs

from .codec import Model, each, extra_field, loaded, mapping, named, not_empty, of_type
from .messages import AssistantMessage, messages_from
from .options import converted, count, flag, json_object, number, word, word_or_words
from .tools import Function, Tool, ToolCall, ToolChoice, tool_choice_from, tools_from

T = TypeVar("T")


class FinishReason(str, Enum):
    """Why a choice ended. Each member equals its text; servers send other words too, which pass as they are."""

    STOP = "stop"
    LENGTH = "length"
    MODEL_LENGTH = "model_length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    FUNCTION_CALL = "function_call"
    ERROR = "error"

    __str__ = str.__str__


@attrs.frozen
class JSONSchema(Model):
    """A JSON Schema that the answer has to follow.

    Attributes:
        name: A name for it; servers allow letters, digits, ``_`` and ``-``.
        schema: The schema, sent as it is.
        strict: Whether the model must keep to it.
    """

    name: str = attrs.field(validator=of_type(str))
    schema: Mapping[str, Any] = attrs.field(validator=of_type(Mapping))
    description: str | None = attrs.field(default=None, validator=of_type(str, optional=True))
    strict: bool | None = attrs.field(default=None, validator=of_type(bool, optional=True))
    extra: Mapping[str, Any] = extra_field()


def _json_schema(value: Any) -> JSONSchema:
    return value if isinstance(value, JSONSchema) else JSONSchema.from_dict(mapping(value, "a JSON Schema"))


@attrs.frozen
class ResponseFormat(Model):
    """The form that the answer must have: ``"text"``, ``"json_object"``, or ``"json_schema"`` with a schema."""

    type: str = attrs.field(default="text", validator=of_type(str))
    json_schema: JSONSchema | None = loaded(_json_schema, default=None, converter=named("json_schema", _json_schema))
    extra: Mapping[str, Any] = extra_field()

    def __attrs_post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema: missing, and the type is 'json_schema'")

    @classmethod
    def from_type(
        cls, kind: Any, *, name: str | None = None, description: str | None = None, strict: bool = True
    ) -> ResponseFormat:
        """Return the form of an answer that holds a value of a type, for `ChatCompletionResponse.output` to take out.

        Needs the extra ``types``.

        Args:
            kind: A type with fields: an attrs class, a dataclass, a TypedDict, a NamedTuple.
            name: Its name for the model, instead of its own.
            description: What it is, for the model.
            strict: Whether the model must keep to the schema, which is said as strict modes want it then: with all
                fields required, those with defaults too.

        Raises:
            TypeError: The type has no JSON Schema; the text names it.
            ValueError: The name is none that servers take.
            ImportError: The extra is not installed.
        """
        from .typed import name_of, schema_of

        schema = schema_of(kind, strict=strict)
        return cls("json_schema", JSONSchema(name_of(kind) if name is None else name, schema, description, strict))


def _response_format(value: Any) -> ResponseFormat:
    if isinstance(value, ResponseFormat):
        return value
    return ResponseFormat.from_dict(mapping(value, "a response format"))


def _there(_: Any, field: Any, value: Any) -> None:
    if value is None:
        raise TypeError(f"{field.name}: expected a list of messages, got None")


@attrs.frozen
class ChatCompletionRequest(Model):
    """What to ask a model for.

    An option that is None is not sent; 0, False and "" are. What this class does not know goes into ``extra`` and is
    sent as it is. Options are those of https://docs.mistral.ai/api/#tag/chat and
    https://platform.openai.com/docs/api-reference/chat/create; a dialect says at once which of them it does not take.

    Attributes:
        model: The model's id.
        messages: The conversation so far: message objects or their JSON objects.
        random_seed: For repeatable sampling; sent as ``seed`` where the dialect calls it so.
        n: How many choices to answer with.

    Raises:
        TypeError: A field is of the wrong type; the text names it.
        ValueError: A field has a value that cannot be; the text names it.
    """

    model: str = attrs.field(validator=[of_type(str), not_empty])
    messages: Sequence[Model | Mapping[str, Any]] = loaded(
        messages_from, converter=named("messages", messages_from), validator=_there
    )
    temperature: float | None = number()
    top_p: float | None = number()
    max_tokens: int | None = number(int)
    max_completion_tokens: int | None = number(int)
    n: int | None = count()
    stop: str | Sequence[str] | None = word_or_words()
    random_seed: int | None = number(int)
    frequency_penalty: float | None = number()
    presence_penalty: float | None = number()
    tools: Sequence[Tool | Function | Mapping[str, Any]] | None = converted("tools", tools_from)
    tool_choice: str | ToolChoice | Mapping[str, Any] | None = converted("tool_choice", tool_choice_from)
    parallel_tool_calls: bool | None = flag()
    response_format: ResponseFormat | Mapping[str, Any] | None = converted("response_format", _response_format)
    reasoning_effort: str | None = word()
    prompt_mode: str | None = word()
    safe_prompt: bool | None = flag()
    prediction: Mapping[str, Any] | None = json_object()
    metadata: Mapping[str, Any] | None = json_object()
    logprobs: bool | None = flag()
    top_logprobs: int | None = number(int)
    stream_options: Mapping[str, Any] | None = json_object()
    user: str | None = word()
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class AgentCompletionRequest(Model):
    """What to ask an agent of Mistral's for; see https://docs.mistral.ai/api/#tag/agents.

    Attributes:
        agent_id: The agent's id; model and instructions are the agent's own.
        messages: The conversation so far: message objects or their JSON objects.

    Raises:
        As `ChatCompletionRequest`, which describes the options too.
    """

    agent_id: str = attrs.field(validator=[of_type(str), not_empty])
    messages: Sequence[Model | Mapping[str, Any]] = loaded(
        messages_from, converter=named("messages", messages_from), validator=_there
    )
    max_tokens: int | None = number(int)
    n: int | None = count()
    stop: str | Sequence[str] | None = word_or_words()
    random_seed: int | None = number(int)
    frequency_penalty: float | None = number()
    presence_penalty: float | None = number()
    tools: Sequence[Tool | Function | Mapping[str, Any]] | None = converted("tools", tools_from)
    tool_choice: str | ToolChoice | Mapping[str, Any] | None = converted("tool_choice", tool_choice_from)
    parallel_tool_calls: bool | None = flag()
    response_format: ResponseFormat | Mapping[str, Any] | None = converted("response_format", _response_format)
    reasoning_effort: str | None = word()
    prompt_mode: str | None = word()
    prediction: Mapping[str, Any] | None = json_object()
    metadata: Mapping[str, Any] | None = json_object()
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class FIMCompletionRequest(Model):
    """What to fill in between two pieces of code; see https://docs.mistral.ai/api/#tag/fim.

    Attributes:
        model: The model's id.
        prompt: What comes before.
        suffix: What comes after.

    Raises:
        As `ChatCompletionRequest`, which describes the options too.
    """

    model: str = attrs.field(validator=[of_type(str), not_empty])
    prompt: str = attrs.field(validator=of_type(str))
    suffix: str | None = attrs.field(default=None, validator=of_type(str, optional=True))
    temperature: float | None = number()
    top_p: float | None = number()
    max_tokens: int | None = number(int)
    min_tokens: int | None = number(int)
    stop: str | Sequence[str] | None = word_or_words()
    random_seed: int | None = number(int)
    metadata: Mapping[str, Any] | None = json_object()
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class UsageInfo(Model):
    """How many tokens were used; details that a server adds lie in ``extra``."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class Choice(Model):
    """One of the answers of a whole completion.

    Attributes:
        message: What the model said.
        finish_reason: Why it ended, equal to a `FinishReason` or another word; None where the server gave none.
    """

    index: int = 0
    message: AssistantMessage = loaded(AssistantMessage.from_dict, factory=AssistantMessage)
    finish_reason: str | None = None
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class ChatCompletionResponse(Model):
    """A whole answer, be it sent whole or collected from a stream.

    Attributes:
        created: When, in seconds since 1970, by the server's clock.
        usage: Token counts; None where the server sent none.
        latency: Seconds from sending the request to the end of the answer, retries and waits included.
        raw: The JSON object as it came; {} where the answer was collected from a stream.
    """

    choices: Sequence[Choice] = loaded(each(Choice.from_dict), factory=list)
    id: str = ""
    object: str = "chat.completion"
    created: int = 0
    model: str = ""
    usage: UsageInfo | None = loaded(UsageInfo.from_dict, default=None)
    extra: Mapping[str, Any] = extra_field()
    latency: float = attrs.field(default=0.0, kw_only=True, eq=False, metadata={"wire": False})
    raw: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, eq=False, repr=False, metadata={"wire": False})

    @property
    def text(self) -> str:
        """The text of the first choice; "" where there is none."""
        return self.choices[0].message.text if self.choices else ""

    @property
    def reasoning(self) -> str:
        """What the model thought before the first choice, where the server tells."""
        return self.choices[0].message.reasoning if self.choices else ""

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """The tool calls of the first choice."""
        return (self.choices[0].message.tool_calls or ()) if self.choices else ()

    def output(self, kind: type[T]) -> T:
        """Return the value of a type that the first choice's text holds as JSON; see `ResponseFormat.from_type`.

        Needs the extra ``types``.

        Raises:
            ValueError: The text holds none; the error says where, and whether the answer was broken off.
            ImportError: The extra is not installed.
        """
        from .typed import value_of

        reason = self.choices[0].finish_reason if self.choices else None
        try:
            return value_of(self.text, kind)
        except ValueError as error:
            if reason in (None, FinishReason.STOP):
                raise
            raise ValueError(f"{error} (the answer ended with {str(reason)!r})") from None

    def assistant_message(self) -> AssistantMessage | None:
        """Return the first choice's message, to be appended to the conversation; None where there is no choice."""
        return self.choices[0].message if self.choices else None

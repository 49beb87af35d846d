"""What `CompletionStream.events` gives: each value says one thing that happened to the answer.

Every kind has a ``type``, close to the names of OpenAI's helpers, so that `match` on the class and ``if`` on the text
both work. No delta holds the text so far: that would make a long answer cost the square of its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from .chat import ChatCompletionResponse
from .codec import constant
from .tools import ToolCall

if TYPE_CHECKING:
    from ..errors import ChanstreamError


@attrs.frozen
class TextDelta:
    """A piece of the text.

    Attributes:
        text: The piece, never empty.
        choice: Which of the answers it belongs to, where several were asked for with ``n``.
        type: ``"content.delta"``
    """

    text: str
    choice: int = 0
    type: Literal["content.delta"] = constant("content.delta")


@attrs.frozen
class ReasoningDelta:
    """A piece of the model's thoughts.

    Attributes:
        text: The piece, never empty.
        choice: Which of the answers it belongs to.
        type: ``"reasoning.delta"``
    """

    text: str
    choice: int = 0
    type: Literal["reasoning.delta"] = constant("reasoning.delta")


@attrs.frozen
class ToolCallDelta:
    """A fragment of a tool call, told which call it belongs to, however the server numbers them.

    Attributes:
        index: The call's place among those of its answer, from 0.
        id: The call's id as far as it has come; None where the server gave none.
        name: The function's name as far as it has come.
        arguments_delta: The piece of the arguments' JSON text; "" where the fragment has none, as the first often does.
        choice: Which of the answers it belongs to.
        type: ``"tool_calls.function.arguments.delta"``
    """

    index: int
    id: str | None
    name: str
    arguments_delta: str
    choice: int = 0
    type: Literal["tool_calls.function.arguments.delta"] = constant("tool_calls.function.arguments.delta")


@attrs.frozen
class TextDone:
    """The whole text of an answer; once for each answer that has one, when the stream is complete.

    Attributes:
        text: The text.
        choice: Which of the answers it is that of.
        type: ``"content.done"``
    """

    text: str
    choice: int = 0
    type: Literal["content.done"] = constant("content.done")


@attrs.frozen
class ReasoningDone:
    """All that the model thought for an answer; once for each that has thoughts, when the stream is complete.

    Attributes:
        text: The thoughts.
        choice: Which of the answers they are for.
        type: ``"reasoning.done"``
    """

    text: str
    choice: int = 0
    type: Literal["reasoning.done"] = constant("reasoning.done")


@attrs.frozen
class ToolCallDone:
    """A whole tool call; once for each.

    It comes when another call of the same answer has begun and the arguments of this one are a whole JSON object, so
    that its work can begin while the model goes on. Any other comes when the stream is complete.

    Attributes:
        index: The call's place among those of its answer, from 0.
        tool_call: The call, as the collected answer has it.
        choice: Which of the answers it belongs to.
        type: ``"tool_calls.function.arguments.done"``
    """

    index: int
    tool_call: ToolCall
    choice: int = 0
    type: Literal["tool_calls.function.arguments.done"] = constant("tool_calls.function.arguments.done")


@attrs.frozen
class Finished:
    """The answer is complete: the last event of a stream that ended well.

    Attributes:
        response: What `CompletionStream.collect` would have returned.
        type: ``"finished"``
    """

    response: ChatCompletionResponse
    type: Literal["finished"] = constant("finished")


@attrs.frozen
class Failed:
    """The stream ended with an error: its last event then. With ``errors="raise"`` the error is raised instead.

    Attributes:
        error: What ended it.
        partial: The answer as far as it had come.
        type: ``"failed"``
    """

    error: ChanstreamError
    partial: ChatCompletionResponse
    type: Literal["failed"] = constant("failed")


CompletionEvent: TypeAlias = (
    TextDelta | ReasoningDelta | ToolCallDelta | TextDone | ReasoningDone | ToolCallDone | Finished | Failed
)
"""The type of any of the events, for annotations; imported from ``chanstream`` as they are."""

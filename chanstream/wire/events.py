"""From chunks to events: what each chunk adds, and what is complete.

Which fragment belongs to which tool call, and what the answer is in the end, the assembler says: there is one
implementation of both. All that is added here is when to tell. A delta is told at once and holds its piece alone; a
whole is told once. So the work is linear in the size of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..models.chunk import CompletionChunk
from ..models.events import (
    CompletionEvent,
    Failed,
    Finished,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
    ToolCallDelta,
    ToolCallDone,
)
from ..models.tools import ToolCall
from .assembly import Assembler


class EventMachine:
    """Turns the chunks of a stream into events.

    Thread safety: none; one thread feeds.
    """

    def __init__(self) -> None:
        self._answer = Assembler()
        self._begun: dict[int, int] = {}  # how many calls each choice has begun
        self._done: set[tuple[int, int]] = set()  # choice and place of the calls that were told as done

    def feed(self, chunk: CompletionChunk) -> list[CompletionEvent]:
        """Return the events of one chunk, of any kind."""
        calls = self._answer.add(chunk)
        events = list(_pieces(chunk))
        if calls:
            events += calls
            events += self._overtaken(calls)
        if chunk.error is not None:
            events.append(Failed(chunk.error, self._answer.response()))
        elif chunk.is_last_chunk:
            events += self._ending()
        return events

    def _overtaken(self, calls: Iterable[ToolCallDelta]) -> Iterator[ToolCallDone]:
        """Yield the calls that are whole now that another has begun after them.

        Each is looked at once, when its successor begins. One that is not whole then, because the server sends the
        fragments of several calls in turns, waits for the end.
        """
        for delta in calls:
            choice, begun = delta.choice, self._begun.get(delta.choice, 0)
            if delta.index < begun:
                continue
            self._begun[choice] = begun + 1
            before = delta.index - 1
            if before >= 0 and _has_all_arguments(call := self._answer.tool_call(choice, before)):
                self._done.add((choice, before))
                yield ToolCallDone(before, call, choice)

    def _ending(self) -> Iterator[CompletionEvent]:
        """Yield what is told of a complete answer."""
        response = self._answer.response()
        for choice in response.choices:
            message = choice.message
            if message.reasoning:
                yield ReasoningDone(message.reasoning, choice.index)
            if message.text:
                yield TextDone(message.text, choice.index)
            for index, call in enumerate(message.tool_calls or ()):
                if (choice.index, index) not in self._done:
                    yield ToolCallDone(index, call, choice.index)
        yield Finished(response)


def _pieces(chunk: CompletionChunk) -> Iterator[CompletionEvent]:
    """Yield what a chunk adds to thoughts and texts; a server that sends both in one thinks first."""
    if chunk.piece is not None:  # its choices need not be made to know it
        pieces = [(0, chunk.reasoning, chunk.piece)]
    else:
        pieces = [(choice.index, choice.delta.reasoning, choice.delta.text) for choice in chunk.choices]
    for index, reasoning, text in pieces:
        if reasoning:
            yield ReasoningDelta(reasoning, index)
        if text:
            yield TextDelta(text, index)


def _has_all_arguments(call: ToolCall) -> bool:
    """Return whether nothing can be added to the arguments of a call: they are one JSON object."""
    try:
        call.function.parsed_arguments()
    except ValueError:
        return False
    return bool(str(call.function.arguments).strip())  # "" is an object too, but may be one to come

"""From chunks to the whole answer: text, thoughts and tool calls, joined in time linear in their size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..models.chat import ChatCompletionResponse, Choice, UsageInfo
from ..models.chunk import CompletionChunk, DeltaMessage, StreamChoice
from ..models.content import ContentChunk, TextChunk, ThinkChunk
from ..models.events import ToolCallDelta
from ..models.messages import TAGGED_KEY, AssistantMessage, reasoning_key_in
from ..models.tools import FunctionCall, ToolCall


class Assembler:
    """Puts the chunks of a stream together.

    Thread safety: none; one thread adds.
    """

    def __init__(self) -> None:
        self._choices: dict[int, _ChoiceParts] = {}
        self._like = CompletionChunk()
        self._usage: UsageInfo | None = None
        self._latency = 0.0

    def add(self, chunk: CompletionChunk) -> list[ToolCallDelta]:
        """Take in one chunk, of any kind.

        Returns:
            What its fragments of tool calls add, and to which calls.
        """
        self._latency += chunk.chunk_latency
        if chunk.piece is not None and self._like.id:  # nothing but its text and thoughts counts
            self._parts(0).add_piece(chunk.piece, chunk.raw["choices"][0]["delta"])
            return []
        if not self._like.id and chunk.id:
            self._like = chunk
        self._usage = chunk.usage or self._usage
        added: list[ToolCallDelta] = []
        for choice in chunk.choices:
            added += self._parts(choice.index).add(choice)
        return added

    def add_all(self, chunks: Iterable[CompletionChunk]) -> None:
        """Take in chunks, many at a time; as `add` otherwise."""
        first = self._choices.get(0)
        for chunk in chunks:
            if first is not None and chunk.piece is not None and self._like.id:
                self._latency += chunk.chunk_latency
                first.add_piece(chunk.piece, chunk.raw["choices"][0]["delta"])
            else:
                self.add(chunk)
                first = self._choices.get(0)

    def _parts(self, index: int) -> _ChoiceParts:
        parts = self._choices.get(index)
        if parts is None:
            parts = self._choices[index] = _ChoiceParts()
        return parts

    def tool_call(self, choice: int, index: int) -> ToolCall:
        """Return a tool call of a choice, by its place, as far as it has come."""
        return self._choices[choice].calls.whole(index)

    def response(self) -> ChatCompletionResponse:
        """Return the answer as far as it has come."""
        return ChatCompletionResponse(
            choices=[parts.choice(index) for index, parts in sorted(self._choices.items())],
            id=self._like.id,
            created=self._like.created,
            model=self._like.model,
            usage=self._usage,
            latency=self._latency,
        )


class _ChoiceParts:
    """What has come for one of the answers."""

    def __init__(self) -> None:
        self._content: list[ContentChunk | str] = []
        self._reasoning: list[str] = []
        self._reasoning_key = ""
        self.calls = _CallParts()
        self._finish_reason: str | None = None

    def add(self, choice: StreamChoice) -> list[ToolCallDelta]:
        delta = choice.delta
        if isinstance(delta.content, str):
            self._content.append(delta.content)
        elif delta.content:
            self._content.extend(delta.content)
        self._think(delta.raw)
        if delta.thoughts:
            self._reasoning.append(delta.thoughts)
            self._reasoning_key = self._reasoning_key or TAGGED_KEY
        self._finish_reason = choice.finish_reason or self._finish_reason
        return self.calls.add(delta, choice.index)

    def add_piece(self, text: str, delta: Mapping[str, Any]) -> None:
        self._content.append(text)
        if "reasoning" in delta or "reasoning_content" in delta:  # as most never have
            self._think(delta)

    def _think(self, delta: Mapping[str, Any]) -> None:
        """Keep the thoughts in a delta's own field for them, under the first name that the server gave that field.

        A server in the middle of its change of names sends them under both: they are said once.
        """
        if key := reasoning_key_in(delta):
            self._reasoning.append(delta[key])
            self._reasoning_key = self._reasoning_key or key

    def choice(self, index: int) -> Choice:
        message = AssistantMessage(
            content=_joined(self._content),
            tool_calls=self.calls.all() or None,
            extra={self._reasoning_key: "".join(self._reasoning)} if self._reasoning else {},
        )
        return Choice(index, message, self._finish_reason)


def _joined(parts: list[ContentChunk | str]) -> str | list[ContentChunk] | None:
    """Return the content: one text, or chunks with neighbours of the same kind joined; None where nothing came."""
    try:
        return "".join(parts) or None  # type: ignore[arg-type]  # as nearly always all are str
    except TypeError:
        pass
    return _runs_merged([TextChunk(part) if isinstance(part, str) else part for part in parts])


def _runs_merged(parts: list[ContentChunk]) -> list[ContentChunk]:
    """Return the chunks with neighbours of the same kind joined."""
    runs: list[tuple[type, list[Any]]] = []
    for part in parts:
        if runs and runs[-1][0] is type(part) and isinstance(part, (TextChunk, ThinkChunk)):
            runs[-1][1].append(part)
        else:
            runs.append((type(part), [part]))
    return [_merged(run) for _, run in runs]


def _merged(run: list[Any]) -> ContentChunk:
    """Return the chunks of a run as one."""
    first = run[0]
    if isinstance(first, TextChunk):
        return TextChunk("".join(part.text for part in run), extra=first.extra)
    if isinstance(first, ThinkChunk):
        steps = _runs_merged([step for part in run for step in part.thinking])
        return ThinkChunk(steps, closed=run[-1].closed, extra=first.extra)
    return first  # type: ignore[no-any-return]  # other kinds stand alone


class _CallParts:
    """The tool calls of one answer, put together from fragments.

    Servers differ: the id comes once, in every fragment, as ``"null"``, or never; so does the index; parallel calls
    may share one. `_target` holds the rules.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def add(self, delta: DeltaMessage, choice: int) -> list[ToolCallDelta]:
        return [self._target(fragment).add(fragment, choice) for fragment in delta.tool_calls]

    def all(self) -> list[ToolCall]:
        return [call.whole() for call in self._calls]

    def whole(self, index: int) -> ToolCall:
        return self._calls[index].whole()

    def _target(self, fragment: ToolCall) -> _Call:
        """Return the call that a fragment belongs to: a new one if it begins one."""
        known = self._by_id.get(_id_of(fragment))
        if known is None and fragment.index is not None:
            known = self._by_index.get(fragment.index)
        elif known is None and self._calls:
            known = self._calls[-1]
        if known is None or known.is_over_with(fragment):
            known = _Call(len(self._calls))
            self._calls.append(known)
        if _id_of(fragment):
            self._by_id[_id_of(fragment)] = known
        if fragment.index is not None:
            self._by_index[fragment.index] = known
        return known


class _Call:
    """One tool call as far as it has come."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._id = ""
        self._type: str | None = None
        self._name = ""
        self._arguments: list[str] = []
        self._extra: dict[str, Any] = {}

    def is_over_with(self, fragment: ToolCall) -> bool:
        """Return whether ``fragment`` begins another call, though its id or index points here.

        A new id with a name begins one (Ollama's parallel calls share index 0). Without an id, a name does, once the
        arguments here are whole or belong to another name.
        """
        name, new_id = fragment.function.name, _id_of(fragment)
        if not name:
            return False
        if new_id and self._id:
            return new_id != self._id
        if not self._arguments:
            return False
        return name != self._name or self._is_whole(fragment)

    def _is_whole(self, fragment: ToolCall) -> bool:
        """Return whether the arguments are one JSON object and the fragment begins a next one.

        The first and last characters are looked at first, so that a name repeated in every fragment costs nothing.
        """
        piece = fragment.function.arguments
        begins = isinstance(piece, Mapping) or piece.lstrip().startswith("{")
        if not begins or not self._arguments[-1].rstrip().endswith("}"):
            return False
        try:
            json.loads("".join(self._arguments))
        except ValueError:
            return False
        return True

    def add(self, fragment: ToolCall, choice: int) -> ToolCallDelta:
        self._id = self._id or _id_of(fragment)
        self._type = self._type or fragment.type
        name, piece = fragment.function.name, fragment.function.arguments
        if name and name != self._name:
            self._name += name  # a server may send the name in pieces
        if isinstance(piece, Mapping):
            piece = json.dumps(piece, ensure_ascii=False)
        if piece:
            self._arguments.append(piece)
        self._extra.update(fragment.extra)
        return ToolCallDelta(self._place, self._id or None, self._name, piece, choice)

    def whole(self) -> ToolCall:
        function = FunctionCall(self._name, "".join(self._arguments))
        # Without the index, so that it can be sent back as it is: its place in the list says the same.
        return ToolCall(self._id or None, function, type=self._type or "function", extra=self._extra)


def _id_of(fragment: ToolCall) -> str:
    """Return a fragment's id; "" for the ways in which servers say that there is none."""
    return "" if fragment.id in (None, "null", "None") else fragment.id or ""

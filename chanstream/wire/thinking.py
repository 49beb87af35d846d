"""Thoughts that a server sends inside the text, as ``<think>...</think>`` before the answer, parted from it.

Groq does so with its raw ``reasoning_format``, and so do many local servers. It is done where a client asks for it: a
model may speak of such tags, too. Only a tag with which the answer begins counts, after blanks if any, and one that is
not closed leaves nothing but thoughts. All else stays as it came: each character but those of the two tags comes out
once, as text or as a thought, and each chunk is handed on when it comes, though its text may be held back for the next
one because it may be the beginning of a tag.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import attrs

from ..errors import ChanstreamError
from ..models.chat import ChatCompletionResponse, Choice
from ..models.chunk import CompletionChunk, DeltaMessage, StreamChoice
from ..models.content import TextChunk
from ..models.messages import TAGGED_KEY, AssistantMessage, reasoning_in, reasoning_key_in
from .machine import StreamMachine

_OPEN, _CLOSE = "<think>", "</think>"


class TagSplitter:
    """Parts one answer's text, whatever pieces it comes in. Holds back seven characters at most.

    Attributes:
        over: Whether all that follows is text.
    """

    def __init__(self) -> None:
        self.over = False
        self._inside = False
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str]:
        """Return what a piece of the text adds to the thoughts, and what to the text."""
        if self.over:
            return "", piece
        return self._think(piece) if self._inside else self._begin(piece)

    def rest(self) -> tuple[str, str]:
        """Return what was held back, as `feed` does: at the end of the answer it is no tag."""
        held, self._held, self.over = self._held, "", True
        return (held, "") if self._inside else ("", held)

    def _begin(self, piece: str) -> tuple[str, str]:
        """Look for the opening tag; blanks before it are text, and nothing to wait for."""
        said = self._held + (piece if self._held else piece.lstrip())
        blanks = (self._held + piece).removesuffix(said)
        if said.startswith(_OPEN):
            self._inside, self._held = True, ""
            thoughts, text = self._think(said.removeprefix(_OPEN))
            return thoughts, blanks + text
        self.over = not _OPEN.startswith(said)
        self._held = "" if self.over else said
        return "", blanks + said.removesuffix(self._held)

    def _think(self, piece: str) -> tuple[str, str]:
        """Look for the closing tag."""
        thoughts, tag, text = (self._held + piece).partition(_CLOSE)
        if tag:
            self.over, self._held = True, ""
            return thoughts, text
        at = thoughts.rfind("<", max(0, len(thoughts) - len(_CLOSE) + 1))  # there is one such character in the tag
        self._held = thoughts[at:] if at >= 0 and _CLOSE.startswith(thoughts[at:]) else ""
        return thoughts.removesuffix(self._held), ""


class ThinkingMachine(StreamMachine):
    """A `StreamMachine` whose chunks have the thoughts apart from the text; arguments and all else as there."""

    def __init__(self, started: float, **settings: Any) -> None:
        super().__init__(started, **settings)
        self._splitters: defaultdict[int, TagSplitter] = defaultdict(TagSplitter)  # by the choice's index

    def feed(self, data: bytes, now: float) -> list[CompletionChunk]:
        """Return the chunks that these bytes complete."""
        return self._parted(super().feed(data, now))

    def eof(self, now: float) -> list[CompletionChunk]:
        """Return the chunks that a clean end of the body completes."""
        return self._parted(super().eof(now))

    def fail(self, error: ChanstreamError, now: float) -> list[CompletionChunk]:
        """Return the chunks that end the stream with ``error``."""
        return self._parted(super().fail(error, now))

    def tick(self, now: float) -> list[CompletionChunk]:
        """Return the chunk that was held back, once its time is over."""
        return self._parted(super().tick(now))

    def _parted(self, chunks: list[CompletionChunk]) -> list[CompletionChunk]:
        for chunk in chunks:
            if chunk.piece == "" or (chunk.piece and self._splitters[0].over):
                continue  # nothing to part, and its choices need not be made to know it
            for choice in chunk.choices:
                _part(choice.delta, self._splitters[choice.index])
        if self.ended and chunks:
            self._let_go(chunks[-1])
        return chunks

    def _let_go(self, last: CompletionChunk) -> None:
        """Give what is still held back to the chunk that ends the stream."""
        for index, splitter in self._splitters.items():
            thoughts, text = splitter.rest()
            if thoughts or text:
                delta = _delta_of(last, index)
                delta.thoughts += thoughts
                if isinstance(delta.content, list):
                    delta.content = [*delta.content, TextChunk(text)]
                else:
                    delta.content = (delta.content or "") + text


def _part(delta: DeltaMessage, splitter: TagSplitter) -> None:
    if isinstance(delta.content, str) and delta.content:
        delta.thoughts, delta.content = splitter.feed(delta.content)


def _delta_of(chunk: CompletionChunk, index: int) -> DeltaMessage:
    """Return the delta of a choice, which is added where the chunk says nothing of it."""
    for choice in chunk.choices:
        if choice.index == index:
            return choice.delta
    added = StreamChoice(index)
    chunk.choices = [*chunk.choices, added]
    return added.delta


def parted(answer: ChatCompletionResponse) -> ChatCompletionResponse:
    """Return a whole answer with the thoughts apart from the text."""
    return attrs.evolve(answer, choices=[_parted_choice(choice) for choice in answer.choices])


def _parted_choice(choice: Choice) -> Choice:
    content = choice.message.content
    if not isinstance(content, str):
        return choice
    splitter = TagSplitter()
    thoughts, text = map("".join, zip(splitter.feed(content), splitter.rest(), strict=True))
    return attrs.evolve(choice, message=_with_thoughts(choice.message, thoughts, text))


def _with_thoughts(message: AssistantMessage, thoughts: str, text: str) -> AssistantMessage:
    """Return the message of which these are thoughts and text; none of the server's own thoughts is lost."""
    extra = dict(message.extra)
    if thoughts:
        extra[reasoning_key_in(extra) or TAGGED_KEY] = reasoning_in(extra) + thoughts
    return attrs.evolve(message, content=text, extra=extra)

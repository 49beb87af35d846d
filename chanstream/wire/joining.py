"""One stream made of several answers, each of which goes on where the one before was cut off.

The chunks of all parts go in, those of the whole come out. A cut that can be made good is kept back; the chunks of the
next part follow as if nothing had happened, with the time that it took in the latency of the first.

A next part may begin in three ways. Some servers (Mistral) repeat the text that they were given to go on from, others
do not; that the model says once more what it has said is possible too. So text at the beginning of a part that is the
same as the whole text so far counts as a repetition and is left out; text that turns out to be anything else is handed
on. Blanks at the end of the text so far are not sent, because servers take them off, and models go on badly after
them: so those that a part begins with are there already, as far as they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from ..errors import APITimeoutError, ChanstreamError, StreamInterruptedError, StreamTruncatedError
from ..models.chunk import CompletionChunk
from ..models.codec import plain
from ..models.content import Content, ContentChunk, TextChunk

_BEYOND_TEXT = ("tool_calls", "function_call", "refusal", "audio")
"""What a delta may hold that no later part can go on with."""


class Joint:
    """Joins the parts of one answer.

    Args:
        tries: How many parts may follow the first.

    Attributes:
        cut: The error that the next part has to make good; None while there is none.
        cuts: How many there were so far.
        elapsed: Seconds from the first request to the newest chunk: the sum of all latencies.

    Thread safety: none; one thread at a time feeds it.
    """

    def __init__(self, tries: int) -> None:
        self.cut: ChanstreamError | None = None
        self.cuts = 0
        self.elapsed = 0.0
        self._tries = tries
        self._texts: list[str] = []
        self._only_text = True
        self._seam: _Seam | None = None
        self._owed = 0.0  # the latencies of chunks that are left out

    @property
    def prefix(self) -> str:
        """The text so far, from which the next part is to go on."""
        return "".join(self._texts).rstrip()

    def feed(self, chunk: CompletionChunk) -> list[CompletionChunk]:
        """Return the chunks to hand on, now that this one has come; it is the caller's no more.

        After the chunk that ends a part either `cut` is set, and the next part may be fed, or the stream is over.
        """
        self.elapsed += chunk.chunk_latency
        if chunk.error is not None:
            return self._end_part(chunk, chunk.error)
        if self._seam is None:
            return [self._passed(chunk)]
        out = [self._passed(kept) for kept in self._seam.feed(chunk) if not self._is_empty(kept)]
        if self._seam.is_behind:
            self._seam = None
        return out

    def _end_part(self, chunk: CompletionChunk, error: ChanstreamError) -> list[CompletionChunk]:
        if self._seam is not None:  # the beginning of a repetition, it seems; if not, it is asked for once more
            self._owed += sum(held.chunk_latency for held in self._seam.held)
        if not self._can_go_on(error):
            return [self._passed(chunk)]
        self.cut = error
        self.cuts += 1
        self._owed += chunk.chunk_latency
        self._texts = ["".join(self._texts)]
        self._seam = _Seam(self._texts[0])
        return []

    def _can_go_on(self, error: ChanstreamError) -> bool:
        """Return whether an error is a cut, in a text; one that comes again could not be made good."""
        if error is self.cut or self.cuts >= self._tries or not (self._only_text and self.prefix):
            return False
        if isinstance(error, APITimeoutError):
            return error.clock in ("first_chunk", "idle")
        return isinstance(error, (StreamInterruptedError, StreamTruncatedError))

    def _passed(self, chunk: CompletionChunk) -> CompletionChunk:
        """Return a chunk that is handed on, with what the whole needs to know of it noted and told."""
        if chunk.piece:  # text of the one choice, and nothing else
            self._texts.append(chunk.piece)
        elif chunk.error is None:
            self._texts.append(chunk.text)
            self._only_text &= not any(
                choice.index or choice.finish_reason or any(map(choice.delta.raw.get, _BEYOND_TEXT))
                for choice in chunk.choices
            )
        if self._owed:
            chunk.chunk_latency += self._owed
            self._owed = 0.0
        if chunk.is_last_chunk or chunk.error is not None:
            chunk.total_latency = self.elapsed
            self.cut = None
        return chunk

    def _is_empty(self, chunk: CompletionChunk) -> bool:
        """Return whether a chunk says nothing, or what is left of it: a second "here speaks the assistant", say."""
        if chunk.is_last_chunk or chunk.usage or not chunk.choices:
            return False
        for choice in chunk.choices:
            if choice.finish_reason or any(value for name, value in choice.delta.raw.items() if name != "role"):
                return False
        self._owed += chunk.chunk_latency
        return True


class _Seam:
    """The place where a part begins, until it is clear what of it is there already.

    Attributes:
        held: Chunks whose text may be the beginning of a repetition.
    """

    def __init__(self, so_far: str) -> None:
        self.held: list[CompletionChunk] = []
        self._repeated = so_far.rstrip()  # what would be repeated; "" once it is clear whether it was
        self._blanks = so_far[len(self._repeated) :]
        self._seen = 0

    @property
    def is_behind(self) -> bool:
        """Whether all that follows is new."""
        return not (self._repeated or self._blanks)

    def feed(self, chunk: CompletionChunk) -> Iterator[CompletionChunk]:
        """Yield the chunks for which it is clear what is new in them, without what is not."""
        text = chunk.text
        if not self._repeated or not (text or self.held or chunk.is_last_chunk):
            yield self._without_blanks(chunk)
            return
        expected = self._repeated[self._seen : self._seen + len(text)]
        self._seen += len(expected)
        self.held.append(chunk)
        if text.startswith(expected) and self._seen == len(self._repeated):
            yield from self._repetition(len(expected))
        elif text != expected or chunk.is_last_chunk:
            yield from map(self._without_blanks, self._released())

    def _repetition(self, count: int) -> Iterator[CompletionChunk]:
        """Yield what is beside the repeated text, and the chunk in which that ends without its first characters."""
        *others, last = self._released()
        for chunk in others:
            yield _without(chunk, len(chunk.text))
        yield self._without_blanks(_without(last, count))

    def _released(self) -> list[CompletionChunk]:
        held, self.held, self._repeated = self.held, [], ""
        return held

    def _without_blanks(self, chunk: CompletionChunk) -> CompletionChunk:
        text = chunk.text
        if not (text and self._blanks):
            return chunk
        same = 0
        while text[same : same + 1] == self._blanks[same : same + 1] != "":
            same += 1
        self._blanks = self._blanks[same:] if same == len(text) else ""
        return _without(chunk, same)


def _without(chunk: CompletionChunk, count: int) -> CompletionChunk:
    """Return the chunk without the first ``count`` characters of its text, in ``raw`` too."""
    if count:
        choice, *others = chunk.choices
        delta = choice.delta
        delta.content = _content_without(delta.content or "", count)
        delta.raw = {**delta.raw, "content": plain(delta.content)}
        choice.raw = {**choice.raw, "delta" if choice.raw.get("delta") else "message": delta.raw}
        chunk.raw = {**chunk.raw, "choices": [choice.raw, *(other.raw for other in others)]}
        chunk.piece = None
    return chunk


def _content_without(content: Content, count: int) -> Content:
    if isinstance(content, str):
        return content[count:]
    kept: list[ContentChunk] = []
    for part in content:
        if isinstance(part, TextChunk):
            if len(part.text) > count:
                kept.append(attrs.evolve(part, text=part.text[count:]))
            count = max(0, count - len(part.text))
        else:
            kept.append(part)
    return kept

"""What real servers sent, and what they meant by it: the plain facts that the replays share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chanstream import ChatCompletionResponse, CompletionChunk

FOLDER = Path(__file__).parent


@attrs.frozen
class Transcript:
    """One captured response, and what its server meant by it."""

    name: str
    kind: str  # "stream", "answer" or "refusal"
    status: int
    n: int
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None
    error: dict[str, Any] | None

    @property
    def raw(self) -> bytes:
        """The whole response as it came over the wire."""
        return (FOLDER / self.name).read_bytes()

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The expected choices, in the shape that `answers` makes of a response."""
        return [{key: value for key, value in choice.items() if key != "pieces"} for choice in self.choices]

    @property
    def pieces(self) -> dict[int, int]:
        """How many deltas with text the server sent for each choice."""
        return {choice["index"]: choice["pieces"] for choice in self.choices if choice["pieces"]}


def transcripts(*kinds: str) -> list[Transcript]:
    """Return the transcripts of these kinds, in the order of their names."""
    told = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    facts = ({**fact, "name": name} for name, fact in told.items() if fact["kind"] in kinds)
    return [Transcript(**{key: fact[key] for key in attrs.fields_dict(Transcript)}) for fact in facts]


def answers(response: ChatCompletionResponse) -> list[dict[str, Any]]:
    """Return the choices of a response in the words of `expected.json`."""
    return [
        {
            "index": choice.index,
            "text": choice.message.text,
            "reasoning": choice.message.reasoning,
            "tool_calls": [
                {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                for call in choice.message.tool_calls or ()
            ],
            "finish_reason": choice.finish_reason,
        }
        for choice in response.choices
    ]


def usage(holder: ChatCompletionResponse | CompletionChunk) -> dict[str, int] | None:
    """Return the three token counts of a response or a chunk, or None where the server sent none."""
    told = holder.usage
    if told is None:
        return None
    return {
        "prompt_tokens": told.prompt_tokens,
        "completion_tokens": told.completion_tokens,
        "total_tokens": told.total_tokens,
    }


def pieces(chunks: Iterable[CompletionChunk]) -> dict[int, int]:
    """Return how many of the chunks' deltas carry text, for each choice that has any."""
    counts: dict[int, int] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        if choice.delta.text:
            counts[choice.index] = counts.get(choice.index, 0) + 1
    return counts


def body(raw: bytes) -> tuple[str, bytes, bool]:
    """Return content type and body of a raw response, and whether its framing came to its end.

    Enough of HTTP/1.1 for these captures, and written apart from the library's own reading of it.
    """
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")[1:]
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        parts = list(_http_chunks(rest))
        return headers["content-type"], b"".join(parts), parts[-1:] == [b""]
    return headers["content-type"], rest, len(rest) == int(headers["content-length"])


def _http_chunks(rest: bytes) -> Iterator[bytes]:
    """Yield the HTTP chunks; the empty one that ends a whole body is the last."""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        yield rest[:length]
        rest = rest[length + 2 :]

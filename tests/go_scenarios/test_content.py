"""Every kind of content, in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chanstream import (
    AudioChunk,
    DocumentURLChunk,
    FileChunk,
    ImageURLChunk,
    ReferenceChunk,
    TextChunk,
    ThinkChunk,
)
from chanstream.models.codec import Model
from chanstream.models.content import chunk_from

KINDS: list[tuple[Model, dict[str, Any]]] = [
    (TextChunk("so"), {"type": "text", "text": "so"}),
    (ImageURLChunk("https://a.test/i.png"), {"type": "image_url", "image_url": "https://a.test/i.png"}),
    (
        DocumentURLChunk("https://a.test/d.pdf", "d.pdf"),
        {"type": "document_url", "document_name": "d.pdf", "document_url": "https://a.test/d.pdf"},
    ),
    (DocumentURLChunk("https://a.test/d.pdf"), {"type": "document_url", "document_url": "https://a.test/d.pdf"}),
    (ReferenceChunk([1, 1, 2, 3]), {"type": "reference", "reference_ids": [1, 1, 2, 3]}),
    (FileChunk("f-1"), {"type": "file", "file_id": "f-1"}),
    (AudioChunk("https://a.test/s.mp3"), {"type": "input_audio", "input_audio": "https://a.test/s.mp3"}),
    (
        ThinkChunk([TextChunk("hm"), ReferenceChunk([4])], closed=True),
        {
            "type": "thinking",
            "closed": True,
            "thinking": [{"type": "text", "text": "hm"}, {"type": "reference", "reference_ids": [4]}],
        },
    ),
    (ThinkChunk([], closed=False), {"type": "thinking", "closed": False, "thinking": []}),
]


@pytest.mark.parametrize(("chunk", "data"), KINDS, ids=lambda value: type(value).__name__)
def test_every_kind(chunk: Model, data: dict[str, Any]) -> None:
    """A content chunk is written as the same JSON object, and read from it."""
    assert chunk.to_dict() == data
    assert chunk_from(json.loads(json.dumps(data))) == chunk


def test_a_document_without_a_name() -> None:
    """A name that is null is none; here null goes out again as it came."""
    data = {"document_name": None, "document_url": "https://a.test/d.pdf", "type": "document_url"}
    chunk = DocumentURLChunk.from_dict(data)
    assert chunk.document_name is None
    assert chunk.to_dict() == data


def test_a_thought_that_does_not_say_whether_it_is_closed() -> None:
    """What is not said stays unsaid: closed is None, where there it is made True and sent."""
    thought = ThinkChunk.from_dict({"type": "thinking", "thinking": []})
    assert thought.closed is None
    assert "closed" not in thought.to_dict()


def test_what_is_no_thought() -> None:
    """Nothing is no thought, and told at once; other kinds of content pass, as a server may send them some day."""
    with pytest.raises(TypeError, match=r"^thinking\[0\]: expected a content chunk as a mapping, got None$"):
        ThinkChunk([None])  # type: ignore[list-item]
    assert ThinkChunk([ImageURLChunk("https://a.test/i.png")]).text == ""

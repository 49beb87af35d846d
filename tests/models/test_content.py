"""Content chunks: every kind, both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    AudioChunk,
    DocumentURLChunk,
    FileChunk,
    ImageURLChunk,
    ReferenceChunk,
    TextChunk,
    ThinkChunk,
    UnknownChunk,
)
from chanstream.models.codec import Model
from chanstream.models.content import chunk_from, chunks_from, content_from, text_of, thoughts_of
from tests.models import FLAG, OBJECT, comes_back, objects

KINDS: list[tuple[Model, dict[str, Any]]] = [
    (TextChunk("hi"), {"type": "text", "text": "hi"}),
    (ImageURLChunk("https://x/y.png"), {"type": "image_url", "image_url": "https://x/y.png"}),
    (
        ImageURLChunk({"url": "data:image/png;base64,AA==", "detail": "low"}),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ),
    (DocumentURLChunk("https://x/y.pdf"), {"type": "document_url", "document_url": "https://x/y.pdf"}),
    (
        DocumentURLChunk("https://x/y.pdf", "y"),
        {"type": "document_url", "document_url": "https://x/y.pdf", "document_name": "y"},
    ),
    (ReferenceChunk([1, "b"]), {"type": "reference", "reference_ids": [1, "b"]}),
    (FileChunk("file-1"), {"type": "file", "file_id": "file-1"}),
    (FileChunk(extra={"file": {"file_id": "x"}}), {"type": "file", "file": {"file_id": "x"}}),
    (AudioChunk("https://x/y.mp3"), {"type": "input_audio", "input_audio": "https://x/y.mp3"}),
    (
        AudioChunk({"data": "AA==", "format": "wav"}),
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ),
    (
        ThinkChunk([TextChunk("hm"), ReferenceChunk([3])], closed=False),
        {
            "type": "thinking",
            "thinking": [{"type": "text", "text": "hm"}, {"type": "reference", "reference_ids": [3]}],
            "closed": False,
        },
    ),
    (UnknownChunk("video", extra={"video": "x"}), {"type": "video", "video": "x"}),
]

TEXT = objects({"type": st.just("text"), "text": st.text()})
REFERENCE = objects({"type": st.just("reference"), "reference_ids": st.lists(st.integers() | st.text())})
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    TextChunk: TEXT,
    ImageURLChunk: objects({"type": st.just("image_url"), "image_url": st.text() | OBJECT}),
    DocumentURLChunk: objects(
        {"type": st.just("document_url"), "document_url": st.text()}, {"document_name": st.text()}
    ),
    ReferenceChunk: REFERENCE,
    FileChunk: objects({"type": st.just("file")}, {"file_id": st.text()}),
    AudioChunk: objects({"type": st.just("input_audio"), "input_audio": st.text() | OBJECT}),
    ThinkChunk: objects({"type": st.just("thinking"), "thinking": st.lists(TEXT | REFERENCE)}, {"closed": FLAG}),
    UnknownChunk: objects({"type": st.text().map(lambda kind: f"x-{kind}")}),
}


@pytest.mark.parametrize(("chunk", "data"), KINDS, ids=lambda value: type(value).__name__)
def test_every_kind(chunk: Model, data: dict[str, Any]) -> None:
    """Each kind of chunk has its JSON object, and the object's type tells the kind."""
    assert chunk.to_dict() == data
    assert chunk_from(data) == chunk
    assert chunk_from(chunk) is chunk


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever else an object holds, explicit nulls too, comes back exactly."""
    drawn = data.draw(OBJECTS[cls])
    assert comes_back(cls, drawn)
    assert type(chunk_from(drawn)) is cls


@pytest.mark.parametrize(
    "data", [{}, {"type": None, "a": 1}, {"a": None}], ids=["empty", "null type", "no type"]
)  # fmt: skip
def test_a_chunk_without_a_type(data: dict[str, Any]) -> None:
    """An object that does not tell its kind is unknown, and goes out again as it came in."""
    chunk = chunk_from(data)
    assert isinstance(chunk, UnknownChunk)
    assert chunk.to_dict() == data


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TextChunk(None), "text: expected str, got None"),  # type: ignore[arg-type]
        (lambda: TextChunk(5), "text: expected str, got 5"),  # type: ignore[arg-type]
        (lambda: ImageURLChunk(None), "image_url: expected str or Mapping, got None"),  # type: ignore[arg-type]
        (lambda: DocumentURLChunk(b"x"), "document_url: expected str, got b'x'"),  # type: ignore[arg-type]
        (lambda: DocumentURLChunk("x", 1), "document_name: expected str, got 1"),  # type: ignore[arg-type]
        (lambda: ReferenceChunk("12"), "reference_ids: expected list or tuple, got '12'"),
        (lambda: FileChunk(7), "file_id: expected str, got 7"),  # type: ignore[arg-type]
        (lambda: AudioChunk(b"x"), "input_audio: expected str or Mapping, got b'x'"),  # type: ignore[arg-type]
        (lambda: UnknownChunk(7), "type: expected str, got 7"),  # type: ignore[arg-type]
        (lambda: ThinkChunk(None), "thinking: expected a list, got None"),  # type: ignore[arg-type]
        (lambda: ThinkChunk([5]), "thinking[0]: expected a content chunk as a mapping, got 5"),  # type: ignore[list-item]
        (lambda: ThinkChunk("x", closed="yes"), "closed: expected bool, got 'yes'"),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_the_wrong_type(make: Any, text: str) -> None:
    """A field of the wrong type is refused when the chunk is made, and named."""
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"type": "text"}], "[0].text: missing"),
        (["a", {"type": "image_url"}], "[1].image_url: missing"),
        ([{"type": "thinking", "thinking": [{"type": "text"}]}], "[0].thinking[0].text: missing"),
        ([{"type": "thinking", "thinking": 5}], "[0].thinking: expected a list, got 5"),
        ([None], "[0]: expected a content chunk as a mapping, got None"),
        ([["a"]], "[0]: expected a content chunk as a mapping, got ['a']"),
    ],
)
def test_an_error_names_the_path(value: Any, text: str) -> None:
    """What is wrong deep inside is named by the way to it."""
    with pytest.raises((TypeError, ValueError)) as caught:
        chunks_from(value)
    assert str(caught.value) == text


class TestContentFrom:
    def test_a_text(self) -> None:
        """A text stays a text, an empty one too."""
        assert content_from("x") == "x"
        assert content_from("") == ""

    @pytest.mark.parametrize("kind", [list, tuple, iter])
    def test_a_list(self, kind: Any) -> None:
        """Chunks may come as any iterable, as values, as objects and as bare texts."""
        parts = kind(["a", TextChunk("b"), {"type": "text", "text": "c"}])
        assert content_from(parts) == [TextChunk("a"), TextChunk("b"), TextChunk("c")]

    @pytest.mark.parametrize("value", [None, b"x", {"type": "text", "text": "x"}])
    def test_what_is_none(self, value: Any) -> None:
        """Null, bytes and a single object are no content."""
        with pytest.raises(TypeError, match="expected a text or a list of content chunks, got"):
            content_from(value)


class TestTexts:
    MIXED = (
        ThinkChunk([TextChunk("th"), ReferenceChunk([1]), TextChunk("ink")]),
        TextChunk("an"),
        ImageURLChunk("https://x"),
        UnknownChunk("other", extra={"text": "no"}),
        TextChunk("swer"),
    )

    @pytest.mark.parametrize(
        ("content", "text"), [(None, ""), ("", ""), ("x", "x"), ([], ""), (MIXED, "answer"), (["a", "b"], "ab")]
    )
    def test_the_text(self, content: Any, text: str) -> None:
        """A content's text is that of its text chunks alone."""
        assert text_of(content) == text

    @pytest.mark.parametrize(("content", "text"), [(None, ""), ("x", ""), ([], ""), (MIXED, "think")])
    def test_the_thoughts(self, content: Any, text: str) -> None:
        """A content's thoughts are those of its thinking chunks alone."""
        assert thoughts_of(content) == text

    def test_a_bare_thought(self) -> None:
        """A thinking chunk takes a bare text as its one thought."""
        assert ThinkChunk("hm") == ThinkChunk([TextChunk("hm")])  # type: ignore[arg-type]
        assert ThinkChunk("hm").text == "hm"  # type: ignore[arg-type]

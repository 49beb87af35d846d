"""What a message's content may be made of.

A content is a text, or a list of chunks of several kinds, told apart by their ``type``. Kinds and fields are those of
https://docs.mistral.ai/api/#tag/chat and https://platform.openai.com/docs/api-reference/chat/create; a kind that is
not known here becomes an `UnknownChunk` and goes out again as it came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from .codec import Model, at, constant, each, extra_field, mapping, of_type


@attrs.frozen
class TextChunk(Model):
    """A piece of text."""

    text: str = attrs.field(validator=of_type(str))
    type: str = constant("text")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class ImageURLChunk(Model):
    """An image: its address (a ``data:`` URL too), or ``{"url": ..., "detail": ...}``."""

    image_url: str | Mapping[str, Any] = attrs.field(validator=of_type(str, Mapping))
    type: str = constant("image_url")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class DocumentURLChunk(Model):
    """A document, by its address."""

    document_url: str = attrs.field(validator=of_type(str))
    document_name: str | None = attrs.field(default=None, validator=of_type(str, optional=True))
    type: str = constant("document_url")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class ReferenceChunk(Model):
    """References to sources, by their ids."""

    reference_ids: Sequence[int | str] = attrs.field(validator=of_type(list, tuple))
    type: str = constant("reference")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class FileChunk(Model):
    """An uploaded file, by its id."""

    file_id: str | None = attrs.field(default=None, validator=of_type(str, optional=True))
    type: str = constant("file")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class AudioChunk(Model):
    """Sound: an address or base64 text (Mistral), or ``{"data": ..., "format": ...}`` (OpenAI)."""

    input_audio: str | Mapping[str, Any] = attrs.field(validator=of_type(str, Mapping))
    type: str = constant("input_audio")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class UnknownChunk(Model):
    """A chunk of a kind that this version does not know; ``extra`` holds its fields."""

    type: str | None = attrs.field(default=None, validator=of_type(str, optional=True))
    extra: Mapping[str, Any] = extra_field()


def _thoughts(value: Any) -> list[ContentChunk]:
    with at("thinking"):
        return chunks_from(value)  # which is defined below, because it has to know the class below this


@attrs.frozen
class ThinkChunk(Model):
    """What the model thought before it answered: text and reference chunks."""

    thinking: Sequence[ContentChunk] = attrs.field(converter=_thoughts)
    closed: bool | None = attrs.field(default=None, validator=of_type(bool, optional=True))
    type: str = constant("thinking")
    extra: Mapping[str, Any] = extra_field()

    @property
    def text(self) -> str:
        """The thought as one text."""
        return "".join(chunk.text for chunk in self.thinking if isinstance(chunk, TextChunk))


ContentChunk: TypeAlias = (
    "TextChunk | ImageURLChunk | DocumentURLChunk | ReferenceChunk | FileChunk | ThinkChunk | AudioChunk | UnknownChunk"
)
Content: TypeAlias = "str | list[ContentChunk]"

_KINDS: dict[str, type[Model]] = {
    "text": TextChunk,
    "image_url": ImageURLChunk,
    "document_url": DocumentURLChunk,
    "reference": ReferenceChunk,
    "file": FileChunk,
    "thinking": ThinkChunk,
    "input_audio": AudioChunk,
}
_CLASSES = (*_KINDS.values(), UnknownChunk)


def chunk_from(value: Any) -> ContentChunk:
    """Return a content chunk from a chunk, its JSON object, or a bare text."""
    if isinstance(value, _CLASSES):
        return value  # type: ignore[return-value]  # mypy loses the union in the tuple of classes
    if isinstance(value, str):
        return TextChunk(value)
    kind = mapping(value, "a content chunk").get("type")
    if not isinstance(kind, str):
        return UnknownChunk(extra=value)
    return _KINDS.get(kind, UnknownChunk).from_dict(value)  # type: ignore[return-value]  # as above


_chunks_of = each(chunk_from)


def chunks_from(value: Any) -> list[ContentChunk]:
    """Return a list of content chunks; a bare text is one text chunk."""
    return [TextChunk(value)] if isinstance(value, str) else _chunks_of(value)


def content_from(value: Any) -> Content:
    """Return a message's content: a text as it is, anything else as a list of chunks."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bytes, Mapping)):
        raise TypeError(f"expected a text or a list of content chunks, got {value!r}")
    return _chunks_of(value)


def text_of(content: Any) -> str:
    """Return the text of a content, be it a text, chunks or their JSON objects; thoughts are not text."""
    if isinstance(content, str):
        return content
    return "".join(_texts(content or ()))


def _texts(parts: Any) -> Any:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, TextChunk):
            yield part.text


def thoughts_of(content: Any) -> str:
    """Return the text of the thinking chunks of a content."""
    if not content or isinstance(content, str):
        return ""
    return "".join(part.text for part in content if isinstance(part, ThinkChunk))

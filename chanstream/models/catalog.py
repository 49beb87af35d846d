"""What models a server has and what they can do. Source: https://docs.mistral.ai/api/#tag/models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .codec import Model, each, extra_field, loaded


@attrs.frozen
class ModelCapabilities(Model):
    """What a model can do, or is wanted to. What a server says beyond that lies in ``extra``.

    Servers that say nothing of capabilities, as all but Mistral's, leave all of them False.
    """

    completion_chat: bool = attrs.field(default=False, kw_only=True)
    completion_fim: bool = attrs.field(default=False, kw_only=True)
    function_calling: bool = attrs.field(default=False, kw_only=True)
    vision: bool = attrs.field(default=False, kw_only=True)
    audio: bool = attrs.field(default=False, kw_only=True)
    ocr: bool = attrs.field(default=False, kw_only=True)
    classification: bool = attrs.field(default=False, kw_only=True)
    moderation: bool = attrs.field(default=False, kw_only=True)
    fine_tuning: bool = attrs.field(default=False, kw_only=True)
    extra: Mapping[str, Any] = extra_field()

    def include(self, wanted: ModelCapabilities) -> bool:
        """Return whether every capability that is wanted is there, those in ``extra`` among them."""
        mine = self.to_dict()
        return all(mine.get(name) for name, is_wanted in wanted.to_dict().items() if is_wanted)


@attrs.frozen
class ModelCard(Model):
    """A model as its server describes it.

    Attributes:
        created: When, in seconds since 1970.
        max_context_length: How many tokens a conversation may have; None where the server does not say.
        deprecation: When the model goes, as the server writes it (ISO 8601); None while it stays.
        default_model_temperature: The temperature where a request names none.
    """

    id: str = ""
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    name: str | None = None
    description: str | None = None
    type: str | None = None
    max_context_length: int | None = None
    default_model_temperature: float | None = None
    deprecation: str | None = None
    aliases: Sequence[str] = loaded(each(str), factory=list)
    capabilities: ModelCapabilities = loaded(ModelCapabilities.from_dict, factory=ModelCapabilities)
    extra: Mapping[str, Any] = extra_field()

    def can(self, wanted: ModelCapabilities) -> bool:
        """Return whether the model has every capability that is wanted."""
        return self.capabilities.include(wanted)


@attrs.frozen
class ModelList(Model):
    """All models of a server, as it sends them."""

    data: Sequence[ModelCard] = loaded(each(ModelCard.from_dict), factory=list)
    object: str = "list"
    extra: Mapping[str, Any] = extra_field()

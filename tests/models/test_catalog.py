"""Model cards, and what models can do."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import ModelCapabilities, ModelCard
from chanstream.models.codec import Model
from tests.models import FINITE, FLAG, INTEGER, comes_back, objects

CAPABILITIES = objects({field.name: FLAG for field in attrs.fields(ModelCapabilities) if field.name != "extra"})
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    ModelCapabilities: CAPABILITIES,
    ModelCard: objects(
        {
            "id": st.text(),
            "object": st.text(),
            "created": INTEGER,
            "owned_by": st.text(),
            "aliases": st.lists(st.text()),
            "capabilities": CAPABILITIES,
        },
        {"deprecation": st.text(), "default_model_temperature": FINITE, "name": st.text(), "type": st.text()},
    ),
}


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever a card holds comes back exactly, explicit nulls and what is new too."""
    assert comes_back(cls, data.draw(OBJECTS[cls]))


class TestCan:
    CARD = ModelCard.from_dict(
        {"id": "m", "capabilities": {"completion_chat": True, "vision": False, "telepathy": True, "ocr": None}}
    )

    @pytest.mark.parametrize(
        ("wanted", "can"),
        [
            (ModelCapabilities(), True),
            (ModelCapabilities(completion_chat=True), True),
            (ModelCapabilities(completion_chat=True, vision=False), True),
            (ModelCapabilities(completion_chat=True, vision=True), False),
            (ModelCapabilities(ocr=True), False),
            (ModelCapabilities(audio=True), False),
            (ModelCapabilities(extra={"telepathy": True}), True),
            (ModelCapabilities(extra={"clairvoyance": True}), False),
        ],
    )
    def test_what_is_wanted(self, wanted: ModelCapabilities, can: bool) -> None:
        """A model fits if it has all that is wanted; what is not wanted does not matter."""
        assert self.CARD.can(wanted) is can

    def test_of_one_that_says_nothing(self) -> None:
        """A model of which nothing is said fits only where nothing is wanted."""
        card = ModelCard.from_dict({"id": "m", "object": "model", "created": 1, "owned_by": "me"})
        assert card.can(ModelCapabilities())
        assert not card.can(ModelCapabilities(completion_chat=True))

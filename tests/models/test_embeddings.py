"""Embeddings: the request, and vectors however they travel."""

from __future__ import annotations

import base64
import struct
import sys
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import Embedding, EmbeddingRequest, EmbeddingResponse
from chanstream.models.codec import Model
from tests.models import INTEGER, NUMBER, comes_back, objects

USAGE = objects(dict.fromkeys(["prompt_tokens", "completion_tokens", "total_tokens"], INTEGER))
EMBEDDING = objects({"embedding": st.lists(NUMBER) | st.text(), "index": INTEGER, "object": st.text()})
OBJECTS: dict[type[Model], st.SearchStrategy[dict[str, Any]]] = {
    EmbeddingRequest: objects(
        {"model": st.text(min_size=1), "input": st.lists(st.text(), min_size=1)},
        {
            "output_dimension": st.integers(min_value=1),
            "output_dtype": st.sampled_from(["float", "int8", "uint8", "binary", "ubinary"]),
            "encoding_format": st.sampled_from(["float", "base64"]),
        },
    ),
    Embedding: EMBEDDING,
    EmbeddingResponse: objects(
        {"data": st.lists(EMBEDDING), "id": st.text(), "object": st.text(), "model": st.text()}, {"usage": USAGE}
    ),
}


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_nothing_is_lost(cls: type[Model], data: st.DataObject) -> None:
    """Whatever an object holds comes back exactly."""
    assert comes_back(cls, data.draw(OBJECTS[cls]))


def packed(numbers: list[Any], kind: str = "f") -> str:
    """Return numbers in base64, as servers send them: little-endian."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}{kind}", *numbers)).decode()


class TestRequest:
    def test_what_is_unset(self) -> None:
        """An option that is not set is not sent."""
        assert EmbeddingRequest("m", ["a", "b"]).to_dict() == {"model": "m", "input": ["a", "b"]}

    def test_one_text(self) -> None:
        """One text alone is a list of one."""
        assert EmbeddingRequest("m", "a").to_dict() == {"model": "m", "input": ["a"]}

    def test_tokens(self) -> None:
        """Texts may be lists of tokens already."""
        assert EmbeddingRequest("m", [[1, 2], [3]]).to_dict()["input"] == [[1, 2], [3]]

    @pytest.mark.parametrize(
        ("change", "kind", "text"),
        [
            ({"model": ""}, ValueError, "model: expected a text"),
            ({"model": None}, TypeError, "model: expected str"),
            ({"input": []}, ValueError, "input: expected one text or more"),
            ({"input": None}, ValueError, "input: expected one text or more"),
            ({"input": 5}, TypeError, "input: expected a list, got 5"),
            ({"input": b"text"}, TypeError, "input: expected a list"),
            ({"output_dimension": 0}, ValueError, "output_dimension: expected 1 or more, got 0"),
            ({"output_dimension": 1.5}, TypeError, "output_dimension: expected int"),
            ({"output_dimension": True}, TypeError, "output_dimension: expected int"),
            ({"output_dtype": "int4"}, ValueError, "output_dtype: expected one of 'float', "),
            ({"encoding_format": "hex"}, ValueError, "encoding_format: expected one of 'float', 'base64', got 'hex'"),
        ],
    )
    def test_a_wrong_one(self, change: dict[str, Any], kind: type[Exception], text: str) -> None:
        """What cannot be is refused at once, and named."""
        with pytest.raises(kind) as caught:
            EmbeddingRequest(**{"model": "m", "input": ["a"], **change})
        assert str(caught.value).startswith(text)


class TestVectors:
    def test_of_numbers(self) -> None:
        """Numbers come as they are, in the order of the inputs, whichever order the server has."""
        data = [Embedding([0.5, 2], 1), Embedding([0.25, 1], 0)]
        assert EmbeddingResponse(data).vectors() == [[0.25, 1], [0.5, 2]]

    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
    def test_of_base64(self, numbers: list[float]) -> None:
        """Base64 holds the same numbers as 32-bit floats."""
        assert EmbeddingResponse([Embedding(packed(numbers))]).vectors() == [numbers]

    @pytest.mark.parametrize(
        ("dtype", "numbers", "kind"),
        [("int8", [-128, 0, 127], "b"), ("uint8", [0, 255], "B"), ("binary", [-1], "b"), ("ubinary", [255], "B")],
    )
    def test_of_every_type(self, dtype: str, numbers: list[int], kind: str) -> None:
        """It holds whole numbers where those were asked for."""
        response = EmbeddingResponse([Embedding(packed(numbers, kind))], dtype=dtype)
        assert response.vectors() == [numbers]
        assert str(response.vectors(as_numpy=True).dtype) == ("int8" if kind == "b" else "uint8")

    def test_as_numpy(self) -> None:
        """Asked for it, an array has a row for each input."""
        array = EmbeddingResponse([Embedding([1.0, 2.0]), Embedding(packed([3.0, 4.0]), 1)]).vectors(as_numpy=True)
        assert array.shape == (2, 2)
        assert array.dtype == numpy.float32
        assert array.tolist() == [[1, 2], [3, 4]]

    def test_without_numpy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where NumPy is not there the error says what to install; lists need none."""
        monkeypatch.setitem(sys.modules, "numpy", None)
        response = EmbeddingResponse([Embedding([1.0])])
        assert response.vectors() == [[1.0]]
        with pytest.raises(ImportError, match="pip install numpy"):
            response.vectors(as_numpy=True)

    @pytest.mark.parametrize("text", ["%%%", "AAA", base64.b64encode(b"abc").decode()])
    def test_what_is_none(self, text: str) -> None:
        """What holds no numbers is an error that names its place."""
        response = EmbeddingResponse([Embedding([1.0]), Embedding(text, 1)])
        with pytest.raises(ValueError, match=r"^data\[1\]\.embedding: expected float numbers in base64"):
            response.vectors()

    @pytest.mark.parametrize("value", [None, 5, {"a": 1}])
    def test_what_cannot_be(self, value: Any) -> None:
        """A vector that is neither numbers nor base64 is refused with its place."""
        data = {"data": [{"embedding": [1.0]}, {"embedding": value}]}
        if value is None:
            assert EmbeddingResponse.from_dict(data).data[1].embedding == []
            return
        with pytest.raises(TypeError, match=r"^data\[1\]\.embedding: expected"):
            EmbeddingResponse.from_dict(data)

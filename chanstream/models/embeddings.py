"""The request for embeddings and its answer.

Sources: https://docs.mistral.ai/api/#tag/embeddings and
https://platform.openai.com/docs/api-reference/embeddings/create.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import attrs

from .chat import UsageInfo
from .codec import Model, at, each, extra_field, loaded, named, not_empty, of_type

_TYPECODES = {"float": "f", "int8": "b", "uint8": "B", "binary": "b", "ubinary": "B"}
"""What numbers of each type are in an `array`; ``binary`` and ``ubinary`` have eight dimensions in one number."""

_NUMPY_TYPES = {"float": "float32", "int8": "int8", "uint8": "uint8", "binary": "int8", "ubinary": "uint8"}


def _texts(value: Any) -> list[Any]:
    """Return the inputs as a list: one text is a list of one. Lists of tokens (numbers) are let pass."""
    if isinstance(value, str):
        return [value]
    return each(lambda item: item)(value)


def _something(_: Any, field: Any, value: Any) -> None:
    if not value:
        raise ValueError(f"{field.name}: expected one text or more, got {value!r}")


def _one_of(*words: str) -> Any:
    def check(_: Any, field: Any, value: Any) -> None:
        if value is not None and value not in words:
            raise ValueError(f"{field.name}: expected one of {', '.join(map(repr, words))}, got {value!r}")

    return attrs.field(default=None, kw_only=True, validator=check)


def _dimension(_: Any, field: Any, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{field.name}: expected 1 or more, got {value!r}")


@attrs.frozen
class EmbeddingRequest(Model):
    """What to embed.

    An option that is None is not sent. What this class does not know goes into ``extra`` and is sent as it is.

    Attributes:
        model: The model's id.
        input: The texts; one text alone is a list of one.
        output_dimension: How many numbers a vector has; sent as ``dimensions`` where the dialect calls it so.
        output_dtype: What they are: ``"float"``, ``"int8"``, ``"uint8"``, or eight bits in each: ``"binary"``,
            ``"ubinary"``.
        encoding_format: How they travel: ``"float"`` for JSON numbers, ``"base64"`` for a quarter of the bytes.

    Raises:
        TypeError: A field is of the wrong type; the text names it.
        ValueError: A field has a value that cannot be; the text names it.
    """

    model: str = attrs.field(validator=[of_type(str), not_empty])
    input: Sequence[Any] = loaded(_texts, converter=named("input", _texts), validator=_something)
    output_dimension: int | None = attrs.field(
        default=None, kw_only=True, validator=[of_type(int, optional=True), _dimension]
    )
    output_dtype: str | None = _one_of(*_TYPECODES)
    encoding_format: str | None = _one_of("float", "base64")
    extra: Mapping[str, Any] = extra_field()


@attrs.frozen
class Embedding(Model):
    """The vector of one input.

    Attributes:
        embedding: As it travels: numbers, or base64.
        index: The place of its input in the request.
    """

    embedding: Sequence[float] | str = attrs.field(factory=list, validator=of_type(list, tuple, str))
    index: int = 0
    object: str = "embedding"
    extra: Mapping[str, Any] = extra_field()

    def vector(self, dtype: str = "float") -> list[float]:
        """Return the numbers.

        Args:
            dtype: What base64 holds, as `EmbeddingRequest.output_dtype`.

        Raises:
            ValueError: It holds no such numbers.
        """
        if not isinstance(self.embedding, str):
            return list(self.embedding)
        numbers: array[Any] = array(_TYPECODES[dtype])
        try:
            numbers.frombytes(base64.b64decode(self.embedding, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"embedding: expected {dtype} numbers in base64 ({error})") from None
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()


@attrs.frozen
class EmbeddingResponse(Model):
    """The vectors of all inputs.

    Attributes:
        usage: Token counts; None where the server sent none.
        dtype: What the numbers are, as was asked for.
        latency: Seconds from sending the request to the end of the answer, retries and waits included.
        raw: The JSON object as it came.
    """

    data: Sequence[Embedding] = loaded(each(Embedding.from_dict), factory=list)
    id: str = ""
    object: str = "list"
    model: str = ""
    usage: UsageInfo | None = loaded(UsageInfo.from_dict, default=None)
    extra: Mapping[str, Any] = extra_field()
    dtype: str = attrs.field(default="float", kw_only=True, metadata={"wire": False})
    latency: float = attrs.field(default=0.0, kw_only=True, eq=False, metadata={"wire": False})
    raw: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, eq=False, repr=False, metadata={"wire": False})

    @overload
    def vectors(self, *, as_numpy: Literal[False] = ...) -> list[list[float]]: ...
    @overload
    def vectors(self, *, as_numpy: Literal[True]) -> Any: ...
    def vectors(self, *, as_numpy: bool = False) -> Any:
        """Return the vectors in the order of the inputs, whether they came as numbers or in base64.

        Args:
            as_numpy: Whether to return a `numpy.ndarray` of shape (inputs, numbers of a vector), of float32, int8 or
                uint8, and not lists.

        Raises:
            ValueError: A vector is not what it should be; the text names its place.
            ImportError: NumPy was asked for and is not installed.
        """
        vectors = []
        for place, item in enumerate(sorted(self.data, key=lambda item: item.index)):
            with at(f"data[{place}]"):
                vectors.append(item.vector(self.dtype))
        if not as_numpy:
            return vectors
        try:
            import numpy
        except ImportError as error:
            raise ImportError("vectors(as_numpy=True) needs NumPy: pip install numpy") from error
        return numpy.array(vectors, dtype=_NUMPY_TYPES[self.dtype])

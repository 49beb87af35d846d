"""What the tests of the models share: arbitrary JSON, and the question whether a value comes back as it went in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from chanstream.models.codec import Model

INTEGER = st.integers(-(2**63), 2**64 - 1)  # more is beyond what JSON readers agree on
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBER = INTEGER | FINITE
FLAG = st.booleans()
SCALARS = st.none() | FLAG | NUMBER | st.text()

JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)

OBJECT = st.dictionaries(st.text(), JSON, max_size=3)


def objects(
    required: Mapping[str, st.SearchStrategy[Any]],
    optional: Mapping[str, st.SearchStrategy[Any]] | None = None,
) -> st.SearchStrategy[dict[str, Any]]:
    """Return JSON objects with these fields, the optional ones there, null or missing, and any others beside them."""
    optional = optional or {}
    names = {*required, *optional}
    others = st.dictionaries(st.text().filter(lambda name: name not in names), JSON, max_size=3)
    known = st.fixed_dictionaries(
        dict(required), optional={name: st.none() | values for name, values in optional.items()}
    )
    return st.builds(lambda fields, more: {**more, **fields}, known, others)


def text_of(data: Any) -> str:
    """Return JSON text that differs whenever two values differ, as 1, 1.0 and True do not."""
    return json.dumps(data, sort_keys=True)


def comes_back(cls: type[Model], data: Mapping[str, Any]) -> bool:
    """Return whether an object becomes a value and that value the same object again, twice over."""
    value = cls.from_dict(data)
    again = value.to_dict()
    return text_of(again) == text_of(data) and cls.from_dict(again) == value

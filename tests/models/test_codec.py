"""The codec: models to JSON and back, and the one place that knows how JSON is written and read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    FunctionCall,
    ResponseFormat,
    TextChunk,
    Tool,
    ToolCall,
    UsageInfo,
    UserMessage,
)
from chanstream.models.codec import Model, best_loads, dumps
from tests.models import JSON, comes_back, text_of


class TestFromDict:
    @pytest.mark.parametrize("data", [None, "text", b"{}", 5, [], [("text", "x")]])
    def test_what_is_no_object(self, data: Any) -> None:
        """Only a mapping becomes a value; the error shows what came instead."""
        with pytest.raises(TypeError, match="expected an object as a mapping, got"):
            TextChunk.from_dict(data)

    def test_a_missing_field(self) -> None:
        """A required field that is not there is named."""
        with pytest.raises(ValueError, match=r"^text: missing$"):
            TextChunk.from_dict({"type": "text"})

    def test_a_null_in_place_of_a_required_field(self) -> None:
        """Null is no value for a required field."""
        with pytest.raises(ValueError, match=r"^text: missing$"):
            TextChunk.from_dict({"type": "text", "text": None})

    def test_a_constant_that_is_another(self) -> None:
        """A field that marks the kind must have the kind's value, or not be there."""
        assert TextChunk.from_dict({"text": "x"}) == TextChunk("x")
        with pytest.raises(ValueError, match=r"^type: expected 'text'$"):
            TextChunk.from_dict({"type": "image_url", "text": "x"})

    def test_the_input_is_not_changed(self) -> None:
        """Reading an object leaves it as it was, and later changes of the value's object do not reach it."""
        data: dict[str, Any] = {"type": "text", "text": "x", "more": 1}
        TextChunk.from_dict(data).to_dict()["more"] = 2
        assert data == {"type": "text", "text": "x", "more": 1}


class TestExtra:
    def test_it_goes_out(self) -> None:
        """What a model does not know is sent as it is."""
        assert TextChunk("x", extra={"cache": {"ttl": 5}}).to_dict() == {
            "type": "text",
            "text": "x",
            "cache": {"ttl": 5},
        }

    def test_it_does_not_replace_a_field(self) -> None:
        """A field of the model wins over one of the same name in extra."""
        assert TextChunk("x", extra={"text": "y"}).to_dict()["text"] == "x"

    def test_it_is_copied(self) -> None:
        """The mapping that was given may change afterwards without changing the value."""
        extra = {"a": 1}
        chunk = TextChunk("x", extra=extra)
        extra["b"] = 2
        assert chunk.extra == {"a": 1}

    @pytest.mark.parametrize("extra", [None, "abc", 5])
    def test_what_is_no_mapping(self, extra: Any) -> None:
        """Anything but a mapping is refused by an error that names the field."""
        with pytest.raises(TypeError, match=r"^extra: expected"):
            ChatCompletionRequest("m", [UserMessage("x")], extra=extra)


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        (FunctionCall, {"name": None, "arguments": '{"a":1}'}),
        (FunctionCall, {"name": "f", "arguments": None}),
        (ToolCall, {"id": "1", "function": None}),
        (UsageInfo, {"prompt_tokens": 1, "completion_tokens": None, "total_tokens": 1}),
        (Tool, {"type": None, "function": {"name": "f"}}),
        (ResponseFormat, {"type": None}),
        (
            ChatCompletionResponse,
            {"id": None, "object": None, "created": None, "model": None, "choices": [], "usage": None},
        ),
    ],
)
def test_a_null_where_the_default_is_not_none(cls: type[Model], data: dict[str, Any]) -> None:
    """An explicit null comes back as null, also in a field whose own default is another value."""
    assert comes_back(cls, {**cls.from_dict(data).to_dict(), **data})


class TestDumps:
    def test_its_form(self) -> None:
        """JSON is written without blanks and in UTF-8."""
        assert dumps({"a": [1, 2.5, None, True], "ü": "€"}) == '{"a":[1,2.5,null,true],"ü":"€"}'.encode()

    def test_half_a_surrogate_pair(self) -> None:
        """A text with half a surrogate pair, which UTF-8 cannot hold, is written with an escape."""
        assert dumps({"a": "\ud83d"}) == b'{"a":"\\ud83d"}'

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_a_number_that_is_none(self, number: float) -> None:
        """NaN and infinities, which JSON does not have, are refused."""
        with pytest.raises(ValueError, match="not JSON compliant"):
            dumps({"temperature": number})

    def test_what_json_does_not_have(self) -> None:
        """A value of a type that JSON does not have is refused."""
        with pytest.raises(TypeError, match="not JSON serializable"):
            dumps({"a": object()})

    @given(JSON)
    def test_it_is_read_as_it_was_written(self, data: Any) -> None:
        """All JSON values survive being written and read."""
        assert text_of(best_loads()(dumps(data))) == text_of(data)


@pytest.fixture(params=["orjson", "json"])
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Any]]:
    """The function that reads JSON, with orjson and as if it was not installed."""
    if request.param == "orjson":
        pytest.importorskip("orjson")
    else:
        monkeypatch.setitem(sys.modules, "orjson", None)
    best_loads.cache_clear()
    yield best_loads()
    best_loads.cache_clear()


class TestLoads:
    @pytest.mark.parametrize("text", ["", " ", "{", "{}x", "[1,]", "'a'", "undefined", "{'a': 1}", "\ufeff", "01"])
    def test_what_is_no_json(self, loads: Callable[[bytes], Any], text: str) -> None:
        """What is no JSON raises ValueError."""
        with pytest.raises(ValueError):  # noqa: PT011 - the words are those of either library
            loads(text.encode())

    def test_bad_utf_8(self, loads: Callable[[bytes], Any]) -> None:
        """Each byte that is no UTF-8 becomes U+FFFD."""
        assert loads(b'{"a": "\xff-\xfe"}') == {"a": "\ufffd-\ufffd"}

    def test_half_a_surrogate_pair(self, loads: Callable[[bytes], Any]) -> None:
        """An escape for half a surrogate pair is let pass."""
        assert loads(b'"\\ud83d"') == "\ud83d"

    def test_nan(self, loads: Callable[[bytes], Any]) -> None:
        """NaN, which some Python servers write, is let pass."""
        assert math.isnan(loads(b"[NaN]")[0])

    def test_deep_nesting(self, loads: Callable[[bytes], Any]) -> None:
        """JSON too deep to be read is a ValueError, like all that cannot be read."""
        depth = 100_000
        with pytest.raises(ValueError):  # noqa: PT011 - the words are those of either library
            loads(b"[" * depth + b"]" * depth)

    @pytest.mark.parametrize(
        "text",
        [
            "18446744073709551615",
            "-9223372036854775808",
            "1e400",
            "-0",
            "-0.0",
            "1E5",
            "0.1",
            "5e-324",
            '{"a":1,"a":2}',
        ],
    )
    def test_the_edges(self, loads: Callable[[bytes], Any], text: str) -> None:
        """Numbers of up to 64 bits, and repeated names, are read as the standard library reads them."""
        assert repr(loads(text.encode())) == repr(json.loads(text))

    @given(data=JSON, indent=st.none() | st.integers(0, 2), plain=st.booleans())
    def test_any_json(self, data: Any, indent: int | None, plain: bool) -> None:
        """Every text that the standard library writes is read as it was meant."""
        text = json.dumps(data, indent=indent, ensure_ascii=plain)
        assert text_of(best_loads()(text.encode())) == text_of(data)

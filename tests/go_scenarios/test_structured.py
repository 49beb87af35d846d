"""The three forms of an answer, and what is in it."""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import ChatCompletionRequest, JSONSchema, ResponseFormat, UserMessage
from chanstream.testing import Reply
from tests.conftest import Link
from tests.go_scenarios import mistral

SCHEMA = {"type": "object", "properties": {"joke": {"type": "string"}, "laughs": {"type": "integer", "default": 50}}}

FORMS: list[tuple[ResponseFormat, dict[str, Any]]] = [
    (ResponseFormat("text"), {"type": "text"}),
    (ResponseFormat("json_object"), {"type": "json_object"}),
    (
        ResponseFormat("json_schema", JSONSchema("a_joke", SCHEMA, strict=True)),
        {"type": "json_schema", "json_schema": {"name": "a_joke", "schema": SCHEMA, "strict": True}},
    ),
]


@pytest.mark.parametrize(("form", "data"), FORMS, ids=["text", "json_object", "json_schema"])
def test_a_form(plain: Link, form: ResponseFormat, data: dict[str, Any]) -> None:
    """A form goes out as it does there, but for the schema's name, which is the caller's here."""
    server = plain.serve('{"joke": "Two threads.", "laughs": 3}')
    request = ChatCompletionRequest("a-model", [UserMessage("A joke!")], response_format=form)
    answer = mistral(plain, server).chat_completion(request)
    assert server.requests[0].json["response_format"] == data
    assert answer.output(dict) == {"joke": "Two threads.", "laughs": 3}


def test_an_answer_of_another_form(plain: Link) -> None:
    """An answer that is no JSON is an error that shows its beginning."""
    server = plain.serve(Reply("Here is a joke."))
    answer = mistral(plain, server).chat_completion(ChatCompletionRequest("a-model", [UserMessage("A joke!")]))
    with pytest.raises(ValueError, match="Here is a joke"):
        answer.output(dict)

"""The text of refusals."""

from __future__ import annotations

from typing import Any

import pytest

from chanstream import APIStatusError

FORBIDDEN = {
    "type": "extra_forbidden",
    "loc": ["body", "parallel_tool_calls"],
    "msg": "Extra inputs are not permitted",
    "input": True,
}
MISSING = {
    "type": "missing_required",
    "loc": ["body", "messages"],
    "msg": "Missing required property: messages",
    "input": False,
}
_FORBIDDEN_TEXT = "extra_forbidden: Extra inputs are not permitted (body.parallel_tool_calls)"
_MISSING_TEXT = "missing_required: Missing required property: messages (body.messages)"


def refusal(message: Any, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """Return the body of a refusal of Mistral's."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (400, refusal({"detail": [FORBIDDEN]}), f"[400] invalid_request_error: {_FORBIDDEN_TEXT}"),
        (401, {"detail": "Unauthorized"}, "[401] Unauthorized"),
        (
            400,
            refusal({"detail": [FORBIDDEN, MISSING]}),
            f"[400] invalid_request_error: {_FORBIDDEN_TEXT}; {_MISSING_TEXT}",
        ),
        (
            400,
            refusal("This model does not support output_dimension.", "invalid_request_invalid_args", "3051"),
            "[400] invalid_request_invalid_args: This model does not support output_dimension.",
        ),
    ],
)
def test_the_text_of_a_refusal(status: int, body: dict[str, Any], text: str) -> None:
    """A refusal reads as it does there, whatever the shape of its body, which stays on the error."""
    error = APIStatusError.from_status(status, body)
    assert str(error) == text
    assert error.body == body
    assert error.code == body.get("code")

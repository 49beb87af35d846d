"""The answer to a request that asked for no stream. Sans-IO as all of wire/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import StreamAPIError, StreamDecodeError
from ..models.codec import best_loads

M = TypeVar("M")


def answer_of(body: bytes, content_type: str, what: str, key: str, load: Callable[[Any], M]) -> M:
    """Return what a body holds, as ``load`` makes it of a JSON object that has this key.

    Args:
        body: The body.
        content_type: What it is labelled as, for the error.
        what: What it should be, for the error.
        key: What the object must have; choices must not be empty either.
        load: Makes a model of the object.

    Raises:
        StreamAPIError: It tells of an error.
        StreamDecodeError: It is something else.
    """
    try:
        data = best_loads()(body)
        _check_answer(data, key)
        answer = load(data)
    except (TypeError, ValueError) as error:
        start = " ".join(body[:200].decode("utf-8", "replace").split())
        raise StreamDecodeError(f"expected {what}, got {content_type}: {start!r} ({error})") from None
    if hasattr(answer, "raw"):
        object.__setattr__(answer, "raw", data)
    return answer


def _check_answer(data: Any, key: str) -> None:
    """Raise what a JSON object says that is no answer; one without choices is none either, however whole it looks."""
    if not isinstance(data, dict) or data.get(key) or (key in data and key != "choices"):
        return
    if data.get("error") or data.get("object") == "error" or "detail" in data:
        raise StreamAPIError.from_body(data)
    raise ValueError(f"{key}: {'empty' if key in data else 'missing'}")

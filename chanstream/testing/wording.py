"""The two vocabularies that replies are written in: JSON, and the words of HTTP's status codes."""

from __future__ import annotations

import json
from http import HTTPStatus

_PHRASES = {int(status): status.phrase for status in HTTPStatus}


def encode_json(value: object) -> bytes:
    """Returns compact JSON in UTF-8; text outside ASCII is sent as it is, as most servers do."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def reason_phrase(status: int) -> str:
    """Returns the words that belong to a status code, or an empty string for a code that has none."""
    return _PHRASES.get(status, "")

"""What a client is given, checked: each function returns what is usable, or raises an error that names the argument."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
from typing import Any
from urllib.parse import quote, urlsplit

from .dialects import DIALECTS, Dialect
from .errors import ChanstreamError
from .transport.limits import RateLimiter


def in_a_path(name: str, value: str) -> str:
    """Return an id as a part of a URL's path; ids with a slash, as ``openai/gpt-oss-20b``, keep it."""
    parts = typed(name, value, str).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name}: expected an id, got {value!r}")
    return "/".join(quote(part, safe=":@") for part in parts)


def limiter_of(value: Any) -> RateLimiter | None:
    """Return a rate limiter, or None for none."""
    if isinstance(value, type):
        raise TypeError(f"rate_limiter: expected an object, got the class {value.__qualname__}")
    if value is not None and not isinstance(value, RateLimiter):
        wanted = "an object with ask(), such as chanstream.limits.RateLimit(50, per=10) or BucketLimit(bucket)"
        raise TypeError(f"rate_limiter: expected {wanted}, got {value!r}")
    return value


def dialect_of(value: str | Dialect) -> Dialect:
    """Return a dialect, which may be given by its name."""
    if isinstance(value, Dialect):
        return value
    return DIALECTS[one_of("dialect", value, tuple(DIALECTS))]


def key_of(given: str | None, dialect: Dialect) -> str:
    """Return the key that was given, or that of the environment; it is shown in no error."""
    key = os.environ.get(dialect.key_variable) if given is None else given
    if key is None:
        raise ChanstreamError(f"no API key: pass api_key=, or set {dialect.key_variable} (api_key='' sends none)")
    if not isinstance(key, str):
        raise TypeError(f"api_key: expected a text, got {type(key).__name__}")
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("api_key: expected printable ASCII; the key has other characters in it")  # never shown
    return key


def base_url_of(value: str) -> str:
    """Return the URL that paths are appended to."""
    given, value = value, typed("base_url", value, str).strip()
    if "@" in value or "?" in value or "#" in value:
        raise ValueError("base_url: expected a URL without user, query and fragment")  # not shown: it may hold a secret
    try:
        parts = urlsplit(value)
        if "[" in parts.netloc:
            ipaddress.ip_address(parts.hostname or "")  # older Pythons do not look what is in the brackets
        host_and_port = _HOST.fullmatch(parts.hostname or ""), parts.port
    except ValueError:  # a port that is no number, half a bracket
        raise ValueError(f"base_url: expected an http or https URL, got {given!r}") from None
    if parts.scheme not in ("http", "https") or not host_and_port[0] or host_and_port[1] == 0 or _BLANK.search(value):
        raise ValueError(f"base_url: expected an http or https URL, got {given!r}")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


_HOST = re.compile(r"[^.*%\\][^*%\\]*")
_BLANK = re.compile(r"[\x00-\x20\x7f]")


def typed(name: str, value: Any, kind: type) -> Any:
    """Return a value of a type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value


def asked(request: Any, kind: type) -> None:
    """Raise unless the request is of a kind; what it says is not shown, for it is somebody's conversation."""
    if not isinstance(request, kind):
        raise TypeError(f"request: expected {kind.__name__}, got {type(request).__name__}")


def at_least_1(name: str, value: int) -> int:
    """Return a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value!r}")
    return value


def seconds(name: str, value: float) -> float:
    """Return a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, got {value!r}")
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name}: expected seconds above 0 and up to {threading.TIMEOUT_MAX:.0f}, got {value!r}")
    return value


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return one of a few words."""
    if value not in allowed:
        raise ValueError(f"{name}: expected {', '.join(map(repr, allowed))}, got {value!r}")
    return value

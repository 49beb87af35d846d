"""Where entries are kept: what a `CachedClient` needs of it."""

from __future__ import annotations

import re
from typing import Protocol, runtime_checkable

_KEY = re.compile(r"[0-9a-f]+")


@runtime_checkable
class CacheEngine(Protocol):
    """Keeps bytes under keys. Any object with these two methods will do.

    What a method raises never reaches who asks for an answer: it is logged, and counts as a miss.

    Thread safety: a `CachedClient` calls both from many threads at a time.
    """

    def get(self, key: str) -> bytes | None:
        """Return what was set last under a key; None where there is nothing.

        Args:
            key: Hexadecimal digits, 64 of them.
        """

    def set(self, key: str, data: bytes) -> None:
        """Keep an entry under a key, in place of what was there. `get` must never return a part of it."""


def checked(key: str) -> str:
    """Return a key if it can be none but a key: it becomes part of a file's name.

    Raises:
        TypeError, ValueError: It is something else.
    """
    if not isinstance(key, str):
        raise TypeError(f"key: expected str, got {key!r}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key: expected hexadecimal digits, got {key!r}")
    return key

"""The page about rate limits: the limit that all machines share."""

from __future__ import annotations

from typing import Any

from chanstream.limits import BucketLimit
from tests.docs.blocks import ROOT, python_blocks
from tests.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]  # the fixture

BLOCKS = python_blocks(ROOT / "docs" / "rate-limits.md")


def test_the_limit_of_all_machines(redis_server: RedisServer) -> None:
    """The page's function makes limits that share 50 requests per minute, if there is a Redis."""
    (code,) = (block.placed for block in BLOCKS if "def limit_of_all_machines" in block.code)
    names: dict[str, Any] = {}
    exec("from chanstream.limits import BucketLimit; from pyrate_limiter import Duration, Rate", names)
    exec(compile(code, "rate-limits.md", "exec"), names)
    limits: list[BucketLimit] = [names["limit_of_all_machines"](redis_server.url) for _ in range(2)]
    assert [limits[number % 2].ask() for number in range(50)] == [0] * 50
    assert all(limit.ask() > 1 for limit in limits)

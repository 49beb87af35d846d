"""A cache of answers: what was asked before is answered without asking the server again."""

from .client import CachedClient
from .engine import CacheEngine
from .files import FileCache
from .redis import RedisCache

__all__ = ["CacheEngine", "CachedClient", "FileCache", "RedisCache"]
